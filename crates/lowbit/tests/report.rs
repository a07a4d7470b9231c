//! `lowbit list`, `lowbit compare` and `lowbit report`: what is shown of many runs, of several and of one, also of damaged ones, of those in
//! training and of those with hostile names.

mod common;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Outcome, Sandbox, TINY, copy_dir};
use lowbit_data::{Dimensions, Picture};
use serde_json::Value;

fn train(sandbox: &Sandbox, out: &str, args: &[&str]) {
    let args = [&["train", "-q", "--device", "flex", "--out", out], &TINY[..], args].concat();
    let outcome = sandbox.run(&args);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
}

/// A sandbox with a run of two epochs with all its checkpoints.
fn sandbox_with_run(args: &[&str]) -> Sandbox {
    let sandbox = Sandbox::new();
    let all = ["--set", "train.epochs=2", "--set", "checkpoint.keep_last=30"];
    train(&sandbox, "run", &[&all, args].concat());
    sandbox
}

/// A joint training with learned steps and stochastic precision.
const RICH: [&str; 6] = [
    "--set",
    "strategy.joint={}",
    "--set",
    "quantization.method=lsq",
    "--set",
    "strategy.stochastic_precision={}",
];

fn read(sandbox: &Sandbox, name: &str) -> String {
    fs::read_to_string(sandbox.path(name)).unwrap()
}

fn succeeds(outcome: &Outcome) {
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
}

/// Checks that every element of a page is closed where it should be, and that nothing is loaded from elsewhere.
fn expect_page(page: &str) {
    assert!(page.starts_with("<!doctype html><!--lowbit report--><html lang=\"en\">"), "{}", &page[..60]);
    let (mut open, mut n_elements) = (Vec::new(), 0);
    let body = page.split_once("<!--lowbit report-->").unwrap().1;
    for tag in body.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').unwrap_or_else(|| panic!("no end of {tag}"));
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "{tag}"),
            None => {
                let name = tag.split(' ').next().unwrap();
                assert!(name.chars().all(|c| c.is_ascii_alphanumeric()), "{tag}");
                assert_ne!(name, "script");
                n_elements += 1;
                if !["meta", "img", "br"].contains(&name) {
                    open.push(name);
                }
                for (attribute, value) in tag.split(' ').filter_map(|attribute| attribute.split_once("=\"")) {
                    let is_here = match attribute {
                        "src" => value.starts_with("data:image/png;base64,"),
                        "href" => value.starts_with('#'),
                        _ => !attribute.starts_with("on"),
                    };
                    assert!(is_here, "{attribute} of {tag}");
                }
            }
        }
    }
    assert!(open.is_empty() && n_elements > 20, "{open:?} {n_elements}");
    let style = page.split("<style>").nth(1).unwrap().split("</style>").next().unwrap();
    assert!(!style.contains("url(") && !style.contains("@import") && !style.contains('<'), "{style}");
    // Every link leads somewhere.
    for target in page.split("href=\"#").skip(1) {
        let target = target.split('"').next().unwrap();
        assert!(page.contains(&format!("id=\"{target}\"")), "{target}");
    }
}

/// Checks the page of `args` and the data behind it, which are returned.
fn report(sandbox: &Sandbox, args: &[&str]) -> (String, Value) {
    let command = [&["report"], args].concat();
    succeeds(&sandbox.run(&command));
    let page = read(sandbox, "report.html");
    expect_page(&page);
    (page, sandbox.json(&command))
}

#[test]
fn a_page_says_what_its_run_is() {
    let sandbox = sandbox_with_run(&RICH);
    let (page, data) = report(&sandbox, &["run"]);
    let result: Value = serde_json::from_str(&read(&sandbox, "run/result.json")).unwrap();
    let run = &data["runs"][0];
    for (one, other) in [("top1", "top1"), ("top5", "top5"), ("loss", "loss")] {
        assert_eq!(run["test"][one], result[other]);
    }
    assert_eq!(run["networks"]["teacher"], result["networks"]["teacher"]);
    assert_eq!((&run["state"], &run["notes"]), (&"finished".into(), &Value::Array(Vec::new())));

    // The matrix has every test image once, and the accuracy of the run.
    let images = &run["images"];
    let confusion: Vec<Vec<u64>> = serde_json::from_value(images["confusion"].clone()).unwrap();
    let n: u64 = confusion.iter().flatten().sum();
    let n_right: u64 = confusion.iter().enumerate().map(|(class, row)| row[class]).sum();
    assert_eq!((n, confusion.len()), (64, 10));
    assert_eq!(n_right as f64 / n as f64, result["top1"].as_f64().unwrap());
    assert_eq!((&images["n_images"], &images["n_activation_images"]), (&64.into(), &64.into()));
    let of_classes =
        images["classes"].as_array().unwrap().iter().map(|class| class["n_images"].as_u64().unwrap());
    assert_eq!(of_classes.sum::<u64>(), 64);
    let mistakes = images["mistakes"].as_array().unwrap();
    assert_eq!(mistakes.len() as u64, (n - n_right).min(24));
    let probabilities: Vec<f64> =
        mistakes.iter().map(|mistake| mistake["probability"].as_f64().unwrap()).collect();
    assert!(probabilities.is_sorted_by(|a, b| a >= b), "{probabilities:?}");
    assert!(mistakes.iter().all(|mistake| mistake["label"] != mistake["predicted"]));

    // Layers: both ends are in full precision, the rest has two bits.
    for layer in run["layers"].as_array().unwrap() {
        let path = layer["path"].as_str().unwrap();
        let is_end = ["stem", "fc"].contains(&path);
        for operand in ["weights", "input"] {
            let operand = &layer[operand];
            let counts = operand["histogram"]["counts"].as_array().unwrap();
            let n: u64 = counts.iter().map(|count| count.as_u64().unwrap()).sum();
            assert_eq!(n, operand["n_values"].as_u64().unwrap(), "{path}");
            let quantized = &operand["quantized"];
            assert_eq!(quantized.is_null(), is_end, "{path}");
            if !is_end {
                let shares = quantized["codes"].as_array().unwrap();
                let sum: f64 = shares.iter().map(|code| code["share"].as_f64().unwrap()).sum();
                assert!(shares.len() == 4 && (sum - 1.0).abs() < 1e-9, "{path}: {shares:?}");
                assert!(quantized["sqnr_db"].as_f64().unwrap() > 0.0, "{path}: {quantized}");
                assert!((0.0..=1.0).contains(&quantized["clipped"].as_f64().unwrap()), "{path}");
            }
        }
        assert!(layer["sensitivity"].is_null());
    }
    for id in ["recipe", "curves", "layers", "values", "learned", "images", "machine"] {
        assert!(page.contains(&format!("<section id=\"{id}\">")), "{id}");
    }
    for text in ["top-1", "what the teacher is trained on, by part", "learning rate", "stochastic precision"]
    {
        assert!(page.contains(text), "{text}");
    }
    assert_eq!(page.matches("<img").count(), mistakes.len());
}

#[test]
fn the_sensitivity_of_layers_is_measured_where_that_is_asked_for() {
    let sandbox = sandbox_with_run(&["--set", "data.validation=0.25"]);
    let (page, report) = report(&sandbox, &["run", "--sensitivity"]);
    let run = &report["runs"][0];
    let measured = sandbox.json(&["sensitivity", "run"]);
    let images = format!("{} validation images", measured["n_images"]);
    assert_eq!(run["sensitivity_images"], images);
    assert!(page.contains(&images), "{images}");
    let mut n_measured = 0;
    for layer in run["layers"].as_array().unwrap() {
        let measured = measured["layers"].as_array().unwrap().iter().find(|of| of["layer"] == layer["path"]);
        match measured {
            Some(of) => {
                n_measured += 1;
                for key in ["top1_only", "top1_without"] {
                    assert_eq!(layer["sensitivity"][key], of[key], "{layer}");
                }
            }
            None => assert!(layer["sensitivity"].is_null(), "{layer}"),
        }
    }
    assert_eq!(n_measured, measured["layers"].as_array().unwrap().len());
}

/// Weights are shown as their quantizer has them.
#[test]
fn standardized_weights_are_compared_with_their_codes() {
    let standardized =
        ["--set", "quantization.method=lsq", "--set", "quantization.weight_standardization=true"];
    let sandbox = sandbox_with_run(&standardized);
    let (_, report) = report(&sandbox, &["run"]);
    let layers = report["runs"][0]["layers"].as_array().unwrap();
    let quantized: Vec<f64> =
        layers.iter().filter_map(|layer| layer["weights"]["quantized"]["sqnr_db"].as_f64()).collect();
    assert!(quantized.len() > 5 && quantized.iter().all(|db| *db > 2.0), "{quantized:?}");
}

#[test]
fn no_image_is_looked_at_where_that_is_asked_for() {
    let sandbox = sandbox_with_run(&[]);
    let (page, data) = report(&sandbox, &["run", "--no-images"]);
    let run = &data["runs"][0];
    assert!(run["images"].is_null() && run["layers"][1]["input"].is_null(), "{run}");
    assert!(run["layers"][1]["weights"]["quantized"]["sqnr_db"].is_f64(), "weights need no images");
    assert!(page.contains("no image was looked at, as was asked for"));
    assert!(!page.contains("id=\"images\""));
}

#[test]
fn what_comes_from_files_is_no_markup() {
    const HOSTILE: &str = "<script>alert('x')</script><b onclick=\"y\">&";
    let sandbox = Sandbox::new();
    let name = "<img src=x>";
    train(&sandbox, name, &[]);
    let warning = serde_json::json!({"step": 1, "kind": "training", "message": HOSTILE});
    fs::write(sandbox.path(name).join("warnings.jsonl"), format!("{warning}\n")).unwrap();
    let info = sandbox.path(name).join("run.json");
    let mut content: Value = serde_json::from_slice(&fs::read(&info).unwrap()).unwrap();
    content["classes"] = (0..10).map(|class| format!("{class}{HOSTILE}\u{1b}[31m\u{202e}")).collect();
    content["origin"]["host"] = HOSTILE.into();
    fs::write(&info, content.to_string()).unwrap();
    let (page, data) = report(&sandbox, &[name]);
    assert!(!page.contains("<script") && !page.contains("<b onclick") && !page.contains("<img src=\"x"));
    assert!(!page.contains(['\u{1b}', '\u{202e}']), "unseen characters are written out");
    assert!(page.contains("<h1>&lt;img src=x&gt;</h1>"));
    assert!(page.matches("&lt;script&gt;alert(&#39;x&#39;)").count() > 10);
    assert_eq!(data["runs"][0]["warnings"][0]["message"], HOSTILE);
}

#[test]
fn runs_that_are_not_whole_have_a_page() {
    let sandbox = sandbox_with_run(&[]);
    let copy = |name: &str| {
        copy_dir(&sandbox.path("run"), &sandbox.path(name));
        sandbox.path(name)
    };
    // Stopped before its first step.
    let first = copy("first");
    for name in ["result.json", "checkpoints/step-00000004", "checkpoints/step-00000008"] {
        let path = first.join(name);
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
    for name in ["metrics.jsonl", "timing.jsonl"] {
        fs::write(first.join(name), "").unwrap();
    }
    let (page, data) = report(&sandbox, &["first"]);
    assert_eq!((&data["runs"][0]["state"], &data["runs"][0]["epochs_done"]), (&"stopped".into(), &0.into()));
    assert!(page.contains("No epoch is done yet") && page.contains("none yet"));
    assert!(data["runs"][0]["images"]["confusion"].is_array());

    // The last line is being written, and a loss is not finite.
    let half = copy("half");
    let metrics = read(&sandbox, "run/metrics.jsonl");
    let (first_line, second) = metrics.split_once('\n').unwrap();
    let mut epoch: Value = serde_json::from_str(first_line).unwrap();
    epoch["train"]["loss"] = Value::Null;
    epoch["losses"]["student"]["total"] = Value::Null;
    fs::write(half.join("metrics.jsonl"), format!("{epoch}\n{}", &second[..second.len() / 2])).unwrap();
    fs::remove_file(half.join("result.json")).unwrap();
    let (_, data) = report(&sandbox, &["half"]);
    let run = &data["runs"][0];
    assert_eq!((&run["state"], &run["epochs_done"]), (&"stopped".into(), &1.into()));
    assert!(run["metrics"][0]["train"]["loss"].is_null() && run["test"]["top1"].is_f64());

    // Without curves, without checkpoints, and with a result that is none.
    let bare = copy("bare");
    fs::remove_file(bare.join("metrics.jsonl")).unwrap();
    fs::remove_dir_all(bare.join("checkpoints")).unwrap();
    fs::write(bare.join("result.json"), "{").unwrap();
    let (page, data) = report(&sandbox, &["bare"]);
    let notes = data["runs"][0]["notes"].as_array().unwrap();
    assert_eq!(notes.len(), 3, "{notes:?}");
    assert!(page.contains("metrics.jsonl is missing: there are no curves"));
    assert!(page.contains("no checkpoint is looked at"));

    // What cannot be read is one error.
    let damaged = copy("damaged");
    fs::write(damaged.join("metrics.jsonl"), format!("{{}}\n{metrics}")).unwrap();
    let outcome = sandbox.run(&["report", "damaged"]);
    assert_eq!((outcome.code, outcome.stderr.lines().count()), (Some(4), 1), "{}", outcome.stderr);
    assert!(
        outcome.stderr.contains("metrics.jsonl") && outcome.stderr.contains("line 1:"),
        "{}",
        outcome.stderr
    );
    let outcome = sandbox.run(&["report", "nowhere"]);
    assert_eq!((outcome.code, outcome.stderr.lines().count()), (Some(4), 1), "{}", outcome.stderr);
    let outcome = sandbox.run(&["report", "run/checkpoints/step-00000008"]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
}

#[test]
fn images_that_are_gone_are_a_line() {
    let sandbox = Sandbox::new();
    for (class, color) in [("cat & <dog>", [200u8, 10, 10]), ("owl", [10, 10, 200])] {
        for (part, n) in [("train", 8), ("val", 3)] {
            let folder = sandbox.path("images").join(part).join(class);
            fs::create_dir_all(&folder).unwrap();
            for number in 0..n {
                let pixels =
                    (0..16 * 16).flat_map(|i| color.map(|value| value + ((i * 7 + number) % 32) as u8));
                let dimensions = Dimensions { width: 16, height: 16 };
                let picture = Picture { dimensions, channels: 3, pixels: pixels.collect() };
                fs::write(folder.join(format!("{number}.png")), picture.to_png()).unwrap();
            }
        }
    }
    let recipe = "schema = 1\nname = \"mine\"\n[data]\ndataset = \"folder\"\nsize = 16\nbatch_size = 4\n[model]\n\
                  family = \"preresnet\"\ndepth = 8\nwidth = 0.25\n[quantization]\nmethod = \"lsq\"\nweight_bits = 2\n\
                  act_bits = 2\n[train]\nepochs = 1\nlearning_rate = 0.05\n";
    fs::write(sandbox.path("mine.toml"), recipe).unwrap();
    succeeds(&sandbox.run(&["train", "-q", "mine.toml", "--data-dir", "images", "--out", "run"]));
    let (page, data) = report(&sandbox, &["run"]);
    assert_eq!(data["runs"][0]["images"]["n_images"], 6);
    assert!(page.contains("cat &amp; &lt;dog&gt;"), "classes have the names of their folders");

    // Other images are not those that it was tested on.
    fs::remove_file(sandbox.path("images/val/owl/0.png")).unwrap();
    let (page, data) = report(&sandbox, &["run"]);
    assert!(page.contains("those that were found are not those that the run is tested on"));
    assert!(data["runs"][0]["images"].is_null());
    fs::rename(sandbox.path("images"), sandbox.path("moved")).unwrap();
    let (page, data) = report(&sandbox, &["run"]);
    assert!(page.contains("no image is looked at: ") && page.contains("id=\"curves\""));
    assert_eq!(data["runs"][0]["notes"].as_array().unwrap().len(), 1);
}

#[test]
fn only_a_report_is_replaced() {
    let sandbox = sandbox_with_run(&[]);
    fs::write(sandbox.path("notes.html"), "<p>mine</p>").unwrap();
    let outcome = sandbox.run(&["report", "run", "-o", "notes.html"]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    assert_eq!(
        outcome.stderr,
        "error: notes.html is there and is no report: choose another file with --out\n"
    );
    assert_eq!(read(&sandbox, "notes.html"), "<p>mine</p>");
    for args in [
        &["report", "run", "--no-images", "-o", "a"][..],
        &["report", "run", "--no-images", "-o", "a", "--json"],
    ] {
        for _ in 0..2 {
            let outcome = sandbox.run(args);
            succeeds(&outcome);
            assert!(outcome.stdout.starts_with("a: 1 run, "), "{}", outcome.stdout);
        }
    }
    let data: Value = serde_json::from_str(&read(&sandbox, "a")).unwrap();
    assert_eq!(data["runs"][0]["name"], "run");
    let outcome = sandbox.run(&["report", "run", "--no-images", "-o", "no/such/folder.html"]);
    assert_eq!(outcome.code, Some(1), "{}", outcome.stderr);
}

#[test]
fn several_runs_are_side_by_side() {
    let sandbox = sandbox_with_run(&["--set", "seed=1"]);
    let two = ["--set", "train.epochs=2", "--set", "checkpoint.keep_last=30"];
    train(&sandbox, "other", &[&two[..], &["--set", "seed=2"]].concat());
    train(&sandbox, "four", &[&two[..], &["--set", "quantization.act_bits=4"]].concat());
    fs::create_dir(sandbox.path("deep")).unwrap();
    train(&sandbox, "deep/run", &[&two[..], &["--set", "seed=3"]].concat());
    let (page, data) = report(&sandbox, &["run", "other", "four", "deep/run"]);
    let comparison = &data["comparison"];
    let names: Vec<&Value> = data["runs"].as_array().unwrap().iter().map(|run| &run["name"]).collect();
    assert_eq!(names, ["run", "other", "four", "deep/run"], "runs of the same name have their paths");
    let group = &comparison["groups"][0];
    assert_eq!(group["runs"], serde_json::json!([0, 1, 3]));
    let top1: Vec<f64> =
        [0, 1, 3].iter().map(|&i| data["runs"][i as usize]["test"]["top1"].as_f64().unwrap()).collect();
    let mean = top1.iter().sum::<f64>() / 3.0;
    let deviation = (top1.iter().map(|top1| (top1 - mean).powi(2)).sum::<f64>() / 2.0).sqrt();
    assert!((group["top1"]["mean"].as_f64().unwrap() - mean).abs() < 1e-12);
    let interval = 4.302653 * deviation / 3f64.sqrt();
    assert!((group["top1"]["interval"].as_f64().unwrap() - interval).abs() < 1e-6);
    assert!(page.contains("Over seeds") && page.contains("quantization.act_bits"));
    assert!(page.contains("<h2>Precision of layers</h2>"));
    // The same comparison.
    let mut compared = sandbox.json(&["compare", "run", "other", "four", "deep/run"]);
    for (i, name) in ["run", "other", "four", "deep/run"].iter().enumerate() {
        compared["runs"][i]["name"] = (*name).into();
    }
    assert_eq!(&compared, comparison);
    let keys: Vec<&Value> = compared["recipe"].as_array().unwrap().iter().map(|key| &key["key"]).collect();
    assert_eq!(keys, ["quantization.act_bits", "seed"]);
    assert_eq!(compared["recipe"][0]["values"], serde_json::json!(["2", "2", "4", "2"]));
    assert!(compared["layers"].as_array().unwrap().len() > 4);
    assert_eq!(compared["layers"][0]["bits"][0], compared["layers"][0]["bits"][1]);
}

/// What differs from run to run and from machine to machine.
const FILTERS: [(&str, &str); 4] = [
    (r"\d+\.\d+%( \(test\))? *", "[PERCENT] "),
    (r"loss +\d.*", "loss [LOSSES]"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ *", "[DATE] "),
    (r"\b\d+:\d\d\b *", "[TIME] "),
];

fn check(name: &str, outcome: &Outcome) {
    let Outcome { code, stdout, stderr } = outcome;
    let code = code.map_or("none".into(), |code| code.to_string());
    let text = format!("exit code {code}\n--- stdout\n{stdout}--- stderr\n{stderr}");
    insta::with_settings!({ filters => FILTERS, omit_expression => true, prepend_module_to_snapshot => false }, {
        insta::assert_snapshot!(name, text);
    });
}

#[test]
fn runs_are_compared_in_a_table() {
    let sandbox = sandbox_with_run(&[]);
    let args = ["--set", "train.epochs=2", "--set", "strategy.joint={}", "--set", "quantization.act_bits=4"];
    train(&sandbox, "joint", &args);
    check("compare", &sandbox.run(&["compare", "run", "joint"]));
    let outcome = sandbox.run(&["compare", "run"]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    let outcome = sandbox.run(&["compare", "run", "nowhere"]);
    assert_eq!(outcome.code, Some(4), "{}", outcome.stderr);
}

#[test]
fn a_list_has_a_line_for_every_run() {
    let sandbox = sandbox_with_run(&[]);
    fs::create_dir_all(sandbox.path("runs/older/deep")).unwrap();
    fs::write(sandbox.path("runs/file"), "").unwrap();
    copy_dir(&sandbox.path("run"), &sandbox.path("runs/b"));
    copy_dir(&sandbox.path("run"), &sandbox.path("runs/older/deep/a"));
    fs::remove_file(sandbox.path("runs/older/deep/a/result.json")).unwrap();
    copy_dir(&sandbox.path("run"), &sandbox.path("runs/broken"));
    fs::write(sandbox.path("runs/broken/recipe.toml"), "schema = ").unwrap();
    check("list", &sandbox.run(&["list"]));
    let list = sandbox.json(&["list", "runs"]);
    let of = |key: &str| -> Vec<Value> {
        list["runs"].as_array().unwrap().iter().map(|run| run[key].clone()).collect()
    };
    assert_eq!(of("name"), ["b", "broken", "older/deep/a"]);
    assert_eq!(of("state"), ["finished", "damaged", "stopped"]);
    assert!(list["runs"][1]["problem"].as_str().unwrap().contains("recipe.toml"));
    assert_eq!(list["runs"][0]["test"], list["runs"][2]["test"], "with a result and without");

    // In any order; what has no value is last.
    let names = |args: &[&str]| -> Vec<String> {
        let list = sandbox.json(&[&["list", "runs"], args].concat());
        list["runs"].as_array().unwrap().iter().map(|run| run["name"].as_str().unwrap().into()).collect()
    };
    assert_eq!(names(&["--reverse"]), ["older/deep/a", "broken", "b"]);
    assert_eq!(names(&["--sort", "state"]), ["older/deep/a", "b", "broken"]);
    for args in [&["--sort", "top1"][..], &["--sort", "top1", "--reverse"], &["--sort", "seconds"]] {
        assert_eq!(names(args)[2], "broken", "{args:?}");
    }
    assert_eq!(sandbox.json(&["list", "run"])["runs"][0]["name"], "run", "a run is a list of one");
    fs::create_dir(sandbox.path("empty")).unwrap();
    assert_eq!(sandbox.run(&["list", "empty"]).stdout, "no runs in empty\n");
    let outcome = sandbox.run(&["list", "nowhere"]);
    assert_eq!(outcome.code, Some(4), "{}", outcome.stderr);
}

#[test]
fn a_run_in_training_is_one() {
    let sandbox = Sandbox::new();
    let args = ["train", "-q", "--out", "runs/now", "--set", "checkpoint.every_steps=1"];
    let args = [&args[..], &TINY, &["--set", "train.epochs=3000"]].concat();
    let mut child = sandbox.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    let metrics = sandbox.path("runs/now/metrics.jsonl");
    while fs::metadata(&metrics).map_or(0, |metadata| metadata.len()) == 0 {
        assert!(Instant::now() < deadline, "no epoch is done");
        std::thread::sleep(Duration::from_millis(5));
    }
    let state = || sandbox.json(&["list"])["runs"][0]["state"].clone();
    let seen = state();
    let (page, data) = report(&sandbox, &["runs/now"]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!((seen, &data["runs"][0]["state"]), ("training".into(), &"training".into()));
    assert!(page.contains("in training now"));
    assert_eq!(state(), "stopped");
}

/// A list of many runs is no work: their checkpoints are not read, nor are the metrics of finished ones.
#[test]
fn a_list_reads_little() {
    let sandbox = sandbox_with_run(&[]);
    for name in ["metrics.jsonl", "timing.jsonl", "checkpoints"] {
        let path = sandbox.path("run").join(name);
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }
    assert_eq!(sandbox.json(&["list", "run"])["runs"][0]["state"], "finished");
    assert!(Path::new(&sandbox.path("run/result.json")).exists());
}

/// A copy of a run, or a second training of its seed, says nothing about other seeds.
#[test]
fn an_interval_is_over_seeds_and_not_over_copies() {
    let sandbox = sandbox_with_run(&[]);
    copy_dir(&sandbox.path("run"), &sandbox.path("copy"));
    let compared = sandbox.json(&["compare", "run", "copy"]);
    assert_eq!(compared["groups"], Value::Array(Vec::new()));
    train(
        &sandbox,
        "other",
        &["--set", "train.epochs=2", "--set", "checkpoint.keep_last=30", "--set", "seed=1"],
    );
    let compared = sandbox.json(&["compare", "run", "copy", "other"]);
    assert_eq!(compared["groups"][0]["runs"], serde_json::json!([0, 2]));
    assert_eq!(compared["groups"][0]["top1"]["n"], 2);
}
