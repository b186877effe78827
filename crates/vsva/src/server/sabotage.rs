//! Servers broken on purpose, so that a scenario can show that it would notice.
//!
//! Only with the feature `sabotage`, which the tests switch on and no other build does.

#[cfg(feature = "sabotage")]
mod switch {
    use std::sync::atomic::{AtomicBool, Ordering};

    use dsa::model::sabotage as accelerator;
    use iommu::sabotage as engine;

    /// A way to break a server.
    enum Break {
        Engine(engine::Sabotage),
        Accelerator(accelerator::Sabotage),
        IgnoreInjections,
        KeepDeadGuests,
        GenerousQuota,
        SharedNumbers,
    }

    /// Everything that can be broken, by name.
    const ALL: [(&str, Break); 22] = [
        ("corrupt-copy", Break::Accelerator(accelerator::Sabotage::CorruptCopy)),
        ("forget-completion", Break::Accelerator(accelerator::Sabotage::ForgetCompletion)),
        ("forgeable-pasid", Break::Accelerator(accelerator::Sabotage::ForgeablePasid)),
        ("hasty-abort", Break::Accelerator(accelerator::Sabotage::HastyAbort)),
        ("wrong-pasid", Break::Engine(engine::Sabotage::WrongPasid)),
        ("leak-cache", Break::Engine(engine::Sabotage::LeakCache)),
        ("no-accessed-dirty", Break::Engine(engine::Sabotage::NoAccessedDirty)),
        ("skip-iotlb-invalidation", Break::Engine(engine::Sabotage::SkipIotlbInvalidation)),
        ("drop-in-flight", Break::Engine(engine::Sabotage::DropInFlight)),
        ("skip-stage-two", Break::Engine(engine::Sabotage::SkipStageTwo)),
        ("forget-owner", Break::Engine(engine::Sabotage::ForgetOwner)),
        (
            "skip-device-tlb-invalidation",
            Break::Engine(engine::Sabotage::SkipDeviceTlbInvalidation),
        ),
        ("double-answer", Break::Engine(engine::Sabotage::AnswerTwice)),
        ("forget-group", Break::Engine(engine::Sabotage::ForgetGroup)),
        ("answer-taken", Break::Engine(engine::Sabotage::AnswerTaken)),
        ("lose-blocked", Break::Accelerator(accelerator::Sabotage::LoseBlocked)),
        ("ignore-invalid-answer", Break::Accelerator(accelerator::Sabotage::IgnoreInvalidAnswer)),
        ("block-the-queue", Break::Accelerator(accelerator::Sabotage::BlockTheQueue)),
        ("ignore-injections", Break::IgnoreInjections),
        ("keep-dead-guests", Break::KeepDeadGuests),
        ("generous-quota", Break::GenerousQuota),
        ("shared-numbers", Break::SharedNumbers),
    ];

    static IGNORE_INJECTIONS: AtomicBool = AtomicBool::new(false);
    static KEEP_DEAD_GUESTS: AtomicBool = AtomicBool::new(false);
    static GENEROUS_QUOTA: AtomicBool = AtomicBool::new(false);
    static SHARED_NUMBERS: AtomicBool = AtomicBool::new(false);

    /// Breaks this process's servers in the named way and no other, or (`None`) in none.
    ///
    /// # Errors
    /// The names that there are, if `name` is none of them.
    pub(in crate::server) fn apply(name: Option<&str>) -> Result<(), Vec<&'static str>> {
        let chosen = match name {
            None => None,
            Some(name) => match ALL.iter().find(|(known, _)| *known == name) {
                Some((_, chosen)) => Some(chosen),
                None => return Err(ALL.iter().map(|(known, _)| *known).collect()),
            },
        };
        let (mut engine, mut accelerator) = (None, None);
        let (mut ignore, mut keep, mut generous, mut shared) = (false, false, false, false);
        match chosen {
            Some(Break::Engine(sabotage)) => engine = Some(*sabotage),
            Some(Break::Accelerator(sabotage)) => accelerator = Some(*sabotage),
            Some(Break::IgnoreInjections) => ignore = true,
            Some(Break::KeepDeadGuests) => keep = true,
            Some(Break::GenerousQuota) => generous = true,
            Some(Break::SharedNumbers) => shared = true,
            None => {}
        }
        engine::set(engine);
        accelerator::set(accelerator);
        IGNORE_INJECTIONS.store(ignore, Ordering::SeqCst);
        KEEP_DEAD_GUESTS.store(keep, Ordering::SeqCst);
        GENEROUS_QUOTA.store(generous, Ordering::SeqCst);
        SHARED_NUMBERS.store(shared, Ordering::SeqCst);
        Ok(())
    }

    /// Whether what is to go wrong is told to nobody.
    pub(in crate::server) fn ignores_injections() -> bool {
        IGNORE_INJECTIONS.load(Ordering::SeqCst)
    }

    /// Whether the memory of dead guests is kept.
    pub(in crate::server) fn keeps_dead_guests() -> bool {
        KEEP_DEAD_GUESTS.load(Ordering::SeqCst)
    }

    /// Whether a guest can have one PASID more than its quota.
    pub(in crate::server) fn has_generous_quota() -> bool {
        GENEROUS_QUOTA.load(Ordering::SeqCst)
    }

    /// Whether guests that are to have numbers of their own share the host's.
    pub(in crate::server) fn has_shared_numbers() -> bool {
        SHARED_NUMBERS.load(Ordering::SeqCst)
    }
}

#[cfg(not(feature = "sabotage"))]
mod switch {
    /// No sabotage is known to this build.
    pub(in crate::server) fn apply(name: Option<&str>) -> Result<(), Vec<&'static str>> {
        name.map_or(Ok(()), |_| Err(Vec::new()))
    }

    /// Whether what is to go wrong is told to nobody.
    pub(in crate::server) const fn ignores_injections() -> bool {
        false
    }

    /// Whether the memory of dead guests is kept.
    pub(in crate::server) const fn keeps_dead_guests() -> bool {
        false
    }

    /// Whether a guest can have one PASID more than its quota.
    pub(in crate::server) const fn has_generous_quota() -> bool {
        false
    }

    /// Whether guests that are to have numbers of their own share the host's.
    pub(in crate::server) const fn has_shared_numbers() -> bool {
        false
    }
}

pub(super) use switch::{
    apply, has_generous_quota, has_shared_numbers, ignores_injections, keeps_dead_guests,
};
