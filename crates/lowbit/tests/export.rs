//! Packed models: from a run to what is in an image.

mod common;

use std::fs;

use common::{Outcome, Sandbox, TINY};
use lowbit_data::{DatasetName, Dimensions, LabelKind, Locations, Picture, Source, Split};
use serde_json::{Value, json};

/// A sandbox with a finished run in `run`, of a recipe with these settings.
fn sandbox_with(settings: &[&str]) -> Sandbox {
    let sandbox = Sandbox::new();
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    let outcome =
        sandbox.run(&[&["train", "-q", "--out", "run", "--device", "flex"], &TINY[..], &settings].concat());
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    sandbox
}

/// A test image of the digits as a PNG file, and its label.
fn digit(sandbox: &Sandbox, idx: usize, name: &str) -> u8 {
    let opened =
        lowbit_data::open(DatasetName::Digits, Split::Test, LabelKind::Fine, &Locations::default_with(None))
            .unwrap();
    let dataset = opened.dataset;
    let pixels = dataset.pixels(idx).iter().map(|pixel| (u32::from(*pixel) * 255 / 16) as u8).collect();
    let picture = Picture { dimensions: Dimensions { width: 8, height: 8 }, channels: 1, pixels };
    fs::write(sandbox.path(name), picture.to_png()).unwrap();
    dataset.label(idx) as u8
}

/// Checks what a report says of each layer.
fn check_sizes(report: &Value) {
    let layers = report["layers"].as_array().unwrap();
    let number =
        |layer: &Value, name: &str| layer[name].as_u64().unwrap_or_else(|| panic!("{name} of {layer}"));
    for layer in layers {
        let parts =
            ["weights", "scales", "biases", "norms"].map(|part| number(layer, &format!("bytes_{part}")));
        assert_eq!(number(layer, "bytes"), parts.iter().sum::<u64>(), "{layer}");
    }
    for all in ["bytes", "bytes_fp32"] {
        let sum: u64 = layers.iter().map(|layer| number(layer, all)).sum();
        // The rest is the description.
        let rest = number(report, all) - sum;
        assert!((1000..16_000).contains(&rest), "{rest} of {all}");
    }
    // 64 features for each of 10 classes, a byte each, and then a scale and a bias for each class.
    let fc = layers.iter().find(|layer| layer["path"] == "fc").unwrap();
    assert_eq!(number(fc, "bytes_int8"), 640 + 80);
    // Normalizations that follow a convolution are part of it.
    assert!(layers.iter().any(|layer| number(layer, "bytes_norms") > 0 && number(layer, "bytes_int8") == 0));
}

#[test]
fn a_run_becomes_a_model_that_computes_the_same() {
    for settings in [
        &["quantization.method=\"lsq\"", "quantization.weight_bits=4", "quantization.act_bits=4"][..],
        &["quantization.method=\"minmax\"", "quantization.weight_bits=8", "quantization.act_bits=8"],
        &[],
    ] {
        let sandbox = sandbox_with(settings);
        let report = sandbox.json(&["export", "run", "--out", "m.lowbit"]);
        assert_eq!(report["format"], "packed");
        assert_eq!(report["max_logit_difference"], 0.0, "{report}");
        assert_eq!((&report["verified"], &report["n_images"]), (&json!(true), &json!(64)));
        assert_eq!(report["same_top1"], 64);
        assert_eq!((&report["integer_layers"], &report["float_layers"]), (&json!(8), &json!(2)));
        let bytes = fs::metadata(sandbox.path("m.lowbit")).unwrap().len();
        assert_eq!(report["bytes"], bytes);
        assert!(report["bytes_fp32"].as_u64().unwrap() > 3 * bytes, "{report}");
        check_sizes(&report);
        let (run, model) = (sandbox.json(&["eval", "run"]), sandbox.json(&["eval", "m.lowbit"]));
        for score in ["top1", "top5", "loss"] {
            assert_eq!(run[score], model[score], "{score}");
        }
        assert_eq!(report["top1"], run["top1"]);
        let said = sandbox.run(&["export", "run", "--out", "again.lowbit", "--no-verify"]).stdout;
        let ends = ["bits", "packed", "full", "precision", "ONNX", "int8"];
        let heading = said.lines().find(|line| line.starts_with("bytes ")).expect("a table");
        assert_eq!(heading.split_whitespace().skip(1).collect::<Vec<_>>(), ends, "{said}");
        assert!(
            said.lines().any(|line| line.starts_with("all ") && line.contains(&bytes.to_string())),
            "{said}"
        );
        let onnx = sandbox.run(&["export", "run", "--out", "m.onnx"]);
        assert!(
            onnx.stdout
                .contains("\nas packed the logits of 64 test images are those of the run to the last bit"),
            "{}",
            onnx.stdout
        );
        assert!(!onnx.stdout.contains("lowbit predict"), "{}", onnx.stdout);
        let qonnx = sandbox.json(&["export", "run", "--format", "qonnx"]);
        let file = qonnx["file"].as_str().unwrap();
        assert!(file.ends_with(".qonnx.onnx"), "{file}");
        assert_eq!((&qonnx["format"], &qonnx["max_logit_difference"]), (&json!("qonnx"), &json!(0.0)));
        assert_eq!(qonnx["bytes"], fs::metadata(sandbox.path(file)).unwrap().len());
        // The ending says the format.
        for name in ["m.qonnx.onnx", "m.qonnx"] {
            assert_eq!(sandbox.json(&["export", "run", "--no-verify", "--out", name])["format"], "qonnx");
            assert!(fs::read(sandbox.path(name)).unwrap() == fs::read(sandbox.path(file)).unwrap());
        }
    }
}

/// Levels at other distances have no form in ONNX: the formats that have one are named.
#[test]
fn what_a_format_cannot_express_is_refused() {
    let sandbox = sandbox_with(&[
        "quantization.method=\"apot\"",
        "quantization.weight_bits=3",
        "quantization.act_bits=2",
    ]);
    refuses(
        &sandbox.run(&["export", "run", "--no-verify", "--out", "m.onnx"]),
        2,
        "export it as packed, or as qonnx",
    );
    assert!(!sandbox.path("m.onnx").exists());
    sandbox.json(&["export", "run", "--no-verify", "--format", "qonnx", "--out", "m.onnx"]);
}

#[test]
fn an_image_is_classified() {
    let sandbox = Sandbox::new();
    let outcome =
        sandbox.run(&["train", "-q", "--out", "run", "--device", "flex", "--set", "train.epochs=12"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    sandbox.json(&["export", "run", "--out", "m.lowbit"]);
    let labels: Vec<u8> = (0..20).map(|idx| digit(&sandbox, idx, &format!("{idx}.png"))).collect();
    let names: Vec<String> = (0..20).map(|idx| format!("{idx}.png")).collect();
    let args: Vec<&str> =
        ["predict", "m.lowbit"].into_iter().chain(names.iter().map(String::as_str)).collect();
    let report = sandbox.json(&args);
    let best = |image: &Value| image["classes"][0]["index"].as_u64().unwrap() as u8;
    let images = report["images"].as_array().unwrap();
    let n_right = images.iter().zip(&labels).filter(|(image, label)| best(image) == **label).count();
    // The pixels are those of the test images but for a rounding.
    assert!(n_right >= 17, "{n_right} of 20: {report}");
    for image in images {
        let classes = image["classes"].as_array().unwrap();
        assert_eq!(classes.len(), 5);
        let probability = |class: &Value| class["probability"].as_f64().unwrap();
        assert!(classes.is_sorted_by(|a, b| probability(a) >= probability(b)), "{image}");
    }
    let said = sandbox.run(&["predict", "m.lowbit", "3.png"]);
    assert!(said.stdout.starts_with("3.png\n  "), "{}", said.stdout);
    assert!(said.stdout.contains(&format!("%  class {}", best(&images[3]))), "{}", said.stdout);
}

#[test]
fn a_model_is_timed_beside_full_precision() {
    let sandbox = sandbox_with(&[]);
    sandbox.json(&["export", "run", "--out", "m.lowbit"]);
    let report = sandbox.json(&["bench", "m.lowbit", "--threads", "1", "--rounds", "3", "--batch", "2"]);
    assert_eq!((&report["threads"], &report["batch"], &report["rounds"]), (&json!(1), &json!(2), &json!(3)));
    for times in ["latency_ms", "fp32_latency_ms"] {
        let [min, median, max] = ["min", "median", "max"].map(|of| report[times][of].as_f64().unwrap());
        assert!(0.0 < min && min <= median && median <= max, "{report}");
    }
    let layers = report["layers"].as_array().unwrap();
    let n = layers.iter().filter(|layer| layer["operation"] == "integers to codes").count();
    assert_eq!(n, 3, "{report}");
    let said = sandbox.run(&["bench", "m.lowbit", "--rounds", "1"]);
    assert!(said.stdout.contains("full precision  "), "{}", said.stdout);
}

fn refuses(outcome: &Outcome, code: i32, expected: &str) {
    assert_eq!(outcome.code, Some(code), "{}", outcome.stderr);
    assert_eq!(outcome.stderr.trim_end().lines().count(), 1, "{}", outcome.stderr);
    assert!(outcome.stderr.contains(expected), "{:?} lacks {expected:?}", outcome.stderr);
}

#[test]
fn what_is_no_model_is_told_in_a_line() {
    let sandbox = sandbox_with(&[]);
    sandbox.json(&["export", "run", "--out", "m.lowbit"]);
    refuses(
        &sandbox.run(&["export", "run", "--out", "m.lowbit"]),
        2,
        "m.lowbit exists and is never overwritten",
    );
    let model = fs::read(sandbox.path("m.lowbit")).unwrap();
    digit(&sandbox, 0, "0.png");
    let cut = model[..model.len() - 10].to_vec();
    let mut version = model.clone();
    let place = version.windows(13).position(|bytes| bytes == br#"\"version\":2"#).expect("a version");
    version[place + 12] = b'7';
    let safetensors = [&2u64.to_le_bytes()[..], b"{}"].concat();
    for (name, bytes, expected) in [
        ("empty.lowbit", Vec::new(), "it is an empty file, expected a packed model"),
        (
            "image.lowbit",
            fs::read(sandbox.path("0.png")).unwrap(),
            "it is of another kind, expected a packed model",
        ),
        ("cut.lowbit", cut, "model cut.lowbit: "),
        ("version.lowbit", version, "it is a packed model of version 7, this program reads version 2"),
        ("other.lowbit", safetensors, "it is safetensors of other contents, expected a packed model"),
    ] {
        fs::write(sandbox.path(name), bytes).unwrap();
        refuses(&sandbox.run(&["predict", name, "0.png"]), 4, expected);
        refuses(&sandbox.run(&["bench", name]), 4, expected);
        refuses(&sandbox.run(&["eval", name]), 4, expected);
    }
    refuses(
        &sandbox.run(&["predict", "missing.lowbit", "0.png"]),
        4,
        "model missing.lowbit: it cannot be read: ",
    );
    refuses(&sandbox.run(&["predict", "run", "0.png"]), 4, "it is no regular file");
    refuses(
        &sandbox.run(&["predict", "m.lowbit", "missing.png"]),
        3,
        "image missing.png: it cannot be read: ",
    );
    refuses(&sandbox.run(&["predict", "m.lowbit", "m.lowbit"]), 3, "image m.lowbit: ");
    refuses(
        &sandbox.run(&["eval", "m.lowbit", "--checkpoint", "best"]),
        2,
        "--checkpoint is for a run directory",
    );
}
