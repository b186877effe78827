//! That deliberate defects are noticed.

use iommu::sabotage::{set, Sabotage};

use crate::common::scenarios::Verdict;

/// A defect, and the scenario that is there to notice it, by name.
pub(crate) type Case = (Sabotage, &'static str, fn() -> Verdict);

/// Each scenario holds without the defect, and not with it, in one of `tries`: a race takes its time to go wrong, on a
/// machine that is busy all the more. For the only test of a process, since a defect is on for the whole of it.
pub(crate) fn each_is_noticed(cases: &[Case], tries: u32) {
    for &(defect, name, scenario) in cases {
        set(None);
        assert_eq!(scenario(), Ok(()), "{name} without a defect");
        set(Some(defect));
        let noticed = (0..tries).any(|_| scenario().is_err());
        assert!(noticed, "{name} does not notice {defect:?}");
    }
    set(None);
}
