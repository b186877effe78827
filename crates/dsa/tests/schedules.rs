//! Random schedules of submissions, answers, aborts and drains on several queues, against a simple
//! account: no descriptor is lost, none is completed twice, none after its abort, and a drain ends
//! when and only when everything it is about has.

mod rig;

use dsa::spec::*;
use iommu::{PageRequest, ResponseCode};
use pci::Function;
use proptest::prelude::*;
use rig::paged::*;
use rig::*;

use CommandCode as Code;

/// Descriptors of one run at most, each with a record.
const DESCRIPTORS: usize = 100;
/// Queues: 0 and 1 dedicated, with PASIDs 1 and 2, of engine 0; 2 shared, of engines 1 and 2.
const QUEUES: u32 = 3;
const PASIDS: u32 = 2;

#[derive(Clone, Debug)]
enum Op {
    Submit { queue: u32, pasid: u32, batch: bool },
    Answer { nth: usize, answer: Reply },
    Run { engine: usize, steps: usize },
    Abort(About),
    Drain(About),
}

#[derive(Clone, Copy, Debug)]
enum Reply {
    /// The page is there.
    Brought,
    /// It is said to be there.
    Lie,
    Invalid,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum About {
    All,
    Wq(u32),
    Pasid(u32),
}

impl About {
    fn covers(self, of: &Submitted) -> bool {
        match self {
            Self::All => true,
            Self::Wq(queue) => of.queue == queue,
            Self::Pasid(pasid) => of.pasid == pasid,
        }
    }

    fn command(self, abort: bool) -> (Code, u32) {
        match self {
            Self::All => (if abort { Code::AbortAll } else { Code::DrainAll }, 0),
            Self::Wq(wq) => (if abort { Code::AbortWq } else { Code::DrainWq }, 1 << wq),
            Self::Pasid(pasid) => (if abort { Code::AbortPasid } else { Code::DrainPasid }, pasid),
        }
    }
}

fn op() -> impl Strategy<Value = Op> {
    let about = || {
        prop_oneof![
            1 => Just(About::All),
            3 => (0..QUEUES).prop_map(About::Wq),
            3 => (1..=PASIDS).prop_map(About::Pasid),
        ]
    };
    let answer =
        prop_oneof![6 => Just(Reply::Brought), 2 => Just(Reply::Lie), 1 => Just(Reply::Invalid)];
    prop_oneof![
        8 => (0..QUEUES, 1..=PASIDS, prop::bool::weighted(0.15))
            .prop_map(|(queue, pasid, batch)| Op::Submit { queue, pasid, batch }),
        10 => (0..8usize, answer).prop_map(|(nth, answer)| Op::Answer { nth, answer }),
        10 => (0..3usize, 1..6usize).prop_map(|(engine, steps)| Op::Run { engine, steps }),
        1 => about().prop_map(Op::Abort),
        1 => about().prop_map(Op::Drain),
    ]
}

/// A descriptor as the account has it; its number is that of its record.
#[derive(Clone, Copy, Debug)]
struct Submitted {
    queue: u32,
    pasid: u32,
    /// Whether it copies something.
    copies: bool,
    fate: Fate,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Open,
    Ended,
    /// With this in the destination.
    Aborted(u64),
}

/// Where the descriptor of record `number` has its pages: the source, the destination, and the list
/// if it is a batch.
fn pages(number: u64) -> [u64; 3] {
    let at = FLAT + number * 0x4000;
    [at, at + 0x1000, at + 0x2000]
}

struct World {
    paged: Paged,
    account: Vec<Submitted>,
    /// What nobody answered.
    requests: Vec<PageRequest>,
    /// The command under way: what it is about, how much was submitted before it, whether it aborts.
    command: Option<(About, usize, bool)>,
    /// Whether a page was refused.
    refused: bool,
}

impl World {
    fn new(credits: u32) -> Self {
        let paged = Paged::new(PASIDS);
        paged.enable_function(credits);
        for wq in 0..2 {
            let mode = blocking(true).with_pasid(wq as u32 + 1);
            paged.rig.configure(wq, 0, 40, mode);
        }
        paged.rig.configure(2, 1, 40, blocking(false));
        paged.rig.set_engines(0, 1);
        paged.rig.set_engines(1, 6);
        paged.rig.enable(&[0, 1, 2]);
        Self { paged, account: Vec::new(), requests: Vec::new(), command: None, refused: false }
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Submit { queue, pasid, batch } => self.submit(queue, pasid, batch),
            Op::Answer { nth, answer } => self.answer(nth, answer),
            Op::Run { engine, steps } => {
                let _ = self.paged.rig.engines[engine].run(steps);
            }
            Op::Abort(about) => self.start(about, true),
            Op::Drain(about) => self.start(about, false),
        }
        self.look();
    }

    /// A copy between two pages that only it uses, or a batch of two of them.
    fn submit(&mut self, queue: u32, pasid: u32, batch: bool) {
        let pasid = if queue < 2 { queue + 1 } else { pasid };
        let count = if batch { 3 } else { 1 };
        if self.account.len() + count > DESCRIPTORS {
            return;
        }
        let first = self.account.len() as u64;
        let copy = |number: u64| {
            let [from, to, _] = pages(number);
            self.paged.rig.fill(from, &(number + 1).to_le_bytes());
            recorded(memory_move(from, to, 4096), number)
        };
        let descriptor = if batch {
            let [.., list] = pages(first);
            for member in 1..3 {
                self.paged.rig.fill(list + (member - 1) * 64, &copy(first + member).to_bytes());
            }
            Descriptor::new(Operation::Batch { list: Iova(list), count: 2 })
                .with_record(Rig::record_at(first))
                .with_flags(Flags::REQUEST_RECORD)
        } else {
            copy(first)
        };
        let taken = match queue {
            0 | 1 => {
                let free = self.paged.rig.wq(queue.into()).occupancy.occupancy() < 40;
                self.paged.rig.post(queue as u8, &descriptor);
                free
            }
            _ => {
                let descriptor = descriptor.with_submitter(Submitter::new().with_pasid(pasid));
                let submission = self.paged.rig.submit(2, Portal::UNLIMITED, &descriptor);
                submission == dsa::model::Submission::Accepted
            }
        };
        assert!(taken, "there is room for all");
        for number in 0..count {
            let copies = !batch || number != 0;
            self.account.push(Submitted { queue, pasid, copies, fate: Fate::Open });
        }
    }

    fn answer(&mut self, nth: usize, answer: Reply) {
        self.requests.extend(self.paged.requests());
        let marker = PageRequest::is_stop_marker;
        self.requests.retain(|request| !marker(request));
        if self.requests.is_empty() {
            return;
        }
        let request = self.requests.remove(nth % self.requests.len());
        match answer {
            Reply::Brought => self.paged.bring(&request),
            Reply::Lie => self.paged.answer(&request, ResponseCode::Success),
            // Members whose list cannot be read never run; all else has a record.
            Reply::Invalid if request.address.0 & 0x3000 == 0x2000 => self.paged.bring(&request),
            Reply::Invalid => {
                self.refused = true;
                self.paged.answer(&request, ResponseCode::Invalid);
            }
        }
    }

    fn start(&mut self, about: About, abort: bool) {
        if self.command.is_some() {
            return;
        }
        let (code, operand) = about.command(abort);
        self.paged.rig.start(code, operand);
        self.command = Some((about, self.account.len(), abort));
    }

    /// Takes in what became visible.
    fn look(&mut self) {
        let Self { paged, account, .. } = self;
        for (number, submitted) in account.iter_mut().enumerate() {
            let record = paged.rig.record(number as u64);
            if record.status.is_pending() {
                continue;
            }
            assert_eq!(submitted.fate, Fate::Open, "record {number}: {record:?}");
            let expected: &[u8] = if self.refused { &[1, 4, 0x84, 5] } else { &[1] };
            let status = record.status.into_bits();
            assert!(expected.contains(&status), "{record:?}");
            if submitted.copies && status == 1 {
                assert_eq!(destination(paged, number), number as u64 + 1);
            }
            submitted.fate = Fate::Ended;
            paged.rig.fill(Rig::record_at(number as u64).0, &[0; 32]);
        }
        let Some((about, barrier, abort)) = self.command else { return };
        if paged.rig.command_status().active() {
            return;
        }
        for (number, submitted) in self.account[..barrier].iter_mut().enumerate() {
            if about.covers(submitted) && submitted.fate == Fate::Open {
                assert!(abort, "{about:?} is drained, but {submitted:?}");
                submitted.fate = Fate::Aborted(destination(&self.paged, number));
            }
        }
        self.command = None;
    }

    /// Runs the engines as far as they come without an answer.
    fn settle(&mut self) {
        self.paged.rig.settle();
        self.look();
        if let Some((about, barrier, abort)) = self.command {
            assert!(!abort, "an abort of {about:?} waits for an answer");
            let open = |s: &&Submitted| about.covers(s) && s.fate == Fate::Open;
            let waits_for = self.account[..barrier].iter().filter(open).count();
            assert_ne!(waits_for, 0, "a drain of {about:?} waits for nothing");
        }
    }

    /// Answers everything; then nothing is left.
    fn end(mut self) {
        loop {
            self.settle();
            self.requests.extend(self.paged.requests());
            let Some(request) = self.requests.pop() else { break };
            if request.wants_response() {
                self.paged.bring(&request);
            }
        }
        assert_eq!(self.command, None);
        for (number, submitted) in self.account.iter().enumerate() {
            match submitted.fate {
                Fate::Open => panic!("{number} is lost: {submitted:?}"),
                Fate::Ended => {}
                Fate::Aborted(held) => assert_eq!(destination(&self.paged, number), held),
            }
        }
        let counters = self.paged.rig.device.counters();
        assert_eq!(counters.blocked, 0);
        let answers = counters.page_responses_success + counters.page_responses_invalid;
        assert_eq!((counters.page_requests, counters.page_responses_unexpected), (answers, 0));
        // Nothing is out: a disabled interface is stopped at once.
        assert_eq!(self.paged.rig.command(Code::DisableDevice, 0), 0);
        self.paged.rig.device.config_write(0x244, &0u16.to_le_bytes());
        assert_eq!(self.paged.pri_status(), 0x8100);
        assert_eq!(self.paged.requests(), []);
    }
}

/// What the descriptor of record `number` has copied.
fn destination(paged: &Paged, number: usize) -> u64 {
    let [_, to, _] = pages(number as u64);
    let bytes = paged.rig.bytes(to, 8);
    bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..Default::default() })]

    #[test]
    fn nothing_is_lost_doubled_or_late(
        ops in prop::collection::vec(op(), 1..160),
        credits in prop_oneof![1..4u32, Just(64)],
    ) {
        let mut world = World::new(credits);
        for op in &ops {
            world.apply(op);
        }
        world.settle();
        world.end();
    }
}
