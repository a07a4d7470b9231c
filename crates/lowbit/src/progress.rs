//! What is shown on stderr while a command runs: a live line on a terminal, plain lines elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use lowbit_train::escaped;
use tracing_subscriber::fmt::MakeWriter;

use crate::output::{stderr_columns, wrapped};

/// Time between plain progress lines.
const PLAIN_INTERVAL: Duration = Duration::from_secs(30);

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// A line that changes in place, below the others.
    Live,
    /// Only lines that stay.
    Plain,
    /// Nothing but warnings.
    Quiet,
    /// Nothing at all: another process shows it.
    Silent,
}

/// The user's view of stderr. Clones show on the same screen.
#[derive(Clone)]
pub struct Screen {
    mode: Mode,
    bars: MultiProgress,
}

impl Screen {
    /// The screen; with `quiet`, progress is not shown.
    pub fn new(quiet: bool) -> Self {
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let mode = match io::stderr().is_terminal() && !is_dumb {
            _ if quiet => Mode::Quiet,
            true => Mode::Live,
            false => Mode::Plain,
        };
        Self { mode, bars: MultiProgress::new() }
    }

    /// The screen of a process beside the one that shows.
    pub fn silent() -> Self {
        Self { mode: Mode::Silent, bars: MultiProgress::new() }
    }

    /// Whether it is a terminal that shows lines that change.
    fn is_live(&self) -> bool {
        self.mode == Mode::Live
    }

    /// Whether only errors and results are asked for.
    pub fn is_quiet(&self) -> bool {
        matches!(self.mode, Mode::Quiet | Mode::Silent)
    }

    /// Whether colors are shown: on a terminal, unless NO_COLOR (<https://no-color.org>) or CLICOLOR=0 forbid them.
    pub fn has_colors(&self) -> bool {
        let is_set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        self.is_live() && is_set("NO_COLOR").is_none() && is_set("CLICOLOR").is_none_or(|value| value != "0")
    }

    /// Shows lines that stay, above what changes.
    pub fn show(&self, text: &str) {
        if !self.is_quiet() {
            self.write(format!("{}\n", escaped(text)).as_bytes());
        }
    }

    /// Shows lines that stay with `start` before them, broken at words where the terminal ends.
    pub fn show_wrapped(&self, start: &str, text: &str) {
        self.show(&wrapped(start, text, stderr_columns()));
    }

    /// Writes to stderr, moving what changes out of the way. That stderr may be closed stops no training.
    fn write(&self, bytes: &[u8]) {
        let write = || {
            let _ = io::stderr().lock().write_all(bytes);
        };
        match self.mode {
            Mode::Live => self.bars.suspend(write),
            Mode::Plain | Mode::Quiet => write(),
            Mode::Silent => {}
        }
    }

    /// Starts to show something that changes, in `style` where it changes in place.
    pub fn progress(&self, style: &str) -> Progress {
        let bar = self.is_live().then(|| {
            let style = ProgressStyle::with_template(style).expect("invariant: templates are well-formed");
            self.bars.add(ProgressBar::new(0).with_style(style))
        });
        Progress { screen: self.clone(), bar, last_shown: Instant::now() }
    }
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Screen::write(self, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Screen {
    type Writer = Screen;

    fn make_writer(&'a self) -> Screen {
        self.clone()
    }
}

/// A line that changes in place; elsewhere than on a terminal it is shown every half minute. It vanishes when dropped.
pub struct Progress {
    screen: Screen,
    bar: Option<ProgressBar>,
    last_shown: Instant,
}

impl Progress {
    /// Shows the present state, which is put together only if it is needed.
    pub fn update(&mut self, text: impl FnOnce() -> String) {
        match &self.bar {
            Some(bar) => bar.set_message(text()),
            None if self.last_shown.elapsed() >= PLAIN_INTERVAL => self.show(&text()),
            None => {}
        }
    }

    /// Shows nothing that changes until the next update: what was shown is over.
    pub fn clear(&mut self) {
        if let Some(bar) = &self.bar {
            bar.set_message("");
        }
    }

    /// Sets how much of what is done, for styles that show it.
    pub fn position(&mut self, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            if bar.length() != Some(total) {
                bar.set_length(total);
                bar.set_position(done);
                bar.reset_eta();
            }
            bar.set_position(done);
        }
    }

    /// Shows a line that stays.
    pub fn show(&mut self, text: &str) {
        self.screen.show(text);
        self.last_shown = Instant::now();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
            self.screen.bars.remove(bar);
        }
    }
}
