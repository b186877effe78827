//! The typed parts that a configuration space is built from, and the registers each one is.

use alloc::vec::Vec;

use super::register::Register;
use crate::function::{Bar, BarKind};
use crate::spec::{
    capability, extended, offset, AtsCapabilities, AtsControl, ClassCode, Command,
    DeviceCapabilities, DeviceCapabilities2, DeviceControl, DeviceControl2, DeviceStatus,
    ExpressCapabilities, MsiXControl, PasidCapabilities, PasidControl, PowerCapabilities,
    PowerControl, PriControl, PriStatus, Status, TableOffset,
};

/// Who the function is: the identity registers of a type 0 header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Class code.
    pub class: ClassCode,
    /// Revision ID.
    pub revision: u8,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

impl Header {
    pub(super) fn registers(&self, first_capability: u8) -> Vec<Register> {
        let class = u32::from(self.class.base) << 16
            | u32::from(self.class.sub) << 8
            | u32::from(self.class.interface);
        let command = Command::new()
            .with_memory_space(true)
            .with_bus_master(true)
            .with_parity_error_response(true)
            .with_serr(true)
            .with_interrupt_disable(true);
        let status = Status::new().with_capabilities(first_capability != 0);
        let errors = Status::new()
            .with_master_data_parity_error(true)
            .with_signaled_target_abort(true)
            .with_received_target_abort(true)
            .with_received_master_abort(true)
            .with_signaled_system_error(true)
            .with_detected_parity_error(true);
        let fixed = Register::fixed;
        alloc::vec![
            fixed("Vendor ID", offset::VENDOR, 2, self.vendor.into()),
            fixed("Device ID", offset::DEVICE, 2, self.device.into()),
            fixed("Command", offset::COMMAND, 2, 0).writable(command.into_bits().into()),
            fixed("Status", offset::STATUS, 2, status.into_bits().into())
                .write_one_clears(errors.into_bits().into()),
            // Revision and class share a double word; the class is its upper three bytes.
            fixed("Revision ID and Class Code", offset::REVISION, 4, {
                class << 8 | u32::from(self.revision)
            }),
            fixed("Cache Line Size", offset::CACHE_LINE, 1, 0).writable(0xff),
            fixed("Subsystem Vendor ID", offset::SUBSYSTEM_VENDOR, 2, self.subsystem_vendor.into()),
            fixed("Subsystem ID", offset::SUBSYSTEM, 2, self.subsystem.into()),
            fixed("Capabilities Pointer", offset::CAPABILITIES, 1, first_capability.into()),
            fixed("Interrupt Line", offset::INTERRUPT_LINE, 1, 0).writable(0xff),
        ]
    }
}

impl Bar {
    /// The low bits of its register: kind and prefetchability (7.5.1.2.1).
    fn kind_bits(&self) -> u32 {
        let kind = match self.kind {
            BarKind::Memory32 => 0b000,
            BarKind::Memory64 => 0b100,
        };
        kind | if self.prefetchable { 0b1000 } else { 0 }
    }

    /// Its one or two registers. The bits below its size are not writable, which is what sizing by
    /// writing all ones reads back.
    pub(super) fn registers(&self) -> Vec<Register> {
        const NAMES: [&str; 6] = ["BAR0", "BAR1", "BAR2", "BAR3", "BAR4", "BAR5"];
        let address = !(self.size - 1);
        let at = |index: u8| offset::BAR0 + 4 * u16::from(index);
        let name = |index: u8| NAMES.get(usize::from(index)).copied().unwrap_or("BAR");
        let mut registers =
            alloc::vec![Register::fixed(name(self.index), at(self.index), 4, self.kind_bits())
                .writable(address as u32)];
        if self.kind == BarKind::Memory64 {
            let upper = self.index + 1;
            registers.push(
                Register::fixed(name(upper), at(upper), 4, 0).writable((address >> 32) as u32),
            );
        }
        registers
    }
}

/// The PCI Express capability, version 2, of an endpoint integrated into the root complex. Such
/// an endpoint has no link, slot or root registers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExpressCapability {
    /// Device capabilities.
    pub device: DeviceCapabilities,
    /// Device capabilities 2; PASIDs need [`DeviceCapabilities2::end_to_end_prefix`].
    pub device2: DeviceCapabilities2,
    /// Reset value of device control.
    pub control: DeviceControl,
}

impl ExpressCapability {
    pub(super) const SIZE: u16 = 0x3c;

    /// With function-level reset and end-to-end prefixes, so that PASIDs can be enabled.
    pub const fn new() -> Self {
        Self {
            device: DeviceCapabilities::new()
                .with_extended_tag(true)
                .with_role_based_errors(true)
                .with_function_reset(true),
            device2: DeviceCapabilities2::new()
                .with_extended_format(true)
                .with_end_to_end_prefix(true)
                .with_max_prefixes(1),
            control: DeviceControl::new()
                .with_relaxed_ordering(true)
                .with_extended_tag(true)
                .with_no_snoop(true)
                .with_max_read_request(2),
        }
    }

    pub(super) fn registers(&self, base: u16) -> Vec<Register> {
        let identity = ExpressCapabilities::new()
            .with_version(2)
            .with_port_type(ExpressCapabilities::INTEGRATED_ENDPOINT);
        let control = DeviceControl::new()
            .with_error_reporting(0xf)
            .with_relaxed_ordering(true)
            .with_max_payload(0x7)
            .with_extended_tag(self.device.extended_tag())
            .with_no_snoop(true)
            .with_max_read_request(0x7);
        let reset = DeviceControl::new().with_function_reset(self.device.function_reset());
        let control2 = DeviceControl2::new()
            .with_timeout_disable(self.device2.timeout_disable())
            .with_latency_tolerance(self.device2.latency_tolerance())
            .with_tag10_requester(self.device2.tag10_requester());
        let fixed = Register::fixed;
        alloc::vec![
            fixed("PCI Express Capabilities", base + 0x02, 2, identity.into_bits().into()),
            fixed("Device Capabilities", base + 0x04, 4, self.device.into_bits()),
            fixed("Device Control", base + 0x08, 2, {
                self.control.with_function_reset(false).into_bits().into()
            })
            .writable(control.into_bits().into())
            .action(reset.into_bits().into()),
            fixed("Device Status", base + 0x0a, 2, 0)
                .write_one_clears(DeviceStatus::new().with_errors(0xf).into_bits().into()),
            fixed("Device Capabilities 2", base + 0x24, 4, self.device2.into_bits()),
            fixed("Device Control 2", base + 0x28, 2, 0).writable(control2.into_bits().into()),
        ]
    }
}

impl Default for ExpressCapability {
    fn default() -> Self {
        Self::new()
    }
}

/// A place in a BAR.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BarOffset {
    /// Index of the BAR.
    pub bar: u8,
    /// Bytes from its start, a multiple of 8.
    pub offset: u32,
}

/// The MSI-X capability: how many vectors, and where their table and pending bits are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsiXCapability {
    /// Number of vectors, 1 to 2048.
    pub vectors: u16,
    /// Where the table is, 16 bytes a vector.
    pub table: BarOffset,
    /// Where the pending bits are, 8 bytes for every 64 vectors or fewer.
    pub pending: BarOffset,
}

impl MsiXCapability {
    pub(super) const SIZE: u16 = 12;
    /// The most vectors a function can have.
    pub const MAX_VECTORS: u16 = 2048;
    /// Bytes of a table entry.
    pub const ENTRY_SIZE: u32 = 16;

    /// Bytes that the table takes.
    pub const fn table_size(&self) -> u32 {
        self.vectors as u32 * Self::ENTRY_SIZE
    }

    /// Bytes that the pending bits take.
    pub const fn pending_size(&self) -> u32 {
        (self.vectors as u32).div_ceil(64) * 8
    }

    pub(super) fn registers(&self, base: u16) -> Vec<Register> {
        let control = MsiXControl::new().with_table_size(self.vectors.saturating_sub(1));
        let writable = MsiXControl::new().with_function_mask(true).with_enable(true);
        let place = |at: BarOffset| {
            TableOffset::new().with_bar(at.bar).with_qwords(at.offset / 8).into_bits()
        };
        alloc::vec![
            Register::fixed("MSI-X Message Control", base + 2, 2, control.into_bits().into())
                .writable(writable.into_bits().into()),
            Register::fixed("MSI-X Table Offset", base + 4, 4, place(self.table)),
            Register::fixed("MSI-X PBA Offset", base + 8, 4, place(self.pending)),
        ]
    }
}

/// Power management with D0 and D3hot only, keeping the state between them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct PowerCapability;

impl PowerCapability {
    pub(super) const SIZE: u16 = 8;

    pub(super) fn registers(self, base: u16) -> Vec<Register> {
        let capabilities = PowerCapabilities::new().with_version(3);
        let reset = PowerControl::new().with_no_soft_reset(true);
        let state = PowerControl::new().with_state(3);
        alloc::vec![
            Register::fixed("PMC", base + 2, 2, capabilities.into_bits().into()),
            Register::fixed("PMCSR", base + 4, 2, reset.into_bits().into())
                .writable(state.into_bits().into()),
        ]
    }
}

/// The device serial number (7.9.3). Something must be at 0x100 for the extended capabilities to
/// be found at all, and this is the one without side effects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SerialNumber(pub u64);

impl SerialNumber {
    pub(super) const SIZE: u16 = 12;

    pub(super) fn registers(&self, base: u16) -> Vec<Register> {
        alloc::vec![
            Register::fixed("Serial Number (lower)", base + 4, 4, self.0 as u32),
            Register::fixed("Serial Number (upper)", base + 8, 4, (self.0 >> 32) as u32),
        ]
    }
}

/// Address translation services (10.5.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AtsCapability(pub AtsCapabilities);

impl AtsCapability {
    pub(super) const SIZE: u16 = 8;

    pub(super) fn registers(&self, base: u16) -> Vec<Register> {
        let control = AtsControl::new().with_smallest_unit(0x1f).with_enable(true);
        alloc::vec![
            Register::fixed("ATS Capability", base + 4, 2, self.0.into_bits().into()),
            Register::fixed("ATS Control", base + 6, 2, 0).writable(control.into_bits().into()),
        ]
    }
}

/// The page request interface (10.5.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PriCapability {
    /// How many requests it can have outstanding.
    pub capacity: u32,
    /// Responses to requests with a PASID must carry it; Linux 6.1 refuses SVA without.
    pub response_pasid_required: bool,
}

impl PriCapability {
    pub(super) const SIZE: u16 = 16;

    pub(super) fn registers(&self, base: u16) -> Vec<Register> {
        let control = PriControl::new().with_enable(true);
        let status = PriStatus::new()
            .with_stopped(true)
            .with_response_pasid_required(self.response_pasid_required);
        let errors = PriStatus::new().with_response_failure(true).with_unexpected_group(true);
        let reset = PriControl::new().with_reset(true);
        alloc::vec![
            Register::fixed("Page Request Control", base + 4, 2, 0)
                .writable(control.into_bits().into())
                .action(reset.into_bits().into()),
            Register::fixed("Page Request Status", base + 6, 2, status.into_bits().into())
                .write_one_clears(errors.into_bits().into()),
            Register::fixed("Outstanding Page Request Capacity", base + 8, 4, self.capacity),
            Register::fixed("Outstanding Page Request Allocation", base + 12, 4, 0)
                .writable(u32::MAX),
        ]
    }
}

/// Process address space IDs (7.8.8).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PasidCapability(pub PasidCapabilities);

impl PasidCapability {
    pub(super) const SIZE: u16 = 8;
    /// The most bits a PASID can have.
    pub const MAX_WIDTH: u8 = 20;

    pub(super) fn registers(&self, base: u16) -> Vec<Register> {
        let control = PasidControl::new()
            .with_enable(true)
            .with_execute(self.0.execute())
            .with_privileged(self.0.privileged());
        alloc::vec![
            Register::fixed("PASID Capability", base + 4, 2, self.0.into_bits().into()),
            Register::fixed("PASID Control", base + 6, 2, 0).writable(control.into_bits().into()),
        ]
    }
}

/// The two bytes that begin a capability: its id and where the next one is (7.5.3.1).
pub(super) fn list_entry(base: u16, id: u8, next: u16) -> Register {
    Register::fixed("Capability Header", base, 2, u32::from(next & 0xff) << 8 | u32::from(id))
}

/// The four bytes that begin an extended capability, version 1 (7.6.3).
pub(super) fn extended_entry(base: u16, id: u16, next: u16) -> Register {
    let header = u32::from(next) << 20 | 1 << 16 | u32::from(id);
    Register::fixed("Extended Capability Header", base, 4, header)
}

/// One capability of any kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Capability {
    Express(ExpressCapability),
    MsiX(MsiXCapability),
    Power(PowerCapability),
    SerialNumber(SerialNumber),
    Ats(AtsCapability),
    Pri(PriCapability),
    Pasid(PasidCapability),
}

impl Capability {
    pub(super) const fn size(&self) -> u16 {
        match self {
            Self::Express(_) => ExpressCapability::SIZE,
            Self::MsiX(_) => MsiXCapability::SIZE,
            Self::Power(_) => PowerCapability::SIZE,
            Self::SerialNumber(_) => SerialNumber::SIZE,
            Self::Ats(_) => AtsCapability::SIZE,
            Self::Pri(_) => PriCapability::SIZE,
            Self::Pasid(_) => PasidCapability::SIZE,
        }
    }

    pub(super) const fn id(&self) -> CapabilityId {
        match self {
            Self::Express(_) => CapabilityId::Standard(capability::EXPRESS),
            Self::MsiX(_) => CapabilityId::Standard(capability::MSIX),
            Self::Power(_) => CapabilityId::Standard(capability::POWER),
            Self::SerialNumber(_) => CapabilityId::Extended(extended::SERIAL_NUMBER),
            Self::Ats(_) => CapabilityId::Extended(extended::ATS),
            Self::Pri(_) => CapabilityId::Extended(extended::PRI),
            Self::Pasid(_) => CapabilityId::Extended(extended::PASID),
        }
    }

    pub(super) fn registers(&self, base: u16) -> Vec<Register> {
        match self {
            Self::Express(part) => part.registers(base),
            Self::MsiX(part) => part.registers(base),
            Self::Power(part) => part.registers(base),
            Self::SerialNumber(part) => part.registers(base),
            Self::Ats(part) => part.registers(base),
            Self::Pri(part) => part.registers(base),
            Self::Pasid(part) => part.registers(base),
        }
    }
}

/// Which of the two lists a capability is in, and its id there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CapabilityId {
    /// In the first 256 bytes.
    Standard(u8),
    /// From 0x100 on.
    Extended(u16),
}
