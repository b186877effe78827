//! Commands that forget what is cached (IHI 0070, chapter 4), and which of them a guest may give for
//! itself.

use bitfield_struct::bitfield;
use mem::{Iova, Range};
use pci::RequesterId;

use crate::{Asid, Invalidation, PageRange, Pasid, SmmuInvalidation, Vmid};

/// Numbers of the commands that a guest may give.
pub(crate) mod opcode {
    pub(crate) const CFGI_CD: u8 = 0x05;
    pub(crate) const CFGI_CD_ALL: u8 = 0x06;
    pub(crate) const TLBI_NH_ALL: u8 = 0x10;
    pub(crate) const TLBI_NH_ASID: u8 = 0x11;
    pub(crate) const TLBI_NH_VA: u8 = 0x12;
    pub(crate) const TLBI_NH_VAA: u8 = 0x13;
    pub(crate) const TLBI_NSNH_ALL: u8 = 0x30;
    pub(crate) const ATC_INV: u8 = 0x40;
}

/// Bits 63:0 of a command about a device: `CMD_CFGI_*` and `CMD_ATC_INV`.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct DeviceCommandWord0 {
    /// The command's number.
    pub opcode: u8,
    unused_8: bool,
    /// G of `CMD_ATC_INV`: all substreams.
    pub global: bool,
    unused_10: bool,
    /// SSV of `CMD_ATC_INV`: there is a substream.
    pub has_substream: bool,
    /// SubstreamID.
    #[bits(20)]
    pub substream: u32,
    /// StreamID.
    pub stream: u32,
}

/// Bits 127:64 of `CMD_ATC_INV`.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct AtcCommandWord1 {
    /// Size: log2 of the number of pages of 4 KiB; 52 for all.
    #[bits(6)]
    pub size: u8,
    #[bits(6)]
    unused: u8,
    /// Address, in pages of 4 KiB.
    #[bits(52)]
    pub page: u64,
}

/// Bits 63:0 of a command about translations: `CMD_TLBI_*`.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct TlbCommandWord0 {
    /// The command's number.
    pub opcode: u8,
    #[bits(4)]
    unused_8: u8,
    /// NUM: with TG, one less than the number of steps in the range.
    #[bits(5)]
    pub number: u8,
    #[bits(3)]
    unused_17: u8,
    /// SCALE: with TG, log2 of the pages of a step.
    #[bits(5)]
    pub scale: u8,
    #[bits(7)]
    unused_25: u8,
    /// VMID.
    pub vmid: u16,
    /// ASID.
    pub asid: u16,
}

/// Bits 127:64 of a command about translations of addresses: `CMD_TLBI_NH_VA` and its like.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct TlbCommandWord1 {
    /// Leaf: only last-level entries changed.
    pub leaf: bool,
    #[bits(7)]
    unused_1: u8,
    /// TTL: the level of the entry that changed, if it is told.
    #[bits(2)]
    pub level: u8,
    /// TG: the granule of a range, 1 for 4 KiB, 2 for 16 KiB, 3 for 64 KiB; 0 for one address.
    #[bits(2)]
    pub granule: u8,
    /// Address, in pages of 4 KiB.
    #[bits(52)]
    pub page: u64,
}

/// Why a guest's command is not carried out. The guest's mistake, or its VMM's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CommandError {
    /// It is none that a guest may give.
    #[error("command {got:#x} is not a guest's")]
    Opcode {
        /// Its number.
        got: u8,
    },
    /// The guest has no device with this stream id.
    #[error("the guest has no stream {got:#x}")]
    Stream {
        /// The stream id.
        got: u32,
    },
    /// Size of `CMD_ATC_INV` is more than all there is.
    #[error("2^{got} pages are more than there are")]
    Size {
        /// The field.
        got: u8,
    },
}

/// What a guest's command forgets, with its identifiers rewritten: `vmid` is the host's for the
/// guest, whatever the command says; and `device` finds the device that the guest knows by a stream
/// id. Without a `vmid` the guest has no translations, so a command about those forgets nothing.
///
/// A guest gives `CMD_CFGI_CD`, `CMD_CFGI_CD_ALL`, `CMD_TLBI_NH_ALL`, `CMD_TLBI_NH_ASID`,
/// `CMD_TLBI_NH_VA`, `CMD_TLBI_NH_VAA`, `CMD_TLBI_NSNH_ALL` (which is as much of everything as
/// there is of the guest) and `CMD_ATC_INV`.
///
/// # Errors
///
/// See [`CommandError`].
pub fn guest_command(
    words: [u64; 2],
    vmid: Option<Vmid>,
    device: impl FnOnce(u32) -> Option<RequesterId>,
) -> Result<Option<Invalidation>, CommandError> {
    let word0 = DeviceCommandWord0::from_bits(words[0]);
    let stream = word0.stream();
    let requester = || device(stream).ok_or(CommandError::Stream { got: stream });
    let what = match word0.opcode() {
        opcode::CFGI_CD => {
            let substream = Pasid::from_field(word0.substream());
            SmmuInvalidation::Descriptor { requester: requester()?, substream }
        }
        opcode::CFGI_CD_ALL => SmmuInvalidation::DescriptorAll { requester: requester()? },
        opcode::ATC_INV => {
            return atc(word0, AtcCommandWord1::from_bits(words[1]), requester()?).map(Some);
        }
        got => {
            let what = |vmid| translations(words, vmid).ok_or(CommandError::Opcode { got });
            // Whether it is one at all does not depend on the tag.
            let (what, known) = (what(vmid.unwrap_or(Vmid(0)))?, vmid.is_some());
            return Ok(known.then_some(Invalidation::Smmuv3(what)));
        }
    };
    Ok(Some(Invalidation::Smmuv3(what)))
}

/// What a command about a guest's translations forgets; `None` if it is no such command.
fn translations(words: [u64; 2], vmid: Vmid) -> Option<SmmuInvalidation> {
    let (word0, word1) =
        (TlbCommandWord0::from_bits(words[0]), TlbCommandWord1::from_bits(words[1]));
    let asid = Asid(word0.asid());
    let by_address =
        |asid| SmmuInvalidation::StageOnePages { vmid, asid, pages: pages(word0, word1) };
    Some(match word0.opcode() {
        opcode::TLBI_NH_ALL | opcode::TLBI_NSNH_ALL => SmmuInvalidation::StageOneAll(vmid),
        opcode::TLBI_NH_ASID => SmmuInvalidation::StageOneAsid { vmid, asid },
        opcode::TLBI_NH_VA => by_address(Some(asid)),
        opcode::TLBI_NH_VAA => by_address(None),
        _ => return None,
    })
}

/// The addresses of a command: from an address on, or (without TG) the pages, of whatever size, that one
/// address is in.
fn pages(word0: TlbCommandWord0, word1: TlbCommandWord1) -> PageRange {
    let (page_bits, pages) = match word1.granule() {
        0 => (PAGE_BITS, 1),
        granule => {
            let steps = u64::from(word0.number()) + 1;
            // At most 2^36 pages of 2^16 bytes.
            (PAGE_BITS + 2 * (u32::from(granule) - 1), steps << word0.scale())
        }
    };
    let start = word1.page() << PAGE_BITS & !((1 << page_bits) - 1);
    let last = start.saturating_add((pages << page_bits) - 1);
    let range = Range { start: Iova(start), last: Iova(last) };
    PageRange { range, leaf_only: word1.leaf() }
}

fn atc(
    word0: DeviceCommandWord0,
    word1: AtcCommandWord1,
    requester: RequesterId,
) -> Result<Invalidation, CommandError> {
    let got = word1.size();
    let mask = match u32::from(got) + PAGE_BITS {
        bits @ 0..64 => (1 << bits) - 1,
        64 => u64::MAX,
        _ => return Err(CommandError::Size { got }),
    };
    let address = word1.page() << PAGE_BITS;
    let range = Range { start: Iova(address & !mask), last: Iova(address | mask) };
    if !word0.has_substream() {
        return Ok(Invalidation::DeviceTlb { requester, range });
    }
    let pasid = (!word0.global()).then(|| Pasid::from_field(word0.substream()));
    Ok(Invalidation::DeviceTlbPasid { requester, pasid, range })
}

/// log2 of the unit of addresses.
const PAGE_BITS: u32 = 12;
