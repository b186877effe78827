//! The layout of a processor's table of PASIDs in memory, and of what ENQCMD and ENQCMDS are given
//! and write (Intel SDM: ENQCMD, ENQCMDS, IA32_PASID, PASID translation).
//!
//! ```text
//!  PASID[19]    directory, one page     table, one page
//!  ┌──────┐     ┌────────────────┐      ┌─────────────────────┐
//!  │ low ─┼────►│ PASID[18:10] ──┼─────►│ PASID[9:0], 4 B ────┼──► the host's PASID
//!  │ high │     └────────────────┘ 8 B  └─────────────────────┘
//!  └──────┘
//! ```

use bitfield_struct::bitfield;
use mem::HostAddr;

use crate::{GuestPasid, HostPasid, Pasid};

/// Low bits of a PASID that index a table; the others say which table.
pub const TABLE_BITS: u32 = 10;
/// Tables that there can be.
pub const TABLES: usize = 1 << (Pasid::BITS - TABLE_BITS);
/// Bytes of a directory, and of a table.
pub const PAGE_SIZE: usize = 4096;
/// Bytes of a command: what ENQCMD and ENQCMDS read, and write to a device.
pub const COMMAND_SIZE: usize = 64;

const PAGE_BITS: u32 = 12;

/// An entry of a directory.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct DirectoryEntry {
    /// It points at a table.
    pub present: bool,
    /// Reserved, zero.
    #[bits(11)]
    pub reserved: u16,
    /// Page number of the table.
    #[bits(40)]
    pub table_page: u64,
    /// Reserved, zero.
    #[bits(12)]
    pub reserved_52: u16,
}

impl DirectoryEntry {
    /// A present entry for the table at `table`, the address of a page.
    pub const fn to_table(table: HostAddr) -> Self {
        Self::new().with_present(true).with_table_page((table.0 >> PAGE_BITS) & ((1 << 40) - 1))
    }

    /// The table's address.
    pub const fn table(&self) -> HostAddr {
        HostAddr(self.table_page() << PAGE_BITS)
    }
}

/// An entry of a table.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct TranslationEntry {
    /// The host's PASID.
    #[bits(20)]
    pub pasid: u32,
    /// Reserved, zero.
    #[bits(11)]
    pub reserved: u16,
    /// There is a translation.
    pub valid: bool,
}

impl TranslationEntry {
    /// No translation.
    pub const NONE: Self = Self::new();

    /// A valid entry for `host`.
    pub const fn to_host(host: HostPasid) -> Self {
        Self::new().with_valid(true).with_pasid(host.0.get())
    }

    /// The host's PASID, if there is a translation.
    pub const fn host(&self) -> Option<HostPasid> {
        if self.valid() {
            Some(HostPasid(Pasid::from_field(self.pasid())))
        } else {
            None
        }
    }
}

/// Which of the two directories: what the VM control structure points at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Directory {
    /// Of PASIDs below 2^19.
    Low,
    /// Of the others.
    High,
}

impl Directory {
    /// Entries of a directory.
    pub const ENTRIES: usize = PAGE_SIZE / size_of::<DirectoryEntry>();

    /// Which one a PASID is looked up in.
    pub const fn of(guest: GuestPasid) -> Self {
        if guest.0.get() >> (Pasid::BITS - 1) == 0 {
            Self::Low
        } else {
            Self::High
        }
    }

    /// The number of the table that its entry `index` points at.
    pub const fn table(self, index: usize) -> usize {
        match self {
            Self::Low => index % Self::ENTRIES,
            Self::High => Self::ENTRIES + index % Self::ENTRIES,
        }
    }
}

/// The number of the table that a PASID is looked up in, and its place there.
pub(super) const fn place(guest: GuestPasid) -> (usize, usize) {
    let number = guest.0.get() as usize;
    (number >> TABLE_BITS, number & ((1 << TABLE_BITS) - 1))
}

/// The model-specific register IA32_PASID (0xd93).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Ia32Pasid {
    /// The PASID of what runs.
    #[bits(20)]
    pub pasid: u32,
    /// Reserved, zero.
    #[bits(11)]
    pub reserved: u16,
    /// There is one.
    pub valid: bool,
    /// Reserved, zero.
    pub reserved_32: u32,
}

impl Ia32Pasid {
    /// A register that holds `pasid`.
    pub const fn of(pasid: GuestPasid) -> Self {
        Self::new().with_valid(true).with_pasid(pasid.0.get())
    }
}

/// Bits 31:0 of a command.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CommandWord {
    /// The PASID.
    #[bits(20)]
    pub pasid: u32,
    /// Reserved, zero.
    #[bits(11)]
    pub reserved: u16,
    /// In a supervisor's name.
    pub privileged: bool,
}

impl CommandWord {
    /// That of a command.
    pub const fn of(command: &[u8; COMMAND_SIZE]) -> Self {
        let [a, b, c, d, ..] = *command;
        Self::from_bits(u32::from_le_bytes([a, b, c, d]))
    }

    /// The same command with this word.
    #[must_use]
    pub fn put(self, command: &[u8; COMMAND_SIZE]) -> [u8; COMMAND_SIZE] {
        let mut command = *command;
        let [a, b, c, d, ..] = &mut command;
        [*a, *b, *c, *d] = self.into_bits().to_le_bytes();
        command
    }
}
