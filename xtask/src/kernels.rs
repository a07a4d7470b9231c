//! `cargo xtask kernels`: the unit tests of the CPU kernels in a package of their own, without burn, so that they build in a
//! minute for another processor or with a sanitizer.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use clap::Args;

use crate::{cargo, workspace};

/// What `cargo xtask kernels` is asked for.
#[derive(Args)]
pub struct KernelsArgs {
    /// Processor and system, as aarch64-unknown-linux-gnu, whose standard library has to be there [default: this machine]
    #[arg(long, value_name = "TRIPLE")]
    target: Option<String>,

    /// Sanitizer of the compiler, as address; switches on what it keeps for nightly builds
    #[arg(long, value_name = "NAME")]
    sanitizer: Option<String>,

    /// Passed to the tests: the beginning of a name, --test-threads
    #[arg(last = true, value_name = "ARGUMENT")]
    arguments: Vec<String>,
}

pub fn run(args: &KernelsArgs) -> anyhow::Result<()> {
    let directory = workspace::target_dir()?.join("kernels");
    write_package(&directory)?;
    let target = match &args.target {
        Some(target) => target.clone(),
        None => host()?,
    };
    let mut test = cargo(&["test", "--lib", "--target", &target]);
    test.current_dir(&directory);
    if let Some(sanitizer) = &args.sanitizer {
        test.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", format!("-Zsanitizer={sanitizer}"));
    }
    test.arg("--").args(&args.arguments);
    crate::run(&format!("kernels on {target}"), test)
}

/// A package of the module `cpu` alone, with the versions of the workspace.
fn write_package(directory: &Path) -> anyhow::Result<()> {
    let module = workspace::root().join("crates/lowbit-kernels/src/cpu/mod.rs");
    let manifest = "[package]\nname = \"kernels\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n\
                    [dependencies]\nrayon = \"1\"\n\n\
                    [profile.dev]\nopt-level = 2\n\n[workspace]\n";
    let source = format!("#[path = {module:?}]\npub mod cpu;\n");
    fs::create_dir_all(directory.join("src"))
        .with_context(|| format!("failed to make {}", directory.display()))?;
    for (name, text) in [("Cargo.toml", manifest), ("src/lib.rs", &source)] {
        fs::write(directory.join(name), text).with_context(|| format!("failed to write {name}"))?;
    }
    fs::copy(workspace::root().join("Cargo.lock"), directory.join("Cargo.lock"))
        .context("failed to copy Cargo.lock")?;
    Ok(())
}

/// The triple of this machine.
fn host() -> anyhow::Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("failed to run rustc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    match text.lines().find_map(|line| line.strip_prefix("host: ")) {
        Some(host) => Ok(host.into()),
        None => bail!("rustc -vV names no host: {text}"),
    }
}
