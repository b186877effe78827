//! Groups that nobody answers in time.

use core::time::Duration;

use super::device::Stage;
use super::{PageRequests, Record};
use crate::software::fault_log::FaultLog;
use crate::{Answerer, ResponseCode};

/// Groups that one tick looks at, or answers, at most.
pub(super) const TICK_BUDGET: usize = 256;

/// Which groups it is known of since when they wait.
#[derive(Default)]
pub(super) struct Ages {
    /// The latest time heard of.
    pub(super) now: Duration,
    /// Groups from this one on have no time yet.
    unknown: u64,
}

impl PageRequests {
    /// It is `now`: answers what waits for too long, and delivers what was held back. Gives when to
    /// be called again.
    pub(in crate::software) fn tick(&self, now: Duration) -> Option<Duration> {
        let deadline = {
            let mut record = self.inner.lock();
            let now = now.max(record.ages.now);
            record.ages.now = now;
            if record.closed {
                return None;
            }
            let held_back = record.release_held_back(&self.log, now, TICK_BUDGET);
            let timeout = self.policy.timeout;
            let timed_out = timeout.map(|timeout| record.expire(&self.log, now, timeout));
            [held_back, timed_out].into_iter().flatten().min()
        };
        self.log.notify();
        self.deliver_all();
        deadline
    }
}

impl Record {
    /// Answers groups that have waited for `timeout`; gives when to look again.
    fn expire(&mut self, log: &FaultLog, now: Duration, timeout: Duration) -> Duration {
        let more = self.note_ages(now);
        for _ in 0..TICK_BUDGET {
            let Some((_, &(requester, index))) = self.whole.first_key_value() else { break };
            let group = self.devices.get(&requester).and_then(|device| device.groups.get(&index));
            let Some(Stage::Whole { since: Some(since), .. }) = group.map(|group| &group.stage)
            else {
                break;
            };
            let due = since.saturating_add(timeout);
            if due > now {
                return if more { now } else { due };
            }
            self.end(log, (requester, index), ResponseCode::Invalid, Answerer::Timeout);
        }
        match more || !self.whole.is_empty() {
            true => now,
            // Of a group that comes at once after this it is known then at the latest.
            false => now.saturating_add(timeout),
        }
    }

    /// Notes the time of groups that came since the last tick; whether there are more of them.
    fn note_ages(&mut self, now: Duration) -> bool {
        for (seen, (&order, &(requester, index))) in
            self.whole.range(self.ages.unknown..).enumerate()
        {
            if seen == TICK_BUDGET {
                self.ages.unknown = order;
                return true;
            }
            let device = self.devices.get_mut(&requester);
            let group = device.and_then(|device| device.groups.get_mut(&index));
            if let Some(Stage::Whole { since, .. }) = group.map(|group| &mut group.stage) {
                *since = Some(now);
            }
        }
        self.ages.unknown = self.next;
        false
    }
}
