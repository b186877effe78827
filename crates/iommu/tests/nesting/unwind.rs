//! A change over several domains of several devices that fails at the k-th call: every domain has
//! what it had, or, if that cannot be restored, every device is blocked.

use iommu::nesting::{
    replace_pasid_table, set_pasid_table, unset_pasid_table, Configuration, Domain, NestingError,
    PasidTableConfig, TableMode,
};
use iommu::Ticket;
use mem::Gpa;

use super::mock::{Mock, FAILED};
use super::{domain, host, smmu_config, BASE, FOUR, ONE, SMMUV3, THREE, TWO};

use TableMode::{Abort, Bypass, Translate};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wanted {
    Set(TableMode),
    Replace,
    Unset,
}

const WANTED: [Wanted; 5] = [
    Wanted::Set(Translate),
    Wanted::Set(Bypass),
    Wanted::Set(Abort),
    Wanted::Replace,
    Wanted::Unset,
];

const BEFORE: [Option<TableMode>; 4] = [None, Some(Translate), Some(Bypass), Some(Abort)];

/// Two domains of two devices, and what each had before.
fn pairs() -> impl Iterator<Item = [Option<TableMode>; 2]> {
    BEFORE.into_iter().flat_map(|one| BEFORE.map(|two| [one, two]))
}

fn make(before: [Option<TableMode>; 2]) -> (Mock, Vec<Domain<Mock>>) {
    let mock = host(SMMUV3);
    let devices = [[ONE, TWO], [THREE, FOUR]];
    let mut domains: Vec<_> = devices.iter().map(|devices| domain(&mock, devices)).collect();
    for (domain, mode) in domains.iter_mut().zip(before) {
        if let Some(mode) = mode {
            let _ = domain.attach_pasid_table(&smmu_config(mode)).unwrap();
        }
    }
    mock.fail([]);
    (mock, domains)
}

fn call(domains: &mut [Domain<Mock>], wanted: Wanted) -> Result<Option<Ticket>, NestingError> {
    let config = |mode| PasidTableConfig { base: Gpa(4 * BASE), ..smmu_config(mode) };
    match wanted {
        Wanted::Set(mode) => set_pasid_table(domains, &config(mode)),
        Wanted::Replace => replace_pasid_table(domains, &config(Translate)),
        Wanted::Unset => unset_pasid_table(domains),
    }
}

fn configurations(domains: &[Domain<Mock>]) -> Vec<Configuration> {
    domains.iter().map(Domain::configuration).collect()
}

/// Whether one of the domains refuses by itself.
fn is_refused(before: [Option<TableMode>; 2], wanted: Wanted) -> bool {
    wanted == Wanted::Set(Translate) && before.contains(&Some(Translate))
}

/// The domains can be used on, and end without a rest.
fn finish(mock: &Mock, mut domains: Vec<Domain<Mock>>) {
    mock.fail([]);
    let _ = unset_pasid_table(&mut domains).unwrap();
    let _ = set_pasid_table(&mut domains, &smmu_config(Translate)).unwrap();
    assert_eq!(mock.attached().len(), 4);
    for domain in &mut domains {
        let _ = domain.close().unwrap();
    }
    assert_eq!(mock.objects(), 0);
}

#[test]
fn nothing_is_touched_if_one_domain_refuses() {
    for before in pairs().filter(|before| is_refused(*before, Wanted::Set(Translate))) {
        let (mock, mut domains) = make(before);
        let was = (mock.snapshot(), configurations(&domains));
        let result = call(&mut domains, Wanted::Set(Translate));
        assert_eq!(result, Err(NestingError::Translating));
        assert_eq!(mock.steps(), 0);
        assert_eq!((mock.snapshot(), configurations(&domains)), was);
    }
}

#[test]
fn a_failure_at_any_call_restores_what_each_domain_had() {
    let mut failures = 0;
    for (before, wanted) in pairs().flat_map(|before| WANTED.map(|wanted| (before, wanted))) {
        if is_refused(before, wanted) {
            continue;
        }
        for k in 0.. {
            let (mock, mut domains) = make(before);
            let was = (mock.snapshot(), configurations(&domains));
            mock.fail([k]);
            let result = call(&mut domains, wanted);
            if mock.steps() <= k {
                assert!(result.is_ok());
                finish(&mock, domains);
                break;
            }
            failures += 1;
            assert_eq!(result, Err(NestingError::Object(FAILED)), "{before:?}, {wanted:?}, {k}");
            let is = (mock.snapshot(), configurations(&domains));
            assert_eq!(is, was, "{before:?}, {wanted:?}, call {k}");
            finish(&mock, domains);
        }
    }
    assert!(failures > 200, "{failures}");
}

/// Checks that a failed call left one of the states that it may leave; which.
fn check(mock: &Mock, domains: &[Domain<Mock>], error: NestingError, was: &Was) -> &'static str {
    let blocked = configurations(domains).iter().all(|is| *is == Configuration::Abort);
    match error {
        NestingError::Object(FAILED) => {
            assert_eq!(&(mock.snapshot(), configurations(domains)), was);
            "restored"
        }
        NestingError::Blocked(FAILED) => {
            assert!(mock.attached().is_empty() && blocked);
            assert_eq!(mock.objects(), 2 * 2 + 4, "no nested table is left");
            "blocked"
        }
        NestingError::Stuck { device, cause: FAILED } => {
            assert!(blocked && mock.attached().contains_key(&(device, None)));
            "stuck"
        }
        other => panic!("{other:?}"),
    }
}

type Was = (
    (std::collections::BTreeMap<super::mock::Place, super::mock::By>, usize, Grants),
    Vec<Configuration>,
);
type Grants = std::collections::BTreeSet<iommu::GuestPasid>;

#[test]
fn a_failure_of_the_restoring_blocks_all_and_never_mixes() {
    let mut outcomes = std::collections::BTreeMap::<_, usize>::new();
    for (before, wanted) in pairs().flat_map(|before| WANTED.map(|wanted| (before, wanted))) {
        if is_refused(before, wanted) {
            continue;
        }
        for k in 0..8 {
            // The call fails, and some of those that are made because of it.
            let later: [&[usize]; 6] =
                [&[1], &[2], &[3], &[1, 2], &[2, 3], &[1, 2, 3, 4, 5, 6, 7, 8]];
            for later in later {
                let (mock, mut domains) = make(before);
                let was = (mock.snapshot(), configurations(&domains));
                mock.fail([k].into_iter().chain(later.iter().map(|more| k + more)));
                let Err(error) = call(&mut domains, wanted) else { continue };
                *outcomes.entry(check(&mock, &domains, error, &was)).or_default() += 1;
                finish(&mock, domains);
            }
        }
    }
    assert!(["restored", "blocked", "stuck"].iter().all(|outcome| outcomes[outcome] > 50));
}

#[test]
fn a_device_that_is_gone_does_not_keep_the_others_from_being_restored() {
    let (mock, mut domains) = make([Some(Bypass), Some(Bypass)]);
    mock.unplug(ONE);
    let was = mock.attached();
    assert!(call(&mut domains, Wanted::Set(Translate)).is_err());
    assert_eq!(mock.attached(), was);
    // After it has left its domain, all is well.
    let _ = domains[0].remove_device(ONE).unwrap();
    assert!(call(&mut domains, Wanted::Set(Translate)).is_ok());
}
