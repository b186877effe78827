//! Puts a configuration space together and refuses layouts that no guest could use.

use alloc::vec::Vec;

use super::capability::{
    extended_entry, list_entry, AtsCapability, BarOffset, Capability, CapabilityId,
    ExpressCapability, Header, MsiXCapability, PasidCapability, PowerCapability, PriCapability,
    SerialNumber,
};
use super::space::{ConfigSpace, Places};
use crate::function::{Bar, BarKind};
use crate::spec::{CAPABILITIES_START, CONFIG_SPACE_SIZE, EXTENDED_START};

/// Smallest BAR: a page, so that no two functions share one in the guest's tables.
const MIN_BAR_SIZE: u64 = 4096;

/// Why a configuration space could not be built: our caller's mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LayoutError {
    /// A BAR's index, size or neighbour does not fit its kind.
    #[error("BAR {index} cannot be {size:#x} bytes of its kind there")]
    Bar {
        /// The BAR.
        index: u8,
        /// Its size.
        size: u64,
    },
    /// A capability is misaligned or leaves the part of configuration space of its list.
    #[error("capability {id:?} does not fit at {offset:#x}")]
    Place {
        /// The capability.
        id: CapabilityId,
        /// Where it was to be.
        offset: u16,
    },
    /// Two capabilities share a byte, or are of one kind.
    #[error("capabilities {first:?} and {second:?} collide")]
    Collision {
        /// The one that was added first.
        first: CapabilityId,
        /// The other.
        second: CapabilityId,
    },
    /// There are extended capabilities, but the first is not at 0x100, so none would be found.
    #[error("the first extended capability is not at 0x100")]
    NoExtendedHead,
    /// MSI-X has no vector, too many, or its table or pending bits are not inside a BAR or overlap.
    #[error("MSI-X table or pending bits have no place")]
    MsiX,
    /// A PASID has more bits than 20, or none.
    #[error("PASIDs of {0} bits")]
    PasidWidth(u8),
}

/// What a configuration space will consist of. Capabilities are found by a guest in the order in
/// which they are added.
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    header: Header,
    bars: Vec<Bar>,
    parts: Vec<(u16, Capability)>,
}

impl Builder {
    pub(super) fn new(header: Header) -> Self {
        Self { header, bars: Vec::new(), parts: Vec::new() }
    }

    /// Adds base address registers.
    pub fn bars(mut self, bars: &[Bar]) -> Self {
        self.bars.extend_from_slice(bars);
        self
    }

    /// Adds the PCI Express capability.
    pub fn express(self, offset: u16, part: ExpressCapability) -> Self {
        self.part(offset, Capability::Express(part))
    }

    /// Adds the MSI-X capability.
    pub fn msix(self, offset: u16, part: MsiXCapability) -> Self {
        self.part(offset, Capability::MsiX(part))
    }

    /// Adds power management.
    pub fn power(self, offset: u16) -> Self {
        self.part(offset, Capability::Power(PowerCapability))
    }

    /// Adds a device serial number.
    pub fn serial_number(self, offset: u16, part: SerialNumber) -> Self {
        self.part(offset, Capability::SerialNumber(part))
    }

    /// Adds address translation services.
    pub fn ats(self, offset: u16, part: AtsCapability) -> Self {
        self.part(offset, Capability::Ats(part))
    }

    /// Adds the page request interface.
    pub fn pri(self, offset: u16, part: PriCapability) -> Self {
        self.part(offset, Capability::Pri(part))
    }

    /// Adds PASIDs.
    pub fn pasid(self, offset: u16, part: PasidCapability) -> Self {
        self.part(offset, Capability::Pasid(part))
    }

    fn part(mut self, offset: u16, part: Capability) -> Self {
        self.parts.push((offset, part));
        self
    }

    /// The configuration space, in its reset state.
    ///
    /// # Errors
    ///
    /// [`LayoutError`] if the parts do not fit together.
    pub fn build(self) -> Result<ConfigSpace, LayoutError> {
        self.check_bars()?;
        self.check_places()?;
        self.check_contents()?;

        let mut places = Places::default();
        let mut standard = Vec::new();
        let mut extended = Vec::new();
        for &(offset, part) in &self.parts {
            places.note(offset, &part);
            match part.id() {
                CapabilityId::Standard(id) => standard.push((offset, id)),
                CapabilityId::Extended(id) => extended.push((offset, id)),
            }
        }
        if extended.first().is_some_and(|&(offset, _)| offset != EXTENDED_START) {
            return Err(LayoutError::NoExtendedHead);
        }

        // The checks above keep standard capabilities below 0x100.
        let first = standard.first().map_or(0, |&(offset, _)| offset as u8);
        let mut registers = self.header.registers(first);
        registers.extend(self.bars.iter().flat_map(Bar::registers));
        for (index, &(offset, id)) in standard.iter().enumerate() {
            let next = standard.get(index + 1).map_or(0, |&(next, _)| next);
            registers.push(list_entry(offset, id, next));
        }
        for (index, &(offset, id)) in extended.iter().enumerate() {
            let next = extended.get(index + 1).map_or(0, |&(next, _)| next);
            registers.push(extended_entry(offset, id, next));
        }
        registers.extend(self.parts.iter().flat_map(|(offset, part)| part.registers(*offset)));
        Ok(ConfigSpace::new(registers, self.bars, places))
    }

    fn check_bars(&self) -> Result<(), LayoutError> {
        let mut used = [false; 6];
        for bar in &self.bars {
            let refused = LayoutError::Bar { index: bar.index, size: bar.size };
            let (registers, limit) = match bar.kind {
                BarKind::Memory32 => (1, 1 << 31),
                BarKind::Memory64 => (2, 1 << 63),
            };
            let sized = bar.size.is_power_of_two() && (MIN_BAR_SIZE..=limit).contains(&bar.size);
            let index = usize::from(bar.index);
            let slots = used.get_mut(index..index + registers).ok_or(refused)?;
            if !sized || slots.contains(&true) {
                return Err(refused);
            }
            slots.fill(true);
        }
        Ok(())
    }

    fn check_places(&self) -> Result<(), LayoutError> {
        for (index, (offset, part)) in self.parts.iter().enumerate() {
            let (offset, id) = (*offset, part.id());
            let room = match id {
                CapabilityId::Standard(_) => CAPABILITIES_START..EXTENDED_START,
                CapabilityId::Extended(_) => EXTENDED_START..CONFIG_SPACE_SIZE,
            };
            let inside = room.contains(&offset) && room.end - offset >= part.size();
            if !inside || offset % 4 != 0 {
                return Err(LayoutError::Place { id, offset });
            }
            for (other_offset, other) in &self.parts[..index] {
                let apart =
                    offset >= other_offset + other.size() || *other_offset >= offset + part.size();
                if !apart || other.id() == id {
                    return Err(LayoutError::Collision { first: other.id(), second: id });
                }
            }
        }
        Ok(())
    }

    fn check_contents(&self) -> Result<(), LayoutError> {
        for (_, part) in &self.parts {
            match part {
                Capability::MsiX(msix) => self.check_msix(msix)?,
                Capability::Pasid(PasidCapability(pasid))
                    if !(1..=PasidCapability::MAX_WIDTH).contains(&pasid.width()) =>
                {
                    return Err(LayoutError::PasidWidth(pasid.width()));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn check_msix(&self, msix: &MsiXCapability) -> Result<(), LayoutError> {
        let inside = |at: BarOffset, size: u32| {
            at.offset % 8 == 0
                && self.bars.iter().any(|bar| {
                    bar.index == at.bar && u64::from(at.offset) + u64::from(size) <= bar.size
                })
        };
        let (table, pending) = (msix.table, msix.pending);
        let counted = (1..=MsiXCapability::MAX_VECTORS).contains(&msix.vectors);
        if !counted
            || !inside(table, msix.table_size())
            || !inside(pending, msix.pending_size())
            || (table.bar == pending.bar
                && table.offset < pending.offset + msix.pending_size()
                && pending.offset < table.offset + msix.table_size())
        {
            return Err(LayoutError::MsiX);
        }
        Ok(())
    }
}
