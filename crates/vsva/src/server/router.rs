//! The way of the IOMMU's own interrupts to the guest: a memory write by one of its functions.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use machine::MessageSink;
use mem::Gpa;
use pci::spec::offset;
use pci::Function;
use vfio_user::Connection;

/// Bit of the command register: the function may issue memory requests.
const BUS_MASTER: u8 = 1 << 2;

/// Sends messages through the connection of a function that is bus master: QEMU refuses those of
/// others, and nobody makes the IOMMU's own function one.
#[derive(Default)]
pub(crate) struct Router {
    routes: Mutex<Vec<Route>>,
    sent: AtomicU64,
    lost: AtomicU64,
}

struct Route {
    function: Arc<dyn Function>,
    connection: Connection,
}

impl Router {
    /// From here on messages may go through `function`'s connection.
    pub(crate) fn add(&self, function: Arc<dyn Function>, connection: Connection) {
        self.with_routes(|routes| routes.push(Route { function, connection }));
    }

    /// `function`'s connection is gone.
    pub(crate) fn remove(&self, function: &Arc<dyn Function>) {
        self.with_routes(|routes| routes.retain(|route| !Arc::ptr_eq(&route.function, function)));
    }

    /// Messages that were sent, and those that could not be.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.sent.load(Ordering::Relaxed), self.lost.load(Ordering::Relaxed))
    }

    fn with_routes<R>(&self, f: impl FnOnce(&mut Vec<Route>) -> R) -> R {
        f(&mut self.routes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl MessageSink for Router {
    fn send(&self, address: Gpa, data: u32) {
        let connection = self.with_routes(|routes| {
            let route = routes.iter().find(|route| is_bus_master(&*route.function));
            route.map(|route| route.connection.clone())
        });
        let sent = connection
            .is_some_and(|connection| connection.dma_write(address, &data.to_le_bytes()).is_ok());
        if sent { &self.sent } else { &self.lost }.fetch_add(1, Ordering::Relaxed);
    }
}

fn is_bus_master(function: &dyn Function) -> bool {
    let mut command = [0];
    function.config_read(offset::COMMAND, &mut command);
    command[0] & BUS_MASTER != 0
}
