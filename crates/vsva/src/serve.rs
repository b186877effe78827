//! `vsva serve`: places for a user's own QEMUs.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mem::Policy;

use crate::server::{GuestPlace, ServeError, Server};
use crate::stop::Stop;

/// Most guests that one server has places for.
pub const MAX_GUESTS: u32 = 64;

/// How often places are looked at for guests that came or went.
const LOOK: Duration = Duration::from_millis(200);

/// What a server is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where sockets and tables are made.
    pub dir: PathBuf,
    /// Number of places, 1 to [`MAX_GUESTS`].
    pub guests: u32,
    /// Whether memory files that their owner could shrink are mapped.
    pub allow_unsealed: bool,
}

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The number of places is out of range.
    #[error("{got} guests: 1 to {MAX_GUESTS} are possible (--guests)")]
    Guests {
        /// What was asked for.
        got: u32,
    },
    /// The directory cannot be used.
    #[error("{}: {source} (--dir)", path.display())]
    Dir {
        /// The directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Others can write to the directory, and so could replace the sockets.
    #[error("{}: mode {mode:03o}, owner {owner}: the directory must be yours alone (chmod 700, or another --dir)", path.display())]
    NotPrivate {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Its owner.
        owner: u32,
    },
    /// Signals cannot be handled.
    #[error("signals cannot be handled: {0}")]
    Signals(#[source] io::Error),
    /// A place cannot be made.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

/// Serves until a signal comes. `say` gets every line for the user.
///
/// # Errors
/// [`Error`]; no socket is left behind then.
pub fn run(options: &Options, say: &Arc<dyn Fn(&str) + Send + Sync>) -> Result<(), Error> {
    if !(1..=MAX_GUESTS).contains(&options.guests) {
        return Err(Error::Guests { got: options.guests });
    }
    let stop = Stop::on_signals().map_err(Error::Signals)?;
    let dir = private_dir(&options.dir)?;
    let policy = if options.allow_unsealed { Policy::AllowUnsealed } else { Policy::SealedOnly };
    let server = Server::new(policy, say.clone());
    let mut places = Places { open: Vec::new() };
    for index in 0..options.guests {
        let name = format!("guest{index}");
        let place = server.add_guest(&dir, &name)?;
        say(&introduction(&name, &place));
        places.open.push((name, place, Watch::default()));
    }
    say("Ready. Ctrl-C ends the server.");
    while stop.pause(Instant::now() + LOOK).is_ok() {
        for (name, place, watch) in &mut places.open {
            for line in watch.look(place) {
                say(&format!("{name}: {line}"));
            }
        }
    }
    Ok(())
}

/// Closes what is open, however the server ends.
struct Places {
    open: Vec<(String, GuestPlace, Watch)>,
}

impl Drop for Places {
    fn drop(&mut self) {
        for (_, place, _) in self.open.drain(..) {
            place.close();
        }
    }
}

/// What was last said about a place.
#[derive(Default)]
struct Watch {
    lives: u64,
    connected: bool,
    descriptors: u64,
}

impl Watch {
    fn look(&mut self, place: &GuestPlace) -> Vec<String> {
        let mut lines = Vec::new();
        let lives = place.lives();
        if lives != self.lives {
            self.lives = lives;
            self.connected = true;
            self.descriptors = place.accelerator().counters().descriptors;
            lines.push(format!("connected (number {lives} on this place)"));
        }
        if self.connected {
            if let Ok(took) = place.wait_ended(Duration::ZERO) {
                self.connected = false;
                let executed = place.accelerator().counters().descriptors - self.descriptors;
                lines.push(format!(
                    "ended after {executed} descriptors; everything freed in {:.1} ms; the place is free again",
                    took.as_secs_f64() * 1e3
                ));
            }
        }
        lines
    }
}

/// The directory, made if it is not there, and the user's alone.
fn private_dir(path: &Path) -> Result<PathBuf, Error> {
    let failed = |source| Error::Dir { path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    let dir = path.canonicalize().map_err(failed)?;
    let about = fs::metadata(&dir).map_err(failed)?;
    let mode = about.mode() & 0o777;
    if mode & 0o022 != 0 || about.uid() != rustix::process::geteuid().as_raw() {
        return Err(Error::NotPrivate { path: dir, mode, owner: about.uid() });
    }
    Ok(dir)
}

/// What a user pastes.
fn introduction(name: &str, place: &GuestPlace) -> String {
    let mut text = format!(
        "{name}: add to your command line of qemu-system-x86_64 (10.1 or newer)\n\n    \
         -machine q35,memory-backend=ram -object memory-backend-memfd,id=ram,share=on,size=2G -m 2G \\\n    \
         -cpu max,la57=off"
    );
    let arguments = place.devices().arguments();
    for pair in arguments.chunks(2) {
        let quoted: Vec<_> = pair.iter().map(|part| quoted(&part.to_string_lossy())).collect();
        text.push_str(" \\\n    ");
        text.push_str(&quoted.join(" "));
    }
    text.push_str(
        "\n\n  and to the guest kernel's: intel_iommu=on,sm_on (and setcpuid=movdir64b under software emulation)\n",
    );
    text
}

/// As a shell takes it for one word.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=.,/:".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn words_survive_a_shell() {
        assert_eq!(quoted("file=/run/a.aml"), "file=/run/a.aml");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
    }

    #[test]
    fn a_directory_that_others_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(private_dir(dir.path()), Err(Error::NotPrivate { mode: 0o777, .. })));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(private_dir(dir.path()).is_ok());
    }

    #[test]
    fn a_number_of_guests_out_of_range_is_refused() {
        let options = Options { dir: "/nonexistent".into(), guests: 0, allow_unsealed: false };
        let say: Arc<dyn Fn(&str) + Send + Sync> = Arc::new(|_: &str| ());
        assert!(matches!(run(&options, &say), Err(Error::Guests { got: 0 })));
    }
}
