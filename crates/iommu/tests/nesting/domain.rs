//! Devices and configurations of a domain: what each row of the posted rules says.

use iommu::nesting::{
    Configuration, DefaultSubstream, DescriptorForm, Domain, NestingError, PasidTableConfig,
    PasidTableFormat, PasidTableInfo, TableMode, TableModel,
};
use iommu::{
    Hardware, HwptFlags, ObjectError, SmmuCaps, StageOneTable, TableCaps, ViommuKind, Vm,
    VtdPasidTable,
};
use mem::Gpa;
use pci::RequesterId;

use super::common::CAPS;
use super::mock::{By, Call, Mock, FAILED, SMMU};
use super::{domain, host, smmu_config, BASE, FOUR, ONE, SMMUV3, STRANGER, THREE, TWO, VTD};

use TableMode::{Abort, Bypass, Translate};

/// What the requests without PASID of a device are translated by.
fn by(mock: &Mock, device: RequesterId) -> Option<By> {
    mock.attached().get(&(device, None)).copied()
}

/// A stream-table entry that is valid, and refuses everything: V, and Config 0.
const REFUSED: By = By::Nested(StageOneTable::Smmuv3([1, 0]));

fn vtd_config(config: TableMode) -> PasidTableConfig {
    PasidTableConfig { format: PasidTableFormat::Vtd, config, pasid_bits: 20, base: Gpa(BASE) }
}

fn with_format(s1fmt: DescriptorForm, s1dss: DefaultSubstream) -> PasidTableConfig {
    let format = PasidTableFormat::Smmuv3 { s1fmt, s1dss };
    PasidTableConfig { format, ..smmu_config(Translate) }
}

fn attach(hardware: Hardware, config: PasidTableConfig) -> Result<(), NestingError> {
    let mock = host(hardware);
    let mut domain = domain(&mock, &[ONE]);
    let before = mock.snapshot();
    let result = domain.attach_pasid_table(&config).map(drop);
    if result.is_err() {
        assert_eq!(mock.calls(), [], "refused before anything is asked of the host");
        assert_eq!(mock.snapshot(), before);
        assert_eq!(domain.configuration(), Configuration::Default);
    }
    result
}

#[test]
fn a_device_gets_stage_two_and_on_an_smmu_a_number() {
    let mock = host(SMMUV3);
    let mut domain = Domain::new(mock.clone());
    assert_eq!(domain.hardware(), None);
    domain.add_device(ONE).unwrap();
    domain.add_device(TWO).unwrap();
    let calls = mock.calls();
    let [Call::AllocHwpt(parent), Call::AllocViommu(ViommuKind::Smmuv3), Call::AllocVdevice(ONE, 0x80), Call::Attach(ONE, None, first), Call::AllocVdevice(TWO, 0x88), Call::Attach(TWO, None, second)] =
        calls[..]
    else {
        panic!("{calls:?}")
    };
    assert_eq!(parent.flags, HwptFlags::NEST_PARENT);
    assert_eq!(first, second);
    assert_eq!(domain.hardware(), Some(&SMMUV3));
    assert!(domain.devices().eq([ONE, TWO]));

    let _ = domain.close().unwrap();
    assert_eq!((mock.objects(), mock.attached().len()), (0, 0));
    assert!(domain.reap());
    domain.add_device(ONE).unwrap();
}

#[test]
fn a_device_is_added_once_and_must_be_behind_the_same_iommu() {
    let fewer = Hardware::Smmuv3(SmmuCaps { substream_bits: 4, ..SMMU });
    let mock = Mock::new(&[(ONE, SMMUV3), (TWO, fewer), (THREE, VTD)]);
    let mut domain = domain(&mock, &[ONE]);
    let before = mock.snapshot();
    assert_eq!(domain.add_device(ONE), Err(NestingError::Duplicate(ONE)));
    assert_eq!(domain.add_device(TWO), Err(NestingError::OtherHardware(TWO)));
    assert_eq!(domain.add_device(THREE), Err(NestingError::OtherHardware(THREE)));
    let stranger = ObjectError::NoDevice(STRANGER);
    assert_eq!(domain.add_device(STRANGER), Err(NestingError::Object(stranger)));
    assert_eq!(domain.remove_device(TWO), Err(NestingError::NoDevice(TWO)));
    assert_eq!(mock.snapshot(), before);
}

#[test]
fn whichever_call_fails_a_device_is_not_added() {
    for hardware in [VTD, SMMUV3] {
        for (first, mode) in [(true, Bypass), (false, Bypass), (false, Abort), (false, Translate)] {
            for k in 0.. {
                let mock = host(hardware);
                let mut domain = domain(&mock, if first { &[] } else { &[ONE] });
                let config = if hardware == VTD { vtd_config(mode) } else { smmu_config(mode) };
                if !first {
                    let _ = domain.attach_pasid_table(&config).unwrap();
                }
                let before = mock.snapshot();
                mock.fail([k]);
                let result = domain.add_device(TWO);
                if mock.steps() <= k {
                    assert!(result.is_ok() && k > 0);
                    break;
                }
                assert_eq!(result, Err(NestingError::Object(FAILED)));
                assert_eq!(mock.snapshot(), before, "call {k}");
                assert!(domain.devices().eq((!first).then_some(ONE)));
                mock.fail([]);
                domain.add_device(TWO).unwrap();
                assert_eq!(domain.is_blocked(TWO), Ok(mode == Abort));
            }
        }
    }
}

#[test]
fn a_device_that_joins_later_has_the_domains_configuration() {
    let mock = host(SMMUV3);
    let mut domain = domain(&mock, &[ONE]);
    let _ = domain.attach_pasid_table(&smmu_config(Translate)).unwrap();
    mock.calls();
    domain.add_device(TWO).unwrap();
    // At no moment has it more than its table.
    assert!(matches!(mock.calls()[1..], [Call::Attach(TWO, None, _)]));
    assert!(by(&mock, TWO).is_some());
    assert_eq!(by(&mock, TWO), by(&mock, ONE));

    let _ = domain.attach_pasid_table(&smmu_config(Abort)).unwrap();
    mock.calls();
    domain.add_device(THREE).unwrap();
    assert!(matches!(mock.calls()[1..], [Call::Attach(THREE, None, _)]));
    assert_eq!(by(&mock, THREE), Some(REFUSED));
    assert_eq!(domain.is_blocked(THREE), Ok(true));

    let _ = domain.attach_pasid_table(&smmu_config(Bypass)).unwrap();
    domain.add_device(FOUR).unwrap();
    assert_eq!(by(&mock, FOUR), Some(By::StageTwo));
    assert_eq!(domain.is_blocked(FOUR), Ok(false));
}

#[test]
fn a_vtd_device_that_joins_a_blocked_domain_has_had_something() {
    let mock = host(VTD);
    let mut domain = domain(&mock, &[ONE]);
    let _ = domain.attach_pasid_table(&vtd_config(Abort)).unwrap();
    mock.calls();
    domain.add_device(TWO).unwrap();
    // Without that it would not be the host's to translate.
    let calls = mock.calls();
    assert!(matches!(calls[..], [Call::Attach(TWO, None, _), Call::Detach(TWO, None)]));
    assert_eq!((by(&mock, TWO), domain.is_blocked(TWO)), (None, Ok(true)));
}

#[test]
fn a_device_that_can_be_neither_blocked_nor_removed_is_told_of() {
    let mock = host(VTD);
    let mut domain = domain(&mock, &[ONE]);
    let _ = domain.attach_pasid_table(&vtd_config(Abort)).unwrap();
    mock.fail([1, 2]);
    let stuck = NestingError::Stuck { device: TWO, cause: FAILED };
    assert_eq!(domain.add_device(TWO), Err(stuck));
    assert_eq!(domain.is_blocked(TWO), Ok(false));
    mock.fail([]);
    let _ = domain.remove_device(TWO).unwrap();
    assert_eq!(by(&mock, TWO), None);
}

#[test]
fn a_device_that_leaves_is_blocked() {
    let mock = host(SMMUV3);
    let mut domain = domain(&mock, &[ONE, TWO]);
    let _ = domain.attach_pasid_table(&smmu_config(Translate)).unwrap();
    let ticket = domain.remove_device(ONE).unwrap().unwrap();
    assert!(mock.is_complete(ticket));
    assert_eq!(by(&mock, ONE), None);
    assert!(domain.devices().eq([TWO]));
    // One that is gone from the VM leaves too.
    mock.unplug(TWO);
    assert_eq!(domain.remove_device(TWO), Ok(None));
    let _ = domain.close().unwrap();
    assert_eq!(mock.objects(), 0);
}

/// §6.4: what each configuration makes of requests, and which may follow which.
#[test]
fn every_configuration_from_every_other() {
    for hardware in [VTD, SMMUV3] {
        let config = |mode| if hardware == VTD { vtd_config(mode) } else { smmu_config(mode) };
        let table = match hardware {
            Hardware::Vtd(_) => {
                StageOneTable::VtdPasidTable(VtdPasidTable { directory: Gpa(BASE), pasid_bits: 20 })
            }
            Hardware::Smmuv3(_) => StageOneTable::Smmuv3([0x2000_0000_0008_000b, 0x1000_00d5]),
        };
        let expected = |mode| match mode {
            Some(Translate) => Some(By::Nested(table)),
            Some(Bypass) | None => Some(By::StageTwo),
            Some(Abort) if hardware == SMMUV3 => Some(REFUSED),
            Some(Abort) => None,
        };
        let configuration = |mode| match mode {
            Some(Translate) => Configuration::Translate(config(Translate)),
            Some(Bypass) => Configuration::Bypass,
            Some(Abort) => Configuration::Abort,
            None => Configuration::Default,
        };
        let modes = [None, Some(Translate), Some(Bypass), Some(Abort)];
        for (from, to) in modes.iter().flat_map(|from| modes.map(|to| (*from, to))) {
            let mock = host(hardware);
            let mut domain = domain(&mock, &[ONE, TWO]);
            let mut set = |mode: Option<TableMode>| match mode {
                Some(mode) => domain.attach_pasid_table(&config(mode)),
                None => domain.detach_pasid_table(),
            };
            let _ = set(from).unwrap();
            let before = mock.snapshot();
            mock.calls();
            let result = set(to);
            if (from, to) == (Some(Translate), Some(Translate)) {
                assert_eq!(result, Err(NestingError::Translating));
                assert_eq!((mock.snapshot(), mock.calls()), (before, vec![]), "unchanged");
                continue;
            }
            if let Some(ticket) = result.unwrap() {
                assert!(mock.is_complete(ticket));
            }
            assert_eq!(domain.configuration(), configuration(to), "{from:?} to {to:?}");
            assert_eq!([by(&mock, ONE), by(&mock, TWO)], [expected(to); 2], "{from:?} to {to:?}");
            let _ = domain.close().unwrap();
            assert_eq!(mock.objects(), 0, "{from:?} to {to:?}");
        }
    }
}

#[test]
fn a_table_is_replaced_at_each_device_in_one_call() {
    let mock = host(SMMUV3);
    let mut domain = domain(&mock, &[ONE, TWO]);
    let config = smmu_config(Translate);
    let _ = domain.attach_pasid_table(&config).unwrap();
    mock.calls();
    let next = PasidTableConfig { base: Gpa(2 * BASE), ..config };
    let ticket = domain.replace_pasid_table(&next).unwrap().unwrap();
    assert!(mock.is_complete(ticket));
    let calls = mock.calls();
    let [Call::AllocHwpt(_), Call::Replace(ONE, None, _), Call::Replace(TWO, None, _), Call::Destroy(_)] =
        calls[..]
    else {
        panic!("{calls:?}")
    };
    assert_eq!(domain.configuration(), Configuration::Translate(next));
    let moved = Some(By::Nested(StageOneTable::Smmuv3([0x2000_0000_0010_000b, 0x1000_00d5])));
    assert_eq!(by(&mock, ONE), moved);

    // From anything else it is an attach.
    let _ = domain.attach_pasid_table(&smmu_config(Abort)).unwrap();
    let _ = domain.replace_pasid_table(&next).unwrap();
    assert_eq!(by(&mock, TWO), moved);
}

/// §6.3, §11.2: the words, typed from the layout of the stream-table entry.
#[test]
fn the_words_of_a_stream_table_entry_say_what_the_call_says() {
    let words = |config: PasidTableConfig| {
        let mock = host(SMMUV3);
        let mut domain = domain(&mock, &[ONE]);
        let _ = domain.attach_pasid_table(&config).unwrap();
        match by(&mock, ONE) {
            Some(By::Nested(StageOneTable::Smmuv3(words))) => words,
            other => panic!("{other:?}"),
        }
    };
    let linear = with_format(DescriptorForm::Linear, DefaultSubstream::Terminate);
    // S1CDMax 4 in 63:59, S1ContextPtr 0x80000, S1Fmt 0, Config 5, V; EATS 1 in 29:28.
    assert_eq!(words(linear), [0x2000_0000_0008_000b, 0x1000_00d4]);
    let two = with_format(DescriptorForm::Leaves4K, DefaultSubstream::Bypass);
    assert_eq!(words(two), [0x2000_0000_0008_001b, 0x1000_00d5]);
    let base = Gpa(0xfff_ffff_ffc0);
    let large = with_format(DescriptorForm::Leaves64K, DefaultSubstream::Zero);
    let large = PasidTableConfig { pasid_bits: 10, base, ..large };
    assert_eq!(words(large), [0x5000_0fff_ffff_ffeb, 0x1000_00d6]);
    let one = PasidTableConfig { pasid_bits: 0, base, ..linear };
    assert_eq!(words(one), [0x0000_0fff_ffff_ffcb, 0x1000_00d4]);
}

#[test]
fn a_domain_without_devices_is_for_no_iommu() {
    let mut domain = Domain::new(host(SMMUV3));
    let config = smmu_config(Translate);
    assert_eq!(domain.attach_pasid_table(&config), Err(NestingError::NoDevices));
    assert_eq!(domain.replace_pasid_table(&config), Err(NestingError::NoDevices));
    assert_eq!(domain.detach_pasid_table(), Ok(None));
}

#[test]
fn a_table_of_another_model_is_refused() {
    for mode in [Translate, Bypass, Abort] {
        assert_eq!(attach(VTD, smmu_config(mode)), Err(NestingError::WrongModel));
        assert_eq!(attach(SMMUV3, vtd_config(mode)), Err(NestingError::WrongModel));
    }
}

#[test]
fn more_pasid_bits_than_the_hardware_has_are_refused() {
    let config = |pasid_bits| PasidTableConfig { pasid_bits, ..smmu_config(Translate) };
    assert_eq!(attach(SMMUV3, config(16)), Ok(()));
    for got in [17, 20, 64, 255] {
        let error = NestingError::PasidBits { got, limit: 16 };
        assert_eq!(attach(SMMUV3, config(got)), Err(error));
    }
    let vtd = |pasid_bits| PasidTableConfig { pasid_bits, ..vtd_config(Translate) };
    assert_eq!(attach(VTD, vtd(21)), Err(NestingError::PasidBits { got: 21, limit: 20 }));
    // It means nothing to the others.
    assert_eq!(attach(SMMUV3, PasidTableConfig { config: Bypass, ..config(255) }), Ok(()));
}

#[test]
fn a_two_level_table_needs_hardware_that_has_them() {
    let linear_only = Hardware::Smmuv3(SmmuCaps { two_level_descriptors: false, ..SMMU });
    let dss = DefaultSubstream::Terminate;
    for form in [DescriptorForm::Leaves4K, DescriptorForm::Leaves64K] {
        let error = Err(NestingError::NoTwoLevelTables);
        assert_eq!(attach(linear_only, with_format(form, dss)), error);
        assert_eq!(attach(SMMUV3, with_format(form, dss)), Ok(()));
    }
    assert_eq!(attach(linear_only, with_format(DescriptorForm::Linear, dss)), Ok(()));
}

#[test]
fn a_table_lies_aligned_and_within_stage_two() {
    let at = |base| PasidTableConfig { base: Gpa(base), ..smmu_config(Translate) };
    let misaligned =
        |address, alignment| Err(NestingError::Misaligned { address: Gpa(address), alignment });
    let beyond = |address, bits| Err(NestingError::BeyondStageTwo { address: Gpa(address), bits });
    assert_eq!(attach(SMMUV3, at(BASE + 0x20)), misaligned(BASE + 0x20, 64));
    assert_eq!(attach(SMMUV3, at(BASE + 0x40)), Ok(()));
    // 16 descriptors are 1 KiB.
    let end = 1 << 44;
    assert_eq!(attach(SMMUV3, at(end - 0x400)), Ok(()));
    for base in [end - 0x3c0, end, 1 << 52, !0x3f] {
        assert_eq!(attach(SMMUV3, at(base)), beyond(base, 44));
    }
    // Its first level alone counts for one in two levels: 2^(16-6) and 2^(16-10) pointers.
    for (form, size) in [(DescriptorForm::Leaves4K, 0x2000), (DescriptorForm::Leaves64K, 0x200)] {
        let format = with_format(form, DefaultSubstream::Zero).format;
        let config = |base| PasidTableConfig { format, pasid_bits: 16, ..at(base) };
        assert_eq!(attach(SMMUV3, config(end - size)), Ok(()));
        assert_eq!(attach(SMMUV3, config(end - size + 64)), beyond(end - size + 64, 44));
    }
    let bypass = |base| PasidTableConfig { config: Bypass, ..at(base) };
    assert_eq!(attach(SMMUV3, bypass(u64::MAX)), Ok(()));

    let vtd = |base| PasidTableConfig { base: Gpa(base), ..vtd_config(Translate) };
    assert_eq!(attach(VTD, vtd(0x800)), misaligned(0x800, 0x1000));
    let end = 1 << 46;
    assert_eq!(attach(VTD, vtd(end - 0x2_0000)), Ok(()));
    assert_eq!(attach(VTD, vtd(end - 0x1_f000)), beyond(end - 0x1_f000, 46));
    let three_levels = Hardware::Vtd(TableCaps { second_stage_levels: 0b10, ..CAPS });
    assert_eq!(attach(three_levels, vtd(1 << 39)), beyond(1 << 39, 39));
}

#[test]
fn hardware_without_both_stages_cannot() {
    let unsupported = Err(NestingError::Object(ObjectError::NotSupported));
    for caps in [SmmuCaps { stage_one: false, ..SMMU }, SmmuCaps { stage_two: false, ..SMMU }] {
        assert_eq!(attach(Hardware::Smmuv3(caps), smmu_config(Translate)), unsupported);
    }
    let flat = Hardware::Vtd(TableCaps { nested: false, ..CAPS });
    assert_eq!(attach(flat, vtd_config(Translate)), unsupported);
}

fn info(model: TableModel, size: u64) -> PasidTableInfo {
    PasidTableInfo { model, ptr: Gpa(BASE), size }
}

/// §5.2, §5.3.
#[test]
fn the_call_of_2017_is_for_one_device_and_back_to_what_the_domain_has() {
    let tables = [
        // 2^14 entries of 8 bytes, for 64 PASIDs each.
        (VTD, info(TableModel::Vtd, 0x2_0000), vtd_config(Translate)),
        // 16 descriptors of 64 bytes; requests without PASID by stage 2 alone.
        (SMMUV3, info(TableModel::Smmu, 0x400), smmu_config(Translate)),
    ];
    for (hardware, info, config) in tables {
        assert_eq!(info.config(), Ok(config));
        let mock = host(hardware);
        let mut domain = domain(&mock, &[ONE, TWO]);
        let before = mock.snapshot();
        let _ = domain.bind_pasid_table(ONE, &info).unwrap();
        assert!(matches!(by(&mock, ONE), Some(By::Nested(_))));
        assert_eq!(by(&mock, TWO), Some(By::StageTwo));
        let bound = Err(NestingError::DeviceBound(ONE));
        assert_eq!(domain.bind_pasid_table(ONE, &info), bound);
        assert_eq!(domain.attach_pasid_table(&config), bound);
        let _ = domain.unbind_pasid_table(ONE).unwrap();
        assert_eq!(mock.snapshot(), before);
        let not_bound = Err(NestingError::DeviceNotBound(ONE));
        assert_eq!(domain.unbind_pasid_table(ONE), not_bound);

        let _ = domain.attach_pasid_table(&config).unwrap();
        assert_eq!(domain.bind_pasid_table(ONE, &info), Err(NestingError::Translating));
        let _ = domain.detach_pasid_table().unwrap();

        // The default that unbind restores is the domain's.
        let _ = domain.bind_pasid_table(ONE, &info).unwrap();
        let _ = domain.detach_pasid_table().unwrap();
        assert!(matches!(by(&mock, ONE), Some(By::Nested(_))), "its own stays");
        let _ = domain.remove_device(ONE).unwrap();
        let _ = domain.close().unwrap();
        assert_eq!(mock.objects(), 0);
    }
}

#[test]
fn the_call_of_2017_refuses_with_an_error_for_each_reason() {
    let mock = host(SMMUV3);
    let mut domain = domain(&mock, &[ONE]);
    let before = mock.snapshot();
    let mut bind = |device, info| domain.bind_pasid_table(device, &info).unwrap_err();
    let smmu = |size| info(TableModel::Smmu, size);
    assert_eq!(bind(TWO, smmu(0x400)), NestingError::NoDevice(TWO));
    assert_eq!(bind(ONE, info(TableModel::Vtd, 0x400)), NestingError::WrongModel);
    for size in [0, 1, 32, 0x401, 0x440, u64::MAX] {
        assert_eq!(bind(ONE, smmu(size)), NestingError::Size(size));
    }
    // 2^16 descriptors are what the host can take.
    assert_eq!(bind(ONE, smmu(1 << 23)), NestingError::PasidBits { got: 17, limit: 16 });
    assert_eq!(bind(ONE, smmu(1 << 63)), NestingError::PasidBits { got: 57, limit: 16 });
    let ptr = Gpa(BASE + 8);
    let misaligned = PasidTableInfo { ptr, ..smmu(0x400) };
    assert_eq!(bind(ONE, misaligned), NestingError::Misaligned { address: ptr, alignment: 64 });
    let ptr = Gpa(1 << 44);
    let beyond = PasidTableInfo { ptr, ..smmu(0x400) };
    assert_eq!(bind(ONE, beyond), NestingError::BeyondStageTwo { address: ptr, bits: 44 });
    assert_eq!(mock.calls(), []);
    for k in 0..2 {
        mock.fail([k]);
        assert_eq!(bind(ONE, smmu(0x400)), NestingError::Object(FAILED));
        assert_eq!(mock.snapshot(), before);
    }
    assert_eq!(domain.unbind_pasid_table(TWO), Err(NestingError::NoDevice(TWO)));
}

#[test]
fn what_the_host_still_uses_ends_later_and_bounds_the_changes() {
    let mock = host(SMMUV3);
    let mut domain = domain(&mock, &[ONE]);
    mock.linger();
    let mut config = smmu_config(Translate);
    let refused = loop {
        config.base.0 += 0x1000;
        if let Err(error) = domain.replace_pasid_table(&config) {
            break error;
        }
        assert!(mock.objects() < 2 * iommu::nesting::MAX_RETIRED);
    };
    assert_eq!(refused, NestingError::Object(ObjectError::Busy));
    assert!(!domain.reap());
    mock.settle();
    assert!(domain.reap());
    assert!(domain.replace_pasid_table(&config).is_ok());

    mock.linger();
    let _ = domain.close().unwrap();
    assert!(mock.objects() > 0 && !domain.reap());
    mock.settle();
    assert!(domain.reap());
    assert_eq!(mock.objects(), 0);
}
