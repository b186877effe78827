//! Arm's formats.

use pgtable::{Access, ArmFlags, ArmSizes, ArmStageOne, ArmStageTwo, Denied, Request};

use super::{bit, Class, Twin, Updates};

#[derive(Clone, Copy, Debug)]
pub(crate) struct ArmTwin {
    stage_two: bool,
    page_bits: u32,
    levels: u8,
    input_bits: u32,
    output_bits: u32,
    wide: bool,
    access_update: bool,
    dirty_update: bool,
    access_ignored: bool,
    /// Whether permissions of table entries count; only at stage 1.
    from_tables: bool,
    /// Whether XN has two bits; only at stage 2.
    two_bits: bool,
}

impl ArmTwin {
    fn new(stage_two: bool, sizes: &ArmSizes, flags: ArmFlags) -> Self {
        let page_bits = sizes.granule.bits();
        Self {
            stage_two,
            page_bits,
            levels: 0,
            input_bits: sizes.input_bits.into(),
            output_bits: sizes.output_bits.into(),
            wide: sizes.wide,
            access_update: matches!(flags, ArmFlags::Access | ArmFlags::AccessDirty),
            dirty_update: flags == ArmFlags::AccessDirty,
            access_ignored: flags == ArmFlags::Ignore,
            from_tables: false,
            two_bits: false,
        }
    }

    /// Where bit `which` of an address is in an entry, if there is room for it.
    fn place_of(&self, which: u32) -> Option<u32> {
        match (self.wide, self.page_bits, which) {
            (true, 16, 48..=51) => Some(which - 48 + 12),
            (true, 12 | 14, 50..=51) => Some(which - 50 + 8),
            (true, 12 | 14, 48..=49) => Some(which),
            (_, _, 12..=47) => Some(which),
            _ => None,
        }
    }

    fn has_blocks(&self, level: u8) -> bool {
        // In Arm's count: 1 GiB and 2 MiB are at levels 1 and 2; 32 MiB and 512 MiB at level 2.
        let arms = 4 - i32::from(level);
        match self.page_bits {
            12 => arms == 1 || arms == 2 || (self.wide && arms == 0),
            _ => arms == 2 || (self.wide && arms == 1),
        }
    }

    fn kind(&self, level: u8, entry: u64) -> Class {
        match (entry & 3, level) {
            (3, 1) => Class::Leaf,
            (3, _) => Class::Table,
            (1, 2..) if self.has_blocks(level) => Class::Leaf,
            _ => Class::Absent,
        }
    }
}

impl From<ArmStageOne> for ArmTwin {
    fn from(format: ArmStageOne) -> Self {
        let mut twin = Self::new(false, format.sizes(), format.flags());
        let covered = |levels: u8| twin.page_bits + (twin.page_bits - 3) * u32::from(levels);
        twin.levels = (1..).find(|&levels| covered(levels) >= twin.input_bits).unwrap();
        twin.from_tables = format.hierarchical();
        twin
    }
}

impl From<ArmStageTwo> for ArmTwin {
    fn from(format: ArmStageTwo) -> Self {
        let mut twin = Self::new(true, format.sizes(), format.flags());
        // The level that SL0 names, from Arm's table.
        let start = match (twin.page_bits, format.vtcr().sl0) {
            (12, 0) => 2,
            (12, 1) => 1,
            (12, 2) => 0,
            (14 | 16, 0) => 3,
            (14 | 16, 1) => 2,
            (14 | 16, 2) => 1,
            (14, 3) => 0,
            other => panic!("{other:?}"),
        };
        twin.levels = 4 - start;
        twin.two_bits = format.execute_by_privilege();
        twin
    }
}

impl Twin for ArmTwin {
    fn page_bits(&self) -> u32 {
        self.page_bits
    }

    fn levels(&self) -> u8 {
        self.levels
    }

    fn input_bits(&self) -> u32 {
        self.input_bits
    }

    fn output_bits(&self) -> u32 {
        self.output_bits
    }

    fn highest_page(&self) -> u8 {
        (1..=self.levels).filter(|&level| level == 1 || self.has_blocks(level)).max().unwrap()
    }

    fn class(&self, level: u8, entry: u64) -> Class {
        let kind = self.kind(level, entry);
        let present = kind != Class::Absent;
        if present && self.target(level, entry) >> self.output_bits != 0 {
            Class::Reserved
        } else {
            kind
        }
    }

    fn target(&self, level: u8, entry: u64) -> u64 {
        let leaf = self.kind(level, entry) == Class::Leaf;
        let lowest = if leaf { self.size_bits(level) } else { self.page_bits };
        (lowest..52)
            .filter(|&which| self.place_of(which).is_some_and(|place| bit(entry, place)))
            .fold(0, |address, which| address | 1 << which)
    }

    fn updates(&self) -> Updates {
        Updates { accessed: self.access_update, tables: false, dirty: self.dirty_update }
    }

    fn is_untouched(&self, entry: u64) -> bool {
        !bit(entry, 10) && !self.access_update && !self.access_ignored
    }

    fn used(&self, mut entry: u64, leaf: bool, written: bool) -> u64 {
        if leaf && self.access_update {
            entry |= 1 << 10;
        }
        if leaf && written && self.dirty_update && bit(entry, 51) {
            // AP[2] is a bit against writes, S2AP[1] is one for them.
            entry = if self.stage_two { entry | 1 << 7 } else { entry & !(1 << 7) };
        }
        entry
    }

    fn needs(&self, request: &Request) -> Vec<Denied> {
        let mut needs = vec![];
        if !self.stage_two && !request.privileged && request.access != Access::Execute {
            needs.push(Denied::User);
        }
        needs.push(match (request.access, request.privileged) {
            (Access::Read, _) => Denied::Read,
            (Access::Write, _) => Denied::Write,
            (Access::Execute, false) => Denied::Execute,
            (Access::Execute, true) => Denied::ExecutePrivileged,
        });
        needs
    }

    fn takes(&self, right: Denied, entry: u64, leaf: bool) -> bool {
        let modifier = self.dirty_update && bit(entry, 51);
        match (self.stage_two, leaf, right) {
            // APTable, UXNTable, PXNTable.
            (false, false, Denied::User) => self.from_tables && bit(entry, 61),
            (false, false, Denied::Write) => self.from_tables && bit(entry, 62),
            (false, false, Denied::Execute) => self.from_tables && bit(entry, 60),
            (false, false, Denied::ExecutePrivileged) => self.from_tables && bit(entry, 59),
            (false, _, Denied::Read) => false,
            // AP, UXN, PXN.
            (false, true, Denied::User) => !bit(entry, 6),
            (false, true, Denied::Write) => bit(entry, 7) && !modifier,
            (false, true, Denied::Execute) => bit(entry, 54),
            (false, true, Denied::ExecutePrivileged) => bit(entry, 53),
            (true, false, _) => false,
            // S2AP, XN.
            (true, true, Denied::Read) => !bit(entry, 6),
            (true, true, Denied::Write) => !bit(entry, 7) && !modifier,
            (true, true, Denied::Execute) => matches!(entry >> 53 & 3, 2 | 3),
            (true, true, Denied::ExecutePrivileged) if self.two_bits => {
                matches!(entry >> 53 & 3, 1 | 2)
            }
            (true, true, Denied::ExecutePrivileged) => matches!(entry >> 53 & 3, 2 | 3),
            (true, true, Denied::User) => panic!("nobody needs that"),
        }
    }

    fn stops(&self, request: &Request, has: impl Fn(Denied) -> bool) -> Option<Denied> {
        let fetch = request.access == Access::Execute && request.privileged;
        let writable = has(Denied::Write) && !self.stage_two && has(Denied::User);
        (fetch && writable).then_some(Denied::ExecutePrivileged)
    }

    fn fateful_bits(&self, leaf: bool) -> Vec<u32> {
        match leaf {
            true => vec![6, 7, 10, 51, 53, 54],
            false => vec![59, 60, 61, 62],
        }
    }

    fn has_reserved_bits(&self) -> bool {
        self.output_bits < if self.wide { 52 } else { 48 }
    }

    fn has_unreadable_pages(&self) -> bool {
        self.stage_two
    }

    fn plausible(&self) -> (u64, u64) {
        // Type, AP or S2AP, AF; and everything that is not an address in every layout.
        (0x443, 0xffff_0000_0000_ffff)
    }
}
