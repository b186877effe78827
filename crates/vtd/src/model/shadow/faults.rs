//! What the guest's tables say of a fault that the host found in its own.

use iommu::{
    ContextFault, ContextSource, DeviceContext, Fault, FaultReason, GuestPasid, PasidTable, Vm,
};

use super::{read, Shadow, View};

/// Addresses that requests without PASID do not reach (3.14).
const INTERRUPT_RANGE: core::ops::RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;

impl<V: Vm> Shadow<V> {
    /// The fault as the guest is to see it; `None` if it is not to be recorded.
    ///
    /// That nothing is bound is all that the host knows of a request that reaches no table of the
    /// guest's: why, the guest's own structures say.
    pub(in crate::model) fn as_the_guest_sees(
        &self,
        fault: Fault,
        view: View<'_>,
    ) -> Option<Fault> {
        // No unit is at work.
        let root = view.root?;
        if !is_of_a_structure(&fault) {
            return Some(fault).filter(|_| !self.is_fault_disabled(&fault));
        }
        let because = match root.lookup(view.memory, fault.requester) {
            Ok(DeviceContext::PasidTable(table)) => refusal(&fault, &table, view),
            Ok(_) => ContextFault { reason: FaultReason::ContextInvalid, fault_disable: false },
            Err(because) => because,
        };
        (!because.fault_disable).then_some(Fault { reason: because.reason, ..fault })
    }

    fn is_fault_disabled(&self, fault: &Fault) -> bool {
        let device = self.devices.get(&fault.requester);
        let tag = device.and_then(|of| of.bound.get(&fault.pasid.map(GuestPasid)));
        tag.is_some_and(|tag| tag.fault_disable)
    }
}

/// Why a request reaches no page table, by the guest's PASID table; the checks in the order of the
/// architecture.
fn refusal(fault: &Fault, table: &PasidTable, view: View<'_>) -> ContextFault {
    let refuse = |reason| ContextFault { reason, fault_disable: table.fault_disable };
    if fault.translation_request && !table.ats {
        return refuse(FaultReason::AtsDisabled);
    }
    if fault.pasid.is_some() && !table.pasid_enable {
        return refuse(FaultReason::PasidDisabled);
    }
    let pasid = fault.pasid.unwrap_or(table.rid_pasid);
    if u64::from(pasid.get()) >> table.pasid_bits.min(63) != 0 {
        return refuse(FaultReason::PasidRange);
    }
    if is_for_interrupts(fault) {
        return refuse(FaultReason::InterruptAddress);
    }
    let leaf = read::leaf(view.memory, table, pasid);
    match leaf.and_then(|leaf| read::entry(view.memory, table, &leaf, pasid)) {
        Err(because) => because,
        // It is in order: the guest has not said so, or the host has not taken it. Either way it
        // is not there.
        Ok(entry) => ContextFault {
            reason: FaultReason::PasidEntryNotPresent,
            fault_disable: entry.tag.fault_disable,
        },
    }
}

/// A request that is refused for its address alone.
fn is_for_interrupts(fault: &Fault) -> bool {
    fault.pasid.is_none() && INTERRUPT_RANGE.contains(&fault.address.0)
}

/// Whether translation stopped before it came to a page table.
fn is_of_a_structure(fault: &Fault) -> bool {
    is_for_interrupts(fault) || is_structural(fault.reason)
}

fn is_structural(reason: FaultReason) -> bool {
    matches!(
        reason,
        FaultReason::RootPointer
            | FaultReason::RootAccess
            | FaultReason::RootNotPresent
            | FaultReason::RootReserved
            | FaultReason::ContextAccess
            | FaultReason::ContextNotPresent
            | FaultReason::ContextReserved
            | FaultReason::ContextInvalid
            | FaultReason::AtsDisabled
            | FaultReason::PasidDisabled
            | FaultReason::PasidRange
            | FaultReason::PasidDirectoryAccess
            | FaultReason::PasidDirectoryNotPresent
            | FaultReason::PasidDirectoryReserved
            | FaultReason::PasidEntryAccess
            | FaultReason::PasidEntryNotPresent
            | FaultReason::PasidEntryReserved
            | FaultReason::PasidEntryInvalid
    )
}
