//! Commands (IHI 0070, 4.1): two words each.

use bitfield_struct::bitfield;

use crate::Asid;

/// log2 of the unit of addresses in a command.
const PAGE_BITS: u32 = 12;

/// What a command is about (IHI 0070, 4.1.1): those that a guest may have carried out.
pub mod opcode {
    /// A context descriptor.
    pub const CFGI_CD: u8 = 0x05;
    /// All context descriptors of a stream.
    pub const CFGI_CD_ALL: u8 = 0x06;
    /// All translations of stage 1.
    pub const TLBI_NH_ALL: u8 = 0x10;
    /// Those of an address space.
    pub const TLBI_NH_ASID: u8 = 0x11;
    /// Those of an address in an address space.
    pub const TLBI_NH_VA: u8 = 0x12;
    /// Those of an address in any.
    pub const TLBI_NH_VAA: u8 = 0x13;
    /// All translations of everybody.
    pub const TLBI_NSNH_ALL: u8 = 0x30;
    /// What a device has cached itself.
    pub const ATC_INV: u8 = 0x40;
}

/// Word 0 of a command.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct CommandWord0 {
    /// What to do.
    pub opcode: u8,
    #[bits(1)]
    unused: u8,
    /// G of ATC_INV: for all substreams.
    pub global: bool,
    #[bits(1)]
    unused_10: u8,
    /// SSV: there is a substream.
    pub has_substream: bool,
    /// SSID; with TLBI, NUM is in the lower bits of it and SCALE further up.
    #[bits(20)]
    pub substream: u32,
    /// SID; with TLBI, VMID is in the lower half of it and ASID in the upper.
    pub stream: u32,
}

impl CommandWord0 {
    /// A TLBI of an address space, or (`None`) of no certain one. The VMID is the host's to fill in.
    pub const fn tlbi(opcode: u8, asid: Option<Asid>) -> Self {
        let asid = match asid {
            Some(asid) => asid.0 as u32,
            None => 0,
        };
        Self::new().with_opcode(opcode).with_stream(asid << 16)
    }

    /// NUM: how many times the range is as long, less one.
    pub const fn number(self) -> u64 {
        (self.substream() & 0x1f) as u64
    }

    /// SCALE: log2 of the granules in a range.
    pub const fn scale(self) -> u32 {
        self.substream() >> 8 & 0x1f
    }

    /// ASID of a TLBI.
    pub const fn asid(self) -> Asid {
        Asid((self.stream() >> 16) as u16)
    }
}

/// Word 1 of a command.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct CommandWord1 {
    /// Leaf: only last-level entries changed.
    pub leaf: bool,
    #[bits(9)]
    unused: u16,
    /// TG: the granule of a range; zero if the command is about one page.
    #[bits(2)]
    pub granule: u8,
    /// The address's page.
    #[bits(52)]
    pub page: u64,
}

impl CommandWord1 {
    /// About the page, of the smallest size, that has an address.
    pub const fn of_page(address: u64, leaf: bool) -> Self {
        Self::new().with_leaf(leaf).with_page(address >> PAGE_BITS)
    }

    /// Size of ATC_INV: log2 of the pages, in the lowest bits.
    pub const fn size(self) -> u8 {
        (self.into_bits() & 0x3f) as u8
    }

    /// The address.
    pub const fn address(self) -> u64 {
        self.page() << PAGE_BITS
    }
}
