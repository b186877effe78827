//! Deliberate defects, so that tests can prove that they would notice real ones.
//!
//! With the feature `sabotage` off, which it is in every shipped build, none of this is compiled
//! in: [`is`] is a constant `false`.

/// A defect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[cfg_attr(not(feature = "sabotage"), allow(dead_code, unreachable_pub))]
pub enum Sabotage {
    /// Cached translations survive their invalidation.
    SkipIotlbInvalidation = 1,
    /// Accessed and dirty bits are not written.
    NoAccessedDirty = 2,
    /// Requests are translated by the entry of the PASID next to theirs.
    WrongPasid = 3,
    /// Invalidations complete while accesses of before are in flight.
    DropInFlight = 4,
    /// A closed VM stays usable, with all its memory.
    KeepOnClose = 5,
    /// Forgotten translations are not freed.
    LeakCache = 6,
    /// A PASID is granted again while something may still name it.
    ReusePasid = 7,
    /// Requests with a PASID that was never granted pass.
    IgnoreGrants = 8,
    /// A VM that gives back a PASID which is not its own is told that it worked.
    ForgetOwner = 9,
    /// Guest physical addresses are taken for the host's.
    SkipStageTwo = 10,
    /// The host's table keeps the entry of a PASID that is detached.
    KeepEntry = 11,
    /// A processor's table has an entry before the host's table has one.
    OpenEarly = 40,
    /// It keeps the entry of a PASID that is detached.
    CloseLate = 41,
    /// It lets PASIDs be bound that it has no place for.
    IgnoreRefusal = 42,
    /// It closes without waiting for submissions under way.
    SkipSubmissions = 43,
    /// Commands reach devices with the guest's number.
    SubmitGuestPasid = 44,
    /// Whose a PASID of the host's is, is looked up before the access is in flight, a while before.
    RouteEarly = 45,
    /// A device hears each answer to a page request twice.
    AnswerTwice = 20,
    /// A page request that is withdrawn is answered by nobody.
    ForgetGroup = 21,
    /// The host answers page requests with Success and tells nobody of them.
    AnswerForGuest = 22,
    /// A page request is kept and nobody told of it.
    LoseGroup = 23,
    /// The host answers page requests that were handed out when their PASID is detached.
    AnswerTaken = 24,
    /// The PASID of an unanswered page request is free for another one.
    ForgetAsker = 25,
    /// What a device's own TLB holds survives its invalidation.
    SkipDeviceTlbInvalidation = 12,
}

/// Whether `defect` is on.
#[cfg(not(feature = "sabotage"))]
pub(crate) const fn is(_defect: Sabotage) -> bool {
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
    pub(crate) fn is(defect: Sabotage) -> bool {
        PRESENT.load(Ordering::Relaxed) == defect as u8
    }
}
#[cfg(feature = "sabotage")]
pub(crate) use switch::is;
#[cfg(feature = "sabotage")]
pub use switch::set;
