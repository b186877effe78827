//! Counters as numbers in a row, and back.

use iommu::Counters;

macro_rules! counts {
    ($count:literal: $($name:ident),*) => {
        /// How many counts there are.
        pub(crate) const COUNTS: usize = $count;

        /// The counts in a row.
        pub(crate) fn to_wire(counters: &Counters) -> [u64; COUNTS] {
            let Counters { $($name),* } = *counters;
            [$($name),*]
        }

        /// The counters of a row of counts.
        pub(crate) fn from_wire(counts: [u64; COUNTS]) -> Counters {
            let [$($name),*] = counts;
            Counters { $($name),* }
        }
    };
}

// Every field by name; a new one goes to the end.
counts!(20: translations, iotlb_hits, iotlb_misses, walks, pasid_entry_reads, context_lookups,
    invalidations, faults, faults_lost, iotlb_entries, pasid_entries, devices, ungranted,
    stage_two_walks, stage_two_faults, device_tlb_hits, device_tlb_misses,
    device_tlb_invalidations, device_tlb_entries, injected_walk_failures);
