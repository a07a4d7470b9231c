//! Computes a written graph, for tests: loops that are plain to read, by the definitions of ONNX and QONNX.

use std::collections::HashMap;

use super::proto::{GraphProto, NodeProto, Tensor};

#[derive(Clone, Debug)]
pub struct Values {
    pub shape: Vec<usize>,
    pub numbers: Vec<f32>,
}

impl Values {
    /// Those of an initializer in single precision.
    pub fn of(tensor: &Tensor) -> Self {
        assert_eq!(tensor.data_type, 1, "{} is in single precision", tensor.name);
        let numbers = tensor.raw_data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        Self { shape: tensor.dims.iter().map(|side| *side as usize).collect(), numbers }
    }

    fn map(&self, f: impl Fn(f32) -> f32) -> Self {
        Self { shape: self.shape.clone(), numbers: self.numbers.iter().map(|x| f(*x)).collect() }
    }

    /// The value for place `i` of a larger tensor of this shape, of the same or of fewer dimensions.
    fn broadcast(&self, mut i: usize, shape: &[usize]) -> f32 {
        let (mut place, mut size) = (0, 1);
        for (d, side) in shape.iter().enumerate().rev() {
            let at = i % side;
            i /= side;
            if let Some(own) = (d + self.shape.len()).checked_sub(shape.len()).map(|d| self.shape[d]) {
                assert!(own == 1 || own == *side, "{:?} beside {shape:?}", self.shape);
                place += if own == 1 { 0 } else { at * size };
                size *= own;
            }
        }
        self.numbers[place]
    }

    fn with(&self, others: &[&Self], f: impl Fn(f32, &[f32]) -> f32) -> Self {
        let number = |(i, x): (usize, &f32)| {
            let others: Vec<f32> = others.iter().map(|other| other.broadcast(i, &self.shape)).collect();
            f(*x, &others)
        };
        Self { shape: self.shape.clone(), numbers: self.numbers.iter().enumerate().map(number).collect() }
    }

    /// Every window of a map: the first place of each, and what lies in it, by channel, row and column; padding is left out.
    fn windows(&self, node: &NodeProto, mut f: impl FnMut(&[(usize, [usize; 3])])) -> [usize; 2] {
        let [kernel, stride, padding] =
            ["kernel_shape", "strides", "pads"].map(|name| ints(node, name)[0] as usize);
        let [_, channels, height, width] = *self.shape.as_slice() else { panic!("a map") };
        let [rows, columns] = [height, width].map(|side| (side + 2 * padding - kernel) / stride + 1);
        for row in 0..rows {
            for column in 0..columns {
                let mut inside = Vec::new();
                for (channel, y, x) in (0..channels)
                    .flat_map(|c| (0..kernel).flat_map(move |y| (0..kernel).map(move |x| (c, y, x))))
                {
                    let (at_y, at_x) = (row * stride + y, column * stride + x);
                    if (padding..height + padding).contains(&at_y)
                        && (padding..width + padding).contains(&at_x)
                    {
                        let place = (channel * height + at_y - padding) * width + at_x - padding;
                        inside.push((place, [channel, y, x]));
                    }
                }
                f(&inside);
            }
        }
        [rows, columns]
    }
}

fn ints<'a>(node: &'a NodeProto, name: &str) -> &'a [i64] {
    &node.attribute.iter().find(|attribute| attribute.name == name).expect("it has them").ints
}

fn int(node: &NodeProto, name: &str) -> i64 {
    node.attribute
        .iter()
        .find(|attribute| attribute.name == name)
        .and_then(|found| found.i)
        .expect("it has one")
}

fn float(node: &NodeProto, name: &str) -> f32 {
    node.attribute
        .iter()
        .find(|attribute| attribute.name == name)
        .and_then(|found| found.f)
        .expect("it has one")
}

/// The logits of an image, and that every value has the shape that the graph says.
pub fn evaluate(graph: &GraphProto, pixels: Vec<f32>) -> Vec<f32> {
    let sides = |name: &str| -> Vec<usize> {
        let infos = graph.input.iter().chain(&graph.value_info).chain(&graph.output);
        let info =
            infos.into_iter().find(|info| info.name == name).unwrap_or_else(|| panic!("{name} has a shape"));
        let shape = info.r#type.as_ref().and_then(|of| of.tensor_type.as_ref()?.shape.as_ref());
        shape.expect("a tensor").dim.iter().map(|side| side.dim_value.expect("a number") as usize).collect()
    };
    let mut values: HashMap<&str, Values> =
        graph.initializer.iter().map(|tensor| (tensor.name.as_str(), Values::of(tensor))).collect();
    values.insert("image", Values { shape: sides("image"), numbers: pixels });
    for node in &graph.node {
        let inputs: Vec<&Values> = node.input.iter().map(|name| &values[name.as_str()]).collect();
        let output = compute(node, &inputs);
        assert_eq!(output.shape, sides(&node.output[0]), "{}", node.name);
        values.insert(&node.output[0], output);
    }
    values["logits"].numbers.clone()
}

fn compute(node: &NodeProto, inputs: &[&Values]) -> Values {
    let x = inputs[0];
    match node.op_type.as_str() {
        "Quant" => {
            let (bits, is_signed, is_narrow) =
                (inputs[3].numbers[0], int(node, "signed") == 1, int(node, "narrow") == 1);
            assert!(bits > 1.0 || !is_signed, "of one bit with a sign readers think differently");
            let half = 2f32.powf(bits - 1.0);
            let (least, largest) = if is_signed { (-half, half - 1.0) } else { (0.0, 2.0 * half - 1.0) };
            let least = if is_narrow { least + 1.0 } else { least };
            x.with(&inputs[1..3], |x, others| {
                let [scale, zero_point] = *others else { panic!("two") };
                ((x / scale + zero_point).clamp(least, largest).round_ties_even() - zero_point) * scale
            })
        }
        "MultiThreshold" => {
            let n = |x: f32| inputs[1].numbers.iter().filter(|threshold| x >= **threshold).count() as f32;
            x.map(|x| n(x) * float(node, "out_scale") + float(node, "out_bias"))
        }
        "Mul" => x.with(&inputs[1..], |x, others| x * others[0]),
        "Add" => x.with(&inputs[1..], |x, others| x + others[0]),
        "BatchNormalization" => {
            let places = x.shape[2..].iter().product::<usize>();
            let number = |(i, x): (usize, &f32)| {
                let [gamma, beta, mean, variance] =
                    [1, 2, 3, 4].map(|input| inputs[input].numbers[i / places]);
                (x - mean) / (variance + float(node, "epsilon")).sqrt() * gamma + beta
            };
            Values { shape: x.shape.clone(), numbers: x.numbers.iter().enumerate().map(number).collect() }
        }
        "Relu" => x.map(|x| x.max(0.0)),
        "Clip" => x.map(|x| x.clamp(inputs[1].numbers[0], inputs[2].numbers[0])),
        "GlobalAveragePool" => {
            let planes = x.numbers.chunks(x.shape[2] * x.shape[3]);
            let mean = |plane: &[f32]| plane.iter().sum::<f32>() / plane.len() as f32;
            Values { shape: vec![1, x.shape[1], 1, 1], numbers: planes.map(mean).collect() }
        }
        "Flatten" => Values { shape: vec![1, x.numbers.len()], numbers: x.numbers.clone() },
        "Gemm" => {
            assert_eq!(int(node, "transB"), 1);
            let rows = inputs[1].numbers.chunks(x.numbers.len());
            let sum = |(i, row): (usize, &[f32])| {
                let bias = inputs.get(2).map_or(0.0, |bias| bias.numbers[i]);
                row.iter().zip(&x.numbers).map(|(w, x)| w * x).sum::<f32>() + bias
            };
            Values { shape: vec![1, inputs[1].shape[0]], numbers: rows.enumerate().map(sum).collect() }
        }
        "MaxPool" => {
            let channels = x.shape[1];
            let mut places: Vec<Vec<f32>> = vec![Vec::new(); channels];
            let [rows, columns] = x.windows(node, |window| {
                for (channel, places) in places.iter_mut().enumerate() {
                    let own = window.iter().filter(|(_, [c, ..])| *c == channel);
                    places.push(own.map(|(place, _)| x.numbers[*place]).fold(f32::MIN, f32::max));
                }
            });
            Values { shape: vec![1, channels, rows, columns], numbers: places.concat() }
        }
        "Conv" => {
            let (weights, groups) = (inputs[1], int(node, "group") as usize);
            let [out_channels, per_group, kernel, _] = *weights.shape.as_slice() else { panic!("four") };
            let mut places: Vec<Vec<f32>> = vec![Vec::new(); out_channels];
            let [rows, columns] = x.windows(node, |window| {
                for (out, places) in places.iter_mut().enumerate() {
                    let first = out * groups / out_channels * per_group;
                    let mut sum = inputs.get(2).map_or(0.0, |bias| bias.numbers[out]);
                    for (place, [channel, row, column]) in window {
                        if (first..first + per_group).contains(channel) {
                            let at = ((out * per_group + channel - first) * kernel + row) * kernel + column;
                            sum += weights.numbers[at] * x.numbers[*place];
                        }
                    }
                    places.push(sum);
                }
            });
            Values { shape: vec![1, out_channels, rows, columns], numbers: places.concat() }
        }
        other => panic!("no operator {other}"),
    }
}
