//! Answers that are lost, late or doubled on purpose.

use alloc::collections::VecDeque;
use core::time::Duration;

use super::device::Stage;
use super::{Key, PageRequests, Record};
use crate::software::fault_log::FaultLog;
use crate::{Answerer, ResponseCode, ResponseInjection};

/// Answers that are held back at most; further ones are not.
const MAX_HELD_BACK: usize = 4096;

/// What goes wrong.
#[derive(Default)]
pub(super) struct Injected {
    what: Option<ResponseInjection>,
    /// Answers since it was switched on.
    answers: u64,
    /// Answers that are held back, in the order in which they were given.
    late: VecDeque<Late>,
}

/// An answer that is held back; the group has it.
struct Late {
    key: Key,
    /// Which group with that key.
    order: u64,
    delay: Duration,
    /// Since the first tick after it was given.
    due: Option<Duration>,
}

impl Injected {
    pub(super) fn is_twice(&self) -> bool {
        self.what == Some(ResponseInjection::Twice)
    }

    /// Whether this answer is lost.
    fn loses(&mut self) -> bool {
        self.answers += 1;
        match self.what {
            Some(ResponseInjection::Drop { one_in }) => {
                self.answers % u64::from(one_in.max(1)) == 0
            }
            _ => false,
        }
    }
}

impl PageRequests {
    /// From now on, this goes wrong.
    pub(in crate::software) fn inject(&self, what: Option<ResponseInjection>) {
        let mut record = self.inner.lock();
        record.injected.what = what;
        record.injected.answers = 0;
    }

    /// Whether answers are held back.
    pub(in crate::software) fn holds_back(&self) -> bool {
        !self.inner.lock().injected.late.is_empty()
    }
}

impl Record {
    /// The guest has answered a group that is whole.
    pub(super) fn answered(&mut self, log: &FaultLog, key: Key, code: ResponseCode) {
        if self.injected.loses() {
            return;
        }
        let delay = match self.injected.what {
            Some(ResponseInjection::Delay(delay)) if self.injected.late.len() < MAX_HELD_BACK => {
                delay
            }
            _ => {
                self.end(log, key, code, Answerer::Guest);
                return;
            }
        };
        let device = self.devices.get_mut(&key.0);
        let group = device.and_then(|device| device.groups.get_mut(&key.1));
        if let Some(Stage::Whole { answer, order, .. }) = group.map(|group| &mut group.stage) {
            *answer = Some(code);
            self.injected.late.push_back(Late { key, order: *order, delay, due: None });
        }
    }

    /// Gives up to `budget` answers that have been held back for long enough; when to look again, if
    /// there are more. They stay in order: one that was to wait less waits for those before it.
    pub(super) fn release_held_back(
        &mut self,
        log: &FaultLog,
        now: Duration,
        budget: usize,
    ) -> Option<Duration> {
        for late in &mut self.injected.late {
            late.due.get_or_insert(now.saturating_add(late.delay));
        }
        for _ in 0..budget {
            let due = self.injected.late.front()?.due;
            if due.is_some_and(|due| due > now) {
                return due;
            }
            let late = self.injected.late.pop_front()?;
            // Unless the host has answered meanwhile.
            if let Some(code) = self.held_back(&late) {
                self.end(log, late.key, code, Answerer::Guest);
            }
        }
        Some(now)
    }

    /// The answer that is held back, if the group is still there.
    fn held_back(&self, late: &Late) -> Option<ResponseCode> {
        let group = self.devices.get(&late.key.0)?.groups.get(&late.key.1)?;
        match group.stage {
            Stage::Whole { answer, order, .. } if order == late.order => answer,
            _ => None,
        }
    }
}
