//! Whoever else uses PASIDs is told of bindings while no lock is held that a register access takes:
//! a guest's processors do not stand still meanwhile.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{mpsc, Arc, Mutex, Weak};
use std::thread;
use std::time::Duration;

use common::unit::GSTS;
use common::{succeeded, Drive, Guest, Rig, Setup, Verdict, DEDICATED, PAGE, RAM};
use ioasid::{Priority, Refusal};
use iommu::{PasidEvent, PasidSubscriber, SoftwareHost, SoftwareVm};
use machine::{Machine, RegisterPage};

/// How long a register access may take while a subscriber is being told.
const PATIENCE: Duration = Duration::from_secs(5);

/// Reads a register of the unit, from another thread, whenever it is told something.
#[derive(Default)]
struct Reader {
    machine: Mutex<Weak<Machine<SoftwareVm>>>,
    prepared: AtomicU64,
    committed: AtomicU64,
    unbound: AtomicU64,
    /// Accesses that were not answered in time.
    stuck: AtomicU64,
    refuse: AtomicU64,
}

impl Reader {
    fn told(&self, count: &AtomicU64) {
        count.fetch_add(1, Ordering::SeqCst);
        let Some(machine) = self.machine.lock().unwrap().upgrade() else { return };
        let (answer, answered) = mpsc::channel();
        thread::spawn(move || {
            machine.read(GSTS, &mut [0; 4]);
            let _ = answer.send(());
        });
        let late = answered.recv_timeout(PATIENCE).is_err();
        self.stuck.fetch_add(u64::from(late), Ordering::SeqCst);
    }

    fn counts(&self) -> [u64; 4] {
        let counts = [&self.prepared, &self.committed, &self.unbound, &self.stuck];
        counts.map(|count| count.load(Ordering::SeqCst))
    }
}

impl PasidSubscriber for Reader {
    fn prepare(&self, _event: &PasidEvent<'_>) -> Result<(), Refusal> {
        self.told(&self.prepared);
        match self.refuse.load(Ordering::SeqCst) {
            0 => Ok(()),
            _ => Err(Refusal::NotAllowed),
        }
    }

    fn commit(&self, _event: &PasidEvent<'_>) {
        self.told(&self.committed);
    }

    fn unbind(&self, _event: &PasidEvent<'_>) {
        self.told(&self.unbound);
    }
}

/// A guest on a host with a subscriber.
fn told(drive: Drive) -> Verdict<(Guest, Arc<Reader>, iommu::PasidSubscription)> {
    let (host, reader) = (SoftwareHost::new(), Arc::<Reader>::default());
    let subscription = host.subscribe("reader", Priority::Cpu, reader.clone());
    let subscription = subscription.map_err(|error| error.to_string())?;
    let guest = Guest::boot_on(Rig::on(&host, Setup::host_owned(drive), RAM))?;
    *reader.machine.lock().unwrap() = Arc::downgrade(&guest.rig.machine);
    Ok((guest, reader, subscription))
}

#[test]
fn registers_answer_while_subscribers_are_told() {
    for drive in [Drive::Inline, Drive::Threads] {
        let (mut guest, reader, _subscription) = told(drive).unwrap();
        let first = guest.process(0x10).unwrap();
        let _second = guest.process(0x11).unwrap();
        assert_eq!(reader.counts(), [2, 2, 0, 0]);
        guest.exit(first).unwrap();
        assert_eq!(reader.counts(), [2, 2, 1, 0]);
        let _ticket = guest.rig.machine.reset();
        assert_eq!(reader.counts(), [2, 2, 2, 0]);
    }
}

#[test]
fn a_pasid_that_a_subscriber_refuses_is_blocked() {
    let (mut guest, reader, _subscription) = told(Drive::Inline).unwrap();
    reader.refuse.store(1, Ordering::SeqCst);
    let mut space = guest.process(0x10).unwrap();
    space.allocate(&mut guest.rig.ram, 0x1000, 3 * PAGE);
    let bindings = guest.rig.machine.unit_counters().bindings;
    assert_eq!((bindings.refused, reader.counts()), (1, [1, 0, 0, 0]));
    guest.accelerator.open(&guest.rig, DEDICATED, space.pasid).unwrap();
    assert!(guest.copy(DEDICATED, &space, [0x1000, 0x2000, 0x3000], 8).is_err());
    guest.unit.take_faults(&guest.rig);

    // It changes its mind, and the guest announces the entry again.
    reader.refuse.store(0, Ordering::SeqCst);
    guest.unit.invalidate_all(&guest.rig).unwrap();
    let record = guest.copy(DEDICATED, &space, [0x1000, 0x2000, 0x3000], 8).unwrap();
    succeeded(&record).unwrap();
}
