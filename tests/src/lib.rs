//! What the suites of this package share: the backends that are compiled in, tensors from and to host vectors,
//! comparison by tolerance, seeded random values, quantizers by name, and the golden files.

pub mod composed;
pub mod golden;
pub mod ops;
mod quantizer;
mod rule;

use std::fmt;
use std::io::Write;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Gradients, Int, Tensor, TensorData};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};

pub use quantizer::{Quantizer, Spec};
pub use rule::{centered, value};

/// A backend to run a case on.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Its name, for messages.
    pub name: &'static str,
    /// Its device, without autodiff.
    pub device: Device,
}

/// Why nothing runs on a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// Its feature is off.
    NotCompiledIn,
    /// It finds no device on this machine.
    NoAdapter,
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotCompiledIn => "not compiled in",
            Self::NoAdapter => "no adapter",
        })
    }
}

impl Backend {
    /// Names of the backends, the default one first.
    pub const NAMES: [&str; 3] = ["flex", "ndarray", "wgpu"];

    /// The backend `name`.
    ///
    /// # Errors
    /// Why there is none.
    pub fn find(name: &str) -> Result<Self, Skip> {
        match name {
            #[cfg(feature = "flex")]
            "flex" => Ok(Self { name: "flex", device: Device::flex() }),
            #[cfg(feature = "ndarray")]
            #[expect(deprecated, reason = "ndarray is supported for as long as burn has it")]
            "ndarray" => Ok(Self { name: "ndarray", device: Device::ndarray() }),
            #[cfg(feature = "wgpu")]
            "wgpu" => match Device::enumerate(burn::tensor::DeviceType::Wgpu).first() {
                Some(device) => Ok(Self { name: "wgpu", device: device.clone() }),
                None => Err(Skip::NoAdapter),
            },
            _ => {
                assert!(Self::NAMES.contains(&name), "unknown backend {name:?}");
                Err(Skip::NotCompiledIn)
            }
        }
    }

    /// The backend `name` for a test that needs it; `None` if the test is to be skipped.
    ///
    /// # Panics
    /// If nothing may be skipped, see [`skip`].
    pub fn find_or_skip(name: &str) -> Option<Self> {
        Self::find(name).map_err(|reason| skip(&format!("{name}: {reason}"))).ok()
    }
}

/// Says on the terminal, past the test harness, which shows nothing of a test that passes, that a test does nothing here.
///
/// # Panics
/// With `LOWBIT_NO_SKIP=1`, as in continuous integration.
pub fn skip(what: &str) {
    let must_run = std::env::var_os("LOWBIT_NO_SKIP").is_some_and(|value| value == "1");
    assert!(!must_run, "cannot be skipped: {what}");
    // Nothing depends on it.
    let _is_shown = std::io::stderr().write_all(format!("skipped: {what}\n").as_bytes());
}

/// The backends that are compiled in and have a device on this machine, the default one first.
///
/// # Panics
/// If there is none, or one has no device where nothing may be skipped.
pub fn backends() -> Vec<Backend> {
    let found = Backend::NAMES.into_iter().filter_map(|name| match Backend::find(name) {
        Ok(backend) => Some(backend),
        Err(Skip::NotCompiledIn) => None,
        Err(Skip::NoAdapter) => Backend::find_or_skip(name),
    });
    let backends: Vec<Backend> = found.collect();
    assert!(!backends.is_empty(), "no backend is compiled in: enable flex, ndarray or wgpu");
    backends
}

/// The device of the first backend, for suites that are about the method rather than the backend.
pub fn default_device() -> Device {
    backends().swap_remove(0).device
}

/// A tensor of `values` in row-major order.
pub fn tensor<const D: usize>(values: &[f32], shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

/// The elements of a tensor in row-major order.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().iter::<f32>().collect()
}

/// The elements of an integer tensor in row-major order.
pub fn integers<const D: usize>(tensor: Tensor<D, Int>) -> Vec<i32> {
    tensor.into_data().iter::<i32>().collect()
}

/// The bits of `values`, so that comparing them tells -0 from 0 and NaN from NaN.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// A seeded generator.
pub fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// `n` normal values.
pub fn normal(n: usize, mean: f32, std: f32, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let normal = Normal::new(mean, std).expect("invariant: the deviation is finite");
    normal.sample_iter(rng).take(n).collect()
}

/// How far a value may be from the expected one: `relative` times the largest expected value plus `absolute`.
///
/// Relative to the largest, not to each: an error of float arithmetic is one of the sums that a value is made of.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Share of the largest expected magnitude.
    pub relative: f64,
    /// Added to it.
    pub absolute: f64,
}

impl Tolerance {
    /// `relative` times the largest expected value.
    pub const fn relative(relative: f64) -> Self {
        Self { relative, absolute: 0.0 }
    }
}

/// Fails with the place of the largest difference unless `got` is within `tolerance` of `expected`.
///
/// # Panics
/// If it is not, or a value is not finite.
pub fn assert_close(what: &str, got: &[f32], expected: &[f32], tolerance: Tolerance) {
    let expected: Vec<f64> = expected.iter().map(|&value| f64::from(value)).collect();
    assert_close_f64(what, got, &expected, tolerance);
}

/// The same with expected values in double precision.
///
/// # Panics
/// If a value differs by more than the tolerance, or is not finite.
pub fn assert_close_f64(what: &str, got: &[f32], expected: &[f64], tolerance: Tolerance) {
    assert_eq!(got.len(), expected.len(), "{what}: number of values");
    let largest = expected.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
    let allowed = tolerance.relative * largest + tolerance.absolute;
    for (idx, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(got) - expected).abs();
        // Not `error > allowed`, which NaN would pass.
        assert!(
            error <= allowed,
            "{what}: at {idx} got {got}, expected {expected}: off by {error:e}, allowed {allowed:e}"
        );
    }
}

/// The largest difference of `got` from `expected` as a multiple of what `tolerance` allows; infinite for NaN.
pub fn excess(got: &[f32], expected: &[f32], tolerance: Tolerance) -> f64 {
    let largest = expected.iter().fold(0.0f64, |largest, value| largest.max(f64::from(value.abs())));
    let allowed = tolerance.relative * largest + tolerance.absolute;
    let errors =
        got.iter().zip(expected).map(|(got, expected)| (f64::from(*got) - f64::from(*expected)).abs());
    let ratios = errors.map(|error| if error.is_nan() { f64::INFINITY } else { error / allowed });
    ratios.fold(0.0, f64::max)
}

/// The gradients of all float parameters of `module` that require one, by path; `None` for one that got none.
pub fn gradients<M: Module>(module: &M, gradients: &Gradients) -> Vec<(String, Option<Vec<f32>>)> {
    struct Collect<'a> {
        gradients: &'a Gradients,
        path: Vec<String>,
        found: Vec<(String, Option<Vec<f32>>)>,
    }
    impl ModuleVisitor for Collect<'_> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.into());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = param.val();
            if value.is_require_grad() {
                self.found.push((self.path.join("."), value.grad(self.gradients).map(values)));
            }
        }
    }
    let mut collect = Collect { gradients, path: Vec::new(), found: Vec::new() };
    module.visit(&mut collect);
    collect.found
}
