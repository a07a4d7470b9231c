//! Accuracy and loss of a pass over images, counted on the host so that every backend counts alike.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use serde::{Deserialize, Deserializer, Serialize};

/// Reads a number that JSON has as `null` because it is not finite.
pub(crate) fn or_nan<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or(f64::NAN))
}

/// The same of the parts of losses.
fn losses_or_nan<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<BTreeMap<String, BTreeMap<String, f64>>, D::Error> {
    let losses = BTreeMap::<String, BTreeMap<String, Option<f64>>>::deserialize(from)?;
    let numbers = |parts: BTreeMap<String, Option<f64>>| {
        parts.into_iter().map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect()
    };
    Ok(losses.into_iter().map(|(name, parts)| (name, numbers(parts))).collect())
}

/// The same of the parameters of quantizers.
fn parameters_or_nan<'de, D: Deserializer<'de>>(from: D) -> Result<BTreeMap<String, f32>, D::Error> {
    let parameters = BTreeMap::<String, Option<f32>>::deserialize(from)?;
    Ok(parameters.into_iter().map(|(name, value)| (name, value.unwrap_or(f32::NAN))).collect())
}

/// Sums over the images seen so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tally {
    /// Images.
    pub n_images: u64,
    /// Images whose label has the highest logit.
    pub n_top1: u64,
    /// Images whose label is among the five highest logits.
    pub n_top5: u64,
    /// Sum of the images' losses.
    pub loss_sum: f64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.n_images += other.n_images;
        self.n_top1 += other.n_top1;
        self.n_top5 += other.n_top5;
        self.loss_sum += other.loss_sum;
    }
}

impl Tally {
    /// Counts a batch: `logits` are `labels.len()` rows of class scores, `mean_loss` is the mean over the rows.
    pub fn add(&mut self, logits: &[f32], labels: &[i64], mean_loss: f64) {
        let n_classes = logits.len() / labels.len();
        self.n_images += labels.len() as u64;
        self.loss_sum += mean_loss * labels.len() as f64;
        for (row, &label) in logits.chunks_exact(n_classes).zip(labels) {
            let label = label as usize;
            // Ties are resolved to the lower class, so that equal logits do not count as correct.
            let rank = row
                .iter()
                .enumerate()
                .filter(|&(class, &score)| {
                    score > row[label] || (score == row[label] && class < label) || score.is_nan()
                })
                .count();
            self.n_top1 += u64::from(rank < 1);
            self.n_top5 += u64::from(rank < 5);
        }
    }

    /// Mean loss and accuracies.
    pub fn scores(&self) -> Scores {
        let n = self.n_images.max(1) as f64;
        Scores { loss: self.loss_sum / n, top1: self.n_top1 as f64 / n, top5: self.n_top5 as f64 / n }
    }
}

/// Mean cross entropy and accuracy over a set of images.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Mean loss, in nats. What is not finite is `null` in JSON, and is read as not a number.
    #[serde(deserialize_with = "or_nan")]
    pub loss: f64,
    /// Fraction of images whose label has the highest score.
    pub top1: f64,
    /// Fraction of images whose label is among the five highest scores.
    pub top5: f64,
}

/// One line of `metrics.jsonl`: what an epoch did. Holds nothing that depends on the machine's speed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EpochMetrics {
    /// Epoch, from 1.
    pub epoch: u64,
    /// Steps done since the start of the training.
    pub step: u64,
    /// Phase, as in "w4a32".
    pub phase: String,
    /// Learning rate of the epoch's last step.
    pub learning_rate: f64,
    /// Scores of the training batches as they passed, augmented, before each step's update. The loss is the cross entropy
    /// of the labels alone, as in `test`, whatever is trained on.
    pub train: Scores,
    /// What each network is trained on, by name: means over the epoch of the parts of its loss, weights included, and of
    /// their sum, `total`.
    #[serde(default, deserialize_with = "losses_or_nan", skip_serializing_if = "BTreeMap::is_empty")]
    pub losses: BTreeMap<String, BTreeMap<String, f64>>,
    /// Scores on the validation images, where there are some and the epoch was evaluated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<Scores>,
    /// Scores on the test images, where the epoch was evaluated on them: with validation images, after the last epoch only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<Scores>,
    /// Mean share of the layers that was quantized in the epoch's steps, if a strategy decides it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantized_fraction: Option<f64>,
    /// What strategies have measured in the epoch's last step, by name: shares, or a learning rate.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub measures: BTreeMap<String, f64>,
    /// Networks that train alongside, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<String, NetworkMetrics>,
    /// Mean of the learned step sizes, clip values or running ranges, by layer and parameter.
    #[serde(default, deserialize_with = "parameters_or_nan", skip_serializing_if = "BTreeMap::is_empty")]
    pub quantizers: BTreeMap<String, f32>,
}

/// What an epoch did to a network that trains alongside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NetworkMetrics {
    /// Mean of what it is trained on, distillation included; absent if it is not trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_loss: Option<f64>,
    /// Scores on the validation images, where there are some and the epoch was evaluated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<Scores>,
    /// Scores on the test images, where the epoch was evaluated on them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<Scores>,
}

/// One line of `timing.jsonl`.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct EpochTiming {
    /// Epoch, from 1.
    pub epoch: u64,
    /// Seconds of training so far, evaluation included.
    pub seconds: f64,
    /// Training images per second of this process so far, evaluation and waiting for images excluded.
    pub images_per_second: f64,
    /// Share of this process's time of training so far that was spent waiting for images, from 0 to 1; evaluation is excluded.
    #[serde(default)]
    pub waiting_fraction: f64,
    /// Seconds of each part since the line before, or since the process began; absent if an earlier lowbit wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<TimeParts>,
}

fn is_none(seconds: &f64) -> bool {
    *seconds == 0.0
}

/// Seconds of a training by what they were spent on.
///
/// Nothing waits for a device to be measured. On one that computes while the program goes on, as a GPU does, the time of `forward`,
/// `backward` and `update` is that of queueing them, and the device's own is in `reading`, where the results are waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TimeParts {
    /// Waiting for the images of a step.
    pub data: f64,
    /// What the networks make of the images, and their losses; that the images get to the device, too.
    pub forward: f64,
    /// Gradients.
    pub backward: f64,
    /// Waiting for what other processes make of their images, and for its way; what goes its way meanwhile takes none. 0 alone.
    #[serde(default, skip_serializing_if = "is_none")]
    pub exchange: f64,
    /// What the optimizer makes of the gradients, and moving averages.
    pub update: f64,
    /// Reading the losses and logits of the steps from the device.
    pub reading: f64,
    /// Calibrations and evaluations, with estimating BatchNorm's statistics anew.
    pub evaluation: f64,
    /// Checkpoints and the lines of the epochs.
    pub saving: f64,
}

impl TimeParts {
    /// The parts by name, in the order in which they come in a step.
    pub fn named(&self) -> [(&'static str, f64); 8] {
        let Self { data, forward, backward, exchange, update, reading, evaluation, saving } = *self;
        [
            ("data", data),
            ("forward", forward),
            ("backward", backward),
            ("exchange", exchange),
            ("update", update),
            ("reading", reading),
            ("evaluation", evaluation),
            ("saving", saving),
        ]
    }

    /// The sum of all parts.
    pub fn sum(&self) -> f64 {
        self.named().iter().map(|(_, seconds)| seconds).sum()
    }
}

impl AddAssign for TimeParts {
    fn add_assign(&mut self, other: Self) {
        self.data += other.data;
        self.forward += other.forward;
        self.backward += other.backward;
        self.exchange += other.exchange;
        self.update += other.update;
        self.reading += other.reading;
        self.evaluation += other.evaluation;
        self.saving += other.saving;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line of an earlier lowbit has no parts, and is read.
    #[test]
    fn times_without_parts_are_read() {
        let line = r#"{"epoch":1,"seconds":2.5,"images_per_second":10.0}"#;
        let timing: EpochTiming = serde_json::from_str(line).unwrap();
        assert_eq!((timing.seconds, timing.parts), (2.5, None));
        let parts = TimeParts { data: 1.0, saving: 0.5, ..TimeParts::default() };
        let timing = EpochTiming { parts: Some(parts), ..timing };
        let read: EpochTiming = serde_json::from_str(&serde_json::to_string(&timing).unwrap()).unwrap();
        assert_eq!(read.parts, Some(parts));
        assert_eq!(parts.sum(), 1.5);
    }

    #[test]
    fn what_is_not_finite_is_read_as_it_was_written() {
        let scores = Scores { loss: f64::INFINITY, top1: 0.5, top5: 1.0 };
        let mut metrics = EpochMetrics {
            epoch: 1,
            step: 4,
            phase: "w2a2".into(),
            learning_rate: 0.1,
            train: scores,
            losses: BTreeMap::new(),
            validation: None,
            test: None,
            quantized_fraction: None,
            measures: BTreeMap::new(),
            networks: BTreeMap::new(),
            quantizers: [("a.step".to_string(), f32::NAN), ("b.step".to_string(), 0.5)].into(),
        };
        metrics.losses.insert("student".into(), [("total".to_string(), f64::NAN)].into());
        let line = serde_json::to_string(&metrics).unwrap();
        let read: EpochMetrics = serde_json::from_str(&line).unwrap();
        assert!(read.train.loss.is_nan() && read.losses["student"]["total"].is_nan(), "{line}");
        assert!(read.quantizers["a.step"].is_nan() && read.quantizers["b.step"] == 0.5);
        assert_eq!(read.train.top1, 0.5);
    }

    #[test]
    fn ranks_the_label_and_breaks_ties_downwards() {
        let mut tally = Tally::default();
        let logits = [
            [0.1, 0.9, 0.0, 0.0, 0.0, 0.0, 0.0],
            [5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.0],
            [5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.0],
            [1.0; 7],
        ];
        tally.add(logits.as_flattened(), &[1, 4, 5, 1], 2.0);
        assert_eq!(tally, Tally { n_images: 4, n_top1: 1, n_top5: 3, loss_sum: 8.0 });
        let mut not_a_number = Tally::default();
        not_a_number.add(&[f32::NAN; 7], &[0], f64::NAN);
        assert_eq!(not_a_number.n_top1, 0);
    }
}
