//! An access in flight, and the kinds of DMA that are made of its windows.

use core::fmt;

use mem::{Access, Gpa, GuestMemory, Iova, Window};

use crate::channel::ChannelState;
use crate::endpoint::{Device, GuestChannels, GuestSide};
use crate::engine::{Refusal, Request};
use crate::slot::Entered;
use crate::{AddressSpace, DmaError, Fault, FaultReason};

/// Most bytes in a window, whatever the size of the mapping: a bound on the work that is done
/// between two looks at the translation.
pub const WINDOW_LIMIT: usize = 64 << 10;

/// How often [`InFlight::fetch_update_u64`] tries again because the word changed.
pub const UPDATE_ATTEMPTS: u32 = 1 << 10;

/// A piece of an address space, for scatter-gather.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoSlice {
    /// First address.
    pub iova: Iova,
    /// Bytes.
    pub len: usize,
}

/// An access in flight. Windows obtained from it cannot outlive it; several of them may be in
/// use at a time, a source and a destination for example.
pub struct InFlight<'c> {
    own: Side<'c>,
    /// Of a device that VMs share.
    guest: Option<GuestSide<'c>>,
}

/// An access in flight, as it concerns one VM.
pub(crate) struct Side<'c> {
    state: Entered<'c, ChannelState>,
    device: &'c Device,
}

impl<'c> InFlight<'c> {
    pub(crate) fn new(own: Side<'c>, guests: Option<&'c GuestChannels>) -> Self {
        Self { own, guest: guests.map(GuestSide::new) }
    }

    /// Translates `iova` for `access` and gives the memory there: as much of `len` bytes as one
    /// translation covers, at most [`WINDOW_LIMIT`] (at least one byte, unless `len` is zero,
    /// which needs no translation).
    ///
    /// # Errors
    ///
    /// [`DmaError::Page`] if a page request could help, [`DmaError::Refused`] if not; a fault is
    /// recorded unless the tables disable that, or the device asked for a translation and the
    /// fault is one that a page request could resolve. [`DmaError::Detached`] if there is no VM
    /// any more.
    pub fn window(
        &self,
        space: AddressSpace,
        iova: Iova,
        len: usize,
        access: Access,
    ) -> Result<Window<'_>, DmaError> {
        let Some((guest, host)) = self.guest.as_ref().zip(space.pasid) else {
            return self.own.window(space, iova, len, access);
        };
        match guest.route(host) {
            Some((side, pasid)) => {
                side.window(AddressSpace { pasid: Some(pasid), ..space }, iova, len, access)
            }
            None => Err(self.own.refuse_pasid(space, iova, access)),
        }
    }

    /// Reads `buf.len()` bytes from `iova`. On an error nothing past the failing address was read.
    pub fn read(&self, space: AddressSpace, iova: Iova, buf: &mut [u8]) -> Result<(), DmaError> {
        self.for_each_window(space, iova, buf.len(), Access::Read, |done, window| {
            window.read(0, &mut buf[done..]);
        })
    }

    /// Writes `buf` to `iova`. On an error nothing past the failing address was written.
    pub fn write(&self, space: AddressSpace, iova: Iova, buf: &[u8]) -> Result<(), DmaError> {
        self.for_each_window(space, iova, buf.len(), Access::Write, |done, window| {
            window.write(0, &buf[done..]);
        })
    }

    /// Reads from each of `pieces` in turn until `buf` is full or they are used up; gives the
    /// number of bytes read.
    pub fn gather(
        &self,
        space: AddressSpace,
        pieces: &[IoSlice],
        buf: &mut [u8],
    ) -> Result<usize, DmaError> {
        let mut done = 0;
        for piece in pieces {
            let rest = &mut buf[done..];
            let len = piece.len.min(rest.len());
            self.read(space, piece.iova, &mut rest[..len])?;
            done += len;
        }
        Ok(done)
    }

    /// Writes `buf` over `pieces` in turn until it or they are used up; gives the number of bytes
    /// written.
    pub fn scatter(
        &self,
        space: AddressSpace,
        pieces: &[IoSlice],
        buf: &[u8],
    ) -> Result<usize, DmaError> {
        let mut done = 0;
        for piece in pieces {
            let rest = &buf[done..];
            let len = piece.len.min(rest.len());
            self.write(space, piece.iova, &rest[..len])?;
            done += len;
        }
        Ok(done)
    }

    /// Replaces the little-endian word at `iova` by `new` if it holds `current`, in one atomic
    /// step; gives what it held, as `Err` if that was something else.
    ///
    /// # Errors
    ///
    /// As [`window`](Self::window); [`DmaError::Refused`], without a fault, if `iova` is not
    /// aligned to 8 bytes.
    pub fn compare_exchange_u64(
        &self,
        space: AddressSpace,
        iova: Iova,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, DmaError> {
        self.word(space, iova)?
            .compare_exchange_u64(0, current, new)
            .ok_or(DmaError::Refused { address: iova, access: Access::Write })
    }

    /// Replaces the little-endian word at `iova` by `update` of it, in one atomic step; gives
    /// what it held. PCI Express FetchAdd and Swap are made of this.
    ///
    /// # Errors
    ///
    /// As [`compare_exchange_u64`](Self::compare_exchange_u64), and [`DmaError::Refused`] if the
    /// word changed under [`UPDATE_ATTEMPTS`] attempts.
    pub fn fetch_update_u64(
        &self,
        space: AddressSpace,
        iova: Iova,
        update: impl Fn(u64) -> u64,
    ) -> Result<u64, DmaError> {
        let refused = DmaError::Refused { address: iova, access: Access::Write };
        let word = self.word(space, iova)?;
        let mut current = word.load_u64(0).ok_or(refused)?;
        for _ in 0..UPDATE_ATTEMPTS {
            match word.compare_exchange_u64(0, current, update(current)).ok_or(refused)? {
                Ok(held) => return Ok(held),
                Err(found) => current = found,
            }
        }
        Err(refused)
    }

    fn word(&self, space: AddressSpace, iova: Iova) -> Result<Window<'_>, DmaError> {
        if !iova.is_aligned(3) {
            return Err(DmaError::Refused { address: iova, access: Access::Write });
        }
        let word = self.window(space, iova, size_of::<u64>(), Access::Write)?;
        // It is read as well, and a second stage has pages that can only be written.
        self.window(space, iova, size_of::<u64>(), Access::Read)?;
        Ok(word)
    }

    /// Calls `f(done, window)` with each piece of the `len` bytes from `iova`, in order.
    fn for_each_window(
        &self,
        space: AddressSpace,
        iova: Iova,
        len: usize,
        access: Access,
        mut f: impl FnMut(usize, &Window<'_>),
    ) -> Result<(), DmaError> {
        let mut done = 0;
        while done < len {
            // No bus address is past the last one, so there is nothing to record either.
            let refused = DmaError::Refused { address: Iova(u64::MAX), access };
            let at = iova.checked_add(done as u64).ok_or(refused)?;
            let window = self.window(space, at, len - done, access)?;
            f(done, &window);
            done += window.len();
        }
        Ok(())
    }
}

impl<'c> Side<'c> {
    pub(crate) fn new(state: Entered<'c, ChannelState>, device: &'c Device) -> Self {
        Self { state, device }
    }

    /// See [`InFlight::window`].
    fn window(
        &self,
        space: AddressSpace,
        iova: Iova,
        len: usize,
        access: Access,
    ) -> Result<Window<'_>, DmaError> {
        let memory = self.state.memory().ok_or(DmaError::Detached)?;
        let request = self.request(space, iova, access);
        if len == 0 {
            return memory.window(Gpa(0), 0, access).map_err(|_| self.no_memory(&request, true));
        }
        if self.device.identity {
            return memory
                .window(Gpa(iova.0), len.min(WINDOW_LIMIT), access)
                .map_err(|_| DmaError::Page { address: iova, access });
        }
        let target = self
            .state
            .translate(memory, &request)
            .map_err(|refusal| self.refuse(&request, refusal))?;
        let limit = (len - 1).min(WINDOW_LIMIT - 1);
        // A translation longer than the address space of the host is longer than the limit.
        let left = usize::try_from(target.len_minus_one).unwrap_or(usize::MAX);
        self.state
            .window(memory, &target, limit.min(left) + 1, access)
            .map_err(|_| self.no_memory(&request, target.fault_disable))
    }

    fn request(&self, space: AddressSpace, address: Iova, access: Access) -> Request {
        let translation_request = self.device.ats();
        Request { requester: self.device.requester, space, address, access, translation_request }
    }

    /// Says no to a request whose PASID is nobody's.
    #[cold]
    fn refuse_pasid(&self, space: AddressSpace, iova: Iova, access: Access) -> DmaError {
        if self.state.memory().is_none() {
            return DmaError::Detached;
        }
        self.state.count_ungranted();
        let refusal = Refusal::new(FaultReason::PasidEntryNotPresent, false);
        self.refuse(&self.request(space, iova, access), refusal)
    }

    /// Says no to a request, and records why if that is wanted.
    #[cold]
    fn refuse(&self, request: &Request, refusal: Refusal) -> DmaError {
        let Request { requester, space, address, access, translation_request } = *request;
        // No page request would help against the host: the guest's tables are in order.
        let recoverable = refusal.reason.is_recoverable() && !refusal.is_hosts();
        let unwanted = refusal.fault_disable || (recoverable && translation_request);
        let fault = Fault {
            requester,
            pasid: space.pasid,
            address,
            access,
            privileged: space.privileged,
            translation_request,
            reason: refusal.reason,
            stage_two: refusal.stage_two,
        };
        if refusal.is_hosts() {
            self.device.vm.faults.note(fault);
        }
        if !unwanted {
            self.device.vm.record(fault);
        }
        if recoverable {
            DmaError::Page { address, access }
        } else {
            DmaError::Refused { address, access }
        }
    }

    fn no_memory(&self, request: &Request, fault_disable: bool) -> DmaError {
        self.refuse(request, Refusal::new(FaultReason::NoMemory, fault_disable))
    }
}

impl fmt::Debug for InFlight<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InFlight")
            .field("requester", &self.own.device.requester)
            .finish_non_exhaustive()
    }
}
