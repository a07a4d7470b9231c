//! The unit's instructions for tests on processors without it: a processor raises a signal for each, whose handler does what the
//! manual says and goes on behind it.

use std::cell::RefCell;
use std::sync::Once;

use super::{Amx, BF16, BYTES, TILES, has};

/// The tiles of a thread.
struct Tiles {
    rows: [usize; 8],
    row_bytes: [usize; 8],
    values: [[[u8; 64]; 16]; 8],
}

impl Tiles {
    const NONE: Self = Self { rows: [0; 8], row_bytes: [0; 8], values: [[[0; 64]; 16]; 8] };
}

thread_local! {
    static STATE: RefCell<Tiles> = const { RefCell::new(Tiles::NONE) };
}

/// Emulates the unit from now on, in all threads, unless the process has one.
pub fn begin() {
    static BEGUN: Once = Once::new();
    BEGUN.call_once(|| {
        if Amx::detect().is_some() && has(TILES | BYTES | BF16) {
            return;
        }
        // SAFETY: the handler has the signature that `SA_SIGINFO` asks for, and the action is filled.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as extern "C" fn(_, _, _) as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
            assert_eq!(libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut()), 0);
        }
    });
}

/// Emulates the instruction that raised the signal; ends the process if it is another one.
extern "C" fn handle(_signal: libc::c_int, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the system passes a context, and nobody else has it.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let at = registers[libc::REG_RIP as usize] as *const u8;
    // SAFETY: the longest of the unit's instructions has 10 bytes, and code follows what raised the signal.
    let code = unsafe { at.cast::<[u8; 10]>().read_unaligned() };
    let Some(instruction) = decode(&code, registers) else { std::process::abort() };
    STATE.with_borrow_mut(|tiles| {
        // SAFETY: what the program reads and writes by an instruction of its own is there.
        unsafe { tiles.run(instruction.operation) }
    });
    registers[libc::REG_RIP as usize] += instruction.len as i64;
}

struct Instruction {
    len: usize,
    operation: Operation,
}

/// A place in memory: where a row begins, and the bytes from row to row.
#[derive(Clone, Copy)]
struct Rows {
    first: usize,
    step: usize,
}

enum Operation {
    LoadSizes(usize),
    Release,
    Zero(usize),
    Load(usize, Rows),
    Store(usize, Rows),
    /// Of the sums, and of both factors.
    MultiplyBf16([usize; 3]),
    /// The same.
    MultiplyBytes([usize; 3]),
}

/// The number in a register, by the number that instructions have for it.
fn register(registers: &[i64; 23], number: usize) -> usize {
    const ORDER: [libc::c_int; 16] = [
        libc::REG_RAX,
        libc::REG_RCX,
        libc::REG_RDX,
        libc::REG_RBX,
        libc::REG_RSP,
        libc::REG_RBP,
        libc::REG_RSI,
        libc::REG_RDI,
        libc::REG_R8,
        libc::REG_R9,
        libc::REG_R10,
        libc::REG_R11,
        libc::REG_R12,
        libc::REG_R13,
        libc::REG_R14,
        libc::REG_R15,
    ];
    registers[ORDER[number] as usize] as usize
}

/// Volume 2 of the manual, chapter 2.3 (VEX) and the pages of the instructions.
fn decode(code: &[u8; 10], registers: &[i64; 23]) -> Option<Instruction> {
    let [0xc4, one, two, opcode, modrm, ..] = *code else { return None };
    if one & 0x1f != 2 || two & 0x84 != 0 {
        return None;
    }
    let (index_high, base_high) = (usize::from(!one >> 6 & 1) * 8, usize::from(!one >> 5 & 1) * 8);
    let (prefix, third) = (two & 3, usize::from(!two >> 3 & 15));
    let (mode, reg, rm) = (modrm >> 6, usize::from(modrm >> 3 & 7), usize::from(modrm & 7));
    let (mut len, mut rows) = (5, Rows { first: 0, step: 0 });
    if mode != 3 {
        let mut base = rm + base_high;
        if rm == 4 {
            let sib = code[len];
            len += 1;
            base = usize::from(sib & 7) + base_high;
            let index = usize::from(sib >> 3 & 7) + index_high;
            if index != 4 {
                rows.step = register(registers, index) << (sib >> 6);
            }
        }
        if mode == 0 && base & 7 == 5 {
            return None;
        }
        let displacement = match mode {
            0 => 0,
            1 => isize::from(code[len].cast_signed()),
            _ => i32::from_le_bytes(code[len..len + 4].try_into().ok()?) as isize,
        };
        len += [0, 1, 4][usize::from(mode)];
        rows.first = register(registers, base).wrapping_add_signed(displacement);
    }
    let operation = match (opcode, prefix, mode == 3) {
        (0x49, 0, false) => Operation::LoadSizes(rows.first),
        (0x49, 0, true) => Operation::Release,
        (0x49, 3, true) => Operation::Zero(reg),
        (0x4b, 3, false) => Operation::Load(reg, rows),
        (0x4b, 2, false) => Operation::Store(reg, rows),
        (0x5c, 2, true) => Operation::MultiplyBf16([reg, rm, third]),
        (0x5e, 1, true) => Operation::MultiplyBytes([reg, rm, third]),
        _ => return None,
    };
    Some(Instruction { len, operation })
}

impl Tiles {
    /// # Safety
    /// What is read and written is there.
    unsafe fn run(&mut self, operation: Operation) {
        match operation {
            Operation::LoadSizes(at) => {
                // SAFETY: as the caller promises.
                let sizes = unsafe { (at as *const [u8; 64]).read() };
                assert_eq!(sizes[..2], [1, 0], "palette 1");
                *self = Self::NONE;
                for tile in 0..8 {
                    self.row_bytes[tile] = usize::from(sizes[16 + 2 * tile]);
                    self.rows[tile] = usize::from(sizes[48 + tile]);
                    assert!(
                        self.rows[tile] <= 16 && self.row_bytes[tile] <= 64,
                        "a tile of 16 rows of 64 bytes"
                    );
                }
            }
            Operation::Release => *self = Self::NONE,
            Operation::Zero(tile) => self.values[tile] = [[0; 64]; 16],
            Operation::Load(tile, Rows { first, step }) => {
                assert!(self.rows[tile] > 0, "a tile without a size");
                self.values[tile] = [[0; 64]; 16];
                for row in 0..self.rows[tile] {
                    let from = first.wrapping_add(row * step) as *const u8;
                    // SAFETY: as the caller promises.
                    unsafe { from.copy_to(self.values[tile][row].as_mut_ptr(), self.row_bytes[tile]) };
                }
            }
            Operation::Store(tile, Rows { first, step }) => {
                for row in 0..self.rows[tile] {
                    let to = first.wrapping_add(row * step) as *mut u8;
                    // SAFETY: as the caller promises.
                    unsafe { to.copy_from(self.values[tile][row].as_ptr(), self.row_bytes[tile]) };
                }
            }
            Operation::MultiplyBf16(tiles) => self.multiply(
                tiles,
                [0.0; 2],
                |[even, odd], a, b| {
                    let number =
                        |low: u8, high: u8| flushed(f32::from_bits(u32::from_le_bytes([0, 0, low, high])));
                    *even = flushed(number(a[0], a[1]).mul_add(number(b[0], b[1]), *even));
                    *odd = flushed(number(a[2], a[3]).mul_add(number(b[2], b[3]), *odd));
                },
                |sum, [even, odd]| {
                    flushed(flushed(f32::from_le_bytes(sum)) + flushed(even + odd)).to_le_bytes()
                },
            ),
            Operation::MultiplyBytes(tiles) => self.multiply(
                tiles,
                0i32,
                |total, a, b| {
                    let products = a.iter().zip(b).map(|(a, b)| i32::from(*a) * i32::from(b.cast_signed()));
                    *total = total.wrapping_add(products.sum());
                },
                |sum, total| i32::from_le_bytes(sum).wrapping_add(total).to_le_bytes(),
            ),
        }
    }

    /// Adds the sums of products of words of two tiles: each begins as `none`.
    fn multiply<T: Copy>(
        &mut self,
        [sums, a, b]: [usize; 3],
        none: T,
        add: impl Fn(&mut T, [u8; 4], [u8; 4]),
        end: impl Fn([u8; 4], T) -> [u8; 4],
    ) {
        assert!(sums != a && sums != b && a != b, "three tiles");
        let words = self.row_bytes[a] / 4;
        assert_eq!(self.rows[sums], self.rows[a], "rows of the sums");
        assert_eq!(self.row_bytes[sums], self.row_bytes[b], "columns of the sums");
        assert_eq!(self.rows[b], words, "words of a row");
        let word =
            |row: &[u8; 64], i: usize| -> [u8; 4] { row[4 * i..][..4].try_into().expect("four bytes") };
        for row in 0..self.rows[sums] {
            for column in 0..self.row_bytes[sums] / 4 {
                let mut total = none;
                for i in 0..words {
                    add(&mut total, word(&self.values[a][row], i), word(&self.values[b][i], column));
                }
                let sum = end(word(&self.values[sums][row], column), total);
                self.values[sums][row][4 * column..][..4].copy_from_slice(&sum);
            }
        }
    }
}

/// The number, or zero for what is subnormal.
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0.0 } else { x }
}
