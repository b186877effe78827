//! The PCI function whose BAR 0 is the unit's register page.
//!
//! A guest finds the unit by the address in its DMAR table, not by the function. The function is
//! there because a transport gives a process BARs of PCI functions and nothing else, and the
//! firmware of the guest assigns the BAR: so the address has to be known before. A BAR of 256 MiB
//! lands at the same place whatever else the machine has.

use core::fmt;
use std::sync::{Arc, Mutex};

use iommu::Vm;
use mem::Gpa;
use pci::spec::ClassCode;
use pci::{Bar, BarKind, ConfigSpace, Function, Header, InterruptSink, LayoutError};
use vtd::spec::PAGE_SIZE;

use crate::shared::{lock, Unit};

/// Size of BAR 0 in bytes.
pub const BAR_SIZE: u64 = 256 << 20;

/// Vendor of the function: not assigned to anyone, and no Linux driver matches it with
/// [`DEVICE_ID`].
pub const VENDOR_ID: u16 = 0x1234;

/// Device of the function.
pub const DEVICE_ID: u16 = 0x5654;

/// Class of the function. Linux moves BARs that conflict with what the DMAR table claims, but
/// never those of a host bridge.
pub const CLASS: ClassCode = ClassCode::HOST_BRIDGE;

const BARS: [Bar; 1] =
    [Bar { index: 0, kind: BarKind::Memory32, prefetchable: false, size: BAR_SIZE }];

/// What a 32-bit BAR of this size holds after the all-ones write that asks for its size.
const SIZING: u64 = 0x1_0000_0000 - BAR_SIZE;

/// The registers are not where the DMAR table says: the guest will not find the unit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the guest's firmware put the IOMMU's registers at {programmed}, but the guest's DMAR table \
     says {expected}, so the guest cannot reach them. Make the DMAR table with register base \
     {programmed} and start the guest again with it, or take away the PCI device that made the \
     firmware choose another place"
)]
pub struct BaseMismatch {
    /// Where the DMAR table says the registers are.
    pub expected: Gpa,
    /// Where the guest put them.
    pub programmed: Gpa,
}

/// The function that carries a unit's registers.
pub struct IommuFunction<V> {
    unit: Arc<Unit<V>>,
    expected: Gpa,
    report: Box<dyn Fn(BaseMismatch) + Send + Sync>,
    state: Mutex<State>,
}

struct State {
    config: ConfigSpace,
    reported: bool,
}

impl<V: Vm> IommuFunction<V> {
    pub(crate) fn new(
        unit: Arc<Unit<V>>,
        expected: Gpa,
        report: Box<dyn Fn(BaseMismatch) + Send + Sync>,
    ) -> Result<Self, LayoutError> {
        let header = Header {
            vendor: VENDOR_ID,
            device: DEVICE_ID,
            class: CLASS,
            revision: 0,
            subsystem_vendor: VENDOR_ID,
            subsystem: DEVICE_ID,
        };
        let config = ConfigSpace::builder(header).bars(&BARS).build()?;
        Ok(Self { unit, expected, report, state: Mutex::new(State { config, reported: false }) })
    }

    /// Where the guest put the registers, if it decodes them.
    pub fn base(&self) -> Option<Gpa> {
        base(&lock(&self.state).config)
    }
}

fn base(config: &ConfigSpace) -> Option<Gpa> {
    let address = config.bar_address(0)?;
    // Linux sizes the BARs of a host bridge with decoding on.
    let assigned = config.command().memory_space() && address != 0 && address != SIZING;
    assigned.then_some(Gpa(address))
}

impl State {
    /// The mismatch, the first time that there is one since the last reset.
    fn new_mismatch(&mut self, expected: Gpa) -> Option<BaseMismatch> {
        let programmed = base(&self.config).filter(|base| *base != expected)?;
        let first = !core::mem::replace(&mut self.reported, true);
        first.then_some(BaseMismatch { expected, programmed })
    }
}

impl<V: Vm> Function for IommuFunction<V> {
    fn bars(&self) -> &[Bar] {
        &BARS
    }

    fn vectors(&self) -> u16 {
        0
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        lock(&self.state).config.read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        let mismatch = {
            let mut state = lock(&self.state);
            let effects = state.config.write(offset, data);
            let moved = effects.bars || effects.memory_space().is_some();
            moved.then(|| state.new_mismatch(self.expected)).flatten()
        };
        if let Some(mismatch) = mismatch {
            (self.report)(mismatch);
        }
    }

    /// The register page; the rest of the BAR reads zero and ignores writes.
    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        match (bar, offset) {
            (0, 0..PAGE_SIZE) => self.unit.read(offset, data),
            (0, PAGE_SIZE..BAR_SIZE) => data.fill(0),
            _ => data.fill(0xff),
        }
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        if bar == 0 && offset < PAGE_SIZE {
            self.unit.write(offset, data);
        }
    }

    /// Resets the unit with it: translation is off, and DMA passes through untranslated.
    ///
    /// Does not wait for accesses in flight; the next translation is enabled behind them.
    fn reset(&self) {
        {
            let mut state = lock(&self.state);
            let State { config, reported } = &mut *state;
            config.reset();
            *reported = false;
        }
        let _behind_accesses_in_flight = self.unit.reset();
    }

    /// The unit's interrupts are messages of its own, not vectors of this function.
    fn set_interrupts(&self, _sink: Option<Arc<dyn InterruptSink>>) {}
}

impl<V> fmt::Debug for IommuFunction<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IommuFunction").field("expected", &self.expected).finish_non_exhaustive()
    }
}
