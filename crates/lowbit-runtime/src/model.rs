//! A network made ready to run.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use lowbit_cpu::conv;
use lowbit_cpu::norm::{self, NormShape};
use lowbit_cpu::sum::{self, Summand};
use lowbit_cpu::words::{self, WORD};

use crate::lower::{Kind, Place, Program, Step};
use crate::packed::PackedNetwork;
use crate::{ImagesError, PackedError};

/// Largest file that is read: one of a network with a billion weights of 8 bits, and more.
const MAX_FILE: u64 = 2 << 30;

/// A network that can be run. Several threads may share one.
///
/// It keeps the memory of the largest batch that it has run, for each thread that ran one at the same time: an image needs no new
/// memory, but for its logits and for layers in full precision.
#[derive(Debug)]
pub struct Model {
    network: PackedNetwork,
    program: Program,
    /// Those that no thread uses at the time: as many as have run at the same time.
    workspaces: Mutex<Vec<Workspace>>,
}

/// How many layers of a model are computed how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerCounts {
    /// By sums of integers.
    pub integer: usize,
    /// Of these, those whose sums become codes at once.
    pub fused: usize,
    /// By sums of numbers in single precision.
    pub float: usize,
}

/// How long an operation took.
#[derive(Clone, Debug, PartialEq)]
pub struct OperationTime {
    /// Path of its layer; empty if it is of none.
    pub path: String,
    /// What it does.
    pub operation: &'static str,
    /// Seconds.
    pub seconds: f64,
}

/// Memory that the steps of a program read and write. It grows with the first batch, and serves the next ones.
#[derive(Debug)]
struct Workspace {
    values: Vec<Vec<f32>>,
    /// See [`lowbit_cpu::words`].
    codes: Vec<Vec<[u8; WORD]>>,
    /// Codes one by one.
    bytes: Vec<u8>,
}

/// What a step reads.
struct Inputs<'a> {
    program: &'a Program,
    images: &'a [f32],
    values: &'a [Vec<f32>],
    codes: &'a [Vec<[u8; WORD]>],
}

impl Inputs<'_> {
    fn values(&self, place: Place) -> &[f32] {
        match place == self.program.input {
            true => self.images,
            false => &self.values[self.program.buffers[place]],
        }
    }

    fn codes(&self, place: Place) -> &[[u8; WORD]] {
        &self.codes[self.program.buffers[place]]
    }
}

impl Model {
    /// Reads a packed file.
    ///
    /// # Errors
    /// [`PackedError`] if it cannot be read, or is no packed network.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, PackedError> {
        let path = path.as_ref();
        let unreadable = |source| PackedError::Unreadable { path: path.into(), source };
        // Before it is opened: the end of a pipe may never come.
        if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
            return Err(PackedError::OtherKind("no regular file".into()));
        }
        let file = File::open(path).map_err(unreadable)?;
        let n_bytes = file.metadata().map_err(unreadable)?.len();
        if n_bytes > MAX_FILE {
            return Err(PackedError::TooManyBytes { n_bytes, most: MAX_FILE });
        }
        let mut bytes = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut bytes).map_err(unreadable)?;
        Self::from_bytes(&bytes)
    }

    /// Reads the bytes of a packed file, which may be of any origin.
    ///
    /// # Errors
    /// [`PackedError`] if they are no packed network.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, PackedError> {
        Self::ready(PackedNetwork::from_bytes(bytes)?)
    }

    /// Makes a network ready to run.
    ///
    /// # Errors
    /// [`PackedError`] if something is missing or has another size.
    pub fn new(network: PackedNetwork) -> Result<Self, PackedError> {
        network.check()?;
        Self::ready(network)
    }

    fn ready(network: PackedNetwork) -> Result<Self, PackedError> {
        let program = Program::new(&network)?;
        Ok(Self { network, program, workspaces: Mutex::new(Vec::new()) })
    }

    /// The network.
    pub fn network(&self) -> &PackedNetwork {
        &self.network
    }

    /// Shape of an image, `[channels, height, width]`.
    pub fn input_shape(&self) -> [usize; 3] {
        self.network.input_shape()
    }

    /// Number of outputs: of classes.
    pub fn n_outputs(&self) -> usize {
        self.network.n_outputs()
    }

    /// The logits of a batch of images, `[batch, outputs]`. `images` are their normalized pixels, `[batch, channels, height, width]`.
    ///
    /// What an image yields does not depend on the others, nor on the number of threads.
    ///
    /// # Errors
    /// [`ImagesError`] if the values are no whole number of images, or one is not finite.
    pub fn run(&self, images: &[f32]) -> Result<Vec<f32>, ImagesError> {
        let batch = self.n_images(images)?;
        Ok(self.execute(images, batch, |_, _| ()))
    }

    fn n_images(&self, images: &[f32]) -> Result<usize, ImagesError> {
        let expected: usize = self.input_shape().iter().product();
        if !images.len().is_multiple_of(expected) {
            return Err(ImagesError::Length { got: images.len(), expected });
        }
        match images.iter().position(|value| !value.is_finite()) {
            Some(place) => Err(ImagesError::NotFinite { place, got: images[place] }),
            None => Ok(images.len() / expected),
        }
    }

    /// [`run`](Self::run), and how long each operation took, in order.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_timed(&self, images: &[f32]) -> Result<(Vec<f32>, Vec<OperationTime>), ImagesError> {
        let batch = self.n_images(images)?;
        let mut times = Vec::with_capacity(self.program.steps.len());
        let logits = self.execute(images, batch, |step, seconds| {
            let path = self.network.graph.nodes()[step.node].path.clone();
            times.push(OperationTime { path, operation: step.kind.name(), seconds });
        });
        Ok((logits, times))
    }

    /// Runs all steps, and tells after each how long it took.
    fn execute(&self, images: &[f32], batch: usize, mut after: impl FnMut(&Step, f64)) -> Vec<f32> {
        if batch == 0 {
            return Vec::new();
        }
        let [n_values, n_codes] = self.program.n_buffers;
        let workspaces = || self.workspaces.lock().unwrap_or_else(PoisonError::into_inner);
        let free = workspaces().pop();
        let mut workspace = free.unwrap_or_else(|| Workspace {
            values: vec![Vec::new(); n_values],
            codes: vec![Vec::new(); n_codes],
            bytes: Vec::new(),
        });
        for step in &self.program.steps {
            let start = Instant::now();
            self.run_step(step, images, batch, &mut workspace);
            after(step, start.elapsed().as_secs_f64());
        }
        let output = self.program.output;
        let logits = match output == self.program.input {
            true => images.to_vec(),
            false => workspace.values[self.program.buffers[output]].clone(),
        };
        workspaces().push(workspace);
        logits
    }

    /// Writes the result of a step.
    fn run_step(&self, step: &Step, images: &[f32], batch: usize, workspace: &mut Workspace) {
        let Workspace { values, codes, bytes } = workspace;
        let buffers = &self.program.buffers;
        // Taken out for as long as it is written: the others are read.
        let mut out_values = step.values.map(|place| std::mem::take(&mut values[buffers[place]]));
        let mut out_codes = step.codes.map(|place| std::mem::take(&mut codes[buffers[place]]));
        let inputs = Inputs { program: &self.program, images, values, codes };
        write(step, batch, &inputs, out_values.as_mut(), out_codes.as_mut(), bytes);
        if let (Some(place), Some(out)) = (step.values, out_values) {
            values[buffers[place]] = out;
        }
        if let (Some(place), Some(out)) = (step.codes, out_codes) {
            codes[buffers[place]] = out;
        }
    }

    /// How its layers are computed.
    pub fn layer_counts(&self) -> LayerCounts {
        let count = |is: fn(&Kind) -> bool| self.program.steps.iter().filter(|step| is(&step.kind)).count();
        let fused = count(|kind| matches!(kind, Kind::ConvLevels { .. }));
        LayerCounts {
            integer: fused + count(|kind| matches!(kind, Kind::ConvCodes { .. })),
            fused,
            float: count(|kind| matches!(kind, Kind::Conv { .. })),
        }
    }
}

/// Writes the values of a step's result, its codes, or both.
fn write(
    step: &Step,
    batch: usize,
    inputs: &Inputs<'_>,
    values: Option<&mut Vec<f32>>,
    codes: Option<&mut Vec<[u8; WORD]>>,
    bytes: &mut Vec<u8>,
) {
    let input = step.inputs[0];
    match (&step.kind, values, codes) {
        (Kind::Sum(sum), values, codes) => {
            let summand = |i: usize| Summand {
                values: inputs.values(step.inputs[i]),
                affines: sum.affines[i].as_deref(),
            };
            let (one, two, more);
            let summands: &[Summand<'_>] = match step.inputs.len() {
                1 => {
                    one = [summand(0)];
                    &one
                }
                2 => {
                    two = [summand(0), summand(1)];
                    &two
                }
                n => {
                    more = (0..n).map(summand).collect::<Vec<_>>();
                    &more
                }
            };
            let shape = NormShape { batch, channels: sum.channels, plane: sum.plane };
            let sum = sum::Sum { shape, summands, clamp: sum.clamp, levels: sum.levels.as_ref() };
            match (values, codes) {
                (Some(values), Some(codes)) => sum.both(values, codes),
                (Some(values), None) => sum.values(values),
                (None, Some(codes)) => sum.codes(codes),
                (None, None) => {}
            }
        }
        (Kind::Dequantize { values: worths, channels, plane }, Some(values), _) => {
            words::split(inputs.codes(input), batch, *channels, *plane, bytes);
            values.clear();
            values.extend(bytes.iter().map(|code| worths[usize::from(*code)]));
        }
        (Kind::ConvCodes { kernel, worths, bias }, Some(values), _) => {
            kernel.forward_words(inputs.codes(input), worths, values);
            add_bias(values, bias.as_deref(), batch);
        }
        (Kind::ConvLevels { kernel, levels }, _, Some(codes)) => {
            kernel.levels(inputs.codes(input), levels, codes);
        }
        (Kind::Conv { shape, weight, bias }, Some(values), _) => {
            let shape = conv::ConvShape { batch, ..*shape };
            let weight = conv::Weights::Values(weight);
            conv::forward_into(&shape, inputs.values(input), weight, conv::Precision::Single, values);
            add_bias(values, bias.as_deref(), batch);
        }
        (Kind::Scale(scale), Some(values), _) => {
            values.clear();
            values.extend(inputs.values(input).iter().map(|x| x * scale));
        }
        (Kind::MaxPool { pool, falls }, Some(values), _) => pool.max(inputs.values(input), falls, values),
        (Kind::MaxPool { pool, .. }, None, Some(codes)) => pool.max_codes(inputs.codes(input), codes),
        (Kind::Flatten { channels, plane }, _, Some(codes)) => {
            words::split(inputs.codes(input), batch, *channels, *plane, bytes);
            words::join(bytes, batch, channels * plane, 1, codes);
        }
        (Kind::Means { plane }, Some(values), _) => {
            let x = inputs.values(input);
            norm::means(NormShape { batch: 1, channels: x.len() / plane, plane: *plane }, x, values);
        }
        _ => unreachable!("invariant: a step has what its kind yields"),
    }
}

/// Adds an offset to each channel of `out`, `[batch, channels, plane]`.
fn add_bias(out: &mut [f32], bias: Option<&[f32]>, batch: usize) {
    let Some(bias) = bias else { return };
    let plane = out.len() / (batch * bias.len());
    for (values, bias) in out.chunks_exact_mut(plane).zip(bias.iter().cycle()) {
        values.iter_mut().for_each(|value| *value += bias);
    }
}

#[cfg(test)]
mod tests;
