//! The packed file: safetensors, with the codes of weights in the bits that they have.
//!
//! # Layout
//! A file is a safetensors file (a list of tensors in JSON, then their bytes; <https://huggingface.co/docs/safetensors>), so that other
//! programs can read it. Its metadata has `lowbit-packed`: JSON with the version of the layout, the graph, the grids and what
//! [`Info`] has. Of the layer at `path` it has the tensors
//!
//! | tensor | type | what |
//! |---|---|---|
//! | `path.weight` | F32 | weights in single precision, or |
//! | `path.codes` | U8 `[rows, bytes of a row]` | indices of the codes of weights, see [`PackedCodes`], or |
//! | `path.codes.zlib` | U8 | the same bytes in zlib's format ([RFC 1950](https://www.rfc-editor.org/rfc/rfc1950)), where these are fewer, and |
//! | `path.units` | F32 | what the parts of a unit of these are worth, for all or for each output channel |
//! | `path.bias` | F32 | offsets |
//! | `path.input` | F32 | the quantizer of the input: what a unit of its codes is worth, then the thresholds |
//! | `path.norm` | F32 `[3, channels]` | of a normalization: means, factors and offsets |
//! | `path.scale` | F32 `[1]` | a learned factor |
//!
//! # What a file may ask for
//! Bytes in zlib's format become at most [`MOST_EXPANSION`] times as many, and all other tensors are taken as they are: the numbers and codes
//! of a network that is read have at most [`MOST_EXPANSION`] times the bytes of its file.

use std::collections::{BTreeMap, HashMap};

use lowbit_core::graph::{Graph, Node, Op};
use lowbit_core::{BitWidth, CodeSet, IntegerGrid, PackedCodes, PackedCodesError};
use miniz_oxide::deflate::core::{
    CompressionStrategy, CompressorOxide, TDEFLFlush, TDEFLStatus, compress,
    create_comp_flags_from_zip_params,
};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_PARSE_ZLIB_HEADER, TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF,
};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::PackedError;
use crate::packed::{Info, Layer, Norm, PackedNetwork, Quantizer, Weight, weight_shape};

/// The entry of the metadata: the only one, as those of a map have no order.
const ENTRY: &str = "lowbit-packed";

/// Version of the layout. 2 has fewer numbers of a normalization than 1, and compressed codes.
pub(crate) const VERSION: u32 = 2;

/// Most bytes that a byte in zlib's format becomes. What is written keeps to it, as each byte has a code of Huffman's of at least one bit.
const MOST_EXPANSION: usize = 8;

/// What is read of an entry before all else.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// What the metadata says of a network.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    version: u32,
    graph: Graph,
    /// All that its layers have, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    grids: Vec<Grid>,
    /// Of layers that are quantized.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    layers: BTreeMap<String, Grids>,
    info: Info,
}

/// Places of a layer's grids in the list of all.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Grids {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    input: Option<usize>,
}

/// A grid without its units.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Grid {
    codes: CodeSet,
    zero_point: i32,
    parts: u32,
}

impl Grid {
    fn of(grid: &IntegerGrid) -> Self {
        Self { codes: grid.codes().clone(), zero_point: grid.zero_point(), parts: grid.parts() }
    }

    fn with_units(self, units: Vec<f32>) -> Result<IntegerGrid, String> {
        let Self { codes, zero_point, parts } = self;
        let grid = IntegerGrid::new(codes, units, parts).and_then(|grid| grid.with_zero_point(zero_point));
        grid.map_err(|error| error.to_string())
    }
}

/// A tensor to be written.
struct Tensor<'a> {
    path: &'a str,
    name: &'static str,
    part: Part,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

/// What a tensor is to a layer.
#[derive(Clone, Copy)]
enum Part {
    Weights,
    Scales,
    Biases,
    Norms,
}

/// What is written of a network.
#[derive(Default)]
struct Written<'a> {
    grids: Vec<Grid>,
    layers: BTreeMap<String, Grids>,
    tensors: Vec<Tensor<'a>>,
}

impl<'a> Written<'a> {
    fn of(network: &'a PackedNetwork) -> Self {
        let mut written = Self::default();
        for node in network.graph.nodes() {
            let path = node.path.as_str();
            if let Some(layer) = network.layers.get(path) {
                written.layer(path, layer, weight_shape(node));
            }
            if let Some(Norm { mean, factor, offset }) = network.norms.get(path) {
                let numbers = [&mean[..], factor, offset].concat();
                written.floats(path, "norm", Part::Norms, &numbers, vec![3, mean.len()]);
            }
            if let Some(scale) = network.scales.get(path) {
                written.floats(path, "scale", Part::Scales, &[*scale], vec![1]);
            }
        }
        written
    }

    fn layer(&mut self, path: &'a str, layer: &Layer, shape: Vec<usize>) {
        let mut grids = Grids::default();
        match &layer.weight {
            Weight::Full(values) => self.floats(path, "weight", Part::Weights, values, shape),
            Weight::Codes(grid, codes) => {
                grids.weight = Some(self.grid(grid));
                let bytes = codes.bytes();
                let (name, shape, bytes) = match compressed(bytes) {
                    Some(fewer) => ("codes.zlib", vec![fewer.len()], fewer),
                    None => ("codes", vec![shape[0], bytes.len() / shape[0]], bytes.to_vec()),
                };
                self.tensors.push(Tensor { path, name, part: Part::Weights, dtype: Dtype::U8, shape, bytes });
                self.vector(path, "units", Part::Scales, grid.units());
            }
        }
        if let Some(bias) = &layer.bias {
            self.vector(path, "bias", Part::Biases, bias);
        }
        if let Some(Quantizer { grid, thresholds }) = &layer.input {
            grids.input = Some(self.grid(grid));
            self.vector(path, "input", Part::Scales, &[grid.units(), thresholds].concat());
        }
        if grids.weight.is_some() || grids.input.is_some() {
            self.layers.insert(path.into(), grids);
        }
    }

    /// The place of a grid in the list of all.
    fn grid(&mut self, grid: &IntegerGrid) -> usize {
        let grid = Grid::of(grid);
        let known = self.grids.iter().position(|other| *other == grid);
        known.unwrap_or_else(|| {
            self.grids.push(grid);
            self.grids.len() - 1
        })
    }

    fn vector(&mut self, path: &'a str, name: &'static str, part: Part, values: &[f32]) {
        self.floats(path, name, part, values, vec![values.len()]);
    }

    fn floats(&mut self, path: &'a str, name: &'static str, part: Part, values: &[f32], shape: Vec<usize>) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.tensors.push(Tensor { path, name, part, dtype: Dtype::F32, shape, bytes });
    }
}

/// The bytes in zlib's format, if these are fewer: each has a code of Huffman's, the shorter the more often there is such a byte. Repetitions,
/// which codes of weights do not have, are not looked for.
fn compressed(bytes: &[u8]) -> Option<Vec<u8>> {
    let (level, window_bits) = (6, 15);
    let flags =
        create_comp_flags_from_zip_params(level, window_bits, CompressionStrategy::HuffmanOnly as i32);
    let mut compressor = CompressorOxide::new(flags);
    let mut fewer = vec![0; bytes.len()];
    let (status, _, n) = compress(&mut compressor, bytes, &mut fewer, TDEFLFlush::Finish);
    fewer.truncate(n);
    // Otherwise there was no room for all.
    let is_whole = status == TDEFLStatus::Done;
    (is_whole && n < bytes.len() && bytes.len() <= n * MOST_EXPANSION).then_some(fewer)
}

/// The `n` bytes of these in zlib's format.
fn decompressed(bytes: &[u8], n: usize) -> Result<Vec<u8>, String> {
    if n > bytes.len().saturating_mul(MOST_EXPANSION) {
        return Err(format!(
            "its codes have {n} bytes, expected at most {MOST_EXPANSION} times those of \"codes.zlib\", {}",
            bytes.len()
        ));
    }
    let mut out = vec![0; n];
    let flags = TINFL_FLAG_PARSE_ZLIB_HEADER | TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let (status, n_read, n_written) = decompress(&mut DecompressorOxide::new(), bytes, &mut out, 0, flags);
    match status {
        TINFLStatus::Done if n_written == n && n_read == bytes.len() => Ok(out),
        TINFLStatus::Done | TINFLStatus::HasMoreOutput => {
            Err(format!("its tensor \"codes.zlib\" has other than the {n} bytes of its codes"))
        }
        _ => Err("its tensor \"codes.zlib\" is damaged".into()),
    }
}

/// How many bytes of a file a layer takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerBytes {
    /// Path of the layer, of the normalization or of the learned factor.
    pub path: String,
    /// Weights or their codes.
    pub weights: usize,
    /// What codes are worth, thresholds of the quantizer of the input, and learned factors.
    pub scales: usize,
    /// Offsets.
    pub biases: usize,
    /// Numbers of a normalization.
    pub norms: usize,
}

impl LayerBytes {
    /// All of these.
    pub fn total(&self) -> usize {
        self.weights + self.scales + self.biases + self.norms
    }
}

impl PackedNetwork {
    /// The bytes of a packed file. Equal networks have equal ones.
    ///
    /// # Errors
    /// [`PackedError`] if something is missing or has another size, see [`check`](Self::check).
    pub fn to_bytes(&self) -> Result<Vec<u8>, PackedError> {
        self.check()?;
        let Written { grids, layers, tensors } = Written::of(self);
        let header =
            Header { version: VERSION, graph: self.graph.clone(), grids, layers, info: self.info.clone() };
        let other = |error: &dyn std::fmt::Display| PackedError::Other(error.to_string());
        let entry = serde_json::to_string(&header).map_err(|error| other(&error))?;
        let views = tensors.iter().map(|Tensor { path, name, dtype, shape, bytes, .. }| {
            let view = TensorView::new(*dtype, shape.clone(), bytes);
            (format!("{path}.{name}"), view.expect("invariant: a tensor has the bytes of its shape"))
        });
        let metadata = HashMap::from([(ENTRY.to_string(), entry)]);
        safetensors::serialize(views, Some(metadata)).map_err(|error| other(&error))
    }

    /// What each layer, normalization and learned factor takes of the bytes of a packed file, in the order of the graph. The rest is the
    /// description.
    ///
    /// # Errors
    /// As [`to_bytes`](Self::to_bytes).
    pub fn layer_bytes(&self) -> Result<Vec<LayerBytes>, PackedError> {
        self.check()?;
        let mut layers: Vec<LayerBytes> = Vec::new();
        for Tensor { path, part, bytes, .. } in Written::of(self).tensors {
            // Tensors of a path follow each other.
            let mut layer = layers.pop_if(|layer| layer.path == path).unwrap_or_default();
            let sum = match part {
                Part::Weights => &mut layer.weights,
                Part::Scales => &mut layer.scales,
                Part::Biases => &mut layer.biases,
                Part::Norms => &mut layer.norms,
            };
            *sum += bytes.len();
            layers.push(LayerBytes { path: path.into(), ..layer });
        }
        Ok(layers)
    }

    /// The network in the bytes of a packed file, which may be of any origin: all of it is checked.
    ///
    /// # Errors
    /// [`PackedError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PackedError> {
        let (_, metadata) =
            SafeTensors::read_metadata(bytes).map_err(|error| not_safetensors(bytes, &error))?;
        let tensors = SafeTensors::deserialize(bytes).map_err(|error| not_safetensors(bytes, &error))?;
        let entry = metadata.metadata().as_ref().and_then(|metadata| metadata.get(ENTRY));
        let entry = entry.ok_or_else(|| PackedError::OtherKind("safetensors of other contents".into()))?;
        let wrong = |error: serde_json::Error| PackedError::Other(format!("its description: {error}"));
        let Versioned { version } = serde_json::from_str(entry).map_err(wrong)?;
        if version != VERSION {
            return Err(PackedError::Version { got: version });
        }
        let header: Header = serde_json::from_str(entry).map_err(wrong)?;
        Self::of(header, &Parts { tensors })
    }

    fn of(header: Header, parts: &Parts<'_>) -> Result<Self, PackedError> {
        let (mut layers, mut norms, mut scales) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (mut n_tensors, mut n_quantized) = (0, 0);
        for node in header.graph.nodes() {
            let path = node.path.clone();
            let wrong = |problem: String| PackedError::Layer { path: path.clone(), problem };
            match node.op {
                Op::Conv(_) | Op::Linear(_) => {
                    let (layer, n) = Layer::read(node, &header, parts).map_err(wrong)?;
                    n_tensors += n;
                    n_quantized += usize::from(header.layers.contains_key(&path));
                    layers.insert(path, layer);
                }
                Op::Norm { channels } => {
                    let numbers = parts.floats(&path, "norm", Some(&[3, channels])).map_err(wrong)?;
                    let [mean, factor, offset] =
                        [0, 1, 2].map(|row| numbers[row * channels..(row + 1) * channels].to_vec());
                    n_tensors += 1;
                    norms.insert(path, Norm { mean, factor, offset });
                }
                Op::Scale => {
                    let scale = parts.floats(&path, "scale", Some(&[1])).map_err(wrong)?;
                    n_tensors += 1;
                    scales.insert(path, scale[0]);
                }
                _ => {}
            }
        }
        if n_quantized != header.layers.len() {
            let is_unknown = |path: &&String| !layers.contains_key(*path);
            let path = header.layers.keys().find(is_unknown).cloned().unwrap_or_default();
            return Err(PackedError::Layer { path, problem: "its graph has no such layer".into() });
        }
        if parts.tensors.len() != n_tensors {
            let got = parts.tensors.len();
            return Err(PackedError::Other(format!("it has {got} tensors, its network {n_tensors}")));
        }
        let network = Self { graph: header.graph, layers, norms, scales, info: header.info };
        network.check()?;
        Ok(network)
    }
}

fn not_safetensors(bytes: &[u8], error: &dyn std::fmt::Display) -> PackedError {
    match bytes.get(8) {
        Some(b'{') => PackedError::Other(format!("it is damaged: {error}")),
        _ if bytes.is_empty() => PackedError::OtherKind("an empty file".into()),
        _ => PackedError::OtherKind("of another kind".into()),
    }
}

impl Layer {
    /// The layer at `node`, and how many tensors it has.
    fn read(node: &Node, header: &Header, parts: &Parts<'_>) -> Result<(Self, usize), String> {
        let (path, shape) = (&node.path, weight_shape(node));
        let Grids { weight, input } = header.layers.get(path).copied().unwrap_or_default();
        let grid = |place: usize| {
            let grid = header.grids.get(place).cloned();
            grid.ok_or_else(|| format!("its grid is number {place} of {}", header.grids.len()))
        };
        let (weight, mut n_tensors) = match weight {
            None => (Weight::Full(parts.floats(path, "weight", Some(&shape))?), 1),
            Some(place) => {
                let grid = grid(place)?.with_units(parts.floats(path, "units", None)?)?;
                let codes = parts.codes(path, grid.bits(), &shape)?;
                (Weight::Codes(grid, codes), 2)
            }
        };
        let has_bias = match &node.op {
            Op::Conv(conv) => conv.bias,
            Op::Linear(linear) => linear.bias,
            _ => false,
        };
        let bias = has_bias.then(|| parts.floats(path, "bias", None)).transpose()?;
        n_tensors += usize::from(has_bias);
        let input = match input {
            None => None,
            Some(place) => {
                n_tensors += 1;
                let numbers = parts.floats(path, "input", None)?;
                let (unit, thresholds) =
                    numbers.split_first().ok_or("its tensor \"input\" has no numbers")?;
                let grid = grid(place)?.with_units(vec![*unit])?;
                Some(Quantizer { grid, thresholds: thresholds.to_vec() })
            }
        };
        Ok((Self { weight, bias, input }, n_tensors))
    }
}

/// The tensors of a file.
struct Parts<'a> {
    tensors: SafeTensors<'a>,
}

impl<'a> Parts<'a> {
    fn view(&self, path: &str, name: &str, dtype: Dtype) -> Result<TensorView<'a>, String> {
        let view = self
            .tensors
            .tensor(&format!("{path}.{name}"))
            .map_err(|_| format!("it has no tensor {name:?}"))?;
        match view.dtype() == dtype {
            true => Ok(view),
            false => Err(format!("its tensor {name:?} has type {:?}, expected {dtype:?}", view.dtype())),
        }
    }

    /// The codes of weights, as they are or compressed.
    fn codes(&self, path: &str, bits: BitWidth, shape: &[usize]) -> Result<PackedCodes, String> {
        let wrong = |error: PackedCodesError| error.to_string();
        let is_compressed = self.tensors.tensor(&format!("{path}.codes.zlib")).is_ok();
        let bytes = match is_compressed {
            true => {
                let n = PackedCodes::n_bytes(bits, shape).map_err(wrong)?;
                decompressed(self.bytes(path, "codes.zlib")?, n)?
            }
            false => self.bytes(path, "codes")?.to_vec(),
        };
        PackedCodes::from_bytes(bytes, bits, shape).map_err(wrong)
    }

    fn bytes(&self, path: &str, name: &str) -> Result<&'a [u8], String> {
        Ok(self.view(path, name, Dtype::U8)?.data())
    }

    /// Numbers of any shape, or of this one.
    fn floats(&self, path: &str, name: &str, shape: Option<&[usize]>) -> Result<Vec<f32>, String> {
        let view = self.view(path, name, Dtype::F32)?;
        if let Some(shape) = shape.filter(|shape| *shape != view.shape()) {
            return Err(format!("its tensor {name:?} has the shape {:?}, expected {shape:?}", view.shape()));
        }
        Ok(view.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }
}

#[cfg(test)]
mod tests;
