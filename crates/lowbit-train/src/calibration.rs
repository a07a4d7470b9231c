//! The batches that set the ranges of activation quantizers.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::Device;
use lowbit_data::DataError;
use lowbit_models::Network;

use crate::data::{Data, tensor};
use crate::recipe::TrainRecipe;
use crate::world::World;

/// The batches that set the ranges of activation quantizers at the start of a phase. BatchNorm normalizes by batch, as in
/// the steps to come.
pub(crate) struct Calibration<'a> {
    data: &'a Data,
    device: &'a Device,
    epoch: u64,
    n_batches: usize,
    stop: &'a AtomicBool,
    /// Why a batch could not be had.
    failure: RefCell<Option<DataError>>,
}

impl<'a> Calibration<'a> {
    pub(crate) fn of(
        data: &'a Data,
        device: &'a Device,
        train: &TrainRecipe,
        epoch: u64,
        stop: &'a AtomicBool,
    ) -> Self {
        Self { data, device, epoch, n_batches: train.calibration_batches, stop, failure: RefCell::default() }
    }

    /// Of several processes the first runs all batches; the others, who are told what came of it, run one.
    pub(crate) fn on(self, world: &World) -> Self {
        Self { n_batches: if world.is_root() { self.n_batches } else { 1 }, ..self }
    }

    /// Runs the batches, or, after a stop or a failure, only the first: what comes of it is then dropped.
    pub(crate) fn run(&self, network: &Network) {
        for batch in self.data.batches(self.epoch, self.n_batches) {
            match batch {
                Ok(mut batch) => drop(network.forward(tensor(&mut batch, self.device))),
                Err(error) => {
                    self.failure.replace(Some(error));
                    break;
                }
            }
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
        }
    }

    /// # Errors
    /// If not all batches could be had.
    pub(crate) fn finish(self) -> Result<(), DataError> {
        self.failure.into_inner().map_or(Ok(()), Err)
    }
}
