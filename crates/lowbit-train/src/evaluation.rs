//! What a network scores.

use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Device;
use lowbit_data::{DataError, Loader};
use lowbit_models::Network;

use crate::data::tensor;
use crate::metrics::{Scores, Tally};

/// Scores of `network`, which is in validation mode, on all images of `loader`; `None` after a stop.
///
/// # Errors
/// If an image cannot be had.
pub(crate) fn evaluate(
    network: &Network,
    loader: &Loader,
    device: &Device,
    stop: &AtomicBool,
) -> Result<Option<Scores>, DataError> {
    let mut tally = Tally::default();
    for batch in loader.epoch(0, 0) {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let mut batch = batch?;
        let logits = network.forward(tensor(&mut batch, device)).into_data();
        let logits: Vec<f32> = logits.iter::<f32>().collect();
        tally.add(&logits, &batch.labels, mean_cross_entropy(&logits, &batch.labels));
    }
    Ok(Some(tally.scores()))
}

/// Mean over the rows of `logits` of the cross entropy with `labels`, in double precision.
pub(crate) fn mean_cross_entropy(logits: &[f32], labels: &[i64]) -> f64 {
    let n_classes = logits.len() / labels.len();
    let losses = logits.chunks_exact(n_classes).zip(labels).map(|(row, &label)| {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|&logit| f64::from(logit - max).exp()).sum();
        sum.ln() - f64::from(row[label as usize] - max)
    });
    losses.sum::<f64>() / labels.len() as f64
}
