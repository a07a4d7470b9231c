//! Explicit calibration: running data through a network to set the ranges of its activation quantizers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::Tensor;
use lowbit_core::Granularity;
use lowbit_kernels::value_range;

use crate::codes::reduce;
use crate::parameter::constant;

/// What an activation quantizer has seen of the data since its calibration began.
///
/// While it is recording, a quantizer works with the range of what it has recorded so far, so that the layers after
/// it see quantized inputs. A quantizer that is not recording never changes its learned parameters by itself.
///
/// Clones of a quantizer share their calibration, so that data may pass through a copy of the network: one that is without
/// gradients, say. Two clones cannot be calibrated apart at the same time.
#[derive(Clone, Debug, Default)]
pub struct Calibration(Arc<Mutex<State>>);

/// What was recorded, or `None` while nothing is.
type State = Option<Box<Recorded>>;

#[derive(Debug, Default)]
struct Recorded {
    mean: Option<RunningMean>,
    range: Option<(Tensor<1>, Tensor<1>)>,
}

#[derive(Debug)]
struct RunningMean {
    sum: Tensor<1>,
    batches: u32,
}

impl RunningMean {
    fn value(&self) -> Tensor<1> {
        self.sum.clone() / self.batches
    }
}

impl Calibration {
    fn state(&self) -> MutexGuard<'_, State> {
        // The state is replaced whole, so a panic elsewhere cannot leave it half written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to record, forgetting what was recorded before.
    pub(crate) fn start(&self) {
        *self.state() = Some(Box::default());
    }

    pub(crate) fn is_recording(&self) -> bool {
        self.state().is_some()
    }

    /// Adds the mean of one batch, if it is recording.
    pub(crate) fn record_mean(&self, batch_mean: Tensor<1>) {
        let mut state = self.state();
        let Some(recorded) = &mut *state else { return };
        recorded.mean = Some(match recorded.mean.take() {
            None => RunningMean { sum: batch_mean, batches: 1 },
            Some(old) => RunningMean { sum: old.sum + batch_mean, batches: old.batches + 1 },
        });
    }

    /// The mean over the batches so far, if any is recorded.
    pub(crate) fn mean(&self) -> Option<Tensor<1>> {
        self.state().as_ref()?.mean.as_ref().map(RunningMean::value)
    }

    /// Widens the range by that of one batch, if it is recording.
    pub(crate) fn record_range(&self, min: Tensor<1>, max: Tensor<1>) {
        let mut state = self.state();
        let Some(recorded) = &mut *state else { return };
        recorded.range = Some(match recorded.range.take() {
            None => (min, max),
            Some((old_min, old_max)) => (old_min.min_pair(min), old_max.max_pair(max)),
        });
    }

    /// Takes in activations after a ReLU, for [`half_normal_end`](Self::half_normal_end). Without a calibration, or without values, nothing
    /// happens.
    pub(crate) fn record_half_normal<const D: usize>(&self, x: &Tensor<D>) {
        if self.is_recording() && x.shape().num_elements() > 0 {
            let x = constant(x.clone()).clamp_min(0.0);
            let range = value_range(x.clone());
            let [min, max] = [0, 1].map(|i| range.clone().narrow(0, i, 1));
            self.record_range(min, max);
            self.record_mean(reduce(x.square(), Granularity::PerTensor, |rows| rows.mean_dim(1)));
        }
    }

    /// `min(max(x), 3 sqrt(mean(x^2)))` of what is recorded, `[1]`: three deviations of the normal distribution that the ReLU cut. `of_zeros`
    /// if all is zero; `None` if nothing is recorded.
    pub(crate) fn half_normal_end(&self, of_zeros: f32) -> Option<Tensor<1>> {
        let (square, (_, max)) = (self.mean()?, self.range()?);
        let all_zero = max.clone().equal_scalar(0.0);
        Some((square.sqrt() * 3.0).min_pair(max).mask_fill(all_zero, of_zeros))
    }

    /// The range over the batches so far, if any is recorded.
    pub(crate) fn range(&self) -> Option<(Tensor<1>, Tensor<1>)> {
        self.state().as_ref()?.range.clone()
    }

    /// Stops recording; the mean over all batches, if any was recorded.
    pub(crate) fn finish_mean(&self) -> Option<Tensor<1>> {
        let mean = self.mean();
        *self.state() = None;
        mean
    }

    /// Stops recording; the range over all batches, if any was recorded.
    pub(crate) fn finish_range(&self) -> Option<(Tensor<1>, Tensor<1>)> {
        let range = self.range();
        *self.state() = None;
        range
    }
}
