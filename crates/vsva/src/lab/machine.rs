//! One guest: its QEMU, its console, its control channel and its private directory.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::{Duration, Instant};

use guest_protocol::{FromGuest, ToGuest};

use crate::assets::{Kernel, Linux, Qemu};
use crate::capture::last_lines;
use crate::control::{Control, ControlError};
use crate::initramfs::{self, InitramfsError};
use crate::private::PrivateDir;
use crate::qemu::{Boot, Devices};
use crate::stop::{Stop, Stopped, SLICE};
use crate::supervise::{SuperviseError, Supervised};

/// The longest from QEMU's start to the guest program's hello.
pub const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// Lines of the guest's console that an error shows.
pub const CONSOLE_LINES: usize = 30;

/// A console log bigger than this ends the guest, in bytes: it would fill the disk.
pub const MAX_CONSOLE: u64 = 64 << 20;

/// The end of the console log that is read for its last lines, in bytes.
const CONSOLE_END: u64 = 64 << 10;

/// Why a guest cannot be had or is of no use any more.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The user asked to stop.
    #[error(transparent)]
    Stopped(#[from] Stopped),
    /// A file of the guest's private directory failed.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A kernel that the run was not prepared with.
    #[error("no kernel was prepared for it ({0:?})")]
    NoKernel(Linux),
    /// The initramfs cannot be written.
    #[error(transparent)]
    Initramfs(#[from] InitramfsError),
    /// QEMU could not be started or waited for.
    #[error(transparent)]
    Process(SuperviseError),
    /// QEMU ended by itself.
    #[error("{}{}", how_ended(.status), said(.stderr))]
    Ended {
        /// How.
        status: ExitStatus,
        /// Its last words.
        stderr: String,
    },
    /// The guest said nothing that was waited for.
    #[error("{what} did not come within {} s", limit.as_secs())]
    Expired {
        /// What was waited for.
        what: String,
        /// For how long.
        limit: Duration,
    },
    /// The control channel failed.
    #[error(transparent)]
    Control(ControlError),
    /// The guest program gave up.
    #[error("the guest program gave up: {0}")]
    Fatal(String),
    /// The guest said something out of turn.
    #[error("the guest sent {0}, which has no place here")]
    Unexpected(&'static str),
    /// The guest talks without end.
    #[error("the guest sent more than {limit} messages in one scenario")]
    Endless {
        /// How many are listened to.
        limit: usize,
    },
    /// The guest fills the disk.
    #[error("the guest's console wrote more than {MAX_CONSOLE} bytes")]
    ConsoleFlood,
}

fn how_ended(status: &ExitStatus) -> String {
    if status.success() {
        // With -no-reboot and panic=-1 a panic is a reset, and a reset ends QEMU as a power-off does.
        "the guest panicked, reset or switched itself off".to_owned()
    } else {
        format!("QEMU ended ({status})")
    }
}

fn said(stderr: &str) -> String {
    if stderr.is_empty() {
        String::new()
    } else {
        format!(", saying:\n{stderr}")
    }
}

impl From<SuperviseError> for GuestError {
    fn from(error: SuperviseError) -> Self {
        match error {
            SuperviseError::Stopped(stopped) => Self::Stopped(stopped),
            other => Self::Process(other),
        }
    }
}

pub(super) fn file_error(path: &Path) -> impl FnOnce(io::Error) -> GuestError {
    let path = path.to_owned();
    move |source| GuestError::File { path, source }
}

/// A wait: what for, and until when.
#[derive(Clone, Debug)]
pub struct Wait {
    what: String,
    limit: Duration,
    until: Instant,
}

impl Wait {
    /// A wait for `what` that begins now.
    pub fn new(what: impl Into<String>, limit: Duration) -> Self {
        Self { what: what.into(), limit, until: Instant::now() + limit }
    }

    /// Whether there is time left.
    ///
    /// # Errors
    /// [`GuestError::Expired`] once the time is over.
    pub fn check(&self) -> Result<(), GuestError> {
        if Instant::now() < self.until {
            return Ok(());
        }
        Err(GuestError::Expired { what: self.what.clone(), limit: self.limit })
    }
}

/// A guest as the runner sees it.
pub trait Guest {
    /// Tells the guest something.
    ///
    /// # Errors
    /// [`GuestError`]; the guest is then of no use any more.
    fn send(&mut self, message: &ToGuest) -> Result<(), GuestError>;

    /// The guest's next message, or `None` if there was none within `limit` (more than zero).
    /// [`FromGuest::Fatal`] comes as [`GuestError::Fatal`].
    ///
    /// # Errors
    /// [`GuestError`]; the guest is then of no use any more.
    fn hear(&mut self, limit: Duration) -> Result<Option<FromGuest>, GuestError>;

    /// The guest's next message.
    ///
    /// # Errors
    /// As [`hear`](Self::hear), and [`GuestError::Expired`].
    fn receive(&mut self, wait: &Wait) -> Result<FromGuest, GuestError> {
        loop {
            let heard = self.hear(SLICE)?;
            // A guest that never falls silent must not outrun its deadline.
            wait.check()?;
            if let Some(message) = heard {
                return Ok(message);
            }
        }
    }

    /// Kills the guest as `kill -9` would.
    ///
    /// # Errors
    /// [`GuestError::Process`].
    fn kill(&mut self) -> Result<(), GuestError>;

    /// Waits for the guest to switch itself off.
    ///
    /// # Errors
    /// [`GuestError`].
    fn wait_off(&mut self, wait: &Wait) -> Result<(), GuestError>;

    /// The last lines of the guest's console.
    fn console(&self) -> String;
}

/// Where the files of one boot go.
#[derive(Debug)]
pub struct Place {
    /// The private directory, with the server's sockets in it already.
    pub dir: PrivateDir,
    /// Where logs are kept, and the guest's name in their names; in the private directory if `None`.
    pub logs: Option<(PathBuf, String)>,
}

impl Place {
    fn log(&self, name: &str) -> Result<PathBuf, GuestError> {
        let Some((dir, guest)) = &self.logs else { return Ok(self.dir.path().join(name)) };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(file_error(dir))?;
        Ok(dir.join(format!("{guest}.{name}")))
    }
}

/// A guest under QEMU. Dropping it kills QEMU and removes its directory.
#[derive(Debug)]
pub struct Machine {
    // Dropped in this order: nothing may use the directory when it goes.
    qemu: Supervised,
    control: Control,
    console: PathBuf,
    stderr: PathBuf,
    stop: Stop,
    _dir: PrivateDir,
}

impl Machine {
    /// Starts QEMU and waits until the guest's second serial port is connected. The guest program's hello comes later,
    /// as its first message.
    ///
    /// # Errors
    /// [`GuestError`].
    pub fn start(
        qemu: &Qemu,
        kernel: &Kernel,
        init: &[u8],
        devices: &Devices,
        place: Place,
        stop: &Stop,
    ) -> Result<Self, GuestError> {
        let dir = place.dir.path();
        let initrd = dir.join("initrd");
        let archive = initramfs::build(init, &kernel.modules, &kernel.on_demand)?;
        fs::write(&initrd, archive).map_err(file_error(&initrd))?;
        let socket = dir.join("control");
        let listener = UnixListener::bind(&socket).map_err(file_error(&socket))?;
        let (console, stderr) = (place.log("console.log")?, place.log("qemu.log")?);
        let transcript = place.log("control.log")?;
        let boot = Boot {
            kernel: &kernel.image,
            initrd: &initrd,
            console: &console,
            control: &socket,
            devices,
        };
        let mut command = qemu.command();
        command.args(boot.arguments()).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(create(&stderr)?);
        let mut qemu = Supervised::spawn("QEMU", command)?;
        let stream = accept(&listener, &mut qemu, &stderr, stop).map_err(|error| match error {
            AcceptError::Guest(error) => error,
            AcceptError::Io(error) => file_error(&socket)(error),
        })?;
        let control =
            Control::new(stream, Some(create(&transcript)?)).map_err(GuestError::Control)?;
        Ok(Self { qemu, control, console, stderr, stop: stop.clone(), _dir: place.dir })
    }

    /// QEMU's process number.
    pub fn id(&self) -> u32 {
        self.qemu.id()
    }

    /// Fails if QEMU is gone, the user wants to stop, or the console floods.
    fn check(&mut self) -> Result<(), GuestError> {
        self.stop.check()?;
        if let Some(status) = self.qemu.try_wait()? {
            return Err(ended(status, &self.stderr));
        }
        if fs::metadata(&self.console).is_ok_and(|file| file.len() > MAX_CONSOLE) {
            return Err(GuestError::ConsoleFlood);
        }
        Ok(())
    }
}

impl Guest for Machine {
    fn send(&mut self, message: &ToGuest) -> Result<(), GuestError> {
        self.control.send(message).map_err(GuestError::Control)
    }

    fn hear(&mut self, limit: Duration) -> Result<Option<FromGuest>, GuestError> {
        match self.control.receive(limit) {
            Ok(Some(FromGuest::Fatal { text })) => Err(GuestError::Fatal(text)),
            Ok(Some(message)) => {
                self.stop.check()?;
                Ok(Some(message))
            }
            Ok(None) => {
                self.check()?;
                Ok(None)
            }
            Err(ControlError::Closed) => {
                // QEMU is about to end, and how it ends says more than the closed channel.
                let soon = Instant::now() + Duration::from_secs(2);
                Err(match self.qemu.wait(soon, &self.stop, || ()) {
                    Ok(status) => ended(status, &self.stderr),
                    Err(SuperviseError::Stopped(stopped)) => stopped.into(),
                    Err(_) => GuestError::Control(ControlError::Closed),
                })
            }
            Err(error) => Err(GuestError::Control(error)),
        }
    }

    fn kill(&mut self) -> Result<(), GuestError> {
        self.qemu.kill()?;
        Ok(())
    }

    fn wait_off(&mut self, wait: &Wait) -> Result<(), GuestError> {
        match self.qemu.wait(wait.until, &self.stop, || ()) {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(ended(status, &self.stderr)),
            Err(SuperviseError::Expired { .. }) => wait.check(),
            Err(error) => Err(error.into()),
        }
    }

    fn console(&self) -> String {
        last_lines(&end_of(&self.console), CONSOLE_LINES)
    }
}

fn ended(status: ExitStatus, stderr: &Path) -> GuestError {
    GuestError::Ended { status, stderr: last_lines(&end_of(stderr), CONSOLE_LINES) }
}

/// The end of a log as text; empty if it cannot be read, since it only ever adds to another error.
fn end_of(path: &Path) -> String {
    use std::os::unix::fs::FileExt as _;
    let Ok(file) = File::open(path) else { return String::new() };
    let Ok(size) = file.metadata().map(|file| file.len()) else { return String::new() };
    let from = size.saturating_sub(CONSOLE_END);
    let mut bytes = vec![0; (size - from) as usize];
    let count = file.read_at(&mut bytes, from).unwrap_or(0);
    bytes.truncate(count);
    // Terminals' escape sequences and carriage returns would garble the user's.
    let text = String::from_utf8_lossy(&bytes);
    text.chars().filter(|c| *c == '\n' || !c.is_control()).collect()
}

fn create(path: &Path) -> Result<File, GuestError> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options.open(path).map_err(file_error(path))
}

enum AcceptError {
    Guest(GuestError),
    Io(io::Error),
}

/// QEMU's connection for the control channel, which it makes before the guest starts.
fn accept(
    listener: &UnixListener,
    qemu: &mut Supervised,
    stderr: &Path,
    stop: &Stop,
) -> Result<UnixStream, AcceptError> {
    listener.set_nonblocking(true).map_err(AcceptError::Io)?;
    let wait = Wait::new("QEMU's connection to the control channel", BOOT_LIMIT);
    let guest = |error: GuestError| AcceptError::Guest(error);
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).map_err(AcceptError::Io)?;
                return Ok(stream);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(AcceptError::Io(error)),
        }
        if let Some(status) = qemu.try_wait().map_err(|error| guest(error.into()))? {
            return Err(guest(ended(status, stderr)));
        }
        wait.check().map_err(guest)?;
        stop.pause(wait.until).map_err(|stopped| guest(stopped.into()))?;
    }
}

impl GuestError {
    /// Whether the user's own signal is what happened.
    pub fn is_stop(&self) -> bool {
        matches!(self, Self::Stopped(_))
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
