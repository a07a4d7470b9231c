//! What a network scores.

use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Device;
use lowbit_data::Loader;
use lowbit_models::Network;

use crate::data::tensor;
use crate::error::TrainError;
use crate::metrics::{Scores, Tally};
use crate::world::World;

/// Scores of `network`, which is in validation mode, on all images of `loader`; `None` after a stop. Of several processes each looks at
/// some batches, and all add up what came of them in the order of the batches: the scores are those of one process alone.
///
/// # Errors
/// If an image cannot be had, or another process is gone.
pub(crate) fn evaluate(
    network: &Network,
    loader: &Loader,
    device: &Device,
    stop: &AtomicBool,
    world: &World,
) -> Result<Option<Scores>, TrainError> {
    /// Numbers that are told of a batch.
    const OF_BATCH: usize = 4;

    let (rank, size, n_batches) = (world.rank() as u64, world.size() as u64, loader.steps_per_epoch());
    // All tell as many numbers, those without a batch too: whether to stop comes first.
    let mut own = vec![0.0; 1 + OF_BATCH * n_batches.div_ceil(size) as usize];
    let batches = loader.every(0, rank.min(n_batches), size);
    for (batch, told) in batches.zip(own[1..].chunks_exact_mut(OF_BATCH)) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let mut batch = batch?;
        let logits = network.forward(tensor(&mut batch, device)).into_data();
        let logits: Vec<f32> = logits.iter::<f32>().collect();
        let mut tally = Tally::default();
        tally.add(&logits, &batch.labels, mean_cross_entropy(&logits, &batch.labels));
        let Tally { n_images, n_top1, n_top5, loss_sum } = tally;
        told.copy_from_slice(&[n_images as f64, n_top1 as f64, n_top5 as f64, loss_sum]);
    }
    let is_whole = own[1..].iter().step_by(OF_BATCH).take(n_own(n_batches, rank, size)).all(|&n| n > 0.0);
    own[0] = f64::from(u8::from(!is_whole));
    let all = world.gather_numbers(&own)?;
    if all.iter().any(|of_rank| of_rank[0] > 0.0) {
        return Ok(None);
    }
    let mut sum = Tally::default();
    for batch in 0..n_batches as usize {
        let (rank, i) = (batch % all.len(), batch / all.len());
        let told = &all[rank][1 + OF_BATCH * i..][..OF_BATCH];
        sum.n_images += told[0] as u64;
        sum.n_top1 += told[1] as u64;
        sum.n_top5 += told[2] as u64;
        sum.loss_sum += told[3];
    }
    Ok(Some(sum.scores()))
}

/// Of so many batches, those of a process.
fn n_own(n_batches: u64, rank: u64, size: u64) -> usize {
    n_batches.saturating_sub(rank).div_ceil(size) as usize
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
