//! The binary files of CIFAR, which have a fixed length: most inputs are repeated up to it, or one byte beyond.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lowbit_data::{DatasetName, LabelKind, Split};

fuzz_target!(|data: &[u8]| {
    let Some((&choice, record)) = data.split_first() else { return };
    let (name, file, record_len) = match choice & 1 {
        0 => (DatasetName::Cifar10, "test_batch.bin", 3073),
        _ => (DatasetName::Cifar100, "test.bin", 3074),
    };
    let labels = if choice & 2 == 0 { LabelKind::Fine } else { LabelKind::Coarse };
    // A file of another length is refused before it is read: few inputs are written as they are.
    let bytes = match choice & 0xf0 {
        0x10.. if !record.is_empty() => {
            let n_bytes = 10_000 * record_len + usize::from(choice >> 2 & 1);
            record.iter().copied().cycle().take(n_bytes).collect()
        }
        _ => record.to_vec(),
    };
    lowbit_fuzz::write(file, &bytes);
    lowbit_fuzz::open(name, Split::Test, labels, "");
});
