//! Forgetting what was made of a guest's tables, by the object and not by the host's numbers.

use alloc::vec::Vec;

use pci::RequesterId;

use super::Table;
use crate::channel::Batch;
use crate::software::attached::RID_PASID;
use crate::software::vm::VmShared;
use crate::{
    DomainId, HwptId, InvalidField, Invalidation, ObjectError, PageRange, Pasid,
    StageOneInvalidation, StageOneTable, Ticket,
};

/// Low bits of a page's address, and of what a range has to begin and end at.
const PAGE_BITS: u32 = 12;

/// Where a table is attached, as caches name that.
#[derive(Clone, Copy)]
struct Tagged {
    device: RequesterId,
    domain: DomainId,
    pasid: Pasid,
}

impl VmShared {
    /// Forgets what was made of a nested table, wherever it is attached.
    pub(in crate::software) fn invalidate_hwpt(
        &self,
        hwpt: HwptId,
        what: &[StageOneInvalidation],
    ) -> Result<Ticket, (usize, ObjectError)> {
        let mut control = self.control.lock();
        if control.closed {
            return Err((0, ObjectError::Closed));
        }
        match control.objects.hwpt(hwpt).map_err(|error| (0, error))?.table {
            Table::Nested { stage_one: StageOneTable::Vtd(_), .. } => {}
            _ => return Err((0, ObjectError::NotSupported)),
        }
        let places = control.attached.places_of(hwpt);
        let tagged = places.map(|(device, state, pasid)| {
            let pasid = pasid.map_or(RID_PASID, |pasid| pasid.0);
            Tagged { device, domain: state.domain.id(), pasid }
        });
        let tagged: Vec<_> = tagged.collect();
        let mut ticket = Ticket(control.sequence);
        for (done, what) in what.iter().enumerate() {
            check(what).map_err(|error| (done, error))?;
            control.history.invalidations += 1;
            for &Tagged { device, domain, pasid } in &tagged {
                let scopes = scopes(what, domain, pasid);
                let forget = |batch: &mut Batch| {
                    scopes.into_iter().flatten().for_each(|scope| batch.forget(scope));
                };
                ticket = control.post(|channel| channel.requester == device, forget).0;
            }
        }
        Ok(ticket)
    }
}

/// Whether a range is one of whole pages.
fn check(what: &StageOneInvalidation) -> Result<(), ObjectError> {
    let StageOneInvalidation::Pages { range, .. } = what else { return Ok(()) };
    let page = (1 << PAGE_BITS) - 1;
    let whole = range.start <= range.last
        && range.start.is_aligned(PAGE_BITS)
        && range.last.0 & page == page;
    whole.then_some(()).ok_or(ObjectError::Invalid(InvalidField::Range))
}

/// With the host's identifiers. What a device's own TLB holds is held by the very caches that
/// these are about.
fn scopes(
    what: &StageOneInvalidation,
    domain: DomainId,
    pasid: Pasid,
) -> [Option<Invalidation>; 2] {
    let entry = Invalidation::PasidCache { domain, pasid };
    let all = Invalidation::IotlbPasid { domain, pasid };
    match *what {
        StageOneInvalidation::All => [None, Some(all)],
        StageOneInvalidation::Pages { range, leaf_only } => {
            let pages = PageRange { range, leaf_only };
            [None, Some(Invalidation::IotlbPasidPages { domain, pasid, pages })]
        }
        StageOneInvalidation::Entry => [Some(entry), Some(all)],
    }
}
