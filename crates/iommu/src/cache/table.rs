//! A set-associative table of translations.
//!
//! An entry is keyed by the 4 KiB page that was asked for, whatever the size of the mapping, so
//! a lookup is one probe of one set. It remembers how large the mapping really is: for the length
//! of a window, and so that the invalidation of any page of a large mapping forgets all that was
//! derived from it.

use alloc::boxed::Box;
use alloc::vec;

use mem::{Iova, Range};

use super::Tag;

/// Entries of a set.
pub(super) const WAYS: usize = 4;

pub(super) const PAGE_BITS: u32 = 12;

/// What is known of a page.
pub(crate) trait Mapping: Copy {
    /// What stands in an entry that has none.
    const NONE: Self;

    /// log2 of the size of the mapping by which invalidations find it.
    fn scope_bits(&self) -> u8;
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<V> {
    tag: Tag,
    /// Number of the 4 KiB page that was asked for.
    page: u64,
    mapping: V,
}

impl<V: Mapping> Entry<V> {
    const EMPTY: Self = Self { tag: Tag::NONE, page: 0, mapping: V::NONE };

    pub(crate) fn tag(&self) -> Tag {
        self.tag
    }

    pub(crate) fn mapping(&self) -> &V {
        &self.mapping
    }

    /// The addresses of the mapping that this was derived from.
    pub(crate) fn range(&self) -> Range<Iova> {
        let mask = (1u64 << self.mapping.scope_bits()) - 1;
        let start = (self.page << PAGE_BITS) & !mask;
        Range { start: Iova(start), last: Iova(start | mask) }
    }

    /// Whether the mapping that this was derived from has an address in `range`.
    pub(crate) fn overlaps(&self, range: &Range<Iova>) -> bool {
        self.range().overlaps(range)
    }
}

/// A set-associative table of translations, of `SETS` sets, a power of two.
#[derive(Debug)]
pub(crate) struct Table<V, const SETS: usize> {
    /// Empty if closed.
    sets: Box<[[Entry<V>; WAYS]]>,
    len: usize,
    /// Way that is replaced next in a full set.
    victim: u8,
    #[cfg(feature = "sabotage")]
    leaked: alloc::vec::Vec<Entry<V>>,
}

impl<V: Mapping, const SETS: usize> Table<V, SETS> {
    /// Translations that it holds at most.
    #[cfg(all(test, not(loom)))]
    pub(crate) const CAPACITY: usize = SETS * WAYS;

    pub(crate) fn new() -> Self {
        Self { sets: vec![[Entry::EMPTY; WAYS]; SETS].into_boxed_slice(), ..Self::closed() }
    }

    /// A table that holds nothing, without memory.
    pub(crate) fn closed() -> Self {
        Self {
            sets: Box::default(),
            len: 0,
            victim: 0,
            #[cfg(feature = "sabotage")]
            leaked: alloc::vec::Vec::new(),
        }
    }

    /// Opens a table that was closed.
    pub(crate) fn open(&mut self) {
        if self.sets.is_empty() {
            *self = Self::new();
        }
    }

    /// Number of translations that it holds.
    pub(crate) fn len(&self) -> usize {
        #[cfg(feature = "sabotage")]
        return self.len + self.leaked.len();
        #[cfg(not(feature = "sabotage"))]
        self.len
    }

    /// The tag of each entry; that of none for empty ones.
    pub(super) fn tags(&self) -> impl Iterator<Item = Tag> + '_ {
        self.sets.as_flattened().iter().map(|entry| entry.tag)
    }

    /// The translation of the page of `iova` under `tag`.
    pub(crate) fn get(&self, tag: Tag, iova: Iova) -> Option<&V> {
        let page = iova.0 >> PAGE_BITS;
        let set = self.sets.get(Self::index(tag, page))?;
        set.iter().find(|entry| entry.tag == tag && entry.page == page).map(|entry| &entry.mapping)
    }

    /// Remembers a translation of the page of `iova`, in place of an older one.
    pub(crate) fn insert(&mut self, tag: Tag, iova: Iova, mapping: V) {
        let page = iova.0 >> PAGE_BITS;
        let Some(set) = self.sets.get_mut(Self::index(tag, page)) else { return };
        let same = set.iter().position(|entry| entry.tag == tag && entry.page == page);
        let free = || set.iter().position(|entry| entry.tag == Tag::NONE);
        let way = same.or_else(free).unwrap_or_else(|| {
            self.victim = (self.victim + 1) % WAYS as u8;
            usize::from(self.victim)
        });
        if set[way].tag == Tag::NONE {
            self.len += 1;
        }
        set[way] = Entry { tag, page, mapping };
    }

    /// Forgets every translation that `keep` does not want.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&Entry<V>) -> bool) {
        if self.len == 0 {
            return;
        }
        for entry in self.sets.as_flattened_mut() {
            if entry.tag != Tag::NONE && !keep(entry) {
                #[cfg(feature = "sabotage")]
                if crate::sabotage::is(crate::sabotage::Sabotage::LeakCache) {
                    self.leaked.push(*entry);
                }
                *entry = Entry::EMPTY;
                self.len -= 1;
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        self.retain(|_| false);
    }

    /// Neighbouring pages go to neighbouring sets; address spaces start at different ones.
    fn index(tag: Tag, page: u64) -> usize {
        (page.wrapping_add(tag.start()) as usize) % SETS
    }
}
