//! The ACPI DMAR table that tells a guest where its remapping unit is and what is behind it.

use pci::RequesterId;

/// Length of the header that every ACPI table begins with (ACPI 5.2.6).
const HEADER_LEN: u32 = 36;
/// Where the checksum is in it.
const CHECKSUM: usize = 9;
/// Length of the part between the header and the first remapping structure (VT-d 8.1).
const DMAR_LEN: u32 = 12;
/// Structure type of a remapping hardware unit (VT-d 8.3).
const DRHD: u16 = 0;
/// Device scope type of a PCI endpoint (VT-d 8.3.1).
const SCOPE_PCI_ENDPOINT: u8 = 1;
/// Length of a device scope entry with a path of one device.
const SCOPE_LEN: u8 = 8;
/// Length of a remapping unit without its scopes.
const DRHD_LEN: u16 = 16;

/// What a DMAR table says (VT-d 8.1).
#[derive(Clone, Debug)]
pub struct Dmar {
    /// Address of the unit's register page.
    pub register_base: u64,
    /// Width in bits of the addresses that devices may use for DMA, 1 to 64.
    pub host_address_width: u8,
    /// The endpoints behind the unit, each directly on a root bus. Nothing else is: the VMM's own
    /// devices are not translated by us.
    pub endpoints: Vec<RequesterId>,
}

impl Dmar {
    /// The table's bytes, checksum included, as QEMU's `-acpitable file=` takes them.
    pub fn to_bytes(&self) -> Vec<u8> {
        let unit = self.unit();
        let mut table = header(HEADER_LEN + DMAR_LEN + unit.len() as u32);
        // Flags 0: no interrupt remapping.
        table.extend_from_slice(&[self.host_address_width.saturating_sub(1), 0]);
        table.extend_from_slice(&[0; 10]);
        table.extend_from_slice(&unit);
        // All bytes together come to 0.
        table[CHECKSUM] = table.iter().fold(0, |left, byte| left.wrapping_sub(*byte));
        table
    }

    fn unit(&self) -> Vec<u8> {
        let scopes = self.endpoints.len() as u16;
        let mut unit = Vec::new();
        unit.extend_from_slice(&DRHD.to_le_bytes());
        unit.extend_from_slice(&(DRHD_LEN + scopes * u16::from(SCOPE_LEN)).to_le_bytes());
        // Flags 0: only the devices named below. Register set size 0: one 4 KiB page. Segment 0.
        unit.extend_from_slice(&[0, 0, 0, 0]);
        unit.extend_from_slice(&self.register_base.to_le_bytes());
        for endpoint in &self.endpoints {
            unit.extend_from_slice(&[SCOPE_PCI_ENDPOINT, SCOPE_LEN, 0, 0, 0, endpoint.bus()]);
            unit.extend_from_slice(&[endpoint.device(), endpoint.function()]);
        }
        unit
    }
}

/// The header of a table of `length` bytes, its checksum still 0.
fn header(length: u32) -> Vec<u8> {
    let mut header = b"DMAR".to_vec();
    header.extend_from_slice(&length.to_le_bytes());
    // Revision and checksum.
    header.extend_from_slice(&[1, 0]);
    // OEM, its table and that one's revision; who compiled the table, and that one's revision.
    header.extend_from_slice(b"VSVA  VSVADMAR\x01\0\0\0");
    header.extend_from_slice(b"VSVA\x01\0\0\0");
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_as_the_specification_lays_it_out() {
        let table = Dmar {
            register_base: 0xe000_0000,
            host_address_width: 48,
            endpoints: vec![RequesterId::new(0, 0x10, 0).unwrap()],
        }
        .to_bytes();
        assert_eq!(&table[..9], b"DMAR\x48\0\0\0\x01", "signature, length, revision");
        assert_eq!(table[10..36], *b"VSVA  VSVADMAR\x01\0\0\0VSVA\x01\0\0\0");
        assert_eq!(u32::from_le_bytes(table[4..8].try_into().unwrap()) as usize, table.len());
        assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0, "checksum");
        assert_eq!(table[36..38], [47, 0], "host address width less one, no flags");
        let unit = [
            0, 0, 24, 0, 0, 0, 0, 0, // DRHD, length 24, no flags, one page, segment 0
            0, 0, 0, 0xe0, 0, 0, 0, 0, // register base
            1, 8, 0, 0, 0, 0, 0x10, 0, // PCI endpoint 00:10.0
        ];
        assert_eq!(table[48..], unit);
    }
}
