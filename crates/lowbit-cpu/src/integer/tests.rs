//! Equality with the definition and with the convolution in single precision.

use super::*;
use crate::{conv, words};

struct Random(u64);

impl Random {
    fn below(&mut self, n: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32 % n
    }
}

fn check(shape: ConvShape, bounds: CodeBounds, random: &mut Random) {
    let n_weights = shape.out_channels * shape.in_channels * shape.kernel[0] * shape.kernel[1];
    let bound = i32::from(bounds.weight);
    let weight: Vec<i32> =
        (0..n_weights).map(|_| random.below(2 * bound as u32 + 1) as i32 - bound).collect();
    let weight_codes: Vec<u8> = weight.iter().map(|code| *code as u8).collect();
    let n_codes = shape.batch * shape.in_channels * shape.size[0] * shape.size[1];
    let input: Vec<u8> = (0..n_codes).map(|_| random.below(u32::from(bounds.activation) + 1) as u8).collect();
    let kernel = IntegerConv::new(shape, &weight_codes, &[1.0], bounds).expect("the sums fit");
    let got = kernel.forward(&input, 1.0);
    let weight: Vec<f32> = weight.iter().map(|code| *code as f32).collect();
    let floats: Vec<f32> = input.iter().map(|code| f32::from(*code)).collect();
    let expected = conv::forward(&shape, &floats, &weight);
    assert!(got == expected, "{shape:?} {bounds:?}");

    // Another code is worth zero, around the images too.
    let zero = bounds.activation / 3;
    let kernel = kernel.with_zero_point(zero);
    let distances: Vec<f32> = floats.iter().map(|code| code - f32::from(zero)).collect();
    assert!(
        kernel.forward(&input, 1.0) == conv::forward(&shape, &distances, &weight),
        "{shape:?} {bounds:?}"
    );

    // The same codes at other scales.
    let scales: Vec<f32> = (0..shape.out_channels).map(|channel| 0.1 + channel as f32).collect();
    let kernel = IntegerConv::new(shape, &weight_codes, &scales, bounds).expect("the sums fit");
    let got = kernel.forward(&input, 1.0 / 3.0);
    let plane: usize = shape.out_size().iter().product();
    for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
        assert_eq!(*got, expected * (scales[i / plane % shape.out_channels] * (1.0 / 3.0)));
    }
}

#[test]
fn equals_the_convolution_in_single_precision() {
    let mut random = Random(1);
    let bounds = [(3, 3), (1, 1), (15, 15), (63, 65), (127, 127), (255, 127), (255, 64), (7, 0)];
    let mut n = 0;
    for [in_channels, out_channels] in [[1, 1], [3, 16], [4, 17], [8, 33], [18, 5]] {
        for size in [[1, 1], [2, 3], [7, 7], [9, 12]] {
            for (kernel, padding) in [([1, 1], [0, 0]), ([3, 3], [1, 1]), ([5, 5], [2, 2]), ([3, 1], [1, 0])]
            {
                for stride in [[1, 1], [2, 2], [3, 1]] {
                    let batch = 1 + n % 5;
                    let (activation, weight) = bounds[n % bounds.len()];
                    n += 1;
                    let shape = ConvShape {
                        batch,
                        in_channels,
                        out_channels,
                        size,
                        kernel,
                        stride,
                        padding,
                        groups: 1,
                    };
                    check(shape, CodeBounds { activation, weight }, &mut random);
                }
            }
        }
    }
}

/// All products at their bounds and of one sign: the sums of 16 bits reach exactly what they can hold.
#[test]
fn sums_at_the_bounds_do_not_overflow() {
    // AVX2 sums in 16 bits: of (63, 65) four steps, the fewest that it takes, make 32,760.
    let bounds = [
        (3u8, 3i8),
        (15, 15),
        (31, 31),
        (63, 63),
        (63, 65),
        (127, 127),
        (255, 64),
        (255, 127),
        (1, 1),
        (181, 90),
    ];
    for (activation, weight) in bounds {
        for sign in [1, -1] {
            let shape = ConvShape {
                batch: 1,
                in_channels: 900,
                out_channels: 17,
                size: [3, 3],
                kernel: [3, 3],
                stride: [1, 1],
                padding: [0, 0],
                groups: 1,
            };
            let weights = vec![(weight * sign) as u8; 17 * 900 * 9];
            let bounds = CodeBounds { activation, weight: weight.unsigned_abs() };
            let kernel = IntegerConv::new(shape, &weights, &[1.0], bounds).expect("the sums fit");
            let out = kernel.forward(&vec![activation; 8100], 1.0);
            let expected = 8100 * i32::from(activation) * i32::from(weight * sign);
            assert_eq!(out, [expected as f32; 17]);
        }
    }
}

/// A code beyond the bounds could overflow a sum of 16 bits.
#[test]
fn codes_beyond_the_bounds_are_refused() {
    let shape = ConvShape {
        batch: 2,
        in_channels: 6,
        out_channels: 3,
        size: [5, 7],
        kernel: [3, 3],
        stride: [1, 1],
        padding: [1, 1],
        groups: 1,
    };
    let bounds = CodeBounds { activation: 3, weight: 3 };
    let (input, weight) = (vec![3; 2 * 6 * 35], vec![-3i8 as u8; 3 * 6 * 9]);
    let kernel = IntegerConv::new(shape, &weight, &[1.0], bounds).expect("the sums fit");
    kernel.forward(&input, 1.0);
    let panics = |f: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err();
    for place in [0, 34, 35, 149, 200, input.len() - 1] {
        let mut input = input.clone();
        input[place] = 4;
        assert!(panics(&|| drop(kernel.forward(&input, 1.0))), "4 at {place}");
    }
    for bad in [4, -4i8 as u8, i8::MIN as u8] {
        for place in [0, 15, 16, 53, 100, weight.len() - 1] {
            let mut weight = weight.clone();
            weight[place] = bad;
            assert!(panics(&|| drop(IntegerConv::new(shape, &weight, &[1.0], bounds))), "{bad} at {place}");
        }
    }
}

/// All instructions that this processor has give the same sums, of any number of pixels.
#[test]
fn tiles_of_all_instructions_are_the_same() {
    let steps = [0, 1, 5, 9];
    let panel: Vec<Row> = (0..4).map(|k| std::array::from_fn(|i| ((i * 7 + k * 3) % 7) as i8 - 3)).collect();
    let words: Vec<u32> = (0..40).map(|i| (i as u32 * 0x0201_0303) & 0x0303_0303).collect();
    let bounds = CodeBounds { activation: 3, weight: 3 };
    for n in 1..30 {
        let starts: Vec<u32> = (0..n).collect();
        let n = starts.len();
        let mut expected = vec![0.0; n * BLOCK];
        for (i, expected) in expected.iter_mut().enumerate() {
            let (v, start) = (i / n, i % n);
            for (&step, row) in steps.iter().zip(&panel) {
                let codes = words[start + step as usize].to_le_bytes();
                for (code, weight) in codes.iter().zip(&row[v * WORD..]) {
                    *expected += f32::from(*code) * f32::from(*weight);
                }
            }
        }
        let operands =
            Operands { words: &words, starts: &starts, steps: &steps, panel: &panel, narrow_steps: 3 };
        for tiles in Tiles::serving(bounds) {
            let write = |out: &mut [Slot]| {
                let output = &Values { plane: n, offsets: &[0; BLOCK], scales: &[1.0; BLOCK] };
                run(tiles, operands, &mut Store { output, block: 0, out, targets: &starts });
            };
            // SAFETY: `n` targets of each of the channels.
            let out = unsafe { collect(n * BLOCK, write) };
            assert_eq!(out, expected, "{tiles:?}, {n} pixels");
        }
    }
}

/// Thresholds of sums of up to `largest`, `n` of a channel: some equal, some beyond all sums.
fn thresholds(n: usize, largest: i32, random: &mut Random) -> Vec<i32> {
    let mut thresholds: Vec<i32> =
        (0..n).map(|_| random.below(3 * largest as u32 + 1) as i32 - largest - largest / 2).collect();
    thresholds.sort_unstable();
    if n > 2 {
        thresholds[1] = thresholds[0];
        thresholds[n - 1] = i32::MAX;
    }
    thresholds
}

#[test]
fn levels_are_the_thresholds_that_sums_have_reached() {
    for n_threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().expect("threads");
        pool.install(|| {
            let mut random = Random(3);
            for (n, bits) in (1..=8).flat_map(|bits| [(1, bits), (17, bits), (40, bits)]) {
                // From fewer images than threads to many that are computed together.
                for batch in [1 + n % 3, 33] {
                    check_levels(batch, n, bits, &mut random);
                }
            }
        });
    }
}

fn check_levels(batch: usize, n: usize, bits: u32, random: &mut Random) {
    let shape = ConvShape {
        batch,
        in_channels: 5,
        out_channels: n,
        size: [6, 9],
        kernel: [3, 3],
        stride: [1 + n % 2; 2],
        padding: [1, 1],
        groups: 1,
    };
    let bounds = CodeBounds { activation: 7, weight: 3 };
    let weight: Vec<u8> = (0..n * 5 * 9).map(|_| (random.below(7) as u8).wrapping_sub(3)).collect();
    let input: Vec<u8> = (0..batch * 5 * 54).map(|_| random.below(8) as u8).collect();
    let kernel = IntegerConv::new(shape, &weight, &[1.0], bounds).expect("the sums fit").with_zero_point(2);
    let n_thresholds = (1 << bits) - 1;
    let channels: Vec<(bool, Vec<i32>)> = (0..n)
        .map(|channel| (channel % 3 == 1, thresholds(n_thresholds, kernel.largest_sum() / 4, random)))
        .collect();
    // Codes that are not the levels.
    let codes: Vec<u8> = (0..=n_thresholds).map(|level| 255 - level as u8).collect();
    let words = words::join(&input, batch, 5, 54);
    let sums = kernel.forward(&input, 1.0);
    assert_eq!(kernel.forward_words(&words, 1.0), sums);
    let plane: usize = shape.out_size().iter().product();
    let got = kernel.levels(&words, &Levels::new(&channels, codes.clone()));
    for (i, (got, sum)) in words::split(&got, batch, n, plane).into_iter().zip(sums).enumerate() {
        let (downwards, thresholds) = &channels[i / plane % n];
        let sum = if *downwards { -sum as i32 } else { sum as i32 };
        let level = thresholds.iter().filter(|threshold| sum >= **threshold).count();
        assert_eq!(got, codes[level], "{bits} bits, {n} channels, {batch} images, number {i}");
    }
}

/// 8-bit codes of so many channels that their sum is beyond 32 bits are left to single precision.
#[test]
fn sums_beyond_32_bits_are_refused() {
    let shape = |in_channels| ConvShape {
        batch: 1,
        in_channels,
        out_channels: 1,
        size: [1, 1],
        kernel: [1, 1],
        stride: [1, 1],
        padding: [0, 0],
        groups: 1,
    };
    let bounds = CodeBounds { activation: 255, weight: 127 };
    let largest = i32::MAX as usize / (255 * 127);
    for (in_channels, fits) in [(largest, true), (largest + 1, false)] {
        let weight = vec![127; in_channels];
        let kernel = IntegerConv::new(shape(in_channels), &weight, &[1.0], bounds);
        assert_eq!(kernel.is_some(), fits);
        if let Some(kernel) = kernel {
            let out = kernel.forward(&vec![255; in_channels], 1.0);
            assert_eq!(out, [(in_channels * 255 * 127) as f32]);
        }
    }
}
