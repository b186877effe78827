//! Memory as an operation sees it: pieces that succeed, or stop at an address with a status.

use iommu::{AddressSpace, DmaError, InFlight};
use mem::{Access, Iova, Window};

use crate::spec::Status;

/// What a write that nobody answers for covers at most: it is lost by pages.
const PAGE: u64 = 4096;

/// Why an operation cannot go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::model) enum Stop {
    /// An access did not succeed.
    Access {
        /// What the descriptor ends with.
        status: Status,
        /// Where.
        address: Iova,
        /// Whether it was a write.
        write: bool,
    },
    /// There is no memory any more: the descriptor is abandoned.
    Detached,
}

/// Part of an access succeeded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::model) struct Short {
    /// Bytes that did.
    pub(in crate::model) done: usize,
    /// What stopped the rest.
    pub(in crate::model) stop: Stop,
}

/// Memory that is written to.
enum Target<'a> {
    Memory(Window<'a>),
    /// This many bytes go nowhere, and the device does not learn of it.
    Lost(usize),
}

impl Target<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Memory(window) => window.len(),
            Self::Lost(len) => *len,
        }
    }

    /// The part from `offset` on.
    fn skip(self, offset: usize) -> Self {
        match self {
            Self::Memory(window) => Self::Memory(window.part(offset, usize::MAX)),
            Self::Lost(len) => Self::Lost(len.saturating_sub(offset)),
        }
    }

    fn copy_from(&self, source: &Window<'_>) -> usize {
        match self {
            Self::Memory(window) => source.copy_to(window),
            Self::Lost(len) => (*len).min(source.len()),
        }
    }

    fn write(&self, bytes: &[u8]) -> usize {
        match self {
            Self::Memory(window) => window.write(0, bytes),
            Self::Lost(len) => (*len).min(bytes.len()),
        }
    }
}

/// Accesses in the name of one descriptor, for one bounded piece of work: while this exists,
/// invalidations do not complete.
pub(in crate::model) struct Dma<'c> {
    flight: InFlight<'c>,
    space: AddressSpace,
    /// With translation requests the device learns of faults before it accesses. Without, reads
    /// that fault come back as errors, and writes that fault are lost silently.
    ats: bool,
}

impl<'c> Dma<'c> {
    pub(in crate::model) fn new(flight: InFlight<'c>, space: AddressSpace, ats: bool) -> Self {
        Self { flight, space, ats }
    }

    /// Reads all of `buf` from `at`, or as much as can be.
    pub(in crate::model) fn read(&self, at: Iova, buf: &mut [u8]) -> Result<(), Short> {
        let mut done = 0;
        while let Some(rest) = buf.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let from = self.source(plus(at, done), rest.len());
            done += advance(done, from, |window| window.read(0, rest), at, false)?;
        }
        Ok(())
    }

    /// Writes all of `bytes` to `at`, or as much as can be.
    pub(in crate::model) fn write(&self, at: Iova, bytes: &[u8]) -> Result<(), Short> {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let to = self.target(plus(at, done), rest.len());
            done += advance(done, to, |target| target.write(rest), at, true)?;
        }
        Ok(())
    }

    /// Writes the 32 bytes of a completion record, so that its first eight come last and at once:
    /// software polls the first one. `ready` is called when all of it can be written, before
    /// software can see it.
    pub(in crate::model) fn write_record(
        &self,
        at: Iova,
        record: &[u8; 32],
        ready: impl FnOnce(),
    ) -> Result<(), Stop> {
        let (first, rest) = record.split_at(8);
        let whole = match self.target(at, record.len())? {
            Target::Memory(window) if window.len() >= record.len() => window,
            // Not in one piece (a record never crosses a page, so this is an odd memory map).
            Target::Memory(_) => {
                self.write(plus(at, 8), rest).map_err(|short| short.stop)?;
                ready();
                return self.write(at, first).map_err(|short| short.stop);
            }
            Target::Lost(_) => {
                ready();
                return Ok(());
            }
        };
        ready();
        whole.write(8, rest);
        let first = first.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        whole.store_u64(0, first).ok_or(refused(at, true))
    }

    /// Copies `len` bytes from `from` to `to`, first byte first.
    pub(in crate::model) fn copy(&self, from: Iova, to: Iova, len: usize) -> Result<(), Short> {
        let mut source: Option<Window<'_>> = None;
        let mut target: Option<Target<'_>> = None;
        let mut done = 0;
        while done < len {
            let short = |stop| Short { done, stop };
            let window = match source.filter(|window| !window.is_empty()) {
                Some(window) => window,
                None => self.source(plus(from, done), len - done).map_err(short)?,
            };
            let place = match target.filter(|target| target.len() != 0) {
                Some(target) => target,
                None => self.target(plus(to, done), len - done).map_err(short)?,
            };
            let copied = place.copy_from(&window);
            if copied == 0 {
                return Err(short(refused(plus(to, done), true)));
            }
            done += copied;
            source = Some(window.part(copied, usize::MAX));
            target = Some(place.skip(copied));
        }
        Ok(())
    }

    /// Copies the `len` bytes before `from` to before `to`, last byte first. `done` counts from the
    /// end.
    pub(in crate::model) fn copy_back(
        &self,
        from: Iova,
        to: Iova,
        len: usize,
    ) -> Result<(), Short> {
        let mut done = 0;
        while done < len {
            // The longest piece that ends here and stays on one page on both sides.
            let before = |end: Iova| (end.0.wrapping_sub(done as u64 + 1) % PAGE + 1) as usize;
            let piece = before(from).min(before(to)).min(len - done);
            let back = |end: Iova| Iova(end.0.wrapping_sub((done + piece) as u64));
            self.copy(back(from), back(to), piece).map_err(|short| Short { done, ..short })?;
            done += piece;
        }
        Ok(())
    }

    /// Copies `len` bytes from `from` to both of `to`, so that the same number arrives at both.
    pub(in crate::model) fn copy_twice(
        &self,
        from: Iova,
        to: [Iova; 2],
        len: usize,
    ) -> Result<(), Short> {
        let mut done = 0;
        while done < len {
            let short = |stop| Short { done, stop };
            let source = self.source(plus(from, done), len - done).map_err(short)?;
            let first = self.target(plus(to[0], done), source.len()).map_err(short)?;
            let second = self.target(plus(to[1], done), first.len()).map_err(short)?;
            let piece = source.part(0, second.len());
            let copied = first.copy_from(&piece).min(second.copy_from(&piece));
            if copied == 0 {
                return Err(short(refused(plus(to[0], done), true)));
            }
            done += copied;
        }
        Ok(())
    }

    /// Translates the `len` bytes from `at` for reading and leaves them alone.
    pub(in crate::model) fn touch(&self, at: Iova, len: usize) -> Result<(), Short> {
        let mut done = 0;
        while done < len {
            let from = self.source(plus(at, done), len - done);
            done += advance(done, from, |window| window.len(), at, false)?;
        }
        Ok(())
    }

    /// Flips the byte at `at`, for a sabotaged build.
    pub(in crate::model) fn flip(&self, at: Iova) {
        let mut byte = [0];
        if self.read(at, &mut byte).is_ok() {
            let _ = self.write(at, &[!byte[0]]);
        }
    }

    fn source(&self, at: Iova, len: usize) -> Result<Window<'_>, Stop> {
        self.flight.window(self.space, at, len, Access::Read).map_err(|error| self.stop(error))
    }

    fn target(&self, at: Iova, len: usize) -> Result<Target<'_>, Stop> {
        match self.flight.window(self.space, at, len, Access::Write) {
            Ok(window) => Ok(Target::Memory(window)),
            Err(DmaError::Detached) => Err(Stop::Detached),
            Err(_) if !self.ats => {
                let page = PAGE - at.0 % PAGE;
                Ok(Target::Lost(len.min(page as usize)))
            }
            Err(error) => Err(self.stop(error)),
        }
    }

    fn stop(&self, error: DmaError) -> Stop {
        let (status, address, access) = match error {
            DmaError::Page { address, access } if self.ats => (Status::PageFault, address, access),
            DmaError::Refused { address, access } if self.ats => {
                (Status::TranslationError, address, access)
            }
            DmaError::Page { address, access } | DmaError::Refused { address, access } => {
                (Status::ReadError, address, access)
            }
            DmaError::Detached => return Stop::Detached,
        };
        Stop::Access { status, address, write: access == Access::Write }
    }
}

/// How far `use_it` came with memory that was to be reached from `at + done`; no progress at all
/// is an error, so that nothing loops.
fn advance<M>(
    done: usize,
    memory: Result<M, Stop>,
    use_it: impl FnOnce(M) -> usize,
    at: Iova,
    write: bool,
) -> Result<usize, Short> {
    match memory.map(use_it) {
        Ok(0) => Err(Short { done, stop: refused(plus(at, done), write) }),
        Ok(more) => Ok(more),
        Err(stop) => Err(Short { done, stop }),
    }
}

/// Memory that is there and cannot be used.
fn refused(address: Iova, write: bool) -> Stop {
    let status = if write { Status::WriteError } else { Status::ReadError };
    Stop::Access { status, address, write }
}

fn plus(at: Iova, bytes: usize) -> Iova {
    Iova(at.0.wrapping_add(bytes as u64))
}
