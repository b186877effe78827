//! The kernel's log, read as it grows.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use dsa::spec::SwErrorHead;
use rustix::fs::OFlags;

/// Longest record that the kernel gives out, with room to spare.
const MAX_RECORD: usize = 16 * 1024;
/// Records taken in one go at most, so that a flood in the log cannot keep a reader forever.
const MAX_RECORDS: usize = 10_000;
/// Pause between two looks at the log.
const POLL: Duration = Duration::from_millis(20);

/// The kernel logs the errors of one driver with a limit: ten lines, which is two or three errors, in
/// each five seconds. After that long without one, the next is logged.
pub(crate) const RATE_LIMIT_WINDOW: Duration = Duration::from_secs(6);

/// A position in the kernel's log.
pub(crate) struct KernelLog {
    device: File,
}

impl KernelLog {
    /// From the oldest line still held.
    pub(crate) fn from_start() -> io::Result<Self> {
        let nonblocking = OFlags::NONBLOCK.bits() as i32;
        let device = File::options().read(true).custom_flags(nonblocking).open("/dev/kmsg")?;
        Ok(Self { device })
    }

    /// Only what is logged from now on.
    pub(crate) fn from_now() -> io::Result<Self> {
        let mut log = Self::from_start()?;
        log.device.seek(SeekFrom::End(0))?;
        Ok(log)
    }

    /// Lines logged since the last call.
    pub(crate) fn lines(&mut self) -> io::Result<Vec<String>> {
        let mut lines = Vec::new();
        let mut record = [0; MAX_RECORD];
        while lines.len() < MAX_RECORDS {
            match self.device.read(&mut record) {
                Ok(0) => break,
                Ok(got) => lines.push(text(record.get(..got).unwrap_or_default())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Overwritten before it was read: the next read continues at the oldest.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                Err(error) => return Err(error),
            }
        }
        Ok(lines)
    }

    /// Waits for a line that `wanted` accepts; otherwise gives all lines seen meanwhile.
    pub(crate) fn find(
        &mut self,
        patience: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> io::Result<Result<String, Vec<String>>> {
        let deadline = Instant::now() + patience;
        let mut seen = Vec::new();
        loop {
            for line in self.lines()? {
                if wanted(&line) {
                    return Ok(Ok(line));
                }
                seen.push(line);
            }
            if Instant::now() >= deadline {
                return Ok(Err(seen));
            }
            std::thread::sleep(POLL);
        }
    }
}

/// With what a kernel's line begins, or what it says, when the kernel has found itself in a state that it should not
/// be in: whatever a device or an IOMMU does, that is not for them to bring about.
const COMPLAINTS: [&str; 10] = [
    "WARNING: ",
    "BUG: ",
    "kernel BUG at ",
    "Oops: ",
    "refcount_t: ",
    " corruption",
    "general protection fault",
    "INFO: task ",
    "rcu: INFO: ",
    "soft lockup",
];

/// Complaints that are told, at most.
const TOLD: usize = 4;

/// What the kernel has complained of in these lines, the first few of it; `None` if of nothing.
pub(crate) fn complaints(lines: &[String]) -> Option<String> {
    let complains = |line: &&String| COMPLAINTS.iter().any(|words| line.contains(words));
    let found: Vec<_> = lines.iter().filter(complains).take(TOLD).map(String::as_str).collect();
    (!found.is_empty()).then(|| found.join(" | "))
}

/// The head of the accelerator's software error register, out of the line in which `idxd` logs it.
pub(crate) fn software_error(line: &str) -> Option<SwErrorHead> {
    let (_, value) = line.split_once("err[0]: 0x")?;
    let digits = value.split(|digit: char| !digit.is_ascii_hexdigit()).next()?;
    u64::from_str_radix(digits, 16).ok().map(SwErrorHead::from_bits)
}

/// Whether the kernel says here that a function of driver `driver` logged more than its limit allows.
pub(crate) fn suppressed(line: &str, driver: &str) -> bool {
    line.contains("callbacks suppressed") && line.contains(driver)
}

/// The message of a record `priority,sequence,time,flags;message\n KEY=value...`.
fn text(record: &[u8]) -> String {
    let record = String::from_utf8_lossy(record);
    let message = record.split_once(';').map_or(&*record, |(_, message)| message);
    message.lines().next().unwrap_or_default().to_owned()
}

/// The last `count` lines of the log that mention `word`, for an error message.
pub(crate) fn last_mentions(word: &str, count: usize) -> String {
    let lines = KernelLog::from_start().and_then(|mut log| log.lines()).unwrap_or_default();
    let mentions: Vec<_> = lines.iter().filter(|line| line.contains(word)).collect();
    let skip = mentions.len().saturating_sub(count);
    mentions.iter().skip(skip).map(|line| line.as_str()).collect::<Vec<_>>().join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_software_error_register_is_found_in_its_line() {
        let line = "idxd 0000:00:10.0: err[0]: 0x0abcde0300001a2d";
        let head = software_error(line).unwrap();
        assert_eq!((head.code(), head.pasid(), head.opcode()), (0x1a, 0xabcde, 3));
        assert!(head.valid() && head.descriptor_valid() && head.wq_valid() && head.write());
        assert_eq!(software_error("idxd 0000:00:10.0: err[1]: 0x1"), None);
        assert_eq!(software_error("err[0]: 0x"), None);
    }

    #[test]
    fn a_kernel_that_complains_is_heard() {
        let lines = |lines: &[&str]| lines.iter().map(|&line| line.to_owned()).collect::<Vec<_>>();
        let usual = [
            "DMAR: [DMA Write PASID 0x2] Request device [0000:00:10.0] fault addr 0x7f94",
            "oom-kill:constraint=CONSTRAINT_MEMCG,task=guest",
            "Call Trace:",
            "Memory cgroup out of memory: Killed process 93 (guest)",
        ];
        assert_eq!(complaints(&lines(&usual)), None);
        let seen = [
            "refcount_t: underflow; use-after-free.",
            "WARNING: lib/refcount.c:28 at refcount_warn_saturate+0x59/0x90, CPU#0: kworker/111",
            "list_add corruption. next->prev should be prev",
            "kernel BUG at lib/list_debug.c:29!",
            "BUG: kernel NULL pointer dereference, address: 0000000000000008",
        ];
        for line in seen {
            assert_eq!(complaints(&lines(&[usual[0], line])), Some(line.to_owned()));
        }
        assert_eq!(complaints(&lines(&seen)), Some(seen[..TOLD].join(" | ")));
    }

    #[test]
    fn a_limit_that_was_hit_is_noticed() {
        let line = "idxd_misc_thread: 10 callbacks suppressed";
        assert!(suppressed(line, "idxd") && !suppressed(line, "vfio"));
        assert!(!suppressed("idxd 0000:00:10.0: err[0]: 0x1", "idxd"));
    }

    #[test]
    fn a_record_is_reduced_to_its_message() {
        let record =
            b"3,841,5140900,-;DMAR: [DMA Read PASID 0xabcde] Request; device\n SUBSYSTEM=pci\n";
        assert_eq!(text(record), "DMAR: [DMA Read PASID 0xabcde] Request; device");
        assert_eq!(text(b"no head"), "no head");
        assert_eq!(text(b""), "");
    }
}
