//! Counters as numbers in a row, and back.

/// The counts of `$type` in a row. Every field by name; a new one goes to the end.
macro_rules! counts {
    ($(#[$doc:meta])* mod $module:ident: $type:ident, $count:literal: $($name:ident),*) => {
        $(#[$doc])*
        pub(crate) mod $module {
            use iommu::$type;

            /// How many counts there are.
            pub(crate) const COUNTS: usize = $count;

            /// The counts in a row.
            pub(crate) fn to_wire(counters: &$type) -> [u64; COUNTS] {
                let $type { $($name),* } = *counters;
                [$($name),*]
            }

            /// The counters of a row of counts.
            pub(crate) fn from_wire(counts: [u64; COUNTS]) -> $type {
                let [$($name),*] = counts;
                $type { $($name),* }
            }
        }
    };
}

counts!(
    /// Of a VM.
    mod vm: Counters, 20: translations, iotlb_hits, iotlb_misses, walks, pasid_entry_reads,
    context_lookups, invalidations, faults, faults_lost, iotlb_entries, pasid_entries, devices,
    ungranted, stage_two_walks, stage_two_faults, device_tlb_hits, device_tlb_misses,
    device_tlb_invalidations, device_tlb_entries, injected_walk_failures
);

counts!(
    /// Of a VM's page requests.
    mod page_requests: PageRequestCounters, 12: requests, groups, answered, no_queue, refused,
    withdrawn, timed_out, forgotten, malformed, dropped, late_answers, outstanding
);
