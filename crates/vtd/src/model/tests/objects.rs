//! The objects of a VM in plain maps, with the calls that were made.

use iommu::{
    FaultQueueId, GuestPasid, HwptFlags, HwptId, HwptParent, HwptRequest, InvalidField, IoasId,
    ObjectError, ObjectId, StageOneInvalidation, StageOneTable, VtdStageOne,
};
use pci::RequesterId;
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

/// A call that changes what translates, as it was made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in super::super) enum Call {
    Attach(Place, By),
    Replace(Place, By),
    Detach(Place),
    Invalidate(By, Vec<StageOneInvalidation>),
}

pub(in super::super) type Place = (RequesterId, Option<GuestPasid>);

/// The queue that page requests of what is attached go to.
pub(in super::super) const FAULTS: FaultQueueId = FaultQueueId(70);

/// By what requests are translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in super::super) enum By {
    StageTwo,
    StageOne(VtdStageOne),
}

#[derive(Default)]
pub(in super::super) struct Objects {
    last: u32,
    hwpts: BTreeMap<u32, By>,
    pub(in super::super) attached: BTreeMap<Place, u32>,
    pub(in super::super) calls: Vec<Call>,
    /// PASIDs that nothing can be attached to.
    pub(in super::super) refused: BTreeSet<GuestPasid>,
    /// What every call that would change something says instead.
    pub(in super::super) fail: Option<ObjectError>,
    /// What invalidations say instead.
    pub(in super::super) fail_invalidations: Option<ObjectError>,
    pub(in super::super) fail_detach: Option<ObjectError>,
}

impl Objects {
    /// What every place with something attached is translated by.
    pub(in super::super) fn bound(&self) -> BTreeMap<Place, By> {
        let by = |(place, hwpt): (&Place, &u32)| (*place, self.hwpts[hwpt]);
        self.attached.iter().map(by).collect()
    }

    /// Nested tables that there are.
    pub(in super::super) fn tables(&self) -> usize {
        self.hwpts.values().filter(|by| **by != By::StageTwo).count()
    }

    fn check(&self) -> Result<(), ObjectError> {
        self.fail.map_or(Ok(()), Err)
    }

    pub(super) fn alloc(&mut self, request: &HwptRequest) -> Result<HwptId, ObjectError> {
        self.check()?;
        let by = match (request.parent, request.data) {
            (HwptParent::Ioas(IoasId(7)), None) => {
                assert_eq!(request.flags, HwptFlags::NEST_PARENT | HwptFlags::PASID);
                By::StageTwo
            }
            (HwptParent::Hwpt(parent), Some(StageOneTable::Vtd(table))) => {
                assert_eq!(self.hwpts[&parent.0], By::StageTwo);
                let with_faults = HwptFlags::PASID | HwptFlags::FAULT_ID_VALID;
                assert_eq!(request.flags, with_faults);
                assert_eq!(request.fault, Some(FAULTS));
                By::StageOne(table)
            }
            _ => return Err(ObjectError::Invalid(InvalidField::Data)),
        };
        self.last += 1;
        self.hwpts.insert(self.last, by);
        Ok(HwptId(self.last))
    }

    pub(super) fn attach(
        &mut self,
        place: Place,
        hwpt: HwptId,
        granted: bool,
    ) -> Result<(), ObjectError> {
        self.check()?;
        self.calls.push(Call::Attach(place, self.hwpts[&hwpt.0]));
        if let Some(pasid) = place.1.filter(|pasid| !granted || self.refused.contains(pasid)) {
            return Err(ObjectError::NotGranted(pasid));
        }
        if self.attached.contains_key(&place) {
            return Err(ObjectError::Busy);
        }
        self.attached.insert(place, hwpt.0);
        Ok(())
    }

    pub(super) fn replace(&mut self, place: Place, hwpt: HwptId) -> Result<(), ObjectError> {
        self.check()?;
        self.calls.push(Call::Replace(place, self.hwpts[&hwpt.0]));
        let old = self.attached.get_mut(&place).ok_or(ObjectError::NotAttached)?;
        *old = hwpt.0;
        Ok(())
    }

    pub(super) fn detach(&mut self, place: Place) -> Result<(), ObjectError> {
        self.calls.push(Call::Detach(place));
        self.fail_detach.map_or(Ok(()), Err)?;
        self.attached.remove(&place).map(drop).ok_or(ObjectError::NotAttached)
    }

    pub(super) fn invalidate(
        &mut self,
        hwpt: HwptId,
        what: &[StageOneInvalidation],
    ) -> Result<(), ObjectError> {
        self.calls.push(Call::Invalidate(self.hwpts[&hwpt.0], what.to_vec()));
        self.fail_invalidations.map_or(Ok(()), Err)
    }

    pub(super) fn destroy(&mut self, object: ObjectId) -> Result<(), ObjectError> {
        if self.attached.values().any(|hwpt| *hwpt == object.0) {
            return Err(ObjectError::Busy);
        }
        self.hwpts.remove(&object.0).map(drop).ok_or(ObjectError::NoObject(object))
    }
}
