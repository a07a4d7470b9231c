//! Writes a packed model with random weights, to time it:
//!
//! ```sh
//! cargo run --release -p lowbit-export --example random -- resnet18 2 2 resnet18-w2a2.lowbit
//! ```
//!
//! Beside it, FILE.onnx is the same network in full precision, and FILE.qonnx.onnx the network itself in QONNX. The first
//! and the last layer have weights and inputs of 8 bits.

use burn::tensor::{Device, Tensor, TensorData};
use lowbit_export::onnx::{Opset, to_onnx, to_qonnx};
use lowbit_models::{
    Family, InputShape, LayerOverride, LayerQuantization, Method, ModelConfig, Precision, QuantizationPolicy,
};
use lowbit_quantizers::QuantizedNetwork;
use lowbit_runtime::Info;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [network, weight_bits, act_bits, out] = arguments.as_slice() else {
        return Err("usage: random NETWORK WEIGHT_BITS ACT_BITS FILE".into());
    };
    let (config, size, classes) = match network.as_str() {
        "resnet18" => (ModelConfig::imagenet(Family::ResNet, 18), 224, 1000),
        "resnet50" => (ModelConfig::imagenet(Family::ResNet, 50), 224, 1000),
        "preresnet20" => (ModelConfig::new(Family::PreResNet, 20), 32, 10),
        "vgg-small" => (ModelConfig::vgg_small(), 32, 10),
        other => {
            return Err(format!("no network {other}: resnet18, resnet50, preresnet20 or vgg-small").into());
        }
    };
    let bits = |text: &str| text.parse::<u32>().map_err(|_| format!("no bit width {text}"));
    let [weight, act, eight] = [bits(weight_bits)?, bits(act_bits)?, 8].map(Precision::bits);
    let (weight, act, eight) = (weight?, act?, eight?);
    let mut policy = QuantizationPolicy::new(LayerQuantization::new(Method::Lsq, weight, act));
    // Images have values of both signs, which LSQ+ has codes for.
    policy.first = LayerOverride {
        weight_bits: Some(eight),
        act_bits: Some(eight),
        act_method: Some(Method::LsqPlus),
        ..LayerOverride::default()
    };
    policy.last =
        LayerOverride { weight_bits: Some(eight), act_bits: Some(eight), ..LayerOverride::default() };
    let device = Device::default();
    let input = InputShape { channels: 3, height: size, width: size };
    let mut network = config.init(input, classes, &policy, 0, &device)?.network;
    // Statistics and steps that fit each other: those of an image of noise.
    let n = 3 * size * size;
    let pixels: Vec<f32> = (0..n).map(|i| (i * 7919 % 1021) as f32 / 255.0 - 2.0).collect();
    let image = Tensor::<4>::from_data(TensorData::new(pixels, [1, 3, size, size]), &device);
    network.calibrate(|_| true, |network| drop(network.forward(image.clone())));
    let packed = lowbit_export::pack(&network, Info { name: config.family.to_string(), ..Info::default() })?;
    std::fs::write(out, packed.to_bytes()?)?;
    std::fs::write(format!("{out}.onnx"), to_onnx(&packed.in_full_precision(), Opset::V13)?)?;
    std::fs::write(format!("{out}.qonnx.onnx"), to_qonnx(&packed))?;
    Ok(())
}
