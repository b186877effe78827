//! Binding in two steps, so that whoever has to agree agrees before anything opens.

use alloc::sync::Arc;
use core::fmt;
use core::ops::Deref;

use super::deliver::{Phase, Told};
use super::event::{About, Event, Refusal};
use super::lists::{Audience, Order, Place};
use crate::geometry::{Geometry, Shape};
use crate::holder::Holder;
use crate::lease::{Held, HoldError, Lease, Ref};
use crate::record::PHASE;
use crate::set::SetCore;
use crate::space::Shared;
use crate::spid::Spid;
use crate::state::Status;
use crate::{Ioasid, Tag};

/// What a shard knows of a bound ID.
#[derive(Debug)]
pub(crate) struct Bound {
    /// Bindings of it.
    count: u32,
    /// Serials of those who were told are below.
    until: u64,
    /// What they were told with.
    spid: Option<Spid>,
}

/// Why an ID was not bound. Nothing has changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BindError {
    /// The ID is freed, maybe while it was being bound.
    #[error("{0} is freed, and waits for those who hold it")]
    Parked(Ioasid),
    /// An event of the ID is being told, or another's [`Prepared`] of it is not over. Trying again
    /// is up to the caller; from a handler it cannot help.
    #[error("an event of {0} is under way")]
    Busy(Ioasid),
    /// The holder was made by another space.
    #[error("the holder belongs to another space")]
    ForeignHolder,
    /// A subscriber does not let it be bound.
    #[error("{by} does not let the ID be bound: {why}")]
    Refused {
        /// Who.
        by: Holder,
        /// Why.
        why: Refusal,
    },
    /// There was no memory to count it.
    #[error("no memory to count the binding")]
    NoMemory,
}

/// An ID that everybody is ready to have bound. Whoever binds it makes his own table entry now,
/// and then calls [`Prepared::commit`]; dropping this instead undoes it.
///
/// Until then another bind of the ID is [`BindError::Busy`], and a FREE of it is put off: so if it
/// is forgotten the ID stays parked for ever, in its holder's name.
#[must_use = "dropping it undoes the bind"]
pub struct Prepared<T, G: Shape = Geometry> {
    /// Only the first bind of an ID is told.
    opening: Option<Opening<T, G>>,
    /// There until it is committed.
    binding: Option<Binding<T, G>>,
}

/// A bind being told.
struct Opening<T, G: Shape> {
    occasion: Occasion<T, G>,
    /// Those before it are ready.
    ready: Place,
}

/// What a bind or its end is told with, and to whom.
struct Occasion<T, G: Shape> {
    audience: Audience<T, G>,
    set: Option<Arc<SetCore>>,
    spid: Option<Spid>,
}

/// An ID bound. When the last binding of an ID is dropped its users are told UNBIND, by the
/// dropping thread, unless the ID was freed before. It dereferences to the ID's data.
#[must_use = "dropping a binding ends it"]
pub struct Binding<T, G: Shape = Geometry> {
    held: Ref<T, G>,
    /// Whether it is one of the shard's count.
    counted: bool,
}

impl<T, G: Shape> Lease<T, G> {
    /// Begins to bind the ID, in the name of `holder`: every subscriber is asked, in opening
    /// order. Only the first of several bindings of an ID is told.
    ///
    /// # Errors
    /// [`BindError`]. After a refusal those that had agreed are told that nothing comes of it.
    pub fn bind(&self, holder: &Holder) -> Result<Prepared<T, G>, BindError> {
        bind(self.held(), holder)
    }
}

impl<T, G: Shape> Ref<T, G> {
    /// Like [`Lease::bind`], for who has but a reference.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(&self, holder: &Holder) -> Result<Prepared<T, G>, BindError> {
        bind(self.held(), holder)
    }
}

fn bind<T, G: Shape>(held: &Held<T, G>, holder: &Holder) -> Result<Prepared<T, G>, BindError> {
    let held = held.share(holder).map_err(|error| match error {
        HoldError::ForeignHolder => BindError::ForeignHolder,
        HoldError::NoMemory => BindError::NoMemory,
        // Not another's and not forgotten, for it is held.
        HoldError::Parked(id) | HoldError::NotFound(id) | HoldError::ForeignSet(id) => {
            BindError::Parked(id)
        }
    })?;
    let opening = held.held().shared().begin_bind(held.held())?;
    let binding = Some(Binding { held, counted: true });
    let mut prepared = Prepared { opening, binding };
    prepared.prepare()?;
    Ok(prepared)
}

impl<T, G: Shape> Shared<T, G> {
    /// Counts one more binding; if it is the first its phase begins.
    fn begin_bind(&self, held: &Held<T, G>) -> Result<Option<Opening<T, G>>, BindError> {
        let Tag { id, .. } = held.tag();
        let mut inside = self.shards[held.home()].lock();
        let (state, record) = (self.table.state(id.0), self.table.record(id.0));
        if state.status() != Status::Live {
            return Err(BindError::Parked(id));
        }
        if record.has(PHASE) {
            return Err(BindError::Busy(id));
        }
        if let Some(bound) = inside.bound.get_mut(&id.0) {
            bound.count += 1; // each has a reference, of which there are no more either
            return Ok(None);
        }
        inside.bound.try_reserve(1).map_err(|_| BindError::NoMemory)?;
        let audience = self.audience(state.set());
        let spid = record.spid();
        inside.bound.insert(id.0, Bound { count: 1, until: audience.until, spid });
        record.add(PHASE);
        let set = self.core_of(&inside, state.set());
        let occasion = Occasion { audience, set, spid };
        Ok(Some(Opening { occasion, ready: Place::START }))
    }

    fn phase<'s>(&'s self, held: &Held<T, G>) -> Phase<'s, T, G> {
        Phase { shared: self, tag: held.tag(), home: held.home() }
    }
}

impl<T, G: Shape> Occasion<T, G> {
    fn about<'e>(&'e self, held: &'e Held<T, G>) -> About<'e, T, G> {
        About { held, set: self.set.as_deref(), spid: self.spid }
    }
}

impl<T, G: Shape> Prepared<T, G> {
    /// Asks everybody. Dropping this afterwards undoes it as far as it went.
    fn prepare(&mut self) -> Result<(), BindError> {
        let (Some(opening), Some(binding)) = (&mut self.opening, &self.binding) else {
            return Ok(());
        };
        let held = binding.held.held();
        let mut place = opening.ready;
        let about = opening.occasion.about(held);
        while let Some(entry) = opening.occasion.audience.next(&mut place) {
            let told = entry.tell(&held.shared().notify.panics, |subscriber| {
                subscriber.prepare_bind(&Event::new(&about, &entry.holder))
            });
            let why = match told {
                Told::Answer(Ok(())) | Told::Gone => None,
                Told::Answer(Err(why)) => Some(why),
                Told::Panicked => Some(Refusal::Panicked),
            };
            if let Some(why) = why {
                return Err(BindError::Refused { by: entry.holder.clone(), why });
            }
            opening.ready = place;
        }
        match binding.is_live() {
            true => Ok(()),
            false => Err(BindError::Parked(binding.id())),
        }
    }

    /// The number.
    pub fn id(&self) -> Ioasid {
        self.binding().id()
    }

    /// Whether the ID is live: it may be freed while it is being bound.
    pub fn is_live(&self) -> bool {
        self.binding().is_live()
    }

    fn binding(&self) -> &Binding<T, G> {
        self.binding.as_ref().expect("it is there until it is committed")
    }

    /// Tells everybody that the ID is bound. Cannot fail: if the ID was freed meanwhile, the FREE
    /// is told afterwards.
    pub fn commit(mut self) -> Binding<T, G> {
        let binding = self.binding.take().expect("it is there until it is committed");
        if let Some(Opening { occasion, .. }) = self.opening.take() {
            let held = binding.held.held();
            let shared = held.shared();
            let _phase = shared.phase(held);
            let about = occasion.about(held);
            shared.tell(&occasion.audience, Order::Opening, |subscriber, entry| {
                subscriber.commit_bind(&Event::new(&about, &entry.holder));
            });
        }
        binding
    }
}

impl<T, G: Shape> Drop for Prepared<T, G> {
    fn drop(&mut self) {
        let (binding, opening) = (self.binding.take(), self.opening.take());
        let (Some(mut binding), Some(opening)) = (binding, opening) else { return };
        binding.forget_bind();
        let held = binding.held.held();
        let _phase = held.shared().phase(held);
        let Opening { occasion, ready: mut place } = opening;
        let about = occasion.about(held);
        while let Some(entry) = occasion.audience.previous(&mut place) {
            entry.tell(&held.shared().notify.panics, |subscriber| {
                subscriber.abort_bind(&Event::new(&about, &entry.holder));
            });
        }
    }
}

impl<T, G: Shape> Binding<T, G> {
    /// The number.
    pub fn id(&self) -> Ioasid {
        self.held.id()
    }

    /// The number and which of its lives is bound.
    pub fn tag(&self) -> Tag {
        self.held.tag()
    }

    /// Whether the ID is live, and not parked.
    pub fn is_live(&self) -> bool {
        self.held.is_live()
    }

    /// Ends it, like dropping it.
    pub fn unbind(self) {}

    /// The only bind of the ID did not happen after all.
    fn forget_bind(&mut self) {
        self.counted = false;
        let held = self.held.held();
        held.shared().shards[held.home()].lock().bound.remove(&held.tag().id.0);
    }

    /// Takes it off the count. If it was the last of a live ID its last phase but FREE begins.
    fn uncount(&self) -> Option<Occasion<T, G>> {
        let held = self.held.held();
        let (shared, number) = (held.shared(), held.tag().id.0);
        let mut inside = shared.shards[held.home()].lock();
        let bound = inside.bound.get_mut(&number)?;
        bound.count -= 1;
        if bound.count > 0 {
            return None;
        }
        let bound = inside.bound.remove(&number)?;
        let state = shared.table.state(number);
        if state.status() != Status::Live {
            return None; // FREE has been told, or is going to be
        }
        debug_assert!(!shared.table.record(number).has(PHASE), "bound, so in no phase");
        shared.table.record(number).add(PHASE);
        let set = shared.core_of(&inside, state.set());
        let audience = Audience { until: bound.until, ..shared.audience(state.set()) };
        Some(Occasion { audience, set, spid: bound.spid })
    }
}

impl<T, G: Shape> Drop for Binding<T, G> {
    fn drop(&mut self) {
        if !self.counted {
            return;
        }
        let Some(occasion) = self.uncount() else { return };
        let held = self.held.held();
        let _phase = held.shared().phase(held);
        let about = occasion.about(held);
        held.shared().tell(&occasion.audience, Order::Closing, |subscriber, entry| {
            subscriber.unbind(&Event::new(&about, &entry.holder));
        });
    }
}

impl<T, G: Shape> Deref for Binding<T, G> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.held
    }
}

impl<T, G: Shape> fmt::Debug for Prepared<T, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared").field("id", &self.id()).finish_non_exhaustive()
    }
}

impl<T, G: Shape> fmt::Debug for Binding<T, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Binding").field("id", &self.id()).finish_non_exhaustive()
    }
}
