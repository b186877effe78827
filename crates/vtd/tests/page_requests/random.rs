//! Any order of requests, answers, overflows, changes of the tables and resets: each group that a
//! device has asked for whole is answered exactly once, and no other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use iommu::{Endpoint, PageRequest, PageResponse, PageResponses, Pasid, PrgIndex, ResponseCode};
use mem::Gpa;
use proptest::prelude::*;
use vtd::model::{Caps, Model, Options, Progress, DESCRIPTORS_PER_POLL};

use crate::guest::{Guest, DEVICE, QIE, STATUS, TE, VIRTUAL};

const RING: u64 = 0x2_4000;
const CONTEXT: u64 = 0x3000 | 7 << 9 | 0b1_1101;
const GROUPS: u16 = 4;

#[derive(Clone, Debug)]
enum Action {
    Ask { group: u16, pasid: u32, last: bool },
    Stop { pasid: u32 },
    Answer { group: u16, pasid: u32, code: u64 },
    Poll { budget: u32 },
    Drain,
    Take,
    Overflow { on: bool },
    Context { page_requests: bool },
    Entry { present: bool },
    Translation { on: bool },
    Reset,
}

fn action() -> impl Strategy<Value = Action> {
    let (group, pasid) = (0..GROUPS, 1u32..3);
    prop_oneof![
        6 => (group.clone(), pasid.clone(), any::<bool>())
            .prop_map(|(group, pasid, last)| Action::Ask { group, pasid, last }),
        1 => pasid.clone().prop_map(|pasid| Action::Stop { pasid }),
        4 => (group, pasid, prop::sample::select(&[0u64, 1, 7, 15][..]))
            .prop_map(|(group, pasid, code)| Action::Answer { group, pasid, code }),
        6 => (0u32..8).prop_map(|budget| Action::Poll { budget }),
        1 => Just(Action::Drain),
        2 => Just(Action::Take),
        1 => any::<bool>().prop_map(|on| Action::Overflow { on }),
        1 => any::<bool>().prop_map(|page_requests| Action::Context { page_requests }),
        1 => any::<bool>().prop_map(|present| Action::Entry { present }),
        1 => any::<bool>().prop_map(|on| Action::Translation { on }),
        1 => Just(Action::Reset),
    ]
}

/// What the device waits for: by group, its PASID, and whether it is whole.
type Waiting = BTreeMap<u16, (u32, bool)>;

/// That, and answers to nothing of it.
#[derive(Default)]
struct Out(Mutex<(Waiting, Vec<PageResponse>)>);

impl PageResponses for Out {
    fn respond(&self, response: PageResponse) {
        let (out, unexpected) = &mut *self.0.lock().unwrap();
        let pasid = response.pasid.map_or(0, Pasid::get);
        match out.remove(&response.group.get()) {
            Some((of, true)) if of == pasid => {}
            _ => unexpected.push(response),
        }
    }
}

struct Rig {
    guest: Guest,
    endpoint: Endpoint,
    out: Arc<Out>,
}

impl Rig {
    fn new(options: Options) -> Self {
        let mut guest = Guest::new();
        guest.model = Model::new(Caps::new(options).unwrap(), guest.vm.clone());
        let endpoint = guest.attach();
        let out = Arc::new(Out::default());
        endpoint.set_page_responses(Some(out.clone()));
        endpoint.set_ats(true);
        let _ = guest.model.add_device(DEVICE);
        let mut rig = Self { guest, endpoint, out };
        rig.boot();
        rig
    }

    fn boot(&mut self) {
        self.guest.store(Gpa(0x4080), &[0; 8]);
        self.guest.enable_scalable_mode();
        self.guest.store(Gpa(0x2000), &[CONTEXT]);
        self.guest.write64(0xc0, 0);
        self.guest.write64(0xc8, 0);
        self.guest.write64(0xd0, RING);
        self.guest.write32(0xdc, 3);
        self.settle();
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            if self.guest.poll() == Progress::Idle {
                return;
            }
        }
        panic!("there is always more to do");
    }

    fn ask(&self, group: u16, pasid: u32, last: bool) {
        {
            let (out, _) = &mut *self.out.0.lock().unwrap();
            match out.get(&group) {
                // An index is given again only when its group is answered.
                Some((of, whole)) if *whole || *of != pasid => return,
                _ => drop(out.insert(group, (pasid, last))),
            }
        }
        self.endpoint.send_page_request(PageRequest {
            requester: DEVICE,
            pasid: Pasid::new(pasid),
            privileged: false,
            execute: false,
            read: true,
            write: false,
            address: VIRTUAL,
            group: PrgIndex::new(group).unwrap(),
            last,
            private_data: None,
        });
    }

    fn apply(&mut self, action: &Action) {
        match *action {
            Action::Ask { group, pasid, last } => self.ask(group, pasid, last),
            Action::Stop { pasid } => {
                let marker = PageRequest::stop_marker(DEVICE, Pasid::new(pasid).unwrap());
                self.endpoint.send_page_request(marker);
            }
            Action::Answer { group, pasid, code } => {
                let low = 0x0080_0019 | u64::from(pasid) << 32 | code << 12;
                self.guest.submit(&[[low, u64::from(group) << 3]]);
                self.settle();
            }
            Action::Poll { budget } => {
                let _ = self.guest.model.poll(budget.min(DESCRIPTORS_PER_POLL));
            }
            Action::Drain => {
                self.guest.store(STATUS, &[0]);
                self.guest.submit(&[[0xa5 | 1 << 32, STATUS.0]]);
                self.settle();
                assert_eq!(self.guest.load(STATUS), 1);
            }
            Action::Take => {
                let tail = self.guest.read64(0xc8);
                self.guest.write64(0xc0, tail);
                self.guest.write32(0xdc, 3);
            }
            Action::Overflow { on } => self.guest.model.inject_page_request_overflow(on),
            Action::Context { page_requests } => {
                let context = if page_requests { CONTEXT } else { CONTEXT & !(1 << 4) };
                self.guest.store(Gpa(0x2000), &[context]);
                self.guest.submit(&[[1 | 3 << 4 | 0x80 << 32, 0]]);
                self.settle();
            }
            Action::Entry { present } => {
                let word = 1 << 6 | 2 << 2 | u64::from(present);
                self.guest.store(Gpa(0x4040), &[word, 1 << 23 | 1, 0x5000]);
                self.guest.submit(&[[7 | 1 << 4 | 1 << 16 | 1 << 32, 0]]);
                self.settle();
            }
            Action::Translation { on } => {
                self.guest.write32(0x18, QIE | if on { TE } else { 0 });
                self.settle();
            }
            Action::Reset => {
                let _ = self.guest.model.reset();
                let whole = self.whole();
                assert!(whole.is_empty(), "a reset answers everything");
                self.boot();
            }
        }
        let unexpected = self.out.0.lock().unwrap().1.clone();
        assert_eq!(unexpected, [], "{action:?}");
    }

    /// Groups that are whole and not answered.
    fn whole(&self) -> Vec<u16> {
        let (out, _) = &*self.out.0.lock().unwrap();
        out.iter().filter(|(_, (_, whole))| *whole).map(|(group, _)| *group).collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn each_group_is_answered_exactly_once(
        host_owned: bool,
        actions in prop::collection::vec(action(), 1..80),
    ) {
        let options = if host_owned { Options::host_owned() } else { Options::default() };
        let mut rig = Rig::new(options);
        for action in &actions {
            rig.apply(action);
        }
        // With time for everything, all that is left waits for the guest.
        rig.apply(&Action::Overflow { on: false });
        rig.settle();
        let waits = rig.whole();
        let outstanding = iommu::Vm::page_request_counters(&rig.guest.vm).outstanding;
        prop_assert_eq!(outstanding, waits.len() as u64);
        rig.apply(&Action::Reset);
    }
}

#[test]
fn an_answer_nobody_asked_for_would_be_noticed() {
    let rig = Rig::new(Options::default());
    let stray = PageResponse {
        requester: DEVICE,
        pasid: Pasid::new(1),
        group: PrgIndex::new(1).unwrap(),
        code: ResponseCode::Success,
    };
    rig.out.respond(stray);
    assert_eq!(rig.out.0.lock().unwrap().1, [stray]);
    assert_eq!(rig.guest.model.counters().page_responses, 0);
}
