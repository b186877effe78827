//! VFIO's own structures against Linux's header, and those of the series against the reference.

use super::*;

/// That a structure has these fields where Linux has them.
macro_rules! as_linux {
    ($ours:ty, $linux:ty: $($field:ident = $theirs:ident),*) => {
        $(assert_eq!(offset_of!($ours, $field), offset_of!($linux, $theirs), stringify!($field));)*
    };
}

#[test]
fn what_linux_has() {
    assert_eq!(size_of::<CapabilityHeader>(), size_of::<vfio::vfio_info_cap_header>());
    as_linux!(CapabilityHeader, vfio::vfio_info_cap_header: id = id, version = version, next = next);
    assert_eq!(size_of::<GroupStatus>(), size_of::<vfio::vfio_group_status>());
    assert_eq!(size_of::<IommuInfo>(), size_of::<vfio::vfio_iommu_type1_info>());
    as_linux!(IommuInfo, vfio::vfio_iommu_type1_info:
        flags = flags, iova_pgsizes = iova_pgsizes, cap_offset = cap_offset, pad = pad);
    assert_eq!(size_of::<DeviceInfo>(), size_of::<vfio::vfio_device_info>());
    as_linux!(DeviceInfo, vfio::vfio_device_info:
        flags = flags, num_regions = num_regions, num_irqs = num_irqs, cap_offset = cap_offset);
    assert_eq!(size_of::<RegionInfo>(), size_of::<vfio::vfio_region_info>());
    as_linux!(RegionInfo, vfio::vfio_region_info:
        flags = flags, index = index, cap_offset = cap_offset, size = size, offset = offset);
    as_linux!(IrqInfo, vfio::vfio_irq_info: flags = flags, index = index, count = count);
    assert_eq!(offset_of!(IrqInfo, cap_offset), size_of::<vfio::vfio_irq_info>());
    as_linux!(IrqSet, vfio::vfio_irq_set:
        flags = flags, index = index, start = start, count = count, event = data);
    assert_eq!(size_of::<AttachIommufdPt>(), size_of::<vfio::vfio_device_attach_iommufd_pt>());
    assert_eq!(size_of::<DetachIommufdPt>(), size_of::<vfio::vfio_device_detach_iommufd_pt>());
    // After their headers.
    let header = size_of::<CapabilityHeader>();
    as_linux!(AttachIommufdPt, vfio::vfio_device_attach_iommufd_pt: pt_id = pt_id, pasid = pasid);
    assert_eq!(
        header + offset_of!(TypeOf, subtype),
        offset_of!(vfio::vfio_region_info_cap_type, subtype),
    );
    assert_eq!(
        header + offset_of!(SparseMap, offset),
        size_of::<vfio::vfio_region_info_cap_sparse_mmap>(),
    );
    assert_eq!(
        header + offset_of!(IovaRanges, start),
        size_of::<vfio::vfio_iommu_type1_info_cap_iova_range>(),
    );
}

#[test]
fn values_that_linux_has() {
    use flags::*;
    assert_eq!([TYPE1, TYPE1_V2], [vfio::VFIO_TYPE1_IOMMU, vfio::VFIO_TYPE1v2_IOMMU]);
    assert_eq!(TYPE1_NESTING, 6);
    assert_eq!(GROUP_VIABLE, vfio::VFIO_GROUP_FLAGS_VIABLE);
    assert_eq!(GROUP_CONTAINER_SET, vfio::VFIO_GROUP_FLAGS_CONTAINER_SET);
    assert_eq!(IOMMU_INFO_CAPS, vfio::VFIO_IOMMU_INFO_CAPS);
    assert_eq!(u32::from(IOMMU_CAP_IOVA_RANGES), vfio::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE);
    assert_eq!(DEVICE_PCI, vfio::VFIO_DEVICE_FLAGS_PCI);
    assert_eq!(u32::from(REGION_CAP_SPARSE), vfio::VFIO_REGION_INFO_CAP_SPARSE_MMAP);
    assert_eq!(u32::from(REGION_CAP_TYPE), vfio::VFIO_REGION_INFO_CAP_TYPE);
    assert_eq!(IRQ_EVENT, vfio::VFIO_IRQ_INFO_EVENTFD);
    assert_eq!(IRQ_DATA_NONE, vfio::VFIO_IRQ_SET_DATA_NONE);
    assert_eq!(IRQ_DATA_EVENT, vfio::VFIO_IRQ_SET_DATA_EVENTFD);
    assert_eq!(IRQ_ACTION_TRIGGER, vfio::VFIO_IRQ_SET_ACTION_TRIGGER);
}

#[test]
fn what_the_series_has() {
    let header = RingHeader { client: 1, entry_size: 64, nb_entries: 512, offset: 4096, host: 2 };
    #[rustfmt::skip]
    let golden = [
        1, 0, 0, 0,  64, 0, 0, 0,  0, 2, 0, 0,  0, 0x10, 0, 0,  2, 0, 0, 0,
    ];
    assert_eq!(header.as_bytes(), golden);
    use flags::*;
    assert_eq!([REGION_CAP_DMA_FAULT, REGION_CAP_DMA_FAULT_RESPONSE, IRQ_CAP_TYPE], [6, 7, 3]);
    assert_eq!(
        [REGION_TYPE_NESTED, IRQ_TYPE_NESTED, IRQ_SUBTYPE_DMA_FAULT, IRQ_CAPS],
        [2, 1, 1, 16]
    );
    assert_eq!([PCI_REGIONS, PCI_INTERRUPTS], [9, 5]);
}
