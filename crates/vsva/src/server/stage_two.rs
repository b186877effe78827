//! The host's second stage below a running guest, as the lab meddles with it: pages go and come back, and the host's
//! record says who missed them.

use std::collections::BTreeMap;

use guest_protocol::sync;
use iommu::{Fault, SoftwareVm, StageTwoError, StageTwoOwner, Ticket};
use mem::{Access, Gpa, Range};

use super::settled::{settle, Wait};
use super::GuestPlace;

/// Bytes of the pages that are taken out.
const PAGE: u64 = 4096;

/// What was seen of a guest's second stage so far.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// Faults of it, as last counted.
    faults: u64,
}

impl Watched {
    /// Does what is asked for at a point of [`guest_protocol::sync`].
    pub(super) fn at(
        &mut self,
        place: &GuestPlace,
        point: &str,
        values: &BTreeMap<String, u64>,
    ) -> Result<String, String> {
        let value =
            |name: &str| values.get(name).copied().ok_or_else(|| format!("no {name} was named"));
        match point {
            sync::STAGE_TWO_WALKED => self.walked(place),
            sync::STAGE_TWO_CLEAR => self.clear(place, value("gpa")?),
            sync::STAGE_TWO_FAULT => {
                let (gpa, address) = (value("gpa")?, value("address")?);
                self.met(place, Missed { gpa, address, write: value("write")? == 1 })
            }
            sync::STAGE_TWO_RESTORE => self.restore(place, value("gpa")?),
            unknown => Err(format!("{unknown} is about something else")),
        }
    }

    /// Whether the second stage was walked, and nobody met a fault of it since the last look.
    fn walked(&mut self, place: &GuestPlace) -> Result<String, String> {
        let walks = place.vm_counters().stage_two_walks;
        match (walks, self.grown(place)) {
            (0, _) => Err("it was not walked".to_owned()),
            (walks, 0) => Ok(format!("{walks} walks of it, without a fault")),
            (_, faults) => Err(format!("{faults} faults of it, with all pages in place")),
        }
    }

    /// Takes the page at `gpa` out.
    fn clear(&mut self, place: &GuestPlace, gpa: u64) -> Result<String, String> {
        // What was before is somebody else's.
        self.grown(place);
        change(place, gpa, SoftwareVm::clear_stage_two)?;
        Ok(format!("guest physical {gpa:#x}"))
    }

    /// Puts the page at `gpa` back.
    fn restore(&mut self, place: &GuestPlace, gpa: u64) -> Result<String, String> {
        change(place, gpa, SoftwareVm::restore_stage_two)?;
        match self.grown(place) {
            0 => Ok(format!("guest physical {gpa:#x}")),
            more => Err(format!("{more} faults of the second stage where none was to be")),
        }
    }

    /// Whether the faults since the last look are those of this access and no others.
    fn met(&mut self, place: &GuestPlace, missed: Missed) -> Result<String, String> {
        let count = self.grown(place);
        if count == 0 {
            return Err("the host met no fault of its second stage".to_owned());
        }
        let mut faults = vm(place)?.stage_two_faults();
        let since = usize::try_from(count).unwrap_or(usize::MAX);
        faults.drain(..faults.len().saturating_sub(since));
        let other = faults.iter().find(|fault| !missed.is_told_by(fault));
        let last = other.or(faults.last()).ok_or("the host has no record of its fault")?;
        match other {
            None => Ok(format!("{count} faults on record, {}", told(last))),
            Some(other) => {
                Err(format!("among {count} faults there is one of another kind: {}", told(other)))
            }
        }
    }

    /// Faults of the second stage since this was last asked.
    fn grown(&mut self, place: &GuestPlace) -> u64 {
        let now = place.vm_counters().stage_two_faults;
        now.saturating_sub(std::mem::replace(&mut self.faults, now))
    }
}

/// An access that was stopped.
#[derive(Clone, Copy, Debug)]
struct Missed {
    /// The guest physical address of the page that was missed.
    gpa: u64,
    /// The process's address of it.
    address: u64,
    /// Whether it was to be written.
    write: bool,
}

impl Missed {
    /// Whether the host's record has it so.
    fn is_told_by(&self, fault: &Fault) -> bool {
        let same_page = |one: u64, other: u64| one / PAGE == other / PAGE;
        let access = if self.write { Access::Write } else { Access::Read };
        fault.stage_two.is_some_and(|stop| {
            same_page(stop.gpa.0, self.gpa) && !stop.table && stop.owner == StageTwoOwner::Host
        }) && same_page(fault.address.0, self.address)
            && fault.access == access
            && fault.pasid.is_some()
    }
}

/// A fault of the host's second stage in words.
fn told(fault: &Fault) -> String {
    let pasid = fault.pasid.map_or_else(|| "none".to_owned(), |pasid| pasid.to_string());
    let (address, access) = (fault.address, fault.access);
    let Some(stop) = fault.stage_two else { return format!("none of its own: {fault:?}") };
    let of = if stop.table { "a table at " } else { "" };
    let (gpa, level) = (stop.gpa, stop.level);
    format!("{access:?} of {address} with PASID {pasid} stopped at {of}guest physical {gpa}, level {level}")
}

/// Changes the second stage and waits until nobody uses what was before.
fn change(
    place: &GuestPlace,
    gpa: u64,
    change: impl FnOnce(&SoftwareVm, Range<Gpa>) -> Result<Ticket, StageTwoError>,
) -> Result<(), String> {
    let start = gpa & !(PAGE - 1);
    let page = Range { start: Gpa(start), last: Gpa(start | (PAGE - 1)) };
    let ticket = change(&vm(place)?, page).map_err(|error| error.to_string())?;
    settle(place.vm(), ticket, Wait::StageTwo).map_err(|overdue| overdue.to_string())
}

/// The VM as the host itself has it.
fn vm(place: &GuestPlace) -> Result<SoftwareVm, String> {
    place.vm().host_vm().ok_or_else(|| "the VM is gone".to_owned())
}
