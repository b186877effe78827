//! Look-ups of device contexts: what entries give, and every way in which they can be wrong.

use iommu::{ContextFault, DeviceContext, DomainId, PasidTable, StageTwo};

use super::*;
use crate::spec::RootTableAddress;

const ROOT: u64 = 0x4000;
const CONTEXT: u64 = 0x5000;
/// 00:10.0 is device/function 0x80, 00:02.1 is 0x11.
const UPPER: RequesterId = RequesterId::from_bits(0x80);
const LOWER: RequesterId = RequesterId::from_bits(0x11);

struct Tables {
    vm: TestVm,
    options: Options,
}

impl Tables {
    fn new() -> Self {
        Self { vm: TestVm::new(), options: Options::default() }
    }

    fn store(&self, at: u64, words: &[u64]) {
        for (at, word) in (at..).step_by(8).zip(words) {
            self.vm.memory().store_u64(Gpa(at), *word).unwrap();
        }
    }

    fn lookup(&self, pointer: u64, requester: RequesterId) -> Result<DeviceContext, ContextFault> {
        let caps = Caps::new(self.options).unwrap();
        let root = RootTable::new(RootTableAddress::from_bits(pointer), caps);
        root.lookup(&*self.vm.memory(), requester)
    }

    /// Looks 00:02.1 up in legacy tables with this context entry.
    fn legacy(&self, low: u64, high: u64) -> Result<DeviceContext, ContextFault> {
        self.store(ROOT, &[CONTEXT | 1, 0]);
        self.store(CONTEXT + 0x11 * 16, &[low, high]);
        self.lookup(ROOT, LOWER)
    }

    /// Looks 00:10.0 up in scalable-mode tables with this context entry.
    fn scalable(&self, words: [u64; 4]) -> Result<DeviceContext, ContextFault> {
        self.store(ROOT, &[0, CONTEXT | 1]);
        self.store(CONTEXT, &words);
        self.lookup(ROOT | 0x400, UPPER)
    }
}

fn fails(reason: FaultReason) -> Result<DeviceContext, ContextFault> {
    Err(ContextFault { reason, fault_disable: false })
}

#[test]
fn legacy_entries_give_their_translation() {
    let tables = Tables::new();
    let domain = DomainId(0x1234);
    let high = 0x12_3402;
    let table = StageTwo { root: Gpa(0x9000), levels: 4, accessed_dirty: false };
    let stage_two =
        |ats, fault_disable| Ok(DeviceContext::StageTwo { domain, table, ats, fault_disable });
    assert_eq!(tables.legacy(0x9001, high), stage_two(false, false));
    assert_eq!(tables.legacy(0x9003, high), stage_two(false, true));
    assert_eq!(tables.legacy(0x9005, high), stage_two(true, false));
    // Bits 6:3 of the high word are ignored.
    assert_eq!(tables.legacy(0x9001, high | 0x78), stage_two(false, false));
    let three = StageTwo { levels: 3, ..table };
    let fault_disable = false;
    assert_eq!(
        tables.legacy(0x9001, 0x12_3401),
        Ok(DeviceContext::StageTwo { domain, table: three, ats: false, fault_disable }),
    );
    // Pass-through ignores the table pointer.
    assert_eq!(
        tables.legacy(0xffff_ffff_ffff_f009, high),
        Ok(DeviceContext::PassThrough { domain, ats: false, fault_disable }),
    );
}

#[test]
fn legacy_entries_can_be_wrong() {
    let mut tables = Tables::new();
    assert_eq!(tables.lookup(ROOT, LOWER), fails(FaultReason::RootNotPresent));
    assert_eq!(tables.lookup(0x40_0000, LOWER), fails(FaultReason::RootAccess));
    for (low, high) in [(CONTEXT | 3, 0), (CONTEXT | 1, 1), (1 << 48 | CONTEXT | 1, 0)] {
        tables.store(ROOT, &[low, high]);
        assert_eq!(tables.lookup(ROOT, LOWER), fails(FaultReason::RootReserved));
    }
    tables.store(ROOT, &[0x40_0001, 0]);
    assert_eq!(tables.lookup(ROOT, LOWER), fails(FaultReason::ContextAccess));

    let high = 0x0100 | 2;
    assert_eq!(tables.legacy(0, high), fails(FaultReason::ContextNotPresent));
    let silent = |reason| Err(ContextFault { reason, fault_disable: true });
    assert_eq!(tables.legacy(2, 0), silent(FaultReason::ContextNotPresent));
    assert_eq!(tables.legacy(0x9013, high), silent(FaultReason::ContextReserved));
    for bit in [4, 11, 48, 63] {
        let wrong = tables.legacy(0x9001 | 1 << bit, high);
        assert_eq!(wrong, fails(FaultReason::ContextReserved), "bit {bit}");
    }
    for bit in [7, 24, 63] {
        let wrong = tables.legacy(0x9001, high | 1 << bit);
        assert_eq!(wrong, fails(FaultReason::ContextReserved), "bit {}", 64 + bit);
    }
    // Widths that do not exist or are not offered; a reserved translation type; pass-through
    // with a width that is not the largest.
    for (low, width) in [(0x9001, 0), (0x9001, 3), (0x9001, 4), (0x900d, 2), (9, 1)] {
        let wrong = tables.legacy(low, 0x0100 | width);
        assert_eq!(wrong, fails(FaultReason::ContextInvalid), "{low:#x} {width}");
    }
    tables.options.page_requests = false;
    tables.options.device_tlb = false;
    tables.options.pass_through = false;
    assert_eq!(tables.legacy(0x9005, high), fails(FaultReason::ContextInvalid));
    assert_eq!(tables.legacy(0x9009, high), fails(FaultReason::ContextInvalid));
}

#[test]
fn scalable_entries_give_their_pasid_table() {
    let tables = Tables::new();
    let expected = PasidTable {
        directory: Gpa(0x9000),
        pasid_bits: 13,
        rid_pasid: Pasid::from_field(0),
        rid_privileged: false,
        pasid_enable: false,
        ats: false,
        page_requests: false,
        fault_disable: false,
        caps: Caps::new(Options::default()).unwrap().tables(),
    };
    let found = |table| Ok(DeviceContext::PasidTable(table));
    assert_eq!(tables.scalable([0x9001, 0, 0, 0]), found(expected));
    let full = PasidTable {
        pasid_bits: 20,
        rid_pasid: Pasid::from_field(0xabcde),
        pasid_enable: true,
        ats: true,
        fault_disable: true,
        ..expected
    };
    assert_eq!(tables.scalable([0x9e0f, 0xabcde, 0, 0]), found(full));
    // Page requests need a device TLB.
    let asking = PasidTable { page_requests: true, ..full };
    assert_eq!(tables.scalable([0x9e1f, 0xabcde, 0, 0]), found(asking));
    assert_eq!(tables.scalable([0x9e1b, 0xabcde, 0, 0]), found(PasidTable { ats: false, ..full }));
}

#[test]
fn scalable_entries_are_found_in_both_halves() {
    let tables = Tables::new();
    tables.store(ROOT + 0x35 * 16, &[CONTEXT | 1, (CONTEXT + 0x1000) | 1]);
    tables.store(CONTEXT + 0x7f * 32, &[0x9001, 0, 0, 0]);
    tables.store(CONTEXT + 0x1000 + 0x7f * 32, &[0xa001, 0, 0, 0]);
    let directory =
        |devfn: u16| match tables.lookup(ROOT | 0x400, RequesterId::from_bits(0x3500 | devfn)) {
            Ok(DeviceContext::PasidTable(table)) => table.directory,
            other => panic!("{other:?}"),
        };
    assert_eq!(directory(0x7f), Gpa(0x9000));
    assert_eq!(directory(0xff), Gpa(0xa000));
}

#[test]
fn scalable_entries_can_be_wrong() {
    let mut tables = Tables::new();
    let lookup = |tables: &Tables| tables.lookup(ROOT | 0x400, UPPER);
    // The lower half does not count for a device in the upper one.
    tables.store(ROOT, &[u64::MAX, 0]);
    assert_eq!(lookup(&tables), fails(FaultReason::RootNotPresent));
    for half in [CONTEXT | 3, CONTEXT | 0x801, 1 << 48 | CONTEXT | 1] {
        tables.store(ROOT, &[0, half]);
        assert_eq!(lookup(&tables), fails(FaultReason::RootReserved));
    }
    tables.store(ROOT, &[0, 0x40_0001]);
    assert_eq!(lookup(&tables), fails(FaultReason::ContextAccess));

    let good = [0x9e0d, 0, 0, 0];
    assert_eq!(tables.scalable([0; 4]), fails(FaultReason::ContextNotPresent));
    let silent = |reason| Err(ContextFault { reason, fault_disable: true });
    assert_eq!(tables.scalable([2, 0, 0, 0]), silent(FaultReason::ContextNotPresent));
    // RID_PRIV is not offered, nor are EPTR and HPTE.
    for bit in [5, 6, 7, 8, 48, 63, 84, 85, 127, 128, 191, 192, 255] {
        let mut words = good;
        words[bit / 64] |= 1 << (bit % 64);
        assert_eq!(tables.scalable(words), fails(FaultReason::ContextReserved), "bit {bit}");
    }
    // RID_PASID beyond the directory.
    assert_eq!(tables.scalable([0x9001, 0x2000, 0, 0]), fails(FaultReason::ContextInvalid));
    assert!(tables.scalable([0x9001, 0x1fff, 0, 0]).is_ok());

    tables.options = Options {
        device_tlb: false,
        page_requests: false,
        pasid_bits: None,
        rid_pasid: false,
        ..Options::default()
    };
    for words in [[0x9011, 0, 0, 0], [0x9005, 0, 0, 0], [0x9009, 0, 0, 0], [0x9001, 1, 0, 0]] {
        assert_eq!(tables.scalable(words), fails(FaultReason::ContextReserved));
    }
    assert!(tables.scalable([0x9001, 0, 0, 0]).is_ok());
}

#[test]
fn pasids_are_no_wider_than_the_unit_offers() {
    let mut tables = Tables::new();
    tables.options.pasid_bits = Some(15);
    let bits = |directory_size: u64| match tables.scalable([0x9009 | directory_size << 9, 0, 0, 0])
    {
        Ok(DeviceContext::PasidTable(table)) => table.pasid_bits,
        other => panic!("{other:?}"),
    };
    assert_eq!((bits(1), bits(2), bits(7)), (14, 15, 15));
}

#[test]
fn modes_that_are_not_offered_are_refused() {
    let mut tables = Tables::new();
    for mode in [0x800, 0xc00] {
        assert_eq!(tables.lookup(ROOT | mode, LOWER), fails(FaultReason::RootPointer));
    }
    tables.options = Options {
        scalable_mode: false,
        pasid_bits: None,
        first_stage: false,
        first_stage_1g: false,
        second_stage: false,
        nested: false,
        rid_pasid: false,
        page_requests: false,
        ..Options::default()
    };
    assert_eq!(tables.lookup(ROOT | 0x400, LOWER), fails(FaultReason::RootPointer));
}

#[test]
fn tables_at_the_end_of_the_address_space_are_no_memory() {
    let tables = Tables::new();
    let last = 0xffff_ffff_ffff_f000;
    let device = RequesterId::from_bits(0xffff);
    assert_eq!(tables.lookup(last, device), fails(FaultReason::RootAccess));
    assert_eq!(tables.lookup(last | 0x400, device), fails(FaultReason::RootAccess));
}
