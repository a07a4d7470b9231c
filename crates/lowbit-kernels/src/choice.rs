//! What computes an operation.

use std::sync::atomic::{AtomicU8, Ordering};

use burn::backend::DispatchDevice;
use burn::tensor::{Device, Tensor};
#[cfg(doc)]
use lowbit_core::Compute;
#[cfg(doc)]
use lowbit_cpu::gradient::GradientQuantizer;

/// What computes the operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Implementation {
    /// The kernels, where the backend has any.
    #[default]
    Kernels,
    /// The reference made of the backend's own operations, with the gradients of the kernels.
    Reference,
}

static CHOICE: AtomicU8 = AtomicU8::new(Implementation::Kernels as u8);

/// Chooses an implementation for the whole process, on backends that have it: to compare them.
pub fn use_implementation(implementation: Implementation) {
    CHOICE.store(implementation as u8, Ordering::Relaxed);
}

/// Whether kernels are not to run.
#[cfg(any(feature = "flex", feature = "ndarray"))]
pub(crate) fn is_reference() -> bool {
    CHOICE.load(Ordering::Relaxed) == Implementation::Reference as u8
}

/// Panics if this crate is not compiled for the backend of `tensor`.
pub(crate) fn demand_extension<const D: usize>(tensor: &Tensor<D>) {
    let device = tensor.device();
    assert!(
        is_extended(&device),
        "lowbit-kernels is compiled without the backend of device {device:?}: switch on its feature, flex, ndarray, wgpu or \
         cube for other GPUs"
    );
}

/// Whether networks are evaluated on `device` by the CPU kernels, which an inference runtime shares: sums over codes are exact there, and
/// no result depends on the size of the batch. On devices with autodiff, and on GPUs, what is fastest computes.
pub fn evaluates_exactly(device: &Device) -> bool {
    has_cpu_kernels(device) && !device.is_autodiff()
}

/// Whether convolutions can be trained on `device` with operands rounded to bf16 ([`Compute::Bf16`]).
pub fn trains_in_bf16(device: &Device) -> bool {
    has_cpu_kernels(device)
}

/// Whether layers can be trained on `device` with gradients of few bits ([`GradientQuantizer`]).
pub fn trains_with_quantized_gradients(device: &Device) -> bool {
    has_cpu_kernels(device)
}

/// Whether the operations of a device, with autodiff or without, are the kernels of the CPU.
#[allow(unreachable_patterns, reason = "which devices there are depends on burn's features")]
fn has_cpu_kernels(device: &Device) -> bool {
    match device.clone().without_autodiff().as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => true,
        #[cfg(feature = "ndarray")]
        DispatchDevice::NdArray(_) => true,
        _ => false,
    }
}

/// Whether this crate is compiled for a device's backend.
#[allow(unreachable_patterns, reason = "which devices there are depends on burn's features")]
fn is_extended(device: &Device) -> bool {
    match device.clone().without_autodiff().as_dispatch() {
        #[cfg(feature = "flex")]
        DispatchDevice::Flex(_) => true,
        #[cfg(feature = "ndarray")]
        DispatchDevice::NdArray(_) => true,
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(_) => true,
        _ => false,
    }
}
