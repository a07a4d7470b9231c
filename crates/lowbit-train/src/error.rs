//! What can end a training.

use std::fmt;
use std::io;
use std::path::PathBuf;

use lowbit_core::BitWidth;
use lowbit_data::{DataError, Split};
use lowbit_models::ModelError;

use crate::checkpoint::CheckpointError;
use crate::image_set::ImageSet;
use crate::recipe::{PhasesError, RecipeError};
use crate::strategy::{StrategyDifference, StrategyError};
use crate::text::explain;
use crate::weights::WeightsError;
use crate::world::WorldError;

/// A training, evaluation or inspection that failed.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The recipe is not valid.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// The strategies make phases that no training can have.
    #[error(transparent)]
    Phases(#[from] PhasesError),
    /// A strategy gave an answer that no training can go by.
    #[error(transparent)]
    Strategy(#[from] StrategyError),
    /// The data cannot be had.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The network cannot be built.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A checkpoint cannot be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The weights to begin with cannot be read.
    #[error("{key}: {source}")]
    Init {
        /// Key of the recipe that asks for them.
        key: &'static str,
        /// Why.
        source: Box<TrainError>,
    },
    /// A file of weights to begin with cannot be taken.
    #[error("weights {}: {source}", .path.display())]
    Weights {
        /// The file.
        path: PathBuf,
        /// Why.
        source: WeightsError,
    },
    /// A file of weights is not the one that the run began with.
    #[error("weights {} are not those that the run began with: its run.json has SHA-256 {expected}, the file {got}", .path.display())]
    OtherWeights {
        /// The file.
        path: PathBuf,
        /// Its digest in the run, or "none".
        expected: String,
        /// Its digest.
        got: String,
    },
    /// A teacher is to begin with the weights of a quantized network.
    #[error("the network of {} is quantized, and it has no teacher: a teacher begins with a run in full precision, or with the teacher of a run that has one", .path.display())]
    QuantizedTeacher {
        /// The run directory.
        path: PathBuf,
    },
    /// The run directory exists.
    #[error("run directory {} exists and is never overwritten", .path.display())]
    RunExists {
        /// The directory.
        path: PathBuf,
    },
    /// The directory for a new run holds something else.
    #[error("directory {} is not empty and holds no run to continue", .path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
    },
    /// The directory is no run directory.
    #[error("{} is not a run directory: {}", .path.display(), lacking(*.exists))]
    NotARun {
        /// The directory.
        path: PathBuf,
        /// Whether there is anything of this name.
        exists: bool,
    },
    /// A path that a run directory would have to hold cannot be written down.
    #[error("path {} is not valid UTF-8, which a run directory needs: rename it, or choose another", .path.display())]
    NotText {
        /// The path.
        path: PathBuf,
    },
    /// The recipe leaves the images to the program, which gives none.
    #[error(
        "the recipe has data.dataset=\"own\": it is for a program that gives images of its own, which this one does not"
    )]
    NoImages,
    /// The program gives images of its own, but the recipe names others.
    #[error(
        "the program gives images of its own, but the recipe has data.dataset=\"{name}\": take data.dataset=\"own\" with \
         data.shape and data.classes"
    )]
    NamedImages {
        /// The data set.
        name: &'static str,
    },
    /// A network has no layer that something is asked of.
    #[error("no layer of {network} is quantized: name the bit widths to try")]
    NothingQuantized {
        /// The network, as in "student".
        network: String,
    },
    /// The training is to end by the accuracy on validation images, of which there are none.
    #[error(
        "early_stopping looks at the accuracy on validation images, and the folder has none: set data.validation, make a folder val, or \
         remove early_stopping"
    )]
    NoValidation,
    /// The recipe trains on a folder of images, which nobody has named.
    #[error("the recipe trains on a folder of images, which is not in it, and has to be given")]
    NoFolder,
    /// The device does not train in the arithmetic that is asked for.
    #[error(
        "train.compute=\"bf16\" is for CPUs, and the device is {device}: choose another, or train.compute=\"fp32\""
    )]
    Compute {
        /// How the device was asked for, as in "wgpu".
        device: String,
    },
    /// The device does not train with gradients of few bits.
    #[error(
        "quantization.grad_bits={bits} is for CPUs, and the device is {device}: choose another, or quantization.grad_bits=\"fp32\""
    )]
    GradBits {
        /// How many bits are asked for.
        bits: BitWidth,
        /// How the device was asked for, as in "wgpu".
        device: String,
    },
    /// The images of the program are not what the recipe says.
    #[error("the {} images {name:?} have {key}={got}, the recipe has {expected}", split_name(*.split))]
    OtherImages {
        /// Which images.
        split: Split,
        /// Name of their source.
        name: String,
        /// Key of the recipe.
        key: &'static str,
        /// Its value.
        expected: String,
        /// What it would be for these images.
        got: String,
    },
    /// Nothing says how the images of the program become numbers.
    #[error(
        "images {name:?} have no normalization: their source has to give it, or the recipe data.normalization"
    )]
    NoNormalization {
        /// Name of their source.
        name: String,
    },
    /// The images are not those that the run was made with.
    #[error(
        "the {} images are not those of the run: it has {}, found are {}",
        split_name(*.split), or_none(expected), or_none(got)
    )]
    OtherData {
        /// Which images.
        split: Split,
        /// Those of the run.
        expected: Box<Option<ImageSet>>,
        /// Those found.
        got: Box<Option<ImageSet>>,
    },
    /// The steps of a checkpoint are not those that the images give.
    #[error(
        "the training images are not those of the run: its checkpoint at step {step} does not fit {n_images} images, which \
         are {steps_per_epoch} steps an epoch"
    )]
    OtherSteps {
        /// Steps done at the checkpoint.
        step: u64,
        /// Training images.
        n_images: usize,
        /// Steps that they give in an epoch.
        steps_per_epoch: u64,
    },
    /// The recipe of a run is not what was written.
    #[error("the recipe of a run is damaged: {source}")]
    DamagedRecipe {
        /// What is wrong.
        source: RecipeError,
    },
    /// A file of a run directory does not say what it should.
    #[error("{} is damaged: {message}", .path.display())]
    DamagedFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A run is to go on with a recipe that is not its own.
    #[error(
        "the recipe is not that of the run in {}: {key} is {given}, in the run {expected}", .path.display()
    )]
    OtherRecipe {
        /// The run directory.
        path: PathBuf,
        /// The first key in which they differ.
        key: String,
        /// Its value in the run, or "not set".
        expected: String,
        /// Its value in the recipe, or "not set".
        given: String,
    },
    /// An earlier version made the run, in which a setting of its recipe meant something else.
    #[error(
        "the run in {} is of lowbit {lowbit}, with {setting}: that version reads it; here, train it anew", .path.display()
    )]
    EarlierMeaning {
        /// The run directory.
        path: PathBuf,
        /// The version that made it.
        lowbit: String,
        /// The setting, and what it was.
        setting: &'static str,
    },
    /// A run is to go on with other strategies than those that it was made with.
    #[error("the run cannot go on: {difference}; a program that has its strategies goes on with it")]
    OtherStrategies {
        /// How they differ.
        difference: Box<StrategyDifference>,
    },
    /// A run of an earlier lowbit is to go on, but with what strategies of its caller's own is not known.
    #[error(
        "the run cannot go on: it has a strategy of its caller's own ({strategy}) without a name, as lowbit wrote them before \
         run.json had schema 3, up to revision 3ff692d: that lowbit goes on with it, this one evaluates and inspects it"
    )]
    UnnamedStrategy {
        /// The strategy as it was written.
        strategy: String,
    },
    /// Another process trains in the run directory.
    #[error("run directory {} is in use by another lowbit process{}: wait for it to end", .path.display(), by(*.process))]
    RunLocked {
        /// The directory.
        path: PathBuf,
        /// Id of the process, if it wrote one.
        process: Option<u32>,
    },
    /// A run has a record, but no checkpoint.
    #[error(
        "{} {}, but the run has a record in {}: put its checkpoints back to go on, or train in a new directory", .path.display(), if *.is_there { "has no checkpoint" } else { "is missing" }, .record.display()
    )]
    NoCheckpointLeft {
        /// Where its checkpoints should be.
        path: PathBuf,
        /// Whether that directory is there.
        is_there: bool,
        /// A file of what it recorded.
        record: PathBuf,
    },
    /// The file system cannot do what a run needs.
    #[error(
        "the file system of {} cannot {action}, which checkpoints need ({}): train on another file system",
        .path.display(), explain(source)
    )]
    FileSystem {
        /// The run directory.
        path: PathBuf,
        /// What it cannot do, as in "rename a directory".
        action: &'static str,
        /// What the file system said.
        source: io::Error,
    },
    /// What the file system was tried by cannot be removed.
    #[error(
        "failed to remove {}, by which the file system was tried ({}): remove it by hand, or train on another file system",
        .path.display(), explain(source)
    )]
    ProbeLeft {
        /// That.
        path: PathBuf,
        /// What the file system said.
        source: io::Error,
    },
    /// The run directory cannot be written to.
    #[error(
        "failed to write {} ({}): a run is trained where it can be written to; change its owner or mode, or copy it",
        .path.display(), explain(source)
    )]
    NotWritable {
        /// The file of its lock, or the directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A run has checkpoints, but none that can be gone on from.
    #[error("no checkpoint of {} can be gone on from, of {n_checkpoints}; the newest: {}", .path.display(), without_offer(newest))]
    NoneUsable {
        /// The run directory.
        path: PathBuf,
        /// Its checkpoints.
        n_checkpoints: usize,
        /// What is wrong with the newest.
        newest: Box<TrainError>,
    },
    /// A stop was asked for before the training began: nothing was written.
    #[error("stopped before the training began")]
    Stopped,
    /// A file of the run directory cannot be read or written.
    #[error("failed to {action} {}: {}", .path.display(), explain(source))]
    Io {
        /// What was being done, as in "write".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The training has no network of this name.
    #[error("the training has no network {network:?}; it has {}", known.join(", "))]
    UnknownNetwork {
        /// The name.
        network: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// A checkpoint was made in a phase that its training does not have.
    #[error(
        "the checkpoint is of phase {phase}, but the training has {n_phases}: its strategies are not the same"
    )]
    NoPhase {
        /// The phase, from 1.
        phase: usize,
        /// Phases of the training.
        n_phases: usize,
    },
    /// Another process of the training is gone.
    #[error(transparent)]
    World(#[from] WorldError),
    /// There are more processes than a batch has images for.
    #[error(
        "{ranks} processes cannot share a batch of {batch_size} images{}: start fewer, or take a larger data.batch_size", in_parts(*accumulate)
    )]
    TooManyRanks {
        /// Processes.
        ranks: usize,
        /// Images of a batch.
        batch_size: usize,
        /// Parts that each computes one after the other.
        accumulate: usize,
    },
    /// The part of a process is a single image, which BatchNorm cannot normalize.
    #[error(
        "1 image for each of {ranks} processes{} leaves BatchNorm of {network} a single value a channel: start fewer, or take a larger \
         data.batch_size", in_parts(*accumulate)
    )]
    OneImageEach {
        /// Processes.
        ranks: usize,
        /// Parts that each computes one after the other.
        accumulate: usize,
        /// The network.
        network: String,
    },
    /// The processes do not see the same images.
    #[error("the images of rank {} are not those of rank 0: give all processes the same data", .ranks.join(", "))]
    OtherImagesOfRanks {
        /// The processes, with their machines.
        ranks: Vec<String>,
    },
    /// The processes do not run the same program.
    #[error("the program of rank {} is not that of rank 0: {difference}", .ranks.join(", "))]
    OtherProgramOfRanks {
        /// The processes, with their machines.
        ranks: Vec<String>,
        /// In what the first of them differs.
        difference: String,
    },
    /// What the processes have made of the same state is not the same.
    #[error(
        "after epoch {epoch} the parameters of rank {} are not those of rank 0: do all run the same program on the same kind of device?", .ranks.join(", ")
    )]
    RanksDiffer {
        /// The processes, with their machines.
        ranks: Vec<String>,
        /// Epochs done.
        epoch: u64,
    },
    /// The training has left the finite numbers.
    #[error(
        "{what} at step {step} (epoch {epoch}); first not finite: {place}; {}",
        last_good(last_checkpoint)
    )]
    NonFinite {
        /// Where it was noticed.
        what: Divergence,
        /// Step, from 1.
        step: u64,
        /// Epoch, from 1.
        epoch: u64,
        /// First place in forward order with a value that is not finite.
        place: String,
        /// The last intact checkpoint before.
        last_checkpoint: Option<PathBuf>,
    },
    /// A training that had begun cannot write its files.
    #[error("{source}; {}", intact(last_checkpoint))]
    Unsaved {
        /// Why.
        source: Box<TrainError>,
        /// The last intact checkpoint.
        last_checkpoint: Option<PathBuf>,
    },
}

/// What is no finite number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Divergence {
    /// The loss of a training batch.
    Loss(f64),
    /// The mean loss on the validation images.
    ValidationLoss(f64),
    /// The mean loss on the test images.
    TestLoss(f64),
    /// The norm of all gradients, by which clipping would have made them zero.
    GradientNorm(f64),
    /// A tensor of a network or of its optimizer, although the losses are finite.
    State,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loss(loss) => write!(f, "loss is {loss}"),
            Self::ValidationLoss(loss) => write!(f, "validation loss is {loss}"),
            Self::TestLoss(loss) => write!(f, "test loss is {loss}"),
            Self::GradientNorm(norm) => write!(f, "the norm of the gradients is {norm}"),
            Self::State => f.write_str("the state is not finite"),
        }
    }
}

impl TrainError {
    /// The same error of a training that has begun, with what is left of it: the checkpoint that `last_intact` finds.
    pub(crate) fn in_training(self, last_intact: impl FnOnce() -> Option<PathBuf>) -> Self {
        match self {
            Self::NonFinite { what, step, epoch, place, .. } => {
                Self::NonFinite { what, step, epoch, place, last_checkpoint: last_intact() }
            }
            Self::Io { .. } | Self::Checkpoint(CheckpointError::Io { .. }) => {
                Self::Unsaved { source: Box::new(self), last_checkpoint: last_intact() }
            }
            other => other,
        }
    }
}

/// What is wrong with a checkpoint, where no other is to be offered.
fn without_offer(error: &TrainError) -> String {
    match error {
        TrainError::Checkpoint(error) => error.without_offer(),
        other => other.to_string(),
    }
}

fn in_parts(accumulate: usize) -> String {
    match accumulate {
        1 => String::new(),
        n => format!(" in {n} parts each (train.accumulate)"),
    }
}

fn by(process: Option<u32>) -> String {
    process.map(|id| format!(" (id {id})")).unwrap_or_default()
}

fn lacking(exists: bool) -> &'static str {
    match exists {
        true => "it has no run.json",
        false => "there is none of this name",
    }
}

fn or_none(images: &Option<ImageSet>) -> String {
    images.as_ref().map_or("none".into(), ToString::to_string)
}

fn split_name(split: Split) -> &'static str {
    match split {
        Split::Train => "training",
        Split::Validation => "validation",
        Split::Test => "test",
    }
}

fn last_good(checkpoint: &Option<PathBuf>) -> String {
    let advice = "try a lower train.learning_rate or train.gradient_clip=1";
    match checkpoint {
        Some(path) => format!("last good checkpoint: {}; {advice}", path.display()),
        None => format!("no checkpoint was written before it; {advice}"),
    }
}

fn intact(checkpoint: &Option<PathBuf>) -> String {
    match checkpoint {
        Some(path) => format!("checkpoint {} is intact: resume from it when this is mended", path.display()),
        None => "it has no checkpoint that can be read".into(),
    }
}

/// Attaches what was done to which file to an I/O error.
pub(crate) trait IoContext<T> {
    fn context(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, TrainError>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn context(self, action: &'static str, path: impl Into<PathBuf>) -> Result<T, TrainError> {
        self.map_err(|source| TrainError::Io { action, path: path.into(), source })
    }
}
