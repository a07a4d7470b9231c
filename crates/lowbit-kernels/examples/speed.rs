//! Times the convolution kernels on the shapes of ResNet-20 and ResNet-18: milliseconds and GFLOP/s of the forward pass,
//! the gradient of the input and the gradient of the weights.

use std::time::Instant;

use lowbit_kernels::cpu::conv::{ConvShape, forward, input_gradient, weight_gradient};

/// Repetitions, of which the median is shown.
const N: usize = 9;

fn main() {
    println!("{:<34} {:>18} {:>18} {:>18}", "convolution", "forward", "input gradient", "weight gradient");
    for [batch, in_channels, out_channels, side, kernel, stride] in [
        [128, 3, 16, 32, 3, 1],
        [128, 16, 16, 32, 3, 1],
        [128, 16, 32, 32, 3, 2],
        [128, 16, 32, 32, 1, 2],
        [128, 32, 32, 16, 3, 1],
        [128, 64, 64, 8, 3, 1],
        [16, 3, 64, 224, 7, 2],
        [16, 64, 64, 56, 3, 1],
        [16, 128, 128, 28, 3, 1],
        [16, 256, 256, 14, 3, 1],
        [16, 512, 512, 7, 3, 1],
    ] {
        let shape = ConvShape {
            batch,
            in_channels,
            out_channels,
            size: [side; 2],
            kernel: [kernel; 2],
            stride: [stride; 2],
            padding: [kernel / 2; 2],
            groups: 1,
        };
        let [height, width] = shape.out_size();
        let input = vec![0.5; batch * in_channels * side * side];
        let weight = vec![0.1; out_channels * in_channels * kernel * kernel];
        let gradient = vec![0.3; batch * out_channels * height * width];
        let mut results = [gradient.clone(), input.clone(), weight.clone()];
        let flops = (2 * gradient.len() * in_channels * kernel * kernel) as f64;
        let times = [
            median(|| forward(&shape, &input, &weight, &mut results[0])),
            median(|| input_gradient(&shape, &weight, &gradient, &mut results[1])),
            median(|| weight_gradient(&shape, &input, &gradient, &mut results[2])),
        ];
        let name =
            format!("{batch}x{in_channels}x{side}x{side}, {out_channels}x{kernel}x{kernel} / {stride}");
        let shown = times.map(|time| format!("{:.1} ms {:>4.0} GF/s", time * 1e3, flops / time / 1e9));
        println!("{name:<34} {:>18} {:>18} {:>18}", shown[0], shown[1], shown[2]);
    }
}

/// Median time of a call in seconds.
fn median(mut call: impl FnMut()) -> f64 {
    let mut times: Vec<f64> = (0..N)
        .map(|_| {
            let start = Instant::now();
            call();
            start.elapsed().as_secs_f64()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times[N / 2]
}
