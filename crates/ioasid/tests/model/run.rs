//! Runs commands on a space and on the model, and compares.

use std::collections::BTreeMap;

use ioasid::{
    FindError, Guard, HoldError, Holder, Ioasid, Lease, Owner, Reader, Ref, Set, SetType, Shape,
    Space, Tag,
};
use proptest::prelude::*;

use crate::reference::Model;
use crate::{Command, Data, Drops, Index, HOLDERS, OWNERS};

pub(crate) struct Run<'s, D: Data, G: Shape> {
    space: &'s Space<D, G>,
    readers: &'s [Reader<D, G>],
    model: Model,
    drops: Drops,
    /// The next allocation.
    which: usize,
    holders: Vec<Holder>,
    owners: Vec<Owner>,
    leases: Vec<Lease<D, G>>,
    refs: Vec<Ref<D, G>>,
    /// Handles, each with its set's place in the model.
    sets: Vec<(usize, Set<D, G>)>,
    guards: Vec<(usize, Guard<'s, D, G>)>,
    /// The session that a reader is in, if it is.
    sessions: BTreeMap<usize, u64>,
    session: u64,
    /// Tags of IDs, and which data they had.
    tags: Vec<(Tag, usize)>,
    /// Another space, and a handle of each kind in it.
    stranger: Space<D, G>,
    strange_set: Set<D, G>,
    strange_holder: Holder,
}

/// Picks one, if there is any.
fn pick<V>(index: &Index, from: &[V]) -> Option<usize> {
    index.checked_rem(from.len())
}

impl<'s, D: Data, G: Shape> Run<'s, D, G> {
    pub(crate) fn new(
        space: &'s Space<D, G>,
        readers: &'s [Reader<D, G>],
        model: Model,
        steps: usize,
    ) -> Self {
        let config = ioasid::Config { width: 4, ..ioasid::Config::default() };
        let stranger = Space::<D, G>::with_geometry(config, ioasid::Hooks::default()).unwrap();
        Self {
            space,
            readers,
            model,
            drops: (0..2 * steps + 1).map(|_| 0.into()).collect::<Vec<_>>().into(),
            which: 0,
            holders: (0..HOLDERS).map(|n| space.holder(&n.to_string()).unwrap()).collect(),
            owners: (0..OWNERS).map(|_| Owner::new("owner")).collect(),
            leases: Vec::new(),
            refs: Vec::new(),
            sets: Vec::new(),
            guards: Vec::new(),
            sessions: BTreeMap::new(),
            session: 0,
            tags: Vec::new(),
            strange_set: stranger.create_set("strange", SetType::Native, 5).unwrap(),
            strange_holder: stranger.holder("stranger").unwrap(),
            stranger,
        }
    }

    fn data(&mut self) -> D {
        self.which += 1;
        D::new(self.which - 1, &self.drops)
    }

    /// A handle, or the space itself for what belongs to no set.
    fn pick_set(&self, index: &Index) -> (usize, Option<&Set<D, G>>) {
        match index % (self.sets.len() + 1) {
            0 => (0, None),
            at => (self.sets[at - 1].0, Some(&self.sets[at - 1].1)),
        }
    }

    pub(crate) fn step(&mut self, command: &Command) -> Result<(), TestCaseError> {
        self.run(command)?;
        self.look_in_passing()
    }

    /// Runs a command, and compares its result alone.
    pub(crate) fn run(&mut self, command: &Command) -> Result<(), TestCaseError> {
        match command {
            Command::Alloc { set, shard, range } => {
                let data = self.data();
                let (place, set) = self.pick_set(set);
                let asked = range.0..=range.1;
                let got = match set {
                    Some(set) => set.alloc_on(*shard, asked, data),
                    None => self.space.alloc_on(*shard, asked, data),
                };
                self.allocated(place, *range, got)?;
            }
            Command::AllocWith { set, range, panics: false } => {
                let data = self.data();
                let (place, set) = self.pick_set(set);
                let asked = range.0..=range.1;
                let got = match set {
                    Some(set) => set.alloc_with(asked, |_| data),
                    None => self.space.alloc_with(asked, |_| data),
                };
                self.allocated(place, *range, got)?;
            }
            Command::AllocWith { set, range, panics: true } => {
                let (_, set) = self.pick_set(set);
                let asked = range.0..=range.1;
                // Unwinds without the noise of a panic.
                let make = |_| -> D { std::panic::resume_unwind(Box::new("no data")) };
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| match set {
                    Some(set) => drop(set.alloc_with(asked, make)),
                    None => drop(self.space.alloc_with(asked, make)),
                }));
            }
            Command::Free(index) => {
                let Some(at) = pick(index, &self.leases) else { return Ok(()) };
                let lease = self.leases.swap_remove(at);
                let live = self.model.free(lease.id().0);
                prop_assert_eq!(lease.free().is_ok(), live);
            }
            Command::Keep { lease, set } => self.keep(lease, set)?,
            Command::Take { set, id } => {
                let Some(at) = pick(set, &self.sets) else { return Ok(()) };
                let (place, set) = &self.sets[at];
                let got = set.take(Ioasid(*id));
                let number = got.as_ref().map(|lease| lease.id().0).map_err(|&error| error);
                prop_assert!(self.model.take(*place, *id, number), "{:?}", number);
                self.leases.extend(got);
            }
            Command::Hold { id, holder } => {
                let guard = self.readers[0].pin();
                let got = guard.hold(Ioasid(*id), &self.holders[*holder]);
                drop(guard);
                self.held(None, *id, got)?;
            }
            Command::HoldIn { set, id, holder } => {
                let Some(at) = pick(set, &self.sets) else { return Ok(()) };
                let (place, set) = &self.sets[at];
                let guard = self.readers[0].pin();
                let got = guard.hold_in(set, Ioasid(*id), &self.holders[*holder]);
                drop(guard);
                self.held(Some(*place), *id, got)?;
            }
            Command::ShareLease { lease, holder } => {
                let Some(at) = pick(lease, &self.leases) else { return Ok(()) };
                let got = self.leases[at].share(&self.holders[*holder]);
                self.held(None, self.leases[at].id().0, got)?;
            }
            Command::ShareRef { of, holder } => {
                let Some(at) = pick(of, &self.refs) else { return Ok(()) };
                let got = self.refs[at].share(&self.holders[*holder]);
                self.held(None, self.refs[at].id().0, got)?;
            }
            Command::Put(index) => {
                let Some(at) = pick(index, &self.refs) else { return Ok(()) };
                let reference = self.refs.swap_remove(at);
                self.model.put(reference.id().0);
                drop(reference);
            }
            Command::Pin(reader) => self.pin(*reader),
            Command::Unpin(index) => self.unpin(index),
            Command::Foreign { id } => self.foreign(Ioasid(*id))?,
            Command::Look => self.look()?,
            of_sets => self.run_of_sets(of_sets)?,
        }
        Ok(())
    }

    fn run_of_sets(&mut self, command: &Command) -> Result<(), TestCaseError> {
        match command {
            Command::Create { owner, quota } => {
                let kind = owner.map(|at| SetType::Owned(self.owners[at].clone()));
                let kind = kind.unwrap_or(SetType::Native);
                let got = self.space.create_set("set", kind, *quota);
                let told = got.as_ref().map(|_| ()).map_err(|&error| error);
                prop_assert!(self.model.create(*owner, *quota, told), "{:?}", told);
                self.sets.extend(got.map(|set| (self.model.sets.len() - 1, set)));
            }
            Command::FindSet(owner) => {
                let got = self.space.set_of(&self.owners[*owner]);
                let expected = self.model.set_of(*owner);
                prop_assert_eq!(got.is_some(), expected.is_some());
                let (Some(set), Some(place)) = (got, expected) else { return Ok(()) };
                self.model.sets[place].handles += 1;
                self.sets.push((place, set));
            }
            Command::CloneSet(index) => {
                let Some(at) = pick(index, &self.sets) else { return Ok(()) };
                let (place, set) = &self.sets[at];
                self.model.sets[*place].handles += 1;
                let cloned = (*place, set.clone());
                self.sets.push(cloned);
            }
            Command::DropSet(index) => {
                let Some(at) = pick(index, &self.sets) else { return Ok(()) };
                let (place, set) = self.sets.swap_remove(at);
                self.model.drop_handle(place);
                drop(set);
            }
            Command::Close(index) => {
                let Some(at) = pick(index, &self.sets) else { return Ok(()) };
                let (place, set) = &self.sets[at];
                self.model.close(*place);
                set.close();
            }
            Command::Adjust { set, quota } => {
                let Some(at) = pick(set, &self.sets) else { return Ok(()) };
                let (place, set) = &self.sets[at];
                let got = set.adjust(*quota);
                prop_assert!(self.model.adjust(*place, *quota, got), "{:?}", got);
            }
            other => unreachable!("{other:?} is not of sets"),
        }
        Ok(())
    }

    fn allocated(
        &mut self,
        set: usize,
        range: (u32, u32),
        got: Result<Lease<D, G>, ioasid::AllocError>,
    ) -> Result<(), TestCaseError> {
        prop_assert!(self.settle_what_shows());
        let number = got.as_ref().map(|lease| lease.id().0).map_err(|&error| error);
        prop_assert!(
            self.model.alloc(set, range, self.which - 1, number),
            "{:?} for {:?}",
            number,
            range
        );
        if let Ok(lease) = got {
            self.tags.push((lease.tag(), self.which - 1));
            self.leases.push(lease);
        }
        Ok(())
    }

    fn held(
        &mut self,
        set: Option<usize>,
        id: u32,
        got: Result<Ref<D, G>, HoldError>,
    ) -> Result<(), TestCaseError> {
        let number = got.as_ref().map(|held| held.id().0).map_err(|&error| error);
        prop_assert!(self.model.hold(set, id, number), "{:?}", number);
        self.refs.extend(got);
        Ok(())
    }

    fn keep(&mut self, lease: &Index, set: &Index) -> Result<(), TestCaseError> {
        let (Some(at), Some(of)) = (pick(lease, &self.leases), pick(set, &self.sets)) else {
            return Ok(());
        };
        let lease = self.leases.swap_remove(at);
        let (number, tag) = (lease.id().0, lease.tag());
        let (place, set) = &self.sets[of];
        match set.keep(lease) {
            Ok(kept) => {
                prop_assert_eq!((kept, self.model.ids[&number].set), (tag, *place));
                self.model.keep(number);
            }
            Err(lease) => {
                prop_assert_ne!(self.model.ids[&number].set, *place);
                self.leases.push(lease);
            }
        }
        Ok(())
    }

    fn pin(&mut self, reader: usize) {
        self.guards.push((reader, self.readers[reader].pin()));
        let session = &mut self.session;
        self.sessions.entry(reader).or_insert_with(|| {
            *session += 1;
            self.model.begin(*session);
            *session
        });
    }

    fn unpin(&mut self, index: &Index) {
        let Some(at) = pick(index, &self.guards) else { return };
        let (reader, guard) = self.guards.swap_remove(at);
        drop(guard);
        if !self.guards.iter().any(|&(of, _)| of == reader) {
            let session = self.sessions.remove(&reader);
            self.model.end(session.expect("it was pinned"));
        }
    }

    /// Handles of another space name nothing here.
    fn foreign(&mut self, id: Ioasid) -> Result<(), TestCaseError> {
        let guard = self.readers[0].pin();
        let live = guard.find(id).is_some();
        let expected = if live { FindError::ForeignSet(id) } else { FindError::NotFound(id) };
        prop_assert_eq!(guard.find_in(&self.strange_set, id).err(), Some(expected));
        let held = guard.hold(id, &self.strange_holder);
        prop_assert_eq!(held.err(), Some(HoldError::ForeignHolder));
        let held = guard.hold_in(&self.strange_set, id, &self.holders[0]);
        prop_assert_eq!(held.err(), Some(HoldError::ForeignSet(id)));
        if let Some((_, set)) = self.sets.first() {
            let lease = self.stranger.alloc(1..=9, D::new(self.drops.len() - 1, &self.drops));
            let refused = set.keep(lease.unwrap());
            prop_assert!(refused.is_err(), "a stranger's lease was kept");
            // Its data is all spaces' last; it is made again next time.
            drop(refused);
            self.stranger.release_parked();
            self.drops[self.drops.len() - 1].store(0, std::sync::atomic::Ordering::Relaxed);
        }
        Ok(())
    }

    fn settle_what_shows(&mut self) -> bool {
        D::gone(0, &self.drops).is_none() || self.settle()
    }

    /// Right after a release of what can be released, if it does not show.
    fn settle(&mut self) -> bool {
        self.model.settle(|which| D::gone(which, &self.drops))
    }

    /// What can be seen without releasing anything.
    pub(crate) fn look_in_passing(&mut self) -> Result<(), TestCaseError> {
        prop_assert!(self.settle_what_shows(), "gone while it was held");
        let reader = self.space.reader();
        let guard = reader.pin();
        for number in 0..=self.model.last + 1 {
            let id = Ioasid(number);
            let live = self.model.ids.get(&number).filter(|known| known.live);
            let which = live.map(|known| known.which);
            prop_assert_eq!(guard.find(id).map(D::which), which, "{}", id);
            for (place, set) in &self.sets {
                let expected = match live {
                    None => Err(FindError::NotFound(id)),
                    Some(known) if known.set != *place => Err(FindError::ForeignSet(id)),
                    Some(known) => Ok(known.which),
                };
                prop_assert_eq!(guard.find_in(set, id).map(D::which), expected);
            }
        }
        for &(tag, which) in &self.tags {
            let live = self.model.ids.get(&tag.id().0);
            let expected = live.filter(|known| known.live && known.which == which);
            prop_assert_eq!(
                guard.find_exact(tag).map(D::which),
                expected.map(|known| known.which),
                "{:?}",
                tag
            );
        }
        for held in &self.refs {
            let known = &self.model.ids[&held.id().0];
            prop_assert_eq!((held.which(), held.is_live()), (known.which, known.live));
        }
        for lease in &self.leases {
            let known = &self.model.ids[&lease.id().0];
            prop_assert_eq!((lease.which(), lease.is_live()), (known.which, known.live));
        }
        Ok(())
    }

    /// All books, after a release of what can be released.
    fn look(&mut self) -> Result<(), TestCaseError> {
        let usage = self.space.usage();
        prop_assert_eq!(self.space.report(0).unwrap().balance(), Ok(()));
        prop_assert!(self.settle(), "gone while it was held");
        let within = |value: u32, (least, most): (u32, u32)| least <= value && value <= most;
        let all = 0..self.model.sets.len();
        let live: u32 = all.clone().map(|set| self.model.live(set)).sum();
        let parked = all.map(|set| self.model.parked(set));
        let parked = parked.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        prop_assert_eq!((usage.live, usage.capacity), (live, self.model.capacity));
        prop_assert!(within(usage.parked, parked), "{:?}, {:?}", usage, parked);
        prop_assert!(within(usage.unreserved, self.model.unreserved()), "{:?}", usage);
        for (place, set) in &self.sets {
            let usage = set.usage();
            let known = &self.model.sets[*place];
            prop_assert_eq!((usage.quota, usage.live), (known.quota, self.model.live(*place)));
            prop_assert!(within(usage.parked, self.model.parked(*place)), "{:?}", usage);
            let (least, most) = self.model.out(*place);
            let drained = set.is_drained();
            prop_assert!(!drained || (!known.open && least == 0));
            prop_assert!(drained || known.open || most > 0, "nothing is out of it");
            let mut members = Vec::new();
            set.for_each(|tag| members.push(tag.id().0));
            members.sort_unstable();
            let of_set = self.model.ids.iter().filter(|(_, id)| id.live && id.set == *place);
            prop_assert_eq!(members, of_set.map(|(&number, _)| number).collect::<Vec<_>>());
        }
        Ok(())
    }

    /// Everything goes, in no tidy order.
    pub(crate) fn end(mut self) -> Result<(), TestCaseError> {
        self.look()?;
        self.leases.clear();
        self.sets.clear();
        self.guards.clear();
        self.refs.clear();
        let usage = self.space.usage();
        prop_assert_eq!((usage.live, usage.parked), (0, 0));
        prop_assert_eq!(usage.unreserved, usage.capacity);
        for which in 0..self.which {
            prop_assert_eq!(D::gone(which, &self.drops).unwrap_or(true), true, "{} leaked", which);
        }
        // All numbers can be had again.
        let all = (0..=self.model.last).filter(|number| !self.model.reserved.contains(number));
        for number in all.take(self.model.capacity as usize) {
            let data = D::new(self.drops.len() - 1, &self.drops);
            let lease = self.space.alloc_on(number as usize, number..=number, data);
            prop_assert_eq!(lease.map(|lease| lease.id().0), Ok(number));
            self.space.release_parked();
            self.drops[self.drops.len() - 1].store(0, std::sync::atomic::Ordering::Relaxed);
        }
        Ok(())
    }
}
