//! Structures of our own, for what no posted one says.

use core::mem::offset_of;
use core::ops::Range;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::posted::flags::{PASID_ALLOC, PASID_FREE};
use super::{CacheInvalidateInfo, DmaFault};
use crate::argument::Argument;
use crate::counters;

/// Bytes that a VM's name has at most.
pub const NAME_BYTES: usize = 104;

/// Values of our own structures' fields.
pub(super) mod flags {
    /// [`CreateVm`](super::CreateVm): PASID numbers are the VM's own.
    pub const VM_PRIVATE_PASIDS: u32 = 1;
    /// [`CreateVm`](super::CreateVm): requests with a PASID that was never granted are refused.
    pub const VM_ENFORCE_GRANTS: u32 = 2;

    /// [`StageTwoArgument`](super::StageTwoArgument): no stage 2.
    pub const STAGE_TWO_NONE: u8 = 0;
    /// VT-d second stage.
    pub const STAGE_TWO_VTD: u8 = 1;
    /// Arm stage 2.
    pub const STAGE_TWO_ARM: u8 = 2;
    /// Which [`iommu::ArmFlags`]: fault, ignore, access, access and dirty.
    pub const ARM_FLAGS: u8 = 3;
    /// DS: addresses of 52 bits.
    pub const ARM_WIDE: u8 = 4;
    /// XNX: fetches are told apart by privilege.
    pub const ARM_EXECUTE_BY_PRIVILEGE: u8 = 8;
    /// The guest's memory lies where the guest has it.
    pub const LAYOUT_IDENTITY: u8 = 0;
    /// The guest's memory is shuffled.
    pub const LAYOUT_SHUFFLED: u8 = 1;

    /// [`PageRequestPolicyArgument`](super::PageRequestPolicyArgument): the rest of it counts.
    pub const PAGE_REQUEST_POLICY: u32 = 1;
    /// [`PageRequestPolicyArgument`](super::PageRequestPolicyArgument): there is such a time.
    pub const PAGE_REQUEST_POLICY_TIMEOUT: u32 = 2;
    /// [`PageRequestPolicyArgument`](super::PageRequestPolicyArgument):
    /// [`iommu::TakenGroups::Withdrawn`].
    pub const PAGE_REQUEST_POLICY_WITHDRAWN: u32 = 4;

    /// `UpdateMemory`: begins a change of the memory map.
    pub const UPDATE_BEGIN: u32 = 1;
    /// `UpdateMemory`: makes it take effect, as one.
    pub const UPDATE_COMMIT: u32 = 2;
    /// `UpdateMemory`: forgets it.
    pub const UPDATE_ABANDON: u32 = 4;

    /// [`SetHandle`](super::SetHandle): the handle that comes beside it is taken.
    pub const HANDLE_SET: u32 = 1;
    /// [`SetHandle`](super::SetHandle): the one that was taken is dropped.
    pub const HANDLE_UNSET: u32 = 2;

    /// [`OwnCacheInvalidate::flags`](super::OwnCacheInvalidate): `requester` counts.
    pub const INVALIDATE_REQUESTER: u32 = 1;
    /// [`OwnCacheInvalidate::flags`](super::OwnCacheInvalidate): what a device holds for requests
    /// without PASID.
    pub const INVALIDATE_NO_PASID: u32 = 2;
    /// `cache` of [`OwnCacheInvalidate`](super::OwnCacheInvalidate): device contexts.
    pub const CACHE_CONTEXT: u8 = 8;

    /// [`OwnPasidRequest`](super::OwnPasidRequest): say how many there are; the range is ignored.
    pub const PASID_QUERY: u32 = 4;
    /// [`OwnPasidRequest`](super::OwnPasidRequest): take back all, whatever the range; `ticket`
    /// says when none is parked any more.
    pub const PASID_RELEASE: u32 = 8;

    /// [`ReadFault::attributes`](super::ReadFault): the request asked for a translation.
    pub const FAULT_TRANSLATION_REQUEST: u16 = 1;
    /// [`ReadFault::attributes`](super::ReadFault): a user's request, and a supervisor's page.
    pub const FAULT_USER: u16 = 2;
    /// [`ReadFault`](super::ReadFault): stage 2 stopped the request, and `gpa` says where.
    pub const FAULT_STAGE_TWO: u16 = 4;
    /// … at the address of a table's entry.
    pub const FAULT_STAGE_TWO_TABLE: u16 = 8;
    /// … and it is the host's stage 2.
    pub const FAULT_STAGE_TWO_HOST: u16 = 16;
}

/// Creates the VM of a container.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct CreateVm {
    /// Bytes of the structure.
    pub argsz: u32,
    /// `VM_` bits.
    pub flags: u32,
    /// PASIDs that it may have out at a time.
    pub quota: u32,
    /// *out*, with `EDQUOT`: PASIDs that could be promised.
    pub available: u32,
    /// *out*, with `ENOSPC`: VMs that the host takes.
    pub limit: u32,
    /// Zero.
    pub reserved: u32,
    /// A name for people: UTF-8, then zeroes.
    pub name: [u8; NAME_BYTES],
    /// The host's stage 2 for it.
    pub stage_two: StageTwoArgument,
    /// What its devices' page requests may be.
    pub page_requests: PageRequestPolicyArgument,
}

/// An [`iommu::PageRequestPolicy`]; all zero for the host's own.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PageRequestPolicyArgument {
    /// `PAGE_REQUEST_POLICY` bits.
    pub flags: u32,
    /// Requests of a device that may be unanswered.
    pub per_device: u32,
    /// How long a group may be unanswered: seconds …
    pub seconds: u64,
    /// … and nanoseconds, less than a second's.
    pub nanoseconds: u32,
    /// Zero.
    pub reserved: u32,
}

/// A [`iommu::StageTwoConfig`]; all zero for none.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct StageTwoArgument {
    /// A `STAGE_TWO_` value.
    pub format: u8,
    /// A `LAYOUT_` value.
    pub layout: u8,
    /// VT-d: number of levels, 3 to 5.
    pub levels: u8,
    /// Arm: `ARM_` bits.
    pub arm: u8,
    /// Arm: T0SZ, SL0, TG0 and PS where VTCR has them.
    pub vtcr: u32,
    /// Which shuffle, with [`LAYOUT_SHUFFLED`](flags::LAYOUT_SHUFFLED).
    pub seed: u64,
}

impl Argument for CreateVm {
    const FLAGS: Option<u32> = Some(flags::VM_PRIVATE_PASIDS | flags::VM_ENFORCE_GRANTS);
    // A caller that has nothing to say of stage 2 need not.
    const NEEDED: usize = offset_of!(Self, stage_two);
    const RESERVED: [Range<usize>; 2] = [20..24, size_of::<Self>() - 4..size_of::<Self>()];
}

/// `UpdateMemory` (`UPDATE_` flags, exactly one; a ticket with `UPDATE_COMMIT`), `InFlight` and
/// `CloseVm` (no flags).
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Ticketed {
    /// Bytes of the structure.
    pub argsz: u32,
    /// What the request knows.
    pub flags: u32,
    /// *out*: what to ask [`Completion`] for.
    pub ticket: u64,
}

impl Argument for Ticketed {
    const FLAGS: Option<u32> =
        Some(flags::UPDATE_BEGIN | flags::UPDATE_COMMIT | flags::UPDATE_ABANDON);
}

/// `SetContexts` and `SetFaultEvent`: exactly one of the `HANDLE_` flags.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct SetHandle {
    /// Bytes of the structure.
    pub argsz: u32,
    /// [`HANDLE_SET`](flags::HANDLE_SET) or [`HANDLE_UNSET`](flags::HANDLE_UNSET).
    pub flags: u32,
}

impl Argument for SetHandle {
    const FLAGS: Option<u32> = Some(flags::HANDLE_SET | flags::HANDLE_UNSET);
}

/// [`CacheInvalidate`](super::CacheInvalidate), and what it cannot say: device contexts, one
/// device among several, and when it is over.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct OwnCacheInvalidate {
    /// Bytes of the structure.
    pub argsz: u32,
    /// `INVALIDATE_` bits.
    pub flags: u32,
    /// What to forget.
    pub info: CacheInvalidateInfo,
    /// *out*: what to ask [`Completion`] for.
    pub ticket: u64,
    /// A device, as the VM's own bus numbers it.
    pub requester: u16,
    /// Bits of `requester` that do not count.
    pub ignore: u16,
    /// Zero.
    pub reserved: u32,
}

impl Argument for OwnCacheInvalidate {
    const FLAGS: Option<u32> = Some(flags::INVALIDATE_REQUESTER | flags::INVALIDATE_NO_PASID);
    const RESERVED: [Range<usize>; 2] = [76..80, 0..0];
}

/// [`PasidRequest`](super::PasidRequest) with its results inside.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct OwnPasidRequest {
    /// Bytes of the structure.
    pub argsz: u32,
    /// Exactly one of the `PASID_` flags.
    pub flags: u32,
    /// Lowest PASID.
    pub min: u32,
    /// Highest PASID.
    pub max: u32,
    /// *out*, with `PASID_ALLOC`: the PASID that was granted.
    pub pasid: u32,
    /// *out*, with `PASID_FREE`: how many were taken back.
    pub count: u32,
    /// *out*, with `PASID_QUERY` and with `EDQUOT`: the VM's quota.
    pub quota: u32,
    /// *out*, with `PASID_QUERY`: how many are granted.
    pub live: u32,
    /// *out*, with `PASID_QUERY`: how many are given back but in use.
    pub parked: u32,
    /// Zero.
    pub reserved: u32,
    /// *out*, with `PASID_RELEASE`: what to ask [`Completion`] for.
    pub ticket: u64,
}

impl Argument for OwnPasidRequest {
    const FLAGS: Option<u32> =
        Some(PASID_ALLOC | PASID_FREE | flags::PASID_QUERY | flags::PASID_RELEASE);
    const RESERVED: [Range<usize>; 2] = [36..40, 0..0];
}

/// Asks whether everything up to a ticket is over.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Completion {
    /// Bytes of the structure.
    pub argsz: u32,
    /// None is known.
    pub flags: u32,
    /// The ticket.
    pub ticket: u64,
    /// *out*: 1 if it is.
    pub complete: u32,
    /// Zero.
    pub reserved: u32,
}

impl Argument for Completion {
    const RESERVED: [Range<usize>; 2] = [20..24, 0..0];
}

/// Takes the oldest fault. All of it is *out*, but for the first two words.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct ReadFault {
    /// Bytes of the structure.
    pub argsz: u32,
    /// None is known.
    pub flags: u32,
    /// The fault, as far as the posted structure can say it; all zero if there is none.
    pub fault: DmaFault,
    /// Who asked.
    pub requester: u16,
    /// The exact reason, by this crate's numbering of [`iommu::FaultReason`].
    pub code: u16,
    /// 1 or 2; 3 is stage 2 for a stage-1 table; 0 if the reason has no stage.
    pub stage: u8,
    /// Level of the table, if the reason has one.
    pub level: u8,
    /// [`FAULT_TRANSLATION_REQUEST`](flags::FAULT_TRANSLATION_REQUEST),
    /// [`FAULT_USER`](flags::FAULT_USER), `FAULT_STAGE_TWO…`.
    pub attributes: u16,
    /// With [`FAULT_STAGE_TWO`](flags::FAULT_STAGE_TWO): the guest physical address that stage 2
    /// was to translate.
    pub gpa: u64,
    /// With [`FAULT_STAGE_TWO`](flags::FAULT_STAGE_TWO): level of the entry at which it stopped.
    pub stage_two_level: u8,
    /// Zero.
    pub reserved: [u8; 7],
}

impl Argument for ReadFault {}

/// Attaches a device. Its handle is the result.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct AttachDevice {
    /// Bytes of the structure.
    pub argsz: u32,
    /// None is known.
    pub flags: u32,
    /// Who it is on the VM's bus.
    pub requester: u16,
    /// Zero.
    pub reserved: u16,
    /// *out*, with `ENOSPC`: devices that a VM takes.
    pub limit: u32,
}

impl Argument for AttachDevice {
    const RESERVED: [Range<usize>; 2] = [10..12, 0..0];
}

/// Reads the counters of [`iommu::Counters`]. All of it is *out*, but for the first two words; a
/// caller that knows fewer counters gives a smaller `argsz`.
#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct CountersArgument {
    /// Bytes of the structure.
    pub argsz: u32,
    /// None is known.
    pub flags: u32,
    /// Translations, IOTLB hits and misses, walks, PASID-table entries read, contexts looked up,
    /// invalidations, faults recorded, faults lost; translations, PASID-table entries and devices
    /// there are now; requests refused because their PASID was not granted; walks of the host's
    /// stage 2, requests refused by it; hits and misses in devices' own TLBs, invalidations of these,
    /// translations in them now; words of tables that failed on request.
    pub counts: [u64; counters::vm::COUNTS],
}

impl Argument for CountersArgument {
    const NEEDED: usize = 8;
}
