//! Numbers by the rule of `golden/generate_imagenet.py`, too many to be written down.

/// Numbers from -1 to 1 by the rule of `golden/generate_imagenet.py`.
pub fn centered(idx: usize, n: usize) -> Vec<f32> {
    uniform(idx, n).into_iter().map(|value| 2.0 * value - 1.0).collect()
}

/// Numbers from 0 to 1 by the same rule.
fn uniform(idx: usize, n: usize) -> Vec<f32> {
    let place = |i: usize| (i + 4099 * idx) % 65521;
    (0..n).map(place).map(|m| (m * m % 65521 * m % 65521) as f32 / 65521.0).collect()
}

/// The values of tensor `idx` called `name`, as there.
pub fn value(idx: usize, name: &str, shape: &[usize]) -> Vec<f32> {
    let n = shape.iter().product();
    if shape.len() > 1 {
        let fan_in: usize = shape[1..].iter().product();
        let mut scale = 1.0f32;
        while scale * scale * fan_in as f32 > 6.0 {
            scale /= 2.0;
        }
        return centered(idx, n).into_iter().map(|value| value * scale).collect();
    }
    let shift = if name.ends_with("weight") || name.ends_with("running_var") { 0.5 } else { -0.5 };
    uniform(idx, n).into_iter().map(|value| value + shift).collect()
}
