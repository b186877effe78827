//! Operation codes (byte 7 of a descriptor; bit numbers in OPCAP).

macro_rules! opcodes {
    ($($(#[$doc:meta])* $name:ident = $code:literal,)*) => {
        /// An operation of DSA 1.0.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum Opcode {
            $($(#[$doc])* $name = $code,)*
        }

        impl Opcode {
            /// All operations, in order of their codes.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
        }

        impl TryFrom<u8> for Opcode {
            type Error = UnknownOpcode;

            fn try_from(code: u8) -> Result<Self, UnknownOpcode> {
                match code {
                    $($code => Ok(Self::$name),)*
                    _ => Err(UnknownOpcode(code)),
                }
            }
        }
    };
}

opcodes! {
    /// Does nothing and completes.
    Noop = 0x00,
    /// Executes the descriptors of a list in memory.
    Batch = 0x01,
    /// Completes when every earlier descriptor has.
    Drain = 0x02,
    /// Copies memory.
    MemoryMove = 0x03,
    /// Fills memory with an 8-byte pattern.
    Fill = 0x04,
    /// Compares two pieces of memory.
    Compare = 0x05,
    /// Compares memory with an 8-byte pattern.
    ComparePattern = 0x06,
    /// Writes a record of how two pieces of memory differ.
    CreateDelta = 0x07,
    /// Applies such a record.
    ApplyDelta = 0x08,
    /// Copies memory to two places.
    Dualcast = 0x09,
    /// Computes a CRC-32C.
    Crc = 0x10,
    /// Copies memory and computes its CRC-32C.
    CopyCrc = 0x11,
    /// Checks the data integrity fields (DIF) of blocks.
    DifCheck = 0x12,
    /// Copies blocks and adds a DIF to each.
    DifInsert = 0x13,
    /// Copies blocks, checks the DIF of each and leaves it out.
    DifStrip = 0x14,
    /// Copies blocks, checks the DIF of each and replaces it.
    DifUpdate = 0x15,
    /// Writes back and evicts memory from processor caches.
    CacheFlush = 0x20,
}

/// No operation of DSA 1.0 has this code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UnknownOpcode(pub u8);
