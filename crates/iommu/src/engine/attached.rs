//! Devices that the host translates by a PASID table of its own.
//!
//! A request names the VM's PASID, the table is indexed by the host's: the VM's grants say which
//! one stands behind it. What is cached goes by the VM's number, since a channel is of one VM.

use mem::GuestMemory;

use super::{check_interrupt_range, Engine, Refusal, Request};
use crate::cache::PasidState;
use crate::software::{Attachments, RID_PASID};
use crate::{FaultReason, Pasid};

use super::Target;

impl<M: GuestMemory> Engine<'_, M> {
    /// Translates a request by the host's PASID table.
    pub(super) fn by_host_table(
        &mut self,
        request: &Request,
        attached: &Attachments,
    ) -> Result<Target, Refusal> {
        check_interrupt_range(request).map_err(refused)?;
        let pasid = request.space.pasid;
        let state = match self.caches.pasids.get(pasid.unwrap_or(RID_PASID)) {
            // What was granted when it was cached is granted still: taking it back invalidates.
            Some(state) if state.granted == pasid.is_some() => *state,
            _ => self.host_entry(pasid, attached).map_err(refused)?,
        };
        let (pasid, privileged) = match pasid {
            Some(pasid) => (pasid, request.space.privileged),
            None => (RID_PASID, false),
        };
        self.by_entry(request, &state, pasid, privileged, attached.device.caps.address_bits)
    }

    /// The host's entry for requests with the VM's `pasid`, or without any.
    fn host_entry(
        &mut self,
        pasid: Option<Pasid>,
        attached: &Attachments,
    ) -> Result<PasidState, FaultReason> {
        let host = match pasid {
            None => RID_PASID,
            Some(pasid) => attached.grants.host_of(pasid).ok_or_else(|| {
                self.counters.ungranted.add(1);
                FaultReason::PasidEntryNotPresent
            })?,
        };
        self.counters.pasid_entry_reads.add(1);
        let entry = attached.device.table.read(host).map_err(|reason| match reason {
            // Whether there is a table for the entry is the host's affair.
            FaultReason::PasidDirectoryNotPresent => FaultReason::PasidEntryNotPresent,
            reason => reason,
        })?;
        let translation =
            entry.decode(&attached.device.caps).map_err(|_| FaultReason::PasidEntryInvalid)?;
        let state = PasidState {
            domain: entry.domain(),
            fault_disable: entry.word0.fault_disable(),
            granted: pasid.is_some(),
            translation,
        };
        self.caches.pasids.insert(pasid.unwrap_or(RID_PASID), state);
        self.caches.publish(self.counters);
        Ok(state)
    }
}

fn refused(reason: FaultReason) -> Refusal {
    Refusal { reason, fault_disable: false }
}
