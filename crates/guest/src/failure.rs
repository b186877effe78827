//! Why a check does not hold, in words for the lab's table.

use std::fmt::{self, Display};

/// Longest text that goes into a message, in bytes; the rest is cut off.
const MAX_TEXT: usize = 4096;

/// A check that does not hold. Made from any error by `?`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure(String);

/// What a check found: what was measured, or why it does not hold.
pub(crate) type Outcome<T = String> = Result<T, Failure>;

impl Failure {
    /// A failure with these words.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The same, and where it happened.
    pub(crate) fn at(self, place: impl Display) -> Self {
        Self(format!("{place}: {}", self.0))
    }
}

impl Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            text = format!("{text}: {inner}");
            source = inner.source();
        }
        Self(text)
    }
}

/// Adds the place to a failure.
pub(crate) trait Context<T> {
    /// The same outcome; a failure says where.
    fn at(self, place: impl Display) -> Outcome<T>;
}

impl<T, E: Into<Failure>> Context<T> for Result<T, E> {
    fn at(self, place: impl Display) -> Outcome<T> {
        self.map_err(|error| error.into().at(place))
    }
}

/// Returns a failure unless the condition holds; like `assert!`, without a panic.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err($crate::failure::Failure::new(format!($($text)+)));
        }
    };
}
pub(crate) use ensure;

/// A text cut to what a message carries.
pub(crate) fn clip(text: &str) -> String {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// Says where two buffers of the same length differ, if they do.
pub(crate) fn same(what: &str, got: &[u8], expected: &[u8]) -> Outcome<()> {
    ensure!(got.len() == expected.len(), "{what}: {} bytes, not {}", got.len(), expected.len());
    let Some(first) = got.iter().zip(expected).position(|(got, expected)| got != expected) else {
        return Ok(());
    };
    let wrong = got.iter().zip(expected).filter(|(got, expected)| got != expected).count();
    let (got, expected) = (got.get(first).copied(), expected.get(first).copied());
    Err(Failure::new(format!(
        "{what}: {wrong} wrong bytes, the first at {first}: {:#04x}, not {:#04x}",
        got.unwrap_or_default(),
        expected.unwrap_or_default(),
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_located_and_counted() {
        assert_eq!(same("copy", b"abc", b"abc"), Ok(()));
        let text = same("copy", b"abcd", b"aXcY").unwrap_err().to_string();
        assert_eq!(text, "copy: 2 wrong bytes, the first at 1: 0x62, not 0x58");
        assert!(same("copy", b"ab", b"abc").is_err());
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        assert_eq!(clip("short"), "short");
        let clipped = clip(&"ü".repeat(MAX_TEXT));
        assert_eq!(clipped.len(), MAX_TEXT);
        let odd = format!("x{}", "ü".repeat(MAX_TEXT));
        assert_eq!(clip(&odd).len(), MAX_TEXT - 1);
    }

    #[test]
    fn errors_keep_their_sources() {
        let failure: Failure = std::io::Error::other("disk on fire").into();
        assert_eq!(failure.at("reading").to_string(), "reading: disk on fire");
    }
}
