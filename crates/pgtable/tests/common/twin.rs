//! A second opinion: the formats as the specification's tables have them, bit by bit, without the
//! crate's own types. Slow and naive on purpose.

use pgtable::{Access, Denied, FirstStage, Request, SecondStage, WalkFault};

use super::{Arena, ArenaError};

/// A format, as plain numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Twin {
    pub(crate) second_stage: bool,
    pub(crate) levels: u8,
    pub(crate) output_bits: u32,
    pub(crate) two_mib: bool,
    pub(crate) one_gib: bool,
    pub(crate) no_execute: bool,
    pub(crate) flags: bool,
    pub(crate) snoop: bool,
    pub(crate) transient: bool,
}

impl From<FirstStage> for Twin {
    fn from(format: FirstStage) -> Self {
        Self {
            second_stage: false,
            levels: if format.five_level { 5 } else { 4 },
            output_bits: format.output_bits.into(),
            two_mib: true,
            one_gib: format.one_gib_pages,
            no_execute: format.no_execute,
            flags: true,
            snoop: true,
            transient: true,
        }
    }
}

impl From<SecondStage> for Twin {
    fn from(format: SecondStage) -> Self {
        Self {
            second_stage: true,
            levels: format.levels as u8,
            output_bits: format.output_bits.into(),
            two_mib: format.two_mib_pages,
            one_gib: format.one_gib_pages,
            no_execute: true,
            flags: format.accessed_dirty,
            snoop: format.snoop_control,
            transient: format.device_tlb,
        }
    }
}

/// What the twin found: the output address of the byte, the page's log2 size, and the entries on
/// the way with their new values.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) output: u64,
    pub(crate) size_bits: u32,
    pub(crate) entries: Vec<(u64, u64)>,
}

/// A fault without the reasons that only the crate has names for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    Address,
    NotPresent(u8),
    Reserved(u8),
    AccessFlag(u8),
    Permission(u8, Denied),
    Tables(u8),
    Contended,
}

impl From<WalkFault<ArenaError>> for Fault {
    fn from(fault: WalkFault<ArenaError>) -> Self {
        match fault {
            WalkFault::NonCanonical | WalkFault::BeyondWidth => Self::Address,
            WalkFault::NotPresent { level } => Self::NotPresent(level),
            WalkFault::Reserved { level, .. } => Self::Reserved(level),
            WalkFault::AccessFlag { level } => Self::AccessFlag(level),
            WalkFault::Permission { level, kind } => Self::Permission(level, kind),
            WalkFault::Tables { level, .. } => Self::Tables(level),
            WalkFault::Contended => Self::Contended,
        }
    }
}

fn bit(value: u64, bit: u32) -> bool {
    value >> bit & 1 == 1
}

impl Twin {
    /// First address past the lower half, or past everything.
    pub(crate) fn end(&self) -> u64 {
        let bits = 12 + 9 * u32::from(self.levels);
        1 << if self.second_stage { bits } else { bits - 1 }
    }

    pub(crate) fn is_valid_address(&self, address: u64) -> bool {
        address < self.end() || (!self.second_stage && address >= self.end().wrapping_neg())
    }

    /// Whether an entry maps or points anywhere.
    pub(crate) fn is_present(&self, entry: u64) -> bool {
        bit(entry, 0) || (self.second_stage && bit(entry, 1))
    }

    fn is_leaf(&self, level: u8, entry: u64) -> bool {
        level == 1 || bit(entry, 7)
    }

    pub(crate) fn is_reserved(&self, level: u8, entry: u64) -> bool {
        let leaf = self.is_leaf(level, entry);
        let mut reserved: Vec<u32> = (self.output_bits..52).collect();
        if level > 3 || (level == 3 && !self.one_gib) || (level == 2 && !self.two_mib) {
            reserved.push(7);
        }
        if leaf && level > 1 {
            let lowest = if self.second_stage { 12 } else { 13 };
            reserved.extend(lowest..12 + 9 * (u32::from(level) - 1));
        }
        if self.second_stage {
            if !leaf || !self.snoop {
                reserved.push(11);
            }
            if !leaf || !self.transient {
                reserved.push(62);
            }
        } else if !self.no_execute {
            reserved.push(63);
        }
        reserved.into_iter().any(|which| bit(entry, which))
    }

    /// Whether the entry alone would let the request through, and if not, why.
    pub(crate) fn denies(&self, entry: u64, request: &Request) -> Option<Denied> {
        let access = request.access;
        if self.second_stage {
            return match access {
                Access::Read => (!bit(entry, 0)).then_some(Denied::Read),
                Access::Write => (!bit(entry, 1)).then_some(Denied::Write),
                Access::Execute => (!bit(entry, 2)).then_some(Denied::Execute),
            };
        }
        if !request.privileged && !bit(entry, 2) {
            return Some(Denied::User);
        }
        let needs_writable = !request.privileged || request.write_protect;
        match access {
            Access::Write if needs_writable && !bit(entry, 1) => Some(Denied::Write),
            Access::Execute if bit(entry, 63) => Some(Denied::Execute),
            _ => None,
        }
    }

    /// Looks `address` up.
    pub(crate) fn walk(
        &self,
        arena: &Arena,
        root: u64,
        address: u64,
        request: &Request,
    ) -> Result<Found, Fault> {
        if !self.is_valid_address(address) {
            return Err(Fault::Address);
        }
        let mut seen = Vec::new();
        let (level, leaf) = self.lookup(arena, root, self.levels, address, &mut seen)?;
        self.permit(&seen, request)?;
        let entries = seen
            .iter()
            .map(|&(at, entry_level, entry)| {
                let written = entry_level == level && request.access == Access::Write;
                let (accessed, dirty) = if self.second_stage { (8, 9) } else { (5, 6) };
                let flags = 1 << accessed | u64::from(written) << dirty;
                (at, if self.flags { entry | flags } else { entry })
            })
            .collect();
        let size_bits = 12 + 9 * (u32::from(level) - 1);
        let frame = leaf & 0x000f_ffff_ffff_f000 & !((1 << size_bits) - 1);
        Ok(Found { output: frame + address % (1 << size_bits), size_bits, entries })
    }

    fn lookup(
        &self,
        arena: &Arena,
        table: u64,
        level: u8,
        address: u64,
        seen: &mut Vec<(u64, u8, u64)>,
    ) -> Result<(u8, u64), Fault> {
        let index = address / (1 << (12 + 9 * (u32::from(level) - 1))) % 512;
        let at = table + 8 * index;
        let entry = arena.get(at).ok_or(Fault::Tables(level))?;
        if !self.is_present(entry) {
            return Err(Fault::NotPresent(level));
        }
        if self.is_reserved(level, entry) {
            return Err(Fault::Reserved(level));
        }
        seen.push((at, level, entry));
        if self.is_leaf(level, entry) {
            return Ok((level, entry));
        }
        self.lookup(arena, entry & 0x000f_ffff_ffff_f000, level - 1, address, seen)
    }

    fn permit(&self, seen: &[(u64, u8, u64)], request: &Request) -> Result<(), Fault> {
        // A missing user right outweighs the others, wherever it is missing.
        let denials = seen.iter().filter_map(|&(_, level, entry)| {
            self.denies(entry, request).map(|kind| (kind != Denied::User, level, kind))
        });
        let by_weight = |&(other, level, _): &(bool, u8, Denied)| (other, u8::MAX - level);
        if let Some((_, level, kind)) = denials.min_by_key(by_weight) {
            return Err(Fault::Permission(level, kind));
        }
        let user_page = !self.second_stage && seen.iter().all(|&(_, _, entry)| bit(entry, 2));
        let fetch = request.access == Access::Execute && request.privileged;
        if fetch && request.smep && user_page {
            let leaf = seen.last().map_or(0, |&(_, level, _)| level);
            return Err(Fault::Permission(leaf, Denied::Execute));
        }
        Ok(())
    }
}
