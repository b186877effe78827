//! Every crate has the workspace's lints: by inheriting them or, in a room with `unsafe`, by a
//! table that repeats every other lint at the same level or above.

use toml::{Table, Value};

use crate::manifest::{parse, table};
use crate::{unsafety, Error, Tree, Verdict};

/// Lints that a room with `unsafe` may set lower: the one it is about, and the one whose entry in
/// the workspace only declares names (it warns by default).
const OWN: [(&str, &str); 2] = [("rust", "unsafe_code"), ("rust", "unexpected_cfgs")];

/// Compares each crate's `[lints]` with the workspace's.
pub fn check(tree: &Tree) -> Result<Verdict, Error> {
    let root = parse(tree, "Cargo.toml")?.ok_or(Error::Missing("Cargo.toml"))?;
    let wanted = table(&root, "workspace").and_then(|workspace| table(workspace, "lints"));
    let wanted = wanted.cloned().unwrap_or_default();
    let mut violations = Vec::new();
    for package in &tree.packages {
        let path = format!("crates/{}/Cargo.toml", package.name);
        let Some(manifest) = parse(tree, &path)? else {
            violations.push(format!("`{}` is not in crates/{0}", package.name));
            continue;
        };
        let may_differ = unsafety::ROOMS.iter().any(|(room, _)| *room == package.name);
        let lints = table(&manifest, "lints");
        violations.extend(
            compare(&wanted, lints, may_differ).iter().map(|what| format!("{path}: {what}")),
        );
    }
    if wanted.is_empty() {
        violations.push("Cargo.toml: no workspace lints".to_owned());
    }
    Ok(Verdict { violations, looked_at: format!("{} crates", tree.packages.len()) })
}

/// What is wrong with a crate's lints.
fn compare(wanted: &Table, lints: Option<&Table>, may_differ: bool) -> Vec<String> {
    let Some(lints) = lints else {
        return vec!["no lints; write `[lints] workspace = true`".to_owned()];
    };
    if lints.get("workspace") == Some(&Value::Boolean(true)) {
        return Vec::new();
    }
    if !may_differ {
        return vec!["lints of its own, and it is no room with `unsafe`".to_owned()];
    }
    let mut problems = Vec::new();
    for (tool, wanted) in wanted.iter().filter_map(|(tool, lints)| Some((tool, lints.as_table()?)))
    {
        for (lint, wanted) in
            wanted.iter().filter(|(lint, _)| !OWN.contains(&(tool.as_str(), lint.as_str())))
        {
            let own = table(lints, tool).and_then(|own| own.get(lint));
            if own.map_or(0, level) < level(wanted) {
                problems.push(format!("the lint {tool}::{lint} is weaker than the workspace's"));
            }
        }
    }
    problems
}

/// How strict a lint's setting is: a level by itself or in a table.
fn level(setting: &Value) -> u8 {
    let name = setting.as_str().or_else(|| setting.get("level").and_then(Value::as_str));
    match name {
        Some("warn") => 1,
        Some("deny") => 2,
        Some("forbid") => 3,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(lints: &str, may_differ: bool) -> Vec<String> {
        let wanted = "rust = { unsafe_code = 'forbid', missing_docs = 'warn' }\nclippy.a = 'warn'";
        let manifest: Table = lints.parse().unwrap();
        compare(&wanted.parse().unwrap(), table(&manifest, "lints"), may_differ)
    }

    #[test]
    fn inherited_lints_pass() {
        assert_eq!(problems("lints.workspace = true", false), [""; 0]);
    }

    #[test]
    fn missing_or_own_lints_are_refused() {
        assert_eq!(problems("", false), ["no lints; write `[lints] workspace = true`"]);
        let own = "[lints.rust]\nmissing_docs = 'warn'\n[lints.clippy]\na = 'warn'";
        assert_eq!(problems(own, false).len(), 1);
        assert_eq!(problems(own, true), [""; 0]);
    }

    #[test]
    fn a_room_with_unsafe_keeps_the_other_lints() {
        let own = "[lints.rust]\nmissing_docs = 'allow'\n[lints.clippy]\na = { level = 'deny' }";
        let weaker = "the lint rust::missing_docs is weaker than the workspace's";
        assert_eq!(problems(own, true), [weaker]);
        assert_eq!(problems("[lints.rust]\nmissing_docs = 'warn'", true).len(), 1);
    }
}
