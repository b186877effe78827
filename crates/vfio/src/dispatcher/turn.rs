//! State that one call at a time has to itself, with no lock held: what a call asks others on its
//! way may take long, and may make calls itself.

use alloc::collections::VecDeque;

use spin::mutex::SpinMutex;

/// How often a call looks whether the one before it is over, until it gives up: some tens of
/// milliseconds. Calls are short, but for whom they ask on their way.
const PATIENCE: u32 = 1 << 20;

/// The state, and notes of what is to be done with it by whoever has it next.
#[derive(Debug)]
pub(super) struct Turn<T, N>(SpinMutex<Slot<T, N>>);

#[derive(Debug)]
struct Slot<T, N> {
    /// Empty while it is taken.
    state: T,
    taken: bool,
    notes: VecDeque<N>,
}

/// The state, taken. It is back when this is dropped, also by a panic of who is asked.
struct Taken<'a, T: Default, N> {
    turn: &'a Turn<T, N>,
    state: T,
}

impl<T: Default, N> Drop for Taken<'_, T, N> {
    fn drop(&mut self) {
        let mut slot = self.turn.0.lock();
        slot.state = core::mem::take(&mut self.state);
        slot.taken = false;
    }
}

impl<T: Default, N> Default for Turn<T, N> {
    fn default() -> Self {
        let (state, taken, notes) = Default::default();
        Self(SpinMutex::new(Slot { state, taken, notes }))
    }
}

impl<T: Default, N> Turn<T, N> {
    fn try_take(&self) -> Option<Taken<'_, T, N>> {
        let mut slot = self.0.lock();
        if slot.taken {
            return None;
        }
        slot.taken = true;
        Some(Taken { turn: self, state: core::mem::take(&mut slot.state) })
    }

    fn take(&self) -> Option<Taken<'_, T, N>> {
        for _ in 0..PATIENCE {
            if let Some(taken) = self.try_take() {
                return Some(taken);
            }
            core::hint::spin_loop();
        }
        None
    }

    /// Leaves something to be done, by [`with`](Self::with) or [`settle`](Self::settle).
    pub(super) fn note(&self, note: N) {
        self.0.lock().notes.push_back(note);
    }

    /// Carries out a call, and what was noted before it and meanwhile. `None` if another call had
    /// the state for too long, which may be one that this one is made from.
    pub(super) fn with<R>(
        &self,
        carry_out: impl Fn(&mut T, N),
        call: impl FnOnce(&mut T) -> R,
    ) -> Option<R> {
        let result = {
            let mut taken = self.take()?;
            self.carry_out_all(&mut taken.state, &carry_out);
            call(&mut taken.state)
        };
        self.settle(carry_out);
        Some(result)
    }

    /// Carries out what was noted; if a call has the state, that does it.
    pub(super) fn settle(&self, carry_out: impl Fn(&mut T, N)) {
        // Looked at when nobody has it: what is noted later finds it free.
        while !self.0.lock().notes.is_empty() {
            let Some(mut taken) = self.try_take() else { return };
            self.carry_out_all(&mut taken.state, &carry_out);
        }
    }

    fn carry_out_all(&self, state: &mut T, carry_out: &impl Fn(&mut T, N)) {
        loop {
            let note = self.0.lock().notes.pop_front();
            match note {
                Some(note) => carry_out(state, note),
                None => return,
            }
        }
    }

    #[cfg(test)]
    pub(super) fn peek<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.0.lock().state)
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn one_call_at_a_time() {
        let turn: Turn<Vec<u32>, u32> = Turn::default();
        let note = |state: &mut Vec<u32>, note| state.push(note);
        turn.note(1);
        let result = turn.with(note, |state| {
            assert_eq!(*state, [1]);
            // From inside there is no turn to be had, but a note can be left.
            assert_eq!(turn.with(note, |_| ()), None);
            turn.note(3);
            turn.settle(note);
            state.push(2);
        });
        assert_eq!(result, Some(()));
        turn.peek(|state| assert_eq!(*state, [1, 2, 3]));
        turn.note(4);
        turn.settle(note);
        turn.peek(|state| assert_eq!(*state, [1, 2, 3, 4]));
    }

    #[test]
    fn threads_wait_for_each_other() {
        let turn: Turn<u32, u32> = Turn::default();
        let add = |state: &mut u32, note| *state += note;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        while turn.with(add, |state| *state += 1).is_none() {}
                        turn.note(1);
                        turn.settle(add);
                    }
                });
            }
        });
        turn.peek(|state| assert_eq!(*state, 800));
    }

    #[test]
    fn a_panic_gives_it_back() {
        let turn: Turn<u32, u32> = Turn::default();
        let call = || {
            turn.with(
                |_, _| (),
                |state| -> () {
                    *state = 7;
                    panic!("whom it asked")
                },
            )
        };
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call));
        assert!(panicked.is_err());
        assert_eq!(turn.with(|_, _| (), |state| *state), Some(7));
    }
}
