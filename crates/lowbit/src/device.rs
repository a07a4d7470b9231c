//! The device that a command runs on. The only place that knows which backends are compiled in.

use std::fmt;
use std::str::FromStr;

use burn::tensor::Device;

use crate::memory::GpuLimits;

/// The backends there are, fastest first.
const BACKENDS: [Backend; 3] = [Backend::Flex, Backend::NdArray, Backend::Wgpu];

/// A backend of burn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backend {
    Flex,
    NdArray,
    Wgpu,
}

impl Backend {
    /// Its name, which is also that of the cargo feature that compiles it in.
    fn name(self) -> &'static str {
        match self {
            Backend::Flex => "flex",
            Backend::NdArray => "ndarray",
            Backend::Wgpu => "wgpu",
        }
    }

    fn is_compiled_in(self) -> bool {
        match self {
            Backend::Flex => cfg!(feature = "flex"),
            Backend::NdArray => cfg!(feature = "ndarray"),
            Backend::Wgpu => cfg!(feature = "wgpu"),
        }
    }
}

/// A device as it is asked for: `flex`, `ndarray`, `wgpu` (burn's choice among the GPUs) or `wgpu:N` (the N-th of
/// them, from 0, in the order in which wgpu lists them).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceName {
    backend: Backend,
    index: Option<usize>,
}

impl DeviceName {
    /// The fastest backend that is compiled in.
    pub fn fastest() -> Result<Self, DeviceError> {
        let backend = BACKENDS.into_iter().find(|backend| backend.is_compiled_in());
        Ok(Self { backend: backend.ok_or(DeviceError::NoBackend)?, index: None })
    }

    /// The names without a number.
    pub fn names() -> impl Iterator<Item = &'static str> {
        BACKENDS.into_iter().map(Backend::name)
    }

    /// The backends that are compiled in.
    pub fn compiled_in() -> impl Iterator<Item = &'static str> {
        BACKENDS.into_iter().filter(|backend| backend.is_compiled_in()).map(Backend::name)
    }

    /// Whether equal instruction sets of the processor give equal bits, as on the CPU, or the machine has to be the same.
    pub fn is_cpu(self) -> bool {
        self.backend != Backend::Wgpu
    }

    /// The device that an earlier run was on.
    pub fn of_run(device: &str) -> Result<Self, DeviceError> {
        match device.parse::<Self>() {
            Ok(name) if name.backend.is_compiled_in() => Ok(name),
            _ => Err(DeviceError::OfRun { device: device.into() }),
        }
    }

    /// The device of a process that is one of `n_local` on its machine: of GPUs, if none is named, that of its number. Where a process
    /// sees but one, as the launcher gives each its own, it is that.
    pub fn of_local_rank(self, local_rank: usize, n_local: usize) -> Self {
        match (self.backend, self.index) {
            (Backend::Wgpu, None) if n_local > 1 => {
                let index = if gpus().len() == 1 { 0 } else { local_rank };
                Self { index: Some(index), ..self }
            }
            _ => self,
        }
    }

    /// Opens the device.
    pub fn open(self) -> Result<Device, DeviceError> {
        match self.backend {
            #[cfg(feature = "flex")]
            Backend::Flex => Ok(Device::flex()),
            #[cfg(feature = "ndarray")]
            #[expect(deprecated, reason = "kept to compare with until burn drops it")]
            Backend::NdArray => Ok(Device::ndarray()),
            #[cfg(feature = "wgpu")]
            Backend::Wgpu => open_wgpu(self.index),
            #[cfg(not(all(feature = "flex", feature = "ndarray", feature = "wgpu")))]
            backend => Err(DeviceError::NotCompiledIn { backend: backend.name() }),
        }
    }
}

/// A GPU that there is.
pub struct Gpu {
    /// As it is asked for: `wgpu:0`.
    pub name: String,
    /// The card, if it tells.
    pub model: Option<String>,
    /// Bytes of memory, if it tells.
    pub memory: Option<u64>,
}

/// The GPUs, in the order of their numbers.
#[cfg(feature = "wgpu")]
pub fn gpus() -> Vec<Gpu> {
    use burn::tensor::DeviceType;

    let cards = Device::enumerate_physical();
    let gpu = |(index, device): (usize, Device)| Gpu {
        name: DeviceName { backend: Backend::Wgpu, index: Some(index) }.to_string(),
        model: cards.iter().find(|card| card.devices.contains(&device)).map(|card| card.name.clone()),
        // A driver may list a GPU that it then cannot open.
        memory: crate::panic::kept(|| gpu_limits(&device)).ok().flatten().and_then(|limits| limits.total),
    };
    Device::enumerate(DeviceType::Wgpu).into_vec().into_iter().enumerate().map(gpu).collect()
}

/// Only wgpu looks for GPUs.
#[cfg(not(feature = "wgpu"))]
pub fn gpus() -> Vec<Gpu> {
    Vec::new()
}

/// What a device says of its memory, if it is a GPU.
#[cfg(feature = "wgpu")]
pub fn gpu_limits(device: &Device) -> Option<GpuLimits> {
    use burn::backend::DispatchDevice;

    let DispatchDevice::Cube(device) = device.as_dispatch() else { return None };
    let memory = device.client().properties().memory.clone();
    Some(GpuLimits { largest_tensor: memory.max_page_size, total: memory.max_memory() })
}

/// No other device is one.
#[cfg(not(feature = "wgpu"))]
pub fn gpu_limits(_: &Device) -> Option<GpuLimits> {
    None
}

/// Looks for a GPU before anything is computed, since burn panics at the first tensor if there is none.
#[cfg(feature = "wgpu")]
fn open_wgpu(index: Option<usize>) -> Result<Device, DeviceError> {
    use burn::tensor::{DeviceKind, DeviceType, Tensor};

    let adapters = Device::enumerate(DeviceType::Wgpu).into_vec();
    let n_adapters = adapters.len();
    let device = match index {
        _ if n_adapters == 0 => return Err(DeviceError::NoAdapter),
        None => Device::wgpu(DeviceKind::DefaultDevice),
        Some(index) => {
            adapters.into_iter().nth(index).ok_or(DeviceError::NoSuchAdapter { index, n_adapters })?
        }
    };
    // A driver may list a GPU that it then cannot open.
    crate::panic::kept(|| drop(Tensor::<1>::zeros([1], &device).into_data()))
        .map_err(|message| DeviceError::NotOpened { message })?;
    Ok(device)
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.backend.name())?;
        self.index.map_or(Ok(()), |index| write!(f, ":{index}"))
    }
}

impl FromStr for DeviceName {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown { got: text.into() };
        let (name, index) = match text.split_once(':') {
            Some((name, index)) => (name, Some(index.parse().map_err(|_| unknown())?)),
            None => (text, None),
        };
        let backend = BACKENDS.into_iter().find(|backend| backend.name() == name).ok_or_else(unknown)?;
        match index {
            Some(_) if backend != Backend::Wgpu => Err(unknown()),
            _ => Ok(Self { backend, index }),
        }
    }
}

/// A device that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceError {
    /// No device is called so.
    Unknown { got: String },
    /// No backend is compiled in.
    NoBackend,
    /// The backend is not compiled in.
    #[cfg_attr(
        all(feature = "flex", feature = "ndarray", feature = "wgpu"),
        expect(dead_code, reason = "all are in")
    )]
    NotCompiledIn { backend: &'static str },
    /// The backend of an earlier run is not compiled in.
    OfRun { device: String },
    /// There is no GPU.
    #[cfg_attr(not(feature = "wgpu"), expect(dead_code, reason = "only wgpu looks for GPUs"))]
    NoAdapter,
    /// A GPU is listed, but cannot be opened.
    #[cfg_attr(not(feature = "wgpu"), expect(dead_code, reason = "only wgpu looks for GPUs"))]
    NotOpened { message: String },
    /// There is no GPU of this number.
    #[cfg_attr(not(feature = "wgpu"), expect(dead_code, reason = "only wgpu looks for GPUs"))]
    NoSuchAdapter { index: usize, n_adapters: usize },
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown { got } => {
                let meant = meant_by(got).map(|text| format!(": {text}")).unwrap_or_default();
                let mut backends = Vec::new();
                for backend in BACKENDS {
                    let note = if backend.is_compiled_in() { "" } else { " (not compiled in)" };
                    backends.push(format!("{}{note}", backend.name()));
                }
                write!(f, "no device is called {got:?}{meant}; there are {}, and wgpu:N with N from 0", backends.join(", "))
            }
            Self::NoBackend => f.write_str("no backend is compiled in: build with --features flex"),
            Self::NotCompiledIn { backend } => {
                write!(f, "backend {backend:?} is not compiled in: build with --features {backend}")
            }
            Self::OfRun { device } => {
                let feature = device.split(':').next().unwrap_or(device);
                write!(
                    f,
                    "the run is on device {device:?}, but backend {feature:?} is not compiled in: build with --features \
                     {feature}, or go on elsewhere with --device"
                )
            }
            Self::NoAdapter => f.write_str(
                "no GPU adapter found: install a Vulkan driver, e.g. Debian's mesa-vulkan-drivers for a software one",
            ),
            Self::NotOpened { message } => {
                write!(f, "the GPU cannot be opened ({message}): check its driver, or use --device flex")
            }
            Self::NoSuchAdapter { index, n_adapters } => {
                write!(f, "no GPU adapter wgpu:{index}: there are {n_adapters}, the last is wgpu:{}", n_adapters - 1)
            }
        }
    }
}

impl std::error::Error for DeviceError {}

/// What is meant by names that other programs have for devices.
fn meant_by(name: &str) -> Option<&'static str> {
    let (kind, index) = match name.split_once(':') {
        Some((kind, index)) => (kind, Some(index)),
        None => (name, None),
    };
    match kind.to_lowercase().as_str() {
        "cpu" | "host" | "native" | "x86" => Some("the CPU is `flex`"),
        "flex" | "ndarray" if index.is_some() => Some("the CPU has no number"),
        "wgpu" => Some("a GPU is `wgpu`, or by its number from 0 as in `wgpu:1`"),
        "gpu" | "cuda" | "nvidia" | "rocm" | "hip" | "amd" | "mps" | "metal" | "vulkan" | "dx12"
        | "webgpu" | "xpu" | "opencl" => {
            Some("a GPU of any maker is `wgpu`, or by its number from 0 as in `wgpu:1`")
        }
        name if BACKENDS.iter().any(|backend| backend.name() == name) => Some("names are in small letters"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for text in BACKENDS.map(Backend::name).into_iter().chain(["wgpu:0", "wgpu:12"]) {
            assert_eq!(text.parse::<DeviceName>().map(|name| name.to_string()), Ok(text.to_string()));
        }
        for (text, meant) in
            [("cpu", "`flex`"), ("CUDA:0", "`wgpu`"), ("gpu", "`wgpu:1`"), ("flex:0", "no number")]
        {
            let error = text.parse::<DeviceName>().unwrap_err().to_string();
            assert!(error.contains(meant), "{error}");
        }
        for text in ["", "Flex", "tpu", "flex:0", "wgpu:", "wgpu:-1", "wgpu:x", ":0"] {
            assert_eq!(text.parse::<DeviceName>(), Err(DeviceError::Unknown { got: text.into() }));
        }
    }
}
