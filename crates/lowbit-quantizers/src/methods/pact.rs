//! PACT, Choi et al. 2018 (arXiv 1805.06085): activations with a learned clip value. Its weights are DoReFa's.

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use lowbit_core::BitWidth;
use lowbit_kernels::{Activation, Grid, Scale, fake_quantize_learned};

use crate::parameter::positive_parameter;
use crate::qparams::{QParams, codes_of, per_channel};

/// Initial clip value; within the range the paper finds insensitive (Choi18, section 3: 8 to 20 are equal).
const INITIAL_CLIP_VALUE: f32 = 8.0;

/// The clip value never falls below this, so that the scale stays positive.
const MIN_CLIP_VALUE: f32 = 1e-3;

/// PACT activations, Choi18 Eq. 1 to 3. Codes are unsigned, `0..=2^bits - 1`.
///
/// # Equation
/// ```text
/// c = round(clip(x, 0, a) / a * n)            ties to even, n = 2^bits - 1, a the clip value
/// y = c / n * a
/// dy/dx = 1 where 0 <= x < a, else 0          dy/da = 1 where x >= a, else 0
/// ```
/// The clip value has its own L2 decay in the paper: it is in the parameter group `quantizers`.
#[derive(Module, Debug)]
pub struct PactActivations {
    /// The learned clip value `a`, shape `[1]`, in the units of the activations.
    pub clip_value: Param<Tensor<1>>,
    #[module(skip)]
    bits: BitWidth,
}

impl PactActivations {
    /// A quantizer to `bits` bits whose clip value starts at 8.
    pub fn new(bits: BitWidth, device: &Device) -> Self {
        Self { clip_value: Param::from_tensor(Tensor::full([1], INITIAL_CLIP_VALUE, device)), bits }
    }

    /// The bit width.
    pub fn bits(&self) -> BitWidth {
        self.bits
    }

    fn steps(&self) -> f32 {
        (self.bits.levels() - 1) as f32
    }

    fn clip(&self) -> Tensor<1> {
        positive_parameter(self.clip_value.val(), MIN_CLIP_VALUE, 1.0)
    }

    /// `clip(x, 0, a)` with the gradient of Choi18 Eq. 3.
    fn clipped<const D: usize>(&self, x: Tensor<D>, clip: Tensor<D>) -> Tensor<D> {
        let above = x.clone().greater_equal(clip.clone().detach());
        let shape = x.shape();
        x.clamp_min(0.0).mask_where(above, clip.expand(shape))
    }

    /// Codes in `0..=2^bits - 1`, of `x`'s shape.
    pub fn codes<const D: usize>(&self, x: Tensor<D>) -> Tensor<D, Int> {
        let clip = self.clip();
        codes_of(fake_quantize_learned(x, clip.clone(), self.grid()) * self.steps(), clip)
    }

    /// `x` on the grid's real values, of `x`'s shape, with the gradients of Choi18 Eq. 3.
    pub fn fake_quantize<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        fake_quantize_learned(x, self.clip(), self.grid())
    }

    fn grid(&self) -> Grid {
        Grid::Clip { n: self.steps() }
    }

    /// A ReLU and the quantizer in one.
    pub(crate) fn activation(&self) -> Activation {
        Activation::Learned { parameter: self.clip(), grid: self.grid() }
    }

    /// What the quantized values are multiples of, and the largest multiple.
    pub(crate) fn scale(&self) -> (Scale, u8) {
        (Scale::Learned { parameter: self.clip(), parts: self.steps() }, (self.bits.levels() - 1) as u8)
    }

    /// [`fake_quantize`](Self::fake_quantize) without the rounding: `clip(x, 0, a)`.
    pub fn unrounded<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let clip = per_channel::<D>(self.clip());
        self.clipped(x, clip)
    }

    /// The grid's parameters.
    pub fn qparams(&self) -> QParams {
        let scale = self.clip().detach() / self.steps();
        QParams { zero_point: scale.zeros_like(), scale, range: self.bits.unsigned_range() }
    }
}
