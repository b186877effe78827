//! A machine with its remapping unit, on a host called directly and on one behind encoded bytes:
//! the guest, its device and its registers cannot tell which.

use std::sync::{Arc, Mutex};

use iommu::{AddressSpace, Channel, Host, Pasid, SoftwareHost, Vm, VmConfig};
use machine::{Machine, MessageSink, RegisterPage};
use mem::{
    Access, Backing, BackingId, Claim, Gpa, GuestMemory, HeapMemory, Iova, Range, ReporterId,
};
use pci::RequesterId;
use vfio::{Door, DoorVm};
use vtd::model::{Caps, Options, Progress};

/// 00:10.0.
const DEVICE: RequesterId = RequesterId::from_bits(0x80);
const REPORTER: ReporterId = ReporterId(0);
const MEMORY: u64 = 1 << 20;
const NO_PASID: AddressSpace = AddressSpace { pasid: None, privileged: false };
const PASID: AddressSpace = AddressSpace { pasid: Pasid::new(1), privileged: false };
/// Where [`PAGE`] is mapped in the address space of [`PASID`], and the entry that does so.
const VIRTUAL: u64 = 0x40_0000;
const ENTRY: u64 = 0x8000;
const PAGE: u64 = 0x2_0000;
const OTHER_PAGE: u64 = 0x2_1000;
const STATUS: u64 = 0x9000;
const QUEUE: u64 = 0xa000;

// Registers.
const GCMD: u64 = 0x18;
const RTADDR: u64 = 0x20;
const FSTS: u64 = 0x34;
const FECTL: u64 = 0x38;
const IQT: u64 = 0x88;
const IQA: u64 = 0x90;
const FIRST_FAULT: u64 = 0x220;
const TE: u64 = 1 << 31;
const SRTP: u64 = 1 << 30;
const QIE: u64 = 1 << 26;

#[derive(Default)]
struct Sink(Mutex<Vec<(Gpa, u32)>>);

impl MessageSink for Sink {
    fn send(&self, address: Gpa, data: u32) {
        self.0.lock().unwrap().push((address, data));
    }
}

struct Guest<V: Vm> {
    machine: Machine<V>,
    sink: Arc<Sink>,
}

impl<V: Vm> Guest<V> {
    fn on(host: &impl Host<Vm = V>) -> Self {
        let vm = host.create_vm(VmConfig::named("guest")).unwrap();
        let sink = Arc::<Sink>::default();
        let caps = Caps::new(Options::default()).unwrap();
        let machine = Machine::new(vm, caps, sink.clone(), Arc::new(|| ()));
        let backing: Arc<dyn Backing> = Arc::new(HeapMemory::new(MEMORY as usize).unwrap());
        let claim = Claim {
            range: Range::<Gpa>::new(Gpa(0), MEMORY).unwrap(),
            id: BackingId { dev: 1, ino: 1, offset: 0 },
            backing,
            offset: 0,
            access: Access::Write,
        };
        machine.map(REPORTER, claim).unwrap();
        Self { machine, sink }
    }

    fn store(&self, at: u64, words: &[u64]) {
        let memory = self.machine.vm().memory();
        for (at, &word) in (at..).step_by(8).zip(words) {
            memory.store_u64(Gpa(at), word).unwrap();
        }
    }

    fn load(&self, at: u64) -> u64 {
        self.machine.vm().memory().load_u64(Gpa(at)).unwrap()
    }

    fn write(&self, offset: u64, value: u64, len: usize) {
        self.machine.write(offset, &value.to_le_bytes()[..len]);
    }

    fn read(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.machine.read(offset, &mut data);
        u64::from_le_bytes(data)
    }

    /// Tables, queue, translation: PASID 1 has a four-level table.
    fn enable(&self) {
        self.store(0x1000, &[0, 0x2001]);
        self.store(0x2000, &[0x3000 | 7 << 9 | 0b1101, 0, 0, 0]);
        self.store(0x3000, &[0x4001]);
        self.store(0x4040, &[1 << 6 | 2 << 2 | 1, 1 << 23 | 1, 0x5000, 0, 0, 0, 0, 0]);
        self.store(0x5000, &[0x6007]);
        self.store(0x6000, &[0x7007]);
        self.store(0x7010, &[ENTRY | 7]);
        self.store(ENTRY, &[PAGE | 7]);
        self.write(IQA, QUEUE | 0x800, 8);
        self.write(GCMD, QIE, 4);
        self.write(RTADDR, 0x1400, 8);
        self.write(GCMD, SRTP | QIE, 4);
        self.write(GCMD, TE | QIE, 4);
    }

    /// Forgets [`VIRTUAL`] of [`PASID`], and has `data` written when that is over.
    fn invalidate(&self, data: u64) {
        let tail = self.read(IQT);
        self.store(QUEUE + tail, &[0x0000_0001_0001_0036, VIRTUAL, 0, 0]);
        self.store(QUEUE + tail + 32, &[0x25 | data << 32, STATUS, 0, 0]);
        self.write(IQT, tail + 64, 8);
    }
}

/// What a device and its guest live through; everything that was seen.
fn life<V: Vm>(guest: &Guest<V>) -> Vec<String> {
    let mut seen = Vec::new();
    let device = guest.machine.vm().attach(DEVICE).unwrap();
    let channel = device.channel();
    let read = |channel: &Channel, space, at| {
        let mut bytes = [0; 8];
        let result = channel.enter().read(space, Iova(at), &mut bytes);
        format!("{result:?} {:#x}", u64::from_le_bytes(bytes))
    };
    guest.store(PAGE, &[0xaaaa]);
    guest.store(OTHER_PAGE, &[0xbbbb]);
    seen.push(read(&channel, NO_PASID, PAGE));
    seen.push(read(&channel, PASID, VIRTUAL));
    guest.enable();
    seen.push(read(&channel, PASID, VIRTUAL));
    seen.push(format!("{:#x}", guest.load(ENTRY)));

    // Remapped under an access in flight: the wait descriptor waits for that.
    let access = channel.enter();
    guest.store(ENTRY, &[OTHER_PAGE | 7]);
    guest.invalidate(7);
    for _ in 0..3 {
        seen.push(format!("{:?}", guest.machine.poll()));
    }
    seen.push(format!("{}", guest.load(STATUS)));
    drop(access);
    while guest.machine.poll() != Progress::Idle {}
    seen.push(format!("{}", guest.load(STATUS)));
    seen.push(read(&channel, PASID, VIRTUAL));

    // A fault with its message.
    guest.write(FECTL + 4, 0x41, 4);
    guest.write(FECTL + 8, 0xfee0_1000, 4);
    guest.write(FECTL, 0, 4);
    seen.push(read(&channel, PASID, VIRTUAL + 0x1000));
    while guest.machine.poll() != Progress::Idle {}
    let record = [guest.read(FIRST_FAULT), guest.read(FIRST_FAULT + 8)];
    seen.push(format!("{:#x} {record:#x?} {:?}", guest.read(FSTS) as u32, guest.sink.0));

    // Memory goes away, and then all of it.
    let whole = Range::<Gpa>::new(Gpa(0), MEMORY).unwrap();
    let ticket = guest.machine.unmap(REPORTER, whole).unwrap();
    seen.push(format!("{}", guest.machine.vm().is_complete(ticket)));
    seen.push(read(&channel, PASID, VIRTUAL));
    seen.push(format!("{:?} {:?}", guest.machine.unit_counters(), guest.machine.vm().counters()));
    let ticket = guest.machine.close();
    seen.push(format!("{}", guest.machine.vm().is_complete(ticket)));
    seen.push(read(&channel, NO_PASID, PAGE));
    seen
}

#[test]
fn a_machine_cannot_tell() {
    let direct = life(&Guest::on(&SoftwareHost::new()));
    let plain = Door::direct(SoftwareHost::new());
    assert_eq!(life(&Guest::on(&plain)), direct);
    assert_eq!(plain.counts(), None);

    let encoded = Door::encoded(SoftwareHost::new());
    let guest = Guest::on(&encoded);
    let through = life(&guest);
    assert_eq!(direct, through);
    let DoorVm::Encoded(vm) = guest.machine.vm() else { panic!("called directly") };
    assert_eq!(vm.failures().count, 0);
    assert_eq!(guest.machine.vm().host_vm().unwrap().name(), "guest");
    let counts = encoded.counts().unwrap();
    assert_eq!(counts.refused, 0);
    assert!(counts.calls > 20, "{counts:?}");

    // That it is what it should be, and not the same mistake twice.
    assert_eq!(through[0], "Ok(()) 0xaaaa");
    assert!(through[1].starts_with("Err(Refused"), "{}", through[1]);
    assert_eq!(through[2], "Ok(()) 0xaaaa");
    assert_eq!(through[7..10], ["0", "7", "Ok(()) 0xbbbb"]);
    assert!(through[10].starts_with("Err(Page"), "{}", through[10]);
    assert!(through[11].contains("65)"), "the message: {}", through[11]);
    assert_eq!(through.last().unwrap(), "Err(Detached) 0x0");
}
