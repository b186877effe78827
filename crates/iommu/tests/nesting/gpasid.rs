//! `bind_gpasid`: the rows of its rules (§8.4, §8.5), and what a failure leaves.

use iommu::nesting::{
    Domain, GpasidBind, NestingError, PasidTableConfig, PasidTableFormat, PasidTableInfo,
    TableMode, TableModel,
};
use iommu::{Hardware, ObjectError, StageOneTable, TableCaps, Vm, VtdStageOneFlags};
use mem::Gpa;

use super::common::CAPS;
use super::mock::{By, Mock, FAILED};
use super::{domain, grant, guest, host, BASE, ONE, SMMUV3, THREE, TWO, VTD};

const BIND: GpasidBind = GpasidBind {
    root: Gpa(BASE),
    address_width: 48,
    flags: VtdStageOneFlags::empty(),
    guest: iommu::GuestPasid(iommu::Pasid::from_field(5)),
};

fn vtd(devices: &[pci::RequesterId]) -> (Mock, Domain<Mock>) {
    let mock = host(VTD);
    let domain = domain(&mock, devices);
    grant(&mock);
    mock.fail([]);
    (mock, domain)
}

#[test]
fn it_nests_one_pasid_of_one_device() {
    let (mock, mut domain) = vtd(&[ONE, TWO]);
    let before = mock.snapshot();
    domain.bind_gpasid(ONE, &BIND).unwrap();
    let bound = mock.attached();
    let table = StageOneTable::Vtd(BIND.stage_one());
    assert_eq!(bound.get(&(ONE, Some(guest(5)))), Some(&By::Nested(table)));
    assert_eq!(bound.get(&(ONE, None)), Some(&By::StageTwo));
    assert_eq!(bound.len(), 3);
    assert!(domain.bound_gpasids(ONE).eq([(guest(5), BIND.stage_one())]));
    assert_eq!(domain.bound_gpasids(TWO).count(), 0);

    let ticket = domain.unbind_gpasid(ONE, guest(5)).unwrap().unwrap();
    assert!(mock.is_complete(ticket));
    assert_eq!(mock.snapshot(), before, "the PASID is still the VM's");
    assert_eq!(
        domain.unbind_gpasid(ONE, guest(5)),
        Err(NestingError::PasidNotBound(ONE, guest(5)))
    );
}

fn refused(hardware: Hardware, bind: GpasidBind) -> Result<(), NestingError> {
    let mock = host(hardware);
    let mut domain = domain(&mock, &[ONE]);
    grant(&mock);
    let before = mock.snapshot();
    let result = domain.bind_gpasid(ONE, &bind);
    if result.is_err() {
        assert_eq!((mock.snapshot(), mock.calls()), (before, vec![]));
    }
    result
}

#[test]
fn each_thing_that_cannot_be_has_its_error() {
    let caps = |caps| Hardware::Vtd(caps);
    let width = |address_width| GpasidBind { address_width, ..BIND };
    let flags = |flags| GpasidBind { flags, ..BIND };
    let root = |root| GpasidBind { root: Gpa(root), ..BIND };
    let not_supported = Err(NestingError::Object(ObjectError::NotSupported));

    assert_eq!(refused(SMMUV3, BIND), Err(NestingError::WrongModel));
    let reserved = GpasidBind { guest: guest(0), ..BIND };
    assert_eq!(refused(VTD, reserved), Err(NestingError::ReservedPasid(guest(0))));
    assert_eq!(refused(caps(TableCaps { nested: false, ..CAPS }), BIND), not_supported);
    assert_eq!(refused(caps(TableCaps { first_stage: false, ..CAPS }), BIND), not_supported);

    assert_eq!(refused(VTD, width(57)), Ok(()));
    let four_levels = TableCaps { first_stage_5_level: false, ..CAPS };
    assert_eq!(refused(caps(four_levels), width(57)), Err(NestingError::AddressWidth(57)));
    for other in [0, 39, 47, 49, 64, 255] {
        assert_eq!(refused(VTD, width(other)), Err(NestingError::AddressWidth(other)));
    }

    let supervisor = VtdStageOneFlags::SRE;
    let protected = VtdStageOneFlags::WPE;
    assert_eq!(refused(VTD, flags(supervisor | protected)), Ok(()));
    assert_eq!(refused(VTD, flags(protected)), Err(NestingError::Flags(4)));
    let user = TableCaps { supervisor: false, ..CAPS };
    assert_eq!(refused(caps(user), flags(supervisor)), Err(NestingError::Flags(1)));

    let at = |address| Gpa(address);
    let beyond = |address| Err(NestingError::BeyondStageTwo { address: at(address), bits: 46 });
    let misaligned = NestingError::Misaligned { address: at(0x1008), alignment: 0x1000 };
    assert_eq!(refused(VTD, root(0x1008)), Err(misaligned));
    assert_eq!(refused(VTD, root((1 << 46) - 0x1000)), Ok(()));
    assert_eq!(refused(VTD, root(1 << 46)), beyond(1 << 46));
    assert_eq!(refused(VTD, root(!0xfff)), beyond(!0xfff));
}

#[test]
fn the_pasid_must_be_the_vms_and_the_device_the_domains() {
    let (mock, mut domain) = vtd(&[ONE]);
    let before = mock.snapshot();
    let foreign = GpasidBind { guest: guest(77), ..BIND };
    let error = NestingError::Object(ObjectError::NotGranted(guest(77)));
    assert_eq!(domain.bind_gpasid(ONE, &foreign), Err(error));
    assert_eq!(domain.bind_gpasid(TWO, &BIND), Err(NestingError::NoDevice(TWO)));
    assert_eq!(domain.unbind_gpasid(TWO, guest(5)), Err(NestingError::NoDevice(TWO)));
    assert_eq!(mock.snapshot(), before);
}

/// §8.4, row 7.
#[test]
fn binding_again_is_an_error_but_a_user_more_with_auxiliary_domains() {
    let (mock, mut domain) = vtd(&[ONE]);
    domain.bind_gpasid(ONE, &BIND).unwrap();
    let before = mock.snapshot();
    let bound = Err(NestingError::PasidBound(ONE, guest(5)));
    assert_eq!(domain.bind_gpasid(ONE, &BIND), bound);
    assert_eq!(mock.snapshot(), before);

    let mut domain = domain.with_auxiliary_domains();
    domain.bind_gpasid(ONE, &BIND).unwrap();
    domain.bind_gpasid(ONE, &BIND).unwrap();
    let other = GpasidBind { root: Gpa(2 * BASE), ..BIND };
    assert_eq!(domain.bind_gpasid(ONE, &other), bound, "of something else");
    for _ in 0..2 {
        assert_eq!(domain.unbind_gpasid(ONE, guest(5)), Ok(None));
        assert_eq!(mock.snapshot(), before);
    }
    assert!(domain.unbind_gpasid(ONE, guest(5)).unwrap().is_some());
    let not_bound = Err(NestingError::PasidNotBound(ONE, guest(5)));
    assert_eq!(domain.unbind_gpasid(ONE, guest(5)), not_bound);
}

#[test]
fn a_table_for_all_pasids_and_bound_ones_exclude_each_other() {
    let format = PasidTableFormat::Vtd;
    let config = |config| PasidTableConfig { format, config, pasid_bits: 20, base: Gpa(BASE) };
    let info = PasidTableInfo { model: TableModel::Vtd, ptr: Gpa(BASE), size: 0x2_0000 };
    let (mock, mut domain) = vtd(&[ONE, TWO]);
    for mode in [TableMode::Translate, TableMode::Abort] {
        let _ = domain.attach_pasid_table(&config(mode)).unwrap();
        assert_eq!(domain.bind_gpasid(ONE, &BIND), Err(NestingError::NoPasids));
    }
    let _ = domain.detach_pasid_table().unwrap();
    let _ = domain.bind_pasid_table(ONE, &info).unwrap();
    assert_eq!(domain.bind_gpasid(ONE, &BIND), Err(NestingError::NoPasids));
    domain.bind_gpasid(TWO, &BIND).unwrap();
    let _ = domain.unbind_pasid_table(ONE).unwrap();

    let before = mock.snapshot();
    let bound = Err(NestingError::PasidsBound(TWO));
    for mode in [TableMode::Translate, TableMode::Abort] {
        assert_eq!(domain.attach_pasid_table(&config(mode)), bound);
    }
    assert_eq!(domain.bind_pasid_table(TWO, &info), bound);
    assert_eq!(mock.snapshot(), before);
    let _ = domain.attach_pasid_table(&config(TableMode::Bypass)).unwrap();
}

#[test]
fn whichever_call_fails_a_bind_leaves_nothing() {
    for k in 0.. {
        let (mock, mut domain) = vtd(&[ONE]);
        let before = mock.snapshot();
        mock.fail([k]);
        let result = domain.bind_gpasid(ONE, &BIND);
        if mock.steps() <= k {
            assert!(result.is_ok() && k == 2);
            break;
        }
        assert_eq!(result, Err(NestingError::Object(FAILED)));
        assert_eq!(mock.snapshot(), before);
        mock.fail([]);
        domain.bind_gpasid(ONE, &BIND).unwrap();
        mock.fail([0]);
        assert_eq!(domain.unbind_gpasid(ONE, guest(5)), Err(NestingError::Object(FAILED)));
        assert_eq!(domain.bound_gpasids(ONE).count(), 1);
    }
}

#[test]
fn a_bind_for_all_devices_that_fails_at_one_undoes_its_own_and_no_others() {
    let mut failures = 0;
    for k in 0.. {
        let (mock, mut domain) = vtd(&[ONE, TWO, THREE]);
        let other = GpasidBind { guest: guest(6), ..BIND };
        domain.bind_gpasid(TWO, &other).unwrap();
        let before = mock.snapshot();
        mock.fail([k]);
        let result = domain.bind_gpasid_for_all(&BIND);
        if mock.steps() <= k {
            assert!(result.is_ok());
            break;
        }
        failures += 1;
        assert_eq!(result, Err(NestingError::Object(FAILED)));
        assert_eq!(mock.snapshot(), before, "call {k}");
    }
    assert_eq!(failures, 3);

    // One that has it bound keeps it.
    let (mock, mut domain) = vtd(&[ONE, TWO]);
    domain.bind_gpasid(TWO, &BIND).unwrap();
    let before = mock.snapshot();
    let bound = Err(NestingError::PasidBound(TWO, guest(5)));
    assert_eq!(domain.bind_gpasid_for_all(&BIND), bound);
    assert_eq!(mock.snapshot(), before);

    // The second fails, and so does unbinding the first.
    let (mock, mut domain) = vtd(&[ONE, TWO]);
    mock.fail([2, 3]);
    let stuck = NestingError::Stuck { device: ONE, cause: FAILED };
    assert_eq!(domain.bind_gpasid_for_all(&BIND), Err(stuck));
}

#[test]
fn unbinding_for_all_devices_takes_those_that_have_it() {
    let (mock, mut domain) = vtd(&[ONE, TWO, THREE]);
    let before = mock.snapshot();
    let not_bound = Err(NestingError::PasidNotBound(THREE, guest(5)));
    assert_eq!(domain.unbind_gpasid_for_all(guest(5)), not_bound);
    domain.bind_gpasid_for_all(&BIND).unwrap();
    let _ = domain.unbind_gpasid(TWO, guest(5)).unwrap();
    assert!(domain.unbind_gpasid_for_all(guest(5)).unwrap().is_some());
    assert_eq!(mock.snapshot(), before);

    domain.bind_gpasid_for_all(&BIND).unwrap();
    mock.fail([0]);
    let failed = Err(NestingError::Object(FAILED));
    assert_eq!(domain.unbind_gpasid_for_all(guest(5)), failed);
    assert_eq!(domain.bound_gpasids(ONE).count(), 1);
    assert_eq!(domain.bound_gpasids(THREE).count(), 0);

    let mut empty = Domain::new(mock);
    assert_eq!(empty.bind_gpasid_for_all(&BIND), Err(NestingError::NoDevices));
    assert_eq!(empty.unbind_gpasid_for_all(guest(5)), Err(NestingError::NoDevices));
}

#[test]
fn a_device_that_leaves_has_its_pasids_unbound_first() {
    let (mock, mut domain) = vtd(&[ONE, TWO]);
    domain.bind_gpasid_for_all(&BIND).unwrap();
    mock.calls();
    let _ = domain.remove_device(ONE).unwrap();
    assert_eq!(mock.attached().keys().filter(|place| place.0 == ONE).count(), 0);
    let _ = domain.close().unwrap();
    assert_eq!(mock.objects(), 0);
    assert!(mock.granted().contains(&guest(5)));
    assert!(mock.free_pasid(guest(5)).is_ok());
}
