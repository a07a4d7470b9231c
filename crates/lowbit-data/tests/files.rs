//! Locating and reading data sets, and every way in which that fails, on files made here.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use lowbit_data::{
    DataError, Dataset, DatasetName, FileStatus, LabelKind, Locations, Split, open, places_of, verify,
    warnings,
};
use tempfile::TempDir;

const IMAGES_MAGIC: u32 = 0x803;
const LABELS_MAGIC: u32 = 0x801;

/// Three empty places, so that nothing of the machine is found.
struct Places {
    dir: TempDir,
}

impl Places {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        for place in ["given", "home", "system"] {
            fs::create_dir(dir.path().join(place)).unwrap();
        }
        Places { dir }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn locations(&self) -> Locations {
        Locations {
            data_dir: Some(self.path("given")),
            run_data_dir: None,
            data_home: Some(self.path("home")),
            system: self.path("system"),
        }
    }

    fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    fn open(&self, name: DatasetName, split: Split) -> Result<Dataset, DataError> {
        open(name, split, LabelKind::Fine, &self.locations()).map(|opened| opened.dataset)
    }

    /// The message of opening, with the temporary directory written as `DIR`.
    fn message(&self, name: DatasetName, split: Split) -> String {
        let error = self.open(name, split).unwrap_err();
        let message = error.to_string().replace(self.dir.path().to_str().unwrap(), "DIR");
        assert!(!message.contains('\n'), "{message}");
        message
    }
}

fn idx(magic: u32, sizes: &[u32], data: &[u8]) -> Vec<u8> {
    let header = [magic].into_iter().chain(sizes.iter().copied()).flat_map(u32::to_be_bytes);
    header.chain(data.iter().copied()).collect()
}

fn idx_images(n_images: u32) -> Vec<u8> {
    let pixels: Vec<u8> = (0..n_images * 784).map(|idx| (idx % 251) as u8).collect();
    idx(IMAGES_MAGIC, &[n_images, 28, 28], &pixels)
}

fn idx_labels(labels: &[u8]) -> Vec<u8> {
    idx(LABELS_MAGIC, &[labels.len() as u32], labels)
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn idx_raw_or_gzip_under_both_names() {
    for (images, labels, packed) in [
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", false),
        ("train-images.idx3-ubyte", "train-labels.idx1-ubyte", false),
        ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", true),
        ("train-images.idx3-ubyte.gz", "train-labels.idx1-ubyte.gz", true),
        // Decompressed by a browser that kept the name.
        ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", false),
    ] {
        let places = Places::new();
        let pack = |bytes: Vec<u8>| if packed { gz(&bytes) } else { bytes };
        places.write(&format!("given/{images}"), &pack(idx_images(3)));
        places.write(&format!("given/{labels}"), &pack(idx_labels(&[7, 0, 9])));
        let dataset = places.open(DatasetName::Mnist, Split::Train).unwrap();
        assert_eq!(dataset.labels, [7, 0, 9]);
        assert_eq!(dataset.pixels(1)[..3], [784 % 251, 785 % 251, 786 % 251].map(|v: u32| v as u8));
        assert_eq!((dataset.name.as_str(), dataset.n_classes, dataset.max_value), ("mnist", 10, 255));
        dataset.validate().unwrap();
    }
}

#[test]
fn places_are_searched_in_order() {
    let places = Places::new();
    // The last place first: each one added comes before those already there.
    for (label, place) in ["system/mnist", "home/mnist", "given", "given/mnist"].into_iter().enumerate() {
        places.write(&format!("{place}/t10k-images-idx3-ubyte"), &idx_images(1));
        places.write(&format!("{place}/t10k-labels-idx1-ubyte"), &idx_labels(&[label as u8]));
        assert_eq!(places.open(DatasetName::Mnist, Split::Test).unwrap().labels, [label as u16]);
    }
}

#[test]
fn not_found_lists_places_files_and_remedies() {
    let places = Places::new();
    assert_eq!(
        places.message(DatasetName::FashionMnist, Split::Train),
        "find fashion-mnist (train): no train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz in \
         DIR/given/fashion-mnist, DIR/given, DIR/home/fashion-mnist, DIR/system/fashion-mnist; put \
         them into DIR/given/fashion-mnist, or run `lowbit data \
         fetch fashion-mnist`, or on Debian and Ubuntu `apt-get install dataset-fashion-mnist`"
    );
    assert_eq!(
        places.message(DatasetName::Cifar100, Split::Test),
        "find cifar100: no cifar-100-binary.tar.gz in DIR/given/cifar100, DIR/given, DIR/home/cifar100, \
         DIR/system/cifar100; put it into DIR/given/cifar100, or run `lowbit data fetch cifar100`"
    );
    let locations = Locations { data_dir: None, ..places.locations() };
    let message = open(DatasetName::Mnist, Split::Test, LabelKind::Fine, &locations).unwrap_err().to_string();
    let home = places.path("home/mnist");
    assert!(message.contains(&format!("into {}, or run", home.display())), "{message}");
}

#[test]
fn a_given_directory_must_exist() {
    let places = Places::new();
    fs::remove_dir(places.path("given")).unwrap();
    assert_eq!(
        places.message(DatasetName::Mnist, Split::Train),
        "find the data directory DIR/given: it does not exist; create it or give another"
    );
    assert!(places.open(DatasetName::Digits, Split::Train).is_ok(), "digits need no directory");
}

#[test]
fn idx_damage_is_told() {
    let images = "train-images-idx3-ubyte";
    let labels = "train-labels-idx1-ubyte";
    let check = |edit: &dyn Fn(&Places), expected: &str| {
        let places = Places::new();
        places.write(&format!("given/{images}"), &idx_images(2));
        places.write(&format!("given/{labels}"), &idx_labels(&[1, 2]));
        edit(&places);
        assert_eq!(places.message(DatasetName::Mnist, Split::Train), expected);
    };
    let write = |name: &'static str, bytes: Vec<u8>| {
        move |places: &Places| places.write(&format!("given/{name}"), &bytes)
    };
    let appended = |mut bytes: Vec<u8>, more: &[u8]| {
        bytes.extend_from_slice(more);
        bytes
    };

    check(
        &|places| fs::remove_file(places.path("given/train-labels-idx1-ubyte")).unwrap(),
        "find train-labels-idx1-ubyte.gz in DIR/given, which holds other files of mnist; put it there, or run `lowbit \
         data fetch mnist`",
    );
    check(
        &|places| fs::remove_file(places.path("given/train-images-idx3-ubyte")).unwrap(),
        "find train-images-idx3-ubyte.gz in DIR/given, which holds other files of mnist; put it there, or run `lowbit \
         data fetch mnist`",
    );
    check(
        &write(images, idx_images(2)[..1000].to_vec()),
        "read DIR/given/train-images-idx3-ubyte: its header says 2 images, but it holds 1 and 200 bytes more; correct the \
         header or the data",
    );
    check(
        &write(images, idx_images(2)[..10].to_vec()),
        "read DIR/given/train-images-idx3-ubyte: it ends after 10 of the 16 bytes of its header; fetch or make the file \
         once more",
    );
    check(
        &write(labels, Vec::new()),
        "read DIR/given/train-labels-idx1-ubyte: it is an empty file, not an IDX file, raw or compressed with gzip; put \
         the file that the name says in its place",
    );
    check(
        &write(images, appended(idx_images(2), &[0])),
        "read DIR/given/train-images-idx3-ubyte: its header says 2 images, but it holds 2 and a byte more; correct the \
         header or the data",
    );
    check(
        &write(images, idx_labels(&[1, 2])),
        "read DIR/given/train-images-idx3-ubyte: expected an IDX file starting with 0x00000803, got 0x00000801; check \
         that it is the file its name says",
    );
    check(
        &write(images, b"<html>not found</html>".to_vec()),
        "read DIR/given/train-images-idx3-ubyte: it is a web page, not an IDX file, raw or compressed with gzip; remove it \
         and fetch the file again, a server answered with it",
    );
    check(
        &write(images, idx(IMAGES_MAGIC, &[1, 32, 32], &[0; 1024])),
        "read DIR/given/train-images-idx3-ubyte: expected images of 28x28 pixels, got 32x32; mnist is read \
         in its own size only",
    );
    // Sizes that no memory holds must end as a short file, not as a failed allocation.
    check(
        &write(images, idx(IMAGES_MAGIC, &[u32::MAX, 28, 28], &[0; 784])),
        "read DIR/given/train-images-idx3-ubyte: its header says 4294967295 images, but it holds 1; correct the header or \
         the data",
    );
    check(
        &write(labels, idx_labels(&[1, 10])),
        "read DIR/given/train-labels-idx1-ubyte: record 1 has label 10, expected 0 to 9; the file is damaged or of \
         another data set",
    );
    check(
        &write(labels, idx_labels(&[1, 2, 3])),
        "read DIR/given/train-images-idx3-ubyte: 2 images, but DIR/given/train-labels-idx1-ubyte has 3 labels; take \
         both files from one source",
    );
}

#[test]
fn gzip_damage_is_told() {
    let whole_content = idx_images(2);
    let whole = gz(&whole_content);
    let damaged_at = |position: usize| {
        let mut bytes = whole.clone();
        bytes[position] ^= 0xff;
        bytes
    };
    let message = |bytes: &[u8]| {
        let places = Places::new();
        places.write("given/train-images-idx3-ubyte.gz", bytes);
        places.write("given/train-labels-idx1-ubyte.gz", &gz(&idx_labels(&[1, 2])));
        let message = places.message(DatasetName::Mnist, Split::Train);
        message.replace("DIR/given/train-images-idx3-ubyte.gz", "FILE")
    };
    for bytes in [
        whole[..whole.len() / 2].to_vec(),
        // Only the trailer is missing: all pixels are there, but not the checksum.
        whole[..whole.len() - 4].to_vec(),
        whole[..3].to_vec(),
        damaged_at(whole.len() - 6),
        damaged_at(2),
        [whole.clone(), b"garbage".to_vec()].concat(),
        // Zeros end what is compressed.
        [whole.clone(), vec![0; 20], gz(&[0])].concat(),
        [whole.clone(), vec![0x1f]].concat(),
    ] {
        assert_eq!(
            message(&bytes),
            "decompress FILE: the gzip data is cut short or damaged; fetch or make the file once more",
            "{} bytes",
            bytes.len()
        );
    }
    for (bytes, expected) in [
        (Vec::new(), "it is an empty file, not "),
        (b"<html>not found</html>".to_vec(), "it is a web page, not "),
        (b"PK\x03\x04 and so on".to_vec(), "it is a zip archive, not "),
        (b"neither".to_vec(), "it is data of an unknown kind, not "),
        (gz(b"<!doctype html>"), "it holds, compressed with gzip, a web page, not "),
        (gz(&whole), "it holds, compressed with gzip, gzip data, not "),
        (gz(b"neither nor"), "expected an IDX file starting with 0x00000803, got 0x6e656974"),
        (gz(&[]), "it holds, compressed with gzip, an empty file, not "),
        (gz(&[idx_images(2), vec![0]].concat()), "its header says 2 images, but it holds 2 and a byte more"),
        ([whole.clone(), gz(&[0])].concat(), "its header says 2 images, but it holds 2 and a byte more"),
    ] {
        let message = message(&bytes);
        assert!(message.starts_with(&format!("read FILE: {expected}")), "{message}");
    }
}

/// As `gzip -t` has it: several members, and zeros behind the last.
#[test]
fn gzip_of_several_members_or_padded_is_read() {
    let content = idx_images(2);
    let (start, end) = content.split_at(1000);
    for bytes in [
        [gz(start), gz(end)].concat(),
        [gz(start), gz(&[]), gz(end)].concat(),
        [gz(&content), vec![0; 512]].concat(),
        // Beyond what is read at once.
        [gz(start), gz(end), vec![0; 100_000]].concat(),
    ] {
        let places = Places::new();
        places.write("given/train-images-idx3-ubyte.gz", &bytes);
        places.write("given/train-labels-idx1-ubyte.gz", &gz(&idx_labels(&[1, 2])));
        assert_eq!(places.open(DatasetName::Mnist, Split::Train).unwrap().images, content[16..]);
        if let Ok(mut gzip) = std::process::Command::new("gzip")
            .arg("-t")
            .stdin(File::open(places.path("given/train-images-idx3-ubyte.gz")).unwrap())
            .spawn()
        {
            assert!(gzip.wait().unwrap().success(), "gzip accepts it");
        }
    }
}

/// Header and data disagree: both numbers, and advice to fetch only for what was published in that number.
#[test]
fn counts_of_header_and_file_are_told() {
    let message = |said: u32, held: u32, packed: bool| {
        let places = Places::new();
        let mut bytes = idx_images(held);
        bytes[4..8].copy_from_slice(&said.to_be_bytes());
        let bytes = if packed { gz(&bytes) } else { bytes };
        places.write("given/train-images-idx3-ubyte.gz", &bytes);
        places.write("given/train-labels-idx1-ubyte", &idx_labels(&[0; 2]));
        places
            .message(DatasetName::Mnist, Split::Train)
            .replace("DIR/given/train-images-idx3-ubyte.gz", "FILE")
    };
    for packed in [false, true] {
        assert_eq!(
            message(6, 70, packed),
            "read FILE: its header says 6 images, but it holds 70; correct the header or the data"
        );
        assert_eq!(
            message(70, 6, packed),
            "read FILE: its header says 70 images, but it holds 6; correct the header or the data"
        );
        assert_eq!(
            message(60_000, 6, packed),
            "read FILE: its header says 60000 images, but it holds 6; it is cut short, remove it and fetch it again"
        );
    }
    // In 2 MB, gzip holds 2 GB of zeros; the header is not believed.
    assert_eq!(
        message(u32::MAX, 3, true),
        "read FILE: its header says 4294967295 images, more than the 1000000 that are read of a file; correct the header, or \
         take fewer"
    );
    assert_eq!(
        message(1_000_000, 3, true),
        "read FILE: its header says 1000000 images, but it holds 3; correct the header or the data"
    );
}

/// A file of zeros with some bytes set; the zeros take no room on the disk.
fn sparse(path: &Path, len: u64, set: &[(u64, u8)]) {
    use std::io::{Seek, SeekFrom};
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = File::create(path).unwrap();
    file.set_len(len).unwrap();
    for &(position, byte) in set {
        file.seek(SeekFrom::Start(position)).unwrap();
        file.write_all(&[byte]).unwrap();
    }
}

const CIFAR10_RECORD: u64 = 3073;
const CIFAR100_RECORD: u64 = 3074;

#[test]
fn cifar10_batches_are_read_in_order() {
    for folder in ["given", "given/cifar10", "home/cifar10/cifar-10-batches-bin"] {
        let places = Places::new();
        for batch in 1..=5 {
            let path = places.path(&format!("{folder}/data_batch_{batch}.bin"));
            sparse(
                &path,
                10_000 * CIFAR10_RECORD,
                &[(0, batch), (1, 200), (CIFAR10_RECORD, 9), (CIFAR10_RECORD - 1, 7)],
            );
        }
        let dataset = places.open(DatasetName::Cifar10, Split::Train).unwrap();
        assert_eq!(dataset.len(), 50_000);
        assert_eq!((dataset.labels[10_000], dataset.labels[10_001], dataset.labels[40_000]), (2, 9, 5));
        let image = dataset.pixels(20_000);
        assert_eq!((image[0], image[1], image[3071]), (200, 0, 7));
        dataset.validate().unwrap();
    }
}

#[test]
fn cifar100_has_coarse_and_fine_labels() {
    let places = Places::new();
    let path = places.path("given/cifar-100-binary/test.bin");
    let start = 9_999 * CIFAR100_RECORD;
    sparse(&path, 10_000 * CIFAR100_RECORD, &[(start, 19), (start + 1, 99), (start + 2, 1)]);
    let fine = places.open(DatasetName::Cifar100, Split::Test).unwrap();
    let coarse =
        open(DatasetName::Cifar100, Split::Test, LabelKind::Coarse, &places.locations()).unwrap().dataset;
    assert_eq!((fine.labels[9_999], fine.n_classes), (99, 100));
    assert_eq!((coarse.labels[9_999], coarse.n_classes), (19, 20));
    assert_eq!(fine.images, coarse.images);
    assert_eq!(fine.pixels(9_999)[0], 1);
}

#[test]
fn cifar_damage_is_told() {
    let len = 10_000 * CIFAR100_RECORD;
    let check = |len: u64, set: &[(u64, u8)], expected: &str| {
        let places = Places::new();
        sparse(&places.path("given/test.bin"), len, set);
        assert_eq!(places.message(DatasetName::Cifar100, Split::Test), expected);
    };
    check(
        len - CIFAR100_RECORD,
        &[],
        "read DIR/given/test.bin: expected 10000 images of 3074 bytes, 30740000 bytes in all, got 30736926; files of \
         cifar100 have the published length",
    );
    check(
        len + 1,
        &[],
        "read DIR/given/test.bin: expected 10000 images of 3074 bytes, 30740000 bytes in all, got 30740001; files of \
         cifar100 have the published length",
    );
    check(
        len,
        &[(5 * CIFAR100_RECORD + 1, 100)],
        "read DIR/given/test.bin: record 5 has label 100, expected 0 to 99; the file is damaged or of another data set",
    );
    check(
        len,
        &[(6 * CIFAR100_RECORD, 20)],
        "read DIR/given/test.bin: record 6 has label 20, expected 0 to 19; the file is damaged or of another data set",
    );

    let places = Places::new();
    for batch in [1, 2, 4, 5] {
        sparse(&places.path(&format!("given/data_batch_{batch}.bin")), 10, &[]);
    }
    assert_eq!(
        places.message(DatasetName::Cifar10, Split::Train),
        "find data_batch_3.bin in DIR/given, which holds other files of cifar10; put it there, or run `lowbit data fetch \
         cifar10`"
    );
}

/// An archive with members of zeros, the first byte of each set.
fn archive(members: &[(&str, u64, u8)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for &(name, len, first) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(len);
        header.set_mode(0o644);
        let mut bytes = vec![0; len as usize];
        if let Some(byte) = bytes.first_mut() {
            *byte = first;
        }
        builder.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap()
}

#[test]
fn cifar_archive_is_read_as_it_is() {
    let len = 10_000 * CIFAR10_RECORD;
    // In the published archive the members are not sorted.
    let whole = archive(&[
        ("cifar-10-batches-bin/readme.html", 10, 0),
        ("cifar-10-batches-bin/data_batch_4.bin", len, 4),
        ("cifar-10-batches-bin/test_batch.bin", len, 6),
        ("cifar-10-batches-bin/data_batch_1.bin", len, 1),
        ("cifar-10-batches-bin/data_batch_2.bin", len, 2),
        ("cifar-10-batches-bin/data_batch_3.bin", len, 3),
        ("cifar-10-batches-bin/data_batch_5.bin", len, 5),
    ]);
    let places = Places::new();
    places.write("home/cifar10/cifar-10-binary.tar.gz", &whole);
    let train = places.open(DatasetName::Cifar10, Split::Train).unwrap();
    assert_eq!([0, 1, 2, 3, 4].map(|batch| train.labels[batch * 10_000]), [1, 2, 3, 4, 5]);
    let test = places.open(DatasetName::Cifar10, Split::Test).unwrap();
    assert_eq!((test.len(), test.labels[0]), (10_000, 6));

    let path = "home/cifar10/cifar-10-binary.tar.gz";
    let cut = "decompress DIR/home/cifar10/cifar-10-binary.tar.gz: the gzip data is cut short or damaged; fetch or make \
               the file once more";
    for n_bytes in [whole.len() / 3, whole.len() - 3] {
        places.write(path, &whole[..n_bytes]);
        assert_eq!(places.message(DatasetName::Cifar10, Split::Train), cut);
    }

    // Zeros may follow, as tar pads a file to full blocks, but nothing else.
    places.write(path, &[whole.clone(), gz(&[0; 10_240])].concat());
    assert_eq!(places.open(DatasetName::Cifar10, Split::Test).unwrap().len(), 10_000);
    places.write(path, &[whole.clone(), gz(&[0, 0, 1])].concat());
    let message = places.message(DatasetName::Cifar10, Split::Test);
    assert!(
        message.contains("the tar archive is cut short or damaged: something else follows; "),
        "{message}"
    );
    places.write(path, &[&whole[..], &[0; 512]].concat());
    assert_eq!(places.open(DatasetName::Cifar10, Split::Test).unwrap().len(), 10_000);
    places.write(path, &[&whole[..], b"garbage"].concat());
    assert_eq!(places.message(DatasetName::Cifar10, Split::Test), cut);

    // The archive itself may be given in place of a directory.
    let file = places.path("renamed.tar.gz");
    fs::write(&file, archive(&[("test.bin", 10_000 * CIFAR100_RECORD, 3)])).unwrap();
    let locations = Locations { data_dir: Some(file.clone()), ..places.locations() };
    assert_eq!(places_of(DatasetName::Cifar100, &locations).unwrap(), [Some(file.clone()), Some(file)]);
    assert_eq!(places_of(DatasetName::Mnist, &locations).unwrap(), [None, None]);
    let coarse = open(DatasetName::Cifar100, Split::Test, LabelKind::Coarse, &locations).unwrap().dataset;
    assert_eq!(coarse.labels[0], 3);
}

/// Found are also places that lack some of the files.
#[test]
fn places_of_data_sets() {
    let places = Places::new();
    let found = |name| places_of(name, &places.locations()).unwrap();
    assert!(DatasetName::ALL.iter().all(|&name| found(name) == [None, None]));
    places.write("given/t10k-labels.idx1-ubyte", b"");
    places.write("system/mnist/train-labels.idx1-ubyte", b"");
    places.write("home/cifar10/cifar-10-batches-bin/test_batch.bin", b"");
    places.write("system/cifar100/cifar-100-binary.tar.gz", b"");
    let at = |path| Some(places.path(path));
    assert_eq!(found(DatasetName::Mnist), [at("system/mnist"), at("given")]);
    assert_eq!(found(DatasetName::Cifar10), [None, at("home/cifar10/cifar-10-batches-bin")]);
    let archive = "system/cifar100/cifar-100-binary.tar.gz";
    assert_eq!(found(DatasetName::Cifar100), [at(archive), at(archive)]);
    assert_eq!(found(DatasetName::Digits), [None, None]);
    // An archive that is given under its own name is not taken for the other.
    let given = Locations { data_dir: at(archive), data_home: None, ..places.locations() };
    assert_eq!(places_of(DatasetName::Cifar100, &given).unwrap(), [at(archive), at(archive)]);
    assert_eq!(places_of(DatasetName::Cifar10, &given).unwrap(), [None, None]);
}

#[test]
fn cifar_archive_with_other_members_is_told() {
    let len = 10_000 * CIFAR100_RECORD;
    let check = |members: &[(&str, u64, u8)], expected: &str| {
        let places = Places::new();
        places.write("given/cifar-100-binary.tar.gz", &archive(members));
        assert_eq!(places.message(DatasetName::Cifar100, Split::Test), expected);
    };
    check(
        &[("cifar-100-python/test", 10, 0)],
        "read DIR/given/cifar-100-binary.tar.gz: the archive has no test.bin, but test; expected the binary version of \
         cifar100",
    );
    check(
        &[("cifar-100-binary/test.bin", 10, 0)],
        "read DIR/given/cifar-100-binary.tar.gz/test.bin: expected 10000 images of 3074 bytes, 30740000 bytes in all, got \
         10; files of cifar100 have the published length",
    );
    check(
        &[("cifar-100-binary/test.bin", len + 2, 0)],
        "read DIR/given/cifar-100-binary.tar.gz/test.bin: expected 10000 images of 3074 bytes, 30740000 bytes in all, got \
         30740002; files of cifar100 have the published length",
    );
}

/// A tar header with a right checksum; the tar crate itself would not write some of these.
fn tar_header(name: &[u8], kind: tar::EntryType, size: u64) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_cksum();
    header.as_bytes().to_vec()
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

#[test]
fn cifar_archive_that_is_something_else_is_told() {
    const NAME: &str = "given/cifar-100-binary.tar.gz";
    let len = 10_000 * CIFAR100_RECORD;
    let message = |bytes: &[u8]| {
        let places = Places::new();
        places.write(NAME, bytes);
        let message = places.message(DatasetName::Cifar100, Split::Test);
        message.replace("DIR/given/cifar-100-binary.tar.gz", "FILE")
    };
    for (bytes, expected) in [
        (
            b"<html>sign in</html>".to_vec(),
            "it is a web page, not a tar archive, raw or compressed with gzip; ",
        ),
        (gz(b"<!DOCTYPE html>"), "it holds, compressed with gzip, a web page, not a tar archive, "),
        (gz(&gz(b"twice")), "it holds, compressed with gzip, gzip data, not a tar archive, "),
        (b"PK\x03\x04".to_vec(), "it is a zip archive, not a tar archive, "),
        (b"version https://git-lfs.github.com/spec/v1".to_vec(), "it is a pointer of Git LFS, not "),
        (vec![0; 1024], "it is data of an unknown kind, not a tar archive, "),
        (gz(&[7; 2000]), "the tar archive is cut short or damaged: "),
        // It ends in a name, in a member.
        (
            gz(&tar_header(b"x", tar::EntryType::GNULongName, 600)),
            "the tar archive is cut short or damaged: ",
        ),
        (
            gz(&tar_header(b"test.bin", tar::EntryType::Regular, len)),
            "the tar archive is cut short or damaged: ",
        ),
        (tar_header(b"test.bin", tar::EntryType::Regular, len), "the tar archive is cut short or damaged: "),
        // Names that would fill the memory.
        (
            gz(&tar_header(b"x", tar::EntryType::GNULongName, 1 << 40)),
            "the tar archive is cut short or damaged: a name or header of 1099511627776 bytes; ",
        ),
        (
            tar_header(b"x", tar::EntryType::XHeader, 1 << 40),
            "the tar archive is cut short or damaged: a name or header of 1099511627776 bytes; ",
        ),
        // What a terminal would obey.
        (
            gz(&tar_header(b"a/\x1b[2Jx\nerror", tar::EntryType::Regular, 0)),
            "the archive has no test.bin, but \\u{1b}[2Jx\\nerror; expected the binary version of cifar100",
        ),
        (
            {
                let mut header = tar_header(b"\x1b[2Jx", tar::EntryType::Regular, 0);
                header[148..154].copy_from_slice(b"\x1b[2Jyz");
                gz(&header)
            },
            "the tar archive is cut short or damaged: numeric field was not a number: \\u{1b}[2J",
        ),
    ] {
        let message = message(&bytes);
        assert!(message.starts_with(&format!("read FILE: {expected}")), "{message}");
        assert!(!message.contains(char::is_control), "{message:?}");
    }
    // An archive that never ends, in a few kilobytes: a member of a terabyte of zeros.
    let zeros = gz(&vec![0; 1 << 24]);
    let bomb = [gz(&tar_header(b"x", tar::EntryType::Regular, 1 << 40)), zeros.repeat(65)].concat();
    let message = message(&bomb);
    assert!(
        message.starts_with("read FILE: the tar archive is cut short or damaged: more than 1073741824 bytes when decompressed; "),
        "{message}"
    );
}

/// Decompressed under its name, as by a browser, and with names of any length.
#[test]
fn cifar_archive_is_read_in_other_forms() {
    let len = 10_000 * CIFAR100_RECORD;
    let member = |name: &[u8]| {
        let mut bytes = vec![0; len as usize];
        bytes[0] = 3;
        [tar_header(name, tar::EntryType::Regular, len), padded(bytes), vec![0; 1024]].concat()
    };
    let long = [&b"a".repeat(200)[..], b"/test.bin"].concat();
    let gnu =
        [tar_header(b"././@LongLink", tar::EntryType::GNULongName, long.len() as u64), padded(long.clone())];
    let record = |length: usize| [format!("{length} path=").as_bytes(), &long, b"\n"].concat();
    let record = record(record(100).len());
    let pax = [tar_header(b"x", tar::EntryType::XHeader, record.len() as u64), padded(record)];
    for (form, bytes) in [
        ("plain", member(b"cifar-100-binary/test.bin")),
        ("padded", [gz(&member(b"test.bin")), vec![0; 4096]].concat()),
        ("GNU name", [gnu.concat(), member(b"cut-off")].concat()),
        ("pax name", [pax.concat(), member(b"cut-off")].concat()),
    ] {
        let places = Places::new();
        places.write("given/cifar-100-binary.tar.gz", &bytes);
        let coarse = open(DatasetName::Cifar100, Split::Test, LabelKind::Coarse, &places.locations());
        assert_eq!(coarse.unwrap_or_else(|e| panic!("{form}: {e}")).dataset.labels[..2], [3, 0], "{form}");
    }
}

#[cfg(unix)]
#[test]
fn denied_access_is_told() {
    use std::os::unix::fs::PermissionsExt;
    let places = Places::new();
    places.write("given/train-images-idx3-ubyte", &idx_images(1));
    places.write("given/train-labels-idx1-ubyte", &idx_labels(&[1]));
    let path = places.path("given/train-labels-idx1-ubyte");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    if File::open(&path).is_ok() {
        // The administrator may read everything; a test of the program does the same as another user.
        return;
    }
    assert_eq!(
        places.message(DatasetName::Mnist, Split::Train),
        "read DIR/given/train-labels-idx1-ubyte: permission denied; check its owner and mode (ls -l)"
    );
    let given = places.path("given");
    fs::set_permissions(&given, fs::Permissions::from_mode(0o000)).unwrap();
    let message = places.message(DatasetName::Mnist, Split::Train);
    fs::set_permissions(&given, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(message.starts_with("read DIR/given/") && message.contains(": permission denied; "), "{message}");
}

#[test]
fn verify_reports_every_file() {
    let places = Places::new();
    let verify = |name| verify(name, &places.locations());
    let message = verify(DatasetName::Mnist).unwrap_err().to_string();
    assert!(
        message.starts_with("find mnist: no train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-"),
        "{message}"
    );

    // Readable, but not the published data.
    places.write("given/train-images-idx3-ubyte", &idx_images(2));
    places.write("given/train-labels-idx1-ubyte.gz", &gz(&idx_labels(&[1, 2])));
    let report = verify(DatasetName::Mnist).unwrap();
    assert!(!report.is_ok());
    let statuses: Vec<String> =
        report.files.iter().map(|file| format!("{:?}", file.status).chars().take(24).collect()).collect();
    assert_eq!(statuses, ["Differs { kind: ContentS", "Differs { kind: ContentS", "Missing", "Missing"]);
    assert_eq!(report.splits[0].n_samples.as_ref().unwrap(), &2);

    // One of a pair is missing.
    fs::remove_file(places.path("given/train-images-idx3-ubyte")).unwrap();
    let report = verify(DatasetName::Mnist).unwrap();
    assert!(matches!(report.files[0].status, FileStatus::Missing));
    assert!(matches!(report.files[1].status, FileStatus::Differs { .. }));
    assert_eq!(report.files[1].path, places.path("given/train-labels-idx1-ubyte.gz"));
    let message = report.splits[0].n_samples.as_ref().unwrap_err().to_string();
    assert!(message.starts_with("find train-images-idx3-ubyte.gz in "), "{message}");
    sparse(&places.path("given/data_batch_2.bin"), 10_000 * CIFAR10_RECORD, &[]);
    let report = verify(DatasetName::Cifar10).unwrap();
    assert!(!report.is_ok());
    assert!(matches!(report.files[0].status, FileStatus::Missing), "{report:?}");
    assert!(matches!(report.files[1].status, FileStatus::Differs { .. }));
    assert_eq!(report.files[1].path, places.path("given/data_batch_2.bin"));

    // Files of the right size with other content.
    sparse(&places.path("given/train.bin"), 50_000 * CIFAR100_RECORD, &[]);
    sparse(&places.path("given/test.bin"), 10_000 * CIFAR100_RECORD, &[]);
    let report = verify(DatasetName::Cifar100).unwrap();
    assert!(!report.is_ok(), "{report:?}");
    assert!(matches!(report.files[..], [ref a, ref b] if matches!((&a.status, &b.status),
        (FileStatus::Differs { .. }, FileStatus::Differs { .. }))));
    assert_eq!(report.splits[0].n_samples.as_ref().unwrap(), &50_000);
    let warnings: Vec<String> = report.warnings.iter().map(ToString::to_string).collect();
    let given = places.path("given");
    assert_eq!(
        warnings[0],
        format!(
            "the training images in {} are not the published ones of cifar100, but data of your own under its name: 50000 \
             with crc32 30218e4c, published are 50000",
            given.display()
        )
    );
    assert!(warnings.contains(&"every pixel of the 50000 training images is 0".into()), "{warnings:?}");

    let report = verify(DatasetName::Digits).unwrap();
    assert!(report.is_ok());
    assert_eq!(report.files.len(), 1);
}

/// What is doubtful about images that can be read.
#[test]
fn warnings_tell_what_is_doubtful() {
    let check = |edit: &dyn Fn(&Places), limit: Option<usize>, expected: &[&str]| {
        let places = Places::new();
        let pixels = |seed: u32, n: u32| -> Vec<u8> {
            (0..n * 784).map(|i| (i.wrapping_add(seed).wrapping_mul(2_654_435_761) >> 24) as u8).collect()
        };
        let labels = |n: u8| -> Vec<u8> { (0..n).map(|i| i % 10).collect() };
        places.write("given/train-images-idx3-ubyte", &idx(IMAGES_MAGIC, &[40, 28, 28], &pixels(0, 40)));
        places.write("given/train-labels-idx1-ubyte", &idx_labels(&labels(40)));
        places.write("given/t10k-images-idx3-ubyte", &idx(IMAGES_MAGIC, &[20, 28, 28], &pixels(1 << 20, 20)));
        places.write("given/t10k-labels-idx1-ubyte", &idx_labels(&labels(20)));
        edit(&places);
        let open = |split| open(DatasetName::Mnist, split, LabelKind::Fine, &places.locations()).unwrap();
        let train = open(Split::Train);
        let train = match limit {
            Some(limit) => train.head(limit).unwrap(),
            None => train,
        };
        let warnings: Vec<String> = warnings(Some(&train), &open(Split::Test))
            .iter()
            .map(|warning| warning.to_string().replace(places.dir.path().to_str().unwrap(), "DIR"))
            .collect();
        // Two of them are about where they come from.
        assert!(
            warnings[0].starts_with("the training images in DIR/given are not the published ones of mnist"),
            "{warnings:?}"
        );
        assert!(
            warnings[1].contains("the test images in DIR/") && warnings[1].contains("20 with crc32"),
            "{warnings:?}"
        );
        assert_eq!(warnings[2..], *expected);
    };
    let one_class = "the 40 training images are of one class only, 7, of 10: the network cannot learn what is missing; take \
                     more images, or shuffle the files";
    let test_classes = "the 20 test images are of 8 of 10 classes, without 0, 1: the accuracy says nothing about what is \
                        missing; take more images, or shuffle the files";
    check(&|_| (), None, &[]);
    check(
        &|places| {
            let moved = ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"];
            fs::create_dir(places.path("home/mnist")).unwrap();
            for file in moved {
                fs::rename(places.path(&format!("given/{file}")), places.path(&format!("home/mnist/{file}")))
                    .unwrap();
            }
        },
        None,
        &[
            "the training images of mnist are from DIR/given, the test images from DIR/home/mnist: are they of one data set?",
        ],
    );
    check(&|places| places.write("given/train-labels-idx1-ubyte", &idx_labels(&[7; 40])), None, &[one_class]);
    check(
        &|places| {
            let labels: Vec<u8> = (0..20).map(|i| 2 + i % 8).collect();
            places.write("given/t10k-labels-idx1-ubyte", &idx_labels(&labels));
        },
        None,
        &[test_classes],
    );
    check(
        &|_| (),
        Some(4),
        &[
            "the 4 training images are of 4 of 10 classes, without 4, 5, 6, 7, 8, 9: the network cannot learn what is missing; \
           take more images, or shuffle the files",
        ],
    );
    check(
        &|places| {
            let images = fs::read(places.path("given/train-images-idx3-ubyte")).unwrap();
            places.write(
                "given/t10k-images-idx3-ubyte",
                &idx(IMAGES_MAGIC, &[20, 28, 28], &images[16..][..20 * 784]),
            );
        },
        None,
        &["20 of the 20 test images are also training images: the accuracy says little about new images"],
    );
    check(
        &|places| {
            let image: Vec<u8> = (0..784).map(|i| (i % 251) as u8).collect();
            places.write(
                "given/train-images-idx3-ubyte",
                &idx(IMAGES_MAGIC, &[40, 28, 28], &[image.repeat(39), vec![9; 784]].concat()),
            );
        },
        None,
        &["only 2 of the 40 training images differ, the others are copies"],
    );
    check(
        &|places| {
            let ones: Vec<u8> =
                (0..40 * 784_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 31) as u8).collect();
            places.write("given/train-images-idx3-ubyte", &idx(IMAGES_MAGIC, &[40, 28, 28], &ones));
        },
        None,
        &["no pixel of the 40 training images is above 1, where 255 is white: are they on another scale?"],
    );
}

/// What cannot be a data file is refused at once, and nothing waits for it.
#[cfg(unix)]
#[test]
fn only_regular_files_are_read() {
    use std::os::unix::fs::symlink;
    let mkfifo = |path: &Path| {
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    type Make<'a> = &'a dyn Fn(&Path);
    let makes: [(Make<'_>, &str); 3] = [
        (&mkfifo, "a FIFO"),
        (&|path| symlink("/dev/zero", path).unwrap(), "a device"),
        (&|path| fs::create_dir(path).unwrap(), "a directory"),
    ];
    for (make, kind) in makes {
        for (name, file) in [
            (DatasetName::Mnist, "train-images-idx3-ubyte.gz"),
            (DatasetName::Mnist, "train-labels-idx1-ubyte"),
            (DatasetName::Cifar10, "data_batch_3.bin"),
            (DatasetName::Cifar100, "cifar-100-binary.tar.gz"),
        ] {
            let places = Places::new();
            make(&places.path("given").join(file));
            let expected = format!("read DIR/given/{file}: it is {kind}, not a regular file; ");
            let message = places.message(name, Split::Train);
            assert!(message.starts_with(&expected), "{message}");
            assert!(verify(name, &places.locations()).is_ok_and(|report| !report.is_ok()));
        }
    }
    // A directory beside the file, as some programs make one that unpack.
    let places = Places::new();
    places.write("given/t10k-images-idx3-ubyte/t10k-images-idx3-ubyte", &idx_images(1));
    places.write("given/t10k-images.idx3-ubyte", &idx_images(1));
    places.write("given/t10k-labels.idx1-ubyte", &idx_labels(&[1]));
    assert_eq!(places.open(DatasetName::Mnist, Split::Test).unwrap().len(), 1);

    let fifo = places.path("fifo");
    mkfifo(&fifo);
    let locations = Locations { data_dir: Some(fifo), ..places.locations() };
    let message =
        open(DatasetName::Cifar10, Split::Test, LabelKind::Fine, &locations).unwrap_err().to_string();
    assert!(message.contains("fifo: it is a FIFO, not a regular file"), "{message}");
}

/// Where Debian's package is installed, its files are those of the catalog.
#[test]
fn debian_fashion_mnist_is_the_published_one() {
    let locations = Locations { data_dir: None, data_home: None, ..Locations::default_with(None) };
    if !locations.system.join("fashion-mnist").is_dir() {
        let must_run = std::env::var_os("LOWBIT_NO_SKIP").is_some_and(|value| value == "1");
        assert!(!must_run, "cannot be skipped: dataset-fashion-mnist is not installed");
        // Past the harness, which shows nothing of a test that passes.
        return std::io::stderr().write_all(b"skipped: dataset-fashion-mnist is not installed\n").unwrap();
    }
    let report = verify(DatasetName::FashionMnist, &locations).unwrap();
    assert!(report.is_ok() && report.warnings.is_empty(), "{report:?}");
    let [train, test] = [Split::Train, Split::Test]
        .map(|split| open(DatasetName::FashionMnist, split, LabelKind::Fine, &locations).unwrap());
    assert_eq!((train.published, test.published), (Some(Split::Train), Some(Split::Test)));

    // Under the name of another data set they are recognized.
    let other = Locations { data_dir: Some(locations.system.join("fashion-mnist")), ..locations.clone() };
    let message = open(DatasetName::Mnist, Split::Test, LabelKind::Fine, &other).unwrap_err().to_string();
    assert!(
        message.contains("this is the published file of fashion-mnist (test), not of mnist; take data.dataset=\"fashion-mnist\", or"),
        "{message}"
    );
    // The parts changed for each other.
    let places = Places::new();
    for (from, to) in [("train", "t10k"), ("t10k", "train")] {
        for file in ["images-idx3-ubyte.gz", "labels-idx1-ubyte.gz"] {
            let from = other.data_dir.as_ref().unwrap().join(format!("{from}-{file}"));
            fs::copy(from, places.path(&format!("given/{to}-{file}"))).unwrap();
        }
    }
    let [train, test] = [Split::Train, Split::Test]
        .map(|split| open(DatasetName::FashionMnist, split, LabelKind::Fine, &places.locations()).unwrap());
    let warnings = warnings(Some(&train), &test);
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(
        warnings[0].to_string().ends_with("are the published test images of fashion-mnist"),
        "{}",
        warnings[0]
    );
    let train = open(DatasetName::FashionMnist, Split::Train, LabelKind::Fine, &locations).unwrap().dataset;
    let measured = lowbit_data::Normalization::measure(&train).unwrap();
    let constant = lowbit_data::Normalization::of(DatasetName::FashionMnist);
    assert!((measured.mean[0] - constant.mean[0]).abs() < 5.1e-5, "{measured:?}");
    assert!((measured.std[0] - constant.std[0]).abs() < 5.1e-5, "{measured:?}");
}
