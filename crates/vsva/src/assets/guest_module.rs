//! The guest's kernel module, built from the sources that this program carries against a kernel's packaged headers.
//!
//! The compiler and `make` are the machine's. The compiler is hardly ever the one that built the kernel, which kbuild
//! warns of and a module of this size does not mind. The programs that come with the headers (`objtool`, `modpost`)
//! run on the C library they were built for, as the unpacked QEMU does.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::error::Cause;
use super::modules::{self, Module};
use super::Step;
use crate::capture::{capture, last_lines, TAIL_LINES};
use crate::term::Mark;

/// The module's name.
pub(super) const NAME: &str = "vsva_pasids";
/// What kbuild makes of it.
pub(super) const FILE: &str = "vsva_pasids.ko";

/// Its sources, by file name.
const SOURCES: [(&str, &str); 2] = [
    ("Kbuild", include_str!("../../../guest/module/Kbuild")),
    ("vsva_pasids.c", include_str!("../../../guest/module/vsva_pasids.c")),
];

/// The programs of the machine that build it.
const TOOLS: [&str; 2] = ["make", "gcc"];

/// The longest that building it may take; it takes two seconds.
const BUILD_LIMIT: Duration = Duration::from_secs(300);

/// Where the unpacked packages have what the build needs.
const HEADERS: &str = "usr/src";
const KBUILD: &str = "usr/lib";
const KBUILD_PREFIX: &str = "linux-kbuild-";
const LIBRARIES: [&str; 2] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"];
const LOADER: &str = "ld-linux-x86-64.so.2";

/// The most files that the build programs' directories may have; bookworm's have 75.
const MAX_PROGRAM_FILES: usize = 10_000;

/// The module's sources as the cache compares them.
pub(super) fn sources() -> Vec<(String, String)> {
    SOURCES.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

/// Whether the machine has what builds a module.
pub(super) fn check_tools() -> Result<(), Cause> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let has = |tool: &str| std::env::split_paths(&path).any(|dir| dir.join(tool).is_file());
    match TOOLS.into_iter().find(|tool| !has(tool)) {
        Some(tool) => Err(Cause::NoCompiler(tool)),
        None => Ok(()),
    }
}

/// Builds the module for the kernel `release` in the prepared tree `headers`, with `scratch` to write in.
pub(super) fn build(
    headers: &Path,
    release: &str,
    scratch: &Path,
    step: &Step<'_>,
) -> Result<Module, Cause> {
    check_tools()?;
    let headers = fs::canonicalize(headers).map_err(Cause::file(headers))?;
    let dir = fs::canonicalize(scratch).map_err(Cause::file(scratch))?.join("module");
    for path in [&headers, &dir] {
        if !path.to_str().is_some_and(is_buildable) {
            return Err(Cause::BuildPlace { path: path.clone() });
        }
    }
    fs::create_dir(&dir).map_err(Cause::file(&dir))?;
    for (name, text) in SOURCES {
        let path = dir.join(name);
        fs::write(&path, text).map_err(Cause::file(path))?;
    }
    step.screen.mark(Mark::Note, &format!("building the guest's module for Linux {release}"));
    let built = capture("make", make(&headers, &dir), BUILD_LIMIT, step.stop, || ())?;
    if !built.status.success() {
        let said = last_lines(&format!("{}\n{}", built.stdout, built.stderr), TAIL_LINES);
        return Err(Cause::Build { status: built.status.to_string(), said });
    }
    modules::built(&dir.join(FILE), NAME, release)
}

fn make(headers: &Path, dir: &Path) -> Command {
    let mut make = Command::new("make");
    // Nothing of the caller's environment: cargo, packagers and kernel developers set variables that kbuild heeds.
    make.env_clear().env("LC_ALL", "C.UTF-8");
    for kept in ["PATH", "TMPDIR"] {
        if let Some(value) = std::env::var_os(kept) {
            make.env(kept, value);
        }
    }
    make.arg("-C").arg(headers).arg(format!("M={}", dir.display()));
    // The headers name the compiler that built the kernel, and want type information from a kernel that is not there.
    make.args(["CC=gcc", "KCFLAGS=-g0", "CONFIG_DEBUG_INFO_BTF_MODULES=", "modules"]);
    make
}

/// Whether kbuild and a shell take the path as one word.
fn is_buildable(path: &str) -> bool {
    !path.contains(|c: char| c.is_whitespace() || c.is_control() || ":\"'`$#%\\*?[]".contains(c))
}

/// Makes the packages unpacked at `root` fit for building for `release`, and says in which directory.
pub(super) fn prepare(root: &Path, release: &str) -> Result<PathBuf, Cause> {
    let root = fs::canonicalize(root).map_err(Cause::file(root))?;
    let headers = root.join(HEADERS).join(format!("linux-headers-{release}"));
    // It includes the common headers' one by the path that an installed package has.
    let makefile = headers.join("Makefile");
    let text = fs::read_to_string(&makefile).map_err(Cause::file(&makefile))?;
    let text = text.replace("/usr/src/", "../");
    fs::write(&makefile, text).map_err(Cause::file(&makefile))?;
    let programs = root.join(KBUILD);
    for entry in fs::read_dir(&programs).map_err(Cause::file(&programs))? {
        let entry = entry.map_err(Cause::file(&programs))?;
        if entry.file_name().to_string_lossy().starts_with(KBUILD_PREFIX) {
            wrap_programs(&root, &entry.path())?;
        }
    }
    Ok(headers)
}

/// Puts a script in the place of each program below `dir`, which starts it through the loader at `root`.
fn wrap_programs(root: &Path, dir: &Path) -> Result<(), Cause> {
    let (mut dirs, mut seen) = (vec![dir.to_owned()], 0);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).map_err(Cause::file(&dir))? {
            let entry = entry.map_err(Cause::file(&dir))?;
            let kind = entry.file_type().map_err(Cause::file(entry.path()))?;
            seen += 1;
            if seen > MAX_PROGRAM_FILES {
                let source = std::io::Error::other("too many files");
                return Err(Cause::File { path: dir, source });
            }
            if kind.is_dir() {
                dirs.push(entry.path());
            } else if kind.is_file() && is_program(&entry.path()) {
                wrap(root, &entry.path())?;
            }
        }
    }
    Ok(())
}

/// Whether the file is an ELF file that can be executed.
fn is_program(path: &Path) -> bool {
    use std::io::Read as _;
    let executable = fs::metadata(path).is_ok_and(|file| file.permissions().mode() & 0o111 != 0);
    let mut magic = [0; 4];
    executable
        && fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok()
        && magic == *b"\x7fELF"
}

fn wrap(root: &Path, program: &Path) -> Result<(), Cause> {
    let mut moved = program.as_os_str().to_owned();
    moved.push(".elf");
    fs::rename(program, &moved).map_err(Cause::file(program))?;
    let script = wrapper(root);
    fs::write(program, script).map_err(Cause::file(program))?;
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).map_err(Cause::file(program))
}

fn wrapper(root: &Path) -> String {
    let [first, second] = LIBRARIES.map(|dir| root.join(dir).display().to_string());
    format!(
        "#!/bin/sh\nexec '{first}/{LOADER}' --library-path '{first}:{second}' --argv0 \"$0\" \"$0.elf\" \"$@\"\n"
    )
}

#[cfg(test)]
#[path = "guest_module_tests.rs"]
mod tests;
