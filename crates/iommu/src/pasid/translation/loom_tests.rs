//! Every interleaving of a submission with the closing of what it is translated by.
//!
//! The claims: once whoever closes has waited, no submission with the old translation is under
//! way, and what those before did is seen; and what opens is seen whole.

use alloc::sync::Arc;

use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::thread;

use super::layout::TranslationEntry;
use super::marks::Marks;
use super::table::Table;
use crate::{GuestPasid, HostPasid, Pasid};

const HOSTS: [u32; 2] = [7, 9];

struct Vm {
    table: Table,
    marks: Marks,
    /// Whether the host's PASID is somebody else's now.
    reused: AtomicBool,
    /// What was submitted, with no ordering of its own.
    submitted: AtomicU32,
}

impl Vm {
    /// With the PASID 1 bound; it lies in the flat part if that has 2^`flat_bits`.
    fn new(flat_bits: u32, vcpus: usize) -> Arc<Self> {
        let table = Table::new(flat_bits).unwrap();
        table.reserve(guest(), 1).unwrap();
        table.store(guest(), entry(HOSTS[0]));
        let marks = Marks::new(vcpus).unwrap();
        Arc::new(Self {
            table,
            marks,
            reused: AtomicBool::new(false),
            submitted: AtomicU32::new(0),
        })
    }

    fn submit(&self, slot: usize) -> Option<HostPasid> {
        let mark = self.marks.get(slot).unwrap();
        let _marked = mark.begin();
        let host = self.table.load(guest()).host()?;
        if host.0.get() == HOSTS[0] {
            assert!(!self.reused.load(Ordering::Acquire), "{host} is somebody else's");
            self.submitted.fetch_add(1, Ordering::Relaxed);
        }
        Some(host)
    }

    /// Closes, waits, gives the number to somebody else; how much was submitted before.
    fn close(&self) -> u32 {
        self.table.store(guest(), TranslationEntry::NONE);
        let mut cursor = Marks::begin_wait();
        while !self.marks.are_over(&mut cursor) {
            thread::yield_now();
        }
        self.reused.store(true, Ordering::Release);
        self.submitted.load(Ordering::Relaxed)
    }
}

fn guest() -> GuestPasid {
    GuestPasid(Pasid::from_field(1))
}

fn entry(host: u32) -> TranslationEntry {
    TranslationEntry::to_host(HostPasid(Pasid::from_field(host)))
}

#[test]
fn no_submission_with_the_old_translation_outlives_the_close() {
    for flat_bits in [0, 1] {
        loom::model(move || {
            let vm = Vm::new(flat_bits, 1);
            let vcpu = {
                let vm = vm.clone();
                thread::spawn(move || {
                    vm.submit(0);
                    vm.submit(0);
                })
            };
            let submitted = vm.close();
            vcpu.join().unwrap();
            assert_eq!(submitted, vm.submitted.load(Ordering::Relaxed), "one was overlooked");
            assert_eq!(vm.submit(0), None);
        });
    }
}

#[test]
fn two_processors_are_both_waited_for() {
    // Three threads: bounded, or it takes too long.
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let vm = Vm::new(1, 2);
        let vcpus = [0, 1].map(|slot| {
            let vm = vm.clone();
            thread::spawn(move || vm.submit(slot))
        });
        let submitted = vm.close();
        for vcpu in vcpus {
            vcpu.join().unwrap();
        }
        assert_eq!(submitted, vm.submitted.load(Ordering::Relaxed));
    });
}

#[test]
fn what_is_bound_again_is_the_new_one() {
    loom::model(|| {
        let vm = Vm::new(1, 1);
        let vcpu = {
            let vm = vm.clone();
            thread::spawn(move || [vm.submit(0), vm.submit(0)])
        };
        vm.close();
        vm.table.store(guest(), entry(HOSTS[1]));
        let seen = vcpu.join().unwrap();
        let seen = seen.map(|host| host.map(|host| host.0.get()));
        // Never the old one after none or the new one.
        assert!(seen[1] != Some(HOSTS[0]) || seen[0] == Some(HOSTS[0]), "{seen:?}");
        assert_eq!(vm.submit(0).map(|host| host.0.get()), Some(HOSTS[1]));
    });
}
