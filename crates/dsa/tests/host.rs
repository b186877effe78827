//! The device behind a real IOMMU host: refused PASIDs, detached devices, VMs that go away.

mod rig;

use std::sync::{Arc, Mutex};

use dsa::model::{Config, Device, Engine, Ran};
use dsa::spec::*;
use iommu::{ContextFault, ContextSource, DeviceContext, FaultReason};
use iommu::{Host, Invalidation, SoftwareHost, Vm, VmConfig};
use mem::{Gpa, GuestMemory, MemoryMap};
use pci::{Function, InterruptSink, RequesterId};
use rig::{memory_move, FLAT, GRPCFG, WQCFG};

const RECORD: u64 = FLAT + 0x1000;

struct Bench<V: Vm> {
    vm: V,
    device: Device,
    engine: Engine,
}

/// Translation is off: requests without a PASID pass through, requests with one are refused.
fn bench(mode: WqMode, ats: bool) -> Bench<impl Vm> {
    let vm = SoftwareHost::new().create_vm(VmConfig::named("test")).unwrap();
    let memory = MemoryMap::anonymous(&[(Gpa(FLAT), 0x80_0000)]).unwrap();
    let ticket = vm.set_memory(memory);
    assert!(vm.is_complete(ticket));
    let endpoint = vm.attach(RequesterId::from_bits(0x80)).unwrap();
    let device = Device::new(Config::default(), endpoint).unwrap();
    let engine = device.engine(0).unwrap();
    bring_up(&device, mode, ats);
    Bench { vm, device, engine }
}

fn bring_up(device: &Device, mode: WqMode, ats: bool) {
    device.config_write(0x04, &6u16.to_le_bytes());
    device.config_write(0x236, &1u16.to_le_bytes());
    device.config_write(0x226, &(u16::from(ats) << 15).to_le_bytes());
    let limits = WqLimits::new().with_max_transfer_shift(21).with_max_batch_shift(5);
    let config = WqConfig { size: 8, mode, limits, ..WqConfig::default() };
    for (i, dword) in config.to_dwords().into_iter().enumerate() {
        device.bar_write(0, WQCFG + i as u64 * 4, &dword.to_le_bytes());
    }
    device.bar_write(0, GRPCFG, &1u64.to_le_bytes());
    device.bar_write(0, GRPCFG + 32, &1u64.to_le_bytes());
    for command in [1u32 << 20, 6 << 20] {
        device.bar_write(0, 0xa0, &command.to_le_bytes());
        assert_eq!(read32(device, 0xa8), 0);
    }
}

fn read32(device: &Device, at: u64) -> u32 {
    let mut data = [0; 4];
    device.bar_read(0, at, &mut data);
    u32::from_le_bytes(data)
}

fn mode() -> WqMode {
    WqMode::new().with_dedicated(true).with_priority(1)
}

impl<V: Vm> Bench<V> {
    fn post(&self, operation: Operation) {
        let descriptor =
            Descriptor::new(operation).with_record(Iova(RECORD)).with_flags(Flags::REQUEST_RECORD);
        self.device.bar_write(2, 0x1000, &descriptor.to_bytes());
    }

    /// The first fault of a copy: PASID, address, and whether it was a translation request.
    fn first_fault(&mut self) -> (Option<iommu::Pasid>, Iova, bool) {
        self.post(memory_move(FLAT, FLAT + 64, 6));
        assert_eq!(self.engine.run(10), Ran::Idle);
        let fault = self.vm.take_fault().unwrap();
        while self.vm.take_fault().is_some() {}
        (fault.pasid, fault.address, fault.translation_request)
    }

    fn status(&self) -> u8 {
        self.vm.memory().load_u64(Gpa(RECORD)).unwrap() as u8
    }

    fn swerror(&self) -> SwError {
        SwError::from_qwords(core::array::from_fn(|i| {
            let at = 0xc0 + i as u64 * 8;
            u64::from(read32(&self.device, at)) | u64::from(read32(&self.device, at + 4)) << 32
        }))
    }
}

#[test]
fn without_pasid_requests_pass_through() {
    let mut bench = bench(mode(), true);
    bench.vm.memory().write(Gpa(FLAT), b"through").unwrap();
    bench.post(memory_move(FLAT, FLAT + 64, 7));
    assert_eq!(bench.engine.run(10), Ran::Idle);
    let mut copy = [0; 7];
    bench.vm.memory().read(Gpa(FLAT + 64), &mut copy).unwrap();
    assert_eq!((bench.status(), &copy), (1, b"through"));
}

/// A PASID that nobody bound: no byte moves, not even the record's, and SWERROR names it.
#[test]
fn a_pasid_that_was_never_bound() {
    let mut bench = bench(mode().with_pasid_enable(true).with_pasid(0xabcde), true);
    bench.vm.memory().write(Gpa(FLAT), b"secret").unwrap();
    bench.post(memory_move(FLAT, FLAT + 64, 6));
    assert_eq!(bench.engine.run(10), Ran::Idle);
    assert_eq!(bench.vm.memory().load_u64(Gpa(FLAT + 64)), Ok(0));
    assert_eq!(bench.status(), 0);
    let error = bench.swerror();
    assert_eq!(error.head.code(), Status::TranslationError as u8);
    assert_eq!((error.head.pasid(), error.address), (0xabcde, Iova(RECORD)));
    assert!(error.head.valid() && error.head.write());
    let counters = bench.device.counters();
    assert_eq!((counters.ended(Status::TranslationError), counters.bytes), (1, 0));
    assert_eq!(counters.records_lost, 1);
}

/// The same without translation requests: reads fail on the bus, and the record is lost.
#[test]
fn a_pasid_that_was_never_bound_without_ats() {
    let mut bench = bench(mode().with_pasid_enable(true).with_pasid(0xabcde), false);
    bench.post(memory_move(FLAT, FLAT + 64, 6));
    assert_eq!(bench.engine.run(10), Ran::Idle);
    assert_eq!((bench.status(), bench.swerror()), (0, SwError::default()));
    assert_eq!(bench.device.counters().ended(Status::ReadError), 1);
}

#[test]
fn a_vm_that_is_closed_in_the_middle_of_a_copy() {
    let mut bench = bench(mode(), true);
    bench.post(memory_move(FLAT + 0x1_0000, FLAT + 0x40_0000, 0x20_0000));
    assert_eq!(bench.engine.run(4), Ran::More);
    let memory = bench.vm.memory();
    let ticket = bench.vm.close();
    assert!(bench.vm.is_complete(ticket), "no access is in flight between steps");
    assert_eq!(bench.engine.run(1), Ran::More);
    assert_eq!(bench.engine.run(1), Ran::Idle, "the copy is given up");
    assert_eq!(memory.load_u64(Gpa(RECORD)), Ok(0));
    assert_eq!(bench.swerror(), SwError::default());
    assert_eq!(bench.device.counters().abandoned, 1);
    // Commands still end.
    bench.device.bar_write(0, 0xa0, &(2u32 << 20).to_le_bytes());
    assert_eq!(read32(&bench.device, 0xa8), 0);
}

/// Tables in which no device is found.
struct Empty;

impl ContextSource for Empty {
    fn lookup(&self, _: &dyn GuestMemory, _: RequesterId) -> Result<DeviceContext, ContextFault> {
        Err(ContextFault { reason: FaultReason::ContextNotPresent, fault_disable: false })
    }
}

/// The IOMMU hears of ATS when the guest turns it on, and of its end by a reset.
#[test]
fn translation_requests_end_with_a_reset() {
    let mut bench = bench(mode(), true);
    bench.vm.set_contexts(Some(Arc::new(Empty)));
    let ticket = bench.vm.invalidate(Invalidation::ContextAll);
    assert!(bench.vm.is_complete(ticket));
    assert_eq!(bench.first_fault(), (None, Iova(FLAT), true));
    bench.device.reset();
    bring_up(&bench.device, mode(), false);
    assert_eq!(bench.first_fault(), (None, Iova(FLAT), false));
}

/// A sink that looks at the device when it is called, as nothing forbids it to.
struct Nosy(Mutex<Option<Device>>, Mutex<Vec<u32>>);

impl InterruptSink for Nosy {
    fn raise(&self, _vector: u16) {
        let device = self.0.lock().unwrap().clone().unwrap();
        self.1.lock().unwrap().push(read32(&device, 0x98));
    }
}

#[test]
fn interrupts_are_raised_without_the_lock() {
    let bench = bench(mode(), true);
    let nosy = Arc::new(Nosy(Mutex::new(Some(bench.device.clone())), Mutex::default()));
    bench.device.set_interrupts(Some(nosy.clone()));
    bench.device.bar_write(0, 0xa0, &(1u32 << 31 | 3 << 20).to_le_bytes());
    assert_eq!(*nosy.1.lock().unwrap(), [2], "and INTCAUSE is there already");
    bench.device.set_interrupts(None);
    *nosy.0.lock().unwrap() = None;
}

/// Resources go back: dropping the device and its engines detaches it.
#[test]
fn a_device_that_is_dropped_detaches() {
    let bench = bench(mode(), true);
    assert_eq!(bench.vm.counters().devices, 1);
    let Bench { vm, device, engine } = bench;
    drop(device);
    assert_eq!(vm.counters().devices, 1, "an engine is left");
    drop(engine);
    assert_eq!(vm.counters().devices, 0);
}
