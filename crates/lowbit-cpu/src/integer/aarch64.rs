//! Instructions of aarch64 that have no stable intrinsics, and the proofs that the processor has them.

use std::arch::aarch64::{int8x16_t, int32x4_t, uint8x16_t};
use std::arch::asm;

use crate::instructions::is_allowed;

/// Defines an extension with its detection.
macro_rules! extension {
    ($(#[$attribute:meta])* $name:ident: $feature:tt) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug)]
        pub struct $name(());

        impl $name {
            /// The proof, if the processor has it.
            pub fn detect() -> Option<Self> {
                (std::arch::is_aarch64_feature_detected!($feature) && is_allowed($feature)).then_some(Self(()))
            }
        }
    };
}

extension! {
    /// Sums of the products of four bytes.
    Dotprod: "dotprod"
}

extension! {
    /// Products of matrices of 2x8 and 8x2 bytes.
    I8mm: "i8mm"
}

/// Adds to each sum that of the products of four bytes.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub fn sdot(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction reads and writes these registers only, and the processor has it.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {a:v}.16b, {b:v}.16b",
            sums = inout(vreg) sums,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// The same with four bytes of `b` for all sums: those at `PLACE`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub fn sdot_by<const PLACE: usize>(mut sums: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction reads and writes these registers only, and the processor has it.
    unsafe {
        asm!(
            "sdot {sums:v}.4s, {a:v}.16b, {b:v}.4b[{place}]",
            sums = inout(vreg) sums,
            a = in(vreg) a,
            b = in(vreg) b,
            place = const PLACE,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}

/// Adds the products of two rows of eight bytes without a sign with two of signed ones: of the first with both, then of the second.
#[inline]
#[target_feature(enable = "neon,i8mm")]
pub fn usmmla(mut sums: int32x4_t, a: uint8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: the instruction reads and writes these registers only, and the processor has it.
    unsafe {
        asm!(
            "usmmla {sums:v}.4s, {a:v}.16b, {b:v}.16b",
            sums = inout(vreg) sums,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}
