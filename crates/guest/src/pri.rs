//! The accelerator's page request interface, through its configuration space (PCI Express, page
//! request extended capability).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Configuration space of the accelerator in the lab's guests.
const CONFIGURATION: &str = "/sys/bus/pci/devices/0000:00:10.0/config";
/// Where extended capabilities begin.
const FIRST: u64 = 0x100;
/// The capability's number.
const PAGE_REQUEST: u32 = 0x13;
/// Most capabilities that fit: a chain that is longer goes in circles.
const MAX_CAPABILITIES: usize = 960;
/// How long the device may take to stop; it takes microseconds if nothing is outstanding.
const STOPS_WITHIN: Duration = Duration::from_secs(5);

// Registers of the capability, from its beginning.
const CONTROL: u64 = 4;
const STATUS: u64 = 6;
const ALLOCATION: u64 = 12;

const CONTROL_ENABLE: u16 = 1 << 0;
const CONTROL_RESET: u16 = 1 << 1;
const STATUS_RESPONSE_FAILURE: u16 = 1 << 0;
const STATUS_UNEXPECTED: u16 = 1 << 1;
const STATUS_STOPPED: u16 = 1 << 8;

/// What the device says of its page requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status {
    /// An answer said that requests are of no use.
    pub(crate) response_failure: bool,
    /// An answer came that nothing had been asked for.
    pub(crate) unexpected: bool,
}

/// The capability in configuration space.
struct Interface {
    configuration: File,
    at: u64,
}

impl Interface {
    fn open() -> io::Result<Self> {
        let configuration = File::options().read(true).write(true).open(CONFIGURATION)?;
        let mut at = FIRST;
        for _ in 0..MAX_CAPABILITIES {
            let mut header = [0; 4];
            configuration.read_exact_at(&mut header, at)?;
            let header = u32::from_le_bytes(header);
            if header & 0xffff == PAGE_REQUEST {
                return Ok(Self { configuration, at });
            }
            at = u64::from(header >> 20);
            if at < FIRST {
                break;
            }
        }
        Err(io::Error::other("the device has no page request capability"))
    }

    fn read(&self, register: u64) -> io::Result<u16> {
        let mut bytes = [0; 2];
        self.configuration.read_exact_at(&mut bytes, self.at + register)?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn write(&self, register: u64, value: u16) -> io::Result<()> {
        self.configuration.write_all_at(&value.to_le_bytes(), self.at + register)
    }

    fn allocation(&self) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.configuration.read_exact_at(&mut bytes, self.at + ALLOCATION)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// The allocation can be changed only while the interface is disabled and has stopped.
    fn allocate(&self, credits: u32) -> io::Result<()> {
        self.write(CONTROL, 0)?;
        let deadline = Instant::now() + STOPS_WITHIN;
        while self.read(STATUS)? & STATUS_STOPPED == 0 {
            if Instant::now() >= deadline {
                return Err(io::Error::other("page requests are still outstanding"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        self.write(CONTROL, CONTROL_RESET)?;
        self.configuration.write_all_at(&credits.to_le_bytes(), self.at + ALLOCATION)?;
        self.write(CONTROL, CONTROL_ENABLE)?;
        match self.allocation()? {
            got if got == credits => Ok(()),
            got => Err(io::Error::other(format!("the device allocates {got}"))),
        }
    }
}

/// What the kernel's driver allocated.
static AT_FIRST: OnceLock<u32> = OnceLock::new();

/// Allows the device this many page requests at a time. It must be disabled.
pub(crate) fn allocate(credits: u32) -> io::Result<()> {
    let interface = Interface::open()?;
    let before = interface.allocation()?;
    AT_FIRST.get_or_init(|| before);
    interface.allocate(credits)
}

/// Allows the device as many as before the first [`allocate`] of this process.
pub(crate) fn restore() -> io::Result<()> {
    AT_FIRST.get().map_or(Ok(()), |credits| Interface::open()?.allocate(*credits))
}

/// What the device says now; it is cleared.
pub(crate) fn take_status() -> io::Result<Status> {
    let interface = Interface::open()?;
    let status = interface.read(STATUS)?;
    let errors = STATUS_RESPONSE_FAILURE | STATUS_UNEXPECTED;
    // Cleared by writing ones.
    interface.write(STATUS, status & errors)?;
    Ok(Status {
        response_failure: status & STATUS_RESPONSE_FAILURE != 0,
        unexpected: status & STATUS_UNEXPECTED != 0,
    })
}
