//! Logs: to stderr what the user asked to see, to the run directory what happened in the run.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use lowbit_train::{escaped, open_regular};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

use crate::cli::Verbosity;
use crate::output::{stderr_columns, wrapped};
use crate::progress::Screen;

/// Target of events that [`Screen`] shows in its own form.
pub const SHOWN: &str = "run";

/// The file `log.txt` of the run at hand, once there is one.
#[derive(Clone, Default)]
pub struct LogFile(Arc<Mutex<Option<File>>>);

impl LogFile {
    /// Logs to `log.txt` in the directory `run` from now on.
    pub fn open(&self, run: &Path) {
        let path = run.join("log.txt");
        match open_regular(&path, OpenOptions::new().create(true).append(true)) {
            Ok(file) => *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(file),
            Err(error) => tracing::warn!("cannot log to {}: {error}", path.display()),
        }
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(file) => file.write(bytes),
            None => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = LogFile;

    fn make_writer(&'a self) -> LogFile {
        self.clone()
    }
}

/// How events are written on the screen: warnings as errors are, `warning: ...`, in one paragraph, which is one line where it is
/// not wrapped; the others as in a log. Warnings of other crates say which.
struct OnScreen(Format<Full, ()>);

impl<S, N> FormatEvent<S, N> for OnScreen
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> std::fmt::Result {
        if *event.metadata().level() != Level::WARN {
            return self.0.format_event(context, writer, event);
        }
        let mut text = String::new();
        match event.metadata().target().starts_with("lowbit") {
            true => context.format_fields(Writer::new(&mut text), event)?,
            false => self.0.format_event(context, Writer::new(&mut text), event)?,
        }
        let text = text.trim_start().trim_start_matches("WARN ").lines().map(str::trim).collect::<Vec<_>>();
        let text = wrapped("warning: ", &escaped(&text.join(" ")), stderr_columns());
        match text.strip_prefix("warning") {
            Some(rest) if writer.has_ansi_escapes() => writeln!(writer, "\u{1b}[1;33mwarning\u{1b}[0m{rest}"),
            _ => writeln!(writer, "{text}"),
        }
    }
}

/// Starts logging for the rest of the process.
pub fn start(verbosity: Verbosity, screen: &Screen) -> LogFile {
    let file = LogFile::default();
    let (on_screen, in_file) = match verbosity {
        // What makes a result mean less is not to be missed.
        Verbosity::Quiet => (Level::WARN, Level::INFO),
        Verbosity::Normal => (Level::WARN, Level::INFO),
        Verbosity::Debug => (Level::DEBUG, Level::DEBUG),
        Verbosity::Trace => (Level::TRACE, Level::TRACE),
    };
    let ours =
        |level: Level| Targets::new().with_default(level.min(Level::WARN)).with_target("lowbit", level);
    let to_screen = fmt::layer()
        .event_format(OnScreen(Format::default().without_time()))
        .with_ansi(screen.has_colors())
        .with_writer(screen.clone())
        .with_filter(ours(on_screen).with_target(SHOWN, tracing::level_filters::LevelFilter::OFF));
    let to_file = fmt::layer()
        .with_ansi(false)
        // A full disk must not flood the screen; the training itself reports it.
        .log_internal_errors(false)
        .with_writer(file.clone())
        .with_filter(ours(in_file).with_target(SHOWN, in_file));
    Registry::default().with(to_screen).with(to_file).init();
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_one_line_that_says_of_which_crate() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let log = LogFile(Arc::new(Mutex::new(Some(path.reopen().unwrap()))));
        let layer = fmt::layer().event_format(OnScreen(Format::default().without_time())).with_ansi(false);
        let subscriber = Registry::default().with(layer.with_writer(log));
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(target: "lowbit::train", "one\n  two\u{202e}");
            tracing::warn!(target: "wgpu_core::device", "no\nmemory");
        });
        let written = std::fs::read_to_string(path.path()).unwrap();
        assert_eq!(written, "warning: one two\\u{202e}\nwarning: wgpu_core::device: no memory\n");
    }
}
