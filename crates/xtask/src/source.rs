//! Rust source with its comments and strings told from its code.

/// What is left of a source file when parts of it are blanked out; line ends stay.
#[derive(Debug)]
pub(crate) struct Masked {
    /// Comments are spaces, and so is what is inside string and character literals (a `_` stands
    /// where the literal had text, so that its lines still count as code).
    pub(crate) code: String,
    /// Comments are spaces; literals stay.
    pub(crate) text: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Code,
    LineComment,
    BlockComment { depth: u32 },
    Str,
    RawStr { hashes: usize },
}

/// Masks `source`, which need not compile.
pub(crate) fn mask(source: &str) -> Masked {
    let chars: Vec<char> = source.chars().collect();
    let mut masked = Masked {
        code: String::with_capacity(source.len()),
        text: String::with_capacity(source.len()),
    };
    let mut state = State::Code;
    let mut at = 0;
    while at < chars.len() {
        let (len, class, next) = token(&chars, at, state);
        for &c in &chars[at..(at + len).min(chars.len())] {
            masked.push(c, class);
        }
        state = next;
        at += len;
    }
    masked
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Code,
    Literal,
    Comment,
}

impl Masked {
    fn push(&mut self, c: char, class: Class) {
        let blank = |mask: char| if c.is_whitespace() { c } else { mask };
        self.code.push(match class {
            Class::Code => c,
            Class::Literal => blank('_'),
            Class::Comment => blank(' '),
        });
        self.text.push(if class == Class::Comment { blank(' ') } else { c });
    }
}

/// How many characters from `at` belong together, what they are, and the state after them.
fn token(chars: &[char], at: usize, state: State) -> (usize, Class, State) {
    let next = chars.get(at + 1).copied();
    match (state, chars[at]) {
        (State::Code, '/') if next == Some('/') => (2, Class::Comment, State::LineComment),
        (State::Code, '/') if next == Some('*') => {
            (2, Class::Comment, State::BlockComment { depth: 1 })
        }
        (State::Code, '"') => (1, Class::Code, State::Str),
        (State::Code, 'r') if !follows_word(chars, at) => match raw_hashes(chars, at + 1) {
            Some(hashes) => (hashes + 2, Class::Code, State::RawStr { hashes }),
            None => (1, Class::Code, State::Code),
        },
        (State::Code, '\'') => (char_literal(chars, at), Class::Code, State::Code),
        (State::Code, _) => (1, Class::Code, State::Code),

        (State::LineComment, '\n') => (1, Class::Code, State::Code),
        (State::LineComment, _) => (1, Class::Comment, State::LineComment),

        (State::BlockComment { depth }, '*') if next == Some('/') => {
            let after =
                if depth == 1 { State::Code } else { State::BlockComment { depth: depth - 1 } };
            (2, Class::Comment, after)
        }
        (State::BlockComment { depth }, '/') if next == Some('*') => {
            (2, Class::Comment, State::BlockComment { depth: depth + 1 })
        }
        (State::BlockComment { .. }, _) => (1, Class::Comment, state),

        (State::Str, '\\') => (2, Class::Literal, State::Str),
        (State::Str, '"') => (1, Class::Code, State::Code),
        (State::Str, _) => (1, Class::Literal, State::Str),

        (State::RawStr { hashes }, '"') if closes(chars, at + 1, hashes) => {
            (hashes + 1, Class::Code, State::Code)
        }
        (State::RawStr { .. }, _) => (1, Class::Literal, state),
    }
}

/// Whether the character before `at` makes an `r` there part of a longer word (`br` starts a raw
/// string as well).
fn follows_word(chars: &[char], at: usize) -> bool {
    let before = at.checked_sub(1).map(|before| chars[before]);
    before.is_some_and(|c| c != 'b' && (c.is_alphanumeric() || c == '_'))
}

/// The number of `#` between `at` and a `"`, if a raw string starts so.
fn raw_hashes(chars: &[char], at: usize) -> Option<usize> {
    let hashes = chars[at..].iter().take_while(|&&c| c == '#').count();
    (chars.get(at + hashes) == Some(&'"')).then_some(hashes)
}

fn closes(chars: &[char], at: usize, hashes: usize) -> bool {
    chars.len() >= at + hashes && chars[at..at + hashes].iter().all(|&c| c == '#')
}

/// The length of the character literal at `at`, or 1 for a lifetime.
fn char_literal(chars: &[char], at: usize) -> usize {
    match (chars.get(at + 1), chars.get(at + 2)) {
        (Some('\\'), _) => {
            // The escaped character may itself be a quote.
            let rest = chars.get(at + 3..).unwrap_or_default();
            rest.iter().take_while(|&&c| c != '\'' && c != '\n').count() + 4
        }
        (Some(_), Some('\'')) => 3,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_are_told_from_code() {
        let source = r####"a /* b /* c */ d */ e // f
"g\"h" r#"i"j"# '"' 'k' &'l '\'' br"m" hr #"n""####;
        let masked = mask(source);
        let code =
            "a                   e     \n\"____\" r#\"___\"# '\"' 'k' &'l '\\'' br\"_\" hr #\"_\"";
        assert_eq!(masked.code, code);
        assert_eq!(masked.text.lines().nth(1), source.lines().nth(1));
        assert_eq!(masked.text.lines().next(), code.lines().next());
    }

    #[test]
    fn broken_source_is_masked_to_its_end() {
        for source in ["\"", "r#\"x", "/*", "'", "'\\", "\"\\", "r#", "//"] {
            assert_eq!(mask(source).code.chars().count(), source.chars().count(), "{source:?}");
        }
    }
}
