//! Entry points for fuzzing, which hand over bytes in place of files. No part of the interface.

use std::path::Path;
use std::sync::OnceLock;

use burn::tensor::Device;

use crate::checkpoint::{Manifest, Sums, from_safetensors};
use crate::experiment::Experiment;
use crate::optimizer::Optimizer;
use crate::optimizer_file::{MayLack, OptimizerFile, optimizer_bytes};
use crate::progress::Progress;
use crate::recipe::{Recipe, TrainRecipe};
use crate::run_dir::{RunDir, Starts};
use crate::weights::{TensorInfo, WeightsFile, fits};

/// Reads the manifest of a checkpoint.
pub fn manifest(bytes: &[u8]) -> bool {
    Manifest::read(bytes).is_ok()
}

/// Reads the checksums of a checkpoint.
pub fn sums(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| Sums::parse(text).is_ok())
}

/// Reads the tensors of a network.
pub fn safetensors(bytes: &[u8]) -> bool {
    from_safetensors(bytes).is_ok()
}

/// Reads the weights that another program wrote: what networks they are, and all values that a small network could have.
pub fn weights(path: &Path) -> bool {
    let Ok(file) = WeightsFile::open(path) else { return false };
    let small = |(_, tensor): &(&String, &TensorInfo)| tensor.n_values() <= 1 << 16;
    let read = file.tensors().iter().filter(small).all(|(name, _)| file.read(name).is_ok());
    let is_known = !fits(&file).is_empty();
    read && is_known
}

/// A small network with learned quantizers, its optimizer and what that keeps.
struct Trained {
    train: TrainRecipe,
    like: OptimizerFile,
    bytes: Vec<u8>,
}

fn trained() -> &'static Trained {
    static TRAINED: OnceLock<Trained> = OnceLock::new();
    TRAINED.get_or_init(|| {
        let overrides = ["model.width=0.1", "quantization.method=lsq", "train.optimizer.kind=adamw"];
        let overrides = overrides.map(String::from);
        let recipe = Recipe::embedded("digits-preresnet8-w2a2", &overrides).expect("the recipe is valid");
        let phases = recipe.phases();
        let device = Device::default().autodiff();
        let network = Experiment::of_recipe(&recipe).expect("it is defined").networks[0]
            .network(&recipe, &phases[0], &device);
        let network = network.expect("the network is defined");
        let train = phases[0].train.clone();
        let stepped = Optimizer::new(&train, &network).after_a_step(&network);
        Trained { like: OptimizerFile::of(&stepped), bytes: optimizer_bytes(&stepped), train }
    })
}

/// The state of an optimizer that [`optimizer`] accepts.
pub fn optimizer_seed() -> Vec<u8> {
    trained().bytes.clone()
}

/// Reads the state of an optimizer, and lets burn take over what is accepted.
pub fn optimizer(bytes: &[u8]) -> bool {
    let Trained { train, like, .. } = trained();
    let file = OptimizerFile::parse(bytes)
        .and_then(|file| file.expect_like(like, 1, MayLack::QuantizersToo).map(|()| file));
    file.is_ok_and(|file| {
        let no_group: Vec<burn::module::Param<burn::tensor::Tensor<1>>> = Vec::new();
        let optimizer = Optimizer::new(train, &no_group).with_record(file.into_record());
        !OptimizerFile::of(optimizer.inner()).tensors().is_empty()
    })
}

/// Whether a run could go on whose checkpoint was made when `metrics.jsonl` had `metrics_bytes` bytes and the other files
/// what they have now.
pub fn records(run: &RunDir, metrics_bytes: u64) -> bool {
    // A file that is shorter than what a checkpoint is to tell of is an error.
    let Ok(records) = run.records(&mut Starts::default(), metrics_bytes) else { return false };
    run.expect_records(&Progress { metrics_bytes, records, ..Progress::default() }).is_ok()
}

/// Bytes of the times of a run that tell of its first `epochs` epochs.
pub fn timing_bytes(run: &RunDir, epochs: u64) -> Option<u64> {
    run.timing_bytes(epochs).ok()
}
