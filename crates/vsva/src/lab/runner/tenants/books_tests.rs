use super::*;

fn record(live: &[u32], hosts: &[u32]) -> PasidRecord {
    PasidRecord { live: live.to_vec(), hosts: hosts.to_vec(), ..PasidRecord::default() }
}

fn counters(values: [u64; 4]) -> BTreeMap<&'static str, u64> {
    let names =
        [counts::PASIDS_ALLOCATED, counts::PASIDS_FREED, "pasids_reclaimed", "pasids_reclaim_us"];
    names.into_iter().zip(values).collect()
}

#[test]
fn a_host_number_is_one_guests_only() {
    let same = |numbers: &[u32]| record(numbers, numbers);
    let identity = |one: PasidRecord, other: PasidRecord| {
        compare_numbers(Numbering::Identity, &one, &other).ok
    };
    assert!(identity(same(&[1, 3]), same(&[2, 4])));
    assert!(!identity(same(&[1, 3]), same(&[3, 4])));
    assert!(!identity(record(&[1, 3], &[1, 2]), same(&[4])));
    assert!(!identity(same(&[]), same(&[])));

    let private =
        |one: PasidRecord, other: PasidRecord| compare_numbers(Numbering::Private, &one, &other).ok;
    assert!(private(record(&[1, 2], &[1, 3]), record(&[1], &[2])));
    assert!(!private(same(&[1, 3]), same(&[2, 4])), "numbers of nobody's own");
    assert!(!private(record(&[1, 2], &[1, 3]), record(&[1], &[3])), "one number of the host twice");
}

#[test]
fn bound_at_the_same_time_means_different_numbers_of_the_hosts() {
    let bound = |bound: &[u32], hosts: &[u32]| PasidRecord {
        bound: bound.to_vec(),
        ..record(bound, hosts)
    };
    let check = compare_bound(&bound(&[1, 2], &[7, 9]), &bound(&[1], &[8]));
    assert!(check.ok);
    assert_eq!(
        check.detail,
        "2 and 1 bound, 1 of them the same; on the host 0x7, 0x9 and 0x8, 0 of them twice"
    );
    assert!(!compare_bound(&bound(&[1], &[7]), &bound(&[1], &[7])).ok, "they meet");
    assert!(!compare_bound(&bound(&[1], &[7]), &bound(&[2], &[8])).ok, "nothing shown");
    assert!(!compare_bound(&record(&[1], &[7]), &record(&[1], &[8])).ok, "granted, and not bound");
}

#[test]
fn strangers_are_what_only_the_other_has() {
    assert_eq!(strangers(&record(&[1, 4], &[1, 4]), &record(&[2, 3], &[2, 3])), [2, 3]);
    // Numbers of its own: the other's host numbers are no way around them.
    assert_eq!(strangers(&record(&[1, 2], &[1, 3]), &record(&[1, 3], &[2, 4])), [3, 4]);
}

#[test]
fn what_is_taken_back_takes_its_quota_along() {
    let space = |reserved| PasidSpace { reserved, ..PasidSpace::default() };
    let taken =
        |taken, now| taken_back(&counters([9, 9 - taken, taken, 10]), 48, space(112), now).ok;
    assert!(taken(5, space(64)));
    assert!(!taken(5, space(112)), "its quota stays");
    assert!(!taken(0, space(64)), "it had nothing");
}

#[test]
fn books_balance_to_the_number() {
    assert!(balance("it", &counters([7, 5, 2, 0])).ok);
    assert!(!balance("it", &counters([7, 5, 1, 0])).ok);
    assert!(!balance("it", &counters([7, 5, 3, 0])).ok);
    assert!(!balance("it", &BTreeMap::new()).ok);

    let empty = PasidSpace { capacity: 10, ..PasidSpace::default() };
    assert!(nothing_left(empty).ok);
    for kept in [
        PasidSpace { reserved: 1, ..empty },
        PasidSpace { live: 1, ..empty },
        PasidSpace { parked: 1, ..empty },
        PasidSpace { guests: 1, ..empty },
    ] {
        assert!(!nothing_left(kept).ok, "{kept:?}");
    }
    assert!(by_bytes(EncodedCalls { calls: 3, open: 0 }).ok);
    assert!(!by_bytes(EncodedCalls { calls: 3, open: 1 }).ok);
    assert!(!by_bytes(EncodedCalls::default()).ok);
}
