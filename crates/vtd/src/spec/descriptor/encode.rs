//! To the wire: what a driver writes into the queue.

use super::*;

impl Descriptor {
    /// The words of the descriptor; a 128-bit queue takes the first two.
    ///
    /// Fields that are too wide for their place lose their high bits.
    pub fn encode(&self) -> [u64; 4] {
        let bits = match *self {
            Self::ContextCache(scope) => context_cache(scope).into_bits(),
            Self::Iotlb { scope, drain_reads, drain_writes } => iotlb(scope)
                .with_drain_reads(drain_reads)
                .with_drain_writes(drain_writes)
                .into_bits(),
            Self::DeviceTlb { source, scope } => layout::DeviceTlb::new()
                .with_type_low(3)
                .with_source(source.bits())
                .with_size(scope.large)
                .with_page(scope.address.0 >> PAGE_BITS)
                .into_bits(),
            Self::InterruptEntryCache(scope) => interrupt_entry_cache(scope).into_bits(),
            Self::Wait(wait) => wait_bits(wait).into_bits(),
            Self::PasidIotlb { domain, pasid, scope } => {
                pasid_iotlb(scope).with_domain(domain.0).with_pasid(pasid.get()).into_bits()
            }
            Self::PasidCache(scope) => pasid_cache(scope).into_bits(),
            Self::PasidDeviceTlb { source, pasid, scope } => layout::PasidDeviceTlb::new()
                .with_type_low(8)
                .with_source(source.bits())
                .with_pasid(pasid.map_or(0, Pasid::get))
                .with_global(pasid.is_none())
                .with_size(scope.large)
                .with_page(scope.address.0 >> PAGE_BITS)
                .into_bits(),
            Self::PageGroupResponse(response) => page_group_response(response).into_bits(),
        };
        let [third, fourth] = match *self {
            Self::PageGroupResponse(response) => response.private_data.unwrap_or_default(),
            _ => [0; 2],
        };
        [bits as u64, (bits >> 64) as u64, third, fourth]
    }
}

fn context_cache(scope: ContextScope) -> layout::ContextCache {
    let raw = layout::ContextCache::new().with_type_low(1);
    match scope {
        ContextScope::Global => raw.with_granularity(1),
        ContextScope::Domain(domain) => raw.with_granularity(2).with_domain(domain.0),
        ContextScope::Device { domain, source, function_mask } => raw
            .with_granularity(3)
            .with_domain(domain.0)
            .with_source(source.bits())
            .with_function_mask(function_mask & 3),
    }
}

fn iotlb(scope: IotlbScope) -> layout::Iotlb {
    let raw = layout::Iotlb::new().with_type_low(2);
    match scope {
        IotlbScope::Global => raw.with_granularity(1),
        IotlbScope::Domain(domain) => raw.with_granularity(2).with_domain(domain.0),
        IotlbScope::Pages(domain, pages) => raw
            .with_granularity(3)
            .with_domain(domain.0)
            .with_mask(pages.mask & 63)
            .with_leaf_only(pages.leaf_only)
            .with_page(pages.address.0 >> PAGE_BITS),
    }
}

fn interrupt_entry_cache(scope: InterruptEntryScope) -> layout::InterruptEntryCache {
    let raw = layout::InterruptEntryCache::new().with_type_low(4);
    match scope {
        InterruptEntryScope::Global => raw,
        InterruptEntryScope::Index { index, mask } => {
            raw.with_selective(true).with_index(index).with_mask(mask & 31)
        }
    }
}

fn wait_bits(wait: Wait) -> layout::Wait {
    let (address, data) = wait.status.unwrap_or((Gpa(0), 0));
    layout::Wait::new()
        .with_type_low(5)
        .with_status_write(wait.status.is_some())
        .with_interrupt(wait.interrupt)
        .with_fence(wait.fence)
        .with_page_request_drain(wait.page_request_drain)
        .with_status_data(data)
        .with_status_word(address.0 >> 2)
}

fn pasid_iotlb(scope: PasidIotlbScope) -> layout::Pasid {
    let raw = layout::Pasid::new().with_type_low(6);
    match scope {
        PasidIotlbScope::All => raw.with_granularity(2),
        PasidIotlbScope::Pages(pages) => raw
            .with_granularity(3)
            .with_mask(pages.mask & 63)
            .with_leaf_only(pages.leaf_only)
            .with_page(pages.address.0 >> PAGE_BITS),
    }
}

fn pasid_cache(scope: PasidCacheScope) -> layout::Pasid {
    let raw = layout::Pasid::new().with_type_low(7);
    match scope {
        PasidCacheScope::Global => raw.with_granularity(3),
        PasidCacheScope::Domain(domain) => raw.with_domain(domain.0),
        PasidCacheScope::Pasid(domain, pasid) => {
            raw.with_granularity(1).with_domain(domain.0).with_pasid(pasid.get())
        }
    }
}

fn page_group_response(response: PageGroupResponse) -> layout::PageGroupResponse {
    layout::PageGroupResponse::new()
        .with_type_low(9)
        .with_pasid_present(response.pasid.is_some())
        .with_private_data(response.private_data.is_some())
        .with_pasid(response.pasid.map_or(0, Pasid::get))
        .with_source(response.source.bits())
        .with_group(response.group & 0x1ff)
        .with_code(response.code & 15)
}
