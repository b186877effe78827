//! The PCI function: its configuration space, and what changes of it mean for the device.

use alloc::vec::Vec;

use pci::spec::{
    AtsCapabilities, ClassCode, DeviceCapabilities, DeviceCapabilities2, DeviceControl,
    PasidCapabilities,
};
use pci::{
    AtsCapability, Bar, BarKind, BarOffset, ConfigEffects, ConfigSpace, ExpressCapability, Header,
    LayoutError, MsiXCapability, PasidCapability, PriCapability, SerialNumber,
};

use super::caps::Caps;
use super::effects::Effects;
use super::state::State;
use crate::spec::{DeviceState, ResetType, SwError, SwErrorHead, PORTAL_STRIDE};

/// Page requests that the capability says could be outstanding.
pub(super) const PRI_CAPACITY: u32 = 0x200;
/// Length of BAR 0 in bytes: the registers.
pub(super) const BAR0_SIZE: u64 = 0x1_0000;
/// Offset of the MSI-X table in BAR 0.
const MSIX_TABLE: u32 = 0x2000;
/// Offset of the MSI-X pending bits in BAR 0.
const MSIX_PENDING: u32 = 0x3000;

/// Registers.
pub(super) const REGISTER_BAR: u8 = 0;
/// Portals.
pub(super) const PORTAL_BAR: u8 = 2;

/// The BARs: registers and portals.
pub(super) fn bars(caps: &Caps) -> [Bar; 2] {
    let portals = (u64::from(caps.config().queues) * PORTAL_STRIDE).next_power_of_two();
    let bar = |index, size| Bar { index, kind: BarKind::Memory64, prefetchable: true, size };
    [bar(REGISTER_BAR, BAR0_SIZE), bar(PORTAL_BAR, portals)]
}

pub(super) fn msix_capability(caps: &Caps) -> MsiXCapability {
    let at = |offset| BarOffset { bar: REGISTER_BAR, offset };
    MsiXCapability { vectors: caps.vectors(), table: at(MSIX_TABLE), pending: at(MSIX_PENDING) }
}

/// The configuration space, at the offsets that the hardware has.
pub(super) fn config_space(caps: &Caps) -> Result<ConfigSpace, LayoutError> {
    let header = Header {
        vendor: 0x8086,
        device: 0x0b25,
        class: ClassCode::SYSTEM_PERIPHERAL,
        revision: 0,
        subsystem_vendor: 0x8086,
        subsystem: 0,
    };
    let express = ExpressCapability {
        device: DeviceCapabilities::from_bits(0x1000_8022),
        device2: DeviceCapabilities2::from_bits(0x1073_0810),
        control: DeviceControl::from_bits(0x2910),
    };
    let ats = AtsCapabilities::new().with_page_aligned(true).with_global_invalidate(true);
    let pasid = PasidCapabilities::new().with_width(20).with_privileged(true);
    ConfigSpace::builder(header)
        .bars(&Vec::from(bars(caps)))
        .express(0x40, express)
        .msix(0x80, msix_capability(caps))
        .power(0x90)
        .serial_number(0x100, SerialNumber(caps.config().serial_number))
        .ats(0x220, AtsCapability(ats))
        .pasid(0x230, PasidCapability(pasid))
        .pri(0x240, PriCapability { capacity: PRI_CAPACITY, response_pasid_required: true })
        .build()
}

impl State {
    /// A write to configuration space.
    pub(super) fn config_write(&mut self, offset: u16, data: &[u8], fx: &mut Effects) {
        let changed = self.function.write(offset, data);
        if changed.function_reset {
            return self.power_on_reset(fx);
        }
        if let Some(change) = changed.msix {
            self.msix.set_control(change.to);
            self.raise_unmasked(fx);
        }
        if let Some(change) = changed.ats {
            fx.ats = Some(change.to.enable());
        }
        if let Some(change) = changed.pri_allocation {
            self.allocate_page_requests(change.to, fx);
        }
        if let Some(change) = changed.pri {
            self.set_page_requests(change.to.enable());
        }
        if changed.pri_reset {
            self.reset_page_requests();
        }
        if self.device != DeviceState::Disabled && breaks_a_running_device(&changed) {
            let head = SwErrorHead::new().with_code(SwError::CONFIG_CHANGE);
            self.software_error(SwError { head, ..SwError::default() }, fx);
            if self.device != DeviceState::Halted {
                self.halt(ResetType::FunctionLevel, fx);
            }
        }
    }

    /// Raises again what waited in the pending bits and may be sent now.
    pub(super) fn raise_unmasked(&mut self, fx: &mut Effects) {
        while let Some((vector, _)) = self.msix.next_ready() {
            fx.raise(vector);
        }
    }
}

/// Whether a device that is not disabled must halt: bus mastering off, or ATS, PASID or page
/// request control changed (section "PCI configuration registers").
fn breaks_a_running_device(changed: &ConfigEffects) -> bool {
    changed.bus_master() == Some(false)
        || changed.ats.is_some()
        || changed.pasid.is_some()
        || changed.pri.is_some()
}
