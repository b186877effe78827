//! A user of PASIDs in a kernel: a driver, or the IOMMU driver itself.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use super::allocator::Held;
use super::{CommandError, Pasid, PasidAllocator, PasidRange, Route, Scope};
use crate::sync::Mutex;

/// One user of PASIDs, with something of its own (`T`) to each. Owning it is the only way to its
/// PASIDs: a number that is another consumer's is [`FreeError::NotFound`] here.
///
/// Dropping it gives back what it has, as [`exit`](Self::exit) does.
pub struct Consumer<T> {
    allocator: PasidAllocator,
    scope: Scope,
    range: PasidRange,
    /// Never locked while anything of somebody else's runs.
    pasids: Mutex<BTreeMap<Pasid, Entry<T>>>,
}

enum Entry<T> {
    Live(Held, Arc<T>),
    /// On its way back; found by nobody.
    Leaving,
}

/// Why there is no consumer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InitError {
    /// The bus or the device has no PASIDs.
    #[error("{0} has no PASIDs")]
    NoPasids(Scope),
}

/// Why a consumer gets no PASID. Nothing has changed, but for [`AllocError::Unasked`] and
/// [`AllocError::InUse`] where the host may count one more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AllocError {
    /// Nothing that was asked for lies in the consumer's range.
    #[error("nothing in {wanted} can be used here, only {range}")]
    OutsideRange {
        /// What was asked for.
        wanted: PasidRange,
        /// What can be used on that bus, or by that device.
        range: PasidRange,
    },
    /// Every PASID in the range is taken or promised.
    #[error("no PASID is available in that range")]
    NoneAvailable,
    /// There is no memory for it.
    #[error("no memory for another PASID")]
    NoMemory,
    /// The host gave a PASID that it was not asked for; it was offered back.
    #[error("the host gave {pasid}; asked for was {range}")]
    Unasked {
        /// What it gave.
        pasid: Pasid,
        /// What was asked for.
        range: PasidRange,
    },
    /// The host gave a PASID that this guest has already. Whoever has it keeps it.
    #[error("the host gave {pasid}, which is in use")]
    InUse {
        /// What it gave.
        pasid: Pasid,
    },
    /// The host was asked and said no, or nothing.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// Why a PASID was not given back.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FreeError {
    /// The consumer has no such PASID: nobody has, another one has, or it was given back.
    #[error("this consumer has no PASID {0}")]
    NotFound(Pasid),
    /// The host did not take it back. The consumer has it still, to try again with; unless there
    /// is nothing to give back, by the host's word ([`CommandError::NotGranted`]) or because the
    /// host has given the same one out anew.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// What was left when a consumer ended.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[must_use = "PASIDs that were out may be a mistake of the consumer's"]
pub struct Exited {
    /// PASIDs that it had out and that were given back for it.
    pub freed: u32,
    /// PASIDs that the host did not take back. Unless it said that they are not this guest's, none
    /// of them is handed out again here.
    pub lost: Vec<(Pasid, CommandError)>,
}

impl<T> Consumer<T> {
    /// A consumer of the PASIDs of `scope`, without any yet. Nothing else has to exist before it.
    ///
    /// # Errors
    ///
    /// [`InitError::NoPasids`] if the IOMMU driver leaves nothing of the range.
    pub fn init(allocator: &PasidAllocator, scope: Scope) -> Result<Self, InitError> {
        let range = allocator.range(scope).ok_or(InitError::NoPasids(scope))?;
        let pasids = Mutex::new(BTreeMap::new());
        Ok(Self { allocator: allocator.clone(), scope, range, pasids })
    }

    /// Gives back every PASID that is out, and says how many and which were refused.
    pub fn exit(mut self) -> Exited {
        self.give_all_back()
    }

    /// The bus or device that it is for.
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// What can be used there.
    pub fn range(&self) -> PasidRange {
        self.range
    }

    /// The way that its requests take.
    pub fn route(&self) -> Route {
        self.allocator.route()
    }

    /// Number of PASIDs that it has.
    pub fn len(&self) -> usize {
        let live = |entry: &&Entry<T>| matches!(entry, Entry::Live(..));
        self.pasids.lock().values().filter(live).count()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Gets a PASID that lies in `wanted`, and in the consumer's range, and puts `private` to it.
    pub fn alloc(&self, wanted: PasidRange, private: T) -> Result<Pasid, AllocError> {
        let range = self.range;
        let outside = AllocError::OutsideRange { wanted, range };
        let held = self.allocator.alloc(range.intersection(&wanted).ok_or(outside)?)?;
        let pasid = held.pasid();
        // What is there, if anything, is on its way back.
        self.pasids.lock().insert(pasid, Entry::Live(held, Arc::new(private)));
        Ok(pasid)
    }

    /// Gives a PASID back; no `find` that begins after this has begun returns it. Gives what was
    /// put to it.
    ///
    /// The device has to be done with it: on bare metal its DMA is over, the table entry cleared
    /// and what was cached invalidated. In a guest the host sees to it that what it hands out again
    /// cannot be named any more.
    pub fn free(&self, pasid: Pasid) -> Result<Arc<T>, FreeError> {
        let (held, private) = self.take(pasid).ok_or(FreeError::NotFound(pasid))?;
        let result = self.allocator.free(held);
        let mut pasids = self.pasids.lock();
        // It may have come back to this very consumer meanwhile.
        let leaving = matches!(pasids.get(&pasid), Some(Entry::Leaving));
        match result {
            Err((Some(held), error)) => {
                pasids.insert(pasid, Entry::Live(held, private));
                Err(error.into())
            }
            other => {
                if leaving {
                    pasids.remove(&pasid);
                }
                other.map(|()| private).map_err(|(_, error)| error.into())
            }
        }
    }

    /// What was put to a PASID of this consumer.
    pub fn find(&self, pasid: Pasid) -> Option<Arc<T>> {
        match self.pasids.lock().get(&pasid)? {
            Entry::Live(_, private) => Some(private.clone()),
            Entry::Leaving => None,
        }
    }

    /// Calls `f` with each PASID of this consumer, lowest first, until it fails; gives that error.
    /// `f` may use the consumer: it sees the PASIDs of the moment when this began.
    pub fn for_each<E>(&self, mut f: impl FnMut(Pasid, &T) -> Result<(), E>) -> Result<(), E> {
        self.live().into_iter().try_for_each(|(pasid, private)| f(pasid, &private))
    }

    fn live(&self) -> Vec<(Pasid, Arc<T>)> {
        let pasids = self.pasids.lock();
        let live = pasids.iter().filter_map(|(pasid, entry)| match entry {
            Entry::Live(_, private) => Some((*pasid, private.clone())),
            Entry::Leaving => None,
        });
        live.collect()
    }

    /// Takes a PASID out, so that nobody finds it any more.
    fn take(&self, pasid: Pasid) -> Option<(Held, Arc<T>)> {
        let mut pasids = self.pasids.lock();
        let entry = pasids.get_mut(&pasid)?;
        match core::mem::replace(entry, Entry::Leaving) {
            Entry::Live(held, private) => Some((held, private)),
            Entry::Leaving => None,
        }
    }

    fn give_all_back(&mut self) -> Exited {
        let mut exited = Exited::default();
        let pasids = core::mem::take(&mut *self.pasids.lock());
        for (pasid, entry) in pasids {
            let Entry::Live(held, _private) = entry else { continue };
            match self.allocator.free(held) {
                Ok(()) => exited.freed += 1,
                Err((held, error)) => {
                    held.into_iter().for_each(|held| self.allocator.lose(held));
                    exited.lost.push((pasid, error));
                }
            }
        }
        exited
    }
}

impl<T> Drop for Consumer<T> {
    fn drop(&mut self) {
        let _ = self.give_all_back();
    }
}

impl<T> fmt::Debug for Consumer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("scope", &self.scope)
            .field("range", &self.range)
            .field("route", &self.route())
            .field("pasids", &self.len())
            .finish()
    }
}
