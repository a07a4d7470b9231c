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
//! | `path.codes` | U8 `[rows, bytes of a row]` | indices of the codes of weights, see [`PackedCodes`], and |
//! | `path.units` | F32 | what the parts of a unit of these are worth, for all or for each output channel |
//! | `path.bias` | F32 | offsets |
//! | `path.input.unit`, `path.input.thresholds` | F32 | the quantizer of the input |
//! | `path.gamma`, `.beta`, `.mean`, `.variance` | F32 | of a normalization |
//! | `path.scale` | F32 | a learned factor |

use std::collections::{BTreeMap, HashMap};

use lowbit_core::graph::{Graph, Node, Op};
use lowbit_core::{CodeSet, IntegerGrid, PackedCodes};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use crate::PackedError;
use crate::packed::{Info, Layer, Norm, PackedNetwork, Quantizer, Weight, weight_shape};

/// The entry of the metadata: the only one, as those of a map have no order.
const ENTRY: &str = "lowbit-packed";

/// Version of the layout.
const VERSION: u32 = 1;

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
    /// Of layers that are quantized.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    grids: BTreeMap<String, Grids>,
    /// What is added to the variances of each normalization.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    epsilons: BTreeMap<String, f32>,
    info: Info,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Grids {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    weight: Option<Grid>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    input: Option<Grid>,
}

/// A grid without its units.
#[derive(Serialize, Deserialize)]
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

/// Tensors to be written.
#[derive(Default)]
struct Tensors(Vec<(String, Dtype, Vec<usize>, Vec<u8>)>);

impl Tensors {
    fn floats(&mut self, path: &str, name: &str, values: &[f32], shape: Vec<usize>) {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.0.push((format!("{path}.{name}"), Dtype::F32, shape, bytes));
    }

    fn vector(&mut self, path: &str, name: &str, values: &[f32]) {
        self.floats(path, name, values, vec![values.len()]);
    }
}

impl PackedNetwork {
    /// The bytes of a packed file. Equal networks have equal ones.
    ///
    /// # Errors
    /// [`PackedError`] if something is missing or has another size, see [`check`](Self::check).
    pub fn to_bytes(&self) -> Result<Vec<u8>, PackedError> {
        self.check()?;
        let mut tensors = Tensors::default();
        let mut header = Header {
            version: VERSION,
            graph: self.graph.clone(),
            grids: BTreeMap::new(),
            epsilons: BTreeMap::new(),
            info: self.info.clone(),
        };
        for node in self.graph.nodes() {
            let path = &node.path;
            if let Some(layer) = self.layers.get(path) {
                let grids = layer.write(path, weight_shape(node), &mut tensors);
                if grids.weight.is_some() || grids.input.is_some() {
                    header.grids.insert(path.clone(), grids);
                }
            }
            if let Some(Norm { gamma, beta, mean, variance, epsilon }) = self.norms.get(path) {
                for (name, values) in
                    [("gamma", gamma), ("beta", beta), ("mean", mean), ("variance", variance)]
                {
                    tensors.vector(path, name, values);
                }
                header.epsilons.insert(path.clone(), *epsilon);
            }
            if let Some(scale) = self.scales.get(path) {
                tensors.vector(path, "scale", &[*scale]);
            }
        }
        let other = |error: &dyn std::fmt::Display| PackedError::Other(error.to_string());
        let entry = serde_json::to_string(&header).map_err(|error| other(&error))?;
        let views = tensors.0.iter().map(|(name, dtype, shape, bytes)| {
            let view = TensorView::new(*dtype, shape.clone(), bytes);
            (name, view.expect("invariant: a tensor has the bytes of its shape"))
        });
        let metadata = HashMap::from([(ENTRY.to_string(), entry)]);
        safetensors::serialize(views, Some(metadata)).map_err(|error| other(&error))
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

    fn of(mut header: Header, parts: &Parts<'_>) -> Result<Self, PackedError> {
        let (mut layers, mut norms, mut scales) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut n_tensors = 0;
        for node in header.graph.nodes() {
            let path = node.path.clone();
            let wrong = |problem: String| PackedError::Layer { path: path.clone(), problem };
            match node.op {
                Op::Conv(_) | Op::Linear(_) => {
                    let grids = header.grids.remove(&path).unwrap_or(Grids { weight: None, input: None });
                    let (layer, n) = Layer::read(node, grids, parts).map_err(wrong)?;
                    n_tensors += n;
                    layers.insert(path.clone(), layer);
                }
                Op::Norm { .. } => {
                    let epsilon =
                        header.epsilons.remove(&path).ok_or_else(|| wrong("it has no epsilon".into()))?;
                    let vector = |name| parts.floats(&path, name, None).map_err(wrong);
                    let norm = Norm {
                        gamma: vector("gamma")?,
                        beta: vector("beta")?,
                        mean: vector("mean")?,
                        variance: vector("variance")?,
                        epsilon,
                    };
                    n_tensors += 4;
                    norms.insert(path.clone(), norm);
                }
                Op::Scale => {
                    let scale = parts.floats(&path, "scale", Some(&[1])).map_err(wrong)?;
                    n_tensors += 1;
                    scales.insert(path.clone(), scale[0]);
                }
                _ => {}
            }
        }
        if let Some(path) = header.grids.keys().chain(header.epsilons.keys()).next() {
            return Err(PackedError::Layer {
                path: path.clone(),
                problem: "its graph has no such layer".into(),
            });
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
    fn write(&self, path: &str, shape: Vec<usize>, tensors: &mut Tensors) -> Grids {
        let weight = match &self.weight {
            Weight::Full(values) => {
                tensors.floats(path, "weight", values, shape);
                None
            }
            Weight::Codes(grid, codes) => {
                let (rows, bytes) = (shape[0], codes.bytes().to_vec());
                tensors.0.push((format!("{path}.codes"), Dtype::U8, vec![rows, bytes.len() / rows], bytes));
                tensors.vector(path, "units", grid.units());
                Some(Grid::of(grid))
            }
        };
        if let Some(bias) = &self.bias {
            tensors.vector(path, "bias", bias);
        }
        let input = self.input.as_ref().map(|Quantizer { grid, thresholds }| {
            tensors.vector(path, "input.unit", grid.units());
            tensors.vector(path, "input.thresholds", thresholds);
            Grid::of(grid)
        });
        Grids { weight, input }
    }

    /// The layer at `node`, and how many tensors it has.
    fn read(node: &Node, Grids { weight, input }: Grids, parts: &Parts<'_>) -> Result<(Self, usize), String> {
        let (path, shape) = (&node.path, weight_shape(node));
        let (weight, mut n_tensors) = match weight {
            None => (Weight::Full(parts.floats(path, "weight", Some(&shape))?), 1),
            Some(grid) => {
                let grid = grid.with_units(parts.floats(path, "units", None)?)?;
                let bytes = parts.bytes(path, "codes")?;
                let packed = PackedCodes::from_bytes(bytes.to_vec(), grid.bits(), &shape);
                (Weight::Codes(grid, packed.map_err(|error| error.to_string())?), 2)
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
            Some(grid) => {
                n_tensors += 2;
                let grid = grid.with_units(parts.floats(path, "input.unit", None)?)?;
                Some(Quantizer { grid, thresholds: parts.floats(path, "input.thresholds", None)? })
            }
        };
        Ok((Self { weight, bias, input }, n_tensors))
    }
}

/// The tensors of a file.
struct Parts<'a> {
    tensors: SafeTensors<'a>,
}

impl Parts<'_> {
    fn view(&self, path: &str, name: &str, dtype: Dtype) -> Result<TensorView<'_>, String> {
        let view = self
            .tensors
            .tensor(&format!("{path}.{name}"))
            .map_err(|_| format!("it has no tensor {name:?}"))?;
        match view.dtype() == dtype {
            true => Ok(view),
            false => Err(format!("its tensor {name:?} has type {:?}, expected {dtype:?}", view.dtype())),
        }
    }

    fn bytes(&self, path: &str, name: &str) -> Result<&[u8], String> {
        let view = self
            .tensors
            .tensor(&format!("{path}.{name}"))
            .map_err(|_| format!("it has no tensor {name:?}"))?;
        match view.dtype() == Dtype::U8 {
            true => Ok(view.data()),
            false => Err(format!("its tensor {name:?} has type {:?}, expected U8", view.dtype())),
        }
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
