//! The IDX files of one part of MNIST: the first byte says which part, and whether the names are those of gzip files; the
//! next two, how long the label file is, which follows; the rest is the image file.
#![no_main]

use std::fs;

use libfuzzer_sys::fuzz_target;
use lowbit_data::{DatasetName, LabelKind, Split};

fuzz_target!(|data: &[u8]| {
    let Some((&[choice, n_labels, n_more], rest)) = data.split_first_chunk::<3>() else { return };
    let n_labels = usize::from(n_labels) + 256 * usize::from(n_more);
    let (labels, images) = rest.split_at(n_labels.min(rest.len()));
    let (part, split) = if choice & 1 == 0 { ("t10k", Split::Test) } else { ("train", Split::Train) };
    let end = if choice & 2 == 0 { ".gz" } else { "" };
    let files = [
        (format!("{part}-images-idx3-ubyte{end}"), images),
        (format!("{part}-labels-idx1-ubyte{end}"), labels),
    ];
    for (name, bytes) in &files {
        lowbit_fuzz::write(name, bytes);
    }
    lowbit_fuzz::open(DatasetName::Mnist, split, LabelKind::Fine, "");
    // The next input may have the other names.
    for (name, _) in &files {
        fs::remove_file(lowbit_fuzz::directory().join(name)).expect("a file can be removed");
    }
});
