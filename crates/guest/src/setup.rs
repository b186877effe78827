//! Configuring the accelerator through the kernel's sysfs files, as `accel-config` does.
//!
//! `dsa0` gets two groups with half of the engines each, and dedicated user queues in turn: `wq0.0`
//! in group 0, `wq0.1` in group 1 and so on. If it can block on a fault, there are queues that may,
//! beside those that do not. Nothing reaches the hardware before the `bind` writes.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dsa::spec::GenCap;

use crate::kmsg;
use crate::pri;

/// Queues that every scenario may use, each in the group of the same number. They stop at a page
/// that is not there.
pub(crate) const QUEUES: [usize; 2] = [0, 1];
/// Queues that may block on a fault: the page is requested, and the descriptor goes on.
pub(crate) const BLOCKING: [usize; 4] = [2, 3, 4, 5];
/// Groups of queues and engines.
const GROUPS: usize = 2;
/// Entries of each queue: descriptors that may be outstanding on it.
pub(crate) const QUEUE_SIZE: usize = 16;
/// Largest transfer that the queues accept, in bytes.
pub(crate) const MAX_TRANSFER: u64 = 4 << 20;
/// Most members of a batch that the queues accept.
pub(crate) const MAX_BATCH: usize = 32;

const BUS: &str = "/sys/bus/dsa";
const DEVICE: &str = "/sys/bus/dsa/devices/dsa0";
/// How long the driver may take to show the accelerator, after its module is loaded.
const APPEARS_WITHIN: Duration = Duration::from_secs(20);
/// Pause between two looks for a file that is about to appear.
const POLL: Duration = Duration::from_millis(20);
/// Lines of the kernel's log that go into an error.
const LOG_LINES: usize = 4;

/// Why the accelerator cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    /// The driver has not found one.
    #[error("{path} did not appear within {APPEARS_WITHIN:?}; the kernel said: {log}")]
    Absent { path: PathBuf, log: String },
    /// A file of sysfs could not be read or refused a value.
    #[error("{path} refused {value:?}: {source}; device status {status}; the kernel said: {log}")]
    Refused { path: PathBuf, value: String, source: io::Error, status: String, log: String },
    /// A file of sysfs could not be read.
    #[error("{path} cannot be read: {source}")]
    Unreadable { path: PathBuf, source: io::Error },
    /// The device's page request interface does not take another allocation.
    #[error("{credits:?} page requests cannot be allocated: {source}")]
    Credits { credits: Option<u32>, source: io::Error },
    /// A file of sysfs holds something unexpected.
    #[error("{path} holds {value:?}, not a number")]
    NotANumber { path: PathBuf, value: String },
}

/// What the accelerator is like.
#[derive(Debug)]
pub(crate) struct Accelerator {
    engines: usize,
    entries: usize,
    version: String,
    state: String,
    /// Its queues that may block on a fault.
    blocking: usize,
}

impl Accelerator {
    /// Whether there are the queues of [`BLOCKING`].
    pub(crate) fn can_block(&self) -> bool {
        self.blocking > 0
    }
}

impl std::fmt::Display for Accelerator {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            out,
            "dsa0 {}: version {}, {} engines, {} queue entries; {} queues of {QUEUE_SIZE} entries, \
             and {} that may block",
            self.state,
            self.version,
            self.engines,
            self.entries,
            QUEUES.len(),
            self.blocking,
        )
    }
}

/// Configures and enables the accelerator and its queues, if that has not been done yet.
pub(crate) fn ready() -> Result<Accelerator, SetupError> {
    let device = Path::new(DEVICE);
    appear(&device.join("state"))?;
    let blocking = if blocks_on_fault(device)? { &BLOCKING[..] } else { &[] };
    if read(&device.join("state"))? != "enabled" {
        configure(device, blocking)?;
        bind("idxd", "dsa0")?;
    }
    for &queue in QUEUES.iter().chain(blocking) {
        let directory = queue_directory(queue);
        if read(&directory.join("state"))? != "enabled" {
            bind("user", &queue_name(queue))?;
        }
        appear(&node(queue))?;
    }
    Ok(Accelerator {
        engines: number(&device.join("max_engines"))?,
        entries: number(&device.join("max_work_queues_size"))?,
        version: read(&device.join("version"))?,
        state: read(&device.join("state"))?,
        blocking: blocking.len(),
    })
}

/// Configures everything anew, with at most `credits` page requests of the device outstanding; `None`
/// for as many as the kernel's driver allowed at first. Nobody may have a queue open.
pub(crate) fn restart(credits: Option<u32>) -> Result<Accelerator, SetupError> {
    write(&Path::new(BUS).join("drivers/idxd/unbind"), "dsa0")?;
    let change = || match credits {
        Some(credits) => pri::allocate(credits),
        None => pri::restore(),
    };
    change().map_err(|source| SetupError::Credits { credits, source })?;
    ready()
}

/// The character device of a queue.
pub(crate) fn node(queue: usize) -> PathBuf {
    PathBuf::from(format!("/dev/dsa/{}", queue_name(queue)))
}

fn queue_name(queue: usize) -> String {
    format!("wq0.{queue}")
}

fn queue_directory(queue: usize) -> PathBuf {
    Path::new(DEVICE).join(queue_name(queue))
}

/// Whether the device's capabilities say that it can (GENCAP bit 0).
fn blocks_on_fault(device: &Path) -> Result<bool, SetupError> {
    let path = device.join("gen_cap");
    let value = read(&path)?;
    let digits = value.trim_start_matches("0x");
    match u64::from_str_radix(digits, 16) {
        Ok(capabilities) => Ok(GenCap::from_bits(capabilities).block_on_fault()),
        Err(_) => Err(SetupError::NotANumber { path, value }),
    }
}

fn configure(device: &Path, blocking: &[usize]) -> Result<(), SetupError> {
    let engines = number(&device.join("max_engines"))?;
    for engine in 0..engines {
        let group = engine * GROUPS / engines.max(1);
        let file = device.join(format!("engine0.{engine}")).join("group_id");
        write(&file, &group.to_string())?;
    }
    let transfer = number(&device.join("max_transfer_size"))?.min(MAX_TRANSFER as usize);
    let batch = number(&device.join("max_batch_size"))?.min(MAX_BATCH);
    for queue in QUEUES {
        configure_queue(queue, transfer, batch, "0")?;
    }
    for &queue in blocking {
        configure_queue(queue, transfer, batch, "1")?;
    }
    Ok(())
}

fn configure_queue(
    queue: usize,
    transfer: usize,
    batch: usize,
    block: &str,
) -> Result<(), SetupError> {
    let directory = queue_directory(queue);
    for (attribute, value) in [
        ("group_id", (queue % GROUPS).to_string()),
        ("mode", "dedicated".to_owned()),
        ("size", QUEUE_SIZE.to_string()),
        ("priority", "10".to_owned()),
        ("type", "user".to_owned()),
        ("name", format!("vsva{queue}")),
        ("max_transfer_size", transfer.to_string()),
        ("max_batch_size", batch.to_string()),
    ] {
        write(&directory.join(attribute), &value)?;
    }
    // A device that cannot block on a fault refuses even the value that it has.
    let block_on_fault = directory.join("block_on_fault");
    if read(&block_on_fault)? != block {
        write(&block_on_fault, block)?;
    }
    // Older kernels bind by the queue's type alone.
    let driver_name = directory.join("driver_name");
    if driver_name.exists() {
        write(&driver_name, "user")?;
    }
    Ok(())
}

fn bind(driver: &str, device: &str) -> Result<(), SetupError> {
    write(&Path::new(BUS).join("drivers").join(driver).join("bind"), device)
}

fn appear(path: &Path) -> Result<(), SetupError> {
    let deadline = Instant::now() + APPEARS_WITHIN;
    while !path.exists() {
        if Instant::now() >= deadline {
            return Err(SetupError::Absent { path: path.to_owned(), log: driver_log() });
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, SetupError> {
    std::fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .map_err(|source| SetupError::Unreadable { path: path.to_owned(), source })
}

fn number(path: &Path) -> Result<usize, SetupError> {
    let value = read(path)?;
    value.parse().map_err(|_| SetupError::NotANumber { path: path.to_owned(), value })
}

fn write(path: &Path, value: &str) -> Result<(), SetupError> {
    std::fs::write(path, value).map_err(|source| SetupError::Refused {
        path: path.to_owned(),
        value: value.to_owned(),
        source,
        status: command_status(),
        log: driver_log(),
    })
}

/// The kernel's account of the last command, and what its code means.
fn command_status() -> String {
    let Ok(text) = read(&Path::new(DEVICE).join("cmd_status")) else {
        return "unknown".to_owned();
    };
    let code = u32::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or_default();
    format!("{text} ({})", meaning(code))
}

/// What a status means: codes below 0x100 are the device's, the others the kernel driver's.
fn meaning(code: u32) -> &'static str {
    match code {
        0 => "success",
        0x01 => "unknown command",
        0x02 => "no such queue",
        0x03 => "hardware error",
        0x04 => "reserved bits set",
        0x10 => "device is not disabled",
        0x11 => "device configuration",
        0x12 => "bus mastering is off",
        0x13 => "page request allocation",
        0x14 => "queues are larger than the device",
        0x15 => "a group has queues or engines only",
        0x16 => "a queue is in no group or in two",
        0x17 => "an engine is in two groups",
        0x18 => "read buffers of a group",
        0x1a => "address translation service",
        0x20 => "device is not enabled",
        0x21 => "queue is not disabled",
        0x22 => "queue has size 0",
        0x23 => "queue has priority 0",
        0x24 => "queue mode is not supported",
        0x25 => "block on fault is not possible",
        0x26 => "PASID enable does not fit the queue",
        0x27 => "batch size of the queue",
        0x28 => "transfer size of the queue",
        0x31 => "device is not enabled",
        0x32 => "queue is not enabled",
        0x800f_0000 => "the kernel wants privileged mode for this queue",
        0x8011_0000 => "the kernel has no shared virtual addressing for user queues",
        _ => "see enum idxd_scmd_stat of the kernel",
    }
}

fn driver_log() -> String {
    kmsg::last_mentions("idxd", LOG_LINES)
}
