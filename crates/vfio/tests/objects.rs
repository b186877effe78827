//! The objects of a VM through bytes against the same calls made directly: for every call, what the
//! host sees is the same, and so is every answer and every error.

use std::time::Duration;

use iommu::{
    EventQueueId, Fault, FaultQueueId, FaultReason, GuestPasid, Hardware, Host, HwptFlags, HwptId,
    HwptParent, HwptRequest, InvalidField, IoasId, ObjectError, ObjectId, PageRequest,
    PageResponse, PageResponseError, Pasid, PrgIndex, ResponseCode, SmmuCaps, Stage,
    StageOneInvalidation, StageOneTable, StageTwoFault, StageTwoOwner, TableCaps, Ticket,
    Unanswered, ViommuId, ViommuKind, Vm, VmConfig, VmEvent, VtdPasidTable, VtdStageOne,
    VtdStageOneFlags,
};
use mem::{Access, Gpa, Iova, Range};
use pci::RequesterId;
use proptest::prelude::*;
use vfio::{Door, Failures};

mod scripted;
use scripted::{Scripted, ScriptedVm};

#[derive(Debug, Clone)]
enum Call {
    Ioas,
    Hardware(RequesterId),
    AllocHwpt(HwptRequest),
    AllocViommu(RequesterId, HwptId, ViommuKind),
    AllocVdevice(ViommuId, RequesterId, u64),
    AllocFaultQueue,
    AllocEventQueue(ViommuId, u32),
    TakeEvent(EventQueueId),
    Destroy(ObjectId),
    Attach(RequesterId, Option<GuestPasid>, HwptId),
    Replace(RequesterId, Option<GuestPasid>, HwptId),
    Detach(RequesterId, Option<GuestPasid>),
    InvalidateHwpt(HwptId, Vec<StageOneInvalidation>),
    InvalidateViommu(ViommuId, Vec<[u64; 2]>),
    TakePageRequest,
    RespondPageRequest(PageResponse),
    TakePageFault(FaultQueueId),
    RespondPageFault(FaultQueueId, u32, ResponseCode),
    Unanswered(Ticket),
    GiveUpAnswers(Ticket),
    Tick(Duration),
}

/// Makes a call; gives its answer.
fn make(vm: &impl Vm, call: &Call) -> String {
    match call {
        Call::Ioas => format!("{:?}", vm.ioas()),
        &Call::Hardware(device) => format!("{:?}", vm.hardware(device)),
        Call::AllocHwpt(request) => format!("{:?}", vm.alloc_hwpt(request)),
        &Call::AllocViommu(device, hwpt, kind) => {
            format!("{:?}", vm.alloc_viommu(device, hwpt, kind))
        }
        &Call::AllocVdevice(viommu, device, id) => {
            format!("{:?}", vm.alloc_vdevice(viommu, device, id))
        }
        Call::AllocFaultQueue => format!("{:?}", vm.alloc_fault_queue()),
        &Call::AllocEventQueue(viommu, depth) => {
            format!("{:?}", vm.alloc_event_queue(viommu, depth))
        }
        &Call::TakeEvent(queue) => format!("{:?}", vm.take_event(queue)),
        &Call::Destroy(id) => format!("{:?}", vm.destroy(id)),
        &Call::Attach(device, pasid, hwpt) => format!("{:?}", vm.attach_hwpt(device, pasid, hwpt)),
        &Call::Replace(device, pasid, hwpt) => {
            format!("{:?}", vm.replace_hwpt(device, pasid, hwpt))
        }
        &Call::Detach(device, pasid) => format!("{:?}", vm.detach_hwpt(device, pasid)),
        Call::InvalidateHwpt(hwpt, what) => format!("{:?}", vm.invalidate_hwpt(*hwpt, what)),
        Call::InvalidateViommu(viommu, commands) => {
            format!("{:?}", vm.invalidate_viommu(*viommu, commands))
        }
        Call::TakePageRequest => format!("{:?}", vm.take_page_request()),
        &Call::RespondPageRequest(response) => format!("{:?}", vm.respond_page_request(response)),
        &Call::TakePageFault(queue) => format!("{:?}", vm.take_page_fault(queue)),
        &Call::RespondPageFault(queue, cookie, code) => {
            format!("{:?}", vm.respond_page_fault(queue, cookie, code))
        }
        &Call::Unanswered(ticket) => format!("{:?}", vm.unanswered(ticket)),
        &Call::GiveUpAnswers(up_to) => format!("{:?}", vm.give_up_answers(up_to)),
        &Call::Tick(now) => format!("{:?}", vm.tick(now)),
    }
}

fn requester() -> impl Strategy<Value = RequesterId> {
    any::<u16>().prop_map(RequesterId::from_bits)
}

fn pasid() -> impl Strategy<Value = Option<GuestPasid>> {
    prop::option::of((0..1u32 << 20).prop_map(|number| GuestPasid(Pasid::from_field(number))))
}

fn table() -> impl Strategy<Value = StageOneTable> {
    (any::<u64>(), any::<u8>(), 0..8u64, any::<[u64; 2]>(), 0..3u8).prop_map(
        |(root, bits, flags, words, which)| match which {
            0 => StageOneTable::Vtd(VtdStageOne {
                flags: VtdStageOneFlags::from_bits_retain(flags),
                root: Gpa(root),
                address_width: bits,
            }),
            1 => StageOneTable::Smmuv3(words),
            _ => StageOneTable::VtdPasidTable(VtdPasidTable {
                directory: Gpa(root),
                pasid_bits: bits,
            }),
        },
    )
}

fn hwpt_request() -> impl Strategy<Value = HwptRequest> {
    let parent = (0..3u8, any::<u32>()).prop_map(|(kind, id)| match kind {
        0 => HwptParent::Ioas(IoasId(id)),
        1 => HwptParent::Hwpt(HwptId(id)),
        _ => HwptParent::Viommu(ViommuId(id)),
    });
    // Whether or not the flags agree with what is there: that is for the host to say.
    let fault = prop::option::of(any::<u32>().prop_map(FaultQueueId));
    (requester(), parent, 0..16u32, prop::option::of(table()), fault).prop_map(
        |(device, parent, flags, data, fault)| {
            let flags = HwptFlags::from_bits_retain(flags);
            HwptRequest { device, parent, flags, data, fault }
        },
    )
}

fn invalidation() -> impl Strategy<Value = StageOneInvalidation> {
    (0..4u8, any::<u64>(), any::<u64>(), any::<bool>()).prop_map(|(kind, a, b, leaf_only)| {
        let (start, last) = (a.min(b), a.max(b));
        let pages = |start, last| StageOneInvalidation::Pages {
            range: Range { start: Iova(start), last: Iova(last) },
            leaf_only,
        };
        match kind {
            0 => StageOneInvalidation::All,
            1 => StageOneInvalidation::Entry,
            2 => pages(start & !0xfff, last | 0xfff),
            _ => pages(start, last),
        }
    })
}

fn code() -> impl Strategy<Value = ResponseCode> {
    use ResponseCode::{Failure, Invalid, Success};
    prop_oneof![Just(Success), Just(Invalid), Just(Failure)]
}

fn response() -> impl Strategy<Value = PageResponse> {
    (requester(), pasid(), 0..512u64, code()).prop_map(|(requester, pasid, group, code)| {
        let (pasid, group) = (pasid.map(|pasid| pasid.0), PrgIndex::from_field(group));
        PageResponse { requester, pasid, group, code }
    })
}

fn call() -> impl Strategy<Value = Call> {
    let id = any::<u32>;
    let kind = any::<bool>().prop_map(|vtd| if vtd { ViommuKind::Vtd } else { ViommuKind::Smmuv3 });
    prop_oneof![
        Just(Call::Ioas),
        requester().prop_map(Call::Hardware),
        hwpt_request().prop_map(Call::AllocHwpt),
        (requester(), id(), kind).prop_map(|(d, id, kind)| Call::AllocViommu(d, HwptId(id), kind)),
        (id(), requester(), any::<u64>()).prop_map(|(id, d, number)| Call::AllocVdevice(
            ViommuId(id),
            d,
            number
        )),
        Just(Call::AllocFaultQueue),
        (id(), id()).prop_map(|(id, depth)| Call::AllocEventQueue(ViommuId(id), depth)),
        id().prop_map(|id| Call::TakeEvent(EventQueueId(id))),
        id().prop_map(|id| Call::Destroy(ObjectId(id))),
        (requester(), pasid(), id()).prop_map(|(d, pasid, id)| Call::Attach(d, pasid, HwptId(id))),
        (requester(), pasid(), id()).prop_map(|(d, pasid, id)| Call::Replace(d, pasid, HwptId(id))),
        (requester(), pasid()).prop_map(|(d, pasid)| Call::Detach(d, pasid)),
        (id(), prop::collection::vec(invalidation(), 0..40))
            .prop_map(|(id, what)| Call::InvalidateHwpt(HwptId(id), what)),
        (id(), prop::collection::vec(any::<[u64; 2]>(), 0..40))
            .prop_map(|(id, commands)| Call::InvalidateViommu(ViommuId(id), commands)),
        Just(Call::TakePageRequest),
        response().prop_map(Call::RespondPageRequest),
        id().prop_map(|id| Call::TakePageFault(FaultQueueId(id))),
        (id(), id(), code()).prop_map(|(id, cookie, code)| Call::RespondPageFault(
            FaultQueueId(id),
            cookie,
            code
        )),
        any::<u64>().prop_map(|number| Call::Unanswered(Ticket::new(number))),
        any::<u64>().prop_map(|number| Call::GiveUpAnswers(Ticket::new(number))),
        (any::<u64>(), 0..1_000_000_000u32).prop_map(|(s, ns)| Call::Tick(Duration::new(s, ns))),
    ]
}

fn one_of_each() -> Vec<Call> {
    let device = RequesterId::from_bits(0x1234);
    let pasid = Some(GuestPasid(Pasid::from_field(0x54321)));
    let request = HwptRequest {
        device,
        parent: HwptParent::Viommu(ViommuId(7)),
        flags: HwptFlags::PASID,
        data: Some(StageOneTable::Smmuv3([1, 2])),
        fault: None,
    };
    vec![
        Call::Ioas,
        Call::Hardware(device),
        Call::AllocHwpt(request),
        Call::AllocViommu(device, HwptId(1), ViommuKind::Vtd),
        Call::AllocVdevice(ViommuId(1), device, 2),
        Call::AllocFaultQueue,
        Call::AllocEventQueue(ViommuId(1), 16),
        Call::TakeEvent(EventQueueId(1)),
        Call::Destroy(ObjectId(1)),
        Call::Attach(device, pasid, HwptId(1)),
        Call::Replace(device, None, HwptId(1)),
        Call::Detach(device, pasid),
        Call::InvalidateHwpt(HwptId(1), vec![StageOneInvalidation::All; 3]),
        Call::InvalidateViommu(ViommuId(1), vec![[1, 2]; 3]),
        Call::TakePageRequest,
        Call::RespondPageRequest(PageResponse {
            requester: device,
            pasid: pasid.map(|pasid| pasid.0),
            group: PrgIndex::from_field(511),
            code: ResponseCode::Failure,
        }),
        Call::TakePageFault(FaultQueueId(1)),
        Call::RespondPageFault(FaultQueueId(1), u32::MAX, ResponseCode::Failure),
        Call::Unanswered(Ticket::new(u64::MAX)),
        Call::GiveUpAnswers(Ticket::new(u64::MAX)),
        Call::Tick(Duration::MAX),
    ]
}

fn errors() -> Vec<ObjectError> {
    let fields = [
        InvalidField::Flags,
        InvalidField::Parent,
        InvalidField::Data,
        InvalidField::AddressWidth,
        InvalidField::Address,
        InvalidField::Pasid,
        InvalidField::StreamTableEntry,
        InvalidField::FaultQueue,
        InvalidField::VirtualId,
        InvalidField::Range,
        InvalidField::Cookie,
    ];
    let mut errors = vec![
        ObjectError::NotSupported,
        ObjectError::NoDevice(RequesterId::from_bits(0xffff)),
        ObjectError::NoObject(ObjectId(0x8000_0001)),
        ObjectError::Busy,
        ObjectError::NotAttached,
        ObjectError::NotGranted(GuestPasid(Pasid::MAX)),
        ObjectError::WrongModel,
        ObjectError::TooMany { limit: 4096 },
        ObjectError::Refused,
        ObjectError::NoMemory,
        ObjectError::Closed,
    ];
    errors.extend(fields.map(ObjectError::Invalid));
    errors
}

fn caps(bits: u16) -> TableCaps {
    let bit = |n: u32| bits >> n & 1u16 != 0;
    TableCaps {
        address_bits: 32 + (bits % 33) as u8,
        first_stage: bit(0),
        second_stage: bit(1),
        nested: bit(2),
        pass_through: bit(3),
        first_stage_5_level: bit(4),
        first_stage_1g: bit(5),
        second_stage_levels: (bits >> 6 & 7) as u8,
        second_stage_large: (bits >> 9 & 3) as u8,
        second_stage_accessed_dirty: bit(11),
        supervisor: bit(12),
        page_walk_snoop: bit(13),
    }
}

fn smmu(bits: u16) -> SmmuCaps {
    let bit = |n: u32| bits >> n & 1u16 != 0;
    SmmuCaps {
        stage_one: bit(0),
        stage_two: bit(1),
        substream_bits: (bits >> 2) as u8 % 21,
        two_level_descriptors: bit(3),
        granule_4k: bit(4),
        granule_16k: bit(5),
        granule_64k: bit(6),
        output_bits: [32, 36, 40, 42, 44, 48, 52][usize::from(bits) % 7],
        wide_addresses: bit(7),
        hardware_updates: (bits >> 8) as u8 % 3,
        asid_16: bit(10),
        ats: bit(11),
    }
}

fn event(bits: u16) -> VmEvent {
    VmEvent {
        sequence: u32::from(bits) << 15,
        virtual_id: u64::from(bits) << 40 | 1,
        fault: Fault {
            requester: RequesterId::from_bits(bits),
            pasid: (bits & 1 != 0).then_some(Pasid::from_field(bits.into())),
            address: Iova(u64::from(bits) << 12),
            access: if bits & 2 != 0 { Access::Write } else { Access::Read },
            privileged: bits & 4 != 0,
            translation_request: bits & 8 != 0,
            reason: FaultReason::NotPresent { stage: Stage::TwoForTable, level: 3 },
            stage_two: (bits & 16 != 0).then_some(StageTwoFault {
                gpa: Gpa(u64::from(bits) << 20),
                table: bits & 32 != 0,
                level: 3,
                owner: StageTwoOwner::Host,
            }),
        },
    }
}

fn page_request(bits: u16) -> PageRequest {
    let bit = |n: u32| bits >> n & 1 != 0;
    PageRequest {
        requester: RequesterId::from_bits(bits),
        pasid: bit(0).then_some(Pasid::from_field(u32::from(bits) << 4)),
        privileged: bit(1),
        execute: bit(2),
        read: bit(3),
        write: bit(4),
        address: Iova(u64::from(bits) << 40 | 0x7000),
        group: PrgIndex::from_field(bits.into()),
        last: bit(5),
        private_data: bit(6).then_some([bits.into(), u64::MAX]),
    }
}

fn unanswered(bits: u16) -> Unanswered {
    let ticket = Ticket::new(u64::from(bits) << 48);
    Unanswered { requester: RequesterId::from_bits(bits), ticket }
}

/// A VM called directly, and one through bytes.
struct Both {
    direct: ScriptedVm,
    through: vfio::DoorVm<Scripted>,
    seen: ScriptedVm,
}

impl Both {
    fn new() -> Self {
        let through = Door::encoded(Scripted::default()).create_vm(VmConfig::named("v")).unwrap();
        let seen = through.host_vm().unwrap();
        let direct = Scripted::default().create_vm(VmConfig::named("v")).unwrap();
        Self { direct, through, seen }
    }

    fn set(&self, change: impl Fn(&mut scripted::Script)) {
        change(&mut self.direct.script());
        change(&mut self.seen.script());
    }

    fn check(&self, call: &Call) {
        assert_eq!(make(&self.through, call), make(&self.direct, call), "{call:?}");
        assert_eq!(self.seen.take_calls(), self.direct.take_calls(), "{call:?}");
        let vfio::DoorVm::Encoded(client) = &self.through else { panic!() };
        assert_eq!(client.failures(), Failures::default(), "{call:?}");
    }
}

#[test]
fn every_call_and_every_error() {
    let both = Both::new();
    for call in one_of_each() {
        both.set(|script| script.error = None);
        both.check(&call);
        for error in errors() {
            for done in 0..4 {
                both.set(|script| (script.error, script.done) = (Some(error), done));
                both.check(&call);
            }
        }
    }
}

#[test]
fn a_long_list_is_carried_out_as_one() {
    let both = Both::new();
    let page = |n: u64| StageOneInvalidation::Pages {
        range: Range { start: Iova(n << 12), last: Iova(n << 12 | 0xfff) },
        leaf_only: n % 2 == 0,
    };
    let what: Vec<_> = (0..2500).map(page).collect();
    let commands: Vec<_> = (0..2500).map(|n| [n, !n]).collect();
    let ticket = both.through.invalidate_hwpt(HwptId(1), &what).unwrap();
    assert!(both.through.is_complete(ticket));
    assert_eq!(both.seen.script().entries, what);
    let ticket = both.through.invalidate_viommu(ViommuId(1), &commands).unwrap();
    assert!(both.through.is_complete(ticket));
    assert_eq!(both.seen.script().commands, commands);
    // Wherever it stops, the count is of the whole.
    for stop in [0, 1, 255, 256, 1023, 1024, 2047, 2499] {
        let mut script = both.seen.script();
        (script.stop_at, script.total) = (Some(stop), 0);
        drop(script);
        let error = ObjectError::Invalid(InvalidField::Range);
        assert_eq!(both.through.invalidate_hwpt(HwptId(1), &what), Err((stop, error)));
        both.seen.script().total = 0;
        assert_eq!(both.through.invalidate_viommu(ViommuId(1), &commands), Err((stop, error)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_same(calls in prop::collection::vec((call(), any::<u16>(), any::<bool>()), 1..40)) {
        let both = Both::new();
        for (call, bits, fails) in calls {
            let error = errors()[usize::from(bits) % errors().len()];
            both.set(|script| {
                script.error = fails.then_some(error);
                script.done = usize::from(bits) % 5;
                script.hardware = match bits & 1 {
                    0 => Hardware::Vtd(caps(bits >> 1)),
                    _ => Hardware::Smmuv3(smmu(bits >> 1)),
                };
                script.event = (bits & 3 != 0).then(|| event(bits));
                script.page_request = (bits & 3 != 0).then(|| page_request(bits));
                let PageRequest { requester, group, .. } = page_request(bits);
                script.page_response = match bits & 3 {
                    0 => Ok(()),
                    1 => Err(PageResponseError::NotOutstanding { requester, group }),
                    2 => Err(PageResponseError::WrongPasid { requester, group }),
                    _ => Err(PageResponseError::NotSupported),
                };
                script.unanswered = (bits & 3 != 0).then(|| unanswered(bits));
                script.next = (bits & 3 != 0).then(|| Duration::new(bits.into(), bits.into()));
            });
            both.check(&call);
        }
    }
}
