//! All three passes against their definition in double precision.

use super::*;
use crate::bf16::rounded;
use crate::gradient::GradientQuantizer;
use crate::packed::PackedImages;

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
            let group_first = o / s.group_out() * s.group_in();
            for y in 0..oh {
                for x in 0..ow {
                    let oi = ((b * s.out_channels + o) * oh + y) * ow + x;
                    for c in 0..s.group_in() {
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
                                let ii =
                                    ((b * s.in_channels + group_first + c) * s.size[0] + yy) * s.size[1] + xx;
                                let wi = ((o * s.group_in() + c) * s.kernel[0] + i) * s.kernel[1] + j;
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
    assert_eq!(got.len(), expected.len(), "{what}: number of values");
    let tolerance = 1e-7 * (terms as f64).sqrt().max(1.0) * 12.0;
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(
            (f64::from(*got) - expected).abs() <= tolerance * expected.abs().max(1.0),
            "{what} {i}: {got} {expected}"
        );
    }
}

fn check(s: &ConvShape, seed: &mut u64) {
    let input = random(seed, s.batch * s.in_image());
    let weight = random(seed, s.groups * s.group_weight());
    let g = random(seed, s.batch * s.out_image());
    let [n_out, n_dx, n_dw] = [s.group_in() * s.taps(), s.group_out() * s.taps(), s.batch * s.out_plane()];
    for precision in [Precision::Single, Precision::Bf16] {
        // What is multiplied.
        let of = |values: &[f32]| match precision {
            Precision::Single => values.to_vec(),
            Precision::Bf16 => rounded(values),
        };
        let multiplied = [&input, &weight, &g].map(|values| of(values));
        let r = reference(s, &multiplied[0], &multiplied[1], &multiplied[2]);
        let out = forward(s, &input, Weights::Values(&weight), precision);
        close(&format!("{s:?} {precision:?} out"), &out, &r.out, n_out);
        let dx = input_gradient(s, Weights::Values(&weight), Gradient::Values(&g), precision);
        close(&format!("{s:?} {precision:?} dx"), &dx, &r.input_gradient, n_dx);
        let dw = weight_gradient(s, Input::Values(&input), Gradient::Values(&g), precision);
        close(&format!("{s:?} {precision:?} dw"), &dw, &r.weight_gradient, n_dw);
        // Of codes, a part of the cases.
        if (s.batch + s.size[0] + s.kernel[0]).is_multiple_of(3) || s.batch > 3 {
            check_codes(s, [&input, &weight, &g], precision);
        }
    }
}

/// Codes are multiplied exactly, in both precisions, also where their values have more digits.
fn check_codes(s: &ConvShape, [input, weight, g]: [&[f32]; 3], precision: Precision) {
    let of = |values: &[f32]| match precision {
        Precision::Single => values.to_vec(),
        Precision::Bf16 => rounded(values),
    };
    let largest = [1, 3, 15, 255][(s.batch + s.taps()) % 4];
    let codes: Vec<u8> =
        input.iter().map(|x| (x.abs() * f32::from(largest)).round_ties_even() as u8).collect();
    let scale = 1.0 / f32::from(largest);
    let packed = PackedImages::pack(&codes, s.in_image(), scale, largest);
    let values: Vec<f32> = codes.iter().map(|code| f32::from(*code) * scale).collect();
    let expected = reference(s, &values, weight, &of(g)).weight_gradient;
    let dw = weight_gradient(s, Input::Codes(&packed), Gradient::Values(g), precision);
    close(&format!("{s:?} {precision:?} dw of codes"), &dw, &expected, s.batch * s.out_plane());

    let codes: Vec<i8> = weight.iter().map(|x| (x * 127.0).round_ties_even() as i8).collect();
    let bytes: Vec<u8> = codes.iter().map(|code| code.cast_unsigned()).collect();
    let row = s.group_in() * s.taps();
    for n_scales in [1, s.out_channels] {
        let scales: Vec<f32> = (1..=n_scales).map(|i| i as f32 / n_scales as f32 / 127.0).collect();
        let scale = |i: usize| scales[i / row % n_scales];
        let values: Vec<f32> =
            codes.iter().enumerate().map(|(i, code)| f32::from(*code) * scale(i)).collect();
        let weight = Weights::Codes { codes: &bytes, scales: &scales };
        let r = reference(s, &of(input), &values, &of(g));
        let out = forward(s, input, weight, precision);
        close(&format!("{s:?} {precision:?} out of codes"), &out, &r.out, row);
        let dx = input_gradient(s, weight, Gradient::Values(g), precision);
        // With a scale for each channel, it is the gradient times the scale that is rounded, if not in loops for tiny groups.
        let expected = if n_scales == 1 || precision == Precision::Single || s.has_tiny_groups() {
            r.input_gradient
        } else {
            let channel = |i: usize| i / s.out_plane() % s.out_channels;
            let scaled: Vec<f32> = g.iter().enumerate().map(|(i, g)| g * scales[channel(i)]).collect();
            let codes: Vec<f32> = codes.iter().map(|code| f32::from(*code)).collect();
            reference(s, input, &codes, &of(&scaled)).input_gradient
        };
        close(&format!("{s:?} {precision:?} dx of codes"), &dx, &expected, s.group_out() * s.taps());
        check_gradient_codes(s, (&values, weight), &packed, g, precision);
    }
}

/// Codes of gradients are multiplied exactly, too, image by image.
fn check_gradient_codes(
    s: &ConvShape,
    (values, weight): (&[f32], Weights<'_>),
    packed: &PackedImages,
    g: &[f32],
    precision: Precision,
) {
    for bits in [8, 3] {
        let codes = GradientQuantizer::new(bits, 1).codes(g, s.batch);
        let gradient = Gradient::Codes(&codes);
        let r = reference(s, &packed.values(), values, &codes.values());
        let dw = weight_gradient(s, Input::Codes(packed), gradient, precision);
        close(
            &format!("{s:?} {precision:?} dw of {bits} bits"),
            &dw,
            &r.weight_gradient,
            s.batch * s.out_plane(),
        );
        let dx = input_gradient(s, weight, gradient, precision);
        let n = s.group_out() * s.taps();
        close(&format!("{s:?} {precision:?} dx of {bits} bits"), &dx, &r.input_gradient, n);
        // Beside values, which are rounded as they are beside a gradient in floats.
        let of = |values: &[f32]| match precision {
            Precision::Single => values.to_vec(),
            Precision::Bf16 => rounded(values),
        };
        let inputs = packed.values();
        let r = reference(s, &of(&inputs), &of(values), &codes.values());
        let dw = weight_gradient(s, Input::Values(&inputs), gradient, precision);
        close("dw of values", &dw, &r.weight_gradient, s.batch * s.out_plane());
        let dx = input_gradient(s, Weights::Values(values), gradient, precision);
        close("dx of values", &dx, &r.input_gradient, s.group_out() * s.taps());
    }
}

#[test]
fn equals_the_reference() {
    let mut seed = 1;
    let mut n = 0;
    let channels = [
        [1, 1, 1],
        [3, 16, 1],
        [16, 8, 1],
        [5, 24, 1],
        [17, 33, 1],
        [2, 40, 1],
        [6, 6, 6],
        [4, 8, 2],
        [8, 40, 2],
    ];
    for [in_channels, out_channels, groups] in channels {
        for size in [[1, 1], [2, 3], [5, 4], [8, 8], [7, 9], [16, 16]] {
            for kernel in [[1, 1], [3, 3], [5, 5], [3, 1], [7, 7], [2, 2]] {
                for stride in [[1, 1], [2, 2], [4, 4], [1, 2], [3, 3]] {
                    for padding in [[0, 0], [1, 1], [kernel[0] / 2, kernel[1] / 2], [3, 2], [8, 0]] {
                        if (0..2).any(|i| size[i] + 2 * padding[i] < kernel[i]) {
                            continue;
                        }
                        n += 1;
                        let batch = 1 + n % 3;
                        check(
                            &ConvShape {
                                batch,
                                in_channels,
                                out_channels,
                                size,
                                kernel,
                                stride,
                                padding,
                                groups,
                            },
                            &mut seed,
                        );
                    }
                }
            }
        }
    }
    assert!(n > 1000);
}

/// Batches that are divided among tasks in other ways, and sums that are taken in parts.
#[test]
fn equals_the_reference_at_other_divisions() {
    let mut seed = 2;
    for (batch, in_channels, out_channels, side, stride) in [
        (9, 3, 5, 7, 1),
        (33, 8, 16, 4, 1),
        (40, 2, 3, 5, 2),
        (1, 70, 50, 6, 1),
        (5, 130, 20, 7, 2),
        (2, 16, 16, 20, 1),
        // Rows of whole octets.
        (18, 5, 9, 8, 1),
        (9, 3, 17, 16, 2),
        (3, 16, 8, 24, 1),
        (2, 3, 5, 48, 1),
        (3, 5, 9, 32, 1),
    ] {
        let (size, stride, groups) = ([side, side], [stride, stride], 1);
        let shape = ConvShape {
            batch,
            in_channels,
            out_channels,
            size,
            kernel: [3, 3],
            stride,
            padding: [1, 1],
            groups,
        };
        check(&shape, &mut seed);
        check(&ConvShape { kernel: [1, 1], padding: [0, 0], ..shape }, &mut seed);
    }
    // Results of a phase are 4 columns of 8: an octet with others between.
    check(
        &ConvShape {
            batch: 9,
            in_channels: 5,
            out_channels: 6,
            size: [8, 8],
            kernel: [9, 9],
            stride: [1, 2],
            padding: [4, 4],
            groups: 1,
        },
        &mut seed,
    );
}

/// Sums of more products than are taken in one part.
#[test]
fn large_planes_of_single_channels_equal_the_reference() {
    let mut seed = 4;
    for (stride, padding) in [([1, 1], [1, 1]), ([2, 3], [0, 2])] {
        check(
            &ConvShape {
                batch: 2,
                in_channels: 2,
                out_channels: 2,
                size: [70, 81],
                kernel: [3, 3],
                stride,
                padding,
                groups: 2,
            },
            &mut seed,
        );
    }
}

/// Rows of more pixels than are summed up together, and windows as large as the image.
#[test]
fn wide_rows_and_whole_windows_equal_the_reference() {
    let mut seed = 5;
    let shape = ConvShape {
        batch: 2,
        in_channels: 4,
        out_channels: 9,
        size: [2, 2500],
        kernel: [1, 3],
        stride: [1, 1],
        padding: [0, 1],
        groups: 1,
    };
    check(&shape, &mut seed);
    check(&ConvShape { size: [2, 2496], ..shape }, &mut seed);
    check(&ConvShape { stride: [1, 2], size: [3, 5001], ..shape }, &mut seed);
    for (size, padding) in [([7, 7], [0, 0]), ([6, 9], [1, 0]), ([5, 7], [1, 0])] {
        check(&ConvShape { batch: 40, size, kernel: [7, 7], padding, ..shape }, &mut seed);
    }
}

/// A value is the same in every batch: evaluation and the runtime rely on it.
#[test]
fn does_not_depend_on_the_batch() {
    let mut seed = 6;
    for (channels, side, kernel, stride) in [
        ([20, 40], 9, 3, 1),
        ([16, 9], 8, 3, 1),
        ([7, 16], 16, 3, 1),
        ([70, 24], 6, 3, 2),
        ([64, 9], 7, 7, 1),
        ([3, 8], 33, 5, 2),
    ] {
        let shape = ConvShape {
            batch: 19,
            in_channels: channels[0],
            out_channels: channels[1],
            size: [side, side],
            kernel: [kernel, kernel],
            stride: [stride, stride],
            padding: [kernel / 2, 0],
            groups: 1,
        };
        let one = ConvShape { batch: 1, ..shape };
        let input = random(&mut seed, shape.batch * shape.in_image());
        let weight = random(&mut seed, shape.group_weight());
        let g = random(&mut seed, shape.batch * shape.out_image());
        for precision in [Precision::Single, Precision::Bf16] {
            let out = forward(&shape, &input, Weights::Values(&weight), precision);
            let dx = input_gradient(&shape, Weights::Values(&weight), Gradient::Values(&g), precision);
            for image in 0..shape.batch {
                let of_one = forward(
                    &one,
                    &input[image * shape.in_image()..][..shape.in_image()],
                    Weights::Values(&weight),
                    precision,
                );
                assert!(of_one == out[image * shape.out_image()..][..shape.out_image()]);
                let g = &g[image * shape.out_image()..][..shape.out_image()];
                let of_one = input_gradient(&one, Weights::Values(&weight), Gradient::Values(g), precision);
                assert!(of_one == dx[image * shape.in_image()..][..shape.in_image()]);
            }
        }
    }
}

/// Same bits whatever the number of threads.
#[test]
fn does_not_depend_on_threads() {
    let mut seed = 3;
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    // Octets, pixels side by side, and pairs of octets; a stride.
    let sides = [(7, 1), (9, 1), (16, 1), (9, 2)];
    for (batch, (side, stride)) in [1, 3, 20].into_iter().flat_map(|batch| sides.map(|side| (batch, side))) {
        let shape = ConvShape {
            batch,
            in_channels: 40,
            out_channels: 72,
            size: [side, side],
            kernel: [3, 3],
            stride: [stride, stride],
            padding: [1, 1],
            groups: 1,
        };
        let input = random(&mut seed, batch * shape.in_image());
        let weight = random(&mut seed, shape.group_weight());
        let g = random(&mut seed, batch * shape.out_image());
        for precision in [Precision::Single, Precision::Bf16] {
            let results = [1, 2, 7].map(|threads| {
                pool(threads).install(|| {
                    let out = forward(&shape, &input, Weights::Values(&weight), precision);
                    let dx =
                        input_gradient(&shape, Weights::Values(&weight), Gradient::Values(&g), precision);
                    let dw = weight_gradient(&shape, Input::Values(&input), Gradient::Values(&g), precision);
                    [out, dx, dw].map(|values| values.into_iter().map(f32::to_bits).collect::<Vec<u32>>())
                })
            });
            assert!(results[0] == results[1] && results[0] == results[2]);
        }
    }
}

/// What cannot be a convolution is refused before a result is made, whose values nobody would write.
#[test]
fn impossible_shapes_are_refused() {
    let good = ConvShape {
        batch: 1,
        in_channels: 2,
        out_channels: 2,
        size: [3, 3],
        kernel: [1, 1],
        stride: [1, 1],
        padding: [0, 0],
        groups: 1,
    };
    let (huge, counted) = ([1 << 31, 1 << 31], "more values than can be counted");
    let bad = [
        (ConvShape { in_channels: 0, ..good }, "without channels"),
        (ConvShape { out_channels: 0, ..good }, "without channels"),
        (ConvShape { size: [0, 3], padding: [1, 1], ..good }, "of 0"),
        (ConvShape { kernel: [1, 0], ..good }, "of 0"),
        (ConvShape { stride: [0, 1], ..good }, "of 0"),
        (ConvShape { groups: 0, ..good }, "groups"),
        (ConvShape { in_channels: 3, groups: 2, ..good }, "groups"),
        (ConvShape { kernel: [5, 1], ..good }, "larger than the padded input"),
        // The numbers of values, modulo 2^64, are those of empty slices.
        (ConvShape { batch: 8, size: huge, ..good }, counted),
        (ConvShape { batch: 0, size: huge, in_channels: 4, out_channels: 4, ..good }, counted),
        (ConvShape { batch: 0, size: huge, kernel: huge, in_channels: 4, out_channels: 4, ..good }, counted),
        // The size of the output is that of a small one, modulo 2^64, or the padded image is not counted where the output is.
        (ConvShape { groups: 2, padding: [1, 1 << 63], ..good }, counted),
        (ConvShape { groups: 2, padding: [3, 1 << 62], stride: [1, 1 << 62], ..good }, counted),
        (ConvShape { groups: 2, padding: [1 << 31, 1 << 31], stride: [1 << 31, 1 << 31], ..good }, counted),
        (ConvShape { stride: [1, usize::MAX], ..good }, counted),
    ];
    type Operation = fn(&ConvShape, &[f32], &[f32]) -> Vec<f32>;
    let refusal = |pass: Operation, shape: &ConvShape, lengths: [usize; 2]| {
        let [first, second] = lengths.map(|n| vec![1.0; n]);
        let panic = std::panic::catch_unwind(|| pass(shape, &first, &second)).err()?;
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
    };
    let passes: [(&str, Operation); 3] = [
        ("forward", |shape, input, weight| forward(shape, input, Weights::Values(weight), Precision::Single)),
        ("input_gradient", |shape, weight, g| {
            input_gradient(shape, Weights::Values(weight), Gradient::Values(g), Precision::Single)
        }),
        ("weight_gradient", |shape, input, g| {
            weight_gradient(shape, Input::Values(input), Gradient::Values(g), Precision::Single)
        }),
    ];
    assert_eq!(refusal(passes[0].1, &good, [18, 4]), None);
    for (shape, reason) in &bad {
        for (name, pass) in passes {
            for lengths in [[0, 0], [18, 2], [18, 4], [2, 30]] {
                let got =
                    refusal(pass, shape, lengths).unwrap_or_else(|| panic!("{name} of {shape:?} is made"));
                assert!(got.contains(reason), "{name} of {shape:?}: {got}");
            }
        }
    }
}

/// The matrix unit, emulated where there is none: convolutions whose channels fill one tile or several, rows of them in part, and
/// sums in several parts.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[test]
fn the_matrix_unit_equals_the_reference() {
    use crate::output::collect;

    crate::amx::emulated::begin();
    let mut seed = 7;
    for (batch, channels, size, kernel, stride, padding) in [
        (2, [16, 16], [9, 7], 3, 1, 1),
        (3, [32, 20], [6, 6], 3, 2, 1),
        (1, [64, 48], [5, 5], 1, 1, 0),
        (2, [8, 33], [12, 10], 5, 2, 2),
        (1, [48, 8], [4, 40], 2, 1, 0),
        (9, [96, 16], [4, 4], 3, 1, 1),
    ] {
        let s = ConvShape {
            batch,
            in_channels: channels[0],
            out_channels: channels[1],
            size,
            kernel: [kernel; 2],
            stride: [stride; 2],
            padding: [padding; 2],
            groups: 1,
        };
        let input = random(&mut seed, s.batch * s.in_image());
        let weight = random(&mut seed, s.group_weight());
        let g = random(&mut seed, s.batch * s.out_image());
        let r = reference(&s, &rounded(&input), &rounded(&weight), &rounded(&g));
        let weights = Weights::Values(&weight);
        // SAFETY: all values are written, as in the functions that choose between these and others.
        let (out, dx, dw) = unsafe {
            (
                collect(r.out.len(), |out| forward::run::<tiles::TilePair>(&s, &input, weights, out)),
                collect(input.len(), |dx| {
                    // Of the channels that are summed up, tiles take an even share.
                    match channels[1] {
                        20 | 33 => {
                            input_gradient::run::<cell::Rounded, 1>(&s, weights, Gradient::Values(&g), dx)
                        }
                        _ => input_gradient::run::<tiles::TilePair, 1>(&s, weights, Gradient::Values(&g), dx),
                    }
                }),
                weight_gradient::tiled_gradient::<1>(&s, Input::Values(&input), Gradient::Values(&g), 0),
            )
        };
        close(&format!("{s:?} out"), &out, &r.out, s.in_channels * s.taps());
        close(&format!("{s:?} dx"), &dx, &r.input_gradient, s.out_channels * s.taps());
        close(&format!("{s:?} dw"), &dw, &r.weight_gradient, s.batch * s.out_plane());
        if s.out_channels == 20 || s.out_channels == 33 {
            continue;
        }
        // Of three terms, they are as near as in single precision.
        let codes: Vec<i8> = weight.iter().map(|x| (x * 127.0) as i8).collect();
        let bytes: Vec<u8> = codes.iter().map(|code| code.cast_unsigned()).collect();
        let of_input: Vec<u8> = input.iter().map(|x| (x.abs() * 255.0) as u8).collect();
        let packed = PackedImages::pack(&of_input, s.in_image(), 1.0 / 255.0, 255);
        let of_weight: Vec<f32> = codes.iter().map(|code| f32::from(*code) / 127.0).collect();
        let r = reference(&s, &packed.values(), &of_weight, &g);
        let weights = Weights::Codes { codes: &bytes, scales: &[1.0 / 127.0] };
        // SAFETY: as above.
        let (dx, dw) = unsafe {
            (
                collect(input.len(), |dx| {
                    input_gradient::run::<tiles::TilePair, 3>(&s, weights, Gradient::Values(&g), dx)
                }),
                weight_gradient::tiled_gradient::<3>(&s, Input::Codes(&packed), Gradient::Values(&g), 0),
            )
        };
        close(&format!("{s:?} dx of terms"), &dx, &r.input_gradient, s.out_channels * s.taps());
        close(&format!("{s:?} dw of terms"), &dw, &r.weight_gradient, s.batch * s.out_plane());
    }
}
