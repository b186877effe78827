//! The objects of a VM behind an SMMUv3: a guest's stream-table entry over the host's stage 2, its
//! commands, and its events.
#![cfg(not(loom))]

mod common;

use common::smmu::{asid, descriptor, AF, NOT_GLOBAL, PAGE, SMMU};
use common::*;
use iommu::{
    Channel, DmaError, Endpoint, FaultReason, Hardware, HwptFlags, HwptId, HwptParent, HwptRequest,
    InvalidField, Layout, ObjectError, SoftwareHost, Stage, StageOneTable, StageTwoConfig,
    StageTwoFormat, ViommuId, ViommuKind, Vm, VmConfig, EVENT_QUEUE_LIMIT,
};
use mem::{Gpa, GuestMemory, Iova};
use pci::RequesterId;
use pgtable::{ArmStageTwo, Granule};

const VA: u64 = 0x1_2345_6000;
/// The guest's number of the device.
const SID: u64 = 0x17;
/// Opcodes of commands.
const CFGI_CD: u64 = 0x05;
const TLBI_NH_VA: u64 = 0x12;

struct Streamed {
    guest: Guest,
    parent: HwptId,
    viommu: ViommuId,
    _endpoint: Endpoint,
    channel: Channel,
    /// The guest's table of 2^4 context descriptors.
    table: Gpa,
}

impl Streamed {
    fn new(stage_two: Option<StageTwoConfig>) -> Self {
        let host = SoftwareHost::with_hardware(Hardware::Smmuv3(SMMU));
        let mut guest = Guest::with(&host, VmConfig { stage_two, ..VmConfig::named("streamed") });
        let (_endpoint, channel) = guest.attach();
        let parent = HwptParent::Ioas(guest.vm.ioas().unwrap());
        let flags = HwptFlags::NEST_PARENT;
        let request = HwptRequest { device: DEVICE, parent, flags, data: None, fault: None };
        let parent = guest.vm.alloc_hwpt(&request).unwrap();
        let viommu = guest.vm.alloc_viommu(DEVICE, parent, ViommuKind::Smmuv3).unwrap();
        let table = guest.table();
        Self { guest, parent, viommu, _endpoint, channel, table }
    }

    fn shuffled() -> Self {
        let format = StageTwoFormat::Arm(ArmStageTwo::new(Granule::Kib4, 44, 48).unwrap());
        Self::new(Some(StageTwoConfig { format, layout: Layout::Shuffled { seed: 3 } }))
    }

    fn alloc(&self, words: [u64; 2]) -> Result<HwptId, ObjectError> {
        self.guest.vm.alloc_hwpt(&HwptRequest {
            device: DEVICE,
            parent: HwptParent::Viommu(self.viommu),
            flags: HwptFlags::empty(),
            data: Some(StageOneTable::Smmuv3(words)),
            fault: None,
        })
    }

    /// An entry with stage 1 by the guest's table: S1CDMax 4, S1DSS 1 (bypass).
    fn words(&self) -> [u64; 2] {
        [self.table.0 | 1 | 5 << 1 | 4 << 59, 1]
    }

    /// Has a substream map [`VA`] to `page`, which holds `word`; gives the root of its table.
    fn space(&mut self, substream: u64, page: u64, word: u64) -> Gpa {
        self.guest.memory.store_u64(Gpa(page), word).unwrap();
        let root = self.guest.table();
        self.guest.set_one(root, VA, 1, page | PAGE | AF | NOT_GLOBAL);
        let words = descriptor(root, asid(substream as u16));
        self.guest.set_descriptor(self.table, substream, words);
        root
    }

    fn read(&self, substream: u32) -> Result<u64, DmaError> {
        dma(&self.channel, with(substream), VA, Op::Read)
    }
}

#[test]
fn a_guests_stream_stands_on_the_hosts_stage_two() {
    for mut streamed in [Streamed::new(None), Streamed::shuffled()] {
        let vm = streamed.guest.vm.clone();
        streamed.space(1, 0x10_0000, 11);
        streamed.space(2, 0x11_0000, 22);
        let nested = streamed.alloc(streamed.words()).unwrap();
        // Blocked until something is attached, from the first attachment on.
        let unknown = vm.attach_hwpt(DEVICE, None, nested);
        assert_eq!(unknown, Err(ObjectError::Invalid(InvalidField::VirtualId)), "no vDEVICE");
        vm.alloc_vdevice(streamed.viommu, DEVICE, SID).unwrap();
        vm.attach_hwpt(DEVICE, None, nested).unwrap();
        assert_eq!((streamed.read(1), streamed.read(2)), (Ok(11), Ok(22)));
        // S1DSS: without substream, stage 1 is bypassed.
        assert_eq!(dma(&streamed.channel, without(), 0x10_0000, Op::Read), Ok(11));
        wait(&vm, vm.replace_hwpt(DEVICE, None, streamed.parent).unwrap());
        assert!(streamed.read(1).is_err());
        assert_eq!(dma(&streamed.channel, without(), 0x11_0000, Op::Read), Ok(22));
        wait(&vm, vm.replace_hwpt(DEVICE, None, nested).unwrap());
        assert_eq!(streamed.read(1), Ok(11));
        wait(&vm, vm.detach_hwpt(DEVICE, None).unwrap());
        assert!(streamed.read(1).is_err());
        assert!(dma(&streamed.channel, without(), 0x11_0000, Op::Read).is_err());
        vm.attach_hwpt(DEVICE, None, nested).unwrap();
        assert_eq!(streamed.read(2), Ok(22));
        let walks = vm.counters().stage_two_walks;
        assert_eq!(walks > 0, streamed.guest.host.table_bytes() > 0);
        wait(&vm, vm.close());
    }
}

#[test]
fn entries_that_abort_or_bypass_need_no_number_of_the_guests() {
    let streamed = Streamed::shuffled();
    let vm = streamed.guest.vm.clone();
    let abort = streamed.alloc([0, 0]).unwrap();
    let bypass = streamed.alloc([1 | 4 << 1, 0]).unwrap();
    vm.attach_hwpt(DEVICE, None, abort).unwrap();
    assert!(dma(&streamed.channel, without(), 0x10_0000, Op::Read).is_err());
    assert_eq!(vm.take_fault(), None, "an abort is not recorded");
    wait(&vm, vm.replace_hwpt(DEVICE, None, bypass).unwrap());
    assert_eq!(dma(&streamed.channel, without(), 0x10_0000, Op::Read), Ok(0));
}

#[test]
fn what_a_guest_must_not_ask_for_is_refused() {
    let streamed = Streamed::new(None);
    let refused = Err(ObjectError::Invalid(InvalidField::StreamTableEntry));
    let [word0, word1] = streamed.words();
    assert!(streamed.alloc([word0, word1]).is_ok());
    assert_eq!(streamed.alloc([1 | 7 << 1, 0]), refused, "Config 7");
    assert_eq!(streamed.alloc([word0, word1 | 1 << 19]), refused, "MEV");
    assert_eq!(streamed.alloc([word0, 3]), refused, "S1DSS 3");
    assert_eq!(streamed.alloc([word0 | 31 << 59, word1]), refused, "S1CDMax 31");
    let vm = &streamed.guest.vm;
    let request = HwptRequest {
        device: DEVICE,
        parent: HwptParent::Hwpt(streamed.parent),
        flags: HwptFlags::empty(),
        data: Some(StageOneTable::Smmuv3([word0, word1])),
        fault: None,
    };
    assert_eq!(vm.alloc_hwpt(&request), Err(ObjectError::Invalid(InvalidField::Parent)));
    let parent = HwptParent::Viommu(streamed.viommu);
    let flags = HwptFlags::PASID;
    let of_pasids = HwptRequest { parent, flags, ..request };
    assert_eq!(vm.alloc_hwpt(&of_pasids), Err(ObjectError::NotSupported));
    let kind = ViommuKind::Vtd;
    let other = vm.alloc_viommu(DEVICE, streamed.parent, kind);
    assert_eq!(other, Err(ObjectError::WrongModel));
}

#[test]
fn commands_forget_what_they_name() {
    for mut streamed in [Streamed::new(None), Streamed::shuffled()] {
        let vm = streamed.guest.vm.clone();
        let root = streamed.space(1, 0x10_0000, 11);
        let nested = streamed.alloc(streamed.words()).unwrap();
        vm.alloc_vdevice(streamed.viommu, DEVICE, SID).unwrap();
        vm.attach_hwpt(DEVICE, None, nested).unwrap();
        assert_eq!(streamed.read(1), Ok(11));
        // The page goes elsewhere; then the whole space.
        streamed.guest.memory.store_u64(Gpa(0x11_0000), 22).unwrap();
        streamed.guest.set_one(root, VA, 1, 0x11_0000 | PAGE | AF | NOT_GLOBAL);
        assert_eq!(streamed.read(1), Ok(11), "cached");
        let other_asid = [TLBI_NH_VA | 9 << 48, VA];
        wait(&vm, vm.invalidate_viommu(streamed.viommu, &[other_asid]).unwrap());
        assert_eq!(streamed.read(1), Ok(11), "cached under another");
        let page = [TLBI_NH_VA | 0xffff << 32 | 1 << 48, VA];
        wait(&vm, vm.invalidate_viommu(streamed.viommu, &[page]).unwrap());
        assert_eq!(streamed.read(1), Ok(22));
        streamed.guest.set_descriptor(streamed.table, 1, [0; 8]);
        let descriptor = [CFGI_CD | 1 << 12 | SID << 32, 1];
        wait(&vm, vm.invalidate_viommu(streamed.viommu, &[page, descriptor]).unwrap());
        assert!(streamed.read(1).is_err());
        // It stops at the first that it does not take.
        let foreign = [CFGI_CD | (SID + 1) << 32, 0];
        let stopped = vm.invalidate_viommu(streamed.viommu, &[page, descriptor, foreign, page]);
        assert_eq!(stopped.unwrap_err(), (2, ObjectError::Invalid(InvalidField::VirtualId)));
        let gone = ViommuId(999);
        let unknown = vm.invalidate_viommu(gone, &[page]).unwrap_err();
        assert_eq!(unknown, (0, ObjectError::NoObject(gone.into())));
    }
}

#[test]
fn numbers_of_devices_are_taken_once() {
    let streamed = Streamed::new(None);
    let vm = streamed.guest.vm.clone();
    let other = RequesterId::from_bits(0x99);
    let alloc = |device, id| vm.alloc_vdevice(streamed.viommu, device, id);
    assert_eq!(alloc(other, SID), Err(ObjectError::NoDevice(other)));
    let endpoint = vm.attach(other).unwrap();
    assert_eq!(alloc(DEVICE, 1 << 32), Err(ObjectError::Invalid(InvalidField::VirtualId)));
    let vdevice = alloc(DEVICE, SID).unwrap();
    assert_eq!(alloc(DEVICE, SID + 1), Err(ObjectError::Busy));
    assert_eq!(alloc(other, SID), Err(ObjectError::Busy));
    assert_eq!(vm.destroy(streamed.viommu.into()), Err(ObjectError::Busy));
    vm.destroy(vdevice.into()).unwrap();
    let of_other = alloc(other, SID).unwrap();
    // A device that goes takes its number along.
    wait(&vm, endpoint.detach());
    assert_eq!(vm.destroy(of_other.into()), Err(ObjectError::NoObject(of_other.into())));
    vm.destroy(streamed.viommu.into()).unwrap();
    vm.destroy(streamed.parent.into()).unwrap();
}

#[test]
fn events_name_the_guests_device_and_their_loss_shows() {
    let mut streamed = Streamed::shuffled();
    let vm = streamed.guest.vm.clone();
    streamed.space(1, 0x10_0000, 11);
    let nested = streamed.alloc(streamed.words()).unwrap();
    let depth = Err(ObjectError::Invalid(InvalidField::Range));
    assert_eq!(vm.alloc_event_queue(streamed.viommu, 0), depth);
    let queue = vm.alloc_event_queue(streamed.viommu, 2).unwrap();
    let second = vm.alloc_event_queue(streamed.viommu, EVENT_QUEUE_LIMIT + 1);
    assert_eq!(second, Err(ObjectError::Busy));
    let vdevice = vm.alloc_vdevice(streamed.viommu, DEVICE, SID).unwrap();
    vm.attach_hwpt(DEVICE, None, nested).unwrap();
    assert_eq!(vm.take_event(queue), Ok(None));
    let fault = |at| assert!(dma(&streamed.channel, with(1), at, Op::Read).is_err());
    for page in 1..=4 {
        fault(VA + page * 0x1000);
    }
    for sequence in [0, 1] {
        let event = vm.take_event(queue).unwrap().unwrap();
        assert_eq!((event.sequence, event.virtual_id), (sequence, SID));
        assert_eq!(event.fault.pasid, Some(pasid(1)));
        assert_eq!(event.fault.address, Iova(VA + u64::from(sequence + 1) * 0x1000));
        let reason = FaultReason::NotPresent { stage: Stage::One, level: 1 };
        assert_eq!(event.fault.reason, reason);
    }
    assert_eq!(vm.take_event(queue), Ok(None));
    // Two are lost: the next has number 4.
    fault(VA + 0x9000);
    assert_eq!(vm.take_event(queue).unwrap().unwrap().sequence, 4);
    // What the host's stage 2 stops is not the guest's affair.
    let page = mem::Range::<Gpa>::new(Gpa(0x10_0000), 0x1000).unwrap();
    wait(&vm, vm.clear_stage_two(page).unwrap());
    fault(VA);
    assert_eq!(vm.take_event(queue), Ok(None));
    // Nor does one without a number have events.
    vm.destroy(vdevice.into()).unwrap();
    fault(VA + 0x9000);
    assert_eq!(vm.take_event(queue), Ok(None));
    vm.destroy(queue.into()).unwrap();
    assert_eq!(vm.take_event(queue), Err(ObjectError::NoObject(queue.into())));
    assert!(vm.alloc_event_queue(streamed.viommu, 1).is_ok());
}
