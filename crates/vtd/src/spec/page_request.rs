//! Page requests as the queue has them (7.4.1.1), and the answers to them (7.6).

use bitfield_struct::bitfield;
use iommu::{PageRequest, Pasid, PrgIndex};
use mem::Iova;
use pci::RequesterId;

/// Response code: try again.
pub const RESPONSE_SUCCESS: u8 = 0;

/// Response code: a page cannot be had.
pub const RESPONSE_INVALID: u8 = 1;

/// Response code: the device is to ask nothing more. Every code without a name means the same to
/// it (PCI Express, page request interface).
pub const RESPONSE_FAILURE: u8 = 15;

/// The first 128 bits.
#[bitfield(u128)]
struct Layout {
    kind: u8,
    pasid_present: bool,
    /// Revisions 3.x; reserved since.
    private_data: bool,
    #[bits(6)]
    r0: u8,
    source: u16,
    #[bits(20)]
    pasid: u32,
    execute: bool,
    privileged: bool,
    #[bits(10)]
    r1: u16,
    read: bool,
    write: bool,
    last: bool,
    #[bits(9)]
    group: u16,
    #[bits(52)]
    page: u64,
}

/// Type of a page request.
const PAGE_REQUEST: u8 = 1;

/// An entry of the page request queue (7.4.1.1): four words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageRequestDescriptor(pub [u64; 4]);

/// Why an entry is no page request. The unit's mistake, or that of whoever wrote to the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PageRequestDescriptorError {
    /// Not the type of a page request.
    #[error("an entry of type {0} is no page request")]
    Type(u8),
    /// A reserved bit is set.
    #[error("a reserved bit is set in a page request")]
    Reserved,
}

impl PageRequestDescriptor {
    /// Size in bytes.
    pub const BYTES: u64 = 32;

    /// The entry for `request`; its address loses its low 12 bits.
    pub fn encode(request: &PageRequest) -> Self {
        let bits = Layout::new()
            .with_kind(PAGE_REQUEST)
            .with_pasid_present(request.pasid.is_some())
            .with_pasid(request.pasid.map_or(0, Pasid::get))
            .with_private_data(request.private_data.is_some())
            .with_source(request.requester.bits())
            .with_execute(request.pasid.is_some() && request.execute)
            .with_privileged(request.pasid.is_some() && request.privileged)
            .with_read(request.read)
            .with_write(request.write)
            .with_last(request.last)
            .with_group(request.group.get())
            .with_page(request.address.0 >> 12)
            .into_bits();
        let [third, fourth] = request.private_data.unwrap_or_default();
        Self([bits as u64, (bits >> 64) as u64, third, fourth])
    }

    /// The request.
    ///
    /// # Errors
    ///
    /// See [`PageRequestDescriptorError`].
    pub fn decode(self) -> Result<PageRequest, PageRequestDescriptorError> {
        let [first, second, third, fourth] = self.0;
        let raw = Layout::from_bits(u128::from(first) | u128::from(second) << 64);
        if raw.kind() != PAGE_REQUEST {
            return Err(PageRequestDescriptorError::Type(raw.kind()));
        }
        let beyond = !raw.private_data() && (third != 0 || fourth != 0);
        if raw.r0() != 0 || raw.r1() != 0 || beyond {
            return Err(PageRequestDescriptorError::Reserved);
        }
        Ok(PageRequest {
            requester: RequesterId::from_bits(raw.source()),
            pasid: raw.pasid_present().then(|| Pasid::from_field(raw.pasid())),
            privileged: raw.privileged(),
            execute: raw.execute(),
            read: raw.read(),
            write: raw.write(),
            address: Iova(raw.page() << 12),
            group: PrgIndex::from_field(raw.group().into()),
            last: raw.last(),
            private_data: raw.private_data().then_some([third, fourth]),
        })
    }
}

/// A page stream response: the answer to one request of a recoverable stream, in revisions 2.x.
///
/// Revision 3.0 removed it, with the extended mode that it belonged to: in a scalable-mode unit its
/// type (10) is an invalid one. Here for those who look at the queues of such units.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageStreamResponse {
    /// Who asked.
    pub source: RequesterId,
    /// With which PASID.
    pub pasid: Pasid,
    /// Index of the request, 9 bits.
    pub index: u16,
    /// The page: the low 12 bits are zero.
    pub address: Iova,
    /// What the request carried, 23 bits.
    pub private_data: u32,
    /// As of a group.
    pub code: u8,
}

#[bitfield(u128)]
struct StreamLayout {
    #[bits(4)]
    kind: u8,
    #[bits(20)]
    pasid: u32,
    bus: u8,
    #[bits(23)]
    private_data: u32,
    #[bits(9)]
    index: u16,
    #[bits(4)]
    code: u8,
    devfn: u8,
    #[bits(52)]
    page: u64,
}

impl PageStreamResponse {
    /// Its descriptor type.
    pub const TYPE: u8 = 10;

    /// The 128 bits of its descriptor. Fields that are too wide lose their high bits.
    pub fn encode(&self) -> [u64; 2] {
        let bits = StreamLayout::new()
            .with_kind(Self::TYPE)
            .with_pasid(self.pasid.get())
            .with_bus(self.source.bus())
            .with_devfn(self.source.devfn())
            .with_private_data(self.private_data & 0x7f_ffff)
            .with_index(self.index & 0x1ff)
            .with_code(self.code & 15)
            .with_page(self.address.0 >> 12)
            .into_bits();
        [bits as u64, (bits >> 64) as u64]
    }

    /// The answer in a descriptor; `None` if its type is another.
    pub fn decode(words: [u64; 2]) -> Option<Self> {
        let [low, high] = words;
        let raw = StreamLayout::from_bits(u128::from(low) | u128::from(high) << 64);
        let source = u16::from(raw.bus()) << 8 | u16::from(raw.devfn());
        (raw.kind() == Self::TYPE).then(|| Self {
            source: RequesterId::from_bits(source),
            pasid: Pasid::from_field(raw.pasid()),
            index: raw.index(),
            address: Iova(raw.page() << 12),
            private_data: raw.private_data(),
            code: raw.code(),
        })
    }
}
