//! Which tensors of a file are a network's. Ours have torchvision's names, but for the parameters of BatchNorm, which are burn's.

use std::collections::BTreeMap;
use std::fmt;

use lowbit_core::Graph;
use lowbit_core::graph::{LayerRole, Op};
use lowbit_models::{Family, InputShape, ModelConfig};
use serde::{Deserialize, Serialize};

use super::{TensorInfo, WeightsFile, dims, listed, named};

/// Keys under which training programs keep the weights, beside an optimizer's state and more. The first that a file has is taken.
const WRAPPERS: [&str; 4] = ["state_dict", "model_state_dict", "model_state", "model"];

/// What `DataParallel`, `DistributedDataParallel` and `AveragedModel` put before the names, and `torch.compile` into them.
const PARALLEL: &str = "module";
const COMPILED: &str = "_orig_mod";

/// Counts of batches, which nothing here needs: BatchNorm's, and that of `AveragedModel`.
const COUNTS: [&str; 2] = ["num_batches_tracked", "n_averaged"];

/// Wrappers in one another.
const MAX_WRAPPERS: usize = 8;

/// A tensor that a network has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    /// Its path in the network.
    pub(crate) path: String,
    /// Its name in torchvision.
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    /// Whether it is of the classifier.
    pub(crate) is_classifier: bool,
}

/// The tensors of the network of `graph` in forward order, without those of quantizers.
pub(crate) fn expected(graph: &Graph) -> Vec<Expected> {
    let mut tensors = Vec::new();
    let last = graph.nodes().iter().rev().find_map(|node| match node.op {
        Op::Linear(linear) if linear.role == LayerRole::Last => Some(node.path.as_str()),
        _ => None,
    });
    for node in graph.nodes() {
        let mut add = |ours: &str, name: &str, shape: Vec<usize>| {
            tensors.push(Expected {
                path: format!("{}.{ours}", node.path),
                name: format!("{}.{name}", node.path),
                shape,
                is_classifier: last == Some(&node.path),
            });
        };
        match node.op {
            Op::Conv(conv) => {
                add("weight", "weight", conv.weight_shape().to_vec());
                if conv.bias {
                    add("bias", "bias", vec![conv.out_channels]);
                }
            }
            Op::Linear(linear) => {
                add("weight", "weight", vec![linear.out_features, linear.in_features]);
                if linear.bias {
                    add("bias", "bias", vec![linear.out_features]);
                }
            }
            Op::Norm { channels } => {
                add("gamma", "weight", vec![channels]);
                add("beta", "bias", vec![channels]);
                add("running_mean", "running_mean", vec![channels]);
                add("running_var", "running_var", vec![channels]);
            }
            _ => {}
        }
    }
    tensors
}

/// Paths of the learned factors of the network of `graph`, which torchvision's do not have.
pub(crate) fn scales(graph: &Graph) -> Vec<String> {
    let scales = graph.nodes().iter().filter(|node| node.op == Op::Scale);
    scales.map(|node| format!("{}.scale", node.path)).collect()
}

/// A tensor of a file, and the one of a network that it becomes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Taken {
    /// Its name in the file.
    pub name: String,
    /// Its path in the network.
    pub path: String,
    /// Its shape.
    pub shape: Vec<usize>,
}

/// A classifier for another number of classes than the file's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewClassifier {
    /// Path of the layer.
    pub layer: String,
    /// Classes of the file.
    pub file_classes: usize,
    /// Classes of the network.
    pub classes: usize,
}

/// How the tensors of a file are those of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fit {
    /// What is taken.
    pub taken: Vec<Taken>,
    /// The classifier, if it stays as it is.
    pub new_classifier: Option<NewClassifier>,
    /// Names in the file of what is no part of a network: an optimizer's state, counts of batches.
    pub left_out: Vec<String>,
}

/// How the tensors of a file are not those of a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Misfit {
    /// Names of tensors that the file lacks.
    pub missing: Vec<String>,
    /// Names in the file of tensors that the network does not have.
    pub unknown: Vec<String>,
    /// Tensors of other shapes: name in the file, shape there, shape in the network.
    pub shapes: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// Two names in the file that mean one tensor.
    pub twice: Option<[String; 2]>,
    /// Settings of a network that the file fits.
    pub fitting: Option<String>,
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { missing, unknown, shapes, twice, fitting } = self;
        let mut parts = Vec::new();
        if let Some([one, other]) = twice {
            parts.push(format!("{} and {} mean the same tensor", named(one), named(other)));
        }
        if !missing.is_empty() {
            parts.push(format!("it lacks {} ({})", counted(missing.len()), listed(missing)));
        }
        if !unknown.is_empty() {
            let n = counted(unknown.len());
            parts.push(format!("it has {n} that the network does not have ({})", listed(unknown)));
        }
        if !shapes.is_empty() {
            let shape = |(name, got, expected): &(String, Vec<usize>, Vec<usize>)| {
                format!("{} is {}, the network has {}", named(name), dims(got), dims(expected))
            };
            let all: Vec<String> = shapes.iter().map(shape).collect();
            parts.push(format!("{} of another shape ({})", counted(shapes.len()), listed(&all)));
        }
        f.write_str(&parts.join("; "))?;
        match fitting {
            Some(settings) => write!(f, "; it fits {settings}"),
            None => Ok(()),
        }
    }
}

fn counted(n: usize) -> String {
    format!("{n} tensor{}", if n == 1 { "" } else { "s" })
}

/// The tensors of a file by the names that a network's have, and what is left out.
struct Named<'a> {
    /// By name: the name in the file, and the tensor.
    tensors: BTreeMap<String, (&'a str, &'a TensorInfo)>,
    left_out: Vec<String>,
    twice: Option<[String; 2]>,
}

impl<'a> Named<'a> {
    fn new(file: &'a BTreeMap<String, TensorInfo>) -> Self {
        let mut all: Vec<(Vec<&str>, &str)> =
            file.keys().map(|name| (name.split('.').collect(), name.as_str())).collect();
        let mut left_out = Vec::new();
        for _ in 0..MAX_WRAPPERS {
            for (parts, _) in &mut all {
                let n_parallel = parts.iter().take_while(|part| [PARALLEL, COMPILED].contains(part)).count();
                parts.drain(..n_parallel);
            }
            let first = |parts: &[&str]| (parts.len() > 1).then(|| parts[0].to_string());
            let has = |wrapper: &str| all.iter().any(|(parts, _)| first(parts).as_deref() == Some(wrapper));
            let Some(wrapper) = WRAPPERS.into_iter().find(|wrapper| has(wrapper)) else { break };
            all.retain_mut(|(parts, name)| match first(parts).as_deref() == Some(wrapper) {
                true => {
                    parts.remove(0);
                    true
                }
                false => {
                    left_out.push((*name).to_string());
                    false
                }
            });
        }
        let (mut tensors, mut twice) = (BTreeMap::new(), None);
        for (mut parts, name) in all {
            parts.retain(|part| *part != COMPILED);
            if parts.last().is_some_and(|last| COUNTS.contains(last)) {
                left_out.push(name.into());
            } else if let Some((other, _)) = tensors.insert(parts.join("."), (name, &file[name])) {
                twice = Some([other.to_string(), name.to_string()]);
            }
        }
        Self { tensors, left_out, twice }
    }
}

impl Fit {
    /// How the tensors of `file` are those of the network of `graph`. A classifier for another number of classes fits, but stays
    /// out.
    ///
    /// # Errors
    /// All that keeps them from it.
    pub fn new(file: &WeightsFile, graph: &Graph) -> Result<Self, Box<Misfit>> {
        let mut fit = Self::of(file.tensors(), graph);
        if let Err(misfit) = &mut fit {
            misfit.fitting = fits(file).first().map(Fitting::to_string);
        }
        fit
    }

    fn of(file: &BTreeMap<String, TensorInfo>, graph: &Graph) -> Result<Self, Box<Misfit>> {
        let Named { mut tensors, left_out, twice } = Named::new(file);
        let mut misfit = Misfit { twice, ..Misfit::default() };
        let (mut taken, mut classifier) = (Vec::new(), Vec::new());
        for Expected { path, name, shape, is_classifier } in expected(graph) {
            match tensors.remove(&name) {
                None => misfit.missing.push(name),
                Some((in_file, info)) => {
                    let list = if is_classifier { &mut classifier } else { &mut taken };
                    list.push((info.shape.as_slice(), Taken { name: in_file.into(), path, shape }));
                }
            }
        }
        let new_classifier = new_classifier(&classifier);
        if new_classifier.is_none() {
            taken.append(&mut classifier);
        }
        let is_other = |(got, taken): &&(&[usize], Taken)| *got != taken.shape;
        let shapes = taken.iter().filter(is_other);
        misfit.shapes =
            shapes.map(|(got, taken)| (taken.name.clone(), got.to_vec(), taken.shape.clone())).collect();
        let taken = taken.into_iter().map(|(_, taken)| taken).collect();
        misfit.unknown = tensors.values().map(|(name, _)| (*name).to_string()).collect();
        match misfit == Misfit::default() {
            true => Ok(Self { taken, new_classifier, left_out }),
            false => Err(Box::new(misfit)),
        }
    }
}

/// What of a classifier's tensors differs from those of a network, by their shapes in the file, if it is the number of classes alone.
fn new_classifier(tensors: &[(&[usize], Taken)]) -> Option<NewClassifier> {
    let (got, first) = tensors.first()?;
    let (&file_classes, &classes) = (got.first()?, first.shape.first()?);
    // Rows are classes.
    let differs_in_rows = |(got, taken): &(&[usize], Taken)| {
        got.first() == Some(&file_classes) && got.get(1..) == taken.shape.get(1..)
    };
    let layer = first.path.rsplit_once('.').map_or(first.path.as_str(), |(layer, _)| layer);
    (file_classes != classes && tensors.iter().all(differs_in_rows)).then(|| NewClassifier {
        layer: layer.into(),
        file_classes,
        classes,
    })
}

/// A network of lowbit, for images of a size.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fitting {
    /// Its architecture.
    pub model: ModelConfig,
    /// Its images.
    pub input: InputShape,
    /// Its classes.
    pub classes: usize,
}

/// As keys of a recipe.
impl fmt::Display for Fitting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ModelConfig { family, layout, depth, width, norm, .. } = &self.model;
        write!(f, "model.family={:?}", family.name())?;
        if family.settings().layouts.len() > 1 {
            write!(f, ", model.layout={:?}", layout.to_string())?;
        }
        if let Some(depth) = depth {
            write!(f, ", model.depth={depth}")?;
        }
        if *width != 1.0 {
            write!(f, ", model.width={width}")?;
        }
        if let Some(norm) = norm {
            write!(f, ", model.norm={norm}")?;
        }
        let channels = self.input.channels;
        let plural = if channels == 1 { "" } else { "s" };
        write!(f, " for images of {channels} channel{plural}, {} classes", self.classes)
    }
}

/// Depths that are tried of families that have one.
const DEPTHS: [usize; 11] = [8, 14, 18, 20, 32, 34, 44, 50, 56, 101, 110];

/// Sides of images that are tried: a linear layer after a map shows what it was made for.
const SIDES: [usize; 3] = [224, 32, 28];

/// The networks of lowbit that the file fits with all it has.
pub fn fits(file: &WeightsFile) -> Vec<Fitting> {
    let named = Named::new(file.tensors());
    let mut found: Vec<Fitting> = Vec::new();
    for model in candidates() {
        for side in SIDES {
            // Most networks take images of any size.
            let is_new = |fit: &Fitting| found.iter().all(|other| other.model != fit.model);
            if let Some(fit) = fit_of(&named, file.tensors(), &model, side).filter(is_new) {
                found.push(fit);
            }
        }
    }
    found
}

/// Channels of the images and number of classes of the file, as far as it has the first and the last layer of `model`.
pub fn sizes(file: &WeightsFile, model: &ModelConfig) -> Option<(usize, usize)> {
    let tensors = model_tensors(model, 224)?;
    Sizes::of(&Named::new(file.tensors()), &tensors).map(|sizes| (sizes.channels, sizes.classes))
}

fn candidates() -> Vec<ModelConfig> {
    let mut models = Vec::new();
    for family in Family::ALL {
        let settings = family.settings();
        for layout in settings.layouts {
            let depths: Vec<Option<usize>> = match settings.depths {
                Some(depths) => {
                    DEPTHS.into_iter().filter(|depth| (depths.has)(*layout, *depth)).map(Some).collect()
                }
                None => vec![None],
            };
            let norms: &[Option<bool>] =
                if settings.may_drop_norm { &[Some(true), Some(false)] } else { &[None] };
            for &depth in &depths {
                models.extend(norms.iter().map(|&norm| ModelConfig {
                    family,
                    layout: *layout,
                    depth,
                    width: 1.0,
                    stem_stride: (settings.stem_strides)(*layout)[0],
                    norm,
                    logit_scale: false,
                }));
            }
        }
    }
    models
}

/// The tensors of `model` for images of this side, at width 1.
fn model_tensors(model: &ModelConfig, side: usize) -> Option<Vec<Expected>> {
    let input = InputShape { channels: 3, height: side, width: side };
    model.graph(input, 1).ok().map(|graph| expected(&graph))
}

/// What the first and the last layer of a file show.
struct Sizes {
    width: f64,
    channels: usize,
    classes: usize,
}

impl Sizes {
    fn of(named: &Named<'_>, tensors: &[Expected]) -> Option<Self> {
        let first = tensors.first()?;
        let stem = named.tensors.get(&first.name)?.1;
        let classifier = named.tensors.get(&tensors.iter().find(|tensor| tensor.is_classifier)?.name)?.1;
        let width = *stem.shape.first()? as f64 / *first.shape.first()? as f64;
        let (channels, classes) = (*stem.shape.get(1)?, *classifier.shape.first()?);
        // What a file says of sizes is bounded before a graph is made of it.
        let is_small = width > 0.0 && width <= 64.0 && channels <= 1 << 16 && classes <= 1 << 24;
        is_small.then_some(Self { width, channels, classes })
    }
}

/// `model` with the width, channels and classes of the file, if that is its network.
fn fit_of(
    named: &Named<'_>,
    file: &BTreeMap<String, TensorInfo>,
    model: &ModelConfig,
    side: usize,
) -> Option<Fitting> {
    let Sizes { width, channels, classes } = Sizes::of(named, &model_tensors(model, side)?)?;
    let input = InputShape { channels, height: side, width: side };
    let model = model.clone().with_width(width);
    let graph = model.graph(input, classes).ok()?;
    Fit::of(file, &graph).ok().map(|_| Fitting { model, input, classes })
}
