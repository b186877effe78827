//! Builds the guest program as a static executable, for the library to embed.
//!
//! `VSVA_GUEST_INIT_PREBUILT` names a program to embed instead, for packagers and for other build machines than
//! x86-64 Linux.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const PREBUILT: &str = "VSVA_GUEST_INIT_PREBUILT";
const PACKAGE: &str = "guest";
const PROGRAM: &str = "guest-init";
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What separates flags in `CARGO_ENCODED_RUSTFLAGS`.
const UNIT_SEPARATOR: char = '\x1f';

fn main() -> ExitCode {
    println!("cargo::rerun-if-env-changed={PREBUILT}");
    let program = match env::var_os(PREBUILT) {
        Some(path) => {
            let path = PathBuf::from(path);
            println!("cargo::rerun-if-changed={}", path.display());
            Ok(path)
        }
        None => build(),
    };
    match program {
        Ok(path) => {
            println!("cargo::rustc-env=VSVA_GUEST_INIT={}", path.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            for line in error.lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Runs cargo for the guest program, in a target directory of its own: the outer cargo holds the lock of the usual one.
fn build() -> Result<PathBuf, String> {
    let workspace = Path::new(&variable("CARGO_MANIFEST_DIR")?).join("../..");
    let target_dir = Path::new(&variable("OUT_DIR")?).join("guest");
    let mut cargo = Command::new(variable("CARGO")?);
    cargo
        .current_dir(&workspace)
        .args(["build", "--release", "--package", PACKAGE, "--bin", PROGRAM, "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", static_flags())
        // Embedded, and carried into a guest's memory: no symbols.
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        // `cargo clippy` puts itself in the compiler's place by this one; the guest is checked as a member.
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CARGO_BUILD_TARGET");
    let output = cargo.output().map_err(|error| format!("cargo cannot be run: {error}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("the guest program does not build ({}):\n{said}", output.status));
    }
    let built = target_dir.join(TARGET).join("release").join(PROGRAM);
    depend_on_sources(&workspace, &built)?;
    Ok(built)
}

/// The flags of the outer build, and a static C library.
fn static_flags() -> String {
    let mut flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    for flag in ["-C", "target-feature=+crt-static"] {
        if !flags.is_empty() {
            flags.push(UNIT_SEPARATOR);
        }
        flags.push_str(flag);
    }
    flags
}

/// Runs this script again when a source file of the program changes: cargo lists them beside what it built.
fn depend_on_sources(workspace: &Path, built: &Path) -> Result<(), String> {
    let list = built.with_extension("d");
    let text = fs::read_to_string(&list).map_err(|error| format!("{}: {error}", list.display()))?;
    // `program: source source ...`, with a backslash before a space in a name.
    let sources = text.split_once(": ").map_or("", |(_, sources)| sources);
    for source in sources.replace("\\ ", "\0").split_whitespace() {
        println!("cargo::rerun-if-changed={}", source.replace('\0', " "));
    }
    let manifests = ["Cargo.toml", "Cargo.lock", "crates/guest/Cargo.toml"];
    for manifest in manifests.map(|manifest| workspace.join(manifest)) {
        println!("cargo::rerun-if-changed={}", manifest.display());
    }
    Ok(())
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("{name}: {error}"))
}
