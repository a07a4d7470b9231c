//! Which loops compute a pass.

use super::kernel::multiplies_bf16;
use super::operand::Precision;
#[cfg(target_arch = "x86_64")]
use super::tiles;

/// The loops of a pass, by what they multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Floats.
    Floats,
    /// Floats rounded to bf16, on processors that do not multiply bf16.
    Rounded,
    /// Numbers of bf16, by vectors.
    Bf16,
    /// The same, by the matrix unit.
    #[cfg(target_arch = "x86_64")]
    Tiles,
    /// Codes and a float, split into [`TERMS`](crate::bf16::TERMS) numbers of bf16, by the matrix unit.
    #[cfg(target_arch = "x86_64")]
    TilesOfTerms,
}

impl Way {
    /// The fastest on this processor in a precision. Of input or weights, and of the gradient, it tells which are codes, exact in
    /// bf16. Tiles serve sums over as many `channels` as fill them; `None` if they do not serve the operands.
    pub fn new(precision: Precision, are_exact: [bool; 2], channels: Option<usize>) -> Self {
        #[cfg(target_arch = "x86_64")]
        let has_tiles = channels.is_some_and(tiles::pays);
        #[cfg(not(target_arch = "x86_64"))]
        let _ = channels;
        let is_bf16 = precision == Precision::Bf16 || are_exact == [true; 2];
        match is_bf16 {
            #[cfg(target_arch = "x86_64")]
            true if has_tiles => Self::Tiles,
            true if multiplies_bf16() => Self::Bf16,
            true => Self::Rounded,
            #[cfg(target_arch = "x86_64")]
            false if has_tiles && are_exact[0] => Self::TilesOfTerms,
            false => Self::Floats,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instructions::instruction_sets;

    /// What a processor has is used.
    #[test]
    fn bf16_is_multiplied_by_the_processor() {
        let has = |name: &str| instruction_sets().contains(&name);
        let (single, bf16) = (Precision::Single, Precision::Bf16);
        let expected = match [has("amx"), has("avx512bf16")] {
            #[cfg(target_arch = "x86_64")]
            [true, _] => Way::Tiles,
            [false, true] => Way::Bf16,
            _ => Way::Rounded,
        };
        assert_eq!(Way::new(bf16, [false, false], Some(64)), expected);
        assert_eq!(Way::new(bf16, [true, false], Some(64)), expected);
        assert_eq!(Way::new(single, [true, true], Some(64)), expected);
        assert_eq!(Way::new(single, [false, false], Some(64)), Way::Floats);
        assert_eq!(Way::new(single, [false, true], Some(64)), Way::Floats);
        // Too few channels for a tile, or such as tiles do not take.
        for channels in [Some(3), None] {
            let expected = if has("avx512bf16") { Way::Bf16 } else { Way::Rounded };
            assert_eq!(Way::new(bf16, [false, false], channels), expected);
            assert_eq!(Way::new(single, [true, false], channels), Way::Floats);
        }
        #[cfg(target_arch = "x86_64")]
        if has("amx") {
            assert_eq!(Way::new(single, [true, false], Some(64)), Way::TilesOfTerms);
        }
    }
}
