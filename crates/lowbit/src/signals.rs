//! Signals that ask a training to stop.

use std::io::{self, Write};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::exit_code::Code;
use crate::progress::Screen;

/// A signal that comes so soon after the first is the same wish: `timeout` signals a process and then its group.
const SAME_WISH: Duration = Duration::from_millis(500);

/// Holds signals that ask to stop until it is known what the command makes of them, in this thread and those that it starts:
/// one that comes at once is to be answered too. Followed by [`release`] or [`stop_on_signals`].
pub fn hold() {
    mask(Mask::Hold);
}

/// Lets signals that ask to stop come.
pub fn release() {
    mask(Mask::Release);
}

/// A flag that the first Ctrl-C or termination signal sets. A later one ends the process.
pub fn stop_on_signals(screen: &Screen) -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let (flag, screen) = (stop.clone(), screen.clone());
    let mut asked: Option<Instant> = None;
    handle(move || match asked {
        None => {
            asked = Some(Instant::now());
            flag.store(true, Ordering::Relaxed);
            screen.show("stopping (press Ctrl-C again to abort)");
        }
        Some(first) if first.elapsed() < SAME_WISH => {}
        Some(_) => {
            let _ = writeln!(io::stderr(), "aborted");
            process::exit(Code::Interrupted.into());
        }
    })?;
    Ok(stop)
}

/// Calls `handler` for each Ctrl-C or termination signal from now on. Signals that whoever started the process had it ignore, as `nohup`
/// and the background jobs of a shell do, stay ignored.
pub fn handle(handler: impl FnMut() + Send + 'static) -> anyhow::Result<()> {
    let ignored = ignored();
    // Held until they are ignored again, or one that comes meanwhile would be taken for a wish.
    hold();
    ctrlc::set_handler(handler)?;
    ignore(&ignored);
    release();
    Ok(())
}

/// Sets `stop` with SIGUSR1 too, which Slurm sends before the time of a job is over, and launchers of several processes pass on as it is:
/// after Ctrl-C they leave but a second for a step and a checkpoint.
///
/// # Errors
/// If no thread can be started.
pub fn stop_on_user_signal(stop: &Arc<AtomicBool>, screen: &Screen) -> anyhow::Result<()> {
    #[cfg(unix)]
    {
        /// Time between two looks at whether it has come.
        const INTERVAL: Duration = Duration::from_millis(100);

        let (stop, screen) = (stop.clone(), screen.clone());
        watch_user_signal();
        let wait = move || {
            while !has_user_signal() {
                std::thread::sleep(INTERVAL);
            }
            stop.store(true, Ordering::Relaxed);
            screen.show("stopping");
        };
        std::thread::Builder::new().spawn(wait).map_err(crate::no_threads)?;
    }
    #[cfg(not(unix))]
    let _ = (stop, screen);
    Ok(())
}

/// A flag that Ctrl-C and termination signals set.
pub fn set_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    handle(move || flag.store(true, Ordering::Relaxed))?;
    Ok(stop)
}

/// Lets a write beyond the largest file that is allowed (`ulimit -f`) fail with an error, which has a line, where a signal would
/// end the process without one.
pub fn let_large_writes_fail() {
    #[cfg(unix)]
    ignore(&[libc::SIGXFSZ]);
}

/// What is done to signals that come to this thread.
#[derive(Clone, Copy)]
enum Mask {
    Hold,
    Release,
}

#[cfg(unix)]
use unix::{has_user_signal, ignore, ignored, mask, watch_user_signal};

#[cfg(unix)]
mod unix {
    use std::mem::MaybeUninit;
    use std::ptr;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::Mask;

    /// What the handler is set for.
    const HANDLED: [libc::c_int; 3] = [libc::SIGHUP, libc::SIGINT, libc::SIGTERM];

    /// Whether SIGUSR1 has come.
    static USER_SIGNAL: AtomicBool = AtomicBool::new(false);

    extern "C" fn note_user_signal(_: libc::c_int) {
        USER_SIGNAL.store(true, Ordering::Relaxed);
    }

    pub fn has_user_signal() -> bool {
        USER_SIGNAL.load(Ordering::Relaxed)
    }

    /// Has SIGUSR1 noted from now on.
    #[expect(unsafe_code, reason = "the standard library sets no handler")]
    pub fn watch_user_signal() {
        let handler = note_user_signal as extern "C" fn(libc::c_int);
        // SAFETY: the handler stores to an atomic, which is allowed at any moment.
        unsafe { libc::signal(libc::SIGUSR1, handler as libc::sighandler_t) };
    }

    /// Those that are ignored.
    #[expect(unsafe_code, reason = "the standard library does not tell how a signal is handled")]
    pub fn ignored() -> Vec<libc::c_int> {
        let is_ignored = |signal: &libc::c_int| {
            let mut action = MaybeUninit::<libc::sigaction>::uninit();
            // SAFETY: without a new action the call changes nothing; it writes the present one where there is room for it.
            let status = unsafe { libc::sigaction(*signal, ptr::null(), action.as_mut_ptr()) };
            // SAFETY: it was written if the call says so.
            status == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
        };
        HANDLED.into_iter().filter(is_ignored).collect()
    }

    /// Has the process ignore `signals`.
    #[expect(unsafe_code, reason = "the standard library does not set how a signal is handled")]
    pub fn ignore(signals: &[libc::c_int]) {
        for &signal in signals {
            // SAFETY: to ignore a signal runs no code of this process.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
    }

    /// Holds the signals that are handled back, or no longer. Threads that this one starts meanwhile do not get them either.
    #[expect(unsafe_code, reason = "the standard library does not hold signals back")]
    pub fn mask(mask: Mask) {
        let how = match mask {
            Mask::Hold => libc::SIG_BLOCK,
            Mask::Release => libc::SIG_UNBLOCK,
        };
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the first call makes the set, to which the others add signals that exist; no code of this process is run.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in HANDLED {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(how, set.as_ptr(), ptr::null_mut());
        }
    }
}

/// Elsewhere no signal is ignored by heritage.
#[cfg(not(unix))]
fn ignored() -> Vec<i32> {
    Vec::new()
}

#[cfg(not(unix))]
fn ignore(_: &[i32]) {}

#[cfg(not(unix))]
fn mask(_: Mask) {}
