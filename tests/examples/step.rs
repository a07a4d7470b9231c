//! Training steps on request, for `cargo xtask bench step`.
//!
//! For every line on stdin it runs so many steps (forward, backward, SGD with momentum) and answers with the seconds that
//! they took; at the end of stdin, with a line of the peak memory in bytes, and for a GPU what is reserved on it and its
//! name, a line of the seconds in a step by kind of operation, as JSON, without those of the first request, one of the instruction
//! sets, and for a GPU one of the launches of a step and the seconds of its kernels, as JSON, of a step more whose kernels are timed.

use std::io::{BufRead, Write, stdin, stdout};
use std::time::Instant;

use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, Tensor, TensorData};
use lowbit_core::{BitWidth, Compute, Precision, Purpose, stream};
use lowbit_cpu::allocator::{Allocator, keep_memory};
use lowbit_cpu::on_compute_thread;
#[cfg(feature = "wgpu")]
use lowbit_kernels::testing::Launches;
use lowbit_kernels::testing::take_times;
use lowbit_kernels::{Sgd, sgd_together};
use lowbit_models::{Family, InputShape, ModelConfig, Network};
use lowbit_quantizers::{LayerQuantization, Method, QuantizationPolicy};
use lowbit_strategies::loss::{cross_entropy, target_probabilities};

/// As the program has it.
#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// What is timed.
struct Setup {
    model: ModelConfig,
    input: InputShape,
    n_classes: usize,
    batch: usize,
}

/// A network's, as in "preresnet20", or with another batch, as in "preresnet20:1024".
fn setup(name: &str) -> Setup {
    if let Some((network, batch)) = name.split_once(':') {
        return Setup { batch: batch.parse().expect("a number of images"), ..setup(network) };
    }
    match name {
        "preresnet20" => Setup {
            model: ModelConfig::new(Family::PreResNet, 20),
            input: InputShape { channels: 3, height: 32, width: 32 },
            n_classes: 100,
            batch: 128,
        },
        "preresnet8-digits" => Setup {
            model: ModelConfig::new(Family::PreResNet, 8),
            input: InputShape { channels: 1, height: 8, width: 8 },
            n_classes: 10,
            batch: 64,
        },
        "resnet18" | "preresnet18" | "resnet50" => Setup {
            model: ModelConfig::imagenet(
                if name == "preresnet18" { Family::PreResNet } else { Family::ResNet },
                if name == "resnet50" { 50 } else { 18 },
            ),
            input: InputShape { channels: 3, height: 224, width: 224 },
            n_classes: 1000,
            batch: 16,
        },
        other => panic!("unknown network {other:?}"),
    }
}

/// "w2a2", "fp32".
fn precision(text: &str) -> [Precision; 2] {
    let bits = |text: &str| Precision::bits(text.parse().expect("a bit width")).expect("1 to 8");
    match text.strip_prefix('w').and_then(|text| text.split_once('a')) {
        Some((weight, act)) => [bits(weight), bits(act)],
        None => [Precision::FullPrecision; 2],
    }
}

fn device(name: &str) -> Device {
    match name {
        #[cfg(feature = "flex")]
        "flex" => Device::flex(),
        #[cfg(feature = "ndarray")]
        #[expect(deprecated, reason = "burn has deprecated the backend, which this project keeps")]
        "ndarray" => Device::ndarray(),
        #[cfg(feature = "wgpu")]
        "wgpu" => match Device::enumerate(burn::tensor::DeviceType::Wgpu).first() {
            Some(device) => device.clone(),
            None => panic!("no adapter"),
        },
        other => panic!("backend {other:?} is not compiled in"),
    }
}

fn main() {
    lowbit_cpu::left_out().expect("instruction sets that are known");
    keep_memory();
    on_compute_thread(run).expect("the threads start");
}

fn run() {
    let args: Vec<String> = std::env::args().collect();
    let [_, name, bits, device_name, options @ ..] = args.as_slice() else {
        panic!("usage: step NETWORK BITS DEVICE [fp32|bf16 [GRAD_BITS]]");
    };
    let compute = options.first().map_or(Compute::default(), |name| name.parse().expect("fp32 or bf16"));
    let grad_bits = options.get(1).map(|bits| {
        BitWidth::new(bits.parse().expect("a number of bits")).expect("a number of bits from 1 to 8")
    });
    let Setup { model, input, n_classes, batch } = setup(name);
    let device = device(device_name).autodiff();
    let [weight_bits, act_bits] = precision(bits);
    let policy = QuantizationPolicy::new(LayerQuantization::new(Method::DoReFa, weight_bits, act_bits));
    let mut network = model.init(input, n_classes, &policy, 0, &device).expect("a network").network;
    network.set_compute(compute);
    let mut optimizer =
        ModuleOptimizer::from(Sgd { momentum: Some(0.9), is_nesterov: true, weight_decay: Some(1e-4) });
    let shape = [batch, input.channels, input.height, input.width];
    let values: Vec<f32> =
        (0..shape.iter().product()).map(|i: usize| (i * 7919 % 1009) as f32 / 504.5 - 1.0).collect();
    let images = Tensor::<4>::from_data(TensorData::new(values, shape), &device);
    let labels: Vec<i64> = (0..batch).map(|i| (i % n_classes) as i64).collect();
    let (mut n_steps, mut seconds, mut is_first, mut step_idx) = (0, 0.0, true, 0);
    for line in stdin().lock().lines() {
        let steps: u32 = line.expect("stdin is text").trim().parse().expect("a number of steps");
        n_steps += steps;
        let start = Instant::now();
        for _ in 0..steps {
            if grad_bits.is_some() {
                let mut keys = stream(0, Purpose::GradientNoise, 0, step_idx);
                network.quantize_gradients(grad_bits, &mut keys);
                step_idx += 1;
            }
            network = step(network, &mut optimizer, images.clone(), &labels, n_classes);
        }
        let elapsed = start.elapsed().as_secs_f64();
        seconds += elapsed;
        if std::mem::take(&mut is_first) {
            // Memory is new to the first steps, which are not among those by kind.
            take_times();
            (n_steps, seconds) = (0, 0.0);
        }
        println!("{elapsed}");
        stdout().flush().expect("stdout is open");
    }
    println!("{}{}", peak_memory(), of_device(&device));
    let kinds = take_times().map(|kind| (kind.name, kind.duration.as_secs_f64() / f64::from(n_steps)));
    let rest = seconds / f64::from(n_steps) - kinds.iter().map(|(_, seconds)| seconds).sum::<f64>();
    let kinds = kinds.into_iter().chain([("everything else", rest)]).filter(|(_, seconds)| *seconds > 0.0);
    let kinds: serde_json::Map<_, _> = kinds.map(|(kind, seconds)| (kind.into(), seconds.into())).collect();
    println!("{}", serde_json::Value::from(kinds));
    println!("{}", lowbit_cpu::instruction_sets().join(" "));
    #[cfg(feature = "wgpu")]
    if device_name == "wgpu" {
        let mut counted = || {
            let launches = Launches::time();
            network = step(network.clone(), &mut optimizer, images.clone(), &labels, n_classes);
            launches.take()
        };
        let launched = counted();
        let seconds = launched.duration.as_secs_f64();
        println!("{}", serde_json::json!({ "launches": launched.total(), "kernel_seconds": seconds }));
    }
}

fn step(
    network: Network,
    optimizer: &mut ModuleOptimizer,
    images: Tensor<4>,
    labels: &[i64],
    n_classes: usize,
) -> Network {
    let targets = target_probabilities(labels, n_classes, 0.0, &images.device());
    let loss = cross_entropy(network.forward(images), targets);
    let gradients = GradientsParams::from_grads(loss.clone().backward(), &network);
    let network = sgd_together(|| optimizer.step(0.01, network, gradients));
    // As in a training, the loss is read in every step, after the update.
    let value: f32 = loss.into_scalar();
    assert!(value.is_finite());
    network
}

/// Bytes reserved on a GPU, and its name.
fn of_device(device: &Device) -> String {
    #[cfg(feature = "wgpu")]
    if let (Some(usage), Some(identity)) = (device.memory_pool_usage(), device.identity()) {
        return format!(" {} {}", usage.bytes_reserved, identity.name);
    }
    let _has_no_memory_of_its_own = device;
    String::new()
}

/// Largest resident size so far in bytes, 0 where the system does not tell.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) * 1024
}
