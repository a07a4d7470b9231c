//! Two-dimensional convolution and its gradients.
//!
//! All three are the same computation: an image, padded by zeros, is read at a start (one for each value of the result)
//! plus a step (one for each summand), and multiplied by a panel that holds [`BLOCK`] values for each step. The forward
//! pass starts at pixels and steps over the kernel; the gradient of the input is a convolution of the output's gradient,
//! by the parts of the kernel that meet each of the stride's phases; the gradient of the weights starts at positions of
//! the kernel and steps over pixels.

use std::cell::RefCell;

use rayon::prelude::*;

use super::simd::{self, BLOCK, Sink};

/// Sizes of a convolution without groups and dilation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Images.
    pub batch: usize,
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Height and width of the input.
    pub size: [usize; 2],
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// Step between windows.
    pub stride: [usize; 2],
    /// Zeros on each side.
    pub padding: [usize; 2],
}

impl ConvShape {
    /// Height and width of the output.
    pub fn out_size(&self) -> [usize; 2] {
        std::array::from_fn(|i| (self.size[i] + 2 * self.padding[i] - self.kernel[i]) / self.stride[i] + 1)
    }
    fn in_plane(&self) -> usize {
        self.size[0] * self.size[1]
    }
    fn out_plane(&self) -> usize {
        self.out_size().iter().product()
    }
    fn taps(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }
}

/// An image with zeros around it.
#[derive(Clone, Copy)]
struct Padded {
    channels: usize,
    size: [usize; 2],
    /// Zeros above and to the left.
    before: [usize; 2],
    /// Height and width with the zeros.
    padded: [usize; 2],
}

impl Padded {
    fn plane(&self) -> usize {
        self.padded[0] * self.padded[1]
    }

    fn len(&self) -> usize {
        self.channels * self.plane()
    }

    fn index(&self, channel: usize, y: usize, x: usize) -> u32 {
        (channel * self.plane() + y * self.padded[1] + x) as u32
    }

    /// Copies an image into its place; the zeros around it are there already.
    fn fill(&self, image: &[f32], buffer: &mut [f32]) {
        let [height, width] = self.size;
        for (plane, out) in image.chunks_exact(height * width).zip(buffer.chunks_exact_mut(self.plane())) {
            let rows = out[self.before[0] * self.padded[1]..].chunks_mut(self.padded[1]);
            for (row, out) in plane.chunks_exact(width).zip(rows) {
                out[self.before[1]..self.before[1] + width].copy_from_slice(row);
            }
        }
    }
}

thread_local! {
    static SCRATCH: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// Calls `work` with two buffers of zeros, of lengths `lens`, which are kept for the next call.
fn with_scratch<R>(lens: [usize; 2], work: impl FnOnce(&mut [f32], &mut [f32]) -> R) -> R {
    SCRATCH.with_borrow_mut(|buffers| {
        for (buffer, len) in buffers.iter_mut().zip(lens) {
            buffer.clear();
            buffer.resize(len, 0.0);
        }
        let [a, b] = buffers;
        work(a, b)
    })
}

/// Rows of up to [`BLOCK`] channels: the number of values in the block that begins at channel `first`.
fn lanes(first: usize, channels: usize) -> usize {
    if channels - first > BLOCK / 2 { BLOCK } else { BLOCK / 2 }
}

/// The blocks of `channels`: first channel and number of values.
fn blocks(channels: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..channels).step_by(BLOCK).map(move |first| (first, lanes(first, channels)))
}

/// Writes sums to `out[channel][targets[start]]`.
struct Store<'a> {
    out: &'a mut [f32],
    plane: usize,
    channels: usize,
    targets: &'a [u32],
}

impl Sink for Store<'_> {
    #[inline(always)]
    fn take<const P: usize, const L: usize>(&mut self, first: usize, sums: &[[f32; L]; P]) {
        let targets = &self.targets[first..(first + P).min(self.targets.len())];
        let planes = self.out.chunks_exact_mut(self.plane).take(L.min(self.channels));
        for (v, plane) in planes.enumerate() {
            for (sums, &target) in sums.iter().zip(targets) {
                plane[target as usize] = sums[v];
            }
        }
    }
}

/// Adds sums to `out[start][channel]`, rows of `L`.
struct Add<'a> {
    out: &'a mut [f32],
}

impl Sink for Add<'_> {
    #[inline(always)]
    fn take<const P: usize, const L: usize>(&mut self, first: usize, sums: &[[f32; L]; P]) {
        for (row, sums) in self.out[first * L..].chunks_exact_mut(L).zip(sums) {
            for v in 0..L {
                row[v] += sums[v];
            }
        }
    }
}

/// One of the convolutions of which a pass over an image consists.
struct Pass {
    starts: Vec<u32>,
    targets: Vec<u32>,
    steps: Vec<u32>,
    /// For each block of channels, a row for each step.
    panel: Vec<f32>,
}

impl Pass {
    /// `weight(channel, step)` is the value of the panel.
    fn new(
        starts: Vec<u32>,
        targets: Vec<u32>,
        steps: Vec<u32>,
        channels: usize,
        weight: impl Fn(usize, usize) -> f32,
    ) -> Self {
        let mut panel = Vec::new();
        for (first, lanes) in blocks(channels) {
            for step in 0..steps.len() {
                let row = (first..first + lanes).map(|channel| match channel < channels {
                    true => weight(channel, step),
                    false => 0.0,
                });
                panel.extend(row);
            }
        }
        Self { starts, targets, steps, panel }
    }

    fn run(&self, image: &[f32], out: &mut [f32], channels: usize, plane: usize) {
        let mut panel = self.panel.as_slice();
        for (first, lanes) in blocks(channels) {
            let (block, rest) = panel.split_at(self.steps.len() * lanes);
            panel = rest;
            let out = &mut out[first * plane..];
            let mut store = Store { out, plane, channels: channels - first, targets: &self.targets };
            simd::run(image, &self.starts, &self.steps, block, lanes, &mut store);
        }
    }
}

/// Applies `passes` to every image of `input`.
fn run_passes(
    passes: &[Pass],
    source: Padded,
    input: &[f32],
    channels: usize,
    plane: usize,
    out: &mut [f32],
) {
    let image_len = source.channels * source.size[0] * source.size[1];
    out.par_chunks_mut(channels * plane).zip(input.par_chunks(image_len)).for_each(|(out, image)| {
        with_scratch([source.len(), 0], |padded, _| {
            source.fill(image, padded);
            for pass in passes {
                pass.run(padded, out, channels, plane);
            }
        });
    });
}

fn padded_input(shape: &ConvShape) -> Padded {
    let out = shape.out_size();
    Padded {
        channels: shape.in_channels,
        size: shape.size,
        before: shape.padding,
        padded: std::array::from_fn(|i| {
            let reached = (out[i] - 1) * shape.stride[i] + shape.kernel[i];
            reached.max(shape.size[i] + shape.padding[i])
        }),
    }
}

/// Where the window of every output pixel starts.
fn windows(shape: &ConvShape, source: &Padded) -> Vec<u32> {
    let [height, width] = shape.out_size();
    let start = |(y, x)| source.index(0, y * shape.stride[0], x * shape.stride[1]);
    (0..height).flat_map(|y| (0..width).map(move |x| (y, x))).map(start).collect()
}

/// Positions of a window: every channel at every position of the kernel, in the order of the weights.
fn window_steps(shape: &ConvShape, source: &Padded) -> Vec<u32> {
    let [kernel_height, kernel_width] = shape.kernel;
    (0..shape.in_channels)
        .flat_map(|channel| {
            (0..kernel_height).flat_map(move |y| (0..kernel_width).map(move |x| source.index(channel, y, x)))
        })
        .collect()
}

/// `out[b][o][y][x] = sum over c, i, j of input[b][c][y s + i - p][x s + j - p] weight[o][c][i][j]`.
pub fn forward(shape: &ConvShape, input: &[f32], weight: &[f32], out: &mut [f32]) {
    let source = padded_input(shape);
    let (starts, steps) = (windows(shape, &source), window_steps(shape, &source));
    let targets = (0..starts.len() as u32).collect();
    let n_steps = steps.len();
    let pass = Pass::new(starts, targets, steps, shape.out_channels, |channel, step| {
        weight[channel * n_steps + step]
    });
    run_passes(&[pass], source, input, shape.out_channels, shape.out_plane(), out);
}

/// Gradient of the input.
pub fn input_gradient(shape: &ConvShape, weight: &[f32], out_gradient: &[f32], gradient: &mut [f32]) {
    let [stride_y, stride_x] = shape.stride;
    let [out_height, out_width] = shape.out_size();
    // Output rows that an input row meets through the kernel: from (y + p - k + 1) / s up to (y + p) / s.
    let before: [usize; 2] = std::array::from_fn(|i| (shape.kernel[i] - 1) / shape.stride[i] + 1);
    let source = Padded {
        channels: shape.out_channels,
        size: [out_height, out_width],
        before,
        padded: std::array::from_fn(|i| {
            let reached = (shape.size[i] + shape.padding[i]) / shape.stride[i] + before[i] + 1;
            reached.max(shape.out_size()[i] + before[i])
        }),
    };
    let phases = (0..stride_y).flat_map(|y| (0..stride_x).map(move |x| [y, x]));
    let passes: Vec<Pass> = phases.map(|phase| gradient_phase(shape, &source, weight, phase)).collect();
    run_passes(&passes, source, out_gradient, shape.in_channels, shape.in_plane(), gradient);
}

/// The input pixels whose coordinates plus padding are `phase` modulo the stride.
fn gradient_phase(shape: &ConvShape, source: &Padded, weight: &[f32], phase: [usize; 2]) -> Pass {
    let coordinates = |i: usize| {
        let (padding, stride) = (shape.padding[i], shape.stride[i]);
        (0..shape.size[i]).filter(move |z| (z + padding) % stride == phase[i])
    };
    let mut starts = Vec::new();
    let mut targets = Vec::new();
    for y in coordinates(0) {
        for x in coordinates(1) {
            let at = |z: usize, i: usize| (z + shape.padding[i]) / shape.stride[i];
            starts.push(source.index(0, at(y, 0), at(x, 1)));
            targets.push((y * shape.size[1] + x) as u32);
        }
    }
    // Kernel positions that this phase meets, and how far before the pixel they read.
    let positions = |i: usize| (phase[i]..shape.kernel[i]).step_by(shape.stride[i]);
    let mut steps = Vec::new();
    let mut origins = Vec::new();
    for channel in 0..shape.out_channels {
        for ky in positions(0) {
            for kx in positions(1) {
                let back = |k: usize, i: usize| source.before[i] - (k - phase[i]) / shape.stride[i];
                steps.push(source.index(channel, back(ky, 0), back(kx, 1)));
                origins.push(channel * shape.in_channels * shape.taps() + ky * shape.kernel[1] + kx);
            }
        }
    }
    let taps = shape.taps();
    if steps.is_empty() {
        // A stride larger than the kernel leaves pixels out: their gradient is zero.
        steps.push(0);
        return Pass::new(starts, targets, steps, shape.in_channels, |_, _| 0.0);
    }
    Pass::new(starts, targets, steps, shape.in_channels, |channel, step| {
        weight[origins[step] + channel * taps]
    })
}

/// Values of partial weight gradients that are kept at a time.
const PARTIAL_LEN: usize = 1 << 22;

/// Gradient of the weights.
pub fn weight_gradient(shape: &ConvShape, input: &[f32], out_gradient: &[f32], gradient: &mut [f32]) {
    let source = padded_input(shape);
    let (starts, steps) = (window_steps(shape, &source), windows(shape, &source));
    let (n_starts, n_pixels) = (starts.len(), steps.len());
    let block_starts: Vec<(usize, usize)> = blocks(shape.out_channels).collect();
    let partial_len: usize = block_starts.iter().map(|(_, lanes)| lanes * n_starts).sum();
    // A fixed number of shares of the batch, so that the order of the sum does not depend on the threads.
    let n_shares = (PARTIAL_LEN / partial_len).clamp(2, 16).min(shape.batch);
    let share = shape.batch.div_ceil(n_shares);
    let in_len = shape.in_channels * shape.in_plane();
    let out_len = shape.out_channels * n_pixels;
    let partials: Vec<Vec<f32>> = input
        .par_chunks(share * in_len)
        .zip(out_gradient.par_chunks(share * out_len))
        .map(|(input, out_gradient)| {
            let mut partial = vec![0.0; partial_len];
            with_scratch([source.len(), n_pixels * BLOCK], |padded, panel| {
                for (image, out_gradient) in
                    input.chunks_exact(in_len).zip(out_gradient.chunks_exact(out_len))
                {
                    source.fill(image, padded);
                    let mut rest = partial.as_mut_slice();
                    for &(first, lanes) in &block_starts {
                        let (out, after) = rest.split_at_mut(lanes * n_starts);
                        rest = after;
                        let panel = &mut panel[..n_pixels * lanes];
                        let channels = (first + lanes).min(shape.out_channels) - first;
                        transpose(&out_gradient[first * n_pixels..], n_pixels, channels, lanes, panel);
                        simd::run(padded, &starts, &steps, panel, lanes, &mut Add { out });
                    }
                }
            });
            partial
        })
        .collect();
    let sum = partials.into_iter().reduce(|mut sum, partial| {
        sum.iter_mut().zip(&partial).for_each(|(sum, value)| *sum += value);
        sum
    });
    let sum = sum.unwrap_or_default();
    let mut rest = sum.as_slice();
    for (first, lanes) in block_starts {
        let (block, after) = rest.split_at(lanes * n_starts);
        rest = after;
        for channel in first..(first + lanes).min(shape.out_channels) {
            let row = &mut gradient[channel * n_starts..(channel + 1) * n_starts];
            for (value, start) in row.iter_mut().zip(block.chunks_exact(lanes)) {
                *value = start[channel - first];
            }
        }
    }
}

/// `panel[pixel][channel] = planes[channel][pixel]`, rows of `lanes` with zeros behind.
fn transpose(planes: &[f32], n_pixels: usize, channels: usize, lanes: usize, panel: &mut [f32]) {
    for (pixel, row) in panel.chunks_exact_mut(lanes).enumerate() {
        for (channel, value) in row.iter_mut().enumerate() {
            *value = if channel < channels { planes[channel * n_pixels + pixel] } else { 0.0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(seed: &mut u64, n: usize) -> Vec<f32> {
        (0..n)
            .map(|_| {
                *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                ((*seed >> 40) as f32 / (1 << 24) as f32) * 2.0 - 1.0
            })
            .collect()
    }

    struct Reference {
        out: Vec<f64>,
        input_gradient: Vec<f64>,
        weight_gradient: Vec<f64>,
    }

    fn reference(s: &ConvShape, input: &[f32], weight: &[f32], g: &[f32]) -> Reference {
        let [oh, ow] = s.out_size();
        let mut r = Reference {
            out: vec![0.0; s.batch * s.out_channels * oh * ow],
            input_gradient: vec![0.0; input.len()],
            weight_gradient: vec![0.0; weight.len()],
        };
        for b in 0..s.batch {
            for o in 0..s.out_channels {
                for y in 0..oh {
                    for x in 0..ow {
                        let oi = ((b * s.out_channels + o) * oh + y) * ow + x;
                        for c in 0..s.in_channels {
                            for i in 0..s.kernel[0] {
                                for j in 0..s.kernel[1] {
                                    let (yy, xx) = (y * s.stride[0] + i, x * s.stride[1] + j);
                                    if yy < s.padding[0] || xx < s.padding[1] {
                                        continue;
                                    }
                                    let (yy, xx) = (yy - s.padding[0], xx - s.padding[1]);
                                    if yy >= s.size[0] || xx >= s.size[1] {
                                        continue;
                                    }
                                    let ii = ((b * s.in_channels + c) * s.size[0] + yy) * s.size[1] + xx;
                                    let wi = ((o * s.in_channels + c) * s.kernel[0] + i) * s.kernel[1] + j;
                                    r.out[oi] += f64::from(input[ii]) * f64::from(weight[wi]);
                                    r.input_gradient[ii] += f64::from(g[oi]) * f64::from(weight[wi]);
                                    r.weight_gradient[wi] += f64::from(g[oi]) * f64::from(input[ii]);
                                }
                            }
                        }
                    }
                }
            }
        }
        r
    }

    fn close(what: &str, got: &[f32], expected: &[f64], terms: usize) {
        let tolerance = 1e-7 * (terms as f64).sqrt().max(1.0) * 8.0;
        for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
            assert!(
                (f64::from(*got) - expected).abs() <= tolerance * expected.abs().max(1.0),
                "{what} {i}: {got} {expected}"
            );
        }
    }

    #[test]
    fn equals_the_reference() {
        let mut seed = 1;
        let mut n = 0;
        for [in_channels, out_channels] in [[1, 1], [3, 16], [16, 8], [5, 24], [17, 33], [2, 40]] {
            for size in [[1, 1], [2, 3], [5, 4], [8, 8], [7, 9]] {
                for kernel in [[1, 1], [3, 3], [5, 5], [3, 1], [7, 7], [2, 2]] {
                    for stride in [[1, 1], [2, 2], [4, 4], [1, 2], [3, 3]] {
                        for padding in [[0, 0], [1, 1], [kernel[0] / 2, kernel[1] / 2], [3, 2]] {
                            if (0..2).any(|i| size[i] + 2 * padding[i] < kernel[i]) {
                                continue;
                            }
                            let batch = 1 + n % 3;
                            n += 1;
                            let s =
                                ConvShape { batch, in_channels, out_channels, size, kernel, stride, padding };
                            let input = random(&mut seed, batch * in_channels * s.in_plane());
                            let weight = random(&mut seed, out_channels * in_channels * s.taps());
                            let g = random(&mut seed, batch * out_channels * s.out_plane());
                            let r = reference(&s, &input, &weight, &g);
                            let mut out = vec![f32::NAN; g.len()];
                            forward(&s, &input, &weight, &mut out);
                            close(&format!("{s:?} out"), &out, &r.out, in_channels * s.taps());
                            let mut dx = vec![f32::NAN; input.len()];
                            input_gradient(&s, &weight, &g, &mut dx);
                            close(&format!("{s:?} dx"), &dx, &r.input_gradient, out_channels * s.taps());
                            let mut dw = vec![f32::NAN; weight.len()];
                            weight_gradient(&s, &input, &g, &mut dw);
                            close(&format!("{s:?} dw"), &dw, &r.weight_gradient, batch * s.out_plane());
                        }
                    }
                }
            }
        }
        assert!(n > 1000);
    }
}
