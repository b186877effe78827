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
    Submit {
        queue: u32,
        pasid: u32,
        batch: bool,
    },
    Answer {
        nth: usize,
        answer: Reply,
    },
    Run {
        engine: usize,
        steps: usize,
    },
    Abort(About),
    Drain(About),
    /// A function-level reset, and everything set up anew.
    Reset,
}

#[derive(Clone, Copy, Debug)]
enum Reply {
    /// The page is there.
    Brought,
    /// It is said to be there.
    Lie,
    Invalid,
    /// The interface is broken.
    Failure,
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
    let answer = prop_oneof![
        60 => Just(Reply::Brought),
        20 => Just(Reply::Lie),
        10 => Just(Reply::Invalid),
        1 => Just(Reply::Failure),
    ];
    prop_oneof![
        16 => (0..QUEUES, 1..=PASIDS, prop::bool::weighted(0.15))
            .prop_map(|(queue, pasid, batch)| Op::Submit { queue, pasid, batch }),
        20 => (0..8usize, answer).prop_map(|(nth, answer)| Op::Answer { nth, answer }),
        20 => (0..3usize, 1..6usize).prop_map(|(engine, steps)| Op::Run { engine, steps }),
        2 => about().prop_map(Op::Abort),
        2 => about().prop_map(Op::Drain),
        1 => Just(Op::Reset),
    ]
}

/// A descriptor as the account has it; its number is that of its record.
#[derive(Clone, Copy, Debug)]
struct Submitted {
    queue: u32,
    pasid: u32,
    /// Whether it copies something.
    copies: bool,
    /// Whether it is in a batch: it never runs if its list cannot be read.
    member: bool,
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
    /// Whether the interface is broken.
    failed: bool,
    /// Whether it has been.
    has_failed: bool,
    /// Requests that a reset forgot.
    forgotten: u64,
    credits: u32,
}

impl World {
    fn new(credits: u32) -> Self {
        let world = Self {
            paged: Paged::new(PASIDS),
            account: Vec::new(),
            requests: Vec::new(),
            command: None,
            refused: false,
            failed: false,
            has_failed: false,
            forgotten: 0,
            credits,
        };
        world.set_up();
        world
    }

    fn set_up(&self) {
        self.paged.enable_function(self.credits);
        for wq in 0..2 {
            let mode = blocking(true).with_pasid(wq as u32 + 1);
            self.paged.rig.configure(wq, 0, 40, mode);
        }
        self.paged.rig.configure(2, 1, 40, blocking(false));
        self.paged.rig.set_engines(0, 1);
        self.paged.rig.set_engines(1, 6);
        self.paged.rig.enable(&[0, 1, 2]);
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
            Op::Reset => self.reset(),
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
            let (copies, member) = (!batch || number != 0, batch && number != 0);
            self.account.push(Submitted { queue, pasid, copies, member, fate: Fate::Open });
        }
    }

    /// Takes in what is asked for.
    fn listen(&mut self) {
        let requests = self.paged.requests();
        self.requests.extend(requests.iter().filter(|request| request.wants_response()));
    }

    fn reset(&mut self) {
        self.listen();
        self.forgotten += self.requests.len() as u64;
        self.requests.clear();
        self.paged.rig.device.reset();
        for (number, submitted) in self.account.iter_mut().enumerate() {
            if submitted.fate == Fate::Open {
                submitted.fate = Fate::Aborted(destination(&self.paged, number));
            }
        }
        (self.command, self.failed) = (None, false);
        self.set_up();
    }

    fn answer(&mut self, nth: usize, answer: Reply) {
        self.listen();
        if self.requests.is_empty() {
            return;
        }
        let request = self.requests.remove(nth % self.requests.len());
        match answer {
            Reply::Brought => self.paged.bring(&request),
            Reply::Lie => self.paged.answer(&request, ResponseCode::Success),
            // Lists can be read, so that all members run.
            Reply::Invalid if request.address.0 & 0x3000 == 0x2000 => self.paged.bring(&request),
            Reply::Invalid => {
                self.refused = true;
                self.paged.answer(&request, ResponseCode::Invalid);
            }
            Reply::Failure => {
                (self.failed, self.has_failed) = (true, true);
                self.paged.answer(&request, ResponseCode::Failure);
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
            let status = record.status.into_bits();
            let expected = match status {
                1 => true,
                4 | 0x84 => self.refused,
                5 => self.refused || self.failed,
                0x22 => self.failed,
                _ => false,
            };
            assert!(expected, "{record:?}");
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
                let skipped = self.failed && submitted.member;
                assert!(abort || skipped, "{about:?} is drained, but {submitted:?}");
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
            self.listen();
            let Some(request) = self.requests.pop() else { break };
            self.paged.bring(&request);
        }
        assert_eq!(self.command, None);
        for (number, submitted) in self.account.iter().enumerate() {
            match submitted.fate {
                Fate::Open if self.failed && submitted.member => {}
                Fate::Open => panic!("{number} is lost: {submitted:?}"),
                Fate::Ended => {}
                Fate::Aborted(held) => assert_eq!(destination(&self.paged, number), held),
            }
        }
        let counters = self.paged.rig.device.counters();
        assert_eq!(counters.blocked, 0);
        let answers = counters.page_responses_success
            + counters.page_responses_invalid
            + counters.page_responses_failure;
        assert_eq!(counters.page_requests, answers + self.forgotten);
        assert_eq!(counters.page_responses_unexpected, 0);
        assert_eq!(self.has_failed, counters.page_responses_failure != 0);
        // Nothing is out: a disabled interface is stopped at once.
        assert_eq!(self.paged.rig.command(Code::DisableDevice, 0), 0);
        self.paged.rig.device.config_write(0x244, &0u16.to_le_bytes());
        assert_eq!(self.paged.pri_status(), 0x8100 | u16::from(self.failed));
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
