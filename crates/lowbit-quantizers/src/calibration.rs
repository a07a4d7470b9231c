//! Explicit calibration: running data through a network to set the ranges of its activation quantizers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::tensor::Tensor;

/// What an activation quantizer has seen of the data since its calibration began.
///
/// While it is recording, a quantizer works with the range of what it has recorded so far, so that the layers after
/// it see quantized inputs. A quantizer that is not recording never changes its learned parameters by itself.
#[derive(Clone, Debug, Default)]
pub struct Calibration(Arc<Mutex<State>>);

#[derive(Debug, Default)]
enum State {
    #[default]
    Idle,
    Recording {
        mean: Option<RunningMean>,
        range: Option<(Tensor<1>, Tensor<1>)>,
    },
}

#[derive(Debug)]
struct RunningMean {
    sum: Tensor<1>,
    batches: u32,
}

impl Calibration {
    fn state(&self) -> MutexGuard<'_, State> {
        // The state is replaced whole, so a panic elsewhere cannot leave it half written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to record, forgetting what was recorded before.
    pub(crate) fn start(&self) {
        *self.state() = State::Recording { mean: None, range: None };
    }

    pub(crate) fn is_recording(&self) -> bool {
        matches!(*self.state(), State::Recording { .. })
    }

    /// Adds the mean of one batch; returns the mean over the batches so far.
    pub(crate) fn record_mean(&self, batch_mean: Tensor<1>) -> Tensor<1> {
        match &mut *self.state() {
            State::Idle => batch_mean,
            State::Recording { mean, .. } => {
                let (sum, batches) = match mean.take() {
                    None => (batch_mean, 1),
                    Some(old) => (old.sum + batch_mean, old.batches + 1),
                };
                let value = sum.clone() / batches;
                *mean = Some(RunningMean { sum, batches });
                value
            }
        }
    }

    /// Widens the range by that of one batch; returns the range so far.
    pub(crate) fn record_range(&self, min: Tensor<1>, max: Tensor<1>) -> (Tensor<1>, Tensor<1>) {
        match &mut *self.state() {
            State::Idle => (min, max),
            State::Recording { range, .. } => {
                let wider = match range.take() {
                    None => (min, max),
                    Some((old_min, old_max)) => (old_min.min_pair(min), old_max.max_pair(max)),
                };
                *range = Some(wider.clone());
                wider
            }
        }
    }

    /// Stops recording; the mean over all batches, if any was recorded.
    pub(crate) fn finish_mean(&self) -> Option<Tensor<1>> {
        match std::mem::take(&mut *self.state()) {
            State::Recording { mean: Some(mean), .. } => Some(mean.sum / mean.batches),
            _ => None,
        }
    }

    /// Stops recording; the range over all batches, if any was recorded.
    pub(crate) fn finish_range(&self) -> Option<(Tensor<1>, Tensor<1>)> {
        match std::mem::take(&mut *self.state()) {
            State::Recording { range, .. } => range,
            State::Idle => None,
        }
    }
}
