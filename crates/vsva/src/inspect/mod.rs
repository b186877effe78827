//! `vsva inspect`: what a running server's guests have and do.
//!
//! ```text
//!  server::inspector ◄── wire (one JSON line each way, over DIR/inspect.sock) ──► Client ─► text | JSON | metrics
//! ```

mod client;
mod metrics;
pub mod snapshot;
mod text;
pub mod wire;

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

pub use client::{Client, Error};
pub use metrics::text as metrics;
pub use text::view;

use crate::stop::Stop;
use snapshot::Snapshot;

/// How often a view that is watched is taken.
pub const INTERVAL: Duration = Duration::from_secs(1);

/// How a snapshot is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Tables for a person, at most this many columns wide.
    Text {
        /// Columns.
        width: u16,
    },
    /// One JSON object in one line.
    Json,
    /// What Prometheus takes.
    Metrics,
}

/// How a view is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// In which form.
    pub form: Form,
    /// How it is repeated, if it is.
    pub watch: Option<Watch>,
}

/// How a view is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Watch {
    /// In place, on a terminal of this many lines.
    Screen {
        /// Lines.
        height: u16,
    },
    /// One after another.
    Stream,
}

/// Shows the server whose directory `dir` is on `out`, all of it or one guest: once, or until `stop` is raised. `look`
/// is asked for every view, for a terminal may change its size.
///
/// # Errors
/// [`Error`]; a server that ends while it is watched is one.
pub fn run(
    dir: &Path,
    guest: Option<&str>,
    look: impl Fn() -> Look,
    stop: &Stop,
    out: &mut dyn Write,
) -> Result<(), Error> {
    let mut client = Client::connect(dir)?;
    let mut first = true;
    loop {
        let next = Instant::now() + INTERVAL;
        let snapshot = client.ask(guest)?;
        let Look { form, watch } = look();
        let text = match watch {
            Some(Watch::Screen { height }) => in_place(&render(snapshot, form), height, first),
            Some(Watch::Stream) | None => render(snapshot, form),
        };
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::Output)?;
        if watch.is_none() {
            return Ok(());
        }
        first = false;
        while Instant::now() < next {
            if stop.pause(next).is_err() {
                return Ok(());
            }
        }
    }
}

/// The snapshot in that form, with its last line ended.
pub fn render(snapshot: Snapshot, form: Form) -> String {
    match form {
        Form::Text { width } => format!("{}\n", view(&snapshot, width)),
        Form::Json => json(&snapshot),
        Form::Metrics => metrics(snapshot),
    }
}

fn json(snapshot: &Snapshot) -> String {
    // It has no map with keys that are no strings, the one thing that JSON cannot hold.
    serde_json::to_string(snapshot).unwrap_or_default() + "\n"
}

/// `text` over what was shown before it, cut to a terminal of `height` lines.
fn in_place(text: &str, height: u16, first: bool) -> String {
    const HOME: &str = "\x1b[H";
    const CLEAR_SCREEN: &str = "\x1b[2J";
    const CLEAR_LINE: &str = "\x1b[K";
    const CLEAR_BELOW: &str = "\x1b[J";
    let lines: Vec<_> = text.lines().collect();
    // The last line stays free, for the cursor.
    let room = usize::from(height).saturating_sub(1).max(1);
    let kept = if lines.len() > room { room - 1 } else { lines.len() };
    let mut screen = if first { CLEAR_SCREEN.to_owned() } else { String::new() };
    screen.push_str(HOME);
    let left_out = lines.len() - kept;
    let more = (left_out > 0)
        .then(|| format!("… {left_out} more lines: --once shows all, --guest one guest's"));
    for line in lines.into_iter().take(kept).chain(more.as_deref()) {
        screen.push_str(line);
        screen.push_str(CLEAR_LINE);
        screen.push('\n');
    }
    screen.push_str(CLEAR_BELOW);
    screen
}

#[cfg(test)]
mod tests;
