//! Child processes of this program: the same binary again, with a pipe each way and a deadline.
//!
//! A scenario runs in one, so that nothing it does takes PID 1 down; a scenario runs its own
//! workers in others, so that each has an address space and a PASID of its own.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use guest_protocol::{decode, encode, FromGuest, Lines, ToGuest};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::pipe::{pipe_with, PipeFlags};
use rustix::process::{kill_process, kill_process_group, waitpid, Pid, Signal, WaitOptions};

use crate::calls;
use crate::report::Report;

/// Exit code of a fork whose work panicked, as of a program that does.
const EXIT_PANICKED: i32 = 101;
/// This program, however it was started.
const SELF: &str = "/proc/self/exe";
/// How long a killed process may take to be gone; a process inside a driver may never go.
const KILL_GRACE: Duration = Duration::from_secs(5);
/// Pause between two looks at a process that is about to exit.
const EXIT_POLL: Duration = Duration::from_millis(5);

/// A running child.
pub(crate) struct Child {
    process: Process,
    output: ChildStdout,
    input: ChildStdin,
    lines: Lines,
}

/// How a child came to be.
enum Process {
    /// A program that was started.
    Started(std::process::Child),
    /// A copy of this process.
    Forked { pid: Pid, ended: Option<ExitStatus> },
}

impl Process {
    fn id(&self) -> u32 {
        match self {
            Self::Started(child) => child.id(),
            Self::Forked { pid, .. } => pid.as_raw_nonzero().get().unsigned_abs(),
        }
    }

    fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        let (pid, ended) = match self {
            Self::Started(child) => return child.try_wait(),
            Self::Forked { pid, ended } => (*pid, ended),
        };
        if ended.is_none() {
            let waited = waitpid(Some(pid), WaitOptions::NOHANG)?;
            *ended = waited.map(|(_, status)| ExitStatus::from_raw(status.as_raw()));
        }
        Ok(*ended)
    }

    fn kill(&mut self) -> io::Result<()> {
        match self {
            Self::Started(child) => child.kill(),
            Self::Forked { ended: Some(_), .. } => Ok(()),
            Self::Forked { pid, .. } => Ok(kill_process(*pid, Signal::KILL)?),
        }
    }
}

/// The processes that a child started, and their children.
pub(crate) struct Group(Pid);

impl Group {
    /// Kills whoever is left.
    pub(crate) fn kill(&self) {
        let _nobody_left = kill_process_group(self.0, Signal::KILL);
    }
}

/// What a child said next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A message.
    Message(FromGuest),
    /// A line that is none.
    Garbage(String),
    /// Its pipe is closed: it has exited, or will say no more.
    Closed,
    /// Nothing, until the deadline.
    Silent,
}

/// How a child ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// By itself, or by a signal.
    Exited(ExitStatus),
    /// Not at all, not even by a kill; with where in the kernel it waits.
    Stuck(String),
}

impl Ending {
    /// `None` after an exit with code zero, otherwise what happened.
    pub(crate) fn trouble(&self) -> Option<String> {
        match self {
            Self::Exited(status) if status.success() => None,
            Self::Exited(status) => Some(match status.signal() {
                Some(number) => format!("killed by signal {number} ({})", signal_name(number)),
                None => format!("exited with code {}", status.code().unwrap_or_default()),
            }),
            Self::Stuck(place) => {
                Some(format!("cannot be killed, it waits in the kernel: {place}"))
            }
        }
    }
}

fn signal_name(number: i32) -> &'static str {
    match number {
        4 => "SIGILL",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        31 => "SIGSYS",
        _ => "see signal(7)",
    }
}

impl Child {
    /// Starts this program again with these arguments, leading a process group of its own.
    pub(crate) fn leader(arguments: &[&str]) -> io::Result<Self> {
        Self::start(Command::new(SELF).args(arguments).process_group(0))
    }

    /// Starts this program again in this process's group, to end with it.
    pub(crate) fn worker(arguments: &[&str]) -> io::Result<Self> {
        Self::start(Command::new(SELF).args(arguments))
    }

    fn start(command: &mut Command) -> io::Result<Self> {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let gone = || io::Error::other("a piped stream is missing");
        let output = process.stdout.take().ok_or_else(gone)?;
        let input = process.stdin.take().ok_or_else(gone)?;
        Ok(Self { process: Process::Started(process), output, input, lines: Lines::new() })
    }

    /// Splits this process in two; the other half does `work` and ends.
    pub(crate) fn forked(work: impl FnOnce(&mut Report)) -> io::Result<Self> {
        let (output, child_output) = pipe_with(PipeFlags::CLOEXEC)?;
        let (child_input, input) = pipe_with(PipeFlags::CLOEXEC)?;
        let Some(pid) = calls::fork()? else {
            drop((output, input));
            let (output, input) = (File::from(child_output), File::from(child_input));
            // What called must not go on twice, whatever happens.
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                work(&mut Report::over(Box::new(output), Box::new(input)));
            }));
            std::process::exit(if ended.is_ok() { 0 } else { EXIT_PANICKED });
        };
        let process = Process::Forked { pid, ended: None };
        Ok(Self { process, output: output.into(), input: input.into(), lines: Lines::new() })
    }

    /// Its number.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// The next thing it says, waiting until `deadline` at the latest.
    pub(crate) fn event(&mut self, deadline: Instant) -> io::Result<Event> {
        loop {
            if let Some(line) = self.lines.next() {
                return Ok(line
                    .and_then(|line| decode(&line))
                    .map_or_else(|error| Event::Garbage(error.to_string()), Event::Message));
            }
            if !readable(&self.output, deadline)? {
                return Ok(Event::Silent);
            }
            let mut bytes = [0; 4096];
            match self.output.read(&mut bytes)? {
                0 => return Ok(Event::Closed),
                got => self.lines.feed(bytes.get(..got).unwrap_or_default()),
            }
        }
    }

    /// Lets it go on from a sync point.
    pub(crate) fn go_on(&mut self, ok: bool) -> io::Result<()> {
        self.answer(&ToGuest::Continue { ok })
    }

    /// Answers what it waits for.
    pub(crate) fn answer(&mut self, answer: &ToGuest) -> io::Result<()> {
        let line = encode(answer).map_err(io::Error::other)?;
        self.input.write_all(line.as_bytes())
    }

    /// Waits for its exit, and kills it at the deadline.
    pub(crate) fn end(mut self, deadline: Instant) -> io::Result<Ending> {
        match self.wait(deadline)? {
            Some(status) => Ok(Ending::Exited(status)),
            None => self.kill(),
        }
    }

    /// Kills it (and its group, if it leads one) and waits for a bounded time.
    pub(crate) fn kill(mut self) -> io::Result<Ending> {
        if let Some(group) = self.group() {
            group.kill();
        }
        let _gone_already = self.process.kill();
        match self.wait(Instant::now() + KILL_GRACE)? {
            Some(status) => Ok(Ending::Exited(status)),
            None => Ok(Ending::Stuck(self.place())),
        }
    }

    /// The group of which it is the leader.
    pub(crate) fn group(&self) -> Option<Group> {
        i32::try_from(self.process.id()).ok().and_then(Pid::from_raw).map(Group)
    }

    fn wait(&mut self, deadline: Instant) -> io::Result<Option<ExitStatus>> {
        loop {
            let status = self.process.try_wait()?;
            if status.is_some() || Instant::now() >= deadline {
                return Ok(status);
            }
            std::thread::sleep(EXIT_POLL);
        }
    }

    /// Where in the kernel a process waits that no signal ends.
    fn place(&self) -> String {
        let read = |name| {
            std::fs::read_to_string(format!("/proc/{}/{name}", self.process.id()))
                .unwrap_or_default()
                .trim()
                .replace('\n', " < ")
        };
        format!("{} {}", read("wchan"), read("stack"))
    }
}

/// Waits until there is something to read. False at the deadline.
pub(crate) fn readable(stream: &impl std::os::fd::AsFd, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut streams = [PollFd::new(stream, PollFlags::IN)];
        match poll(&mut streams, Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Child {
        Child::start(Command::new("/bin/sh").args(["-c", script]).process_group(0)).unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn messages_garbage_and_the_end_are_told_apart() {
        let mut child = shell(r#"echo '{"type":"Note","text":"hi"}'; echo oops; exit 3"#);
        let note = FromGuest::Note { text: "hi".into() };
        assert_eq!(child.event(soon()).unwrap(), Event::Message(note));
        assert!(matches!(child.event(soon()).unwrap(), Event::Garbage(_)));
        assert_eq!(child.event(soon()).unwrap(), Event::Closed);
        assert_eq!(child.end(soon()).unwrap().trouble().unwrap(), "exited with code 3");
    }

    #[test]
    fn a_child_goes_on_when_it_is_told() {
        let mut child = shell("read line; case $line in *true*) ;; *) exit 1;; esac");
        child.go_on(true).unwrap();
        assert_eq!(child.end(soon()).unwrap().trouble(), None);
    }

    #[test]
    fn silence_ends_at_the_deadline_and_the_whole_group_dies() {
        let mut child = shell("sleep 1000 & sleep 1000");
        let deadline = Instant::now() + Duration::from_millis(50);
        assert_eq!(child.event(deadline).unwrap(), Event::Silent);
        let trouble = child.end(Instant::now()).unwrap().trouble().unwrap();
        assert_eq!(trouble, "killed by signal 9 (SIGKILL)");
    }
}
