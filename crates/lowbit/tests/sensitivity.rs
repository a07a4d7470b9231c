//! What the bits of each layer cost, and bits for each layer under a budget.

mod common;

use std::fs;

use common::{Sandbox, TINY};
use serde_json::Value;

/// A sandbox with a finished run in `run`, of a recipe with these settings.
fn sandbox_with(settings: &[&str]) -> Sandbox {
    let sandbox = Sandbox::new();
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let outcome =
        sandbox.run(&[&["train", "-q", "--out", "run", "--device", "flex"], &TINY[..], &settings].concat());
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    sandbox
}

fn number(value: &Value, name: &str) -> f64 {
    value[name].as_f64().unwrap_or_else(|| panic!("{name} of {value}"))
}

#[test]
fn every_quantized_layer_is_scored_alone_and_left_out() {
    let sandbox =
        sandbox_with(&["data.validation=0.2", "data.train_limit=200", "quantization.last.weight_bits=8"]);
    let report = sandbox.json(&["sensitivity", "run"]);
    // As the run itself scored its validation images, to the last bit.
    let metrics = fs::read_to_string(sandbox.path("run/metrics.jsonl")).unwrap();
    let last: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    assert_eq!(report["all"], last["validation"]);
    assert_eq!((report["images"].as_str(), report["n_images"].as_u64()), (Some("validation"), Some(39)));
    let plan: Value =
        serde_json::from_str(&fs::read_to_string(sandbox.path("run/plan.json")).unwrap()).unwrap();
    let quantized = plan["layers"].as_array().unwrap().iter().filter(|layer| !layer["method"].is_null());
    let paths: Vec<&Value> = quantized.map(|layer| &layer["path"]).collect();
    let layers = report["layers"].as_array().unwrap();
    assert_eq!(layers.iter().map(|layer| &layer["layer"]).collect::<Vec<_>>(), paths);
    assert_eq!(layers.last().unwrap()["layer"], "fc");
    for layer in layers {
        assert!((0.0..=1.0).contains(&number(layer, "top1_only")), "{layer}");
        assert!((0.0..=1.0).contains(&number(layer, "top1_without")), "{layer}");
        // One layer of several decides neither everything nor nothing.
        assert_ne!(number(layer, "loss_only"), number(&report["none"], "loss"), "{layer}");
        assert_ne!(number(layer, "loss_without"), number(&report["all"], "loss"), "{layer}");
        assert!(layer.get("trials").is_none(), "{layer}");
    }
    // The same numbers again, fewer images if that is asked for.
    assert_eq!(report, sandbox.json(&["sensitivity", "run"]));
    let fewer = sandbox.json(&["sensitivity", "run", "--images", "30"]);
    assert_eq!(fewer["n_images"], 30);
}

#[test]
fn a_budget_makes_a_recipe_that_trains_within_it() {
    let sandbox = sandbox_with(&["quantization.weight_bits=\"fp32\"", "quantization.act_bits=\"fp32\""]);
    let outcome = sandbox.run(&["sensitivity", "run"]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    let expected =
        "error: no layer of student is quantized: name the bit widths to try, as in --bits 2,4,8\n";
    assert_eq!(outcome.stderr, expected);
    for (budget, of, total) in [
        ("w3a3", "bit-ops", "bit_operations"),
        ("w4a2", "bit-ops", "bit_operations"),
        ("w3a3", "bytes", "packed_bytes"),
    ] {
        let file = format!("{budget}-{of}.toml");
        let report = sandbox.json(&[
            "sensitivity",
            "run",
            "--method",
            "lsq",
            "--bits",
            "2,3,4,8",
            "--budget",
            budget,
            "--of",
            of,
            "--out",
            &file,
        ]);
        assert_eq!(report["images"], "training");
        let (bits, cost) = (&report["plan"]["bits"], number(&report["plan"], "cost"));
        assert!(cost <= number(&report["plan"], "budget"), "{report}");
        // The recipe has these bits, and what the plan says it takes is what it takes.
        let inspected = sandbox.json(&["inspect", &file]);
        let layers = inspected["plan"]["layers"].as_array().unwrap();
        let tried = layers.iter().filter(|layer| !layer["method"].is_null());
        let found: Vec<(&Value, &Value, &Value)> =
            tried.map(|layer| (&layer["path"], &layer["weight_bits"], &layer["act_bits"])).collect();
        assert_eq!(found.len(), bits.as_object().unwrap().len());
        for (path, weight_bits, act_bits) in found {
            assert_eq!([weight_bits, act_bits], [&bits[path.as_str().unwrap()]; 2], "{path}");
        }
        let sum: f64 = layers.iter().map(|layer| number(layer, total)).sum();
        let norms = match total {
            "packed_bytes" => 4.0 * number(&inspected["plan"], "n_norm_parameters"),
            _ => 0.0,
        };
        assert_eq!(sum + norms, cost, "{budget} {of}");
        let trained = sandbox.run(&["train", &file, "-q", "--out", &format!("run-{budget}-{of}")]);
        assert_eq!(trained.code, Some(0), "{}", trained.stderr);
        // It is not overwritten.
        let again =
            sandbox.run(&["sensitivity", "run", "--method", "lsq", "--budget", budget, "--out", &file]);
        assert_eq!(again.code, Some(2), "{}", again.stderr);
    }
    let outcome = sandbox.run(&["sensitivity", "run", "--bits", "2", "--budget", "1000"]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    let expected = "error: --budget: no bits that were tried fit into a budget of 1000: the least that the network takes with them is ";
    assert!(outcome.stderr.starts_with(expected), "{}", outcome.stderr);
    let outcome = sandbox.run(&["sensitivity", "run", "--bits", "3", "--method", "twn"]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
}

#[test]
fn a_network_has_the_bits_that_it_was_trained_at_among_the_trials() {
    let sandbox = sandbox_with(&["quantization.method=\"lsq\""]);
    let report = sandbox.json(&["sensitivity", "run", "--bits", "2,4"]);
    for layer in report["layers"].as_array().unwrap() {
        let trials = layer["trials"].as_array().unwrap();
        assert_eq!(trials.len(), 2);
        // With its own learned steps, nothing has changed.
        assert_eq!(
            [&trials[0]["top1"], &trials[0]["loss"]],
            [&report["all"]["top1"], &report["all"]["loss"]]
        );
        assert_ne!(trials[1]["loss"], report["all"]["loss"], "{layer}");
    }
}

#[test]
fn bits_are_learned_by_gradient_within_the_budget() {
    let sandbox = sandbox_with(&["quantization.weight_bits=\"fp32\"", "quantization.act_bits=\"fp32\""]);
    let args =
        ["sensitivity", "run", "--method", "lsq", "--by", "gradient", "--steps", "20", "--budget", "w3a3"];
    let report = sandbox.json(&[&args[..], &["--out", "mixed.toml"]].concat());
    let (plan, bits) = (&report["plan"], report["plan"]["bits"].as_object().unwrap());
    assert!(number(plan, "cost") <= number(plan, "budget"), "{plan}");
    // Most of the budget is spent, and not everywhere alike.
    assert!(number(plan, "cost") > 0.9 * number(plan, "budget"), "{plan}");
    assert!(bits.values().any(|bits| *bits != 3), "{plan}");
    assert_eq!(*plan, sandbox.json(&args)["plan"]);
    let inspected = sandbox.json(&["inspect", "mixed.toml"]);
    for layer in inspected["plan"]["layers"].as_array().unwrap() {
        let path = layer["path"].as_str().unwrap();
        let expected = bits.get(path).cloned().unwrap_or("fp32".into());
        assert_eq!([&layer["weight_bits"], &layer["act_bits"]], [&expected; 2], "{path}");
    }
    let trained = sandbox.run(&["train", "mixed.toml", "-q", "--out", "mixed"]);
    assert_eq!(trained.code, Some(0), "{}", trained.stderr);
    for (options, expected) in [
        (
            ["--budget", "w3a3", "--steps", "3"],
            "error: --steps is for a choice by gradient: add --by gradient\n",
        ),
        (
            ["--images", "9", "--method", "lsq"],
            "error: --method is that of other bits: add --bits or --budget\n",
        ),
    ] {
        let outcome = sandbox.run(&[&["sensitivity", "run"][..], &options].concat());
        assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(2), expected));
    }
    // The lowest bits take more than this.
    let outcome = sandbox.run(&["sensitivity", "run", "--by", "gradient", "--budget", "1000"]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    assert!(outcome.stderr.starts_with("error: --budget: no bits that were tried fit"), "{}", outcome.stderr);
}

/// What a phase holds back is not held back from a choice of bits: they are for a whole training.
#[test]
fn a_checkpoint_of_an_earlier_phase_is_tried_at_the_bits_that_are_named() {
    let sandbox = sandbox_with(&[
        "quantization.method=\"lsq\"",
        "strategy.two_stage=true",
        "train.epochs=2",
        "checkpoint.keep_last=30",
    ]);
    let names = sandbox.json(&["inspect", "run"])["checkpoints"].clone();
    let names: Vec<&str> = names.as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let with = |checkpoint: &str, by: &str| {
        let args = ["sensitivity", "run", "--budget", "w3a3", "--bits", "2,3,4", "--by", by];
        let steps: &[&str] = if by == "gradient" { &["--steps", "3"] } else { &[] };
        sandbox.json(&[&args[..], steps, &["--checkpoint", checkpoint]].concat())
    };
    let (first, last) = (names[1], names[names.len() - 1]);
    for by in ["loss", "gradient"] {
        let (early, late) = (with(first, by), with(last, by));
        assert_eq!(early["plan"]["budget"], late["plan"]["budget"], "{by}");
        assert!(number(&early["plan"], "cost") <= number(&early["plan"], "budget"), "{by}");
    }
    let early = with(first, "loss");
    assert_eq!(early["phase"], "w2a32");
    for layer in early["layers"].as_array().unwrap() {
        assert_eq!((&layer["weight_bits"], &layer["act_bits"]), (&2.into(), &"fp32".into()));
        // Its input has no bits yet, so that this is another network.
        assert_ne!(layer["trials"][0]["loss"], early["all"]["loss"], "{layer}");
    }
}

/// A network beside the deployed one has a shape of its own.
#[test]
fn a_teacher_of_another_width_is_planned_as_it_is() {
    let sandbox = sandbox_with(&["strategy.joint={teacher={width=0.25}}"]);
    let cost = |network: &str| {
        let args = [
            "sensitivity",
            "run",
            "--network",
            network,
            "--budget",
            "w3a3",
            "--bits",
            "2,4",
            "--method",
            "lsq",
        ];
        number(&sandbox.json(&args)["plan"], "budget")
    };
    assert!(cost("teacher") < 0.5 * cost("student"));
}

/// Bits that nobody named are those that the method has.
#[test]
fn default_bits_are_those_of_the_method() {
    let sandbox = sandbox_with(&["quantization.weight_bits=\"fp32\"", "quantization.act_bits=\"fp32\""]);
    for (method, expected) in [("apot", vec![2, 3, 4]), ("twn", vec![2]), ("xnor", vec![1])] {
        let report = sandbox.json(&["sensitivity", "run", "--method", method, "--budget", "1G"]);
        let trials = report["layers"][0]["trials"].as_array().unwrap();
        let bits: Vec<u64> = trials.iter().map(|trial| trial["bits"].as_u64().unwrap()).collect();
        assert_eq!(bits, expected, "{method}");
    }
}
