//! Processors that submit without pause while their PASIDs are bound, unbound and freed.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;

use iommu::pasid::translation::TranslationConfig;
use iommu::{HostPasid, PasidRange, Vm};

use super::scenarios::{Submitter, CONFIG, NUMBERS};
use crate::common::hosted::guest;
use crate::common::{pasid, wait, DEVICE};

const ROUNDS: u32 = 200;

/// For each of the host's PASIDs, whether a device may be given it now.
struct Device(Vec<AtomicU32>);

impl Device {
    fn allow(&self, host: HostPasid, allowed: u32) {
        self.0[host.0.get() as usize].store(allowed, Ordering::SeqCst);
    }

    fn is_allowed(&self, host: HostPasid) -> bool {
        self.0[host.0.get() as usize].load(Ordering::SeqCst) == 1
    }
}

/// Whatever a device is given is bound from the beginning of the submission to its end.
#[test]
fn no_device_is_given_what_is_not_bound() {
    let submitter = Submitter::new(TranslationConfig { vcpus: 2, ..CONFIG });
    let device = Device((0..256).map(|_| AtomicU32::new(0)).collect());
    let (over, through) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for number in NUMBERS {
            let mut vcpu = submitter.table().vcpu().unwrap();
            let (device, over, through) = (&device, &over, &through);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let seen = vcpu.translated(guest(number), |host| {
                        let first = device.is_allowed(host);
                        thread::yield_now();
                        first && device.is_allowed(host)
                    });
                    if let Some(allowed) = seen {
                        assert!(allowed, "{number:#x} was not bound");
                        through.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        let vm = submitter.vm();
        for round in 0..ROUNDS {
            let number = NUMBERS[(round % 2) as usize];
            let host = host_of(&submitter, number);
            device.allow(host, 1);
            vm.attach_hwpt(DEVICE, Some(guest(number)), submitter.space).unwrap();
            for _ in 0..round % 7 {
                thread::yield_now();
            }
            // Some get through, however busy the machine is.
            while round == 0 && through.load(Ordering::Relaxed) == 0 {
                thread::yield_now();
            }
            if round % 5 == 4 {
                // Told of the free before the number is anybody's again.
                vm.free_pasid(guest(number)).unwrap();
                let _ = vm.pasid_usage();
                assert!(submitter.table().peek(guest(number)).is_none());
                device.allow(host, 0);
                regrant(&submitter, number);
            } else {
                let ticket = vm.detach_hwpt(DEVICE, Some(guest(number))).unwrap();
                device.allow(host, 0);
                wait(vm, ticket);
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    let counters = submitter.table().counters();
    assert_eq!((counters.opened, counters.closed), (ROUNDS.into(), ROUNDS.into()));
    assert_eq!((counters.late, counters.unmatched, counters.refused), (0, 0, 0));
    submitter.end();
}

fn host_of(submitter: &Submitter, number: u32) -> HostPasid {
    let report = submitter.hosted.guest.host.pasid_report();
    let mut entries = report.vms[0].entries.iter();
    entries.find(|entry| entry.guest == guest(number)).unwrap().host
}

fn regrant(submitter: &Submitter, number: u32) {
    let range = PasidRange::new(pasid(number), pasid(number)).unwrap();
    while submitter.vm().alloc_pasid(range).is_err() {
        thread::yield_now();
    }
}
