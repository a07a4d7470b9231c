//! `lowbit watch`: shows a run as it goes, whoever trains in it, by its files alone.

mod run;
#[cfg(unix)]
mod screen;
#[cfg(unix)]
mod view;

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use lowbit_train::{RunDir, escaped};

use crate::cli::WatchArgs;
use crate::exit_code::Code;
use crate::inspect::expect_no_checkpoint;
use crate::output;
use crate::signals::set_on_signals;
use crate::train::describe_times;
use run::{State, Watched};

/// Time between two times that the files are read.
const INTERVAL: Duration = Duration::from_secs(1);

pub fn run(args: &WatchArgs) -> anyhow::Result<Code> {
    expect_no_checkpoint(&args.run, "watch")?;
    let run = RunDir::open(&args.run)?;
    if args.once {
        output::print(&describe(&Watched::read(&run)?))?;
        return Ok(Code::Success);
    }
    let stop = set_on_signals()?;
    #[cfg(unix)]
    if io::stdout().is_terminal() && !is_dumb() && screen::is_possible() {
        return screen::show(&run, &stop);
    }
    follow(&run, &stop)
}

/// Whether the terminal shows lines only.
fn is_dumb() -> bool {
    std::env::var_os("TERM").is_none_or(|term| term.is_empty() || term == "dumb")
}

/// Prints a line for each epoch, until the training has ended.
fn follow(run: &RunDir, stop: &AtomicBool) -> anyhow::Result<Code> {
    let mut last = 0;
    loop {
        let watched = Watched::read(run)?;
        let mut lines: Vec<String> = Vec::new();
        for epoch in watched.epochs.iter().filter(|epoch| epoch.epoch > last) {
            lines.push(watched.epoch_line(epoch));
        }
        // A run that has gone back makes some again.
        last = watched.epochs.last().map_or(0, |epoch| epoch.epoch);
        let has_ended = matches!(watched.state, State::Finished(_) | State::Stopped(_));
        if has_ended {
            lines.push(watched.state_text());
        }
        match print(&lines) {
            // Whoever read has what he wanted.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Code::Success),
            Err(error) => return output::written(Err(error)).map(|()| Code::Success),
            Ok(()) if has_ended => return Ok(Code::Success),
            Ok(()) => {}
        }
        for _ in 0..10 {
            if stop.load(Ordering::Relaxed) {
                return Ok(Code::Interrupted);
            }
            std::thread::sleep(INTERVAL / 10);
        }
    }
}

fn print(lines: &[String]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    for line in lines {
        writeln!(stdout, "{}", escaped(line))?;
    }
    stdout.flush()
}

/// The run as it is now, in lines.
fn describe(run: &Watched) -> String {
    let columns = output::stdout_columns();
    let entry = |key: &str, text: &str| output::wrapped(&format!("{key:<8} "), text, columns);
    let now = run.phase();
    let phase = |(i, (name, epochs)): (usize, &(String, u64))| {
        let is_now = i == now && run.phases.len() > 1 && !matches!(run.state, State::Finished(_));
        let mark = if is_now { "*" } else { "" };
        format!("{name}{mark} ({epochs})")
    };
    let phases: Vec<String> = run.phases.iter().enumerate().map(phase).collect();
    let mut lines = vec![
        entry("run", &format!("{} ({})", run.path, run.recipe)),
        entry("state", &run.state_text()),
        entry("phases", &phases.join(", ")),
        entry("device", &run.load_text()),
    ];
    if let Some(epoch) = run.epochs.last() {
        lines.push(entry("last", &run.epoch_line(epoch)));
    }
    if let Some(text) = run.parts().and_then(|parts| describe_times(&parts, parts.sum())) {
        lines.push(entry("time", &text));
    }
    lines.join("\n")
}
