//! What the record has of one device.

use alloc::collections::btree_map::Entry;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::time::Duration;

use super::route::Route;
use crate::software::pasids::Ref;
use crate::{PageRequest, PageResponse, PageResponses, Pasid, PrgIndex, ResponseCode};

pub(super) struct Device {
    pub(super) attachment: u64,
    pub(super) sink: Option<Arc<dyn PageResponses>>,
    /// Groups that are not answered. Their requests, and the stop markers that wait, are `held`.
    pub(super) groups: BTreeMap<PrgIndex, Group>,
    /// Requests that wait for the model, in the order in which they came.
    pub(super) for_model: VecDeque<PageRequest>,
    /// Whether it is in the line of devices with such.
    pub(super) in_turn: bool,
    pub(super) held: u32,
    /// Answers that it has not heard.
    pub(super) answers: VecDeque<Answer>,
    /// Whether somebody is telling it one.
    pub(super) delivering: bool,
}

/// An answer for a device, and what keeps the number of its PASID from being used for another one
/// until the device has heard it.
pub(super) struct Answer {
    pub(super) response: PageResponse,
    pub(super) held: Option<Ref>,
}

/// What is to be dropped with no lock held: a reference that goes may call whoever does the work that
/// frees cause.
#[must_use]
pub(super) struct Forgotten {
    _groups: BTreeMap<PrgIndex, Group>,
    _answers: VecDeque<Answer>,
}

/// A group that is not answered.
pub(super) struct Group {
    pub(super) pasid: Option<Pasid>,
    /// Requests of it that were taken into the record.
    requests: u32,
    /// Those of them that are in `for_model`.
    pub(super) untaken: u32,
    /// Those that are to go to a queue and have not been taken from there.
    pub(super) pages: Vec<PageRequest>,
    pub(super) stage: Stage,
}

/// How far a group is.
pub(super) enum Stage {
    /// Its last request is missing: there is nothing to answer yet.
    Partial,
    Whole {
        order: u64,
        /// The time of the first tick after.
        since: Option<Duration>,
        route: Route,
        /// The answer, if that is held back.
        answer: Option<ResponseCode>,
        /// Its PASID, if the VM was granted that.
        held: Option<Ref>,
    },
}

impl Group {
    pub(super) fn route(&self) -> Option<&Route> {
        match &self.stage {
            Stage::Partial => None,
            Stage::Whole { route, .. } => Some(route),
        }
    }

    /// Whether its last request is there: there is something to answer.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self.stage, Stage::Whole { .. })
    }

    /// Whether all of it was taken by whoever is to answer it.
    pub(super) fn is_taken(&self) -> bool {
        match self.route() {
            None => false,
            Some(Route::Model) => self.untaken == 0,
            Some(Route::Queue { cookie, .. }) => cookie.is_some(),
        }
    }

    /// Whether it has an answer that is held back.
    pub(super) fn is_answered(&self) -> bool {
        matches!(self.stage, Stage::Whole { answer: Some(_), .. })
    }
}

impl Device {
    pub(super) fn new(attachment: u64) -> Self {
        Self {
            attachment,
            sink: None,
            groups: BTreeMap::new(),
            for_model: VecDeque::new(),
            in_turn: false,
            held: 0,
            answers: VecDeque::new(),
            delivering: false,
        }
    }

    /// The group that a request belongs to, if there is one. A group without its last request that
    /// has another PASID was given up by the device: it goes.
    pub(super) fn group_for(&mut self, request: &PageRequest) -> Option<&Group> {
        let index = request.group;
        let group = self.groups.get(&index)?;
        if matches!(group.stage, Stage::Partial) && group.pasid != request.pasid {
            self.drop_group(index);
        }
        self.groups.get(&index)
    }

    /// The same to add the request to, made if there is none.
    pub(super) fn group_mut(&mut self, request: &PageRequest) -> &mut Group {
        let group = match self.groups.entry(request.group) {
            Entry::Occupied(group) => group.into_mut(),
            Entry::Vacant(none) => none.insert(Group {
                pasid: request.pasid,
                requests: 0,
                untaken: 0,
                pages: Vec::new(),
                stage: Stage::Partial,
            }),
        };
        group.requests += 1;
        self.held += 1;
        group
    }

    /// Takes the next request for the model.
    pub(super) fn take(&mut self) -> Option<PageRequest> {
        let request = self.for_model.pop_front()?;
        if request.is_stop_marker() {
            self.held = self.held.saturating_sub(1);
        } else if let Some(group) = self.groups.get_mut(&request.group) {
            group.untaken = group.untaken.saturating_sub(1);
        }
        Some(request)
    }

    /// Takes a group out, with what waits of it.
    pub(super) fn drop_group(&mut self, index: PrgIndex) -> Option<Group> {
        let group = self.groups.remove(&index)?;
        self.held = self.held.saturating_sub(group.requests);
        if group.untaken > 0 {
            self.for_model.retain(|request| request.group != index || request.is_stop_marker());
        }
        Some(group)
    }

    /// Drops what waits for the model. There must be no group left, and the device in no line.
    pub(super) fn hush(&mut self) {
        self.for_model.clear();
        self.in_turn = false;
        self.held = 0;
    }

    /// Takes out all groups, and the answers that it has not heard.
    pub(super) fn forget(&mut self) -> Forgotten {
        self.hush();
        Forgotten {
            _groups: core::mem::take(&mut self.groups),
            _answers: core::mem::take(&mut self.answers),
        }
    }

    /// Puts an answer into its line.
    pub(super) fn answer(&mut self, response: PageResponse, held: Option<Ref>) {
        self.answers.push_back(Answer { response, held });
    }

    /// The answer that it is to be told next, unless somebody is at it; without a sink nobody is there
    /// to be told, now or later.
    pub(super) fn next_answer(&mut self) -> Option<(Answer, Option<Arc<dyn PageResponses>>)> {
        if self.delivering {
            return None;
        }
        let answer = self.answers.pop_front()?;
        self.delivering = true;
        Some((answer, self.sink.clone()))
    }
}
