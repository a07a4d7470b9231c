//! Plots of a table, as SVG and as PNG of twice the size.

use std::sync::Once;

use anyhow::{Context, anyhow};
use plotters::coord::Shift;
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::register_font;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::report::{Comparison, Row, precision};

const WIDTH: u32 = 960;

/// Of a row's line in the plot of accuracies.
const LINE_HEIGHT: u32 = 24;

/// Of a precision's panel of curves.
const PANEL_HEIGHT: u32 = 400;

/// Room for the names of the rows on the left of their accuracies, and on the right of the curves: at least, and at most.
const NAMES_WIDTH: [u32; 2] = [190, 420];

/// Of a letter of a name, more or less.
const LETTER_WIDTH: u32 = 7;

/// Size of most letters.
const LETTERS: u32 = 14;

const FONT: &str = "sans-serif";

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

/// Pixels of a PNG for each of an SVG.
const PNG_SCALE: u32 = 2;

/// A figure, in both formats.
pub struct Figure {
    pub svg: String,
    pub png: Vec<u8>,
}

/// Where a figure is painted, and the pixels for each of its units.
struct Canvas<'a, DB: DrawingBackend> {
    area: &'a DrawingArea<DB, Shift>,
    scale: u32,
}

impl<DB: DrawingBackend> Canvas<'_, DB> {
    fn px(&self, n: u32) -> u32 {
        n * self.scale
    }

    fn at(&self, n: i32) -> i32 {
        n * self.scale as i32
    }

    fn font(&self, size: u32) -> (&'static str, u32) {
        (FONT, self.px(size))
    }

    fn text_style(&self, color: RGBColor, anchor: HPos) -> TextStyle<'static> {
        self.font(LETTERS).into_font().color(&color).pos(Pos::new(anchor, VPos::Center))
    }
}

/// What can be painted as often as there are formats.
trait Painting {
    fn height(&self) -> u32;

    fn paint<DB: DrawingBackend>(&self, canvas: &Canvas<'_, DB>) -> anyhow::Result<()>
    where
        DB::ErrorType: 'static;
}

fn figure(painting: &impl Painting) -> anyhow::Result<Figure> {
    let size = (WIDTH, painting.height());
    static FONTS: Once = Once::new();
    FONTS.call_once(|| {
        // Both formats are laid out by it; an SVG is shown in the viewer's own.
        let _ = register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT);
    });
    let mut svg = String::new();
    painted(painting, SVGBackend::with_string(&mut svg, size).into_drawing_area(), 1)?;
    let size = (PNG_SCALE * size.0, PNG_SCALE * size.1);
    let mut pixels = vec![0; 3 * size.0 as usize * size.1 as usize];
    painted(painting, BitMapBackend::with_buffer(&mut pixels, size).into_drawing_area(), PNG_SCALE)?;
    let mut png = Vec::new();
    let mut encoder = png::Encoder::new(&mut png, size.0, size.1);
    encoder.set_color(png::ColorType::Rgb);
    let write = || encoder.write_header()?.write_image_data(&pixels);
    write().context("failed to write a figure")?;
    Ok(Figure { svg, png })
}

fn painted<DB: DrawingBackend>(
    painting: &impl Painting,
    area: DrawingArea<DB, Shift>,
    scale: u32,
) -> anyhow::Result<()>
where
    DB::ErrorType: 'static,
{
    area.fill(&WHITE).map_err(failed)?;
    painting.paint(&Canvas { area: &area, scale })?;
    area.present().map_err(failed)
}

/// A value with half of its 95 % interval.
struct Line {
    name: String,
    value: f64,
    half: f64,
    color: RGBColor,
}

/// Accuracy of every row with its 95 % interval, in percent: a line for each.
pub fn accuracy(title: &str, rows: &[Row]) -> anyhow::Result<Figure> {
    let mut precisions: Vec<[u32; 2]> = rows.iter().map(|row| [row.weight_bits, row.act_bits]).collect();
    precisions.dedup();
    let line = |row: &Row| {
        let value = 100.0 * row.top1_mean?;
        let half = 100.0 * row.top1_interval.unwrap_or(0.0);
        Some(Line {
            name: name(row),
            value,
            half,
            color: color(&precisions, [row.weight_bits, row.act_bits]),
        })
    };
    let lines: Vec<Line> = rows.iter().filter_map(line).collect();
    let ended = rows.iter().filter(|row| row.top1_mean.is_some());
    let seeds = over_seeds(ended.map(|row| row.seeds).max());
    let caption = format!("{title}: test top-1 of the last epoch, %{seeds}");
    figure(&Intervals { caption, lines, with_zero: false })
}

/// Differences between rows with their 95 % intervals, in points: a line for each, and one at zero.
pub fn differences(title: &str, comparisons: &[Comparison]) -> anyhow::Result<Figure> {
    let bits = |comparison: &Comparison| [comparison.weight_bits, comparison.act_bits];
    let mut precisions: Vec<[u32; 2]> = comparisons.iter().map(bits).collect();
    precisions.dedup();
    let line = |comparison: &Comparison| {
        let Comparison { of, with, difference, interval, .. } = comparison;
        let name = format!("{} {of} - {with}", precision(bits(comparison)));
        let half = 100.0 * interval.unwrap_or(0.0);
        Some(Line { name, value: 100.0 * (*difference)?, half, color: color(&precisions, bits(comparison)) })
    };
    let lines: Vec<Line> = comparisons.iter().filter_map(line).collect();
    let seeds = over_seeds(comparisons.iter().map(|comparison| comparison.seeds).max());
    let caption = format!("{title}: differences of test top-1, points{seeds}");
    figure(&Intervals { caption, lines, with_zero: true })
}

fn over_seeds(n: Option<usize>) -> String {
    match n {
        Some(n) if n > 1 => format!(", mean and 95 % interval over {n} seeds"),
        _ => String::new(),
    }
}

/// The color of a precision among those of all.
fn color(precisions: &[[u32; 2]], bits: [u32; 2]) -> RGBColor {
    COLORS[precisions.iter().position(|known| *known == bits).unwrap_or(0) % COLORS.len()]
}

/// Lines of values with their intervals; at zero a line of its own, if asked for.
struct Intervals {
    caption: String,
    lines: Vec<Line>,
    with_zero: bool,
}

impl Painting for Intervals {
    fn height(&self) -> u32 {
        LINE_HEIGHT * self.lines.len().max(1) as u32 + 110
    }

    fn paint<DB: DrawingBackend>(&self, canvas: &Canvas<'_, DB>) -> anyhow::Result<()>
    where
        DB::ErrorType: 'static,
    {
        let Self { caption, lines, with_zero } = self;
        let n = lines.len().max(1);
        let names_width = names_width(lines.iter().map(|line| line.name.clone()));
        let [mut low, mut high] = if *with_zero { [0.0, 0.0] } else { [100.0, 0.0] };
        for Line { value, half, .. } in lines {
            (low, high) = (f64::min(low, value - half), f64::max(high, value + half));
        }
        let margin = ((high - low) * 0.05).max(0.1);
        let range = low.min(high) - margin..high.max(low) + margin;
        let mut chart = ChartBuilder::on(canvas.area)
            .caption(caption, canvas.font(20))
            .margin(canvas.px(12))
            .margin_right(canvas.px(72))
            .x_label_area_size(canvas.px(36))
            .y_label_area_size(canvas.px(names_width))
            // The first line is at the top.
            .build_cartesian_2d(range, n as f64..0.0)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .light_line_style(WHITE)
            .label_style(canvas.font(LETTERS))
            .draw()
            .map_err(failed)?;
        if *with_zero {
            let zero = [(0.0, 0.0), (0.0, n as f64)];
            let dash = canvas.px(4) as i32;
            let zero = DashedLineSeries::new(zero, dash, dash, BLACK.stroke_width(canvas.scale));
            chart.draw_series(zero).map_err(failed)?;
        }
        for (i, Line { name, value, half, color }) in lines.iter().enumerate() {
            let y = i as f64 + 0.5;
            let style = color.filled().stroke_width(canvas.scale);
            let bar = ErrorBar::new_horizontal(y, value - half, *value, value + half, style, canvas.px(10));
            chart.draw_series([bar]).map_err(failed)?;
            let (columns, _) = chart.plotting_area().get_pixel_range();
            let (_, line) = chart.plotting_area().map_coordinate(&(*value, y));
            let text = |text: &str, x: i32, anchor: HPos| {
                canvas.area.draw_text(text, &canvas.text_style(*color, anchor), (x, line)).map_err(failed)
            };
            text(&fitting(name, names_width), columns.start - canvas.at(10), HPos::Right)?;
            let shown = if *with_zero { format!("{value:+.2}") } else { format!("{value:.2}") };
            text(&shown, columns.end + canvas.at(10), HPos::Left)?;
        }
        Ok(())
    }
}

/// Room for these names.
fn names_width(names: impl Iterator<Item = String>) -> u32 {
    let longest = names.map(|name| name.chars().count() as u32).max().unwrap_or(0);
    (LETTER_WIDTH * longest + 20).clamp(NAMES_WIDTH[0], NAMES_WIDTH[1])
}

/// The name, cut where the room ends.
fn fitting(name: &str, width: u32) -> String {
    let most = (width / LETTER_WIDTH) as usize;
    match name.char_indices().nth(most) {
        Some((end, _)) => format!("{}...", &name[..end]),
        None => name.into(),
    }
}

/// As in "W2A2 ts-pq".
fn name(row: &Row) -> String {
    match (precision([row.weight_bits, row.act_bits]), row.method.as_str()) {
        (bits, _) if row.weight_bits == 32 => bits,
        (bits, method) => format!("{bits} {method}"),
    }
}

/// Mean test accuracy of every row over the epochs, in percent: one panel for each precision, full precision in each.
pub fn curves(title: &str, rows: &[Row]) -> anyhow::Result<Figure> {
    let mut precisions: Vec<[u32; 2]> = rows
        .iter()
        .filter(|row| row.weight_bits != 32 && !row.curve.is_empty())
        .map(|row| [row.weight_bits, row.act_bits])
        .collect();
    precisions.dedup();
    if precisions.is_empty() {
        precisions.push([32, 32]);
    }
    let panel = |bits: &[u32; 2]| {
        let shown = |row: &&Row| {
            let of_row = [row.weight_bits, row.act_bits];
            !row.curve.is_empty() && (of_row == *bits || of_row == [32, 32])
        };
        Panel { title: format!("{title}, {}", precision(*bits)), rows: rows.iter().filter(shown).collect() }
    };
    figure(&Curves(precisions.iter().map(panel).collect()))
}

/// Curves of the same precision, and those in full.
struct Panel<'a> {
    title: String,
    rows: Vec<&'a Row>,
}

/// Panels below each other.
struct Curves<'a>(Vec<Panel<'a>>);

impl Painting for Curves<'_> {
    fn height(&self) -> u32 {
        PANEL_HEIGHT * self.0.len() as u32
    }

    fn paint<DB: DrawingBackend>(&self, canvas: &Canvas<'_, DB>) -> anyhow::Result<()>
    where
        DB::ErrorType: 'static,
    {
        for (area, panel) in canvas.area.split_evenly((self.0.len(), 1)).iter().zip(&self.0) {
            panel_of_curves(&Canvas { area, ..*canvas }, &panel.title, &panel.rows)?;
        }
        Ok(())
    }
}

fn panel_of_curves<DB: DrawingBackend>(
    canvas: &Canvas<'_, DB>,
    title: &str,
    rows: &[&Row],
) -> anyhow::Result<()>
where
    DB::ErrorType: 'static,
{
    let points = || rows.iter().flat_map(|row| &row.curve);
    let epochs = points().map(|point| point.0).max().unwrap_or(1).max(2);
    let mut values: Vec<f64> = points().map(|point| 100.0 * point.1).collect();
    values.sort_by(f64::total_cmp);
    // The first epochs are far below the rest, which is what is to be compared; every curve's end is in the picture.
    let ends = rows.iter().filter_map(|row| row.curve.last()).map(|point| 100.0 * point.1);
    let low = ends.fold(values.get(values.len() / 5).copied().unwrap_or(0.0), f64::min);
    let high = values.last().copied().unwrap_or(100.0);
    let margin = ((high - low) * 0.05).max(0.1);
    let shown = |row: &Row| if row.weight_bits == 32 { "fp32".to_string() } else { row.method.clone() };
    let names_width = names_width(rows.iter().map(|row| shown(row)));
    let (left, names) = canvas.area.split_horizontally(canvas.px(WIDTH - names_width));
    let mut chart = ChartBuilder::on(&left)
        .caption(format!("{title}: test top-1, %"), canvas.font(18))
        .margin(canvas.px(12))
        .x_label_area_size(canvas.px(36))
        .y_label_area_size(canvas.px(56))
        .build_cartesian_2d(1.0..epochs as f64, (low - margin)..(high + margin))
        .map_err(failed)?;
    let whole = |epoch: &f64| if epoch.fract() == 0.0 { epoch.to_string() } else { String::new() };
    chart
        .configure_mesh()
        .x_desc("epoch")
        .x_label_formatter(&whole)
        .light_line_style(WHITE)
        .label_style(canvas.font(LETTERS))
        .draw()
        .map_err(failed)?;
    for (i, row) in rows.iter().enumerate() {
        let color = COLORS[i % COLORS.len()];
        let style = color.stroke_width(canvas.px(2));
        // A second round through the colors is dashed.
        let (dash, gap) = if i < COLORS.len() { (1, 0) } else { (canvas.at(6), canvas.at(4)) };
        let line = row.curve.iter().map(|&(epoch, top1)| (epoch as f64, 100.0 * top1));
        let line: Vec<_> = line.skip_while(|&(_, top1)| top1 < low - margin).collect();
        if let [point] = line[..] {
            let dot = if gap == 0 { color.filled() } else { style };
            chart.draw_series([Circle::new(point, canvas.at(3), dot)]).map_err(failed)?;
        } else if gap == 0 {
            chart.draw_series(LineSeries::new(line, style)).map_err(failed)?;
        } else {
            chart.draw_series(DashedLineSeries::new(line, dash, gap, style)).map_err(failed)?;
        }
        let y = canvas.at(56 + 22 * i as i32);
        let sample: Vec<(i32, i32)> = vec![(canvas.at(8), y), (canvas.at(36), y)];
        match gap {
            0 => names.draw(&PathElement::new(sample, style)).map_err(failed)?,
            _ => names.draw(&DashedPathElement::new(sample, dash, gap, style)).map_err(failed)?,
        }
        let name = fitting(&shown(row), names_width - 44);
        names.draw_text(&name, &canvas.text_style(BLACK, HPos::Left), (canvas.at(44), y)).map_err(failed)?;
    }
    Ok(())
}

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("failed to draw: {error}")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Rows of a table like cifar10's, with curves of `n_epochs`.
    fn rows(n_epochs: u64) -> Vec<Row> {
        let methods = ["direct", "ts", "pq", "ts-pq", "sp", "joint", "sp-joint", "ts-pq-joint", "modern"];
        let low_bit = [4, 3, 2].into_iter().flat_map(|bits| methods.map(|method| (bits, method)));
        let rows = std::iter::once((32, "full-precision")).chain(low_bit).enumerate();
        rows.map(|(i, (bits, method))| {
            let top1 = 0.93 - 0.2 / f64::from(bits) + 0.002 * (i % 9) as f64;
            let at = |epoch: u64| (epoch, top1 * (1.0 - 0.5 / (epoch + 1 + i as u64 % 9) as f64));
            Row {
                method: method.into(),
                weight_bits: bits,
                act_bits: bits,
                seeds: 3,
                missing: 0,
                top1_mean: Some(top1),
                top1_std: Some(0.001 + 0.0005 * (i % 4) as f64),
                top1_interval: Some(0.002 + 0.001 * (i % 4) as f64),
                top1: BTreeMap::new(),
                state_sha256: BTreeMap::new(),
                validation_mean: None,
                validation_interval: None,
                epochs: Some(n_epochs),
                epochs_least: None,
                seconds: Some(1.0),
                curve: (1..=n_epochs).map(at).collect(),
            }
        })
        .collect()
    }

    /// Places of the texts of a plot: x, y.
    fn texts(svg: &str) -> Vec<(String, i64, i64)> {
        let texts = svg.split("<text ").skip(1).map(|text| {
            let attribute = |name: &str| {
                let value = text.split(&format!("{name}=\"")).nth(1).and_then(|rest| rest.split('"').next());
                value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name} in {text}"))
            };
            let content = text.split('>').nth(1).and_then(|rest| rest.split('<').next()).unwrap_or_default();
            (content.trim().to_string(), attribute("x"), attribute("y"))
        });
        texts.collect()
    }

    #[test]
    fn names_of_a_large_table_do_not_overlap() {
        let rows = rows(200);
        let svg = accuracy("CIFAR-10", &rows).unwrap().svg;
        let texts = texts(&svg);
        let mut lines = Vec::new();
        for row in &rows {
            let at: Vec<_> = texts.iter().filter(|(text, ..)| *text == name(row)).collect();
            assert_eq!(at.len(), 1, "{}", name(row));
            lines.push(at[0].2);
        }
        let apart = lines.windows(2).all(|pair| pair[1] - pair[0] >= 14);
        assert!(apart, "lines at {lines:?}");
    }

    #[test]
    fn a_panel_names_every_curve_once() {
        let svg = curves("CIFAR-10", &rows(200)).unwrap().svg;
        let texts = texts(&svg);
        let n = |wanted: &str| texts.iter().filter(|(text, ..)| text == wanted).count();
        assert_eq!([n("fp32"), n("sp-joint"), n("modern")], [3, 3, 3]);
    }

    #[test]
    fn a_png_is_the_same_at_twice_the_size() {
        let rows = rows(20);
        let Figure { svg, png } = accuracy("CIFAR-10", &rows[..4]).unwrap();
        let height = LINE_HEIGHT * 4 + 110;
        assert!(svg.contains(&format!("width=\"{WIDTH}\" height=\"{height}\"")), "{}", &svg[..200]);
        let mut reader = png::Decoder::new(std::io::Cursor::new(png)).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!((info.width, info.height), (2 * WIDTH, 2 * height));
        // The name of the last row is painted in its color on white.
        let y = texts(&svg).iter().find(|(text, ..)| *text == name(&rows[3])).unwrap().2;
        let row = &pixels[(2 * y as usize) * 6 * WIDTH as usize..][..3 * 2 * NAMES_WIDTH[0] as usize];
        let n_dark = row.chunks(3).filter(|pixel| pixel[0] < 128).count();
        assert!(n_dark > 4, "{n_dark}");
    }

    #[test]
    fn a_curve_of_one_point_is_a_dot() {
        let svg = curves("CIFAR-10", &rows(1)).unwrap().svg;
        assert_eq!(svg.matches("<circle").count(), 3 * 10);
        for empty in [accuracy("CIFAR-10", &[]), curves("CIFAR-10", &[])] {
            assert!(empty.unwrap().svg.contains("CIFAR-10"));
        }
    }
}
