//! What a network loses by the bits of each of its layers, and a choice of bits by that, under a budget.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;
use globset::Glob;
use lowbit_core::graph::LayerRole;
use lowbit_core::{BitWidth, Precision};
use lowbit_data::Loader;
use lowbit_models::{LayerPlan, ModelConfig, ModelError, Network, Plan};
use lowbit_quantizers::{
    LayerOverride, LayerQuantization, Method, PrecisionFloor, QuantizationPolicy, QuantizedNetwork, Selection,
};
use serde::Serialize;

use crate::data::{ChoosingImages, ChosenBy, Images, choosing_images, tensor};
use crate::error::TrainError;
use crate::evaluation::evaluate;
use crate::inspect::{Loaded, Subject};
use crate::metrics::Scores;
use crate::recipe::{DataRecipe, Recipe};
use crate::world::World;

/// Batches that set the range of an activation quantizer of other bits than the run's.
pub(crate) const CALIBRATION_BATCHES: usize = 2;

/// The most partial choices that the search keeps of those that are not worse than another in both cost and loss.
const MAX_KEPT: usize = 20_000;

/// What a measurement of [`sensitivity`] is asked for.
#[derive(Clone, Debug)]
pub struct SensitivityOptions {
    /// The most images that the network is scored on.
    pub n_images: usize,
    /// Bit widths that every layer between the first and the last is tried at, weights and input alike; none is no trial.
    pub bits: Vec<BitWidth>,
    /// The method of these trials, if it is not that of the recipe.
    pub method: Option<Method>,
}

/// What a network scores with some of its layers quantized.
///
/// A layer that is not quantized runs through its quantizers without their rounding, as in stochastic precision: it keeps
/// their range. Scores are of validation images or, where a run has none, of training images: never of test images, by which
/// nothing may be chosen.
#[derive(Clone, Debug, Serialize)]
pub struct Sensitivity {
    /// Name of the recipe.
    pub recipe: String,
    /// Name of the checkpoint.
    pub checkpoint: String,
    /// The network.
    pub network: String,
    /// Phase of the checkpoint, as in "w2a2".
    pub phase: String,
    /// Which images it is scored on.
    pub images: ChosenBy,
    /// Their number.
    pub n_images: usize,
    /// Scores of the network as it was trained.
    pub all: Scores,
    /// Scores with no layer quantized.
    pub none: Scores,
    /// The layers that are quantized or were tried, in forward order.
    pub layers: Vec<LayerSensitivity>,
    #[serde(skip)]
    base: Base,
}

/// What a layer does to the scores.
#[derive(Clone, Debug, Serialize)]
pub struct LayerSensitivity {
    /// Path of the layer.
    pub layer: String,
    /// Precision of its weights.
    pub weight_bits: Precision,
    /// Precision of its input.
    pub act_bits: Precision,
    /// Bit operations of the layer for one image.
    pub bit_operations: u64,
    /// Bytes of the layer as it is packed.
    pub packed_bytes: u64,
    /// Top-1 accuracy, as a fraction, with only this layer quantized; `None` if the run does not quantize it.
    pub top1_only: Option<f64>,
    /// The same for the mean cross entropy.
    pub loss_only: Option<f64>,
    /// Top-1 accuracy with every layer quantized but this one.
    pub top1_without: Option<f64>,
    /// The same for the mean cross entropy.
    pub loss_without: Option<f64>,
    /// Scores with this layer at other bits and the rest as it was trained.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub trials: Vec<Trial>,
}

/// A layer at other bits than it was trained at, without training.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// Bits of its weights and of its input.
    pub bits: Precision,
    /// Top-1 accuracy, as a fraction.
    pub top1: f64,
    /// Mean cross entropy.
    pub loss: f64,
    /// Bit operations of the layer for one image.
    pub bit_operations: u64,
    /// Bytes of the layer as it is packed.
    pub packed_bytes: u64,
}

/// What recipes of other bits are made from.
#[derive(Clone, Debug)]
pub(crate) struct Base {
    recipe: Recipe,
    model: ModelConfig,
    /// The precision that the layers have at the end of the training.
    pub(crate) policy: QuantizationPolicy,
    method: Option<Method>,
}

impl Base {
    /// That of a `model` in a run of `recipe`, whose layers have the precision of `policy` now. What a phase holds back is not held back
    /// here: bits are chosen for a whole training.
    pub(crate) fn new(
        recipe: Recipe,
        model: ModelConfig,
        policy: &QuantizationPolicy,
        method: Option<Method>,
    ) -> Self {
        let policy = policy.with_floor(PrecisionFloor::NONE);
        Self { recipe, model, policy, method }
    }

    pub(crate) fn data(&self) -> &DataRecipe {
        &self.recipe.data
    }

    /// The policy with other bits for some layers, weights and input alike.
    fn policy_with<'a>(
        &self,
        layers: impl Iterator<Item = (&'a str, Precision, Precision)>,
    ) -> QuantizationPolicy {
        let mut policy = self.policy.clone();
        policy.patterns.extend(layers.map(|(path, weight_bits, act_bits)| {
            let change = LayerOverride {
                method: self.method,
                weight_bits: Some(weight_bits),
                act_bits: Some(act_bits),
                ..LayerOverride::default()
            };
            (Glob::new(path).expect("invariant: a path has no signs of a pattern"), change)
        }));
        policy
    }

    pub(crate) fn plan(&self, policy: &QuantizationPolicy) -> Result<Plan, TrainError> {
        let data = &self.recipe.data;
        Ok(self.model.plan(data.input_shape(), data.n_classes(), policy)?)
    }

    /// What the layers other than those at `tried` take.
    pub(crate) fn fixed_cost(&self, cost: Cost, tried: &[&str]) -> Result<u64, TrainError> {
        let plan = self.plan(&self.policy)?;
        let replaced = plan.layers.iter().filter(|layer| tried.contains(&layer.path.as_str()));
        let replaced = replaced.map(|layer| cost.of_layer(layer)).fold(0, u64::saturating_add);
        Ok(cost.of(&plan).saturating_sub(replaced))
    }

    /// The recipe with these bits of layers, weights and input alike.
    pub(crate) fn recipe_with(&self, bits: &BTreeMap<String, Precision>) -> Recipe {
        let mut recipe = self.recipe.clone();
        recipe.model = self.model.clone();
        recipe.quantization.policy = QuantizationPolicy {
            floor: recipe.quantization.policy.floor,
            ..self.policy_with(bits.iter().map(|(path, bits)| (path.as_str(), *bits, *bits)))
        };
        recipe.name = format!("{}-mixed", recipe.name);
        // It is the result of other bits.
        recipe.reference = None;
        recipe
    }
}

/// A layer that is to be tried at other bits.
pub(crate) struct Planned {
    pub(crate) bits: Precision,
    pub(crate) quantization: LayerQuantization,
    pub(crate) bit_operations: u64,
    pub(crate) packed_bytes: u64,
}

/// The trials of every layer between the first and the last, by path.
pub(crate) fn planned(
    base: &Base,
    widths: &[BitWidth],
) -> Result<BTreeMap<String, Vec<Planned>>, TrainError> {
    let plan = base.plan(&base.policy)?;
    // Where layers are quantized, the others are in full precision on purpose.
    let is_any = plan.layers.iter().any(|layer| layer.method.is_some());
    let is_tried = |layer: &&LayerPlan| {
        !matches!(layer.role, LayerRole::First | LayerRole::Last) && (layer.method.is_some() || !is_any)
    };
    let tried: Vec<&LayerPlan> = plan.layers.iter().filter(is_tried).collect();
    let mut trials: BTreeMap<String, Vec<Planned>> = BTreeMap::new();
    for bits in widths.iter().map(|bits| Precision::Bits(*bits)) {
        let policy = base.policy_with(tried.iter().map(|layer| (layer.path.as_str(), bits, bits)));
        let plan = base.plan(&policy)?;
        for layer in plan.layers.iter().filter(|layer| tried.iter().any(|tried| tried.path == layer.path)) {
            trials.entry(layer.path.clone()).or_default().push(Planned {
                bits,
                quantization: policy.resolve(&layer.path, layer.role),
                bit_operations: layer.bit_operations,
                packed_bytes: layer.packed_bytes,
            });
        }
    }
    Ok(trials)
}

/// Scores a network of the run in `path` with each layer quantized alone, and with each layer alone left out. `progress` is
/// told how many of how many passes over the images are done. `device` is without autodiff.
///
/// # Errors
/// [`TrainError`] if the run, its checkpoint or its images cannot be read, if a method does not define the bits asked for, or if
/// nothing is quantized and no bits are named.
pub fn sensitivity(
    path: &Path,
    subject: Subject<'_>,
    device: &Device,
    images: &Images,
    options: &SensitivityOptions,
    mut progress: impl FnMut(usize, usize),
) -> Result<Sensitivity, TrainError> {
    let Loaded { recipe, info, name, mut network, model, policy, wanted, phase, .. } =
        Loaded::read(path, subject, device)?;
    let images = images.with_run_dir(info.data_dir.as_deref());
    let base = Base::new(recipe, model, &policy, options.method);
    let plan = base.plan(&policy)?;
    let mut trials = planned(&base, &options.bits)?;
    let is_quantized = |layer: &LayerPlan| layer.method.is_some();
    let n_quantized = plan.layers.iter().filter(|layer| is_quantized(layer)).count();
    if n_quantized == 0 && trials.is_empty() {
        return Err(TrainError::NothingQuantized { network: wanted.into() });
    }
    let ChoosingImages { in_order: loader, shuffled, chosen_by } =
        choosing_images(base.data(), &images, options.n_images)?;
    let n_passes = 2 + 2 * n_quantized + trials.values().map(Vec::len).sum::<usize>();
    let mut n_done = 0;
    let mut score = |network: &Network| -> Result<Scores, TrainError> {
        let scores = evaluate(network, &loader, device, &AtomicBool::new(false), &World::ALONE)?;
        n_done += 1;
        progress(n_done, n_passes);
        Ok(scores.expect("invariant: nobody stops it"))
    };
    let all = score(&network)?;
    select(&mut network, |_| Selection::None);
    let none = score(&network)?;
    let mut layers = Vec::new();
    for layer in &plan.layers {
        let this = layer.path.as_str();
        let (mut only, mut without) = (None, None);
        if is_quantized(layer) {
            select(&mut network, |path| if path == this { Selection::All } else { Selection::None });
            only = Some(score(&network)?);
            select(&mut network, |path| if path == this { Selection::None } else { Selection::All });
            without = Some(score(&network)?);
        }
        let mut tried = Vec::new();
        for Planned { bits, quantization, bit_operations, packed_bytes } in
            trials.remove(this).into_iter().flatten()
        {
            let mut network = network.clone();
            select(&mut network, |_| Selection::All);
            // What the run has learned for these bits is better than what a calibration finds.
            if quantization != policy.resolve(this, layer.role) {
                requantize(&mut network, this, &quantization, &shuffled, device)?;
            }
            let Scores { top1, loss, .. } = score(&network)?;
            tried.push(Trial { bits, top1, loss, bit_operations, packed_bytes });
        }
        if is_quantized(layer) || !tried.is_empty() {
            layers.push(LayerSensitivity {
                layer: layer.path.clone(),
                weight_bits: layer.weight_bits,
                act_bits: layer.act_bits,
                bit_operations: layer.bit_operations,
                packed_bytes: layer.packed_bytes,
                top1_only: only.map(|scores| scores.top1),
                loss_only: only.map(|scores| scores.loss),
                top1_without: without.map(|scores| scores.top1),
                loss_without: without.map(|scores| scores.loss),
                trials: tried,
            });
        }
    }
    Ok(Sensitivity {
        recipe: base.recipe.name.clone(),
        checkpoint: name,
        network: wanted.into(),
        phase,
        images: chosen_by,
        n_images: loader.n_samples(),
        all,
        none,
        layers,
        base,
    })
}

/// Sets which part of each layer, by its path, is quantized.
fn select(network: &mut Network, selection: impl Fn(&str) -> Selection) {
    for (path, mut layer) in network.layers_mut() {
        layer.select(selection(path));
    }
}

/// Gives the layer at `path` new quantizers, set from its weights and from the first batches of `loader`, which shuffles.
fn requantize(
    network: &mut Network,
    path: &str,
    quantization: &LayerQuantization,
    loader: &Loader,
    device: &Device,
) -> Result<(), TrainError> {
    for (_, mut layer) in network.layers_mut().filter(|(other, _)| *other == path) {
        layer
            .requantize(quantization)
            .map_err(|source| ModelError::Quantizer { layer: path.into(), source })?;
    }
    let mut failure = None;
    network.calibrate(
        |other| other == path,
        |network| {
            for batch in loader.epoch(0, 0).take(CALIBRATION_BATCHES) {
                match batch {
                    Ok(mut batch) => drop(network.forward(tensor(&mut batch, device))),
                    Err(error) => failure = Some(error),
                }
            }
        },
    );
    failure.map_or(Ok(()), |error| Err(error.into()))
}

/// What a budget counts, for one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cost {
    /// Multiply-accumulates x weight bits x activation bits, full precision as 32.
    BitOperations,
    /// Bytes of the packed network.
    Bytes,
}

impl Cost {
    fn of(self, plan: &Plan) -> u64 {
        match self {
            Self::BitOperations => plan.bit_operations(),
            Self::Bytes => plan.packed_bytes(),
        }
    }

    fn of_layer(self, layer: &LayerPlan) -> u64 {
        self.choose(layer.bit_operations, layer.packed_bytes)
    }

    pub(crate) fn choose(self, bit_operations: u64, packed_bytes: u64) -> u64 {
        match self {
            Self::BitOperations => bit_operations,
            Self::Bytes => packed_bytes,
        }
    }
}

/// What a network may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// What it would take with the same bits in all layers between the first and the last, of weights and of inputs.
    Uniform(Precision, Precision),
    /// This much.
    Amount(u64),
}

impl Budget {
    /// As a number, where the layers at `tried` have the bits.
    pub(crate) fn amount(self, base: &Base, cost: Cost, tried: &[&str]) -> Result<u64, TrainError> {
        match self {
            Self::Amount(amount) => Ok(amount),
            Self::Uniform(weight_bits, act_bits) => {
                let all = tried.iter().map(|path| (*path, weight_bits, act_bits));
                Ok(cost.of(&base.plan(&base.policy_with(all))?))
            }
        }
    }
}

/// Bits for each layer, found under a budget.
#[derive(Clone, Debug, Serialize)]
pub struct MixedPlan {
    /// Bits of weights and input of every layer that was tried, by path.
    pub bits: BTreeMap<String, Precision>,
    /// What the budget counts.
    pub cost_of: Cost,
    /// The budget.
    pub budget: u64,
    /// What the whole network takes of it.
    pub cost: u64,
    /// Where single layers were tried, the sum of what each adds to the loss when it alone has other bits than it was trained at; below
    /// zero where they are better.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss_increase: Option<f64>,
    /// The recipe that trains it.
    #[serde(skip)]
    pub recipe: Recipe,
}

/// No choice of bits could be made.
#[derive(Debug, thiserror::Error)]
pub enum BudgetError {
    /// The network cannot be had at the bits asked for.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// No bits were tried.
    #[error("no layer was tried at other bits, so there is nothing to choose from")]
    NoTrials,
    /// The network computes something that is not a number, so that no gradient says anything.
    #[error("the gradients of step {step} are not finite: choose by the loss, or higher bits")]
    NotFinite {
        /// The step, from 1.
        step: usize,
    },
    /// Not even the lowest bits fit.
    #[error(
        "no bits that were tried fit into a budget of {budget}: the least that the network takes with them is {least}"
    )]
    TooSmall {
        /// The budget.
        budget: u64,
        /// The least cost.
        least: u64,
    },
}

impl Sensitivity {
    /// The bits of each layer for which the sum of the layers' own increases of the loss is the least within a budget for the
    /// whole network. That the increases add up is an assumption: layers are tried one at a time, in a network that was not trained
    /// for these bits. Of choices without a difference in loss, the cheapest.
    ///
    /// # Errors
    /// [`BudgetError`] if there is nothing to choose from, or nothing fits.
    pub fn mixed_plan(&self, cost: Cost, budget: Budget) -> Result<MixedPlan, BudgetError> {
        let layers: Vec<&LayerSensitivity> =
            self.layers.iter().filter(|layer| !layer.trials.is_empty()).collect();
        if layers.is_empty() {
            return Err(BudgetError::NoTrials);
        }
        let tried: Vec<&str> = layers.iter().map(|layer| layer.layer.as_str()).collect();
        let budget = budget.amount(&self.base, cost, &tried)?;
        let fixed = self.base.fixed_cost(cost, &tried)?;
        let of = |trial: &Trial| {
            (cost.choose(trial.bit_operations, trial.packed_bytes), trial.loss - self.all.loss)
        };
        let choices: Vec<Vec<(u64, f64)>> =
            layers.iter().map(|layer| layer.trials.iter().map(of).collect()).collect();
        let least = choices.iter().map(|choices| choices.iter().map(|(cost, _)| *cost).min().unwrap_or(0));
        let least = least.fold(fixed, u64::saturating_add);
        let found = budget.checked_sub(fixed).and_then(|left| cheapest(&choices, left));
        let (picked, taken, loss_increase) = found.ok_or(BudgetError::TooSmall { budget, least })?;
        let bits: BTreeMap<String, Precision> = layers
            .iter()
            .zip(picked)
            .map(|(layer, pick)| (layer.layer.clone(), layer.trials[pick].bits))
            .collect();
        let recipe = self.base.recipe_with(&bits);
        let loss_increase = Some(loss_increase);
        Ok(MixedPlan { bits, cost_of: cost, budget, cost: fixed + taken, loss_increase, recipe })
    }
}

/// A partial choice: what it takes, what it loses, which it goes on from, and the choice of its last layer.
#[derive(Clone, Copy)]
struct Partial {
    cost: u64,
    loss: f64,
    before: u32,
    pick: u32,
}

/// One choice of (cost, loss) for each layer with the least sum of losses whose sum of costs is within `budget`: the picks, and
/// both sums. `None` if there is none. Exact as long as there are no more than [`MAX_KEPT`] partial choices of which none is worse
/// than another in both.
fn cheapest(choices: &[Vec<(u64, f64)>], budget: u64) -> Option<(Vec<usize>, u64, f64)> {
    let least = |choices: &[(u64, f64)]| choices.iter().map(|(cost, _)| *cost).min().unwrap_or(0);
    let mut left: u64 = choices.iter().map(|choices| least(choices)).fold(0, u64::saturating_add);
    let mut stages: Vec<Vec<Partial>> = vec![vec![Partial { cost: 0, loss: 0.0, before: 0, pick: 0 }]];
    for layer in choices {
        left = left.saturating_sub(least(layer));
        let before = &stages[stages.len() - 1];
        let extended = before.iter().zip(0..).flat_map(|(partial, before)| {
            layer.iter().zip(0..).map(move |(&(cost, loss), pick)| Partial {
                cost: partial.cost.saturating_add(cost),
                loss: partial.loss + loss,
                before,
                pick,
            })
        });
        let mut extended: Vec<Partial> =
            extended.filter(|partial| partial.cost.saturating_add(left) <= budget).collect();
        extended.sort_by(|a, b| a.cost.cmp(&b.cost).then(a.loss.total_cmp(&b.loss)));
        let mut best = f64::INFINITY;
        extended.retain(|partial| {
            let is_better = partial.loss < best;
            best = best.min(partial.loss);
            is_better
        });
        if extended.len() > MAX_KEPT {
            // The last has the least loss, and stays.
            let step = extended.len().div_ceil(MAX_KEPT);
            let last = extended.len() - 1;
            extended = extended
                .into_iter()
                .enumerate()
                .filter(|(i, _)| (last - i).is_multiple_of(step))
                .map(|(_, p)| p)
                .collect();
        }
        stages.push(extended);
    }
    let best = *stages[stages.len() - 1].last()?;
    let mut picks = Vec::with_capacity(choices.len());
    let mut partial = best;
    for stage in stages[..stages.len() - 1].iter().rev() {
        picks.push(partial.pick as usize);
        partial = stage[partial.before as usize];
    }
    picks.reverse();
    Some((picks, best.cost, best.loss))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All choices, one after the other.
    fn by_trying(choices: &[Vec<(u64, f64)>], budget: u64) -> Option<f64> {
        match choices.split_first() {
            None => Some(0.0),
            Some((layer, rest)) => {
                let of = |&(cost, loss): &(u64, f64)| {
                    by_trying(rest, budget.checked_sub(cost)?).map(|rest| loss + rest)
                };
                layer.iter().filter_map(of).min_by(f64::total_cmp)
            }
        }
    }

    #[test]
    fn the_search_finds_what_trying_all_finds() {
        let mut seed = 1u64;
        let mut next = |n: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % n
        };
        let mut n_found = 0;
        for _ in 0..200 {
            let choices: Vec<Vec<(u64, f64)>> =
                (0..5).map(|_| (0..4).map(|_| (next(50), next(1000) as f64 / 64.0)).collect()).collect();
            let budget = 20 + next(150);
            let found = cheapest(&choices, budget);
            let expected = by_trying(&choices, budget);
            assert_eq!(found.as_ref().map(|(_, _, loss)| *loss), expected);
            if let Some((picks, cost, loss)) = found {
                n_found += 1;
                let picked = || picks.iter().zip(&choices).map(|(pick, layer)| layer[*pick]);
                assert_eq!(picked().map(|(cost, _)| cost).sum::<u64>(), cost);
                assert_eq!(picked().map(|(_, loss)| loss).sum::<f64>(), loss);
                assert!(cost <= budget);
            }
        }
        assert!(n_found > 100, "{n_found}");
    }

    #[test]
    fn a_network_of_many_layers_is_searched_too() {
        let choices: Vec<Vec<(u64, f64)>> = (0..60u64)
            .map(|layer| {
                let option =
                    |bits: u64| (bits * bits * (layer * 7919 % 1013 + 1), 1.0 / ((bits * bits) as f64));
                (2..9).map(option).collect()
            })
            .collect();
        let uniform: u64 = choices.iter().map(|layer| layer[1].0).sum();
        let (_, cost, loss) = cheapest(&choices, uniform).unwrap();
        let of_uniform: f64 = choices.iter().map(|layer| layer[1].1).sum();
        assert!(cost <= uniform && loss < of_uniform, "{cost} {loss} {of_uniform}");
    }
}
