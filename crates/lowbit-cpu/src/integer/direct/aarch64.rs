//! Tiles for aarch64.

use std::arch::aarch64::*;

use super::super::aarch64::sdot;
use super::{Operands, Row, Store};
use crate::instructions::Baseline;
use crate::integer::output::Output;
use crate::tile::BLOCK;

/// Registers of sums of a pixel.
const PARTS: usize = 4;

/// The weights of a step: a row has the size of four registers.
#[inline(always)]
fn registers(row: &Row) -> [int8x16_t; PARTS] {
    // SAFETY: both are 64 bytes.
    unsafe { std::mem::transmute(*row) }
}

/// Products of single channels are summed up in 16 bits.
///
/// # Safety
/// `start + step < words.len()` for every start and step.
#[target_feature(enable = "neon")]
pub unsafe fn tiles_neon(operands: Operands<'_>, store: &mut Store<'_, impl Output>) {
    // As many as have their narrow sums in registers beside the weights.
    const TILE: usize = 2;
    // A sum has one product of a step, where it has two for AVX2.
    let in_part = operands.narrow_steps.saturating_mul(2);
    for first in (0..operands.starts.len()).step_by(TILE) {
        let windows = operands.windows::<TILE>(first);
        let mut sums = [[vdupq_n_s32(0); PARTS]; TILE];
        for (steps, rows) in operands.steps.chunks(in_part).zip(operands.panel.chunks(in_part)) {
            let mut narrow = [[[vdupq_n_s16(0); 2]; PARTS]; TILE];
            for (&step, row) in steps.iter().zip(rows) {
                let weights = registers(row);
                for p in 0..TILE {
                    // SAFETY: `start + step < words.len()`, which the caller promises.
                    let codes = vdupq_n_u32(unsafe { *windows[p].add(step as usize) });
                    let codes = vreinterpretq_s8_u32(codes);
                    for v in 0..PARTS {
                        let [low, high] = narrow[p][v];
                        let low = vmlal_s8(low, vget_low_s8(codes), vget_low_s8(weights[v]));
                        narrow[p][v] = [low, vmlal_high_s8(high, codes, weights[v])];
                    }
                }
            }
            for (sums, narrow) in sums.iter_mut().zip(narrow) {
                for (sums, [low, high]) in sums.iter_mut().zip(narrow) {
                    *sums = vaddq_s32(*sums, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
                }
            }
        }
        // SAFETY: both are 16 integers of 32 bits for each pixel.
        let sums: [[i32; BLOCK]; TILE] = unsafe { std::mem::transmute(sums) };
        store.take(Baseline, first, &sums);
    }
}

/// Both operands are signed: `WIDE` codes, of 8 bits, are less by 128 when they are multiplied, and the sums begin with what that takes away.
///
/// # Safety
/// `start + step < words.len()` for every start and step.
#[target_feature(enable = "neon,dotprod")]
pub unsafe fn tiles_dotprod<const WIDE: bool>(operands: Operands<'_>, store: &mut Store<'_, impl Output>) {
    const TILE: usize = 6;
    let mut begin = [vdupq_n_s32(0); PARTS];
    if WIDE {
        for row in operands.panel {
            for (begin, weights) in begin.iter_mut().zip(registers(row)) {
                *begin = sdot(*begin, weights, vdupq_n_s8(1));
            }
        }
        begin = begin.map(|sum| vshlq_n_s32::<7>(sum));
    }
    let sign = vdupq_n_s8(i8::MIN);
    for first in (0..operands.starts.len()).step_by(TILE) {
        let windows = operands.windows::<TILE>(first);
        let mut sums = [begin; TILE];
        for (&step, row) in operands.steps.iter().zip(operands.panel) {
            let weights = registers(row);
            for p in 0..TILE {
                // SAFETY: `start + step < words.len()`, which the caller promises.
                let codes = vdupq_n_u32(unsafe { *windows[p].add(step as usize) });
                let codes = vreinterpretq_s8_u32(codes);
                let codes = if WIDE { veorq_s8(codes, sign) } else { codes };
                for v in 0..PARTS {
                    sums[p][v] = sdot(sums[p][v], codes, weights[v]);
                }
            }
        }
        // SAFETY: both are 16 integers of 32 bits for each pixel.
        let sums: [[i32; BLOCK]; TILE] = unsafe { std::mem::transmute(sums) };
        store.take(Baseline, first, &sums);
    }
}
