//! How long to wait for a processor.

use core::time::Duration;

/// How whoever closes an entry waits for submissions under way. A submission is a store to a
/// device: what takes longer than this is stuck.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// At most so long, if there is a clock.
    pub limit: Duration,
    /// Tells the time since any fixed moment.
    pub clock: Option<fn() -> Duration>,
    /// At most so many looks, if there is no clock.
    pub looks: u64,
    /// What to do between two looks: another thread's turn, or nothing.
    pub pause: fn(),
}

impl Patience {
    /// How long a submission may take by default.
    pub const LIMIT: Duration = Duration::from_secs(1);
    /// How many looks there are by default without a clock.
    pub const LOOKS: u64 = 1 << 24;

    pub(super) fn begin(&self) -> Waiting<'_> {
        let deadline = self.clock.and_then(|clock| clock().checked_add(self.limit));
        Waiting { patience: self, deadline, looks: 0 }
    }
}

impl Default for Patience {
    #[cfg(all(feature = "std", not(loom)))]
    fn default() -> Self {
        let clock = || {
            static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
            START.get_or_init(std::time::Instant::now).elapsed()
        };
        let pause = std::thread::yield_now;
        Self { limit: Self::LIMIT, clock: Some(clock), looks: Self::LOOKS, pause }
    }

    #[cfg(not(all(feature = "std", not(loom))))]
    fn default() -> Self {
        let pause = core::hint::spin_loop;
        Self { limit: Self::LIMIT, clock: None, looks: Self::LOOKS, pause }
    }
}

/// Waiting.
pub(super) struct Waiting<'p> {
    patience: &'p Patience,
    deadline: Option<Duration>,
    looks: u64,
}

impl Waiting<'_> {
    /// Pauses; whether to look again.
    pub(super) fn again(&mut self) -> bool {
        (self.patience.pause)();
        self.looks = self.looks.saturating_add(1);
        match (self.patience.clock, self.deadline) {
            (Some(clock), Some(deadline)) => clock() < deadline,
            // A limit past the end of time.
            (Some(_), None) => true,
            (None, _) => self.looks < self.patience.looks,
        }
    }
}
