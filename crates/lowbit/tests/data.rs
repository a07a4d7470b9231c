//! Data that is not what its name says, found by `lowbit train` and `lowbit data`.

mod common;

use std::fs;
use std::path::PathBuf;

use common::{Outcome, Sandbox, TINY};

fn idx(magic: u32, sizes: &[u32], values: impl Fn(u32) -> u8) -> Vec<u8> {
    let header = [magic].into_iter().chain(sizes.iter().copied()).flat_map(u32::to_be_bytes);
    header.chain((0..sizes.iter().product()).map(values)).collect()
}

/// 128 training and 64 test images of the shape of MNIST in `data`, of classes by `label`.
fn idx_files(sandbox: &Sandbox, label: impl Fn(u32) -> u8) {
    fs::create_dir_all(sandbox.path("data")).unwrap();
    for (stem, n, seed) in [("train", 128, 0), ("t10k", 64, 1 << 24)] {
        let pixel = |i: u32| ((i + seed).wrapping_mul(2_654_435_761) >> 24) as u8;
        let write =
            |name: &str, bytes| fs::write(sandbox.path(&format!("data/{stem}-{name}")), bytes).unwrap();
        write("images-idx3-ubyte", idx(0x803, &[n, 28, 28], pixel));
        write("labels-idx1-ubyte", idx(0x801, &[n], &label));
    }
}

/// A small training on what `data` holds under the name of MNIST, with further settings.
fn train(sandbox: &Sandbox, out: &str, settings: &[&str]) -> Outcome {
    let args = [
        "train",
        "-q",
        "--device",
        "flex",
        "--data-dir",
        "data",
        "--set",
        "data.dataset=mnist",
        "--out",
        out,
    ];
    sandbox.run(&[&args[..], &TINY, settings].concat())
}

fn recorded(sandbox: &Sandbox, run: &str) -> Vec<String> {
    let lines = fs::read_to_string(sandbox.path(&format!("{run}/warnings.jsonl"))).unwrap();
    let data = lines.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    data.filter(|line| line["kind"] == "data").map(|line| line["message"].as_str().unwrap().into()).collect()
}

#[test]
fn data_of_ones_own_under_a_name_is_told() {
    let sandbox = Sandbox::new();
    idx_files(&sandbox, |i| (i % 10) as u8);
    let outcome = train(&sandbox, "run", &["--set", "reference=full precision: 99.1 %"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    // A figure of the published images is not set beside it.
    assert!(!outcome.stdout.contains("reference") && outcome.stdout.contains("top-1"), "{}", outcome.stdout);
    let warnings = recorded(&sandbox, "run");
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    let begin = format!(
        "the training images in {} are not the published ones of mnist, but data of your own under its name: 128 with crc32 ",
        sandbox.path("data").display()
    );
    assert!(
        warnings[0].starts_with(&begin) && warnings[0].ends_with(", published are 60000"),
        "{warnings:?}"
    );
    for warning in &warnings {
        assert!(outcome.stderr.contains(warning), "{}", outcome.stderr);
    }
    // The digest is that of the run.
    let info = fs::read_to_string(sandbox.path("run/run.json")).unwrap();
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert!(warnings[0].contains(info["data"]["train"]["crc32"].as_str().unwrap()), "{warnings:?}");

    // Going on finds the same in the same place, however it is spelled.
    #[cfg(unix)]
    std::os::unix::fs::symlink(sandbox.path("data"), sandbox.path("link")).unwrap();
    #[cfg(not(unix))]
    fs::create_dir(sandbox.path("link")).unwrap();
    for data_dir in [
        &[][..],
        &["--data-dir", "./data"],
        &["--data-dir", "run/../data"],
        &["--data-dir", if cfg!(unix) { "link" } else { "link/../data" }],
    ] {
        // Of a complete run nothing would be recorded.
        fs::remove_file(sandbox.path("run/result.json")).unwrap();
        let outcome = sandbox.run(&[&["train", "-q", "--resume", "run"], data_dir].concat());
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        assert_eq!(recorded(&sandbox, "run"), warnings, "{data_dir:?}");
    }

    // The whole file is named, and judged are the images used.
    idx_files(&sandbox, |i| (i / 13) as u8);
    let limits = ["--set", "data.train_limit=13", "--set", "data.batch_size=4"];
    assert_eq!(train(&sandbox, "sorted", &limits).code, Some(0));
    let warnings = recorded(&sandbox, "sorted");
    assert!(warnings[0].contains(": 128 with crc32 "), "{warnings:?}");
    assert!(
        warnings
            .iter()
            .any(|warning| warning.starts_with("the 13 training images are of one class only, 0, of 10: ")),
        "{warnings:?}"
    );
    let verified = sandbox.json_of(&["data", "verify", "mnist", "--data-dir", "data"], 6);
    assert!(verified["warnings"].as_array().unwrap().len() >= 2, "{verified}");
}

/// The published files are known by their content, under any name.
#[cfg(unix)]
#[test]
fn published_files_under_another_name_are_refused() {
    let published = PathBuf::from("/usr/share/datasets/fashion-mnist");
    if !published.is_dir() {
        let must_run = std::env::var_os("LOWBIT_NO_SKIP").is_some_and(|value| value == "1");
        assert!(!must_run, "cannot be skipped: dataset-fashion-mnist is not installed");
        return println!("skipped: dataset-fashion-mnist is not installed");
    }
    let sandbox = Sandbox::new();
    std::os::unix::fs::symlink(&published, sandbox.path("data")).unwrap();
    let outcome = train(&sandbox, "run", &[]);
    assert_eq!(outcome.code, Some(3), "{}", outcome.stderr);
    let expected = "error: failed to read data/train-images-idx3-ubyte.gz: this is the published file of fashion-mnist (train), \
                    not of mnist; take data.dataset=\"fashion-mnist\", or give the directory of mnist with --data-dir\n";
    assert_eq!(outcome.stderr, expected);
    assert!(!sandbox.path("run").exists());
    let outcome = train(&sandbox, "run", &["--set", "data.dataset=fashion-mnist"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(!sandbox.path("run/warnings.jsonl").exists(), "{:?}", recorded(&sandbox, "run"));
}

/// What the file has decides: both numbers are in the message, and the exit code is that of data.
#[test]
fn more_images_than_the_file_has() {
    let sandbox = Sandbox::new();
    idx_files(&sandbox, |i| (i % 10) as u8);
    let outcome = train(&sandbox, "run", &["--set", "data.train_limit=100000"]);
    assert_eq!(outcome.code, Some(3), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("take the first 100000 images of mnist: there are 128; "),
        "{}",
        outcome.stderr
    );
    // As many as the catalogue does not have.
    fs::write(
        sandbox.path("data/train-images-idx3-ubyte"),
        idx(0x803, &[60_002, 28, 28], |i| (i >> 9) as u8),
    )
    .unwrap();
    fs::write(sandbox.path("data/train-labels-idx1-ubyte"), idx(0x801, &[60_002], |i| (i % 10) as u8))
        .unwrap();
    let outcome = train(&sandbox, "run", &["--set", "data.train_limit=60003"]);
    assert!(
        outcome.stderr.contains("take the first 60003 images of mnist: there are 60002; "),
        "{}",
        outcome.stderr
    );
}

/// A run whose files have fewer images by now is one whose data is not there.
#[test]
fn resume_with_fewer_images_is_about_data() {
    let sandbox = Sandbox::new();
    idx_files(&sandbox, |i| (i % 10) as u8);
    assert_eq!(train(&sandbox, "run", &[]).code, Some(0));
    for n in [100, 20] {
        fs::write(sandbox.path("data/train-images-idx3-ubyte"), idx(0x803, &[n, 28, 28], |i| i as u8))
            .unwrap();
        fs::write(sandbox.path("data/train-labels-idx1-ubyte"), idx(0x801, &[n], |i| (i % 10) as u8))
            .unwrap();
        let outcome = sandbox.run(&["train", "-q", "--resume", "run"]);
        assert_eq!(outcome.code, Some(3), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(&format!("there are {n}; ")), "{}", outcome.stderr);
    }
}

/// Parts from different places: told in the list, and by a training.
#[test]
fn parts_from_different_places_are_told() {
    let sandbox = Sandbox::new();
    idx_files(&sandbox, |i| (i % 10) as u8);
    fs::create_dir(sandbox.path("data/mnist")).unwrap();
    for file in ["images-idx3-ubyte", "labels-idx1-ubyte"] {
        let from = sandbox.path(&format!("data/t10k-{file}"));
        fs::rename(from, sandbox.path(&format!("data/mnist/t10k-{file}"))).unwrap();
    }
    let list = sandbox.run(&["data", "list", "--data-dir", "data"]).stdout;
    assert!(list.contains("data; its test images are in data/mnist\n"), "{list}");
    assert_eq!(train(&sandbox, "run", &[]).code, Some(0));
    let data = sandbox.path("data").display().to_string();
    let expected = format!(
        "the training images of mnist are from {data}, the test images from {data}/mnist: are they of one data set?"
    );
    assert!(recorded(&sandbox, "run").contains(&expected), "{:?}", recorded(&sandbox, "run"));
    fs::remove_dir_all(sandbox.path("data/mnist")).unwrap();
    let list = sandbox.run(&["data", "list", "--data-dir", "data"]).stdout;
    assert!(list.contains("data; it has no test images\n"), "{list}");
}

/// A FIFO is refused, not waited for.
#[cfg(unix)]
#[test]
fn a_fifo_is_no_data() {
    let sandbox = Sandbox::new();
    idx_files(&sandbox, |i| (i % 10) as u8);
    let path = sandbox.path("data/t10k-labels-idx1-ubyte");
    fs::remove_file(&path).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let outcome = train(&sandbox, "run", &[]);
    assert_eq!(outcome.code, Some(3), "{}", outcome.stderr);
    let expected = "error: failed to read data/t10k-labels-idx1-ubyte: it is a FIFO, not a regular file; put a file in its place, \
                    or give another directory\n";
    assert_eq!(outcome.stderr, expected);
}
