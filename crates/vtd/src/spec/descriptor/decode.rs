//! From the wire: every bit pattern is a descriptor or a reason.

use super::*;

impl Descriptor {
    /// Decodes the words of a descriptor; those that the queue's width does not have are zero.
    ///
    /// # Errors
    ///
    /// See [`DescriptorError`]; [`DescriptorError::info`] is what the guest is told.
    pub fn decode(words: [u64; 4], rules: &DescriptorRules) -> Result<Self, DescriptorError> {
        let low = u128::from(words[0]) | u128::from(words[1]) << 64;
        let header = layout::Header::from_bits(low);
        let kind = header.type_low() | header.type_high() << 4;
        rules.check(kind)?;
        // Only private data lies beyond the first 128 bits.
        let is_response = kind == 9 && layout::PageGroupResponse::from_bits(low).private_data();
        if (words[2] != 0 || words[3] != 0) && !(is_response && rules.private_data) {
            return Err(DescriptorError::Reserved(kind));
        }
        match kind {
            1 => context_cache(layout::ContextCache::from_bits(low), kind),
            2 => iotlb(layout::Iotlb::from_bits(low), kind, rules),
            3 => device_tlb(layout::DeviceTlb::from_bits(low), kind, rules),
            4 => interrupt_entry_cache(layout::InterruptEntryCache::from_bits(low), kind, rules),
            5 => wait(layout::Wait::from_bits(low), kind, rules),
            6 => pasid_iotlb(layout::Pasid::from_bits(low), kind),
            7 => pasid_cache(layout::Pasid::from_bits(low), kind),
            8 => pasid_device_tlb(layout::PasidDeviceTlb::from_bits(low), kind, rules),
            9 => page_group_response(words, kind, rules),
            _ => Err(DescriptorError::Type(kind)),
        }
    }
}

impl DescriptorRules {
    /// Whether the width goes with the table mode: known before any descriptor is read.
    ///
    /// # Errors
    ///
    /// [`DescriptorError::TableMode`] and [`DescriptorError::Width`].
    pub fn check_width(&self) -> Result<(), DescriptorError> {
        let wide = self.width == DescriptorWidth::Bits256;
        match self.mode {
            TableMode::Legacy => {}
            TableMode::Scalable if self.extended.scalable_mode() => {}
            TableMode::AbortDma if self.extended.abort_dma() => {}
            _ => return Err(DescriptorError::TableMode),
        }
        let allowed = if wide {
            self.extended.scalable_mode() || self.extended.abort_dma()
        } else {
            self.mode == TableMode::Legacy
        };
        allowed.then_some(()).ok_or(DescriptorError::Width)
    }

    /// Whether descriptors of type `kind` are valid (table 26 and the capabilities).
    fn check(&self, kind: u8) -> Result<(), DescriptorError> {
        self.check_width()?;
        let legacy = self.mode == TableMode::Legacy;
        let valid = match kind {
            1 | 2 | 5 => true,
            3 => self.extended.device_tlb(),
            4 => self.extended.interrupt_remapping(),
            6 | 7 => !legacy,
            8 => !legacy && self.extended.device_tlb(),
            9 => !legacy && self.extended.page_requests(),
            _ => false,
        };
        valid.then_some(()).ok_or(DescriptorError::Type(kind))
    }
}

type Decoded = Result<Descriptor, DescriptorError>;

fn clean(clean: bool, kind: u8) -> Result<(), DescriptorError> {
    clean.then_some(()).ok_or(DescriptorError::Reserved(kind))
}

fn context_cache(raw: layout::ContextCache, kind: u8) -> Decoded {
    clean(raw.is_clean(), kind)?;
    let domain = DomainId(raw.domain());
    Ok(Descriptor::ContextCache(match raw.granularity() {
        1 => ContextScope::Global,
        2 => ContextScope::Domain(domain),
        3 => ContextScope::Device {
            domain,
            source: RequesterId::from_bits(raw.source()),
            function_mask: raw.function_mask(),
        },
        granularity => return Err(DescriptorError::Granularity { kind, granularity }),
    }))
}

fn iotlb(raw: layout::Iotlb, kind: u8, rules: &DescriptorRules) -> Decoded {
    clean(raw.is_clean(), kind)?;
    let domain = DomainId(raw.domain());
    let scope = match raw.granularity() {
        1 => IotlbScope::Global,
        2 => IotlbScope::Domain(domain),
        3 if rules.capability.page_selective() => {
            let (mask, limit) = (raw.mask(), rules.capability.max_address_mask());
            if mask > limit {
                return Err(DescriptorError::AddressMask { mask, limit });
            }
            let address = rules.guest_address(raw.page());
            IotlbScope::Pages(domain, Pages { address, mask, leaf_only: raw.leaf_only() })
        }
        granularity => return Err(DescriptorError::Granularity { kind, granularity }),
    };
    let (drain_reads, drain_writes) = (raw.drain_reads(), raw.drain_writes());
    Ok(Descriptor::Iotlb { scope, drain_reads, drain_writes })
}

impl DescriptorRules {
    /// The address of a page, without the bits beyond the maximum guest address width, which
    /// hardware ignores.
    fn guest_address(&self, page: u64) -> Iova {
        let bits = u32::from(self.capability.max_guest_width()) + 1;
        let limit = 1u64.checked_shl(bits).map_or(u64::MAX, |size| size - 1);
        Iova((page << PAGE_BITS) & limit)
    }
}

fn device_tlb(raw: layout::DeviceTlb, kind: u8, rules: &DescriptorRules) -> Decoded {
    clean(raw.is_clean(rules.extended.device_tlb_throttle()), kind)?;
    Ok(Descriptor::DeviceTlb {
        source: RequesterId::from_bits(raw.source()),
        scope: DeviceTlbScope { address: Iova(raw.page() << PAGE_BITS), large: raw.size() },
    })
}

fn interrupt_entry_cache(
    raw: layout::InterruptEntryCache,
    kind: u8,
    rules: &DescriptorRules,
) -> Decoded {
    clean(raw.is_clean(), kind)?;
    let (index, mask) = (raw.index(), raw.mask());
    if !raw.selective() {
        return Ok(Descriptor::InterruptEntryCache(InterruptEntryScope::Global));
    }
    let limit = rules.extended.max_handle_mask();
    if mask > limit {
        return Err(DescriptorError::AddressMask { mask, limit });
    }
    Ok(Descriptor::InterruptEntryCache(InterruptEntryScope::Index { index, mask }))
}

fn wait(raw: layout::Wait, kind: u8, rules: &DescriptorRules) -> Decoded {
    clean(raw.is_clean(rules.extended.page_request_drain()), kind)?;
    Ok(Descriptor::Wait(Wait {
        status: raw.status_write().then(|| (Gpa(raw.status_word() << 2), raw.status_data())),
        interrupt: raw.interrupt(),
        fence: raw.fence(),
        page_request_drain: raw.page_request_drain(),
    }))
}

fn pasid_iotlb(raw: layout::Pasid, kind: u8) -> Decoded {
    clean(raw.is_clean(), kind)?;
    let scope = match raw.granularity() {
        2 => PasidIotlbScope::All,
        // Any mask is allowed here, whatever CAP.MAMV says (11.4.2).
        3 => PasidIotlbScope::Pages(Pages {
            address: Iova(raw.page() << PAGE_BITS),
            mask: raw.mask(),
            leaf_only: raw.leaf_only(),
        }),
        granularity => return Err(DescriptorError::Granularity { kind, granularity }),
    };
    let (domain, pasid) = (DomainId(raw.domain()), Pasid::from_field(raw.pasid()));
    Ok(Descriptor::PasidIotlb { domain, pasid, scope })
}

fn pasid_cache(raw: layout::Pasid, kind: u8) -> Decoded {
    clean(raw.is_clean() && raw.is_without_address(), kind)?;
    let domain = DomainId(raw.domain());
    Ok(Descriptor::PasidCache(match raw.granularity() {
        0 => PasidCacheScope::Domain(domain),
        1 => PasidCacheScope::Pasid(domain, Pasid::from_field(raw.pasid())),
        3 => PasidCacheScope::Global,
        granularity => return Err(DescriptorError::Granularity { kind, granularity }),
    }))
}

fn pasid_device_tlb(raw: layout::PasidDeviceTlb, kind: u8, rules: &DescriptorRules) -> Decoded {
    clean(raw.is_clean(rules.extended.device_tlb_throttle()), kind)?;
    Ok(Descriptor::PasidDeviceTlb {
        source: RequesterId::from_bits(raw.source()),
        pasid: (!raw.global()).then(|| Pasid::from_field(raw.pasid())),
        scope: DeviceTlbScope { address: Iova(raw.page() << PAGE_BITS), large: raw.size() },
    })
}

fn page_group_response(words: [u64; 4], kind: u8, rules: &DescriptorRules) -> Decoded {
    let [first, second, third, fourth] = words;
    let bits = u128::from(first) | u128::from(second) << 64;
    let raw = layout::PageGroupResponse::from_bits(bits);
    clean(raw.is_clean(rules.private_data), kind)?;
    Ok(Descriptor::PageGroupResponse(PageGroupResponse {
        source: RequesterId::from_bits(raw.source()),
        pasid: raw.pasid_present().then(|| Pasid::from_field(raw.pasid())),
        group: raw.group(),
        code: raw.code(),
        private_data: raw.private_data().then_some([third, fourth]),
    }))
}
