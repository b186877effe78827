//! A configuration for the devices of one or several domains: all of them have it in the end, or
//! each what it had.

use alloc::vec::Vec;
use core::borrow::BorrowMut;

use pci::RequesterId;

use super::super::{stream, NestingError, PasidTableConfig, TableMode};
use super::{Current, Domain, Move, MAX_RETIRED};
use crate::{Hardware, HwptFlags, HwptId, HwptRequest, ObjectError, StageOneTable, Ticket, Vm};

/// Gives the devices of several domains of one VM the same configuration
/// (`VFIO_IOMMU_SET_PASID_TABLE`).
///
/// If the host refuses at some device, those before it get back what they had, in reverse order;
/// if that fails too, every device of every domain is blocked: never a mixture.
///
/// # Errors
///
/// The first of what the domains say ([`Domain::attach_pasid_table`]), and nothing has changed;
/// [`NestingError::Blocked`] or [`NestingError::Stuck`] as described there.
pub fn set_pasid_table<V: Vm, D: BorrowMut<Domain<V>>>(
    domains: &mut [D],
    config: &PasidTableConfig,
) -> Result<Option<Ticket>, NestingError> {
    change(domains, Wanted::Attach(config))
}

/// The same where a table may translate already; see [`Domain::replace_pasid_table`].
///
/// # Errors
///
/// As [`set_pasid_table`].
pub fn replace_pasid_table<V: Vm, D: BorrowMut<Domain<V>>>(
    domains: &mut [D],
    config: &PasidTableConfig,
) -> Result<Option<Ticket>, NestingError> {
    change(domains, Wanted::Replace(config))
}

/// Gives the devices of several domains stage 2 alone.
///
/// # Errors
///
/// As [`set_pasid_table`]: it can only be the host that refuses.
pub fn unset_pasid_table<V: Vm, D: BorrowMut<Domain<V>>>(
    domains: &mut [D],
) -> Result<Option<Ticket>, NestingError> {
    change(domains, Wanted::Default)
}

impl<V: Vm> Domain<V> {
    /// Configures what becomes of the requests of all devices (`iommu_attach_pasid_table`).
    ///
    /// # Errors
    ///
    /// [`NestingError::NoDevices`]; [`NestingError::WrongModel`]; [`NestingError::Translating`] if
    /// a table translates and another is to;
    /// [`NestingError::DeviceBound`]; [`NestingError::PasidsBound`]; and of the table
    /// [`NestingError::PasidBits`], [`NestingError::NoTwoLevelTables`],
    /// [`NestingError::Misaligned`], [`NestingError::BeyondStageTwo`]; what the host says. What
    /// was configured stays, but see [`set_pasid_table`].
    pub fn attach_pasid_table(
        &mut self,
        config: &PasidTableConfig,
    ) -> Result<Option<Ticket>, NestingError> {
        set_pasid_table(&mut [self], config)
    }

    /// The same, also where a table translates already: the new one takes its place.
    ///
    /// Requests meanwhile are translated by the old table or the new one where the hardware's
    /// format lets the host change its entry in one store, as an SMMUv3 entry whose table pointer
    /// alone changes; in other cases the host may refuse requests for the moment of the change
    /// ([`Vm::replace_hwpt`]). Devices change one after the other.
    ///
    /// # Errors
    ///
    /// As [`attach_pasid_table`](Self::attach_pasid_table), without `Translating`.
    pub fn replace_pasid_table(
        &mut self,
        config: &PasidTableConfig,
    ) -> Result<Option<Ticket>, NestingError> {
        replace_pasid_table(&mut [self], config)
    }

    /// Back to stage 2 alone, from whatever is configured (`iommu_detach_pasid_table`). Tables that
    /// devices have of their own stay.
    ///
    /// # Errors
    ///
    /// What the host says.
    pub fn detach_pasid_table(&mut self) -> Result<Option<Ticket>, NestingError> {
        unset_pasid_table(&mut [self])
    }

    fn check(&self, wanted: Wanted<'_>) -> Result<(), NestingError> {
        let (config, may_replace) = match wanted {
            Wanted::Default => return Ok(()),
            Wanted::Attach(config) => (config, false),
            Wanted::Replace(config) => (config, true),
        };
        let base = self.base.as_ref().filter(|_| !self.members.is_empty());
        let base = base.ok_or(NestingError::NoDevices)?;
        config.check(&base.hardware)?;
        let translates = self.current.table().is_some();
        if config.config == TableMode::Translate && translates && !may_replace {
            return Err(NestingError::Translating);
        }
        if let Some((device, _)) = self.members.iter().find(|(_, member)| member.own.is_some()) {
            return Err(NestingError::DeviceBound(*device));
        }
        match base.pasids.iter().next() {
            Some((device, ..)) if config.config != TableMode::Bypass => {
                Err(NestingError::PasidsBound(device))
            }
            _ => Ok(()),
        }
    }

    /// Makes what the configuration needs, and changes nothing.
    fn prepare(&mut self, wanted: Wanted<'_>) -> Result<Current, NestingError> {
        let (Wanted::Attach(config) | Wanted::Replace(config)) = wanted else {
            return Ok(Current::Default);
        };
        Ok(match config.config {
            TableMode::Bypass => Current::Bypass,
            TableMode::Abort => Current::Abort(match self.hardware() {
                Some(Hardware::Smmuv3(_)) => {
                    let data = StageOneTable::Smmuv3(stream::ABORT);
                    Some(self.nested_table(self.any_device()?, data)?)
                }
                Some(Hardware::Vtd(_)) | None => None,
            }),
            TableMode::Translate => {
                let hwpt = self.nested_table(self.any_device()?, config.stage_one())?;
                Current::Translate { config: *config, hwpt }
            }
        })
    }

    fn any_device(&self) -> Result<RequesterId, NestingError> {
        self.devices().next().ok_or(NestingError::NoDevices)
    }

    /// A nested table of the domain's.
    pub(super) fn nested_table(
        &mut self,
        device: RequesterId,
        data: StageOneTable,
    ) -> Result<HwptId, NestingError> {
        self.reap();
        if self.retired.len() >= MAX_RETIRED {
            return Err(ObjectError::Busy.into());
        }
        let base = self.base.as_ref().ok_or(NestingError::NoDevices)?;
        let (parent, fault) = (base.nest_on(), self.fault);
        let flags = HwptFlags::for_fault_queue(fault);
        let request = HwptRequest { device, parent, flags, data: Some(data), fault };
        Ok(self.vm.alloc_hwpt(&request)?)
    }

    /// Moves every device to where `to` has it; `done` has the steps that were made.
    fn carry_out(
        &mut self,
        to: &Current,
        done: &mut Vec<Move>,
    ) -> Result<Option<Ticket>, ObjectError> {
        let attachment = self.attachment(to);
        let steps: Vec<_> = self
            .members
            .iter()
            .map(|(&device, member)| {
                let to = member.own.or(attachment);
                Move { device, from: member.attached, to }
            })
            .collect();
        let mut latest = None;
        for step in steps {
            latest = latest.max(self.go(step)?);
            done.push(step);
        }
        Ok(latest)
    }

    fn undo(&mut self, done: Vec<Move>) -> Result<(), ObjectError> {
        for Move { device, from, to } in done.into_iter().rev() {
            match self.go(Move { device, from: to, to: from }) {
                // There is nothing to restore.
                Err(ObjectError::NoDevice(_)) => {
                    self.member_mut(device).into_iter().for_each(|member| member.attached = None);
                }
                undone => drop(undone?),
            }
        }
        Ok(())
    }

    /// Blocks every device that the host lets it block; the first that it does not.
    fn block(&mut self) -> Result<(), RequesterId> {
        let members: Vec<_> =
            self.members.iter().map(|(device, member)| (*device, *member)).collect();
        let mut result = Ok(());
        for (device, member) in members {
            if self.go(Move { device, from: member.attached, to: None }).is_err() {
                result = result.and(Err(device));
            }
            if let Some(member) = self.member_mut(device) {
                member.own = None;
            }
            self.retire(member.own);
        }
        self.become_current(Current::Abort(None));
        result
    }

    fn become_current(&mut self, new: Current) {
        let old = core::mem::replace(&mut self.current, new);
        self.retire(old.owned());
        self.reap();
    }

    /// Ends what was made for a configuration that does not come.
    fn abandon(&mut self, prepared: &Current) {
        self.retire(prepared.owned());
        self.reap();
    }
}

#[derive(Clone, Copy)]
enum Wanted<'a> {
    Default,
    Attach(&'a PasidTableConfig),
    Replace(&'a PasidTableConfig),
}

fn change<V: Vm, D: BorrowMut<Domain<V>>>(
    domains: &mut [D],
    wanted: Wanted<'_>,
) -> Result<Option<Ticket>, NestingError> {
    for domain in domains.iter() {
        domain.borrow().check(wanted)?;
    }
    let mut prepared = Vec::with_capacity(domains.len());
    for domain in domains.iter_mut() {
        match domain.borrow_mut().prepare(wanted) {
            Ok(new) => prepared.push(new),
            Err(error) => {
                abandon(domains, &prepared);
                return Err(error);
            }
        }
    }
    let mut journal: Vec<Vec<Move>> = Vec::with_capacity(domains.len());
    let mut latest = None;
    for (domain, new) in domains.iter_mut().zip(&prepared) {
        let mut done = Vec::new();
        let carried_out = domain.borrow_mut().carry_out(new, &mut done);
        journal.push(done);
        match carried_out {
            Ok(ticket) => latest = latest.max(ticket),
            Err(cause) => {
                let error = restore(domains, journal, cause);
                abandon(domains, &prepared);
                return Err(error);
            }
        }
    }
    for (domain, new) in domains.iter_mut().zip(prepared) {
        domain.borrow_mut().become_current(new);
    }
    Ok(latest)
}

/// Undoes the steps of `journal`, which has a list for each of the first domains; what to tell
/// the caller.
fn restore<V: Vm, D: BorrowMut<Domain<V>>>(
    domains: &mut [D],
    journal: Vec<Vec<Move>>,
    cause: ObjectError,
) -> NestingError {
    let mut steps = domains.iter_mut().zip(journal).rev();
    if steps.all(|(domain, done)| domain.borrow_mut().undo(done).is_ok()) {
        return NestingError::Object(cause);
    }
    let mut stuck = None;
    for domain in domains {
        stuck = stuck.or(domain.borrow_mut().block().err());
    }
    match stuck {
        None => NestingError::Blocked(cause),
        Some(device) => NestingError::Stuck { device, cause },
    }
}

fn abandon<V: Vm, D: BorrowMut<Domain<V>>>(domains: &mut [D], prepared: &[Current]) {
    for (domain, new) in domains.iter_mut().zip(prepared) {
        domain.borrow_mut().abandon(new);
    }
}
