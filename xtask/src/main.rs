//! Tasks of the workspace: `cargo xtask ci` checks what a change must pass, `cargo xtask reproduce` trains the tables of
//! the documentation.

mod bench;
mod ci;
mod emulate;
mod fuzz;
mod kernels;
mod output;
mod parity;
mod ranks;
mod reproduce;
mod scaling;
mod verify_export;
mod workspace;

use std::process::{Command, Stdio};

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
    /// Formatting, spelling, dependencies, licences, lints and documentation, then all tests
    Ci(ci::CiArgs),
    /// Compare wgpu with the CPU backends, case by case, and train on it; fails where there is no GPU or software driver
    Parity(parity::ParityArgs),
    /// Train on two processes by MPI and compare with one, and kill one of two; needs an MPI library and libclang
    Ranks(ranks::RanksArgs),
    /// Say how long a step takes on many processes, by a model and measured times
    Scaling(scaling::ScalingArgs),
    /// Test the CPU kernels alone: for another processor, or with a sanitizer
    Kernels(kernels::KernelsArgs),
    /// Test what runs networks on emulated processors of aarch64, with and without dotprod and i8mm
    Emulate(emulate::EmulateArgs),
    /// Feed every reader of files with altered ones, and find what panics, takes long or takes memory
    Fuzz(fuzz::FuzzArgs),
    /// Train all cells of a table, methods x bit widths x seeds, and report it
    Reproduce(reproduce::ReproduceArgs),
    /// Compare exported networks of many methods, as onnxruntime computes them, with ours
    VerifyExport(verify_export::VerifyExportArgs),
    /// Time training beside other implementations
    #[command(subcommand)]
    Bench(Bench),
}

/// What is timed.
#[derive(Subcommand)]
enum Bench {
    /// Whole training steps: forward, backward, SGD
    Step(bench::step::StepArgs),
    /// The same steps on every backend: time, memory, what must be compiled in
    Backends(bench::backends::BackendsArgs),
    /// All that is asked of a GPU, beside PyTorch on the same card, within a limit of time
    Card(bench::card::CardArgs),
    /// Single operations: convolutions, normalization, quantizers
    Ops(bench::ops::OpsArgs),
    /// Images from files: decoded, cropped, resized and normalized, beside torchvision
    Loader(bench::loader::LoaderArgs),
    /// Packed networks, one image after the other, beside onnxruntime
    Runtime(bench::runtime::RuntimeArgs),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().task {
        Task::Ci(args) => ci::run(&args),
        Task::Parity(args) => parity::run(&args),
        Task::Ranks(args) => ranks::run(&args),
        Task::Scaling(args) => scaling::run(&args),
        Task::Kernels(args) => kernels::run(&args),
        Task::Emulate(args) => emulate::run(&args),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::VerifyExport(args) => verify_export::run(&args),
        Task::Reproduce(args) => reproduce::run(&args),
        Task::Bench(Bench::Step(args)) => bench::step::run(&args),
        Task::Bench(Bench::Backends(args)) => bench::backends::run(&args),
        Task::Bench(Bench::Card(args)) => bench::card::run(&args),
        Task::Bench(Bench::Ops(args)) => bench::ops::run(&args),
        Task::Bench(Bench::Loader(args)) => bench::loader::run(&args),
        Task::Bench(Bench::Runtime(args)) => bench::runtime::run(&args),
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

/// An error that says how to install it, unless the program `tool` is there.
fn find(tool: &str, install: &str) -> anyhow::Result<()> {
    match has(tool) {
        true => Ok(()),
        false => bail!("{tool} is not installed: {install}"),
    }
}

/// Whether the program `tool` is there.
fn has(tool: &str) -> bool {
    let mut command = Command::new(tool);
    let status = command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn run(what: &str, mut command: Command) -> anyhow::Result<()> {
    output::print(&format!("== {what}"))?;
    let status = command.status().with_context(|| format!("failed to run {what}"))?;
    match status.success() {
        true => Ok(()),
        false => bail!("{what} failed ({status})"),
    }
}
