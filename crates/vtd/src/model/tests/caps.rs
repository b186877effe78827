//! Capabilities: golden values, and options that do not go together.

use super::*;
use crate::spec::VcmdLayout;

#[test]
fn default_capabilities_are_the_known_ones() {
    let caps = Caps::new(Options::default()).unwrap();
    // The values of a unit that Linux 7.2 accepts, but for: 8 fault records instead of 1 …
    assert_eq!(caps.capability().into_bits(), 0x81d2_078c_222f_0686);
    // … coherent walks, nesting and RID_PASID on; interrupt remapping, virtual commands and the
    // no-write flag off.
    assert_eq!(caps.extended().into_bits(), 0x0003_cd98_2400_0f47);
    // Page requests are bit 29, their draining is bit 42.
    let caps = Caps::new(Options { page_requests: false, ..Options::default() }).unwrap();
    assert_eq!(caps.extended().into_bits(), 0x0003_c998_0400_0f47);
}

#[test]
fn virtual_commands_are_offered_consistently() {
    for layout in VcmdLayout::ALL {
        let options = Options { virtual_commands: Some(layout), ..Options::default() };
        let caps = Caps::new(options).unwrap();
        // VCS is bit 44, CM bit 7, PAS bit 0; nothing else differs.
        assert_eq!(caps.extended().into_bits(), 0x0003_cd98_2400_0f47 | 1 << 44);
        assert_eq!(caps.capability().into_bits(), 0x81d2_078c_222f_0686);
        assert_eq!(caps.virtual_commands().into_bits(), 1);
    }
    let caps = Caps::new(Options::default()).unwrap();
    assert_eq!(caps.virtual_commands().into_bits(), 0);
}

#[test]
fn registers_lie_where_the_capabilities_say() {
    let caps = Caps::new(Options::default()).unwrap();
    let offset = |id| REGISTERS.iter().find(|register| register.id == id).unwrap().offset;
    let records = 16 * caps.capability().fault_record_offset();
    assert_eq!(offset(RegisterId::FaultRecordLow(0)), records);
    let last = caps.capability().fault_records();
    assert_eq!(offset(RegisterId::FaultRecordHigh(last)), records + 16 * u16::from(last) + 8);
    assert_eq!(offset(RegisterId::InvalidateAddress), 16 * caps.extended().iotlb_offset());
}

#[test]
fn table_caps_follow() {
    let options = Options {
        first_stage_5_level: true,
        second_stage_accessed_dirty: true,
        second_stage_1g: false,
        address_bits: 39,
        ..Options::default()
    };
    let caps = Caps::new(options).unwrap();
    let tables = caps.tables();
    assert_eq!(tables.address_bits, 39);
    assert_eq!(caps.capability().max_guest_width(), 38);
    assert_eq!((tables.second_stage_levels, tables.second_stage_large), (0b110, 0b01));
    assert_eq!(caps.capability().second_stage_large(), 0b01);
    assert!(tables.first_stage_5_level && caps.capability().first_stage_5_level());
    assert!(tables.second_stage_accessed_dirty);
    assert!(caps.extended().second_stage_accessed_dirty());
    assert!(!tables.supervisor && !caps.extended().supervisor_requests());
    assert!(tables.page_walk_snoop && caps.extended().page_walk_snoop());
}

#[test]
fn options_that_do_not_go_together_are_refused() {
    let base = Options::default();
    let refused = |options| Caps::new(options).unwrap_err();
    assert_eq!(refused(Options { address_bits: 31, ..base }), CapsError::AddressBits(31));
    assert_eq!(refused(Options { address_bits: 58, ..base }), CapsError::AddressBits(58));
    for widths in [0, 1, 0b1_0000, 0b1_0110] {
        let options = Options { second_stage_widths: widths, ..base };
        assert_eq!(refused(options), CapsError::SecondStageWidths(widths));
    }
    let options = Options { second_stage_widths: 0b0010, ..base };
    assert!(matches!(refused(options), CapsError::SecondStageTooNarrow { .. }));
    for bits in [0, 21] {
        let options = Options { pasid_bits: Some(bits), ..base };
        assert_eq!(refused(options), CapsError::PasidBits(bits));
    }
    let needs = |options| match refused(options) {
        CapsError::Needs { feature, needs } => (feature, needs),
        other => panic!("{other:?}"),
    };
    assert_eq!(needs(Options { scalable_mode: false, ..base }), ("PASID", "SMTS"));
    let legacy = Options {
        scalable_mode: false,
        pasid_bits: None,
        first_stage: false,
        first_stage_1g: false,
        second_stage: false,
        nested: false,
        rid_pasid: false,
        page_requests: false,
        ..base
    };
    assert!(Caps::new(legacy).is_ok());
    assert_eq!(needs(Options { first_stage: true, ..legacy }), ("FSTS", "SMTS"));
    assert_eq!(needs(Options { second_stage: true, ..legacy }), ("SSTS", "SMTS"));
    assert_eq!(needs(Options { rid_pasid: true, ..legacy }), ("RPS", "SMTS"));
    assert_eq!(needs(Options { page_requests: true, ..legacy }), ("PRS", "SMTS"));
    assert_eq!(needs(Options { device_tlb: false, ..base }), ("PRS", "DT"));
    let private = Options { page_requests: false, private_data: true, ..base };
    assert_eq!(needs(private), ("PDP", "PRS"));
    let virtual_commands = Some(VcmdLayout::Revision33);
    assert_eq!(needs(Options { virtual_commands, ..legacy }), ("VCS", "PASID"));
    let silent = Options { virtual_commands, caching_mode: false, ..base };
    assert_eq!(needs(silent), ("VCS", "CM"));
    let flat = Options { first_stage: false, nested: false, ..base };
    assert_eq!(needs(flat), ("FS1GP", "FSTS"));
    let flat = Options { first_stage_1g: false, ..flat };
    assert_eq!(needs(Options { first_stage_5_level: true, ..flat }), ("FS5LP", "FSTS"));
    assert_eq!(needs(Options { nested: true, ..flat }), ("NEST", "FSTS"));
    let flat = Options { second_stage: false, ..base };
    assert_eq!(needs(flat), ("NEST", "SSTS"));
    let flat = Options { nested: false, second_stage_accessed_dirty: true, ..flat };
    assert_eq!(needs(flat), ("SSADS", "SSTS"));
}

#[test]
fn host_owned_tables_leave_the_guest_one_stage() {
    let caps = Caps::new(Options::host_owned()).unwrap();
    assert_eq!(caps.capability().into_bits(), 0x81d2_078c_222f_0686, "CM among others");
    // SSTS (bit 46) and NEST (bit 26) are clear; nothing else differs.
    assert_eq!(caps.extended().into_bits(), 0x0003_8d98_2000_0f47);
    let tables = caps.tables();
    assert!(tables.first_stage && tables.pass_through && !tables.second_stage && !tables.nested);

    let refused = |options| Caps::new(options).unwrap_err();
    let host = Options::host_owned();
    let feature = "a PASID table of the host";
    assert_eq!(
        refused(Options { caching_mode: false, ..host }),
        CapsError::Needs { feature, needs: "CM" }
    );
    let no_first_stage = Options { first_stage: false, first_stage_1g: false, ..host };
    assert_eq!(refused(no_first_stage), CapsError::Needs { feature, needs: "FSTS" });
    let second_stage = Options { second_stage: true, ..host };
    assert_eq!(refused(second_stage), CapsError::GuestTablesOnly("SSTS"));
}
