//! What this process holds of the machine: for scenarios that must not grow.

use std::fs;
use std::io;

/// A sample.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Resources {
    /// Memory of the process's own (not guests') that is in use, in KiB.
    pub(super) resident_kib: u64,
    /// Open descriptors.
    pub(super) descriptors: u64,
    /// Threads.
    pub(super) threads: u64,
}

impl Resources {
    /// Takes a sample of this process.
    pub(super) fn sample() -> io::Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim_start_matches(':').split_whitespace().next()?.parse().ok()
        };
        let missing = || io::Error::new(io::ErrorKind::InvalidData, "a field of /proc/self/status");
        Ok(Self {
            resident_kib: field("RssAnon").ok_or_else(missing)?,
            threads: field("Threads").ok_or_else(missing)?,
            descriptors: fs::read_dir("/proc/self/fd")?.count() as u64,
        })
    }
}

/// Number of mappings of guests' memory files that this process has.
pub(super) fn guest_mappings() -> io::Result<usize> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    Ok(maps.lines().filter(|line| line.contains("memfd:")).count())
}
