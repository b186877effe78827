//! Every dependency from outside the workspace has its reason in `docs/dependencies.md`, and is
//! chosen in one place.

use toml::Table;

use crate::manifest::{parse, table};
use crate::{Error, Tree, Verdict};

const DOCUMENT: &str = "docs/dependencies.md";

/// Compares the root manifest's `[workspace.dependencies]` with the document's table, both ways,
/// and sees to it that crates take their dependencies from there.
pub fn check(tree: &Tree) -> Result<Verdict, Error> {
    let root = parse(tree, "Cargo.toml")?.ok_or(Error::Missing("Cargo.toml"))?;
    let chosen = chosen(&root);
    let document = tree.file(DOCUMENT).ok_or(Error::Missing(DOCUMENT))?;
    let documented = documented(&document.text);
    let mut violations = Vec::new();
    for name in chosen.iter().filter(|name| !documented.contains(name)) {
        violations.push(format!("`{name}` has no row in {DOCUMENT}"));
    }
    for name in documented.iter().filter(|name| !chosen.contains(name)) {
        violations.push(format!("{DOCUMENT} has a row for `{name}`, which nothing depends on"));
    }
    for package in &tree.packages {
        let outside = package.dependencies.iter().filter(|dependency| dependency.source.is_some());
        for dependency in outside.filter(|dependency| !chosen.contains(&dependency.name.as_str())) {
            let (from, to) = (&package.name, &dependency.name);
            violations.push(format!("{from} -> {to}: not chosen in [workspace.dependencies]"));
        }
    }
    Ok(Verdict { violations, looked_at: format!("{} dependencies", chosen.len()) })
}

/// The packages from outside that the root manifest chooses, each once, by their own names.
fn chosen(root: &Table) -> Vec<&str> {
    let all = table(root, "workspace").and_then(|workspace| table(workspace, "dependencies"));
    let outside = all.into_iter().flatten().filter(|(_, choice)| choice.get("path").is_none());
    let mut names: Vec<&str> = outside
        .map(|(key, choice)| choice.get("package").and_then(|name| name.as_str()).unwrap_or(key))
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The names in the first column of the document's table: rows that begin with "| `name` |".
fn documented<'d>(document: &'d str) -> Vec<&'d str> {
    let name = |line: &'d str| line.strip_prefix("| `")?.split('`').next();
    document.lines().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::File;

    #[test]
    fn both_lists_have_to_agree() {
        let file = |path: &str, text: &str| File { path: path.to_owned(), text: text.to_owned() };
        let manifest = "[workspace.dependencies]\nmem = { path = 'crates/mem' }\nspin = '0.12'\n\
            clap = '4'\nparser = { package = 'clap', version = '4' }\n";
        let document = "| crate | why |\n|---|---|\n| `spin` | locks |\n| `libc` | - |\n";
        let files = vec![file("Cargo.toml", manifest), file(DOCUMENT, document)];
        let verdict = check(&Tree { files, ..Tree::default() }).unwrap();
        assert_eq!(
            verdict.violations,
            [
                "`clap` has no row in docs/dependencies.md",
                "docs/dependencies.md has a row for `libc`, which nothing depends on",
            ]
        );
    }

    #[test]
    fn a_crate_s_own_choice_is_refused() {
        let text = "[workspace.dependencies]".to_owned();
        let mut tree = Tree::default();
        tree.files.push(File { path: "Cargo.toml".to_owned(), text });
        tree.files.push(File { path: DOCUMENT.to_owned(), text: String::new() });
        let package =
            r#"{"name": "mem", "dependencies": [{"name": "libc", "source": "registry"}]}"#;
        tree.packages.push(serde_json::from_str(package).unwrap());
        let expected = ["mem -> libc: not chosen in [workspace.dependencies]"];
        assert_eq!(check(&tree).unwrap().violations, expected);
    }
}
