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
use std::path::PathBuf;
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

/// What a view is taken of, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// The server's directory.
    pub dir: PathBuf,
    /// The one guest to be shown, or all.
    pub guest: Option<String>,
    /// How it is shown.
    pub form: Form,
    /// How the view is repeated, if it is.
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

/// Shows a server's snapshot on `out`: once, or until `stop` is raised.
///
/// # Errors
/// [`Error`]; a server that ends while it is watched is one.
pub fn run(options: &Options, stop: &Stop, out: &mut dyn Write) -> Result<(), Error> {
    let mut client = Client::connect(&options.dir)?;
    let mut first = true;
    loop {
        let next = Instant::now() + INTERVAL;
        let snapshot = client.ask(options.guest.as_deref())?;
        let text = render(snapshot, options.form);
        let shown = match options.watch {
            Some(Watch::Screen { height }) => {
                out.write_all(in_place(&text, height, first).as_bytes())
            }
            Some(Watch::Stream) | None => out.write_all(text.as_bytes()),
        };
        shown.and_then(|()| out.flush()).map_err(Error::Output)?;
        first = false;
        if options.watch.is_none() {
            return Ok(());
        }
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
