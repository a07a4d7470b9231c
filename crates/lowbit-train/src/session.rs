//! What a program gives to a training, and what comes of it.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;

use crate::data::Images;
use crate::observer::Observer;
use crate::origin::Origin;
use crate::result::RunResult;
use crate::strategy::Strategy;
use crate::world::World;

/// Where a training runs.
pub struct Session<'a> {
    /// Device of the network, without autodiff.
    pub device: Device,
    /// How the device was asked for, as in "flex" or "wgpu:0".
    pub device_name: String,
    /// The program and the machine, for the record: [`Origin::here`], and what only the program knows.
    pub origin: Origin,
    /// The images, or where they are looked for.
    pub images: Images,
    /// Set to end the training with a checkpoint: after the current step, or the current batch of a calibration or an
    /// evaluation, which is then made again when the run is resumed.
    pub stop: &'a AtomicBool,
    /// Told of everything that happens.
    pub observer: &'a mut dyn Observer,
    /// The processes that train together: [`World::ALONE`], unless a program joins others.
    pub world: World,
    /// Strategies of the caller's own, composed after those of the recipe. A run is resumed with the same: they are told
    /// by their names and settings.
    pub strategies: Vec<Box<dyn Strategy>>,
}

/// How a training ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// All epochs are done.
    Complete(Box<RunResult>),
    /// It was stopped and can be resumed.
    Interrupted {
        /// The run directory.
        run_dir: PathBuf,
        /// Steps done.
        step: u64,
        /// Steps in all.
        steps: u64,
    },
}
