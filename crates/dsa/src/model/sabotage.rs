//! Deliberate defects, so that tests can prove that they would notice real ones.
//!
//! With the feature `sabotage` off, which it is in every shipped build, none of this is compiled
//! in: [`is`] is a constant `false`.

/// A defect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[cfg_attr(not(feature = "sabotage"), allow(dead_code, unreachable_pub))]
pub enum Sabotage {
    /// A byte of each piece that a memory move copies is flipped.
    CorruptCopy = 1,
    /// No completion record is written.
    ForgetCompletion = 2,
    /// A dedicated queue uses the PASID that a descriptor names, instead of its own.
    ForgeablePasid = 3,
    /// An abort completes while what it abandoned still runs.
    HastyAbort = 4,
    /// A page that cannot be had is taken for one that is there.
    IgnoreInvalidAnswer = 5,
    /// A descriptor whose page comes is not taken up again.
    LoseBlocked = 6,
    /// An engine does nothing else while a descriptor of it waits for a page.
    BlockTheQueue = 7,
}

/// Whether `defect` is on.
#[cfg(not(feature = "sabotage"))]
pub(super) const fn is(_defect: Sabotage) -> bool {
    false
}

#[cfg(feature = "sabotage")]
mod switch {
    use core::sync::atomic::{AtomicU8, Ordering};

    use super::Sabotage;

    static PRESENT: AtomicU8 = AtomicU8::new(0);

    /// Turns one defect on, for the whole process, or (`None`) all off.
    pub fn set(defect: Option<Sabotage>) {
        PRESENT.store(defect.map_or(0, |defect| defect as u8), Ordering::SeqCst);
    }

    /// Whether `defect` is on.
    pub(in crate::model) fn is(defect: Sabotage) -> bool {
        PRESENT.load(Ordering::Relaxed) == defect as u8
    }
}
#[cfg(feature = "sabotage")]
pub(super) use switch::is;
#[cfg(feature = "sabotage")]
pub use switch::set;
