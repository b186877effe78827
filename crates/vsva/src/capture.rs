//! Running a helper program to its end and keeping what it said.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::stop::Stop;
use crate::supervise::{SuperviseError, Supervised};

/// The most that is read back of one stream of a helper program, in bytes.
pub const MAX_OUTPUT: u64 = 4 << 20;

/// Lines of a failed program's last words that an error shows.
pub const TAIL_LINES: usize = 12;

/// What a helper program did.
#[derive(Debug)]
pub struct Captured {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output, at most [`MAX_OUTPUT`] bytes of it.
    pub stdout: String,
    /// Its standard error, at most [`MAX_OUTPUT`] bytes of it.
    pub stderr: String,
}

/// Why a helper program has no result.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// It could not be started, waited for, or ended in time.
    #[error(transparent)]
    Process(#[from] SuperviseError),
    /// Its output could not be kept.
    #[error("the output of {program} cannot be kept: {source}")]
    Output {
        /// The program's name.
        program: String,
        /// What the operating system said.
        source: io::Error,
    },
}

/// Runs `command` (named `program` in errors) to its end, calling `tick` now and then.
///
/// # Errors
/// [`CaptureError`]; a program that ends unsuccessfully is no error here.
pub fn capture(
    program: &str,
    mut command: Command,
    limit: Duration,
    stop: &Stop,
    tick: impl FnMut(),
) -> Result<Captured, CaptureError> {
    let kept = |source| CaptureError::Output { program: program.to_owned(), source };
    // Files and not pipes: nothing to drain while waiting, and no way for the program to block on us.
    let stdout = tempfile::tempfile().map_err(kept)?;
    let stderr = tempfile::tempfile().map_err(kept)?;
    command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone().map_err(kept)?)
        .stderr(stderr.try_clone().map_err(kept)?);
    let mut child = Supervised::spawn(program, command)?;
    let status = child.wait(Instant::now() + limit, stop, tick)?;
    let stdout = read_back(stdout).map_err(kept)?;
    let stderr = read_back(stderr).map_err(kept)?;
    Ok(Captured { status, stdout, stderr })
}

fn read_back(mut file: File) -> io::Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut bytes = Vec::new();
    file.take(MAX_OUTPUT).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The last `count` lines of `text` that say something.
pub fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, limit: Duration) -> Result<Captured, CaptureError> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        capture("sh", command, limit, &Stop::default(), || ())
    }

    #[test]
    fn both_streams_and_the_status_are_kept() {
        let captured = sh("echo out; echo err >&2; exit 3", Duration::from_secs(10)).unwrap();
        assert_eq!(captured.status.code(), Some(3));
        assert_eq!((captured.stdout.as_str(), captured.stderr.as_str()), ("out\n", "err\n"));
    }

    #[test]
    fn a_flood_is_cut() {
        let captured = sh("head -c 6000000 /dev/zero", Duration::from_secs(10)).unwrap();
        assert_eq!(captured.stdout.len() as u64, MAX_OUTPUT);
    }

    #[test]
    fn a_hang_ends_at_the_limit() {
        let error = sh("sleep 60", Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, CaptureError::Process(SuperviseError::Expired { .. })));
    }

    #[test]
    fn last_lines_skip_blank_ones() {
        assert_eq!(last_lines("a\nb\n\nc\n\n", 2), "b\nc");
        assert_eq!(last_lines("", 2), "");
    }
}
