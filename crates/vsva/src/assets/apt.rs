//! A private `apt`: its own lists, cache and empty package database, so that it needs no root, changes nothing on
//! the machine, and resolves packages of a release that the machine does not run.
//!
//! From the machine come only the archive's address, its keys, and how to reach it (apt's `Acquire` settings:
//! proxies and the like).

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::error::Cause;
use super::mirror;
use crate::capture::{capture, last_lines, CaptureError, Captured, TAIL_LINES};
use crate::stop::Stop;
use crate::supervise::SuperviseError;
use crate::term::{megabytes, Mark, Screen};

/// What packages are taken from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Release {
    /// Debian 13 with its newer packages: QEMU, and the newest kernel.
    Trixie,
    /// Debian 12: Linux 6.1.
    Bookworm,
}

impl Release {
    fn name(self) -> &'static str {
        match self {
            Self::Trixie => "trixie",
            Self::Bookworm => "bookworm",
        }
    }

    /// Its suites; a package comes from the last one that has what is asked for.
    fn suites(self) -> &'static [&'static str] {
        match self {
            Self::Trixie => &["trixie", "trixie-backports"],
            Self::Bookworm => &["bookworm"],
        }
    }

    fn preferred(self) -> &'static str {
        self.suites().last().copied().unwrap_or(self.name())
    }
}

/// Where the keyring package puts the archive's keys; the ending differs between its versions. One file has the keys of
/// both releases: bookworm's have been in it since 2023, and are in the package of every later release so far.
const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
];

/// The longest that one step of the package system may take (a slow line needs minutes for 160 MB).
const STEP_LIMIT: Duration = Duration::from_secs(30 * 60);

/// The most packages that one closure may have; QEMU's has 90.
const MAX_ARCHIVES: usize = 1000;

/// How often a transfer's progress is looked at.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// One package file of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Archive {
    /// The package's name.
    pub(super) name: String,
    /// Its version, with the epoch.
    pub(super) version: String,
    /// Its size in bytes.
    pub(super) bytes: u64,
}

/// The private package system, in a directory of its own.
pub(super) struct Apt<'a> {
    release: Release,
    root: PathBuf,
    mirror: String,
    screen: &'a Screen,
    stop: &'a Stop,
}

impl<'a> Apt<'a> {
    /// Sets it up below `root` (empty, private) and fetches the package lists of `release`.
    pub(super) fn new(
        release: Release,
        root: &Path,
        mirror: Option<&str>,
        screen: &'a Screen,
        stop: &'a Stop,
    ) -> Result<Self, Cause> {
        if !cfg!(target_arch = "x86_64") {
            return Err(Cause::Machine(std::env::consts::ARCH));
        }
        let mut apt = Self { release, root: root.to_owned(), mirror: String::new(), screen, stop };
        apt.mirror = mirror::archive(mirror, stop)?;
        let Some(keyring) = KEYRINGS.into_iter().find(|path| Path::new(path).exists()) else {
            return Err(Cause::NoKeyring { path: KEYRINGS[0].into() });
        };
        apt.write_configuration(keyring)?;
        screen
            .mark(Mark::Note, &format!("package lists of {} from {}", release.name(), apt.mirror));
        apt.run("fetching the package lists", apt.apt_get(&["update"]), || ())?;
        Ok(apt)
    }

    fn write_configuration(&self, keyring: &str) -> Result<(), Cause> {
        for dir in
            ["state/lists/partial", "cache/archives/partial", "etc/apt.conf.d", "etc/preferences.d"]
        {
            let path = self.root.join(dir);
            fs::create_dir_all(&path).map_err(Cause::file(path))?;
        }
        let acquire = mirror::acquire_settings(self.stop)?;
        self.write("status", "")?;
        self.write("etc/sources.list", &sources(self.release, &self.mirror, keyring))?;
        self.write("apt.conf", &configuration(&self.root, &acquire))
    }

    fn write(&self, name: &str, text: &str) -> Result<(), Cause> {
        let path = self.root.join(name);
        fs::write(&path, text).map_err(Cause::file(path))
    }

    /// The closure of `packages` on a machine that has nothing.
    pub(super) fn closure(&self, packages: &[&str]) -> Result<Vec<Archive>, Cause> {
        let names = packages.join(" and ");
        let mut command = self.apt_get(&[
            "install",
            "--print-uris",
            "-y",
            "-qq",
            "--no-install-recommends",
            "-t",
            self.release.preferred(),
        ]);
        command.args(packages);
        let printed = self.run(&format!("resolving {names}"), command, || ())?.stdout;
        let archives: Vec<_> =
            printed.lines().filter_map(parse_uri_line).take(MAX_ARCHIVES).collect();
        if archives.is_empty() {
            return Err(self.not_offered(&format!("package {names}")));
        }
        Ok(archives)
    }

    /// The error that the archive has no `what`.
    pub(super) fn not_offered(&self, what: &str) -> Cause {
        Cause::NotOffered { mirror: self.mirror.clone(), what: what.to_owned() }
    }

    /// Downloads `archives` (named `what` for the user) and unpacks them below `into`, which is created.
    pub(super) fn unpack(
        &self,
        what: &str,
        archives: &[Archive],
        into: &Path,
    ) -> Result<(), Cause> {
        let downloads = tempfile::tempdir_in(&self.root).map_err(Cause::file(&self.root))?;
        self.download(what, archives, downloads.path())?;
        self.screen.mark(Mark::Note, &format!("unpacking {what}"));
        unpack_all(downloads.path(), into, self.stop)
    }

    /// Downloads the package files of `archives` (named `what` for the user) into the directory `into`.
    pub(super) fn download(
        &self,
        what: &str,
        archives: &[Archive],
        into: &Path,
    ) -> Result<(), Cause> {
        let total = archives.iter().map(|archive| archive.bytes).sum();
        let count = archives.len();
        let plural = if count == 1 { "" } else { "s" };
        self.screen.mark(
            Mark::Note,
            &format!("fetching {what}: {count} package{plural}, {}", megabytes(total)),
        );
        let mut command = self.apt_get(&["download", "-qq"]);
        command.current_dir(into);
        command
            .args(archives.iter().map(|archive| format!("{}={}", archive.name, archive.version)));
        let next = Cell::new(Instant::now());
        self.run(&format!("fetching {what}"), command, || {
            if Instant::now() >= next.get() {
                self.screen.transfer(bytes_in(into), total);
                next.set(Instant::now() + PROGRESS_EVERY);
            }
        })?;
        Ok(())
    }

    fn apt_get(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("apt-get");
        command.args(arguments);
        // Read first, and its Dir::Etc keeps apt from reading the machine's own configuration after it.
        command.env("APT_CONFIG", self.root.join("apt.conf")).env("LC_ALL", "C.UTF-8");
        command
    }

    fn run(&self, step: &str, command: Command, tick: impl FnMut()) -> Result<Captured, Cause> {
        run_tool("apt-get", step, command, self.stop, tick)
    }
}

/// Unpacks every package file of the directory `from` below `into`, which is created.
pub(super) fn unpack_all(from: &Path, into: &Path, stop: &Stop) -> Result<(), Cause> {
    fs::create_dir_all(into).map_err(Cause::file(into))?;
    for file in fs::read_dir(from).map_err(Cause::file(from))? {
        let path = file.map_err(Cause::file(from))?.path();
        let mut command = Command::new("dpkg-deb");
        command.arg("-x").arg(&path).arg(into);
        run_tool("dpkg-deb", "unpacking a package", command, stop, || ())?;
    }
    Ok(())
}

/// Runs a program of the package system; `step` says in errors what it was doing.
pub(super) fn run_tool(
    tool: &'static str,
    step: &str,
    command: Command,
    stop: &Stop,
    tick: impl FnMut(),
) -> Result<Captured, Cause> {
    let captured = match capture(tool, command, STEP_LIMIT, stop, tick) {
        Err(CaptureError::Process(SuperviseError::Spawn { source, .. }))
            if source.kind() == std::io::ErrorKind::NotFound =>
        {
            return Err(Cause::NoTool(tool));
        }
        other => other?,
    };
    if captured.status.success() {
        return Ok(captured);
    }
    let said = if captured.stderr.trim().is_empty() { &captured.stdout } else { &captured.stderr };
    Err(Cause::Packages {
        step: step.to_owned(),
        status: captured.status.to_string(),
        said: indented(&last_lines(said, TAIL_LINES)),
    })
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}")).collect::<Vec<_>>().join("\n")
}

fn bytes_in(dir: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries.filter_map(|entry| entry.ok()?.metadata().ok()).map(|file| file.len()).sum()
}

fn sources(release: Release, mirror: &str, keyring: &str) -> String {
    let line = |suite| format!("deb [arch=amd64 signed-by={keyring}] {mirror} {suite} main\n");
    release.suites().iter().map(line).collect()
}

fn configuration(root: &Path, acquire: &str) -> String {
    let at = |name: &str| quoted(&root.join(name).to_string_lossy());
    let mut text = String::new();
    for (key, value) in [
        ("Dir::State", at("state")),
        ("Dir::State::status", at("status")),
        ("Dir::Cache", at("cache")),
        ("Dir::Etc", at("etc")),
        // Passwords of a mirror that needs one.
        ("Dir::Etc::netrc", quoted("/etc/apt/auth.conf")),
        ("Dir::Etc::netrcparts", quoted("/etc/apt/auth.conf.d")),
        ("APT::Architecture", quoted("amd64")),
        // Root would otherwise download as the user _apt, who cannot write here.
        ("APT::Sandbox::User", quoted("")),
        // Lists that cannot be fetched are an error at once, not a puzzle later.
        ("APT::Update::Error-Mode", quoted("any")),
        ("Acquire::Retries", quoted("2")),
        ("Acquire::http::Timeout", quoted("20")),
        ("Acquire::https::Timeout", quoted("20")),
    ] {
        text.push_str(&format!("{key} {value};\n"));
    }
    text.push_str("#clear APT::Architectures;\nAPT::Architectures { \"amd64\"; };\n");
    text.push_str(acquire);
    // After the machine's own settings: an index is enough, in no language.
    text.push_str("#clear Acquire::Languages;\nAcquire::Languages \"none\";\n");
    text
}

fn quoted(value: &str) -> String {
    // apt's configuration has no escape for a quote; none can be in a path that apt was given before either.
    format!("\"{}\"", value.replace('"', ""))
}

/// One line of `apt-get --print-uris`: `'URI' name_version_arch.deb size hash`.
fn parse_uri_line(line: &str) -> Option<Archive> {
    let rest = line.strip_prefix('\'')?.split_once("' ")?.1;
    let mut fields = rest.split(' ');
    let (file, size) = (fields.next()?, fields.next()?);
    let mut parts = file.strip_suffix(".deb")?.split('_');
    let (name, version, _architecture) = (parts.next()?, parts.next()?, parts.next()?);
    let plain = |c: char| c.is_ascii_alphanumeric() || "+-.:~%".contains(c);
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric())
        || !file.replace('_', "").chars().all(plain)
    {
        return None;
    }
    Some(Archive {
        name: name.to_owned(),
        version: version.replace("%3a", ":"),
        bytes: size.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_print_uris_line_is_a_package() {
        let line = "'http://a.example/debian/pool/main/q/qemu/qemu-system-x86_11.1.3+ds-1~bpo13+1_amd64.deb' \
                    qemu-system-x86_1%3a11.1.3+ds-1~bpo13+1_amd64.deb 10377056 SHA256:00ff";
        let expected = Archive {
            name: "qemu-system-x86".to_owned(),
            version: "1:11.1.3+ds-1~bpo13+1".to_owned(),
            bytes: 10_377_056,
        };
        assert_eq!(parse_uri_line(line), Some(expected));
    }

    #[test]
    fn other_lines_are_not() {
        for line in [
            "",
            "Reading package lists...",
            "'http://a.example/x.deb'",
            "'http://a.example/x' name_1_amd64.deb many SHA256:00",
            "'http://a.example/x' name_1.deb 1 SHA256:00",
            "'http://a.example/x' -option_1_amd64.deb 1 SHA256:00",
            "'http://a.example/x' na;me_1_amd64.deb 1 SHA256:00",
        ] {
            assert_eq!(parse_uri_line(line), None, "{line:?}");
        }
    }

    #[test]
    fn the_sources_are_signed_and_from_the_mirror() {
        for (release, suites) in [(Release::Trixie, 2), (Release::Bookworm, 1)] {
            let text = sources(release, "http://a.example/debian/", KEYRINGS[0]);
            assert_eq!(text.lines().count(), suites);
            let signed = |line: &str| line.contains(KEYRINGS[0]) && line.contains("a.example");
            assert!(text.lines().all(signed), "{text}");
        }
    }
}
