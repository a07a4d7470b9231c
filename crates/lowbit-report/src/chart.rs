//! Charts in SVG, whose colors are those of the page: they follow its light or dark scheme, and text is never smaller than a phone shows it.
//! (`plotters`, which draws the tables of the documentation, writes fixed colors.)

use crate::markup::{Element, classed, el};

/// Units of a chart: about as many pixels as a phone gives it.
const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 230.0;
/// Room for numbers on the left and below, and above.
const LEFT: f64 = 46.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 18.0;
const BOTTOM: f64 = 36.0;

/// Colors of the style sheet.
const N_COLORS: usize = 8;

/// How the numbers of an axis are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Number,
    Percent,
}

/// A line of a chart.
pub(crate) struct Series {
    pub(crate) name: String,
    /// Epoch and value; what is not finite leaves a gap.
    pub(crate) points: Vec<(f64, f64)>,
}

/// Part of the horizontal axis that has a name.
pub(crate) struct Band {
    pub(crate) name: String,
    pub(crate) from: f64,
    pub(crate) to: f64,
}

/// Values over epochs.
pub(crate) struct LineChart {
    pub(crate) title: String,
    pub(crate) unit: Unit,
    pub(crate) series: Vec<Series>,
    pub(crate) bands: Vec<Band>,
    /// What is compared is at the end: the lowest fifth of the values may be below the picture.
    pub(crate) shows_the_end: bool,
}

/// From values to places.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn place(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// Round numbers between the ends, about `n` of them, and how many decimals they have.
    fn ticks(&self, n: f64, least_step: f64) -> (Vec<f64>, usize) {
        let rough = (self.high - self.low) / n;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|digit| digit * power).find(|step| *step >= rough);
        let step = step.unwrap_or(power).max(least_step);
        let first = (self.low / step - 1e-9).ceil();
        let ticks =
            (0..).map(|i| (first + f64::from(i)) * step).take_while(|tick| *tick <= self.high + step * 1e-9);
        (ticks.take(32).collect(), (-step.log10().floor()).max(0.0) as usize)
    }
}

impl LineChart {
    /// The chart with its title and its legend; `None` without a point.
    pub(crate) fn draw(self) -> Option<Element> {
        let Self { title, unit, mut series, bands, shows_the_end } = self;
        series.retain(|series| series.points.iter().any(|point| point.1.is_finite()));
        let points = || series.iter().flat_map(|series| &series.points);
        let of = |value: fn(&(f64, f64)) -> f64, pick: fn(f64, f64) -> f64| {
            points().map(value).filter(|value| value.is_finite()).reduce(pick)
        };
        let (first, last) = (of(|point| point.0, f64::min)?, of(|point| point.0, f64::max)?);
        // All phases are in the picture, also those without a value.
        let first = bands.iter().map(|band| band.from).fold(first, f64::min);
        let last = bands.iter().map(|band| band.to).fold(last, f64::max);
        let (low, high) = (of(|point| point.1, f64::min)?, of(|point| point.1, f64::max)?);
        let low = if shows_the_end { end_of(&series, low) } else { low };
        let margin = match high - low {
            0.0 => (high.abs() * 0.1).max(1e-6),
            spread => 0.05 * spread,
        };
        // What is never negative is not drawn as if it could be.
        let low = if low >= 0.0 { (low - margin).max(0.0) } else { low - margin };
        let high = if unit == Unit::Percent { (high + margin).min(1.0) } else { high + margin };
        for series in &mut series {
            let start = series.points.iter().take_while(|point| point.1 < low).count();
            series.points.drain(..start);
            // A later fall is to the ground.
            series.points.iter_mut().for_each(|point| point.1 = point.1.max(low));
        }
        let y = Axis { low: low.min(high - 1e-9), high, from: HEIGHT - BOTTOM, to: TOP };
        // Half an epoch on both sides, so that a single one is in the middle.
        let x = Axis { low: first - 0.5, high: last + 0.5, from: LEFT, to: WIDTH - RIGHT };
        let mut svg = classed("svg", "chart")
            .attr("viewBox", format!("0 0 {WIDTH} {HEIGHT}"))
            .attr("role", "img")
            .attr("aria-label", &title);
        for (i, band) in bands.iter().enumerate() {
            let (from, to) = (x.place(band.from - 0.5), x.place(band.to + 0.5));
            if i % 2 == 1 {
                svg = svg.child(rect("band", [from, TOP, to - from, HEIGHT - BOTTOM - TOP]));
            }
            // About as wide as its letters.
            if to - from >= 7.0 * band.name.chars().count() as f64 {
                svg = svg.child(label("band-name", (from + to) / 2.0, TOP - 5.0, &band.name, "middle"));
            }
        }
        let (ticks, decimals) = y.ticks(5.0, 0.0);
        for tick in ticks {
            let place = y.place(tick);
            svg = svg.child(line("grid", [LEFT, place, WIDTH - RIGHT, place]));
            let text = match unit {
                Unit::Percent => format!("{:.*}%", decimals.saturating_sub(2), 100.0 * tick),
                Unit::Number => number(tick, decimals),
            };
            svg = svg.child(label("tick", LEFT - 5.0, place + 4.0, &text, "end"));
        }
        for tick in x.ticks(6.0, 1.0).0 {
            let text = format!("{tick:.0}");
            svg = svg.child(label("tick", x.place(tick), HEIGHT - BOTTOM + 15.0, &text, "middle"));
        }
        svg = svg.child(label("tick", (LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 5.0, "epoch", "middle"));
        svg = svg.child(line("axis", [LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM]));
        for (i, series) in series.iter().enumerate() {
            svg = svg.child(curve(series, i, &x, &y));
        }
        let legend = (series.len() > 1 || series[0].name != title).then(|| legend(&series));
        Some(classed("figure", "plot").child(el("figcaption").text(&title)).child(svg).children(legend))
    }
}

/// The lowest of all but the lowest fifth of the values and of the last values.
fn end_of(series: &[Series], low: f64) -> f64 {
    let values = series.iter().flat_map(|series| &series.points).map(|point| point.1);
    let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    let ends =
        series.iter().filter_map(|series| series.points.iter().rev().find(|point| point.1.is_finite()));
    ends.map(|point| point.1).fold(values.get(values.len() / 5).copied().unwrap_or(low), f64::min)
}

/// The class of the color and the dash of series `i`.
fn color(i: usize) -> String {
    // A second round through the colors is dashed.
    format!("s{}{}", i % N_COLORS, if i < N_COLORS { "" } else { " dashed" })
}

fn legend(series: &[Series]) -> Element {
    let entries = series.iter().enumerate().map(|(i, series)| {
        let sample = classed("svg", "sample").attr("viewBox", "0 0 24 8").attr("aria-hidden", "true");
        let sample = sample.child(line(&format!("line {}", color(i)), [0.0, 4.0, 24.0, 4.0]));
        classed("span", "entry").child(sample).text(&series.name)
    });
    classed("div", "legend").children(entries)
}

/// A line with gaps where there is no value, and dots for points without neighbors.
fn curve(series: &Series, i: usize, x: &Axis, y: &Axis) -> Element {
    let (mut path, mut dots) = (String::new(), Vec::new());
    let mut stretch: Vec<(f64, f64)> = Vec::new();
    let mut end = |stretch: &mut Vec<(f64, f64)>| {
        match stretch.as_slice() {
            [] => {}
            [(x, y)] => dots.push((*x, *y)),
            points => {
                for (n, (x, y)) in points.iter().enumerate() {
                    path += &format!("{}{x:.1} {y:.1}", if n == 0 { "M" } else { "L" });
                }
            }
        }
        stretch.clear();
    };
    for &(epoch, value) in &series.points {
        match value.is_finite() {
            true => stretch.push((x.place(epoch), y.place(value))),
            false => end(&mut stretch),
        }
    }
    end(&mut stretch);
    let mut group = el("g").attr("class", color(i)).child(el("title").text(&series.name));
    if !path.is_empty() {
        group = group.child(classed("path", "line").attr("d", path));
    }
    let dot = |(x, y): (f64, f64)| {
        classed("circle", "dot").attr("cx", format!("{x:.1}")).attr("cy", format!("{y:.1}")).attr("r", 3)
    };
    group.children(dots.into_iter().map(dot))
}

/// Bars from a common ground, each with a share of the width: heights from 0 to 1. Below, a text at both ends.
pub(crate) struct Bars<'a> {
    pub(crate) label: String,
    pub(crate) heights: Vec<f64>,
    /// Share of its place that a bar takes.
    pub(crate) thickness: f64,
    pub(crate) ends: [String; 2],
    /// Where zero is, from 0 to 1, if that is to be marked.
    pub(crate) zero: Option<f64>,
    pub(crate) class: &'a str,
}

impl Bars<'_> {
    pub(crate) fn draw(self) -> Element {
        const WIDTH: f64 = 180.0;
        const GROUND: f64 = 62.0;
        const HEIGHT: f64 = 78.0;
        let Self { label: aria, heights, thickness, ends, zero, class } = self;
        let step = WIDTH / heights.len().max(1) as f64;
        let mut path = String::new();
        for (i, height) in heights.iter().enumerate().filter(|(_, height)| **height > 0.0) {
            // What is there is seen.
            let top = GROUND - (height.min(1.0) * (GROUND - 4.0)).max(0.8);
            let left = (i as f64 + (1.0 - thickness) / 2.0) * step;
            path += &format!("M{left:.1} {GROUND}V{top:.1}h{:.1}V{GROUND}Z", step * thickness);
        }
        let mut svg = classed("svg", "bars")
            .attr("viewBox", format!("0 0 {WIDTH} {HEIGHT}"))
            .attr("role", "img")
            .attr("aria-label", aria);
        if let Some(zero) = zero {
            svg = svg.child(line("grid", [zero * WIDTH, 2.0, zero * WIDTH, GROUND]));
        }
        let [low, high] = ends;
        svg.child(el("path").attr("class", format!("bar {class}")).attr("d", path))
            .child(line("axis", [0.0, GROUND, WIDTH, GROUND]))
            .child(label("tick", 0.0, HEIGHT - 4.0, &low, "start"))
            .child(label("tick", WIDTH, HEIGHT - 4.0, &high, "end"))
    }
}

fn rect(class: &str, [x, y, width, height]: [f64; 4]) -> Element {
    classed("rect", class)
        .attr("x", format!("{x:.1}"))
        .attr("y", format!("{y:.1}"))
        .attr("width", format!("{width:.1}"))
        .attr("height", format!("{height:.1}"))
}

fn line(class: &str, [x1, y1, x2, y2]: [f64; 4]) -> Element {
    let path = format!("M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}");
    classed("path", class).attr("d", path)
}

fn label(class: &str, x: f64, y: f64, text: &str, anchor: &str) -> Element {
    classed("text", class)
        .attr("x", format!("{x:.1}"))
        .attr("y", format!("{y:.1}"))
        .attr("text-anchor", anchor)
        .text(text)
}

/// A number of an axis; with a power of ten where decimals are too many.
fn number(value: f64, decimals: usize) -> String {
    match decimals {
        0..=4 => format!("{value:.decimals$}"),
        _ if value == 0.0 => "0".into(),
        _ => format!("{value:.0e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> Option<String> {
        let series = vec![Series { name: "one".into(), points }];
        let chart = LineChart {
            title: "title".into(),
            unit: Unit::Number,
            series,
            bands: Vec::new(),
            shows_the_end: false,
        };
        chart.draw().map(|chart| chart.to_string())
    }

    #[test]
    fn ticks_are_round() {
        let axis = |low, high| Axis { low, high, from: 0.0, to: 1.0 };
        let close = |(ticks, decimals): (Vec<f64>, usize), expected: &[f64], n| {
            let is_close = |(tick, expected): (&f64, &f64)| (tick - expected).abs() < 1e-9;
            let all = ticks.len() == expected.len() && ticks.iter().zip(expected).all(is_close);
            assert!(all && decimals == n, "{ticks:?} {decimals}");
        };
        close(axis(0.0, 1.0).ticks(4.0, 0.0), &[0.0, 0.5, 1.0], 1);
        close(axis(0.87, 0.99).ticks(4.0, 0.0), &[0.9, 0.95], 2);
        // Epochs are whole.
        close(axis(0.5, 2.5).ticks(6.0, 1.0), &[1.0, 2.0], 0);
        close(axis(0.5, 200.5).ticks(6.0, 1.0), &[50.0, 100.0, 150.0, 200.0], 0);
    }

    #[test]
    fn what_is_not_finite_is_a_gap() {
        let text =
            chart(vec![(1.0, 1.0), (2.0, 2.0), (3.0, f64::NAN), (4.0, f64::INFINITY), (5.0, 3.0)]).unwrap();
        assert_eq!(
            (text.matches("<circle").count(), text.matches("class=\"line\"").count()),
            (1, 1),
            "{text}"
        );
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");
        assert_eq!(chart(vec![(1.0, f64::NAN)]), None);
        assert_eq!(chart(Vec::new()), None);
    }

    #[test]
    fn the_end_is_shown_of_every_line() {
        let rising =
            |end: f64| (1..=20).map(|epoch| (f64::from(epoch), end - 1.0 / f64::from(epoch))).collect();
        let series = [("a", 0.9), ("b", 0.4)];
        let series = series.map(|(name, end)| Series { name: name.into(), points: rising(end) });
        let low = end_of(&series, -1.0);
        assert!((0.2..0.4).contains(&low), "{low}");
        let chart = LineChart {
            title: "title".into(),
            unit: Unit::Percent,
            series: series.into(),
            bands: Vec::new(),
            shows_the_end: true,
        };
        let text = chart.draw().unwrap().to_string();
        assert_eq!(text.matches("class=\"line\"").count(), 2, "{text}");
    }

    #[test]
    fn a_single_point_and_a_constant_are_drawn() {
        for value in [0.0, 1.0, -3.0, 1e-9, 1e30] {
            let text = chart(vec![(1.0, value)]).unwrap();
            assert!(text.contains("<circle") && !text.contains("NaN") && !text.contains("inf"), "{text}");
        }
    }
}
