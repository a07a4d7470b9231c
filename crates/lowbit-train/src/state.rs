//! The state of a network as named tensors, for checkpoints, digests and averages.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Tensor, TensorData};
use lowbit_quantizers::is_quantizer_state;
use sha2::{Digest, Sha256};

/// The float tensors of a module by path: parameters, learned quantizer parameters and running statistics.
pub(crate) type NamedTensors = BTreeMap<String, TensorData>;

/// A module that does not have the shape of the state it is given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The state lacks a tensor of the module.
    #[error("it has no tensor {path}")]
    Missing {
        /// Path of the tensor.
        path: String,
    },
    /// The state has a tensor that the module lacks.
    #[error("its tensor {} is unknown to this network", path.escape_debug())]
    Unknown {
        /// Path of the tensor.
        path: String,
    },
    /// The state has no moving average.
    #[error("it has no moving average of the weights, which the recipe evaluates")]
    NoAverage,
    /// The state has a moving average.
    #[error("it has a moving average of the weights, which the recipe does not keep")]
    ExtraAverage,
    /// A tensor has another shape.
    #[error("its tensor {path} has shape {got:?}, this network needs {expected:?}")]
    Shape {
        /// Path of the tensor.
        path: String,
        /// Shape in the state.
        got: Vec<usize>,
        /// Shape in the module.
        expected: Vec<usize>,
    },
}

/// The dotted path of the place a traversal is at. Variants of enums are no part of it: which quantizer a layer holds
/// shows in the names of its parameters.
#[derive(Default)]
struct Path(Vec<Option<String>>);

impl Path {
    fn enter(&mut self, name: &str, container: &str) {
        self.0.push((!container.starts_with("Enum:")).then(|| name.into()));
    }
    fn exit(&mut self) {
        self.0.pop();
    }
    fn dotted(&self) -> String {
        self.0.iter().flatten().map(String::as_str).collect::<Vec<_>>().join(".")
    }
}

/// The tensors of `module`, read to the host. Running statistics are complete only after `module.valid()`, which
/// burn documents as their synchronization point.
pub(crate) fn tensors<M: Module>(module: &M) -> NamedTensors {
    #[derive(Default)]
    struct Collect {
        path: Path,
        tensors: NamedTensors,
    }
    impl ModuleVisitor for Collect {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.tensors.insert(self.path.dotted(), param.val().into_data());
        }
    }
    let mut collect = Collect::default();
    module.visit(&mut collect);
    collect.tensors
}

/// `module` with the tensors of `state`.
///
/// # Errors
/// [`StateError`] unless the two have the same paths and shapes.
pub(crate) fn load<M: Module>(module: M, state: NamedTensors) -> Result<M, StateError> {
    let (module, left) = load_where(module, state, |_| false)?;
    match left.into_keys().next() {
        Some(path) => Err(StateError::Unknown { path }),
        None => Ok(module),
    }
}

/// `module` with the tensors of `state`, which may be of another precision: quantizer parameters are loaded where both
/// have them in the same shape.
///
/// # Errors
/// [`StateError`] unless the two have the same other paths and shapes.
pub(crate) fn load_weights<M: Module>(module: M, state: NamedTensors) -> Result<M, StateError> {
    let (module, left) = load_where(module, state, is_quantizer_state)?;
    match left.into_keys().find(|path| !is_quantizer_state(path)) {
        Some(path) => Err(StateError::Unknown { path }),
        None => Ok(module),
    }
}

/// `module` with the tensors of `state`, and what is left of it. Tensors that are `optional` may be missing or have
/// another shape.
fn load_where<M: Module>(
    module: M,
    state: NamedTensors,
    optional: fn(&str) -> bool,
) -> Result<(M, NamedTensors), StateError> {
    struct Load {
        path: Path,
        state: NamedTensors,
        optional: fn(&str) -> bool,
        error: Option<StateError>,
    }
    impl ModuleMapper for Load {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let path = self.path.dotted();
            let expected = param.val().dims().to_vec();
            match self.state.remove(&path) {
                None if (self.optional)(&path) => param,
                Some(data) if data.shape().as_slice() != expected && (self.optional)(&path) => param,
                None => {
                    self.error.get_or_insert(StateError::Missing { path });
                    param
                }
                Some(data) if data.shape().as_slice() != expected => {
                    let got = data.shape().as_slice().to_vec();
                    self.error.get_or_insert(StateError::Shape { path, got, expected });
                    param
                }
                Some(data) => param.map(|old| {
                    Tensor::from_data(data, &old.device()).set_require_grad(old.is_require_grad())
                }),
            }
        }
    }
    let mut load = Load { path: Path::default(), state, optional, error: None };
    let module = module.map(&mut load);
    match load.error {
        Some(error) => Err(error),
        None => Ok((module, load.state)),
    }
}

/// Sets the running statistics of `module` whose paths are in `state`, in all copies that share them.
pub(crate) fn set_running<M: Module>(module: M, state: NamedTensors) {
    struct Set {
        path: Path,
        state: NamedTensors,
    }
    impl ModuleMapper for Set {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            match self.state.remove(&self.path.dotted()) {
                Some(data) => param.map(|old| Tensor::from_data(data, &old.device())),
                None => param,
            }
        }
    }
    let _shares_them = module.map(&mut Set { path: Path::default(), state });
}

/// `module` with parameter ids that depend only on their paths, so that an optimizer's state, which burn keys by id,
/// belongs to the same parameters in another process and in another phase.
pub(crate) fn with_stable_ids<M: Module>(module: M) -> M {
    #[derive(Default)]
    struct Rename(Path);
    impl ModuleMapper for Rename {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.exit();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let digest = Sha256::digest(self.0.dotted());
            let id = digest.iter().take(8).fold(0, |id, byte| id << 8 | u64::from(*byte));
            let (_, tensor, mapper) = param.consume();
            Param::from_mapped_value(ParamId::from(id), tensor, mapper)
        }
    }
    module.map(&mut Rename::default())
}

/// `average * decay + module * (1 - decay)`, tensor by tensor.
pub(crate) fn moving_average<M: Module>(average: M, module: &M, decay: f64) -> M {
    #[derive(Default)]
    struct Collect(Vec<Tensor<1>>);
    impl ModuleVisitor for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.push(param.val().flatten(0, D - 1));
        }
    }
    struct Average {
        values: std::vec::IntoIter<Tensor<1>>,
        decay: f64,
    }
    impl ModuleMapper for Average {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let value = self.values.next().expect("invariant: both modules have the same parameters");
            param.map(|average| {
                let value = value.reshape(average.shape());
                average * self.decay + value * (1.0 - self.decay)
            })
        }
    }
    let mut collect = Collect::default();
    module.visit(&mut collect);
    average.map(&mut Average { values: collect.0.into_iter(), decay })
}

/// Path of the first tensor, in forward order, that holds a value which is not finite.
pub(crate) fn first_non_finite<M: Module>(module: &M) -> Option<String> {
    #[derive(Default)]
    struct Search {
        path: Path,
        found: Option<String>,
    }
    impl ModuleVisitor for Search {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let finite = || param.val().into_data().iter::<f32>().all(f32::is_finite);
            if self.found.is_none() && !finite() {
                self.found = Some(self.path.dotted());
            }
        }
    }
    let mut search = Search::default();
    module.visit(&mut search);
    search.found
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn moving_average_by_hand() {
        let device = Device::default();
        let parameters = |values: [[f32; 2]; 2]| {
            values.map(|values| Param::from_tensor(Tensor::<1>::from_floats(values, &device))).to_vec()
        };
        let average = parameters([[4.0, 8.0], [0.0, -1.0]]);
        let average = moving_average(average, &parameters([[0.0, 16.0], [4.0, -1.0]]), 0.75);
        let values: Vec<Vec<f32>> =
            average.iter().map(|param| param.val().into_data().iter::<f32>().collect()).collect();
        assert_eq!(values, [[3.0, 10.0], [1.0, -1.0]]);
    }
}
