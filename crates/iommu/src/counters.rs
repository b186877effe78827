//! Counters of one channel.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::injection::WalkFailure;

/// A count with one writer at a time: whoever holds the lock of the channel's slot. So adding is
/// a load and a store, and reading from elsewhere disturbs nobody.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.set(self.get().wrapping_add(n));
    }

    pub(crate) fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a channel's translations do to the guest's memory.
#[derive(Debug, Default)]
pub(crate) struct TableReads {
    pub(crate) stage_two_walks: Counter,
    /// Which of the guest's words is not found. It is here because who loads one has this at hand.
    pub(crate) failure: Arc<WalkFailure>,
}

/// What one channel counts. On cache lines of its own, as its writer's other state is.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct ChannelCounters {
    pub(crate) translations: Counter,
    pub(crate) iotlb_hits: Counter,
    pub(crate) iotlb_misses: Counter,
    pub(crate) device_tlb_hits: Counter,
    pub(crate) device_tlb_misses: Counter,
    pub(crate) walks: Counter,
    pub(crate) pasid_entry_reads: Counter,
    pub(crate) context_lookups: Counter,
    pub(crate) ungranted: Counter,
    pub(crate) tables: TableReads,
    pub(crate) stage_two_faults: Counter,
    /// Translations cached now.
    pub(crate) iotlb_entries: Counter,
    /// PASID-table entries cached now.
    pub(crate) pasid_entries: Counter,
    /// Translations in the device's own TLB now.
    pub(crate) device_tlb_entries: Counter,
}

impl ChannelCounters {
    /// Of a channel whose walks fail as `failure` has it.
    pub(crate) fn new(failure: Arc<WalkFailure>) -> Self {
        Self { tables: TableReads { failure, ..TableReads::default() }, ..Self::default() }
    }

    /// Adds what this channel counted since its creation to `sum`.
    pub(crate) fn add_history(&self, sum: &mut crate::Counters) {
        sum.translations += self.translations.get();
        sum.iotlb_hits += self.iotlb_hits.get();
        sum.iotlb_misses += self.iotlb_misses.get();
        sum.device_tlb_hits += self.device_tlb_hits.get();
        sum.device_tlb_misses += self.device_tlb_misses.get();
        sum.walks += self.walks.get();
        sum.pasid_entry_reads += self.pasid_entry_reads.get();
        sum.context_lookups += self.context_lookups.get();
        sum.ungranted += self.ungranted.get();
        sum.stage_two_walks += self.tables.stage_two_walks.get();
        sum.stage_two_faults += self.stage_two_faults.get();
    }

    /// Adds what this channel caches now to `sum`.
    pub(crate) fn add_present(&self, sum: &mut crate::Counters) {
        sum.iotlb_entries += self.iotlb_entries.get();
        sum.pasid_entries += self.pasid_entries.get();
        sum.device_tlb_entries += self.device_tlb_entries.get();
    }
}
