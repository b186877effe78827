//! What a guest says that it holds, against what the host has on record.

use guest_protocol::MAX_HELD;

use super::server::{Check, PasidRecord};

/// The comparisons of one scenario.
#[derive(Debug, Default)]
pub(super) struct Comparisons {
    times: u32,
    most: usize,
    last: PasidRecord,
}

impl Comparisons {
    /// Compares one list of numbers with the host's record. `refused`: the guest was refused another, so that it must
    /// have its whole `quota`. Says what differs, if something does.
    pub(super) fn compare(
        &mut self,
        held: &[u32],
        refused: bool,
        quota: u32,
        record: PasidRecord,
    ) -> Result<(), String> {
        self.times += 1;
        self.most = self.most.max(held.len());
        self.last = record;
        if held.len() > MAX_HELD || held.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(format!("the guest's {} numbers are no ascending list", held.len()));
        }
        let PasidRecord { live, parked, hosts: _, bound: _ } = &self.last;
        if held != live {
            let lacking = missing(held, live);
            let unknown = missing(live, held);
            return Err(format!(
                "the guest holds {}, the host has {} on record: {lacking} only there, {unknown} only in the guest",
                held.len(),
                live.len(),
            ));
        }
        let out = live.len() + parked.len();
        if refused && out != quota as usize {
            return Err(format!("refused at {out} numbers, and the quota is {quota}"));
        }
        if out > quota as usize {
            return Err(format!("{out} numbers out, and the quota is {quota}"));
        }
        Ok(())
    }

    /// All comparisons in one check, if there were any; those that failed have said so themselves.
    pub(super) fn check(&self) -> Option<Check> {
        let Self { times, most, last } = self;
        let (live, parked) = (last.live.len(), last.parked.len());
        let detail = format!(
            "{times} times, at most {most} numbers; at the end {live} live, {parked} parked"
        );
        let ok = live == 0 && parked == 0;
        let check = "host's books balance with the guest's".to_owned();
        (*times > 0).then_some(Check { check, ok, detail })
    }
}

/// The first of those of `all` that are not in `some`, both ascending, and how many there are.
fn missing(some: &[u32], all: &[u32]) -> String {
    let mut missing = all.iter().filter(|number| some.binary_search(number).is_err());
    match (missing.next(), missing.count()) {
        (None, _) => "none".to_owned(),
        (Some(first), 0) => format!("{first}"),
        (Some(first), more) => format!("{first} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(live: &[u32], parked: &[u32]) -> PasidRecord {
        PasidRecord { live: live.to_vec(), parked: parked.to_vec(), ..PasidRecord::default() }
    }

    fn compare(held: &[u32], refused: bool, record: PasidRecord) -> Result<(), String> {
        Comparisons::default().compare(held, refused, 3, record)
    }

    #[test]
    fn the_same_numbers_within_the_quota_agree() {
        assert_eq!(compare(&[], false, record(&[], &[])), Ok(()));
        assert_eq!(compare(&[4, 9], false, record(&[4, 9], &[])), Ok(()));
        assert_eq!(compare(&[1, 2, 3], true, record(&[1, 2, 3], &[])), Ok(()));
        // A parked number counts against the quota.
        assert_eq!(compare(&[1, 2], true, record(&[1, 2], &[3])), Ok(()));
    }

    #[test]
    fn what_differs_is_named() {
        let differs = compare(&[1, 2, 7], false, record(&[2, 3, 4, 5], &[])).unwrap_err();
        assert!(differs.contains("3 and 2 more only there"), "{differs}");
        let unknown = compare(&[1, 7], false, record(&[1], &[])).unwrap_err();
        assert!(unknown.contains("none only there, 7 only in the guest"), "{unknown}");
        assert!(compare(&[2, 1], false, record(&[1, 2], &[])).is_err());
        assert!(compare(&[1, 1], false, record(&[1], &[])).is_err());
    }

    #[test]
    fn a_quota_is_neither_more_nor_less() {
        let early = compare(&[1, 2], true, record(&[1, 2], &[])).unwrap_err();
        assert_eq!(early, "refused at 2 numbers, and the quota is 3");
        assert!(compare(&[1, 2, 3, 4], false, record(&[1, 2, 3, 4], &[])).is_err());
    }

    #[test]
    fn the_sum_holds_only_if_nothing_is_left() {
        let mut comparisons = Comparisons::default();
        assert_eq!(comparisons.check(), None);
        comparisons.compare(&[1, 2], false, 3, record(&[1, 2], &[])).unwrap();
        assert!(!comparisons.check().unwrap().ok);
        comparisons.compare(&[], false, 3, record(&[], &[2])).unwrap();
        assert!(!comparisons.check().unwrap().ok);
        comparisons.compare(&[], false, 3, record(&[], &[])).unwrap();
        let check = comparisons.check().unwrap();
        assert!(check.ok);
        assert_eq!(check.detail, "3 times, at most 2 numbers; at the end 0 live, 0 parked");
    }
}
