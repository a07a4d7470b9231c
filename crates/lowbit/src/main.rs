//! The `lowbit` command: trains networks of low precision, and looks at what came out.
//!
//! Each subcommand has a module with a function `run`. What it returns is the exit code; what it fails with is printed
//! here, and [`exit_code`] says how the process ends.

mod cli;
mod data;
mod device;
mod eval;
mod exit_code;
mod inspect;
mod logging;
mod output;
mod progress;
mod recipes;
mod train;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use lowbit_kernels::allocator::{Allocator, keep_memory};
use lowbit_kernels::cpu::on_compute_thread;

use crate::cli::{Cli, Command, CompletionsArgs, Verbosity};
use crate::exit_code::Code;
use crate::progress::Screen;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    keep_memory();
    let cli = Cli::parse();
    on_compute_thread(|| run(&cli))
}

fn run(cli: &Cli) -> ExitCode {
    let verbosity = cli.verbosity();
    let screen = Screen::new(verbosity == Verbosity::Quiet);
    let log = logging::start(verbosity, &screen);
    let result = match &cli.command {
        Command::Train(args) => train::run(args, &screen, &log),
        Command::Eval(args) => eval::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Recipes(args) => recipes::run(args),
        Command::Data(args) => data::run(args, &screen),
        Command::Completions(args) => completions(args),
    };
    let code = result.unwrap_or_else(|error| {
        let message = exit_code::message(&error);
        tracing::error!(target: logging::SHOWN, "{message}");
        // Nobody is left to tell if stderr is closed.
        let _ = writeln!(io::stderr(), "error: {message}");
        exit_code::of(&error)
    });
    code.into()
}

fn completions(args: &CompletionsArgs) -> anyhow::Result<Code> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "lowbit", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(Code::Success)
}
