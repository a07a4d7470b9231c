//! Beginning with weights that PyTorch wrote: what is recorded, what is refused.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Outcome, Sandbox, TINY};
use serde_json::{Value, json};

/// A file that PyTorch wrote: ResNet-18 of a 64th of the channels, for one channel and 5 classes.
fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/weights").join(name)
}

/// Its network.
const MODEL: [&str; 4] =
    ["model.family=\"resnet\"", "model.layout=\"imagenet\"", "model.depth=18", "model.width=0.015625"];

fn train(sandbox: &Sandbox, init: &Path, settings: &[&str]) -> Outcome {
    let init = format!("init={:?}", init.display().to_string());
    let mut args = vec!["train", "-q", "--out", "run"];
    args.extend(TINY);
    for setting in MODEL.iter().chain(settings).copied().chain([init.as_str()]) {
        args.extend(["--set", setting]);
    }
    sandbox.run(&args)
}

#[test]
fn a_training_begins_with_weights_of_pytorch() {
    let sandbox = Sandbox::new();
    let path = golden("legacy.pth");
    let outcome = train(&sandbox, &path, &[]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let warning =
        "is for 5 classes, this network for 10: all is taken but its classifier fc, which begins anew";
    assert!(outcome.stderr.contains(warning), "{}", outcome.stderr);
    let info: Value = serde_json::from_slice(&fs::read(sandbox.path("run/run.json")).unwrap()).unwrap();
    let digest = std::process::Command::new("sha256sum").arg(&path).output().unwrap().stdout;
    let expected = json!([{
        "network": "student",
        "path": path,
        "sha256": String::from_utf8(digest).unwrap().split(' ').next(),
        "container": "pytorch-legacy",
        "n_tensors": 100,
        "new_classifier": { "layer": "fc", "file_classes": 5, "classes": 10 },
        "n_left_out": 21,
    }]);
    assert_eq!(info["initial_weights"], expected);
    // What was read is in the run: the file may go.
    let first = sandbox.path("run/checkpoints/step-00000000");
    assert!(first.is_dir() || sandbox.path("run/checkpoints/step-00000004").is_dir());
}

/// Ends with exit code 4 in one line with all of `expected`, and leaves no run.
fn refuses(sandbox: &Sandbox, init: &Path, settings: &[&str], expected: &[&str]) {
    let outcome = train(sandbox, init, settings);
    let message = &outcome.stderr;
    assert_eq!(outcome.code, Some(4), "{}: {message}", init.display());
    assert_eq!(message.trim_end().lines().count(), 1, "{}: {message}", init.display());
    assert!(message.len() < 1500, "{}: {message}", init.display());
    for part in expected {
        assert!(message.contains(part), "{}: {message:?} lacks {part:?}", init.display());
    }
    assert!(!sandbox.path("run").exists());
}

#[test]
fn weights_of_another_network_are_refused() {
    let sandbox = Sandbox::new();
    let fits =
        "it fits model.family=\"resnet\", model.layout=\"imagenet\", model.depth=18, model.width=0.015625";
    let path = golden("zip.pth");
    refuses(&sandbox, &path, &["model.depth=34"], &["error: init: weights ", "it lacks 80 tensors (", fits]);
    refuses(
        &sandbox,
        &path,
        &["model.family=\"preresnet\""],
        &["that the network does not have (bn1.bias, ", fits],
    );
    refuses(
        &sandbox,
        &path,
        &["model.width=0.03125"],
        &["conv1.weight is 1x1x7x7, the network has 2x1x7x7", fits],
    );
}
