//! Prints the integer range of every bit width.

use lowbit_core::BitWidth;

fn main() {
    println!("bits  levels  unsigned   signed");
    for bits in BitWidth::ALL {
        let (unsigned, signed) = (bits.unsigned_range(), bits.signed_range());
        println!(
            "{bits:>4}  {:>6}  0..={:<5}  {}..={}",
            bits.levels(),
            unsigned.q_max,
            signed.q_min,
            signed.q_max
        );
    }
}
