//! Tasks of the workspace: `cargo xtask ci` checks what a change must pass beyond the tests, `cargo xtask reproduce`
//! trains the tables of the documentation.

mod bench;
mod kernels;
mod parity;
mod reproduce;
mod workspace;

use std::process::Command;

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Tasks of the lowbit workspace")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Formatting, lints, documentation, licences and dependencies, then all tests
    Ci {
        /// Leave the tests out
        #[arg(long)]
        no_test: bool,
    },
    /// Compare wgpu with the CPU backends, case by case, and train on it; fails where there is no GPU or software driver
    Parity(parity::ParityArgs),
    /// Test the CPU kernels alone: for another processor, or with a sanitizer
    Kernels(kernels::KernelsArgs),
    /// Train all cells of a table, methods x bit widths x seeds, and report it
    Reproduce(reproduce::ReproduceArgs),
    /// Time training beside other implementations
    #[command(subcommand)]
    Bench(Bench),
}

/// What is timed.
#[derive(Subcommand)]
enum Bench {
    /// Whole training steps: forward, backward, SGD
    Step(bench::StepArgs),
    /// The same steps on every backend: time, memory, what must be compiled in
    Backends(bench::backends::BackendsArgs),
    /// Single operations: convolutions, normalization, quantizers
    Ops(bench::ops::OpsArgs),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Ci { no_test } => ci(no_test),
        Task::Parity(args) => parity::run(&args),
        Task::Kernels(args) => kernels::run(&args),
        Task::Reproduce(args) => reproduce::run(&args),
        Task::Bench(Bench::Step(args)) => bench::step(&args),
        Task::Bench(Bench::Backends(args)) => bench::backends::run(&args),
        Task::Bench(Bench::Ops(args)) => bench::ops::run(&args),
    }
}

/// Cheap checks first.
fn ci(no_test: bool) -> anyhow::Result<()> {
    run("fmt", cargo(&["fmt", "--all", "--check"]))?;
    licences()?;
    run("clippy", cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--document-private-items"]);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    run("documentation", doc)?;
    if !no_test {
        run("tests", cargo(&["test", "--workspace"]))?;
    }
    Ok(())
}

/// Licences that dependencies may have, besides our own.
const LICENCES: [&str; 15] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Dependencies that name no licence in their metadata but ship the text of a known one: Apache-2.0.
const LICENCE_BY_FILE: [&str; 1] = ["cfg_block"];

/// Every dependency names a licence we can ship under: at least one branch of its `OR` is made of known ones.
fn licences() -> anyhow::Result<()> {
    let output =
        cargo(&["metadata", "--format-version", "1", "--locked"]).output().context("failed to run cargo")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    let mut unknown = Vec::new();
    for package in packages {
        let licence = package["license"].as_str().unwrap_or("none");
        let plain = licence.replace(['(', ')'], "").replace('/', " OR ");
        let known = |part: &str| part.split(" AND ").all(|term| LICENCES.contains(&term.trim()));
        let name = package["name"].as_str().unwrap_or("?");
        if !plain.split(" OR ").any(known) && !LICENCE_BY_FILE.contains(&name) {
            unknown.push(format!("{name}: {licence}"));
        }
    }
    match unknown.is_empty() {
        true => {
            println!("licences: {} packages", packages.len());
            Ok(())
        }
        false => bail!("dependencies under other licences:\n  {}", unknown.join("\n  ")),
    }
}

fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments);
    // What `cargo run` tells a program of its package: build scripts that look at it would run again, and all behind them.
    let of_package = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for name in names.filter(|name| of_package(name)) {
        command.env_remove(name);
    }
    command
}

fn run(what: &str, mut command: Command) -> anyhow::Result<()> {
    println!("== {what}");
    let status = command.status().with_context(|| format!("failed to run {what}"))?;
    match status.success() {
        true => Ok(()),
        false => bail!("{what} failed ({status})"),
    }
}
