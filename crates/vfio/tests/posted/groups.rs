//! Containers, groups and devices.

use iommu::Vm;
use vfio::{Errno, Handle, Refusal, Request, Revision, MAX_GROUPS, MAX_GROUP_DEVICES};

use crate::mock::By;
use crate::rig::*;

#[test]
fn what_a_container_says_before_it_has_anything() {
    let rig = Rig::apart(Revision::PasidTableV15, &[&[(A, smmu())]]);
    assert_eq!(rig.errno(Request::GetApiVersion, &[]), Ok(0));
    for (extension, has) in [(1, 1), (3, 1), (6, 1), (9, 1), (2, 0), (7, 0), (u32::MAX, 0)] {
        assert_eq!(rig.errno(Request::CheckExtension, &extension.to_ne_bytes()), Ok(has));
    }
    assert_eq!(rig.errno(Request::CheckExtension, &[1, 0, 0]), Err(Errno::EFAULT));
    assert_eq!(rig.errno(Request::IommuGetInfo, &words(&[24, 0, 0, 0, 0, 0])), Err(Errno::ENODEV));
}

#[test]
fn a_container_gets_its_iommu_with_a_group() {
    let rig = Rig::apart(Revision::PasidTableV15, &[&[(A, smmu()), (B, smmu())]]);
    assert_eq!(rig.set_iommu(6).unwrap_err(), Refusal::NoGroup);
    assert_eq!(rig.set_iommu(2).unwrap_err(), Refusal::NoSuchIommu { kind: 2 });
    rig.join(&rig.groups[0]).unwrap();
    assert!(rig.container.host_vm().is_none());
    rig.set_iommu(6).unwrap();
    assert_eq!(rig.set_iommu(6).unwrap_err(), Refusal::IommuSet);
    let attached = rig.vm().attached();
    assert_eq!(attached.keys().copied().collect::<Vec<_>>(), [(A, None), (B, None)]);
    assert!(attached.values().all(|by| *by == By::StageTwo));
}

#[test]
fn a_plain_container_leaves_translation_alone() {
    let rig = Rig::apart(Revision::Own, &[&[(A, smmu())]]);
    rig.join(&rig.groups[0]).unwrap();
    rig.set_iommu(3).unwrap();
    assert!(rig.vm().attached().is_empty());
    let request = words(&[8, 2]);
    assert_eq!(rig.errno(Request::SetPasidTable, &request), Err(Errno::EINVAL));
    // Of PASIDs it has none.
    let mut request = words(&[48, 1, 1, 9]);
    request.resize(48, 0);
    assert_eq!(rig.errno(Request::PasidRequest, &request), Err(Errno::EOPNOTSUPP));
}

#[test]
fn a_group_says_where_it_is() {
    let rig = Rig::apart(Revision::Own, &[&[(A, smmu())]]);
    let group = &rig.groups[0];
    let status = || {
        let mut argument = words(&[8, 0]);
        group.call(rig.number(Request::GroupGetStatus), &mut argument, None).unwrap();
        argument[4]
    };
    assert_eq!(status(), 1);
    rig.join(group).unwrap();
    assert_eq!(status(), 3);
    assert_eq!(rig.join(group).unwrap_err(), Refusal::ContainerSet);
    let unset = || group.call(rig.number(Request::GroupUnsetContainer), &mut [], None);
    unset().unwrap();
    assert_eq!(status(), 1);
    assert_eq!(unset().unwrap_err(), Refusal::NoContainer);
}

#[test]
fn groups_have_their_calls_and_their_handles() {
    let rig = Rig::apart(Revision::Own, &[&[(A, smmu())]]);
    let group = &rig.groups[0];
    let bell = || Some(Handle::Event(std::sync::Arc::new(|| ())));
    let set = rig.number(Request::GroupSetContainer);
    assert_eq!(group.call(set, &mut [], None).unwrap_err(), Refusal::NoHandle);
    assert_eq!(group.call(set, &mut [], bell()).unwrap_err(), Refusal::NoHandle);
    let status = rig.number(Request::GroupGetStatus);
    let refusal = group.call(status, &mut words(&[8, 0]), bell()).unwrap_err();
    assert_eq!(refusal, Refusal::UnwantedHandle);
    // A container's calls are not a group's, nor the other way.
    for number in [rig.number(Request::MapDma), 0, u32::MAX] {
        let refusal = group.call(number, &mut [0; 32], None).unwrap_err();
        assert_eq!(refusal, Refusal::UnknownRequest { number });
    }
    let refusal = rig.call(Request::GroupGetStatus, &mut words(&[8, 0])).unwrap_err();
    assert_eq!(refusal.errno(), Errno::ENOTTY);
    // Groups are those of one dispatcher.
    let other = Rig::apart(Revision::Own, &[]);
    let refusal = group.call(set, &mut [], Some(other.container.handle())).unwrap_err();
    assert_eq!(refusal, Refusal::NoHandle);
}

#[test]
fn a_device_is_opened_when_its_group_is_in_a_container() {
    let rig = Rig::apart(Revision::Own, &[&[(A, smmu())]]);
    assert_eq!(rig.open_named(0, &name(A)).unwrap_err(), Refusal::NoContainer);
    rig.join(&rig.groups[0]).unwrap();
    assert_eq!(rig.open_named(0, &name(A)).unwrap_err(), Refusal::NoContainer);
    rig.set_iommu(6).unwrap();
    assert_eq!(rig.open_named(0, "0000:00:1f.0").unwrap_err(), Refusal::NoSuchName);
    let number = rig.number(Request::GroupGetDeviceFd);
    // A string without its end.
    let refusal = rig.groups[0].call(number, &mut name(A).into_bytes(), None).unwrap_err();
    assert_eq!(refusal.errno(), Errno::EFAULT);
    let device = rig.open(0, A);
    assert!(device.channel().is_some());
    // While it is open the group stays.
    let unset = rig.number(Request::GroupUnsetContainer);
    assert_eq!(rig.groups[0].call(unset, &mut [], None).unwrap_err(), Refusal::InUse);
    let again = rig.open(0, A);
    drop(device);
    assert_eq!(rig.groups[0].call(unset, &mut [], None).unwrap_err(), Refusal::InUse);
    drop(again);
    rig.groups[0].call(unset, &mut [], None).unwrap();
}

#[test]
fn a_group_is_open_once_and_while_its_devices_are() {
    let mut rig = Rig::new(Revision::Own, &[&[(A, smmu())]]);
    assert_eq!(rig.dispatcher.open_group(1).unwrap_err(), Refusal::InUse);
    assert_eq!(rig.dispatcher.open_group(2).unwrap_err(), Refusal::Group { number: 2 });
    let device = rig.open(0, A);
    rig.groups.clear();
    assert_eq!(rig.dispatcher.open_group(1).unwrap_err(), Refusal::InUse);
    assert_eq!(rig.vm().attached().len(), 1);
    drop(device);
    assert!(rig.dispatcher.open_group(1).is_ok());
}

#[test]
fn the_last_group_takes_the_vm_along() {
    let mut rig = Rig::new(Revision::Own, &[&[(A, smmu())], &[(B, smmu())]]);
    let vm = rig.vm();
    rig.groups.pop();
    assert_eq!(vm.attached().len(), 1);
    assert!(rig.container.host_vm().is_some());
    rig.groups.pop();
    assert!(rig.container.host_vm().is_none());
    assert_eq!((vm.attached().len(), vm.objects()), (0, 0));
    // And the container is as new.
    let group = rig.dispatcher.open_group(1).unwrap();
    rig.join(&group).unwrap();
    rig.set_iommu(6).unwrap();
    assert_eq!(rig.vm().attached().len(), 1);
}

#[test]
fn a_vm_that_was_there_before_stays() {
    let mut rig = Rig::apart(Revision::Own, &[&[(A, smmu())]]);
    let mut create = words(&[128, 0, 5]);
    create.resize(128, 0);
    rig.call(Request::CreateVm, &mut create).unwrap();
    rig.join(&rig.groups[0]).unwrap();
    rig.set_iommu(6).unwrap();
    let vm = rig.vm();
    assert_eq!((vm.attached().len(), vm.pasid_usage().quota), (1, 5));
    rig.groups.clear();
    assert!(vm.attached().is_empty());
    assert_eq!(rig.vm().pasid_usage().quota, 5);
}

#[test]
fn a_group_that_cannot_join_leaves_nothing_behind() {
    // Whatever of it fails, and when.
    let devices = [(A, smmu()), (B, smmu())];
    let steps = {
        let rig = Rig::new(Revision::Own, &[&[(C, smmu())], &[]]);
        rig.vm().steps()
    };
    assert!(steps > 2);
    for late in [false, true] {
        let mut failed = 0;
        for step in 0..20 {
            let rig = Rig::apart(Revision::Own, &[&[(C, smmu())], &devices]);
            rig.join(&rig.groups[0]).unwrap();
            if late {
                rig.set_iommu(6).unwrap();
                rig.vm().fail([step]);
                let before = rig.vm().snapshot();
                if rig.join(&rig.groups[1]).is_err() {
                    failed += 1;
                    assert_eq!(rig.vm().snapshot(), before, "step {step}");
                    rig.vm().fail([]);
                    rig.join(&rig.groups[1]).unwrap();
                }
            } else {
                let mut create = words(&[128, 0, 5]);
                create.resize(128, 0);
                rig.call(Request::CreateVm, &mut create).unwrap();
                rig.join(&rig.groups[1]).unwrap();
                rig.vm().fail([step]);
                if rig.set_iommu(6).is_err() {
                    failed += 1;
                    assert_eq!(rig.vm().snapshot().0.len(), 0, "step {step}");
                    assert_eq!(rig.vm().objects(), 0, "step {step}");
                    rig.vm().fail([]);
                    rig.set_iommu(6).unwrap();
                }
            }
            assert_eq!(rig.vm().attached().len(), 3);
        }
        assert!(failed >= 2, "{failed}");
    }
}

#[test]
fn devices_behind_different_iommus_are_in_different_domains() {
    let rig = Rig::new(Revision::Own, &[&[(A, smmu())], &[(B, vtd())]]);
    assert_eq!(rig.vm().attached().len(), 2);
    // A configuration for one of them alone cannot be for both: nothing changes.
    let before = rig.vm().snapshot();
    let config = crate::config::v15(1, 0x1000, 4, 1);
    let refusal = rig.call(Request::SetPasidTable, &mut { config }).unwrap_err();
    assert_eq!(refusal.errno(), Errno::EINVAL);
    assert_eq!(rig.vm().snapshot(), before);
}

#[test]
fn groups_are_bounded() {
    let rig = Rig::apart(Revision::Own, &[]);
    for number in 0..MAX_GROUPS as u32 {
        rig.dispatcher.add_group(number, vec![]).unwrap();
    }
    let refusal = rig.dispatcher.add_group(MAX_GROUPS as u32, vec![]).unwrap_err();
    assert_eq!(refusal, Refusal::TooMany { limit: MAX_GROUPS });
    assert_eq!(rig.dispatcher.add_group(0, vec![]).unwrap_err(), Refusal::Group { number: 0 });
    let device = vfio::GroupDevice { name: name(A), requester: A };
    let many = vec![device; MAX_GROUP_DEVICES + 1];
    let refusal = Rig::apart(Revision::Own, &[]).dispatcher.add_group(0, many).unwrap_err();
    assert_eq!(refusal, Refusal::TooMany { limit: MAX_GROUP_DEVICES });
}
