//! What a quantizer is, and the list of those that a layer can hold.

use std::fmt;
use std::ops::RangeInclusive;

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor};
use lowbit_core::{BitWidth, CodeSet, Granularity, GridError, IntegerGrid, Precision};
use lowbit_kernels::{Activation, Quantized, Scheme};
use serde::{Deserialize, Serialize};

use crate::QuantizerError;
use crate::codes::{read, zero_if_nan};
use crate::methods::{
    apot, dorefa, dsq, ewgs, hwgq, lq_nets, lsq, lsq_plus, minmax, n2uq, pact, qil, tqt, twn, xnor,
};
use crate::parameter::{constant, n_at_floor};

/// A learned parameter of a quantizer.
#[derive(Debug)]
pub struct Learned<'a> {
    /// The field that holds it: its name in a record.
    pub name: &'static str,
    /// `[1]`, one number for each output channel, or one for each interval of N2UQ's activations.
    pub parameter: &'a Param<Tensor<1>>,
    /// The forward pass takes this instead of what is lower.
    pub floor: Option<f32>,
}

/// What the quantizers of weights and of activations have in common.
pub trait Quantizer: Module {
    /// The fields that hold what the method learns or measures: their names in a record.
    const STATE: &'static [&'static str] = &[];
    /// Whether the paper decays the learned parameters with the weights.
    const DECAYS: bool = false;
    /// Whether integers of a grid stand for the levels: what the kernels of integers and an export need.
    const HAS_GRID: bool = true;
    /// Whether [`rescale`](Self::rescale) makes learned parameters of other bit widths fit; else they are calibrated anew.
    const RESCALES: bool = true;

    /// The bit width.
    fn bits(&self) -> BitWidth;

    /// The codes that there are.
    fn code_set(&self) -> CodeSet;

    /// The learned parameters.
    fn learned(&self) -> Vec<Learned<'_>> {
        Vec::new()
    }

    /// The same for change, in the same order.
    fn learned_mut(&mut self) -> Vec<&mut Param<Tensor<1>>> {
        Vec::new()
    }

    /// The parameters to watch over a training by the names that a run's metrics have for them: their values in force. The first
    /// is one that is to move in any training; the others may have a reason to stay.
    fn watched(&self) -> Vec<(&'static str, Tensor<1>)> {
        Vec::new()
    }

    /// How many values are held at their floor, `[1]`; `None` without a floor.
    fn n_at_floor(&self) -> Option<Tensor<1, Int>> {
        let learned = self.learned();
        let with_floor = learned.iter().filter_map(|learned| Some((learned.parameter.val(), learned.floor?)));
        with_floor.map(|(parameter, floor)| n_at_floor(parameter, floor)).reduce(|a, b| a + b)
    }

    /// Changes learned parameters that were learned at `from` bits so that they span as much at these bits.
    fn rescale(&mut self, _from: BitWidth) {}
}

/// A quantizer of weights: one file of [`methods`](crate::methods), one line of the list below.
pub trait QuantizesWeights: Quantizer {
    /// Bit widths that the method defines.
    const BITS: RangeInclusive<u32> = 1..=8;
    /// Whether it can have parameters for each output channel.
    const PER_CHANNEL: bool = false;
    /// Which of both the paper has.
    const GRANULARITY: Granularity = Granularity::PerTensor;
    /// Whether a weight that is the value of a code has this code, whatever the other weights are: then it can be held there.
    const HOLDS_LEVELS: bool = false;
    /// Whether two neighboring levels are always at the same distance.
    const HAS_EQUAL_STEPS: bool = true;

    /// A quantizer of these weights, to bits and of a granularity that the method defines.
    fn new<const D: usize>(bits: BitWidth, granularity: Granularity, w: Tensor<D>) -> Self;

    /// Sets learned parameters from the weights `w`, as when the quantizer was made.
    fn calibrate<const D: usize>(&mut self, _w: Tensor<D>) {}

    /// What the formula takes: the weights themselves, unless the method transforms them.
    fn transform<const D: usize>(&self, w: Tensor<D>) -> Tensor<D> {
        w
    }

    /// The formula with its parameters for the weights `w`.
    fn scheme<const D: usize>(&self, w: &Tensor<D>) -> Scheme;

    /// The real values of the codes of `w`.
    fn quantize<const D: usize>(&self, w: Tensor<D>) -> Quantized<D> {
        let scheme = self.scheme(&w);
        scheme.quantize(self.transform(w))
    }

    /// The real values alone.
    fn fake_quantize<const D: usize>(&self, w: Tensor<D>) -> Tensor<D> {
        self.quantize(w).into_values()
    }

    /// The same without rounding.
    fn unrounded<const D: usize>(&self, w: Tensor<D>) -> Tensor<D> {
        let scheme = self.scheme(&w);
        scheme.unrounded(self.transform(w))
    }

    /// The codes of `w`; `NaN` has the code of 0.
    fn codes<const D: usize>(&self, w: Tensor<D>) -> Tensor<D, Int> {
        let w = zero_if_nan(w);
        let scheme = self.scheme(&w);
        scheme.codes(self.transform(w))
    }

    /// What one code is worth where `w` are the weights, of a shape that fits theirs, without gradient.
    fn worth<const D: usize>(&self, w: &Tensor<D>) -> Tensor<D> {
        let scheme = self.scheme(w);
        let formula = scheme.formula();
        let parts = f64::from(formula.parts());
        let mut shape = [1; D];
        match formula.unit() {
            Some(place) => {
                let unit = constant(scheme.parameters()[place].clone());
                shape[0] = unit.dims()[0];
                (unit / parts).reshape(shape)
            }
            None => Tensor::full(shape, 1.0 / parts, &w.device()),
        }
    }

    /// What the codes of `w` are worth.
    fn grid<const D: usize>(&self, w: Tensor<D>) -> Result<IntegerGrid, GridError> {
        integer_grid(&self.scheme(&w), self.code_set())
    }
}

/// A quantizer of activations after a ReLU: one file of [`methods`](crate::methods), one line of the list below.
pub trait QuantizesActivations: Quantizer {
    /// Bit widths that the method defines.
    const BITS: RangeInclusive<u32> = 1..=8;

    /// Whether values below zero are more than cut off.
    const TAKES_NEGATIVE: bool = false;
    /// Whether codes have a zero point, which the kernels of integers do not take.
    const HAS_ZERO_POINT: bool = false;
    /// Whether the quantizer has to see every batch, so that no normalization quantizes for it.
    const SEES_EVERY_BATCH: bool = false;

    /// A quantizer to bits that the method defines.
    fn new(bits: BitWidth, device: &Device) -> Self;

    /// The formula with its parameters in force, for values of this shape.
    fn scheme(&self, dims: &[usize]) -> Scheme;

    /// [`scheme`](Self::scheme) of what a ReLU makes of the values: another one where values below zero are more than cut off.
    fn scheme_of_relu(&self, dims: &[usize]) -> Scheme {
        self.scheme(dims)
    }

    /// Whether [`observe`](Self::observe) has to see the values now.
    fn observes(&self) -> bool {
        Self::SEES_EVERY_BATCH
    }

    /// Takes in a batch that is about to be quantized.
    fn observe<const D: usize>(&self, _x: &Tensor<D>) {}

    /// Begins a calibration.
    fn start_calibration(&mut self) {}

    /// Ends a calibration: sets parameters from what was observed.
    fn finish_calibration(&mut self) {}

    /// The real values of the codes of `x`.
    fn quantize<const D: usize>(&self, x: Tensor<D>) -> Quantized<D> {
        self.scheme(&x.dims()).quantize(x)
    }

    /// The real values alone.
    fn fake_quantize<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.quantize(x).into_values()
    }

    /// The same without rounding.
    fn unrounded<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.scheme(&x.dims()).unrounded(x)
    }

    /// The codes of `x`.
    fn codes<const D: usize>(&self, x: Tensor<D>) -> Tensor<D, Int> {
        self.scheme(&x.dims()).codes(x)
    }

    /// What the codes are worth.
    fn grid(&self) -> Result<IntegerGrid, GridError> {
        integer_grid(&self.scheme(&[1, 1]), self.code_set())
    }
}

/// The integers of a scheme's codes, and what they are worth. Reads the parameters from the device, once.
pub(crate) fn integer_grid(scheme: &Scheme, codes: CodeSet) -> Result<IntegerGrid, GridError> {
    let (formula, parameters) = (scheme.formula(), scheme.parameters());
    let all = match parameters {
        [] => Vec::new(),
        [parameter] => read(parameter.clone()),
        parameters => read(Tensor::cat(parameters.iter().cloned().map(constant).collect(), 0)),
    };
    // The numbers of each parameter.
    let mut rest = all.as_slice();
    let mut numbers = Vec::with_capacity(parameters.len());
    for parameter in parameters {
        let (of_parameter, others) = rest.split_at(parameter.dims()[0]);
        numbers.push(of_parameter);
        rest = others;
    }
    let units = formula.unit().map_or(vec![1.0], |place| numbers[place].to_vec());
    let grid = IntegerGrid::new(codes, units, formula.parts() as u32)?;
    // Also of those that are no part of the grid: with one that is not finite, no value is.
    if let Some(&got) = all.iter().find(|number| !number.is_finite()) {
        return Err(GridError::Parameter { got });
    }
    match formula.zero() {
        Some(place) => {
            assert_eq!(numbers[place].len(), 1, "a grid has one zero point");
            grid.with_zero_point(numbers[place][0] as i32)
        }
        None => Ok(grid),
    }
}

/// The bounds of a set of codes.
pub(crate) fn code_range(codes: &CodeSet) -> RangeInclusive<i32> {
    match codes {
        CodeSet::Uniform { q_min, q_max, .. } => *q_min..=*q_max,
        CodeSet::Table(codes) => {
            let ends =
                [codes.first(), codes.last()].map(|code| *code.expect("invariant: a method has codes"));
            ends[0]..=ends[1]
        }
    }
}

/// Makes the list of methods: the names that recipes have for them, and the quantizers that a layer can hold.
macro_rules! methods {
    (($d:tt) $($(#[doc = $doc:literal])* $method:ident = $name:literal: $weights:ty, $activations:ty;)+) => {
        /// A quantization method, by the name of its paper.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Method {
            $($(#[doc = $doc])* #[serde(rename = $name)] $method,)+
        }

        impl Method {
            /// All methods.
            pub const ALL: &[Self] = &[$(Self::$method),+];

            /// The name that recipes have for it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$method => $name,)+
                }
            }

            /// Bit widths that the method defines for an operand.
            pub fn bits(self, operand: Operand) -> RangeInclusive<u32> {
                match (self, operand) {
                    $((Self::$method, Operand::Weights) => <$weights as QuantizesWeights>::BITS,
                    (Self::$method, Operand::Activations) => <$activations as QuantizesActivations>::BITS,)+
                }
            }

            /// The names that records have for what the method learns or measures.
            pub(crate) fn state(self) -> [&'static [&'static str]; 2] {
                match self {
                    $(Self::$method => [<$weights as Quantizer>::STATE, <$activations as Quantizer>::STATE],)+
                }
            }

            /// Whether activations below zero are more than cut off: those of a network's input are.
            pub fn takes_negative(self) -> bool {
                match self {
                    $(Self::$method => <$activations as QuantizesActivations>::TAKES_NEGATIVE,)+
                }
            }

            /// Whether the codes of activations have a zero point, which the kernels of integers do not take.
            pub fn has_zero_point(self) -> bool {
                match self {
                    $(Self::$method => <$activations as QuantizesActivations>::HAS_ZERO_POINT,)+
                }
            }

            /// Whether the quantizer of activations has to see every batch, so that no normalization quantizes for it.
            pub fn sees_every_batch(self) -> bool {
                match self {
                    $(Self::$method => <$activations as QuantizesActivations>::SEES_EVERY_BATCH,)+
                }
            }

            /// Whether the paper decays an operand's learned parameters with the weights.
            pub fn decays_parameters(self, operand: Operand) -> bool {
                match (self, operand) {
                    $((Self::$method, Operand::Weights) => <$weights as Quantizer>::DECAYS,
                    (Self::$method, Operand::Activations) => <$activations as Quantizer>::DECAYS,)+
                }
            }

            /// Whether integers of a grid stand for the levels of an operand: what the kernels of integers and an export need.
            pub fn has_grid(self, operand: Operand) -> bool {
                match (self, operand) {
                    $((Self::$method, Operand::Weights) => <$weights as Quantizer>::HAS_GRID,
                    (Self::$method, Operand::Activations) => <$activations as Quantizer>::HAS_GRID,)+
                }
            }

            /// The granularity that the paper has for weights.
            pub fn granularity(self) -> Granularity {
                match self {
                    $(Self::$method => <$weights as QuantizesWeights>::GRANULARITY,)+
                }
            }

            /// Whether a weight that is the value of a code has this code, whatever the other weights are.
            pub fn holds_levels(self) -> bool {
                match self {
                    $(Self::$method => <$weights as QuantizesWeights>::HOLDS_LEVELS,)+
                }
            }

            /// Whether two neighboring levels of weights are always at the same distance.
            pub fn has_equal_steps(self) -> bool {
                match self {
                    $(Self::$method => <$weights as QuantizesWeights>::HAS_EQUAL_STEPS,)+
                }
            }

            /// Whether weights can have parameters for each output channel.
            pub fn is_per_channel(self) -> bool {
                match self {
                    $(Self::$method => <$weights as QuantizesWeights>::PER_CHANNEL,)+
                }
            }
        }

        /// The quantizer of a layer's weights.
        #[derive(Module, Debug)]
        pub enum WeightQuantizer {
            $($(#[doc = $doc])* $method($weights),)+
        }

        impl WeightQuantizer {
            fn of<const D: usize>(method: Method, bits: BitWidth, granularity: Granularity, w: Tensor<D>) -> Self {
                match method {
                    $(Method::$method => Self::$method(<$weights as QuantizesWeights>::new(bits, granularity, w)),)+
                }
            }
        }

        /// The quantizer of a layer's input activations, which are expected to come from a ReLU.
        #[derive(Module, Debug)]
        pub enum ActivationQuantizer {
            $($(#[doc = $doc])* $method($activations),)+
        }

        impl ActivationQuantizer {
            fn of(method: Method, bits: BitWidth, device: &Device) -> Self {
                match method {
                    $(Method::$method => Self::$method(<$activations as QuantizesActivations>::new(bits, device)),)+
                }
            }
        }

        /// Evaluates an expression with the quantizer of either operand by its own type.
        macro_rules! with {
            ($d operand:ident, $d any:expr, $d quantizer:ident => $d body:expr) => {
                match $d any {
                    $($d operand::$method($d quantizer) => $d body,)+
                }
            };
        }
    };
}

methods! {
    ($)
    /// DoReFa-Net (Zhou16), the base quantizer of Zhuang et al. 2021.
    DoReFa = "dorefa": dorefa::DoReFaWeights, dorefa::DoReFaActivations;
    /// PACT (Choi18): DoReFa weights, activations with a learned clip value.
    Pact = "pact": dorefa::DoReFaWeights, pact::PactActivations;
    /// LSQ (Esser20): learned step sizes.
    Lsq = "lsq": lsq::LsqWeights, lsq::LsqActivations;
    /// Uniform quantization of the observed range.
    MinMax = "minmax": minmax::MinMaxWeights, minmax::MinMaxActivations;
    /// EWGS (Lee21): learned intervals, a gradient scaled by the error of the rounding.
    Ewgs = "ewgs": ewgs::EwgsWeights, ewgs::EwgsActivations;
    /// LSQ+ (Bhalgat20): LSQ with a learned offset of the activations.
    LsqPlus = "lsq-plus": lsq_plus::LsqPlusWeights, lsq_plus::LsqPlusActivations;
    /// TQT (Jain20): learned thresholds, steps that are powers of two.
    Tqt = "tqt": tqt::TqtWeights, tqt::TqtActivations;
    /// APoT (Li20): levels that are sums of powers of two.
    Apot = "apot": apot::ApotWeights, apot::ApotActivations;
    /// QIL (Jung19): a learned interval of magnitudes.
    Qil = "qil": qil::QilWeights, qil::QilActivations;
    /// LQ-Nets (Zhang18): levels that are sums of learned basis values.
    LqNets = "lq-nets": lq_nets::LqNetsWeights, lq_nets::LqNetsActivations;
    /// DSQ (Gong19): rounding with the gradient of a soft staircase.
    Dsq = "dsq": dsq::DsqWeights, dsq::DsqActivations;
    /// N2UQ (Liu22): learned thresholds of activations, weights whose codes are used about equally often.
    N2uq = "n2uq": n2uq::N2uqWeights, n2uq::N2uqActivations;
    /// HWGQ (Cai17): binary weights, activations with fixed steps for normalized values.
    Hwgq = "hwgq": xnor::XnorWeights, hwgq::HwgqActivations;
    /// XNOR-Net and BWN (Rastegari16): binary weights with a scale for each filter.
    Xnor = "xnor": xnor::XnorWeights, xnor::XnorActivations;
    /// TWN (Li16): ternary weights.
    Twn = "twn": twn::TwnWeights, dorefa::DoReFaActivations;
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a quantizer quantizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// The weights of a layer.
    Weights,
    /// The input activations of a layer.
    Activations,
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Operand::Weights => "weights",
            Operand::Activations => "activations",
        })
    }
}

/// How one layer is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerQuantization {
    /// Method of the weights.
    pub weight_method: Method,
    /// Method of the input activations.
    pub act_method: Method,
    /// Precision of the weights.
    pub weight_bits: Precision,
    /// Precision of the input activations.
    pub act_bits: Precision,
    /// Whether all weights share a scale or each output channel has its own.
    pub weight_granularity: Granularity,
    /// Whether the quantizer is given the weights of each output channel with mean 0 and variance 1.
    pub standardizes_weights: bool,
}

impl LayerQuantization {
    /// Nothing quantized.
    pub const FULL_PRECISION: Self = Self {
        weight_method: Method::DoReFa,
        act_method: Method::DoReFa,
        weight_bits: Precision::FullPrecision,
        act_bits: Precision::FullPrecision,
        weight_granularity: Granularity::PerTensor,
        standardizes_weights: false,
    };

    /// Both operands quantized by `method`, weights in its paper's granularity.
    pub fn new(method: Method, weight_bits: Precision, act_bits: Precision) -> Self {
        let (weight_method, act_method) = (method, method);
        let weight_granularity = method.granularity();
        Self { weight_method, act_method, weight_bits, act_bits, weight_granularity, ..Self::FULL_PRECISION }
    }

    /// The names of the methods of the operands that are quantized: one if they are the same, else that of the weights first.
    pub fn methods(&self) -> Vec<Method> {
        let of = |method, bits: Precision| bits.bit_width().map(|_| method);
        let methods = [of(self.weight_method, self.weight_bits), of(self.act_method, self.act_bits)];
        let mut methods: Vec<Method> = methods.into_iter().flatten().collect();
        methods.dedup();
        methods
    }

    /// Whether weights or activations are.
    pub fn is_quantized(&self) -> bool {
        [self.weight_bits, self.act_bits] != [Precision::FullPrecision; 2]
    }

    /// Whether the method defines these bit widths and this granularity.
    ///
    /// # Errors
    /// [`QuantizerError`], naming what the method takes.
    pub fn check(&self) -> Result<(), QuantizerError> {
        let Self { weight_method, act_method, weight_bits, act_bits, weight_granularity, .. } = *self;
        let operands =
            [(Operand::Weights, weight_method, weight_bits), (Operand::Activations, act_method, act_bits)];
        for (operand, method, got) in operands {
            let allowed = method.bits(operand);
            if got.bit_width().is_some_and(|bits| !allowed.contains(&bits.get())) {
                return Err(QuantizerError::Bits { method, operand, got, allowed });
            }
        }
        if weight_granularity == Granularity::PerChannel && !weight_method.is_per_channel() {
            return Err(QuantizerError::Granularity {
                method: weight_method,
                operand: Operand::Weights,
                got: weight_granularity,
                allowed: Granularity::PerTensor,
            });
        }
        Ok(())
    }
}

fn rescales<Q: Quantizer>(_: &Q) -> bool {
    Q::RESCALES
}

impl WeightQuantizer {
    /// The weight quantizer that `quantization` asks for, its parameters set from the weights `w`; `None` in full
    /// precision.
    ///
    /// # Errors
    /// [`QuantizerError`] if the method does not define what is asked for.
    pub fn new<const D: usize>(
        quantization: &LayerQuantization,
        w: Tensor<D>,
    ) -> Result<Option<Self>, QuantizerError> {
        quantization.check()?;
        let LayerQuantization { weight_method, weight_bits, weight_granularity, .. } = *quantization;
        Ok(weight_bits.bit_width().map(|bits| Self::of(weight_method, bits, weight_granularity, w)))
    }

    /// The bit width.
    pub fn bits(&self) -> BitWidth {
        with!(Self, self, quantizer => quantizer.bits())
    }

    /// The codes that there are.
    pub fn code_set(&self) -> CodeSet {
        with!(Self, self, quantizer => quantizer.code_set())
    }

    /// The integer codes of the weights `w`, of `w`'s shape; `NaN` has the code of 0.
    pub fn codes<const D: usize>(&self, w: Tensor<D>) -> Tensor<D, Int> {
        with!(Self, self, quantizer => quantizer.codes(w))
    }

    /// The real values of the codes of `w`, of `w`'s shape, with the method's gradient.
    pub fn fake_quantize<const D: usize>(&self, w: Tensor<D>) -> Tensor<D> {
        self.quantize(w).into_values()
    }

    /// [`fake_quantize`](Self::fake_quantize) with what the values are made of: for a convolution.
    pub fn quantize<const D: usize>(&self, w: Tensor<D>) -> Quantized<D> {
        with!(Self, self, quantizer => quantizer.quantize(w))
    }

    /// What [`fake_quantize`](Self::fake_quantize) yields if nothing is rounded, of `w`'s shape: the weights transformed
    /// and clipped as the method does it.
    pub fn unrounded<const D: usize>(&self, w: Tensor<D>) -> Tensor<D> {
        with!(Self, self, quantizer => quantizer.unrounded(w))
    }

    /// The weights that are worth `codes` where the weights are now `w`, of `w`'s shape, without gradient: of a method that
    /// [holds levels](Method::holds_levels), they have these codes.
    pub fn held_at<const D: usize>(&self, codes: Tensor<D>, w: &Tensor<D>) -> Tensor<D> {
        codes * with!(Self, self, quantizer => quantizer.worth(w))
    }

    /// The weights on their way from what they are to their codes, of `w`'s shape: between two neighboring levels, a line through the
    /// middle of both with this `slope`, cut off at them. With a slope of 1 that is [`unrounded`](Self::unrounded), with an infinite one
    /// [`fake_quantize`](Self::fake_quantize), whose gradient it has. For methods with [equal steps](Method::has_equal_steps).
    pub fn soft<const D: usize>(&self, w: Tensor<D>, slope: f64) -> Tensor<D> {
        let hard = self.fake_quantize(w.clone());
        let (level, exact) = (constant(hard.clone()), constant(self.unrounded(constant(w.clone()))));
        let worth: Tensor<D> = with!(Self, self, quantizer => quantizer.worth(&w)).expand(w.dims());
        let (stride, q_min, q_max) = match self.code_set() {
            CodeSet::Uniform { q_min, q_max, stride } => (stride, q_min, q_max),
            CodeSet::Table(_) => unreachable!("invariant: the steps of the method are equal"),
        };
        let step = worth.clone() * f64::from(stride);
        let rest = exact - level.clone();
        // Half a step at the middle of two levels, and zero on the level that is near.
        let middle = step.clone() * 0.5;
        let moved = (middle.clone() - (middle - rest.clone().abs()) * slope).clamp_min(0.0).min_pair(step);
        let soft = level.clone() + rest.sign() * moved;
        let soft = soft.max_pair(worth.clone() * f64::from(q_min)).min_pair(worth * f64::from(q_max));
        hard + (soft - level)
    }

    /// The grid of the weights `w`: its codes are those of [`codes`](Self::codes), and their real values what
    /// [`fake_quantize`](Self::fake_quantize) yields. Reads from the device what the method learns or measures, once.
    ///
    /// # Errors
    /// [`GridError`] if that is not finite, or if no integers stand for the levels, as of LQ-Nets.
    pub fn grid<const D: usize>(&self, w: Tensor<D>) -> Result<IntegerGrid, GridError> {
        with!(Self, self, quantizer => quantizer.grid(w))
    }

    /// The learned parameters.
    pub fn learned(&self) -> Vec<Learned<'_>> {
        with!(Self, self, quantizer => quantizer.learned())
    }

    /// The learned parameters for change, in the same order.
    pub fn learned_mut(&mut self) -> Vec<&mut Param<Tensor<1>>> {
        with!(Self, self, quantizer => quantizer.learned_mut())
    }

    /// The learned parameters to watch over a training: their values in force, at least the floor.
    pub fn watched(&self) -> Vec<(&'static str, Tensor<1>)> {
        with!(Self, self, quantizer => quantizer.watched())
    }

    /// How many values of the learned parameters are held at their floor, `[1]`; `None` without a floor. A layer with
    /// such a value has collapsed: all its weights have the codes of the clip edges.
    pub fn n_at_floor(&self) -> Option<Tensor<1, Int>> {
        with!(Self, self, quantizer => quantizer.n_at_floor())
    }

    /// Whether [`rescale`](Self::rescale) does; else the parameters of other bit widths have no meaning at these.
    pub fn rescales(&self) -> bool {
        with!(Self, self, quantizer => rescales(quantizer))
    }

    /// Changes learned parameters that were learned at `from` bits so that they span as much at these bits. Of learned steps the distance
    /// between the outermost levels stays; thresholds, clip values and intervals do as they are.
    pub fn rescale(&mut self, from: BitWidth) {
        with!(Self, self, quantizer => quantizer.rescale(from));
    }

    /// Sets learned parameters from the weights `w`, as when the quantizer was made: for weights that were loaded.
    pub fn calibrate<const D: usize>(&mut self, w: Tensor<D>) {
        with!(Self, self, quantizer => quantizer.calibrate(w));
    }
}

impl ActivationQuantizer {
    /// The activation quantizer that `quantization` asks for; `None` in full precision.
    ///
    /// # Errors
    /// [`QuantizerError`] if the method does not define what is asked for.
    pub fn new(quantization: &LayerQuantization, device: &Device) -> Result<Option<Self>, QuantizerError> {
        quantization.check()?;
        Ok(quantization.act_bits.bit_width().map(|bits| Self::of(quantization.act_method, bits, device)))
    }

    /// The bit width.
    pub fn bits(&self) -> BitWidth {
        with!(Self, self, quantizer => quantizer.bits())
    }

    /// The codes that there are.
    pub fn code_set(&self) -> CodeSet {
        with!(Self, self, quantizer => quantizer.code_set())
    }

    fn scheme(&self, dims: &[usize]) -> Scheme {
        with!(Self, self, quantizer => quantizer.scheme(dims))
    }

    /// The integer codes of `x`, of `x`'s shape; `NaN` has the code of 0.
    pub fn codes<const D: usize>(&self, x: Tensor<D>) -> Tensor<D, Int> {
        with!(Self, self, quantizer => quantizer.codes(x))
    }

    /// The real values of the codes of `x`, of `x`'s shape, with the method's gradient.
    pub fn fake_quantize<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        self.quantize(x).into_values()
    }

    /// [`fake_quantize`](Self::fake_quantize) with what the values are made of: for a convolution.
    pub fn quantize<const D: usize>(&self, x: Tensor<D>) -> Quantized<D> {
        with!(Self, self, quantizer => quantizer.quantize(x))
    }

    /// What [`fake_quantize`](Self::fake_quantize) yields if nothing is rounded, of `x`'s shape: `x` clipped to the range
    /// of the codes.
    pub fn unrounded<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        with!(Self, self, quantizer => quantizer.unrounded(x))
    }

    /// Takes in a batch that is about to be quantized: a calibration records it, and in training (on a device with autodiff, unless
    /// the module is frozen) a running range moves towards it. Layers call this in their forward pass; who uses a quantizer
    /// without a layer calls it once a step. No other method changes the quantizer: `codes`, `fake_quantize`, `unrounded` and
    /// `grid` all answer for the same grid until the next call.
    pub fn observe<const D: usize>(&self, x: &Tensor<D>) {
        with!(Self, self, quantizer => quantizer.observe(x));
    }

    /// A ReLU and [`quantize`](Self::quantize) of values of shape `dims` in one operation; `None` if the
    /// quantizer has to see the ReLU's result.
    pub(crate) fn activation(&self, dims: &[usize]) -> Option<Activation> {
        let observes = with!(Self, self, quantizer => quantizer.observes());
        let of_relu = || with!(Self, self, quantizer => quantizer.scheme_of_relu(dims));
        (!observes).then(|| Activation::Quantize(of_relu()))
    }

    /// Whether both quantize every input alike, now and later: they have the same formula and nothing to learn.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        let may_differ = |any: &Self| with!(Self, any, quantizer => quantizer.observes() || !quantizer.learned().is_empty());
        if may_differ(self) || may_differ(other) {
            return false;
        }
        // Without parameters a scheme is the same for all shapes.
        let [one, two] = [self, other].map(|quantizer| quantizer.scheme(&[1, 1]));
        one.parameters().is_empty() && two.parameters().is_empty() && one.formula() == two.formula()
    }

    /// The grid in force: its codes are those of [`codes`](Self::codes), and their real values what
    /// [`fake_quantize`](Self::fake_quantize) yields. Reads from the device what the method learns or measures, once.
    ///
    /// # Errors
    /// [`GridError`] if that is not finite, or if no integers stand for the levels, as of LQ-Nets.
    pub fn grid(&self) -> Result<IntegerGrid, GridError> {
        with!(Self, self, quantizer => quantizer.grid())
    }

    /// The learned parameters.
    pub fn learned(&self) -> Vec<Learned<'_>> {
        with!(Self, self, quantizer => quantizer.learned())
    }

    /// The learned parameters for change, in the same order.
    pub fn learned_mut(&mut self) -> Vec<&mut Param<Tensor<1>>> {
        with!(Self, self, quantizer => quantizer.learned_mut())
    }

    /// Whether [`rescale`](Self::rescale) does; else the parameters of other bit widths have no meaning at these.
    pub fn rescales(&self) -> bool {
        with!(Self, self, quantizer => rescales(quantizer))
    }

    /// Changes learned parameters that were learned at `from` bits so that they span the same range at these bits. A
    /// clip value and a running range do as they are.
    pub fn rescale(&mut self, from: BitWidth) {
        with!(Self, self, quantizer => quantizer.rescale(from));
    }

    /// Begins a calibration: until [`finish_calibration`](Self::finish_calibration), [`observe`](Self::observe) records the range of
    /// what it is given, as the forward passes of layers do.
    pub fn start_calibration(&mut self) {
        with!(Self, self, quantizer => quantizer.start_calibration());
    }

    /// Ends a calibration and sets the parameters from what was recorded, as the method says it; without a forward pass since its start,
    /// they stay as they are.
    pub fn finish_calibration(&mut self) {
        with!(Self, self, quantizer => quantizer.finish_calibration());
    }

    /// How many values of the learned parameters are held at their floor, `[1]`; `None` without a floor. A layer with
    /// such a value has collapsed: next to nothing of its input passes.
    pub fn n_at_floor(&self) -> Option<Tensor<1, Int>> {
        with!(Self, self, quantizer => quantizer.n_at_floor())
    }

    /// The learned or running parameters to watch over a training: step size, clip value or running maximum, say. Their values in force,
    /// at least the floor.
    pub fn watched(&self) -> Vec<(&'static str, Tensor<1>)> {
        with!(Self, self, quantizer => quantizer.watched())
    }
}
