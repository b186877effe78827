//! What a host that owns the tables does with the objects of a VM: devices are translated by what is
//! attached, and by nothing else.
#![cfg(not(loom))]

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::hosted::*;
use common::*;
use iommu::{
    AddressSpace, AllocPasidError, FaultReason, Hardware, HwptFlags, HwptId, HwptParent,
    HwptRequest, InvalidField, Numbering, ObjectError, PasidRange, SecondStageLevels, SoftwareHost,
    StageOneInvalidation, StageOneTable, Vm, VtdPasidTable, VtdStageOne, VtdStageOneFlags,
};
use mem::{Gpa, GuestMemory, Iova, Range};
use pci::RequesterId;

const BLOCKED: Option<FaultReason> = Some(FaultReason::PasidEntryNotPresent);

#[test]
fn a_pasid_is_translated_by_what_is_attached() {
    let mut hosted = Hosted::new();
    let (one, two) = (hosted.space(0x10_0000, 11), hosted.space(0x11_0000, 22));
    hosted.grant(5);
    hosted.grant(6);
    hosted.attach(5, one);
    hosted.attach(6, two);
    assert_eq!(hosted.read(5), Ok(11));
    assert_eq!(hosted.read(6), Ok(22));
    // The source of contexts says nothing any more: what has nothing attached is blocked.
    assert!(hosted.read(7).is_err());
    assert_eq!(hosted.reason(), BLOCKED);
    assert!(dma(&hosted.channel, without(), 0x10_0000, Op::Read).is_err());
    assert_eq!(hosted.reason(), BLOCKED);
    // A fault names the guest's PASID.
    assert!(dma(&hosted.channel, with(5), VA + 0x1000, Op::Read).is_err());
    let fault = hosted.guest.vm.take_fault().unwrap();
    assert_eq!((fault.pasid, fault.address), (Some(pasid(5)), Iova(VA + 0x1000)));
    hosted.end();
}

#[test]
fn requests_without_pasid_have_an_attachment_of_their_own() {
    let mut hosted = Hosted::new();
    let vm = hosted.guest.vm.clone();
    vm.attach_hwpt(DEVICE, None, hosted.parent).unwrap();
    hosted.guest.memory.store_u64(Gpa(0x10_0000), 77).unwrap();
    assert_eq!(dma(&hosted.channel, without(), 0x10_0000, Op::Read), Ok(77));
    let space = hosted.space(0x11_0000, 88);
    assert_eq!(vm.attach_hwpt(DEVICE, None, space), Err(ObjectError::Busy));
    wait(&vm, vm.replace_hwpt(DEVICE, None, space).unwrap());
    assert_eq!(dma(&hosted.channel, without(), VA, Op::Read), Ok(88));
    assert!(dma(&hosted.channel, without(), 0x10_0000, Op::Read).is_err());
    wait(&vm, vm.detach_hwpt(DEVICE, None).unwrap());
    assert!(dma(&hosted.channel, without(), VA, Op::Read).is_err());
    assert_eq!(hosted.reason(), BLOCKED);
    assert_eq!(vm.detach_hwpt(DEVICE, None).unwrap_err(), ObjectError::NotAttached);
    hosted.end();
}

#[test]
fn only_a_granted_pasid_can_be_attached() {
    let mut hosted = Hosted::new();
    let space = hosted.space(0x10_0000, 11);
    let vm = &hosted.guest.vm;
    let attach = |number| vm.attach_hwpt(DEVICE, Some(guest(number)), space);
    assert_eq!(attach(5), Err(ObjectError::NotGranted(guest(5))));
    assert_eq!(attach(0), Err(ObjectError::NotGranted(guest(0))));
    hosted.grant(5);
    assert_eq!(attach(5), Ok(()));
    assert_eq!(attach(5), Err(ObjectError::Busy));
    vm.free_pasid(guest(5)).unwrap();
    assert_eq!(attach(5), Err(ObjectError::NotGranted(guest(5))));
    hosted.end();
}

#[test]
fn two_vms_with_the_same_pasid_never_meet() {
    let host = SoftwareHost::new();
    let mut one = Hosted::on(&host, Numbering::Private);
    let mut two = Hosted::on(&host, Numbering::Private);
    for (hosted, word) in [(&mut one, 11), (&mut two, 22)] {
        let space = hosted.space(0x10_0000, word);
        hosted.grant(5);
        hosted.attach(5, space);
    }
    assert_eq!((one.read(5), two.read(5)), (Ok(11), Ok(22)));
    let vm = one.guest.vm.clone();
    wait(&vm, vm.detach_hwpt(DEVICE, Some(guest(5))).unwrap());
    assert!(one.read(5).is_err());
    assert_eq!(two.read(5), Ok(22));
    one.end_one();
    two.end();
}

#[test]
fn what_is_detached_is_blocked_and_forgotten() {
    let mut hosted = Hosted::new();
    let space = hosted.space(0x10_0000, 11);
    let five = hosted.grant(5);
    hosted.attach(5, space);
    assert_eq!(hosted.read(5), Ok(11));
    let vm = hosted.guest.vm.clone();
    // An access in flight keeps the ticket from being complete, and the PASID from being free.
    let access = hosted.channel.enter();
    let ticket = vm.detach_hwpt(DEVICE, Some(five)).unwrap();
    assert!(!vm.is_complete(ticket));
    drop(access);
    wait(&vm, ticket);
    assert!(hosted.read(5).is_err());
    assert_eq!(hosted.reason(), BLOCKED);
    // It can be attached again.
    hosted.attach(5, space);
    assert_eq!(hosted.read(5), Ok(11));
    hosted.end();
}

#[test]
fn a_freed_pasid_is_taken_down_and_its_number_waits_for_that() {
    for numbering in [Numbering::Identity, Numbering::Private] {
        let mut hosted = Hosted::on(&SoftwareHost::new(), numbering);
        let space = hosted.space(0x10_0000, 11);
        hosted.grant(5);
        hosted.attach(5, space);
        assert_eq!(hosted.read(5), Ok(11));
        let vm = hosted.guest.vm.clone();
        let report = hosted.guest.host.pasid_report();
        assert_eq!(report.vms[0].entries[0].holders, ["guest", "iotlb", "iommu"]);
        let access = hosted.channel.enter();
        vm.free_pasid(guest(5)).unwrap();
        let report = hosted.guest.host.pasid_report();
        assert_eq!(report.vms[0].entries[0].holders, ["iotlb", "iommu"]);
        let range = PasidRange::new(pasid(5), pasid(5)).unwrap();
        assert_eq!(vm.alloc_pasid(range), Err(AllocPasidError::NoneAvailable));
        drop(access);
        assert!(hosted.read(5).is_err());
        // Granted anew it is another PASID: nothing is attached to it.
        hosted.grant(5);
        assert!(hosted.read(5).is_err());
        assert_eq!(vm.detach_hwpt(DEVICE, Some(guest(5))), Err(ObjectError::NotAttached));
        vm.destroy(space.into()).unwrap();
        hosted.end();
    }
}

#[test]
fn a_reset_gives_everything_back() {
    let mut hosted = Hosted::new();
    let space = hosted.space(0x10_0000, 11);
    for number in 1..=100 {
        hosted.grant(number);
        hosted.attach(number, space);
    }
    let vm = hosted.guest.vm.clone();
    wait(&vm, vm.release_pasids());
    assert_eq!((vm.pasid_usage().live, vm.pasid_usage().parked), (0, 0));
    vm.destroy(space.into()).unwrap();
    hosted.end();
}

#[test]
fn a_device_that_goes_takes_its_attachments_along() {
    let mut hosted = Hosted::new();
    let space = hosted.space(0x10_0000, 11);
    hosted.grant(5);
    hosted.attach(5, space);
    let Hosted { guest: of, endpoint, channel, parent } = hosted;
    wait(&of.vm, endpoint.detach());
    let holders = of.host.pasid_report().vms[0].entries[0].holders.clone();
    assert_eq!(holders, ["guest", "iotlb"]);
    assert_eq!(
        of.vm.attach_hwpt(DEVICE, Some(guest(5)), space),
        Err(ObjectError::NoDevice(DEVICE))
    );
    of.vm.destroy(space.into()).unwrap();
    // The same requester again begins anew: it is translated by the source of contexts.
    let (endpoint, channel_two) = of.attach();
    assert!(dma(&channel_two, with(5), VA, Op::Read).is_err());
    drop(channel);
    Hosted { guest: of, endpoint, channel: channel_two, parent }.end();
}

#[test]
fn objects_that_are_used_stay() {
    let mut hosted = Hosted::new();
    let vm = hosted.guest.vm.clone();
    let space = hosted.space(0x10_0000, 11);
    let parent = hosted.parent;
    assert_eq!(vm.destroy(parent.into()), Err(ObjectError::Busy), "a table stands on it");
    hosted.grant(5);
    hosted.attach(5, space);
    assert_eq!(vm.destroy(space.into()), Err(ObjectError::Busy), "it is attached");
    wait(&vm, vm.detach_hwpt(DEVICE, Some(guest(5))).unwrap());
    vm.destroy(space.into()).unwrap();
    assert_eq!(vm.destroy(space.into()), Err(ObjectError::NoObject(space.into())));
    vm.destroy(parent.into()).unwrap();
    let ioas = vm.ioas().unwrap();
    assert_eq!(vm.destroy(ioas.into()), Err(ObjectError::Busy));
    hosted.end();
}

#[test]
fn a_guests_stage_one_is_checked() {
    let hosted = Hosted::new();
    let good =
        VtdStageOne { flags: VtdStageOneFlags::empty(), root: Gpa(0x1000), address_width: 48 };
    let alloc = |table| hosted.guest.vm.alloc_hwpt(&hosted.request(table));
    assert!(alloc(good).is_ok());
    assert!(alloc(VtdStageOne { address_width: 57, ..good }).is_ok());
    let invalid = |field| Err(ObjectError::Invalid(field));
    for address_width in [0, 39, 47, 49, 56, 64, 255] {
        let table = VtdStageOne { address_width, ..good };
        assert_eq!(alloc(table), invalid(InvalidField::AddressWidth));
    }
    for root in [Gpa(0x1008), Gpa(1 << 52), Gpa(u64::MAX)] {
        assert_eq!(alloc(VtdStageOne { root, ..good }), invalid(InvalidField::Address));
    }
    for flags in [VtdStageOneFlags::EAFE.bits(), 8, 1 << 63] {
        let flags = VtdStageOneFlags::from_bits_retain(flags);
        assert_eq!(alloc(VtdStageOne { flags, ..good }), invalid(InvalidField::Flags));
    }
    let request = hosted.request(good);
    let alloc = |request| hosted.guest.vm.alloc_hwpt(&request);
    assert_eq!(alloc(HwptRequest { data: None, ..request }), invalid(InvalidField::Data));
    let smmu = Some(StageOneTable::Smmuv3([1, 0]));
    assert_eq!(alloc(HwptRequest { data: smmu, ..request }), Err(ObjectError::WrongModel));
    let elsewhere = RequesterId::from_bits(0x99);
    let request_elsewhere = HwptRequest { device: elsewhere, ..request };
    assert_eq!(alloc(request_elsewhere), Err(ObjectError::NoDevice(elsewhere)));
    let nothing = HwptParent::Hwpt(HwptId(999));
    let unknown = HwptRequest { parent: nothing, ..request };
    assert_eq!(alloc(unknown), Err(ObjectError::NoObject(HwptId(999).into())));
    let on_nested = HwptParent::Hwpt(alloc(request).unwrap());
    let twice = HwptRequest { parent: on_nested, ..request };
    assert_eq!(alloc(twice), invalid(InvalidField::Parent));
    hosted.end();
}

#[test]
fn hardware_that_cannot_do_it_refuses() {
    let Hardware::Vtd(caps) = Hardware::VTD else { panic!("VT-d") };
    let without =
        |caps| Hosted::on(&SoftwareHost::with_hardware(Hardware::Vtd(caps)), Numbering::Identity);
    let good =
        VtdStageOne { flags: VtdStageOneFlags::empty(), root: Gpa(0x1000), address_width: 48 };
    let alloc = |hosted: &Hosted, table| hosted.guest.vm.alloc_hwpt(&hosted.request(table));
    let hosted = without(iommu::TableCaps { nested: false, ..caps });
    assert_eq!(alloc(&hosted, good), Err(ObjectError::NotSupported));
    let hosted = without(iommu::TableCaps { first_stage_5_level: false, ..caps });
    let wide = VtdStageOne { address_width: 57, ..good };
    assert_eq!(alloc(&hosted, wide), Err(ObjectError::Invalid(InvalidField::AddressWidth)));
    let hosted = without(iommu::TableCaps { supervisor: false, ..caps });
    let supervisor = VtdStageOne { flags: VtdStageOneFlags::SRE, ..good };
    assert_eq!(alloc(&hosted, supervisor), Err(ObjectError::Invalid(InvalidField::Flags)));
    let hosted = without(iommu::TableCaps { address_bits: 39, ..caps });
    // With a stage 2, it is what that translates.
    let far = VtdStageOne { root: Gpa(of_no_memory(1 << 39, 1 << 48)), ..good };
    assert_eq!(alloc(&hosted, far), Err(ObjectError::Invalid(InvalidField::Address)));
}

#[test]
fn tables_for_pasids_and_tables_for_devices_do_not_mix() {
    let mut hosted = Hosted::new();
    let vm = hosted.guest.vm.clone();
    let space = hosted.space(0x10_0000, 11);
    hosted.grant(5);
    let flags = Err(ObjectError::Invalid(InvalidField::Flags));
    let parent = HwptParent::Ioas(vm.ioas().unwrap());
    let plain =
        HwptRequest { device: DEVICE, parent, flags: HwptFlags::empty(), data: None, fault: None };
    let plain = vm.alloc_hwpt(&plain).unwrap();
    assert_eq!(vm.attach_hwpt(DEVICE, Some(guest(5)), plain), flags);
    vm.attach_hwpt(DEVICE, None, plain).unwrap();
    assert_eq!(vm.attach_hwpt(DEVICE, Some(guest(5)), space), flags);
    wait(&vm, vm.replace_hwpt(DEVICE, None, hosted.parent).unwrap());
    hosted.attach(5, space);
    assert_eq!(vm.replace_hwpt(DEVICE, None, plain).map(drop), flags);
    hosted.end();
}

#[test]
fn a_guests_whole_pasid_table_can_be_attached() {
    let mut hosted = Hosted::new();
    let vm = hosted.guest.vm.clone();
    let root = hosted.root(0x10_0000, 11);
    hosted.guest.set_pasid(0, pass_through(DOMAIN));
    hosted.guest.set_pasid(9, first_stage(root, DOMAIN));
    let table = VtdPasidTable { directory: hosted.guest.directory, pasid_bits: 10 };
    let request = HwptRequest {
        device: DEVICE,
        parent: HwptParent::Hwpt(hosted.parent),
        flags: HwptFlags::empty(),
        data: Some(StageOneTable::VtdPasidTable(table)),
        fault: None,
    };
    let whole = vm.alloc_hwpt(&request).unwrap();
    hosted.grant(5);
    let of_pasid = Err(ObjectError::Invalid(InvalidField::Pasid));
    assert_eq!(vm.attach_hwpt(DEVICE, Some(guest(5)), whole), of_pasid);
    vm.attach_hwpt(DEVICE, None, whole).unwrap();
    assert_eq!(hosted.read(9), Ok(11), "no grant is needed: the table is the guest's own");
    assert_eq!(dma(&hosted.channel, without(), 0x10_0000, Op::Read), Ok(11));
    wait(&vm, vm.replace_hwpt(DEVICE, None, hosted.parent).unwrap());
    assert!(hosted.read(9).is_err());
    assert_eq!(dma(&hosted.channel, without(), 0x10_0000, Op::Read), Ok(11));
    wait(&vm, vm.replace_hwpt(DEVICE, None, whole).unwrap());
    assert_eq!(hosted.read(9), Ok(11));
    wait(&vm, vm.detach_hwpt(DEVICE, None).unwrap());
    assert!(hosted.read(9).is_err());
    assert!(dma(&hosted.channel, without(), 0x10_0000, Op::Read).is_err());
    hosted.end();
}

#[test]
fn an_invalidation_forgets_what_was_made_of_the_table() {
    let mut hosted = Hosted::new();
    let vm = hosted.guest.vm.clone();
    let root = hosted.root(0x10_0000, 11);
    let space = hosted.nested(root).unwrap();
    hosted.guest.memory.store_u64(Gpa(0x11_0000), 22).unwrap();
    hosted.grant(5);
    hosted.attach(5, space);
    vm.attach_hwpt(DEVICE, None, space).unwrap();
    let range = Range::<Iova>::new(Iova(VA), 0x1000).unwrap();
    let pages = StageOneInvalidation::Pages { range, leaf_only: true };
    let mut at = 0x10_0000;
    for what in [StageOneInvalidation::All, pages, StageOneInvalidation::Entry] {
        let word = if at == 0x10_0000 { 11 } else { 22 };
        let both =
            |hosted: &Hosted| (hosted.read(5), dma(&hosted.channel, without(), VA, Op::Read));
        assert_eq!(both(&hosted), (Ok(word), Ok(word)));
        at ^= 0x1_0000;
        hosted.guest.set_first(root, VA, 1, at | PRESENT | WRITABLE | USER);
        assert_eq!(both(&hosted), (Ok(word), Ok(word)), "cached");
        wait(&vm, vm.invalidate_hwpt(space, &[what]).unwrap());
        assert_eq!(both(&hosted), (Ok(33 - word), Ok(33 - word)));
    }
    // It stops at the first bad one.
    let bad = Range { start: Iova(VA + 1), last: Iova(VA + 0xfff) };
    let bad = StageOneInvalidation::Pages { range: bad, leaf_only: false };
    let stopped = vm.invalidate_hwpt(space, &[StageOneInvalidation::All, bad, pages]);
    assert_eq!(stopped.unwrap_err(), (1, ObjectError::Invalid(InvalidField::Range)));
    let unsupported = vm.invalidate_hwpt(hosted.parent, &[pages]).unwrap_err();
    assert_eq!(unsupported, (0, ObjectError::NotSupported));
    hosted.end();
}

#[test]
fn stage_two_stands_under_everything_that_is_attached() {
    use SecondStageLevels::{Five, Four, Three};
    for levels in [Three, Four, Five] {
        let mut hosted = Hosted::shuffled(levels);
        let vm = hosted.guest.vm.clone();
        let space = hosted.space(0x10_0000, 11);
        hosted.grant(5);
        hosted.attach(5, space);
        vm.attach_hwpt(DEVICE, None, hosted.parent).unwrap();
        assert_eq!(hosted.read(5), Ok(11));
        assert_eq!(dma(&hosted.channel, without(), 0x10_0000, Op::Read), Ok(11));
        assert!(vm.counters().stage_two_walks > 0);
        // Memory comes and goes under what is attached.
        let all = Range::<Gpa>::new(Gpa(0x10_0000), 0x1000).unwrap();
        wait(&vm, vm.clear_stage_two(all).unwrap());
        assert!(hosted.read(5).is_err());
        let fault = vm.take_fault().unwrap();
        assert_eq!((fault.pasid, fault.is_hosts()), (Some(pasid(5)), true));
        assert!(dma(&hosted.channel, without(), 0x10_0000, Op::Read).is_err());
        assert!(vm.take_fault().unwrap().is_hosts());
        wait(&vm, vm.restore_stage_two(all).unwrap());
        assert_eq!(hosted.read(5), Ok(11));
        wait(&vm, vm.replace_hwpt(DEVICE, Some(guest(5)), hosted.parent).unwrap());
        assert_eq!(dma(&hosted.channel, with(5), 0x10_0000, Op::Read), Ok(11));
        // A root beyond what stage 2 translates is refused.
        let bits = 12 + 9 * levels as u32;
        let beyond = hosted.nested(Gpa(1 << bits)).unwrap_err();
        assert_eq!(beyond, ObjectError::Invalid(InvalidField::Address));
        let host = hosted.guest.host.clone();
        hosted.end();
        assert_eq!(host.table_bytes(), 0);
    }
}

/// Has `change` called with 0, 1 and so on while another thread reads: whatever it is given instead,
/// that finds the old or the new. Ends when it has found each often.
fn change_while_reading(hosted: &Hosted, space: AddressSpace, change: impl Fn(usize)) {
    const OFTEN: usize = 200;
    let (channel, stop) = (hosted.endpoint.channel(), AtomicBool::new(false));
    let seen = [AtomicUsize::new(0), AtomicUsize::new(0)];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let which = match dma(&channel, space, LOW, Op::Read) {
                    Ok(11) => 0,
                    Ok(22) => 1,
                    other => panic!("{other:?}"),
                };
                seen[which].fetch_add(1, Ordering::Relaxed);
            }
        });
        let often = |seen: &AtomicUsize| seen.load(Ordering::Relaxed) >= OFTEN;
        let mut rounds = 0..1_000_000;
        while rounds.start % 8 != 0 || !seen.iter().all(often) {
            change(rounds.next().expect("the reader stopped, or finds but one"));
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_table_is_replaced_without_a_request_being_refused() {
    for shuffled in [false, true] {
        let mut hosted = match shuffled {
            true => Hosted::shuffled(SecondStageLevels::Four),
            false => Hosted::new(),
        };
        // As by a paging table, so by one that maps that address elsewhere.
        hosted.guest.memory.store_u64(Gpa(LOW), 22).unwrap();
        let one = hosted.low_space(0x10_0000, 11);
        let two = hosted.low_space(0x11_0000, 22);
        hosted.grant(5);
        hosted.attach(5, one);
        let vm = &hosted.guest.vm;
        vm.attach_hwpt(DEVICE, None, one).unwrap();
        for (space, pasid) in [(with(5), Some(guest(5))), (without(), None)] {
            change_while_reading(&hosted, space, |round| {
                let to = [two, hosted.parent, two, one][round % 4];
                let ticket = vm.replace_hwpt(DEVICE, pasid, to).unwrap();
                if round % 16 < 4 {
                    wait(vm, ticket);
                    let expected = if to == one { 11 } else { 22 };
                    assert_eq!(dma(&hosted.channel, space, LOW, Op::Read), Ok(expected));
                }
            });
        }
        hosted.end();
    }
}

#[test]
fn a_whole_table_and_one_for_each_pasid_take_turns_without_a_request_being_refused() {
    let mut hosted = Hosted::new();
    let vm = hosted.guest.vm.clone();
    let one = hosted.low_space(0x10_0000, 11);
    let root = hosted.guest.table();
    hosted.guest.memory.store_u64(Gpa(0x11_0000), 22).unwrap();
    hosted.guest.set_first(root, LOW, 1, 0x11_0000 | PRESENT | WRITABLE | USER);
    hosted.guest.set_pasid(0, first_stage(root, DOMAIN));
    let table = VtdPasidTable { directory: hosted.guest.directory, pasid_bits: 10 };
    let request = HwptRequest {
        device: DEVICE,
        parent: HwptParent::Hwpt(hosted.parent),
        flags: HwptFlags::empty(),
        data: Some(StageOneTable::VtdPasidTable(table)),
        fault: None,
    };
    let whole = vm.alloc_hwpt(&request).unwrap();
    vm.attach_hwpt(DEVICE, None, one).unwrap();
    change_while_reading(&hosted, without(), |round| {
        let to = [whole, one][round % 2];
        let _ = vm.replace_hwpt(DEVICE, None, to).unwrap();
    });
    hosted.end();
}
