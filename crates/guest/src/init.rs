//! PID 1: brings the machine up, and runs one scenario after the other as the lab asks.

use std::ffi::CStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use guest_protocol::{decode, encode, FromGuest, Lines, ToGuest};
use rustix::fs::OFlags;
use rustix::mount::{mount, MountFlags};
use rustix::process::{waitpid, WaitOptions};
use rustix::system::{reboot, uname, RebootCommand};
use rustix::termios::{tcgetattr, tcsetattr, OptionalActions};

use crate::child::{readable, Child, Ending, Event};
use crate::failure::clip;
use crate::scenario;

/// The port to the lab; the kernel's console is the first one.
const PORT: &str = "/dev/ttyS1";
/// How long the modules may take to load; a driver that waits for its device never returns.
const MODULES_WITHIN: Duration = Duration::from_secs(60);
/// How long the lab may take to answer a question; it may wait for another guest first.
const ANSWER_WITHIN: Duration = Duration::from_secs(180);
/// How long orphans of a scenario may take to be gone.
const ORPHANS_WITHIN: Duration = Duration::from_secs(5);
/// "For ever", for waits that only the lab ends.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// File systems, in the order of mounting; the last one only exists in some kernels.
const MOUNTS: [(&str, &str); 6] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/run"),
    ("debugfs", "/sys/kernel/debug"),
];

/// Runs as PID 1. Does not return: the end of PID 1 would be a panic of the kernel.
pub(crate) fn main() -> ! {
    mount_all();
    let ended = std::panic::catch_unwind(|| serve().map_err(|error| error.to_string()));
    let text = match ended {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error),
        Err(_) => Some("PID 1 panicked; the console has the message".to_owned()),
    };
    if let Some(text) = text {
        eprintln!("guest-init: {text}");
        // A fresh connection: the old one went with the panic.
        if let Ok(mut lab) = Lab::connect() {
            let _nobody_listens = lab.say(&FromGuest::Fatal { text: clip(&text) });
        }
    }
    power_off()
}

fn mount_all() {
    for (kind, target) in MOUNTS {
        let _exists = fs::create_dir_all(target);
        if let Err(error) = mount(kind, target, kind, MountFlags::empty(), None) {
            eprintln!("guest-init: {target}: {error}");
        }
    }
}

fn power_off() -> ! {
    rustix::fs::sync();
    let error = reboot(RebootCommand::PowerOff);
    eprintln!("guest-init: cannot power off: {error:?}");
    loop {
        std::thread::park();
    }
}

/// The connection to the lab.
struct Lab {
    port: File,
    lines: Lines,
}

impl Lab {
    fn connect() -> io::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let no_terminal = OFlags::NOCTTY.bits() as i32;
        let port = File::options().read(true).write(true).custom_flags(no_terminal).open(PORT)?;
        let mut settings = tcgetattr(&port)?;
        settings.make_raw();
        tcsetattr(&port, OptionalActions::Now, &settings)?;
        Ok(Self { port, lines: Lines::new() })
    }

    fn say(&mut self, message: &FromGuest) -> io::Result<()> {
        let line = encode(message).map_err(io::Error::other)?;
        self.port.write_all(line.as_bytes())
    }

    fn note(&mut self, text: impl Into<String>) -> io::Result<()> {
        self.say(&FromGuest::Note { text: clip(&text.into()) })
    }

    /// The next command, or `None` at the deadline. What is not a command is answered by a note.
    fn hear(&mut self, deadline: Instant) -> io::Result<Option<ToGuest>> {
        loop {
            match self.lines.next().map(|line| line.and_then(|line| decode(&line))) {
                Some(Ok(command)) => return Ok(Some(command)),
                Some(Err(error)) => self.note(format!("ignored a line from the lab: {error}"))?,
                None => {
                    if !readable(&self.port, deadline)? {
                        return Ok(None);
                    }
                    let mut bytes = [0; 4096];
                    let got = self.port.read(&mut bytes)?;
                    if got == 0 {
                        return Err(io::Error::other("the port to the lab was closed"));
                    }
                    self.lines.feed(bytes.get(..got).unwrap_or_default());
                }
            }
        }
    }
}

fn serve() -> io::Result<()> {
    let mut lab = Lab::connect()?;
    run_child(&mut lab, "loading the kernel modules", &["modules"], MODULES_WITHIN)?;
    lab.say(&FromGuest::Hello {
        kernel: uname().release().to_string_lossy().into_owned(),
        cpus: std::thread::available_parallelism()
            .map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX)),
    })?;
    loop {
        match lab.hear(Instant::now() + FOREVER)? {
            Some(ToGuest::Run { scenario, seed }) => run_scenario(&mut lab, &scenario, seed)?,
            Some(ToGuest::PowerOff) => return Ok(()),
            Some(ToGuest::Continue { .. } | ToGuest::Pasids { .. }) => {
                lab.note("nothing waits for an answer")?;
            }
            None => {}
        }
    }
}

fn run_scenario(lab: &mut Lab, name: &str, seed: u64) -> io::Result<()> {
    match scenario::find(name) {
        Some(scenario) => {
            let arguments = ["scenario", scenario.name, &seed.to_string()];
            run_child(lab, "the scenario's process", &arguments, scenario.deadline)?;
        }
        None => fail(lab, "scenario exists", format!("the guest knows no scenario {name:?}"))?,
    }
    lab.say(&FromGuest::Done { scenario: clip(name) })
}

fn fail(lab: &mut Lab, check: &str, detail: String) -> io::Result<()> {
    lab.say(&FromGuest::Check { check: check.to_owned(), ok: false, detail: clip(&detail) })
}

/// Runs a child to its end and passes on what it says. What becomes of the child is a check only
/// when it goes wrong.
fn run_child(lab: &mut Lab, what: &str, arguments: &[&str], patience: Duration) -> io::Result<()> {
    let deadline = Instant::now() + patience;
    let mut child = match Child::leader(arguments) {
        Ok(child) => child,
        Err(error) => return fail(lab, what, format!("cannot be started: {error}")),
    };
    let silent = relay(lab, &mut child, deadline)?;
    let ending = end(child, silent, deadline)?;
    reap_orphans();
    match (silent, ending.trouble()) {
        (true, trouble) => {
            let trouble = trouble.unwrap_or_else(|| "it exited at once".to_owned());
            fail(lab, what, format!("not done within {patience:?}; {trouble}"))
        }
        (false, Some(trouble)) => fail(lab, what, trouble),
        (false, None) => Ok(()),
    }
}

fn end(child: Child, silent: bool, deadline: Instant) -> io::Result<Ending> {
    if silent {
        return child.kill();
    }
    // Its workers must not keep a queue from the next scenario.
    let group = child.group();
    let ending = child.end(deadline)?;
    if let Some(group) = group {
        group.kill();
    }
    Ok(ending)
}

/// Passes on messages until the child closes its pipe. True if the deadline came first.
fn relay(lab: &mut Lab, child: &mut Child, deadline: Instant) -> io::Result<bool> {
    loop {
        match child.event(deadline)? {
            Event::Message(question @ (FromGuest::Sync { .. } | FromGuest::Holds { .. })) => {
                let answer = ask(lab, &question)?;
                if let Err(error) = child.answer(&answer) {
                    fail(lab, "the scenario's process", format!("did not wait: {error}"))?;
                }
            }
            Event::Message(message) => lab.say(&message)?,
            Event::Garbage(error) => {
                fail(lab, "the scenario's process", format!("said nonsense: {error}"))?;
            }
            Event::Closed => return Ok(false),
            Event::Silent => return Ok(true),
        }
    }
}

/// Passes on what the lab has to answer and waits for the answer. Switches off at once if the lab
/// says so.
fn ask(lab: &mut Lab, question: &FromGuest) -> io::Result<ToGuest> {
    lab.say(question)?;
    let deadline = Instant::now() + ANSWER_WITHIN;
    loop {
        match lab.hear(deadline)? {
            Some(answer @ (ToGuest::Continue { .. } | ToGuest::Pasids { .. })) => {
                return Ok(answer);
            }
            Some(ToGuest::PowerOff) => power_off(),
            Some(ToGuest::Run { scenario, .. }) => {
                lab.note(format!("cannot run {scenario:?}: another scenario waits for an answer"))?;
            }
            None => return Ok(ToGuest::Continue { ok: false }),
        }
    }
}

/// Waits for processes whose parents are gone; they were killed with their group.
fn reap_orphans() {
    let deadline = Instant::now() + ORPHANS_WITHIN;
    loop {
        match waitpid(None, WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
            Ok(None) | Err(_) => return,
        }
    }
}

/// Where the lab's initramfs has modules.
const MODULES: &str = "/lib/modules";
/// Where the lab's initramfs lists the modules to load, in order, by absolute path.
const LOAD_ORDER: &str = "/lib/modules/load-order";

/// Loads the listed modules. Runs in a child of its own: a driver's probe may hang.
pub(crate) fn load_modules(report: &mut crate::report::Report) {
    let list = match fs::read_to_string(LOAD_ORDER) {
        Ok(list) => list,
        Err(error) => return report.note(&format!("no kernel modules: {LOAD_ORDER}: {error}")),
    };
    for path in list.lines().map(str::trim).filter(|path| !path.is_empty()) {
        if let Err(error) = load_module(Path::new(path), c"") {
            report.note(&format!("kernel module {path}: {error}"));
        }
    }
}

/// Loads a module that is there for whoever wants it, unless it is loaded or built in.
pub(crate) fn load_on_demand(name: &str, parameters: &CStr) -> io::Result<()> {
    if Path::new("/sys/module").join(name).exists() {
        return Ok(());
    }
    let path = Path::new(MODULES).join(format!("{name}.ko"));
    if !path.exists() {
        return Err(io::Error::other(format!("this kernel brings no module {name}")));
    }
    load_module(&path, parameters)
}

fn load_module(path: &Path, parameters: &CStr) -> io::Result<()> {
    match rustix::system::finit_module(File::open(path)?, parameters, 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
