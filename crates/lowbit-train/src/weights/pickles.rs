//! Bounds on the pickles of a PyTorch file, before anything is made of them: an operation of one byte makes an object of a hundred.
//!
//! Nothing is built here. What an operation is followed by is passed over, and where containers have values between their pickles,
//! they are passed over by the sizes that the pickles say.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

use zip::CompressionMethod;
use zip::read::ZipArchive;

/// What to do about a file that has more than weights.
pub(super) const ALONE: &str = "save the weights alone, as torch.save(model.state_dict(), FILE) does";

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

/// Refuses a `file` of this `kind` whose pickles take more memory than those of a network need. Returns the classes of modules that
/// are saved with their source code.
pub(super) fn check(file: File, kind: Kind) -> Result<Vec<ModuleClass>, Problem> {
    let mut budget = Budget { operations: MAX_OPERATIONS, bytes: MAX_BYTES, ..Budget::default() };
    let mut classes = Vec::new();
    match kind {
        Kind::Zip => check_zip(file, &mut budget)?,
        Kind::Tar => check_tar(file, &mut budget)?,
        Kind::Legacy => {
            // The magic number, the version, the system, the object, the keys of its storages.
            let mut reader = BufReader::new(file);
            for _ in 0..5 {
                classes.append(&mut budget.pass(&mut reader)?.module_classes);
            }
        }
    }
    budget.check_copies()?;
    Ok(classes)
}

fn check_zip(file: File, budget: &mut Budget) -> Result<(), Problem> {
    let damaged = |error: zip::result::ZipError| format!("its ZIP archive: {error}");
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(damaged)?;
    if archive.len() > MAX_ENTRIES {
        return Err(format!("it has {} entries, expected at most {MAX_ENTRIES}", archive.len()));
    }
    if archive.file_names().any(|name| name.is_ok_and(|name| name.ends_with("/constants.pkl"))) {
        return Err(format!("it is a program in TorchScript: {ALONE}"));
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
    /// Bytes that were passed.
    position: u64,
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
    module_classes: Vec<ModuleClass>,
}

impl Budget {
    /// Refuses pickles that the reader would make more text of than a network has.
    fn check_copies(&self) -> Result<(), Problem> {
        let path = self.longest_text.saturating_mul(self.dictionaries.clamp(1, MAX_DEPTH));
        match self.uses.saturating_mul(path) <= MAX_COPIED {
            true => Ok(()),
            false => Err(format!(
                "its pickles use {} values under names of up to {} bytes in {} dictionaries: {ALONE}",
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
        let mut modules = ModuleClasses::default();
        // Integers since the newest mark: the sides of a tensor, if a tuple is made of them.
        let mut n_sides = 0;
        loop {
            let [operation] = self.fixed::<1>(reader)?;
            passed.operations += 1;
            self.operations = self
                .operations
                .checked_sub(1)
                .ok_or_else(|| format!("its pickles have more than {MAX_OPERATIONS} operations: {ALONE}"))?;
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
            let at = self.position - 1;
            let mut operand = Operand::Other;
            match operation {
                b'.' => {
                    passed.module_classes = modules.found;
                    return Ok(passed);
                }
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
                b'h' | b'q' => operand = Operand::Slot(self.fixed::<1>(reader)?[0].into()),
                b'j' | b'r' => operand = Operand::Slot(u32::from_le_bytes(self.fixed(reader)?)),
                0x80 | 0x82 => drop(self.fixed::<1>(reader)?),
                0x83 => drop(self.fixed::<2>(reader)?),
                0x84 => drop(self.fixed::<4>(reader)?),
                b'G' | 0x95 => drop(self.fixed::<8>(reader)?),
                b'U' | b'C' | 0x8a | 0x8c => {
                    let [n] = self.fixed::<1>(reader)?;
                    operand = self.text(reader, n.into())?;
                }
                b'T' | b'X' | b'B' | 0x8b => {
                    let n = u32::from_le_bytes(self.fixed(reader)?);
                    operand = self.text(reader, n.into())?;
                }
                0x8d | 0x8e | 0x96 => {
                    let n = u64::from_le_bytes(self.fixed(reader)?);
                    operand = self.text(reader, n)?;
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
            self.longest_text = self.longest_text.max(modules.follow(at, operation, operand));
        }
    }

    fn fixed<const N: usize>(&mut self, reader: &mut impl Read) -> Result<[u8; N], Problem> {
        let mut bytes = [0; N];
        reader.read_exact(&mut bytes).map_err(truncated)?;
        self.position += N as u64;
        Ok(bytes)
    }

    fn text(&mut self, reader: &mut impl Read, n: u64) -> Result<Operand, Problem> {
        self.take_bytes(n)?;
        let mut start = Vec::new();
        reader.take(n.min(MODULE.len() as u64)).read_to_end(&mut start).map_err(truncated)?;
        pass_over(reader, n - start.len() as u64)?;
        self.position += n;
        Ok(Operand::Text { n_bytes: n, is_module: n == MODULE.len() as u64 && start == MODULE })
    }

    fn line(&mut self, reader: &mut impl BufRead) -> Result<Vec<u8>, Problem> {
        let mut line = Vec::new();
        reader.take(self.bytes.saturating_add(1)).read_until(b'\n', &mut line).map_err(truncated)?;
        self.longest_text = self.longest_text.max(line.len() as u64);
        self.position += line.len() as u64;
        self.take_bytes(line.len() as u64)?;
        match line.pop() {
            Some(b'\n') => Ok(line.strip_suffix(b"\r").unwrap_or(&line).to_vec()),
            _ => Err(truncated(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}

/// What begins the persistent id of a module's class.
const MODULE: &[u8] = b"module";

/// The class of a module that is saved whole in the legacy container: a persistent id `("module", class, file, source code)`, which
/// stands for the class (`torch/serialization.py`, `_legacy_save`). The reader knows persistent ids of storages only.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ModuleClass {
    /// Where in the file the operation is that makes the persistent id.
    at: u64,
    /// Where the memory of the pickle has the class.
    slot: u32,
}

impl ModuleClass {
    /// Copies a file `from` its start, with each class in place of its persistent id.
    pub(super) fn resolve(classes: &[Self], from: &mut impl Read, to: &mut impl io::Write) -> io::Result<()> {
        let mut position = 0;
        for class in classes {
            io::copy(&mut from.take(class.at - position), to)?;
            from.read_exact(&mut [0])?;
            position = class.at + 1;
            // POP what the persistent id is, LONG_BINGET the class.
            to.write_all(b"0j")?;
            to.write_all(&class.slot.to_le_bytes())?;
        }
        io::copy(from, to).map(drop)
    }
}

/// What an operation is followed by.
#[derive(Clone, Copy)]
enum Operand {
    Text { n_bytes: u64, is_module: bool },
    Slot(u32),
    Other,
}

/// Finds the classes of modules in a pickle, operation by operation.
#[derive(Default)]
struct ModuleClasses {
    state: State,
    /// Places in the memory that have the text "module".
    tags: HashSet<u32>,
    /// Bytes of what the memory has of persistent ids, by place.
    texts: HashMap<u32, u64>,
    found: Vec<ModuleClass>,
}

/// How much of a persistent id of a class was seen.
#[derive(Clone, Copy, Default)]
enum State {
    #[default]
    Nothing,
    Mark,
    Tag,
    Class(Option<u32>),
    /// The class and of its texts these bytes.
    Texts(u32, u64),
    Tuple(u32, u64),
}

impl State {
    /// Where the memory has the class of the persistent id that is being made.
    fn class(self) -> Option<u32> {
        match self {
            Self::Nothing | Self::Mark | Self::Tag => None,
            Self::Class(slot) => slot,
            Self::Texts(slot, _) | Self::Tuple(slot, _) => Some(slot),
        }
    }
}

impl ModuleClasses {
    /// Follows the `operation` `at` this byte of the file. Returns the bytes of the longest text that it may make part of a value: the
    /// source code of a class is none, unless it is taken from the memory later.
    fn follow(&mut self, at: u64, operation: u8, operand: Operand) -> u64 {
        let (put, get) = (matches!(operation, b'q' | b'r'), matches!(operation, b'h' | b'j'));
        let taken = match operand {
            Operand::Slot(slot) if get => self.texts.get(&slot).copied().unwrap_or_default(),
            _ => 0,
        };
        // What is put in a place is not what was there.
        if let Operand::Slot(slot) = operand
            && put
        {
            self.tags.remove(&slot);
            if self.state.class() == Some(slot) {
                let pending = self.pending();
                self.state = State::Nothing;
                return pending;
            }
        }
        let (next, longest) = match (self.state, operand) {
            (_, _) if operation == b'(' => (State::Mark, self.pending()),
            (State::Mark, Operand::Text { n_bytes, is_module: true }) => (State::Tag, n_bytes),
            (State::Mark, Operand::Slot(slot)) if get && self.tags.contains(&slot) => (State::Tag, taken),
            (State::Tag, Operand::Slot(slot)) if put => {
                self.tags.insert(slot);
                (State::Tag, 0)
            }
            (State::Tag, _) if operation == b'c' => (State::Class(None), 0),
            (State::Tag, Operand::Slot(slot)) if get => (State::Class(Some(slot)), taken),
            (State::Class(None), Operand::Slot(slot)) if put => (State::Class(Some(slot)), 0),
            (State::Class(Some(class)), Operand::Text { n_bytes, .. }) => (State::Texts(class, n_bytes), 0),
            (State::Class(Some(class)), _) if operation == b'N' => (State::Texts(class, 0), 0),
            // The file of an earlier class.
            (State::Class(Some(class)), Operand::Slot(_)) if get => (State::Texts(class, 0), taken),
            (State::Texts(class, n), Operand::Text { n_bytes, .. }) => {
                (State::Texts(class, n.saturating_add(n_bytes)), 0)
            }
            (State::Texts(class, n), Operand::Slot(slot)) if put => {
                self.texts.insert(slot, n);
                (State::Texts(class, n), 0)
            }
            (State::Texts(class, n), Operand::Slot(_)) if get => (State::Texts(class, n), taken),
            (State::Texts(class, n), _) if operation == b'N' => (State::Texts(class, n), 0),
            (State::Texts(class, n), _) if operation == b't' => (State::Tuple(class, n), 0),
            (State::Tuple(class, n), Operand::Slot(slot)) if put => {
                self.texts.insert(slot, n);
                (State::Tuple(class, n), 0)
            }
            (State::Tuple(slot, _), _) if operation == b'Q' => {
                self.found.push(ModuleClass { at, slot });
                // It is taken from the memory in its stead.
                (State::Nothing, self.texts.get(&slot).copied().unwrap_or_default())
            }
            (_, Operand::Text { n_bytes, .. }) => (State::Nothing, n_bytes.max(self.pending())),
            _ => (State::Nothing, taken.max(self.pending())),
        };
        self.state = next;
        longest
    }

    /// Bytes of the texts that turn out to be no part of a persistent id.
    fn pending(&self) -> u64 {
        match self.state {
            State::Texts(_, n) | State::Tuple(_, n) => n,
            _ => 0,
        }
    }
}
