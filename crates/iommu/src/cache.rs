//! What one channel remembers of the guest's tables, and how it forgets.

mod iotlb;
mod pasid;

pub(crate) use iotlb::{Allowed, Cached, Iotlb, Kind, Tag};
pub(crate) use pasid::{PasidCache, PasidState};

use pci::RequesterId;

use crate::counters::ChannelCounters;
use crate::{DeviceContext, DomainId, Invalidation, Pasid};

/// The caches of one channel. Absence is never cached: a table entry that becomes present needs
/// no invalidation here (a guest without caching mode sends none).
#[derive(Debug)]
pub(crate) struct Caches {
    requester: RequesterId,
    pub(crate) context: Option<DeviceContext>,
    pub(crate) pasids: PasidCache,
    pub(crate) iotlb: Iotlb,
}

impl Caches {
    pub(crate) fn new(requester: RequesterId) -> Self {
        Self { requester, context: None, pasids: PasidCache::new(), iotlb: Iotlb::new() }
    }

    /// Caches that hold nothing and never will, without memory.
    pub(crate) fn closed(requester: RequesterId) -> Self {
        Self { requester, context: None, pasids: PasidCache::closed(), iotlb: Iotlb::closed() }
    }

    pub(crate) fn forget_all(&mut self) {
        self.context = None;
        self.pasids.retain(|_, _| false);
        self.iotlb.clear();
    }

    /// The domains under which something is cached, each as often as it comes.
    pub(crate) fn domains(&self) -> impl Iterator<Item = DomainId> + '_ {
        self.pasids.domains().chain(self.iotlb.domains())
    }

    /// Lets `counters` say how much is cached.
    pub(crate) fn publish(&self, counters: &ChannelCounters) {
        counters.iotlb_entries.set(self.iotlb.len() as u64);
        counters.pasid_entries.set(self.pasids.len() as u64);
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
            Invalidation::PasidCacheAll => self.pasids.retain(|_, _| false),
            Invalidation::PasidCacheDomain(domain) => {
                self.pasids.retain(|_, state| state.domain != domain);
            }
            Invalidation::PasidCache { domain, pasid } => {
                self.pasids.retain(|at, state| at != pasid || state.domain != domain);
            }
            _ => self.forget_translations(scope),
        }
    }

    /// Forgets the entry of `pasid` and every translation that was made by it, in any domain.
    pub(crate) fn forget_pasid(&mut self, pasid: Pasid) {
        self.pasids.retain(|at, _| at != pasid);
        if !crate::sabotage::is(crate::sabotage::Sabotage::SkipIotlbInvalidation) {
            self.iotlb.retain(|entry| entry.tag().pasid() != Some(pasid));
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
                    Some(of) if pasid.is_none_or(|pasid| pasid == of) => !entry.overlaps(&range),
                    _ => true,
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
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
