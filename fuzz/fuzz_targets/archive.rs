//! The archive of CIFAR-100, as it is or, if the first byte is even, packed with gzip first, so that the tar reader is
//! reached.
#![no_main]

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use libfuzzer_sys::fuzz_target;
use lowbit_data::{DatasetName, LabelKind, Split};

fuzz_target!(|data: &[u8]| {
    let Some((&choice, bytes)) = data.split_first() else { return };
    const ARCHIVE: &str = "cifar-100-binary.tar.gz";
    if choice % 2 == 0 {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
        encoder.write_all(bytes).expect("memory can be written");
        lowbit_fuzz::write(ARCHIVE, &encoder.finish().expect("memory can be written"));
    } else {
        lowbit_fuzz::write(ARCHIVE, bytes);
    }
    lowbit_fuzz::open(DatasetName::Cifar100, Split::Test, LabelKind::Fine, ARCHIVE);
});
