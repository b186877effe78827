//! `vsva serve`: places for a user's own QEMUs.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use iommu::Numbering;
use mem::Policy;
use rustix::fs::FlockOperation;
use rustix::io::Errno;

use crate::inspect::wire::Refusal;
use crate::qemu::Devices;
use crate::server::{
    check_injections, Ask, CannotInject, Commands, GuestConfig, GuestPlace, HostCalls, Injection,
    InjectionsCollide, Inspector, PageTimeout, PasidTable, ServeError, Server, StageTwo,
};
use crate::shares::{self, Shares};
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
    /// What each guest may have of the host.
    pub shares: Shares,
    /// How guests' devices call the host.
    pub calls: HostCalls,
    /// What goes wrong for every guest.
    pub injections: Vec<Injection>,
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
    #[error("{}: mode {mode:03o}, owner {owner}: nobody else may be able to write there (chmod 700 it, or choose another --dir)", path.display())]
    NotPrivate {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
        /// Its owner.
        owner: u32,
    },
    /// Another server uses the directory.
    #[error("{}: another vsva serves from this directory; end it, or choose another --dir", path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// QEMU could not be told of the directory on its command line.
    #[error("{path:?}: the directory's name is not UTF-8, which QEMU's arguments are (--dir)")]
    NotUnicode {
        /// The directory.
        path: PathBuf,
    },
    /// What guests are to have does not go together.
    #[error(transparent)]
    Shares(#[from] shares::Error),
    /// What is to go wrong does not go together.
    #[error(transparent)]
    Injections(#[from] InjectionsCollide),
    /// What is to go wrong cannot.
    #[error(transparent)]
    CannotInject(#[from] CannotInject),
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
    let names: Vec<_> = (0..options.guests).map(|index| format!("guest{index}")).collect();
    let configs = options.shares.of(&names)?;
    check_injections(&options.injections)?;
    let policy = if options.allow_unsealed { Policy::AllowUnsealed } else { Policy::SealedOnly };
    let server = Server::calling(options.calls, policy, say.clone());
    shares::check_quotas(&configs, server.pasids().capacity)?;
    let stop = Stop::on_signals().map_err(Error::Signals)?;
    let dir = Directory::new(&options.dir)?;
    let mut places = Vec::new();
    for (name, config) in names.iter().zip(configs) {
        let place = server.add_guest(&dir.path, name, config)?;
        for injection in &options.injections {
            place.inject(*injection)?;
        }
        // Dropped and so closed however this function ends.
        places.push(place);
    }
    let hall = Arc::new(Hall { server, places });
    let inspector = Inspector::start(&dir.path, ask(&hall))?;
    // Not before all is there: what is printed can be used.
    for place in &hall.places {
        say(&introduction(place.name(), place.config(), place.devices()));
    }
    say(&closing_words(&dir.path));
    let mut watches: Vec<_> = hall.places.iter().map(|_| Watch::default()).collect();
    while stop.pause(Instant::now() + LOOK).is_ok() {
        for (place, watch) in hall.places.iter().zip(&mut watches) {
            watch.look(place);
        }
    }
    // It looks at the places, and so goes before them.
    drop(inspector);
    drop(hall);
    say("Stopped: sockets and tables are removed.");
    Ok(())
}

/// A server and all its places.
struct Hall {
    server: Server,
    places: Vec<GuestPlace>,
}

/// What answers `vsva inspect`.
fn ask(hall: &Arc<Hall>) -> Ask {
    let hall = hall.clone();
    Box::new(move |name| {
        let Hall { server, places } = &*hall;
        let Some(name) = name else { return Ok(server.snapshot(places)) };
        let place = places.iter().find(|place| place.name() == name);
        place.map(|place| server.snapshot([place])).ok_or_else(|| Refusal::NoGuest {
            name: name.to_owned(),
            known: places.iter().map(|place| place.name().to_owned()).collect(),
        })
    })
}

/// What was last said about a place.
#[derive(Default)]
struct Watch {
    lives: u64,
    connected: bool,
    descriptors: u64,
    refused: u64,
    timed_out: u64,
}

impl Watch {
    /// Says what happened since the last look.
    fn look(&mut self, place: &GuestPlace) {
        let lives = place.lives();
        if lives != self.lives {
            self.lives = lives;
            self.connected = true;
            self.descriptors = place.accelerator().counters().descriptors;
            place.say(format_args!("connected (guest number {lives} in this place)"));
        }
        if self.connected {
            if let Ok(took) = place.wait_ended(Duration::ZERO) {
                self.connected = false;
                let executed = place.accelerator().counters().descriptors - self.descriptors;
                place.say(format_args!(
                    "gone after {executed} descriptors; everything freed in {:.1} ms; the place is free again",
                    took.as_secs_f64() * 1e3
                ));
            }
        }
        let refused = place.refused();
        if refused != self.refused {
            self.refused = refused;
            place.say("a second client was turned away: the place is in use (--guests makes more)");
        }
        let timed_out = place.page_requests_timed_out();
        if timed_out != self.timed_out {
            let more = timed_out - std::mem::replace(&mut self.timed_out, timed_out);
            place.say(format_args!(
                "{more} page requests were not answered in time; the device was told that the pages cannot be had \
                 (--page-request-timeout)"
            ));
        }
        place.say_suppressed();
    }
}

/// A directory that is the user's and this server's alone.
struct Directory {
    path: PathBuf,
    /// Locked for as long as the server lives.
    _lock: File,
}

impl Directory {
    /// The directory at `path`, made if it is not there.
    fn new(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Dir { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let path = path.canonicalize().map_err(failed)?;
        if path.to_str().is_none() {
            return Err(Error::NotUnicode { path });
        }
        let lock = File::open(&path).map_err(failed)?;
        let about = lock.metadata().map_err(failed)?;
        let mode = about.mode() & 0o777;
        if mode & 0o022 != 0 || about.uid() != rustix::process::geteuid().as_raw() {
            return Err(Error::NotPrivate { path, mode, owner: about.uid() });
        }
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path, _lock: lock }),
            Err(Errno::WOULDBLOCK) => Err(Error::Busy { path }),
            Err(errno) => Err(failed(errno.into())),
        }
    }
}

/// What a user pastes.
fn introduction(name: &str, config: GuestConfig, devices: &Devices) -> String {
    let share = share(name, config);
    let mut text = format!(
        "{share}{name}: give these arguments to qemu-system-x86_64, 10.1 or newer:\n\n    \
         -machine q35,memory-backend=ram -m 2G \\\n    \
         -object memory-backend-memfd,id=ram,share=on,size=2G \\\n    \
         -cpu max,la57=off"
    );
    for pair in devices.arguments().chunks(2) {
        let quoted: Vec<_> = pair.iter().map(|part| quoted(&part.to_string_lossy())).collect();
        text.push_str(" \\\n    ");
        text.push_str(&quoted.join(" "));
    }
    text.push('\n');
    text
}

/// What a guest has of the host, a line for each thing that is not as usual.
fn share(name: &str, config: GuestConfig) -> String {
    let GuestConfig {
        quota,
        numbering,
        commands,
        pasid_table,
        stage_two,
        page_request_timeout,
        ..
    } = config;
    let numbers = match numbering {
        Numbering::Identity => "numbered as the host's",
        Numbering::Private => "with numbers of its own",
    };
    let how = match (commands, pasid_table) {
        (Commands::Off, PasidTable::Guest) => None,
        (Commands::Off, PasidTable::Host) => Some("each bound in the host's table".to_owned()),
        (layout, table) => {
            let bound = if table == PasidTable::Host { ", bound in the host's table" } else { "" };
            Some(format!("by virtual commands of revision {layout}{bound}"))
        }
    };
    let mut text = String::new();
    if let Some(how) = how {
        text = format!("{name}: {quota} PASIDs, {numbers}, {how}\n");
    }
    if page_request_timeout != GuestConfig::USUAL.page_request_timeout {
        text += &match page_request_timeout {
            PageTimeout::After(timeout) => {
                format!("{name}: page requests are answered in its place after {timeout:?}\n")
            }
            PageTimeout::Never => {
                format!("{name}: page requests wait for its answer however long that takes\n")
            }
        };
    }
    text + match stage_two {
        StageTwo::None => String::new(),
        layout => format!("{name}: its memory lies below a second stage of the host's, {layout}\n"),
    }
    .as_str()
}

/// What holds for every guest.
fn closing_words(dir: &Path) -> String {
    format!(
        "Another size of memory: change both 2G. With KVM: -accel kvm -cpu host,la57=off.\n\
         The guest kernel's command line needs intel_iommu=on,sm_on, and setcpuid=movdir64b where the\n\
         processor has no MOVDIR64B (no KVM, or an old one).\n\
         Ready in {dir}; Ctrl-C ends the server; vsva inspect --dir {dir} shows it at work.",
        dir = quoted(&dir.to_string_lossy())
    )
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
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::qemu::PciSocket;

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
        let refused = Directory::new(dir.path());
        assert!(matches!(refused, Err(Error::NotPrivate { mode: 0o777, .. })));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert!(Directory::new(dir.path()).is_ok());
    }

    #[test]
    fn a_directory_belongs_to_one_server_at_a_time() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("a/b");
        let first = Directory::new(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        assert!(matches!(Directory::new(&path), Err(Error::Busy { .. })));
        drop(first);
        Directory::new(&path).unwrap();
    }

    #[test]
    fn what_is_in_the_way_of_a_directory_is_named() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("file");
        fs::write(&path, "").unwrap();
        let error = Directory::new(&path).err().unwrap().to_string();
        assert!(error.starts_with(path.to_str().unwrap()), "{error}");
    }

    #[test]
    fn what_is_pasted_survives_a_shell() {
        let devices = Devices {
            acpi_tables: vec!["/run/it's/a b,c.aml".into()],
            functions: vec![PciSocket { path: "/run/it's/s".into(), addr: "10.0".into() }],
        };
        let text = introduction("guest0", GuestConfig::default(), &devices);
        let (_, arguments) = text.split_once("\n\n").unwrap();
        let echo = format!("printf '%s\\n' {arguments}");
        let output = std::process::Command::new("sh").args(["-c", &echo]).output().unwrap();
        let output = String::from_utf8(output.stdout).unwrap();
        let words: Vec<_> = output.lines().collect();
        let wanted = devices.arguments();
        let wanted: Vec<_> = wanted.iter().map(|word| word.to_str().unwrap()).collect();
        assert_eq!(words[words.len() - wanted.len()..], wanted);
    }

    #[test]
    fn quotas_beyond_the_host_are_refused_before_anything_is_made() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("d");
        let quota = vec!["600000".parse().unwrap()];
        let shares = Shares { quota, ..Shares::default() };
        let options = Options {
            dir: dir.clone(),
            guests: 2,
            shares,
            calls: HostCalls::Direct,
            injections: Vec::new(),
            allow_unsealed: false,
        };
        let say: Arc<dyn Fn(&str) + Send + Sync> = Arc::new(|_: &str| ());
        let refused = run(&options, &say);
        let sum = shares::Error::Quotas { guests: 2, sum: 1_200_000, capacity: 0xf_ffff };
        assert!(matches!(refused, Err(Error::Shares(error)) if error == sum));
        assert!(!dir.exists());
    }

    #[test]
    fn a_number_of_guests_out_of_range_is_refused() {
        let shares = Shares::default();
        let options = Options {
            dir: "/nonexistent".into(),
            guests: 0,
            shares,
            calls: HostCalls::Direct,
            injections: Vec::new(),
            allow_unsealed: false,
        };
        let say: Arc<dyn Fn(&str) + Send + Sync> = Arc::new(|_: &str| ());
        assert!(matches!(run(&options, &say), Err(Error::Guests { got: 0 })));
    }
}
