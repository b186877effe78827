//! Everything that is counted for one guest, under one list of names.

use std::time::Duration;

use guest_protocol::counts::PAGE_ANSWERS_UNKNOWN;
use iommu::Vm as _;
use vfio_user::Server as Socket;

use super::guest::Shared;
use crate::inspect::snapshot::{
    DESCRIPTORS_BLOCKED, PAGE_ANSWERS_AUTOMATIC, PAGE_REQUESTS_FORGOTTEN,
    PAGE_REQUESTS_OUTSTANDING, PAGE_REQUESTS_TIMED_OUT, PAGE_REQUESTS_WITHDRAWN,
};

/// All counts of a guest's devices and their sockets.
pub(super) fn collect(shared: &Shared, sockets: &[Socket]) -> Vec<(&'static str, u64)> {
    let vm = shared.machine.vm().counters();
    let requests = shared.machine.vm().page_request_counters();
    let unit = shared.machine.unit_counters();
    let accelerator = shared.accelerator.counters();
    let sockets: Vec<_> = sockets.iter().map(Socket::counters).collect();
    let over = |count: fn(&vfio_user::Counters) -> u64| sockets.iter().map(count).sum();
    let (messages, messages_lost) = shared.router.counts();
    let reclaimed = shared.reclaims.total();
    vec![
        ("guests_ended", shared.life.ended().0),
        ("pasids_reclaimed", reclaimed.pasids.into()),
        ("pasids_reclaim_us", microseconds(reclaimed.took)),
        ("ungranted", vm.ungranted),
        ("descriptors", accelerator.descriptors),
        ("bytes", accelerator.bytes),
        ("partial_completions", accelerator.partial_completions),
        ("abandoned_descriptors", accelerator.abandoned),
        ("software_errors", accelerator.software_errors),
        ("portal_stores_ignored", accelerator.portal_ignored),
        ("device_commands", accelerator.commands),
        ("device_interrupts", accelerator.interrupts),
        ("translations", vm.translations),
        ("iotlb_hits", vm.iotlb_hits),
        ("iotlb_misses", vm.iotlb_misses),
        ("walks", vm.walks),
        ("stage_two_walks", vm.stage_two_walks),
        ("stage_two_faults", vm.stage_two_faults),
        ("context_lookups", vm.context_lookups),
        ("pasid_entry_reads", vm.pasid_entry_reads),
        ("invalidations", vm.invalidations),
        ("virtual_commands", unit.virtual_commands),
        ("virtual_commands_invalid", unit.virtual_commands_invalid),
        ("virtual_commands_refused", unit.virtual_commands_refused),
        ("pasids_allocated", unit.pasids_allocated),
        ("pasids_unavailable", unit.pasids_unavailable),
        ("pasids_freed", unit.pasids_freed),
        ("pasid_frees_refused", unit.pasid_frees_refused),
        ("bindings_made", unit.bindings.made),
        ("bindings_replaced", unit.bindings.replaced),
        ("bindings_ended", unit.bindings.ended),
        ("bindings_refused", unit.bindings.refused),
        ("unknown_invalidations", unit.bindings.unknown_invalidations),
        ("guest_entries_read", unit.bindings.entries_read),
        ("queue_descriptors", unit.descriptors),
        ("waits", unit.waits),
        ("waits_held", unit.waits_held),
        ("device_tlb_hits", vm.device_tlb_hits),
        ("device_tlb_misses", vm.device_tlb_misses),
        ("device_tlb_invalidations", vm.device_tlb_invalidations),
        ("invalidation_timeouts", unit.invalidation_timeouts),
        ("page_requests", requests.requests),
        ("page_groups", requests.groups),
        ("page_requests_queued", unit.page_requests),
        ("page_requests_overflowed", unit.page_requests_lost),
        ("page_requests_blocked", unit.page_requests_refused),
        ("page_requests_beyond_limit", requests.dropped),
        ("page_requests_malformed", requests.malformed),
        // Of groups: each is answered in one of these ways, forgotten, or outstanding.
        ("page_requests_answered", requests.answered),
        ("page_requests_without_queue", requests.no_queue),
        ("page_requests_refused", requests.refused),
        (PAGE_REQUESTS_WITHDRAWN, requests.withdrawn),
        (PAGE_REQUESTS_TIMED_OUT, requests.timed_out),
        (PAGE_REQUESTS_FORGOTTEN, requests.forgotten),
        (PAGE_REQUESTS_OUTSTANDING, requests.outstanding),
        (PAGE_ANSWERS_AUTOMATIC, unit.automatic_responses),
        ("page_answers_late", requests.late_answers),
        (PAGE_ANSWERS_UNKNOWN, unit.page_responses_unknown),
        ("page_answers_unexpected", accelerator.page_responses_unexpected),
        ("page_credits_exhausted", accelerator.credits_exhausted),
        ("stop_markers", accelerator.stop_markers),
        (DESCRIPTORS_BLOCKED, accelerator.blocked),
        ("injected_walk_failures", vm.injected_walk_failures),
        ("faults", vm.faults),
        ("faults_lost", vm.faults_lost + unit.faults_lost),
        ("messages_sent", messages),
        ("messages_lost", messages_lost),
        ("register_reads", over(|socket| socket.region_reads)),
        ("register_writes", over(|socket| socket.region_writes)),
        ("memory_maps", over(|socket| socket.dma_maps)),
        ("memory_refused", over(|socket| socket.dma_refusals)),
        ("protocol_errors", over(vfio_user::Counters::all_errors)),
        ("clients_refused", over(|socket| socket.refused)),
    ]
}

/// As counters and JSON have a length of time.
pub(super) fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
