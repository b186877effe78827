//! `Bindings`: the calls that it makes, what it undoes, and under random
//! wishes the map that it should be.

use std::collections::BTreeMap;

use iommu::nesting::{Bindings, Change, Entry, Scope, IDLE_PASIDS};
use iommu::{
    GuestPasid, Hardware, HwptFlags, HwptId, HwptParent, HwptRequest, Numbering, ObjectError,
    StageOneInvalidation, StageOneTable, Vm, VmConfig, VtdStageOne, VtdStageOneFlags,
};
use mem::Gpa;
use pci::RequesterId;
use proptest::prelude::*;

use super::common::CAPS;
use super::mock::{By, Call, Mock, FAILED};
use super::{grant, guest, only, ONE, STRANGER, TWO};

fn table(root: u64) -> VtdStageOne {
    VtdStageOne { flags: VtdStageOneFlags::empty(), root: Gpa(root), address_width: 48 }
}

fn nested(table: VtdStageOne) -> By {
    By::Nested(StageOneTable::Vtd(table))
}

fn mock() -> (Mock, HwptId) {
    let vtd = Hardware::Vtd(CAPS);
    let mock = Mock::new(&[(ONE, vtd), (TWO, vtd)]);
    let parent = mock.parent(ONE);
    mock.calls();
    (mock, parent)
}

/// With PASIDs 1 to 9 granted.
fn granted() -> (Mock, Bindings<Mock>) {
    let (mock, parent) = mock();
    grant(&mock);
    (mock.clone(), Bindings::new(mock, parent))
}

fn numbered() -> (Mock, Bindings<Mock>) {
    let (mock, parent) = mock();
    (mock.clone(), Bindings::numbered_by_guest(mock, parent))
}

#[test]
fn the_least_calls_lead_from_what_is_bound_to_what_is_wanted() {
    let (mock, mut bindings) = granted();
    let place = Some(guest(5));

    assert_eq!(bindings.set(ONE, place, None), Ok(Change::Nothing));
    assert_eq!(mock.calls(), []);

    assert_eq!(bindings.set(ONE, place, Some(table(0x1000))), Ok(Change::Bound));
    let [Call::AllocHwpt(request), Call::Attach(ONE, at, first)] = mock.calls()[..] else {
        panic!()
    };
    assert_eq!(at, place);
    let parent = request.parent;
    assert!(matches!(parent, HwptParent::Hwpt(_)));
    let data = Some(StageOneTable::Vtd(table(0x1000)));
    let flags = HwptFlags::PASID;
    assert_eq!(request, HwptRequest { device: ONE, parent, flags, data, fault: None });

    assert_eq!(bindings.set(ONE, place, Some(table(0x1000))), Ok(Change::Nothing));
    assert_eq!(mock.calls(), []);

    let Ok(Change::Replaced(ticket)) = bindings.set(ONE, place, Some(table(0x2000))) else {
        panic!()
    };
    assert!(mock.is_complete(ticket));
    let [Call::AllocHwpt(_), Call::Replace(ONE, _, second), Call::Destroy(gone)] = mock.calls()[..]
    else {
        panic!()
    };
    assert_eq!(gone, first.into());

    let Ok(Change::Unbound(ticket)) = bindings.set(ONE, place, None) else { panic!() };
    assert!(mock.is_complete(ticket));
    assert_eq!(mock.calls(), [Call::Detach(ONE, place), Call::Destroy(second.into())]);
    assert!(bindings.is_empty());
    assert!(mock.granted().contains(&guest(5)), "unbind does not free");
}

#[test]
fn places_with_the_same_first_stage_share_a_nested_table() {
    let (mock, mut bindings) = granted();
    let places = [(ONE, Some(guest(1))), (TWO, Some(guest(1))), (TWO, Some(guest(2))), (ONE, None)];
    for (device, pasid) in places {
        assert_eq!(bindings.set(device, pasid, Some(table(0x1000))), Ok(Change::Bound));
    }
    assert_eq!(mock.objects(), 2, "the parent and one nested table");
    let flags = VtdStageOneFlags::SRE;
    let _ = bindings.set(ONE, None, Some(VtdStageOne { flags, ..table(0x1000) })).unwrap();
    let wide = VtdStageOne { address_width: 57, ..table(0x1000) };
    let _ = bindings.set(TWO, Some(guest(2)), Some(wide)).unwrap();
    assert_eq!(mock.objects(), 4);

    let all = &[StageOneInvalidation::All][..];
    mock.calls();
    let _ = bindings.invalidate(Scope::Pasid(guest(1)), all).unwrap();
    assert_eq!(mock.calls().len(), 1, "once for both devices");
    let _ = bindings.invalidate(Scope::Device(TWO), all).unwrap();
    assert_eq!(mock.calls().len(), 2);
    let _ = bindings.invalidate(Scope::All, all).unwrap();
    assert_eq!(mock.calls().len(), 3);
    let _ = bindings.invalidate(Scope::Entry(ONE, None), all).unwrap();
    assert_eq!(mock.calls().len(), 1);

    assert!(bindings.clear(Scope::All).unwrap().is_some());
    assert_eq!(mock.objects(), 1);
    assert!(mock.attached().is_empty());
}

#[test]
fn an_invalidation_of_what_is_not_bound_is_an_error() {
    let (mock, mut bindings) = granted();
    let _ = bindings.set(ONE, Some(guest(1)), Some(table(0x1000))).unwrap();
    let all = &[StageOneInvalidation::All][..];
    for scope in [
        Scope::Device(TWO),
        Scope::Pasid(guest(2)),
        Scope::Entry(ONE, None),
        Scope::Entry(TWO, Some(guest(1))),
    ] {
        assert_eq!(bindings.invalidate(scope, all), Err(ObjectError::NotAttached), "{scope:?}");
    }
    mock.fail([0]);
    assert_eq!(bindings.invalidate(Scope::All, all), Err(FAILED));
}

#[test]
fn pass_through_is_the_parent_and_has_nothing_to_invalidate() {
    let (mock, mut bindings) = granted();
    let _ = bindings.set_entry(ONE, None, Some(Entry::PassThrough)).unwrap();
    assert_eq!(mock.attached(), BTreeMap::from([((ONE, None), By::StageTwo)]));
    assert_eq!(bindings.bound(ONE, None), None);
    assert_eq!(bindings.entry(ONE, None), Some(Entry::PassThrough));
    let ticket = bindings.invalidate(Scope::All, &[StageOneInvalidation::All]).unwrap();
    assert!(mock.is_complete(ticket));

    let change = bindings.set(ONE, None, Some(table(0x1000))).unwrap();
    assert!(matches!(change, Change::Replaced(_)));
    let change = bindings.set_entry(ONE, None, Some(Entry::PassThrough)).unwrap();
    assert!(matches!(change, Change::Replaced(_)));
    assert_eq!(mock.objects(), 1);
}

/// A change, from a state with something bound, and whether the guest numbers its PASIDs.
type Case = (Option<u64>, Option<u64>);
const CASES: [Case; 3] = [(None, Some(0x1000)), (Some(0x1000), Some(0x2000)), (Some(0x1000), None)];

#[test]
fn whichever_call_fails_what_was_bound_stays() {
    for make in [granted, numbered] {
        for (before, after) in CASES {
            for k in 0.. {
                let (mock, mut bindings) = make();
                let place = Some(guest(3));
                let _ = bindings.set(TWO, Some(guest(4)), Some(table(0x9000))).unwrap();
                let _ = bindings.set(ONE, place, before.map(table)).unwrap();
                let was = (mock.snapshot(), bindings.iter().collect::<Vec<_>>());
                mock.fail([k]);
                let result = bindings.set(ONE, place, after.map(table));
                if mock.steps() <= k {
                    assert!(result.is_ok() && k > 0);
                    break;
                }
                let error = result.unwrap_err();
                assert!(matches!(error, FAILED | ObjectError::NoMemory), "{error:?}");
                assert_eq!((mock.snapshot(), bindings.iter().collect()), was, "call {k}");
                // And it is as if it had not been tried.
                mock.fail([]);
                assert!(bindings.set(ONE, place, after.map(table)).is_ok());
                assert_eq!(bindings.bound(ONE, place), after.map(table));
            }
        }
    }
}

#[test]
fn a_pasid_that_is_not_granted_is_not_bound() {
    let (mock, mut bindings) = granted();
    let error = bindings.set(ONE, Some(guest(77)), Some(table(0x1000)));
    assert_eq!(error, Err(ObjectError::NotGranted(guest(77))));
    assert_eq!(mock.objects(), 1);
}

#[test]
fn a_guest_that_numbers_its_pasids_has_each_granted_while_it_is_bound() {
    let (mock, mut bindings) = numbered();
    for device in [ONE, TWO] {
        let _ = bindings.set(device, Some(guest(500)), Some(table(0x1000))).unwrap();
    }
    let asked = mock.calls().into_iter().filter(|call| matches!(call, Call::AllocPasid(_)));
    assert_eq!(asked.collect::<Vec<_>>(), [Call::AllocPasid(only(500))], "for both");
    let _ = bindings.set(ONE, Some(guest(500)), None).unwrap();
    assert!(mock.granted().contains(&guest(500)));
    assert!(bindings.clear_device(TWO).unwrap().is_some());
    assert!(mock.granted().is_empty());
}

#[test]
fn the_pasids_last_unbound_are_kept_and_no_more() {
    let (mock, mut bindings) = numbered();
    let many = IDLE_PASIDS as u32 + 4;
    for number in 1..=many {
        let _ = bindings.set(ONE, Some(guest(number)), Some(table(0x1000))).unwrap();
        let _ = bindings.set(ONE, Some(guest(number)), None).unwrap();
    }
    assert_eq!(mock.granted(), (5..=many).map(guest).collect());
    mock.calls();
    // The same number at once: without asking.
    let _ = bindings.set(ONE, Some(guest(many)), Some(table(0x1000))).unwrap();
    assert!(!mock.calls().iter().any(|call| matches!(call, Call::AllocPasid(_))));
    assert_eq!(bindings.clear(Scope::Device(TWO)), Ok(None));
    assert_eq!(mock.granted(), [guest(many)].into());
}

#[test]
fn idle_pasids_make_room_in_the_quota() {
    let vtd = Hardware::Vtd(CAPS);
    let config = VmConfig { quota: 2, numbering: Numbering::Private, ..VmConfig::named("two") };
    let mock = Mock::with(config, &[(ONE, vtd)]);
    let parent = mock.parent(ONE);
    let mut bindings = Bindings::numbered_by_guest(mock.clone(), parent);
    let mut set = |number, want| bindings.set(ONE, Some(guest(number)), want);
    assert!(set(1, Some(table(0x1000))).is_ok());
    assert!(set(2, Some(table(0x1000))).is_ok());
    assert_eq!(set(3, Some(table(0x1000))), Err(ObjectError::TooMany { limit: 2 }));
    assert!(set(1, None).is_ok());
    assert!(set(3, Some(table(0x1000))).is_ok());
    assert_eq!(mock.granted(), [guest(2), guest(3)].into());
}

#[test]
fn what_the_host_undid_is_noticed() {
    let (mock, mut bindings) = granted();
    let set = |bindings: &mut Bindings<Mock>, number, root: Option<u64>| {
        bindings.set(ONE, Some(guest(number)), root.map(table))
    };
    for number in [1, 2] {
        let _ = set(&mut bindings, number, Some(0x1000)).unwrap();
        mock.free_pasid(guest(number)).unwrap();
    }
    assert!(matches!(set(&mut bindings, 1, None), Ok(Change::Unbound(_))));
    let not_granted = Err(ObjectError::NotGranted(guest(2)));
    assert_eq!(set(&mut bindings, 2, Some(0x2000)), not_granted);
    mock.alloc_pasid(only(2)).unwrap();
    assert_eq!(set(&mut bindings, 2, Some(0x2000)), Ok(Change::Bound));
    assert_eq!(mock.attached(), BTreeMap::from([((ONE, Some(guest(2))), nested(table(0x2000)))]));

    mock.unplug(ONE);
    assert!(bindings.clear_device(ONE).unwrap().is_some());
    assert_eq!(mock.objects(), 1);
}

#[test]
fn a_table_that_is_used_a_while_longer_ends_later() {
    let (mock, mut bindings) = granted();
    let _ = bindings.set(ONE, None, Some(table(0x1000))).unwrap();
    mock.linger();
    let _ = bindings.set(ONE, None, Some(table(0x2000))).unwrap();
    assert_eq!(mock.objects(), 3);
    bindings.reap();
    assert_eq!(mock.objects(), 3);
    mock.settle();
    bindings.reap();
    assert_eq!(mock.objects(), 2);
}

#[test]
fn a_device_is_cleared_pasids_first_and_as_far_as_the_host_lets() {
    let (mock, mut bindings) = granted();
    for pasid in [None, Some(guest(1)), Some(guest(2))] {
        let _ = bindings.set(ONE, pasid, Some(table(0x1000))).unwrap();
    }
    mock.calls();
    mock.fail([1]);
    assert_eq!(bindings.clear_device(ONE), Err(FAILED));
    let detached = mock.calls().into_iter().filter(|call| matches!(call, Call::Detach(..)));
    let expected = [Some(guest(2)), Some(guest(1)), None].map(|pasid| Call::Detach(ONE, pasid));
    assert_eq!(detached.collect::<Vec<_>>(), expected);
    assert_eq!(bindings.iter().map(|(_, pasid, _)| pasid).collect::<Vec<_>>(), [Some(guest(1))]);
    mock.fail([]);
    assert!(bindings.clear_device(ONE).unwrap().is_some());
    assert_eq!(mock.objects(), 1);
}

#[derive(Clone, Debug)]
enum Step {
    Set { device: usize, pasid: Option<u32>, want: Option<u64>, fail: Option<usize> },
    Clear { device: usize },
    Linger(bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pasid = proptest::option::weighted(0.8, 1u32..12);
    let want = proptest::option::weighted(0.7, (1u64..5).prop_map(|page| page << 12));
    let fail = proptest::option::weighted(0.3, 0usize..4);
    let set = (0usize..3, pasid, want, fail).prop_map(|(device, pasid, want, fail)| Step::Set {
        device,
        pasid,
        want,
        fail,
    });
    let step = prop_oneof![
        12 => set,
        1 => (0usize..2).prop_map(|device| Step::Clear { device }),
        1 => any::<bool>().prop_map(Step::Linger),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn it_is_the_map_that_it_should_be(own in any::<bool>(), steps in steps()) {
        let (mock, mut bindings) = if own { numbered() } else { granted() };
        let mut model: BTreeMap<(RequesterId, Option<GuestPasid>), u64> = BTreeMap::new();
        let devices = [ONE, TWO, STRANGER];
        for step in steps {
            match step {
                Step::Set { device, pasid, want, fail } => {
                    let place = (devices[device], pasid.map(guest));
                    let (had, before) = (model.get(&place).copied(), mock.attached());
                    mock.fail(fail);
                    match bindings.set(place.0, place.1, want.map(table)) {
                        Ok(change) => {
                            let expected = match (had, want) {
                                (had, want) if had == want => matches!(change, Change::Nothing),
                                (None, _) => matches!(change, Change::Bound),
                                (_, Some(_)) => matches!(change, Change::Replaced(_)),
                                (_, None) => matches!(change, Change::Unbound(_)),
                            };
                            prop_assert!(expected, "{:?} to {:?}: {:?}", had, want, change);
                            match want {
                                Some(root) => drop(model.insert(place, root)),
                                None => drop(model.remove(&place)),
                            }
                        }
                        Err(_) => {
                            prop_assert!(fail.is_some() || device == 2 || pasid >= Some(10));
                            prop_assert_eq!(mock.attached(), before);
                        }
                    }
                }
                Step::Clear { device } => {
                    mock.fail([]);
                    let any = model.keys().any(|place| place.0 == devices[device]);
                    prop_assert_eq!(bindings.clear_device(devices[device]).unwrap().is_some(), any);
                    model.retain(|place, _| place.0 != devices[device]);
                }
                Step::Linger(on) => if on { mock.linger() } else { mock.settle() },
            }
            let expected = model.iter().map(|(place, root)| (*place, nested(table(*root))));
            prop_assert_eq!(mock.attached(), expected.collect());
            let bound = bindings.iter().map(|(device, pasid, entry)| ((device, pasid), entry));
            let expected = model.iter().map(|(at, root)| (*at, Entry::StageOne(table(*root))));
            prop_assert!(bound.eq(expected));
            if own {
                prop_assert!(mock.granted().len() <= IDLE_PASIDS + model.len());
            }
        }
        mock.fail([]);
        mock.settle();
        let _ = bindings.clear(Scope::All).unwrap();
        bindings.reap();
        prop_assert_eq!(mock.objects(), 1, "the parent alone");
        prop_assert_eq!(mock.granted().len(), if own { 0 } else { 9 });
    }
}
