//! The weights that a network begins with: those of another run, or of another program.

use std::collections::BTreeMap;
use std::path::Path;

use lowbit_data::LabelKind;
use lowbit_models::{ModelConfig, Network};
use lowbit_quantizers::{LayerQuantization, QuantizationPolicy};

use crate::checkpoint::{Checkpoint, CheckpointError, deployed_tensors};
use crate::error::TrainError;
use crate::image_set::RunData;
use crate::recipe::{DataRecipe, Quantized};
use crate::run_dir::RunDir;
use crate::state::NamedTensors;
use crate::strategy::{Init, NetworkSpec, Role, TEACHER};
use crate::weights::{Fit, InitialWeights, NewClassifier, WeightsError, WeightsFile, tensors_for};

/// Endings of files with weights, by which one that is not there is told from a run.
const FILES: [&str; 5] = ["pth", "pt", "safetensors", "ckpt", "bin"];

/// What a network begins with.
pub(crate) struct Initial {
    pub(crate) tensors: NamedTensors,
    /// What each layer of that network is quantized by.
    pub(crate) quantizers: BTreeMap<String, LayerQuantization>,
    /// What it was trained on, if that is known.
    trained_on: Option<(DataRecipe, Option<RunData>)>,
    /// The file of another program.
    pub(crate) file: Option<InitialWeights>,
}

impl Initial {
    /// What the network of `spec`, which is built already, begins with.
    pub(crate) fn load(init: &Init, spec: &NetworkSpec, network: &Network) -> Result<Self, TrainError> {
        let path = init.path.as_path();
        let has_ending = || path.extension().is_some_and(|ending| FILES.iter().any(|known| ending == *known));
        match path.exists() && !path.is_dir() || !path.exists() && has_ending() {
            true => Self::of_file(path, spec, network)
                .map_err(|source| TrainError::Weights { path: path.into(), source }),
            false => Self::of_run(path, spec.role),
        }
    }

    /// The tensors of the file at `path` for the `network` of `spec`.
    fn of_file(path: &Path, spec: &NetworkSpec, network: &Network) -> Result<Self, WeightsError> {
        let file = WeightsFile::open(path)?;
        let (tensors, Fit { taken, new_classifier, left_out }) = tensors_for(&file, network)?;
        if let Some(NewClassifier { layer, file_classes, classes }) = &new_classifier
            && !spec.is_trained
        {
            let layer = layer.clone();
            return Err(WeightsError::Untrained { layer, file_classes: *file_classes, classes: *classes });
        }
        let record = InitialWeights {
            network: spec.name.clone(),
            path: path.into(),
            sha256: file.sha256()?,
            container: file.container(),
            n_tensors: taken.len(),
            new_classifier,
            n_left_out: left_out.len(),
        };
        Ok(Self { tensors, quantizers: BTreeMap::new(), trained_on: None, file: Some(record) })
    }

    /// The evaluated network of the run directory or checkpoint at `path` that one of this `role` begins with: the deployed
    /// one; for a teacher, which is in full precision, the run's teacher if it has one.
    fn of_run(path: &Path, role: Role) -> Result<Self, TrainError> {
        let is_checkpoint = path.join("manifest.json").is_file();
        let (run, checkpoint) = match is_checkpoint {
            true => {
                let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
                (path.parent().and_then(Path::parent).unwrap_or(path), name)
            }
            false => (path, None),
        };
        let run = RunDir::open(run)?;
        let checkpoints = run.checkpoints();
        let loaded = checkpoints.load(checkpoint.as_deref())?;
        let (name, loaded) = loaded.ok_or_else(|| CheckpointError::None { path: path.into() })?;
        loaded.expect_state(&checkpoints.path(&name))?;
        let Checkpoint { progress, deployed, others, .. } = loaded;
        let teacher = others.into_iter().find(|state| role == Role::Teacher && state.name == TEACHER);
        let recipe = run.recipe()?;
        let floor =
            recipe.phases().get(progress.phase).map_or(recipe.quantization.target(), |phase| phase.floor);
        let policy = recipe.quantization.policy_at(floor);
        if role == Role::Teacher
            && teacher.is_none()
            && Quantized::of(&policy, &recipe.model) != Quantized::NOTHING
        {
            // The weights below its quantizers are not what it computes with.
            return Err(TrainError::QuantizedTeacher { path: run.path().into() });
        }
        Ok(Self {
            tensors: deployed_tensors(teacher.unwrap_or(deployed)),
            quantizers: layer_quantizers(&recipe.model, &policy),
            trained_on: Some((recipe.data, run.info()?.data)),
            file: None,
        })
    }

    /// What it was trained on, if that is not what `recipe` and `data` are.
    pub(crate) fn other_data(&self, recipe: &DataRecipe, data: &RunData) -> Option<String> {
        let (trained_on, their_data) = self.trained_on.as_ref()?;
        let DataRecipe { dataset, labels, .. } = trained_on;
        if (dataset.as_str(), *labels) != (recipe.dataset.as_str(), recipe.labels) {
            let name = |recipe: &DataRecipe| match recipe.labels {
                LabelKind::Fine => recipe.dataset.to_string(),
                LabelKind::Coarse => format!("{} with coarse labels", recipe.dataset),
            };
            return Some(format!("{}, the students train on {}", name(trained_on), name(recipe)));
        }
        let other = their_data.as_ref().filter(|other| other.train != data.train)?;
        Some(format!("other images of {dataset} ({}) than the students ({})", other.train, data.train))
    }
}

/// What each layer of `model` is quantized by.
pub(crate) fn layer_quantizers(
    model: &ModelConfig,
    policy: &QuantizationPolicy,
) -> BTreeMap<String, LayerQuantization> {
    let layers = model.layers().expect("invariant: a recipe's networks are checked").into_iter();
    layers.map(|layer| (layer.path.clone(), policy.resolve(&layer.path, layer.role))).collect()
}
