//! Telling the users of an ID what happens to it.
//!
//! ```text
//!              opening: Last ─► Iommu ─► Device ─► Cpu         closing: the other way round
//!
//!   alloc ─► ALLOC       bind ─► prepare ─► (entry made) ─► COMMIT      unbind ─► UNBIND
//!                                   └ refused: ABORT, in reverse
//!   free ─► work list ─► Space::work ─► FREE ─► the number may go
//! ```
//!
//! Events of one ID come in the order ALLOC, BIND, UNBIND, FREE: each is a *phase* of the ID, and
//! there is one at a time. What would begin a second one is refused (a bind), cannot happen (an
//! unbind, of what is not bound yet) or is put off to the end of the phase (a FREE). Nothing waits.
//!
//! No lock is held while a handler runs.

mod bind;
mod deliver;
mod event;
mod lists;
mod subscribe;
#[cfg(all(test, not(loom)))]
mod tests;

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use core::sync::atomic::AtomicU64;

use crate::set::SetCore;
use crate::sync::Mutex;
use crate::Shape;

pub(crate) use bind::Bound;
pub use bind::{BindError, Binding, Prepared};
pub use event::{Event, Priority, Refusal, SetChange, SetEvent, Subscriber};
pub use subscribe::{SubscribeError, Subscription};

/// Who is told, and what of sets is still to be told.
pub(crate) struct Notify<T, G: Shape> {
    lists: Mutex<lists::Lists<T, G>>,
    news: Mutex<VecDeque<News<T, G>>>,
    /// Panics of handlers that were contained.
    panics: AtomicU64,
}

/// What happened to a set, for those who were subscribed then.
struct News<T, G: Shape> {
    change: SetChange,
    set: Arc<SetCore>,
    audience: lists::Audience<T, G>,
}

impl<T, G: Shape> Notify<T, G> {
    pub(crate) fn new() -> Self {
        Self {
            lists: Mutex::new(lists::Lists::new()),
            news: Mutex::new(VecDeque::new()),
            panics: AtomicU64::new(0),
        }
    }
}
