//! Guest physical memory as the engine reaches it: directly, or through the host's stage 2.

use core::cell::Cell;

use mem::{Access, Gpa, GuestMemory, HostAddr, Iova, MemError, MemoryMap, Window};

use super::walk::HostLeaf;
use super::{HostStageTwo, Untranslated};
use crate::cache::Cached;
use crate::counters::TableReads;

/// Where a translation ends: a host address in a VM with a stage 2, a guest physical address in
/// one without.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Output(pub(crate) u64);

impl Output {
    /// The memory there, as much of `len` bytes as is contiguous.
    #[inline]
    pub(crate) fn window<'m, M: GuestMemory>(
        self,
        memory: &'m M,
        stage_two: Option<&HostStageTwo>,
        len: usize,
        access: Access,
    ) -> Result<Window<'m>, MemError> {
        let gpa = match stage_two {
            None => Gpa(self.0),
            Some(stage_two) => {
                let nowhere = MemError::Unmapped { gpa: Gpa(self.0) };
                stage_two.guest_at(HostAddr(self.0)).ok_or(nowhere)?
            }
        };
        memory.window(gpa, len, access)
    }
}

/// A guest's physical memory, for one translation.
///
/// As [`GuestMemory`] it takes the addresses that stand in the guest's tables. Where the host's
/// stage 2 stops such an access, the error is that there is no memory, and
/// [`take_stop`](Self::take_stop) says more.
pub(crate) struct GuestPhysical<'a, M = MemoryMap> {
    memory: &'a M,
    stage_two: Option<&'a HostStageTwo>,
    reads: &'a TableReads,
    stop: Cell<Option<Untranslated>>,
}

impl<'a, M: GuestMemory> GuestPhysical<'a, M> {
    pub(crate) fn new(
        memory: &'a M,
        stage_two: Option<&'a HostStageTwo>,
        reads: &'a TableReads,
    ) -> Self {
        Self { memory, stage_two, reads, stop: Cell::new(None) }
    }

    /// Whether addresses go through a stage 2.
    pub(crate) fn has_stage_two(&self) -> bool {
        self.stage_two.is_some()
    }

    /// The root of that stage 2.
    pub(crate) fn root(&self) -> Option<HostAddr> {
        self.stage_two.map(HostStageTwo::root)
    }

    /// Why stage 2 stopped the latest access, if it did and nobody has asked yet.
    pub(crate) fn take_stop(&self) -> Option<Untranslated> {
        self.stop.take()
    }

    /// What becomes of a translation of `address` to guest physical memory once that is translated
    /// itself: what may be cached.
    pub(crate) fn complete(
        &self,
        found: Cached<Gpa>,
        address: Iova,
        access: Access,
    ) -> Result<Cached, Untranslated> {
        let Some(stage_two) = self.stage_two else {
            return Ok(found.at(Output(found.base.0)));
        };
        let (gpa, _) = found.translate(address);
        let leaf = self.walk(stage_two, gpa, access)?;
        let (place, _) = leaf.translate(gpa);
        let size_bits = u32::from(found.size_bits).min(leaf.size_bits);
        Ok(Cached {
            size_bits: size_bits as u8,
            allowed: found.allowed.and(leaf.allowed),
            ..found.at(Output(place.0 & !((1 << size_bits) - 1)))
        })
    }

    fn walk(
        &self,
        stage_two: &HostStageTwo,
        gpa: Gpa,
        access: Access,
    ) -> Result<HostLeaf, Untranslated> {
        self.reads.stage_two_walks.add(1);
        stage_two.walk(gpa, access)
    }
}

impl<M: GuestMemory> GuestMemory for GuestPhysical<'_, M> {
    fn window(&self, gpa: Gpa, len: usize, access: Access) -> Result<Window<'_>, MemError> {
        let Some(stage_two) = self.stage_two.filter(|_| len != 0) else {
            return self.memory.window(gpa, len, access);
        };
        let leaf = self.walk(stage_two, gpa, access).map_err(|stop| {
            self.stop.set(Some(stop));
            MemError::Unmapped { gpa }
        })?;
        let (place, left) = leaf.translate(gpa);
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        let len = (len - 1).min(left) + 1;
        Output(place.0).window(self.memory, self.stage_two, len, access)
    }

    fn load_u64(&self, gpa: Gpa) -> Result<u64, MemError> {
        if self.reads.failure.strikes() {
            return Err(MemError::Unmapped { gpa });
        }
        self.aligned(gpa, 8, Access::Read)?.load_u64(0).ok_or(MemError::Misaligned { gpa })
    }
}
