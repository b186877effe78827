//! The layouts that the specification lays down; no behaviour.
//!
//! PASID directories and entries are not here: the engine walks them, so
//! `iommu` owns their layout.

mod descriptor;
mod fault;
mod fields;
mod page_request;
mod registers;
mod tables;
mod virtual_command;

#[cfg(test)]
mod tests;

pub use descriptor::{
    device_tlb_range, page_range, Descriptor, DescriptorError, DescriptorRules, DescriptorWidth,
    DeviceTlbScope, IotlbScope, Pages, QueueErrorInfo, Wait,
};
pub use descriptor::{
    ContextScope, InterruptEntryScope, PageGroupResponse, PasidCacheScope, PasidIotlbScope,
};
pub use fault::FaultCode;
pub use fields::{
    Capability, CompletionStatus, ContextCommand, EventControl, ExtendedCapability,
    FaultRecordHigh, FaultRecordLow, FaultStatus, GlobalCommand, GlobalStatus, InvalidateAddress,
    IotlbInvalidate, PageRequestQueueAddress, PageRequestStatus, QueueAddress, QueueErrorRecord,
    RootTableAddress,
};
pub use page_request::{
    PageRequestDescriptor, PageRequestDescriptorError, PageStreamResponse, RESPONSE_FAILURE,
    RESPONSE_INVALID, RESPONSE_SUCCESS,
};
pub use registers::{
    registers, registers_in, AccessClass, Register, RegisterId, Reset, Width, CAPABILITY_OFFSET,
    EXTENDED_CAPABILITY_OFFSET, FAULT_RECORDS, FAULT_RECORD_OFFSET, IOTLB_OFFSET, PAGE_SIZE,
    REGISTERS, VERSION, VERSION_OFFSET,
};
pub use tables::{
    ContextEntry, RootEntry, ScalableContextEntry, ScalableRootHalf, TableMode, TranslationType,
};
pub use virtual_command::{
    VcmdLayout, VirtualCommand, VirtualCommandCapability, VirtualCommandError, VirtualOpcode,
    VirtualResponse, VirtualStatus,
};
