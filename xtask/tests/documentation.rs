//! What the documentation says of the source is so.

use std::fs;
use std::path::Path;

/// Adding a backend is documented as a diff, which goes out of date with every line that it changes.
#[test]
fn the_documented_diff_applies() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let documentation = fs::read_to_string(root.join("docs/backends.md")).unwrap();
    let diff = documentation.split("```diff\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let (mut file, mut source, mut n_changed) = ("", String::new(), 0);
    let mut files = Vec::new();
    for line in diff.lines() {
        if let Some(path) = line.strip_prefix("# ") {
            (file, source) = (path, fs::read_to_string(root.join(path)).unwrap());
            files.push(path);
        } else if let Some(old) = line.strip_prefix('-') {
            n_changed += 1;
            assert!(source.lines().any(|line| line == old), "no such line in {file}: {old}");
        } else {
            let new = line.strip_prefix('+').unwrap_or_else(|| panic!("neither new nor old: {line}"));
            assert!(!source.lines().any(|line| line == new), "already in {file}: {new}");
        }
    }
    let n_new = diff.lines().filter(|line| line.starts_with('+')).count() - n_changed;
    let counts = format!("{n_new} new lines and {n_changed} changed ones");
    assert!(documentation.contains(&counts), "{counts}");
    // Wherever something is compiled for wgpu only, the new backend has a line.
    for path in ["crates/lowbit/src/device.rs", "tests/src/lib.rs", "tests/examples/step.rs"] {
        assert!(files.contains(&path), "{path} is not in the diff");
    }
}
