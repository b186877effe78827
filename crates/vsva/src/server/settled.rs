//! A function whose reset is over when it says so.
//!
//! A model's reset takes effect at once and waits for nothing: an engine that is copying a chunk
//! ends that chunk. A guest that resets its device and then gives the memory to somebody else
//! must not see it, so the transport's answer to a reset waits for that.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use iommu::{Invalidation, Vm};
use pci::{Bar, Function, InterruptSink};

/// Longest wait for accesses in flight, each of which is a bounded piece of work.
pub(super) const SETTLE_LIMIT: Duration = Duration::from_secs(5);

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

/// Waits for the accesses in flight; one that does not end is a defect of ours, and the guest is not to hang for it.
pub(super) fn settle_all<V: Vm>(vm: &V) {
    // Forgetting translations is not the point, but its ticket covers accesses in flight.
    let _ended = settle(vm, vm.invalidate(Invalidation::IotlbAll));
}

/// Waits until `ticket` is complete; `false` if it is not within [`SETTLE_LIMIT`].
pub(super) fn settle<V: Vm>(vm: &V, ticket: iommu::Ticket) -> bool {
    let limit = Instant::now() + SETTLE_LIMIT;
    while !vm.is_complete(ticket) {
        if Instant::now() >= limit {
            return false;
        }
        thread::yield_now();
    }
    true
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
