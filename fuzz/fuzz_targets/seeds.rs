//! Writes the seeds of every target into `corpus/TARGET/`: small files that are read without an error. It is built as a target
//! so that it shares their build of burn; its input means nothing.
#![no_main]

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|_input: &[u8]| all());

fn all() {
    let (images, labels) = (idx(0x803, &[2, 28, 28], 2 * 784), idx(0x801, &[2], 2));
    for (choice, name, images, labels) in [
        (0, "plain", images.clone(), labels.clone()),
        (2, "plain-raw", images.clone(), labels.clone()),
        (3, "plain-raw-train", images.clone(), labels.clone()),
        (0, "gzip", gzip(&images), gzip(&labels)),
        (1, "gzip-train", gzip(&images), gzip(&labels)),
        (2, "gzip-raw", gzip(&images), gzip(&labels)),
        (0, "padded", [gzip(&images), vec![0; 64]].concat(), gzip(&labels)),
        (2, "more", idx(0x803, &[u32::MAX, 28, 28], 784), labels.clone()),
    ] {
        let n_labels = (labels.len() as u16).to_le_bytes();
        seed("idx", name, &[&[choice][..], &n_labels, &labels, &images].concat());
    }
    for (choice, n_labels) in [(0, 1), (1, 2), (3, 2), (4, 1)] {
        let record = [vec![1; n_labels], vec![7; 3072]].concat();
        seed("cifar", &format!("whole-{choice}"), &[&[choice | 0x10][..], &record].concat());
        seed("cifar", &format!("short-{choice}"), &[&[choice][..], &record].concat());
    }
    let longer = |kind: u8| {
        let name = [b"cifar-100-binary/".to_vec(), vec![b'x'; 120], vec![0]].concat();
        [entry("././@LongLink", kind, &name), entry("short", b'0', b"bytes")].concat()
    };
    let pax = entry("pax", b'x', b"30 path=cifar-100-binary/test.bin\n");
    let test = entry("cifar-100-binary/test.bin", b'0', &[1; 600]);
    for (name, tar) in [
        ("member", test.clone()),
        ("long-name", longer(b'L')),
        ("long-link", longer(b'K')),
        ("pax", [pax, test.clone()].concat()),
        ("sparse", entry("cifar-100-binary/test.bin", b'S', &[1; 600])),
    ] {
        let tar = [tar, vec![0; 1024]].concat();
        seed("archive", name, &[&[0][..], &tar].concat());
        seed("archive", &format!("{name}-gzip"), &[&[1][..], &gzip(&tar)].concat());
    }
    image_files();
    seed("packed", "small", &lowbit_runtime::samples::small().to_bytes().expect("a network"));
    #[cfg(feature = "training")]
    training();
}

/// Every kind of image file that the tests compare with Pillow.
fn image_files() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/images");
    for entry in fs::read_dir(folder).expect("the golden images are there") {
        let path = entry.expect("a directory can be read").path();
        let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
        if name.ends_with(".jpg") || name.ends_with(".png") {
            let bytes = fs::read(&path).expect("a golden image can be read");
            seed("image", &name, &[&[31, 5][..], &bytes].concat());
        }
    }
}

#[cfg(feature = "training")]
fn training() {
    use lowbit_train::{Recipe, fuzzing, plan, recipe};

    for name in ["digits-preresnet8-w2a2", "cifar10-vgg-small-w1a2", "digits-preresnet8-w2a2-ts-pq-joint"] {
        let Some(recipe) = recipe::embedded().iter().find(|recipe| recipe.name == name) else { continue };
        let overrides = "train.epochs=9\ntrain.optimizer={kind=\"adamw\"}\nmodel.width=0.5";
        seed("recipe", name, recipe.text.as_bytes());
        seed("recipe", &format!("{name}-set"), format!("{}\n---\n{overrides}", recipe.text).as_bytes());
        let recipe = Recipe::embedded(name, &[]).expect("the recipe is valid");
        let plan = plan(&recipe).expect("the network is defined");
        seed("plan", name, serde_json::to_string(&plan).expect("a plan is plain data").as_bytes());
    }
    seed("manifest", "manifest", include_bytes!("../seeds/manifest.json"));
    seed("run_json", "run", include_bytes!("../seeds/run.json"));
    seed(
        "run_json",
        "run-1",
        br#"{"schema":1,"lowbit":"0.0.0","burn":"0.22.1","device":"flex","n_threads":2}"#,
    );
    let sum = "0123456789abcdef".repeat(4);
    seed("sums", "sums", format!("{sum}  manifest.json\n{sum}  model.safetensors\n").as_bytes());
    let header = br#"{"a":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[],"data_offsets":[8,12]}}"#;
    let length = (header.len() as u64).to_le_bytes();
    seed("safetensors", "two", &[&length[..], header, &[0; 12]].concat());
    for (name, bytes) in [
        ("zip", &include_bytes!("../../tests/golden/weights/zip.pth")[..]),
        ("legacy", include_bytes!("../../tests/golden/weights/legacy.pth")),
        ("tar", include_bytes!("../../tests/golden/weights/tar.pth")),
        ("mixed", include_bytes!("../../tests/golden/weights/mixed.pth")),
    ] {
        seed("pytorch", name, bytes);
    }
    seed("pytorch", "safetensors", &[&length[..], header, &[0; 12]].concat());
    seed("burnpack", "adamw", &fuzzing::optimizer_seed());
    let time = r#"{"epoch":1,"seconds":1.5,"images_per_second":100.0}"#;
    let warning = r#"{"step":3,"kind":"data","message":"text"}"#;
    let process =
        r#"{"started":"2026-11-26T14:31:02Z","step":3,"device":"flex","origin":{"lowbit":"0.1.0"}}"#;
    for (name, choice, end) in
        [("cut", 128, ""), ("whole", 128, "\n"), ("longer", 129, "\n"), ("shorter", 64, "\n")]
    {
        let lines = format!("{time}\n{warning}\n{process}\n{time}{end}");
        seed("lines", name, &[&[choice], lines.as_bytes()].concat());
    }
    seed("result", "result", include_bytes!("../seeds/result.json"));
}

fn seed(target: &str, name: &str, bytes: &[u8]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder).expect("a directory can be made");
    fs::write(folder.join(name), bytes).expect("a file can be written");
}

fn idx(magic: u32, sizes: &[u32], n_bytes: usize) -> Vec<u8> {
    let header = [magic].iter().chain(sizes).flat_map(|field| field.to_be_bytes()).collect();
    [header, vec![1; n_bytes]].concat()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).expect("memory can be written");
    encoder.finish().expect("memory can be written")
}

/// An entry of a tar archive in GNU's form.
fn entry(name: &str, kind: u8, bytes: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", bytes.len()).as_bytes());
    header[148..156].copy_from_slice(b"        ");
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar  \0");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let padding = bytes.len().next_multiple_of(512) - bytes.len();
    [header, bytes.to_vec(), vec![0; padding]].concat()
}
