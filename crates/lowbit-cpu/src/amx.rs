//! Intel's matrix unit, AMX (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18): whether the
//! process may use it, and the sizes of its eight tiles. Rust has no stable functions for it yet.

#[cfg(all(test, target_os = "linux"))]
pub mod emulated;

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::sync::OnceLock;

use crate::instructions::is_allowed;

/// The proof that the process may use the unit, which multiplies bytes.
#[derive(Clone, Copy, Debug)]
pub struct Amx(());

impl Amx {
    /// Asks the processor and the operating system, once.
    pub fn detect() -> Option<Self> {
        static DETECTED: OnceLock<bool> = OnceLock::new();
        let detect = || is_allowed("amx") && has(TILES | BYTES) && is_permitted();
        DETECTED.get_or_init(detect).then_some(Self(()))
    }

    /// Whether it multiplies bf16, too: all processors with the unit do so far.
    pub fn multiplies_bf16(self) -> bool {
        static DETECTED: OnceLock<bool> = OnceLock::new();
        *DETECTED.get_or_init(|| has(BF16))
    }
}

/// Bits of leaf 7.
const BF16: u32 = 1 << 22;
const TILES: u32 = 1 << 24;
const BYTES: u32 = 1 << 25;

/// Whether the processor has extensions of the unit, and the operating system saves the tiles.
fn has(extensions: u32) -> bool {
    const SAVED: u64 = 1 << 17 | 1 << 18;
    let saves_state = __cpuid(1).ecx & 1 << 27 != 0;
    let has_leaf = __cpuid(0).eax >= 7;
    has_leaf
        && saves_state
        && __cpuid_count(7, 0).edx & extensions == extensions
        // SAFETY: the processor has the instruction, as the operating system has switched it on.
        && unsafe { xcr0() } & SAVED == SAVED
}

/// # Safety
/// The processor has `xgetbv`, and the operating system has switched it on.
#[target_feature(enable = "xsave")]
unsafe fn xcr0() -> u64 {
    // SAFETY: as the caller promises.
    unsafe { _xgetbv(0) }
}

/// Asks Linux for the tiles, for all threads of the process.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const REQUEST_PERMISSION: i64 = 0x1023;
    const TILE_DATA: i64 = 18;
    let result: i64;
    // SAFETY: a system call that writes no memory of the process; the kernel changes these registers only.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") REQUEST_PERMISSION,
            in("rsi") TILE_DATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// Sizes of the eight tiles, as `ldtilecfg` reads them.
#[repr(C, align(64))]
pub struct Sizes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Sizes {
    /// Rows of each tile, up to 16, and bytes of a row, up to 64.
    pub fn of(tiles: [[usize; 2]; 8]) -> Self {
        let mut sizes =
            Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        for (tile, [rows, row_bytes]) in tiles.into_iter().enumerate() {
            (sizes.row_bytes[tile], sizes.rows[tile]) = (row_bytes as u16, rows as u8);
        }
        sizes
    }

    /// Gives the tiles these sizes.
    ///
    /// # Safety
    /// The process has the unit, and the sizes are valid ones.
    pub unsafe fn set(&self) {
        // SAFETY: they outlive the instruction. Nothing else in the program uses tiles.
        unsafe {
            asm!("ldtilecfg [{sizes}]", sizes = in(reg) self, options(nostack, readonly, preserves_flags));
        }
    }

    /// Gives the tiles back, so that the system need not save them.
    ///
    /// # Safety
    /// The process has the unit.
    pub unsafe fn release() {
        // SAFETY: as the caller promises.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}
