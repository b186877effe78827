//! A panic that nobody contains, as it is without the standard library.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::cell::Cell;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::thread_local;

use super::{Event, Priority, Refusal, Subscriber};
use crate::{Config, Space, Work};

thread_local! {
    static UNCONTAINED: Cell<bool> = const { Cell::new(false) };
}

#[allow(dead_code)] // asked with the standard library alone
pub(super) fn is_uncontained() -> bool {
    UNCONTAINED.get()
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Alloc,
    Prepare,
    Commit,
    Abort,
    Unbind,
    Free,
}

/// Panics in one handler.
struct Bad(What);

impl Bad {
    fn told(&self, what: What) {
        if self.0 == what {
            resume_unwind(Box::new(()));
        }
    }
}

impl Subscriber<u32> for Bad {
    fn alloc(&self, _: &Event<'_, u32>) {
        self.told(What::Alloc);
    }

    fn prepare_bind(&self, _: &Event<'_, u32>) -> Result<(), Refusal> {
        self.told(What::Prepare);
        Ok(())
    }

    fn commit_bind(&self, _: &Event<'_, u32>) {
        self.told(What::Commit);
    }

    fn abort_bind(&self, _: &Event<'_, u32>) {
        self.told(What::Abort);
    }

    fn unbind(&self, _: &Event<'_, u32>) {
        self.told(What::Unbind);
    }

    fn free(&self, _: &Event<'_, u32>) {
        self.told(What::Free);
    }
}

fn panics<R>(call: impl FnOnce() -> R) -> bool {
    catch_unwind(AssertUnwindSafe(|| drop(call()))).is_err()
}

#[test]
fn a_panic_that_goes_through_leaves_nothing_behind() {
    use What::*;
    UNCONTAINED.set(true);
    for bad in [Alloc, Prepare, Commit, Abort, Unbind, Free] {
        let space = Space::new(Config::default()).unwrap();
        let holder = space.holder("bad").unwrap();
        let subscription = space.subscribe(&holder, Priority::Cpu, Arc::new(Bad(bad))).unwrap();
        assert_eq!(panics(|| space.alloc(1..=1, 0)), bad == Alloc);
        if bad != Alloc {
            let lease = space.alloc(2..=2, 0).unwrap();
            assert_eq!(panics(|| lease.bind(&holder)), matches!(bad, Prepare | Abort));
            let bind = || lease.bind(&holder).unwrap().commit().unbind();
            assert_eq!(panics(bind), matches!(bad, Prepare | Commit | Unbind));
            // Not busy: each phase has come to its end.
            let again = catch_unwind(AssertUnwindSafe(|| lease.bind(&holder).map(|_| ())));
            assert!(!matches!(again, Ok(Err(_))), "{bad:?}: {again:?}");
        }
        // Both are freed, but for the one that was never given out.
        assert_eq!(panics(|| space.work(1)), bad == Free);
        assert_eq!(panics(|| space.work(1)), bad == Free);
        assert_eq!(space.work(1), Work::Idle);
        drop(subscription);
        assert_eq!((space.usage().live, space.usage().parked), (0, 0), "{bad:?}");
    }
    UNCONTAINED.set(false);
}
