//! Bits for each layer, learned by gradient under a budget.
//!
//! Each layer has a place between two bit widths, and computes with the sum of both by their shares, weights and input alike, as in FracBits
//! (Yang and Jin 2021, arXiv 2007.02017). The gradient of the loss by the place says what the layer gains by more bits. After each
//! step all places are moved back to where the network takes just the budget. Ours: the weights stay as they are, so that nothing has to be
//! trained, and the budget is met in each step in place of a penalty.

use std::collections::BTreeMap;
use std::path::Path;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use lowbit_core::Precision;
use lowbit_models::{ModelError, Network};
use lowbit_quantizers::{LayerQuantization, QuantizedNetwork};
use lowbit_strategies::loss::{cross_entropy, target_probabilities};

use crate::data::{Images, choosing_images, tensor};
use crate::error::TrainError;
use crate::inspect::{Loaded, Subject};
use crate::sensitivity::{
    Base, Budget, BudgetError, CALIBRATION_BATCHES, Cost, MixedPlan, Planned, SensitivityOptions, planned,
};

/// How far a place of mean slope moves in the first step, in bit widths of the list, before the move back to the budget; less in proportion to
/// the steps that are left.
const STEP: f64 = 0.25;

/// How much of the mean square of the gradients so far is kept in a step.
const MEMORY: f64 = 0.9;

/// What [`learned_plan`] is asked for.
#[derive(Clone, Copy, Debug)]
pub struct SearchOptions {
    /// Steps, of a batch of 256 images each.
    pub steps: usize,
    /// What the budget counts.
    pub cost: Cost,
    /// The budget.
    pub budget: Budget,
}

/// Learns bits for each layer between the first and the last of a network of the run in `path`, among those of `options`, within a
/// budget. `progress` is told how many of how many steps are done. `device` is without autodiff.
///
/// # Errors
/// [`BudgetError`] if the run, its checkpoint or its images cannot be read, if there is nothing to choose from, or nothing fits.
pub fn learned_plan(
    path: &Path,
    subject: Subject<'_>,
    device: &Device,
    images: &Images,
    options: &SensitivityOptions,
    search: SearchOptions,
    mut progress: impl FnMut(usize, usize),
) -> Result<MixedPlan, BudgetError> {
    let SearchOptions { steps, cost, budget } = search;
    let Loaded { recipe, info, network, model, policy, .. } = Loaded::read(path, subject, device)?;
    let images = images.with_run_dir(info.data_dir.as_deref());
    let base = Base::new(recipe, model, &policy, options.method);
    let mut widths = options.bits.clone();
    widths.sort();
    widths.dedup();
    let trials = planned(&base, &widths)?;
    if trials.is_empty() {
        return Err(BudgetError::NoTrials);
    }
    let tried: Vec<&str> = trials.keys().map(String::as_str).collect();
    let budget = budget.amount(&base, cost, &tried)?;
    let fixed = base.fixed_cost(cost, &tried)?;
    let of = |planned: &Planned| cost.choose(planned.bit_operations, planned.packed_bytes);
    let costs: Vec<Vec<u64>> = trials.values().map(|layer| layer.iter().map(of).collect()).collect();
    let least = costs.iter().map(|layer| layer[0]).fold(fixed, u64::saturating_add);
    let Some(left) = budget.checked_sub(fixed).filter(|_| least <= budget) else {
        return Err(BudgetError::TooSmall { budget, least });
    };

    let loader = choosing_images(base.data(), &images, options.n_images)?.shuffled;
    // It normalizes by the batch, as a network does that is trained for these bits.
    let mut network = network.train();
    let device = device.clone().autodiff();
    for (path, mut layer) in network.layers_mut() {
        if let Some(trials) = trials.get(path) {
            let quantizations: Vec<LayerQuantization> =
                trials.iter().map(|trial| trial.quantization).collect();
            layer
                .mix(&quantizations)
                .map_err(|source| TrainError::from(ModelError::Quantizer { layer: path.into(), source }))?;
        }
    }
    let mut batches = (0..).flat_map(|epoch| loader.epoch(epoch, 0));
    let mut next = || batches.next().expect("invariant: there is always a further epoch");
    let mut failure = None;
    network.calibrate(
        |path| trials.contains_key(path),
        |network| {
            for _ in 0..CALIBRATION_BATCHES {
                match next() {
                    Ok(mut batch) => drop(network.forward(tensor(&mut batch, &device))),
                    Err(error) => failure = Some(error),
                }
            }
        },
    );
    if let Some(error) = failure {
        return Err(TrainError::from(error).into());
    }

    let mut places = Places::within(costs, left);
    let mut mean_square = None;
    for step in 0..steps {
        let mut batch = next().map_err(TrainError::from)?;
        let shares = set_shares(&mut network, &places, &tried, &device);
        let logits = network.forward(tensor(&mut batch, &device));
        let labels = target_probabilities(&batch.labels, logits.dims()[1], 0.0, &device);
        let gradients = cross_entropy(logits, labels).backward();
        let slopes: Vec<f64> = shares
            .iter()
            .map(|[low, high]| {
                let of = |share: &Tensor<1>| {
                    share.grad(&gradients).map_or(0.0, |gradient| f64::from(gradient.into_scalar::<f32>()))
                };
                of(high) - of(low)
            })
            .collect();
        let square = slopes.iter().map(|slope| slope * slope).sum::<f64>() / slopes.len() as f64;
        if !square.is_finite() {
            return Err(BudgetError::NotFinite { step: step + 1 });
        }
        let mean = mean_square.map_or(square, |mean| MEMORY * mean + (1.0 - MEMORY) * square);
        mean_square = Some(mean);
        let rate = STEP * (steps - step) as f64 / steps as f64 / mean.sqrt().max(f64::MIN_POSITIVE);
        places.step(&slopes, rate);
        progress(step + 1, steps);
    }
    let (picked, taken) = places.rounded();
    let bits: BTreeMap<String, Precision> =
        trials.iter().zip(picked).map(|((path, trials), pick)| (path.clone(), trials[pick].bits)).collect();
    let recipe = base.recipe_with(&bits);
    Ok(MixedPlan { bits, cost_of: cost, budget, cost: fixed + taken, loss_increase: None, recipe })
}

/// Gives each layer at `tried` its two shares, which are returned in this order: of the lower bit width, then of the next.
fn set_shares(
    network: &mut Network,
    places: &Places,
    tried: &[&str],
    device: &Device,
) -> Vec<[Tensor<1>; 2]> {
    let shares: Vec<[Tensor<1>; 2]> = (0..tried.len())
        .map(|layer| {
            let (_, part) = places.at(layer);
            [1.0 - part, part].map(|share| Tensor::from_floats([share as f32], device).require_grad())
        })
        .collect();
    for (path, mut layer) in network.layers_mut() {
        let place = tried.iter().position(|tried| *tried == path);
        if let (Some(place), Some(mixture)) = (place, layer.mixture()) {
            let (low, _) = places.at(place);
            let [one, other] = &shares[place];
            let high = (low + 1).min(places.costs[place].len() - 1);
            mixture.set_shares(vec![(low, one.clone()), (high, other.clone())]);
        }
    }
    shares
}

/// Where each layer is between the bit widths of the list, from 0 to the last.
#[derive(Debug)]
struct Places {
    places: Vec<f64>,
    /// What each layer takes at each bit width, ascending.
    costs: Vec<Vec<u64>>,
    budget: u64,
}

impl Places {
    /// All layers at the same place, where they take the budget, which is at least their least cost.
    fn within(costs: Vec<Vec<u64>>, budget: u64) -> Self {
        let last = costs.iter().map(|layer| layer.len() - 1).max().unwrap_or(0) as f64;
        let mut all = Self { places: vec![last; costs.len()], costs, budget };
        // From the highest down, all by as much.
        all.meet_budget(&vec![1.0; all.places.len()]);
        all
    }

    /// The bit width below a layer's place, and how far it is to the next, from 0 to 1.
    fn at(&self, layer: usize) -> (usize, f64) {
        let last = self.costs[layer].len() - 1;
        let low = (self.places[layer].floor() as usize).min(last.saturating_sub(1));
        (low, self.places[layer] - low as f64)
    }

    fn cost_at(&self, layer: usize, place: f64) -> f64 {
        let costs = &self.costs[layer];
        let place = place.clamp(0.0, (costs.len() - 1) as f64);
        let low = place.floor() as usize;
        let high = (low + 1).min(costs.len() - 1);
        let part = place - low as f64;
        costs[low] as f64 * (1.0 - part) + costs[high] as f64 * part
    }

    /// Moves each place against its slope, then all of them to the budget, each by as much as it costs.
    fn step(&mut self, slopes: &[f64], rate: f64) {
        let directions: Vec<f64> = (0..self.places.len())
            .map(|layer| {
                let place = self.places[layer];
                (self.cost_at(layer, place + 0.5) - self.cost_at(layer, place - 0.5)).max(f64::MIN_POSITIVE)
            })
            .collect();
        for (place, slope) in self.places.iter_mut().zip(slopes) {
            *place -= (rate * slope).clamp(-1.0, 1.0);
        }
        let most = directions.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        self.meet_budget(&directions.iter().map(|direction| direction / most).collect::<Vec<_>>());
    }

    /// Moves all places along `directions`, which are above zero, by the one distance for which the budget is met, or as close as there
    /// are bit widths.
    fn meet_budget(&mut self, directions: &[f64]) {
        let moved = |by: f64| -> Vec<f64> {
            let moved = self.places.iter().zip(directions).zip(&self.costs);
            moved
                .map(|((place, direction), costs)| {
                    (place + by * direction).clamp(0.0, (costs.len() - 1) as f64)
                })
                .collect()
        };
        let total = |places: &[f64]| -> f64 {
            places.iter().enumerate().map(|(layer, place)| self.cost_at(layer, *place)).sum()
        };
        let least = directions.iter().copied().fold(1.0, f64::min).max(1e-6);
        let (mut low, mut high) = (-10.0 / least, 10.0 / least);
        for _ in 0..200 {
            let middle = (low + high) / 2.0;
            match total(&moved(middle)) > self.budget as f64 {
                true => high = middle,
                false => low = middle,
            }
        }
        self.places = moved(low);
    }

    /// A bit width for each layer, and what they take together: those below the places; then, from the layer that is nearest to the next one on,
    /// the next one where the budget has room.
    fn rounded(&self) -> (Vec<usize>, u64) {
        // A place that is a bit width may be a rounding error below it.
        let whole = |place: f64| {
            if (place.round_ties_even() - place).abs() < 1e-6 { place.round_ties_even() } else { place }
        };
        let mut picks: Vec<usize> = self.places.iter().map(|place| whole(*place).floor() as usize).collect();
        let mut taken: u64 = picks.iter().zip(&self.costs).map(|(pick, costs)| costs[*pick]).sum();
        let part = |layer: &usize| whole(self.places[*layer]).fract();
        let mut order: Vec<usize> = (0..picks.len()).collect();
        order.sort_by(|a, b| part(b).total_cmp(&part(a)));
        for layer in order {
            let (pick, costs) = (picks[layer], &self.costs[layer]);
            let Some(next) = costs.get(pick + 1) else { continue };
            let with = taken - costs[pick] + next;
            if with <= self.budget {
                (picks[layer], taken) = (pick + 1, with);
            }
        }
        (picks, taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Costs of layers with bits 2, 3, 4 and 8, weights and input alike.
    fn costs() -> Vec<Vec<u64>> {
        [100, 40, 10].map(|macs| [2u64, 3, 4, 8].map(|bits| macs * bits * bits).to_vec()).to_vec()
    }

    #[test]
    fn a_uniform_budget_begins_and_stays_at_uniform_bits() {
        let places = Places::within(costs(), 150 * 9);
        assert!(places.places.iter().all(|place| (place - 1.0).abs() < 1e-6), "{places:?}");
        assert_eq!(places.rounded(), (vec![1, 1, 1], 150 * 9));
    }

    #[test]
    fn the_layer_that_gains_gets_bits_of_the_others() {
        let mut places = Places::within(costs(), 150 * 9);
        for _ in 0..50 {
            // The small layers lower the loss by more bits, the large one does not.
            places.step(&[0.0, -1.0, -1.0], 0.1);
            let total: f64 = (0..3).map(|layer| places.cost_at(layer, places.places[layer])).sum();
            assert!(total <= 150.0 * 9.0 + 1e-6, "{total}");
        }
        let (picks, taken) = places.rounded();
        assert!(taken <= 150 * 9);
        assert_eq!(picks[0], 0);
        assert!(picks[1] > 1 && picks[2] > 1, "{picks:?}");
    }

    #[test]
    fn any_budget_from_the_least_on_is_met() {
        for budget in [600, 601, 1000, 5000, 9600, 100_000] {
            let places = Places::within(costs(), budget);
            let (picks, taken) = places.rounded();
            assert!(taken <= budget, "{budget}: {picks:?}");
        }
        assert_eq!(Places::within(costs(), 100_000).rounded().0, [3, 3, 3]);
    }
}
