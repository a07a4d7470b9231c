//! Numbers in single precision by their order, to search among them.

/// The place of `value` in the order of all numbers in single precision: 0 for 0, then one more for each number above, and -1 for
/// -0, then one less for each number below. Infinities are the last; `NaN` has no place, and some number.
pub fn order_key(value: f32) -> i64 {
    let bits = i64::from(value.to_bits());
    match value.is_sign_negative() {
        true => -1 - (bits - SIGN),
        false => bits,
    }
}

/// The number at a place, see [`order_key`].
pub fn from_order_key(key: i64) -> f32 {
    f32::from_bits((if key < 0 { SIGN + (-1 - key) } else { key }) as u32)
}

/// The bits of -0.
const SIGN: i64 = 0x8000_0000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_the_order_of_values() {
        let values = [f32::MIN, -2.0, -1.0, -f32::MIN_POSITIVE, -1e-45, -0.0, 0.0, 1e-45, 1.0, 2.0, f32::MAX];
        assert!(values.map(order_key).is_sorted_by(|a, b| a < b), "{:?}", values.map(order_key));
        assert_eq!(order_key(0.0) - order_key(-0.0), 1);
        for x in values {
            assert_eq!(from_order_key(order_key(x)).to_bits(), x.to_bits());
        }
    }
}
