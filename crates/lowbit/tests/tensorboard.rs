//! Event files of TensorBoard: what is in them is what the run has recorded, once, whatever became of its processes.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Sandbox, TINY};
use prost::Message;
use serde_json::Value;

/// The messages as far as they are read here: `event.proto` and `summary.proto` of TensorBoard.
#[derive(Clone, PartialEq, Message)]
struct Event {
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Entry>,
}

#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
    #[prost(bytes = "vec", optional, tag = "5")]
    histo: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "8")]
    tensor: Option<Vec<u8>>,
}

/// CRC-32C bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| (sum >> 1) ^ (0x82f6_3b78 * (sum & 1)))
    })
}

fn masked(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The events of the file of lowbit in a directory, which must be whole.
fn events(folder: &Path) -> Vec<Event> {
    let files: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_str().unwrap().ends_with(".lowbit"))
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let bytes = fs::read(&files[0]).unwrap();
    let (mut rest, mut events) = (&bytes[..], Vec::new());
    while !rest.is_empty() {
        let number = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
        let n = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        let data = &rest[12..12 + n];
        assert_eq!((number(8), number(12 + n)), (masked(&rest[..8]), masked(data)));
        events.push(Event::decode(data).unwrap());
        rest = &rest[12 + n + 4..];
    }
    assert_eq!(events[0].file_version.as_deref(), Some("brain.Event:2"));
    events
}

/// All scalars by step and tag, and the steps with histograms. None may be there twice.
fn content(folder: &Path) -> (BTreeMap<(i64, String), f32>, Vec<i64>) {
    let (mut scalars, mut histograms) = (BTreeMap::new(), Vec::new());
    for event in events(folder) {
        let values = event.summary.unwrap_or_default().value;
        for value in &values {
            if let Some(scalar) = value.simple_value {
                let before = scalars.insert((event.step, value.tag.clone()), scalar);
                assert_eq!(before, None, "{} after step {} is there twice", value.tag, event.step);
            }
        }
        if values.iter().any(|value| value.histo.is_some()) {
            histograms.push(event.step);
        }
    }
    (scalars, histograms)
}

/// What the metrics of a run say of its epochs is what an event file has.
fn expect_metrics(sandbox: &Sandbox, run: &str, scalars: &BTreeMap<(i64, String), f32>) {
    let metrics = fs::read_to_string(sandbox.path(run).join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let n_epochs = scalars.keys().filter(|(_, tag)| tag == "epoch").count();
    assert_eq!(n_epochs, lines.len());
    for line in &lines {
        let step = line["step"].as_i64().unwrap();
        for (tag, value) in [
            ("loss/train", &line["train"]["loss"]),
            ("top1/test", &line["test"]["top1"]),
            ("learning_rate", &line["learning_rate"]),
            ("losses/student/total", &line["losses"]["student"]["total"]),
            ("epoch", &line["epoch"]),
        ] {
            let found = scalars.get(&(step, tag.into())).copied();
            assert_eq!(found, Some(value.as_f64().unwrap() as f32), "{tag} after step {step}");
        }
        for (parameter, value) in line["quantizers"].as_object().unwrap() {
            let found = scalars.get(&(step, format!("quantizers/{parameter}"))).copied();
            assert_eq!(found, Some(value.as_f64().unwrap() as f32), "{parameter}");
        }
        assert!(scalars.contains_key(&(step, "time/forward".into())));
    }
}

const LSQ: [&str; 6] =
    ["--set", "quantization.method=lsq", "--set", "checkpoint.every_steps=1", "--out", "run"];

#[test]
fn live_and_later_are_the_same() {
    let sandbox = Sandbox::new();
    let args = [&["train", "-q", "--tensorboard"][..], &LSQ, &TINY, &["--set", "train.epochs=3"]].concat();
    let outcome = sandbox.run(&args);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let live = content(&sandbox.path("run/tensorboard"));
    expect_metrics(&sandbox, "run", &live.0);
    assert_eq!(live.1, [0, 4, 8, 12]);
    let report = sandbox.json(&["tensorboard", "run", "-o", "later"]);
    let later = content(&sandbox.path("later/run"));
    assert!(later.0 == live.0, "other scalars");
    assert_eq!((&report["epochs"], &report["histograms"]), (&3.into(), &later.1.len().into()));
    // Older checkpoints are gone, and with them their weights.
    assert!(later.1.ends_with(&[12]) && !later.1.contains(&4), "{:?}", later.1);
    // In the place of the file of the training, what it had of them stays; what is not of lowbit stays too.
    fs::write(sandbox.path("run/tensorboard/events.out.tfevents.1.host"), "other").unwrap();
    let shown = sandbox.run(&["tensorboard", "run"]).stdout;
    assert!(shown.starts_with("3 epochs, weights after the steps 0, 4, 8, 12\n"), "{shown}");
    assert!(shown.ends_with("look at it with: tensorboard --logdir run/tensorboard\n"), "{shown}");
    assert!(content(&sandbox.path("run/tensorboard")) == live, "it is another file");
    assert!(sandbox.path("run/tensorboard/events.out.tfevents.1.host").exists());
    let text = events(&sandbox.path("run/tensorboard"))
        .into_iter()
        .flat_map(|event| event.summary.unwrap_or_default().value)
        .find(|value| value.tag == "recipe")
        .and_then(|value| value.tensor)
        .unwrap();
    assert!(String::from_utf8_lossy(&text).contains("method = \"lsq\""));
    // What is in a run is its own, and a record that is damaged loses nothing.
    let outcome = sandbox.run(&["tensorboard", "run", "-o", "run/checkpoints"]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    let metrics = sandbox.path("run/metrics.jsonl");
    let whole = fs::read(&metrics).unwrap();
    for junk in [&b"\xff\xfe"[..], b"null\n", b"{\"epoch\": }\n"] {
        fs::write(&metrics, junk).unwrap();
        let outcome = sandbox.run(&["tensorboard", "run"]);
        assert_eq!(outcome.code, Some(4), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("metrics.jsonl is damaged: line 1"), "{}", outcome.stderr);
    }
    fs::write(&metrics, whole).unwrap();
    assert!(content(&sandbox.path("run/tensorboard")) == live, "histograms are lost");
    let outcome = sandbox.run(&["tensorboard", "nowhere"]);
    assert_eq!(outcome.code, Some(4), "{}", outcome.stderr);
}

/// Neither a kill nor going back loses an epoch, or has one twice; the directory in the run is enough to go on with it.
#[test]
fn a_killed_training_goes_on() {
    let sandbox = Sandbox::new();
    let args = [&["train", "-q", "--tensorboard"][..], &LSQ, &TINY, &["--set", "train.epochs=6"]].concat();
    let mut child = sandbox.command(&args).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    let n_lines =
        || fs::read_to_string(sandbox.path("run/metrics.jsonl")).unwrap_or_default().lines().count();
    while n_lines() < 3 {
        assert!(Instant::now() < deadline, "no epoch comes");
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let outcome = sandbox.run(&["train", "-q", "--resume", "run"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let (scalars, histograms) = content(&sandbox.path("run/tensorboard"));
    expect_metrics(&sandbox, "run", &scalars);
    assert!(histograms.is_sorted() && histograms.last() == Some(&24), "{histograms:?}");
    // Back to a checkpoint before: what is made again takes the place of what was.
    let checkpoint = fs::read_dir(sandbox.path("run/checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .min()
        .unwrap();
    let outcome = sandbox.run(&["train", "-q", "--resume", "run", "--checkpoint", &checkpoint]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let (scalars, histograms) = content(&sandbox.path("run/tensorboard"));
    expect_metrics(&sandbox, "run", &scalars);
    assert!(histograms.is_sorted() && histograms.last() == Some(&24), "{histograms:?}");
}

/// Opens a directory by TensorBoard's own reader, and prints what it finds.
const READ: &str = "
import json, sys
from tensorboard.backend.event_processing import event_accumulator
reader = event_accumulator.EventAccumulator(sys.argv[1], size_guidance={'scalars': 0, 'histograms': 0, 'tensors': 0})
reader.Reload()
tags = reader.Tags()
print(json.dumps({
    'scalars': {tag: [[event.step, event.value] for event in reader.Scalars(tag)] for tag in tags['scalars']},
    'histograms': {tag: [[event.step, event.histogram_value.num] for event in reader.Histograms(tag)] for tag in tags['histograms']},
    'texts': {tag: reader.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in tags['tensors']},
}))
";

#[test]
#[ignore = "needs Python with TensorBoard: LOWBIT_PYTHON=python cargo test -p lowbit --test tensorboard -- --ignored"]
fn tensorboard_reads_it() {
    let python = std::env::var("LOWBIT_PYTHON").unwrap_or_else(|_| "python3".into());
    let has = Command::new(&python).args(["-c", "import tensorboard"]).output();
    if !has.is_ok_and(|output| output.status.success()) {
        return println!("skipped: {python} has no package tensorboard");
    }
    let sandbox = Sandbox::new();
    let args = [&["train", "-q", "--tensorboard"][..], &LSQ, &TINY, &["--set", "train.epochs=3"]].concat();
    assert_eq!(sandbox.run(&args).code, Some(0));
    let output =
        Command::new(&python).args(["-c", READ]).arg(sandbox.path("run/tensorboard")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read: Value = serde_json::from_slice(&output.stdout).unwrap();
    let (scalars, histograms) = content(&sandbox.path("run/tensorboard"));
    let mut n_scalars = 0;
    for (tag, points) in read["scalars"].as_object().unwrap() {
        for point in points.as_array().unwrap() {
            let value = scalars[&(point[0].as_i64().unwrap(), tag.clone())];
            assert_eq!(point[1].as_f64(), Some(f64::from(value)), "{tag}");
            n_scalars += 1;
        }
    }
    assert_eq!(n_scalars, scalars.len());
    let weights = read["histograms"]["weights/fc"].as_array().unwrap();
    let steps: Vec<i64> = weights.iter().map(|point| point[0].as_i64().unwrap()).collect();
    assert_eq!(steps, histograms);
    assert_eq!(weights[0][1], 640.0);
    assert!(read["texts"]["recipe"].as_str().unwrap().contains("    method = \"lsq\""), "{}", read["texts"]);
}
