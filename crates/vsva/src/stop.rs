//! Being asked to stop: Ctrl-C, `kill`, a closed terminal.
//!
//! The signal handler only sets a flag. Every wait of the program looks at the flag at least once per
//! [`SLICE`] and returns [`Stopped`], so that children, sockets and directories are given back by the ordinary
//! unwinding of the stack.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// The longest that a wait goes on without looking at the stop flag.
pub const SLICE: Duration = Duration::from_millis(50);

/// The exit code of a run that a signal ended (128 + SIGINT, as shells count).
pub const EXIT_STOPPED: u8 = 130;

/// The user asked the program to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stopped by a signal")]
pub struct Stopped;

/// Whether the user has asked to stop; clones share the answer.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// A flag that SIGINT, SIGTERM and SIGHUP raise. A second such signal ends the program at once: children die
    /// with it by their parent-death signal, the private directory stays.
    ///
    /// # Errors
    /// Those of the operating system on installing a handler.
    pub fn on_signals() -> io::Result<Self> {
        let stop = Self::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            // In this order, so that the first signal finds the flag down and only the second one exits.
            signal_hook::flag::register_conditional_shutdown(
                signal,
                i32::from(EXIT_STOPPED),
                Arc::clone(&stop.0),
            )?;
            signal_hook::flag::register(signal, Arc::clone(&stop.0))?;
        }
        Ok(stop)
    }

    /// Asks to stop, as a signal would.
    pub fn raise(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Whether to go on.
    ///
    /// # Errors
    /// [`Stopped`] once the user asked to stop.
    pub fn check(&self) -> Result<(), Stopped> {
        if self.0.load(Ordering::SeqCst) {
            return Err(Stopped);
        }
        Ok(())
    }

    /// Sleeps for one [`SLICE`], or less when `until` is nearer.
    ///
    /// # Errors
    /// [`Stopped`] once the user asked to stop.
    pub fn pause(&self, until: Instant) -> Result<(), Stopped> {
        self.check()?;
        std::thread::sleep(SLICE.min(until.saturating_duration_since(Instant::now())));
        self.check()
    }
}
