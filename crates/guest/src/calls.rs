//! System calls that `rustix` does not offer.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;

use rustix::process::Pid;

/// Splits the process in two. `None` in the child, which is a copy of the caller and shares its
/// private memory until one of them writes.
///
/// # Errors
/// The kernel's; also when the process has other threads, which the child would lack.
pub(crate) fn fork() -> io::Result<Option<Pid>> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!("a process with {threads} threads does not fork")));
    }
    // SAFETY: the process has one thread (above), so no lock that the child may want is held by
    // somebody who is not there.
    match unsafe { libc::fork() } {
        0 => Ok(None),
        // Negative numbers are no process.
        number => Pid::from_raw(number.max(0)).map(Some).ok_or_else(io::Error::last_os_error),
    }
}

/// Lets the kernel swap to a block device that has a swap area's header.
pub(crate) fn swap_on(device: &CStr) -> io::Result<()> {
    // SAFETY: the path is a string with its NUL, which the call only reads.
    succeeded(unsafe { libc::swapon(device.as_ptr(), 0) })
}

/// Takes everything back from a block device that the kernel swaps to.
pub(crate) fn swap_off(device: &CStr) -> io::Result<()> {
    // SAFETY: the path is a string with its NUL, which the call only reads.
    succeeded(unsafe { libc::swapoff(device.as_ptr()) })
}

fn succeeded(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_threads_does_not_fork() {
        // A test runs in a thread of its own.
        assert!(fork().unwrap_err().to_string().contains("threads"));
    }

    #[test]
    fn no_swap_on_what_is_no_disk() {
        assert!(swap_on(c"/proc/self/exe").is_err());
        assert!(swap_off(c"/proc/self/exe").is_err());
    }
}
