//! Images in tar archives: shards, ILSVRC-2012 as it is published, and archives that are no good.

use std::fs;
use std::io::Write;
use std::path::Path;

use lowbit_data::{
    DataError, Dimensions, Fractions, ImageFolder, PackSettings, Packed, Picture, Source, pack,
};
use tempfile::TempDir;

fn png(width: u32, value: u8) -> Vec<u8> {
    let pixels = vec![value; width as usize * 3 * 2];
    Picture { dimensions: Dimensions { width, height: 2 }, channels: 3, pixels }.to_png()
}

fn put(root: &Path, name: &str, content: &[u8]) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// An archive of these files.
fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// One header, whatever it says, and its content.
fn member(name: &[u8], kind: tar::EntryType, size: u64, content: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn names(folder: &ImageFolder, part: usize) -> Vec<String> {
    let index = &folder.parts()[part].index;
    (0..index.len()).map(|image| index.name(image)).collect()
}

fn message(error: DataError, dir: &TempDir) -> String {
    error.to_string().replace(&fs::canonicalize(dir.path()).unwrap().display().to_string(), "DIR")
}

#[test]
fn shards_are_read_at_random_in_place() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("{}/x.png", "folder".repeat(30));
    let long_class = long.replace("png", "cls");
    let (a, b, c, d) = (png(3, 1), png(4, 2), png(5, 3), png(6, 4));
    put(
        dir.path(),
        "train/a-000.tar",
        &tar(&[("x/1.png", &a), ("x/1.cls", b"2"), ("x/2.cls", b"0\n"), ("x/2.png", &b)]),
    );
    put(dir.path(), "train/a-001.tar", &tar(&[(&long, &c), (&long_class, b"1"), ("3.json", b"{}")]));
    put(dir.path(), "val/b.tar", &tar(&[("1.png", &d), ("1.cls", b"1")]));
    put(dir.path(), "classes.txt", b"zebra\nant\nbee\n");
    let folder = ImageFolder::open(dir.path()).unwrap();
    assert_eq!(folder.classes(), ["zebra", "ant", "bee"], "in the order of the labels");
    assert_eq!(names(&folder, 0), ["a-000.tar/x/1.png", "a-000.tar/x/2.png", &format!("a-001.tar/{long}")]);
    assert_eq!(folder.parts()[0].index.skipped().total(), 1);
    let images = folder.images(&Fractions::default()).unwrap();
    let seen = |source: &dyn Source, sample: usize| {
        (source.image(sample).unwrap().shape.width, source.label(sample))
    };
    assert_eq!([2, 0, 1].map(|sample| seen(&*images.train, sample)), [(5, 1), (3, 2), (4, 0)]);
    assert_eq!(seen(&*images.test, 0), (6, 1));

    // Another content of the same length is other images.
    let digest = images.train.digest().unwrap();
    let other = tar(&[("x/1.png", &png(3, 9)), ("x/1.cls", b"2"), ("x/2.cls", b"0\n"), ("x/2.png", &b)]);
    assert_eq!(other.len() as u64, fs::metadata(dir.path().join("train/a-000.tar")).unwrap().len());
    put(dir.path(), "train/a-000.tar", &other);
    let again = ImageFolder::open(dir.path()).unwrap().images(&Fractions::default()).unwrap();
    assert_ne!(again.train.digest().unwrap(), digest);
    // One that was cut since is told.
    put(dir.path(), "train/a-001.tar", b"short");
    let text = again.train.image(2).unwrap_err().to_string();
    assert!(text.contains("it has 5 bytes, but the index says"), "{text}");
}

#[test]
fn shards_without_names_have_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<(String, String)> = (0..12).map(|i| (format!("{i}.png"), i.to_string())).collect();
    let image = png(1, 1);
    let pairs: Vec<(String, &[u8])> = files
        .iter()
        .flat_map(|(name, class)| {
            [(name.clone(), &image[..]), (name.replace("png", "cls"), class.as_bytes())]
        })
        .collect();
    let pairs: Vec<(&str, &[u8])> = pairs.iter().map(|(name, content)| (name.as_str(), *content)).collect();
    put(dir.path(), "train/a.tar", &tar(&pairs));
    put(dir.path(), "val/a.tar", &tar(&pairs[..6]));
    let folder = ImageFolder::open(dir.path()).unwrap();
    assert_eq!(folder.classes().len(), 12);
    assert_eq!(folder.classes()[10], "10");
    let images = folder.images(&Fractions::default()).unwrap();
    assert_eq!((images.test.label(2), images.train.label(11)), (2, 11));
    // What is outside of the folder is not of it.
    put(dir.path(), "val/whole/a.tar", &tar(&pairs[..6]));
    put(dir.path(), "val/classes.txt", b"a\nb\nc\n");
    assert_eq!(ImageFolder::open(&dir.path().join("val/whole")).unwrap().classes(), ["0", "1", "2"]);
    fs::remove_dir_all(dir.path().join("val/whole")).unwrap();
    put(dir.path(), "classes.txt", b"a\nb\n");
    let text = message(ImageFolder::open(dir.path()).unwrap_err(), &dir);
    assert_eq!(text, "use the images in DIR/train: a shard has class 11, but its classes.txt has 2 names");
    put(dir.path(), "classes.txt", b"a\na\n");
    let text = message(ImageFolder::open(dir.path()).unwrap_err(), &dir);
    assert!(text.contains("each once, but \"a\" is not"), "{text}");
}

/// Each in one line, and in as little memory as the archive has bytes.
#[test]
fn hostile_archives_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let file = tar::EntryType::Regular;
    let image = png(2, 7);
    let good = [member(b"1.png", file, image.len() as u64, &image), member(b"1.cls", file, 1, b"0")].concat();
    let open = |content: &[u8]| {
        put(dir.path(), "train/a.tar", content);
        put(dir.path(), "val/a.tar", &good);
        ImageFolder::open(dir.path())
    };
    let odd = |content: Vec<u8>, expected: &str| {
        let folder = open(&[good.clone(), content].concat()).unwrap();
        assert_eq!(names(&folder, 0), ["a.tar/1.png"]);
        let unusable = folder.parts()[0].index.unusable();
        let (path, reason) = &unusable.first[0];
        let line = format!("{}: {reason}", path.rsplit_once("a.tar/").unwrap().1);
        assert_eq!((line.as_str(), unusable.n), (expected, 1));
        assert!(!line.contains('\n'));
        assert!(message(folder.expect_usable().unwrap_err(), &dir).contains("1 file cannot be used"));
    };
    odd(
        member(b"../../etc/x.png", file, 1, b"x"),
        "../../etc/x.png: its name leads out of the archive, or is none",
    );
    odd(member(b"/etc/x.png", file, 1, b"x"), "/etc/x.png: its name leads out of the archive, or is none");
    odd(member(b"a\nb.png", file, 1, b"x"), "a\\nb.png: its name leads out of the archive, or is none");
    odd(member(b"x.png", tar::EntryType::Symlink, 0, b""), "x.png: it is a link");
    odd(member(b"x.png", tar::EntryType::Link, 0, b""), "x.png: it is a link");
    odd(member(b"x.png", tar::EntryType::GNUSparse, 0, b""), "x.png: it is a sparse file");
    odd(member(b"x.png", tar::EntryType::Fifo, 0, b""), "x.png: it is no regular file");
    odd(member(b"\xff.png", file, 1, b"x"), "\u{fffd}.png: its name is no UTF-8");
    odd(member(b"2.cls", file, 2, b"-1"), "2.cls: it has no class number from 0 to 65535");
    odd(member(b"2.cls", file, 1, b"1"), "2: it has a class, but no image");
    odd(member(b"2.png", file, 1, b"1"), "2: it has no class (.cls)");
    // A number that is cut is another one.
    let long = [&b" ".repeat(31)[..], b"12"].concat();
    odd(member(b"2.cls", file, 33, &long), "2.cls: it has no class number from 0 to 65535");
    // One image for one class, neither the last nor both.
    let twice = |first: &[u8], second: &[u8], label: &[u8]| {
        let class = member(label, file, 1, b"0");
        [member(first, file, 1, b"1"), member(second, file, 1, b"1"), class].concat()
    };
    let folder = open(&[good.clone(), twice(b"2.left.png", b"2.right.png", b"2.cls")].concat()).unwrap();
    assert_eq!(names(&folder, 0), ["a.tar/1.png", "a.tar/2.left.png"]);
    let (path, reason) = &folder.parts()[0].index.unusable().first[0];
    assert!(path.ends_with("a.tar/2.right.png"), "{path}");
    assert_eq!(reason, "its key is that of 2.left.png: one image has one class (.cls)");
    let folder = open(&[good.clone(), twice(b"2.cls", b"2.cls", b"2.CLS")].concat()).unwrap();
    assert_eq!(folder.parts()[0].index.unusable().n, 3, "two more classes, and no image");

    let refused = |content: Vec<u8>, expected: &str| {
        let text = message(open(&content).unwrap_err(), &dir);
        assert!(text.contains(expected) && !text.contains('\n'), "{expected}: {text}");
    };
    // Cut within a file, and a header that promises what is not there.
    let cut = [good.clone(), member(b"2.png", file, image.len() as u64, &image)].concat();
    refused(cut[..cut.len() - 512].to_vec(), "2.png ends after the archive");
    refused([good.clone(), member(b"2.png", file, 1 << 40, b"")].concat(), "2.png ends after the archive");
    refused(
        [good.clone(), member(b"@LongLink", tar::EntryType::GNULongName, 1 << 30, b"")].concat(),
        "a name or header of 1073741824 bytes",
    );
    refused(
        b"this is no archive, but has enough bytes".repeat(30),
        "the tar archive is cut short or damaged: ",
    );
    refused(vec![0; 4096], "it has no class folders");
    let unpaired: Vec<u8> =
        (0..1100).flat_map(|i| member(format!("{i}.png").as_bytes(), file, 0, b"")).collect();
    refused(unpaired, "of its files have no partner: a shard has key.jpg and key.cls one after the other");
}

/// A hole of a terabyte is no content.
#[cfg(unix)]
#[test]
fn an_archive_without_end_is_over_where_its_content_is() {
    let dir = tempfile::tempdir().unwrap();
    let image = png(2, 7);
    let content = tar(&[("1.png", &image), ("1.cls", b"0")]);
    for part in ["train", "val"] {
        put(dir.path(), &format!("{part}/a.tar"), &content);
        let file = fs::OpenOptions::new().write(true).open(dir.path().join(part).join("a.tar")).unwrap();
        file.set_len(1 << 40).unwrap();
    }
    let folder = ImageFolder::open(dir.path()).unwrap();
    assert_eq!(names(&folder, 0), ["a.tar/1.png"]);
    let images = folder.images(&Fractions::default()).unwrap();
    assert_eq!(images.train.image(0).unwrap().shape.width, 2);
}

const SYNSETS: [&str; 3] = ["n01440764", "n01443537", "n02119789"];

/// The training images of ILSVRC-2012 in miniature.
fn train_folders(root: &Path) {
    for (class, synset) in SYNSETS.iter().enumerate() {
        for i in 0..4 {
            put(root, &format!("train/{synset}/{synset}_{i}.png"), &png(class as u32 + 1, i));
        }
    }
}

#[test]
fn imagenet_is_read_as_it_is_published() {
    let classes_of_val = ["n02119789", "n01440764", "n01443537", "n01440764"];
    let val: Vec<(String, Vec<u8>)> =
        (0..4).map(|i| (format!("ILSVRC2012_val_{:08}.png", i + 1), png(i + 10, 0))).collect();
    let folders = tempfile::tempdir().unwrap();
    train_folders(folders.path());
    for (i, (name, content)) in val.iter().enumerate() {
        put(folders.path(), &format!("val/{}/{name}", classes_of_val[i]), content);
    }
    let flat = tempfile::tempdir().unwrap();
    train_folders(&flat.path().join("ILSVRC/Data/CLS-LOC"));
    let mut csv = String::from("ImageId,PredictionString\n");
    for (i, (name, content)) in val.iter().enumerate().rev() {
        put(flat.path(), &format!("ILSVRC/Data/CLS-LOC/val/{name}"), content);
        csv += &format!("{},{} 85 1 499 272 \n", name.trim_end_matches(".png"), classes_of_val[i]);
    }
    put(flat.path(), "LOC_val_solution.csv", csv.as_bytes());
    let tars = tempfile::tempdir().unwrap();
    let mut outer =
        tar::Builder::new(fs::File::create(tars.path().join("ILSVRC2012_img_train.tar")).unwrap());
    for (class, synset) in SYNSETS.iter().enumerate().rev() {
        let inner: Vec<(String, Vec<u8>)> =
            (0..4).map(|i| (format!("{synset}_{i}.png"), png(class as u32 + 1, i))).collect();
        let inner: Vec<(&str, &[u8])> =
            inner.iter().map(|(name, content)| (name.as_str(), &content[..])).collect();
        let bytes = tar(&inner);
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        outer.append_data(&mut header, format!("{synset}.tar"), &bytes[..]).unwrap();
    }
    outer.into_inner().unwrap().flush().unwrap();
    let members: Vec<(&str, &[u8])> =
        val.iter().map(|(name, content)| (name.as_str(), &content[..])).collect();
    put(tars.path(), "ILSVRC2012_img_val.tar", &tar(&members));
    put(tars.path(), "imagenet_2012_validation_synset_labels.txt", classes_of_val.join("\n").as_bytes());

    let read = |dir: &TempDir| {
        let folder = ImageFolder::open_imagenet(dir.path()).unwrap();
        assert_eq!(folder.classes(), SYNSETS);
        let images = folder.images(&Fractions::default()).unwrap();
        let warned: Vec<String> = images.warnings.iter().map(ToString::to_string).collect();
        assert!(
            warned.concat().contains(
                "3 classes, 12 training and 4 validation images; published are 1000, 1281167 and 50000"
            ),
            "{warned:?}"
        );
        let all = |source: &dyn Source| -> Vec<(usize, u8, u16)> {
            let one = |sample| {
                let image = source.image(sample).unwrap();
                (image.shape.width, image.pixels[0], source.label(sample))
            };
            (0..source.info().n_samples).map(one).collect()
        };
        (all(&*images.train), all(&*images.test))
    };
    let (train, mut test) = read(&folders);
    assert_eq!(train.len(), 12);
    assert_eq!(&train[3..5], [(1, 3, 0), (2, 0, 1)]);
    // Scanned anew, and kept whatever their number.
    let cache = tempfile::tempdir().unwrap();
    for dir in [&folders, &flat, &tars] {
        let scanned = ImageFolder::scan_imagenet(dir.path(), Some(cache.path())).unwrap();
        assert!(
            scanned.parts().iter().all(|part| part.index_file.as_ref().is_some_and(|file| file.exists()))
        );
        let known = ImageFolder::scan_imagenet(dir.path(), None).unwrap();
        assert!(known.parts().iter().all(|part| part.index_file.is_none()));
    }
    // In class folders they are class by class, else by name.
    test.sort_unstable();
    assert_eq!(test, [(10, 0, 2), (11, 0, 0), (12, 0, 1), (13, 0, 0)]);
    assert_eq!(read(&flat), (train.clone(), test.clone()));
    assert_eq!(read(&tars), (train, test));

    let check = |dir: &TempDir, expected: &str| {
        assert_eq!(message(ImageFolder::open_imagenet(dir.path()).unwrap_err(), dir), expected);
    };
    put(tars.path(), "imagenet_2012_validation_synset_labels.txt", b"n02119789\n");
    check(
        &tars,
        "use the images in DIR/imagenet_2012_validation_synset_labels.txt: it has 1 classes, but there are 4 validation images",
    );
    put(tars.path(), "imagenet_2012_validation_synset_labels.txt", b"490\n361\n");
    check(
        &tars,
        "use the images in DIR/imagenet_2012_validation_synset_labels.txt: line 1 says no class; expected nXXXXXXXX, or an image \
         and nXXXXXXXX. (The numbers of the devkit are not read.)",
    );
    let twice = "ILSVRC2012_val_00000001 n02119789\nILSVRC2012_val_00000001 n01440764\n";
    put(tars.path(), "imagenet_2012_validation_synset_labels.txt", twice.as_bytes());
    check(
        &tars,
        "use the images in DIR/imagenet_2012_validation_synset_labels.txt: line 2 says another class of an image than a line \
         before it",
    );
    fs::remove_file(tars.path().join("imagenet_2012_validation_synset_labels.txt")).unwrap();
    let text = message(ImageFolder::open_imagenet(tars.path()).unwrap_err(), &tars);
    assert!(text.contains("no file says their classes; expected one of LOC_val_solution.csv"), "{text}");
    let empty = tempfile::tempdir().unwrap();
    check(
        &empty,
        "use the images in DIR: it has no training images of ILSVRC-2012; expected train/nXXXXXXXX/*.JPEG or \
         ILSVRC2012_img_train.tar",
    );
}

/// As in class folders: nothing that is an image by its name is passed over silently, and no other takes its class.
#[cfg(target_os = "linux")]
#[test]
fn what_cannot_be_used_of_imagenet_is_told() {
    use std::os::unix::ffi::OsStrExt;
    const LONG: u64 = (256 << 20) + 1;
    let too_long = "it has 268435457 bytes, more than the 268435456 that are read of an image";
    let unusable = |folder: &ImageFolder, part: usize| -> Vec<(String, String)> {
        let told = folder.parts()[part].index.unusable();
        assert_eq!(told.n, told.first.len() as u64);
        let root = format!("{}/", folder.root().display());
        let mut all: Vec<_> =
            told.first.iter().map(|(path, reason)| (path.replace(&root, ""), reason.clone())).collect();
        all.sort_unstable();
        all
    };
    let said = |path: &str, reason: &str| (path.to_owned(), reason.to_owned());

    let flat = tempfile::tempdir().unwrap();
    train_folders(flat.path());
    let val = flat.path().join("val");
    put(&val, "1.png", &png(1, 1));
    std::os::unix::fs::symlink("nowhere", val.join("2.png")).unwrap();
    fs::File::create(val.join("3.png")).unwrap().set_len(LONG).unwrap();
    put(&val, "4.png", &png(4, 1));
    fs::write(val.join(std::ffi::OsStr::from_bytes(b"5\xff.png")), b"x").unwrap();
    put(&val, ".6.png", b"hidden");
    put(&val, "notes.txt", b"");
    let told = [
        said("val/2.png", "it is a link that leads nowhere"),
        said("val/3.png", too_long),
        said("val/5\\xFF.png", "its name is no UTF-8: rename it"),
    ];
    let of_names = "1 n01440764\n4 n02119789\n".to_owned();
    let in_order = [0, 1, 1, 2, 1].map(|class| SYNSETS[class]).join("\n");
    for labels in [of_names, in_order] {
        put(flat.path(), "val.txt", labels.as_bytes());
        let folder = ImageFolder::open_imagenet(flat.path()).unwrap();
        assert_eq!(unusable(&folder, 1), told);
        let index = &folder.parts()[1].index;
        assert_eq!(
            (names(&folder, 1), index.label(0), index.label(1)),
            (vec!["1.png".into(), "4.png".into()], 0, 2)
        );
        assert_eq!((index.skipped().hidden, index.skipped().total()), (1, 2));
    }

    // The same class twice, and a member that is too long, in a hole.
    let tars = tempfile::tempdir().unwrap();
    let class = |name: &str| tar(&[(name, &png(1, 1)[..])]);
    let (first, second, other) = (class("1.png"), class("2.png"), class("3.png"));
    let train = tar(&[
        ("a/n01440764.tar", &first[..]),
        ("a/n01443537.tar", &other[..]),
        ("b/n01440764.tar", &second[..]),
    ]);
    put(tars.path(), "ILSVRC2012_img_train.tar", &train);
    let file = tar::EntryType::Regular;
    let long = [tar(&[("1.png", &png(1, 1))])[..1024].to_vec(), member(b"2.png", file, LONG, b"")].concat();
    put(tars.path(), "ILSVRC2012_img_val.tar", &long);
    let archive =
        fs::OpenOptions::new().write(true).open(tars.path().join("ILSVRC2012_img_val.tar")).unwrap();
    archive.set_len(long.len() as u64 + LONG.next_multiple_of(512)).unwrap();
    put(tars.path(), "val.txt", b"n01443537\nn01440764\n");
    let folder = ImageFolder::open_imagenet(tars.path()).unwrap();
    assert_eq!(folder.classes(), [SYNSETS[0], SYNSETS[1]]);
    assert_eq!(names(&folder, 0).len(), 2);
    let twice = "it is of the same class as a/n01440764.tar";
    assert_eq!(unusable(&folder, 0), [said("ILSVRC2012_img_train.tar/b/n01440764.tar", twice)]);
    assert_eq!(unusable(&folder, 1), [said("ILSVRC2012_img_val.tar/2.png", too_long)]);
    assert_eq!((names(&folder, 1).len(), folder.parts()[1].index.label(0)), (1, 1));
}

#[test]
fn a_folder_is_packed_and_what_was_stopped_goes_on() {
    let source = tempfile::tempdir().unwrap();
    for class in ["b", "a"] {
        for i in 0..7 {
            put(source.path(), &format!("train/{class}/{i}.png"), &png(i + 3, i as u8));
        }
    }
    put(source.path(), "val/b/0.png", &png(40, 9));
    let folder = ImageFolder::open(source.path()).unwrap();
    let settings = PackSettings { per_shard: 5, ..PackSettings::default() };
    let to = tempfile::tempdir().unwrap();
    let (whole, stopped) = (to.path().join("whole"), to.path().join("stopped"));
    let packed = pack(&folder, &whole, &settings, |_| true).unwrap().unwrap();
    assert_eq!(packed, Packed { n_images: 15, n_skipped: 0, n_shards: 4, n_kept: 0 });
    // While another packs there.
    let held = pack(&folder, &stopped, &settings, |n| {
        let other = pack(&folder, &stopped, &settings, |_| true).unwrap_err();
        assert!(other.to_string().contains("another process packs into it: wait until that ends"), "{other}");
        n < 3
    });
    assert_eq!(held.unwrap(), None);
    // Stopped in the second shard, and killed in its writing.
    assert_eq!(pack(&folder, &stopped, &settings, |n| n < 8).unwrap(), None);
    put(&stopped, "train/shard-000001.part", b"half");
    let incomplete = |got: usize| {
        let text = ImageFolder::open(&stopped).unwrap_err().to_string();
        let expected = format!("its shards have {got} images, but pack.json says 15: pack them again");
        assert!(text.contains(&expected), "{text}");
    };
    incomplete(5);
    let packed = pack(&folder, &stopped, &settings, |_| true).unwrap().unwrap();
    assert_eq!(packed, Packed { n_images: 15, n_skipped: 0, n_shards: 4, n_kept: 1 });
    for name in ["train/shard-000000.tar", "train/shard-000002.tar", "val/shard-000000.tar", "classes.txt"] {
        assert_eq!(fs::read(whole.join(name)).unwrap(), fs::read(stopped.join(name)).unwrap(), "{name}");
    }
    let shards = ImageFolder::open(&stopped).unwrap();
    assert_eq!(shards.classes(), folder.classes());
    let [before, after] = [&folder, &shards].map(|folder| folder.images(&Fractions::default()).unwrap());
    for (before, after) in [(&before.train, &after.train), (&before.test, &after.test)] {
        assert_eq!(before.info().n_samples, after.info().n_samples);
        for sample in 0..before.info().n_samples {
            assert_eq!(before.label(sample), after.label(sample));
            assert_eq!(before.image(sample).unwrap(), after.image(sample).unwrap());
        }
    }

    // A shard that is no longer as it was written is made again.
    let shard = stopped.join("train/shard-000001.tar");
    let written = fs::read(&shard).unwrap();
    fs::write(&shard, b"").unwrap();
    let packed = pack(&folder, &stopped, &settings, |_| true).unwrap().unwrap();
    assert_eq!((packed.n_kept, packed.n_shards), (3, 4));
    assert_eq!(fs::read(&shard).unwrap(), written);

    // A shard, and a part, that are gone.
    fs::remove_file(stopped.join("train/shard-000001.tar")).unwrap();
    incomplete(10);
    fs::rename(stopped.join("val/shard-000000.tar"), stopped.join("val/shard-000000.part")).unwrap();
    incomplete(9);
    fs::remove_dir_all(stopped.join("val")).unwrap();
    fs::remove_file(stopped.join("train/shard-000000.tar")).unwrap();
    incomplete(4);
    fs::remove_file(stopped.join("train/shard-000002.tar")).unwrap();
    incomplete(0);

    let other = pack(&folder, &stopped, &PackSettings { per_shard: 6, ..settings }, |_| true).unwrap_err();
    assert!(other.to_string().contains("packed with other settings"), "{other}");
    let other = tempfile::tempdir().unwrap();
    put(other.path(), "notes.txt", b"");
    let into = pack(&folder, other.path(), &settings, |_| true).unwrap_err();
    assert!(into.to_string().contains("it has other files"), "{into}");
    assert!(!other.path().join("pack.lock").exists(), "nothing is made where something else is");
    // There, the shards would be taken for a class of the folder.
    for inside in ["train", "train/new/shards", "train/cat/../packed"] {
        let error = pack(&folder, &source.path().join(inside), &settings, |_| true).unwrap_err();
        assert!(error.to_string().contains("it is in the folder of images that is packed"), "{error}");
    }
    assert!(!source.path().join("train/new").exists() && !source.path().join("train/packed").exists());
}

/// A file that cannot be decoded ends the packing, or is left out; what is there already stays.
#[test]
fn a_packing_may_leave_out_what_cannot_be_decoded() {
    let source = tempfile::tempdir().unwrap();
    for i in 0..6 {
        put(source.path(), &format!("train/a/{i}.png"), &png(i + 3, i as u8));
    }
    put(source.path(), "train/a/2.png", b"<html>404</html>");
    put(source.path(), "train/a/4.png", &png(7, 4)[..60]);
    put(source.path(), "val/a/0.png", &png(40, 9));
    let folder = ImageFolder::open(source.path()).unwrap();
    let to = tempfile::tempdir().unwrap();
    let settings = PackSettings { per_shard: 2, ..PackSettings::default() };
    let text = message(pack(&folder, to.path(), &settings, |_| true).unwrap_err(), &source);
    assert_eq!(
        text,
        "use the images in DIR/train: 1 file cannot be used, the first is DIR/train/a/2.png: it is a web page, not a JPEG or \
         PNG image; repair or remove it, or pass over it"
    );
    let skipping = PackSettings { skip_unreadable: true, ..settings };
    // Stopped after what was left out of the second shard, and gone on without the first.
    assert_eq!(pack(&folder, to.path(), &skipping, |n| n < 5).unwrap(), None);
    let record = || fs::read_to_string(to.path().join("pack.json")).unwrap();
    assert!(record().contains("train/a/2.png") && !record().contains("4.png"), "{}", record());
    let packed = pack(&folder, to.path(), &skipping, |_| true).unwrap().unwrap();
    assert_eq!(packed, Packed { n_images: 5, n_skipped: 2, n_shards: 4, n_kept: 2 });
    let shards = ImageFolder::open(to.path()).unwrap();
    assert_eq!(names(&shards, 0).len(), 4);
    assert_eq!(shards.unreadable(1).unwrap(), []);
    assert!(record().contains("it is a web page") && record().contains("4.png"), "{}", record());
    // What cannot be used from the start too.
    put(source.path(), "train/a/2.png", &png(5, 2));
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink("nowhere", source.path().join("train/a/9.png")).unwrap();
        let folder = ImageFolder::open(source.path()).unwrap();
        let again = to.path().join("again");
        let refused = pack(&folder, &again, &settings, |_| true).unwrap_err();
        assert!(refused.to_string().contains("it is a link that leads nowhere"), "{refused}");
        let packed = pack(&folder, &again, &skipping, |_| true).unwrap().unwrap();
        assert_eq!(packed, Packed { n_images: 6, n_skipped: 2, n_shards: 4, n_kept: 0 });
        let record = fs::read_to_string(again.join("pack.json")).unwrap();
        assert!(record.contains("it is a link that leads nowhere"), "{record}");
        assert_eq!(names(&ImageFolder::open(&again).unwrap(), 0).len(), 5);
    }
}

#[test]
fn packed_images_may_be_made_smaller() {
    let source = tempfile::tempdir().unwrap();
    put(source.path(), "train/a/large.png", &png(40, 200));
    put(source.path(), "train/a/small.png", &png(1, 3));
    let pixels: Vec<u8> = (0..300 * 100 * 3).map(|i| (i / 3 % 300 * 255 / 300) as u8).collect();
    let wide = Picture { dimensions: Dimensions { width: 300, height: 100 }, channels: 3, pixels };
    put(source.path(), "train/b/wide.png", &wide.to_png());
    put(source.path(), "val/a/0.png", &png(4, 9));
    let to = tempfile::tempdir().unwrap();
    let settings = PackSettings { resize: Some(50), ..PackSettings::default() };
    let folder = ImageFolder::open(source.path()).unwrap();
    pack(&folder, &to.path().join("p"), &settings, |_| true).unwrap().unwrap();
    let train = ImageFolder::open(&to.path().join("p")).unwrap().images(&Fractions::default()).unwrap().train;
    let sizes: Vec<(usize, usize)> = (0..3)
        .map(|sample| {
            let shape = train.image(sample).unwrap().shape;
            (shape.width, shape.height)
        })
        .collect();
    // Only what is larger; nothing is made larger.
    assert_eq!(sizes, [(40, 2), (1, 2), (150, 50)]);
    let image = train.image(2).unwrap();
    for column in 0..150 {
        let value = i32::from(image.pixels[25 * 150 + column]);
        assert!((value - column as i32 * 255 / 150).abs() < 6, "{column}: {value}");
    }
}
