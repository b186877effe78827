//! No path or host of anyone's machine in the tree.

use std::iter::repeat;

use crate::source::mask;
use crate::{Error, File, Tree, Verdict};

/// Folders that exist on one machine and not on the next, as the first part of a path.
const FOLDERS: [&str; 4] = ["home", "root", "work", "Users"];

/// Hosts that are nobody's: reserved for examples and tests (RFC 2606, RFC 6761).
const EXAMPLE_HOSTS: [&str; 6] =
    [".example", ".invalid", ".test", "example.com", "example.org", "localhost"];

/// Where cargo says that a crate comes from the registry, in every lock file alike.
const LOCK_FILE_SOURCE: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Looks for absolute paths into someone's folders in every file, and for addresses of hosts in
/// what is built or run. Text for people (documents, licences, comments) may name public pages.
pub fn check(tree: &Tree) -> Result<Verdict, Error> {
    let mut violations = Vec::new();
    let files = tree.files.iter().filter(|file| {
        // This file names what it looks for.
        !file.is_fixture() && file.path != "crates/xtask/src/paths.rs"
    });
    let mut looked_at = 0;
    for file in files {
        looked_at += 1;
        let runs = executable_text(file);
        let runs = runs.iter().flat_map(|text| text.lines()).chain(repeat(""));
        for (number, (line, run)) in file.text.lines().zip(runs).enumerate() {
            let place = format!("{}:{}", file.path, number + 1);
            if let Some(folder) = FOLDERS.iter().find(|folder| names_folder(line, folder)) {
                violations.push(format!("{place}: a path in someone's /{folder}"));
            }
            violations.extend(hosts(run).map(|host| format!("{place}: the host {host}")));
        }
    }
    Ok(Verdict { violations, looked_at: format!("{looked_at} files") })
}

/// The part of a file that is built or run, line for line; `None` for text for people.
fn executable_text(file: &File) -> Option<String> {
    let name = file.path.rsplit('/').next().unwrap_or_default();
    if name.ends_with(".rs") {
        return Some(mask(&file.text).text);
    }
    if name == "Cargo.lock" {
        return Some(file.text.replace(LOCK_FILE_SOURCE, ""));
    }
    let for_people = name.ends_with(".md") || name.starts_with("LICENSE");
    (!for_people).then(|| file.text.clone())
}

/// Whether `line` has an absolute path that begins with `folder` and goes on.
fn names_folder(line: &str, folder: &str) -> bool {
    let path = format!("/{folder}/");
    line.match_indices(&path).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let relative = |c: char| c.is_alphanumeric() || "._-~*}$)>/".contains(c);
        !before.is_some_and(relative)
    })
}

/// The hosts of a line's addresses that are somebody's.
fn hosts(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("://").filter_map(|(at, separator)| {
        let rest = &line[at + separator.len()..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '.' && c != '-');
        let host = &rest[..end.unwrap_or(rest.len())];
        let is_example = EXAMPLE_HOSTS.iter().any(|example| host.ends_with(example));
        (host.contains('.') && !is_example).then_some(host)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violations(path: &str, text: &str) -> Vec<String> {
        let file = File { path: path.to_owned(), text: text.to_owned() };
        check(&Tree { files: vec![file], ..Tree::default() }).unwrap().violations
    }

    #[test]
    fn a_machine_s_path_is_found_in_any_file() {
        let found = violations("docs/a.md", "run `/home/me/x`\n../home/x /homes/x src/root/y\n");
        assert_eq!(found, ["docs/a.md:1: a path in someone's /home"]);
    }

    #[test]
    fn a_host_is_found_in_what_runs() {
        let text = "// https://a.net/spec\nlet x = \"http://b.net/debian\";\nlet y = \"http://c.example/\";";
        assert_eq!(violations("crates/a/src/a.rs", text), ["crates/a/src/a.rs:2: the host b.net"]);
        assert_eq!(violations(".ci/run", "curl https://d.net"), [".ci/run:1: the host d.net"]);
        assert_eq!(violations("README.md", "see https://e.net"), [""; 0]);
    }

    #[test]
    fn the_registry_is_named_in_lock_files_only() {
        let source = format!("source = \"{LOCK_FILE_SOURCE}\"");
        assert_eq!(violations("Cargo.lock", &source), [""; 0]);
        assert_eq!(violations("Cargo.toml", &source).len(), 1);
        assert_eq!(violations("Cargo.lock", "source = \"registry+https://f.net/i\"").len(), 1);
    }
}
