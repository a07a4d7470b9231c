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

fn split(words: &[[u8; WORD]], n_images: usize, channels: usize, plane: usize) -> Vec<u8> {
    let mut codes = Vec::new();
    words::split(words, n_images, channels, plane, &mut codes);
    codes
}

fn forward_words(kernel: &IntegerConv, input: &[[u8; WORD]]) -> Vec<f32> {
    let mut out = Vec::new();
    kernel.forward_words(input, &kernel.worths(1.0), &mut out);
    out
}

fn levels_of(kernel: &IntegerConv, input: &[[u8; WORD]], levels: &Levels) -> Vec<[u8; WORD]> {
    let mut out = Vec::new();
    kernel.levels(input, levels, &mut out);
    out
}

/// The same by all ways that serve, and all instructions that this processor has. The first one is of plain loops over all products.
fn each_way(kernel: &IntegerConv, weight: &[u8]) -> Vec<(String, IntegerConv)> {
    let IntegerConv { shape, bounds, .. } = kernel;
    let direct = Direct::new(shape, weight, *bounds);
    let direct = direct.with_each_instructions(*bounds).map(|(name, direct)| (name, Way::Direct(direct)));
    let rows = Rows::new(shape, weight, *bounds);
    let rows = rows.with_each_instructions(*bounds).map(|(name, rows)| (name, Way::Rows(rows)));
    let winograd = Winograd::serves(shape, *bounds).then(|| Winograd::new(shape, weight, *bounds)).flatten();
    let winograd = winograd.iter().flat_map(|winograd| winograd.with_each_instructions(weight, *bounds));
    let winograd = winograd.map(|(name, winograd)| (name, Way::Winograd(winograd)));
    #[cfg(target_arch = "x86_64")]
    let matrix = Matrix::new(shape, weight).map(|matrix| ("matrix unit".into(), Way::Matrix(matrix)));
    #[cfg(not(target_arch = "x86_64"))]
    let matrix = None;
    let ways = direct.chain(rows).chain(winograd).chain(matrix);
    ways.map(|(name, way)| (name, IntegerConv { way, ..kernel.clone() })).collect()
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
    let weight: Vec<f32> = weight.iter().map(|code| *code as f32).collect();
    let floats: Vec<f32> = input.iter().map(|code| f32::from(*code)).collect();
    let expected = conv::forward(&shape, &floats, conv::Weights::Values(&weight), conv::Precision::Single);
    for (name, kernel) in each_way(&kernel, &weight_codes) {
        assert!(kernel.forward(&input, 1.0) == expected, "{name}, {shape:?} {bounds:?}");
    }

    // Another code is worth zero, around the images too.
    let zero = bounds.activation / 3;
    let kernel = kernel.with_zero_point(zero);
    let distances: Vec<f32> = floats.iter().map(|code| code - f32::from(zero)).collect();
    assert!(
        kernel.forward(&input, 1.0)
            == conv::forward(&shape, &distances, conv::Weights::Values(&weight), conv::Precision::Single),
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
    // AVX2 and NEON sum in 16 bits: of (63, 65) four steps, the fewest that they take, make 32,760.
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
            let expected = 8100 * i32::from(activation) * i32::from(weight * sign);
            for (name, kernel) in each_way(&kernel, &weights) {
                let out = kernel.forward(&vec![activation; 8100], 1.0);
                assert_eq!(out, [expected as f32; 17], "{name}, {bounds:?}");
            }
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

/// All ways and all instructions that this processor has give the same sums and the same levels, by one thread and by several.
#[test]
fn all_ways_are_the_same() {
    let mut random = Random(7);
    let sizes = [[1, 1], [2, 2], [3, 4], [4, 5], [7, 7], [13, 17], [32, 9], [40, 56]];
    let channels = [[1, 1], [4, 8], [6, 20], [16, 16], [33, 7], [64, 40]];
    let bounds = [(1, 1), (3, 3), (3, 1), (15, 14), (63, 7), (2, 0), (31, 14), (255, 127), (255, 64)];
    let kernels = [[3, 3], [1, 1], [7, 7], [3, 1], [2, 2], [1, 4], [3, 3]];
    let strides = [[1, 1], [2, 2], [1, 1], [3, 1], [2, 3], [4, 4]];
    let paddings = [[1, 1], [2, 0], [0, 0], [1, 2], [3, 3]];
    let mut n = 0;
    for size in sizes {
        for [in_channels, out_channels] in channels {
            // Each with a half of all combinations.
            for kernel in kernels.iter().skip(n % 2).step_by(2).copied() {
                n += 1;
                let (activation, weight) = bounds[n % bounds.len()];
                let stride = strides[n / 3 % strides.len()];
                let padding = paddings[n / 2 % paddings.len()];
                let fits = (0..2).all(|i| size[i] + 2 * padding[i] >= kernel[i]);
                let is_large = kernel == [7, 7] && out_channels * size[0] > 800;
                if !fits || is_large {
                    continue;
                }
                let groups = 1;
                let shape =
                    ConvShape { batch: 1, in_channels, out_channels, size, kernel, stride, padding, groups };
                check_ways(shape, CodeBounds { activation, weight }, 1 + n % 5, &mut random);
            }
        }
    }
}

fn check_ways(shape: ConvShape, bounds: CodeBounds, n_images: usize, random: &mut Random) {
    let CodeBounds { activation, weight: largest } = bounds;
    // Mostly at their bounds, so that sums of 16 bits are, too.
    let mut extreme = |largest: u32| match random.below(3) {
        0 => 0,
        1 => random.below(largest + 1),
        _ => largest,
    };
    let n_weights = shape.out_channels * shape.in_channels * shape.taps();
    let kernels: Vec<u32> = (0..shape.out_channels).map(|_| extreme(1)).collect();
    let weight: Vec<u8> = (0..n_weights)
        .map(|i| {
            let magnitude = extreme(u32::from(largest)) as u8;
            let is_negative = kernels[i / (n_weights / shape.out_channels)] == 1 && i % 5 < 3;
            if is_negative { magnitude.wrapping_neg() } else { magnitude }
        })
        .collect();
    let n_words = shape.in_channels.div_ceil(WORD) * shape.size[0] * shape.size[1] * n_images;
    let input: Vec<[u8; WORD]> =
        (0..n_words).map(|_| std::array::from_fn(|_| extreme(u32::from(activation)) as u8)).collect();
    let kernel = IntegerConv::new(shape, &weight, &[1.0], bounds).expect("the sums fit");
    let kernel = kernel.with_zero_point(activation / 2);
    let levels: Vec<(bool, Vec<i32>)> = (0..shape.out_channels)
        .map(|channel| (channel % 3 == 1, thresholds(3, kernel.largest_sum() / 4 + 1, random)))
        .collect();
    let levels = Levels::new(&levels, vec![2, 0, 1, 3]);
    let plane: usize = shape.out_size().iter().product();
    let in_plane = shape.size[0] * shape.size[1];
    let planes = split(&input, n_images, shape.in_channels, in_plane);
    let mut expected = None;
    for (name, kernel) in each_way(&kernel, &weight) {
        let expected = expected
            .get_or_insert_with(|| (forward_words(&kernel, &input), levels_of(&kernel, &input, &levels)));
        for n_threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().expect("threads");
            let got = pool.install(|| (forward_words(&kernel, &input), levels_of(&kernel, &input, &levels)));
            assert!(got.0 == expected.0, "{name}, {shape:?}, {bounds:?}, {n_images} images, values");
            assert!(pool.install(|| kernel.forward(&planes, 1.0)) == expected.0, "{name}, {shape:?}, planes");
            let codes = |words: &[[u8; WORD]]| split(words, n_images, shape.out_channels, plane);
            assert!(codes(&got.1) == codes(&expected.1), "{name}, {shape:?}, {bounds:?}, {n_images} images");
        }
    }
}

/// Each channel by a kernel of its own, beside single precision.
#[test]
fn depthwise_sums_are_those_of_the_definition() {
    let mut random = Random(11);
    for (n, channels) in [2, 4, 7, 33].into_iter().enumerate() {
        for (m, size) in [[1, 1], [5, 8], [13, 6]].into_iter().enumerate() {
            for (kernel, stride, padding) in [
                ([3, 3], [1, 1], [1, 1]),
                ([3, 3], [2, 2], [1, 1]),
                ([1, 1], [1, 1], [0, 0]),
                ([5, 3], [3, 2], [2, 1]),
            ] {
                let batch = 1 + (n + m) % 3;
                let (in_channels, out_channels, groups) = (channels, channels, channels);
                let shape =
                    ConvShape { batch, in_channels, out_channels, size, kernel, stride, padding, groups };
                let bounds = CodeBounds { activation: [255, 3][m % 2], weight: 128 };
                assert!(IntegerConv::serves(&shape, bounds) && !IntegerConv::pays(&shape, bounds));
                let weight: Vec<u8> = (0..channels * shape.taps()).map(|_| random.below(256) as u8).collect();
                let n_codes = batch * channels * size[0] * size[1];
                let input: Vec<u8> =
                    (0..n_codes).map(|_| random.below(u32::from(bounds.activation) + 1) as u8).collect();
                let kernel = IntegerConv::new(shape, &weight, &[1.0], bounds).expect("the sums fit");
                let kernel = kernel.with_zero_point(2);
                let floats: Vec<f32> = input.iter().map(|code| f32::from(*code) - 2.0).collect();
                let weights: Vec<f32> = weight.iter().map(|code| f32::from(*code as i8)).collect();
                let expected =
                    conv::forward(&shape, &floats, conv::Weights::Values(&weights), conv::Precision::Single);
                let mut words = Vec::new();
                words::join(&input, batch, channels, size[0] * size[1], &mut words);
                let levels: Vec<(bool, Vec<i32>)> = (0..channels)
                    .map(|channel| {
                        (channel % 3 == 1, thresholds(3, kernel.largest_sum() / 4 + 1, &mut random))
                    })
                    .collect();
                for n_threads in [1, 3] {
                    let pool =
                        rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().expect("threads");
                    pool.install(|| {
                        assert!(kernel.forward(&input, 1.0) == expected, "{shape:?}");
                        assert!(forward_words(&kernel, &words) == expected, "{shape:?}");
                        let got = levels_of(&kernel, &words, &Levels::new(&levels, vec![2, 0, 1, 3]));
                        let plane: usize = shape.out_size().iter().product();
                        let got = split(&got, batch, channels, plane);
                        for (i, (got, sum)) in got.into_iter().zip(&expected).enumerate() {
                            let (downwards, thresholds) = &levels[i / plane % channels];
                            let sum = if *downwards { -sum } else { *sum };
                            let level =
                                thresholds.iter().filter(|threshold| sum as i32 >= **threshold).count();
                            assert_eq!(got, [2, 0, 1, 3][level], "{shape:?}");
                        }
                    });
                }
            }
        }
    }
}

/// Images without anything around them are no longer than what is read of them.
#[test]
fn images_without_padding_are_convolved() {
    let mut random = Random(5);
    for size in [[4, 4], [6, 8], [14, 14], [16, 16], [5, 6]] {
        for (kernel, stride) in [([3, 3], [1, 1]), ([1, 1], [1, 1]), ([2, 2], [2, 2])] {
            let (in_channels, out_channels, padding, groups) = (20, 18, [0, 0], 1);
            let shape =
                ConvShape { batch: 1, in_channels, out_channels, size, kernel, stride, padding, groups };
            check_ways(shape, CodeBounds { activation: 3, weight: 3 }, 3, &mut random);
        }
    }
}

/// On a processor with fast products each kind of layer goes the way that was measured to take the least time.
#[cfg(target_arch = "x86_64")]
#[test]
fn layers_go_the_fastest_way() {
    if crate::instructions::Avx2::detect().is_none() {
        return;
    }
    let way = |in_channels, size: usize, kernel: usize, stride, bounds| {
        let (size, kernel, stride, padding) = ([size; 2], [kernel; 2], [stride; 2], [kernel / 2; 2]);
        let shape =
            ConvShape { batch: 1, in_channels, out_channels: 64, size, kernel, stride, padding, groups: 1 };
        let weight = vec![1; 64 * in_channels * shape.taps()];
        match IntegerConv::new(shape, &weight, &[1.0], bounds).expect("the sums fit").way {
            Way::Depthwise(_) => "each by itself",
            Way::Direct(_) => "channels",
            Way::Rows(_) => "pixels",
            Way::Winograd(_) => "transforms",
            Way::Matrix(_) => "matrices",
        }
    };
    let [two, eight] = [(3, 3), (255, 127)].map(|(activation, weight)| CodeBounds { activation, weight });
    let or_matrices = |other| if amx::is_there() { "matrices" } else { other };
    assert_eq!(way(64, 14, 3, 1, two), or_matrices("transforms"));
    assert_eq!(way(64, 14, 3, 1, eight), or_matrices("pixels"));
    assert_eq!(way(64, 14, 3, 2, two), or_matrices("pixels"));
    assert_eq!(way(64, 14, 1, 1, two), or_matrices("pixels"));
    assert_eq!(way(3, 32, 7, 2, eight), or_matrices("pixels"));
    assert_eq!(way(8, 14, 3, 1, two), or_matrices("pixels"), "too few channels for transforms");
    assert_eq!(way(64, 1, 1, 1, two), "channels", "a linear layer");
}

/// Weights whose transforms are beyond 8 bits are left to all products.
#[test]
fn large_transforms_are_refused() {
    let shape = ConvShape {
        batch: 1,
        in_channels: 16,
        out_channels: 16,
        size: [6, 6],
        kernel: [3, 3],
        stride: [1, 1],
        padding: [1, 1],
        groups: 1,
    };
    let bounds = CodeBounds { activation: 15, weight: 15 };
    let transformed = |weight: &[u8]| Winograd::new(&shape, weight, bounds).is_some();
    // Nine times 14 is 126; one of the nine more than that makes 128.
    let mut weight = vec![14u8; 16 * 16 * 9];
    assert!(transformed(&weight));
    weight[9 * 37 + 4] = 15;
    assert!(transformed(&weight));
    weight[9 * 37 + 5] = 15;
    assert!(!transformed(&weight));
    let kernel = IntegerConv::new(shape, &weight, &[1.0], bounds).expect("the sums fit");
    assert!(!matches!(kernel.way, Way::Winograd(_)));
    assert!(!Winograd::serves(&shape, CodeBounds { activation: 64, weight: 1 }));
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
    let mut words = Vec::new();
    words::join(&input, batch, 5, 54, &mut words);
    let sums = kernel.forward(&input, 1.0);
    assert_eq!(forward_words(&kernel, &words), sums);
    let plane: usize = shape.out_size().iter().product();
    let got = levels_of(&kernel, &words, &Levels::new(&channels, codes.clone()));
    for (i, (got, sum)) in split(&got, batch, n, plane).into_iter().zip(sums).enumerate() {
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
