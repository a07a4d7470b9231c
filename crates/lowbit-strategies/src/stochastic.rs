//! Stochastic precision: in every step a random part of the network is quantized and the rest is not. Zhuang et al.
//! 2021, "stochastic precision".
//!
//! The paper gives the idea, not its settings; those, and what is called ours below, are decisions of this project.

use lowbit_core::{Purpose, stream};
use lowbit_quantizers::Selection;
use rand::{Rng, RngExt};
use serde::Serialize;

use crate::about::{About, Key};
use crate::fingerprint::Settings;
use crate::strategy::{Moment, QuantizedLayer, Strategy};

/// Quantizes each unit of the network with a probability that rises to 1 over a phase.
///
/// A unit's weights and input are quantized together. A unit that is not passes through the same quantizers without
/// their rounding, so that both kinds see the same range of values (ours).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StochasticPrecision {
    /// What is drawn as one.
    pub unit: Unit,
    /// Probability over time.
    pub probability: Probability,
    /// Share of the phase's steps at its end in which everything is quantized, so that BatchNorm's statistics are those
    /// of the deployed network (ours).
    pub final_share: f64,
    /// How units are drawn.
    pub selector: Selector,
}

/// What is quantized or not as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// A residual block. In a network without blocks, a layer.
    Block,
    /// A layer.
    Layer,
    /// One of this many equal groups of a layer's channels: output channels of its weights, channels of its input.
    ChannelGroup(usize),
    /// A single weight; the inputs of layers are quantized in every step. Element-wise replacement of arXiv 2509.00097, of which
    /// only the abstract was read.
    Weight,
}

/// The probability of being quantized, as a function of the progress `u` from 0 to 1 before the final share.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Probability {
    /// `from + (1 - from) u`.
    Linear {
        /// At the start.
        from: f64,
    },
    /// `1 - (1 - from) (1 + cos(pi u)) / 2`.
    Cosine {
        /// At the start.
        from: f64,
    },
    /// `1 - (1 - from) 0.01^u`: 99 % of the way at the end.
    Exponential {
        /// At the start.
        from: f64,
    },
    /// `from + (1 - from) ln(1 + (e - 1) u)`: fast at first.
    Logarithmic {
        /// At the start.
        from: f64,
    },
    /// Each of `values` for an equal share of the time.
    Stepped {
        /// Ascending.
        values: Vec<f64>,
    },
}

impl Probability {
    /// The stages of stochastic quantization, Dong et al. 2017 (BMVC).
    pub const STAGES: [f64; 4] = [0.5, 0.75, 0.875, 1.0];

    /// At progress `u`, from 0 to 1.
    fn at(&self, u: f64) -> f64 {
        match self {
            Self::Linear { from } => from + (1.0 - from) * u,
            Self::Cosine { from } => 1.0 - (1.0 - from) * (1.0 + (std::f64::consts::PI * u).cos()) / 2.0,
            Self::Exponential { from } => 1.0 - (1.0 - from) * 0.01f64.powf(u),
            Self::Logarithmic { from } => from + (1.0 - from) * ((std::f64::consts::E - 1.0) * u).ln_1p(),
            Self::Stepped { values } => {
                let stage = (u * values.len() as f64) as usize;
                values[stage.min(values.len() - 1)]
            }
        }
    }
}

/// How the units to quantize are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selector {
    /// Each by itself.
    Bernoulli,
    /// A fixed number, one after the other without return, with probabilities in proportion to the inverse of their
    /// quantization error: roulette of Dong et al. 2017, section 3.2. The groups of a layer share its error; a unit without
    /// quantized weights has the mean of the others'.
    Roulette,
}

/// Added to an error before it is inverted, Dong et al. 2017, section 3.3.
const EPSILON: f64 = 1e-7;

/// Far below a step, far above the rounding of a number of steps.
const ROUNDING: f64 = 1e-6;

impl StochasticPrecision {
    /// Probability that a unit is quantized.
    pub fn probability(&self, moment: &Moment) -> f64 {
        progress(moment, self.final_share).map_or(1.0, |u| self.probability.at(u))
    }
}

/// How much of the steps of a phase before its `final_share` is done, from 0, below 1; `None` in that share.
pub(crate) fn progress(moment: &Moment, final_share: f64) -> Option<f64> {
    let rising = moment.phase_steps as f64 * (1.0 - final_share);
    let step = moment.phase_step as f64;
    // 10 steps with a share of 0.7 rise over 3, not 3.0000000000000004 steps.
    (step + ROUNDING < rising).then(|| step / rising)
}

impl StochasticPrecision {
    /// What is said of it where it is set, shown and explained.
    pub const ABOUT: About = About {
        name: "stochastic_precision",
        title: "stochastic precision",
        changes: "what is quantized in a step",
        section: "strategy.stochastic_precision",
        file: file!(),
        keys: &[
            Key {
                name: "unit",
                default: "`block`",
                range: "`block`, `layer`, `channel-group`, `weight`",
                effect: "what is quantized, or not, as one in a step; with `weight`, inputs are in every step",
            },
            Key {
                name: "groups",
                default: "4",
                range: "2 to 1024",
                effect: r#"groups of output channels, with `unit = "channel-group"`"#,
            },
            Key {
                name: "probability",
                default: "linear",
                range: r#"`{ kind = "linear" or "cosine" or "exponential" or "logarithmic", from = 0.0 }`, `{ kind = "stepped", values = [0.5, 0.75, 0.875, 1.0] }`"#,
                effect: "of a unit to be quantized; it rises from `from`, by default 0, to 1; the default `values` are those of Dong17",
            },
            Key {
                name: "final_share",
                default: "0.2",
                range: "from 0, below 1",
                effect: "last share of the phase's steps, in which everything is quantized; at 0, BatchNorm's statistics are not those of the deployed network",
            },
            Key {
                name: "selector",
                default: "`bernoulli`",
                range: "`bernoulli`, `roulette`",
                effect: "each unit on its own, or a number of them weighed by their error, which is read from the device in every step; `roulette` needs quantized weights, and a larger unit than `weight`",
            },
        ],
    };
}

impl Strategy for StochasticPrecision {
    fn name(&self) -> &str {
        Self::ABOUT.name
    }

    fn settings(&self) -> Settings {
        Settings::of(self)
    }

    fn select(&self, moment: &Moment, layers: &[QuantizedLayer]) -> Option<Vec<Selection>> {
        let probability = self.probability(moment);
        let units = self.units(layers);
        let mut rng = stream(moment.seed, Purpose::StochasticPrecision, 0, moment.step);
        if self.unit == Unit::Weight {
            let selection = |_: &QuantizedLayer| match (rng.next_u64(), probability) {
                (_, 1.0) => Selection::All,
                (key, probability) => Selection::Weights { key, probability },
            };
            return Some(layers.iter().map(selection).collect());
        }
        let chosen: Vec<bool> = match self.selector {
            Selector::Bernoulli => units.iter().map(|_| rng.random::<f64>() < probability).collect(),
            Selector::Roulette => {
                let errors: Vec<Option<f64>> = units
                    .iter()
                    .map(|unit| mean(unit.layers.iter().filter_map(|&layer| layers[layer].error)))
                    .collect();
                // A unit that quantizes its input alone has no error: it is as likely as the others on average.
                let usual = mean(errors.iter().copied().flatten()).unwrap_or(1.0);
                let errors = errors.into_iter().map(|error| error.unwrap_or(usual)).collect();
                roulette(errors, probability, &mut rng)
            }
        };
        let mut selections = vec![Selection::All; layers.len()];
        for (unit, is_quantized) in units.iter().zip(chosen) {
            for &layer in &unit.layers {
                match (self.unit, &mut selections[layer]) {
                    (Unit::ChannelGroup(_), Selection::ChannelGroups(groups)) => groups.push(is_quantized),
                    (Unit::ChannelGroup(_), first) => *first = Selection::ChannelGroups(vec![is_quantized]),
                    (_, whole) if !is_quantized => *whole = Selection::None,
                    _ => {}
                }
            }
        }
        Some(selections)
    }

    fn needs_errors(&self) -> bool {
        self.selector == Selector::Roulette
    }
}

/// Layers, by index, that are drawn as one.
struct Drawn {
    layers: Vec<usize>,
}

impl StochasticPrecision {
    fn units(&self, layers: &[QuantizedLayer]) -> Vec<Drawn> {
        let alone = |layer| Drawn { layers: vec![layer] };
        match self.unit {
            Unit::Layer | Unit::Weight => (0..layers.len()).map(alone).collect(),
            Unit::ChannelGroup(groups) => {
                (0..layers.len()).flat_map(|layer| (0..groups).map(move |_| alone(layer))).collect()
            }
            Unit::Block => {
                let blocks: Vec<&str> = layers.iter().map(|layer| block(&layer.path)).collect();
                let indices: Vec<usize> = (0..layers.len()).collect();
                let same_block = |a: &usize, b: &usize| blocks[*a] == blocks[*b];
                indices.chunk_by(same_block).map(|chunk| Drawn { layers: chunk.to_vec() }).collect()
            }
        }
    }
}

/// The block of a layer: its path up to the number of the block, as in "stages.0.1" for "stages.0.1.conv2" and
/// "layer2.0" for "layer2.0.downsample.0"; else the layer itself.
fn block(path: &str) -> &str {
    let is_number = |part: &str| part.parse::<usize>().is_ok();
    let end = path.match_indices('.').map(|(i, _)| i).find(|&i| {
        let (before, after) = (path[..i].rsplit('.').next(), path[i + 1..].split('.').next());
        before.is_some_and(is_number) && !after.is_some_and(is_number)
    });
    end.map_or(path, |end| &path[..end])
}

/// Mean of `values`, if there are any.
fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.fold((0.0, 0), |(sum, n), value| (sum + value, n + 1));
    (n > 0).then(|| sum / f64::from(n))
}

/// Draws `round(share * n)` of the units without return.
fn roulette(errors: Vec<f64>, share: f64, rng: &mut impl Rng) -> Vec<bool> {
    let n_chosen = (share * errors.len() as f64).round_ties_even() as usize;
    let mut weights: Vec<f64> = errors.iter().map(|error| 1.0 / (error + EPSILON)).collect();
    let mut chosen = vec![false; errors.len()];
    for _ in 0..n_chosen {
        let mut point = rng.random::<f64>() * weights.iter().sum::<f64>();
        let candidates = (0..weights.len()).filter(|&unit| !chosen[unit]);
        let mut drawn = 0;
        for unit in candidates {
            drawn = unit;
            point -= weights[unit];
            if point < 0.0 {
                break;
            }
        }
        chosen[drawn] = true;
        weights[drawn] = 0.0;
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(paths: &[&str]) -> Vec<QuantizedLayer> {
        paths.iter().map(|path| QuantizedLayer { path: (*path).into(), error: None }).collect()
    }

    fn strategy(unit: Unit, probability: Probability, selector: Selector) -> StochasticPrecision {
        StochasticPrecision { unit, probability, final_share: 0.2, selector }
    }

    fn moment(step: u64) -> Moment {
        Moment { seed: 5, step, phase_step: step, phase_steps: 100 }
    }

    const PRERESNET: [&str; 6] = [
        "stages.0.0.conv1",
        "stages.0.0.conv2",
        "stages.1.0.conv1",
        "stages.1.0.conv2",
        "stages.1.0.shortcut",
        "fc",
    ];

    #[test]
    fn probability_rises_to_one_before_the_final_share() {
        let rates = |probability: Probability| {
            let strategy = strategy(Unit::Block, probability, Selector::Bernoulli);
            [0, 20, 40, 79, 80, 99].map(|step| strategy.probability(&moment(step)))
        };
        let close = |got: [f64; 6], expected: [f64; 6]| {
            assert!(got.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9), "{got:?} {expected:?}");
        };
        close(rates(Probability::Linear { from: 0.2 }), [0.2, 0.4, 0.6, 0.99, 1.0, 1.0]);
        let half_cosine = |u: f64| 0.5 - 0.5 * (std::f64::consts::PI * u).cos();
        close(
            rates(Probability::Cosine { from: 0.0 }),
            [0.0, half_cosine(0.25), 0.5, half_cosine(79.0 / 80.0), 1.0, 1.0],
        );
        let exponential = |u: f64| 1.0 - 0.5 * 0.01f64.powf(u);
        close(
            rates(Probability::Exponential { from: 0.5 }),
            [0.5, exponential(0.25), exponential(0.5), exponential(79.0 / 80.0), 1.0, 1.0],
        );
        let logarithmic = |u: f64| 0.2 + 0.8 * (1.0 + (std::f64::consts::E - 1.0) * u).ln();
        close(
            rates(Probability::Logarithmic { from: 0.2 }),
            [0.2, logarithmic(0.25), logarithmic(0.5), logarithmic(79.0 / 80.0), 1.0, 1.0],
        );
        let stages = Probability::Stepped { values: Probability::STAGES.to_vec() };
        close(rates(stages), [0.5, 0.75, 0.875, 1.0, 1.0, 1.0]);
    }

    #[test]
    fn the_layers_of_a_block_are_one_unit() {
        for (path, expected) in [
            ("stages.0.12.conv2", "stages.0.12"),
            ("layer2.0.conv1", "layer2.0"),
            ("layer2.0.downsample.0", "layer2.0"),
            ("convs.3", "convs.3"),
            ("fc", "fc"),
        ] {
            assert_eq!(block(path), expected);
        }
    }

    #[test]
    fn the_final_share_begins_on_time_whatever_rounding_does() {
        for (share, n_steps, first) in
            [(0.7, 10, 3), (0.85, 20, 3), (0.95, 20, 1), (0.44, 25, 14), (0.2, 100, 80)]
        {
            let stages = Probability::Stepped { values: vec![0.5] };
            let strategy = StochasticPrecision {
                final_share: share,
                ..strategy(Unit::Block, stages, Selector::Bernoulli)
            };
            let at = |step| {
                strategy.probability(&Moment { seed: 0, step, phase_step: step, phase_steps: n_steps })
            };
            assert_eq!((at(first - 1), at(first)), (0.5, 1.0), "{share} of {n_steps}");
        }
    }

    #[test]
    fn a_block_is_quantized_as_one_and_steps_differ() {
        let strategy = strategy(Unit::Block, Probability::Linear { from: 0.5 }, Selector::Bernoulli);
        let layers = layers(&PRERESNET);
        let mut seen = std::collections::BTreeSet::new();
        for step in 0..64 {
            let selections = strategy.select(&moment(step), &layers).unwrap();
            assert_eq!(selections, strategy.select(&moment(step), &layers).unwrap(), "pure");
            assert!(selections[0] == selections[1] && selections[2] == selections[3]);
            assert_eq!(selections[3], selections[4]);
            seen.insert(format!("{selections:?}"));
        }
        assert_eq!(seen.len(), 8, "all subsets of three units occur");
        for step in 80..100 {
            assert_eq!(strategy.select(&moment(step), &layers).unwrap(), vec![Selection::All; 6]);
        }
    }

    /// Every layer gets draws of its own, every step others; in the end all weights are quantized.
    #[test]
    fn single_weights_are_drawn_anew_in_each_layer_and_step() {
        let strategy = strategy(Unit::Weight, Probability::Linear { from: 0.0 }, Selector::Bernoulli);
        let layers = layers(&PRERESNET);
        let mut keys = std::collections::BTreeSet::new();
        for step in [0, 20, 79] {
            let selections = strategy.select(&moment(step), &layers).unwrap();
            assert_eq!(selections, strategy.select(&moment(step), &layers).unwrap(), "pure");
            for selection in selections {
                let Selection::Weights { key, probability } = selection else { panic!("{selection:?}") };
                assert_eq!(probability, step as f64 / 80.0);
                keys.insert(key);
            }
        }
        assert_eq!(keys.len(), 3 * layers.len());
        assert_eq!(strategy.select(&moment(80), &layers).unwrap(), vec![Selection::All; 6]);
    }

    #[test]
    fn fractions_follow_the_probability() {
        let layers = layers(&PRERESNET);
        for unit in [Unit::Block, Unit::Layer, Unit::ChannelGroup(4)] {
            let strategy =
                strategy(unit, Probability::Stepped { values: vec![0.25, 1.0] }, Selector::Bernoulli);
            let quantized: f64 = (0..4000)
                .map(|seed| {
                    let moment = Moment { seed, ..moment(3) };
                    let selections = strategy.select(&moment, &layers).unwrap();
                    let fractions = selections.iter().map(|selection| match selection {
                        Selection::All => 1.0,
                        Selection::None => 0.0,
                        Selection::ChannelGroups(groups) => {
                            assert_eq!(groups.len(), 4);
                            groups.iter().filter(|quantized| **quantized).count() as f64 / 4.0
                        }
                        Selection::Weights { .. } | Selection::SoftWeights { .. } => {
                            unreachable!("the unit is another")
                        }
                    });
                    fractions.sum::<f64>() / 6.0
                })
                .sum();
            // Standard error of the block's fraction below 0.005.
            assert!((quantized / 4000.0 - 0.25).abs() < 0.02, "{unit:?}: {}", quantized / 4000.0);
        }
    }

    /// A layer whose weights are in full precision is drawn as often as one of average error, not almost always.
    #[test]
    fn roulette_draws_layers_without_an_error_like_the_average() {
        let mut layers = layers(&["a", "b", "c", "d"]);
        for (layer, error) in layers.iter_mut().zip([Some(0.1), Some(0.1), None, Some(0.1)]) {
            layer.error = error;
        }
        let strategy = strategy(Unit::Layer, Probability::Stepped { values: vec![0.5] }, Selector::Roulette);
        let mut n_drawn = 0;
        for seed in 0..2000 {
            let selections = strategy.select(&Moment { seed, ..moment(0) }, &layers).unwrap();
            n_drawn += u32::from(selections[2] == Selection::All);
        }
        assert!((f64::from(n_drawn) / 2000.0 - 0.5).abs() < 0.04, "{n_drawn} of 2000");
        // Of a block, the layers with an error count.
        let paths = ["stages.0.0.conv1", "stages.0.0.conv2", "stages.1.0.conv1", "stages.2.0.conv1"];
        for (layer, path) in layers.iter_mut().zip(paths) {
            layer.path = path.into();
        }
        for (layer, error) in layers.iter_mut().zip([Some(0.1), None, Some(0.1), Some(0.1)]) {
            layer.error = error;
        }
        let strategy = StochasticPrecision {
            unit: Unit::Block,
            probability: Probability::Stepped { values: vec![1.0 / 3.0] },
            ..strategy
        };
        let drawn =
            |seed: u64| strategy.select(&Moment { seed, ..moment(0) }, &layers).unwrap()[0] == Selection::All;
        let n_drawn = (0..2000).filter(|&seed| drawn(seed)).count();
        assert!((n_drawn as f64 / 2000.0 - 1.0 / 3.0).abs() < 0.04, "{n_drawn} of 2000");
    }

    #[test]
    fn roulette_prefers_small_errors_and_draws_a_fixed_number() {
        let mut layers = layers(&["a", "b", "c", "d"]);
        for (layer, error) in layers.iter_mut().zip([0.01, 0.1, 0.1, 1.0]) {
            layer.error = Some(error);
        }
        let strategy = strategy(Unit::Layer, Probability::Stepped { values: vec![0.5] }, Selector::Roulette);
        let mut counts = [0; 4];
        for seed in 0..2000 {
            let selections = strategy.select(&Moment { seed, ..moment(0) }, &layers).unwrap();
            let chosen: Vec<usize> = (0..4).filter(|&i| selections[i] == Selection::All).collect();
            assert_eq!(chosen.len(), 2);
            chosen.into_iter().for_each(|i| counts[i] += 1);
        }
        // Chosen first with 100/121, or second after one of the others: by hand 0.967, 0.490, 0.490, 0.053.
        let expected = [0.967, 0.490, 0.490, 0.053];
        for (count, expected) in counts.iter().zip(expected) {
            assert!((f64::from(*count) / 2000.0 - expected).abs() < 0.04, "{counts:?}");
        }
    }
}
