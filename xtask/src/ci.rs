//! `cargo xtask ci`: all that a change must pass. The gate, `.ci/run`, installs the tools and calls it.

use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use clap::Args;

use crate::output::print;
use crate::{cargo, emulate, parity};

/// What `cargo xtask ci` is asked for.
#[derive(Args)]
pub struct CiArgs {
    /// Only the checks
    #[arg(long)]
    no_test: bool,

    /// After the tests, also what is tested on wgpu, as `cargo xtask parity` does
    #[arg(long, conflicts_with = "no_test")]
    parity: bool,
}

/// Programs that the checks run, and how they are installed.
const TOOLS: [(&str, &str); 3] = [
    ("typos", "pip install typos, or cargo install --locked typos-cli"),
    ("cargo-machete", "cargo install --locked cargo-machete"),
    ("cargo-deny", "cargo install --locked cargo-deny"),
];

/// Cheap checks first.
pub fn run(args: &CiArgs) -> anyhow::Result<()> {
    TOOLS.iter().try_for_each(|(tool, install)| crate::find(tool, install))?;
    step("formatting", cargo(&["fmt", "--all", "--check"]))?;
    step("spelling", Command::new("typos"))?;
    step("unused dependencies", cargo(&["machete"]))?;
    // The targets of cargo fuzz are a workspace of their own, which nothing else here looks at.
    let mut fuzz =
        cargo(&["metadata", "--locked", "--format-version", "1", "--manifest-path", "fuzz/Cargo.toml"]);
    fuzz.stdout(Stdio::null());
    step("lock file of the fuzz targets", fuzz)?;
    step("licences, sources, versions", deny(&["check", "licenses", "sources", "bans"]))?;
    let has_advisories = advisories()?;
    // With all backends: a check of the default ones alone would compile burn once more, and the tests do that. With MPI where there is a
    // library, whose headers are read.
    let has_mpi = crate::has("mpicc");
    let features =
        if has_mpi { "lowbit/wgpu,lowbit-tests/wgpu,lowbit/mpi" } else { "lowbit/wgpu,lowbit-tests/wgpu" };
    let all_backends = ["--workspace", "--features", features];
    let mut clippy = cargo(&["clippy", "--locked", "--all-targets"]);
    clippy.args(all_backends).args(["--", "-D", "warnings"]);
    step("lints", clippy)?;
    let lints_aarch64 = emulate::has_library()?;
    if lints_aarch64 {
        // The one crate that has code for this processor: `cargo xtask emulate` runs it.
        let mut clippy = cargo(&["clippy", "--locked", "--all-targets", "-p", "lowbit-cpu"]);
        clippy.args(["--target", emulate::TARGET, "--", "-D", "warnings"]);
        step("lints for aarch64", clippy)?;
    }
    let mut doc = cargo(&["doc", "--locked", "--no-deps", "--document-private-items"]);
    doc.args(all_backends);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    step("documentation", doc)?;
    if !args.no_test {
        step("tests", cargo(&["test", "--locked", "--workspace"]))?;
    }
    if args.parity {
        parity::run(&parity::ParityArgs::default())?;
    }
    if !has_mpi {
        print("== lints with MPI: NOT CHECKED (apt-get install libopenmpi-dev libclang-dev)")?;
    }
    if !lints_aarch64 {
        print(&format!("== lints for aarch64: NOT CHECKED (rustup target add {})", emulate::TARGET))?;
    }
    if !has_advisories {
        print("== all passed, but advisories: NOT CHECKED (their database cannot be reached)")?;
    }
    Ok(())
}

fn deny(arguments: &[&str]) -> Command {
    let mut deny = cargo(&["deny", "--locked"]);
    deny.args(arguments);
    deny
}

/// What `cargo deny` says when it cannot fetch the list of vulnerabilities.
const NOT_FETCHED: &str = "failed to fetch advisory database";

/// Known vulnerabilities of dependencies, whose list is fetched from its repository. Whether that was possible.
fn advisories() -> anyhow::Result<bool> {
    let output = deny(&["fetch", "db"]).output().context("failed to run cargo deny")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        eprint!("{said}");
        // Anything else that goes wrong is no matter of the network.
        if !said.contains(NOT_FETCHED) {
            bail!("advisories failed ({})", output.status);
        }
        print("== advisories: NOT CHECKED (their database cannot be reached)")?;
        return Ok(false);
    }
    step("advisories", deny(&["check", "advisories"]))?;
    Ok(true)
}

/// Runs a check, and says how long it took.
fn step(what: &str, command: Command) -> anyhow::Result<()> {
    let started = std::time::Instant::now();
    crate::run(what, command)?;
    print(&format!("== {what}: {:.0} s", started.elapsed().as_secs_f64()))
}
