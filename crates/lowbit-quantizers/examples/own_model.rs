//! One low-bit layer in a burn model of your own: a 2-bit LSQ convolution between full-precision layers, trained for a
//! few steps on random images with burn's own optimizer.

use burn::module::Module;
use burn::nn::{BatchNorm, BatchNormConfig, Linear, LinearConfig};
use burn::optim::{GradientsParams, SgdConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor, TensorData};
use lowbit_core::Precision;
use lowbit_quantizers::{
    LayerMut, LayerQuantization, LayerRef, Method, QuantConv2d, QuantConv2dConfig, QuantizedNetwork,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[derive(Module, Debug)]
struct MyModel {
    stem: QuantConv2d,
    norm: BatchNorm,
    low_bit: QuantConv2d,
    fc: Linear,
}

impl MyModel {
    fn forward(&self, images: Tensor<4>) -> Tensor<2> {
        let x = relu(self.norm.forward(self.stem.forward(images)));
        let x = relu(self.low_bit.forward(x));
        self.fc.forward(x.mean_dim(2).mean_dim(3).flatten(1, 3))
    }
}

/// Needed only to calibrate the activation quantizers.
impl QuantizedNetwork for MyModel {
    fn layers(&self) -> impl Iterator<Item = (&str, LayerRef<'_>)> {
        std::iter::once(("low_bit", LayerRef::Conv(&self.low_bit)))
    }

    fn layers_mut(&mut self) -> impl Iterator<Item = (&str, LayerMut<'_>)> {
        std::iter::once(("low_bit", LayerMut::Conv(&mut self.low_bit)))
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = Device::default().autodiff();
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let two_bits = Precision::bits(2)?;
    let mut model = MyModel {
        stem: QuantConv2dConfig::new([1, 8], 3).init(&device, &mut rng)?,
        norm: BatchNormConfig::new(8).init(&device),
        low_bit: QuantConv2dConfig::new([8, 8], 3)
            .with_quantization(LayerQuantization::new(Method::Lsq, two_bits, two_bits))
            .init(&device, &mut rng)?,
        fc: LinearConfig::new(8, 2).init(&device),
    };

    // Bright and dark images.
    let labels: Vec<f32> = (0..32).map(|i| (i % 2) as f32).collect();
    let pixels: Vec<f32> =
        labels.iter().flat_map(|l| (0..64).map(|_| l + rng.random::<f32>()).collect::<Vec<_>>()).collect();
    let images = Tensor::<4>::from_data(TensorData::new(pixels, [32, 1, 8, 8]), &device);
    let targets: Vec<f32> = labels.iter().flat_map(|l| [1.0 - l, *l]).collect();
    let targets = Tensor::<2>::from_data(TensorData::new(targets, [32, 2]), &device);

    model.calibrate(
        |_| true,
        |model| {
            model.forward(images.clone());
        },
    );
    let mut optimizer = SgdConfig::new().init();
    for step in 0..20 {
        let error = model.forward(images.clone()) - targets.clone();
        let loss = error.square().mean();
        if step % 5 == 0 {
            println!("step {step:>2}: loss {:.4}", loss.clone().into_scalar::<f32>());
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(0.1, model, gradients);
    }

    let quantizer = model.low_bit.weight_quantizer.as_ref().ok_or("the layer is quantized")?;
    println!(
        "codes of the first kernel: {}",
        quantizer.codes(model.low_bit.weight.val()).slice([0..1, 0..1]).into_data()
    );
    println!("step size: {}", quantizer.grid(model.low_bit.weight.val())?.scale(0));
    Ok(())
}
