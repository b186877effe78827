//! Golden bytes, little-endian, typed from the layouts and not computed by the code.
#![cfg(target_endian = "little")]

use core::mem::{offset_of, size_of};

use vfio_bindings::bindings::vfio;
use zerocopy::{FromZeros, IntoBytes};

use super::*;

mod device;
mod iommufd;
mod nesting;
mod page_request;

#[test]
fn what_linux_has_is_as_linux_has_it() {
    use vfio::{vfio_iommu_type1_dma_map as Map, vfio_iommu_type1_dma_unmap as Unmap};
    assert_eq!(size_of::<MapDma>(), size_of::<Map>());
    assert_eq!(offset_of!(MapDma, vaddr), offset_of!(Map, vaddr));
    assert_eq!(offset_of!(MapDma, iova), offset_of!(Map, iova));
    assert_eq!(offset_of!(MapDma, size), offset_of!(Map, size));
    assert_eq!(size_of::<UnmapDma>(), size_of::<Unmap>());
    assert_eq!(offset_of!(UnmapDma, iova), offset_of!(Unmap, iova));
    assert_eq!(offset_of!(UnmapDma, size), offset_of!(Unmap, size));
    assert_eq!(flags::MAP_READ, vfio::VFIO_DMA_MAP_FLAG_READ);
    assert_eq!(flags::MAP_WRITE, vfio::VFIO_DMA_MAP_FLAG_WRITE);
    assert_eq!(flags::UNMAP_ALL, vfio::VFIO_DMA_UNMAP_FLAG_ALL);
}

#[test]
fn map_dma() {
    let map = MapDma { argsz: 32, flags: 3, vaddr: 0x1000, iova: 0x1_0000_0000, size: 0x20_0000 };
    #[rustfmt::skip]
    let golden = [
        32, 0, 0, 0,  3, 0, 0, 0,
        0, 0x10, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 1, 0, 0, 0,
        0, 0, 0x20, 0, 0, 0, 0, 0,
    ];
    assert_eq!(map.as_bytes(), golden);
}

#[test]
fn unmap_dma() {
    let unmap = UnmapDma { argsz: 24, flags: 2, iova: 0x0102_0304_0506_0708, size: 0x1000 };
    #[rustfmt::skip]
    let golden = [
        24, 0, 0, 0,  2, 0, 0, 0,
        8, 7, 6, 5, 4, 3, 2, 1,
        0, 0x10, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(unmap.as_bytes(), golden);
}

#[test]
fn pasid_request_as_posted() {
    let request = PasidRequest { argsz: 16, flags: flags::PASID_FREE, min: 1, max: 0xf_ffff };
    let golden = [16, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0x0f, 0];
    assert_eq!(request.as_bytes(), golden);
}

#[test]
fn pasid_request_with_results() {
    let request = OwnPasidRequest {
        argsz: 48,
        flags: flags::PASID_ALLOC,
        min: 0x10,
        max: 0x20,
        pasid: 0x11,
        count: 2,
        quota: 1000,
        live: 3,
        parked: 4,
        reserved: 0,
        ticket: 0x0102_0304_0506_0708,
    };
    #[rustfmt::skip]
    let golden = [
        48, 0, 0, 0,  1, 0, 0, 0,  0x10, 0, 0, 0,  0x20, 0, 0, 0,
        0x11, 0, 0, 0,  2, 0, 0, 0,  0xe8, 3, 0, 0,  3, 0, 0, 0,
        4, 0, 0, 0,  0, 0, 0, 0,  8, 7, 6, 5, 4, 3, 2, 1,
    ];
    assert_eq!(request.as_bytes(), golden);
    assert_eq!([flags::PASID_QUERY, flags::PASID_RELEASE], [4, 8]);
}

#[test]
fn cache_invalidate_as_posted() {
    let mut scope = [0; 40];
    let address = AddressScope {
        flags: flags::SCOPE_PASID | flags::SCOPE_ARCHID | flags::SCOPE_LEAF,
        archid: 0x1234,
        pasid: 0x5678,
        address: 0x7f00_0000_0000,
        granule_size: 0x1000,
        granules: 0x200,
    };
    scope.copy_from_slice(address.as_bytes());
    let info = CacheInvalidateInfo {
        argsz: 56,
        version: 1,
        cache: flags::CACHE_IOTLB,
        granularity: flags::GRANULARITY_ADDRESS,
        padding: [0; 6],
        scope,
    };
    let request = CacheInvalidate { argsz: 64, flags: 0, info };
    #[rustfmt::skip]
    let golden = [
        64, 0, 0, 0,  0, 0, 0, 0,
        56, 0, 0, 0,  1, 0, 0, 0,  1,  2,  0, 0, 0, 0, 0, 0,
        7, 0, 0, 0,  0x34, 0x12, 0, 0,  0x78, 0x56, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0x7f, 0, 0,
        0, 0x10, 0, 0, 0, 0, 0, 0,
        0, 2, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(request.as_bytes(), golden);

    let pasid = PasidScope { flags: 3, archid: 0x1234, pasid: 0x5678 };
    let golden = [3, 0, 0, 0, 0x34, 0x12, 0, 0, 0x78, 0x56, 0, 0, 0, 0, 0, 0];
    assert_eq!(pasid.as_bytes(), golden);
    let caches = [flags::CACHE_IOTLB, flags::CACHE_DEVICE_IOTLB, flags::CACHE_PASID];
    assert_eq!(caches, [1, 2, 4]);
}

#[test]
fn what_our_cache_invalidate_adds() {
    let request = OwnCacheInvalidate {
        argsz: 80,
        flags: flags::INVALIDATE_REQUESTER,
        ticket: 0x0102_0304_0506_0708,
        requester: 0x0080,
        ignore: 7,
        ..OwnCacheInvalidate::new_zeroed()
    };
    assert_eq!(request.as_bytes()[..64], [&[80, 0, 0, 0, 1, 0, 0, 0][..], &[0; 56]].concat());
    let golden = [8, 7, 6, 5, 4, 3, 2, 1, 0x80, 0, 7, 0, 0, 0, 0, 0];
    assert_eq!(request.as_bytes()[64..], golden);
}

#[test]
fn a_fault() {
    assert_eq!(size_of::<DmaFault>(), 64);
    let fault = ReadFault {
        argsz: 96,
        flags: 0,
        fault: DmaFault {
            kind: flags::FAULT_UNRECOVERABLE,
            reason: flags::REASON_PTE_FETCH,
            flags: flags::FAULT_PASID_VALID | flags::FAULT_ADDRESS_VALID,
            pasid: 0x12345,
            permission: flags::PERMISSION_WRITE | flags::PERMISSION_PRIVILEGED,
            address: 0x7f00_0000_1000,
            ..DmaFault::new_zeroed()
        },
        requester: 0x0080,
        code: 24,
        stage: 3,
        level: 2,
        attributes: flags::FAULT_USER | flags::FAULT_STAGE_TWO | flags::FAULT_STAGE_TWO_HOST,
        gpa: 0x1234_5000,
        stage_two_level: 1,
        reserved: [0; 7],
    };
    #[rustfmt::skip]
    let golden = [
        96, 0, 0, 0,  0, 0, 0, 0,
        1, 0, 0, 0,  0, 0, 0, 0,
        5, 0, 0, 0,  3, 0, 0, 0,  0x45, 0x23, 1, 0,  10, 0, 0, 0,
        0, 0x10, 0, 0, 0, 0x7f, 0, 0,  0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,  0, 0, 0, 0, 0, 0, 0, 0,  0, 0, 0, 0, 0, 0, 0, 0,
        0x80, 0,  24, 0,  3,  2,  22, 0,
        0, 0x50, 0x34, 0x12, 0, 0, 0, 0,  1, 0, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(fault.as_bytes(), golden);
}

#[test]
fn the_rest_of_our_own() {
    let mut vm = CreateVm {
        argsz: 144,
        flags: flags::VM_ENFORCE_GRANTS,
        quota: 1000,
        available: 5,
        limit: 6,
        ..CreateVm::new_zeroed()
    };
    vm.name[..2].copy_from_slice(b"vm");
    #[rustfmt::skip]
    let golden = [
        144, 0, 0, 0,  2, 0, 0, 0,  0xe8, 3, 0, 0,  5, 0, 0, 0,  6, 0, 0, 0,  0, 0, 0, 0,
        b'v', b'm', 0,
    ];
    assert_eq!(vm.as_bytes()[..27], golden);
    vm.stage_two.format = flags::STAGE_TWO_VTD;
    assert_eq!(vm.as_bytes()[27..128], [0; 101]);
    assert_eq!(vm.as_bytes()[128..], [&[1][..], &[0; 39]].concat());
    vm.page_requests = PageRequestPolicyArgument {
        flags: flags::PAGE_REQUEST_POLICY | flags::PAGE_REQUEST_POLICY_TIMEOUT,
        per_device: 4,
        seconds: 5,
        nanoseconds: 6,
        reserved: 0,
    };
    #[rustfmt::skip]
    let golden = [
        3, 0, 0, 0,  4, 0, 0, 0,  5, 0, 0, 0, 0, 0, 0, 0,  6, 0, 0, 0,  0, 0, 0, 0,
    ];
    assert_eq!(vm.as_bytes()[144..], golden);

    let update = Ticketed { argsz: 16, flags: flags::UPDATE_COMMIT, ticket: 0x102 };
    assert_eq!(update.as_bytes(), [16, 0, 0, 0, 2, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
    let set = SetHandle { argsz: 8, flags: flags::HANDLE_UNSET };
    assert_eq!(set.as_bytes(), [8, 0, 0, 0, 2, 0, 0, 0]);
    let completion = Completion { argsz: 24, flags: 0, ticket: 3, complete: 1, reserved: 0 };
    let golden = [24, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(completion.as_bytes(), golden);
    let attach = AttachDevice { argsz: 16, flags: 0, requester: 0x80, reserved: 0, limit: 256 };
    assert_eq!(attach.as_bytes(), [16, 0, 0, 0, 0, 0, 0, 0, 0x80, 0, 0, 0, 0, 1, 0, 0]);
    let counters = CountersArgument { argsz: 168, flags: 0, counts: [7; 20] };
    let golden = [&[168, 0, 0, 0, 0, 0, 0, 0][..], &[7, 0, 0, 0, 0, 0, 0, 0].repeat(20)].concat();
    assert_eq!(counters.as_bytes(), golden);
}
