//! What one channel remembers of the guest's tables, and how it forgets.

mod device_tlb;
mod iotlb;
mod pasid;
mod smmuv3;
mod table;

pub(crate) use device_tlb::{Completion, DeviceTlb, Rights};
pub(crate) use iotlb::{Allowed, Cached, Iotlb, Kind, Tag};
pub(crate) use pasid::{DescriptorState, PasidCache, PasidState};
pub(crate) use smmuv3::without_top_byte;
pub(crate) use table::Mapping;

use mem::{Iova, Range};
use pci::RequesterId;

use self::pasid::Tagged;
use self::smmuv3::range_without_top_byte;
use crate::counters::ChannelCounters;
use crate::sabotage::{self, Sabotage};
use crate::{DeviceContext, DomainId, Invalidation, Pasid};

/// The caches of one channel. Absence is never cached: a table entry that becomes present needs
/// no invalidation here (a guest without caching mode sends none).
#[derive(Debug)]
pub(crate) struct Caches {
    requester: RequesterId,
    pub(crate) context: Option<DeviceContext>,
    pub(crate) pasids: PasidCache,
    /// Context descriptors, of a device behind an SMMUv3; closed until the first one is there.
    pub(crate) descriptors: PasidCache<DescriptorState>,
    pub(crate) iotlb: Iotlb,
    /// The device's own; closed until its first translation request is answered.
    pub(crate) device_tlb: DeviceTlb,
}

impl Caches {
    pub(crate) fn new(requester: RequesterId) -> Self {
        Self { pasids: PasidCache::new(), iotlb: Iotlb::new(), ..Self::closed(requester) }
    }

    /// Caches that hold nothing and never will, without memory.
    pub(crate) fn closed(requester: RequesterId) -> Self {
        Self {
            requester,
            context: None,
            pasids: PasidCache::closed(),
            descriptors: PasidCache::closed(),
            iotlb: Iotlb::closed(),
            device_tlb: DeviceTlb::closed(),
        }
    }

    pub(crate) fn forget_all(&mut self) {
        self.context = None;
        self.pasids.retain(|_, _| false);
        self.descriptors.retain(|_, _| false);
        self.forget_translations(&Invalidation::IotlbAll);
        self.device_tlb.clear();
    }

    /// Ends the device's own TLB, whose memory this is.
    pub(crate) fn close_device_tlb(&mut self) -> DeviceTlb {
        core::mem::replace(&mut self.device_tlb, DeviceTlb::closed())
    }

    /// The PASIDs whose entry or context descriptor is cached, and its domain.
    pub(crate) fn pasid_domains(&self) -> impl Iterator<Item = (Pasid, DomainId)> + '_ {
        self.pasids.domains().chain(self.descriptors.domains())
    }

    /// The domain of what is cached for `pasid`.
    pub(crate) fn domain_of(&self, pasid: Pasid) -> Option<DomainId> {
        let descriptor = || self.descriptors.get(pasid).map(Tagged::domain);
        self.pasids.get(pasid).map(Tagged::domain).or_else(descriptor)
    }

    /// The domains under which something is cached, each as often as it comes. What the device's own
    /// TLB holds is of no domain.
    pub(crate) fn domains(&self) -> impl Iterator<Item = DomainId> + '_ {
        self.pasid_domains().map(|(_, domain)| domain).chain(self.iotlb.domains())
    }

    /// Lets `counters` say how much is cached.
    pub(crate) fn publish(&self, counters: &ChannelCounters) {
        counters.iotlb_entries.set(self.iotlb.len() as u64);
        counters.device_tlb_entries.set(self.device_tlb.len() as u64);
        let entries = self.pasids.len() + self.descriptors.len();
        counters.pasid_entries.set(entries as u64);
    }

    /// Forgets what `scope` covers; more may be forgotten, never less.
    pub(crate) fn forget(&mut self, scope: &Invalidation) {
        if !scope.concerns(self.requester) {
            return;
        }
        match *scope {
            Invalidation::ContextAll => self.context = None,
            Invalidation::ContextDomain(domain) => {
                if self.context.as_ref().is_some_and(|context| may_be_in(context, domain)) {
                    self.context = None;
                }
            }
            Invalidation::ContextDevice { .. } => self.context = None,
            Invalidation::PasidCacheAll => self.forget_entries(|_, _| true),
            Invalidation::PasidCacheDomain(domain) => self.forget_entries(|_, of| of == domain),
            Invalidation::PasidCache { domain, pasid } => {
                self.forget_entries(|at, of| at == pasid && of == domain);
            }
            Invalidation::Smmuv3(what) => self.forget_smmuv3(&what),
            Invalidation::DeviceTlb { range, .. } => {
                self.forget_device(&range, |pasid| pasid.is_none());
            }
            Invalidation::DeviceTlbPasid { pasid: of, range, .. } => {
                let covers =
                    |pasid: Option<Pasid>| pasid.is_some() && (of.is_none() || pasid == of);
                self.forget_device(&range, covers);
            }
            _ => self.forget_translations(scope),
        }
    }

    /// Forgets the entries of PASIDs and domains that `covers` picks.
    fn forget_entries(&mut self, covers: impl Fn(Pasid, DomainId) -> bool) {
        self.pasids.retain(|pasid, state| !covers(pasid, state.domain()));
        self.descriptors.retain(|pasid, state| !covers(pasid, state.domain()));
    }

    /// Forgets the entry of `pasid` and every translation that was made by it, in any domain. A
    /// global one may have been, and does not say.
    pub(crate) fn forget_pasid(&mut self, pasid: Pasid) {
        self.forget_entries(|at, _| at == pasid);
        if !sabotage::is(Sabotage::SkipIotlbInvalidation) {
            self.iotlb
                .retain(|entry| !entry.tag().is_global() && entry.tag().pasid() != Some(pasid));
        }
        self.device_tlb.retain(|entry| entry.tag().requested() != Some(pasid));
    }

    /// Has the device forget what its own TLB holds of `range`, for requests with a PASID, or
    /// without any, that `covers` picks.
    ///
    /// An address whose top byte is none of it is found whatever that byte was: which are such is
    /// not for a device to know.
    fn forget_device(&mut self, range: &Range<Iova>, covers: impl Fn(Option<Pasid>) -> bool) {
        if sabotage::is(Sabotage::SkipDeviceTlbInvalidation) {
            return;
        }
        let short = range_without_top_byte(*range);
        self.device_tlb.retain(|entry| {
            let overlaps =
                entry.overlaps(range) || range_without_top_byte(entry.range()).overlaps(&short);
            !(covers(entry.tag().requested()) && overlaps)
        });
    }

    fn forget_translations(&mut self, scope: &Invalidation) {
        if sabotage::is(Sabotage::SkipIotlbInvalidation) {
            return;
        }
        match *scope {
            Invalidation::IotlbAll => self.iotlb.clear(),
            Invalidation::IotlbDomain(domain) => {
                self.iotlb.retain(|entry| entry.tag().domain() != domain);
            }
            // The range is one of second-stage inputs; what went through a first stage is not
            // tagged with that, so all of it goes (VT-d 6.5.2.3).
            Invalidation::IotlbDomainPages { domain, pages } => self.iotlb.retain(|entry| {
                entry.tag().domain() != domain
                    || (entry.kind() == Kind::StageTwo && !entry.overlaps(&pages.range))
            }),
            Invalidation::IotlbPasid { domain, pasid } => self.iotlb.retain(|entry| {
                entry.tag().domain() != domain || entry.tag().pasid() != Some(pasid)
            }),
            Invalidation::IotlbPasidPages { domain, pasid, pages } => self.iotlb.retain(|entry| {
                entry.tag().domain() != domain
                    || entry.tag().pasid() != Some(pasid)
                    || !entry.overlaps(&pages.range)
            }),
            // Contexts, PASID-table entries and the device's own TLB: done by the caller.
            _ => {}
        }
    }
}

/// Whether a context belongs to `domain`. A PASID table has many domains, so it always may.
fn may_be_in(context: &DeviceContext, domain: DomainId) -> bool {
    match context {
        DeviceContext::PassThrough { domain: of, .. }
        | DeviceContext::StageTwo { domain: of, .. } => *of == domain,
        DeviceContext::PasidTable(_) => true,
        DeviceContext::Smmuv3(stream) => stream.vmid.0 == domain.0,
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
