//! Cutting a byte stream into bounded lines.

use std::collections::VecDeque;

use crate::{LineError, MAX_LINE};

/// Cuts a byte stream into lines and holds at most one unfinished line of [`MAX_LINE`] bytes.
///
/// Feed bytes as they come, then take lines until there are none. A line that is too long is
/// dropped up to its newline and reported once in its place, so that the next line is whole again.
#[derive(Debug, Default)]
pub struct Lines {
    ready: VecDeque<Result<Vec<u8>, LineError>>,
    unfinished: Vec<u8>,
    /// Bytes of an overlong line dropped so far; zero when the current line still fits.
    dropped: usize,
}

impl Lines {
    /// An empty stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes in. Memory grows with whole lines fed and not yet taken.
    pub fn feed(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let whole = piece.ends_with(b"\n");
            self.extend(piece);
            if whole {
                self.finish();
            }
        }
    }

    /// The next whole line without its newline (and without a carriage return before it).
    ///
    /// Not an `Iterator`: `None` means "not yet", and more bytes may follow.
    #[expect(clippy::should_implement_trait, reason = "`None` is not the end of the stream")]
    pub fn next(&mut self) -> Option<Result<Vec<u8>, LineError>> {
        self.ready.pop_front()
    }

    /// Memory that the unfinished line holds, in bytes.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.unfinished.capacity()
    }

    fn extend(&mut self, piece: &[u8]) {
        if self.dropped > 0 {
            self.dropped = self.dropped.saturating_add(piece.len());
        } else if self.unfinished.len() + piece.len() > MAX_LINE {
            self.dropped = self.unfinished.len() + piece.len();
            self.unfinished = Vec::new();
        } else {
            self.unfinished.extend_from_slice(piece);
        }
    }

    fn finish(&mut self) {
        if self.dropped > 0 {
            self.ready.push_back(Err(LineError::TooLong { got: self.dropped }));
            self.dropped = 0;
            return;
        }
        let mut line = std::mem::take(&mut self.unfinished);
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        if !line.is_empty() {
            self.ready.push_back(Ok(line));
        }
    }
}
