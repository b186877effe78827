//! Whole-window work: filling with a pattern and finding where contents differ.
//!
//! A pattern is repeated without end, starting at byte `phase` of it: so work that is split at
//! page borders goes on where it stopped.

use super::Window;

/// Bytes handled at a time, on the stack. Long enough that the copies run at the memory's speed.
const BLOCK: usize = 1024;

impl Window<'_> {
    /// Writes `pattern`, repeated from its byte `phase` on, over the whole window; gives the
    /// number of bytes written: the window's length, or zero if the pattern is empty or the window
    /// was made for reading.
    ///
    /// ```
    /// # use mem::{Access, Gpa, GuestMemory, MemoryMap};
    /// let memory = MemoryMap::anonymous(&[(Gpa(0), 0x1000)])?;
    /// let window = memory.window(Gpa(0), 5, Access::Write)?;
    /// window.fill(b"abc", 1);
    /// let mut bytes = [0; 6];
    /// memory.read(Gpa(0), &mut bytes)?;
    /// assert_eq!(&bytes, b"bcabc\0");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn fill(&self, pattern: &[u8], phase: usize) -> usize {
        let mut blocks = Repeated::new(pattern, phase);
        let mut done = 0;
        while done < self.len() {
            let written = self.write(done, blocks.block());
            if written == 0 {
                break;
            }
            blocks.advance(written);
            done += written;
        }
        done
    }

    /// The first offset at which this window and `other` differ, within the shorter length.
    pub fn mismatch(&self, other: &Window<'_>) -> Option<usize> {
        let len = self.len().min(other.len());
        let (mut ours, mut theirs) = ([0; BLOCK], [0; BLOCK]);
        let mut done = 0;
        while done < len {
            let step = BLOCK.min(len - done);
            let (ours, theirs) = (&mut ours[..step], &mut theirs[..step]);
            self.read(done, ours);
            other.read(done, theirs);
            if let Some(at) = first_difference(ours, theirs) {
                return Some(done + at);
            }
            done += step;
        }
        None
    }

    /// The first offset at which this window differs from `pattern`, repeated from its byte
    /// `phase` on. An empty pattern differs nowhere.
    pub fn mismatch_pattern(&self, pattern: &[u8], phase: usize) -> Option<usize> {
        let mut blocks = Repeated::new(pattern, phase);
        let mut ours = [0; BLOCK];
        let mut done = 0;
        while done < self.len() {
            let expected = blocks.block();
            let step = expected.len().min(BLOCK);
            let got = self.read(done, &mut ours[..step]);
            if got == 0 {
                break;
            }
            if let Some(at) = first_difference(&ours[..got], &expected[..got]) {
                return Some(done + at);
            }
            blocks.advance(got);
            done += got;
        }
        None
    }
}

/// Where two slices of one length first differ.
fn first_difference(a: &[u8], b: &[u8]) -> Option<usize> {
    // Comparing for equality first is much faster than looking for a position.
    if a == b {
        return None;
    }
    a.iter().zip(b).position(|(a, b)| a != b)
}

/// A pattern repeated without end, given out in pieces as long as a buffer allows.
struct Repeated<'a> {
    pattern: &'a [u8],
    /// Where in the pattern the next piece starts.
    phase: usize,
    /// A short pattern repeated to fill the buffer.
    buffer: [u8; BLOCK],
    /// Bytes of the buffer in use: whole repetitions; none for patterns longer than half of it.
    filled: usize,
}

impl<'a> Repeated<'a> {
    fn new(pattern: &'a [u8], phase: usize) -> Self {
        let mut buffer = [0; BLOCK];
        let mut filled = 0;
        if (1..=BLOCK / 2).contains(&pattern.len()) {
            for chunk in buffer.chunks_exact_mut(pattern.len()) {
                chunk.copy_from_slice(pattern);
                filled += pattern.len();
            }
        }
        Self { pattern, phase: phase.checked_rem(pattern.len()).unwrap_or(0), buffer, filled }
    }

    /// The next piece; empty only for an empty pattern.
    fn block(&self) -> &[u8] {
        let source = if self.filled == 0 { self.pattern } else { &self.buffer[..self.filled] };
        &source[self.phase..]
    }

    /// Moves on by `bytes`, no more than the last piece had.
    fn advance(&mut self, bytes: usize) {
        self.phase = (self.phase + bytes) % self.pattern.len();
    }
}
