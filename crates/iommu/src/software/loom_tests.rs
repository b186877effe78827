//! Every interleaving of a guest's death, and of its device's accesses, with grants.

use alloc::sync::Arc;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use mem::{Access, Gpa, GuestMemory, Iova, MemoryMap};
use pci::RequesterId;

use super::*;
use crate::pasid::PasidReport;
use crate::{
    AddressSpace, AllocPasidError, ContextFault, ContextSource, DeviceContext, Endpoint,
    FreePasidError, GuestPasid, Invalidation, Numbering, Pasid, PasidRange, PasidTable, TableCaps,
    Ticket, Vm,
};

/// PASIDs 1 to 3.
const NUMBERS: u32 = 3;
const ONE: PasidRange = PasidRange { first: Pasid::from_field(1), last: Pasid::from_field(1) };

/// Three threads: bounded, or it takes minutes.
fn explore(f: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(f);
}

fn host() -> SoftwareHost {
    let config = Config { width: 2, spid_width: Some(2), shards: 1, ..Config::default() };
    SoftwareHost::with_pasids(config, None).unwrap()
}

fn vm(host: &SoftwareHost, quota: u32) -> SoftwareVm {
    numbered(host, quota, Numbering::Identity)
}

fn numbered(host: &SoftwareHost, quota: u32, numbering: Numbering) -> SoftwareVm {
    let config = VmConfig { quota, numbering, enforce_grants: true, ..VmConfig::named("vm") };
    host.create_vm(config).unwrap()
}

fn assert_nothing_is_out(host: &SoftwareHost) {
    let nothing = PasidReport { capacity: NUMBERS, ..PasidReport::default() };
    assert_eq!(host.pasid_report(), nothing);
}

#[test]
fn loom_a_vm_dies_while_it_allocates() {
    explore(|| {
        let host = host();
        let vm = vm(&host, NUMBERS);
        let allocating = {
            let vm = vm.clone();
            thread::spawn(move || vm.alloc_pasid(PasidRange::ALL))
        };
        let ticket = vm.close();
        assert!(vm.is_complete(ticket), "nothing is in flight");
        match allocating.join().unwrap() {
            Ok(granted) => assert_eq!(granted.0, ONE.first),
            Err(error) => assert_eq!(error, AllocPasidError::Closed),
        }
        assert_nothing_is_out(&host);
    });
}

#[test]
fn loom_a_vm_dies_while_it_frees() {
    explore(|| {
        let host = host();
        let vm = vm(&host, NUMBERS);
        let granted = vm.alloc_pasid(ONE).unwrap();
        let freeing = {
            let vm = vm.clone();
            thread::spawn(move || vm.free_pasid(granted))
        };
        let _ = vm.close();
        let freed = freeing.join().unwrap();
        assert!(matches!(freed, Ok(()) | Err(FreePasidError::Closed)));
        assert_nothing_is_out(&host);
    });
}

#[test]
fn loom_two_frees_of_one_pasid() {
    explore(|| {
        let host = host();
        let vm = vm(&host, NUMBERS);
        let granted = vm.alloc_pasid(ONE).unwrap();
        let other = {
            let vm = vm.clone();
            thread::spawn(move || vm.free_pasid(granted).is_ok())
        };
        let first = vm.free_pasid(granted).is_ok();
        assert!(first ^ other.join().unwrap(), "one of them is the one");
        assert_eq!(vm.pasid_usage().live, 0);
    });
}

#[test]
fn loom_two_allocations_within_a_quota_of_one() {
    explore(|| {
        let host = host();
        let vm = vm(&host, 1);
        let other = {
            let vm = vm.clone();
            thread::spawn(move || vm.alloc_pasid(PasidRange::ALL).is_ok())
        };
        let first = vm.alloc_pasid(PasidRange::ALL).is_ok();
        assert!(first ^ other.join().unwrap(), "one of them is within the quota");
        assert_eq!(host.pasid_report().live, 1);
    });
}

/// In private numbering, where the number is attached after the allocation.
#[test]
fn loom_two_allocations_of_one_number() {
    explore(|| {
        let host = host();
        let vm = numbered(&host, 2, Numbering::Private);
        let other = {
            let vm = vm.clone();
            thread::spawn(move || vm.alloc_pasid(ONE).is_ok())
        };
        let first = vm.alloc_pasid(ONE).is_ok();
        assert!(first ^ other.join().unwrap(), "one of them has it");
        assert_eq!(vm.pasid_usage().live, 1);
        assert_eq!(vm.alloc_pasid(PasidRange::ALL).unwrap().0.get(), 2);
    });
}

#[test]
fn loom_a_vm_with_its_own_numbers_dies_while_it_allocates() {
    explore(|| {
        let host = host();
        let vm = numbered(&host, NUMBERS, Numbering::Private);
        let allocating = {
            let vm = vm.clone();
            thread::spawn(move || vm.alloc_pasid(PasidRange::ALL))
        };
        let _ = vm.close();
        match allocating.join().unwrap() {
            Ok(granted) => assert_eq!(granted.0, ONE.first),
            Err(error) => assert_eq!(error, AllocPasidError::Closed),
        }
        assert_nothing_is_out(&host);
    });
}

/// A directory in page 1 whose entry names the table in page 2, where PASID 1 passes through.
struct OneTable;

impl ContextSource for OneTable {
    fn lookup(&self, _: &dyn GuestMemory, _: RequesterId) -> Result<DeviceContext, ContextFault> {
        Ok(DeviceContext::PasidTable(PasidTable {
            directory: Gpa(0x1000),
            pasid_bits: 6,
            rid_pasid: Pasid::from_field(0),
            rid_privileged: false,
            pasid_enable: true,
            ats: true,
            page_requests: false,
            fault_disable: true,
            caps: TableCaps { address_bits: 46, ..TableCaps::FULL },
        }))
    }
}

/// While an access that its grant let pass is in flight, its PASID is not another VM's.
#[test]
fn loom_no_pasid_is_granted_anew_while_an_access_uses_it() {
    explore(|| {
        let host = host();
        let (mine, other) = (vm(&host, 1), vm(&host, 1));
        let map = MemoryMap::anonymous(&[(Gpa(0), 0x3000)]).unwrap();
        map.store_u64(Gpa(0x1000), 0x2000 | 1).unwrap();
        map.store_u64(Gpa(0x2000 + 64), 4 << 6 | 1).unwrap();
        let _ = mine.set_memory(map);
        mine.set_contexts(Some(Arc::new(OneTable)));
        let granted = mine.alloc_pasid(ONE).unwrap();
        let endpoint = mine.attach(RequesterId::from_bits(8)).unwrap();
        let channel = endpoint.channel();
        let granted_anew = Arc::new(AtomicBool::new(false));

        let device = {
            let granted_anew = granted_anew.clone();
            thread::spawn(move || {
                let access = channel.enter();
                let space = AddressSpace { pasid: Some(granted.0), privileged: false };
                let window = access.window(space, Iova(0), 8, Access::Write);
                if window.is_ok() {
                    assert!(!granted_anew.load(Ordering::Acquire), "two VMs have it");
                }
                window.is_ok()
            })
        };
        mine.free_pasid(granted).unwrap();
        let _ = mine.pasid_usage();
        match other.alloc_pasid(ONE) {
            Ok(again) => {
                assert_eq!(again, GuestPasid(ONE.first));
                granted_anew.store(true, Ordering::Release);
            }
            Err(error) => assert_eq!(error, AllocPasidError::NoneAvailable),
        }
        let _ = device.join().unwrap();
        let _ = mine.pasid_usage();
        assert_eq!(mine.pasid_usage().parked, 0);
        assert_eq!(mine.counters().pasid_entries, 0, "it is in no cache");
        drop(endpoint);
    });
}

/// A device with ATS makes two accesses while its PASID's entry is taken away and `empty` has all of
/// it forgotten: once the ticket of that is complete, neither passes, not even by what the device
/// kept of the other.
fn no_access_passes_after(
    empty: impl Fn(&SoftwareVm, &Endpoint) -> Ticket + Send + Sync + 'static,
) {
    explore(move || {
        let host = host();
        let vm = vm(&host, 1);
        let map = MemoryMap::anonymous(&[(Gpa(0), 0x3000)]).unwrap();
        map.store_u64(Gpa(0x1000), 0x2000 | 1).unwrap();
        map.store_u64(Gpa(0x2000 + 64), 4 << 6 | 1).unwrap();
        let _ = vm.set_memory(map.clone());
        vm.set_contexts(Some(Arc::new(OneTable)));
        let granted = vm.alloc_pasid(ONE).unwrap();
        let endpoint = vm.attach(RequesterId::from_bits(8)).unwrap();
        endpoint.set_ats(true);
        let channel = endpoint.channel();
        let taken = Arc::new(AtomicBool::new(false));

        let device = {
            let taken = taken.clone();
            thread::spawn(move || {
                let space = AddressSpace { pasid: Some(granted.0), privileged: false };
                for _ in 0..2 {
                    let access = channel.enter();
                    if access.window(space, Iova(0), 8, Access::Write).is_ok() {
                        assert!(!taken.load(Ordering::Acquire), "it is not the device's any more");
                    }
                }
            })
        };
        map.store_u64(Gpa(0x2000 + 64), 0).unwrap();
        let ticket = empty(&vm, &endpoint);
        if vm.is_complete(ticket) {
            taken.store(true, Ordering::Release);
        }
        device.join().unwrap();
        assert!(vm.is_complete(ticket));
        assert_eq!(vm.counters().device_tlb_entries, 0);
    });
}

#[test]
fn loom_what_a_device_was_told_to_forget_is_not_used() {
    no_access_passes_after(|vm, endpoint| {
        let _ = vm.invalidate(Invalidation::PasidCacheAll);
        let requester = endpoint.requester();
        let range = crate::invalidation::EVERYWHERE;
        vm.invalidate(Invalidation::DeviceTlbPasid { requester, pasid: None, range })
    });
}

#[test]
fn loom_what_a_device_kept_ends_with_its_ats() {
    no_access_passes_after(|vm, endpoint| {
        endpoint.set_ats(false);
        vm.invalidate(Invalidation::PasidCacheAll)
    });
}
