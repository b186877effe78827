//! Whether the guest's tables allow a page request (7.1.3, table 30).

use iommu::{ContextFault, ContextSource, DeviceContext, Fault, FaultReason, PageRequest, Vm};
use mem::{Access, GuestMemory};

use super::super::faults::{fault_code, Recorded};
use super::super::{Effects, Model};
use super::Asked;
use crate::spec::{FaultCode, TableMode};

/// Why a page request is blocked; without a code it is not recorded.
pub(super) struct Refusal {
    code: Option<FaultCode>,
}

impl<V: Vm> Model<V> {
    /// The checks of the root and context entries; the PASID table is software's matter.
    pub(super) fn check_page_request(
        &self,
        asked: &Asked,
        memory: &dyn GuestMemory,
    ) -> Result<(), Refusal> {
        let Asked { request, of_host } = asked;
        let mode = self.root.mode();
        // Where the host's tables translate, what it does not know of is blocked.
        let unknown = self.caps.host_owned() && !of_host;
        if !self.translation || !self.caps.options().page_requests || unknown {
            return Err(Refusal { code: None });
        }
        let refuse = |code| Refusal { code: Some(code) };
        if mode == TableMode::Legacy && !self.caps.host_owned() {
            return Err(refuse(FaultCode::PageRequestInLegacyMode));
        }
        let context = self.root.lookup(memory, request.requester);
        let table = match context {
            Ok(DeviceContext::PasidTable(table)) => table,
            Ok(_) => return Err(refuse(FaultCode::ContextInvalid)),
            Err(ContextFault { fault_disable: true, .. }) => return Err(Refusal { code: None }),
            Err(ContextFault { reason, .. }) => {
                return Err(Refusal { code: fault_code(mode, &as_fault(request, reason)) });
            }
        };
        let beyond = |pasid: iommu::Pasid| pasid.get().checked_shr(table.pasid_bits.into());
        let code = if !table.page_requests {
            FaultCode::PageRequestsDisabled
        } else if request.pasid.is_some() && !table.pasid_enable {
            FaultCode::PasidDisabled
        } else if request.pasid.and_then(beyond).is_some_and(|high| high != 0) {
            FaultCode::PasidRange
        } else {
            return Ok(());
        };
        Err(Refusal { code: (!table.fault_disable).then_some(code) })
    }

    /// Puts a refusal into the fault recording registers.
    pub(super) fn record_refusal(
        &mut self,
        request: &PageRequest,
        refusal: Refusal,
        effects: &mut Effects,
    ) {
        let Some(code) = refusal.code else { return };
        let quiet = !self.has_fault_status();
        match self.faults.record_page_request(request, code) {
            Recorded::Recorded => {
                self.counters.faults_recorded += 1;
                if quiet {
                    self.raise_fault_event(Some(request.requester), effects);
                }
            }
            Recorded::Lost => self.counters.faults_lost += 1,
        }
    }
}

/// The same reason for an access of the same kind.
fn as_fault(request: &PageRequest, reason: FaultReason) -> Fault {
    Fault {
        requester: request.requester,
        pasid: request.pasid,
        address: request.address,
        access: if request.write { Access::Write } else { Access::Read },
        privileged: request.privileged,
        translation_request: false,
        reason,
        stage_two: None,
    }
}
