//! Checks of the workspace itself.
//!
//! ```text
//! cargo run -p xtask -- all            every check below
//! cargo run -p xtask -- layers         no dependency points upward (docs/architecture.md)
//! cargo run -p xtask -- unsafe         `unsafe` only in the rooms that may have it
//! cargo run -p xtask -- lints          every crate has the workspace's lints
//! cargo run -p xtask -- dependencies   each has its reason in docs/dependencies.md
//! cargo run -p xtask -- sizes          no source file outgrows its reader
//! cargo run -p xtask -- paths          no path or host of anyone's machine in the tree
//! cargo run -p xtask -- features       lists what has to compile alone: `crate [feature]`
//! ```
//!
//! `--root DIR` checks another workspace, which is how the checks themselves are tested.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use xtask::{dependencies, features, layers, lints, paths, sizes, unsafety, Error, Tree, Verdict};

type Check = fn(&Tree) -> Result<Verdict, Error>;

const CHECKS: [(&str, Check); 6] = [
    ("layers", layers::check),
    ("unsafe", unsafety::check),
    ("lints", lints::check),
    ("dependencies", dependencies::check),
    ("sizes", sizes::check),
    ("paths", paths::check),
];

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let mut root = default_root();
    let mut wanted = None;
    while let Some(arg) = args.next() {
        match (arg.as_str(), &wanted) {
            ("--root", _) => match args.next() {
                Some(dir) => root = PathBuf::from(dir),
                None => return usage("--root needs a directory"),
            },
            (name, None) => wanted = Some(name.to_owned()),
            (name, Some(_)) => return usage(&format!("unexpected argument `{name}`")),
        }
    }
    let Some(wanted) = wanted else { return usage("no check named") };
    if wanted == "features" {
        return exit(list_features(&root).map(|()| true));
    }
    let checks: Vec<_> =
        CHECKS.iter().filter(|(name, _)| wanted == "all" || wanted == *name).collect();
    if checks.is_empty() {
        return usage(&format!("no check is called `{wanted}`"));
    }
    exit(run(&root, &checks))
}

fn exit(passed: Result<bool, Error>) -> ExitCode {
    match passed {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn list_features(root: &Path) -> Result<(), Error> {
    for (package, feature) in features::list(&Tree::read(root)?) {
        println!("{package} {}", feature.unwrap_or_default());
    }
    Ok(())
}

/// Runs the checks and prints what they found; whether all passed.
fn run(root: &Path, checks: &[&(&str, Check)]) -> Result<bool, Error> {
    let tree = Tree::read(root)?;
    let mut passed = true;
    for (name, check) in checks {
        let verdict = check(&tree)?;
        for violation in &verdict.violations {
            println!("error: {name}: {violation}");
        }
        passed &= verdict.violations.is_empty();
        let state = if verdict.violations.is_empty() { "ok" } else { "FAILED" };
        println!("{name}: {state} ({})", verdict.looked_at);
    }
    Ok(passed)
}

fn default_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_owned()
}

fn usage(problem: &str) -> ExitCode {
    let names: Vec<&str> = CHECKS.iter().map(|(name, _)| *name).collect();
    eprintln!("error: {problem}\nusage: xtask [--root DIR] all|features|{}", names.join("|"));
    ExitCode::from(2)
}
