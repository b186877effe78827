//! The record of page requests against lists that are searched from end to end: every call has the
//! result that was predicted, and every device hears what it should, once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use iommu::{
    Endpoint, FaultQueueId, Host, HwptFlags, HwptId, HwptParent, HwptRequest, InvalidField,
    ObjectError, PageFault, PageRequest, PageRequestPolicy, PageResponse, PageResponseError,
    PasidRange, ResponseCode, SoftwareHost, SoftwareVm, StageOneTable, TakenGroups, Vm, VmConfig,
    VtdStageOne, VtdStageOneFlags,
};
use mem::{Gpa, MemoryMap};
use pci::RequesterId;

use super::hosted::guest;
use super::pasid;
use super::requests::*;
use super::scenarios::Verdict;

pub const DEVICES: usize = 2;
/// PASIDs are 1 to this.
pub const PASIDS: u32 = 3;
pub const INDICES: u16 = 8;
/// Tables: two with a queue each, one without.
pub const TABLES: usize = 3;
const QUEUES: usize = 2;
const PER_DEVICE: u32 = 5;
const TIMEOUT: Duration = Duration::from_secs(3);

const IDS: [RequesterId; DEVICES] = [RequesterId::from_bits(0x80), RequesterId::from_bits(0x90)];

/// A device, and a PASID of it or none.
pub type Place = (usize, Option<u32>);

#[derive(Clone, Copy, Debug)]
pub enum Step {
    Send {
        place: Place,
        index: u16,
        last: bool,
    },
    StopMarker {
        device: usize,
        of: u32,
    },
    Take,
    TakeFault {
        queue: usize,
    },
    Respond {
        place: Place,
        index: u16,
        code: ResponseCode,
    },
    /// Answers the n-th of the groups that went to the model.
    Answer {
        nth: usize,
        code: ResponseCode,
    },
    /// The n-th last of the cookies that were seen, or one that nobody has.
    RespondFault {
        queue: usize,
        cookie: usize,
        code: ResponseCode,
    },
    Forget {
        device: usize,
    },
    Attach {
        place: Place,
        table: usize,
    },
    Detach {
        place: Place,
    },
    Grant {
        of: u32,
    },
    Free {
        of: u32,
    },
    Release,
    /// A device goes, or comes back.
    Plug {
        device: usize,
    },
    Tick {
        seconds: u64,
    },
}

/// A group that is not answered.
#[derive(Clone, Debug)]
struct Group {
    device: usize,
    pasid: Option<u32>,
    index: u16,
    /// Requests that count for it.
    requests: u32,
    /// Those that go to a queue.
    pages: Vec<PageRequest>,
    whole: Option<Whole>,
}

#[derive(Clone, Copy, Debug)]
struct Whole {
    order: u64,
    since: Option<Duration>,
    /// The queue and the place, of what did not go to the model.
    queue: Option<(usize, Option<u32>)>,
    cookie: Option<u32>,
    /// Whether its PASID was granted.
    held: bool,
}

#[derive(Default)]
struct Predicted {
    taken: TakenGroups,
    plugged: [bool; DEVICES],
    /// Whether what is attached translates the device.
    adopted: [bool; DEVICES],
    places: BTreeMap<Place, usize>,
    granted: BTreeSet<u32>,
    groups: Vec<Group>,
    /// What waits for the model.
    line: Vec<(usize, PageRequest)>,
    /// What is left of a group that is being taken.
    taking: [Vec<PageFault>; QUEUES],
    answers: Vec<(usize, PageResponse)>,
    order: u64,
    now: Duration,
}

impl Predicted {
    fn held(&self, device: usize) -> u32 {
        let groups = self.groups.iter().filter(|group| group.device == device);
        let markers =
            self.line.iter().filter(|(of, marker)| *of == device && marker.is_stop_marker());
        groups.map(|group| group.requests).sum::<u32>() + markers.count() as u32
    }

    fn find(&self, device: usize, index: u16) -> Option<usize> {
        self.groups.iter().position(|group| group.device == device && group.index == index)
    }

    fn drop_group(&mut self, at: usize) -> Group {
        let group = self.groups.remove(at);
        self.line.retain(|(device, request)| {
            let is_its = *device == group.device && request.group.get() == group.index;
            !is_its || request.is_stop_marker()
        });
        group
    }

    /// Takes groups out; those that are whole are answered.
    fn end(&mut self, code: ResponseCode, of: impl Fn(&Group) -> bool) {
        while let Some(at) = self.groups.iter().position(&of) {
            let group = self.drop_group(at);
            if group.whole.is_some() {
                self.answer(group.device, group.pasid, group.index, code);
            }
        }
    }

    fn answer(&mut self, device: usize, of: Option<u32>, index: u16, code: ResponseCode) {
        let (requester, pasid, group) = (IDS[device], of.map(pasid), group(index));
        self.answers.push((device, PageResponse { requester, pasid, group, code }));
    }

    fn send(&mut self, (device, of): Place, request: PageRequest) {
        let index = request.group.get();
        if !self.plugged[device] {
            return;
        }
        let to_model = !self.adopted[device];
        let queue = self.places.get(&(device, of)).copied().filter(|table| *table < QUEUES);
        if request.is_stop_marker() {
            if to_model && self.held(device) < PER_DEVICE {
                self.line.push((device, request));
            }
            return;
        }
        match self.find(device, index) {
            Some(at) if self.groups[at].whole.is_some() => return,
            Some(at) if self.groups[at].pasid != of => {
                self.drop_group(at);
            }
            _ => {}
        }
        let refused = self.held(device) >= PER_DEVICE;
        if refused || (request.last && !to_model && queue.is_none()) {
            if request.last {
                if let Some(at) = self.find(device, index) {
                    self.drop_group(at);
                }
                let code = if refused { ResponseCode::Success } else { ResponseCode::Invalid };
                self.answer(device, of, index, code);
            }
            return;
        }
        let at = self.find(device, index).unwrap_or_else(|| {
            let (requests, pages) = (0, Vec::new());
            self.groups.push(Group { device, pasid: of, index, requests, pages, whole: None });
            self.groups.len() - 1
        });
        self.groups[at].requests += 1;
        match to_model {
            true => self.line.push((device, request)),
            false => self.groups[at].pages.push(request),
        }
        if request.last {
            let queue = queue.filter(|_| !to_model).map(|queue| (queue, of));
            let (order, since, cookie) = (self.order, None, None);
            let held = of.is_some_and(|of| self.granted.contains(&of));
            self.groups[at].whole = Some(Whole { order, since, queue, cookie, held });
            self.order += 1;
        }
    }

    fn take(&mut self, taken: Option<PageRequest>) -> Verdict {
        let Some(taken) = taken else {
            return check(self.line.is_empty(), || format!("{:?} waits", self.line));
        };
        let at = self.line.iter().position(|(_, request)| request.requester == taken.requester);
        check(at.is_some_and(|at| self.line[at].1 == taken), || format!("took {taken:?}"))?;
        self.line.remove(at.unwrap_or_default());
        Ok(())
    }

    fn take_fault(&mut self, queue: usize, taken: Option<PageFault>) -> Verdict {
        if self.taking[queue].is_empty() {
            let waits = |group: &&mut Group| {
                let whole = group.whole.as_ref();
                whole.is_some_and(|whole| {
                    whole.cookie.is_none() && whole.queue.is_some_and(|(of, _)| of == queue)
                })
            };
            let groups = self.groups.iter_mut().filter(waits);
            let first = groups.min_by_key(|group| group.whole.map(|whole| whole.order));
            if let (Some(group), Some(PageFault { cookie, .. })) = (first, taken) {
                let pages = core::mem::take(&mut group.pages).into_iter();
                self.taking[queue] = pages.map(|request| PageFault { cookie, request }).collect();
                group.whole.as_mut().unwrap().cookie = Some(cookie);
                let out = self.groups.iter().filter_map(|group| group.whole);
                let of_queue = |whole: &Whole| {
                    whole.cookie == Some(cookie) && whole.queue.is_some_and(|(of, _)| of == queue)
                };
                check(out.filter(of_queue).count() == 1, || format!("cookie {cookie} is out"))?;
            } else if let (Some(group), None) = (self.groups.iter_mut().find(waits), taken) {
                return Err(format!("{group:?} waits"));
            }
        }
        let left = &mut self.taking[queue];
        let expected = (!left.is_empty()).then(|| left.remove(0));
        check(taken == expected, || format!("took {taken:?}, not {expected:?}"))
    }

    fn respond(
        &mut self,
        (device, of): Place,
        index: u16,
        code: ResponseCode,
    ) -> Result<(), PageResponseError> {
        let (requester, group) = (IDS[device], group(index));
        let at = self
            .find(device, index)
            .filter(|at| self.groups[*at].whole.is_some_and(|whole| whole.queue.is_none()));
        let at = at.ok_or(PageResponseError::NotOutstanding { requester, group })?;
        if self.groups[at].pasid != of {
            return Err(PageResponseError::WrongPasid { requester, group });
        }
        self.drop_group(at);
        self.answer(device, of, index, code);
        Ok(())
    }

    fn respond_fault(
        &mut self,
        queue: usize,
        cookie: u32,
        code: ResponseCode,
    ) -> Result<(), ObjectError> {
        let at = self.groups.iter().position(|group| {
            let whole = group.whole;
            whole.is_some_and(|whole| {
                whole.cookie == Some(cookie) && whole.queue.is_some_and(|(of, _)| of == queue)
            })
        });
        let at = at.ok_or(ObjectError::Invalid(InvalidField::Cookie))?;
        let group = self.drop_group(at);
        self.answer(group.device, group.pasid, group.index, code);
        Ok(())
    }

    fn forget(&mut self, device: usize) {
        self.groups.retain(|group| group.device != device);
        self.line.retain(|(of, _)| *of != device);
    }

    /// Whether a group was taken, and is its taker's to answer for that.
    fn stays(&self, group: &Group) -> bool {
        let Some(whole) = group.whole else { return false };
        let waits = |(device, request): &(usize, PageRequest)| {
            *device == group.device && request.group.get() == group.index
        };
        let taken = match whole.queue {
            Some(_) => whole.cookie.is_some(),
            None => !self.line.iter().any(|one| waits(one) && !one.1.is_stop_marker()),
        };
        taken && self.taken == TakenGroups::Stay
    }

    /// The same for those of some groups that do not stay.
    fn withdraw(&mut self, of: impl Fn(&Group) -> bool) {
        let picked: Vec<_> = self.groups.iter().filter(|group| of(group)).collect();
        let picked = picked.into_iter().filter(|group| !self.stays(group));
        let picked: Vec<_> = picked.map(|group| (group.device, group.index)).collect();
        self.end(ResponseCode::Invalid, |group| picked.contains(&(group.device, group.index)));
    }

    /// What came through a place is answered.
    fn end_place(&mut self, (device, of): Place) {
        self.withdraw(|group| {
            let queue = group.whole.and_then(|whole| whole.queue);
            group.device == device && queue.is_some_and(|(_, place)| place == of)
        });
    }

    /// A PASID is given back.
    fn free(&mut self, pasid: u32) {
        self.places.retain(|(_, of), _| *of != Some(pasid));
        self.granted.remove(&pasid);
        self.withdraw(|group| group.pasid == Some(pasid));
    }

    /// All PASIDs are.
    fn free_all(&mut self) {
        self.places.retain(|(_, of), _| of.is_none());
        self.granted.clear();
        self.end(ResponseCode::Invalid, |group| group.pasid.is_some());
    }

    /// Whether the host's number is not to be had: a device waits for an answer about it.
    fn is_held(&self, pasid: u32) -> bool {
        let held = |group: &Group| group.whole.is_some_and(|whole| whole.held);
        self.groups.iter().any(|group| group.pasid == Some(pasid) && held(group))
    }

    fn tick(&mut self, now: Duration) {
        self.now = now;
        for group in &mut self.groups {
            if let Some(whole) = &mut group.whole {
                whole.since.get_or_insert(now);
            }
        }
        self.end(ResponseCode::Invalid, |group| {
            let since = group.whole.and_then(|whole| whole.since);
            since.is_some_and(|since| since + TIMEOUT <= now)
        });
    }

    fn deadline(&self) -> Duration {
        let since = self.groups.iter().filter_map(|group| group.whole?.since).min();
        since.unwrap_or(self.now) + TIMEOUT
    }
}

fn check(holds: bool, claim: impl FnOnce() -> String) -> Verdict {
    if holds {
        Ok(())
    } else {
        Err(claim())
    }
}

struct Modelled {
    vm: SoftwareVm,
    endpoints: [Option<Endpoint>; DEVICES],
    ears: [Arc<Ear>; DEVICES],
    queues: [FaultQueueId; QUEUES],
    tables: [HwptId; TABLES],
    cookies: Vec<u32>,
    predicted: Predicted,
}

impl Modelled {
    fn new(taken: TakenGroups) -> Self {
        let timeout = Some(TIMEOUT);
        let page_requests = PageRequestPolicy { per_device: PER_DEVICE, timeout, taken };
        let config = VmConfig { page_requests, ..VmConfig::named("modelled") };
        let vm = SoftwareHost::new().create_vm(config).unwrap();
        let _ = vm.set_memory(MemoryMap::anonymous(&[(Gpa(0), 0x10_0000)]).unwrap());
        let endpoints = IDS.map(|id| vm.attach(id).unwrap());
        let ears = [Ear::of(&endpoints[0]), Ear::of(&endpoints[1])];
        let flags = HwptFlags::NEST_PARENT | HwptFlags::PASID;
        let parent = HwptParent::Ioas(vm.ioas().unwrap());
        let request = HwptRequest { device: IDS[0], parent, flags, data: None, fault: None };
        let parent = HwptParent::Hwpt(vm.alloc_hwpt(&request).unwrap());
        let queues = [(); QUEUES].map(|()| vm.alloc_fault_queue().unwrap());
        let flags = VtdStageOneFlags::empty();
        let table = VtdStageOne { flags, root: Gpa(0x1000), address_width: 48 };
        let data = Some(StageOneTable::Vtd(table));
        let tables = [Some(queues[0]), Some(queues[1]), None].map(|fault| {
            let with = if fault.is_some() { HwptFlags::FAULT_ID_VALID } else { HwptFlags::empty() };
            let flags = HwptFlags::PASID | with;
            vm.alloc_hwpt(&HwptRequest { device: IDS[0], parent, flags, data, fault }).unwrap()
        });
        let predicted = Predicted { taken, plugged: [true; DEVICES], ..Predicted::default() };
        let endpoints = endpoints.map(Some);
        Self { vm, endpoints, ears, queues, tables, cookies: Vec::new(), predicted }
    }

    fn send(&mut self, place: Place, request: PageRequest) {
        let requester = IDS[place.0];
        if let Some(endpoint) = &self.endpoints[place.0] {
            endpoint.send_page_request(request);
        }
        self.predicted.send(place, PageRequest { requester, ..request });
    }

    fn attach(&mut self, place: Place, table: usize) -> Verdict {
        let (vm, (device, of)) = (&self.vm, place);
        let (id, hwpt, pasid) = (IDS[device], self.tables[table], of.map(guest));
        let predicted = &mut self.predicted;
        let granted = of.is_none_or(|of| predicted.granted.contains(&of));
        let (replaced, attached) = match predicted.places.contains_key(&place) {
            true => (true, vm.replace_hwpt(id, pasid, hwpt).map(|_| ())),
            false => (false, vm.attach_hwpt(id, pasid, hwpt)),
        };
        let expected = granted && predicted.plugged[device];
        check(attached.is_ok() == expected, || format!("attaching gave {attached:?}"))?;
        if attached.is_ok() {
            if replaced {
                predicted.end_place(place);
            }
            predicted.places.insert(place, table);
            predicted.adopted[device] = true;
        }
        Ok(())
    }

    fn plug(&mut self, device: usize) {
        match self.endpoints[device].take() {
            Some(endpoint) => {
                drop(endpoint);
                self.predicted.forget(device);
                self.predicted.places.retain(|(of, _), _| *of != device);
                self.predicted.adopted[device] = false;
            }
            None => {
                let endpoint = self.vm.attach(IDS[device]).unwrap();
                endpoint.set_page_responses(Some(self.ears[device].clone()));
                self.endpoints[device] = Some(endpoint);
            }
        }
        self.predicted.plugged[device] = self.endpoints[device].is_some();
    }

    fn respond(&mut self, place: Place, index: u16, code: ResponseCode) -> Verdict {
        let (requester, pasid) = (IDS[place.0], place.1.map(pasid));
        let response = PageResponse { requester, pasid, group: group(index), code };
        let given = self.vm.respond_page_request(response);
        let expected = self.predicted.respond(place, index, code);
        check(given == expected, || format!("{given:?}, not {expected:?}"))
    }

    fn step(&mut self, step: Step) -> Verdict {
        match step {
            Step::Send { place, index, last } => {
                let request = PageRequest { last, ..request(place.1, index) };
                self.send(place, request);
            }
            Step::StopMarker { device, of } => {
                self.send((device, Some(of)), PageRequest::stop_marker(IDS[device], pasid(of)));
            }
            Step::Take => self.predicted.take(self.vm.take_page_request())?,
            Step::TakeFault { queue } => {
                let taken = self.vm.take_page_fault(self.queues[queue]).unwrap();
                self.cookies.extend(taken.map(|fault| fault.cookie));
                self.predicted.take_fault(queue, taken)?;
            }
            Step::Respond { place, index, code } => self.respond(place, index, code)?,
            Step::Answer { nth, code } => {
                let groups = &self.predicted.groups;
                let groups = groups
                    .iter()
                    .filter(|group| group.whole.is_some_and(|whole| whole.queue.is_none()));
                let group = groups.cycle().nth(nth).cloned();
                if let Some(Group { device, pasid, index, .. }) = group {
                    self.respond((device, pasid), index, code)?;
                }
            }
            Step::RespondFault { queue, cookie, code } => {
                let cookie =
                    self.cookies.iter().rev().nth(cookie).copied().unwrap_or(cookie as u32 + 1000);
                let given = self.vm.respond_page_fault(self.queues[queue], cookie, code);
                let expected = self.predicted.respond_fault(queue, cookie, code);
                check(given == expected, || format!("{given:?}, not {expected:?}"))?;
            }
            Step::Forget { device } => {
                if let Some(endpoint) = &self.endpoints[device] {
                    endpoint.forget_page_requests();
                }
                self.predicted.forget(device);
            }
            Step::Attach { place, table } => self.attach(place, table)?,
            Step::Detach { place } => {
                let detached = self.vm.detach_hwpt(IDS[place.0], place.1.map(guest));
                let was = self.predicted.places.remove(&place).is_some();
                check(detached.is_ok() == was, || format!("detaching gave {detached:?}"))?;
                self.predicted.end_place(place);
            }
            Step::Grant { of } => {
                let only = PasidRange::new(pasid(of), pasid(of)).unwrap();
                if self.vm.alloc_pasid(only).is_ok() {
                    check(!self.predicted.is_held(of), || format!("{of} is waited for"))?;
                    self.predicted.granted.insert(of);
                }
            }
            Step::Free { of } => {
                let freed = self.vm.free_pasid(guest(of)).is_ok();
                let was = self.predicted.granted.contains(&of);
                check(freed == was, || format!("freeing {of} gave {freed}"))?;
                if freed {
                    self.predicted.free(of);
                }
            }
            Step::Release => {
                let _ = self.vm.release_pasids();
                self.predicted.free_all();
            }
            Step::Plug { device } => self.plug(device),
            Step::Tick { seconds } => {
                let now = self.predicted.now + Duration::from_secs(seconds);
                let next = self.vm.tick(now);
                self.predicted.tick(now);
                let expected = self.predicted.deadline();
                check(next == Some(expected), || format!("{next:?}, not {expected:?}"))?;
            }
        }
        self.check()
    }

    /// Each device has heard what it should, and what is out is what should be.
    fn check(&mut self) -> Verdict {
        let answers = core::mem::take(&mut self.predicted.answers);
        for (device, ear) in self.ears.iter().enumerate() {
            let sorted = |mut answers: Vec<PageResponse>| {
                answers.sort_by_key(|answer| answer.group);
                answers
            };
            let of = answers.iter().filter(|(of, _)| *of == device).map(|(_, answer)| *answer);
            let (heard, expected) = (sorted(ear.heard()), sorted(of.collect()));
            check(heard == expected, || format!("{device} heard {heard:?}, not {expected:?}"))?;
        }
        let whole = self.predicted.groups.iter().filter(|group| group.whole.is_some()).count();
        let counters = self.vm.page_request_counters();
        check(counters.outstanding == whole as u64, || format!("{counters:?}, {whole} are out"))?;
        let ended = counters.answered + counters.no_queue + counters.refused + counters.withdrawn;
        let ended = ended + counters.timed_out + counters.forgotten;
        check(counters.groups == ended + counters.outstanding, || format!("{counters:?}"))
    }

    /// The VM's end answers what is left.
    fn close(&mut self) -> Verdict {
        let ticket = self.vm.close();
        self.predicted.end(ResponseCode::Invalid, |_| true);
        check(self.vm.is_complete(ticket), || "nothing is in flight".into())?;
        self.check()?;
        let left = self.vm.outstanding_page_requests();
        check(left.is_empty() && self.vm.take_page_request().is_none(), || format!("{left:?}"))
    }
}

/// Runs `steps` on a VM with that policy, and ends it.
pub fn run(taken: TakenGroups, steps: &[Step]) -> Verdict {
    let mut modelled = Modelled::new(taken);
    for (at, step) in steps.iter().enumerate() {
        modelled.step(*step).map_err(|claim| format!("step {at}, {step:?}: {claim}"))?;
    }
    modelled.close().map_err(|claim| format!("the end: {claim}"))
}

/// What is asked is answered by the guest, and by the end of what it came through.
pub fn page_requests() -> Verdict {
    let code = ResponseCode::Success;
    let steps = [
        Step::Grant { of: 1 },
        Step::Send { place: (1, Some(2)), index: 3, last: true },
        Step::Take,
        Step::Respond { place: (1, Some(2)), index: 3, code },
        Step::Attach { place: (0, Some(1)), table: 0 },
        Step::Send { place: (0, Some(1)), index: 0, last: true },
        Step::TakeFault { queue: 0 },
        Step::Send { place: (0, Some(1)), index: 1, last: true },
        Step::Detach { place: (0, Some(1)) },
        Step::Free { of: 1 },
        Step::Grant { of: 1 },
        Step::RespondFault { queue: 0, cookie: 0, code },
    ];
    run(TakenGroups::Stay, &steps)?;
    run(TakenGroups::Withdrawn, &steps)
}
