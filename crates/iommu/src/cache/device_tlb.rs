//! The TLB of a device (ATC), as one of its channels has it: what the completions of its
//! translation requests said (PCI Express, address translation services).
//!
//! It knows nothing of domains, contexts or PASID-table entries, so only what names the device
//! empties it: its invalidations, and what the host itself changes.

use mem::{Access, Iova};

use super::iotlb::{Allowed, Base};
use super::table::{Mapping, Table, PAGE_BITS};
use crate::stage_two::Output;

/// Sets of a device's TLB: half as many as an IOTLB has.
const SETS: usize = 128;

/// The TLB of a device, as one of its channels has it.
pub(crate) type DeviceTlb = Table<Completion, SETS>;

/// What the completion of a translation request says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Completion {
    /// Address of the first byte of what it covers.
    base: Output,
    /// log2 of the size of what it covers.
    size_bits: u8,
    /// As in [`Cached`](super::Cached): any page of a large mapping has all of it forgotten.
    scope_bits: u8,
    rights: Rights,
    /// Whether faults of what is beyond it are not recorded.
    pub(crate) fault_disable: bool,
}

/// The R and W of a completion, for the privilege of the request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rights {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

impl Rights {
    /// What `allowed` gives to requests of that privilege.
    pub(crate) fn of(allowed: Allowed, privileged: bool) -> Self {
        let read = allowed.contains(Access::Read, privileged);
        Self { read, write: allowed.contains(Access::Write, privileged) }
    }
}

impl Completion {
    /// For `address`, which becomes `output`: of a mapping as large as `size_bits` says, of which
    /// no more than `len_minus_one` bytes and one from there on may be covered.
    pub(crate) fn new(
        address: Iova,
        (output, len_minus_one): (Output, u64),
        (size_bits, scope_bits): (u8, u8),
        rights: Rights,
        fault_disable: bool,
    ) -> Self {
        let reach = |bits: &u8| !address.0 & mask(*bits) <= len_minus_one;
        let size_bits = (PAGE_BITS as u8..=size_bits).rev().find(reach).unwrap_or(PAGE_BITS as u8);
        let base = Output(output.0 & !mask(size_bits));
        Self { base, size_bits, scope_bits, rights, fault_disable }
    }

    /// Whether it allows the access.
    pub(crate) fn allows(&self, access: Access) -> bool {
        match access {
            Access::Read => self.rights.read,
            Access::Write => self.rights.write,
        }
    }

    /// As [`Cached::translate`](super::Cached::translate).
    pub(crate) fn translate(&self, iova: Iova) -> (Output, u64) {
        let mask = mask(self.size_bits);
        (self.base.inside(iova.0 & mask), mask - (iova.0 & mask))
    }
}

fn mask(bits: u8) -> u64 {
    (1 << bits) - 1
}

impl Mapping for Completion {
    const NONE: Self = Self {
        base: Output(0),
        size_bits: PAGE_BITS as u8,
        scope_bits: PAGE_BITS as u8,
        rights: Rights { read: false, write: false },
        fault_disable: false,
    };

    fn scope_bits(&self) -> u8 {
        self.scope_bits
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
