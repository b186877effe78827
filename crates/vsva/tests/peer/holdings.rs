//! What this process has, for tests that show that nothing is left. They are alone in their program.

use std::fs;
use std::time::Duration;

use super::eventually;

/// How long the sampled numbers stay the same before they are believed.
const SETTLES: Duration = Duration::from_millis(5);

/// What the process has.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Holdings {
    descriptors: usize,
    threads: usize,
}

impl Holdings {
    /// Samples it.
    pub(crate) fn now() -> Self {
        // A thread that has ended is listed for a moment longer.
        let sample = || Self {
            descriptors: fs::read_dir("/proc/self/fd").unwrap().count(),
            threads: fs::read_dir("/proc/self/task").unwrap().count(),
        };
        let mut last = sample();
        eventually("threads settle", || {
            std::thread::sleep(SETTLES);
            let now = sample();
            std::mem::replace(&mut last, now.clone()) == now
        });
        last
    }
}

/// Number of mappings of the memory file of this name.
pub(crate) fn mappings(name: &str) -> usize {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains(&format!("memfd:{name}"))).count()
}
