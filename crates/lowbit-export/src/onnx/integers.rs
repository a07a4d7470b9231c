//! Weights and activations as ONNX Runtime computes them in integers: weights as integers of few bits, activations between
//! QuantizeLinear and DequantizeLinear.

use std::collections::BTreeMap;

use lowbit_core::graph::NodeId;
use lowbit_core::{IntegerGrid, PackedCodes};
use lowbit_runtime::{Layer, PackedNetwork, Quantizer, Weight};

use super::proto::{Attribute, DataType, Tensor};
use super::writer::{Affine, Writer};

/// Which version of ONNX's operators a file is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Opset {
    /// 13, of 2020: weights in 8 bits each.
    V13,
    /// 21, of 2024: weights in 4 bits where their codes lie from -8 to 7, else in 8.
    V21,
    /// 25, of 2025: weights in 2 bits where their codes lie from -2 to 1, else as 21.
    #[default]
    V25,
}

impl Opset {
    /// Its number, and that of the format's version.
    pub(super) fn versions(self) -> [i64; 2] {
        match self {
            Self::V13 => [13, 7],
            Self::V21 => [21, 10],
            Self::V25 => [25, 13],
        }
    }
}

/// Why a network has no form in ONNX.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OnnxError {
    /// The codes of an input are not at equal distances.
    #[error(
        "layer {path:?}: the levels of its input are not at equal distances, which QuantizeLinear has no form for: export it as packed, or as qonnx"
    )]
    Levels {
        /// Path of the layer.
        path: String,
    },
}

/// How the thresholds of each layer's input lie, by path.
pub fn steps(network: &PackedNetwork) -> Result<BTreeMap<String, Steps>, OnnxError> {
    let inputs = network.layers.iter().filter_map(|(path, layer)| Some((path, layer.input.as_ref()?)));
    inputs
        .map(|(path, quantizer)| {
            let steps = Steps::of(quantizer).ok_or_else(|| OnnxError::Levels { path: path.clone() })?;
            Ok((path.clone(), steps))
        })
        .collect()
}

impl Writer<'_> {
    /// The values of a node on the grid of a quantizer: QuantizeLinear, Clip, DequantizeLinear.
    pub fn integer_input(&mut self, id: NodeId, quantizer: &Quantizer, steps: Steps, path: &str) -> String {
        let Steps { distance, offset } = steps;
        let grid = &quantizer.grid;
        let (zero, last) = (grid.zero_point() as u8, grid.range().q_max as u8);
        let mut input = self.name(id);
        let start = format!("{path}.input");
        if offset != 0.0 {
            let offset = self.floats(format!("{start}.offset"), &[], &[offset]);
            let output = format!("{start}.moved");
            self.node("Sub", &[&input, &offset], &output, Vec::new());
            input = output;
        }
        let byte = |name: String, value: u8| Tensor::new(&name, DataType::Uint8, &[], vec![value]);
        let distance = self.floats(format!("{start}.distance"), &[], &[distance]);
        let scale = self.floats(format!("{start}.scale"), &[], &[grid.scale(0)]);
        let zero_point = format!("{start}.zero_point");
        self.tensor(byte(zero_point.clone(), zero));
        let mut codes = format!("{start}.codes");
        self.node("QuantizeLinear", &[&input, &distance, &zero_point], &codes, Vec::new());
        if last < u8::MAX {
            let (least, largest) = (format!("{start}.least"), format!("{start}.largest"));
            self.tensor(byte(least.clone(), 0));
            self.tensor(byte(largest.clone(), last));
            let clipped = format!("{start}.clipped");
            self.node("Clip", &[&codes, &least, &largest], &clipped, Vec::new());
            codes = clipped;
        }
        let output = format!("{start}.values");
        self.node("DequantizeLinear", &[&codes, &scale, &zero_point], &output, Vec::new());
        output
    }

    /// The weights of a layer times the factors of a normalization, in single precision: of codes dequantized.
    pub fn integer_weight(
        &mut self,
        opset: Opset,
        path: &str,
        layer: &Layer,
        shape: &[usize],
        affine: Option<&Affine>,
    ) -> String {
        let per_row = shape[1..].iter().product::<usize>();
        let factor = |row: usize| affine.map_or(1.0, |affine| affine.factor[row]);
        if let Weight::Codes(grid, codes) = &layer.weight
            && let Some(codes) = signed_bytes(grid, codes)
        {
            // Scales are positive: the sign of a factor goes to the codes.
            let codes: Vec<i16> = codes
                .iter()
                .enumerate()
                .map(|(i, code)| if factor(i / per_row) < 0.0 { -code } else { *code })
                .collect();
            let scales: Vec<f32> = (0..shape[0])
                .map(|row| grid.scale(if grid.units().len() == 1 { 0 } else { row }) * factor(row).abs())
                .map(|scale| if scale > 0.0 { scale } else { f32::MIN_POSITIVE })
                .collect();
            if codes.iter().all(|code| (-128..=127).contains(code)) {
                let is_alone = affine.is_none() && layer.bias.is_none();
                return self.integers(opset, path, shape, &codes, &scales, !is_alone);
            }
        }
        let values: Vec<f32> =
            layer.values().iter().enumerate().map(|(i, value)| value * factor(i / per_row)).collect();
        self.floats(format!("{path}.weight"), shape, &values)
    }

    /// Integers in as few bits as the version has, cast to 8 bits and dequantized.
    ///
    /// QLinearConv rounds what is added to a sum to a multiple of what one of the sum is worth. With codes of few bits that is much: of a
    /// layer with biases the codes are multiplied by as much as 8 bits hold, and the scales divided.
    fn integers(
        &mut self,
        opset: Opset,
        path: &str,
        shape: &[usize],
        codes: &[i16],
        scales: &[f32],
        has_bias: bool,
    ) -> String {
        let largest = codes.iter().map(|code| code.abs()).max().unwrap_or_default();
        let factor = if has_bias && largest > 0 { (i16::from(i8::MAX) / largest).max(1) } else { 1 };
        let scales: Vec<f32> = scales.iter().map(|scale| scale / f32::from(factor)).collect();
        let fits = |bits: u32| {
            codes.iter().all(|code| (-(1 << (bits - 1))..1 << (bits - 1)).contains(&i32::from(*code)))
        };
        let (data_type, bits) = match opset {
            Opset::V25 if fits(2) => (DataType::Int2, 2),
            Opset::V21 | Opset::V25 if fits(4) => (DataType::Int4, 4),
            _ => (DataType::Int8, 8),
        };
        let stored = if bits == 8 { factor } else { 1 };
        let codes: Vec<i16> = codes.iter().map(|code| code * stored).collect();
        let per_byte = 8 / bits;
        let mask = ((1u16 << bits) - 1) as u8;
        let bytes = codes.chunks(per_byte).map(|codes| {
            let place = |(i, code): (usize, &i16)| (*code as u8 & mask) << (bits * i);
            codes.iter().enumerate().map(place).fold(0, |byte, part| byte | part)
        });
        let mut name = format!("{path}.codes");
        self.tensor(Tensor::new(&name, data_type, shape, bytes.collect()));
        if bits < 8 {
            let to = |data_type: DataType| vec![Attribute::int("to", data_type as i64)];
            if factor > 1 {
                let (wide, multiplied) = (format!("{path}.wide"), format!("{path}.multiplied"));
                self.node("Cast", &[&name], &wide, to(DataType::Int32));
                let factor_name = format!("{path}.factor");
                let bytes = i32::from(factor).to_le_bytes().to_vec();
                self.tensor(Tensor::new(&factor_name, DataType::Int32, &[], bytes));
                self.node("Mul", &[&wide, &factor_name], &multiplied, Vec::new());
                name = multiplied;
            }
            let cast = format!("{path}.bytes");
            self.node("Cast", &[&name], &cast, to(DataType::Int8));
            name = cast;
        }
        let scales = self.floats(format!("{path}.scales"), &[shape[0]], &scales);
        let zeros = format!("{path}.zeros");
        self.tensor(Tensor::new(&zeros, DataType::Int8, &[shape[0]], vec![0; shape[0]]));
        let output = format!("{path}.weight");
        self.node("DequantizeLinear", &[&name, &scales, &zeros], &output, vec![Attribute::int("axis", 0)]);
        output
    }
}

/// Codes that are integers of 8 bits with their sign, in one byte more.
fn signed_bytes(grid: &IntegerGrid, codes: &PackedCodes) -> Option<Vec<i16>> {
    let bytes = grid.unpack_bytes(codes).filter(|_| grid.zero_point() == 0)?;
    Some(bytes.into_iter().map(|byte| i16::from(byte as i8)).collect())
}

/// How the thresholds of a quantizer lie: `(code - zero point - 1/2) distance + offset`.
#[derive(Clone, Copy, Debug)]
pub struct Steps {
    distance: f32,
    offset: f32,
}

impl Steps {
    /// `None` if they are not at equal distances, or the codes are not all integers from 0 on.
    fn of(quantizer: &Quantizer) -> Option<Self> {
        /// Of a distance, how far a threshold may be off.
        const TOLERANCE: f64 = 1e-3;
        let (grid, thresholds) = (&quantizer.grid, &quantizer.thresholds);
        let n = thresholds.len();
        let are_bytes = grid.range().q_min == 0 && grid.range().q_max as usize == n && n <= 255;
        if !are_bytes || thresholds.iter().any(|threshold| !threshold.is_finite()) {
            return None;
        }
        let zero = f64::from(grid.zero_point());
        let (first, last) = (f64::from(thresholds[0]), f64::from(thresholds[n - 1]));
        // One threshold has no distance: that of the levels. What is next to zero, as XNOR-Net's, is no scale that programs divide by.
        let distance = if n > 1 { (last - first) / (n - 1) as f64 } else { f64::from(grid.scale(0)) };
        if distance <= 0.0 {
            return None;
        }
        let offset = first - (0.5 - zero) * distance;
        let is_even = thresholds.iter().enumerate().all(|(i, threshold)| {
            (f64::from(*threshold) - (first + i as f64 * distance)).abs() <= TOLERANCE * distance
        });
        // An offset that is a rounding is none.
        let offset = if offset.abs() <= TOLERANCE * distance { 0.0 } else { offset };
        is_even.then_some(Self { distance: distance as f32, offset: offset as f32 })
    }
}

#[cfg(test)]
mod tests {
    use lowbit_core::{BitWidth, CodeSet};
    use lowbit_runtime::samples;

    use super::super::tests::decoded;
    use super::super::to_onnx;
    use super::*;

    /// A normalization with a negative factor changes the signs of the codes of its channel, as scales are positive.
    #[test]
    fn normalizations_are_folded() {
        let network = samples::small();
        let graph = decoded(&to_onnx(&network, Opset::V13).unwrap()).graph.unwrap();
        let tensor = |name: &str| graph.initializer.iter().find(|tensor| tensor.name == name).unwrap();
        let floats = |name: &str| -> Vec<f32> {
            tensor(name).raw_data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
        };
        let Weight::Codes(grid, codes) = &network.layers["conv1"].weight else { panic!("it has codes") };
        let Affine { factor, offset } = Affine::of(&network.norms["norm2"]);
        assert!(factor.iter().any(|factor| *factor < 0.0) && factor.iter().any(|factor| *factor > 0.0));
        let (stored, scales) = (&tensor("conv1.codes").raw_data, floats("conv1.scales"));
        for (i, (code, stored)) in grid.unpack(codes).unwrap().iter().zip(stored).enumerate() {
            let channel = i / 45;
            let expected = grid.dequantize(*code, 0) * factor[channel];
            let got = f32::from(*stored as i8) * scales[channel];
            assert!((got - expected).abs() <= 1e-6 * expected.abs(), "{got} {expected}");
        }
        assert_eq!(floats("conv1.bias"), offset);
    }

    #[test]
    fn one_threshold_is_moved_to_the_middle_between_two_levels() {
        let one = BitWidth::new(1).unwrap();
        let steps = |scale: f32, threshold: f32| {
            let grid = IntegerGrid::new(one.unsigned_range(), vec![scale], 1).unwrap();
            let Steps { distance, offset } =
                Steps::of(&Quantizer { grid, thresholds: vec![threshold] }).unwrap();
            [distance, offset]
        };
        assert_eq!(steps(0.5, 0.25), [0.5, 0.0]);
        assert_eq!(steps(1.0, f32::from_bits(1)), [1.0, -0.5]);
        assert_eq!(steps(1.0, 0.75), [1.0, 0.25]);
    }

    #[test]
    fn levels_at_other_distances_are_refused() {
        let mut network = samples::small();
        let quantizer = network.layers.get_mut("conv1").unwrap().input.as_mut().unwrap();
        quantizer.thresholds[1] *= 1.1;
        let error = to_onnx(&network, Opset::V25).unwrap_err();
        assert_eq!(error, OnnxError::Levels { path: "conv1".into() });
        let two = BitWidth::new(2).unwrap();
        let odd = IntegerGrid::new(CodeSet::Uniform { q_min: 0, q_max: 6, stride: 2 }, vec![0.1], 1).unwrap();
        assert_eq!(odd.bits(), two);
        assert!(Steps::of(&Quantizer { grid: odd, thresholds: vec![0.1, 0.3, 0.5] }).is_none());
    }
}
