//! What is shown of a run on a terminal.

use lowbit_core::Precision;
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, GraphType, Paragraph};

use super::run::{State, Watched, short};
use crate::output::{clock, percent};

/// What is chosen to be shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// Which of the [`curves`].
    pub curves: usize,
    /// Which layer of the plan.
    pub layer: usize,
}

/// The colors, or none.
#[derive(Clone, Copy, Debug)]
pub struct Palette {
    pub has_colors: bool,
}

impl Palette {
    /// The `i`-th curve. The colors are those of Okabe and Ito, by the nearest of 256, which people tell apart who see few
    /// colors; each curve has a marker of its own too.
    fn curve(self, i: usize) -> Style {
        // Blue, orange, bluish green, reddish purple.
        const COLORS: [u8; 4] = [32, 214, 36, 175];
        match self.has_colors {
            true => Style::new().fg(Color::Indexed(COLORS[i % COLORS.len()])),
            false => Style::new(),
        }
    }

    fn dim(self) -> Style {
        Style::new().add_modifier(Modifier::DIM)
    }

    fn block(self) -> Block<'static> {
        let title = Style::new().remove_modifier(Modifier::DIM);
        Block::bordered().border_style(self.dim()).title_style(title)
    }

    fn bold(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }
}

/// The markers of curves, and how each is shown beside a name.
const MARKERS: [(Marker, &str); 4] =
    [(Marker::Braille, "⠒"), (Marker::Dot, "•"), (Marker::HalfBlock, "▀"), (Marker::Block, "█")];

/// Columns of the shares of time.
const TIMES: u16 = 24;

/// Curves that are shown together.
struct Curves {
    title: String,
    /// Their names, and what they are called in the history.
    of: Vec<(String, String)>,
    is_percent: bool,
}

impl Curves {
    fn new(title: &str, is_percent: bool, of: impl IntoIterator<Item = (String, String)>) -> Self {
        Self { title: title.into(), of: of.into_iter().collect(), is_percent }
    }
}

/// What there is to choose from: the losses, the parts of each network's loss, the learning rate, the parameters of the
/// chosen layer.
fn curves(run: &Watched, layer: usize) -> Vec<Curves> {
    let of_images = |score: &str| {
        [("train", "train"), ("val", "validation"), ("test", "test")]
            .map(|(name, images)| (name.to_string(), format!("{score}/{images}")))
    };
    let mut all = vec![Curves::new("loss", false, of_images("loss"))];
    let others = run.others();
    for network in std::iter::once("student").chain(others.iter().copied()) {
        let parts = values_under(run, &format!("losses/{network}/"));
        if parts.len() > 1 {
            let title =
                if others.is_empty() { "parts of the loss".into() } else { format!("loss of {network}") };
            all.push(Curves::new(&title, false, parts));
        }
    }
    all.push(Curves::new("learning rate", false, [(String::new(), "learning_rate".to_string())]));
    if let Some(layer) = run.plan.layers.get(layer) {
        let parameters = values_under(run, &format!("quantizers/{}.", layer.path));
        if !parameters.is_empty() {
            all.push(Curves::new(&layer.path, false, parameters));
        }
    }
    all
}

/// The accuracies of all networks.
fn accuracies(run: &Watched) -> Curves {
    let own = [("train", "train"), ("val", "validation"), ("test", "test")]
        .map(|(name, images)| (name.to_string(), format!("top1/{images}")));
    let others = run.others();
    let others = others.iter().map(|name| {
        let validation = format!("top1/validation/{name}");
        let has = run.epochs.iter().any(|epoch| epoch.values.contains_key(&validation));
        ((*name).to_string(), if has { validation } else { format!("top1/test/{name}") })
    });
    Curves::new("top-1", true, own.into_iter().chain(others))
}

/// The values whose names begin so, by the rest of their names.
fn values_under(run: &Watched, start: &str) -> Vec<(String, String)> {
    let mut names: Vec<(String, String)> = run
        .epochs
        .iter()
        .flat_map(|epoch| epoch.values.keys())
        .filter_map(|key| Some((key.strip_prefix(start)?.to_string(), key.clone())))
        .collect();
    names.sort();
    names.dedup();
    names
}

/// How many of what can be chosen there are: curves, with this layer, and layers.
pub fn counts(run: &Watched, layer: usize) -> (usize, usize) {
    (curves(run, layer).len(), run.plan.layers.len())
}

pub fn draw(frame: &mut Frame<'_>, run: &Watched, chosen: &Chosen, palette: Palette) {
    let area = frame.area();
    let is_low = area.height < 16;
    let bottom = if is_low { 0 } else { (area.height / 3).clamp(9, 14) };
    let [header, progress, phases, charts, below, footer] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(bottom),
        Constraint::Length(1),
    ])
    .areas(area);
    draw_header(frame, header, run, palette);
    draw_progress(frame, progress, run, palette);
    draw_phases(frame, phases, run, palette);
    let all = curves(run, chosen.layer);
    let left = &all[chosen.curves.min(all.len() - 1)];
    let accuracies = accuracies(run);
    if area.width >= 60 {
        let [a, b] = Layout::horizontal([Constraint::Fill(1); 2]).areas(charts);
        draw_curves(frame, a, run, left, palette);
        draw_curves(frame, b, run, &accuracies, palette);
    } else {
        draw_curves(frame, charts, run, if chosen.curves == 0 { &accuracies } else { left }, palette);
    }
    if !is_low {
        let [layers, times] =
            Layout::horizontal([Constraint::Fill(1), Constraint::Length(TIMES)]).areas(below);
        let (layers, times) = if area.width >= 60 { (layers, times) } else { (below, Rect::ZERO) };
        draw_layers(frame, layers, run, chosen.layer, palette);
        draw_times(frame, times, run);
    }
    let keys = Line::styled(" q leave   ←→ curves   ↑↓ layer", palette.dim());
    frame.render_widget(Paragraph::new(keys), footer);
    let load = format!("{} ", run.load_text());
    // The keys are 35 columns.
    if load.chars().count() + 38 <= usize::from(footer.width) {
        let load = Line::styled(load, palette.dim()).alignment(Alignment::Right);
        frame.render_widget(Paragraph::new(load), footer);
    }
}

fn draw_header(frame: &mut Frame<'_>, area: Rect, run: &Watched, palette: Palette) {
    let state = match &run.state {
        State::Training => match run.eta_seconds() {
            Some(eta) => format!("training, ETA {} ", clock(eta)),
            None => "training ".into(),
        },
        State::Finished(result) => format!("finished in {} ", clock(result.seconds)),
        State::Silent(age) => format!("silent for {} ", clock(age.as_secs_f64())),
        State::Stopped(_) => "stopped ".into(),
    };
    let [left, right] =
        Layout::horizontal([Constraint::Fill(1), Constraint::Length(state.len() as u16)]).areas(area);
    let mut name = vec![Span::raw(" "), Span::styled(run.name.clone(), palette.bold())];
    if run.recipe != run.name {
        name.push(Span::styled(format!("  {}", run.recipe), palette.dim()));
    }
    frame.render_widget(Paragraph::new(Line::from(name)), left);
    let color = match run.state {
        State::Training => palette.curve(0),
        State::Finished(_) => palette.curve(2),
        State::Silent(_) | State::Stopped(_) => palette.curve(1),
    };
    let state = Line::styled(state, color.add_modifier(Modifier::BOLD)).alignment(Alignment::Right);
    frame.render_widget(Paragraph::new(state), right);
}

fn draw_progress(frame: &mut Frame<'_>, area: Rect, run: &Watched, palette: Palette) {
    let step = run.step();
    let per_epoch = run.steps_per_epoch.unwrap_or(0).max(1);
    let is_whole = step == run.epochs.last().map_or(0, |epoch| epoch.step);
    let epoch = match &run.state {
        State::Finished(result) => result.epochs,
        _ if is_whole => step / per_epoch,
        _ => step / per_epoch + 1,
    };
    let epoch = epoch.min(run.n_epochs());
    let mut text = format!(" epoch {epoch}/{}", run.n_epochs());
    let fraction = match run.steps() {
        Some(steps) if steps > 0 => {
            text += &format!("  step {step}/{steps}");
            (step as f64 / steps as f64).min(1.0)
        }
        _ => epoch as f64 / run.n_epochs().max(1) as f64,
    };
    let speed = match &run.live {
        Some(live) if matches!(run.state, State::Training) && live.images_per_second > 0.0 => {
            Some(live.images_per_second)
        }
        _ => run.epochs.last().and_then(|epoch| epoch.values.get("time/images_per_second").copied()),
    };
    let speed = speed.map_or(String::new(), |speed| format!("  {speed:.0} img/s"));
    let end = format!(" {:>4}{speed} ", percent(fraction).replace(".0%", "%"));
    let used = text.chars().count() + end.chars().count() + 2;
    let width = usize::from(area.width).saturating_sub(used);
    let done = (fraction.clamp(0.0, 1.0) * width as f64) as usize;
    let line = Line::from(vec![
        Span::raw(text + "  "),
        Span::styled("━".repeat(done), palette.curve(0)),
        Span::styled("─".repeat(width - done), palette.dim()),
        Span::raw(end),
    ]);
    frame.render_widget(Paragraph::new(line), area);
}

/// The phases, or, of a training that ended before its time, why.
fn draw_phases(frame: &mut Frame<'_>, area: Rect, run: &Watched, palette: Palette) {
    let line = match &run.state {
        State::Stopped(_) | State::Silent(_) => Line::raw(format!(" {}", run.state_text())),
        _ => {
            let now = run.phase();
            let mut spans =
                vec![Span::styled(if run.phases.len() > 1 { " phases" } else { " phase" }, palette.dim())];
            // Where there is no room for all, those around the present one.
            let width: usize =
                run.phases.iter().map(|(name, epochs)| name.len() + epochs.to_string().len() + 5).sum();
            let first = if width + 8 <= usize::from(area.width) { 0 } else { now.saturating_sub(2) };
            if first > 0 {
                spans.push(Span::raw(" …"));
            }
            for (i, (name, epochs)) in run.phases.iter().enumerate().skip(first) {
                let style = match () {
                    () if i == now => palette.bold().add_modifier(Modifier::UNDERLINED),
                    () if i < now => palette.dim(),
                    () => Style::new(),
                };
                spans.push(Span::raw("  "));
                spans.push(Span::styled(format!("{name} ({epochs})"), style));
            }
            Line::from(spans)
        }
    };
    frame.render_widget(Paragraph::new(line), area);
}

/// Curves over the epochs, with their newest values above.
fn draw_curves(frame: &mut Frame<'_>, area: Rect, run: &Watched, curves: &Curves, palette: Palette) {
    let scale = if curves.is_percent { 100.0 } else { 1.0 };
    let mut shown = Vec::new();
    let mut title = vec![Span::styled(format!(" {} ", curves.title), palette.bold())];
    for (name, key) in &curves.of {
        let values: Vec<(f64, f64)> = run
            .epochs
            .iter()
            .filter_map(|epoch| Some((epoch.epoch as f64, scale * epoch.values.get(key)?)))
            .collect();
        let Some((_, last)) = values.last() else { continue };
        let i = shown.len();
        let last = if curves.is_percent { format!("{last:.1}%") } else { short(*last) };
        let name = if name.is_empty() { String::new() } else { format!("{name} ") };
        let marker = MARKERS[i % MARKERS.len()].1;
        title.push(Span::styled(format!("{marker} {name}{last} "), palette.curve(i)));
        let points: Vec<(f64, f64)> = values.into_iter().filter(|(_, value)| value.is_finite()).collect();
        shown.push(points);
    }
    // What does not fit above stands below.
    let (above, below) = split(title, area.width);
    let (below, _) = split(below, area.width);
    let block = palette.block().title(above).title_bottom(Line::from(below));
    let points = || shown.iter().flatten();
    if points().next().is_none() {
        let inner = block.inner(area);
        frame.render_widget(block, area);
        let text = match run.epochs.is_empty() {
            true => of_first_epoch(run, curves),
            false => " not a finite number".into(),
        };
        frame.render_widget(Paragraph::new(Line::styled(text, palette.dim())), inner);
        return;
    }
    let bounds = |values: &dyn Fn(&(f64, f64)) -> f64| {
        points()
            .map(values)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
    };
    let (first, last) = bounds(&|point| point.0);
    let (low, high) = bounds(&|point| point.1);
    let margin = if high > low { 0.05 * (high - low) } else { (0.05 * high.abs()).max(1e-9) };
    let (bottom, top) = (low - margin, high + margin);
    // A line where each phase ends.
    let mut end = 0;
    let ends: Vec<[(f64, f64); 2]> = run
        .phases
        .iter()
        .map(|(_, epochs)| {
            end += epochs;
            end as f64 + 0.5
        })
        .filter(|&end| end < last && end > first)
        .map(|end| [(end, bottom), (end, top)])
        .collect();
    let rules = ends.iter().map(|rule| {
        Dataset::default().marker(Marker::Braille).graph_type(GraphType::Line).style(palette.dim()).data(rule)
    });
    let lines = shown.iter().enumerate().map(|(i, points)| {
        let marker = MARKERS[i % MARKERS.len()].0;
        Dataset::default().marker(marker).graph_type(GraphType::Line).style(palette.curve(i)).data(points)
    });
    let label = |value: f64| if curves.is_percent { format!("{value:.0}%") } else { short(value) };
    let x_labels = match first < last {
        true => vec![format!("{first:.0}"), format!("epoch {last:.0}")],
        false => vec![format!("epoch {first:.0}"), String::new()],
    };
    let (x_low, x_high) = if first < last { (first, last) } else { (first - 1.0, first + 1.0) };
    let chart = Chart::new(rules.chain(lines).collect())
        .block(block)
        .legend_position(None)
        .x_axis(Axis::default().bounds([x_low, x_high]).labels(x_labels).style(palette.dim()))
        .y_axis(
            Axis::default()
                .bounds([bottom, top])
                .labels([label(low), label((low + high) / 2.0), label(high)])
                .style(palette.dim()),
        );
    frame.render_widget(chart, area);
}

/// What is known of curves before the first epoch is over.
fn of_first_epoch(run: &Watched, curves: &Curves) -> String {
    let so_far = run.live.as_ref().and_then(|live| match curves.title.as_str() {
        "loss" => live.loss.map(short),
        "top-1" => live.top1.map(percent),
        _ => None,
    });
    match so_far {
        Some(value) => format!(" so far {value}"),
        None => " after the first epoch".into(),
    }
}

/// As many of `spans` as fit into a border of so many columns, and the others.
fn split(mut spans: Vec<Span<'_>>, columns: u16) -> (Vec<Span<'_>>, Vec<Span<'_>>) {
    let room = usize::from(columns).saturating_sub(2);
    let mut used = 0;
    let n = spans.iter().take_while(|span| {
        used += span.width();
        used <= room
    });
    let n = n.count();
    let rest = spans.split_off(n);
    (spans, rest)
}

/// The layers, with their precision and what their quantizers have learned.
fn draw_layers(frame: &mut Frame<'_>, area: Rect, run: &Watched, chosen: usize, palette: Palette) {
    let layers = &run.plan.layers;
    let block = palette.block().title(Line::styled(" layers ", palette.bold()));
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let rows = usize::from(inner.height);
    let width = layers.iter().map(|layer| layer.path.chars().count()).max().unwrap_or(0).min(28);
    let first = chosen.saturating_sub(rows / 2).min(layers.len().saturating_sub(rows));
    let bits = |precision: Precision| match precision.bit_width() {
        Some(bits) => bits.to_string(),
        None => "fp32".into(),
    };
    let start = |i: usize, path: &str, w: Precision, a: Precision| {
        let (w, a) = (bits(w), bits(a));
        let precision = if w == "fp32" && a == "fp32" { "fp32".into() } else { format!("W{w} A{a}") };
        let path: String = path.chars().take(width).collect();
        format!("{} {path:<width$} {precision:<6}", if i == chosen { "▸" } else { " " })
    };
    let lines = layers.iter().enumerate().skip(first).take(rows).map(|(i, layer)| {
        let start = start(i, &layer.path, layer.weight_bits, layer.act_bits);
        let parameters = values_under(run, &format!("quantizers/{}.", layer.path));
        let text = |with_change: bool| {
            let of = |(name, key): &(String, String)| learned(run, name, key, with_change);
            format!("{start}{}", parameters.iter().map(of).collect::<String>())
        };
        let whole = text(true);
        let text = if whole.chars().count() <= usize::from(inner.width) { whole } else { text(false) };
        Line::styled(text, if i == chosen { palette.bold() } else { Style::new() })
    });
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()), inner);
}

/// A parameter of a quantizer and its value, with how much it has changed since it was there first.
fn learned(run: &Watched, name: &str, key: &str, with_change: bool) -> String {
    let values: Vec<f64> = run.epochs.iter().filter_map(|epoch| epoch.values.get(key).copied()).collect();
    let (Some(first), Some(last)) = (values.first(), values.last()) else { return String::new() };
    let change = 100.0 * (last - first) / first.abs();
    let change = match with_change && change.is_finite() && values.len() > 1 {
        true => format!(" ({change:+.0}%)"),
        false => String::new(),
    };
    let name = name.replace("weight_", "W ").replace("act_", "A ").replace("_size", "").replace('_', " ");
    format!(" {name} {}{change}", short(*last))
}

/// What the time went to.
fn draw_times(frame: &mut Frame<'_>, area: Rect, run: &Watched) {
    let palette = Palette { has_colors: false };
    let block = palette.block().title(Line::styled(" time ", palette.bold()));
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let lines = match run.parts() {
        Some(parts) if parts.sum() > 0.0 => {
            let sum = parts.sum();
            let width = usize::from(inner.width).saturating_sub(17);
            let line = |(name, seconds): (&str, f64)| {
                let share = seconds / sum;
                let bar = (share * width as f64).round_ties_even() as usize;
                Line::raw(format!(" {name:<10} {:>3.0}% {}", 100.0 * share, "━".repeat(bar)))
            };
            // A process alone exchanges nothing.
            let is_shown = |(name, seconds): &(&str, f64)| *name != "exchange" || *seconds > 0.0;
            parts.named().into_iter().filter(is_shown).map(line).collect()
        }
        _ => vec![Line::styled(
            if run.epochs.is_empty() { " after the first epoch" } else { " not recorded" },
            palette.dim(),
        )],
    };
    frame.render_widget(Paragraph::new(lines), inner);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use lowbit_train::{Recipe, RunResult, TimeParts, plan};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::history::Epoch;
    use crate::live::Live;
    use crate::load::Load;

    /// A training of `recipe` after `n_epochs`, with scores that follow a formula.
    fn watched(recipe: &str, overrides: &[&str], n_epochs: u64) -> Watched {
        let overrides: Vec<String> = overrides.iter().map(|&text| text.into()).collect();
        let recipe = Recipe::embedded(recipe, &overrides).unwrap();
        let phases: Vec<(String, u64)> =
            recipe.phases().into_iter().map(|phase| (phase.name, phase.train.epochs)).collect();
        let plan = plan(&recipe).unwrap();
        let of_epoch: Vec<String> =
            phases.iter().flat_map(|(name, epochs)| (0..*epochs).map(|_| name.clone())).collect();
        let is_joint = recipe.strategy.joint.is_some();
        let epoch = |epoch: u64| {
            let t = epoch as f64;
            let mut values = BTreeMap::new();
            let mut add = |name: &str, value: f64| {
                values.insert(name.to_string(), value);
            };
            for (images, gap) in [("train", 0.0), ("test", 0.15)] {
                add(&format!("loss/{images}"), gap + 2.0 / t.sqrt());
                add(&format!("top1/{images}"), 1.0 - gap - 0.6 / t);
            }
            add("learning_rate", 0.1 / t);
            if is_joint {
                for (network, factor) in [("student", 1.2), ("teacher", 0.7)] {
                    add(&format!("losses/{network}/labels"), factor / t);
                    add(&format!("losses/{network}/distill"), 0.1 * factor / t);
                    add(&format!("losses/{network}/total"), 1.1 * factor / t);
                }
                add("top1/test/teacher", 1.0 - 0.4 / t);
            }
            for layer in plan.layers.iter().filter(|layer| layer.weight_bits != Precision::FullPrecision) {
                add(&format!("quantizers/{}.weight_step_size", layer.path), 0.05 + 0.01 * t);
                add(&format!("quantizers/{}.act_step_size", layer.path), 0.3 - 0.01 * t);
            }
            add("time/images_per_second", 431.0);
            let parts = TimeParts {
                exchange: 0.0,
                data: 0.2,
                forward: 1.4,
                backward: 2.6,
                update: 0.1,
                evaluation: 0.5,
                saving: 0.1,
                reading: 0.02,
            };
            let phase = of_epoch[epoch as usize - 1].clone();
            Epoch { epoch, step: 22 * epoch, phase, values, seconds: Some(5.0 * t), parts: Some(parts) }
        };
        let epochs: Vec<Epoch> = (1..=n_epochs).map(epoch).collect();
        Watched {
            name: "fashion".into(),
            path: "runs/fashion".into(),
            recipe: recipe.name.clone(),
            device: "flex".into(),
            phases,
            plan,
            steps_per_epoch: Some(22),
            live: Some(Live {
                step: 22 * n_epochs + 7,
                steps: 1,
                images_per_second: 428.0,
                eta_seconds: 93.0,
                load: Some(Load { cores: 1.94, memory_bytes: 213 << 20 }),
                ..Live::default()
            }),
            epochs,
            state: State::Training,
        }
    }

    fn finished(mut run: Watched) -> Watched {
        let result = r#"{"recipe":"x","top1":0.912,"top5":1.0,"loss":0.3,"best":null,"epochs":6,"seconds":3723.0,
            "images_per_second":431.0,"device":"flex","seed":0,"run_dir":"runs/fashion"}"#;
        run.state = State::Finished(Box::new(serde_json::from_str::<RunResult>(result).unwrap()));
        run.live = None;
        run
    }

    /// The screen at 80x24 or 120x40.
    fn screen(run: &Watched, chosen: Chosen, (columns, rows): (u16, u16)) -> String {
        let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
        terminal.draw(|frame| draw(frame, run, &chosen, Palette { has_colors: true })).unwrap();
        terminal.backend().to_string()
    }

    const SIZES: [(u16, u16); 2] = [(80, 24), (120, 40)];

    fn check(name: &str, run: &Watched, chosen: Chosen) {
        for size in SIZES {
            insta::with_settings!({ omit_expression => true, prepend_module_to_snapshot => false }, {
                insta::assert_snapshot!(format!("watch-{name}-{}x{}", size.0, size.1), screen(run, chosen, size));
            });
        }
    }

    const LSQ: &str = "quantization.method=lsq";

    const THREE_PHASES: [&str; 3] = [LSQ, "strategy.progressive={ladder=['fp32', 4]}", "strategy.joint={}"];

    #[test]
    fn three_phases_of_two_networks() {
        let run = watched("digits-preresnet8-w2a2", &[&THREE_PHASES[..], &["train.epochs=9"]].concat(), 6);
        assert_eq!(run.phases.len(), 3, "{:?}", run.phases);
        check("joint", &run, Chosen::default());
        // The next curves, of another layer.
        check("joint-losses", &run, Chosen { curves: 1, layer: 3 });
        let (n_curves, _) = counts(&run, 3);
        check("joint-layer", &run, Chosen { curves: n_curves - 1, layer: 3 });
    }

    #[test]
    fn one_epoch() {
        let mut run = watched("digits-preresnet8-w2a2", &["train.epochs=1"], 1);
        run.live = None;
        check("one-epoch", &run, Chosen::default());
        let mut run = watched("digits-preresnet8-w2a2", &["train.epochs=1"], 0);
        check("before-it", &run, Chosen::default());
        let live = run.live.as_mut().unwrap();
        (live.loss, live.top1) = (Some(1.75), Some(0.5));
        assert!(screen(&run, Chosen::default(), (80, 24)).contains("│ so far 1.750"));
    }

    #[test]
    fn a_finished_training() {
        check(
            "finished",
            &finished(watched("digits-preresnet8-w2a2", &[LSQ, "train.epochs=6"], 6)),
            Chosen::default(),
        );
    }

    #[test]
    fn losses_that_are_not_finite() {
        let mut run = watched("digits-preresnet8-w2a2", &["train.epochs=8"], 4);
        run.epochs[2].values.insert("loss/test".into(), f64::INFINITY);
        for name in ["loss/train", "loss/test"] {
            run.epochs[3].values.insert(name.into(), f64::NAN);
        }
        run.state = State::Stopped(Some("the training loss is NaN at step 93 (epoch 5)".into()));
        check("not-finite", &run, Chosen::default());
        for epoch in &mut run.epochs {
            epoch.values.insert("loss/train".into(), f64::NAN);
            epoch.values.insert("loss/test".into(), f64::NAN);
        }
        assert!(screen(&run, Chosen::default(), (80, 24)).contains("not a finite number"));
    }

    /// Whatever the size, nothing panics.
    #[test]
    fn every_size_is_drawn() {
        let runs =
            [watched("digits-preresnet8-w2a2", &THREE_PHASES, 2), watched("digits-preresnet8-w2a2", &[], 0)];
        for run in &runs {
            for (columns, rows) in [(1, 1), (5, 3), (20, 8), (40, 12), (59, 15), (60, 16), (250, 80)] {
                screen(run, Chosen { curves: 99, layer: 99 }, (columns, rows));
            }
        }
    }

    /// Without colors, nothing but the markers tells curves apart.
    #[test]
    fn no_colors_means_none() {
        let run = watched("digits-preresnet8-w2a2", &[], 3);
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| draw(frame, &run, &Chosen::default(), Palette { has_colors: false })).unwrap();
        assert!(terminal.backend().buffer().content.iter().all(|cell| cell.fg == Color::Reset));
        let shown = terminal.backend().to_string();
        assert!(shown.contains("⠒ train") && shown.contains("• test"), "{shown}");
    }
}
