//! The ACPI DMAR table: where the unit is, and which devices are behind it (VT-d chapter 8).

use mem::Gpa;
use pci::RequesterId;

/// What the table says: one unit, and the devices in its scope.
///
/// The unit is not said to be behind everything (INCLUDE_PCI_ALL): devices of the machine that
/// are not ours do their DMA beside it. Integrated endpoints need no ATSR structure for ATS.
///
/// ```
/// use machine::Dmar;
/// use mem::Gpa;
/// use pci::RequesterId;
///
/// let device = RequesterId::new(0, 0x10, 0).unwrap();
/// let dmar = Dmar { host_address_bits: 48, register_base: Gpa(0xe000_0000), devices: vec![device] };
/// let table = dmar.to_bytes().unwrap();
/// assert_eq!(&table[..4], b"DMAR");
/// assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dmar {
    /// Host address width in bits: that of the unit's capabilities.
    pub host_address_bits: u8,
    /// Address of the unit's register page.
    pub register_base: Gpa,
    /// Endpoints behind the unit, all on bus 0 of segment 0.
    pub devices: Vec<RequesterId>,
}

/// Why there is no such table. The caller's mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DmarError {
    /// The address width is zero.
    #[error("a host address width of zero bits")]
    AddressWidth,
    /// The register page is not page-aligned.
    #[error("the register base {0} is not page-aligned")]
    Misaligned(Gpa),
    /// A device is not on bus 0: its path depends on bridges that are not known here.
    #[error("device {0} is not on bus 0")]
    NotOnRootBus(RequesterId),
    /// More devices than a structure's length can say.
    #[error("{0} devices are more than a table holds")]
    TooManyDevices(usize),
}

/// Offset of the checksum in an ACPI table header.
const CHECKSUM: usize = 9;
/// Offset of the length in an ACPI table header.
const LENGTH: usize = 4;
/// Bytes of a DRHD structure before its device scope.
const DRHD_HEADER: usize = 16;
/// Bytes of a device-scope entry with a path of one step.
const SCOPE_ENTRY: usize = 8;
/// Device-scope type of a PCI endpoint.
const PCI_ENDPOINT: u8 = 1;

impl Dmar {
    /// The table, with its checksum.
    ///
    /// # Errors
    ///
    /// See [`DmarError`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, DmarError> {
        let width = self.host_address_bits.checked_sub(1).ok_or(DmarError::AddressWidth)?;
        let mut table = header();
        table.push(width);
        table.push(0); // flags: no interrupt remapping, no x2APIC opt-out
        table.extend([0; 10]);
        table.extend(self.drhd()?);

        let too_many = DmarError::TooManyDevices(self.devices.len());
        let length = u32::try_from(table.len()).map_err(|_| too_many)?;
        table[LENGTH..LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        table[CHECKSUM] = sum.wrapping_neg();
        Ok(table)
    }

    /// The DMA remapping hardware unit definition (8.3).
    fn drhd(&self) -> Result<Vec<u8>, DmarError> {
        if !self.register_base.is_aligned(12) {
            return Err(DmarError::Misaligned(self.register_base));
        }
        let length = DRHD_HEADER + SCOPE_ENTRY * self.devices.len();
        let length =
            u16::try_from(length).map_err(|_| DmarError::TooManyDevices(self.devices.len()))?;
        let mut drhd = Vec::with_capacity(length.into());
        drhd.extend(0u16.to_le_bytes()); // type: DRHD
        drhd.extend(length.to_le_bytes());
        drhd.push(0); // flags: only the devices in scope
        drhd.push(0); // the register set has 2^0 pages
        drhd.extend(0u16.to_le_bytes()); // segment
        drhd.extend(self.register_base.0.to_le_bytes());
        for device in &self.devices {
            if device.bus() != 0 {
                return Err(DmarError::NotOnRootBus(*device));
            }
            let (length, bus) = (SCOPE_ENTRY as u8, device.bus());
            // Type, length, flags, reserved, enumeration id, start bus, path.
            drhd.extend([PCI_ENDPOINT, length, 0, 0, 0, bus, device.device(), device.function()]);
        }
        Ok(drhd)
    }
}

/// An ACPI table header without its length and checksum (ACPI 5.2.6).
fn header() -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(b"DMAR");
    header.extend([0; 4]); // length
    header.push(1); // revision
    header.push(0); // checksum
    header.extend(b"VSVA  "); // OEM
    header.extend(b"VSVADMAR"); // OEM table
    header.extend(1u32.to_le_bytes()); // OEM revision
    header.extend(b"VSVA"); // creator
    header.extend(1u32.to_le_bytes()); // creator revision
    header
}

#[cfg(test)]
mod tests;
