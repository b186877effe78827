//! Work that frees cause: telling an ID's users that it has ended, giving a number back to its
//! source.

use crate::geometry::Shape;
use crate::record::Record;
use crate::space::{Shared, Space};

/// Whether there is more to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// The budget was used up.
    More,
    /// Nothing was left.
    Idle,
}

impl<T, G: Shape> Shared<T, G> {
    /// Queues a parked ID for its users to be told, if there may be some. For the holder of its
    /// shard's lock. What tells them holds a reference until it has.
    pub(crate) fn queue_telling(&self, watched: bool, record: &Record, number: u32) -> bool {
        if watched {
            record.refs.set(record.refs.get() + 1);
            self.work.lock().push(number, self.records());
        }
        watched
    }
}

impl<T, G: Shape> Space<T, G> {
    /// Does up to `budget` pieces of the work that frees caused.
    pub fn work(&self, budget: usize) -> Work {
        for _ in 0..budget {
            let Some(number) = self.shared.work.lock().pop(self.shared.records()) else {
                if self.shared.return_one() {
                    continue;
                }
                return Work::Idle;
            };
            let home = self.shared.table.record(number).home.get() as usize;
            self.shared.unhold(number, home, None);
        }
        Work::More
    }
}
