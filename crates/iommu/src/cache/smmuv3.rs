//! What an SMMUv3's commands forget.

use mem::{Iova, Range};

use super::{Caches, Kind};
use crate::sabotage::{self, Sabotage};
use crate::{DomainId, SmmuInvalidation};

/// An address of a stage-1 table without its top byte, which is no part of it where TBI says so:
/// translations are cached and forgotten under this one.
pub(crate) const fn without_top_byte(address: Iova) -> Iova {
    Iova(((address.0 << 8) as i64 >> 8) as u64)
}

impl Caches {
    pub(super) fn forget_smmuv3(&mut self, what: &SmmuInvalidation) {
        match *what {
            SmmuInvalidation::ConfigAll | SmmuInvalidation::StreamEntry { .. } => {
                self.context = None;
                self.descriptors.retain(|_, _| false);
            }
            SmmuInvalidation::Descriptor { substream, .. } => {
                self.descriptors.retain(|at, _| at != substream);
            }
            SmmuInvalidation::DescriptorAll { .. } => self.descriptors.retain(|_, _| false),
            _ if sabotage::is(Sabotage::SkipIotlbInvalidation) => {}
            _ => self.forget_smmuv3_translations(what),
        }
    }

    fn forget_smmuv3_translations(&mut self, what: &SmmuInvalidation) {
        match *what {
            SmmuInvalidation::StageOneAll(vmid) => self.iotlb.retain(|entry| {
                entry.tag().domain() != DomainId(vmid.0) || entry.kind() == Kind::StageTwo
            }),
            SmmuInvalidation::StageOneAsid { vmid, asid } => self.iotlb.retain(|entry| {
                entry.tag().domain() != DomainId(vmid.0) || entry.tag().asid() != Some(asid)
            }),
            SmmuInvalidation::StageOnePages { vmid, asid, pages } => {
                let range = range_without_top_byte(pages.range);
                self.iotlb.retain(|entry| {
                    let tag = entry.tag();
                    let space = asid.is_none() || tag.is_global() || tag.asid() == asid;
                    let covered = space && entry.kind() != Kind::StageTwo;
                    tag.domain() != DomainId(vmid.0) || !covered || !entry.overlaps(&range)
                });
            }
            SmmuInvalidation::Guest(vmid) => {
                self.iotlb.retain(|entry| entry.tag().domain() != DomainId(vmid.0));
            }
            SmmuInvalidation::StageTwoPages { vmid, range } => {
                let range = Range { start: Iova(range.start.0), last: Iova(range.last.0) };
                self.iotlb.retain(|entry| match entry.kind() {
                    _ if entry.tag().domain() != DomainId(vmid.0) => true,
                    Kind::StageOne => true,
                    Kind::StageTwo => !entry.overlaps(&range),
                    Kind::Nested => false,
                });
            }
            SmmuInvalidation::TlbAll => self.iotlb.clear(),
            // Stream-table entries and descriptors: done by the caller.
            _ => {}
        }
    }
}

/// The addresses of `range` without their top bytes, and maybe more.
pub(super) fn range_without_top_byte(range: Range<Iova>) -> Range<Iova> {
    let (start, last) = (without_top_byte(range.start), without_top_byte(range.last));
    let one_top_byte = range.last.0 - range.start.0 < 1 << 56;
    if one_top_byte && start <= last {
        Range { start, last }
    } else {
        Range { start: Iova(0), last: Iova(u64::MAX) }
    }
}

#[cfg(all(test, not(loom)))]
mod tests;
