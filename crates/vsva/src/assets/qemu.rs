//! A QEMU to run: the user's, the machine's, or an unpacked one that runs through its own loader.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::apt::{Apt, Archive};
use super::cache::{self, Cache};
use super::error::Cause;
use crate::capture::{capture, last_lines};
use crate::stop::Stop;

/// The program's name on PATH and in packages.
const PROGRAM: &str = "qemu-system-x86_64";
/// The package that has it.
const PACKAGE: &str = "qemu-system-x86";
/// The cache entry.
const ENTRY: &str = "qemu";

/// The longest that QEMU may take to say who it is; the first start on a cold machine reads 100 MB.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// What an unpacked QEMU needs to run a guest without graphics or network: everything else is dropped.
const KEPT: [&str; 4] = [
    "usr/bin/qemu-system-x86_64",
    "usr/lib/x86_64-linux-gnu",
    "usr/share/qemu",
    "usr/share/seabios",
];
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";
const LOADER: &str = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2";

/// The first QEMU with the client side of vfio-user.
pub const MINIMUM_VERSION: Version = Version { major: 10, minor: 1, micro: 0 };

/// A QEMU version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
    /// The third number.
    pub micro: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// A QEMU that is known to be new enough and to have the `vfio-user-pci` device.
#[derive(Clone, Debug)]
pub struct Qemu {
    program: PathBuf,
    leading: Vec<OsString>,
    modules: Option<PathBuf>,
    version: Version,
    description: String,
}

/// What the cache entry says about itself.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    package: String,
    version: String,
}

impl Qemu {
    /// A command that runs it, to be completed with the guest's arguments.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.leading);
        if let Some(modules) = &self.modules {
            command.env("QEMU_MODULE_DIR", modules);
        }
        command
    }

    /// Its version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Its version and where it comes from, for people and results.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// A program that is believed without being asked.
    #[cfg(test)]
    pub(crate) fn believed(path: &Path) -> Self {
        Self {
            program: path.to_owned(),
            leading: Vec::new(),
            modules: None,
            version: MINIMUM_VERSION,
            description: String::new(),
        }
    }

    /// The program at `path`, if it will do.
    pub(super) fn at(path: &Path, stop: &Stop) -> Result<Self, Cause> {
        let qemu = Self {
            program: path.to_owned(),
            leading: Vec::new(),
            modules: None,
            version: MINIMUM_VERSION,
            description: String::new(),
        };
        qemu.checked(path, stop)
    }

    /// The first program of that name on PATH, whatever its version.
    pub(super) fn on_path() -> Option<PathBuf> {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|dir| dir.join(PROGRAM)).find(|file| file.is_file())
    }

    /// The cached one, if it is there and runs.
    pub(super) fn cached(cache: &Cache, stop: &Stop) -> Option<Self> {
        let root = cache.entry(ENTRY);
        let manifest: Manifest = cache::read_manifest(&root)?;
        Self::unpacked(&root, &manifest, stop).ok()
    }

    /// Fetches one into the cache.
    pub(super) fn fetch(cache: &Cache, apt: &Apt<'_>, stop: &Stop) -> Result<Self, Cause> {
        let closure = apt.closure(&[PACKAGE])?;
        let package = closure.iter().find(|archive| archive.name == PACKAGE);
        let Some(Archive { version, .. }) = package else {
            return Err(apt.not_offered(&format!("package {PACKAGE}")));
        };
        let unfinished = cache.unfinished()?;
        let (all, made) = (unfinished.path().join("all"), unfinished.path().join("made"));
        apt.unpack(&format!("QEMU {version}"), &closure, &all)?;
        for kept in KEPT {
            let to = made.join(kept);
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).map_err(Cause::file(parent))?;
            }
            fs::rename(all.join(kept), &to).map_err(Cause::file(all.join(kept)))?;
        }
        let manifest = Manifest { package: PACKAGE.to_owned(), version: version.clone() };
        // Found wanting here, it is never published.
        Self::unpacked(&made, &manifest, stop)?;
        cache::write_manifest(&made, &manifest)?;
        let root = cache.publish(ENTRY, &made)?;
        Self::unpacked(&root, &manifest, stop)
    }

    /// The one unpacked below `root`, run through the loader and the libraries unpacked with it.
    fn unpacked(root: &Path, manifest: &Manifest, stop: &Stop) -> Result<Self, Cause> {
        let program = root.join(KEPT[0]);
        let leading: Vec<OsString> = vec![
            "--argv0".into(),
            PROGRAM.into(),
            "--library-path".into(),
            root.join(LIBRARIES).into(),
            program.clone().into(),
            "-L".into(),
            root.join(KEPT[2]).into(),
            "-L".into(),
            root.join(KEPT[3]).into(),
        ];
        let qemu = Self {
            program: root.join(LOADER),
            leading,
            modules: Some(root.join(LIBRARIES).join("qemu")),
            version: MINIMUM_VERSION,
            description: String::new(),
        };
        let mut qemu = qemu.checked(&program, stop)?;
        qemu.description =
            format!("{} (package {} {})", qemu.version, manifest.package, manifest.version);
        Ok(qemu)
    }

    /// Asks the program for its version and its devices; `path` is its name for the user.
    fn checked(mut self, path: &Path, stop: &Stop) -> Result<Self, Cause> {
        let name = path.display().to_string();
        let mut ask = self.command();
        ask.arg("--version");
        let answer = capture(&name, ask, ANSWER_LIMIT, stop, || ())?;
        let Some(version) = parse_version(&answer.stdout) else {
            let said = last_lines(&format!("{}\n{}", answer.stdout, answer.stderr), 3);
            return Err(Cause::NotQemu { path: path.to_owned(), said });
        };
        if version < MINIMUM_VERSION {
            return Err(Cause::TooOld { path: path.to_owned(), found: version });
        }
        let mut ask = self.command();
        ask.args(["-device", "vfio-user-pci,help"]);
        if !capture(&name, ask, ANSWER_LIMIT, stop, || ())?.status.success() {
            return Err(Cause::NoDevice { path: path.to_owned() });
        }
        self.version = version;
        self.description = format!("{version} ({})", path.display());
        Ok(self)
    }
}

/// The numbers of `QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1)`.
fn parse_version(text: &str) -> Option<Version> {
    let rest = text.lines().next()?.strip_prefix("QEMU emulator version ")?;
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next()?.parse().ok();
    Some(Version { major: number()?, minor: number()?, micro: number()? })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A program that answers `--version` with `version` and the device question with `code`.
    fn pretender(dir: &Path, version: &str, code: i32) -> PathBuf {
        let path = dir.join("qemu");
        let script = format!(
            "#!/bin/sh\nif [ \"$1\" = --version ]; then echo '{version}'; else exit {code}; fi\n"
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn verdict(version: &str, code: i32) -> Result<Qemu, Cause> {
        let dir = tempfile::tempdir().unwrap();
        Qemu::at(&pretender(dir.path(), version, code), &Stop::default())
    }

    #[test]
    fn a_new_enough_qemu_with_the_device_will_do() {
        let qemu =
            verdict("QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1)", 0).unwrap();
        assert_eq!(qemu.version(), Version { major: 11, minor: 1, micro: 3 });
        assert!(qemu.description().starts_with("11.1.3 ("));
    }

    #[test]
    fn what_will_not_do_is_refused_with_the_reason() {
        let old = verdict("QEMU emulator version 7.2.17 (Debian)", 0);
        assert!(matches!(
            old,
            Err(Cause::TooOld { found: Version { major: 7, minor: 2, .. }, .. })
        ));
        let bare = verdict("QEMU emulator version 10.1.0", 1);
        assert!(matches!(bare, Err(Cause::NoDevice { .. })));
        let other = verdict("something else", 0);
        assert!(matches!(other, Err(Cause::NotQemu { .. })));
        let missing = Qemu::at(Path::new("/nonexistent/qemu"), &Stop::default());
        assert!(matches!(missing, Err(Cause::Process(_))));
    }
}
