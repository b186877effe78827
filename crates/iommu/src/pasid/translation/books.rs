//! What is behind each entry: whose it is, how far it has come, and the reference that keeps its
//! number.

use hashbrown::HashMap;
use ioasid::Tag;

use super::marks::{Cursor, Marks};
use super::table::NoMemory;
use crate::{GuestPasid, HostPasid, PasidHold};

/// The entries of a table, by the VM's numbers.
#[derive(Debug, Default)]
pub(super) struct Books {
    bound: HashMap<GuestPasid, Bound>,
    /// Of these, those that are closing.
    closing: usize,
    /// Nothing is opened any more.
    pub(super) closed: bool,
    pub(super) counts: Counts,
}

/// What happened, since the table was made.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) opened: u64,
    pub(super) closed: u64,
    pub(super) refused: u64,
    pub(super) conflicts: u64,
    pub(super) unmatched: u64,
    pub(super) late: u64,
}

/// An entry.
#[derive(Debug)]
pub(super) struct Bound {
    pub(super) host: HostPasid,
    tag: Tag,
    pub(super) state: State,
    /// The number is not granted again as long as this is here.
    _hold: PasidHold,
}

/// How far an entry has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Everything is there that it needs, and it is not open.
    Prepared,
    /// Submissions are translated by it.
    Open,
    /// It is cleared; submissions that were translated by it may be under way.
    Closing(Cursor),
}

impl Books {
    /// Makes room for one more entry.
    pub(super) fn reserve(&mut self) -> Result<(), NoMemory> {
        self.bound.try_reserve(1).map_err(|_| NoMemory)
    }

    pub(super) fn has(&self, guest: GuestPasid) -> bool {
        self.bound.contains_key(&guest)
    }

    /// Notes an entry that is prepared, and for which there is room.
    pub(super) fn prepare(
        &mut self,
        guest: GuestPasid,
        host: HostPasid,
        tag: Tag,
        hold: PasidHold,
    ) {
        self.bound.insert(guest, Bound { host, tag, state: State::Prepared, _hold: hold });
    }

    /// The entry of just this PASID in `state`; counted if there is none.
    pub(super) fn find(&mut self, guest: GuestPasid, tag: Tag, state: State) -> Option<&mut Bound> {
        let found = self.bound.get_mut(&guest);
        let found = found.filter(|bound| bound.tag == tag && bound.state == state);
        if found.is_none() {
            self.counts.unmatched += 1;
        }
        found
    }

    /// Whether the entry of just this PASID is in `state`.
    pub(super) fn is(&self, guest: GuestPasid, tag: Tag, state: State) -> bool {
        self.bound.get(&guest).is_some_and(|bound| bound.tag == tag && bound.state == state)
    }

    /// Takes out the entry of just this PASID.
    pub(super) fn remove(&mut self, guest: GuestPasid, tag: Tag) -> Option<Bound> {
        if self.bound.get(&guest)?.tag != tag {
            return None;
        }
        let bound = self.bound.remove(&guest)?;
        self.closing -= usize::from(matches!(bound.state, State::Closing(_)));
        Some(bound)
    }

    /// The same, if it is not closing.
    pub(super) fn remove_unless_closing(&mut self, guest: GuestPasid, tag: Tag) -> Option<Bound> {
        match self.bound.get(&guest)?.state {
            State::Closing(_) => None,
            State::Prepared | State::Open => self.remove(guest, tag),
        }
    }

    /// Notes that an open entry was cleared.
    pub(super) fn note_closing(&mut self, guest: GuestPasid, tag: Tag, cursor: Cursor) {
        if let Some(bound) = self.bound.get_mut(&guest).filter(|bound| bound.tag == tag) {
            bound.state = State::Closing(cursor);
            self.closing += 1;
            self.counts.closed += 1;
        }
    }

    /// Notes how far the wait for the submissions of a closing entry came before it was given up.
    pub(super) fn note_late(&mut self, guest: GuestPasid, tag: Tag, cursor: Cursor) {
        // If it is gone, somebody else has found that they are over.
        if let Some(bound) = self.bound.get_mut(&guest).filter(|bound| bound.tag == tag) {
            bound.state = State::Closing(cursor);
            self.counts.late += 1;
        }
    }

    /// One that is open or prepared.
    pub(super) fn any_open(&self) -> Option<(GuestPasid, Tag)> {
        let open = |bound: &Bound| !matches!(bound.state, State::Closing(_));
        self.bound.iter().find(|(_, bound)| open(bound)).map(|(guest, bound)| (*guest, bound.tag))
    }

    /// Takes out one that was closing and that nothing uses any more; to be dropped with no lock
    /// held.
    pub(super) fn take_over(&mut self, marks: &Marks) -> Option<Bound> {
        if self.closing == 0 {
            return None;
        }
        let over = |bound: &mut Bound| match &mut bound.state {
            State::Closing(cursor) => marks.are_over(cursor),
            State::Prepared | State::Open => false,
        };
        let guest =
            self.bound.iter_mut().find_map(|(guest, bound)| over(bound).then_some(*guest))?;
        self.closing -= 1;
        self.bound.remove(&guest)
    }

    /// A processor that one of those is waiting for, and the PASID.
    pub(super) fn stuck(&self) -> Option<(GuestPasid, HostPasid, usize)> {
        self.bound.iter().find_map(|(guest, bound)| match bound.state {
            State::Closing(cursor) => Some((*guest, bound.host, cursor.slot())),
            State::Prepared | State::Open => None,
        })
    }

    pub(super) fn open(&self) -> usize {
        self.bound.values().filter(|bound| bound.state == State::Open).count()
    }

    pub(super) fn closing(&self) -> usize {
        self.closing
    }
}
