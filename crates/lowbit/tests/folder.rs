//! Images of one's own from a folder: trained on end to end, killed, resumed, and refused where they are others.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use common::Sandbox;
use lowbit_data::{Dimensions, Picture};
use serde_json::Value;

/// A recipe as a newcomer writes it.
const RECIPE: &str = r#"
schema = 1
name = "mine"
[data]
dataset = "folder"
size = 16
batch_size = 8
[model]
family = "preresnet"
depth = 8
width = 0.25
[quantization]
method = "lsq"
weight_bits = 2
act_bits = 2
[train]
epochs = 2
learning_rate = 0.05
"#;

/// A PNG image whose color says its class, with some texture of its own.
fn image(class: usize, number: usize) -> Vec<u8> {
    let (width, height) = (14 + number as u32 % 7, 12 + number as u32 % 9);
    let mut pixels = Vec::new();
    for i in 0..(width * height) as usize {
        let noise = ((i * 31 + number * 17) % 64) as u8;
        let mut color = [60 + noise, 60 + noise, 60 + noise];
        color[class % 3] += 120;
        pixels.extend(color);
    }
    Picture { dimensions: Dimensions { width, height }, channels: 3, pixels }.to_png()
}

const CLASSES: [&str; 3] = ["blue whale", "cat", "dög"];

fn put(path: PathBuf, content: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// Fills a folder with `n` images of each class.
fn fill(dir: &Path, n: usize) {
    for (class, name) in CLASSES.iter().enumerate() {
        for number in 0..n {
            put(dir.join(name).join(format!("{number:03}.png")), &image(class, number));
        }
    }
}

/// A sandbox with a recipe and a divided folder.
fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    fs::write(sandbox.path("mine.toml"), RECIPE).unwrap();
    fill(&sandbox.path("images/train"), 20);
    fill(&sandbox.path("images/val"), 5);
    sandbox
}

fn run_info(sandbox: &Sandbox, run: &str) -> Value {
    serde_json::from_slice(&fs::read(sandbox.path(run).join("run.json")).unwrap()).unwrap()
}

fn file(sandbox: &Sandbox, name: &str) -> String {
    fs::read_to_string(sandbox.path(name)).unwrap()
}

const TRAIN: [&str; 4] = ["train", "mine.toml", "--data-dir", "images"];

#[test]
fn a_folder_trains_end_to_end() {
    let sandbox = sandbox();
    let result = sandbox.json(&[&TRAIN[..], &["--out", "run"]].concat());
    assert_eq!(result["status"], "complete");
    assert_eq!(result["classes"], serde_json::json!(CLASSES));
    let info = run_info(&sandbox, "run");
    assert_eq!(info["classes"], serde_json::json!(CLASSES));
    assert_eq!(
        (&info["data"]["train"]["n_images"], &info["data"]["test"]["n_images"]),
        (&60.into(), &15.into())
    );
    assert_eq!(
        (&info["data"]["train"]["folder"], &info["data"]["test"]["folder"]),
        (&"train".into(), &"val".into())
    );
    let recipe = file(&sandbox, "run/recipe.toml");
    assert!(recipe.contains("classes = 3\n") && recipe.contains("[data.normalization]"), "{recipe}");

    // Evaluated again without a word on where the images are, and with it.
    let eval = sandbox.json(&["eval", "run"]);
    assert_eq!(
        (&eval["matches"], &eval["loss"], &eval["classes"]),
        (&true.into(), &result["loss"], &result["classes"])
    );
    let inspected = sandbox.json(&["inspect", "run"]);
    assert_eq!(inspected["info"]["classes"], result["classes"]);
    // The same recipe goes on, also where nothing is left to do.
    let again = sandbox.json(&[&TRAIN[..], &["--out", "run", "--or-resume"]].concat());
    assert_eq!(again["loss"], result["loss"]);

    // Other images are refused, in a line.
    let other = sandbox.path("other");
    common::copy_dir(&sandbox.path("images"), &other);
    let same = sandbox.json(&["eval", "run", "--data-dir", "other"]);
    assert_eq!((&same["same_data"], &same["loss"]), (&true.into(), &result["loss"]), "images may be moved");
    put(other.join("train/cat/new.png"), &image(1, 99));
    put(other.join("val/cat/000.png"), &image(1, 77));
    let refused = sandbox.run(&["train", "--resume", "run", "--checkpoint", "best", "--data-dir", "other"]);
    assert_eq!(refused.code, Some(3), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("the training images are not those of the run: it has 60 in train with"),
        "{}",
        refused.stderr
    );
    let eval = sandbox.json(&["eval", "run", "--data-dir", "other"]);
    assert_eq!(eval["same_data"], false);
    put(other.join("train/zebra/1.png"), &image(0, 1));
    let refused = sandbox.run(&["train", "--resume", "run", "--checkpoint", "best", "--data-dir", "other"]);
    assert!(refused.stderr.contains("have data.classes=4, the recipe has 3"), "{}", refused.stderr);
}

#[test]
fn a_killed_training_of_a_folder_ends_in_the_same_bits() {
    let sandbox = sandbox();
    fs::remove_dir_all(sandbox.path("images/val")).unwrap();
    let changes = [
        "--set",
        "data.validation=0.2",
        "--set",
        "data.test=0.25",
        "--set",
        "train.epochs=12",
        "--set",
        "checkpoint.every_steps=1",
        "--set",
        "data.augment={pad=1, flip=true}",
    ];
    fs::rename(sandbox.path("images/train"), sandbox.path("whole")).unwrap();
    let train = [&["train", "mine.toml", "--data-dir", "whole"][..], &changes].concat();
    let result = sandbox.json(&[&train[..], &["--out", "run"]].concat());
    assert_eq!(result["data"]["validation"]["n_images"], 12);
    assert_eq!(result["data"]["test"]["n_images"], 15);
    assert_eq!(result["best"]["images"], "validation");

    let killed = [&train[..], &["--out", "killed"]].concat();
    let mut child = sandbox.command(&killed).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    for step in [5, 17, 30] {
        while !sandbox.path(&format!("killed/checkpoints/step-{step:08}")).exists()
            && !sandbox.path(&format!("killed/checkpoints/step-{:08}", step + 1)).exists()
        {
            assert!(child.try_wait().unwrap().is_none(), "it was too fast to be killed");
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        child = sandbox
            .command(&["train", "--resume", "killed"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
    }
    assert!(child.wait().unwrap().success());
    let resumed = sandbox.json(&["train", "--resume", "killed"]);
    assert_eq!((&resumed["loss"], &resumed["validation"]), (&result["loss"], &result["validation"]));
    assert_eq!(file(&sandbox, "killed/metrics.jsonl"), file(&sandbox, "run/metrics.jsonl"));
    let state = |run: &str| sandbox.json(&["inspect", run])["state_sha256"].clone();
    assert_eq!(state("killed"), state("run"));
}

#[test]
fn images_that_cannot_be_read_end_the_training_or_are_counted() {
    let sandbox = sandbox();
    put(sandbox.path("images/train/cat/000a.png"), b"");
    put(sandbox.path("images/train/cat/017.JPG"), b"<html>404</html>");
    // What is scored is read before the training: it would fail at its end, and could not go on with what is repaired.
    let (cut, of_val) = (image(2, 3), sandbox.path("images/val/d\u{f6}g/cut.png"));
    put(of_val.clone(), &cut[..cut.len() / 2]);
    let refused = sandbox.run(&[&TRAIN[..], &["--out", "refused"]].concat());
    assert_eq!(refused.code, Some(3), "{}", refused.stderr);
    let line = refused.stderr.lines().last().unwrap();
    assert!(line.contains("images/val/d\u{f6}g/cut.png: the PNG is cut short; repair or remove"), "{line}");
    assert!(!sandbox.path("refused").exists());
    fs::remove_file(&of_val).unwrap();
    // Seed 0 leaves both of the training images in the incomplete batch of its first epoch.
    let refused = sandbox.run(&[&TRAIN[..], &["--out", "refused", "--set", "seed=1"]].concat());
    assert_eq!(refused.code, Some(3), "{}", refused.stderr);
    let line = refused.stderr.lines().last().unwrap();
    assert!(line.contains("images/train/cat/") && line.contains(": it is "), "{line}");

    put(of_val, &cut[..cut.len() / 2]);
    let verified = sandbox.json_of(&["data", "verify", "images"], 6);
    assert_eq!(
        (&verified["ok"], &verified["images"], &verified["unreadable"]),
        (&false.into(), &78.into(), &3.into())
    );
    let told = verified["unreadable_are"].as_array().unwrap();
    let ends = |i: usize, end: &str| told[i]["path"].as_str().unwrap().ends_with(end);
    assert!(ends(0, "train/cat/000a.png") && ends(1, "train/cat/017.JPG") && ends(2, "cut.png"), "{told:?}");
    assert_eq!(told[0]["reason"], "it is empty");

    let skipping = [&TRAIN[..], &["--out", "run", "--skip-unreadable"]].concat();
    let result = sandbox.json(&skipping);
    let info = run_info(&sandbox, "run");
    assert_eq!(info["skipped"]["n"], 3);
    assert_eq!(info["skipped"]["files"].as_array().unwrap().len(), 3);
    assert_eq!(info["data"]["train"]["n_images"], 60);
    let warnings = result["warnings"].to_string();
    assert!(warnings.contains("3 images cannot be read and are passed over"), "{warnings}");
    let pack = ["data", "pack", "images", "shards"];
    let refused = sandbox.run(&pack);
    assert_eq!(refused.code, Some(3), "{}", refused.stderr);
    assert!(refused.stderr.contains("or pass over it with --skip-unreadable"), "{}", refused.stderr);
    let told = sandbox.run(&[&pack[..], &["--skip-unreadable"]].concat()).stdout;
    assert!(
        told.contains("75 images in 2 archives; 3 unreadable files left out, see pack.json; train"),
        "{told}"
    );
    let packed = sandbox.json(&["data", "pack", "images", "shards", "--skip-unreadable"]);
    assert_eq!(
        (&packed["n_images"], &packed["n_skipped"], &packed["n_kept"]),
        (&75.into(), &3.into(), &2.into())
    );
    // As if they had never been there.
    let clean = self::sandbox();
    let expected = clean.json(&[&TRAIN[..], &["--out", "run"]].concat());
    assert_eq!((&result["loss"], &result["data"]), (&expected["loss"], &expected["data"]));
    assert_eq!(sandbox.json(&["eval", "run"])["matches"], true);
}

#[test]
fn what_a_folder_lacks_is_told() {
    let sandbox = sandbox();
    let check = |args: &[&str], code: i32, expected: &str| {
        let outcome = sandbox.run(args);
        assert_eq!(outcome.code, Some(code), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(expected), "{expected}: {}", outcome.stderr);
    };
    check(
        &["train", "mine.toml"],
        2,
        "the recipe trains on a folder of images, which is not in it, and has to be given with --data-dir DIR",
    );
    check(&["inspect", "mine.toml"], 2, "has to be given with --data-dir DIR");
    check(&[&TRAIN[..], &["--set", "data.classes=10"]].concat(), 3, "have data.classes=3, the recipe has 10");
    check(&["train", "mine.toml", "--data-dir", "gone"], 3, "does not exist");
    check(
        &["train", "mine.toml", "--data-dir", "images/train"],
        3,
        "it has no test images: say which fraction",
    );
    check(
        &["train", "--set", "data.test=0.2"],
        2,
        "data.test: is for data.dataset=\"folder\" or \"imagenet\": remove this key",
    );
    let plan = sandbox.json(&["inspect", "mine.toml", "--data-dir", "images"]);
    assert_eq!(plan["recipe"]["data"]["classes"], 3);
    // One class, of which any network is right.
    fs::create_dir_all(sandbox.path("one")).unwrap();
    fs::rename(sandbox.path("images/train/cat"), sandbox.path("one/cat")).unwrap();
    put(sandbox.path("one/cat/photo.WebP"), b"RIFF");
    let one = sandbox.json(&[
        "train",
        "mine.toml",
        "--data-dir",
        "one",
        "--out",
        "one-run",
        "--set",
        "data.test=0.2",
    ]);
    let warnings = one["warnings"].to_string();
    assert!(warnings.contains("are of one class"), "{warnings}");
    let other = "\"1 file is passed over, as only JPEG and PNG are read: 1 .webp; convert it to use it\"";
    assert!(warnings.contains(other), "{warnings}");
    put(sandbox.path("images/bird/1.png"), &image(0, 1));
    put(sandbox.path("images/testing/cat/1.png"), &image(0, 1));
    put(sandbox.path("images/labels/cat/1.txt"), b"");
    fs::remove_dir_all(sandbox.path("images/val/cat")).unwrap();
    let beside =
        sandbox.json(&[&TRAIN[..], &["--out", "beside", "--set", "train.epochs=1"]].concat())["warnings"]
            .to_string();
    assert!(
        beside.contains("images beside train are not read: \\\"bird\\\", \\\"testing\\\"; a class is"),
        "{beside}"
    );
    fill(&sandbox.path("images/val"), 5);
    check(&TRAIN, 3, "val has 3 classes, train has 2: 1 of val is not in train, the first is \"cat\"");
}

#[test]
fn a_folder_is_shown_and_measured() {
    let sandbox = sandbox();
    put(sandbox.path("images/train/cat/notes.txt"), b"");
    let shown = sandbox.json(&["data", "show", "images", "--out", "sheet.png"]);
    assert_eq!(shown["n_classes"], 3);
    assert_eq!(shown["classes"][2], serde_json::json!({"name": "dög", "images": [20, 5]}));
    assert_eq!((&shown["parts"][0]["skipped"], &shown["parts"][1]["images"]), (&1.into(), &15.into()));
    let sheet =
        lowbit_data::decode(&fs::read(sandbox.path("sheet.png")).unwrap(), &Default::default()).unwrap();
    assert_eq!((sheet.dimensions.width, sheet.dimensions.height), (8 * 98 + 2, 8 * 98 + 2));
    let text = sandbox.run(&["data", "show", "images"]).stdout;
    assert!(text.contains("train  60 images, ") && text.contains("; passed over: 1 .txt\n"), "{text}");
    assert!(text.contains("\nblue whale       20        5\n"), "{text}");

    sandbox.json(&[
        "data",
        "show",
        "images",
        "--out",
        "varied.png",
        "--recipe",
        "mine.toml",
        "--set",
        "data.augment={pad=4}",
    ]);
    let varied =
        lowbit_data::decode(&fs::read(sandbox.path("varied.png")).unwrap(), &Default::default()).unwrap();
    assert_eq!(varied.dimensions.width, 8 * 18 + 2, "by the size of the recipe");

    let stats = sandbox.json(&["data", "stats", "images"]);
    assert_eq!(stats["width"], serde_json::json!({"min": 14, "median": 17, "max": 20}));
    assert_eq!(
        (&stats["images"], &stats["part"], &stats["unreadable"]),
        (&60.into(), &"train".into(), &0.into())
    );
    let text = sandbox.run(&["data", "stats", "images"]).stdout;
    let pasted = text.lines().last().unwrap();
    fs::write(sandbox.path("mine.toml"), RECIPE.replace("size = 16", &format!("size = 16\n{pasted}")))
        .unwrap();
    let plan = sandbox.json(&["inspect", "mine.toml", "--data-dir", "images"]);
    assert_eq!(plan["recipe"]["data"]["normalization"]["mean"], stats["normalization"]["mean"]);

    let indexed = sandbox.json(&["data", "index", "images"]);
    let kept = indexed["parts"][0]["index_file"].as_str().unwrap();
    assert!(kept.starts_with(sandbox.path("home/.cache/lowbit/index").to_str().unwrap()), "{kept}");
    assert!(fs::metadata(kept).unwrap().len() > 100);
    // Nothing is written beside the images, and nowhere if there is no place.
    let n_entries = fs::read_dir(sandbox.path("images")).unwrap().count();
    assert_eq!(n_entries, 2);
    let command = sandbox
        .command(&["data", "index", "images", "--json"])
        .env("XDG_CACHE_HOME", "/proc/none")
        .output()
        .unwrap();
    let homeless: Value = serde_json::from_slice(&command.stdout).unwrap();
    assert!(homeless["parts"][0]["index_file"].is_null());
    assert_eq!(sandbox.json(&["data", "verify", "images"])["ok"], true);
}

/// Packed into archives, the same images train to the same network, also when it is killed.
#[test]
fn shards_train_as_their_folder_does() {
    let sandbox = sandbox();
    let packed = sandbox.json(&["data", "pack", "images", "shards", "--per-shard", "25"]);
    assert_eq!(
        (&packed["status"], &packed["n_images"], &packed["n_shards"]),
        (&"complete".into(), &75.into(), &4.into())
    );
    let shown = sandbox.json(&["data", "show", "shards"]);
    assert_eq!(shown["classes"][1], serde_json::json!({"name": "cat", "images": [20, 5]}));
    let augment = ["--set", "data.augment={pad=1, flip=true}", "--set", "checkpoint.every_steps=1"];
    let of_folder = sandbox.json(&[&TRAIN[..], &augment, &["--out", "of-folder"]].concat());
    let train = [&["train", "mine.toml", "--data-dir", "shards"][..], &augment].concat();
    let result = sandbox.json(&[&train[..], &["--out", "run"]].concat());
    for key in ["loss", "top1", "classes"] {
        assert_eq!(result[key], of_folder[key], "{key}");
    }
    assert_ne!(result["data"], of_folder["data"], "but the files are others");
    let longer = ["--set", "train.epochs=12", "--out", "killed"];
    let mut child = sandbox
        .command(&[&train[..], &longer].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !sandbox.path("killed/checkpoints").read_dir().is_ok_and(|mut entries| {
        entries.any(|entry| entry.is_ok_and(|entry| *entry.file_name().to_string_lossy() >= *"step-00000009"))
    }) {
        assert!(child.try_wait().unwrap().is_none(), "it was too fast to be killed");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let resumed = sandbox.json(&["train", "--resume", "killed"]);
    let whole = sandbox.json(&[&train[..], &["--set", "train.epochs=12", "--out", "whole"]].concat());
    assert_eq!((&resumed["loss"], &resumed["best"]), (&whole["loss"], &whole["best"]));
    let state = |run: &str| sandbox.json(&["inspect", run])["state_sha256"].clone();
    assert_eq!(state("killed"), state("whole"));
}

/// ILSVRC-2012 in miniature, by the names of its archives.
#[test]
fn imagenet_trains_from_its_archives() {
    let sandbox = Sandbox::new();
    let synsets = ["n01440764", "n01443537", "n02119789"];
    fs::create_dir(sandbox.path("ilsvrc")).unwrap();
    let append = |builder: &mut tar::Builder<Vec<u8>>, name: String, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        builder.append_data(&mut header, name, content).unwrap();
    };
    let mut outer = tar::Builder::new(Vec::new());
    for (class, synset) in synsets.iter().enumerate() {
        let mut inner = tar::Builder::new(Vec::new());
        (0..10).for_each(|i| append(&mut inner, format!("{synset}_{i}.JPEG"), &image(class, i)));
        append(&mut outer, format!("{synset}.tar"), &inner.into_inner().unwrap());
    }
    fs::write(sandbox.path("ilsvrc/ILSVRC2012_img_train.tar"), outer.into_inner().unwrap()).unwrap();
    let mut val = tar::Builder::new(Vec::new());
    (0..9).for_each(|i| append(&mut val, format!("ILSVRC2012_val_{:08}.JPEG", i + 1), &image(i % 3, 50 + i)));
    fs::write(sandbox.path("ilsvrc/ILSVRC2012_img_val.tar"), val.into_inner().unwrap()).unwrap();
    let labels: Vec<&str> = (0..9).map(|i| synsets[i % 3]).collect();
    fs::write(sandbox.path("ilsvrc/imagenet_2012_validation_synset_labels.txt"), labels.join("\n")).unwrap();
    fs::write(sandbox.path("mine.toml"), RECIPE.replace("\"folder\"", "\"imagenet\"")).unwrap();
    let result = sandbox.json(&[
        "train",
        "mine.toml",
        "--data-dir",
        "ilsvrc",
        "--out",
        "run",
        "--set",
        "data.validation=0.2",
    ]);
    assert_eq!(result["classes"], serde_json::json!(synsets));
    let n = |part: &str| result["data"][part]["n_images"].as_u64().unwrap();
    assert_eq!((n("train"), n("validation"), n("test")), (24, 6, 9));
    assert_eq!(sandbox.json(&["eval", "run"])["matches"], true);
    let packed = sandbox.json(&["data", "pack", "--imagenet", "ilsvrc", "shards", "--resize", "10"]);
    assert_eq!(packed["n_images"], 39);
    let shards = sandbox.json(&[
        "train",
        "mine.toml",
        "--data-dir",
        "shards",
        "--out",
        "packed",
        "--set",
        "data.dataset=folder",
    ]);
    assert_eq!(shards["classes"], serde_json::json!(synsets));
}
