use std::sync::atomic::{AtomicUsize, Ordering};

use iommu::{
    AddressSpace, AttachError, Channel, DmaError, Endpoint, Host, SoftwareHost, SoftwareVm,
    VmConfig,
};
use mem::{Access, Backing, BackingId, GuestMemory, HeapMemory, Iova};
use pci::RequesterId;
use vtd::model::Options;

use super::*;

const DEVICE: RequesterId = RequesterId::from_bits(0x80);
const FIRST: ReporterId = ReporterId(0);
const SECOND: ReporterId = ReporterId(1);
const LEN: usize = 0x4000;

const GCMD: u64 = 0x18;
const IQT: u64 = 0x88;
const IQA: u64 = 0x90;
const IECTL: u64 = 0xa0;
const QUEUED_INVALIDATION: u32 = 1 << 26;
/// A wait descriptor that asks for the completion event.
const WAIT_WITH_INTERRUPT: u64 = 5 | 1 << 4;

/// Remembers the messages, and looks at the machine as it gets them: no lock may be held then.
#[derive(Default)]
struct Sink {
    machine: Mutex<Option<Arc<Machine<SoftwareVm>>>>,
    messages: Mutex<Vec<(Gpa, u32)>>,
}

impl MessageSink for Sink {
    fn send(&self, address: Gpa, data: u32) {
        if let Some(machine) = &*self.machine.lock().unwrap() {
            machine.read(0, &mut [0; 4]);
        }
        self.messages.lock().unwrap().push((address, data));
    }
}

struct Rig {
    host: SoftwareHost,
    machine: Arc<Machine<SoftwareVm>>,
    sink: Arc<Sink>,
    woken: Arc<AtomicUsize>,
}

impl Rig {
    fn new() -> Self {
        let host = SoftwareHost::new();
        let vm = host.create_vm(VmConfig::named("test")).unwrap();
        let (sink, woken) = (Arc::<Sink>::default(), Arc::<AtomicUsize>::default());
        let count = woken.clone();
        let waker = Arc::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        let caps = Caps::new(Options::default()).unwrap();
        let machine = Arc::new(Machine::new(vm, caps, sink.clone(), waker));
        *sink.machine.lock().unwrap() = Some(machine.clone());
        Self { host, machine, sink, woken }
    }

    fn attach(&self) -> (Endpoint, Channel) {
        let endpoint = self.machine.vm().attach(DEVICE).unwrap();
        let channel = endpoint.channel();
        (endpoint, channel)
    }

    fn byte(&self, at: u64) -> Option<u8> {
        let mut byte = [0];
        self.machine.vm().memory().read(Gpa(at), &mut byte).ok().map(|()| byte[0])
    }

    fn write32(&self, offset: u64, value: u32) {
        self.machine.write(offset, &value.to_le_bytes());
    }

    fn write64(&self, offset: u64, value: u64) {
        self.machine.write(offset, &value.to_le_bytes());
    }

    fn read32(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.machine.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // The sink of this test is the one that knows its machine.
        *self.sink.machine.lock().unwrap() = None;
    }
}

/// A file's worth of memory that holds `byte`, and its identity.
fn file(ino: u64, byte: u8) -> (BackingId, Arc<HeapMemory>) {
    let memory = Arc::new(HeapMemory::new(LEN).unwrap());
    let map = mem::MemoryMap::new(vec![mem::Segment {
        range: Range::<Gpa>::new(Gpa(0), LEN as u64).unwrap(),
        backing: memory.clone(),
        offset: 0,
        access: Access::Write,
    }]);
    map.unwrap().write(Gpa(0), &[byte; LEN]).unwrap();
    (BackingId { dev: 1, ino, offset: 0 }, memory)
}

fn claim(at: u64, (id, memory): &(BackingId, Arc<HeapMemory>)) -> Claim {
    let range = range(at);
    Claim { range, id: *id, backing: memory.clone(), offset: 0, access: Access::Write }
}

fn range(at: u64) -> Range<Gpa> {
    Range::<Gpa>::new(Gpa(at), LEN as u64).unwrap()
}

const UNTRANSLATED: AddressSpace = AddressSpace { pasid: None, privileged: false };

fn dma_read(channel: &Channel, at: u64) -> Result<u8, DmaError> {
    let mut byte = [0];
    channel.enter().read(UNTRANSLATED, Iova(at), &mut byte).map(|()| byte[0])
}

#[test]
fn memory_stays_until_the_last_that_reports_it_takes_it_back() {
    let rig = Rig::new();
    let ram = file(1, 0x11);
    rig.machine.map(FIRST, claim(0, &ram)).unwrap();
    rig.machine.map(SECOND, claim(0, &ram)).unwrap();
    assert_eq!((rig.machine.claims(), rig.machine.contradictions()), (2, 0));
    let _ = rig.machine.unmap(FIRST, range(0)).unwrap();
    assert_eq!(rig.byte(0), Some(0x11));
    let _ = rig.machine.unmap(SECOND, range(0)).unwrap();
    assert_eq!(rig.byte(0), None);
    assert_eq!(rig.machine.claims(), 0);
}

#[test]
fn of_reports_that_contradict_each_other_the_newest_holds() {
    let rig = Rig::new();
    rig.machine.map(FIRST, claim(0, &file(1, 0x11))).unwrap();
    rig.machine.map(SECOND, claim(0x1000, &file(2, 0x22))).unwrap();
    assert_eq!(rig.machine.contradictions(), 1);
    let at = |at| rig.byte(at);
    assert_eq!((at(0xfff), at(0x1000), at(0x4fff)), (Some(0x11), Some(0x22), Some(0x22)));
    let _ = rig.machine.unmap(SECOND, range(0x1000)).unwrap();
    assert_eq!((at(0xfff), at(0x1000), at(0x4fff)), (Some(0x11), Some(0x11), None));
    assert_eq!(rig.machine.contradictions(), 1, "it has happened");
}

#[test]
fn a_refused_report_changes_nothing() {
    let rig = Rig::new();
    let ram = file(1, 0x11);
    rig.machine.map(FIRST, claim(0, &ram)).unwrap();
    let segments = rig.machine.vm().memory().segments().len();

    let again = rig.machine.map(FIRST, claim(0x1000, &ram));
    assert_eq!(again, Err(ClaimError::Claimed { gpa: Gpa(0) }));
    let too_long = Claim { offset: 1, ..claim(0x10_0000, &ram) };
    assert!(matches!(rig.machine.map(FIRST, too_long), Err(ClaimError::Layout(_))));
    let foreign = rig.machine.unmap(SECOND, range(0)).map(drop);
    assert_eq!(foreign, Err(ClaimError::NotClaimed { gpa: Gpa(0) }));
    let split = Range::<Gpa>::new(Gpa(0), 0x1000).unwrap();
    let split = rig.machine.unmap(FIRST, split).map(drop);
    assert_eq!(split, Err(ClaimError::Splits { gpa: Gpa(0) }));

    assert_eq!(rig.machine.claims(), 1);
    assert_eq!(rig.machine.vm().memory().segments().len(), segments);
    assert_eq!(rig.byte(0), Some(0x11));
}

#[test]
fn unmapped_memory_is_out_of_use_when_the_ticket_is_complete() {
    let rig = Rig::new();
    let ram = file(1, 0x11);
    rig.machine.map(FIRST, claim(0, &ram)).unwrap();
    let (_endpoint, channel) = rig.attach();
    let access = channel.enter();
    let window = access.window(UNTRANSLATED, Iova(0), 8, Access::Read).unwrap();
    let ticket = rig.machine.unmap(FIRST, range(0)).unwrap();
    assert!(!rig.machine.vm().is_complete(ticket), "an access is in flight");
    assert_eq!(window.load_u64(0), Some(0x1111_1111_1111_1111), "and may go on");
    drop(access);
    assert!(rig.machine.vm().is_complete(ticket));
    assert!(matches!(dma_read(&channel, 0), Err(DmaError::Refused { .. })));
    let file = ram.1;
    assert_eq!(Arc::strong_count(&file), 1, "nobody but this test holds the memory");
    assert_eq!(file.len(), LEN);
}

#[test]
fn the_reset_of_one_function_leaves_what_the_others_report() {
    let rig = Rig::new();
    let (ram, own) = (file(1, 0x11), file(2, 0x22));
    rig.machine.map(FIRST, claim(0, &ram)).unwrap();
    rig.machine.map(FIRST, claim(0x10_0000, &own)).unwrap();
    rig.machine.map(SECOND, claim(0, &ram)).unwrap();
    let ticket = rig.machine.forget(FIRST);
    assert!(rig.machine.vm().is_complete(ticket));
    assert_eq!((rig.byte(0), rig.byte(0x10_0000)), (Some(0x11), None));
    assert_eq!(rig.machine.claims(), 1);
    assert_eq!(Arc::strong_count(&own.1), 1);
    // It comes back and reports again.
    rig.machine.map(FIRST, claim(0x10_0000, &own)).unwrap();
    assert_eq!(rig.byte(0x10_0000), Some(0x22));
}

#[test]
fn the_end_of_the_vm_frees_everything() {
    let rig = Rig::new();
    let ram = file(1, 0x11);
    rig.machine.map(FIRST, claim(0, &ram)).unwrap();
    rig.machine.map(SECOND, claim(0, &ram)).unwrap();
    let (_endpoint, channel) = rig.attach();
    assert_eq!(dma_read(&channel, 0), Ok(0x11));
    let access = channel.enter();
    let ticket = rig.machine.close();
    assert!(!rig.machine.vm().is_complete(ticket), "an access is in flight");
    drop(access);
    assert!(rig.machine.vm().is_complete(ticket));

    assert_eq!(dma_read(&channel, 0), Err(DmaError::Detached));
    assert_eq!(rig.machine.vm().attach(DEVICE).map(drop), Err(AttachError::Closed));
    assert_eq!(rig.machine.vm().counters().devices, 0);
    assert_eq!(rig.host.vms(), 0);
    assert_eq!(rig.machine.claims(), 0);
    assert_eq!(Arc::strong_count(&ram.1), 1, "nobody but this test holds the memory");

    // Whoever does not know yet does no harm.
    assert!(rig.machine.vm().is_complete(rig.machine.close()), "twice");
    assert!(rig.machine.vm().is_complete(rig.machine.forget(FIRST)));
    rig.write32(GCMD, QUEUED_INVALIDATION);
    assert_eq!(rig.machine.poll(), Progress::Idle);
    assert_eq!(rig.byte(0), None);
}

#[test]
fn a_completion_event_is_sent_to_the_sink() {
    let rig = Rig::new();
    rig.machine.map(FIRST, claim(0, &file(1, 0))).unwrap();
    rig.machine.vm().memory().store_u64(Gpa(0x1000), WAIT_WITH_INTERRUPT).unwrap();
    rig.write32(IECTL + 4, 0x4321);
    rig.write32(IECTL + 8, 0xfee0_1000);
    rig.write32(IECTL, 0);
    rig.write64(IQA, 0x1000);
    rig.write32(GCMD, QUEUED_INVALIDATION);
    let woken = rig.woken.load(Ordering::Relaxed);
    rig.write64(IQT, 16);
    assert_eq!(rig.woken.load(Ordering::Relaxed), woken + 1, "the tail asks for a poll");
    assert_eq!(*rig.sink.messages.lock().unwrap(), [], "and does nothing itself");

    assert_eq!(rig.machine.poll(), Progress::Idle);
    assert_eq!(*rig.sink.messages.lock().unwrap(), [(Gpa(0xfee0_1000), 0x4321)]);
    let counters = rig.machine.unit_counters();
    assert_eq!((counters.waits, counters.messages), (1, 1));
}

#[test]
fn a_fault_wakes_whoever_polls() {
    let rig = Rig::new();
    rig.machine.map(FIRST, claim(0, &file(1, 0))).unwrap();
    let (_endpoint, channel) = rig.attach();
    // Set root table pointer, then translation, over a root table full of zeros.
    rig.write64(0x20, 0x1000);
    rig.write32(GCMD, 1 << 30);
    assert_eq!(rig.machine.poll(), Progress::Idle);
    rig.write32(GCMD, 1 << 31);
    assert_eq!(rig.machine.poll(), Progress::Idle);
    let woken = rig.woken.load(Ordering::Relaxed);
    assert!(dma_read(&channel, 0).is_err());
    assert_eq!(rig.woken.load(Ordering::Relaxed), woken + 1);
    assert_eq!(rig.read32(0x34) & 2, 0, "not recorded yet");
    assert_eq!(rig.machine.poll(), Progress::Idle);
    assert_eq!(rig.read32(0x34) & 2, 2, "FSTS.PPF");
}

#[test]
fn reset_is_that_of_the_unit_and_keeps_the_memory() {
    let rig = Rig::new();
    rig.machine.map(FIRST, claim(0, &file(1, 0x11))).unwrap();
    let (_endpoint, channel) = rig.attach();
    rig.write64(0x20, 0x1000);
    rig.write32(GCMD, 1 << 30);
    rig.machine.poll();
    rig.write32(GCMD, 1 << 31 | QUEUED_INVALIDATION);
    rig.machine.poll();
    assert_eq!(rig.read32(0x1c), 1 << 31 | 1 << 30 | QUEUED_INVALIDATION);
    assert!(dma_read(&channel, 0).is_err());

    let ticket = Machine::reset(&rig.machine);
    assert!(rig.machine.vm().is_complete(ticket));
    assert_eq!(rig.read32(0x1c), 0);
    assert_eq!(dma_read(&channel, 0), Ok(0x11), "as without an IOMMU");
    assert_eq!(rig.machine.claims(), 1);
}

#[test]
fn the_register_page_is_the_units() {
    let rig = Rig::new();
    let page: &dyn RegisterPage = &*rig.machine;
    let mut version = [0; 4];
    page.read(0, &mut version);
    assert_eq!(u32::from_le_bytes(version), vtd::spec::VERSION);
    page.write(0x20, &0x5000u64.to_le_bytes());
    assert_eq!(rig.read32(0x20), 0x5000);
    page.reset();
    assert_eq!(rig.read32(0x20), 0);
}
