use mem::{Iova, Range};
use pci::RequesterId;

use super::super::*;
use crate::{Asid, Invalidation, PageRange, Pasid, SmmuInvalidation, Vmid};

const DEVICE: RequesterId = RequesterId::from_bits(0x0080);
/// The guest's number for it.
const STREAM: u64 = 0x17;
const VMID: Vmid = Vmid(7);

fn command(words: [u64; 2]) -> Result<Invalidation, CommandError> {
    let device = |stream| (u64::from(stream) == STREAM).then_some(DEVICE);
    let tagged = guest_command(words, Some(VMID), device);
    // Without a tag there are no translations to forget; the rest is the same.
    let untagged = match tagged {
        Ok(Some(Invalidation::Smmuv3(
            SmmuInvalidation::StageOneAll(_)
            | SmmuInvalidation::StageOneAsid { .. }
            | SmmuInvalidation::StageOnePages { .. },
        ))) => Ok(None),
        other => other,
    };
    assert_eq!(guest_command(words, None, device), untagged);
    tagged.map(Option::unwrap)
}

fn smmu(words: [u64; 2]) -> SmmuInvalidation {
    match command(words) {
        Ok(Invalidation::Smmuv3(what)) => what,
        other => panic!("{other:?}"),
    }
}

fn addresses(start: u64, last: u64) -> Range<Iova> {
    Range { start: Iova(start), last: Iova(last) }
}

#[test]
fn bits() {
    let word = DeviceCommandWord0::new;
    assert_eq!(word().with_opcode(0xff).into_bits(), 0xff);
    assert_eq!(word().with_global(true).into_bits(), 1 << 9);
    assert_eq!(word().with_has_substream(true).into_bits(), 1 << 11);
    assert_eq!(word().with_substream(0xfffff).into_bits(), 0xfffff << 12);
    assert_eq!(word().with_stream(u32::MAX).into_bits(), 0xffff_ffff << 32);
    let word = AtcCommandWord1::new;
    assert_eq!(word().with_size(63).into_bits(), 63);
    assert_eq!(word().with_page(1).into_bits(), 1 << 12);
    let word = TlbCommandWord0::new;
    assert_eq!(word().with_number(31).into_bits(), 31 << 12);
    assert_eq!(word().with_scale(31).into_bits(), 31 << 20);
    assert_eq!(word().with_vmid(0xffff).into_bits(), 0xffff << 32);
    assert_eq!(word().with_asid(0xffff).into_bits(), 0xffff << 48);
    let word = TlbCommandWord1::new;
    assert_eq!(word().with_leaf(true).into_bits(), 1);
    assert_eq!(word().with_level(3).into_bits(), 3 << 8);
    assert_eq!(word().with_granule(3).into_bits(), 3 << 10);
    assert_eq!(word().with_page(1).into_bits(), 1 << 12);
}

#[test]
fn configurations() {
    let device = STREAM << 32;
    let substream = Pasid::new(0x12345).unwrap();
    let one = SmmuInvalidation::Descriptor { requester: DEVICE, substream };
    assert_eq!(smmu([device | 0x12345 << 12 | 0x05, 1]), one);
    let every = SmmuInvalidation::DescriptorAll { requester: DEVICE };
    assert_eq!(smmu([device | 0x06, 0]), every);
    for opcode in [0x05, 0x06, 0x40] {
        assert_eq!(command([0x18 << 32 | opcode, 0]), Err(CommandError::Stream { got: 0x18 }));
    }
}

#[test]
fn translations() {
    // The VMID is the host's, whichever the guest names.
    let tags = 0xabcd << 48 | 0x99 << 32;
    let (vmid, asid) = (VMID, Asid(0xabcd));
    assert_eq!(smmu([tags | 0x10, 0]), SmmuInvalidation::StageOneAll(vmid));
    assert_eq!(smmu([tags | 0x30, 0]), SmmuInvalidation::StageOneAll(vmid));
    assert_eq!(smmu([tags | 0x11, 0]), SmmuInvalidation::StageOneAsid { vmid, asid });
    let pages = |start, last, leaf_only| PageRange { range: addresses(start, last), leaf_only };
    let of = |asid, pages| SmmuInvalidation::StageOnePages { vmid, asid, pages };
    let address = 0x7fff_1234_5000;
    let one = of(Some(asid), pages(address, address + 0xfff, true));
    assert_eq!(smmu([tags | 0x12, address | 1]), one);
    assert_eq!(smmu([tags | 0x13, address]), of(None, pages(address, address + 0xfff, false)));
    // Without TG, NUM and SCALE mean nothing.
    assert_eq!(smmu([tags | 31 << 20 | 31 << 12 | 0x12, address | 1]), one);
}

#[test]
fn ranges() {
    let range = |number: u64, scale: u64, granule: u64, address: u64| {
        let what = smmu([scale << 20 | number << 12 | 0x13, address | granule << 10]);
        match what {
            SmmuInvalidation::StageOnePages { pages, .. } => pages.range,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(range(0, 0, 1, 0x5000), addresses(0x5000, 0x5fff));
    assert_eq!(range(2, 0, 1, 0x5000), addresses(0x5000, 0x7fff));
    assert_eq!(range(2, 3, 1, 0x5000), addresses(0x5000, 0x1_cfff));
    assert_eq!(range(0, 1, 2, 0x1_0000), addresses(0x1_0000, 0x1_7fff));
    assert_eq!(range(1, 0, 3, 0x4_0000), addresses(0x4_0000, 0x5_ffff));
    // Address bits below the granule do not count.
    assert_eq!(range(0, 0, 3, 0x4_5000), addresses(0x4_0000, 0x4_ffff));
    let top = !0xfff;
    assert_eq!(range(31, 31, 3, top), addresses(!0xffff, u64::MAX));
    assert_eq!(range(31, 31, 3, 0), addresses(0, (1 << 52) - 1));
}

#[test]
fn device_tlbs() {
    let device = STREAM << 32 | 0x40;
    let without = |range| Ok(Invalidation::DeviceTlb { requester: DEVICE, range });
    assert_eq!(command([device, 0x5000]), without(addresses(0x5000, 0x5fff)));
    assert_eq!(command([device, 0x5000 | 3]), without(addresses(0, 0x7fff)));
    assert_eq!(command([device, 0x5000 | 51]), without(addresses(0, u64::MAX >> 1)));
    assert_eq!(command([device, 52]), without(addresses(0, u64::MAX)));
    assert_eq!(command([device, 53]), Err(CommandError::Size { got: 53 }));
    assert_eq!(command([device, 63]), Err(CommandError::Size { got: 63 }));
    let range = addresses(0x5000, 0x5fff);
    let with = |pasid| Ok(Invalidation::DeviceTlbPasid { requester: DEVICE, pasid, range });
    let substream = 1 << 11 | 0x12345 << 12;
    assert_eq!(command([device | substream, 0x5000]), with(Pasid::new(0x12345)));
    assert_eq!(command([device | substream | 1 << 9, 0x5000]), with(None));
    // G means nothing without SSV.
    assert_eq!(command([device | 1 << 9, 0x5000]), without(range));
}

/// Every other command is refused.
#[test]
fn what_a_guest_may_not_give() {
    let allowed = [0x05, 0x06, 0x10, 0x11, 0x12, 0x13, 0x30, 0x40];
    for got in 0..=0xff {
        let answer = command([STREAM << 32 | u64::from(got), 0]);
        if allowed.contains(&got) {
            assert!(answer.is_ok(), "{got:#x}");
        } else {
            assert_eq!(answer, Err(CommandError::Opcode { got }));
        }
    }
}
