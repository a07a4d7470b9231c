//! The learning rate as a function of the step.

use std::f64::consts::PI;

use crate::recipe::{ScheduleRecipe, TrainRecipe};

/// The learning rate of step `step` (from 0) of a training with `steps_per_epoch` steps an epoch.
///
/// During the warm-up it rises linearly and reaches the full rate at its end; the schedule's own course counts from
/// the first step of the training, as milestones are epochs of the training.
pub fn learning_rate(recipe: &TrainRecipe, steps_per_epoch: u64, step: u64) -> f64 {
    let warmup_steps = recipe.warmup_epochs * steps_per_epoch as f64;
    let warmup = match warmup_steps {
        steps if (step as f64) < steps => (step + 1) as f64 / (steps + 1.0),
        _ => 1.0,
    };
    let factor = match &recipe.schedule {
        ScheduleRecipe::Constant => 1.0,
        ScheduleRecipe::Cosine => {
            let total = (recipe.epochs * steps_per_epoch) as f64;
            0.5 * (1.0 + (PI * step as f64 / total).cos())
        }
        ScheduleRecipe::MultiStep { milestones, gamma } => {
            let epoch = step / steps_per_epoch;
            let falls = milestones.iter().filter(|&&milestone| epoch >= milestone).count();
            gamma.powi(falls as i32)
        }
    };
    recipe.learning_rate * warmup * factor
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Recipe;

    fn recipe(overrides: &[&str]) -> TrainRecipe {
        let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
        Recipe::embedded("digits-preresnet8-w2a2", &overrides).unwrap().train
    }

    #[test]
    fn multi_step_falls_after_its_milestones() {
        let train = recipe(&[
            "train.epochs=10",
            "train.learning_rate=0.5",
            "train.schedule={kind='multi-step', milestones=[2, 5], gamma=0.1}",
            "train.warmup_epochs=0",
        ]);
        let rates: Vec<f64> = (0..60).step_by(10).map(|step| learning_rate(&train, 10, step)).collect();
        assert_eq!(rates, [0.5, 0.5, 0.05, 0.05, 0.05, 0.5 * 0.1f64.powi(2)]);
    }

    #[test]
    fn warmup_rises_linearly_to_the_full_rate() {
        let train = recipe(&[
            "train.learning_rate=0.6",
            "train.schedule={kind='constant'}",
            "train.warmup_epochs=0.5",
        ]);
        // Five steps of warm-up, after which the sixth has the full rate.
        for (step, expected) in [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.6].into_iter().enumerate() {
            let rate = learning_rate(&train, 10, step as u64);
            assert!((rate - expected).abs() < 1e-15, "step {step}: {rate}, expected {expected}");
        }
    }

    #[test]
    fn cosine_falls_to_zero() {
        let train = recipe(&[
            "train.epochs=4",
            "train.learning_rate=1.0",
            "train.schedule={kind='cosine'}",
            "train.warmup_epochs=0",
        ]);
        let rate = |step| learning_rate(&train, 10, step);
        assert!((rate(20) - 0.5).abs() < 1e-12, "half way at half the rate");
        assert!(rate(39) < 0.002 && rate(39) > 0.0);
    }
}
