//! A network made ready to run.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::time::Instant;

use lowbit_cpu::conv;
use lowbit_cpu::norm::{self, NormShape};
use lowbit_cpu::sum::{self, Summand};
use lowbit_cpu::words::{self, WORD};

use crate::lower::{Kind, Program, Step};
use crate::packed::PackedNetwork;
use crate::{ImagesError, PackedError};

/// Largest file that is read: one of a network with a billion weights of 8 bits, and more.
const MAX_FILE: u64 = 2 << 30;

/// A network that can be run. Several threads may share one.
#[derive(Debug)]
pub struct Model {
    network: PackedNetwork,
    program: Program,
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

/// What a step reads and writes, for a batch.
#[derive(Debug)]
enum Value {
    Floats(Vec<f32>),
    /// See [`lowbit_cpu::words`].
    Codes(Vec<[u8; WORD]>),
}

impl Value {
    fn floats(&self) -> &[f32] {
        match self {
            Self::Floats(values) => values,
            Self::Codes(_) => unreachable!("invariant: the step is of values"),
        }
    }

    fn codes(&self) -> &[[u8; WORD]] {
        match self {
            Self::Codes(codes) => codes,
            Self::Floats(_) => unreachable!("invariant: the step is of codes"),
        }
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
        Ok(Self { network, program })
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
        let mut values: Vec<Option<Value>> = Vec::new();
        values.resize_with(self.program.n_places, || None);
        values[self.program.input] = Some(Value::Floats(images.to_vec()));
        for step in &self.program.steps {
            let start = Instant::now();
            let results = run_step(step, batch, |place| {
                values[place].as_ref().expect("invariant: what is read is written before")
            });
            for result in results.into_iter().flatten() {
                let place = if let Value::Floats(_) = result { step.values } else { step.codes };
                values[place.expect("invariant: what a step has is asked for")] = Some(result);
            }
            step.last_reads.iter().for_each(|&place| values[place] = None);
            after(step, start.elapsed().as_secs_f64());
        }
        match values[self.program.output].take() {
            Some(Value::Floats(logits)) => logits,
            _ => unreachable!("invariant: the output is of values"),
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

/// The values of a step's result, its codes, or both.
fn run_step<'a>(step: &Step, batch: usize, read: impl Fn(usize) -> &'a Value) -> [Option<Value>; 2] {
    let input = read(step.inputs[0]);
    let result = match &step.kind {
        Kind::Sum(sum) => {
            let summands = step.inputs.iter().zip(&sum.affines).map(|(place, affines)| Summand {
                values: read(*place).floats(),
                affines: affines.as_deref(),
            });
            let summands: Vec<_> = summands.collect();
            let shape = NormShape { batch, channels: sum.channels, plane: sum.plane };
            let (clamp, levels) = (sum.clamp, sum.levels.as_ref());
            let sum = sum::Sum { shape, summands: &summands, clamp, levels };
            match (step.values, step.codes) {
                (Some(_), Some(_)) => {
                    let (values, codes) = sum.both();
                    return [Some(Value::Floats(values)), Some(Value::Codes(codes))];
                }
                (Some(_), None) => Value::Floats(sum.values()),
                _ => Value::Codes(sum.codes()),
            }
        }
        Kind::Dequantize { values, channels, plane } => {
            let codes = words::split(input.codes(), batch, *channels, *plane);
            Value::Floats(codes.iter().map(|code| values[usize::from(*code)]).collect())
        }
        Kind::ConvCodes { kernel, scale, bias } => {
            let mut out = kernel.forward_words(input.codes(), *scale);
            add_bias(&mut out, bias.as_deref(), batch);
            Value::Floats(out)
        }
        Kind::ConvLevels { kernel, levels } => Value::Codes(kernel.levels(input.codes(), levels)),
        Kind::Conv { shape, weight, bias } => {
            let shape = conv::ConvShape { batch, ..*shape };
            let mut out = conv::forward(&shape, input.floats(), weight);
            add_bias(&mut out, bias.as_deref(), batch);
            Value::Floats(out)
        }
        Kind::Scale(scale) => Value::Floats(input.floats().iter().map(|x| x * scale).collect()),
        Kind::MaxPool { pool, falls } => match input {
            Value::Floats(values) => Value::Floats(pool.max(values, falls)),
            Value::Codes(codes) => Value::Codes(pool.max_codes(codes)),
        },
        Kind::Flatten { channels, plane } => {
            let codes = words::split(input.codes(), batch, *channels, *plane);
            Value::Codes(words::join(&codes, batch, channels * plane, 1))
        }
        Kind::Means { plane } => {
            let channels = input.floats().len() / plane;
            let shape = NormShape { batch: 1, channels, plane: *plane };
            let mut statistics = norm::statistics(shape, input.floats());
            statistics.truncate(channels);
            Value::Floats(statistics)
        }
    };
    [Some(result), None]
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
