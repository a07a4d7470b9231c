//! Sharpness-aware steps: the gradient is taken beside the quantized weights. Liu et al., "Sharpness-aware Quantization
//! for Deep Neural Networks", arXiv 2111.12273.

use burn::tensor::Tensor;
use serde::Serialize;

use crate::about::{About, Key};
use crate::fingerprint::Settings;
use crate::loss::sum_of_squares;
use crate::strategy::Strategy;

/// Takes a student's gradients where its loss rises most beside its quantized weights.
///
/// # Equation
/// ```text
/// g = gradient of the loss by the quantized weights Q(w)            a first pass
/// gradients of the step: those at Q(w) + radius g / ||g||           a second pass over the same images
/// ```
/// The norm is of all quantized weights of the network together; what is not quantized is not moved (ours). BatchNorm's running
/// statistics, the losses and the accuracy that are recorded are those of the first pass (ours).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sharpness {
    /// `rho`.
    pub radius: f64,
}

/// Added to the norm, so that no gradient is a direction.
const EPSILON: f64 = 1e-12;

impl Sharpness {
    /// What is said of it where it is set, shown and explained.
    pub const ABOUT: About = About {
        name: "sharpness",
        title: "sharpness-aware steps",
        changes: "where the gradient is taken",
        section: "strategy.sharpness",
        file: file!(),
        keys: &[Key {
            name: "radius",
            default: "0.4",
            range: "above 0",
            effect: "how far from the quantized weights the gradient is taken (rho): 0.4 in the paper on CIFAR, 0.3 on ImageNet",
        }],
    };
}

impl Strategy for Sharpness {
    fn name(&self) -> &str {
        Self::ABOUT.name
    }

    fn settings(&self) -> Settings {
        Settings::of(self)
    }

    fn perturbation(&self, gradients: &[Tensor<2>]) -> Option<Vec<Tensor<2>>> {
        let squares = gradients.iter().map(|gradient| sum_of_squares(gradient.clone()));
        let norm = squares.reduce(|sum, square| sum + square)?.sqrt();
        let factor = (norm + EPSILON).recip().mul_scalar(self.radius).reshape([1, 1]);
        Some(gradients.iter().map(|gradient| gradient.clone() * factor.clone()).collect())
    }

    fn looks_beside(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn the_direction_is_that_of_all_layers_together() {
        let device = Device::default();
        let layers = [
            Tensor::<2>::from_floats([[3.0, 0.0]], &device),
            Tensor::<2>::from_floats([[0.0], [-4.0]], &device),
        ];
        let moved = Sharpness { radius: 0.5 }.perturbation(&layers).unwrap();
        let values: Vec<f32> =
            moved.iter().flat_map(|layer| layer.to_data().iter::<f32>().collect::<Vec<_>>()).collect();
        for (got, expected) in values.iter().zip([0.3, 0.0, 0.0, -0.4]) {
            assert!((got - expected).abs() < 1e-6, "{values:?}");
        }
        // Nothing is no direction.
        let moved = Sharpness { radius: 0.5 }.perturbation(&[Tensor::zeros([2, 2], &device)]).unwrap();
        assert!(moved[0].to_data().iter::<f32>().all(|value| value == 0.0));
    }
}
