//! The header is that of the source, and programs in C get from the library what Rust gets from the runtime.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::ffi::OsString;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use lowbit_runtime::{Model, samples};
use tempfile::TempDir;

/// This package.
const PACKAGE: &str = env!("CARGO_MANIFEST_DIR");

/// Switches for the compiler: no warning is let through.
const STRICT: [&str; 5] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1"];

/// What a static library of Rust needs of the system, as `rustc --print native-static-libs` says.
const SYSTEM: [&str; 3] = ["-lpthread", "-ldl", "-lm"];

#[derive(Clone, Copy, Debug)]
enum Library {
    Shared,
    Static,
}

/// Says on the terminal that a test does nothing here; with `LOWBIT_NO_SKIP=1`, as in continuous integration, that is a failure.
fn skip(what: &str) {
    let must_run = std::env::var_os("LOWBIT_NO_SKIP").is_some_and(|value| value == "1");
    assert!(!must_run, "cannot be skipped: {what}");
    // Nothing depends on it.
    let _is_shown = std::io::stderr().write_all(format!("skipped: {what}\n").as_bytes());
}

/// Runs a compiler, whose arguments must be right. Whether there is one.
fn compile(compiler: &str, arguments: &[OsString]) -> bool {
    if cfg!(not(unix)) {
        skip("a C program is compiled on Unix only");
        return false;
    }
    match Command::new(compiler).args(STRICT).args(arguments).output() {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            skip(&format!("no program in C or C++ is tested: there is no compiler {compiler:?}"));
            false
        }
        Err(error) => panic!("{compiler} does not start: {error}"),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success() && said.is_empty(), "{compiler} {arguments:?}:\n{said}");
            true
        }
    }
}

/// Compiles a program in C99 and links it to the library, which cargo puts beside the tests. `None` if there is no compiler.
fn program(source: &str, library: Library, dir: &Path) -> Option<PathBuf> {
    let test = std::env::current_exe().expect("this program has a path");
    let libraries = test.parent().expect("invariant: a program lies in a directory");
    let file = match library {
        Library::Shared => format!("{DLL_PREFIX}lowbit_capi{DLL_SUFFIX}"),
        Library::Static => "liblowbit_capi.a".into(),
    };
    let library_path = libraries.join(file);
    assert!(library_path.is_file(), "cargo has not made {}", library_path.display());
    let program = dir.join(format!("{library:?}"));
    // At run time, the shared library is looked for where it was found.
    let mut rpath = OsString::from("-Wl,-rpath,");
    rpath.push(libraries);
    let mut arguments: Vec<OsString> =
        vec!["-std=c99".into(), "-I".into(), Path::new(PACKAGE).join("include").into()];
    arguments.extend([Path::new(PACKAGE).join(source).into(), library_path.into(), rpath]);
    arguments.extend(SYSTEM.map(Into::into));
    arguments.extend(["-o".into(), program.clone().into()]);
    compile("cc", &arguments).then_some(program)
}

/// A directory with the packed network of the samples.
fn with_model() -> (TempDir, PathBuf, Model) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("small.lowbit");
    fs::write(&path, samples::small().to_bytes().unwrap()).unwrap();
    let model = Model::load(&path).unwrap();
    (dir, path, model)
}

fn run(program: &Path, arguments: &[&Path]) -> Output {
    Command::new(program).args(arguments).output().unwrap()
}

/// The logits that `predict` prints: the first word of each line that is indented.
fn printed_logits(output: &Output) -> Vec<f32> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    let lines = text.lines().filter_map(|line| line.strip_prefix("  "));
    lines.map(|line| line.split_whitespace().next().unwrap().parse().unwrap()).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn a_program_in_c_has_the_logits_of_the_runtime() {
    let (dir, path, model) = with_model();
    let n_values: usize = model.input_shape().iter().product();
    let images: Vec<f32> = (0..3 * n_values).map(|i| (i * 37 % 101) as f32 / 25.0 - 2.0).collect();
    let file = dir.path().join("images.f32");
    fs::write(&file, images.iter().flat_map(|value| value.to_ne_bytes()).collect::<Vec<u8>>()).unwrap();
    let expected = model.run(&images).unwrap();
    let made_up: Vec<f32> = (0..n_values).map(|i| (i * 7919 % 255) as f32 / 64.0 - 2.0).collect();
    for library in [Library::Shared, Library::Static] {
        let Some(predict) = program("examples/predict.c", library, dir.path()) else { return };
        let output = run(&predict, &[&path, &file]);
        assert_eq!(bits(&printed_logits(&output)), bits(&expected), "{library:?}");
        let text = String::from_utf8_lossy(&output.stdout);
        let best = |logits: &[f32]| (0..4).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
        for (image, logits) in expected.chunks(4).enumerate() {
            let class = best(logits);
            let name = &model.network().info.classes[class];
            assert!(text.contains(&format!("image {image}: class {class}, {name}\n")), "{text}");
        }
        let output = run(&predict, &[&path]);
        assert_eq!(bits(&printed_logits(&output)), bits(&model.run(&made_up).unwrap()), "{library:?}");
    }
}

#[test]
fn the_example_says_what_is_wrong() {
    let (dir, path, _) = with_model();
    let Some(predict) = program("examples/predict.c", Library::Shared, dir.path()) else { return };
    let garbage = dir.path().join("garbage");
    fs::write(&garbage, "no model").unwrap();
    let missing = dir.path().join("missing");
    for (arguments, code, expected) in [
        (&[][..], 2, "usage: predict"),
        (&[&missing][..], 1, "predict: model "),
        (&[&garbage], 1, "expected a packed model"),
        (&[&path, &missing], 1, "missing: "),
        (&[&path, &garbage], 1, "garbage: 8 bytes, expected a multiple of 432"),
    ] {
        let output = run(&predict, &arguments.iter().map(|path| path.as_path()).collect::<Vec<_>>());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(
            said.contains(expected) && output.stdout.is_empty() == (code == 2 || arguments.len() == 1),
            "{said}"
        );
    }
}

#[test]
fn wrong_calls_are_answered_and_threads_share_a_model() {
    let (dir, path, _) = with_model();
    let Some(checks) = program("tests/checks.c", Library::Shared, dir.path()) else { return };
    let garbage = dir.path().join("garbage");
    fs::write(&garbage, "no model").unwrap();
    let output = run(&checks, &[&path, &garbage, &dir.path().join("missing")]);
    assert!(output.status.success(), "checks.c: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_header_is_read_by_cpp() {
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("twice.cpp");
    let text = "#include \"lowbit.h\"\n#include \"lowbit.h\"\n\
        int main() { lowbit_model_free(nullptr); return lowbit_version()[0] == 0; }\n";
    fs::write(&source, text).unwrap();
    let include = Path::new(PACKAGE).join("include").into();
    compile("c++", &["-std=c++11".into(), "-I".into(), include, "-fsyntax-only".into(), source.into()]);
}

#[test]
fn the_header_is_made_of_the_source() {
    let package = Path::new(PACKAGE);
    let config = cbindgen::Config::from_file(package.join("cbindgen.toml")).unwrap();
    let bindings =
        cbindgen::Builder::new().with_config(config).with_src(package.join("src/lib.rs")).generate();
    let mut expected = Vec::new();
    bindings.unwrap().write(&mut expected);
    let path = package.join("include/lowbit.h");
    if std::env::var_os("LOWBIT_UPDATE_HEADER").is_some() {
        fs::write(&path, &expected).unwrap();
    }
    let is_same = fs::read(&path).is_ok_and(|header| header == expected);
    assert!(
        is_same,
        "include/lowbit.h is not that of src/lib.rs: run LOWBIT_UPDATE_HEADER=1 cargo test -p lowbit-capi"
    );
}
