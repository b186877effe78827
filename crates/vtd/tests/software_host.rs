//! The unit and the engine in one process: a guest that programs registers and tables, and a
//! device that does DMA.
#![cfg(feature = "model")]

mod guest;
mod page_requests;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use guest::*;
use iommu::{DmaError, SoftwareHost, Vm};
use mem::{Access, Gpa, Iova};
use vtd::model::{Message, Progress};

#[test]
fn a_device_shares_an_address_space_through_its_pasid() {
    let mut guest = Guest::new();
    let device = guest.attach();
    let channel = device.channel();
    guest.store_bytes(PAGE_A, b"through the page tables");

    // Off: without PASID untranslated, with PASID refused.
    let mut bytes = [0; 23];
    channel.enter().read(NO_PASID, Iova(PAGE_A.0), &mut bytes).unwrap();
    assert_eq!(&bytes, b"through the page tables");
    let refused = channel.enter().read(PASID, VIRTUAL, &mut bytes).unwrap_err();
    assert!(matches!(refused, DmaError::Refused { .. }));

    guest.enable_scalable_mode();
    bytes = [0; 23];
    channel.enter().read(PASID, VIRTUAL, &mut bytes).unwrap();
    assert_eq!(&bytes, b"through the page tables");
    channel.enter().write(PASID, VIRTUAL, b"WRITTEN").unwrap();
    assert_eq!(guest.load_bytes::<7>(PAGE_A), *b"WRITTEN");
    assert_eq!(guest.load(PAGE_TABLE) & 0x60, 0x60, "accessed and dirty in the guest's own table");
    // RID_PASID is pass-through.
    channel.enter().read(NO_PASID, Iova(PAGE_A.0), &mut bytes).unwrap();
    assert_eq!(&bytes[..7], b"WRITTEN");
}

#[test]
fn a_fault_reaches_the_guest_with_its_pasid() {
    let mut guest = Guest::new();
    let device = guest.attach();
    let channel = device.channel();
    guest.enable_scalable_mode();
    guest.write32(0x3c, 0x41);
    guest.write32(0x40, 0xfee0_1000);
    guest.write32(0x38, 0);

    let refused = channel.enter().read(with_pasid(7), VIRTUAL, &mut [0; 8]).unwrap_err();
    assert!(matches!(refused, DmaError::Refused { .. }));
    assert_eq!(guest.poll(), Progress::Idle);
    let message = Message { address: Gpa(0xfee0_1000), data: 0x41, requester: Some(DEVICE) };
    assert_eq!(guest.messages, [message]);
    assert_eq!(guest.read32(0x34), 2);
    assert_eq!(guest.read64(0x220), VIRTUAL.0);
    // F, read, PASID 7, PASID entry not present, 00:10.0.
    assert_eq!(guest.read64(0x228), 0xc000_0759_8000_0080);
}

/// Makes each kind of mistake in the tables and expects the code that the specification names.
#[test]
fn faults_of_real_walks_have_the_codes_of_table_30() {
    let leaf = PAGE_TABLE;
    let cases: &[(Gpa, u64, u8)] = &[
        (Gpa(0x1008), 0, 0x39),               // scalable root entry
        (Gpa(0x1008), 0x2003, 0x3a),          // … reserved
        (Gpa(0x1008), 0x4000_0001, 0x40),     // context table without memory
        (Gpa(0x2000), 0, 0x41),               // context entry
        (Gpa(0x2000), 0x3e2d, 0x42),          // … reserved
        (Gpa(0x2000), 0x3e05, 0x45),          // … without PASIDE
        (Gpa(0x2000), 0x4000_0e0d, 0x50),     // PASID directory without memory
        (Gpa(0x3000), 0, 0x51),               // PASID directory entry
        (Gpa(0x3000), 0x4801, 0x52),          // … reserved
        (Gpa(0x3000), 0x4000_0001, 0x58),     // PASID table without memory
        (Gpa(0x4040), 0, 0x59),               // PASID entry
        (Gpa(0x4040), 0x69, 0x5a),            // … reserved
        (Gpa(0x4040), 7 << 6 | 9, 0x5b),      // … reserved type
        (Gpa(0x4050), 0x4000_0000, 0x73),     // first-stage root without memory
        (Gpa(0x7010), 0x4000_0007, 0x70),     // page table without memory
        (leaf, 0, 0x71),                      // leaf
        (leaf, 1 << 51 | PAGE_A.0 | 7, 0x72), // … reserved
        (leaf, PAGE_A.0 | 3, 0x81),           // … supervisor's
        (leaf, PAGE_A.0 | 5, 0x85),           // … read-only
        (leaf, 0xfee0_0007, 0x87),            // … to the interrupt range
    ];
    for &(at, word, code) in cases {
        let mut guest = Guest::new();
        let device = guest.attach();
        guest.enable_scalable_mode();
        guest.store(at, &[word]);
        let written = device.channel().enter().write(PASID, VIRTUAL, &[1]);
        assert!(written.is_err(), "{code:#x}");
        let _ = guest.poll();
        let record = guest.read64(0x228);
        assert_eq!(record >> 32 & 0xff, u64::from(code), "{code:#x}: {record:#x}");
    }
}

#[test]
fn a_wait_is_complete_when_the_old_page_is_out_of_use() {
    let mut guest = Guest::new();
    let device = guest.attach();
    let channel = device.channel();
    guest.enable_scalable_mode();
    guest.store_bytes(PAGE_A, b"old");
    guest.store_bytes(PAGE_B, b"new");

    let in_flight = channel.enter();
    let window = in_flight.window(PASID, VIRTUAL, 3, Access::Read).unwrap();
    // The guest remaps under it and invalidates.
    guest.store(PAGE_TABLE, &[PAGE_B.0 | 7]);
    guest.invalidate(1);
    assert!(guest.scheduled);
    for _ in 0..3 {
        assert!(matches!(guest.poll(), Progress::Waiting(_)));
        assert_eq!(guest.load(STATUS), 0, "the old page is in use");
    }
    let mut bytes = [0; 3];
    window.read(0, &mut bytes);
    assert_eq!(&bytes, b"old");
    drop(in_flight);

    assert_eq!(guest.poll(), Progress::Idle);
    assert_eq!(guest.load(STATUS), 1);
    channel.enter().read(PASID, VIRTUAL, &mut bytes).unwrap();
    assert_eq!(&bytes, b"new");
}

/// Remaps that each end with a wait, while a device reads as fast as it can. After the wait the
/// page that was taken away is poisoned: the device must never see that.
#[test]
fn no_byte_of_an_old_page_is_seen_after_its_wait() {
    const REMAPS: u32 = 300;
    const GOOD: u64 = 0x600d_600d_600d_600d;
    const POISON: u64 = 0xdead_dead_dead_dead;
    let mut guest = Guest::new();
    let device = guest.attach();
    guest.enable_scalable_mode();
    guest.store(PAGE_A, &[GOOD]);
    let (stop, reads, stale) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let channel = device.channel();
            while !stop.load(Ordering::Relaxed) {
                let mut word = [0; 8];
                channel.enter().read(PASID, VIRTUAL, &mut word).unwrap();
                stale.fetch_add((u64::from_le_bytes(word) != GOOD).into(), Ordering::Relaxed);
                reads.fetch_add(1, Ordering::Relaxed);
            }
        });
        for (count, (from, to)) in
            (1..=REMAPS).zip([(PAGE_A, PAGE_B), (PAGE_B, PAGE_A)].iter().cycle())
        {
            guest.store(*to, &[GOOD]);
            guest.store(PAGE_TABLE, &[to.0 | 7]);
            guest.invalidate(count);
            while guest.load(STATUS) as u32 != count {
                let _ = guest.poll();
            }
            guest.store(*from, &[POISON]);
            // Let the device use what it holds.
            let before = reads.load(Ordering::Relaxed);
            while reads.load(Ordering::Relaxed) < before + 3 {
                std::thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(stale.into_inner(), 0);
    assert_eq!(guest.model.counters().waits, u64::from(REMAPS));
}

#[test]
fn translation_status_follows_accesses_in_flight() {
    let mut guest = Guest::new();
    let device = guest.attach();
    let channel = device.channel();
    let in_flight = channel.enter();
    guest.enable_scalable_mode();
    assert_eq!(guest.read32(0x1c), QIE, "neither RTPS nor TES");
    assert!(matches!(guest.poll(), Progress::Waiting(_)));
    drop(in_flight);
    assert_eq!(guest.poll(), Progress::Idle);
    assert_eq!(guest.read32(0x1c), TE | SRTP | QIE);
}

#[test]
fn legacy_mode_translates_by_second_stage() {
    let mut guest = Guest::new();
    let device = guest.attach();
    let channel = device.channel();
    // Root, context (48 bits, domain 2), and the same tables read as second-stage ones.
    guest.store(Gpa(0x1000), &[0x2001, 0]);
    guest.store(Gpa(0x2000 + 0x80 * 16), &[0x5001, 0x0202]);
    guest.store_page_tables(3);
    guest.write64(0x20, 0x1000);
    guest.write32(0x18, SRTP);
    guest.write32(0x18, TE);
    guest.store_bytes(PAGE_A, b"second stage");
    let mut bytes = [0; 12];
    channel.enter().read(NO_PASID, VIRTUAL, &mut bytes).unwrap();
    assert_eq!(&bytes, b"second stage");
    // A read-only page; then a request with PASID, which legacy mode has not.
    guest.store(PAGE_TABLE, &[PAGE_A.0 | 1]);
    guest.write64(0xf8, 1 << 63 | 1 << 60);
    assert_eq!(guest.read64(0xf8), 1 << 60 | 1 << 57);
    assert!(channel.enter().write(NO_PASID, VIRTUAL, &bytes).is_err());
    assert!(channel.enter().read(PASID, VIRTUAL, &mut bytes).is_err());
    let _ = guest.poll();
    assert_eq!(guest.read64(0x228) >> 32 & 0xff, 0x05, "no write permission");
    assert_eq!(guest.read64(0x238) >> 32 & 0xff, 0x31, "PASID in legacy mode");
}

#[test]
fn reset_switches_translation_off() {
    let mut guest = Guest::new();
    let device = guest.attach();
    let channel = device.channel();
    guest.enable_scalable_mode();
    channel.enter().read(PASID, VIRTUAL, &mut [0; 8]).unwrap();
    let ticket = guest.model.reset();
    assert!(guest.vm.is_complete(ticket));
    assert!(channel.enter().read(PASID, VIRTUAL, &mut [0; 8]).is_err());
    channel.enter().read(NO_PASID, Iova(PAGE_A.0), &mut [0; 8]).unwrap();
    // A guest that starts again finds it as it was the first time.
    guest.enable_scalable_mode();
    channel.enter().read(PASID, VIRTUAL, &mut [0; 8]).unwrap();
}

#[test]
fn a_unit_of_a_closed_vm_goes_nowhere() {
    let host = SoftwareHost::new();
    let (mut one, two) = (Guest::on(&host), Guest::on(&host));
    let device = one.attach();
    one.enable_scalable_mode();
    let ticket = one.vm.close();
    assert!(one.vm.is_complete(ticket));
    let refused = device.channel().enter().read(NO_PASID, Iova(PAGE_A.0), &mut [0; 8]);
    assert_eq!(refused, Err(DmaError::Detached));
    // The queue's memory is gone: the guest's last tail write is a queue error.
    one.write64(0x88, 32);
    assert_eq!(one.poll(), Progress::Idle);
    assert_eq!(one.read64(0xb0), 2);
    assert_eq!(host.vms(), 1);
    assert!(two.attach().channel().enter().read(NO_PASID, Iova(0), &mut [0; 8]).is_ok());
}
