//! Bounds on the pickles of a PyTorch file, before anything is made of them: an operation of one byte makes an object of a hundred.
//!
//! Nothing is built here. What an operation is followed by is passed over, and where containers have values between their pickles,
//! they are passed over by the sizes that the pickles say.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

use zip::CompressionMethod;
use zip::read::ZipArchive;

/// Most operations in the pickles of a file. Those of ResNet-101 with the momentum of its optimizer have 60 thousand.
const MAX_OPERATIONS: u64 = 1_000_000;

/// Most bytes of names and other texts in them.
const MAX_BYTES: u64 = 64 << 20;

/// Most entries of an archive. ResNet-101 has 630.
const MAX_ENTRIES: usize = 100_000;

/// Most sides of a tensor, as PyTorch has it.
const MAX_RANK: i32 = 64;

/// Most bytes of the name of a class.
const MAX_CLASS: usize = 1 << 10;

/// Most bytes of texts that the reader may copy: what is remembered is copied each time that it is used, and each tensor has the path of its
/// keys. A file of ResNet-101 with its optimizer takes a thousandth.
const MAX_COPIED: u64 = 4 << 30;

/// Most dictionaries in one another, as the reader follows them.
const MAX_DEPTH: u64 = 1_000;

/// Containers by their first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Zip,
    Tar,
    Legacy,
}

impl Kind {
    /// Of a file that begins so, if it is one.
    pub(super) fn of(start: &[u8]) -> Option<Self> {
        // A number by which PyTorch knows its files, as pickle protocols from 2 and those before write it.
        const MAGIC: [&[u8]; 2] =
            [&[0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19], b"119547037146038801333356"];
        let first = &start[..start.len().min(64)];
        let has = |magic: &[u8]| first.windows(magic.len()).any(|window| window == magic);
        if start.starts_with(b"PK\x03\x04") || start.starts_with(b"PK\x05\x06") {
            Some(Self::Zip)
        } else if start.get(257..262) == Some(b"ustar") {
            Some(Self::Tar)
        } else {
            MAGIC.into_iter().any(has).then_some(Self::Legacy)
        }
    }
}

/// Why a file is not read.
type Problem = String;

/// Refuses a `file` of this `kind` whose pickles take more memory than those of a network need.
pub(super) fn check(file: File, kind: Kind) -> Result<(), Problem> {
    let mut budget = Budget { operations: MAX_OPERATIONS, bytes: MAX_BYTES, ..Budget::default() };
    match kind {
        Kind::Zip => check_zip(file, &mut budget),
        Kind::Tar => check_tar(file, &mut budget),
        Kind::Legacy => {
            // The magic number, the version, the system, the object, the keys of its storages.
            let mut reader = BufReader::new(file);
            (0..5).try_for_each(|_| budget.pass(&mut reader).map(drop))
        }
    }?;
    budget.check_copies()
}

fn check_zip(file: File, budget: &mut Budget) -> Result<(), Problem> {
    let damaged = |error: zip::result::ZipError| format!("its ZIP archive: {error}");
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(damaged)?;
    if archive.len() > MAX_ENTRIES {
        return Err(format!("it has {} entries, expected at most {MAX_ENTRIES}", archive.len()));
    }
    for entry in 0..archive.len() {
        let raw = archive.by_index_raw(entry).map_err(damaged)?;
        let name = raw.name().map_err(damaged)?.into_owned();
        if raw.compression() != CompressionMethod::Stored {
            return Err(format!(
                "its entry {name:?} is compressed, which PyTorch never does: save it again with torch.save"
            ));
        }
        drop(raw);
        if name.ends_with("data.pkl") {
            let entry = archive.by_index(entry).map_err(damaged)?;
            budget.pass(&mut BufReader::new(entry))?;
        }
    }
    Ok(())
}

fn check_tar(file: File, budget: &mut Budget) -> Result<(), Problem> {
    let damaged = |error: io::Error| format!("its TAR archive: {error}");
    let mut archive = tar::Archive::new(BufReader::new(file));
    let mut n_entries = 0;
    for entry in archive.entries().map_err(damaged)? {
        let entry = entry.map_err(damaged)?;
        n_entries += 1;
        if n_entries > MAX_ENTRIES {
            return Err(format!("it has more than {MAX_ENTRIES} entries"));
        }
        // A sparse file may be longer than what holds it.
        if !entry.header().entry_type().is_file() {
            return Err("its TAR archive has an entry that is no plain file".into());
        }
        let name = entry.path().map_err(damaged)?.to_string_lossy().trim_start_matches("./").to_string();
        let mut reader = BufReader::new(entry);
        match name.as_str() {
            "sys_info" | "pickle" => drop(budget.pass(&mut reader)?),
            "storages" => {
                for _ in 0..budget.pass_count(&mut reader)? {
                    let size = budget.pass_storage(&mut reader)?;
                    let n_bytes =
                        u64::try_from(read_i64(&mut reader)?).ok().and_then(|n| n.checked_mul(size));
                    pass_over(&mut reader, n_bytes.unwrap_or(u64::MAX))?;
                }
                // Which storages are parts of others.
                budget.pass(&mut reader)?;
            }
            "tensors" => {
                for _ in 0..budget.pass_count(&mut reader)? {
                    budget.pass(&mut reader)?;
                    let mut rank = [0; 8];
                    reader.read_exact(&mut rank).map_err(truncated)?;
                    let rank = i32::from_le_bytes([rank[0], rank[1], rank[2], rank[3]]);
                    if !(0..=MAX_RANK).contains(&rank) {
                        return Err(format!("a tensor has {rank} sides, expected at most {MAX_RANK}"));
                    }
                    // Sizes, strides, and the place in its storage.
                    pass_over(&mut reader, 16 * rank.unsigned_abs() as u64 + 8)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn truncated(error: io::Error) -> Problem {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "it ends too early".into(),
        _ => error.to_string(),
    }
}

fn read_i64(reader: &mut impl Read) -> Result<i64, Problem> {
    let mut bytes = [0; 8];
    reader.read_exact(&mut bytes).map_err(truncated)?;
    Ok(i64::from_le_bytes(bytes))
}

fn pass_over(reader: &mut impl Read, n_bytes: u64) -> Result<(), Problem> {
    let n = io::copy(&mut reader.take(n_bytes), &mut io::sink()).map_err(truncated)?;
    if n == n_bytes { Ok(()) } else { Err(truncated(io::ErrorKind::UnexpectedEof.into())) }
}

/// What the pickles of a file may still have, and what was seen of what the reader copies.
#[derive(Default)]
struct Budget {
    operations: u64,
    bytes: u64,
    /// What is taken from the memory of a pickle, or from a storage.
    uses: u64,
    longest_text: u64,
    dictionaries: u64,
}

/// What is known of a pickle that was passed.
#[derive(Default)]
struct Passed {
    operations: u64,
    /// The integers in it, the last of them, and the classes.
    n_integers: usize,
    integer: i64,
    n_classes: usize,
    class: String,
}

impl Budget {
    /// Refuses pickles that the reader would make more text of than a network has.
    fn check_copies(&self) -> Result<(), Problem> {
        let path = self.longest_text.saturating_mul(self.dictionaries.clamp(1, MAX_DEPTH));
        match self.uses.saturating_mul(path) <= MAX_COPIED {
            true => Ok(()),
            false => Err(format!(
                "its pickles use {} values under names of up to {} bytes in {} dictionaries: save the weights alone, as \
                 torch.save(model.state_dict(), FILE) does",
                self.uses, self.longest_text, self.dictionaries
            )),
        }
    }

    fn take_bytes(&mut self, n: u64) -> Result<(), Problem> {
        let left = self.bytes.checked_sub(n);
        self.bytes = left.ok_or_else(|| format!("its pickles have more than {MAX_BYTES} bytes of texts"))?;
        Ok(())
    }

    /// Passes a pickle of one number.
    fn pass_count(&mut self, reader: &mut impl BufRead) -> Result<i64, Problem> {
        let Passed { operations, n_integers, integer, .. } = self.pass(reader)?;
        // The protocol, the number, the end: what more there were could make another number of it.
        match operations <= 3 && n_integers == 1 {
            true => Ok(integer),
            false => Err("its TAR archive does not say how many tensors there are".into()),
        }
    }

    /// Passes a pickle that says what a storage is. Returns the bytes of a value.
    fn pass_storage(&mut self, reader: &mut impl BufRead) -> Result<u64, Problem> {
        let Passed { n_classes, class, .. } = self.pass(reader)?;
        match (n_classes, class.as_str()) {
            (1, "DoubleStorage" | "LongStorage") => Ok(8),
            (1, "FloatStorage" | "IntStorage") => Ok(4),
            (1, "HalfStorage" | "BFloat16Storage" | "ShortStorage") => Ok(2),
            (1, "CharStorage" | "ByteStorage" | "BoolStorage") => Ok(1),
            _ => Err("its TAR archive has a storage of no plain type".into()),
        }
    }

    /// Passes a pickle, up to its end.
    fn pass(&mut self, reader: &mut impl BufRead) -> Result<Passed, Problem> {
        let mut passed = Passed::default();
        // Integers since the newest mark: the sides of a tensor, if a tuple is made of them.
        let mut n_sides = 0;
        loop {
            let [operation] = self.fixed::<1>(reader)?;
            passed.operations += 1;
            self.operations = self
                .operations
                .checked_sub(1)
                .ok_or_else(|| format!("its pickles have more than {MAX_OPERATIONS} operations: save the weights alone, as torch.save(model.state_dict(), FILE) does"))?;
            match operation {
                b'(' => n_sides = 0,
                b'K' | b'M' | b'J' | b'I' | b'L' | 0x8a | 0x8b => n_sides += 1,
                // One after the other, from the memory.
                b'h' | b'j' | b'g' | b'2' if n_sides > 0 => n_sides += 1,
                b't' if n_sides > MAX_RANK => {
                    return Err(format!("a tensor has {n_sides} sides, expected at most {MAX_RANK}"));
                }
                b'}' => self.dictionaries += 1,
                b'd' => {
                    self.dictionaries += 1;
                    n_sides = 0;
                }
                b't' | b'e' | b'l' | b'u' => n_sides = 0,
                _ => {}
            }
            self.uses += u64::from(matches!(operation, b'h' | b'j' | b'g' | b'2' | b'Q' | b'P'));
            let mut integer = |value: i64| {
                passed.n_integers += 1;
                passed.integer = value;
            };
            match operation {
                b'.' => return Ok(passed),
                b'K' => integer(self.fixed::<1>(reader)?[0].into()),
                b'M' => integer(u16::from_le_bytes(self.fixed(reader)?).into()),
                b'J' => integer(i32::from_le_bytes(self.fixed(reader)?).into()),
                b'c' => {
                    let module = self.line(reader)?.len();
                    passed.n_classes += 1;
                    passed.class = String::from_utf8_lossy(&self.line(reader)?).into_owned();
                    if module.max(passed.class.len()) > MAX_CLASS {
                        return Err(format!("the name of a class in it has more than {MAX_CLASS} bytes"));
                    }
                }
                // A class by two texts of the stack.
                0x93 => passed.n_classes += 2,
                b'I' | b'L' | b'F' | b'V' | b'g' | b'p' | b'P' => drop(self.line(reader)?),
                b'h' | b'q' | 0x80 | 0x82 => drop(self.fixed::<1>(reader)?),
                0x83 => drop(self.fixed::<2>(reader)?),
                b'j' | b'r' | 0x84 => drop(self.fixed::<4>(reader)?),
                b'G' | 0x95 => drop(self.fixed::<8>(reader)?),
                b'U' | b'C' | 0x8a | 0x8c => {
                    let [n] = self.fixed::<1>(reader)?;
                    self.text(reader, n.into())?;
                }
                b'T' | b'X' | b'B' | 0x8b => {
                    let n = u32::from_le_bytes(self.fixed(reader)?);
                    self.text(reader, n.into())?;
                }
                0x8d | 0x8e | 0x96 => {
                    let n = u64::from_le_bytes(self.fixed(reader)?);
                    self.text(reader, n)?;
                }
                b'('
                | b'0'
                | b'1'
                | b'2'
                | b'N'
                | b'R'
                | b'b'
                | b'd'
                | b'l'
                | b't'
                | b's'
                | b'a'
                | b')'
                | b']'
                | b'}'
                | b'e'
                | b'u'
                | b'Q'
                | 0x81
                | 0x85..=0x89
                | 0x8f..=0x92
                | 0x94
                | 0x97
                | 0x98 => {}
                other => {
                    return Err(format!(
                        "its pickle has the byte 0x{other:02x} where an operation should be"
                    ));
                }
            }
        }
    }

    fn fixed<const N: usize>(&mut self, reader: &mut impl Read) -> Result<[u8; N], Problem> {
        let mut bytes = [0; N];
        reader.read_exact(&mut bytes).map_err(truncated)?;
        Ok(bytes)
    }

    fn text(&mut self, reader: &mut impl Read, n: u64) -> Result<(), Problem> {
        self.longest_text = self.longest_text.max(n);
        self.take_bytes(n)?;
        pass_over(reader, n)
    }

    fn line(&mut self, reader: &mut impl BufRead) -> Result<Vec<u8>, Problem> {
        let mut line = Vec::new();
        reader.take(self.bytes.saturating_add(1)).read_until(b'\n', &mut line).map_err(truncated)?;
        self.longest_text = self.longest_text.max(line.len() as u64);
        self.take_bytes(line.len() as u64)?;
        match line.pop() {
            Some(b'\n') => Ok(line.strip_suffix(b"\r").unwrap_or(&line).to_vec()),
            _ => Err(truncated(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}
