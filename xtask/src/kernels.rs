//! `cargo xtask kernels`: the unit tests of the CPU kernels as a change of these has to pass them: with all checks of the
//! compiler, for another processor, with a sanitizer.

use std::process::Command;

use anyhow::{Context, bail};
use clap::Args;

use crate::cargo;

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

/// What the workspace switches off for the kernels, which are to be fast in its other tests.
const CHECKS: [&str; 4] = [
    "--config",
    "profile.dev.package.lowbit-cpu.debug-assertions=true",
    "--config",
    "profile.dev.package.lowbit-cpu.overflow-checks=true",
];

pub fn run(args: &KernelsArgs) -> anyhow::Result<()> {
    let target = match &args.target {
        Some(target) => target.clone(),
        None => host()?,
    };
    let mut test = cargo(&["test", "--locked", "-p", "lowbit-cpu", "--lib", "--target", &target]);
    test.args(CHECKS);
    if let Some(sanitizer) = &args.sanitizer {
        test.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", format!("-Zsanitizer={sanitizer}"));
    }
    test.arg("--").args(&args.arguments);
    crate::run(&format!("kernels on {target}"), test)
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
