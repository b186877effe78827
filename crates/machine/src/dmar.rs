//! The ACPI DMAR table that tells a guest where its remapping unit is and what is behind it.

use acpi_tables::sdt::Sdt;
use pci::RequesterId;

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
        let mut table = Sdt::new(*b"DMAR", 36, 1, *b"VSVA  ", *b"VSVADMAR", 1);
        table.append_slice(&[self.host_address_width.saturating_sub(1), 0]);
        table.append_slice(&[0; 10]);
        table.append_slice(&self.unit());
        table.as_slice().to_vec()
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
        assert_eq!(&table[..4], b"DMAR");
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
