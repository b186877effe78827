//! What one channel remembers of the guest's tables, and how it forgets.

mod iotlb;
mod pasid;
mod smmuv3;

pub(crate) use iotlb::{Allowed, Cached, Iotlb, Kind, Tag};
pub(crate) use pasid::{DescriptorState, PasidCache, PasidState};
pub(crate) use smmuv3::without_top_byte;

use pci::RequesterId;

use self::pasid::Tagged;
use crate::counters::ChannelCounters;
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
        }
    }

    pub(crate) fn forget_all(&mut self) {
        self.context = None;
        self.pasids.retain(|_, _| false);
        self.descriptors.retain(|_, _| false);
        self.forget_translations(&Invalidation::IotlbAll);
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

    /// The domains under which something is cached, each as often as it comes.
    pub(crate) fn domains(&self) -> impl Iterator<Item = DomainId> + '_ {
        self.pasid_domains().map(|(_, domain)| domain).chain(self.iotlb.domains())
    }

    /// Lets `counters` say how much is cached.
    pub(crate) fn publish(&self, counters: &ChannelCounters) {
        counters.iotlb_entries.set(self.iotlb.len() as u64);
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
        if !crate::sabotage::is(crate::sabotage::Sabotage::SkipIotlbInvalidation) {
            self.iotlb
                .retain(|entry| !entry.tag().is_global() && entry.tag().pasid() != Some(pasid));
        }
    }

    fn forget_translations(&mut self, scope: &Invalidation) {
        if crate::sabotage::is(crate::sabotage::Sabotage::SkipIotlbInvalidation) {
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
            Invalidation::DeviceTlb { range, .. } => self
                .iotlb
                .retain(|entry| entry.tag().requested().is_some() || !entry.overlaps(&range)),
            Invalidation::DeviceTlbPasid { pasid, range, .. } => {
                self.iotlb.retain(|entry| match entry.tag().requested() {
                    Some(of) if pasid.is_some_and(|pasid| pasid != of) => true,
                    None if !entry.tag().is_global() => true,
                    _ => !entry.overlaps(&range),
                });
            }
            // Contexts and PASID-table entries: done by the caller.
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
