//! What guests were granted, against each other and against what came back.

use guest_protocol::MAX_HELD;

use super::super::super::server::{EncodedCalls, PasidSpace};
use super::*;

/// How many numbers are in both ascending lists.
fn common(one: &[u32], other: &[u32]) -> usize {
    one.iter().filter(|number| other.binary_search(number).is_ok()).count()
}

/// The PASIDs of two guests that are bound at the same time, in tables of the host's, by numbers of the guests' own.
pub(super) fn compare_bound(first: &PasidRecord, second: &PasidRecord) -> Check {
    let same = common(&first.bound, &second.bound);
    let hosts = common(&first.hosts, &second.hosts);
    let (one, other) = (first.bound.len(), second.bound.len());
    let (at, there) = (hex(&first.hosts), hex(&second.hosts));
    let detail = format!(
        "{one} and {other} bound, {same} of them the same; on the host {at} and {there}, {hosts} of them twice"
    );
    let check = "both guests' same PASIDs have different numbers on the host".to_owned();
    Check { check, ok: same > 0 && hosts == 0, detail }
}

fn hex(numbers: &[u32]) -> String {
    numbers.iter().map(|number| format!("{number:#x}")).collect::<Vec<_>>().join(", ")
}

/// The numbers of two guests that stand still.
pub(super) fn compare_numbers(
    numbering: Numbering,
    first: &PasidRecord,
    second: &PasidRecord,
) -> Check {
    let shared = common(&first.live, &second.live);
    let shared_hosts = common(&first.hosts, &second.hosts);
    let all = first.hosts.len() + second.hosts.len();
    let same_as_host = [first, second].iter().all(|record| record.live == record.hosts);
    let (check, ok) = match numbering {
        Numbering::Identity => {
            ("no PASID is granted to both 6.1 guests", shared == 0 && same_as_host)
        }
        Numbering::Private => {
            ("both 6.1 guests use the same PASIDs at the same time", shared > 0 && !same_as_host)
        }
    };
    let ok = ok && shared_hosts == 0 && all > 0;
    let (one, other) = (first.live.len(), second.live.len());
    let detail = format!(
        "{one} and {other}, {shared} of them the same; on the host {all}, {shared_hosts} of them twice"
    );
    Check { check: check.to_owned(), ok, detail }
}

/// Numbers of another guest, by its numbering and by the host's, that are none of a guest's own. With private numbers
/// there may be none: the host may call the other's by what this guest calls its own.
pub(super) fn strangers(own: &PasidRecord, theirs: &PasidRecord) -> Vec<u32> {
    let mut all = [&*theirs.live, &*theirs.hosts].concat();
    all.sort_unstable();
    all.dedup();
    all.retain(|number| own.live.binary_search(number).is_err());
    all.truncate(MAX_HELD);
    all
}

/// What a killed guest had is its no more, nor is its quota kept for it.
pub(super) fn taken_back(
    counters: &BTreeMap<&'static str, u64>,
    quota: u32,
    before: PasidSpace,
    now: PasidSpace,
) -> Check {
    let count = |name: &str| counters.get(name).copied().unwrap_or(0);
    let (taken, took) = (count("pasids_reclaimed"), count("pasids_reclaim_us"));
    let ok = taken > 0 && now.reserved.checked_add(quota) == Some(before.reserved);
    let detail = format!(
        "{taken} parked and out of all use in {took} µs; {} PASIDs reserved, before {}",
        now.reserved, before.reserved
    );
    Check { check: "its PASIDs are drained, its quota is back".to_owned(), ok, detail }
}

/// Every PASID that a guest was granted came back, in one way or the other.
pub(super) fn balance(name: &str, counters: &BTreeMap<&'static str, u64>) -> Check {
    let count = |name: &str| counters.get(name).copied();
    let names = [counts::PASIDS_ALLOCATED, counts::PASIDS_FREED, "pasids_reclaimed"];
    let check = format!("{name}: every PASID granted came back");
    let [Some(granted), Some(freed), Some(taken)] = names.map(count) else {
        return Check { check, ok: false, detail: "the server did not count".to_owned() };
    };
    let ok = freed.checked_add(taken) == Some(granted);
    let detail = format!("{granted} granted, {freed} freed, {taken} taken back");
    Check { check, ok, detail }
}

/// The host without guests.
pub(super) fn nothing_left(space: PasidSpace) -> Check {
    let PasidSpace { capacity, reserved, live, parked, guests } = space;
    let ok = [reserved, live, parked] == [0; 3] && guests == 0 && capacity > 0;
    let detail = format!(
        "{live} live, {parked} parked, {reserved} of {capacity} reserved, {guests} guests on record"
    );
    Check { check: "the host's books balance".to_owned(), ok, detail }
}

/// That nobody found a way around the bytes shows in nothing that is left behind.
pub(super) fn by_bytes(calls: EncodedCalls) -> Check {
    let EncodedCalls { calls, open } = calls;
    let detail = format!("{calls} calls, {open} containers left open");
    let check = "the host was called by encoded bytes".to_owned();
    Check { check, ok: calls > 0 && open == 0, detail }
}

#[cfg(test)]
#[path = "books_tests.rs"]
mod tests;
