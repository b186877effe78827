//! x86-64's and VT-d's formats.

use pgtable::{Access, Denied, FirstStage, Request, SecondStage};

use super::{bit, Class, Twin, Updates};

#[derive(Clone, Copy, Debug)]
pub(crate) struct VtdTwin {
    second_stage: bool,
    levels: u8,
    output_bits: u32,
    two_mib: bool,
    one_gib: bool,
    no_execute: bool,
    flags: bool,
    snoop: bool,
    transient: bool,
}

impl From<FirstStage> for VtdTwin {
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

impl From<SecondStage> for VtdTwin {
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

impl VtdTwin {
    fn is_leaf(&self, level: u8, entry: u64) -> bool {
        level == 1 || bit(entry, 7)
    }

    fn is_reserved(&self, level: u8, entry: u64) -> bool {
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
}

impl Twin for VtdTwin {
    fn page_bits(&self) -> u32 {
        12
    }

    fn levels(&self) -> u8 {
        self.levels
    }

    fn input_bits(&self) -> u32 {
        12 + 9 * u32::from(self.levels)
    }

    fn output_bits(&self) -> u32 {
        self.output_bits
    }

    fn is_canonical(&self) -> bool {
        !self.second_stage
    }

    fn highest_page(&self) -> u8 {
        match (self.two_mib, self.one_gib) {
            (true, true) => 3,
            (true, false) => 2,
            _ => 1,
        }
    }

    fn class(&self, level: u8, entry: u64) -> Class {
        let present = bit(entry, 0) || (self.second_stage && bit(entry, 1));
        match () {
            () if !present => Class::Absent,
            () if self.is_reserved(level, entry) => Class::Reserved,
            () if self.is_leaf(level, entry) => Class::Leaf,
            () => Class::Table,
        }
    }

    fn target(&self, level: u8, entry: u64) -> u64 {
        let frame = entry & 0x000f_ffff_ffff_f000;
        // Bit 12 of a large page is a memory type.
        if self.is_leaf(level, entry) {
            frame & !(self.size(level) - 1)
        } else {
            frame
        }
    }

    fn updates(&self) -> Updates {
        Updates { accessed: self.flags, tables: self.flags, dirty: self.flags }
    }

    fn used(&self, entry: u64, _: bool, written: bool) -> u64 {
        let (accessed, dirty) = if self.second_stage { (8, 9) } else { (5, 6) };
        let flags = 1 << accessed | u64::from(written) << dirty;
        if self.flags {
            entry | flags
        } else {
            entry
        }
    }

    fn needs(&self, request: &Request) -> Vec<Denied> {
        let Request { access, privileged, write_protect, .. } = *request;
        if self.second_stage {
            return vec![match access {
                Access::Read => Denied::Read,
                Access::Write => Denied::Write,
                Access::Execute => Denied::Execute,
            }];
        }
        let mut needs = vec![];
        if !privileged {
            needs.push(Denied::User);
        }
        match access {
            Access::Write if !privileged || write_protect => needs.push(Denied::Write),
            Access::Execute => needs.push(Denied::Execute),
            _ => {}
        }
        needs
    }

    fn takes(&self, right: Denied, entry: u64, _: bool) -> bool {
        match (right, self.second_stage) {
            (Denied::Read, true) => !bit(entry, 0),
            (Denied::Write, _) => !bit(entry, 1),
            (Denied::Execute, true) => !bit(entry, 2),
            (Denied::Execute, false) => bit(entry, 63),
            (Denied::User, false) => !bit(entry, 2),
            _ => panic!("nobody needs {right:?}"),
        }
    }

    fn stops(&self, request: &Request, has: impl Fn(Denied) -> bool) -> Option<Denied> {
        let fetch = request.access == Access::Execute && request.privileged && request.smep;
        (!self.second_stage && fetch && has(Denied::User)).then_some(Denied::Execute)
    }

    fn fateful_bits(&self, _: bool) -> Vec<u32> {
        if self.second_stage {
            vec![0, 1, 2]
        } else {
            vec![1, 2, 63]
        }
    }

    fn has_reserved_bits(&self) -> bool {
        true
    }

    fn has_unreadable_pages(&self) -> bool {
        self.second_stage
    }

    fn plausible(&self) -> (u64, u64) {
        (0x007, 0x800f_0000_0000_0fff)
    }
}
