//! Events: how a fault is told to the guest (IHI 0070, 7.3).

use bitfield_struct::bitfield;
use mem::Access;

use crate::{Fault, FaultReason, Pasid, Stage};

/// The kind of an event.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum EventId {
    /// C_BAD_STREAMID: the stream table does not go that far.
    BadStreamId = 0x02,
    /// F_STE_FETCH: the stream-table entry could not be read.
    StreamEntryFetch = 0x03,
    /// C_BAD_STE: it cannot be used.
    BadStreamEntry = 0x04,
    /// F_BAD_ATS_TREQ: a translation request, and ATS is off.
    BadTranslationRequest = 0x05,
    /// F_STREAM_DISABLED: a request without substream, and none is taken.
    StreamDisabled = 0x06,
    /// C_BAD_SUBSTREAMID: the substream is beyond the table, or there may be none.
    BadSubstreamId = 0x08,
    /// F_CD_FETCH: the context descriptor could not be read.
    DescriptorFetch = 0x09,
    /// C_BAD_CD: it cannot be used.
    BadDescriptor = 0x0a,
    /// F_WALK_EABT: a table could not be read or updated.
    WalkAbort = 0x0b,
    /// F_TRANSLATION: nothing is mapped there.
    Translation = 0x10,
    /// F_ADDR_SIZE: an address is wider than it may be.
    AddressSize = 0x11,
    /// F_ACCESS: the access flag is clear.
    AccessFlag = 0x12,
    /// F_PERMISSION.
    Permission = 0x13,
}

/// What was translated when the fault came (CLASS).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum Class {
    /// The address of a context descriptor.
    Descriptor = 0,
    /// The address of a stage-1 table.
    Table = 1,
    /// The request's own address.
    Input = 2,
}

/// Bits 63:0 of an event.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct EventWord0 {
    /// The event's number, an [`EventId`].
    pub id: u8,
    #[bits(3)]
    unused: u8,
    /// SSV: there is a substream.
    pub has_substream: bool,
    /// SubstreamID.
    #[bits(20)]
    pub substream: u32,
    /// StreamID.
    pub stream: u32,
}

/// Bits 127:64 of an event.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct EventWord1 {
    /// STAG, of a stalled request.
    pub stall_tag: u16,
    #[bits(15)]
    unused_16: u16,
    /// Stall.
    pub stall: bool,
    unused_32: bool,
    /// PnU: the request was privileged.
    pub privileged: bool,
    /// InD: it fetched instructions.
    pub instruction: bool,
    /// RnW: it was a read.
    pub read: bool,
    #[bits(3)]
    unused_36: u8,
    /// S2: stage 2 stopped it.
    pub stage_two: bool,
    /// CLASS.
    #[bits(2)]
    pub class: u8,
    #[bits(22)]
    unused_42: u32,
}

/// An event as it lies in the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Event {
    /// Bits 63:0.
    pub word0: EventWord0,
    /// Bits 127:64.
    pub word1: EventWord1,
    /// The request's address.
    pub address: u64,
    /// Bits 51:12 of the intermediate physical address at which stage 2 stopped.
    pub intermediate: u64,
}

impl Event {
    /// The event of these 64-bit words, in the order of their addresses.
    pub const fn from_words(words: [u64; 4]) -> Self {
        let [word0, word1, address, intermediate] = words;
        Self {
            word0: EventWord0::from_bits(word0),
            word1: EventWord1::from_bits(word1),
            address,
            intermediate,
        }
    }

    /// Its 64-bit words, in the order of their addresses.
    pub const fn words(&self) -> [u64; 4] {
        [self.word0.into_bits(), self.word1.into_bits(), self.address, self.intermediate]
    }
}

/// The event that tells of `fault`, with the requester id for the stream; `None` for what an SMMU
/// does not tell of: accesses that it let through to where there is no memory, and faults of other
/// architectures.
///
/// The addresses of failed fetches (F_STE_FETCH, F_CD_FETCH, F_WALK_EABT) are not told: they are 0.
/// A fault of the host's stage 2 ([`Fault::is_hosts`]) has an event, which is not for the guest.
pub fn event(fault: &Fault) -> Option<Event> {
    let id = id(fault.reason)?;
    let word0 = EventWord0::new()
        .with_id(id as u8)
        .with_has_substream(fault.pasid.is_some())
        .with_substream(fault.pasid.map_or(0, Pasid::get))
        .with_stream(fault.requester.bits().into());
    let mut event = Event { word0, ..Event::default() };
    if !tells_of_request(id) {
        return Some(event);
    }
    event.word1 =
        EventWord1::new().with_privileged(fault.privileged).with_read(fault.access == Access::Read);
    event.address = fault.address.0;
    if let Some(stage) = stage(fault.reason) {
        let class = match stage {
            Stage::One | Stage::Two => Class::Input,
            Stage::TwoForTable => Class::Table,
            Stage::TwoForDescriptor => Class::Descriptor,
        };
        event.word1.set_class(class as u8);
        event.word1.set_stage_two(stage != Stage::One);
        event.intermediate = fault.stage_two.map_or(0, |stop| stop.gpa.0 & INTERMEDIATE_BITS);
    }
    Some(event)
}

/// Bits 51:12.
const INTERMEDIATE_BITS: u64 = 0x000f_ffff_ffff_f000;

/// Whether an event of this kind has the request's address, and what it wanted to do.
const fn tells_of_request(id: EventId) -> bool {
    matches!(
        id,
        EventId::BadTranslationRequest
            | EventId::WalkAbort
            | EventId::Translation
            | EventId::AddressSize
            | EventId::AccessFlag
            | EventId::Permission
    )
}

fn id(reason: FaultReason) -> Option<EventId> {
    use FaultReason as R;
    Some(match reason {
        R::RootNotPresent | R::RootReserved => EventId::BadStreamId,
        R::RootPointer | R::RootAccess | R::ContextAccess => EventId::StreamEntryFetch,
        R::ContextNotPresent | R::ContextReserved | R::ContextInvalid => EventId::BadStreamEntry,
        R::AtsDisabled => EventId::BadTranslationRequest,
        R::PasidRequired => EventId::StreamDisabled,
        R::PasidDisabled | R::PasidRange | R::PasidDirectoryNotPresent => EventId::BadSubstreamId,
        R::PasidDirectoryAccess | R::PasidEntryAccess => EventId::DescriptorFetch,
        R::PasidDirectoryReserved
        | R::PasidEntryNotPresent
        | R::PasidEntryReserved
        | R::PasidEntryInvalid => EventId::BadDescriptor,
        R::TableAccess { .. } | R::AccessedDirty { .. } => EventId::WalkAbort,
        R::NonCanonical | R::NotPresent { .. } | R::TableReserved { .. } => EventId::Translation,
        R::AddressWidth { .. } => EventId::AddressSize,
        R::AccessFlag { .. } => EventId::AccessFlag,
        R::Permission { .. } => EventId::Permission,
        R::SupervisorDisabled | R::InterruptAddress | R::NoMemory => return None,
    })
}

/// The stage at which translation stopped.
const fn stage(reason: FaultReason) -> Option<Stage> {
    use FaultReason as R;
    match reason {
        R::NonCanonical => Some(Stage::One),
        R::TableAccess { stage, .. }
        | R::NotPresent { stage, .. }
        | R::TableReserved { stage, .. }
        | R::AccessFlag { stage, .. }
        | R::Permission { stage, .. }
        | R::AddressWidth { stage }
        | R::AccessedDirty { stage } => Some(stage),
        _ => None,
    }
}
