//! What the walker and the builder need to know of a page-table format.

/// What a request wants to do at its address. A read-modify-write is a [`Write`](Self::Write).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Access {
    /// Read data.
    Read,
    /// Write data.
    Write,
    /// Fetch instructions.
    Execute,
}

/// A request as its permission checks see it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// What it does.
    pub access: Access,
    /// Whether it carries supervisor privilege.
    pub privileged: bool,
    /// Whether read-only pages stop privileged writes too (WPE of a VT-d PASID-table entry).
    pub write_protect: bool,
    /// Whether user pages stop privileged fetches (SMEP of a VT-d PASID-table entry).
    pub smep: bool,
}

impl Request {
    /// An ordinary request, without privilege.
    pub const fn user(access: Access) -> Self {
        Self { access, privileged: false, write_protect: false, smep: false }
    }
}

bitflags::bitflags! {
    /// What an entry lets through.
    #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
    pub struct Rights: u8 {
        /// Reads.
        const READ = 1;
        /// Writes.
        const WRITE = 2;
        /// Instruction fetches without supervisor privilege.
        const EXECUTE_USER = 4;
        /// Data accesses without supervisor privilege; in formats that do not tell those from
        /// fetches, any request without it.
        const USER = 8;
        /// Instruction fetches with supervisor privilege.
        const EXECUTE_PRIVILEGED = 16;
        /// Instruction fetches: one right, except in formats that tell the privileged ones apart.
        const EXECUTE = Self::EXECUTE_USER.bits() | Self::EXECUTE_PRIVILEGED.bits();
    }
}

/// The right that a request lacked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Denied {
    /// The page may not be read.
    Read,
    /// The page may not be written.
    Write,
    /// The page may not be executed.
    Execute,
    /// The page may not be executed with supervisor privilege; only from formats that tell.
    ExecutePrivileged,
    /// The page is for supervisor requests.
    User,
}

impl Denied {
    /// The right whose absence denies the request.
    pub const fn right(self) -> Rights {
        match self {
            Self::Read => Rights::READ,
            Self::Write => Rights::WRITE,
            Self::Execute => Rights::EXECUTE_USER,
            Self::ExecutePrivileged => Rights::EXECUTE_PRIVILEGED,
            Self::User => Rights::USER,
        }
    }
}

/// Why an address cannot even be looked up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum InvalidAddress {
    /// The bits above the format's width are not copies of its topmost bit.
    NonCanonical,
    /// A bit above the format's width is set.
    BeyondWidth,
}

/// Which reserved bits of a present entry are not zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum ReservedBits {
    /// Address bits above the host address width. In Arm's formats this is an address size fault.
    Address,
    /// The page-size bit, at a level without pages or without support for them.
    PageSize,
    /// Address bits below the size of a large page.
    Alignment,
    /// The execute-disable bit, while no-execute is not enabled.
    ExecuteDisable,
    /// The snoop bit of a second-stage entry, in a table entry or without snoop control.
    Snoop,
    /// The transient-mapping bit of a second-stage entry, in a table entry or without device TLBs.
    Transient,
}

/// An entry that points at a table one level down.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TableEntry {
    /// Address of the table.
    pub address: u64,
    /// What it lets through.
    pub rights: Rights,
    /// Whether the accessed flag is set, or need not be.
    pub accessed: bool,
}

/// An entry that maps a page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeafEntry {
    /// Address of the page's first byte.
    pub address: u64,
    /// What it lets through.
    pub rights: Rights,
    /// Whether the accessed flag is set, or need not be.
    pub accessed: bool,
    /// Whether the dirty flag is set, or need not be.
    pub dirty: bool,
    /// Whether the page is the same in every address space.
    pub global: bool,
}

/// A decoded entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Maps nothing.
    NotPresent,
    /// Points at a table.
    Table(TableEntry),
    /// Maps a page.
    Leaf(LeafEntry),
    /// Present, but malformed.
    Reserved(ReservedBits),
}

/// A page-table format: geometry, entries and permission rules. The value holds what is
/// configurable about it, so two formats of one type may decode the same bits differently.
pub trait Format {
    /// log2 of the size of the smallest page, and of every table but the root.
    fn page_bits(&self) -> u32 {
        12
    }

    /// log2 of the number of entries of a table of level `level`. A root may have fewer than a
    /// page holds, or more: then it is a row of pages.
    fn index_bits(&self, _level: u8) -> u32 {
        self.page_bits() - ENTRY_BITS
    }

    /// Number of levels, at most [`MAX_LEVELS`](crate::MAX_LEVELS); also the level of the root.
    fn levels(&self) -> u8;

    /// Whether the format can translate `address` at all.
    fn check_address(&self, address: u64) -> Result<(), InvalidAddress>;

    /// What `entry`, found in a table of level `level`, means. At level 1 never a
    /// [`Entry::Table`].
    fn decode(&self, level: u8, entry: u64) -> Entry;

    /// Whether walks set accessed flags. If not, software does, and a leaf without the flag is a
    /// [`WalkFault::AccessFlag`](crate::WalkFault::AccessFlag).
    fn sets_accessed(&self) -> bool {
        true
    }

    /// The present entry `entry` with its accessed flag set, and its dirty flag too if asked.
    fn mark(&self, entry: u64, dirty: bool) -> u64;

    /// The right that `request` lacks on a page with `rights`.
    fn denied(&self, request: &Request, rights: Rights) -> Option<Denied>;

    /// An entry that points at the table at `address` and lets everything through.
    fn table_entry(&self, address: u64) -> u64;

    /// An entry of level `level` that maps the page at `address`, neither accessed nor dirty as
    /// far as walks set these flags. Meaningful if [`decode`](Self::decode) gives back a leaf at
    /// `address`.
    fn leaf_entry(&self, level: u8, address: u64, rights: Rights) -> u64;

    /// log2 of the bytes that one entry of level `level` covers.
    fn size_bits(&self, level: u8) -> u32 {
        let page = self.page_bits();
        page + (page - ENTRY_BITS) * u32::from(level.saturating_sub(1))
    }

    /// log2 of the bytes of a table of level `level`, which is also its alignment.
    fn table_bits(&self, level: u8) -> u32 {
        self.index_bits(level) + ENTRY_BITS
    }

    /// Number of address bits that the format translates.
    fn input_bits(&self) -> u32 {
        let root = self.levels();
        self.size_bits(root) + self.index_bits(root)
    }

    /// Address of the entry for `address` in the table of level `level` at `table`, whose bits
    /// below the table's alignment count as zero.
    fn entry_address(&self, table: u64, level: u8, address: u64) -> u64 {
        let index = (address >> self.size_bits(level)) & ((1 << self.index_bits(level)) - 1);
        (table & !((1 << self.table_bits(level)) - 1)) | (index << ENTRY_BITS)
    }
}

/// log2 of the size of an entry.
pub(crate) const ENTRY_BITS: u32 = 3;
