//! What is wrong without ending a training: shown, recorded once in the run, and listed.

mod common;

use std::fs;

use common::{Sandbox, TINY};

/// A temperature that is known to hurt: a warning that is known before the first step.
const HOT: [&str; 2] = ["--set", "strategy.joint={distance={kind='kl', temperature=4}}"];

#[test]
fn a_warning_is_recorded_once_and_listed() {
    let sandbox = Sandbox::new();
    let args = [&["train", "-q", "--out", "run", "--device", "flex"][..], &HOT, &TINY].concat();
    let result = sandbox.json(&args);
    let warnings: Vec<&str> =
        result["warnings"].as_array().unwrap().iter().filter_map(|w| w.as_str()).collect();
    let hot =
        warnings.iter().filter(|warning| warning.starts_with("strategy.joint.distance.temperature is 4"));
    assert_eq!(hot.count(), 1, "{warnings:?}");

    // Going on shows it again, but it stays one line.
    fs::remove_file(sandbox.path("run/result.json")).unwrap();
    let outcome = sandbox.run(&["train", "-q", "--resume", "run"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("temperature is 4"), "{}", outcome.stderr);
    let lines = fs::read_to_string(sandbox.path("run/warnings.jsonl")).unwrap();
    assert_eq!(lines.matches("temperature is 4").count(), 1, "{lines}");
    assert!(lines.contains(r#"{"step":0,"kind":"recipe","message":"strategy.joint"#), "{lines}");

    let inspected = sandbox.json(&["inspect", "run"]);
    assert_eq!(inspected["warnings"].as_array().unwrap().len(), warnings.len());
    let shown = sandbox.run(&["inspect", "run"]).stdout;
    assert!(shown.contains("warnings    strategy.joint.distance.temperature is 4"), "{shown}");
    let written = fs::read_to_string(sandbox.path("run/result.json")).unwrap();
    assert!(written.contains("temperature is 4"), "{written}");
}

#[test]
fn a_training_with_nothing_wrong_has_no_warnings() {
    let sandbox = Sandbox::new();
    let result = sandbox.json(&[&["train", "-q", "--out", "run", "--device", "flex"][..], &TINY].concat());
    assert_eq!(result["warnings"], serde_json::json!([]));
    assert!(!sandbox.path("run/warnings.jsonl").exists());
}
