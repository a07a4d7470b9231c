//! Rules of the workspace: which crate may depend on which, where a backend may be named, what a crate must have.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    license: Option<String>,
    description: Option<String>,
    publish: Option<Vec<String>>,
    manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
    features: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    /// `None` for a dependency that is no development or build dependency.
    kind: Option<String>,
    features: Vec<String>,
}

impl Package {
    fn dir(&self) -> &Path {
        self.manifest_path.parent().expect("invariant: a manifest lies in a directory")
    }

    fn normal_dependencies(&self) -> impl Iterator<Item = &Dependency> {
        self.dependencies.iter().filter(|dependency| dependency.kind.is_none())
    }
}

/// The packages of the workspace by name.
fn packages() -> BTreeMap<String, Package> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).expect("cargo writes metadata");
    metadata.packages.into_iter().map(|package| (package.name.clone(), package)).collect()
}

/// Crates that each crate may depend on. A new crate needs a line here, and one in the architecture.
const MAY_DEPEND_ON: [(&str, &[&str]); 14] = [
    ("lowbit-core", &[]),
    ("lowbit-cpu", &["lowbit-core"]),
    ("lowbit-data", &["lowbit-core"]),
    ("lowbit-runtime", &["lowbit-core", "lowbit-cpu"]),
    ("lowbit-capi", &["lowbit-runtime"]),
    ("lowbit-kernels", &["lowbit-core", "lowbit-cpu"]),
    ("lowbit-quantizers", &["lowbit-core", "lowbit-kernels"]),
    ("lowbit-models", &["lowbit-core", "lowbit-kernels", "lowbit-quantizers"]),
    ("lowbit-export", &["lowbit-core", "lowbit-quantizers", "lowbit-models", "lowbit-runtime"]),
    ("lowbit-strategies", &["lowbit-core", "lowbit-kernels", "lowbit-quantizers", "lowbit-models"]),
    (
        "lowbit-train",
        &[
            "lowbit-core",
            "lowbit-kernels",
            "lowbit-quantizers",
            "lowbit-models",
            "lowbit-data",
            "lowbit-strategies",
        ],
    ),
    (
        "lowbit-report",
        &["lowbit-core", "lowbit-quantizers", "lowbit-models", "lowbit-data", "lowbit-train", "lowbit-sweep"],
    ),
    (
        "lowbit",
        &[
            "lowbit-core",
            "lowbit-cpu",
            "lowbit-kernels",
            "lowbit-quantizers",
            "lowbit-models",
            "lowbit-data",
            "lowbit-strategies",
            "lowbit-train",
            "lowbit-report",
            "lowbit-runtime",
            "lowbit-export",
            "lowbit-sweep",
        ],
    ),
    ("lowbit-sweep", &[]),
];

/// Crates that a trained model or a data set can be read with, or a network computed, without the training stack.
const WITHOUT_BURN: [&str; 6] =
    ["lowbit-core", "lowbit-cpu", "lowbit-data", "lowbit-runtime", "lowbit-capi", "lowbit-sweep"];

/// Packages whose every backend is the caller's choice. The kernels, which are backends' own, are not among them, nor what knows no burn and
/// computes by the CPU kernels.
const LIBRARIES: [&str; 8] = [
    "lowbit-core",
    "lowbit-export",
    "lowbit-data",
    "lowbit-quantizers",
    "lowbit-models",
    "lowbit-strategies",
    "lowbit-train",
    "lowbit-report",
];

/// Not crates of the product: build automation, and this package.
const TOOLS: [&str; 2] = ["xtask", "lowbit-tests"];

#[test]
fn dependencies_point_down() {
    let packages = packages();
    for (name, allowed) in MAY_DEPEND_ON {
        for Dependency { name: used, .. } in packages[name].normal_dependencies() {
            let is_ours = packages.contains_key(used);
            assert!(!is_ours || allowed.contains(&used.as_str()), "{name} must not depend on {used}");
        }
    }
    for name in packages.keys().filter(|name| !TOOLS.contains(&name.as_str())) {
        assert!(MAY_DEPEND_ON.iter().any(|(known, _)| known == name), "{name} has no rule in {}", file!());
    }
}

#[test]
fn core_cpu_and_data_know_no_burn() {
    let packages = packages();
    for name in WITHOUT_BURN {
        // In tests neither.
        for dependency in &packages[name].dependencies {
            let used = &dependency.name;
            assert!(used != "burn" && !used.starts_with("burn-"), "{name} must not depend on {used}");
        }
    }
}

const BACKENDS: [&str; 13] = [
    "flex", "ndarray", "wgpu", "cuda", "rocm", "metal", "vulkan", "webgpu", "cpu", "cubecl", "cube", "tch",
    "candle",
];

#[test]
fn libraries_name_no_backend_in_their_manifest() {
    let packages = packages();
    for name in LIBRARIES {
        // A library's own tests may choose a backend: development dependencies are not the caller's.
        for Dependency { name: used, features, .. } in packages[name].normal_dependencies() {
            for feature in features {
                let is_backend = BACKENDS.contains(&feature.as_str()) || feature == "default";
                assert!(!used.starts_with("burn") || !is_backend, "{name} asks for {feature} of {used}");
            }
        }
        for (feature, enabled) in &packages[name].features {
            let names_burn = enabled.iter().any(|enabled| enabled.starts_with("burn"));
            let is_backend = BACKENDS.contains(&feature.as_str());
            assert!(!names_burn && !is_backend, "{name} has a feature {feature} = {enabled:?}");
        }
    }
}

#[test]
fn libraries_name_no_backend_in_their_source() {
    let packages = packages();
    let mut n_lines = 0;
    for name in LIBRARIES {
        for path in sources(&packages[name].dir().join("src")) {
            let source = read(&path);
            for (line, text) in code(&source) {
                n_lines += 1;
                let place = format!("{}:{line}: {}", path.display(), text.trim());
                assert!(
                    !text.contains("cfg(feature") && !text.contains("cfg!(feature"),
                    "feature in {place}"
                );
                let named = BACKENDS.iter().find(|backend| names(text, backend));
                assert!(named.is_none(), "backend in {place}");
            }
        }
    }
    assert!(n_lines > 2000, "only {n_lines} lines of code were found");
}

/// Whether a line of code names a backend: as a device, a crate, a type or a variant.
fn names(text: &str, backend: &str) -> bool {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '_').map(str::to_lowercase);
    words
        .into_iter()
        .any(|word| word.split('_').any(|part| part == backend || part == format!("{backend}device")))
}

#[test]
fn a_name_of_a_backend_is_found() {
    for text in [
        "Device::flex()",
        "burn_wgpu::Wgpu",
        "use burn::backend::NdArray;",
        "DeviceType::Wgpu",
        "FlexDevice::new()",
    ] {
        assert!(BACKENDS.iter().any(|backend| names(text, backend)), "{text}");
    }
    for text in ["let flexible = 1;", "Tensor::<1>::zeros([2], &device)", "a_flexed_b"] {
        assert!(!BACKENDS.iter().any(|backend| names(text, backend)), "{text}");
    }
}

/// Where a backend may be a condition of compilation: the kernels, which are backends' own, the binary's list of devices
/// and its tests, and this package.
const MAY_ASK_FOR_A_BACKEND: [&str; 5] =
    ["lowbit-kernels/", "lowbit/src/device.rs", "lowbit/src/panic.rs", "lowbit/tests/", "lowbit-tests/"];

/// Lines of `source` that compile something for some backends only.
fn conditions_on_backends(source: &str) -> Vec<(usize, &str)> {
    let asks = |text: &str| {
        let text: String = text.split_whitespace().collect();
        BACKENDS.iter().any(|backend| text.contains(&format!("feature=\"{backend}\"")))
    };
    let lines = source.lines().enumerate().map(|(idx, line)| (idx + 1, line));
    lines.filter(|(_, line)| !line.trim_start().starts_with("//") && asks(line)).collect()
}

#[test]
fn no_other_code_is_compiled_for_some_backends_only() {
    let (mut n_allowed, mut found) = (0, Vec::new());
    for (name, package) in packages() {
        for dir in ["src", "tests", "examples", "benches"].map(|dir| package.dir().join(dir)) {
            if !dir.is_dir() {
                continue;
            }
            for path in all_sources(&dir) {
                let inside = path.strip_prefix(package.dir()).expect("invariant: it was found there");
                let place = format!("{name}/{}", inside.display());
                let source = read(&path);
                let conditions = conditions_on_backends(&source);
                match MAY_ASK_FOR_A_BACKEND.iter().any(|allowed| place.starts_with(allowed)) {
                    true => n_allowed += conditions.len(),
                    false => found.extend(
                        conditions.into_iter().map(|(line, text)| format!("{place}:{line}: {}", text.trim())),
                    ),
                }
            }
        }
    }
    assert!(found.is_empty(), "conditions on backends:\n{}", found.join("\n"));
    // The kernels, the binary and this package have some, or the search finds none.
    assert!(n_allowed > 10, "only {n_allowed} conditions were found where they are allowed");
}

/// What is public for this package only: switches of the whole process, and what benchmarks compare with.
const FOR_TESTS_ONLY: [&str; 3] = ["use_implementation", "take_times", "limits::"];

/// Where they are.
const HAVE_WHAT_IS_FOR_TESTS: [&str; 2] = ["lowbit-kernels", "lowbit-cpu"];

#[test]
fn no_other_package_uses_what_is_for_tests() {
    let mut used_here = Vec::new();
    for (name, package) in packages() {
        if HAVE_WHAT_IS_FOR_TESTS.contains(&name.as_str()) {
            continue;
        }
        for dir in ["src", "tests", "examples", "benches"].map(|dir| package.dir().join(dir)) {
            for path in if dir.is_dir() { all_sources(&dir) } else { Vec::new() } {
                // This file names them.
                if path.ends_with("workspace.rs") {
                    continue;
                }
                let source = read(&path);
                let used = FOR_TESTS_ONLY.iter().filter(|used| source.contains(**used));
                match name.as_str() {
                    "lowbit-tests" => used_here.extend(used),
                    _ => assert_eq!(used.collect::<Vec<_>>(), [&""; 0], "in {}", path.display()),
                }
            }
        }
    }
    let missing = FOR_TESTS_ONLY.iter().filter(|name| !used_here.contains(name));
    assert_eq!(missing.collect::<Vec<_>>(), [&""; 0], "the search finds none of these");
}

/// Rust files under `dir`.
fn all_sources(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let paths = entries.map(|entry| entry.expect("the entry is readable").path());
    paths
        .flat_map(|path| match path.is_dir() {
            true => all_sources(&path),
            false => vec![path],
        })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// Numbered lines without comments and up to a module of tests, which closes a file.
fn code(source: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines: Vec<(usize, &str)> = source.lines().enumerate().map(|(idx, line)| (idx + 1, line)).collect();
    let opens_tests = |pair: &[(usize, &str)]| pair[0].1 == "#[cfg(test)]" && pair[1].1 == "mod tests {";
    let end = lines.windows(2).position(opens_tests).unwrap_or(lines.len());
    lines.into_iter().take(end).filter(|(_, line)| !line.trim_start().starts_with("//"))
}

#[test]
fn code_ends_at_a_module_of_tests_only() {
    let of = |source| code(source).map(|(line, _)| line).collect::<Vec<_>>();
    assert_eq!(of("a\n#[cfg(test)]\nfn b() {}\n// c\nd\n"), [1, 2, 3, 5]);
    assert_eq!(of("a\n#[cfg(test)]\nmod tests;\nd\n"), [1, 2, 3, 4]);
    assert_eq!(of("a\n#[cfg(test)]\nmod tests {\nd\n}\n"), [1]);
}

/// Rust files under `dir`, without files of tests.
fn sources(dir: &Path) -> Vec<PathBuf> {
    all_sources(dir).into_iter().filter(|path| !path.ends_with("tests.rs")).collect()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_package_is_described_and_unpublished() {
    for (name, package) in packages() {
        assert_eq!(package.license.as_deref(), Some("MIT OR Apache-2.0"), "license of {name}");
        assert_eq!(package.publish, Some(Vec::new()), "{name} can be published");
        let is_described = package.description.is_some_and(|text| !text.is_empty());
        assert!(is_described || TOOLS.contains(&name.as_str()), "{name} has no description");
    }
}

/// Packages that must have a README.md.
const WITH_README: [&str; 13] = [
    "lowbit",
    "lowbit-capi",
    "lowbit-core",
    "lowbit-cpu",
    "lowbit-data",
    "lowbit-kernels",
    "lowbit-models",
    "lowbit-quantizers",
    "lowbit-report",
    "lowbit-runtime",
    "lowbit-strategies",
    "lowbit-train",
    "lowbit-tests",
];

#[test]
fn every_crate_has_a_readme() {
    let packages = packages();
    let missing: Vec<_> =
        WITH_README.into_iter().filter(|name| !packages[*name].dir().join("README.md").is_file()).collect();
    assert!(missing.is_empty(), "no README.md in {missing:?}");
}

/// What a run says of the burn that made it is true.
#[test]
fn the_recorded_version_of_burn_is_the_pinned_one() {
    let packages = packages();
    let root = packages["lowbit-tests"].dir().parent().expect("the package lies in the workspace");
    let manifest = read(&root.join("Cargo.toml"));
    let pin = manifest.lines().find(|line| line.starts_with("burn = ")).expect("burn is pinned");
    let origin = read(&packages["lowbit-train"].dir().join("src/origin.rs"));
    let version =
        origin.split("const BURN_VERSION: &str = \"").nth(1).and_then(|rest| rest.split('"').next());
    let version = version.expect("the version is a constant");
    assert!(pin.contains(&format!("version = \"={version}\"")), "{pin}, but runs record {version}");
}

/// The packages that a command builds, each with its features.
fn tree(selection: &[&str]) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .args(["tree", "--locked", "--offline", "--prefix", "none", "--format", "{p} {f}"])
        .args(selection)
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("cargo writes UTF-8");
    text.lines().map(|line| line.trim_end_matches(" (*)").to_string()).collect()
}

/// One feature more in one crate below burn, and the second command of a newcomer compiles burn again. Such a feature is
/// named in the manifest of `lowbit`, see `docs/decisions/0004-one-build-for-run-and-test.md`.
#[test]
fn run_and_test_share_one_build() {
    let run = tree(&["-p", "lowbit", "--edges", "normal,build"]);
    let test = tree(&["--workspace"]);
    let others: Vec<&String> = run.difference(&test).collect();
    assert!(others.is_empty() && run.len() > 100, "with other features than for the tests: {others:#?}");
}
