//! CRC-32C (Castagnoli) as the CRC operations compute it.

/// Polynomial 0x1EDC6F41 with its bits in transmission order.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// Steps of the ordinary computation that a descriptor's flags leave out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Bypass {
    /// Flag 17: the seed and the result are not inverted, and their bits are in the opposite order.
    pub(crate) inversion: bool,
    /// Flag 18: the bits of each data byte are in the opposite order.
    pub(crate) data_reflection: bool,
}

const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { (value >> 1) ^ POLYNOMIAL } else { value >> 1 };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
}

/// The CRC of `data`, continued from `seed` (which is zero, or the CRC of what came before).
pub(crate) fn crc32c(seed: u32, data: &[u8], bypass: Bypass) -> u32 {
    let mut register = if bypass.inversion { seed.reverse_bits() } else { !seed };
    for byte in data {
        let byte = if bypass.data_reflection { byte.reverse_bits() } else { *byte };
        let [low, ..] = register.to_le_bytes();
        register = TABLE[usize::from(low ^ byte)] ^ (register >> 8);
    }
    if bypass.inversion {
        register.reverse_bits()
    } else {
        !register
    }
}
