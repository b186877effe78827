//! SMMUv3: the stream-table entry, the context descriptors and what they ask for; the commands by
//! which a guest has them forgotten, and the events that tell of faults (Arm IHI 0070, chapters 4,
//! 5 and 7).
//!
//! ```text
//!  STE ──S1ContextPtr──► CD table                    ┌─ TTB0 ─► stage 1, low half
//!   │                    ┌─────────────────────┐     │
//!   │                    │ SSID, 64 B each ────┼─► CD┴─ TTB1 ─► stage 1, high half
//!   │                    └─────────────────────┘
//!   │                    linear, or behind a first level of 8-byte descriptors
//!   └─────S2TTB────────► stage 2: of everything above, if the configuration is nested
//! ```
//!
//! What a unit with this model of the tables has, beyond [`SmmuCaps`]: AArch64
//! tables only and little-endian ones (IDR0.TTF 2, TTENDIAN 2), no stalls (STALL_MODEL 1), faults
//! that always abort (TERM_MODEL 1), no EL2 world (HYP 0), 16-bit VMIDs (VMID16 1), no split-stage
//! ATS (NS1ATS 1), no 52-bit entries for granules of 4 and 16 KiB (IDR5.DS 0), no PAN, no access
//! flags in table entries. There are no instruction fetches, so WXN and UWXN decide nothing. Memory
//! types and shareability are read and have no effect: all memory is coherent.

mod command;
mod descriptor;
mod event;
mod nested;
mod stream;

pub(crate) use command::opcode;
pub use command::{
    guest_command, AtcCommandWord1, CommandError, DeviceCommandWord0, TlbCommandWord0,
    TlbCommandWord1,
};
pub use descriptor::{
    Descriptor, DescriptorError, DescriptorPointer, DescriptorWord0, DescriptorWord1,
    DescriptorWord2, Regime, DESCRIPTOR_SIZE, POINTER_SIZE,
};
pub use event::{event, Class, Event, EventId, EventWord0, EventWord1};
pub use nested::{nested_entry, NestedEntry, NestedError};
pub use stream::{
    StreamEntry, StreamEntryError, StreamWord0, StreamWord1, StreamWord2, StreamWord3, ENTRY_SIZE,
};

use pgtable::{arm_output_bits, Granule};

use crate::SmmuCaps;

/// Whether tables of this granule are supported.
const fn has_granule(granule: Granule, caps: &SmmuCaps) -> bool {
    match granule {
        Granule::Kib4 => caps.granule_4k,
        Granule::Kib16 => caps.granule_16k,
        Granule::Kib64 => caps.granule_64k,
    }
}

/// Whether the entries of tables have room for 52 address bits.
const fn is_wide(granule: Granule, caps: &SmmuCaps) -> bool {
    matches!(granule, Granule::Kib64) && caps.output_bits >= 52
}

/// The output size that a field IPS or S2PS asks for, or the unit's own if that is less. The reserved
/// value asks for all.
fn output_bits(field: u8, caps: &SmmuCaps) -> u8 {
    let sizes = (0..=field).rev().filter_map(arm_output_bits);
    let mut possible = sizes.filter(|&bits| bits <= caps.output_bits);
    // A unit has at least the least.
    possible.next().or(arm_output_bits(0)).unwrap_or(caps.output_bits)
}

/// Whether the unit does these updates of tables (HTTU).
const fn updates_allowed(access_flag: bool, dirty: bool, caps: &SmmuCaps) -> bool {
    match (access_flag, dirty) {
        (_, true) => caps.hardware_updates >= 2,
        (true, false) => caps.hardware_updates >= 1,
        (false, false) => true,
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
