//! Child processes that cannot be left behind.
//!
//! Each child leads a process group of its own, is killed (with its whole group) when its [`Supervised`] value is
//! dropped, and gets SIGKILL from the kernel if this process dies without dropping anything.
//!
//! The parent-death signal follows the *thread* that spawned the child, so spawn from a thread that outlives it.
#![allow(unsafe_code)]

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus};
use std::time::Instant;

use rustix::io::Errno;
use rustix::process::{
    getpid, getppid, kill_process_group, set_parent_process_death_signal, waitid, Pid, Signal,
    WaitId, WaitIdOptions,
};

use crate::stop::{Stop, Stopped};

/// Why a child could not be started or waited for.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// The operating system refused to start it.
    #[error("{program} cannot be started: {source}")]
    Spawn {
        /// The program's name.
        program: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The operating system refused to say how it is.
    #[error("{program} cannot be waited for: {source}")]
    Wait {
        /// The program's name.
        program: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// It was still running at its deadline.
    #[error("{program} was still running at its deadline")]
    Expired {
        /// The program's name.
        program: String,
    },
    /// The user asked to stop.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// A running child and its process group; both end when this value is dropped.
#[derive(Debug)]
pub struct Supervised {
    program: String,
    child: Child,
    status: Option<ExitStatus>,
}

impl Supervised {
    /// Starts `command` under supervision; `program` names it in errors.
    ///
    /// # Errors
    /// [`SuperviseError::Spawn`].
    pub fn spawn(program: &str, mut command: Command) -> Result<Self, SuperviseError> {
        let parent = getpid();
        command.process_group(0);
        let before_exec = move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // A parent that died before the line above would never send the signal.
            if getppid() == Some(parent) {
                Ok(())
            } else {
                Err(Errno::SRCH.into())
            }
        };
        // SAFETY: the closure runs in the forked child before exec, where only async-signal-safe calls are allowed.
        // It makes two raw system calls (prctl, getppid), compares integers, and builds its error from an errno
        // without allocating; it takes no lock and touches no memory of other threads.
        unsafe { command.pre_exec(before_exec) };
        match command.spawn() {
            Ok(child) => Ok(Self { program: program.to_owned(), child, status: None }),
            Err(source) => Err(SuperviseError::Spawn { program: program.to_owned(), source }),
        }
    }

    /// The child's process number, which is its group's too.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// How the child ended, or `None` while it runs. What else is left of its group is killed when it has ended.
    ///
    /// # Errors
    /// [`SuperviseError::Wait`].
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, SuperviseError> {
        if self.status.is_some() {
            return Ok(self.status);
        }
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        match waitid(WaitId::Pid(self.pid()), look) {
            Ok(None) => Ok(None),
            Ok(Some(_)) => self.end().map(Some),
            Err(errno) => Err(self.wait_error(errno.into())),
        }
    }

    /// Waits for the child to end by itself, calling `tick` now and then.
    ///
    /// # Errors
    /// [`SuperviseError::Expired`] at `deadline`, [`SuperviseError::Stopped`] when the user asked to stop (the child
    /// goes on in both cases), [`SuperviseError::Wait`].
    pub fn wait(
        &mut self,
        deadline: Instant,
        stop: &Stop,
        mut tick: impl FnMut(),
    ) -> Result<ExitStatus, SuperviseError> {
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(SuperviseError::Expired { program: self.program.clone() });
            }
            stop.pause(deadline)?;
            tick();
        }
    }

    /// Kills the child and its group at once, and reaps it.
    ///
    /// # Errors
    /// [`SuperviseError::Wait`].
    pub fn kill(&mut self) -> Result<ExitStatus, SuperviseError> {
        match self.status {
            Some(status) => Ok(status),
            None => self.end(),
        }
    }

    /// Kills the group and reaps the child. The child is not reaped before, so the group's number cannot have gone to
    /// somebody else.
    fn end(&mut self) -> Result<ExitStatus, SuperviseError> {
        // "No such process" means that nothing is left to kill.
        let _ = kill_process_group(self.pid(), Signal::KILL);
        let status = self.child.wait().map_err(|source| self.wait_error(source))?;
        self.status = Some(status);
        Ok(status)
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn wait_error(&self, source: io::Error) -> SuperviseError {
        SuperviseError::Wait { program: self.program.clone(), source }
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        // Nobody is left to tell; the parent-death signal still stands.
        let _ = self.kill();
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;
    use std::time::Duration;

    use super::*;

    fn shell(script: &str) -> Supervised {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped());
        Supervised::spawn("sh", command).expect("a shell starts")
    }

    fn alive(pid: Pid) -> bool {
        rustix::process::test_kill_process(pid).is_ok()
    }

    /// The number of a grandchild that `script` prints on its first line.
    fn grandchild(shell: &mut Supervised) -> Pid {
        use std::io::BufRead as _;
        let mut line = String::new();
        let out = shell.child.stdout.take().expect("piped");
        std::io::BufReader::new(out).read_line(&mut line).expect("a line");
        Pid::from_raw(line.trim().parse().expect("a number")).expect("not zero")
    }

    fn gone_within(pid: Pid, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        while alive(pid) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    #[test]
    fn drop_kills_the_whole_group() {
        let mut child = shell("sleep 60 & echo $!; wait");
        let grandchild = grandchild(&mut child);
        assert!(alive(grandchild));
        drop(child);
        assert!(gone_within(grandchild, Duration::from_secs(5)));
    }

    #[test]
    fn what_the_leader_leaves_behind_dies_with_it() {
        let mut child = shell("sleep 60 & echo $!");
        let grandchild = grandchild(&mut child);
        let status =
            child.wait(Instant::now() + Duration::from_secs(5), &Stop::default(), || ()).unwrap();
        assert!(status.success());
        assert!(gone_within(grandchild, Duration::from_secs(5)));
    }

    #[test]
    fn waits_end_at_the_deadline_and_at_a_stop() {
        let mut child = shell("sleep 60");
        let stop = Stop::default();
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(matches!(child.wait(soon, &stop, || ()), Err(SuperviseError::Expired { .. })));
        stop.raise();
        let later = Instant::now() + Duration::from_secs(60);
        assert!(matches!(child.wait(later, &stop, || ()), Err(SuperviseError::Stopped(_))));
        assert!(!child.kill().unwrap().success());
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = Supervised::spawn("nothing", Command::new("/nonexistent/nothing")).unwrap_err();
        assert!(error.to_string().starts_with("nothing cannot be started"));
    }
}
