//! `unsafe` is written only in the rooms that may have it.
//!
//! The compiler forbids it where the workspace's lints are inherited; this check also sees to it
//! that nobody opts out of them elsewhere, and that rooms with a little of it keep it in one place.

use crate::source::mask;
use crate::{Error, File, Tree, Verdict};

/// Where `unsafe` may be written, and why.
pub(crate) const ROOMS: [(&str, &[&str]); 4] = [
    // Guest memory is mapped and accessed through pointers.
    ("mem", &["src/", "tests/"]),
    // The lock-free table; what its tests count and explore, and the array that its bench compares with.
    (
        "ioasid",
        &[
            "src/",
            "tests/loom",
            "tests/notify_memory.rs",
            "tests/fail_nth.rs",
            "benches/ioasid/find.rs",
        ],
    ),
    // The guest program maps portals and registers, stores to them, forks and swaps.
    ("guest", &["src/calls", "src/dma", "src/portal", "src/registers"]),
    // Supervision of QEMU: what a child process does between fork and exec.
    ("vsva", &["src/supervise"]),
];

/// Looks for the word in code, not in comments or strings.
pub fn check(tree: &Tree) -> Result<Verdict, Error> {
    let mut violations = Vec::new();
    let sources: Vec<&File> = tree.files.iter().filter(|file| file.is_source()).collect();
    for file in sources.iter().filter(|file| !may_have(file)) {
        for (number, line) in mask(&file.text).code.lines().enumerate() {
            if words(line).any(|word| word == "unsafe") {
                violations.push(format!(
                    "{}:{}: `unsafe` has no place here",
                    file.path,
                    number + 1
                ));
            }
        }
    }
    Ok(Verdict { violations, looked_at: format!("{} files", sources.len()) })
}

fn may_have(file: &File) -> bool {
    ROOMS.iter().any(|(room, places)| {
        let inside = file.path.strip_prefix("crates/").and_then(|path| path.strip_prefix(room));
        let inside = inside.and_then(|path| path.strip_prefix('/'));
        inside.is_some_and(|path| places.iter().any(|place| path.starts_with(place)))
    })
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violations(path: &str, text: &str) -> Vec<String> {
        let file = File { path: path.to_owned(), text: text.to_owned() };
        check(&Tree { files: vec![file], ..Tree::default() }).unwrap().violations
    }

    #[test]
    fn the_word_is_found_in_code_only() {
        let text = "// unsafe\nlet x = \"unsafe\"; #![forbid(unsafe_code)]\nunsafe { f() }\n";
        let found = violations("crates/iommu/src/a.rs", text);
        assert_eq!(found, ["crates/iommu/src/a.rs:3: `unsafe` has no place here"]);
    }

    #[test]
    fn the_rooms_that_may_have_it_may_have_it_in_their_place() {
        assert_eq!(violations("crates/mem/src/window.rs", "unsafe {}"), [""; 0]);
        assert_eq!(violations("crates/vsva/src/supervise/child.rs", "unsafe {}"), [""; 0]);
        assert_eq!(violations("crates/vsva/src/lab.rs", "unsafe {}").len(), 1);
        assert_eq!(violations("crates/memory/src/window.rs", "unsafe {}").len(), 1);
    }
}
