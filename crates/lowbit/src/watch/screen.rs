//! A run on a terminal, which is given back as it was, however the watching ends.

use std::fs::File;
use std::io::{self, Write};
use std::panic;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lowbit_train::RunDir;
use ratatui::Terminal;
use ratatui::backend::TermionBackend;
use ratatui::termion::event::Key;
use ratatui::termion::input::TermRead;
use ratatui::termion::raw::IntoRawMode;
use ratatui::termion::screen::IntoAlternateScreen;
use ratatui::termion::{async_stdin, cursor, screen::ToMainScreen};

use super::INTERVAL;
use super::run::Watched;
use super::view::{Chosen, Palette, counts, draw};
use crate::exit_code::Code;

/// Time between two looks for keys.
const TICK: Duration = Duration::from_millis(50);

/// Whether there is a terminal to read keys from.
pub fn is_possible() -> bool {
    File::open("/dev/tty").is_ok()
}

/// Shows the run until a key or a signal ends it.
pub fn show(run: &RunDir, stop: &AtomicBool) -> anyhow::Result<Code> {
    let mut watched = Watched::read(run)?;
    // A panic is told before the screen is left by the end of this function: it would be gone with the screen.
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let _ = write!(io::stdout(), "{}{}", ToMainScreen, cursor::Show);
        let _ = io::stdout().flush();
        report(info);
    }));
    let screen = io::stdout().into_raw_mode()?.into_alternate_screen()?;
    let mut terminal = Terminal::new(TermionBackend::new(screen))?;
    let mut keys = async_stdin().keys();
    let palette = Palette { has_colors: has_colors() };
    let mut chosen = Chosen::default();
    let mut read = Instant::now();
    loop {
        terminal.draw(|frame| draw(frame, &watched, &chosen, palette))?;
        // Until there is something new to show.
        loop {
            if stop.load(Ordering::Relaxed) {
                return Ok(Code::Interrupted);
            }
            match keys.next().transpose()? {
                Some(key) if is_end(key) => return Ok(Code::Success),
                Some(key) => {
                    chosen = moved(chosen, key, counts(&watched, chosen.layer));
                    break;
                }
                None if read.elapsed() >= INTERVAL => {
                    // A run that is about to be moved, or set back, is read the next time.
                    if let Ok(now) = Watched::read(run) {
                        watched = now;
                    }
                    read = Instant::now();
                    break;
                }
                None => std::thread::sleep(TICK),
            }
        }
    }
}

fn is_end(key: Key) -> bool {
    matches!(key, Key::Char('q' | 'Q') | Key::Ctrl('c') | Key::Esc)
}

/// What is chosen after a key, of so many curves and layers.
fn moved(chosen: Chosen, key: Key, (n_curves, n_layers): (usize, usize)) -> Chosen {
    let Chosen { curves, layer } = chosen;
    let curves = curves.min(n_curves.saturating_sub(1));
    match key {
        Key::Right => Chosen { curves: (curves + 1) % n_curves.max(1), layer },
        Key::Left => Chosen { curves: (curves + n_curves.saturating_sub(1)) % n_curves.max(1), layer },
        Key::Down => Chosen { curves, layer: (layer + 1).min(n_layers.saturating_sub(1)) },
        Key::Up => Chosen { curves, layer: layer.saturating_sub(1) },
        _ => chosen,
    }
}

/// Whether colors are shown, unless NO_COLOR (<https://no-color.org>) or CLICOLOR=0 forbid them.
fn has_colors() -> bool {
    let is_set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    is_set("NO_COLOR").is_none() && is_set("CLICOLOR").is_none_or(|value| value != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_move_and_end() {
        for key in [Key::Char('q'), Key::Esc, Key::Ctrl('c')] {
            assert!(is_end(key));
        }
        assert!(!is_end(Key::Char('x')));
        let of = |curves, layer| Chosen { curves, layer };
        let moves = [
            (of(0, 0), Key::Right, of(1, 0)),
            (of(2, 0), Key::Right, of(0, 0)),
            (of(0, 0), Key::Left, of(2, 0)),
            (of(0, 0), Key::Up, of(0, 0)),
            (of(0, 0), Key::Down, of(0, 1)),
            (of(0, 3), Key::Down, of(0, 3)),
            (of(1, 1), Key::Char('x'), of(1, 1)),
        ];
        for (from, key, to) in moves {
            assert_eq!(moved(from, key, (3, 4)), to, "{key:?}");
        }
    }
}
