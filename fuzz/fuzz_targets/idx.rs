//! The IDX files of MNIST, plain or gzip: the first byte says which, the rest is the image file, then the label file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lowbit_data::{DatasetName, LabelKind};

fuzz_target!(|data: &[u8]| {
    // The length of the label file, so that both files vary.
    let Some((&[n_labels, n_more], rest)) = data.split_first_chunk::<2>() else { return };
    let n_labels = usize::from(n_labels) + 256 * usize::from(n_more);
    let (labels, images) = rest.split_at(n_labels.min(rest.len()));
    lowbit_fuzz::write("t10k-images-idx3-ubyte.gz", images);
    lowbit_fuzz::write("t10k-labels-idx1-ubyte.gz", labels);
    lowbit_fuzz::open(DatasetName::Mnist, LabelKind::Fine, "");
});
