//! Which half of the address space an address lies in.

use super::stage_one::ArmStageOne;

/// A stage-1 table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArmTable {
    /// Address of the root (TTBR). Its bits below the root's alignment are ignored; whether it is
    /// within the output size is for whoever takes it from a register to check.
    pub root: u64,
    /// The format.
    pub format: ArmStageOne,
}

/// A stage 1: a table for the low half of the address space, from 0 on, and one for the high half,
/// which ends with the last address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ArmRegime {
    /// The low half's (TTBR0), unless it is turned off (EPD0).
    pub low: Option<ArmTable>,
    /// The high half's (TTBR1), unless it is turned off (EPD1).
    pub high: Option<ArmTable>,
    /// For the low half and the high half, whether the topmost byte of an address is ignored (TBI).
    pub top_byte_ignore: [bool; 2],
}

/// Why an address is in no table. To a device both are translation faults at the start level.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, thiserror::Error)]
pub enum SelectError {
    /// The address lies between the halves.
    #[error("the address lies between the halves")]
    NonCanonical,
    /// The half is turned off.
    #[error("the half is turned off")]
    Disabled,
}

/// The bit that says which half an address belongs to: the topmost one that is never ignored.
const SELECT_BIT: u32 = 55;

impl ArmRegime {
    /// The table for `address`, and the address in terms of that table.
    ///
    /// # Errors
    ///
    /// See [`SelectError`].
    pub fn select(&self, address: u64) -> Result<(ArmTable, u64), SelectError> {
        let is_high = address >> SELECT_BIT & 1 == 1;
        let (half, tbi) = if is_high {
            (self.high, self.top_byte_ignore[1])
        } else {
            (self.low, self.top_byte_ignore[0])
        };
        let table = half.ok_or(SelectError::Disabled)?;
        // The topmost byte that counts: all copies of the selecting bit where it is ignored.
        let unused = if tbi { u64::BITS - 1 - SELECT_BIT } else { 0 };
        let extended = ((address << unused) as i64 >> unused) as u64;
        let width = table.format.sizes().input_bits;
        let above = if is_high { !extended >> width } else { extended >> width };
        if above != 0 {
            return Err(SelectError::NonCanonical);
        }
        Ok((table, extended & ((1 << width) - 1)))
    }
}
