//! Rules of single requests beyond the matrix.
#![cfg(not(loom))]

mod common;

use common::*;
use iommu::format::vtd::DirectoryEntry;
use iommu::{
    AddressSpace, ContextFault, DeviceContext, DmaError, FaultReason, Invalidation, IoSlice,
    PasidTable, Stage, Vm, WINDOW_LIMIT,
};
use mem::{Access, Gpa, GuestMemory, Iova};

const PAGE: u64 = 0x10_0000;
const VA: u64 = 0x7f12_3456_7000;
const LEAF: u64 = PAGE | PRESENT | WRITABLE | USER;

/// A guest with PASID 1 bound to a first-stage table, and the root of that.
fn bound() -> (Guest, Gpa) {
    let mut guest = Guest::new();
    let root = guest.table();
    guest.set_first(root, VA, 1, LEAF);
    guest.set_pasid(1, first_stage(root, DOMAIN));
    (guest, root)
}

/// What the device is told and what is recorded.
fn outcome(guest: &Guest, space: AddressSpace, at: u64, op: Op) -> (bool, Option<FaultReason>) {
    let channel = guest.vm.attach(DEVICE).unwrap().channel_and_keep();
    let result = dma(&channel.1, space, at, op);
    (result.is_ok(), guest.vm.take_fault().map(|fault| fault.reason))
}

trait Keep {
    fn channel_and_keep(self) -> (iommu::Endpoint, iommu::Channel);
}

impl Keep for iommu::Endpoint {
    fn channel_and_keep(self) -> (iommu::Endpoint, iommu::Channel) {
        let channel = self.channel();
        (self, channel)
    }
}

fn refused(guest: &Guest, space: AddressSpace, at: u64, op: Op, reason: FaultReason) {
    assert_eq!(outcome(guest, space, at, op), (false, Some(reason)));
}

fn passes(guest: &Guest, space: AddressSpace, at: u64, op: Op) {
    assert_eq!(outcome(guest, space, at, op), (true, None));
}

fn privileged(number: u32) -> AddressSpace {
    AddressSpace { pasid: Some(pasid(number)), privileged: true }
}

#[test]
fn pasids_and_their_directory() {
    let (mut guest, _) = bound();
    passes(&guest, with(1), VA, Op::Read);
    refused(&guest, with(2), VA, Op::Read, FaultReason::PasidEntryNotPresent);
    refused(&guest, with(64), VA, Op::Read, FaultReason::PasidDirectoryNotPresent);
    refused(&guest, with(1024), VA, Op::Read, FaultReason::PasidRange);
    refused(&guest, without(), VA, Op::Read, FaultReason::PasidEntryNotPresent);

    let directory = |guest: &Guest, entry: u64| {
        guest.memory.store_u64(Gpa(guest.directory.0 + 8), entry).unwrap();
    };
    directory(&guest, 0x5001 | 1 << 2);
    refused(&guest, with(64), VA, Op::Read, FaultReason::PasidDirectoryReserved);
    directory(&guest, 1 << 46 | 1);
    refused(&guest, with(64), VA, Op::Read, FaultReason::PasidDirectoryReserved);
    directory(&guest, NOWHERE | 1);
    refused(&guest, with(64), VA, Op::Read, FaultReason::PasidEntryAccess);

    guest.set_pasid(3, [1 | 7 << 6, 0, 0, 0, 0, 0, 0, 0]);
    refused(&guest, with(3), VA, Op::Read, FaultReason::PasidEntryInvalid);
    guest.set_pasid(3, [1 | 1 << 6, 0, 0, 1, 0, 0, 0, 0]);
    refused(&guest, with(3), VA, Op::Read, FaultReason::PasidEntryReserved);

    let table = guest.pasid_table();
    guest.set_context(DeviceContext::PasidTable(PasidTable { directory: Gpa(NOWHERE), ..table }));
    refused(&guest, with(1), VA, Op::Read, FaultReason::PasidDirectoryAccess);
    guest.set_context(DeviceContext::PasidTable(PasidTable { pasid_enable: false, ..table }));
    refused(&guest, with(1), VA, Op::Read, FaultReason::PasidDisabled);
    guest.set_context(DeviceContext::PasidTable(PasidTable { rid_pasid: pasid(1), ..table }));
    passes(&guest, without(), VA, Op::Read);
}

#[test]
fn contexts_that_are_not_there() {
    let (guest, _) = bound();
    for fault_disable in [false, true] {
        let reason = FaultReason::ContextReserved;
        *guest.context.0.lock().unwrap() = Err(ContextFault { reason, fault_disable });
        guest.settle(Invalidation::ContextAll);
        let expected = (!fault_disable).then_some(reason);
        assert_eq!(outcome(&guest, with(1), VA, Op::Read), (false, expected));
    }
}

#[test]
fn recording_is_disabled_at_each_place() {
    let (mut guest, root) = bound();
    let silent = |guest: &Guest, number| {
        assert_eq!(outcome(guest, with(number), VA + 0x1000, Op::Read), (false, None));
    };
    let mut words = first_stage(root, DOMAIN);
    words[0] |= 2;
    guest.set_pasid(2, words);
    silent(&guest, 2);
    // The entry alone, without P.
    guest.set_pasid(3, [2, 0, 0, 0, 0, 0, 0, 0]);
    silent(&guest, 3);
    let entry = DirectoryEntry::new().with_fault_disable(true);
    guest.memory.store_u64(Gpa(guest.directory.0 + 8), entry.into_bits()).unwrap();
    silent(&guest, 64);
    let table = PasidTable { fault_disable: true, ..guest.pasid_table() };
    guest.set_context(DeviceContext::PasidTable(table));
    silent(&guest, 1);
}

#[test]
fn privilege() {
    let (mut guest, root) = bound();
    refused(&guest, privileged(1), VA, Op::Read, FaultReason::SupervisorDisabled);
    let with_bits = |bits: u64| {
        let mut words = first_stage(root, DOMAIN);
        words[2] |= bits;
        words
    };
    // SRE; then SRE and WPE.
    guest.set_pasid(2, with_bits(1));
    guest.set_pasid(3, with_bits(1 | 1 << 4));
    passes(&guest, privileged(2), VA, Op::Write);
    guest.set_first(root, VA, 1, PAGE | PRESENT);
    passes(&guest, privileged(2), VA, Op::Write);
    passes(&guest, privileged(3), VA, Op::Read);
    let read_only = FaultReason::Permission { stage: Stage::One, user: false };
    refused(&guest, privileged(3), VA, Op::Write, read_only);
    let supervisor_page = FaultReason::Permission { stage: Stage::One, user: true };
    refused(&guest, with(2), VA, Op::Read, supervisor_page);
    // Requests without PASID have the privilege of the context.
    let table = PasidTable { rid_pasid: pasid(2), rid_privileged: true, ..guest.pasid_table() };
    guest.set_context(DeviceContext::PasidTable(table));
    passes(&guest, without(), VA, Op::Write);
}

/// A privileged request leaves an entry in the IOTLB that does not serve an ordinary one.
#[test]
fn privilege_and_the_iotlb() {
    let (mut guest, root) = bound();
    let mut words = first_stage(root, DOMAIN);
    words[2] |= 1;
    guest.set_pasid(2, words);
    guest.set_first(root, VA, 1, PAGE | PRESENT);
    let (_endpoint, channel) = guest.attach();
    assert!(dma(&channel, privileged(2), VA, Op::Write).is_ok());
    assert!(dma(&channel, with(2), VA, Op::Read).is_err());
    assert!(dma(&channel, privileged(2), VA, Op::Write).is_ok());
}

#[test]
fn canonical_addresses_and_five_levels() {
    let (mut guest, root) = bound();
    refused(&guest, with(1), VA | 1 << 47, Op::Read, FaultReason::NonCanonical);
    refused(&guest, with(1), 1 << 63, Op::Read, FaultReason::NonCanonical);
    let absent = FaultReason::NotPresent { stage: Stage::One, level: 4 };
    refused(&guest, with(1), 0xffff_8000_0000_0000, Op::Read, absent);

    let top = guest.table();
    let index = 0x00ab_0000_0000_0000u64 >> 48;
    guest.memory.store_u64(Gpa(top.0 + index * 8), root.0 | 7).unwrap();
    let mut words = first_stage(top, DOMAIN);
    words[2] |= 1 << 2;
    guest.set_pasid(2, words);
    passes(&guest, with(2), index << 48 | VA, Op::Read);
    refused(&guest, with(2), 1 << 56, Op::Read, FaultReason::NonCanonical);
}

#[test]
fn widths_of_the_second_stage_and_of_pass_through() {
    let mut guest = Guest::new();
    let root = guest.identity_second(true);
    guest.set_pasid(1, second_stage(root, DOMAIN));
    guest.set_pasid(2, pass_through(DOMAIN));
    let beyond = FaultReason::AddressWidth { stage: Stage::Two };
    refused(&guest, with(1), 1 << 48, Op::Read, beyond);
    passes(&guest, with(2), PAGE, Op::Atomic);
    refused(&guest, with(2), 1 << 46, Op::Read, beyond);
    let absent = FaultReason::NotPresent { stage: Stage::Two, level: 4 };
    refused(&guest, with(2), 1 << 45, Op::Read, of_no_memory(FaultReason::NoMemory, absent));
}

#[test]
fn nested_faults_name_the_stage() {
    let mut guest = Guest::new();
    let (one, two) = (guest.table(), guest.identity_second(false));
    guest.set_first(one, VA, 1, LEAF);
    guest.set_first(one, VA + 0x1000, 1, LEAF);
    guest.set_pasid(1, nested(one, two, DOMAIN));
    passes(&guest, with(1), VA, Op::Write);

    // The data page, then the page of a first-stage table, lose rights in the second stage.
    guest.set_second(two, PAGE, 1, PAGE | SS_READ);
    passes(&guest, with(1), VA, Op::Read);
    let denied = |stage| FaultReason::Permission { stage, user: false };
    refused(&guest, with(1), VA, Op::Write, denied(Stage::Two));
    guest.set_second(two, PAGE, 1, 0);
    let absent = |stage| FaultReason::NotPresent { stage, level: 1 };
    refused(&guest, with(1), VA, Op::Read, absent(Stage::Two));
    guest.set_second(two, PAGE, 1, PAGE | SS_READ | SS_WRITE);
    let leaf_table = guest.entry(one, 4, VA, 1, 0).0 & !0xfff;
    guest.set_second(two, leaf_table, 1, leaf_table | SS_READ);
    // The entry of the first page is marked already, that of the second one is not.
    passes(&guest, with(1), VA, Op::Read);
    refused(&guest, with(1), VA + 0x1000, Op::Read, denied(Stage::TwoForTable));
    guest.set_second(two, leaf_table, 1, 0);
    refused(&guest, with(1), VA, Op::Read, absent(Stage::TwoForTable));
    guest.set_second(two, leaf_table, 1, NOWHERE | SS_READ | SS_WRITE);
    let nowhere = FaultReason::TableAccess { stage: Stage::One, level: 1 };
    let absent = FaultReason::NotPresent { stage: Stage::TwoForTable, level: 3 };
    refused(&guest, with(1), VA, Op::Read, of_no_memory(nowhere, absent));
    guest.set_second(two, one.0, 2, NOWHERE | SS_READ | SS_WRITE);
    let nowhere = FaultReason::TableAccess { stage: Stage::TwoForTable, level: 1 };
    refused(&guest, with(1), VA, Op::Read, of_no_memory(nowhere, absent));
}

#[test]
fn second_stage_flags_are_kept_on_request() {
    for keep in [false, true] {
        let mut guest = Guest::new();
        let root = guest.table();
        let at = guest.set_second(root, VA, 1, PAGE | SS_READ | SS_WRITE);
        let mut words = second_stage(root, DOMAIN);
        words[0] |= u64::from(keep) << 9;
        guest.set_pasid(1, words);
        let (_endpoint, channel) = guest.attach();
        let flags = |guest: &Guest| guest.memory.load_u64(at).unwrap() & (SS_ACCESSED | SS_DIRTY);
        dma(&channel, with(1), VA, Op::Read).unwrap();
        assert_eq!(flags(&guest), if keep { SS_ACCESSED } else { 0 });
        dma(&channel, with(1), VA, Op::Write).unwrap();
        assert_eq!(flags(&guest), if keep { SS_ACCESSED | SS_DIRTY } else { 0 });
    }
}

#[test]
fn translation_requests() {
    let (guest, _) = bound();
    let (endpoint, channel) = guest.attach();
    endpoint.set_ats(true);
    // A page fault is the device's business.
    let page = DmaError::Page { address: Iova(VA + 0x1000), access: Access::Read };
    assert_eq!(dma(&channel, with(1), VA + 0x1000, Op::Read), Err(page));
    assert_eq!(guest.vm.take_fault(), None);
    // What no page request can repair is not.
    assert!(dma(&channel, with(2), VA, Op::Read).is_err());
    let fault = guest.vm.take_fault().unwrap();
    assert_eq!(fault.reason, FaultReason::PasidEntryNotPresent);
    assert!(fault.translation_request);

    let table = PasidTable { ats: false, ..guest.pasid_table() };
    guest.set_context(DeviceContext::PasidTable(table));
    assert!(dma(&channel, with(1), VA, Op::Read).is_err());
    assert_eq!(guest.vm.take_fault().map(|fault| fault.reason), Some(FaultReason::AtsDisabled));
    endpoint.set_ats(false);
    assert!(dma(&channel, with(1), VA, Op::Read).is_ok());
}

#[test]
fn the_interrupt_range() {
    const INTERRUPTS: u64 = 0xfee0_0000;
    let (mut guest, root) = bound();
    // Without PASID the address alone decides; with PASID it is an address like any other.
    guest.set_first(root, INTERRUPTS, 1, LEAF);
    let table = PasidTable { rid_pasid: pasid(1), ..guest.pasid_table() };
    guest.set_context(DeviceContext::PasidTable(table));
    passes(&guest, with(1), INTERRUPTS, Op::Read);
    for at in [INTERRUPTS, INTERRUPTS + 0xf_fff8] {
        refused(&guest, without(), at, Op::Write, FaultReason::InterruptAddress);
    }
    // Nothing maps onto it.
    guest.set_first(root, VA, 1, INTERRUPTS | PRESENT | WRITABLE | USER);
    refused(&guest, with(1), VA, Op::Write, FaultReason::InterruptAddress);
    guest.set_pasid(2, pass_through(DOMAIN));
    refused(&guest, with(2), INTERRUPTS + 8, Op::Write, FaultReason::InterruptAddress);
}

#[test]
fn windows_end_with_the_translation_and_at_their_limit() {
    let mut guest = Guest::new();
    let root = guest.table();
    guest.set_first(root, VA, 1, LEAF);
    let large = 0x40_0000;
    guest.set_first(root, large, 2, 0x20_0000 | PRESENT | WRITABLE | USER | LARGE);
    guest.set_pasid(1, first_stage(root, DOMAIN));
    let two = guest.identity_second(false);
    guest.set_pasid(2, nested(root, two, DOMAIN));
    let (_endpoint, channel) = guest.attach();
    let dma = channel.enter();
    // The second time from the IOTLB.
    for _ in 0..2 {
        let len =
            |number, at, len| dma.window(with(number), Iova(at), len, Access::Write).unwrap().len();
        assert_eq!(len(1, VA + 0xff0, 100), 16);
        assert_eq!(len(1, VA, 4096), 4096);
        assert_eq!(len(1, large, 1 << 21), WINDOW_LIMIT);
        assert_eq!(len(1, large + (2 << 20) - 24, 100), 24);
        assert_eq!(len(1, large + 0x3008, 1000), 1000);
        assert_eq!(len(2, large + 0x3008, 1 << 20), 0xff8, "the smaller page counts");
        assert_eq!(len(3, VA, 0), 0, "nothing to translate");
    }
}

#[test]
fn transfers_cross_pages_and_stop_at_the_first_hole() {
    let (mut guest, root) = bound();
    // Two pages in reverse order, then a hole.
    guest.set_first(root, VA + 0x1000, 1, (PAGE - 0x1000) | PRESENT | WRITABLE | USER);
    let (_endpoint, channel) = guest.attach();
    let dma = channel.enter();
    let bytes: Vec<u8> = (0..100u8).collect();
    dma.write(with(1), Iova(VA + 0xfc0), &bytes).unwrap();
    let mut tail = [0; 36];
    guest.memory.read(Gpa(PAGE - 0x1000), &mut tail).unwrap();
    assert_eq!(tail, bytes[64..]);
    let mut back = [0; 100];
    dma.read(with(1), Iova(VA + 0xfc0), &mut back).unwrap();
    assert_eq!(back, bytes[..]);

    let hole = Iova(VA + 0x2000);
    let result = dma.write(with(1), Iova(VA + 0x1ff0), &bytes);
    assert_eq!(result, Err(DmaError::Page { address: hole, access: Access::Write }));
    guest.memory.read(Gpa(PAGE - 16), &mut tail[..16]).unwrap();
    assert_eq!(tail[..16], bytes[..16], "up to the hole");

    // The end of the address space is no hole but an end.
    let top = dma.read(with(1), Iova(u64::MAX - 3), &mut back);
    assert!(top.is_err());
}

#[test]
fn scatter_gather() {
    let (guest, _) = bound();
    let (_endpoint, channel) = guest.attach();
    let dma = channel.enter();
    let pieces =
        [(0x10, 3), (0x100, 0), (0x80, 5)].map(|(at, len)| IoSlice { iova: Iova(VA + at), len });
    assert_eq!(dma.scatter(with(1), &pieces, b"abcdefghij"), Ok(8));
    let mut buf = [0; 5];
    guest.memory.read(Gpa(PAGE + 0x80), &mut buf).unwrap();
    assert_eq!(&buf, b"defgh");
    let mut all = [0; 8];
    assert_eq!(dma.gather(with(1), &pieces, &mut all), Ok(8));
    assert_eq!(&all, b"abcdefgh");
    let mut few = [0; 4];
    assert_eq!(dma.gather(with(1), &pieces, &mut few), Ok(4));
    assert_eq!(&few, b"abcd");
}

#[test]
fn atomics() {
    let (guest, _) = bound();
    let (_endpoint, channel) = guest.attach();
    let dma = channel.enter();
    let (at, word) = (Iova(VA + 8), Gpa(PAGE + 8));
    guest.memory.store_u64(word, 5).unwrap();
    assert_eq!(dma.compare_exchange_u64(with(1), at, 4, 9), Ok(Err(5)));
    assert_eq!(dma.compare_exchange_u64(with(1), at, 5, 9), Ok(Ok(5)));
    assert_eq!(dma.fetch_update_u64(with(1), at, |held| held * 2), Ok(9));
    assert_eq!(guest.memory.load_u64(word), Ok(18));
    let crooked = Iova(VA + 12);
    let refused = DmaError::Refused { address: crooked, access: Access::Write };
    assert_eq!(dma.compare_exchange_u64(with(1), crooked, 0, 0), Err(refused));
    assert_eq!(guest.vm.take_fault(), None, "the device's own mistake");
}

/// What was absent is found as soon as it is there, without an invalidation.
#[test]
fn absence_is_not_cached() {
    let (mut guest, root) = bound();
    let (_endpoint, channel) = guest.attach();
    assert!(dma(&channel, with(1), VA + 0x1000, Op::Read).is_err());
    guest.set_first(root, VA + 0x1000, 1, LEAF);
    assert!(dma(&channel, with(1), VA + 0x1000, Op::Read).is_ok());
    assert!(dma(&channel, with(2), VA, Op::Read).is_err());
    guest.set_pasid(2, first_stage(root, DOMAIN));
    assert!(dma(&channel, with(2), VA, Op::Read).is_ok());
    // Nor is a missing right, once it is granted.
    guest.set_first(root, VA, 1, PAGE | PRESENT | USER);
    guest.settle(Invalidation::IotlbAll);
    assert!(dma(&channel, with(1), VA, Op::Read).is_ok());
    assert!(dma(&channel, with(1), VA, Op::Write).is_err());
    guest.set_first(root, VA, 1, LEAF);
    assert!(dma(&channel, with(1), VA, Op::Write).is_ok());
}

#[test]
fn read_only_memory() {
    use std::sync::Arc;
    let (mut guest, root) = bound();
    let rom = Arc::new(mem::HeapMemory::new(0x1000).unwrap());
    let mut segments = guest.memory.segments().to_vec();
    let range = mem::Range::<Gpa>::new(Gpa(NOWHERE), 0x1000).unwrap();
    segments.push(mem::Segment { range, backing: rom, offset: 0, access: Access::Read });
    let ticket = guest.vm.set_memory(mem::MemoryMap::new(segments).unwrap());
    assert!(guest.vm.is_complete(ticket));
    guest.set_first(root, VA, 1, NOWHERE | PRESENT | WRITABLE | USER);
    passes(&guest, with(1), VA, Op::Read);
    let denied = FaultReason::Permission { stage: Stage::Two, user: false };
    refused(&guest, with(1), VA, Op::Write, of_no_memory(FaultReason::NoMemory, denied));
    // A table in it can be read, but not marked.
    guest.set_first(root, VA, 2, NOWHERE | PRESENT | WRITABLE | USER);
    let absent = FaultReason::NotPresent { stage: Stage::One, level: 1 };
    refused(&guest, with(1), VA, Op::Read, absent);
}
