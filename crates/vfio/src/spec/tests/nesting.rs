//! Golden bytes of what was posted for a guest's PASID tables.

use std::vec::Vec;

use super::*;

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

const SMMUV3: PasidSmmuv3 =
    PasidSmmuv3 { version: 0xb1, s1fmt: 0xb2, s1dss: 0xb3, padding: [0xb4, 0xb5] };
/// [`SMMUV3`] as words.
const SMMUV3_WORDS: [u32; 2] = [0xb1, 0xb5b4_b3b2];

#[test]
fn pasid_table_config_in_three_layouts() {
    let last = PasidTableConfig {
        argsz: 32,
        version: 1,
        base_ptr: 3 << 32 | 2,
        format: 4,
        pasid_bits: 5,
        config: 6,
        padding: [7, 8],
        smmuv3: SMMUV3,
    };
    let golden = [&[32, 1, 2, 3, 4, 0x0807_0605][..], &SMMUV3_WORDS].concat();
    assert_eq!(last.as_bytes(), words(&golden));
    let v13 = PasidTableConfigV13 {
        argsz: 40,
        version: 1,
        format: 2,
        hole: 3,
        base_ptr: 5 << 32 | 4,
        pasid_bits: 6,
        config: 7,
        padding: [8, 9],
        smmuv3: SMMUV3,
        tail: 10,
    };
    let golden = [&[40, 1, 2, 3, 4, 5, 0x0908_0706][..], &SMMUV3_WORDS, &[10]].concat();
    assert_eq!(v13.as_bytes(), words(&golden));
    let v7 = PasidTableConfigV7 {
        version: 1,
        format: 2,
        base_ptr: 4 << 32 | 3,
        pasid_bits: 5,
        config: 6,
        padding: [7, 8, 9, 10, 11, 12],
        smmuv3: SMMUV3,
    };
    let golden = [&[1, 2, 3, 4, 0x0807_0605, 0x0c0b_0a09][..], &SMMUV3_WORDS].concat();
    assert_eq!(v7.as_bytes(), words(&golden));
    use flags::*;
    assert_eq!([CONFIG_TRANSLATE, CONFIG_BYPASS, CONFIG_ABORT], [1, 2, 3]);
    assert_eq!([PASID_TABLE_SET, PASID_TABLE_UNSET, MSI_BIND, MSI_UNBIND], [1, 2, 1, 2]);
}

#[test]
fn cache_invalidate_info_of_linux_5_3() {
    let info = CacheInvalidateInfo53 {
        version: 1,
        cache: 2,
        granularity: 3,
        padding: [4, 5],
        scope: [6; 40],
    };
    assert_eq!(info.as_bytes(), [&[1, 0, 0, 0, 2, 3, 4, 5][..], &[6; 40]].concat());
}

#[test]
fn msi_binding() {
    let binding = SetMsiBinding {
        argsz: 32,
        flags: 1,
        iova: 3 << 32 | 2,
        gpa: 5 << 32 | 4,
        size: 7 << 32 | 6,
    };
    assert_eq!(binding.as_bytes(), words(&[32, 1, 2, 3, 4, 5, 6, 7]));
}

#[test]
fn gpasid_bind_data_in_two_layouts() {
    let vtd = GpasidVtd { flags: 0xa2 << 32 | 0xa1, pat: 0xa3, emt: 0xa4 };
    let new = GpasidBindData {
        argsz: 72,
        version: 1,
        format: 2,
        addr_width: 3,
        flags: 5 << 32 | 4,
        gpgd: 7 << 32 | 6,
        hpasid: 9 << 32 | 8,
        gpasid: 11 << 32 | 10,
        padding: [12; 8],
        vtd,
    };
    let padding = 0x0c0c_0c0c;
    let tail = [0xa1, 0xa2, 0xa3, 0xa4];
    let golden = [&[72, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, padding, padding][..], &tail].concat();
    assert_eq!(new.as_bytes(), words(&golden));
    let old = GpasidBindData53 {
        version: 1,
        format: 2,
        flags: 4 << 32 | 3,
        gpgd: 6 << 32 | 5,
        hpasid: 8 << 32 | 7,
        gpasid: 10 << 32 | 9,
        addr_width: 11,
        padding: [12; 12],
        vtd,
    };
    let golden =
        [&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, padding, padding, padding][..], &tail].concat();
    assert_eq!(old.as_bytes(), words(&golden));
    use flags::*;
    assert_eq!([GPASID_VTD_SRE, GPASID_VTD_EAFE, GPASID_VTD_WPE], [1, 2, 64]);
    assert_eq!(GPASID_VTD_MEMORY_TYPES, 0x3c);
}

#[test]
fn page_response() {
    let response = PageResponse { argsz: 24, version: 1, flags: 2, pasid: 3, grpid: 4, code: 5 };
    assert_eq!(response.as_bytes(), words(&[24, 1, 2, 3, 4, 5]));
}

#[test]
fn nesting_info_in_two_layouts() {
    let v7 = NestingInfoV7 {
        size: 48,
        format: 1,
        features: 2,
        flags: 3,
        addr_width: 4,
        pasid_bits: 5,
        padding: 6,
    };
    assert_eq!(v7.as_bytes(), words(&[48, 1, 2, 3, 5 << 16 | 4, 6]));
    let vtd = NestingVtdV7 { flags: 1, padding: 2, cap_reg: 4 << 32 | 3, ecap_reg: 6 << 32 | 5 };
    assert_eq!(vtd.as_bytes(), words(&[1, 2, 3, 4, 5, 6]));
    let last = NestingInfo {
        argsz: 64,
        flags: 1,
        format: 2,
        features: 3,
        addr_width: 4,
        pasid_bits: 5,
        padding: [0; 12],
        vendor_flags: 6,
        vendor_padding: [0; 12],
        cap_reg: 8 << 32 | 7,
        ecap_reg: 10 << 32 | 9,
    };
    let golden = [64, 1, 2, 3, 5 << 16 | 4, 0, 0, 0, 6, 0, 0, 0, 7, 8, 9, 10];
    assert_eq!(last.as_bytes(), words(&golden));
}
