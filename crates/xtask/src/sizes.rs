//! No source file outgrows its reader.

use crate::source::mask;
use crate::{Error, File, Tree, Verdict};

/// Most lines of code (not blank, not comment) in one file.
pub const MAX_LINES: usize = 600;

/// Counts the lines of code of every Rust file.
pub fn check(tree: &Tree) -> Result<Verdict, Error> {
    let mut violations = Vec::new();
    let sources: Vec<&File> = tree.files.iter().filter(|file| file.is_source()).collect();
    for file in &sources {
        let lines = lines_of_code(&file.text);
        if lines > MAX_LINES {
            violations.push(format!("{}: {lines} lines of code; {MAX_LINES} at most", file.path));
        }
    }
    Ok(Verdict { violations, looked_at: format!("{} files", sources.len()) })
}

fn lines_of_code(source: &str) -> usize {
    mask(source).code.lines().filter(|line| !line.trim().is_empty()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blank_lines_and_comments_do_not_count() {
        let text =
            "//! Page.\n\nfn f() {\n    /* why\n    at length */\n    g(\"two\n lines\")\n}\n";
        assert_eq!(lines_of_code(text), 4);
    }

    #[test]
    fn one_line_too_many_is_refused() {
        let path = "crates/iommu/src/big.rs".to_owned();
        let violations = |lines| {
            let file = File { path: path.clone(), text: "x;\n".repeat(lines) };
            check(&Tree { files: vec![file], ..Tree::default() }).unwrap().violations
        };
        assert_eq!(violations(MAX_LINES), [""; 0]);
        assert_eq!(violations(MAX_LINES + 1).len(), 1);
    }
}
