//! What the standard library's thread-locals add: a shard and a reader for each thread. Without
//! them the caller names the shard and keeps the readers.

/// The shard of this thread: threads get them in turn.
#[cfg(feature = "std")]
#[inline]
pub(crate) fn shard() -> usize {
    use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    std::thread_local! {
        static MINE: usize = NEXT.fetch_add(1, Relaxed) % crate::MAX_SHARDS;
    }
    // A thread that is ending has no thread-locals any more.
    MINE.try_with(|mine| *mine).unwrap_or(0)
}

/// The first shard: whoever shares the space among processors says which is whose.
#[cfg(not(feature = "std"))]
#[inline]
pub(crate) fn shard() -> usize {
    0
}

#[cfg(feature = "std")]
mod readers {
    use alloc::rc::Rc;
    use alloc::sync::Arc;
    use alloc::vec::Vec;
    use core::cell::RefCell;
    use std::thread_local;

    use crate::epoch::{Epochs, Participant};
    use crate::geometry::Shape;
    use crate::reader::Guard;
    use crate::space::Space;
    use crate::Ioasid;

    thread_local! {
        /// This thread's place in each space that it has read; those of spaces that are gone are
        /// swept out when the thread enters a new one.
        static PARTICIPANTS: RefCell<Vec<Rc<Participant>>> = const { RefCell::new(Vec::new()) };
    }

    fn participant(epochs: &Arc<Epochs>) -> Rc<Participant> {
        PARTICIPANTS
            .try_with(|list| {
                let mut list = list.borrow_mut();
                if let Some(known) = list.iter().find(|participant| participant.belongs_to(epochs))
                {
                    return known.clone();
                }
                list.retain(|participant| !participant.is_orphan());
                let new = Rc::new(Participant::new(epochs));
                list.push(new.clone());
                new
            })
            // The thread is ending and its thread-locals are gone: a place for this call alone.
            .unwrap_or_else(|_| Rc::new(Participant::new(epochs)))
    }

    impl<T, G: Shape> Space<T, G> {
        /// Calls `f` with this thread pinned. Calls may be nested.
        ///
        /// ```
        /// # let space = ioasid::Space::new(ioasid::Config::default()).unwrap();
        /// let lease = space.alloc(1..=9, 42).unwrap();
        /// let (data, tag) = space.with(|guard| guard.find_tagged(lease.id()).map(|(d, t)| (*d, t))).unwrap();
        /// assert_eq!((data, tag), (42, lease.tag()));
        /// ```
        pub fn with<R>(&self, f: impl FnOnce(&Guard<'_, T, G>) -> R) -> R {
            let participant = participant(&self.shared.epochs);
            let guard = Guard::new(&self.shared, &participant);
            f(&guard)
        }

        /// A copy of the data of a live ID.
        pub fn get(&self, id: Ioasid) -> Option<T>
        where
            T: Copy,
        {
            self.with(|guard| guard.find(id).copied())
        }
    }
}
