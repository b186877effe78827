//! What a person reads: plain lines, and colour and a moving transfer line only where a terminal shows them.

use std::io::{self, IsTerminal as _, Write};
use std::sync::{Mutex, PoisonError};

use comfy_table::{ContentArrangement, Table};

/// Width of tables where no terminal gives one, in columns.
const DEFAULT_WIDTH: u16 = 100;

/// Bytes in a megabyte as people and package managers count it.
const MEGABYTE: f64 = 1e6;

/// How a result looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A check that held.
    Ok,
    /// A check that did not.
    Fail,
    /// Neither: a step, a remark.
    Note,
}

/// The place where lines for a person go. Writing never fails and never panics: a closed pipe loses lines.
pub struct Screen {
    out: Mutex<Out>,
    terminal: bool,
    colour: bool,
    width: u16,
    height: Option<u16>,
}

struct Out {
    to: Box<dyn Write + Send>,
    /// A transfer line is on display and must be wiped before the next line.
    transfer: bool,
}

impl Screen {
    /// Standard output.
    pub fn stdout() -> Self {
        let size = size_of(&io::stdout());
        Self::to_stream(Box::new(io::stdout()), io::stdout().is_terminal(), size)
    }

    /// Standard error: where lines go when standard output is for a program.
    pub fn stderr() -> Self {
        let size = size_of(&io::stderr());
        Self::to_stream(Box::new(io::stderr()), io::stderr().is_terminal(), size)
    }

    /// Nowhere, for tests and callers that only want results.
    pub fn none() -> Self {
        Self::to_stream(Box::new(io::sink()), false, None)
    }

    /// `size` is in columns and lines.
    fn to_stream(to: Box<dyn Write + Send>, terminal: bool, size: Option<(u16, u16)>) -> Self {
        let colour = terminal && std::env::var_os("NO_COLOR").is_none();
        let width = size.map_or(DEFAULT_WIDTH, |(width, _)| width);
        let height = size.map(|(_, height)| height).filter(|_| terminal);
        Self { out: Mutex::new(Out { to, transfer: false }), terminal, colour, width, height }
    }

    /// The width that tables should keep to, in columns.
    pub fn width(&self) -> u16 {
        self.width
    }

    /// Lines of the terminal, if it is one that knows.
    pub fn height(&self) -> Option<u16> {
        self.height
    }

    /// A line of its own.
    pub fn line(&self, text: &str) {
        self.with(|out| writeln!(out, "{text}"));
    }

    /// A line that begins with a mark: `ok`, `FAIL` or a dash.
    pub fn mark(&self, mark: Mark, text: &str) {
        let painted = self.paint(mark);
        self.with(|out| writeln!(out, "  {painted} {text}"));
    }

    /// The mark, four columns wide, coloured where a terminal shows it.
    fn paint(&self, mark: Mark) -> String {
        let (text, colour) = match mark {
            Mark::Ok => ("ok  ", "32"),
            Mark::Fail => ("FAIL", "31"),
            Mark::Note => ("-   ", "2"),
        };
        if self.colour {
            format!("\x1b[{colour}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// How far a transfer of `total` bytes is. Shown on a terminal only, in place.
    pub fn transfer(&self, done: u64, total: u64) {
        if !self.terminal {
            return;
        }
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        out.transfer = true;
        let text = format!("\r       {} of {}\x1b[K", megabytes(done), megabytes(total));
        let _ = out.to.write_all(text.as_bytes()).and_then(|()| out.to.flush());
    }

    fn with(&self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) {
        let mut out = self.out.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut out.transfer) {
            let _ = out.to.write_all(b"\r\x1b[K");
        }
        let _ = write(&mut out.to).and_then(|()| out.to.flush());
    }
}

/// An empty table, at most `width` columns wide.
pub fn table(width: u16) -> Table {
    let mut table = Table::new();
    table.load_preset(RULES);
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    table
}

/// The look of tables, a character for each part in the library's order: a rule above, below the header and at the end.
const RULES: &str = "  ── ──      ──    ";

/// A peer's text without what would move a terminal's cursor.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// A size as people read it: `38.0 MB`.
pub fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / MEGABYTE)
}

/// Columns and lines of a terminal.
fn size_of(stream: &impl rustix::fd::AsFd) -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(stream).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn shown(terminal: bool, use_it: impl FnOnce(&Screen)) -> String {
        let shared = Shared::default();
        use_it(&Screen::to_stream(Box::new(shared.clone()), terminal, None));
        let bytes = shared.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn plain_lines_without_a_terminal() {
        let text = shown(false, |screen| {
            screen.transfer(1, 2);
            screen.mark(Mark::Fail, "a check");
            screen.line("end");
        });
        assert_eq!(text, "  FAIL a check\nend\n");
    }

    #[test]
    fn a_line_wipes_the_transfer_line() {
        let text = shown(true, |screen| {
            screen.transfer(500_000, 38_000_000);
            screen.line("done");
        });
        assert_eq!(text, "\r       0.5 MB of 38.0 MB\x1b[K\r\x1b[Kdone\n");
    }
}
