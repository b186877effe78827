//! Servers broken on purpose, so that a scenario can show that it would notice.
//!
//! Only with the feature `sabotage`, which the tests switch on and no other build does.

/// Everything that can be broken, by name.
#[cfg(feature = "sabotage")]
const ALL: [(&str, Break); 6] = [
    ("corrupt-copy", || dsa::model::sabotage::set(dsa::model::sabotage::Sabotage::CorruptCopy)),
    ("wrong-pasid", || iommu::sabotage::set(Some(iommu::sabotage::Sabotage::WrongPasid))),
    ("leak-cache", || iommu::sabotage::set(Some(iommu::sabotage::Sabotage::LeakCache))),
    ("no-accessed-dirty", || {
        iommu::sabotage::set(Some(iommu::sabotage::Sabotage::NoAccessedDirty))
    }),
    ("skip-iotlb-invalidation", || {
        iommu::sabotage::set(Some(iommu::sabotage::Sabotage::SkipIotlbInvalidation))
    }),
    ("keep-dead-guests", || KEEP_DEAD_GUESTS.store(true, std::sync::atomic::Ordering::SeqCst)),
];

#[cfg(feature = "sabotage")]
type Break = fn();

#[cfg(feature = "sabotage")]
static KEEP_DEAD_GUESTS: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);

/// Breaks this process's servers in the named way, for good.
///
/// # Errors
/// The names that there are, if `name` is none of them; none at all in a build without sabotages.
#[cfg(feature = "sabotage")]
pub(super) fn apply(name: &str) -> Result<(), Vec<&'static str>> {
    match ALL.iter().find(|(known, _)| *known == name) {
        Some((_, break_it)) => {
            break_it();
            Ok(())
        }
        None => Err(ALL.iter().map(|(known, _)| *known).collect()),
    }
}

/// No sabotage is known to this build.
#[cfg(not(feature = "sabotage"))]
pub(super) fn apply(_name: &str) -> Result<(), Vec<&'static str>> {
    Err(Vec::new())
}

/// Whether the memory of dead guests is kept.
pub(super) fn keeps_dead_guests() -> bool {
    #[cfg(feature = "sabotage")]
    return KEEP_DEAD_GUESTS.load(std::sync::atomic::Ordering::SeqCst);
    #[cfg(not(feature = "sabotage"))]
    false
}
