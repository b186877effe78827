//! An implementation of virtqueues that is not ours, at either end.

mod common;

use std::io::{Read as _, Write as _};
use std::num::Wrapping;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use common::*;
use iommu::{Host as _, PasidRange, SoftwareHost, Vm as _, VmConfig};
use mem::{Gpa, MemoryMap};
use virtio_iommu::driver::{Error, Transport};
use virtio_iommu::model::{Model, Options};
use virtio_iommu::spec::{Features, QueueLayout, RequestStatus, Revision, Status, REQUEST_QUEUE};
use virtio_queue::desc::split::Descriptor as TheirDescriptor;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::{Queue, QueueOwnedT as _, QueueT as _};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const WRITE: u16 = 2;

fn their_memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap()
}

/// Puts their queue where `layout` says.
fn place(queue: &mut Queue, layout: QueueLayout) {
    let halves = |at: Gpa| (Some(at.0 as u32), Some((at.0 >> 32) as u32));
    queue.set_size(layout.size);
    let (low, high) = halves(layout.descriptors);
    queue.set_desc_table_address(low, high);
    let (low, high) = halves(layout.available);
    queue.set_avail_ring_address(low, high);
    let (low, high) = halves(layout.used);
    queue.set_used_ring_address(low, high);
    queue.set_ready(true);
}

/// A device on their queue: grants 0x100, 0x101, … and takes everything back.
#[derive(Clone, Debug)]
struct TheirDevice(Arc<Mutex<TheirState>>);

#[derive(Debug)]
struct TheirState {
    memory: GuestMemoryMmap,
    status: Status,
    queue: Queue,
    granted: u32,
    requests: Vec<Vec<u8>>,
}

impl Transport for TheirDevice {
    fn features(&mut self) -> Features {
        let revision = Revision::Experimental.feature().into_bits();
        Features::from_bits(Features::new().with_version_1(true).into_bits() | revision)
    }

    fn set_driver_features(&mut self, features: Features) {
        assert_eq!(features, self.features());
    }

    fn status(&mut self) -> Status {
        self.0.lock().unwrap().status
    }

    fn write_status(&mut self, status: Status) {
        self.0.lock().unwrap().status = status;
    }

    fn read_config(&mut self, _: usize, data: &mut [u8]) {
        data.fill(0);
    }

    fn max_queue_size(&mut self, _: u16) -> u16 {
        self.0.lock().unwrap().queue.max_size()
    }

    fn set_queue(&mut self, queue: u16, layout: QueueLayout) {
        assert_eq!(queue, REQUEST_QUEUE);
        let state = &mut *self.0.lock().unwrap();
        place(&mut state.queue, layout);
        assert!(state.queue.is_valid(&state.memory), "{layout:?}");
    }

    fn notify(&mut self, _: u16) {
        let state = &mut *self.0.lock().unwrap();
        let memory = &state.memory;
        while let Some(chain) = state.queue.pop_descriptor_chain(memory) {
            let mut request = Vec::new();
            chain.clone().reader(memory).unwrap().read_to_end(&mut request).unwrap();
            let mut writer = chain.clone().writer(memory).unwrap();
            let mut answer = vec![0; writer.available_bytes()];
            if answer.len() == 8 {
                answer[..4].copy_from_slice(&(0x100 + state.granted).to_le_bytes());
                state.granted += 1;
            }
            writer.write_all(&answer).unwrap();
            let len = answer.len() as u32;
            state.queue.add_used(memory, chain.head_index(), len).unwrap();
            state.requests.push(request);
        }
    }
}

#[test]
fn our_driver_on_their_queue() {
    let memory = their_memory();
    let ours = Arc::new(MemoryMap::try_from(&memory).unwrap());
    let device = TheirDevice(Arc::new(Mutex::new(TheirState {
        memory,
        status: Status::new(),
        queue: Queue::new(16).unwrap(),
        granted: 0,
        requests: Vec::new(),
    })));
    let mut driver = driver_of(device.clone(), ours).unwrap();
    for round in 0..50 {
        let granted = driver.alloc(PasidRange::ALL).unwrap();
        assert_eq!(granted, pasid(0x100 + round));
        driver.free(granted).unwrap();
    }
    let state = device.0.lock().unwrap();
    assert_eq!(state.requests.len(), 100);
    let free = [0xe1, 0, 0, 0, 0x31, 1, 0, 0, 0, 0, 0, 0];
    assert_eq!(state.requests[99], free);
    let unsupported = Err(Error::Refused(RequestStatus::Unsupported));
    drop(state);
    assert_eq!(driver.probe(1), unsupported, "they offer no PROBE");
}

#[test]
fn their_queue_on_our_model() {
    let memory = their_memory();
    let vm = SoftwareHost::new().create_vm(VmConfig::named("theirs")).unwrap();
    let mapped = vm.set_memory(MemoryMap::try_from(&memory).unwrap());
    assert!(vm.is_complete(mapped));
    let mut model = Model::new(Options::default(), vm.clone());
    let features = Features::new().with_version_1(true).into_bits();
    let revision = Revision::Experimental.feature().into_bits();
    model.set_driver_features(Features::from_bits(features | revision));

    let [descriptors, available, used] = [0x1000, 0x2000, 0x3000];
    let layout = QueueLayout {
        size: 8,
        descriptors: Gpa(descriptors),
        available: Gpa(available),
        used: Gpa(used),
    };
    for status in [11, 15] {
        let _ = model.write_status(Status::from_bits(status));
        if status == 11 {
            model.set_queue(REQUEST_QUEUE, layout).unwrap();
        }
    }
    assert_eq!(model.status(), Status::from_bits(15));

    // Two requests at once: one that grants exactly 0x4321, and one that frees it.
    let alloc = [0xe0, 0, 0, 0, 0x21, 0x43, 0, 0, 0x21, 0x43, 0, 0, 0, 0, 0, 0];
    let free = [0xe1, 0, 0, 0, 0x21, 0x43, 0, 0, 0, 0, 0, 0];
    memory.write_slice(&alloc, GuestAddress(0x8000)).unwrap();
    memory.write_slice(&free, GuestAddress(0x8100)).unwrap();
    memory.write_slice(&[0xaa; 0x200], GuestAddress(0x9000)).unwrap();
    let next = 1;
    let chains = [
        TheirDescriptor::new(0x8000, 16, next, 1),
        TheirDescriptor::new(0x9000, 8, WRITE, 0),
        TheirDescriptor::new(0x8100, 12, next, 3),
        TheirDescriptor::new(0x9100, 4, WRITE, 0),
    ];
    for (at, descriptor) in (descriptors..).step_by(16).zip(chains) {
        memory.write_obj(RawDescriptor::from(descriptor), GuestAddress(at)).unwrap();
    }
    // No flags, two entries: the chains that begin with descriptors 0 and 2.
    memory.write_slice(&[0, 0, 2, 0, 0, 0, 2, 0], GuestAddress(available)).unwrap();
    let mut theirs = Queue::new(8).unwrap();
    place(&mut theirs, layout);
    let heads: Vec<u16> = theirs.iter(&memory).unwrap().map(|chain| chain.head_index()).collect();
    assert_eq!(heads, [0, 2], "they see what we are to see");
    assert!(model.notify(REQUEST_QUEUE).schedule);
    assert!(model.poll(64).effects.used_buffers);

    assert_eq!(theirs.used_idx(&memory, Ordering::Acquire).unwrap(), Wrapping(2));
    // Which chain, and how many bytes of it were written.
    let mut elements = [0; 16];
    memory.read_slice(&mut elements, GuestAddress(used + 4)).unwrap();
    assert_eq!(elements, [0, 0, 0, 0, 8, 0, 0, 0, 2, 0, 0, 0, 4, 0, 0, 0]);
    let mut answer = [0; 9];
    memory.read_slice(&mut answer, GuestAddress(0x9000)).unwrap();
    assert_eq!(answer, [0x21, 0x43, 0, 0, 0, 0, 0, 0, 0xaa]);
    memory.read_slice(&mut answer[..5], GuestAddress(0x9100)).unwrap();
    assert_eq!(answer[..5], [0, 0, 0, 0, 0xaa]);
    let counters = model.counters();
    assert_eq!((counters.pasids_allocated, counters.pasids_freed), (1, 1));
    assert_eq!(vm.pasid_usage().live, 0);
}
