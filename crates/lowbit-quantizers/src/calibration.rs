//! Explicit calibration: running data through a network to set the ranges of its activation quantizers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::Tensor;

/// What an activation quantizer has seen of the data since its calibration began.
///
/// While it is recording, a quantizer works with the range of what it has recorded so far, so that the layers after
/// it see quantized inputs. A quantizer that is not recording never changes its learned parameters by itself.
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

    /// Adds the mean of one batch; returns the mean over the batches so far.
    pub(crate) fn record_mean(&self, batch_mean: Tensor<1>) -> Tensor<1> {
        let mut state = self.state();
        let Some(recorded) = &mut *state else { return batch_mean };
        let mean = match recorded.mean.take() {
            None => RunningMean { sum: batch_mean, batches: 1 },
            Some(old) => RunningMean { sum: old.sum + batch_mean, batches: old.batches + 1 },
        };
        recorded.mean.insert(mean).value()
    }

    /// Widens the range by that of one batch; returns the range so far.
    pub(crate) fn record_range(&self, min: Tensor<1>, max: Tensor<1>) -> (Tensor<1>, Tensor<1>) {
        let mut state = self.state();
        let Some(recorded) = &mut *state else { return (min, max) };
        let wider = match recorded.range.take() {
            None => (min, max),
            Some((old_min, old_max)) => (old_min.min_pair(min), old_max.max_pair(max)),
        };
        recorded.range.insert(wider).clone()
    }

    /// Stops recording; the mean over all batches, if any was recorded.
    pub(crate) fn finish_mean(&self) -> Option<Tensor<1>> {
        self.state().take()?.mean.map(|mean| mean.value())
    }

    /// Stops recording; the range over all batches, if any was recorded.
    pub(crate) fn finish_range(&self) -> Option<(Tensor<1>, Tensor<1>)> {
        self.state().take()?.range
    }
}
