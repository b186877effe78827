//! What the machine's own apt configuration says about the Debian archive: its address and the way to it.

use std::process::Command;

use super::apt::run_tool;
use super::error::Cause;
use crate::stop::Stop;

/// The address of the Debian archive: `given` if there is one, else the machine's own.
pub(super) fn archive(given: Option<&str>, stop: &Stop) -> Result<String, Cause> {
    let address = match given {
        Some(address) => address.to_owned(),
        None => from_targets(&targets(stop)?)
            .or_else(|| from_release_files(&release_files(stop).ok()?))
            .ok_or(Cause::NoMirror)?,
    };
    if is_address(&address) {
        Ok(address)
    } else {
        Err(Cause::BadMirror(address))
    }
}

/// The machine's apt settings for reaching archives, in the syntax of a configuration file.
pub(super) fn acquire_settings(stop: &Stop) -> Result<String, Cause> {
    let mut command = Command::new("apt-config");
    command.arg("dump");
    let dump = run_tool("apt-config", "reading the machine's apt settings", command, stop, || ())?;
    Ok(only_acquire(&dump.stdout))
}

/// The index files that the machine's apt has lists of, as `origin|label|address`.
fn targets(stop: &Stop) -> Result<String, Cause> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)"]);
    Ok(run_tool("apt-get", "reading the machine's apt sources", command, stop, || ())?.stdout)
}

/// The files that `apt-get update` would fetch: known even where it never ran, as in a fresh container.
fn release_files(stop: &Stop) -> Result<String, Cause> {
    let none = tempfile::tempdir().map_err(Cause::file(std::env::temp_dir()))?;
    let partial = none.path().join("partial");
    std::fs::create_dir(&partial).map_err(Cause::file(partial))?;
    let mut command = Command::new("apt-get");
    command.args(["update", "--print-uris", "-qq", "-o"]);
    command.arg(format!("Dir::State::lists={}", none.path().display()));
    Ok(run_tool("apt-get", "reading the machine's apt sources", command, stop, || ())?.stdout)
}

/// The archive that calls itself Debian: security updates and other people's archives have other labels.
fn from_targets(targets: &str) -> Option<String> {
    targets.lines().find_map(|line| line.strip_prefix("Debian|Debian|")).map(str::to_owned)
}

/// Without the archives' own word, the one whose path ends as the main archive's does on every mirror.
fn from_release_files(printed: &str) -> Option<String> {
    let addresses = printed.lines().filter_map(|line| {
        let uri = line.strip_prefix('\'')?.split('\'').next()?;
        let (base, file) = uri.split_once("/dists/")?;
        file.ends_with("/InRelease").then_some(base)
    });
    addresses.into_iter().find(|base| base.ends_with("/debian")).map(|base| format!("{base}/"))
}

/// Whether a line of a sources list can hold it as one word.
fn is_address(text: &str) -> bool {
    let scheme = text.split_once(':').map_or("", |(scheme, _)| scheme);
    !scheme.is_empty()
        && scheme.chars().all(|c| c.is_ascii_alphanumeric() || c == '+')
        && text.chars().all(|c| c.is_ascii_graphic() && !"[]\"'#".contains(c))
}

fn only_acquire(dump: &str) -> String {
    let acquire = dump.lines().filter(|line| line.starts_with("Acquire::"));
    acquire.flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_main_archive_is_told_from_the_others() {
        let targets = "Debian|Debian-Security|http://a.example/debian-security/\n\
                       Somebody|Else|http://b.example/debian/\n\
                       Debian|Debian|http://c.example/debian/\n";
        assert_eq!(from_targets(targets).as_deref(), Some("http://c.example/debian/"));
        assert_eq!(from_targets("Ubuntu|Ubuntu|http://d.example/ubuntu/\n"), None);
    }

    #[test]
    fn a_machine_that_never_updated_still_names_it() {
        let printed = "'http://a.example/debian-security/dists/x-security/InRelease' f 0 \n\
                       'http://a.example/debian/dists/x/main/binary-amd64/Packages.xz' f 0 \n\
                       'http://c.example/mirror/debian/dists/x/InRelease' f 0 \n";
        assert_eq!(from_release_files(printed).as_deref(), Some("http://c.example/mirror/debian/"));
        assert_eq!(from_release_files("'http://d.example/ubuntu/dists/x/InRelease' f 0"), None);
    }

    #[test]
    fn a_sources_list_cannot_be_injected_into() {
        for good in ["http://a.example/debian/", "mirror+file:/etc/apt/list", "file:///srv/debian"]
        {
            assert!(is_address(good), "{good}");
        }
        for bad in [
            "",
            "a.example/debian",
            "http://a b",
            "http://a\ndeb x",
            "http://a [trusted=yes]",
            ":x",
        ] {
            assert!(!is_address(bad), "{bad:?}");
            assert!(matches!(archive(Some(bad), &Stop::default()), Err(Cause::BadMirror(_))));
        }
    }

    #[test]
    fn proxies_carry_over_and_hooks_do_not() {
        let dump = "APT::Update::Post-Invoke:: \"rm -f /x\";\n\
                    Acquire::http::Proxy \"http://p.example:3128\";\nDir::Etc \"etc/apt\";\n";
        assert_eq!(only_acquire(dump), "Acquire::http::Proxy \"http://p.example:3128\";\n");
    }
}
