//! The `lowbit` command: trains networks of low precision, and looks at what came out.
//!
//! Each subcommand has a module with a function `run`. What it returns is the exit code; what it fails with is printed
//! here, and [`exit_code`] says how the process ends.

mod bench;
mod cli;
mod compare;
mod complete;
mod data;
mod data_folder;
mod device;
mod devices;
mod eval;
mod exit_code;
mod export;
mod hints;
mod history;
mod import;
mod inspect;
mod list;
mod live;
mod load;
mod logging;
mod memory;
#[cfg(feature = "mpi")]
mod mpi;
mod origin;
mod output;
mod packed;
mod panic;
mod predict;
mod progress;
mod ranks;
mod recipes;
mod report;
mod sensitivity;
mod signals;
mod sizes;
mod sweep;
mod table;
mod tensorboard;
mod train;
mod watch;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use lowbit_cpu::allocator::{Allocator, advise, keep_memory};
use lowbit_cpu::on_compute_thread;
use lowbit_train::World;

use crate::cli::{Cli, Command, CompletionsArgs, Verbosity};
use crate::exit_code::{Code, UsageError};
use crate::progress::Screen;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    ranks::share_cores();
    complete::answer();
    // First: a training answers signals from its beginning on.
    signals::hold();
    keep_memory();
    advise("a training needs less with a smaller data.batch_size, model or data set");
    panic::report_in_a_line();
    signals::let_large_writes_fail();
    let code = panic::caught(|| {
        let parsed = parsed();
        // What else there is ends by them.
        if !matches!(&parsed, Ok(Cli { command: Command::Train(_), .. })) {
            signals::release();
        }
        match parsed {
            Ok(cli) => on_compute_thread(|| run(&cli)).unwrap_or_else(|error| report(&no_threads(error))),
            Err(error) => not_a_command(error),
        }
    });
    ranks::end(code.unwrap_or(Code::Other)).into()
}

/// The command line. It is read on a stack of its own, as all commands together take more than the least that a main thread may have
/// (`ulimit -s`).
fn parsed() -> Result<Cli, clap::Error> {
    const STACK_SIZE: usize = 4 << 20;

    let thread = std::thread::Builder::new().name("arguments".into()).stack_size(STACK_SIZE);
    match thread.spawn(Cli::try_parse) {
        Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
        // Without a thread, it is read here.
        Err(_) => Cli::try_parse(),
    }
}

/// The error that no thread can be started.
fn no_threads(error: io::Error) -> anyhow::Error {
    let advice = "failed to start the threads that compute; ask for fewer with RAYON_NUM_THREADS=1, or raise the limit of \
                  processes (ulimit -u)";
    anyhow::Error::from(error).context(advice)
}

/// Prints what is asked for instead of a command, help or version, or what is wrong with the command line.
fn not_a_command(mut error: clap::Error) -> Code {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    hints::add_to(&mut error, &arguments);
    let printed = match error.kind() {
        ErrorKind::DisplayVersion => output::print(&version()),
        _ => output::written(error.print().and_then(|()| io::stdout().flush())),
    };
    match printed {
        _ if error.use_stderr() => Code::Usage,
        Ok(()) => Code::Success,
        Err(error) => report(&error),
    }
}

/// The version, as far as the rest of the command line asks for it.
fn version() -> String {
    let origin = origin::here();
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned()).collect();
    let is_verbose = |argument: &String| {
        argument == "--verbose"
            || argument.starts_with('-') && !argument.starts_with("--") && argument.contains('v')
    };
    if arguments.iter().any(|argument| argument == "--json") {
        return serde_json::to_string(&origin).expect("invariant: what made a program is plain data");
    }
    if arguments.iter().any(is_verbose) { origin.to_string() } else { origin.build() }
}

/// Says why a command failed.
fn report(error: &anyhow::Error) -> Code {
    let message = lowbit_train::escaped(&format!("{}{}", ranks::before_error(), exit_code::message(error)));
    tracing::error!(target: logging::SHOWN, "{message}");
    // Nobody is left to tell if stderr is closed.
    let _ = writeln!(io::stderr(), "error: {message}");
    exit_code::of(error)
}

fn run(cli: &Cli) -> Code {
    let verbosity = cli.verbosity();
    let world = match &cli.command {
        Command::Train(_) => ranks::join(),
        _ => ranks::expect_alone().map(|()| World::ALONE).map_err(Into::into),
    };
    let screen = match &world {
        Ok(world) if !world.is_root() => Screen::silent(),
        _ => Screen::new(verbosity == Verbosity::Quiet),
    };
    let log = logging::start(verbosity, &screen);
    if let Err(unknown) = lowbit_cpu::left_out() {
        return report(&UsageError(unknown.into()).into());
    }
    let result = match &cli.command {
        Command::Train(args) => world.and_then(|world| train::run(args, world, &screen, &log)),
        Command::Eval(args) => eval::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Sweep(args) => sweep::run(args),
        Command::Sensitivity(args) => sensitivity::run(args, &screen),
        Command::List(args) => list::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Report(args) => report::run(args, &screen),
        Command::Import(args) => import::run(args),
        Command::Export(args) => export::run(args),
        Command::Predict(args) => predict::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Watch(args) => watch::run(args),
        Command::Tensorboard(args) => tensorboard::run(args),
        Command::Devices(args) => devices::run(args),
        Command::Recipes(args) => recipes::run(args, &screen),
        Command::Data(args) => data::run(args, &screen),
        Command::Completions(args) => completions(args),
    };
    result.unwrap_or_else(|error| report(&error))
}

fn completions(args: &CompletionsArgs) -> anyhow::Result<Code> {
    let mut script = Vec::new();
    match args.dynamic {
        true => complete::script(args.shell, &mut script)?,
        false => clap_complete::generate(args.shell, &mut Cli::command(), "lowbit", &mut script),
    }
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(Code::Success)
}
