//! Faults and page requests for whoever runs the VM.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

use pci::RequesterId;
use spin::mutex::SpinMutex;

use super::faults::Waker;
use super::GrantCheck;
use crate::{FaultEvent, FaultRecord, HostPasid};

/// Who reads the events of a VM. Its locks are the last of all, and held for a few instructions.
#[derive(Default)]
pub(crate) struct FaultLog {
    /// Whether there is any reader: most VMs have none.
    read: AtomicBool,
    readers: SpinMutex<Readers>,
}

#[derive(Default)]
struct Readers {
    all: Vec<Weak<Shared>>,
    /// The host's numbers for the VM's PASIDs.
    grants: Option<GrantCheck>,
}

/// Reads what happens to the requests of a VM's devices, from when it was made on: faults, page
/// requests and their answers, also those that the guest never hears of.
///
/// Each device has room of its own for records that nobody has read, so one that floods loses its
/// own and nobody else's; devices take turns.
pub struct FaultReader(Arc<Shared>);

struct Shared {
    per_device: usize,
    records: SpinMutex<Records>,
}

#[derive(Default)]
struct Records {
    devices: BTreeMap<RequesterId, OfDevice>,
    /// Devices with records, each once.
    turn: VecDeque<RequesterId>,
    waker: Option<Waker>,
    /// Whether the waker is to be called.
    ring: bool,
}

#[derive(Default)]
struct OfDevice {
    waiting: VecDeque<FaultRecord>,
    /// Lost since the latest one that waits.
    losing: u64,
    lost: u64,
}

impl FaultLog {
    /// One more reader; `grants` tells the host's numbers for PASIDs.
    pub(crate) fn reader(&self, per_device: usize, grants: GrantCheck) -> FaultReader {
        let shared = Arc::new(Shared { per_device, records: SpinMutex::default() });
        let mut readers = self.readers.lock();
        readers.all.retain(|reader| reader.strong_count() > 0);
        readers.all.push(Arc::downgrade(&shared));
        readers.grants.get_or_insert(grants);
        self.read.store(true, Ordering::Release);
        FaultReader(shared)
    }

    /// Adds an event. To be followed by [`notify`](Self::notify) with no lock held.
    pub(crate) fn record(&self, event: FaultEvent) {
        if !self.read.load(Ordering::Acquire) {
            return;
        }
        let readers = self.readers.lock();
        let host = event.pasid().zip(readers.grants.as_ref());
        let host_pasid = host.and_then(|(pasid, grants)| grants.host_of(pasid)).map(HostPasid);
        for reader in readers.all.iter().filter_map(Weak::upgrade) {
            reader.add(FaultRecord { event, host_pasid, lost: 0 });
        }
    }

    /// Calls those who read, if something came while nothing waited.
    pub(crate) fn notify(&self) {
        if !self.read.load(Ordering::Acquire) {
            return;
        }
        let readers: Vec<_> = {
            let mut readers = self.readers.lock();
            readers.all.retain(|reader| reader.strong_count() > 0);
            self.read.store(!readers.all.is_empty(), Ordering::Release);
            readers.all.iter().filter_map(Weak::upgrade).collect()
        };
        for reader in readers {
            let waker = {
                let mut records = reader.records.lock();
                let ring = core::mem::take(&mut records.ring);
                records.waker.clone().filter(|_| ring)
            };
            if let Some(wake) = waker {
                wake();
            }
        }
    }
}

impl Shared {
    fn add(&self, record: FaultRecord) {
        let records = &mut *self.records.lock();
        let requester = record.event.requester();
        let device = records.devices.entry(requester).or_default();
        if device.waiting.len() >= self.per_device {
            device.losing += 1;
            device.lost += 1;
            return;
        }
        let lost = core::mem::take(&mut device.losing);
        records.ring |= records.turn.is_empty();
        if device.waiting.is_empty() {
            records.turn.push_back(requester);
        }
        device.waiting.push_back(FaultRecord { lost, ..record });
    }
}

impl FaultReader {
    /// The next record: the oldest of the device whose turn it is.
    pub fn read(&self) -> Option<FaultRecord> {
        let records = &mut *self.0.records.lock();
        let requester = records.turn.pop_front()?;
        let device = records.devices.get_mut(&requester)?;
        let record = device.waiting.pop_front();
        if !device.waiting.is_empty() {
            records.turn.push_back(requester);
        } else if device.lost == 0 {
            records.devices.remove(&requester);
        }
        record
    }

    /// How many events of a device this reader has lost, because it did not read the earlier ones.
    pub fn lost(&self, requester: RequesterId) -> u64 {
        self.0.records.lock().devices.get(&requester).map_or(0, |device| device.lost)
    }

    /// Sets what is called when a record comes while none waits. It may be called from a DMA path,
    /// so it must neither block nor call the VM. Not called for what waits already: read once
    /// after setting it, and always until there is nothing.
    pub fn set_waker(&self, waker: Option<Arc<dyn Fn() + Send + Sync>>) {
        let old = core::mem::replace(&mut self.0.records.lock().waker, waker);
        // After the lock: it may own anything.
        drop(old);
    }
}

impl fmt::Debug for FaultReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultReader")
            .field("per_device", &self.0.per_device)
            .finish_non_exhaustive()
    }
}
