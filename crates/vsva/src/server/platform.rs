//! What one function's client reports: memory, and its own life.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use iommu::Ticket;
use mem::{Access, Claim, Gpa, MapError, Range, ReporterId, SealedFile};
use pci::Function;
use vfio_user::{Connection, Disconnect, DmaMap, DmaRefusal, Errno, Platform, UnmapRange};

use super::guest::Shared;
use super::settled::{settle, Wait};

/// What helps against memory that is refused for its seals.
const UNSEALED_FIX: &str =
    ". QEMU's memory-backend-memfd seals its memory by itself (no seal=off, \
    no hugetlb=on). --allow-unsealed takes memory without the seal, at a risk: whoever shrinks \
    the file kills this server and with it every guest's devices";

/// What is said of RAM that is not in a file.
const PRIVATE_RAM: &str = "its RAM is private to QEMU, so no device can reach it: start QEMU with \
    -machine memory-backend=ram -object memory-backend-memfd,id=ram,share=on,size=...";

/// One function of a guest, as its transport's platform.
pub(super) struct FunctionPlatform {
    pub(super) shared: Arc<Shared>,
    pub(super) function: Arc<dyn Function>,
    pub(super) reporter: ReporterId,
    /// The client was told that its RAM cannot be reached.
    pub(super) private_ram: AtomicBool,
}

impl FunctionPlatform {
    fn claim(&self, map: DmaMap) -> Result<Option<Claim>, MapError> {
        // Memory without a file is out of our devices' reach; the guest's own firmware, mostly.
        let Some(fd) = map.fd else { return Ok(None) };
        let shared = &self.shared;
        let file = SealedFile::new(fd, shared.policy)?;
        let access = if map.writable { Access::Write } else { Access::Read };
        let len = map.range.len_minus_one().saturating_add(1);
        let mut mappings = shared.mappings.lock().unwrap_or_else(PoisonError::into_inner);
        let backing = mappings.map(&file, map.offset, len, access)?;
        let id = file.id(map.offset);
        Ok(Some(Claim { range: map.range, id, backing, offset: 0, access }))
    }

    /// Waits until nothing uses what was withdrawn. If an access does not end, something is broken,
    /// and the client is told that its memory is in use.
    fn settle(&self, ticket: Ticket) -> Result<(), DmaRefusal> {
        settle(self.shared.machine.vm(), ticket, Wait::Memory).map_err(|overdue| {
            self.shared.notices.say(format_args!("{overdue}; the memory stays mapped"));
            DmaRefusal { errno: Errno::BUSY }
        })
    }
}

impl Platform for FunctionPlatform {
    fn dma_map(&self, map: DmaMap) -> Result<(), DmaRefusal> {
        let range = map.range;
        let notices = &self.shared.notices;
        let refused = |error: &dyn fmt::Display, errno, fix| {
            let Range { start, last } = range;
            notices.say(format_args!("memory {start} to {last} refused: {error}{fix}"));
            DmaRefusal { errno }
        };
        let claim = self.claim(map).map_err(|error| {
            let (errno, fix) = match error {
                MapError::Unsealed { .. } | MapError::HugePages => (Errno::PERM, UNSEALED_FIX),
                MapError::TooMuch { .. } => (Errno::NOMEM, ""),
                _ => (Errno::INVAL, ""),
            };
            refused(&error, errno, fix)
        })?;
        let Some(claim) = claim else {
            // Firmware and the like comes so, but what begins at zero is the guest's RAM.
            if range.start == Gpa(0) && !self.private_ram.swap(true, Ordering::Relaxed) {
                notices.say(PRIVATE_RAM);
            }
            return Ok(());
        };
        let machine = &self.shared.machine;
        machine.map(self.reporter, claim).map_err(|error| refused(&error, Errno::INVAL, ""))
    }

    fn dma_unmap(&self, range: UnmapRange) -> Result<(), DmaRefusal> {
        let machine = &self.shared.machine;
        let ticket = match range {
            UnmapRange::All => machine.forget(self.reporter),
            UnmapRange::Range(range) => match machine.unmap(self.reporter, range) {
                Ok(ticket) => ticket,
                // It had no file, so we never had it.
                Err(mem::ClaimError::NotClaimed { .. }) => return Ok(()),
                Err(_) => return Err(DmaRefusal { errno: Errno::INVAL }),
            },
        };
        self.settle(ticket)
    }

    fn connected(&self, connection: Connection) {
        self.private_ram.store(false, Ordering::Relaxed);
        self.shared.router.add(self.function.clone(), connection);
        self.shared.life.begin();
    }

    fn disconnected(&self, why: Disconnect) {
        let shared = &self.shared;
        shared.router.remove(&self.function);
        if let Disconnect::Protocol(_) | Disconnect::Panicked = why {
            shared.notices.say(format_args!("connection ended: {why}"));
        }
        if !super::sabotage::keeps_dead_guests() {
            let ticket = shared.machine.forget(self.reporter);
            // A failure is said by `settle`; there is nobody left to answer.
            let _ = self.settle(ticket);
        }
        shared.life.end(|| shared.clean_up());
    }
}
