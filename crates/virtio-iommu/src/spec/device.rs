//! What the transport shows: features, status, configuration.

use bitfield_struct::bitfield;
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The device type (5.13.1).
pub const DEVICE_ID: u16 = 23;
/// The queue of requests (5.13.2).
pub const REQUEST_QUEUE: u16 = 0;
/// The queue of faults (5.13.2).
pub const EVENT_QUEUE: u16 = 1;
/// How many queues there are.
pub const QUEUES: u16 = 2;

/// Feature bits 0 to 63 (2.2, 5.13.3, 6). Those of our extension are in the table of
/// [`Revision`](super::Revision).
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Features {
    /// VIRTIO_IOMMU_F_INPUT_RANGE: not every virtual address can be mapped.
    pub input_range: bool,
    /// VIRTIO_IOMMU_F_DOMAIN_RANGE: not every domain number can be used.
    pub domain_range: bool,
    /// VIRTIO_IOMMU_F_MAP_UNMAP: domains, MAP and UNMAP.
    pub map_unmap: bool,
    /// VIRTIO_IOMMU_F_BYPASS: endpoints without domain reach memory.
    pub bypass: bool,
    /// VIRTIO_IOMMU_F_PROBE: properties of endpoints can be asked for.
    pub probe: bool,
    /// VIRTIO_IOMMU_F_MMIO: mappings can be marked as such.
    pub mmio: bool,
    /// VIRTIO_IOMMU_F_BYPASS_CONFIG: the driver says whether there is bypass.
    pub bypass_config: bool,
    #[bits(21)]
    __: u32,
    /// VIRTIO_F_INDIRECT_DESC: tables of descriptors outside the queue's own.
    pub indirect_descriptors: bool,
    /// VIRTIO_F_EVENT_IDX: notifications are asked for by index.
    pub event_index: bool,
    #[bits(2)]
    __: u8,
    /// VIRTIO_F_VERSION_1: not a legacy device.
    pub version_1: bool,
    /// VIRTIO_F_ACCESS_PLATFORM: the device's own addresses are translated.
    pub access_platform: bool,
    #[bits(30)]
    __: u32,
}

/// Device status (2.1).
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct Status {
    /// ACKNOWLEDGE: the guest has seen the device.
    pub acknowledge: bool,
    /// DRIVER: it has a driver for it.
    pub driver: bool,
    /// DRIVER_OK: the driver is set up, the queues may be used.
    pub driver_ok: bool,
    /// FEATURES_OK: the features are agreed upon.
    pub features_ok: bool,
    #[bits(2)]
    __: u8,
    /// DEVICE_NEEDS_RESET: the device met something from which it does not recover.
    pub needs_reset: bool,
    /// FAILED: the driver has given the device up.
    pub failed: bool,
}

/// Bytes of the configuration space.
pub const CONFIG_SIZE: usize = size_of::<Config>();

/// Device configuration (5.13.4).
#[derive(
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
    Unaligned,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Debug,
    Default,
)]
#[repr(C)]
pub struct Config {
    /// Page sizes that mappings may have, one bit each; at least one.
    pub page_size_mask: U64,
    /// First virtual address that can be mapped.
    pub input_first: U64,
    /// Last one.
    pub input_last: U64,
    /// First domain number.
    pub domain_first: U32,
    /// Last one.
    pub domain_last: U32,
    /// Bytes of properties that PROBE may give.
    pub probe_size: U32,
    /// With VIRTIO_IOMMU_F_BYPASS_CONFIG: whether endpoints without domain reach memory.
    pub bypass: u8,
    pub(crate) reserved: [u8; 3],
}
