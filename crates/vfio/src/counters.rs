//! Counters as numbers in a row, and back.

use iommu::Counters;

/// The counts in the order of the structure's fields.
pub(crate) fn to_wire(counters: &Counters) -> [u64; 12] {
    // Every field by name: a new one has to find its place here, at the end.
    let Counters {
        translations,
        iotlb_hits,
        iotlb_misses,
        walks,
        pasid_entry_reads,
        context_lookups,
        invalidations,
        faults,
        faults_lost,
        iotlb_entries,
        pasid_entries,
        devices,
    } = *counters;
    [
        translations,
        iotlb_hits,
        iotlb_misses,
        walks,
        pasid_entry_reads,
        context_lookups,
        invalidations,
        faults,
        faults_lost,
        iotlb_entries,
        pasid_entries,
        devices,
    ]
}

/// The counters of a row of counts.
pub(crate) fn from_wire(counts: [u64; 12]) -> Counters {
    let [translations, iotlb_hits, iotlb_misses, walks, pasid_entry_reads, context_lookups, invalidations, faults, faults_lost, iotlb_entries, pasid_entries, devices] =
        counts;
    Counters {
        translations,
        iotlb_hits,
        iotlb_misses,
        walks,
        pasid_entry_reads,
        context_lookups,
        invalidations,
        faults,
        faults_lost,
        iotlb_entries,
        pasid_entries,
        devices,
    }
}
