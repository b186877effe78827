//! Regions: BARs and configuration space of a function, as a client numbers them.

use pci::spec::CONFIG_SPACE_SIZE;
use pci::Function;
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_BAR5_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_NUM_REGIONS,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::error::ProtocolError;
use crate::limits::{MAX_MULTI_WRITES, MAX_TRANSFER};
use crate::session::{check_argsz, exactly, prefix};
use crate::wire::{Command, RegionAccess, RegionInfo, SmallWrite};

/// What a region index stands for.
enum Region {
    Bar(u8),
    Config,
    /// Expansion ROM, VGA, and BARs that the function does not have.
    Absent,
}

/// The region `index` and its size in bytes; `None` if a PCI device has no region of this index.
fn region(function: &dyn Function, index: u32) -> Option<(Region, u64)> {
    match index {
        0..=VFIO_PCI_BAR5_REGION_INDEX => {
            let found = function.bars().iter().find(|bar| u32::from(bar.index) == index);
            Some(found.map_or((Region::Absent, 0), |bar| (Region::Bar(bar.index), bar.size)))
        }
        VFIO_PCI_CONFIG_REGION_INDEX => Some((Region::Config, CONFIG_SPACE_SIZE.into())),
        _ if index < VFIO_PCI_NUM_REGIONS => Some((Region::Absent, 0)),
        _ => None,
    }
}

/// Replies to [`Command::DeviceGetRegionInfo`]. No region can be mapped by the client: every access
/// is ours to see.
pub(crate) fn info(function: &dyn Function, payload: &[u8]) -> Result<RegionInfo, ProtocolError> {
    const SIZE: u32 = size_of::<RegionInfo>() as u32;
    let request: RegionInfo = exactly(Command::DeviceGetRegionInfo, payload)?;
    check_argsz(Command::DeviceGetRegionInfo, request.argsz, SIZE)?;
    let index = request.index;
    let refused = ProtocolError::Region { region: index, offset: 0, count: 0 };
    let (_, size) = region(function, index).ok_or(refused)?;
    let flags = match size {
        0 => 0,
        _ => VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE,
    };
    Ok(RegionInfo { argsz: SIZE, flags, index, cap_offset: 0, size, offset: 0 })
}

/// The region of an access that lies inside it.
fn check(function: &dyn Function, access: &RegionAccess) -> Result<Region, ProtocolError> {
    let RegionAccess { offset, region: index, count } = *access;
    let refused = ProtocolError::Region { region: index, offset, count };
    let (region, size) = region(function, index).ok_or(refused)?;
    let end = offset.checked_add(count.into()).ok_or(refused)?;
    if end > size || count as usize > MAX_TRANSFER {
        return Err(refused);
    }
    Ok(region)
}

/// Reads a region: the access again and the data, into `reply`.
pub(crate) fn read(
    function: &dyn Function,
    payload: &[u8],
    reply: &mut Vec<u8>,
) -> Result<(), ProtocolError> {
    let access: RegionAccess = exactly(Command::RegionRead, payload)?;
    let region = check(function, &access)?;
    reply.extend_from_slice(access.as_bytes());
    let start = reply.len();
    reply.resize(start + access.count as usize, 0);
    let data = reply.get_mut(start..).unwrap_or(&mut []);
    match region {
        Region::Bar(bar) => function.bar_read(bar, access.offset, data),
        // Checked to be inside 4096 bytes.
        Region::Config => function.config_read(access.offset as u16, data),
        Region::Absent => {}
    }
    Ok(())
}

/// Writes a region: the access again into `reply`.
pub(crate) fn write(
    function: &dyn Function,
    payload: &[u8],
    reply: &mut Vec<u8>,
) -> Result<(), ProtocolError> {
    let (access, data) = prefix::<RegionAccess>(Command::RegionWrite, payload)?;
    if data.len() != access.count as usize {
        let got = payload.len();
        return Err(ProtocolError::PayloadSize { command: Command::RegionWrite, got });
    }
    store(function, &check(function, &access)?, access.offset, data);
    reply.extend_from_slice(access.as_bytes());
    Ok(())
}

/// Does several small writes in their order, or none if one of them is wrong: their number into
/// `reply`.
pub(crate) fn write_multi(
    function: &dyn Function,
    payload: &[u8],
    reply: &mut Vec<u8>,
) -> Result<(), ProtocolError> {
    let command = Command::RegionWriteMulti;
    let refused = ProtocolError::PayloadSize { command, got: payload.len() };
    let (count, rest) = prefix::<u64>(command, payload)?;
    let writes = rest.chunks_exact(size_of::<SmallWrite>());
    if !writes.remainder().is_empty()
        || writes.len() as u64 != count
        || writes.len() > MAX_MULTI_WRITES
    {
        return Err(refused);
    }
    let parse = |bytes| SmallWrite::read_from_bytes(bytes).map_err(|_| refused);
    for bytes in writes.clone() {
        let SmallWrite { access, data } = parse(bytes)?;
        check(function, &access)?;
        if access.count as usize > data.len() {
            return Err(refused);
        }
    }
    for bytes in writes {
        let SmallWrite { access, data } = parse(bytes)?;
        let data = data.get(..access.count as usize).unwrap_or(&[]);
        store(function, &check(function, &access)?, access.offset, data);
    }
    reply.extend_from_slice(count.as_bytes());
    Ok(())
}

fn store(function: &dyn Function, region: &Region, offset: u64, data: &[u8]) {
    match region {
        Region::Bar(bar) => function.bar_write(*bar, offset, data),
        // Checked to be inside 4096 bytes.
        Region::Config => function.config_write(offset as u16, data),
        Region::Absent => {}
    }
}
