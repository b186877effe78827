//! A whole VM in one process with no socket: a guest that programs the unit through the function's
//! BAR, a device that does DMA, and the engine between them.

mod bench;

use bench::*;
use iommu::{DmaError, Vm};
use machine::{MapError, Next};
use mem::{Access, Gpa, GuestMemory, Iova, Range};
use pci::Function;

#[test]
fn a_device_shares_an_address_space_through_its_pasid() {
    let bench = Bench::new();
    let device = bench.attach();
    let channel = device.channel();
    bench.store_bytes(PAGE_A, b"through the page tables");

    // Off: without PASID untranslated, with PASID refused.
    let mut bytes = [0; 23];
    channel.enter().read(NO_PASID, Iova(PAGE_A.0), &mut bytes).unwrap();
    assert_eq!(&bytes, b"through the page tables");
    let refused = channel.enter().read(PASID, VIRTUAL, &mut bytes).unwrap_err();
    assert!(matches!(refused, DmaError::Refused { .. }));

    bench.enable_scalable_mode();
    bytes = [0; 23];
    channel.enter().read(PASID, VIRTUAL, &mut bytes).unwrap();
    assert_eq!(&bytes, b"through the page tables");
    channel.enter().write(PASID, VIRTUAL, b"WRITTEN").unwrap();
    assert_eq!(bench.load_bytes::<7>(PAGE_A), *b"WRITTEN");
    // The guest's own tables say so.
    assert_eq!(bench.load(PAGE_TABLE) & 0x60, 0x60, "accessed and dirty");
    // RID_PASID is pass-through.
    channel.enter().read(NO_PASID, Iova(PAGE_A.0), &mut bytes).unwrap();
    assert_eq!(&bytes[..7], b"WRITTEN");
}

#[test]
fn a_fault_reaches_the_guest_with_its_pasid() {
    let bench = Bench::new();
    let device = bench.attach();
    let channel = device.channel();
    bench.enable_scalable_mode();
    bench.unmask_faults();
    let wakes = bench.wakes();

    let unbound = iommu::AddressSpace { pasid: iommu::Pasid::new(7), privileged: false };
    let refused = channel.enter().read(unbound, VIRTUAL, &mut [0; 8]).unwrap_err();
    assert!(matches!(refused, DmaError::Refused { .. }));
    assert_eq!(bench.wakes(), wakes + 1);
    assert_eq!(bench.messages(), []);
    assert_eq!(bench.machine.poll(), Next::WhenWoken);
    assert_eq!(bench.messages(), [(Some(DEVICE), Gpa(0xfee0_1000), 0x41)]);
    assert_eq!(bench.read32(0x34), 2);
    assert_eq!(bench.read64(0x220), VIRTUAL.0);
    // F, read, PASID 7, PASID entry not present, 00:10.0.
    assert_eq!(bench.read64(0x228), 0xc000_0759_8000_0080);
    assert_eq!(bench.machine.counters().faults_recorded, 1);
}

#[test]
fn a_wait_is_complete_when_the_old_page_is_out_of_use() {
    let bench = Bench::new();
    let device = bench.attach();
    let channel = device.channel();
    bench.enable_scalable_mode();
    bench.store_bytes(PAGE_A, b"old");
    bench.store_bytes(PAGE_B, b"new");

    let in_flight = channel.enter();
    let window = in_flight.window(PASID, VIRTUAL, 3, Access::Read).unwrap();
    // The guest remaps under it and invalidates.
    bench.store(PAGE_TABLE, &[PAGE_B.0 | 7]);
    let wakes = bench.wakes();
    bench.submit(&[[0x0000_0001_0001_0036, VIRTUAL.0], [0x25 | 1 << 32, STATUS.0]]);
    assert_eq!(bench.wakes(), wakes + 1);
    for _ in 0..3 {
        assert_eq!(bench.machine.poll(), Next::Soon);
        assert_eq!(bench.load(STATUS), 0, "the old page is in use");
    }
    let mut bytes = [0; 3];
    window.read(0, &mut bytes);
    assert_eq!(&bytes, b"old");
    drop(in_flight);

    assert_eq!(bench.machine.poll(), Next::WhenWoken);
    assert_eq!(bench.load(STATUS), 1);
    channel.enter().read(PASID, VIRTUAL, &mut bytes).unwrap();
    assert_eq!(&bytes, b"new");
}

#[test]
fn translation_status_follows_accesses_in_flight() {
    let bench = Bench::new();
    let device = bench.attach();
    let channel = device.channel();
    let in_flight = channel.enter();
    bench.enable_scalable_mode();
    assert_eq!(bench.read32(0x1c) >> 30, 0, "neither RTPS nor TES");
    assert_eq!(bench.machine.poll(), Next::Soon);
    drop(in_flight);
    assert_eq!(bench.machine.poll(), Next::WhenWoken);
    assert_eq!(bench.read32(0x1c) >> 30, 3, "RTPS and TES");
}

#[test]
fn legacy_mode_translates_by_second_stage() {
    let bench = Bench::new();
    let device = bench.attach();
    let channel = device.channel();
    // Root, context (48 bits, domain 2), and the same page table read as a second-stage one.
    bench.store(Gpa(0x1000), &[0x2001, 0]);
    bench.store(Gpa(0x2000 + 0x80 * 16), &[0x5001, 0x0202]);
    bench.store_page_tables(3);
    bench.write64(0x20, 0x1000);
    bench.write32(0x18, 1 << 30);
    bench.write32(0x18, 1 << 31);
    bench.store_bytes(PAGE_A, b"second stage");
    let mut bytes = [0; 12];
    channel.enter().read(NO_PASID, VIRTUAL, &mut bytes).unwrap();
    assert_eq!(&bytes, b"second stage");
    assert!(channel.enter().read(PASID, VIRTUAL, &mut bytes).is_err());
    let _ = bench.machine.poll();
    assert_eq!(bench.read64(0x228) >> 32 & 0xff, 0x31, "a request with PASID in legacy mode");
}

#[test]
fn memory_is_there_until_the_last_function_withdraws_it() {
    let bench = Bench::new();
    let device = bench.attach();
    let channel = device.channel();
    let other = bench.machine.join();
    other.map(bench.claim()).unwrap();
    assert_eq!(bench.machine.contradictions(), 0);
    assert!(matches!(other.map(bench.claim()), Err(MapError::Claim(_))));

    let read = || channel.enter().read(NO_PASID, Iova(PAGE_A.0), &mut [0; 4]);
    let ticket = other.leave();
    assert!(bench.machine.is_complete(ticket));
    assert_eq!(read(), Ok(()));

    let in_flight = channel.enter();
    let window = in_flight.window(NO_PASID, Iova(PAGE_A.0), 4, Access::Write).unwrap();
    let ticket = bench.member.unmap(ALL_MEMORY).unwrap();
    assert!(!bench.machine.is_complete(ticket), "an access is in flight");
    assert_eq!(window.write(0, b"last"), 4);
    drop(in_flight);
    assert!(bench.machine.is_complete(ticket));
    assert!(read().is_err());
    assert!(matches!(bench.member.unmap(ALL_MEMORY), Err(MapError::Claim(_))));
    // And back.
    bench.member.map(bench.claim()).unwrap();
    assert_eq!(read(), Ok(()));
    assert_eq!(bench.load_bytes::<4>(PAGE_A), *b"last");
}

#[test]
fn a_function_that_dies_takes_its_memory_along() {
    let bench = Bench::new();
    let member = bench.machine.join();
    let claim = bench.claim();
    let range = Range::<Gpa>::new(Gpa(1 << 32), 0x1000).unwrap();
    member.map(mem::Claim { range, ..claim }).unwrap();
    assert!(bench.machine.vm().memory().load_u64(range.start).is_ok());
    drop(member);
    assert!(bench.machine.vm().memory().load_u64(range.start).is_err());
    assert!(bench.machine.vm().memory().load_u64(PAGE_A).is_ok());
}

#[test]
fn reset_of_the_function_resets_the_unit_and_leaves_memory() {
    let bench = Bench::new();
    let device = bench.attach();
    let channel = device.channel();
    bench.enable_scalable_mode();
    channel.enter().read(PASID, VIRTUAL, &mut [0; 8]).unwrap();
    bench.machine.iommu_function().reset();
    assert_eq!(bench.read32(0x1c), 0);
    assert!(channel.enter().read(PASID, VIRTUAL, &mut [0; 8]).is_err());
    channel.enter().read(NO_PASID, Iova(PAGE_A.0), &mut [0; 8]).unwrap();
    // A guest that starts again finds it as it was the first time.
    bench.enable_scalable_mode();
    channel.enter().read(PASID, VIRTUAL, &mut [0; 8]).unwrap();
}

#[test]
fn a_closed_vm_does_nothing_and_owns_nothing() {
    let bench = Bench::new();
    let device = bench.attach();
    let channel = device.channel();
    bench.enable_scalable_mode();
    let in_flight = channel.enter();
    let backing = std::sync::Arc::downgrade(&bench.backing());
    let ticket = bench.machine.close();
    assert!(!bench.machine.is_complete(ticket));
    drop(in_flight);
    assert!(bench.machine.is_complete(ticket));
    let refused = channel.enter().read(NO_PASID, Iova(PAGE_A.0), &mut [0; 8]);
    assert_eq!(refused, Err(DmaError::Detached));
    assert_eq!(bench.member.map(bench.claim()), Err(MapError::Closed));
    assert_eq!(bench.member.unmap(ALL_MEMORY).unwrap_err(), MapError::Closed);
    assert!(bench.machine.vm().attach(DEVICE).is_err());
    // The guest's last breaths at its registers reach nobody.
    bench.submit_blind();
    let _ = bench.machine.poll();
    bench.machine.iommu_function().reset();
    assert_eq!(bench.machine.poll(), Next::WhenWoken);
    let _ = bench.machine.close();
    bench.forget_backing();
    assert!(backing.upgrade().is_none(), "the memory is given back");
}

#[test]
fn virtual_machines_of_one_host_are_apart() {
    let host = iommu::SoftwareHost::new();
    let (one, two) = (Bench::on(&host), Bench::on(&host));
    let (device_one, device_two) = (one.attach(), two.attach());
    one.enable_scalable_mode();
    two.enable_scalable_mode();
    one.store_bytes(PAGE_A, b"one");
    two.store_bytes(PAGE_A, b"two");
    let read = |device: &iommu::Endpoint| {
        let mut bytes = [0; 3];
        device.channel().enter().read(PASID, VIRTUAL, &mut bytes).map(|()| bytes)
    };
    assert_eq!(read(&device_one), Ok(*b"one"));
    assert_eq!(read(&device_two), Ok(*b"two"));
    let _ = one.machine.close();
    assert_eq!(read(&device_one), Err(DmaError::Detached));
    assert_eq!(read(&device_two), Ok(*b"two"));
    assert_eq!(host.vms(), 1);
}
