//! The PCI function that carries an IOMMU's register page.
//!
//! A VT-d unit is no PCI function of its own: it is a page of registers at the address that the
//! DMAR table names. A transport that carries PCI functions can carry that page all the same, as
//! the start of a BAR, as long as firmware puts the BAR where the table says:
//!
//! * The BAR is far larger than the page. SeaBIOS gives out the largest BARs first, from a fixed
//!   address, so a 256 MiB BAR does not move with the other devices of the machine.
//! * The class is host bridge: Linux claims the DMAR's range before it looks at BARs, finds the
//!   BAR in conflict, and would move it; it never moves a host bridge's.
//! * The ids match no driver.

use std::sync::{Arc, Mutex, PoisonError};

use pci::spec::ClassCode;
use pci::{Bar, BarKind, ConfigSpace, Function, Header, InterruptSink, LayoutError};

/// Size of the BAR in bytes; see the module's page for why it is this large.
pub const CARRIER_BAR_SIZE: u64 = 256 << 20;
/// Where SeaBIOS puts a BAR of that size, in every layout of a `q35` machine tried.
pub const CARRIER_BAR_ADDRESS: u64 = 0xe000_0000;
/// Vendor id of the carrier: not assigned to a vendor, so that no driver takes it.
const VENDOR: u16 = 0x5653;
/// Device id of the carrier.
const DEVICE: u16 = 0x0001;
/// Size of the register page; the rest of the BAR reads as zero.
const REGISTER_PAGE: u64 = 4096;

const BARS: [Bar; 1] =
    [Bar { index: 0, kind: BarKind::Memory32, prefetchable: false, size: CARRIER_BAR_SIZE }];

/// A page of device registers.
pub trait RegisterPage: Send + Sync {
    /// Reads from `offset` bytes into the page.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes at `offset` bytes into the page.
    fn write(&self, offset: u64, data: &[u8]);
    /// As after power-on.
    fn reset(&self);
}

/// Firmware put the register page where the guest's ACPI table does not say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "firmware put the IOMMU's registers at {found:#x}, but the guest's DMAR table says \
     {expected:#x}: the guest will not find its IOMMU. Start the VM with a DMAR table for \
     {found:#x}, or without other PCI devices that have BARs of 256 MiB and more"
)]
pub struct Misplaced {
    /// The address in the DMAR table.
    pub expected: u64,
    /// The address that was programmed.
    pub found: u64,
}

/// The carrier of a register page.
pub struct IommuFunction {
    page: Arc<dyn RegisterPage>,
    expected: u64,
    config: Mutex<ConfigSpace>,
    misplaced: Box<dyn Fn(Misplaced) + Send + Sync>,
}

impl IommuFunction {
    /// A function that carries `page`, expected at `address`; `misplaced` is called each time
    /// memory decoding is switched on somewhere else.
    pub fn new(
        page: Arc<dyn RegisterPage>,
        address: u64,
        misplaced: Box<dyn Fn(Misplaced) + Send + Sync>,
    ) -> Result<Self, LayoutError> {
        let header = Header {
            vendor: VENDOR,
            device: DEVICE,
            class: ClassCode::HOST_BRIDGE,
            revision: 0,
            subsystem_vendor: VENDOR,
            subsystem: DEVICE,
        };
        let config = ConfigSpace::builder(header).bars(&BARS).build()?;
        Ok(Self { page, expected: address, config: Mutex::new(config), misplaced })
    }

    fn with_config<R>(&self, f: impl FnOnce(&mut ConfigSpace) -> R) -> R {
        f(&mut self.config.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Function for IommuFunction {
    fn bars(&self) -> &[Bar] {
        &BARS
    }

    fn vectors(&self) -> u16 {
        0
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.with_config(|config| config.read(offset, data));
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        let decoding_at = self.with_config(|config| {
            let effects = config.write(offset, data);
            let started = effects.memory_space() == Some(true);
            started.then(|| config.bar_address(0)).flatten()
        });
        if let Some(found) = decoding_at.filter(|found| *found != self.expected) {
            (self.misplaced)(Misplaced { expected: self.expected, found });
        }
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        if in_bar(bar, offset, data.len(), REGISTER_PAGE) {
            self.page.read(offset, data);
        } else {
            let exists = in_bar(bar, offset, data.len(), CARRIER_BAR_SIZE);
            data.fill(if exists { 0 } else { 0xff });
        }
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        if in_bar(bar, offset, data.len(), REGISTER_PAGE) {
            self.page.write(offset, data);
        }
    }

    fn reset(&self) {
        self.with_config(ConfigSpace::reset);
        self.page.reset();
    }

    fn set_interrupts(&self, _sink: Option<Arc<dyn InterruptSink>>) {
        // The carrier has no vector: the unit's interrupts are messages (see `MessageSink`).
    }
}

/// Whether an access lies in the first `size` bytes of the BAR.
fn in_bar(bar: u8, offset: u64, len: usize, size: u64) -> bool {
    bar == 0 && offset.checked_add(len as u64).is_some_and(|end| end <= size)
}

#[cfg(test)]
mod tests;
