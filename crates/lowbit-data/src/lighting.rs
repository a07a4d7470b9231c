//! AlexNet's change of the light's color and strength.

use rand::Rng;
use rand_distr::{Distribution, StandardNormal};

/// Principal components of the colors of ImageNet's pixels, in columns for red, green and blue in rows; from the training code of
/// "Deep Residual Learning" for Torch, as commonly used.
const COMPONENTS: [[f32; 3]; 3] =
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]];
/// Their standard deviations, where the largest pixel value is 1.
const DEVIATIONS: [f32; 3] = [0.2175, 0.0188, 0.0045];

/// What is added to red, green and blue of all pixels of an image, where the largest pixel value is 1: the principal components of
/// ImageNet's colors (Krizhevsky et al. 2012, section 4.1), each with its deviation and a normal draw of deviation `strength`.
pub(crate) fn draw(rng: &mut impl Rng, strength: f32) -> [f32; 3] {
    let drawn: [f32; 3] = std::array::from_fn(|_| StandardNormal.sample(rng));
    COMPONENTS.map(|row| {
        let parts = row.iter().zip(DEVIATIONS).zip(drawn);
        parts.map(|((component, deviation), normal)| component * deviation * strength * normal).sum()
    })
}
