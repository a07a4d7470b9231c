//! The binary files of CIFAR, which have a fixed length: the input is repeated up to it, or one byte beyond.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lowbit_data::{DatasetName, LabelKind};

fuzz_target!(|data: &[u8]| {
    let Some((&choice, record)) = data.split_first() else { return };
    let (name, file, record_len) = match choice & 1 {
        0 => (DatasetName::Cifar10, "test_batch.bin", 3073),
        _ => (DatasetName::Cifar100, "test.bin", 3074),
    };
    let labels = if choice & 2 == 0 { LabelKind::Fine } else { LabelKind::Coarse };
    // One file as long as it should be is enough of a wait: most inputs are written as they are.
    let bytes = match choice & 0xf0 {
        0 if !record.is_empty() => {
            let n_bytes = 10_000 * record_len + usize::from(choice >> 2 & 1);
            record.iter().copied().cycle().take(n_bytes).collect()
        }
        _ => record.to_vec(),
    };
    lowbit_fuzz::write(file, &bytes);
    lowbit_fuzz::open(name, labels, "");
});
