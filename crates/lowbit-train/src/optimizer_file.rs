//! The file with the state of an optimizer: read without trust, and compared with what the optimizer of its network keeps.
//!
//! burn takes such a file as it is: it panics on a rank that it does not know or a shape that does not fit, and passes
//! silently over what is missing. So nothing reaches it that was not compared with a state that this optimizer made.

use std::collections::BTreeMap;
use std::mem::discriminant;

use burn::optim::{ModuleOptimizer, OptimizerRecord};
use burn::tensor::{Bytes, DType};
use burn_pack::{Reader, Scalar, Tensor, Writer};

use crate::text::one_line;

/// Name of the scalar with the rank of a parameter, as burn writes it.
const RANK: &str = "__rank";

/// The state of an optimizer as it is in a file. Entries are named by the id of their parameter and a field of its state, as
/// in "1234.momentum.velocity".
pub(crate) struct OptimizerFile {
    /// Path of each parameter in its network, by its id.
    paths: BTreeMap<String, String>,
    scalars: BTreeMap<String, Scalar>,
    tensors: BTreeMap<String, OptimizerTensor>,
}

/// A tensor of an optimizer's state.
pub(crate) struct OptimizerTensor {
    param_id: Option<u64>,
    dtype: DType,
    shape: Vec<usize>,
    bytes: Bytes,
}

impl OptimizerTensor {
    fn values(&self) -> impl Iterator<Item = f32> {
        self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    pub(crate) fn shape(&self) -> &[usize] {
        &self.shape
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// The path of a parameter as it is now: before a network was made from a graph it was the variant of an enum, whose name was a
/// part of the path.
fn without_variant(path: &str) -> String {
    let variants = ["ResNet", "PreResNet", "ImageNet", "VggSmall"];
    let rest = path.strip_prefix("network.").and_then(|rest| rest.split_once('.'));
    match rest.filter(|(variant, _)| variants.contains(variant)) {
        Some((_, rest)) => format!("network.{rest}"),
        None => path.into(),
    }
}

/// Whether a parameter may have no state: it gets none before its first gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MayLack {
    /// Only adapters that no hint uses.
    Adapters,
    /// The quantizers' parameters too: a strategy decides what is quantized.
    QuantizersToo,
}

impl MayLack {
    fn allows(self, path: &str) -> bool {
        let mut parts = path.split('.');
        match self {
            _ if path.starts_with("adapters.") => true,
            Self::Adapters => false,
            Self::QuantizersToo => parts.any(|part| part == "weight_quantizer" || part == "input_quantizer"),
        }
    }
}

impl OptimizerFile {
    /// Reads the container alone: whether it fits a network is for [`expect_like`](Self::expect_like).
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let reader = Reader::from_bytes(Bytes::from_bytes_vec(bytes.to_vec()));
        let reader = reader.map_err(|error| format!("is no burnpack: {}", one_line(&error)))?;
        let paths = reader.metadata().iter().map(|(id, path)| (id.clone(), without_variant(path))).collect();
        let scalars = reader.scalars().clone();
        let mut tensors = BTreeMap::new();
        for tensor in reader.into_tensors().map_err(|error| one_line(&error))? {
            let Tensor { dtype, param_id, .. } = tensor;
            if dtype != DType::F32 {
                return Err(format!("tensor {:?} has type {dtype:?}, expected F32", tensor.name));
            }
            let (name, _, shape, _, bytes) = tensor.into_parts().map_err(|error| one_line(&error))?;
            tensors.insert(name, OptimizerTensor { param_id, dtype, shape: shape.to_vec(), bytes });
        }
        Ok(Self { paths, scalars, tensors })
    }

    /// The state that `optimizer` has now.
    pub(crate) fn of(optimizer: &ModuleOptimizer) -> Self {
        Self::parse(&optimizer_bytes(optimizer)).expect("invariant: it was serialized a moment ago")
    }

    /// Refuses a state that an optimizer whose state after a step is `like` cannot have after `steps` steps.
    pub(crate) fn expect_like(&self, like: &Self, steps: u64, may_lack: MayLack) -> Result<(), String> {
        for (name, &got) in &self.scalars {
            let what = || like.describe(name);
            let expected = *like.scalars.get(name).ok_or_else(|| not_kept(&what()))?;
            let is_count = matches!(got, Scalar::UInt(n) if (1..=steps).contains(&n));
            if discriminant(&got) != discriminant(&expected) {
                return Err(format!("{} is {got:?}, expected a value like {expected:?}", what()));
            }
            if name.ends_with(RANK) && got != expected {
                return Err(format!("{} is {got:?}, expected {expected:?}", what()));
            }
            if !name.ends_with(RANK) && !is_count {
                return Err(format!("{} is {got:?}, expected 1 to the {steps} steps done", what()));
            }
        }
        for (name, got) in &self.tensors {
            let what = || like.describe(name);
            let expected = like.tensors.get(name).ok_or_else(|| not_kept(&what()))?;
            if got.param_id != expected.param_id {
                let id = |id: Option<u64>| id.map_or("none".into(), |id| id.to_string());
                let (got, expected) = (id(got.param_id), id(expected.param_id));
                return Err(format!("{} belongs to parameter {got}, expected {expected}", what()));
            }
            if got.shape != expected.shape {
                let (got, expected) = (&got.shape, &expected.shape);
                return Err(format!("{} has shape {got:?}, this network needs {expected:?}", what()));
            }
            if !got.values().all(f32::is_finite) {
                return Err(format!("{} has a value that is not finite", what()));
            }
            // Its square root is taken.
            if name.ends_with("moment_2") && got.values().any(|value| value < 0.0) {
                return Err(format!("{} has a negative value", what()));
            }
        }
        for (id, got) in &self.paths {
            match like.paths.get(id) {
                None => return Err(format!("parameter {id:?} ({got:?}) is not of this network")),
                Some(expected) if got != expected => {
                    return Err(format!("parameter {id} is called {got:?}, expected {expected:?}"));
                }
                Some(_) => {}
            }
        }
        like.paths.iter().try_for_each(|(id, path)| {
            let prefix = format!("{id}.");
            let scalars = like.names_under(&prefix).filter(|name| !self.has(name));
            let missing: Vec<&String> = scalars.collect();
            let has_none = missing.len() == like.names_under(&prefix).count() && !self.paths.contains_key(id);
            match missing.first() {
                Some(_) if has_none && may_lack.allows(path) => Ok(()),
                Some(name) => Err(format!("it has no {}", like.describe(name))),
                None if !self.paths.contains_key(id) => Err(format!("parameter {id} ({path}) has no name")),
                None => Ok(()),
            }
        })
    }

    /// What of this state is of parameters that a state like `like` has.
    pub(crate) fn retain_like(mut self, like: &Self) -> Self {
        let fits = |id: &str| {
            let prefix = format!("{id}.");
            like.paths.contains_key(id)
                && self.names_under(&prefix).all(|name| {
                    let shape = |file: &Self| file.tensors.get(name).map(|tensor| tensor.shape.clone());
                    like.has(name) && shape(&self) == shape(like)
                })
        };
        let kept: Vec<String> = self.paths.keys().filter(|id| fits(id)).cloned().collect();
        let is_kept =
            |name: &str| name.split('.').next().is_some_and(|id| kept.iter().any(|kept| kept == id));
        self.paths.retain(|id, _| is_kept(id));
        self.scalars.retain(|name, _| is_kept(name));
        self.tensors.retain(|name, _| is_kept(name));
        self
    }

    /// The same as burn takes it. The state is of this optimizer's own making, or was compared with one.
    pub(crate) fn into_record(self) -> OptimizerRecord {
        let tensors = self.tensors.into_iter().map(|(name, tensor)| {
            let OptimizerTensor { param_id, dtype, shape, bytes } = tensor;
            Tensor::new(name, dtype, shape, param_id, bytes)
        });
        let mut writer = Writer::new(tensors.collect());
        for (name, value) in &self.scalars {
            writer = writer.with_scalar(name, *value);
        }
        for (id, path) in &self.paths {
            writer = writer.with_metadata(id, path);
        }
        let bytes = writer.into_bytes().expect("invariant: what was read can be written");
        OptimizerRecord::from_bytes(bytes).expect("invariant: what was written can be read")
    }

    /// Name of the first tensor with a value that is not finite.
    pub(crate) fn first_non_finite(&self) -> Option<&str> {
        let mut tensors = self.tensors.iter();
        let found = tensors.find(|(_, tensor)| !tensor.values().all(f32::is_finite));
        found.map(|(name, _)| name.as_str())
    }

    pub(crate) fn scalars(&self) -> &BTreeMap<String, Scalar> {
        &self.scalars
    }

    pub(crate) fn tensors(&self) -> &BTreeMap<String, OptimizerTensor> {
        &self.tensors
    }

    fn has(&self, name: &str) -> bool {
        self.scalars.contains_key(name) || self.tensors.contains_key(name)
    }

    fn names_under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a String> {
        self.scalars.keys().chain(self.tensors.keys()).filter(move |name| name.starts_with(prefix))
    }

    /// An entry in words: its field and its parameter, where that is known.
    fn describe(&self, name: &str) -> String {
        let known = name.split_once('.').and_then(|(id, field)| Some((self.paths.get(id)?, field)));
        match known {
            Some((path, field)) => format!("{field:?} of {path}"),
            None => format!("{name:?}"),
        }
    }
}

fn not_kept(what: &str) -> String {
    format!("it has {what}, which the optimizer of this recipe does not keep")
}

/// The serialized state of an optimizer.
pub(crate) fn optimizer_bytes(optimizer: &ModuleOptimizer) -> Vec<u8> {
    optimizer.into_bytes().expect("invariant: an optimizer state serializes to memory").to_vec()
}

#[cfg(test)]
mod tests {
    use burn::module::{Module, Param};
    use burn::tensor::{Device, Tensor as BurnTensor};

    use super::*;
    use crate::optimizer::Optimizer;
    use crate::recipe::{OptimizerRecipe, Recipe, TrainRecipe};
    use crate::state::with_stable_ids;

    /// Parameters of several shapes, two of the same.
    #[derive(Module, Debug)]
    struct Parameters {
        weight: Param<BurnTensor<2>>,
        other: Param<BurnTensor<2>>,
        bias: Param<BurnTensor<1>>,
        weight_quantizer: Vec<Param<BurnTensor<1>>>,
    }

    impl Parameters {
        fn new() -> Self {
            let device = Device::default().autodiff();
            let vector = |n: usize| Param::from_tensor(BurnTensor::ones([n], &device).require_grad());
            let matrix = || Param::from_tensor(BurnTensor::ones([2, 3], &device).require_grad());
            with_stable_ids(Self {
                weight: matrix(),
                other: matrix(),
                bias: vector(3),
                weight_quantizer: vec![vector(1)],
            })
        }

        fn loss(&self) -> BurnTensor<1> {
            let sum = self.weight.val() * self.other.val() * 2.0;
            sum.sum() + self.bias.val().sum() + self.weight_quantizer[0].val().sum()
        }
    }

    fn recipes() -> Vec<TrainRecipe> {
        let train = Recipe::embedded("digits-preresnet8-w2a2", &[]).unwrap().train;
        let (beta1, beta2, epsilon) = (0.9, 0.999, 1e-8);
        [
            OptimizerRecipe::Sgd { momentum: 0.9, nesterov: false },
            OptimizerRecipe::Sgd { momentum: 0.0, nesterov: false },
            OptimizerRecipe::Adam { beta1, beta2, epsilon },
            OptimizerRecipe::AdamW { beta1, beta2, epsilon },
        ]
        .map(|optimizer| TrainRecipe { optimizer, ..train.clone() })
        .into()
    }

    /// A file after two steps, and what its optimizer keeps.
    fn two_steps(train: &TrainRecipe) -> (Vec<u8>, OptimizerFile) {
        let mut module = Parameters::new();
        let mut optimizer = Optimizer::new(train, &module);
        let like = OptimizerFile::of(&optimizer.after_a_step(&module));
        for _ in 0..2 {
            let gradients = module.loss().backward();
            module = optimizer.step(0.1, module, gradients);
        }
        (optimizer_bytes(optimizer.inner()), like)
    }

    fn read(bytes: &[u8], like: &OptimizerFile) -> Result<OptimizerFile, String> {
        let file = OptimizerFile::parse(bytes)?;
        file.expect_like(like, 2, MayLack::Adapters)?;
        Ok(file)
    }

    /// What is accepted is taken by burn, and steps on.
    fn goes_on(train: &TrainRecipe, file: OptimizerFile) {
        let module = Parameters::new();
        let mut optimizer = Optimizer::new(train, &module).with_record(file.into_record());
        let gradients = module.loss().backward();
        optimizer.step(0.1, module, gradients);
    }

    #[test]
    fn the_state_of_every_optimizer_is_accepted_and_unchanged() {
        for train in recipes() {
            let (bytes, like) = two_steps(&train);
            let file = read(&bytes, &like).unwrap();
            let again = Optimizer::new(&train, &Parameters::new())
                .with_record(read(&bytes, &like).unwrap().into_record());
            let again = OptimizerFile::of(again.inner());
            assert_eq!(file.scalars, again.scalars);
            let values = |file: &OptimizerFile| -> Vec<Vec<u8>> {
                file.tensors.values().map(|tensor| tensor.bytes().to_vec()).collect()
            };
            assert_eq!(values(&file), values(&again));
            goes_on(&train, file);
        }
    }

    #[test]
    fn alterations_are_named() {
        let all = recipes();
        let (sgd, adam) = (two_steps(&all[0]), two_steps(&all[2]));
        type Alter = fn(&mut OptimizerFile);
        let nth = |file: &OptimizerFile, field: &str, n: usize| {
            file.tensors.keys().filter(|name| name.ends_with(field)).nth(n).unwrap().clone()
        };
        let check = |(bytes, like): &(Vec<u8>, OptimizerFile), alter: Alter, expected: &str| {
            let mut file = read(bytes, like).unwrap();
            alter(&mut file);
            let problem = file.expect_like(like, 2, MayLack::Adapters).unwrap_err();
            assert!(problem.contains(expected), "{problem:?} lacks {expected:?}");
        };
        check(&sgd, |file| drop(file.tensors.pop_first()), "it has no \"momentum.velocity\" of ");
        check(&sgd, |file| drop(file.scalars.pop_first()), "it has no \"__rank\" of ");
        check(&sgd, |file| drop(file.paths.pop_first()), "has no name");
        check(&sgd, |file| file.scalars.values_mut().for_each(|rank| *rank = Scalar::UInt(9)), "is UInt(9)");
        check(&sgd, |file| file.scalars.values_mut().for_each(|rank| *rank = Scalar::Int(2)), "is Int(2)");
        check(&sgd, |file| file.scalars.extend([("1.__rank".into(), Scalar::UInt(1))]), "\"1.__rank\"");
        check(&sgd, |file| drop(file.paths.insert("x\u{1b}[2J".into(), "y".into())), "\"x\\u{1b}[2J\"");
        check(&sgd, |file| file.paths.values_mut().for_each(|path| path.push('x')), "is called");
        let shape: Alter = |file| file.tensors.values_mut().for_each(|tensor| tensor.shape.reverse());
        check(&sgd, shape, "has shape [3, 2], this network needs [2, 3]");
        let unowned: Alter = |file| file.tensors.values_mut().for_each(|tensor| tensor.param_id = None);
        check(&sgd, unowned, "belongs to parameter none");
        let infinite: Alter = |file| {
            let tensor = file.tensors.values_mut().next().unwrap();
            tensor.bytes = Bytes::from_bytes_vec(f32::INFINITY.to_le_bytes().repeat(tensor.bytes.len() / 4));
        };
        check(&sgd, infinite, "is not finite");
        let negative: Alter = |file| {
            let tensors = file.tensors.iter_mut().filter(|(name, _)| name.ends_with("moment_2"));
            for (_, tensor) in tensors {
                tensor.bytes = Bytes::from_bytes_vec((-1f32).to_le_bytes().repeat(tensor.bytes.len() / 4));
            }
        };
        check(&adam, negative, "has a negative value");
        let late: Alter = |file| {
            let times = file.scalars.iter_mut().filter(|(name, _)| name.ends_with("time"));
            times.for_each(|(_, time)| *time = Scalar::UInt(3));
        };
        check(&adam, late, "is UInt(3), expected 1 to the 2 steps done");
        // Two of one shape, whose names alone are swapped.
        let mut file = read(&sgd.0, &sgd.1).unwrap();
        let same: Vec<String> = (0..4)
            .map(|n| nth(&file, "velocity", n))
            .filter(|name| file.tensors[name].shape == [2, 3])
            .collect();
        let [one, two] = same.try_into().unwrap();
        let (first, second) = (file.tensors.remove(&one).unwrap(), file.tensors.remove(&two).unwrap());
        file.tensors.extend([(one, second), (two, first)]);
        let problem = file.expect_like(&sgd.1, 2, MayLack::Adapters).unwrap_err();
        assert!(problem.contains("belongs to parameter"), "{problem}");
    }

    #[test]
    fn an_optimizer_of_another_kind_is_refused() {
        let files: Vec<_> = recipes().iter().map(two_steps).collect();
        for (i, (bytes, _)) in files.iter().enumerate() {
            for (j, (_, like)) in files.iter().enumerate() {
                // Adam and AdamW keep the same.
                let is_same = i == j || i.min(j) == 2;
                assert_eq!(read(bytes, like).is_ok(), is_same, "{i} as {j}");
            }
        }
        let (bytes, like) = &files[0];
        let untrained = OptimizerFile::parse(bytes).unwrap().retain_like(&OptimizerFile {
            paths: BTreeMap::new(),
            scalars: BTreeMap::new(),
            tensors: BTreeMap::new(),
        });
        assert!(untrained.expect_like(like, 2, MayLack::Adapters).is_err());
    }

    #[test]
    fn only_a_quantizer_may_wait_for_its_first_gradient() {
        let (bytes, like) = two_steps(&recipes()[0]);
        let without = |part: &str| {
            let mut file = OptimizerFile::parse(&bytes).unwrap();
            let id = file.paths.iter().find(|(_, path)| path.contains(part)).unwrap().0.clone();
            file.paths.remove(&id);
            let prefix = format!("{id}.");
            file.scalars.retain(|name, _| !name.starts_with(&prefix));
            file.tensors.retain(|name, _| !name.starts_with(&prefix));
            [MayLack::Adapters, MayLack::QuantizersToo].map(|may| file.expect_like(&like, 2, may).is_ok())
        };
        assert_eq!(without("weight_quantizer"), [false, true]);
        assert_eq!(without("bias"), [false, false]);
    }

    /// Every bit of what describes the values, and every length: refused, or taken by burn without a panic.
    #[test]
    fn flipped_bits_do_no_harm() {
        for train in &recipes()[..3] {
            let (bytes, like) = two_steps(train);
            let size = u32::from_le_bytes([bytes[6], bytes[7], bytes[8], bytes[9]]);
            let end = burn_pack::HEADER_SIZE + size as usize;
            let mut n_accepted = 0;
            for bit in 0..8 * end {
                let mut altered = bytes.clone();
                altered[bit / 8] ^= 1 << (bit % 8);
                if let Ok(file) = read(&altered, &like) {
                    goes_on(train, file);
                    n_accepted += 1;
                }
            }
            // Counts of steps, and offsets that still lie in the file: `state_sha256` tells the latter.
            assert!(n_accepted < end / 10, "{n_accepted} of {} flips are accepted", 8 * end);
            for length in 0..bytes.len() {
                assert!(read(&bytes[..length], &like).is_err() || like.tensors.is_empty(), "{length}");
            }
        }
    }

    /// Runs of lowbit before networks were graphs are read.
    #[test]
    fn paths_lose_the_variant_of_former_networks() {
        for (before, now) in [
            ("network.PreResNet.stages.0.0.conv1.weight", "network.stages.0.0.conv1.weight"),
            ("network.ImageNet.conv1.weight", "network.conv1.weight"),
            ("network.VggSmall.fc.bias", "network.fc.bias"),
            ("network.stem.weight_quantizer.Lsq.step_size", "network.stem.weight_quantizer.Lsq.step_size"),
            ("adapters.0.weight", "adapters.0.weight"),
        ] {
            assert_eq!(without_variant(before), now);
        }
    }
}
