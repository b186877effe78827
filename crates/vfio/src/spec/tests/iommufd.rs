//! Golden bytes of iommufd's structures, and of what is ours after them.

use std::vec::Vec;

use super::*;

/// Words of four bytes, in a row.
fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

const FAILURE: ObjectFailure = ObjectFailure { code: 0xa1, field: 0xa2, value: 0xa4_0000_00a3 };
/// [`FAILURE`] as words.
const FAILED: [u32; 4] = [0xa1, 0xa2, 0xa3, 0xa4];

/// Checks that a structure has iommufd's words, then ours, then the failure.
fn check<T: IntoBytes + zerocopy::Immutable>(value: &T, iommufd: &[u32], ours: &[u32]) {
    let golden = words(&[iommufd, ours, &FAILED].concat());
    assert_eq!(value.as_bytes(), golden);
}

#[test]
fn small_ones() {
    let destroy = Destroy { size: 8, id: 2, failure: FAILURE };
    check(&destroy, &[8, 2], &[]);
    let ioas = IoasAlloc { size: 12, flags: 1, out_ioas_id: 2, reserved: 3, failure: FAILURE };
    check(&ioas, &[12, 1, 2], &[3]);
    let queue =
        FaultQueueAlloc { size: 16, flags: 1, out_fault_id: 2, out_fault_fd: 3, failure: FAILURE };
    check(&queue, &[16, 1, 2, 3], &[]);
    let vdevice = VdeviceAlloc {
        size: 24,
        viommu_id: 1,
        dev_id: 2,
        out_vdevice_id: 3,
        virt_id: 5 << 32 | 4,
        failure: FAILURE,
    };
    check(&vdevice, &[24, 1, 2, 3, 4, 5], &[]);
}

#[test]
fn hwpt_alloc() {
    let request = HwptAlloc {
        size: 48,
        flags: 1,
        dev_id: 2,
        pt_id: 3,
        out_hwpt_id: 4,
        reserved: 5,
        data_type: 6,
        data_len: 7,
        data_uptr: 9 << 32 | 8,
        fault_id: 10,
        reserved2: 11,
        parent_kind: 12,
        fault_given: 13,
        failure: FAILURE,
    };
    check(&request, &[48, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], &[12, 13]);
}

#[test]
fn hw_info() {
    let request = GetHwInfo {
        size: 40,
        flags: 1,
        dev_id: 2,
        data_len: 3,
        data_uptr: 5 << 32 | 4,
        out_data_type: 6,
        out_max_pasid_log2: 7,
        reserved: [8, 9, 10],
        out_capabilities: 12 << 32 | 11,
        failure: FAILURE,
    };
    check(&request, &[40, 1, 2, 3, 4, 5, 6, 0x0a09_0807, 11, 12], &[]);
    let vtd = VtdInfo { flags: 1, reserved: 2, cap_reg: 4 << 32 | 3, ecap_reg: 6 << 32 | 5 };
    assert_eq!(vtd.as_bytes(), words(&[1, 2, 3, 4, 5, 6]));
    let smmu = SmmuInfo { flags: 1, reserved: 2, idr: [3, 4, 5, 6, 7, 8], iidr: 9, aidr: 10 };
    assert_eq!(smmu.as_bytes(), words(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]));
}

#[test]
fn hwpt_invalidate() {
    let request = HwptInvalidate {
        size: 32,
        hwpt_id: 1,
        data_uptr: 3 << 32 | 2,
        data_type: 4,
        entry_len: 5,
        entry_num: 6,
        reserved: 7,
        ticket: 9 << 32 | 8,
        failure: FAILURE,
    };
    check(&request, &[32, 1, 2, 3, 4, 5, 6, 7], &[8, 9]);
    let entry =
        VtdInvalidateEntry { addr: 2 << 32 | 1, npages: 4 << 32 | 3, flags: 5, reserved: 6 };
    assert_eq!(entry.as_bytes(), words(&[1, 2, 3, 4, 5, 6]));
}

#[test]
fn viommu_and_its_queue() {
    let viommu = ViommuAlloc {
        size: 40,
        flags: 1,
        kind: 2,
        dev_id: 3,
        hwpt_id: 4,
        out_viommu_id: 5,
        data_len: 6,
        reserved: 7,
        data_uptr: 9 << 32 | 8,
        failure: FAILURE,
    };
    check(&viommu, &[40, 1, 2, 3, 4, 5, 6, 7, 8, 9], &[]);
    let queue = VeventqAlloc {
        size: 32,
        flags: 1,
        viommu_id: 2,
        kind: 3,
        veventq_depth: 4,
        out_veventq_id: 5,
        out_veventq_fd: 6,
        reserved: 7,
        failure: FAILURE,
    };
    check(&queue, &[32, 1, 2, 3, 4, 5, 6, 7], &[]);
    let event = ReadEvent {
        argsz: 136,
        queue: 1,
        present: 2,
        sequence: 3,
        virtual_id: 5 << 32 | 4,
        fault: ReadFault { requester: 6, ..ReadFault::new_zeroed() },
        failure: FAILURE,
    };
    let fault = [&[0; 18][..], &[6, 0, 0, 0, 0, 0]].concat();
    check(&event, &[136, 1, 2, 3, 4, 5], &fault);
}

#[test]
fn attaching() {
    let attach = AttachPageTable {
        argsz: 16,
        flags: 1,
        pt_id: 2,
        pasid: 3,
        dev_id: 4,
        reserved: 5,
        ticket: 7 << 32 | 6,
        failure: FAILURE,
    };
    check(&attach, &[16, 1, 2, 3], &[4, 5, 6, 7]);
    let detach = DetachPageTable {
        argsz: 12,
        flags: 1,
        pasid: 2,
        dev_id: 3,
        ticket: 5 << 32 | 4,
        failure: FAILURE,
    };
    check(&detach, &[12, 1, 2], &[3, 4, 5]);
}

#[test]
fn begins_as_vfio_has_it() {
    use vfio::{vfio_device_attach_iommufd_pt as Attach, vfio_device_detach_iommufd_pt as Detach};
    assert_eq!(size_of::<Attach>(), offset_of!(AttachPageTable, dev_id));
    assert_eq!(offset_of!(AttachPageTable, pt_id), offset_of!(Attach, pt_id));
    assert_eq!(offset_of!(AttachPageTable, pasid), offset_of!(Attach, pasid));
    assert_eq!(size_of::<Detach>(), offset_of!(DetachPageTable, dev_id));
    assert_eq!(offset_of!(DetachPageTable, pasid), offset_of!(Detach, pasid));
    assert_eq!(flags::ATTACH_PASID, vfio::VFIO_DEVICE_ATTACH_PASID);
    assert_eq!(flags::ATTACH_PASID, vfio::VFIO_DEVICE_DETACH_PASID);
}
