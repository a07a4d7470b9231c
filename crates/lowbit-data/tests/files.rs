//! Locating and reading data sets, and every way in which that fails, on files made here.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use lowbit_data::{
    DataError, Dataset, DatasetName, FileStatus, LabelKind, Locations, Split, open, place_of, verify,
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
        open(name, split, LabelKind::Fine, &self.locations())
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
        assert_eq!(dataset.image(1)[..3], [784 % 251, 785 % 251, 786 % 251].map(|v: u32| v as u8));
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
        assert_eq!(places.open(DatasetName::Mnist, Split::Test).unwrap().labels, [label as u8]);
    }
}

#[test]
fn not_found_lists_places_files_and_remedies() {
    let places = Places::new();
    assert_eq!(
        places.message(DatasetName::FashionMnist, Split::Train),
        "find fashion-mnist (train): no train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz in \
         DIR/given/fashion-mnist, DIR/given, DIR/home/fashion-mnist, DIR/system/fashion-mnist; put \
         train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz into DIR/given/fashion-mnist, or run `lowbit data \
         fetch fashion-mnist`, or on Debian and Ubuntu `apt-get install dataset-fashion-mnist`"
    );
    assert_eq!(
        places.message(DatasetName::Cifar100, Split::Test),
        "find cifar100 (test): no cifar-100-binary.tar.gz in DIR/given/cifar100, DIR/given, DIR/home/cifar100, \
         DIR/system/cifar100; put cifar-100-binary.tar.gz into DIR/given/cifar100, or run `lowbit data fetch cifar100`"
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
        "find the data directory DIR/given: it does not exist; create it or give another --data-dir"
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
        "read DIR/given/train-images-idx3-ubyte: cut short, expected 1584 bytes of content, got 1000; remove the file \
         and fetch it again",
    );
    check(
        &write(images, idx_images(2)[..10].to_vec()),
        "read DIR/given/train-images-idx3-ubyte: cut short, expected 16 bytes of content, got 10; remove the file and \
         fetch it again",
    );
    check(
        &write(labels, Vec::new()),
        "read DIR/given/train-labels-idx1-ubyte: cut short, expected 8 bytes of content, got 0; remove the file and \
         fetch it again",
    );
    check(
        &write(images, appended(idx_images(2), &[0])),
        "read DIR/given/train-images-idx3-ubyte: expected 1584 bytes of content, got more; this is another or a damaged \
         file, fetch it again",
    );
    check(
        &write(images, idx_labels(&[1, 2])),
        "read DIR/given/train-images-idx3-ubyte: expected an IDX file starting with 0x00000803, got 0x00000801; check \
         that it is the file its name says",
    );
    check(
        &write(images, b"<html>not found</html>".to_vec()),
        "read DIR/given/train-images-idx3-ubyte: expected an IDX file starting with 0x00000803, got 0x3c68746d; check \
         that it is the file its name says",
    );
    check(
        &write(images, idx(IMAGES_MAGIC, &[1, 32, 32], &[0; 1024])),
        "read DIR/given/train-images-idx3-ubyte: expected images of 28x28 pixels, got 32x32; this is another data set",
    );
    // Sizes that no memory holds must end as a short file, not as a failed allocation.
    check(
        &write(images, idx(IMAGES_MAGIC, &[u32::MAX, 28, 28], &[0; 784])),
        "read DIR/given/train-images-idx3-ubyte: cut short, expected 3367254359296 bytes of content, got 800; remove \
         the file and fetch it again",
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
    for bytes in [
        whole[..whole.len() / 2].to_vec(),
        // Only the trailer is missing: all pixels are there, but not the checksum.
        whole[..whole.len() - 4].to_vec(),
        whole[..3].to_vec(),
        Vec::new(),
        damaged_at(whole.len() - 6),
        damaged_at(2),
        b"<html>not found</html>".to_vec(),
    ] {
        let places = Places::new();
        places.write("given/train-images-idx3-ubyte.gz", &bytes);
        places.write("given/train-labels-idx1-ubyte.gz", &gz(&idx_labels(&[1, 2])));
        assert_eq!(
            places.message(DatasetName::Mnist, Split::Train),
            "decompress DIR/given/train-images-idx3-ubyte.gz: the gzip data is cut short or damaged; remove the file and \
             fetch it again",
            "{} bytes",
            bytes.len()
        );
    }
    // What follows the first member counts as well: gzip reads on.
    let places = Places::new();
    let (start, end) = whole_content.split_at(1000);
    places.write("given/train-images-idx3-ubyte.gz", &[gz(start), gz(end)].concat());
    places.write("given/train-labels-idx1-ubyte.gz", &gz(&idx_labels(&[1, 2])));
    assert_eq!(places.open(DatasetName::Mnist, Split::Train).unwrap().images, whole_content[16..]);
    for (rest, problem) in [
        (b"garbage".to_vec(), "the gzip data is cut short or damaged"),
        (gz(&[0]), "expected 1584 bytes of content, got more"),
    ] {
        places.write("given/train-images-idx3-ubyte.gz", &[whole.clone(), rest].concat());
        let message = places.message(DatasetName::Mnist, Split::Train);
        assert!(message.contains(problem), "{message}");
    }
    let places = Places::new();
    places.write("given/train-images-idx3-ubyte.gz", &gz(&[idx_images(2), vec![0]].concat()));
    places.write("given/train-labels-idx1-ubyte.gz", &gz(&idx_labels(&[1, 2])));
    let message = places.message(DatasetName::Mnist, Split::Train);
    assert!(message.contains("expected 1584 bytes of content, got more"), "{message}");
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
        let image = dataset.image(20_000);
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
    let coarse = open(DatasetName::Cifar100, Split::Test, LabelKind::Coarse, &places.locations()).unwrap();
    assert_eq!((fine.labels[9_999], fine.n_classes), (99, 100));
    assert_eq!((coarse.labels[9_999], coarse.n_classes), (19, 20));
    assert_eq!(fine.images, coarse.images);
    assert_eq!(fine.image(9_999)[0], 1);
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
        "read DIR/given/test.bin: cut short, expected 30740000 bytes of content, got 30736926; remove the file and fetch \
         it again",
    );
    check(
        len + 1,
        &[],
        "read DIR/given/test.bin: expected 30740000 bytes of content, got more; this is another or a damaged file, fetch \
         it again",
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
    let cut = "decompress DIR/home/cifar10/cifar-10-binary.tar.gz: the gzip data is cut short or damaged; remove the file \
               and fetch it again";
    for n_bytes in [whole.len() / 3, whole.len() - 3] {
        places.write(path, &whole[..n_bytes]);
        assert_eq!(places.message(DatasetName::Cifar10, Split::Train), cut);
    }

    // Zeros may follow, as tar pads a file to full blocks, but nothing else.
    places.write(path, &[whole.clone(), gz(&[0; 10_240])].concat());
    assert_eq!(places.open(DatasetName::Cifar10, Split::Test).unwrap().len(), 10_000);
    places.write(path, &[whole.clone(), gz(&[0, 0, 1])].concat());
    let message = places.message(DatasetName::Cifar10, Split::Test);
    assert!(message.contains("bytes of content, got more; this is another or a damaged file"), "{message}");
    places.write(path, &[&whole[..], b"garbage"].concat());
    assert_eq!(places.message(DatasetName::Cifar10, Split::Test), cut);

    // The archive itself may be given in place of a directory.
    let file = places.path("renamed.tar.gz");
    fs::write(&file, archive(&[("test.bin", 10_000 * CIFAR100_RECORD, 3)])).unwrap();
    let locations = Locations { data_dir: Some(file.clone()), ..places.locations() };
    assert_eq!(place_of(DatasetName::Cifar100, &locations).unwrap(), Some(file));
    assert_eq!(place_of(DatasetName::Mnist, &locations).unwrap(), None);
    let coarse = open(DatasetName::Cifar100, Split::Test, LabelKind::Coarse, &locations).unwrap();
    assert_eq!(coarse.labels[0], 3);
}

/// Found are also places that lack some of the files.
#[test]
fn places_of_data_sets() {
    let places = Places::new();
    let place = |name| place_of(name, &places.locations()).unwrap();
    assert_eq!(DatasetName::ALL.iter().filter_map(|&name| place(name)).count(), 0);
    places.write("given/t10k-labels.idx1-ubyte", b"");
    places.write("home/cifar10/cifar-10-batches-bin/test_batch.bin", b"");
    places.write("system/cifar100/cifar-100-binary.tar.gz", b"");
    assert_eq!(place(DatasetName::Mnist), Some(places.path("given")));
    assert_eq!(place(DatasetName::Cifar10), Some(places.path("home/cifar10")));
    assert_eq!(place(DatasetName::Cifar100), Some(places.path("system/cifar100")));
    assert_eq!(place(DatasetName::Digits), None);
    // An archive that is given under its own name is not taken for the other.
    let archive = places.path("system/cifar100/cifar-100-binary.tar.gz");
    let given = Locations { data_dir: Some(archive.clone()), data_home: None, ..places.locations() };
    assert_eq!(place_of(DatasetName::Cifar100, &given).unwrap(), Some(archive));
    assert_eq!(place_of(DatasetName::Cifar10, &given).unwrap(), None);
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
        "read DIR/given/cifar-100-binary.tar.gz: the archive has no test.bin; expected the binary version of cifar100, \
         fetch it again",
    );
    check(
        &[("cifar-100-binary/test.bin", 10, 0)],
        "read DIR/given/cifar-100-binary.tar.gz/test.bin: cut short, expected 30740000 bytes of content, got 10; remove \
         the file and fetch it again",
    );
    check(
        &[("cifar-100-binary/test.bin", len + 2, 0)],
        "read DIR/given/cifar-100-binary.tar.gz/test.bin: expected 30740000 bytes of content, got more; this is another \
         or a damaged file, fetch it again",
    );
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
    let report = verify(DatasetName::Mnist, &places.locations());
    assert!(!report.is_ok());
    assert_eq!(report.files.len(), 4);
    assert!(report.files.iter().all(|file| matches!(file.status, FileStatus::Missing)));
    assert!(report.splits.iter().all(|split| split.n_samples.is_err()));

    // Readable, but not the published data.
    places.write("given/train-images-idx3-ubyte", &idx_images(2));
    places.write("given/train-labels-idx1-ubyte.gz", &gz(&idx_labels(&[1, 2])));
    let report = verify(DatasetName::Mnist, &places.locations());
    assert!(!report.is_ok());
    let statuses: Vec<String> =
        report.files.iter().map(|file| format!("{:?}", file.status).chars().take(24).collect()).collect();
    assert_eq!(statuses, ["Differs { kind: ContentS", "Differs { kind: Md5, exp", "Missing", "Missing"]);
    assert_eq!(report.splits[0].n_samples.as_ref().unwrap(), &2);

    // One of a pair is missing.
    fs::remove_file(places.path("given/train-images-idx3-ubyte")).unwrap();
    let report = verify(DatasetName::Mnist, &places.locations());
    assert!(matches!(report.files[0].status, FileStatus::Missing));
    assert!(matches!(report.files[1].status, FileStatus::Differs { .. }));
    assert_eq!(report.files[1].path, places.path("given/train-labels-idx1-ubyte.gz"));
    let message = report.splits[0].n_samples.as_ref().unwrap_err().to_string();
    assert!(message.starts_with("find train-images-idx3-ubyte.gz in "), "{message}");
    sparse(&places.path("given/data_batch_2.bin"), 10_000 * CIFAR10_RECORD, &[]);
    let report = verify(DatasetName::Cifar10, &places.locations());
    assert!(!report.is_ok());
    assert!(matches!(report.files[0].status, FileStatus::Missing), "{report:?}");
    assert!(matches!(report.files[1].status, FileStatus::NoChecksum));
    assert_eq!(report.files[1].path, places.path("given/data_batch_2.bin"));

    // Files without a published checksum are judged by whether they can be read.
    sparse(&places.path("given/train.bin"), 50_000 * CIFAR100_RECORD, &[]);
    sparse(&places.path("given/test.bin"), 10_000 * CIFAR100_RECORD, &[]);
    let report = verify(DatasetName::Cifar100, &places.locations());
    assert!(report.is_ok(), "{report:?}");
    assert!(matches!(report.files[..], [ref a, ref b] if matches!((&a.status, &b.status),
        (FileStatus::NoChecksum, FileStatus::NoChecksum))));
    assert!(!report.is_compared());

    let report = verify(DatasetName::Digits, &places.locations());
    assert!(report.is_ok() && report.is_compared());
    assert_eq!(report.files.len(), 1);
}

/// Where Debian's package is installed, its files are those of the catalog.
#[test]
fn debian_fashion_mnist_is_the_published_one() {
    let locations = Locations { data_dir: None, data_home: None, ..Locations::default_with(None) };
    if !locations.system.join("fashion-mnist").is_dir() {
        let must_run = std::env::var_os("LOWBIT_NO_SKIP").is_some_and(|value| value == "1");
        assert!(!must_run, "cannot be skipped: dataset-fashion-mnist is not installed");
        return println!("skipped: dataset-fashion-mnist is not installed");
    }
    let report = verify(DatasetName::FashionMnist, &locations);
    assert!(report.is_ok(), "{report:?}");
    let train = open(DatasetName::FashionMnist, Split::Train, LabelKind::Fine, &locations).unwrap();
    let measured = lowbit_data::Normalization::measure(&train);
    let constant = lowbit_data::Normalization::of(DatasetName::FashionMnist);
    assert!((measured.mean[0] - constant.mean[0]).abs() < 5.1e-5, "{measured:?}");
    assert!((measured.std[0] - constant.std[0]).abs() < 5.1e-5, "{measured:?}");
}
