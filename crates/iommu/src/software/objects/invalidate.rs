//! Forgetting what was made of a guest's tables, by the object and not by the host's numbers.

use alloc::vec::Vec;

use pci::RequesterId;

use super::Table;
use crate::invalidation::EVERYWHERE;
use crate::software::attached::RID_PASID;
use crate::software::device_tlbs::Asker;
use crate::software::vm::VmShared;
use crate::{
    DomainId, GuestPasid, HwptId, InvalidField, Invalidation, ObjectError, PageRange,
    StageOneInvalidation, StageOneTable, Ticket,
};

/// Low bits of a page's address, and of what a range has to begin and end at.
const PAGE_BITS: u32 = 12;

/// Where a table is attached, as caches name that.
#[derive(Clone, Copy)]
struct Tagged {
    device: RequesterId,
    domain: DomainId,
    /// As the guest numbers it.
    pasid: Option<GuestPasid>,
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
        let tagged = places.map(|(device, state, pasid)| Tagged {
            device,
            domain: state.domain.id(),
            pasid,
        });
        let tagged: Vec<_> = tagged.collect();
        let mut ticket = control.ticket(Asker::Guest);
        for (done, what) in what.iter().enumerate() {
            check(what).map_err(|error| (done, error))?;
            control.history.invalidations += 1;
            for &place in &tagged {
                ticket = control.forget_of_device(place.device, &scopes(what, place));
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

/// With the host's identifiers, in the order that the hardware needs: the device's own TLB is last,
/// or it would be filled again from what is about to go.
fn scopes(what: &StageOneInvalidation, place: Tagged) -> [Option<Invalidation>; 3] {
    let Tagged { device, domain, pasid } = place;
    let (guest, host) = (pasid.map(|pasid| pasid.0), pasid.map_or(RID_PASID, |pasid| pasid.0));
    let of_device = |range| Some(Invalidation::of_device_tlb(device, guest, range));
    let entry = Invalidation::PasidCache { domain, pasid: host };
    let all = Invalidation::IotlbPasid { domain, pasid: host };
    match *what {
        StageOneInvalidation::All => [None, Some(all), of_device(EVERYWHERE)],
        StageOneInvalidation::Pages { range, leaf_only } => {
            let pages = PageRange { range, leaf_only };
            let pages = Invalidation::IotlbPasidPages { domain, pasid: host, pages };
            [None, Some(pages), of_device(range)]
        }
        StageOneInvalidation::Entry => [Some(entry), Some(all), of_device(EVERYWHERE)],
    }
}
