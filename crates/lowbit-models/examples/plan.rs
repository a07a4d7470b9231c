//! Prints the plan of a PreResNet-20 at W2A2 with 8-bit shortcuts and a 4-bit last stage.

use burn::tensor::{Device, Tensor};
use globset::Glob;
use lowbit_core::Precision;
use lowbit_models::{Family, InputShape, ModelConfig};
use lowbit_quantizers::{LayerOverride, LayerQuantization, Method, QuantizationPolicy};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::default();
    let bits = |bits| Precision::bits(bits);
    let weights = |weight_bits| LayerOverride { weight_bits: Some(weight_bits), ..LayerOverride::default() };

    let mut policy = QuantizationPolicy::new(LayerQuantization::new(Method::DoReFa, bits(2)?, bits(2)?));
    policy.shortcut = weights(bits(8)?);
    policy.patterns.push((Glob::new("stages.2.*.conv?")?, weights(bits(4)?)));

    let input = InputShape { channels: 3, height: 32, width: 32 };
    let model = ModelConfig::new(Family::PreResNet, 20).init(input, 100, &policy, 0, &device)?;
    println!("{}", model.plan);

    let logits = model.network.forward(Tensor::zeros([1, 3, 32, 32], &device));
    println!("\nlogits: {:?}", logits.dims());
    Ok(())
}
