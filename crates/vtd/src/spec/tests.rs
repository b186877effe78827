//! Golden encodings, typed from the specification, and the register table's own order.

use iommu::{DomainId, PageRequest, Pasid, PrgIndex};
use mem::{Gpa, Iova, Range};
use pci::RequesterId;
use proptest::prelude::*;
use std::vec::Vec;

use super::*;

/// A unit with every feature that a descriptor may need.
fn rules() -> DescriptorRules {
    DescriptorRules {
        width: DescriptorWidth::Bits256,
        mode: TableMode::Scalable,
        capability: Capability::new()
            .with_page_selective(true)
            .with_max_address_mask(18)
            .with_max_guest_width(47),
        extended: ExtendedCapability::new()
            .with_scalable_mode(true)
            .with_device_tlb(true)
            .with_interrupt_remapping(true)
            .with_max_handle_mask(15)
            .with_page_requests(true)
            .with_page_request_drain(true),
        private_data: false,
    }
}

fn device() -> RequesterId {
    RequesterId::new(0, 0x10, 0).unwrap()
}

/// Words of 6.5.2 and 7.6.1 beside what they mean.
fn golden() -> Vec<([u64; 2], Descriptor)> {
    let domain = DomainId(0x1234);
    let pasid = Pasid::new(0xabcde).unwrap();
    let everything = DeviceTlbScope { address: Iova(0x7fff_ffff_ffff_f000), large: true };
    let pages = Pages { address: Iova(0x7fff_f000), mask: 9, leaf_only: true };
    let source = RequesterId::from_bits(0xabcd);
    let iotlb = |scope, drain| Descriptor::Iotlb { scope, drain_reads: drain, drain_writes: drain };
    let wait = Wait {
        status: Some((Gpa(0x1234_5678), 0xcafe_f00d)),
        interrupt: true,
        fence: true,
        page_request_drain: false,
    };
    let response = PageGroupResponse {
        source: device(),
        pasid: Some(pasid),
        group: 3,
        code: 1,
        private_data: None,
    };
    let entry = InterruptEntryScope::Index { index: 0x42, mask: 3 };
    let context = ContextScope::Device { domain, source, function_mask: 2 };
    Vec::from([
        ([0x11, 0], Descriptor::ContextCache(ContextScope::Global)),
        ([0x1234_0021, 0], Descriptor::ContextCache(ContextScope::Domain(domain))),
        ([0x0002_abcd_1234_0031, 0], Descriptor::ContextCache(context)),
        ([0x12, 0], iotlb(IotlbScope::Global, false)),
        ([0x1234_00e2, 0], iotlb(IotlbScope::Domain(domain), true)),
        ([0x1234_00f2, 0x7fff_f049], iotlb(IotlbScope::Pages(domain, pages), true)),
        (
            [0x0000_0080_0000_0003, 0x7fff_ffff_ffff_f001],
            Descriptor::DeviceTlb { source: device(), scope: everything },
        ),
        ([0x04, 0], Descriptor::InterruptEntryCache(InterruptEntryScope::Global)),
        ([0x0000_0042_1800_0014, 0], Descriptor::InterruptEntryCache(entry)),
        ([0xcafe_f00d_0000_0075, 0x1234_5678], Descriptor::Wait(wait)),
        ([0x05, 0], Descriptor::Wait(Wait::default())),
        (
            [0x000a_bcde_1234_0026, 0],
            Descriptor::PasidIotlb { domain, pasid, scope: PasidIotlbScope::All },
        ),
        (
            [0x000a_bcde_1234_0036, 0x7fff_f049],
            Descriptor::PasidIotlb { domain, pasid, scope: PasidIotlbScope::Pages(pages) },
        ),
        ([0x1234_0007, 0], Descriptor::PasidCache(PasidCacheScope::Domain(domain))),
        ([0x000a_bcde_1234_0017, 0], Descriptor::PasidCache(PasidCacheScope::Pasid(domain, pasid))),
        ([0x37, 0], Descriptor::PasidCache(PasidCacheScope::Global)),
        (
            [0x000a_bcde_0080_0008, 0x7fff_ffff_ffff_f800],
            Descriptor::PasidDeviceTlb { source: device(), pasid: Some(pasid), scope: everything },
        ),
        (
            [0x0080_0008, 0x7fff_ffff_ffff_f801],
            Descriptor::PasidDeviceTlb { source: device(), pasid: None, scope: everything },
        ),
        ([0x000a_bcde_0080_1019, 0x18], Descriptor::PageGroupResponse(response)),
    ])
}

#[test]
fn descriptors_encode_as_the_specification_has_them() {
    for ([low, high], descriptor) in golden() {
        assert_eq!(descriptor.encode(), [low, high, 0, 0], "{descriptor:?}");
        assert_eq!(Descriptor::decode([low, high, 0, 0], &rules()), Ok(descriptor));
    }
}

#[test]
fn a_reserved_bit_anywhere_is_refused() {
    for ([low, high], descriptor) in golden() {
        let kind = (low & 15) as u8;
        for bit in 128..256 {
            let mut words = [low, high, 0, 0];
            words[bit / 64] |= 1 << (bit % 64);
            let reserved = Err(DescriptorError::Reserved(kind));
            assert_eq!(Descriptor::decode(words, &rules()), reserved, "{descriptor:?} bit {bit}");
        }
    }
    // The reserved bits of the first 128, by type (those of the type field aside).
    let reserved: [(u64, u64, u64); 9] = [
        (0x11, 0xfffc_0000_0000_f1c0, u64::MAX),
        (0x12, 0xffff_ffff_0000_f100, 0xf80),
        (0x03, 0xffff_0000_ffe0_f1f0, 0xffe),
        (0x04, 0xffff_0000_07ff_f1e0, u64::MAX),
        (0x05, 0x0000_0000_ffff_f100, 3),
        (0x26, 0xfff0_0000_0000_f1c0, 0xf80),
        (0x37, 0xfff0_0000_0000_f1c0, u64::MAX),
        (0x08, 0xfff0_0000_0000_f000, 0x7fe),
        (0x09, 0xfff0_0000_0000_01e0, 0xffff_ffff_ffff_f003),
    ];
    for (low, reserved_low, reserved_high) in reserved {
        let decode = |low, high| Descriptor::decode([low, high, 0, 0], &rules());
        let expected = DescriptorError::Reserved((low & 15) as u8);
        assert!(decode(low, 0).is_ok(), "{low:#x}");
        for bit in (0..64).map(|bit| 1u64 << bit) {
            if reserved_low & bit != 0 {
                assert_eq!(decode(low | bit, 0), Err(expected), "{low:#x} low {bit:#x}");
            }
            let refused = decode(low, bit) == Err(expected);
            assert_eq!(refused, reserved_high & bit != 0, "{low:#x} high {bit:#x}");
        }
    }
}

#[test]
fn types_are_valid_where_table_26_says() {
    let valid = |width, mode| -> Vec<u8> {
        let rules = DescriptorRules { width, mode, ..rules() };
        let accepts = |kind: &u8| {
            // Some granularity is valid for each type.
            let word = |granularity: u64| u64::from(*kind) | granularity << 4;
            (0..4).any(|g| Descriptor::decode([word(g), 0, 0, 0], &rules).is_ok())
        };
        (0..16).filter(accepts).collect()
    };
    let (narrow, wide) = (DescriptorWidth::Bits128, DescriptorWidth::Bits256);
    assert_eq!(valid(narrow, TableMode::Legacy), [1, 2, 3, 4, 5]);
    assert_eq!(valid(wide, TableMode::Legacy), [1, 2, 3, 4, 5]);
    assert_eq!(valid(narrow, TableMode::Scalable), []);
    assert_eq!(valid(wide, TableMode::Scalable), [1, 2, 3, 4, 5, 6, 7, 8, 9]);
    assert_eq!(valid(wide, TableMode::Reserved), []);
    assert_eq!(valid(wide, TableMode::AbortDma), []);
}

#[test]
fn types_need_their_capabilities() {
    let bare =
        DescriptorRules { extended: ExtendedCapability::new().with_scalable_mode(true), ..rules() };
    for kind in [3, 4, 8, 9, 10, 15] {
        let decoded = Descriptor::decode([kind, 0, 0, 0], &bare);
        assert_eq!(decoded, Err(DescriptorError::Type(kind as u8)));
    }
    // Type bits 6:4 are bits 11:9 of the word.
    let decoded = Descriptor::decode([0x201, 0, 0, 0], &rules());
    assert_eq!(decoded, Err(DescriptorError::Type(0x11)));
    // Page-request draining.
    let decoded = Descriptor::decode([0x85, 0, 0, 0], &bare);
    assert_eq!(decoded, Err(DescriptorError::Reserved(5)));
}

#[test]
fn reserved_values_are_refused() {
    let refused = |word: u64| Descriptor::decode([word, 0, 0, 0], &rules());
    for (kind, granularity) in [(1, 0), (2, 0), (6, 0), (6, 1), (7, 2)] {
        let error = DescriptorError::Granularity { kind, granularity };
        assert_eq!(refused(u64::from(kind) | u64::from(granularity) << 4), Err(error));
        assert_eq!(error.info(), QueueErrorInfo::Reserved);
    }
    let too_large = Descriptor::decode([0x32, 19, 0, 0], &rules());
    assert_eq!(too_large, Err(DescriptorError::AddressMask { mask: 19, limit: 18 }));
    // Any mask goes with a PASID (11.4.2).
    assert!(Descriptor::decode([0x36, 63, 0, 0], &rules()).is_ok());
    let coarse = DescriptorRules { capability: Capability::new(), ..rules() };
    assert!(Descriptor::decode([0x32, 0, 0, 0], &coarse).is_err());
}

#[test]
fn address_masks_name_aligned_runs() {
    let range = |start, last| Range { start: Iova(start), last: Iova(last) };
    assert_eq!(page_range(Iova(0x5000), 0), range(0x5000, 0x5fff));
    assert_eq!(page_range(Iova(0x5000), 1), range(0x4000, 0x5fff));
    assert_eq!(page_range(Iova(0x1234_5000), 9), range(0x1220_0000, 0x123f_ffff));
    assert_eq!(page_range(Iova(u64::MAX << 12), 51), range(1 << 63, u64::MAX));
    assert_eq!(page_range(Iova(0x5000), 52), range(0, u64::MAX));
    assert_eq!(page_range(Iova(0x5000), 63), range(0, u64::MAX));

    assert_eq!(device_tlb_range(Iova(0x5000), false), range(0x5000, 0x5fff));
    assert_eq!(device_tlb_range(Iova(0x4000), true), range(0x4000, 0x5fff));
    assert_eq!(device_tlb_range(Iova(0x5000), true), range(0x4000, 0x7fff));
    assert_eq!(device_tlb_range(Iova(0x7fff_ffff_ffff_f000), true), range(0, u64::MAX));
    assert_eq!(device_tlb_range(Iova(u64::MAX << 12), true), range(0, u64::MAX));
}

#[test]
fn register_fields_lie_where_the_specification_has_them() {
    // CAP and ECAP of a unit that Linux is known to work with.
    let capability = Capability::from_bits(0x81d2_008c_222f_0686);
    assert_eq!(capability.domains(), 6);
    assert!(capability.caching_mode() && capability.page_selective());
    assert_eq!(capability.second_stage_widths(), 0b0110);
    assert_eq!(capability.max_guest_width(), 47);
    assert_eq!(capability.fault_record_offset(), 0x22);
    assert_eq!(capability.second_stage_large(), 0b11);
    assert_eq!((capability.fault_records(), capability.max_address_mask()), (0, 18));
    assert!(capability.drain_reads() && capability.drain_writes());
    assert!(capability.first_stage_1g() && capability.root_pointer_invalidates());
    let extended = ExtendedCapability::from_bits(0x0001_dd9a_20f0_0f4e);
    assert!(!extended.coherent() && extended.queued_invalidation() && extended.device_tlb());
    assert!(extended.interrupt_remapping() && extended.pass_through() && !extended.nested());
    assert_eq!((extended.iotlb_offset(), extended.max_handle_mask()), (0xf, 0xf));
    assert_eq!(extended.pasid_size(), 19);
    assert!(extended.page_requests() && extended.pasid() && extended.scalable_mode());
    assert!(extended.virtual_commands() && extended.page_walk_snoop());
    assert!(extended.first_stage() && extended.second_stage());

    assert_eq!(GlobalCommand::new().with_translation(true).into_bits(), 1 << 31);
    assert_eq!(GlobalCommand::new().with_set_root_pointer(true).into_bits(), 1 << 30);
    assert_eq!(GlobalCommand::new().with_queued_invalidation(true).into_bits(), 1 << 26);
    assert_eq!(GlobalCommand::new().with_interrupt_remapping(true).into_bits(), 1 << 25);
    assert_eq!(GlobalCommand::new().with_set_interrupt_pointer(true).into_bits(), 1 << 24);
    assert_eq!(GlobalCommand::new().with_compatibility_interrupts(true).into_bits(), 1 << 23);
    assert_eq!(GlobalStatus::new().with_queued_invalidation(true).into_bits(), 1 << 26);
    assert_eq!(RootTableAddress::new().with_mode(1).with_page(0x12).into_bits(), 0x12400);
    assert_eq!(QueueAddress::new().with_size(2).with_wide(true).into_bits(), 0x802);
    let status = FaultStatus::new().with_pending(true).with_queue_error(true).with_record(3);
    assert_eq!(status.into_bits(), 0x312);
    let error = QueueErrorRecord::new().with_info(4).with_timeout_source(0x80);
    assert_eq!(error.into_bits(), 0x0000_0080_0000_0004);
}

#[test]
fn table_entries_lie_where_the_specification_has_them() {
    assert_eq!(RootEntry::new().with_present(true).with_table(0x12).into_bits(), 0x12001);
    let legacy = ContextEntry::new()
        .with_present(true)
        .with_translation(TranslationType::PassThrough)
        .with_table(0x12)
        .with_width(2)
        .with_domain(0x1234);
    assert_eq!(legacy.into_bits(), 0x0012_3402_0000_0000_0001_2009);
    let scalable = ScalableContextEntry::new()
        .with_present(true)
        .with_device_tlb(true)
        .with_pasid(true)
        .with_directory_size(7)
        .with_directory(0x12)
        .with_rid_pasid(0xabcde)
        .with_rid_privileged(true);
    assert_eq!(scalable.into_bits(), 0x001a_bcde_0000_0000_0001_2e0d);
}

#[test]
fn fault_records_lie_where_the_specification_has_them() {
    let high = FaultRecordHigh::new()
        .with_fault(true)
        .with_type1(true)
        .with_pasid(5)
        .with_reason(FaultCode::PasidEntryNotPresent.code())
        .with_pasid_present(true)
        .with_source(0x80);
    assert_eq!(high.into_bits(), 0xc000_0559_8000_0080);
    let low = FaultRecordLow::new().with_page(0x7_f123_4567);
    assert_eq!(low.into_bits(), 0x7f12_3456_7000);
}

/// Words of 7.4.1.1 beside what they mean.
#[test]
fn page_requests_lie_where_the_specification_has_them() {
    let plain = PageRequest {
        requester: device(),
        pasid: Pasid::new(0xabcde),
        privileged: false,
        execute: false,
        read: false,
        write: true,
        address: Iova(0x7fff_1234_5000),
        group: PrgIndex::from_field(3),
        last: true,
        private_data: None,
    };
    let golden = [
        ([0x000a_bcde_0080_0101, 0x7fff_1234_501e, 0, 0], plain),
        (
            [0x0080_0001, 0xffff_ffff_ffff_fff9, 0, 0],
            PageRequest {
                pasid: None,
                read: true,
                write: false,
                last: false,
                group: PrgIndex::from_field(0x1ff),
                address: Iova(0xffff_ffff_ffff_f000),
                ..plain
            },
        ),
        (
            [0x003a_bcde_0080_0101, 0x7fff_1234_501f, 0, 0],
            PageRequest { privileged: true, execute: true, read: true, ..plain },
        ),
        (
            [0x000a_bcde_0080_0301, 0x7fff_1234_501e, 0x1111, 0x2222],
            PageRequest { private_data: Some([0x1111, 0x2222]), ..plain },
        ),
    ];
    for (words, request) in golden {
        assert_eq!(PageRequestDescriptor::encode(&request), PageRequestDescriptor(words));
        assert_eq!(PageRequestDescriptor(words).decode(), Ok(request));
    }
    let refused = |words| PageRequestDescriptor(words).decode().unwrap_err();
    assert_eq!(refused([0x102, 0, 0, 0]), PageRequestDescriptorError::Type(2));
    for bit in (10..16).chain(54..64).chain(128..256) {
        let mut words = golden[0].0;
        words[bit / 64] |= 1 << (bit % 64);
        assert_eq!(refused(words), PageRequestDescriptorError::Reserved, "bit {bit}");
    }
}

#[test]
fn private_data_of_answers_needs_its_revision() {
    let words = [0x000a_bcde_0080_1039, 0x18, 0x1111, 0x2222];
    let reserved = Err(DescriptorError::Reserved(9));
    assert_eq!(Descriptor::decode(words, &rules()), reserved);
    let old = DescriptorRules { private_data: true, ..rules() };
    let decoded = Descriptor::decode(words, &old).unwrap();
    let Descriptor::PageGroupResponse(response) = decoded else { panic!("{decoded:?}") };
    assert_eq!(response.private_data, Some([0x1111, 0x2222]));
    assert_eq!(decoded.encode(), words);
    // Without the bit there is none.
    let [low, high, ..] = words;
    assert_eq!(Descriptor::decode([low & !(1 << 5), high, 1, 0], &old), reserved);
    assert_eq!(Descriptor::decode([0x11, 0, 1, 0], &old), Err(DescriptorError::Reserved(1)));
    // LPIG of the same revisions says nothing.
    let [low, high, ..] = PAGE_GROUP_RESPONSE;
    assert_eq!(
        Descriptor::decode([low, high | 4, 0, 0], &rules()),
        Descriptor::decode(PAGE_GROUP_RESPONSE, &rules())
    );
}

const PAGE_GROUP_RESPONSE: [u64; 4] = [0x000a_bcde_0080_1019, 0x18, 0, 0];

/// Words of 6.5.2.12 of revision 2.x, as the kernels of its time wrote them.
#[test]
fn stream_responses_lie_where_revision_2_has_them() {
    let response = PageStreamResponse {
        source: RequesterId::from_bits(0x1280),
        pasid: Pasid::new(0xabcde).unwrap(),
        index: 0x1ff,
        address: Iova(0x7fff_1234_5000),
        private_data: 0x12_3456,
        code: RESPONSE_FAILURE,
    };
    let words = [0x1ff << 55 | 0x12_3456 << 32 | 0x12 << 24 | 0xabcde << 4 | 10, 0x7fff_1234_580f];
    assert_eq!(response.encode(), words);
    assert_eq!(PageStreamResponse::decode(words), Some(response));
    assert_eq!(PageStreamResponse::decode([words[0] ^ 1, words[1]]), None);
    // No mode that there is now takes it.
    for mode in [TableMode::Legacy, TableMode::Scalable] {
        let rules = DescriptorRules { mode, ..rules() };
        let decoded = Descriptor::decode([words[0], words[1], 0, 0], &rules);
        assert_eq!(decoded, Err(DescriptorError::Type(0x0a | ((words[0] >> 9 & 7) as u8) << 4)));
    }
}

#[test]
fn fault_codes_are_distinct() {
    let mut codes: Vec<u8> = FaultCode::ALL.iter().map(|code| code.code()).collect();
    codes.sort_unstable();
    codes.dedup();
    assert_eq!(codes.len(), FaultCode::ALL.len());
}

#[test]
fn the_register_table_is_in_order() {
    let virtual_registers = VcmdLayout::ALL.iter().flat_map(|layout| layout.registers());
    for register in REGISTERS.iter().chain(virtual_registers) {
        let bits = u32::from(register.width.bytes()) * 8;
        let fits = |mask: u64| bits == 64 || mask >> bits == 0;
        assert_eq!(register.offset % register.width.bytes(), 0, "{}", register.name);
        assert!(u64::from(register.end()) <= PAGE_SIZE, "{}", register.name);
        assert!(fits(register.writable) && fits(register.clears), "{}", register.name);
        assert_eq!(register.writable & register.clears, 0, "{}", register.name);
        let (writable, clears) = (register.writable != 0, register.clears != 0);
        let expected = match register.access {
            AccessClass::ReadOnly => (false, false),
            AccessClass::ReadWrite | AccessClass::WriteOnly => (true, false),
            AccessClass::WriteOneToClear => (false, true),
        };
        assert_eq!((writable, clears), expected, "{}", register.name);
    }
    for layout in [None, Some(VcmdLayout::Revision30), Some(VcmdLayout::Revision33)] {
        let table: Vec<_> = registers(layout).collect();
        assert_eq!(table.len(), REGISTERS.len() + if layout.is_some() { 3 } else { 0 });
        for pair in table.windows(2) {
            assert!(pair[0].end() <= pair[1].offset, "{} and {}", pair[0].name, pair[1].name);
        }
    }
}

#[test]
fn registers_are_found_by_their_bytes() {
    let in_layout = |layout, offset, len| {
        registers_in(layout, offset, len).map(|r| r.offset).collect::<Vec<_>>()
    };
    let found = |offset, len| in_layout(None, offset, len);
    assert_eq!(found(0x18, 8), [0x18, 0x1c]);
    assert_eq!(found(0x1b, 2), [0x18, 0x1c]);
    assert_eq!(found(0x0c, 4), [0x08]);
    assert!(found(0x04, 4).is_empty());
    assert_eq!(found(0x298, 8), [0x298]);
    assert!(found(0x2a0, 8).is_empty());
    assert!(found(u64::MAX, 8).is_empty());

    assert!(found(0xe00, 8).is_empty());
    for (layout, offsets) in [
        (VcmdLayout::Revision30, [0xe00, 0xe10, 0xe20]),
        (VcmdLayout::Revision33, [0xe00, 0xe10, 0xe30]),
    ] {
        let found = |offset, len| in_layout(Some(layout), offset, len);
        assert_eq!(found(0x18, 8), [0x18, 0x1c]);
        assert!(found(0x2a0, 8).is_empty() && found(0xe08, 8).is_empty());
        for offset in offsets {
            assert_eq!(found(u64::from(offset) + 7, 8), [offset]);
            assert_eq!(found(u64::from(offset) - 7, 8), [offset]);
        }
        assert!(found(0xe38, 8).is_empty() && found(u64::MAX, 8).is_empty());
    }
}

proptest! {
    #[test]
    fn any_bits_decode_to_a_descriptor_or_a_reason(
        low: u64, high: u64, kind in 0u64..12, sparse: bool, wide: bool, scalable: bool,
    ) {
        // Mostly plausible descriptors: random bits alone are nearly always reserved ones.
        let keep = if sparse { 0xffff_ffff_0030 } else { u64::MAX };
        let words = [(low & keep & !15) | kind, if sparse { high & !0xfff } else { high }, 0, 0];
        let rules = DescriptorRules {
            width: if wide { DescriptorWidth::Bits256 } else { DescriptorWidth::Bits128 },
            mode: if scalable { TableMode::Scalable } else { TableMode::Legacy },
            ..rules()
        };
        if let Ok(descriptor) = Descriptor::decode(words, &rules) {
            prop_assert_eq!(Descriptor::decode(descriptor.encode(), &rules), Ok(descriptor));
        }
    }
}
