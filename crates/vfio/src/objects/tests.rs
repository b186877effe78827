use iommu::{
    GuestPasid, Hardware, InvalidField, ObjectError, ObjectId, Pasid, SmmuCaps,
    StageOneInvalidation, StageOneTable, TableCaps, VtdPasidTable, VtdStageOne, VtdStageOneFlags,
};
use mem::{Gpa, Iova, Range};
use pci::RequesterId;
use proptest::prelude::*;
use zerocopy::IntoBytes;

use super::*;
use crate::spec::flags::*;
use crate::spec::{ObjectFailure, VtdInvalidateEntry};
use crate::{ArgumentError, Errno, Refusal};

const ERRORS: [(ObjectError, u32, u64); 12] = [
    (ObjectError::NotSupported, 1, 0),
    (ObjectError::NoDevice(RequesterId::from_bits(0x1234)), 2, 0x1234),
    (ObjectError::NoObject(ObjectId(u32::MAX)), 3, u32::MAX as u64),
    (ObjectError::Busy, 4, 0),
    (ObjectError::NotAttached, 5, 0),
    (ObjectError::NotGranted(GuestPasid(Pasid::MAX)), 6, 0xf_ffff),
    (ObjectError::WrongModel, 7, 0),
    (ObjectError::Invalid(InvalidField::Flags), 8, 0),
    (ObjectError::TooMany { limit: 4096 }, 9, 4096),
    (ObjectError::Refused, 10, 0),
    (ObjectError::NoMemory, 11, 0),
    (ObjectError::Closed, 12, 0),
];

#[test]
fn every_error_has_its_code_and_comes_back() {
    for (error, code, value) in ERRORS {
        let failure = error.to_wire();
        assert_eq!((failure.code, failure.value), (code, value), "{error:?}");
        assert_eq!(ObjectError::from_wire(&failure), Some(error));
    }
    let fields = [
        InvalidField::Flags,
        InvalidField::Parent,
        InvalidField::Data,
        InvalidField::AddressWidth,
        InvalidField::Address,
        InvalidField::Pasid,
        InvalidField::StreamTableEntry,
        InvalidField::FaultQueue,
        InvalidField::VirtualId,
        InvalidField::Range,
        InvalidField::Cookie,
    ];
    for (number, field) in (1..).zip(fields) {
        let failure = ObjectError::Invalid(field).to_wire();
        assert_eq!(failure, ObjectFailure { code: 8, field: number, value: 0 });
        assert_eq!(ObjectError::from_wire(&failure), Some(ObjectError::Invalid(field)));
    }
}

#[test]
fn what_is_no_error_is_none() {
    let unknown = [(0, 0, 0), (13, 0, 0), (8, 0, 0), (8, 12, 0), (2, 0, 0x1_0000), (6, 0, 1 << 20)];
    for (code, field, value) in unknown {
        assert_eq!(ObjectError::from_wire(&ObjectFailure { code, field, value }), None);
    }
}

#[test]
fn the_numbers_of_errors_are_iommufds() {
    let errno = |error: ObjectError| Refusal::from(error).errno();
    let device = RequesterId::from_bits(1);
    assert_eq!(errno(ObjectError::NotSupported), Errno(95));
    assert_eq!(errno(ObjectError::NoObject(ObjectId(1))), Errno(2));
    assert_eq!(errno(ObjectError::NoDevice(device)), Errno(2));
    assert_eq!(errno(ObjectError::Busy), Errno(16));
    assert_eq!(errno(ObjectError::NotAttached), Errno(22));
    assert_eq!(errno(ObjectError::WrongModel), Errno(22));
    assert_eq!(errno(ObjectError::Invalid(InvalidField::Range)), Errno(22));
    assert_eq!(errno(ObjectError::NotGranted(GuestPasid(Pasid::MAX))), Errno(13));
    assert_eq!(errno(ObjectError::TooMany { limit: 1 }), Errno(28));
    assert_eq!(errno(ObjectError::Refused), Errno(1));
    assert_eq!(errno(ObjectError::NoMemory), Errno(12));
    assert_eq!(errno(ObjectError::Closed), Errno(19));
}

fn vtd() -> TableCaps {
    TableCaps { address_bits: 46, second_stage_levels: 0b110, ..TableCaps::FULL }
}

#[test]
fn a_vtd_unit_as_its_registers_say_it() {
    let info = Info::of(Hardware::Vtd(vtd()));
    // FL5LP 60, FL1GP 56, SLLPS 37:34, MGAW 21:16, SAGAW 12:8.
    let cap = 1 << 60 | 1 << 56 | 3 << 34 | 45 << 16 | 6 << 8;
    // SMPWC 48, FLTS 47, SLTS 46, SLADS 45, SMTS 43, PASID 40, PSS 39:35, SRS 31, NEST 26, PT 6.
    let ecap: u64 = 1 << 48 | 7 << 45 | 1 << 43 | 1 << 40 | 19 << 35 | 1 << 31 | 1 << 26 | 1 << 6;
    let mut golden = [0; 24];
    golden[8..16].copy_from_slice(&u64::to_le_bytes(cap));
    golden[16..].copy_from_slice(&ecap.to_le_bytes());
    assert_eq!(info.bytes(), golden);
    assert_eq!((info.data_type(), info.pasid_bits(), info.capabilities()), (1, 20, 4));
    assert_eq!(info.hardware(), Hardware::Vtd(vtd()));
}

fn smmu() -> SmmuCaps {
    SmmuCaps { substream_bits: 16, granule_16k: false, output_bits: 48, ..SmmuCaps::FULL }
}

#[test]
fn an_smmu_as_its_registers_say_it() {
    let info = Info::of(Hardware::Smmuv3(smmu()));
    // CD2L 19, ASID16 12, ATS 10, HTTU 7:6, TTF 3:2, S1P 1, S2P 0.
    let idr0: u32 = 1 << 19 | 1 << 12 | 1 << 10 | 2 << 6 | 2 << 2 | 3;
    // SSIDSIZE 10:6.
    let idr1: u32 = 16 << 6;
    // VAX 11:10, GRAN64K 6, GRAN4K 4, OAS 2:0.
    let idr5: u32 = 1 << 10 | 1 << 6 | 1 << 4 | 5;
    let mut golden = [0; 40];
    golden[8..12].copy_from_slice(&idr0.to_le_bytes());
    golden[12..16].copy_from_slice(&idr1.to_le_bytes());
    golden[28..32].copy_from_slice(&idr5.to_le_bytes());
    assert_eq!(info.bytes(), golden);
    assert_eq!((info.data_type(), info.pasid_bits(), info.capabilities()), (2, 16, 0));
    let without_ats = SmmuCaps { ats: false, ..smmu() };
    assert_eq!(Info::of(Hardware::Smmuv3(without_ats)).capabilities(), 8);
    for output_bits in [32, 36, 40, 42, 44, 48, 52] {
        let hardware = Hardware::Smmuv3(SmmuCaps { output_bits, ..smmu() });
        assert_eq!(Info::of(hardware).hardware(), hardware);
    }
}

#[test]
fn registers_are_read_by_their_type() {
    let bytes = [0xff; 40];
    assert!(Info::read(0, &bytes).is_none());
    assert!(Info::read(3, &bytes).is_none());
    let short = ArgumentError::TooShort { argsz: 39, needed: 40 };
    assert_eq!(Info::read(HW_INFO_ARM_SMMUV3, &bytes[..39]), Some(Err(short)));
    // Whatever the bits: the reserved size of an output address is no more than the largest.
    let Some(Ok(info)) = Info::read(HW_INFO_ARM_SMMUV3, &bytes) else { panic!() };
    let Hardware::Smmuv3(caps) = info.hardware() else { panic!() };
    assert_eq!(caps.output_bits, 52);
}

fn table_bytes(table: StageOneTable) -> (u32, std::vec::Vec<u8>) {
    let mut buffer = [0; MAX_TABLE_BYTES];
    let (kind, len) = encode_table(&table, &mut buffer);
    (kind, buffer[..len as usize].to_vec())
}

#[test]
fn tables_as_iommufd_has_them() {
    let stage_one = VtdStageOne {
        flags: VtdStageOneFlags::SRE | VtdStageOneFlags::WPE,
        root: Gpa(0x1234_5000),
        address_width: 57,
    };
    #[rustfmt::skip]
    let golden = [
        5, 0, 0, 0, 0, 0, 0, 0,  0, 0x50, 0x34, 0x12, 0, 0, 0, 0,  57, 0, 0, 0,  0, 0, 0, 0,
    ];
    assert_eq!(table_bytes(StageOneTable::Vtd(stage_one)), (1, golden.to_vec()));
    let words = [0x0807_0605_0403_0201, 0x100f_0e0d_0c0b_0a09];
    let golden = (1..=16).collect();
    assert_eq!(table_bytes(StageOneTable::Smmuv3(words)), (2, golden));
    let table = VtdPasidTable { directory: Gpa(0x7000), pasid_bits: 20 };
    let golden = [0, 0x70, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(table_bytes(StageOneTable::VtdPasidTable(table)), (0x8000_0001, golden.to_vec()));
}

#[test]
fn a_table_that_cannot_be() {
    let table = |kind, bytes: &[u8], own| decode_table(kind, bytes, own, 24, 100);
    let mut bytes = [0; 24];
    bytes[0] = 8;
    assert_eq!(table(1, &bytes, true), Err(Refusal::Unsupported { offset: 100 }));
    bytes[0] = 7;
    assert!(table(1, &bytes, true).is_ok());
    bytes[17] = 1;
    assert_eq!(table(1, &bytes, true), Err(Refusal::Value { offset: 116 }));
    bytes[20] = 1;
    assert_eq!(table(1, &bytes, true), Err(Refusal::Unsupported { offset: 120 }));
    let short = ArgumentError::TooShort { argsz: 23, needed: 24 };
    assert_eq!(table(1, &bytes[..23], true), Err(short.into()));
    let tail = ArgumentError::UnknownTail { offset: 16 };
    assert_eq!(table(2, &[1; 17], true), Err(tail.into()));
    assert!(table(HWPT_DATA_VTD_PASID_TABLE, &[0; 16], true).is_ok());
    for (kind, own) in [(0, true), (3, true), (HWPT_DATA_VTD_PASID_TABLE, false)] {
        assert_eq!(table(kind, &[0; 16], own), Err(Refusal::Unsupported { offset: 24 }));
    }
    let mut bytes = [0; 16];
    bytes[9] = 1;
    let own = HWPT_DATA_VTD_PASID_TABLE;
    assert_eq!(table(own, &bytes, true), Err(Refusal::Value { offset: 108 }));
    bytes[12] = 1;
    assert_eq!(table(own, &bytes, true), Err(Refusal::Unsupported { offset: 112 }));
}

fn pages(start: u64, last: u64, leaf_only: bool) -> StageOneInvalidation {
    let range = Range { start: Iova(start), last: Iova(last) };
    StageOneInvalidation::Pages { range, leaf_only }
}

fn read(addr: u64, npages: u64, flags: u32, own: bool) -> Result<StageOneInvalidation, Refusal> {
    let entry = VtdInvalidateEntry { addr, npages, flags, reserved: 0 };
    StageOneInvalidation::read(entry.as_bytes(), own)
}

#[test]
fn entries_as_iommufd_has_them() {
    let entry = encode_entry(&pages(0x3000, 0x4fff, true));
    #[rustfmt::skip]
    let golden = [
        0, 0x30, 0, 0, 0, 0, 0, 0,  2, 0, 0, 0, 0, 0, 0, 0,  1, 0, 0, 0,  0, 0, 0, 0,
    ];
    assert_eq!(entry.as_bytes(), golden);
    let all = encode_entry(&StageOneInvalidation::All);
    assert_eq!((all.addr, all.npages, all.flags), (0, u64::MAX, 0));
    let whole = encode_entry(&pages(0, u64::MAX, false));
    assert_eq!((whole.addr, whole.npages, whole.flags), (0, 1 << 52, 0));
    assert_eq!(read(0, u64::MAX, 0, false), Ok(StageOneInvalidation::All));
    assert_eq!(read(0x1000, 1, 1, false), Ok(pages(0x1000, 0x1fff, true)));
    let last_page = u64::MAX - 0xfff;
    assert_eq!(read(last_page, 1, 0, false), Ok(pages(last_page, u64::MAX, false)));
}

#[test]
fn an_entry_that_cannot_be() {
    let (addr, npages) = (Refusal::Value { offset: 0 }, Refusal::Value { offset: 8 });
    assert_eq!(read(1, 1, 0, true), Err(addr));
    assert_eq!(read(0x1000, u64::MAX, 0, true), Err(addr));
    assert_eq!(read(0, 0, 0, true), Err(npages));
    assert_eq!(read(0, (1 << 52) + 1, 0, true), Err(npages));
    assert_eq!(read(0x1000, 1 << 52, 0, true), Err(npages));
    let flags = Err(Refusal::Unsupported { offset: 16 });
    for bit in 1..32 {
        let ours = bit >= 30;
        assert_eq!(read(0, 0, 1 << bit, true) == flags, !ours, "{bit}");
        assert_eq!(read(0, 0, 1 << bit, false), flags, "{bit}");
    }
    let entry = VTD_INVALIDATE_ENTRY;
    for (addr, npages, more) in [(0x1000, 0, 0), (0, 1, 0), (0, 0, VTD_INVALIDATE_LEAF)] {
        let flags = entry | more;
        assert_eq!(read(addr, npages, flags, true), Err(Refusal::Flags { flags }));
    }
    assert_eq!(read(2, u64::MAX - 1, VTD_INVALIDATE_BYTES, true), Err(npages));
    let reserved = VtdInvalidateEntry { addr: 0, npages: 1, flags: 0, reserved: 1 };
    let refused = Err(Refusal::Unsupported { offset: 20 });
    assert_eq!(StageOneInvalidation::read(reserved.as_bytes(), true), refused);
}

proptest! {
    #[test]
    fn every_entry_comes_back(a in any::<u64>(), b in any::<u64>(), page in any::<bool>(), leaf: bool) {
        let (start, last) = (a.min(b), a.max(b));
        let (start, last) = if page { (start & !0xfff, last | 0xfff) } else { (start, last) };
        for what in [pages(start, last, leaf), StageOneInvalidation::All, StageOneInvalidation::Entry] {
            let entry = encode_entry(&what);
            prop_assert_eq!(StageOneInvalidation::read(entry.as_bytes(), true), Ok(what));
        }
    }

    #[test]
    fn every_table_comes_back(flags in 0..8u64, root: u64, bits: u8, words: [u64; 2]) {
        let flags = VtdStageOneFlags::from_bits_retain(flags);
        for table in [
            StageOneTable::Vtd(VtdStageOne { flags, root: Gpa(root), address_width: bits }),
            StageOneTable::Smmuv3(words),
            StageOneTable::VtdPasidTable(VtdPasidTable { directory: Gpa(root), pasid_bits: bits }),
        ] {
            let (kind, bytes) = table_bytes(table);
            prop_assert_eq!(decode_table(kind, &bytes, true, 0, 0), Ok(table));
        }
    }

    #[test]
    fn random_bytes_are_no_panic(kind in 0..4u32, bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = decode_table(kind, &bytes, true, 0, 0);
        let _ = StageOneInvalidation::read(&bytes, true);
        let _ = Info::read(kind, &bytes).and_then(Result::ok).map(|info| info.hardware());
    }
}
