//! What can be broken of a guest's place.

use std::time::Duration;

use iommu::{ResponseInjection, SoftwareVm};
use machine::Machine;

use super::injection::Injection;
use super::injector::Levers;
use super::GuestVm;

impl Levers for Machine<GuestVm> {
    fn break_responses(&self, injection: Option<Injection>) {
        let how = match injection {
            Some(Injection::DropResponse { one_in }) => {
                Some(ResponseInjection::Drop { one_in: one_in.get() })
            }
            Some(Injection::DelayResponse(late)) => Some(ResponseInjection::Delay(late)),
            Some(Injection::AnswerTwice) => Some(ResponseInjection::Twice),
            _ => None,
        };
        of_host(self, |vm| vm.inject_responses(how));
    }

    fn fill_queue(&self, full: bool) {
        self.inject_page_request_overflow(full);
    }

    fn overflows(&self) -> u64 {
        self.unit_counters().page_requests_lost
    }

    fn delay_answers(&self, late: Option<Duration>) {
        of_host(self, |vm| vm.delay_invalidation_answers(late));
    }

    fn fail_walk(&self, word: Option<u64>) {
        of_host(self, |vm| vm.inject_walk_failure(word));
    }
}

/// Does something to the VM as the host itself has it, for as long as it is there.
fn of_host(machine: &Machine<GuestVm>, change: impl FnOnce(&SoftwareVm)) {
    if let Some(vm) = machine.vm().host_vm() {
        change(&vm);
    }
}
