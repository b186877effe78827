//! What the functions of a virtual machine say is mapped, and the one memory map made of it.
//!
//! Each PCI function of a VM hears of the VM's memory on its own connection. The reports mostly
//! repeat each other, and they come and go one by one; the VM has one memory map all the same.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::map::{check, LayoutError, Segment};
use crate::{Access, Backing, Gpa, MemoryMap, Range};

/// Most claims a VM may hold at a time. A VM has some tens of memory ranges, and as many claims
/// of each as it has functions.
pub const MAX_CLAIMS: usize = 4096;

/// Who reports: one function of the VM.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ReporterId(pub u32);

/// Which memory is meant, whoever maps it: the place in a file where a range starts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BackingId {
    /// The device that the file is on.
    pub dev: u64,
    /// The file's number there.
    pub ino: u64,
    /// Offset in the file, in bytes.
    pub offset: u64,
}

/// A report that a range of guest physical addresses is memory.
#[derive(Clone, Debug)]
pub struct Claim {
    /// The range.
    pub range: Range<Gpa>,
    /// The identity of its first byte's memory.
    pub id: BackingId,
    /// The memory, as mapped here.
    pub backing: Arc<dyn Backing>,
    /// Where in `backing` the range starts, in bytes.
    pub offset: usize,
    /// The most that an access may do there.
    pub access: Access,
}

/// Why a claim was not taken or withdrawn; nothing has changed. The reporter's mistake.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClaimError {
    /// The claim does not fit its backing.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The reporter claims `gpa` already.
    #[error("{gpa} is claimed already")]
    Claimed {
        /// The first address of the earlier claim in the way.
        gpa: Gpa,
    },
    /// The VM holds [`MAX_CLAIMS`].
    #[error("more than {MAX_CLAIMS} claims")]
    TooMany,
    /// The reporter claims nothing in the range from `gpa`.
    #[error("nothing is claimed at {gpa}")]
    NotClaimed {
        /// First address of the range.
        gpa: Gpa,
    },
    /// The range covers a part of the reporter's claim at `gpa`.
    #[error("the range splits the claim at {gpa}")]
    Splits {
        /// First address of the claim.
        gpa: Gpa,
    },
}

/// A claim and who made it.
#[derive(Clone, Debug)]
struct Entry {
    reporter: ReporterId,
    claim: Claim,
}

/// All claims of one VM.
///
/// Where claims overlap and agree (the same bytes of the same file, the same access), the memory
/// is there until the last of them is withdrawn. Where they contradict each other, the newest
/// holds, and the contradiction is counted.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    /// The claims in the order in which they came.
    entries: Vec<Entry>,
    contradictions: u64,
}

impl Claims {
    /// No claims.
    pub const fn new() -> Self {
        Self { entries: Vec::new(), contradictions: 0 }
    }

    /// Takes a claim.
    ///
    /// # Errors
    ///
    /// If the claim does not fit its backing, overlaps another of the same reporter, or is one
    /// too many.
    pub fn add(&mut self, reporter: ReporterId, claim: Claim) -> Result<(), ClaimError> {
        check(&segment(&claim, claim.range))?;
        if self.entries.len() >= MAX_CLAIMS {
            return Err(ClaimError::TooMany);
        }
        let overlapping = |entry: &&Entry| entry.claim.range.overlaps(&claim.range);
        let mut contradicts = false;
        for entry in self.entries.iter().filter(overlapping) {
            if entry.reporter == reporter {
                return Err(ClaimError::Claimed { gpa: entry.claim.range.start });
            }
            contradicts |= !agree(&entry.claim, &claim);
        }
        self.contradictions = self.contradictions.saturating_add(contradicts.into());
        self.entries.push(Entry { reporter, claim });
        Ok(())
    }

    /// Withdraws every claim of `reporter` inside `range`; gives their number. The range may have
    /// gaps between claims, but may not cut one.
    ///
    /// # Errors
    ///
    /// If the range cuts a claim of the reporter, or holds none.
    pub fn remove(&mut self, reporter: ReporterId, range: Range<Gpa>) -> Result<usize, ClaimError> {
        let hit = |entry: &Entry| entry.reporter == reporter && entry.claim.range.overlaps(&range);
        let whole = |entry: &Entry| {
            let claimed = &entry.claim.range;
            range.contains(claimed.start) && range.contains(claimed.last)
        };
        if let Some(cut) = self.entries.iter().find(|entry| hit(entry) && !whole(entry)) {
            return Err(ClaimError::Splits { gpa: cut.claim.range.start });
        }
        match self.remove_where(hit) {
            0 => Err(ClaimError::NotClaimed { gpa: range.start }),
            removed => Ok(removed),
        }
    }

    /// Withdraws all claims of `reporter`, as its reset and its end do; gives their number.
    pub fn remove_all(&mut self, reporter: ReporterId) -> usize {
        self.remove_where(|entry| entry.reporter == reporter)
    }

    /// Withdraws every claim, as the end of the VM does.
    pub fn clear(&mut self) {
        self.entries.clear();
    }

    fn remove_where(&mut self, mut remove: impl FnMut(&Entry) -> bool) -> usize {
        let before = self.entries.len();
        self.entries.retain(|entry| !remove(entry));
        before - self.entries.len()
    }

    /// Number of claims.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no claim.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many claims contradicted another that was there when they came.
    pub fn contradictions(&self) -> u64 {
        self.contradictions
    }

    /// The memory map as the claims have it now.
    pub fn build(&self) -> MemoryMap {
        MemoryMap::from_disjoint(self.pieces())
    }

    /// Disjoint segments by address: between any two borders of claims, the newest claim there.
    fn pieces(&self) -> Vec<Segment> {
        let mut borders = Vec::with_capacity(2 * self.entries.len());
        for (index, Entry { claim, .. }) in self.entries.iter().enumerate() {
            borders.push((claim.range.start, Border::Starts(index)));
            if let Some(after) = claim.range.last.checked_add(1) {
                borders.push((after, Border::Ended(index)));
            }
        }
        borders.sort_unstable_by_key(|&(gpa, _)| gpa);

        let mut pieces = Vec::with_capacity(borders.len());
        // The claims that cover the address at hand, the newest last.
        let mut open = BTreeMap::new();
        let mut borders = borders.into_iter().peekable();
        while let Some((gpa, border)) = borders.next() {
            match border {
                Border::Starts(index) => drop(open.insert(index, &self.entries[index].claim)),
                Border::Ended(index) => drop(open.remove(&index)),
            }
            let next =
                borders.peek().map_or(Gpa(u64::MAX), |&(next, _)| Gpa(next.0.wrapping_sub(1)));
            let more_here = borders.peek().is_some_and(|&(next, _)| next == gpa);
            if let (false, Some((_, claim))) = (more_here, open.last_key_value()) {
                pieces.push(segment(claim, Range { start: gpa, last: next }));
            }
        }
        pieces
    }
}

/// Where the set of claims that cover an address changes, by the claim's index.
enum Border {
    Starts(usize),
    Ended(usize),
}

/// The part of a claim's memory at `range`, which lies inside it.
fn segment(claim: &Claim, range: Range<Gpa>) -> Segment {
    let skip = (range.start.0 - claim.range.start.0) as usize;
    let offset = claim.offset.saturating_add(skip);
    Segment { range, backing: claim.backing.clone(), offset, access: claim.access }
}

/// Whether two claims that overlap say the same of what they share.
fn agree(a: &Claim, b: &Claim) -> bool {
    // The offset in the file that address zero would have is the same for both.
    let origin = |claim: &Claim| claim.id.offset.wrapping_sub(claim.range.start.0);
    let file = |claim: &Claim| (claim.id.dev, claim.id.ino);
    file(a) == file(b) && origin(a) == origin(b) && a.access == b.access
}

#[cfg(test)]
mod tests;
