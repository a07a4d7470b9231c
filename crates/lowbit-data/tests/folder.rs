//! Folders of images as they are found on disks: in order, odd, and hostile.

use std::fs;
use std::path::{Path, PathBuf};

use lowbit_data::{DataError, Digest, FolderSplit, Fractions, ImageFolder, Source, decode};
use tempfile::TempDir;

/// A PNG image of one color.
fn png(width: u32, height: u32, color: [u8; 3]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&color.repeat((width * height) as usize)).unwrap();
    writer.finish().unwrap();
    bytes
}

fn put(root: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, content).unwrap();
    path
}

/// A folder with these images, each with a color of its own.
fn folder(names: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (i, name) in names.iter().enumerate() {
        put(dir.path(), name, &png(3 + i as u32, 4, [i as u8, 100, 200]));
    }
    dir
}

fn open(dir: &TempDir) -> ImageFolder {
    ImageFolder::open(dir.path()).unwrap()
}

fn names(folder: &ImageFolder, part: usize) -> Vec<String> {
    let index = &folder.parts()[part].index;
    (0..index.len()).map(|image| index.name(image)).collect()
}

fn images(dir: &TempDir, fractions: Fractions) -> Result<FolderSplit, DataError> {
    ImageFolder::open(dir.path())?.images(&fractions)
}

fn message(error: DataError, dir: &TempDir) -> String {
    let root = fs::canonicalize(dir.path()).unwrap();
    error
        .to_string()
        .replace(&root.display().to_string(), "DIR")
        .replace(&dir.path().display().to_string(), "DIR")
}

/// As `sorted(os.walk(...))` of Python has it: folders by their whole path, then the names in each.
#[test]
fn classes_and_images_are_in_the_order_of_torchvision() {
    let dir = folder(&[
        "b/2.png",
        "b/10.png",
        "b/x/y.png",
        "b/x/y/1.png",
        "b/x-y/1.png",
        "B/z.PNG",
        "a c/1.JpEg",
        "b/1.jpg",
        "b/ä.png",
        "b/Z.png",
    ]);
    let folder = open(&dir);
    assert_eq!(folder.classes(), ["B", "a c", "b"]);
    let expected = [
        "B/z.PNG",
        "a c/1.JpEg",
        "b/1.jpg",
        "b/10.png",
        "b/2.png",
        "b/Z.png",
        "b/ä.png",
        "b/x/y.png",
        "b/x-y/1.png",
        "b/x/y/1.png",
    ];
    assert_eq!(names(&folder, 0), expected);
    let index = &folder.parts()[0].index;
    assert_eq!(index.counts(), [1, 1, 8]);
    assert_eq!(fs::metadata(index.path(4)).unwrap().len(), u64::from(index.length(4)));
    let source = folder.part_images(&folder.parts()[0]).unwrap();
    assert_eq!((source.label(0), source.label(1), source.label(8)), (0, 1, 2));
    let image = source.image(9).unwrap();
    assert_eq!((image.shape.channels, image.shape.height, image.shape.width), (3, 4, 6));
    let picture = decode(&fs::read(index.path(9)).unwrap(), &Default::default()).unwrap();
    assert_eq!(image, picture.into_image());
}

#[test]
fn what_is_no_image_is_passed_over_and_counted() {
    let dir = folder(&["a/1.png", "b/1.png"]);
    for name in [
        "a/.hidden.png",
        "a/.git/x.png",
        "a/readme.txt",
        "a/LICENSE",
        "b/x.tar.gz",
        "b/y.GZ",
        "notes.txt",
        ".DS_Store",
    ] {
        put(dir.path(), name, b"x");
    }
    put(dir.path(), "b/strange.endingoftoomanyletters", b"x");
    let folder = open(&dir);
    assert_eq!(names(&folder, 0), ["a/1.png", "b/1.png"]);
    let skipped = folder.parts()[0].index.skipped();
    assert_eq!(skipped.to_string(), "1 without an ending, 1 .*, 2 .gz, 2 .txt, 3 hidden");
    assert_eq!(skipped.total(), 9);
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_loops_end() {
    use std::os::unix::fs::symlink;

    let dir = folder(&["a/1.png", "a/deep/2.png", "elsewhere/3.png"]);
    let root = dir.path();
    // To a file, to an ancestor, to itself, to nothing, and to a folder of the class.
    symlink(root.join("a/1.png"), root.join("a/linked.png")).unwrap();
    symlink(root.join("a"), root.join("a/deep/up")).unwrap();
    symlink("loop.png", root.join("a/loop.png")).unwrap();
    symlink("nowhere", root.join("a/gone.png")).unwrap();
    symlink("nowhere", root.join("a/gone.txt")).unwrap();
    symlink("deep", root.join("a/also-deep")).unwrap();
    // A class that is a link, as on disks where images are shared.
    symlink("elsewhere", root.join("link-class")).unwrap();
    // Forty folders with two links each to the next: a walk of all paths would not end.
    for i in 0..40 {
        fs::create_dir_all(root.join(format!("wide/d{i}"))).unwrap();
        for name in ["x", "y"] {
            symlink(format!("../d{}", i + 1), root.join(format!("wide/d{i}/{name}"))).unwrap();
        }
    }
    put(root, "wide/d40/end.png", &png(1, 1, [0; 3]));
    let folder = open(&dir);
    assert_eq!(
        names(&folder, 0),
        [
            "a/1.png",
            "a/linked.png",
            "a/deep/2.png",
            "elsewhere/3.png",
            "link-class/3.png",
            "wide/d40/end.png"
        ]
    );
    let unusable = folder.parts()[0].index.unusable();
    let told: Vec<String> = unusable.first.iter().map(|(path, reason)| format!("{path}: {reason}")).collect();
    assert_eq!(unusable.n, 2);
    assert!(told.iter().all(|line| line.ends_with(".png: it is a link that leads nowhere")), "{told:?}");
    let text = message(folder.expect_usable().unwrap_err(), &dir);
    assert!(text.starts_with("use the images in DIR: 2 files cannot be used, the first is DIR/a/"), "{text}");
}

#[cfg(target_os = "linux")]
#[test]
fn names_that_are_no_text_are_told_in_one_line() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    let dir = folder(&["a/1.png", "b/1.png"]);
    fs::write(dir.path().join("a").join(OsStr::from_bytes(b"gr\xfc\nn.png")), "x").unwrap();
    fs::create_dir(dir.path().join(OsStr::from_bytes(b"\xff"))).unwrap();
    let folder = open(&dir);
    assert_eq!(names(&folder, 0), ["a/1.png", "b/1.png"]);
    let Some((_, reason)) = folder.parts()[0].index.unusable().first.first() else { panic!("it is told") };
    assert_eq!(reason, "its name is no UTF-8: rename it");
    let text = message(folder.expect_usable().unwrap_err(), &dir);
    assert!(text.contains("2 files cannot be used") && !text.contains('\n'), "{text}");
}

#[test]
fn a_folder_that_is_divided_is_found_so() {
    let dir = folder(&[
        "train/a/1.png",
        "train/b/1.png",
        "train/c/1.png",
        "val/a/2.png",
        "val/c/2.png",
        "val/c/3.png",
    ]);
    let found = images(&dir, Fractions::default()).unwrap();
    assert_eq!(found.classes, ["a", "b", "c"]);
    assert!(found.validation.is_none(), "what there is for scoring is scored at the end");
    // Labels are those of the training images, whichever classes val has.
    let labels: Vec<u16> = (0..3).map(|sample| found.test.label(sample)).collect();
    assert_eq!(labels, [0, 2, 2]);
    assert_eq!(found.test.class_names().unwrap(), ["a", "b", "c"]);
    let warnings: Vec<String> = found.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [
            "the test images are of 2 of 3 classes, without \"b\": the accuracy says nothing about what is missing; put more images \
          into their folders"
        ]
    );

    put(dir.path(), "test/b/9.png", &png(2, 2, [9; 3]));
    let found = images(&dir, Fractions::default()).unwrap();
    let n = |source: &dyn Source| source.info().n_samples;
    assert_eq!((n(&*found.train), n(&**found.validation.as_ref().unwrap()), n(&*found.test)), (3, 3, 1));
    let check = |fractions: Fractions, expected: &str| {
        assert_eq!(
            message(images(&dir, fractions).unwrap_err(), &dir),
            format!("use the images in DIR: {expected}")
        );
    };
    check(
        Fractions { test: 0.2, ..Fractions::default() },
        "data.test takes a fraction of the training images, but test is there: remove the key, or the folder",
    );
    check(
        Fractions { validation: 0.2, ..Fractions::default() },
        "data.validation takes a fraction of the training images, but val is there: remove the key, or the folder",
    );
    put(dir.path(), "val/dog/9.png", b"x");
    check(
        Fractions::default(),
        "val has 3 classes, train has 3: 1 of val is not in train, the first is \"dog\"",
    );
    put(dir.path(), "valid/a/9.png", b"x");
    let text = message(ImageFolder::open(dir.path()).unwrap_err(), &dir);
    assert_eq!(text, "use the images in DIR: it has both val and valid; leave one of them");
}

/// Labels follow from all classes: the same images have other labels where a class is renamed.
#[test]
fn the_digest_of_a_part_knows_the_classes_of_all() {
    let dir = folder(&["train/a/1.png", "train/b/1.png", "train/c/1.png", "val/b/1.png", "val/c/1.png"]);
    let of_val = |dir: &TempDir| {
        let images = images(dir, Fractions::default()).unwrap().test;
        let labels: Vec<u16> = (0..images.info().n_samples).map(|sample| images.label(sample)).collect();
        (labels, images.digest().unwrap())
    };
    let (labels, digest) = of_val(&dir);
    assert_eq!(labels, [1, 2]);
    fs::rename(dir.path().join("train/a"), dir.path().join("train/d")).unwrap();
    let (other_labels, other_digest) = of_val(&dir);
    assert_eq!(other_labels, [0, 1]);
    assert_ne!(other_digest, digest);
}

#[test]
fn parts_without_class_folders_are_told() {
    let check = |names: &[&str], expected: &str| {
        let dir = folder(names);
        assert_eq!(
            message(ImageFolder::open(dir.path()).unwrap_err(), &dir),
            format!("use the images in DIR: {expected}")
        );
    };
    check(
        &["train/1.png", "val/1.png"],
        "its only folders, train and val, would be the classes: parts are called train, val and test, and have a folder for each \
         class, as in train/cat/1.jpg",
    );
    check(
        &["training/a/1.png", "Validation/a/1.png"],
        "its only folders, Validation and training, would be the classes: parts are called train, val and test, and have a folder \
         for each class, as in train/cat/1.jpg",
    );
    check(
        &["train/a/1.png", "val/1.png"],
        "its folder val has neither class folders nor tar archives: put the images of each class into a folder of its own, as in \
         val/cat/1.jpg",
    );
}

/// A class of one image is in one part alone.
#[test]
fn classes_that_a_division_leaves_out_are_told() {
    let mut all: Vec<String> = (0..10).map(|i| format!("a/{i}.png")).collect();
    all.push("b/1.png".into());
    let dir = folder(&all.iter().map(String::as_str).collect::<Vec<_>>());
    let found = images(&dir, Fractions { validation: 0.2, test: 0.2, seed: 5 }).unwrap();
    let warnings: Vec<String> = found.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(
        warnings[0].starts_with("the validation images are of 1 of 2 classes, without \"b\""),
        "{warnings:?}"
    );
    assert!(warnings[1].starts_with("the test images are of 1 of 2 classes, without \"b\""), "{warnings:?}");
}

/// A class may be called train.
#[test]
fn a_class_is_no_part() {
    let dir = folder(&["car/1.png", "plane/1.png", "train/1.png"]);
    assert_eq!(open(&dir).classes(), ["car", "plane", "train"]);
}

#[test]
fn one_whole_is_divided_in_every_class() {
    let all: Vec<String> = (0..10).flat_map(|i| [format!("a/{i}.png"), format!("b/{i}.png")]).collect();
    let dir = folder(&all.iter().map(String::as_str).collect::<Vec<_>>());
    let text = message(images(&dir, Fractions::default()).unwrap_err(), &dir);
    assert_eq!(
        text,
        "use the images in DIR: it has no test images: say which fraction of the images they are, as in data.test=0.2, or put \
         them into val"
    );
    let fractions = Fractions { validation: 0.1, test: 0.3, seed: 5 };
    let found = images(&dir, fractions).unwrap();
    let validation = found.validation.unwrap();
    let parts = [&found.train, &validation, &found.test];
    assert_eq!(parts.map(|part| part.info().n_samples), [12, 2, 6]);
    let widths = |source: &dyn Source| -> Vec<usize> {
        (0..source.info().n_samples).map(|sample| source.image(sample).unwrap().shape.width).collect()
    };
    let mut all: Vec<usize> = parts.iter().flat_map(|part| widths(&***part)).collect();
    all.sort_unstable();
    assert_eq!(all, (3..23).collect::<Vec<_>>(), "each image is in one part");
    for part in parts {
        let labels: Vec<u16> = (0..part.info().n_samples).map(|sample| part.label(sample)).collect();
        assert_eq!(labels.iter().filter(|label| **label == 1).count() * 2, labels.len());
    }
    let digests = parts.map(|part| part.digest().unwrap());
    assert!(digests[0] != digests[1] && digests[1] != digests[2]);
    let other = images(&dir, Fractions { seed: 6, ..fractions }).unwrap();
    assert_ne!(other.train.digest().unwrap(), digests[0]);
}

#[test]
fn other_images_have_another_digest() {
    let make = || folder(&["a/1.png", "b/1.png"]);
    let digest = |dir: &TempDir| -> Digest {
        let folder = open(dir);
        folder.part_images(&folder.parts()[0]).unwrap().digest().unwrap()
    };
    let dir = make();
    let same = digest(&make());
    assert_eq!(digest(&dir), same, "wherever it is");
    // A pixel.
    put(dir.path(), "a/1.png", &png(3, 4, [7, 100, 200]));
    assert_ne!(digest(&dir), same);
    let renamed = make();
    fs::rename(renamed.path().join("a/1.png"), renamed.path().join("a/2.png")).unwrap();
    assert_ne!(digest(&renamed), same);
    let moved = make();
    fs::rename(moved.path().join("a"), moved.path().join("c")).unwrap();
    assert_ne!(digest(&moved), same);
}

#[test]
fn a_folder_that_is_none_is_told() {
    let check = |dir: &TempDir, path: &Path, expected: &str| {
        assert_eq!(message(ImageFolder::open(path).unwrap_err(), dir), expected);
    };
    let dir = tempfile::tempdir().unwrap();
    check(
        &dir,
        dir.path(),
        "use the images in DIR: it has no class folders; expected train/<class>/*.jpg and val/<class>/*.jpg, or \
         <class>/*.jpg",
    );
    put(dir.path(), "a/1.webp", b"x");
    put(dir.path(), "b/1.webp", b"x");
    check(
        &dir,
        dir.path(),
        "use the images in DIR: no JPEG or PNG file is in its 2 folders; there are other files: 2 .webp; expected \
         <class>/*.jpg",
    );
    check(&dir, &dir.path().join("a/1.webp"), "use the images in DIR/a/1.webp: it is no folder");
    check(
        &dir,
        &dir.path().join("gone"),
        "find the data directory DIR/gone: it does not exist; create it or give another",
    );
}

/// That a file was written over is noticed where it is read.
#[test]
fn a_file_that_has_changed_is_told() {
    let dir = folder(&["a/1.png", "b/1.png"]);
    let folder = open(&dir);
    put(dir.path(), "a/1.png", b"short");
    let source = folder.part_images(&folder.parts()[0]).unwrap();
    let text = source.image(0).unwrap_err().to_string();
    assert!(text.contains("it has 5 bytes, but the index says") && !text.contains('\n'), "{text}");
    fs::remove_file(dir.path().join("b/1.png")).unwrap();
    let text = source.image(1).unwrap_err().to_string();
    assert!(text.starts_with("failed to read ") && text.contains("b/1.png: No such file"), "{text}");
}

#[test]
fn images_that_cannot_be_decoded_are_all_found() {
    let dir = folder(&["a/1.png", "a/2.png", "b/1.png", "b/4.png"]);
    put(dir.path(), "a/0.png", b"");
    put(dir.path(), "b/2.jpg", b"<html>not found</html>");
    put(dir.path(), "b/3.png", &png(30, 40, [1, 2, 3])[..60]);
    let folder = open(&dir);
    let source = folder.part_images(&folder.parts()[0]).unwrap();
    for n_threads in [1, 3] {
        let failures = source.decode_all(n_threads, |_, _| true);
        let (indices, reasons): (Vec<usize>, Vec<String>) = failures.into_iter().unzip();
        assert_eq!(indices, [0, 4, 5]);
        assert!(reasons[0].ends_with("a/0.png: it is empty"), "{reasons:?}");
        assert!(reasons[1].contains("b/2.jpg: it is a web page, not a JPEG or PNG"), "{reasons:?}");
        assert!(reasons[2].contains("b/3.png: "), "{reasons:?}");
    }
}

/// What is not read says nothing of the image: it is never left out.
#[test]
fn only_what_cannot_be_decoded_is_unreadable() {
    let dir = folder(&["a/1.png", "a/2.png", "b/1.png"]);
    put(dir.path(), "a/2.png", b"<html>not found</html>");
    let folder = open(&dir);
    let unreadable = folder.unreadable(2).unwrap();
    assert_eq!(unreadable.iter().map(|image| image.path.as_str()).collect::<Vec<_>>(), ["a/2.png"]);

    put(dir.path(), "b/1.png", &png(30, 40, [1, 2, 3]));
    let text = message(folder.unreadable(2).unwrap_err(), &dir);
    assert!(
        text.starts_with("read DIR/b/1.png: it has ") && text.contains("lowbit data index DIR"),
        "{text}"
    );
    fs::remove_file(dir.path().join("b/1.png")).unwrap();
    let text = message(folder.unreadable(2).unwrap_err(), &dir);
    assert_eq!(text, "read DIR/b/1.png");
}

/// A disk that is not mounted is no class that is missing.
#[cfg(unix)]
#[test]
fn links_that_lead_nowhere_are_errors() {
    use std::os::unix::fs::symlink;
    for link in ["train/c", "train/a/more", "train/a/lost.png", "test"] {
        let dir = tempfile::tempdir().unwrap();
        for name in ["train/a/0.png", "train/b/0.png", "val/a/0.png"] {
            put(dir.path(), name, &png(3, 3, [7; 3]));
        }
        symlink("/gone/for/good", dir.path().join(link)).unwrap();
        let error = ImageFolder::open(dir.path()).and_then(|folder| folder.expect_usable()).unwrap_err();
        let expected = format!("{link}: it is a link that leads nowhere; repair or remove it");
        assert!(error.to_string().contains(&expected), "{error}");
    }
}

/// What names the classes is beside a part, and not beside one whole: one index is not taken for the other.
#[test]
fn the_index_of_a_part_is_not_that_of_a_whole() {
    let (dir, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    put(dir.path(), "train/a/0.png", &png(3, 3, [7; 3]));
    let kept = |path: &Path| {
        let folder = ImageFolder::scan(path, Some(cache.path())).unwrap();
        folder.parts()[0].index_file.clone().unwrap()
    };
    assert_ne!(kept(dir.path()), kept(&dir.path().join("train")));
}

#[cfg(target_os = "linux")]
#[test]
fn a_shard_whose_name_is_no_text_is_told() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "0.tar", b"");
    fs::write(dir.path().join(OsStr::from_bytes(b"\xff.tar")), b"").unwrap();
    let error = ImageFolder::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("its name is no UTF-8: rename it"), "{error}");
}

#[test]
fn images_of_no_class_are_told() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a/0.png", "a/1.png", "b/0.png", "b/1.png", "stray.PNG", "other.jpg"] {
        put(dir.path(), name, &png(3, 3, [7; 3]));
    }
    let fractions = Fractions { test: 0.5, ..Fractions::default() };
    let warnings = ImageFolder::open(dir.path()).unwrap().images(&fractions).unwrap().warnings;
    assert_eq!(
        warnings.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "2 images are beside the class folders and passed over: put each image into the folder of its class"
        ]
    );
}
