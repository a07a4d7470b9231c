//! Plots of a table, as SVG.

use anyhow::anyhow;
use plotters::coord::Shift;
use plotters::prelude::*;

use super::report::Row;

const SIZE: (u32, u32) = (960, 540);

/// Colors that stay apart for color-blind readers (Okabe and Ito 2008), and black for full precision.
const COLORS: [RGBColor; 8] = [
    RGBColor(0, 0, 0),
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(128, 128, 128),
];

/// Accuracy of every row with its deviation, in percent.
pub fn accuracy(title: &str, rows: &[Row]) -> anyhow::Result<String> {
    let rows: Vec<(&Row, f64, f64)> = rows
        .iter()
        .filter_map(|row| Some((row, 100.0 * row.top1_mean?, 100.0 * row.top1_std.unwrap_or(0.0))))
        .collect();
    draw(|area| {
        let low = rows.iter().map(|(_, mean, std)| mean - std).fold(100.0, f64::min);
        let high = rows.iter().map(|(_, mean, std)| mean + std).fold(0.0, f64::max);
        let margin = ((high - low) * 0.15).max(0.1);
        let n = rows.len().max(1) as f64;
        let mut chart = ChartBuilder::on(area)
            .caption(format!("{title}: test top-1 of the last epoch, %"), ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(0)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..n, (low - 4.0 * margin)..(high + margin))?;
        chart.configure_mesh().disable_x_mesh().disable_x_axis().light_line_style(WHITE).draw()?;
        for (i, (row, mean, std)) in rows.iter().enumerate() {
            let (x, color) = (i as f64 + 0.5, COLORS[precision_index(&rows, row) % COLORS.len()]);
            chart.draw_series([ErrorBar::new_vertical(
                x,
                mean - std,
                *mean,
                mean + std,
                color.filled(),
                10,
            )])?;
            let bits = if row.weight_bits == 32 {
                "fp32".into()
            } else {
                format!("W{}A{}", row.weight_bits, row.act_bits)
            };
            let method = if row.weight_bits == 32 { "" } else { row.method.as_str() };
            let text = |text: String, y: f64| {
                let style = ("sans-serif", 13).into_font().color(&color);
                Text::new(text, (x - 0.4, y), style)
            };
            chart.draw_series([
                text(method.into(), low - 1.4 * margin),
                text(bits, low - 2.1 * margin),
                text(format!("{mean:.2}"), low - 2.8 * margin),
            ])?;
        }
        Ok(())
    })
}

/// Index of a row's precision among those of all.
fn precision_index(rows: &[(&Row, f64, f64)], row: &Row) -> usize {
    let mut precisions: Vec<(u32, u32)> =
        rows.iter().map(|(row, ..)| (row.weight_bits, row.act_bits)).collect();
    precisions.dedup();
    precisions.iter().position(|precision| *precision == (row.weight_bits, row.act_bits)).unwrap_or(0)
}

/// Mean test accuracy of every row over the epochs, in percent: one panel for each precision, full precision in each.
pub fn curves(title: &str, rows: &[Row]) -> anyhow::Result<String> {
    let mut precisions: Vec<(u32, u32)> = rows
        .iter()
        .filter(|row| row.weight_bits != 32 && !row.curve.is_empty())
        .map(|row| (row.weight_bits, row.act_bits))
        .collect();
    precisions.dedup();
    if precisions.is_empty() {
        precisions.push((32, 32));
    }
    draw(|area| {
        let panels = area.split_evenly((1, precisions.len()));
        for (panel, precision) in panels.iter().zip(&precisions) {
            let shown = |row: &&Row| {
                let bits = (row.weight_bits, row.act_bits);
                !row.curve.is_empty() && (bits == *precision || bits == (32, 32))
            };
            let rows: Vec<&Row> = rows.iter().filter(shown).collect();
            panel_of_curves(panel, &format!("{title}, W{}A{}", precision.0, precision.1), &rows)?;
        }
        Ok(())
    })
}

fn panel_of_curves(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    title: &str,
    rows: &[&Row],
) -> anyhow::Result<()> {
    let points = || rows.iter().flat_map(|row| &row.curve);
    let epochs = points().map(|point| point.0).max().unwrap_or(1);
    let mut values: Vec<f64> = points().map(|point| 100.0 * point.1).collect();
    values.sort_by(f64::total_cmp);
    // The first epochs are far below the rest, which is what is to be compared.
    let low = values.get(values.len() / 5).copied().unwrap_or(0.0);
    let high = values.last().copied().unwrap_or(100.0);
    let margin = ((high - low) * 0.05).max(0.1);
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{title}: test top-1, %"), ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(56)
        // The room on the right is for the names.
        .build_cartesian_2d(1.0..1.0 + 1.4 * (epochs.max(2) - 1) as f64, (low - margin)..(high + margin))?;
    let whole = |epoch: &f64| {
        if *epoch > epochs as f64 || epoch.fract() != 0.0 { String::new() } else { epoch.to_string() }
    };
    chart.configure_mesh().x_desc("epoch").x_label_formatter(&whole).light_line_style(WHITE).draw()?;
    for (i, row) in rows.iter().enumerate() {
        let color = COLORS[i % COLORS.len()];
        // A second round through the colors is drawn thinner.
        let style = color.stroke_width(if i < COLORS.len() { 2 } else { 1 });
        let line = row.curve.iter().map(|&(epoch, top1)| (epoch as f64, 100.0 * top1));
        let line = line.skip_while(|&(_, top1)| top1 < low - margin);
        chart
            .draw_series(LineSeries::new(line, style))?
            .label(row.method.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.9))
        .border_style(WHITE)
        .draw()?;
    Ok(())
}

fn draw(
    paint: impl FnOnce(&DrawingArea<SVGBackend<'_>, Shift>) -> anyhow::Result<()>,
) -> anyhow::Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE).map_err(|error| anyhow!("failed to draw: {error}"))?;
        paint(&area)?;
        area.present().map_err(|error| anyhow!("failed to draw: {error}"))?;
    }
    Ok(svg)
}
