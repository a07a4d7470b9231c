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
}

/// What was read is in the first checkpoint: from then on, the file may go. Before, it is read again, and has to be the same.
#[test]
fn the_file_may_go_once_there_is_a_checkpoint() {
    let sandbox = Sandbox::new();
    let init = sandbox.path("init.pth");
    fs::copy(golden("legacy.pth"), &init).unwrap();
    let outcome =
        train(&sandbox, &init, &["train.epochs=2", "checkpoint.every_steps=1", "checkpoint.keep_last=9"]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let loss = || -> Value {
        serde_json::from_slice::<Value>(&fs::read(sandbox.path("run/result.json")).unwrap()).unwrap()["loss"]
            .clone()
    };
    let (expected, whole) = (loss(), sandbox.path("whole"));
    common::copy_dir(&sandbox.path("run"), &whole);

    fs::remove_file(&init).unwrap();
    let resumed = sandbox.run(&["train", "-q", "--resume", "run", "--checkpoint", "step-00000001"]);
    assert_eq!((resumed.code, loss()), (Some(0), expected.clone()), "{}", resumed.stderr);

    // As a kill leaves it before its first checkpoint.
    let begin_anew = || {
        fs::remove_dir_all(sandbox.path("run")).unwrap();
        common::copy_dir(&whole, &sandbox.path("run"));
        fs::remove_dir_all(sandbox.path("run/checkpoints")).unwrap();
        fs::create_dir(sandbox.path("run/checkpoints")).unwrap();
        fs::remove_file(sandbox.path("run/result.json")).unwrap();
        for name in ["metrics.jsonl", "timing.jsonl"] {
            fs::write(sandbox.path("run").join(name), "").unwrap();
        }
    };
    begin_anew();
    let gone = sandbox.run(&["train", "-q", "--resume", "run"]);
    assert!(gone.code == Some(4) && gone.stderr.contains("init.pth"), "{}", gone.stderr);
    // The same weights in another container: nothing tells that they are the same.
    fs::copy(golden("zip.pth"), &init).unwrap();
    let other = sandbox.run(&["train", "-q", "--resume", "run"]);
    assert!(other.code == Some(4) && other.stderr.contains("init.pth"), "{}", other.stderr);
    fs::copy(golden("legacy.pth"), &init).unwrap();
    let resumed = sandbox.run(&["train", "-q", "--resume", "run"]);
    assert_eq!((resumed.code, loss()), (Some(0), expected), "{}", resumed.stderr);
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

/// A teacher that is not trained cannot learn another classifier.
#[test]
fn a_frozen_teacher_for_other_classes_is_refused() {
    let sandbox = Sandbox::new();
    let path = golden("zip.pth");
    let teacher =
        format!("strategy.joint={{mode=\"frozen\",teacher={{init={:?}}}}}", path.display().to_string());
    let expected =
        "is for 5 classes, this network for 10, and is not trained: its new classifier fc would stay";
    refuses(&sandbox, &path, &[&teacher], &["error: strategy.joint.teacher.init: weights ", expected]);
}

/// What `lowbit import` says of every container.
#[test]
fn import_shows_what_is_in_a_file() {
    let sandbox = Sandbox::new();
    for (name, container, n_tensors) in [
        ("zip.pth", "pytorch-zip", 122),
        ("legacy.pth", "pytorch-legacy", 123),
        ("tar.pth", "pytorch-tar", 122),
        ("mixed.pth", "pytorch-legacy", 122),
    ] {
        let path = golden(name);
        let path = path.to_str().unwrap();
        let report = sandbox.json(&["import", path]);
        assert_eq!(report["container"], container, "{name}");
        assert_eq!(report["n_tensors"], n_tensors, "{name}");
        let model = json!({ "family": "resnet", "layout": "imagenet", "depth": 18, "width": 0.015625, "stem_stride": 2 });
        assert_eq!(report["fits"][0]["model"], model, "{name}");
        assert_eq!(report["fits"][0]["classes"], 5, "{name}");
        assert_eq!(report["left_out"].as_array().map(Vec::len), Some(n_tensors - 102), "{name}");
        let tensors = report["tensors"].as_array().unwrap();
        assert!(tensors[1]["name"].as_str().unwrap().ends_with("bn1.weight"), "{name}: {}", tensors[1]);
        assert_eq!(tensors[1]["becomes"], "bn1.gamma", "{name}");
    }
    let path = golden("zip.pth");
    let path = path.to_str().unwrap();
    let shown = sandbox.run(&["import", path]);
    assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    let fits = "fits       model.family=\"resnet\", model.layout=\"imagenet\", model.depth=18, model.width=0.015625 for images of \
                1 channel, 5 classes\n";
    assert!(shown.stdout.contains(fits), "{}", shown.stdout);
    let mut recipe = vec!["import", path, "--recipe", "digits-preresnet8-w2a2"];
    recipe.extend(MODEL.iter().flat_map(|setting| ["--set", setting]));
    let report = sandbox.json(&recipe);
    assert_eq!(report["new_classifier"], json!({ "layer": "fc", "file_classes": 5, "classes": 10 }));
    let refused = sandbox.run(&["import", path, "--model", "resnet34"]);
    assert_eq!(refused.code, Some(4), "{}", refused.stdout);
    assert!(refused.stderr.contains("it lacks 80 tensors ("), "{}", refused.stderr);
    // The line has the first few; JSON has all.
    let misfit = sandbox.json_of(&["import", path, "--model", "resnet34"], 4);
    let missing = misfit["misfit"]["missing"].as_array().unwrap();
    assert!(missing.len() == 80 && missing.contains(&json!("layer3.5.bn2.weight")), "{missing:?}");
    assert_eq!(misfit["left_out"], json!([]));
    assert_eq!(sandbox.run(&["import", path, "--set", "seed=1"]).code, Some(2));
}

/// What is exported is taken again, bit for bit.
#[test]
fn export_and_import_are_inverse() {
    let sandbox = Sandbox::new();
    let outcome = train(&sandbox, &golden("zip.pth"), &["quantization.method=\"lsq\""]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let report = sandbox.json(&["export", "run", "--out", "a.safetensors"]);
    assert_eq!((&report["n_tensors"], &report["format"]), (&json!(102), &json!("safetensors")));
    assert!(report["n_left_out"].as_u64().is_some_and(|n| n > 0), "{report}");
    let said = sandbox.run(&["export", "run", "--out", "b.safetensors"]);
    assert!(said.stderr.contains("not the quantizers of the run (W2A2)"), "{}", said.stderr);
    let other = "torchvision has no such network (resnet in layout imagenet, width 0.015625, stride 2 of the first layer)";
    assert!(said.stderr.contains(other), "{}", said.stderr);
    let names: Vec<String> = sandbox.json(&["import", "a.safetensors"])["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tensor| tensor["name"].as_str().unwrap().to_string())
        .collect();
    // By the names that PyTorch's own file has.
    let expected: Vec<String> = sandbox.json(&["import", golden("zip.pth").to_str().unwrap()])["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tensor| tensor["name"].as_str().unwrap().to_string())
        .filter(|name| !name.ends_with("num_batches_tracked"))
        .collect();
    assert_eq!(names, expected);
    // A training that begins with it begins with the same weights.
    fs::rename(sandbox.path("run"), sandbox.path("first")).unwrap();
    let settings = ["train.learning_rate=1e-30", "train.weight_decay=0.0", "quantization.method=\"lsq\""];
    let outcome = train(&sandbox, &sandbox.path("a.safetensors"), &settings);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    sandbox.json(&["export", "run", "--checkpoint", "step-00000000", "--out", "b2.safetensors"]);
    let bytes = |name: &str| fs::read(sandbox.path(name)).unwrap();
    assert!(bytes("a.safetensors") == bytes("b2.safetensors"));
    let refused = sandbox.run(&["export", "run", "--out", "a.safetensors"]);
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("a.safetensors exists and is never overwritten"), "{}", refused.stderr);
}

/// A ZIP archive of entries that are not compressed, or said to be (method 8) or to have another length.
fn zip(entries: &[(&str, &[u8], u16, Option<u32>)]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, content, method, length) in entries {
        let stored = content.len() as u32;
        let mut fields = Vec::new();
        for field in [20u16, 0, *method, 0, 0] {
            fields.extend(field.to_le_bytes());
        }
        for field in [0u32, stored, length.unwrap_or(stored)] {
            fields.extend(field.to_le_bytes());
        }
        fields.extend((name.len() as u16).to_le_bytes());
        fields.extend([0; 2]);
        directory.extend([b"PK\x01\x02\x14\x00".as_slice(), &fields, &[0; 10]].concat());
        directory.extend((bytes.len() as u32).to_le_bytes());
        directory.extend(name.as_bytes());
        bytes.extend([b"PK\x03\x04".as_slice(), &fields, name.as_bytes(), content].concat());
    }
    let start = bytes.len() as u32;
    bytes.extend(&directory);
    bytes.extend(b"PK\x05\x06\0\0\0\0");
    bytes.extend([entries.len() as u16, entries.len() as u16].map(u16::to_le_bytes).concat());
    bytes.extend([directory.len() as u32, start].map(u32::to_le_bytes).concat());
    bytes.extend([0; 2]);
    bytes
}

/// A pickle that calls a function of a module with a text.
const CALL: &[u8] = b"\x80\x02cposix\nsystem\nX\x0c\x00\x00\x00touch hacked\x85R.";

/// A state of one tensor, `conv1.weight`, of float32 by `sides` with storage `numel`.
fn state(sides: &[u32], numel: u32) -> Vec<u8> {
    let text = |text: &str| [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let number = |n: u32| [b"J".as_slice(), &n.to_le_bytes()].concat();
    let tuple = |sides: &[u32]| {
        [b"(".to_vec(), sides.iter().flat_map(|n| number(*n)).collect(), b"t".to_vec()].concat()
    };
    let strides = vec![0; sides.len()];
    let storage =
        [&text("storage")[..], b"ctorch\nFloatStorage\n", &text("0"), &text("cpu"), &number(numel), b"tQ"]
            .concat();
    let tensor = [
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &storage[..],
        &number(0),
        &tuple(sides),
        &tuple(&strides),
        b"\x89}tR",
    ];
    [b"\x80\x02}", &text("conv1.weight")[..], &tensor.concat(), b"s."].concat()
}

fn legacy(object: &[u8]) -> Vec<u8> {
    let start = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.";
    let system = b"\x80\x02}X\x0d\x00\x00\x00little_endian\x88s.";
    [start.as_slice(), system, object, b"\x80\x02]."].concat()
}

/// A plain tar archive, or one whose entries are of another kind.
fn tar(entries: &[(&str, &[u8])], kind: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, content) in entries {
        let mut header = vec![0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        header[148..156].copy_from_slice(b"        ");
        header[156] = kind;
        header[257..265].copy_from_slice(b"ustar  \0");
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes.extend(header);
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.extend(vec![0; 1024]);
    bytes
}

/// Files that were made to do harm, and what is left of others: a line each, and little memory.
#[test]
fn hostile_files_are_told_in_a_line() {
    let sandbox = Sandbox::new();
    let whole = |name: &str| fs::read(golden(name)).unwrap();
    let pickle = |bytes: &[u8]| zip(&[("a/data.pkl", bytes, 0, None)]);
    let many = [b"\x80\x02".as_slice(), &vec![b'N'; 1_000_001], b"."].concat();
    let nested = [b"\x80\x02".as_slice(), &vec![b']'; 900_000], &vec![b'a'; 899_999], b"."].concat();
    // Used again and again: the reader copies what it remembers.
    let again = |first: &[u8], n: usize| {
        [b"\x80\x02](".as_slice(), first, b"q\x00", &b"h\x00".repeat(n), b"e."].concat()
    };
    let class_of_a_megabyte =
        again(&[b"ctorch\n".as_slice(), &vec![b'N'; 1_000_000], b"\n"].concat(), 60_000);
    let many_sides = again(&[b"(".as_slice(), &b"K\x01".repeat(300_001), b"t"].concat(), 60_000);
    let key = [b"X".as_slice(), &1_000_000_u32.to_le_bytes(), &vec![b'k'; 1_000_000]].concat();
    let long_key = again(&key, 60_001);
    // Source code counts once it is taken from the memory: the tuple of a class remembers it, and what follows uses it as names.
    let source = |after: &[u8]| {
        let text = |text: &[u8]| [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text].concat();
        let class = [&text(b"module")[..], b"ca\nb\nq\x01", &text(b"a.py"), &text(&vec![b'c'; 1_000_000])];
        legacy(&[b"\x80\x02]((", &class.concat()[..], b"q\x00tQ", after, b"e."].concat())
    };
    let long_source = source(&b"h\x00".repeat(60_001));
    let cut_source = source(&[b"(".as_slice(), &b"h\x01".repeat(60_001), b"t0"].concat());
    // The same by places of the memory that are written twice: that of the tag, that of the class, and a class that is none.
    let text = |text: &[u8]| [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text].concat();
    let long = text(&vec![b'c'; 1_000_000]);
    let twice = |class: &[u8], put: &[u8], after: &[u8]| {
        let start = [b"(", &text(b"module")[..], b"q\x01", class].concat();
        legacy(&[b"\x80\x02](", &start[..], &text(b"a.py"), &long, put, b"tQ", after, b"e."].concat())
    };
    let tag_twice = twice(b"ca\nb\nq\x02", b"q\x01", &b"(h\x01t0".repeat(60_001));
    let class_twice = twice(b"ca\nb\nq\x02", b"q\x02", &b"h\x02".repeat(60_001));
    let no_class =
        twice(b"ca\nb\nq\x02", b"q\x03", &[&b"(h\x01h\x03NtQ"[..], &b"h\x02".repeat(60_001)].concat());
    // A list in itself.
    let cyclic = b"\x80\x02]q\x00h\x00a.".to_vec();
    let header = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let huge = r#"{"conv1.weight":{"dtype":"F32","shape":[4611686018427387904,8],"data_offsets":[0,16]}}"#;
    let long = r#"{"conv1.weight":{"dtype":"F32","shape":[1,1,7,7],"data_offsets":[0,196]}}"#;
    let integers = r#"{"conv1.weight":{"dtype":"I8","shape":[2],"data_offsets":[0,2]}}"#;
    let lists =
        [&b"\x80\x02K\x01."[..], b"\x80\x02K\x00X\x03\x00\x00\x00cpuctorch\nFloatStorage\n\x87.", &[0xff; 8]]
            .concat();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("empty.pth", Vec::new(), "it is an empty file, expected a checkpoint of PyTorch"),
        ("page.pth", b"<!DOCTYPE html><html>".to_vec(), "it is a web page, expected"),
        ("lfs.pth", b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "Git LFS"),
        ("plain.pth", CALL.to_vec(), "is of a kind that is not known, expected"),
        ("call.pth", pickle(CALL), "no file of weights: "),
        ("call-legacy.pth", legacy(CALL), "no file of weights: "),
        ("cut.pth", whole("zip.pth")[..20_000].to_vec(), "its ZIP archive: "),
        ("cut-legacy.pth", whole("legacy.pth")[..29_000].to_vec(), "extends beyond the end of the file"),
        ("cut-tar.pth", whole("tar.pth")[..20_000].to_vec(), "it is damaged, or no file of weights: "),
        (
            "bomb.pth",
            zip(&[("a/data.pkl", b"\x03\x00", 8, Some(1 << 30))]),
            "is compressed, which PyTorch never does",
        ),
        (
            "script.pth",
            zip(&[("a/constants.pkl", b"", 0, None)]),
            "it is a program in TorchScript: save the weights",
        ),
        ("names.pth", pickle(&class_of_a_megabyte), "the name of a class in it has more than 1024 bytes"),
        ("sides.pth", pickle(&many_sides), "a tensor has 300001 sides, expected at most 64"),
        ("keys.pth", pickle(&long_key), "its pickles use 60001 values under names of up to 1000000 bytes"),
        ("source.pth", long_source, "its pickles use 60002 values under names of up to 1000004 bytes"),
        ("tag-twice.pth", tag_twice, "under names of up to 1000004 bytes"),
        ("class-twice.pth", class_twice, "under names of up to 1000004 bytes"),
        ("no-class.pth", no_class, "under names of up to 1000004 bytes"),
        ("no-source.pth", cut_source, "Expected a dictionary at the root of the PyTorch file, found list"),
        (
            "strides.pth",
            pickle(&state(&[1 << 16, 1 << 12], 1)),
            "its tensor conv1.weight has 1073741824 bytes, the file 261",
        ),
        ("many.pth", pickle(&many), "its pickles have more than 1000000 operations"),
        ("many-legacy.pth", legacy(&many), "its pickles have more than 1000000 operations"),
        ("many-tar.pth", tar(&[("pickle", &many)], b'0'), "its pickles have more than 1000000 operations"),
        ("nested.pth", pickle(&nested), "it is damaged, or no file of weights: "),
        ("cyclic.pth", pickle(&cyclic), "it is damaged, or no file of weights: "),
        (
            "huge.pth",
            pickle(&state(&[i32::MAX as u32, i32::MAX as u32, 8], 1)),
            "it is damaged, or no file of weights: ",
        ),
        ("wide.pth", pickle(&state(&[i32::MAX as u32, 16], 1)), "above the 10737418240 byte limit"),
        ("absent.pth", pickle(&state(&[2, 2], 4)), "it is of another network: it lacks 101 tensors ("),
        ("sparse.pth", tar(&[("storages", b"")], b'S'), "its TAR archive: "),
        ("link.pth", tar(&[("storages", b"")], b'2'), "its TAR archive has an entry that is no plain file"),
        ("storage.pth", tar(&[("storages", &lists)], b'0'), "it ends too early"),
        ("huge.safetensors", header(huge), "no file of weights: "),
        (
            "header.safetensors",
            [&u64::MAX.to_le_bytes()[..], b"{"].concat(),
            "its list of tensors has 18446744073709551615 bytes",
        ),
        ("short.safetensors", [header(long), vec![0; 190]].concat(), "bytes, by its list of tensors"),
        ("integers.safetensors", [header(integers), vec![0; 2]].concat(), "it is of another network: "),
    ];
    for (name, bytes, expected) in &cases {
        fs::write(sandbox.path(name), bytes).unwrap();
        refuses(&sandbox, &sandbox.path(name), &[], &["error: init: weights ", name, expected]);
        let mut limited = std::process::Command::new("sh");
        let command = format!("ulimit -v 2500000; exec {} import {name} --model resnet18", common::LOWBIT);
        let outcome =
            Outcome::of(&limited.args(["-c", &command]).current_dir(sandbox.path("")).output().unwrap());
        assert_eq!(outcome.code, Some(4), "{name}: {}", outcome.stderr);
        assert_eq!(outcome.stderr.trim_end().lines().count(), 1, "{name}: {}", outcome.stderr);
    }
    assert!(!sandbox.path("hacked").exists());
    let missing = "missing.pth: it cannot be read: no such file or directory";
    refuses(&sandbox, &sandbox.path("missing.pth"), &[], &[missing]);
    let fifo = sandbox.path("fifo.pth");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    refuses(&sandbox, &fifo, &[], &["it is a FIFO, expected a regular file"]);
}

/// A tensor whose numbers are not all finite, or of integers.
#[test]
fn numbers_that_are_none_are_refused() {
    let sandbox = Sandbox::new();
    let path = golden("zip.pth");
    let outcome =
        train(&sandbox, &path, &["quantization.weight_bits=\"fp32\"", "quantization.act_bits=\"fp32\""]);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    sandbox.json(&["export", "run", "--out", "a.safetensors"]);
    fs::remove_dir_all(sandbox.path("run")).unwrap();
    let bytes = fs::read(sandbox.path("a.safetensors")).unwrap();
    let n = bytes.len();
    let infinite = [&bytes[..n - 4], &f32::INFINITY.to_le_bytes()].concat();
    fs::write(sandbox.path("infinite.safetensors"), infinite).unwrap();
    let refused = "has a value that is not finite in single precision";
    refuses(&sandbox, &sandbox.path("infinite.safetensors"), &[], &[refused]);
    let place = bytes.windows(5).position(|window| window == b"\"F32\"").unwrap();
    let integers = [&bytes[..place], b"\"I32\"", &bytes[place + 5..]].concat();
    fs::write(sandbox.path("integers.safetensors"), integers).unwrap();
    refuses(&sandbox, &sandbox.path("integers.safetensors"), &[], &["has type int32, expected float32"]);
}
