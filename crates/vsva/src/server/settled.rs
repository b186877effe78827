//! A function whose reset is over when it says so.
//!
//! A model's reset takes effect at once and waits for nothing: an engine that is copying a chunk
//! ends that chunk. A guest that resets its device and then gives the memory to somebody else
//! must not see it, so the transport's answer to a reset waits for that.

use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use iommu::{Ticket, Vm};
use pci::{Bar, Function, InterruptSink};

/// Longest wait for accesses in flight, each of which is a bounded piece of work.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// `function`, with resets that end after its accesses in flight have.
pub(super) struct Settled<F> {
    function: F,
    reset: Box<dyn Fn(&F) + Send + Sync>,
}

impl<F: Function> Settled<F> {
    /// `function`, with `reset` for its own.
    pub(super) fn new(function: F, reset: impl Fn(&F) + Send + Sync + 'static) -> Self {
        Self { function, reset: Box::new(reset) }
    }
}

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wait {
    /// The end of accesses to memory that was withdrawn.
    Memory,
    /// The end of what a device had under way when it was reset.
    DeviceReset,
    /// The end of all that can name PASIDs which were taken back.
    Pasids,
    /// The end of accesses to what a second stage no longer maps.
    StageTwo,
    /// The end of a place's threads.
    Threads,
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "accesses to memory that was withdrawn",
            Self::DeviceReset => "accesses of before a device's reset",
            Self::Pasids => "uses of PASIDs that were taken back",
            Self::StageTwo => "accesses to pages that the second stage no longer maps",
            Self::Threads => "threads of the devices",
        })
    }
}

/// Something was not over in time. Accesses are bounded pieces of work: it is a defect of ours, and neither the guest
/// nor the server is to hang for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what} did not end within {limit:?}")]
pub(super) struct Overdue {
    /// What.
    pub(super) what: Wait,
    /// How long it was waited for.
    pub(super) limit: Duration,
}

/// Waits for the accesses in flight when a device was reset, and for no device's answer: one that
/// never answers an invalidation is no reason to hold up another one's reset, or its own.
///
/// # Errors
/// [`Overdue`].
pub(super) fn settle_reset<V: Vm>(vm: &V) -> Result<(), Overdue> {
    settle(vm, vm.in_flight(), Wait::DeviceReset)
}

/// Waits until `ticket` is complete, for [`SETTLE_LIMIT`] at most.
///
/// # Errors
/// [`Overdue`].
pub(super) fn settle<V: Vm>(vm: &V, ticket: Ticket, what: Wait) -> Result<(), Overdue> {
    wait_until(|| vm.is_complete(ticket), what, SETTLE_LIMIT, thread::yield_now)
}

/// Waits until `done`, and calls `pause` between two looks.
///
/// # Errors
/// [`Overdue`] after `limit`.
pub(super) fn wait_until(
    mut done: impl FnMut() -> bool,
    what: Wait,
    limit: Duration,
    pause: impl Fn(),
) -> Result<(), Overdue> {
    let begun = Instant::now();
    while !done() {
        if begun.elapsed() >= limit {
            return Err(Overdue { what, limit });
        }
        pause();
    }
    Ok(())
}

impl<F: Function> Function for Settled<F> {
    fn bars(&self) -> &[Bar] {
        self.function.bars()
    }

    fn vectors(&self) -> u16 {
        self.function.vectors()
    }

    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.function.config_read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.function.config_write(offset, data);
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        self.function.bar_read(bar, offset, data);
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        self.function.bar_write(bar, offset, data);
    }

    fn reset(&self) {
        (self.reset)(&self.function);
    }

    fn set_interrupts(&self, sink: Option<Arc<dyn InterruptSink>>) {
        self.function.set_interrupts(sink);
    }
}

#[cfg(test)]
mod tests {
    use iommu::{Host as _, Invalidation, SoftwareHost, VmConfig};
    use mem::{Iova, Range};
    use pci::RequesterId;

    use super::*;

    #[test]
    fn a_wait_that_takes_too_long_says_what_for() {
        let vm = SoftwareHost::new().create_vm(VmConfig::named("test")).unwrap();
        let endpoint = vm.attach(RequesterId::from_bits(0x80)).unwrap();
        let channel = endpoint.channel();
        let access = channel.enter();
        let ticket = vm.in_flight();
        let limit = Duration::from_millis(5);
        let done = || vm.is_complete(ticket);
        let overdue = wait_until(done, Wait::DeviceReset, limit, thread::yield_now).unwrap_err();
        assert_eq!(overdue, Overdue { what: Wait::DeviceReset, limit });
        assert_eq!(
            overdue.to_string(),
            "accesses of before a device's reset did not end within 5ms"
        );
        drop(access);
        assert_eq!(settle(&vm, ticket, Wait::DeviceReset), Ok(()));
    }

    #[test]
    fn a_device_that_never_answers_holds_up_no_reset() {
        let requester = RequesterId::from_bits(0x80);
        let vm = SoftwareHost::new().create_vm(VmConfig::named("test")).unwrap();
        let endpoint = vm.attach(requester).unwrap();
        endpoint.set_ats(true);
        endpoint.withhold_invalidation_answers(true);
        let range = Range { start: Iova(0), last: Iova(u64::MAX) };
        let owed = vm.invalidate(Invalidation::DeviceTlb { requester, range });
        // Nothing has to be waited for, so the first look says so.
        assert_eq!(settle_reset(&vm), Ok(()));
        assert!(vm.is_complete(vm.in_flight()) && !vm.is_complete(owed));
    }
}
