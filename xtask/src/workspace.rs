//! Where the workspace lies and where cargo puts what it builds.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, bail};
use serde_json::Value;

use crate::cargo;

/// Root directory of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("invariant: this package lies in the workspace")
}

/// The directory that cargo builds into.
pub fn target_dir() -> anyhow::Result<PathBuf> {
    let output = cargo(&["metadata", "--locked", "--format-version", "1", "--no-deps"])
        .stderr(Stdio::inherit())
        .output()
        .context("failed to run cargo")?;
    if !output.status.success() {
        bail!("cargo metadata failed ({})", output.status);
    }
    let metadata: Value =
        serde_json::from_slice(&output.stdout).context("failed to read cargo's metadata")?;
    let directory = metadata["target_directory"].as_str().context("cargo names no target directory")?;
    Ok(directory.into())
}

/// Builds the program `name`, where `arguments` choose the package and its features; returns its path.
pub fn build(name: &str, arguments: &[&str]) -> anyhow::Result<PathBuf> {
    let mut build = cargo(&["build", "--locked", "--message-format", "json-render-diagnostics"]);
    let output = build.args(arguments).stderr(Stdio::inherit()).output().context("failed to run cargo")?;
    if !output.status.success() {
        bail!("{name} does not build: cargo build {}", arguments.join(" "));
    }
    executable(&String::from_utf8_lossy(&output.stdout), name)
        .with_context(|| format!("cargo build {} made no program {name}", arguments.join(" ")))
}

/// The program `name` among the artifacts that cargo reports, a JSON object in each line.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    let artifacts = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut named = artifacts.filter(|artifact| artifact["target"]["name"] == name);
    named.find_map(|artifact| artifact["executable"].as_str().map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_among_the_artifacts() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"lowbit"},"executable":null}
            {"reason":"compiler-artifact","target":{"name":"other"},"executable":"/elsewhere/debug/other"}
            {"reason":"compiler-artifact","target":{"name":"lowbit"},"executable":"/elsewhere/debug/lowbit"}
            {"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages, "lowbit"), Some("/elsewhere/debug/lowbit".into()));
        assert_eq!(executable(messages, "step"), None);
    }

    #[test]
    fn the_workspace_is_found() {
        assert!(root().join("xtask/peers/step.py").is_file());
        assert!(target_dir().unwrap().is_absolute());
    }
}
