//! Bit fields of the registers (11.4). Bits without a name are reserved.

use bitfield_struct::bitfield;

/// Capability register (11.4.2).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Capability {
    /// ND: number of domain-id bits is 4 + 2 × this.
    #[bits(3)]
    pub domains: u8,
    __: bool,
    /// RWBF: software must flush write buffers.
    pub write_buffer_flush: bool,
    /// PLMR: protected low memory region.
    pub protected_low: bool,
    /// PHMR: protected high memory region.
    pub protected_high: bool,
    /// CM: caching mode, not-present entries may be cached.
    pub caching_mode: bool,
    /// SAGAW: second-stage widths; bit 1 is 39 bits, bit 2 is 48, bit 3 is 57.
    #[bits(5)]
    pub second_stage_widths: u8,
    #[bits(3)]
    __: u8,
    /// MGAW: maximum guest address width less one.
    #[bits(6)]
    pub max_guest_width: u8,
    /// ZLR: zero-length reads of write-only pages.
    pub zero_length_read: bool,
    __: bool,
    /// FRO: offset of the fault recording registers in units of 16 bytes.
    #[bits(10)]
    pub fault_record_offset: u16,
    /// SSLPS: second-stage large pages; bit 0 is 2 MiB, bit 1 is 1 GiB.
    #[bits(4)]
    pub second_stage_large: u8,
    __: bool,
    /// PSI: page-selective invalidation.
    pub page_selective: bool,
    /// NFR: number of fault recording registers less one.
    pub fault_records: u8,
    /// MAMV: the largest address mask of a page-selective invalidation.
    #[bits(6)]
    pub max_address_mask: u8,
    /// DWD: writes are drained.
    pub drain_writes: bool,
    /// DRD: reads are drained.
    pub drain_reads: bool,
    /// FS1GP: 1 GiB pages in first-stage tables.
    pub first_stage_1g: bool,
    #[bits(2)]
    __: u8,
    /// PI: posted interrupts.
    pub posted_interrupts: bool,
    /// FS5LP: 5-level first-stage tables.
    pub first_stage_5_level: bool,
    /// ECMDS: enhanced commands.
    pub enhanced_commands: bool,
    /// ESIRTPS: setting the interrupt table pointer invalidates.
    pub interrupt_pointer_invalidates: bool,
    /// ESRTPS: setting the root table pointer invalidates.
    pub root_pointer_invalidates: bool,
}

/// Extended capability register (11.4.3).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ExtendedCapability {
    /// C: walks of root, context and PASID structures are coherent.
    pub coherent: bool,
    /// QI: queued invalidation.
    pub queued_invalidation: bool,
    /// DT: device TLBs (ATS).
    pub device_tlb: bool,
    /// IR: interrupt remapping.
    pub interrupt_remapping: bool,
    /// EIM: extended interrupt mode.
    pub extended_interrupt_mode: bool,
    __: bool,
    /// PT: pass-through.
    pub pass_through: bool,
    /// SC: snoop control.
    pub snoop_control: bool,
    /// IRO: offset of the IOTLB registers in units of 16 bytes.
    #[bits(10)]
    pub iotlb_offset: u16,
    #[bits(2)]
    __: u8,
    /// MHMV: the largest handle mask of an interrupt entry invalidation.
    #[bits(4)]
    pub max_handle_mask: u8,
    __: bool,
    /// MTS: memory types.
    pub memory_types: bool,
    /// NEST: nested translation.
    pub nested: bool,
    #[bits(2)]
    __: u8,
    /// PRS: page requests.
    pub page_requests: bool,
    /// ERS: execute requests.
    pub execute_requests: bool,
    /// SRS: supervisor requests.
    pub supervisor_requests: bool,
    __: bool,
    /// NWFS: the no-write flag of translation requests.
    pub no_write_flag: bool,
    /// EAFS: the extended accessed flag of first-stage entries.
    pub extended_accessed: bool,
    /// PSS: number of PASID bits less one.
    #[bits(5)]
    pub pasid_size: u8,
    /// PASID: requests with PASID.
    pub pasid: bool,
    /// DIT: throttling of device TLB invalidations.
    pub device_tlb_throttle: bool,
    /// PDS: the page-request drain flag of wait descriptors.
    pub page_request_drain: bool,
    /// SMTS: scalable mode.
    pub scalable_mode: bool,
    /// VCS: virtual commands.
    pub virtual_commands: bool,
    /// SSADS: accessed and dirty bits in second-stage tables.
    pub second_stage_accessed_dirty: bool,
    /// SSTS: second-stage translation in scalable mode.
    pub second_stage: bool,
    /// FSTS: first-stage translation.
    pub first_stage: bool,
    /// SMPWCS: walks of page tables are coherent if the PASID entry asks for it.
    pub page_walk_snoop: bool,
    /// RPS: the RID_PASID field of context entries.
    pub rid_pasid: bool,
    __: bool,
    /// PMS: performance monitoring.
    pub performance_monitoring: bool,
    /// ADMS: abort-DMA mode.
    pub abort_dma: bool,
    /// RPRIVS: the RID_PRIV field of context entries.
    pub rid_privileged: bool,
    #[bits(10)]
    __: u16,
}

/// Global command register (11.4.4.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct GlobalCommand {
    #[bits(23)]
    __: u32,
    /// CFI: compatibility-format interrupts.
    pub compatibility_interrupts: bool,
    /// SIRTP: set the interrupt remapping table pointer (one-shot).
    pub set_interrupt_pointer: bool,
    /// IRE: interrupt remapping.
    pub interrupt_remapping: bool,
    /// QIE: queued invalidation.
    pub queued_invalidation: bool,
    /// WBF: flush write buffers (one-shot).
    pub write_buffer_flush: bool,
    #[bits(2)]
    __: u8,
    /// SRTP: set the root table pointer (one-shot).
    pub set_root_pointer: bool,
    /// TE: translation.
    pub translation: bool,
}

/// Global status register (11.4.4.2).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct GlobalStatus {
    #[bits(23)]
    __: u32,
    /// CFIS: compatibility-format interrupts pass.
    pub compatibility_interrupts: bool,
    /// IRTPS: the interrupt remapping table pointer is set.
    pub interrupt_pointer: bool,
    /// IRES: interrupt remapping is on.
    pub interrupt_remapping: bool,
    /// QIES: queued invalidation is on.
    pub queued_invalidation: bool,
    /// WBFS: a write buffer flush is in progress.
    pub write_buffer_flush: bool,
    #[bits(2)]
    __: u8,
    /// RTPS: the root table pointer is set.
    pub root_pointer: bool,
    /// TES: translation is on.
    pub translation: bool,
}

/// Root table address register (11.4.5).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct RootTableAddress {
    #[bits(10)]
    __: u16,
    /// TTM: translation table mode, see [`TableMode`](super::TableMode).
    #[bits(2)]
    pub mode: u8,
    /// RTA: page number of the root table.
    #[bits(52)]
    pub page: u64,
}

/// Context command register (11.4.6.1).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ContextCommand {
    /// DID: domain.
    pub domain: u16,
    /// SID: source.
    pub source: u16,
    /// FM: function mask.
    #[bits(2)]
    pub function_mask: u8,
    #[bits(25)]
    __: u32,
    /// CAIG: granularity at which it was done; 0 if the request was refused.
    #[bits(2)]
    pub actual: u8,
    /// CIRG: granularity asked for; 1 global, 2 domain, 3 device.
    #[bits(2)]
    pub granularity: u8,
    /// ICC: invalidate; set until done.
    pub invalidate: bool,
}

/// IOTLB invalidate register (11.4.6.3).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct IotlbInvalidate {
    __: u32,
    /// DID: domain.
    pub domain: u16,
    /// DW: drain writes.
    pub drain_writes: bool,
    /// DR: drain reads.
    pub drain_reads: bool,
    #[bits(7)]
    __: u8,
    /// IAIG: granularity at which it was done; 0 if the request was refused.
    #[bits(2)]
    pub actual: u8,
    __: bool,
    /// IIRG: granularity asked for; 1 global, 2 domain, 3 page.
    #[bits(2)]
    pub granularity: u8,
    __: bool,
    /// IVT: invalidate; set until done.
    pub invalidate: bool,
}

/// Invalidate address register (11.4.6.4); also bits 127:64 of an IOTLB invalidation descriptor
/// (6.5.2.3, 6.5.2.4).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct InvalidateAddress {
    /// AM: number of low bits of the page number that do not count.
    #[bits(6)]
    pub mask: u8,
    /// IH: only leaf entries changed.
    pub leaf_only: bool,
    #[bits(5)]
    __: u8,
    /// ADDR: page number.
    #[bits(52)]
    pub page: u64,
}

/// Fault status register (11.4.7.1).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct FaultStatus {
    /// PFO: a fault was lost for want of a record.
    pub overflow: bool,
    /// PPF: a record holds a fault.
    pub pending: bool,
    #[bits(2)]
    __: u8,
    /// IQE: invalidation queue error.
    pub queue_error: bool,
    /// ICE: invalid completion of a device TLB invalidation.
    pub completion_error: bool,
    /// ITE: a device TLB invalidation timed out.
    pub timeout_error: bool,
    /// PRO: a page request was lost; deprecated, see [`PageRequestStatus`].
    pub page_request_overflow: bool,
    /// FRI: index of the first record that holds a fault.
    pub record: u8,
    __: u16,
}

/// Event control registers: fault, invalidation and page request (11.4.7.2, 11.4.9.5, 11.4.11.5).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct EventControl {
    #[bits(30)]
    __: u32,
    /// IP: a message is held back.
    pub pending: bool,
    /// IM: messages are held back.
    pub masked: bool,
}

/// Low half of a fault recording register (11.4.7.6).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct FaultRecordLow {
    #[bits(12)]
    __: u16,
    /// FI: page number of the address.
    #[bits(52)]
    pub page: u64,
}

/// High half of a fault recording register (11.4.7.6).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct FaultRecordHigh {
    /// SID: source.
    pub source: u16,
    #[bits(12)]
    __: u16,
    /// T2: with T1: page request (01) and atomic operation (11).
    pub type2: bool,
    /// PRIV: supervisor privilege was asked for.
    pub privileged: bool,
    /// EXE: execute permission was asked for.
    pub execute: bool,
    /// PP: the request had a PASID.
    pub pasid_present: bool,
    /// FR: reason, see [`FaultCode`](super::FaultCode).
    pub reason: u8,
    /// PV: PASID.
    #[bits(20)]
    pub pasid: u32,
    /// AT: 0 untranslated, 1 translation request, 2 translated.
    #[bits(2)]
    pub address_type: u8,
    /// T1: clear for a write, set for a read.
    pub type1: bool,
    /// F: the record holds a fault.
    pub fault: bool,
}

/// Invalidation queue address register (11.4.9.3).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct QueueAddress {
    /// QS: the queue has 2 to the power of this pages.
    #[bits(3)]
    pub size: u8,
    __: u8,
    /// DW: descriptors have 256 bits.
    pub wide: bool,
    /// IQA: page number of the queue.
    #[bits(52)]
    pub page: u64,
}

/// Invalidation completion status register (11.4.9.4).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct CompletionStatus {
    /// IWC: a wait descriptor with the interrupt flag is complete.
    pub complete: bool,
    #[bits(31)]
    __: u32,
}

/// Invalidation queue error record register (11.4.9.9).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct QueueErrorRecord {
    /// IQEI: what was wrong, see [`QueueErrorInfo`](super::QueueErrorInfo).
    #[bits(4)]
    pub info: u8,
    #[bits(28)]
    __: u32,
    /// ITESID: whose device TLB did not answer.
    pub timeout_source: u16,
    /// ICESID: whose device TLB gave an invalid answer.
    pub completion_source: u16,
}

/// Page request queue address register (11.4.11.3).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PageRequestQueueAddress {
    /// PQS: the queue has 2 to the power of this pages.
    #[bits(3)]
    pub size: u8,
    #[bits(9)]
    __: u16,
    /// PQA: page number of the queue.
    #[bits(52)]
    pub page: u64,
}

/// Page request status register (11.4.11.4).
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct PageRequestStatus {
    /// PPR: a request was written to the queue.
    pub pending: bool,
    /// PRO: a request found no room; no other is written until this is cleared.
    pub overflow: bool,
    #[bits(30)]
    __: u32,
}
