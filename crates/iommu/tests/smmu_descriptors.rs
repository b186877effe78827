//! What an SMMUv3's context descriptors say: where they lie, which tables they name, and what becomes
//! of flags, privilege, global pages and grants.
#![cfg(not(loom))]

mod common;

use common::smmu::*;
use common::*;
use iommu::{
    AddressSpace, DefaultSubstream, DescriptorForm, DescriptorTable, DeviceContext, DomainId,
    FaultReason, Invalidation, PasidRange, SmmuInvalidation, SoftwareHost, Stage, StreamContext,
    StreamTranslation as Stream, Vm, VmConfig,
};
use mem::{Gpa, GuestMemory, Iova};

/// Where the page in question is memory.
const DATA: u64 = 0x0030_0000;
/// Where devices see it.
const IOVA: u64 = 0x12_3456_7000;

#[test]
fn tables_of_descriptors() {
    let mut guest = Guest::new();
    let (_endpoint, channel) = guest.attach();
    let (root, first) = (guest.table(), guest.table());
    guest.set_one(root, IOVA, 1, DATA | PAGE);
    // Room for a leaf of 64 KiB, which is where no bit below 16 is set.
    const LEAF: u64 = 0x10_0000;
    let set_leaf = |guest: &Guest, form, number: u64, substream: u64| {
        let (index, inside) = match form {
            DescriptorForm::Leaves4K => (number / 64, number % 64),
            _ => (number / 1024, number % 1024),
        };
        guest.store(Gpa(first.0 + 8 * index), &[LEAF | 1]);
        guest.set_descriptor(Gpa(LEAF), inside, descriptor(root, asid(substream as u16)));
    };
    for (form, number) in
        [(DescriptorForm::Leaves4K, 3 * 64 + 63), (DescriptorForm::Leaves64K, 2 * 1024 + 1023)]
    {
        guest.memory.write(first, &[0; 4096]).unwrap();
        guest.memory.write(Gpa(LEAF), &[0; 0x1_0000]).unwrap();
        set_leaf(&guest, form, number, 1);
        let table =
            DescriptorTable { root: first, bits: 12, form, default: DefaultSubstream::Terminate };
        guest.set_stream(Stream::StageOne(table));
        let reason = |number: u64| reason_of(&guest, &channel, with(number as u32), IOVA);
        assert_eq!(reason(number), None);
        // The neighbour in the leaf is not valid, and the next leaf is not there.
        assert_eq!(reason(number - 1), Some(FaultReason::PasidEntryNotPresent));
        assert_eq!(reason(number + 1), Some(FaultReason::PasidDirectoryNotPresent));
        assert_eq!(reason(1 << 12), Some(FaultReason::PasidRange));
        // Where there is no memory.
        guest.store(first, &[NOWHERE | 1]);
        assert_eq!(reason(0), Some(FaultReason::PasidEntryAccess));
        let bad = DescriptorTable { root: Gpa(NOWHERE), ..table };
        guest.set_stream(Stream::StageOne(bad));
        assert_eq!(reason(number), Some(FaultReason::PasidDirectoryAccess));
        let linear = DescriptorTable { form: DescriptorForm::Linear, ..bad };
        guest.set_stream(Stream::StageOne(linear));
        assert_eq!(reason(number), Some(FaultReason::PasidEntryAccess));
        let top = DescriptorTable { root: Gpa(u64::MAX - 0x3f), ..linear };
        guest.set_stream(Stream::StageOne(top));
        assert_eq!(reason(number), Some(FaultReason::PasidEntryAccess));
    }
}

/// A descriptor that cannot be used is a fault of its own.
#[test]
fn bad_descriptors() {
    let mut guest = Guest::new();
    let (_endpoint, channel) = guest.attach();
    let (root, table) = (guest.table(), guest.table());
    guest.set_one(root, IOVA, 1, DATA | PAGE);
    guest.set_stream(Stream::StageOne(linear(table, 4, DefaultSubstream::Terminate)));
    let good = descriptor(root, 0);
    // V, AA64; ENDI, S, T0SZ 48, TTB0 beyond IPS.
    for (word, bits) in
        [(0, 1 << 31), (0, 1 << 41), (0, 1 << 15), (0, 1 << 44), (0, 32), (1, 1 << 44)]
    {
        let mut words = good;
        words[word] ^= bits;
        guest.set_descriptor(table, 5, words);
        let (_, fault) = one(&guest, &channel, with(5), IOVA, Op::Read);
        assert_eq!(fault.map(|(_, event)| event), Some(0x0a), "{word} {bits:#x}");
    }
    // Nothing of that was cached.
    guest.set_descriptor(table, 5, good);
    assert_eq!(reason_of(&guest, &channel, with(5), IOVA), None);
}

#[test]
fn both_halves_and_top_bytes() {
    let mut guest = Guest::new();
    let (_endpoint, channel) = guest.attach();
    let (low, high, table) = (guest.table(), guest.table(), guest.table());
    const LOW: u64 = 0x1234_5000;
    const HIGH: u64 = 0xffff_8000_1234_5000;
    guest.set_one(low, LOW, 1, DATA | PAGE);
    guest.set_one(high, HIGH & ((1 << 48) - 1), 1, (DATA + 0x1000) | PAGE);
    guest.memory.store_u64(Gpa(DATA), 1).unwrap();
    guest.memory.store_u64(Gpa(DATA + 0x1000), 2).unwrap();
    // T1SZ 16, TG1 2 (4 KiB), EPD1 off.
    let both = (DESCRIPTOR & !(1 << 30)) | 16 << 16 | 2 << 22;
    let (tbi0, tbi1, epd0) = (1 << 38, 1 << 39, 1 << 14);
    guest.set_stream(Stream::StageOne(linear(table, 4, DefaultSubstream::Terminate)));
    let at = |flags: u64, address: u64| {
        guest.set_descriptor(table, 1, [both | flags, low.0, high.0, 0, 0, 0, 0, 0]);
        let what = SmmuInvalidation::Descriptor { requester: DEVICE, substream: pasid(1) };
        guest.settle(Invalidation::Smmuv3(what));
        let (result, fault) = one(&guest, &channel, with(1), address, Op::Read);
        assert_eq!(result.is_err(), fault.is_some());
        result.map_err(|_| fault.unwrap())
    };
    // A translation fault at the start level.
    let nowhere = Err((FaultReason::NotPresent { stage: Stage::One, level: 4 }, 0x10));
    assert_eq!((at(0, LOW), at(0, HIGH)), (Ok(1), Ok(2)));
    assert_eq!(at(0, LOW | 1 << 48), nowhere);
    assert_eq!(at(0, LOW | 0x5a << 56), nowhere);
    assert_eq!(at(0, HIGH & !(1 << 60)), nowhere);
    assert_eq!(at(tbi0, LOW | 0x5a << 56), Ok(1));
    assert_eq!(at(tbi1, LOW | 0x5a << 56), nowhere);
    assert_eq!(at(tbi1, HIGH & !(1 << 60)), Ok(2));
    assert_eq!(at(tbi0, LOW | 1 << 48), nowhere);
    let off = Err((FaultReason::NotPresent { stage: Stage::One, level: 4 }, 0x10));
    assert_eq!((at(epd0, LOW), at(epd0, HIGH)), (off, Ok(2)));
}

/// HA and HD: flags are set where they are asked for, and only by what happens.
#[test]
fn access_flags_and_dirty_state() {
    let (ha, hd, affd) = (1 << 43, 1 << 42, 1 << 35);
    let clean = DATA | PAGE & !AF | READ_ONLY | DBM;
    for (flags, op, passes, left) in [
        (0, Op::Read, false, clean),
        (affd, Op::Read, true, clean),
        (affd, Op::Write, false, clean),
        (ha, Op::Read, true, clean | AF),
        (ha, Op::Write, false, clean),
        (ha | hd, Op::Read, true, clean | AF),
        (ha | hd, Op::Write, true, (clean | AF) & !READ_ONLY),
    ] {
        let mut guest = Guest::new();
        let (_endpoint, channel) = guest.attach();
        let (root, table) = (guest.table(), guest.table());
        let entry = guest.set_one(root, IOVA, 1, clean);
        guest.set_descriptor(table, 0, descriptor(root, flags));
        guest.set_stream(Stream::StageOne(linear(table, 0, DefaultSubstream::Zero)));
        let result = dma(&channel, without(), IOVA, op);
        assert_eq!(result.is_ok(), passes, "{flags:#x} {op:?}");
        assert_eq!(guest.memory.load_u64(entry).unwrap(), left, "{flags:#x} {op:?}");
    }
    // A read that is cached does not save the first write its mark.
    let mut guest = Guest::new();
    let (_endpoint, channel) = guest.attach();
    let (root, table) = (guest.table(), guest.table());
    let entry = guest.set_one(root, IOVA, 1, clean);
    guest.set_descriptor(table, 0, descriptor(root, ha | hd));
    guest.set_stream(Stream::StageOne(linear(table, 0, DefaultSubstream::Zero)));
    for op in [Op::Read, Op::Write] {
        dma(&channel, without(), IOVA, op).unwrap();
    }
    assert_eq!(guest.memory.load_u64(entry).unwrap(), (clean | AF) & !READ_ONLY);
}

/// Pages that are not open to requests without privilege, and who has it.
#[test]
fn privilege() {
    let mut guest = Guest::new();
    let (_endpoint, channel) = guest.attach();
    let (root, table) = (guest.table(), guest.table());
    guest.set_one(root, IOVA, 1, DATA | PAGE & !EL0);
    guest.set_descriptor(table, 0, descriptor(root, 0));
    guest.set_descriptor(table, 1, descriptor(root, 0));
    let translation = Stream::StageOne(linear(table, 4, DefaultSubstream::Zero));
    let privileged = AddressSpace { privileged: true, ..with(1) };
    // Without a substream, a request cannot say so.
    let unheard = AddressSpace { privileged: true, ..without() };
    for (privilege, passes) in
        [(None, [false, false, true, false]), (Some(true), [true; 4]), (Some(false), [false; 4])]
    {
        let DeviceContext::Smmuv3(stream) = stream(translation) else { unreachable!() };
        guest.set_context(DeviceContext::Smmuv3(StreamContext { privilege, ..stream }));
        for (space, passes) in [without(), with(1), privileged, unheard].into_iter().zip(passes) {
            let (_, fault) = one(&guest, &channel, space, IOVA, Op::Read);
            let denied = FaultReason::Permission { stage: Stage::One, user: true };
            assert_eq!(fault.map(|(reason, _)| reason), (!passes).then_some(denied));
        }
    }
}

/// A global page serves every address space of the guest, until it is invalidated for any.
#[test]
fn global_pages() {
    let mut guest = Guest::new();
    let (_endpoint, channel) = guest.attach();
    let (root, empty, table) = (guest.table(), guest.table(), guest.table());
    guest.set_one(root, IOVA, 1, DATA | PAGE & !NOT_GLOBAL);
    guest.set_descriptor(table, 1, descriptor(root, asid(1)));
    guest.set_descriptor(table, 2, descriptor(empty, asid(2)));
    guest.set_stream(Stream::StageOne(linear(table, 4, DefaultSubstream::Terminate)));
    let passes = |number| dma(&channel, with(number), IOVA, Op::Read).is_ok();
    assert!(!passes(2), "not cached yet");
    assert!(passes(1) && passes(2));
    let asid = |number| SmmuInvalidation::StageOneAsid { vmid: VMID, asid: iommu::Asid(number) };
    guest.settle(Invalidation::Smmuv3(asid(1)));
    assert!(passes(2), "an address space is not what it belongs to");
    let pages = iommu::PageRange {
        range: mem::Range::<Iova>::new(Iova(IOVA), 4096).unwrap(),
        leaf_only: true,
    };
    let page = SmmuInvalidation::StageOnePages { vmid: VMID, asid: Some(iommu::Asid(2)), pages };
    guest.settle(Invalidation::Smmuv3(page));
    assert!(!passes(2));
}

/// Where grants are enforced, a substream that was not granted has no descriptor; one that is taken
/// back leaves nothing behind.
#[test]
fn grants() {
    let config = VmConfig { enforce_grants: true, ..VmConfig::named("grants") };
    let mut guest = Guest::with(&SoftwareHost::new(), config);
    let (_endpoint, channel) = guest.attach();
    let (root, table) = (guest.table(), guest.table());
    guest.set_one(root, IOVA, 1, DATA | PAGE & !NOT_GLOBAL);
    for substream in 0..16 {
        guest.set_descriptor(table, substream, descriptor(root, asid(substream as u16)));
    }
    guest.set_stream(Stream::StageOne(linear(table, 4, DefaultSubstream::Zero)));
    let reason = |space| reason_of(&guest, &channel, space, IOVA);
    let absent = Some(FaultReason::PasidEntryNotPresent);
    // Not even while the page itself is cached for every substream.
    assert_eq!(reason(without()), None);
    assert_eq!(reason(with(5)), absent);
    let granted = guest.vm.alloc_pasid(PasidRange::new(pasid(5), pasid(5)).unwrap()).unwrap();
    assert_eq!(reason(with(5)), None);
    assert_eq!(reason(with(6)), absent);
    assert_eq!(guest.vm.counters().ungranted, 2);
    let cached = guest.vm.cached_pasids();
    let domain = DomainId(VMID.0);
    assert_eq!(cached.into_iter().collect::<Vec<_>>(), [(pasid(0), domain), (pasid(5), domain)]);
    guest.vm.free_pasid(granted).unwrap();
    assert_eq!(reason(with(5)), absent);
    assert_eq!(guest.vm.cached_pasids().len(), 1);
}
