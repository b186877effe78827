//! Work that frees cause: telling an ID's users that it has ended, telling a set's users what
//! became of it, giving a number back to its source.

use crate::geometry::Shape;
use crate::space::{Shared, Space};

/// Whether there is more to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// The budget was used up.
    More,
    /// Nothing was left.
    Idle,
}

impl<T, G: Shape> Space<T, G> {
    /// Does up to `budget` pieces of the work that frees caused: each tells of one ID or
    /// one set, or gives one number back to its source.
    ///
    /// Any number of threads may call it at the same time. A handler that takes long holds up the
    /// one that it was called by. What is queued when the last handle of the space goes is not
    /// told any more.
    pub fn work(&self, budget: usize) -> Work {
        for _ in 0..budget {
            let did = self.shared.tell_news()
                || Shared::tell_free(&self.shared)
                || self.shared.return_one();
            if !did {
                return Work::Idle;
            }
        }
        Work::More
    }
}
