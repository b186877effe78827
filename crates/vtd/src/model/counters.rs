//! What a unit counts.

use super::BindingCounters;

/// Counts of one unit since its creation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Descriptors taken from the queue, waits included.
    pub descriptors: u64,
    /// … of which context-cache invalidations.
    pub context_invalidations: u64,
    /// … of which IOTLB invalidations, with PASID or without.
    pub iotlb_invalidations: u64,
    /// … of which PASID-cache invalidations.
    pub pasid_cache_invalidations: u64,
    /// … of which device TLB invalidations, with PASID or without.
    pub device_tlb_invalidations: u64,
    /// … of which waits.
    pub waits: u64,
    /// Polls that stopped at a wait because accesses were in flight.
    pub waits_held: u64,
    /// Status writes of waits that found no memory to write to.
    pub status_writes_failed: u64,
    /// Invalidation queue errors.
    pub queue_errors: u64,
    /// Invalidations given through registers.
    pub register_invalidations: u64,
    /// Commands, invalidations and writes that the unit ignores: not supported, or not now.
    pub refused: u64,
    /// Virtual commands carried out, failed ones included.
    pub virtual_commands: u64,
    /// … of which allocations that got a PASID.
    pub pasids_allocated: u64,
    /// … of which allocations that the host had no PASID for.
    pub pasids_unavailable: u64,
    /// … of which PASIDs taken back.
    pub pasids_freed: u64,
    /// … of which PASIDs not taken back, since they are not this guest's.
    pub pasid_frees_refused: u64,
    /// … of which no command, or with an operand that is no PASID.
    pub virtual_commands_invalid: u64,
    /// Virtual commands ignored: written while another was in progress, or to a unit that offers
    /// none.
    pub virtual_commands_refused: u64,
    /// Faults put into a fault recording register.
    pub faults_recorded: u64,
    /// Faults lost because the fault recording registers were full.
    pub faults_lost: u64,
    /// Faults that are not a remapping unit's to report.
    pub faults_not_recorded: u64,
    /// Page requests put into the guest's queue, stop markers included.
    pub page_requests: u64,
    /// Page requests that found no room in the queue, or no memory there.
    pub page_requests_lost: u64,
    /// Page requests that the guest's tables do not allow.
    pub page_requests_refused: u64,
    /// Page request groups that the unit answered itself, since their last request was lost or
    /// refused, or they were unanswered at a reset.
    pub automatic_responses: u64,
    /// Answers to page request groups that the guest gave.
    pub page_responses: u64,
    /// … of which answers to no group that is unanswered.
    pub page_responses_unknown: u64,
    /// Invalidation time-out errors: a device did not answer an invalidation of its device TLB.
    pub invalidation_timeouts: u64,
    /// Interrupt messages given out to be sent.
    pub messages: u64,
    /// Interrupt messages dropped because their address is no interrupt address.
    pub messages_dropped: u64,
    /// Register accesses of a length that does not exist.
    pub bad_accesses: u64,
    /// What is bound in PASID tables of the host.
    pub bindings: BindingCounters,
}
