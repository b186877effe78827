//! The rings of a device's faults and answers, as a client has them.

use std::sync::Arc;

use mem::{Access, Gpa, GuestMemory, MemoryMap, Segment};
use vfio::DeviceFile;

pub(crate) const FAULTS: u64 = 9 << 40;
pub(crate) const RESPONSES: u64 = 10 << 40;

pub(crate) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// The numbers of a ring: client's index and host's.
pub(crate) fn header(device: &Arc<dyn DeviceFile>, region: u64) -> (u32, u32) {
    let mut bytes = [0; 20];
    device.read(region, &mut bytes).unwrap();
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    (word(0), word(16))
}

/// Puts answers into the ring of a device: words of entries.
pub(crate) fn respond(device: &Arc<dyn DeviceFile>, entries: &[[u32; 6]]) {
    let len = 512 * 24;
    let (backing, _) = device.map(RESPONSES + 4096, len).unwrap();
    let range = mem::Range::<Gpa>::new(Gpa(0), len as u64).unwrap();
    let segment = Segment { range, backing, offset: 0, access: Access::Write };
    let ring = MemoryMap::new(vec![segment]).unwrap();
    let (mut index, _) = header(device, RESPONSES);
    for entry in entries {
        ring.write(Gpa(u64::from(index) * 24), &words(entry)).unwrap();
        index = (index + 1) % 512;
    }
    device.write(RESPONSES, &index.to_ne_bytes()).unwrap();
    assert_eq!(header(device, RESPONSES), (index, index));
}

pub(crate) const SUCCESS: u32 = 0;
pub(crate) const INVALID: u32 = 1;
pub(crate) const FAILURE: u32 = 2;

/// `struct iommu_page_response`.
pub(crate) fn response(group: u32, pasid: Option<u32>, code: u32) -> [u32; 6] {
    [24, 1, pasid.is_some().into(), pasid.unwrap_or(0), group, code]
}
