//! The structures of the user API, byte for byte. Numbers have the machine's own byte order: the
//! two ends share a machine.
//!
//! `posted` is what VFIO has or what a series for it proposed; `iommufd` what Linux has for the
//! objects of a VM; `own` is what neither can say. Fields that a host end fills in are marked *out*; what a caller puts
//! there does not matter.

mod device;
mod iommufd;
mod nesting;
mod own;
mod page_request;
mod posted;

pub use device::{
    AttachIommufdPt, CapabilityHeader, DetachIommufdPt, DeviceInfo, DmaAvailable, GroupStatus,
    IommuInfo, IovaRanges, IrqInfo, IrqSet, Number, RegionInfo, RingHeader, SparseMap, TypeOf,
};
pub use iommufd::{
    AttachPageTable, Destroy, DetachPageTable, FaultQueueAlloc, GetHwInfo, HwptAlloc,
    HwptInvalidate, IoasAlloc, ObjectFailure, ReadEvent, SmmuInfo, SmmuStageOneData, VdeviceAlloc,
    VeventqAlloc, ViommuAlloc, VtdInfo, VtdInvalidateEntry, VtdPasidTableData, VtdStageOneData,
};
pub use nesting::{
    CacheInvalidateInfo53, GpasidBindData, GpasidBindData53, GpasidVtd, Header, NestingInfo,
    NestingInfoV7, NestingVtdV7, PageResponse, PasidSmmuv3, PasidTableConfig, PasidTableConfigV13,
    PasidTableConfigV7, SetMsiBinding,
};
pub use own::{
    AttachDevice, Completion, CountersArgument, CreateVm, OwnCacheInvalidate, OwnPasidRequest,
    PageRequestPolicyArgument, ReadFault, SetHandle, StageTwoArgument, Ticketed, NAME_BYTES,
};
pub use page_request::{
    GiveUpAnswersArgument, HwptPageFault, HwptPageResponse, PageRequestCountersArgument,
    PageRequestFault, ReadPageFault, ReadPageRequest, RespondPageFault, RespondPageRequest,
    TickArgument, UnansweredArgument,
};
pub use posted::{
    AddressScope, CacheInvalidate, CacheInvalidateInfo, DmaFault, MapDma, PasidRequest, PasidScope,
    UnmapDma,
};

/// Values of fields.
pub mod flags {
    pub use super::device::flags::*;
    pub use super::iommufd::flags::*;
    pub use super::nesting::flags::*;
    pub use super::own::flags::*;
    pub use super::page_request::flags::*;
    pub use super::posted::flags::*;
}

#[cfg(test)]
mod tests;
