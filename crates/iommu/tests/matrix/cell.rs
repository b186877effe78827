//! One cell of the matrix: a DMA, and what must come of it.

use iommu::{
    AddressSpace, Channel, DmaError, Fault, FaultReason, Stage, StageTwoFault, StageTwoOwner, Vm,
};
use mem::{Access, Gpa, GuestMemory, Iova};

use super::common::{Guest, DEVICE};

/// Where the page in question is memory.
pub const DATA: u64 = 0x0030_0000;
/// Where devices see it, if it is translated: in 39 bits, and in another entry of every level than
/// [`DATA`].
pub const IOVA: u64 = 0x12_3456_7000;
/// Where in the page.
pub const OFFSET: u64 = 0x128;
/// What stands there.
const WORD: u64 = 0xfeed;
/// What writes put there.
const NEW: u64 = 0xbeef;
/// What stands in the rest of the page.
const REST: u8 = 0xa5;
const PAGE: usize = 4096;

/// What a device does to a word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Op {
    Read,
    Write,
    FetchUpdate,
    CompareExchange,
}

pub const OPS: [Op; 4] = [Op::Read, Op::Write, Op::FetchUpdate, Op::CompareExchange];

impl Op {
    pub fn reads(self) -> bool {
        self != Self::Write
    }

    pub fn writes(self) -> bool {
        self != Self::Read
    }

    fn access(self) -> Access {
        if self.writes() {
            Access::Write
        } else {
            Access::Read
        }
    }
}

/// How a request is stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stop {
    pub reason: FaultReason,
    pub stage_two: Option<StageTwoFault>,
    /// Whether it is told.
    pub recorded: bool,
    /// Of an atomic, whether it is its read that is stopped.
    pub read: bool,
}

/// What must come of a request.
pub type Outcome = Result<(), Stop>;

impl Stop {
    pub fn new(reason: FaultReason) -> Self {
        Self { reason, stage_two: None, recorded: true, read: false }
    }

    pub fn at(self, stage_two: StageTwoFault) -> Self {
        Self { stage_two: Some(stage_two), ..self }
    }

    /// At a stage 2 of the guest's.
    pub fn at_guests(self, gpa: u64, table: bool, level: u8) -> Self {
        let (gpa, owner) = (Gpa(gpa), StageTwoOwner::Guest);
        self.at(StageTwoFault { gpa, table, level, owner })
    }

    pub fn silent(self) -> Self {
        Self { recorded: false, ..self }
    }

    /// Whether the device may ask for the page: its tables are in order, but do not let it.
    fn is_page(&self) -> bool {
        let guests = self.stage_two.is_none_or(|stop| stop.owner == StageTwoOwner::Guest);
        let page = matches!(
            self.reason,
            FaultReason::NotPresent { .. }
                | FaultReason::Permission { .. }
                | FaultReason::AccessFlag { .. }
        );
        guests && page
    }
}

/// Missing rights: what an operation lacks on a page with these, if anything.
pub fn denied(op: Op, readable: bool, writable: bool, stage: Stage) -> Option<Stop> {
    let stop = Stop::new(FaultReason::Permission { stage, user: false });
    match (op.writes() && !writable, op.reads() && !readable) {
        (true, _) => Some(stop),
        // An atomic that may not read is stopped for that.
        (false, true) => Some(Stop { read: true, ..stop }),
        (false, false) => None,
    }
}

/// What is wrong, in tables that are otherwise in order; undone when the cells are through.
#[derive(Default)]
pub struct Patch(Vec<(Gpa, u64)>);

impl Patch {
    pub fn set(&mut self, guest: &Guest, at: Gpa, word: u64) {
        self.0.push((at, guest.memory.load_u64(at).unwrap()));
        guest.memory.store_u64(at, word).unwrap();
    }

    pub fn undo(self, guest: &Guest) {
        for (at, word) in self.0.into_iter().rev() {
            guest.memory.store_u64(at, word).unwrap();
        }
    }
}

/// Who asks for what.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub space: AddressSpace,
    pub at: u64,
    pub op: Op,
}

/// Makes a request and compares what comes of it with what must; the error says what differs.
pub fn check(
    guest: &Guest,
    channel: &Channel,
    request: Request,
    expected: Outcome,
) -> Result<(), String> {
    let mut page = [REST; PAGE];
    page[OFFSET as usize..][..8].copy_from_slice(&WORD.to_le_bytes());
    guest.memory.write(Gpa(DATA), &page).unwrap();
    let hosts = guest.vm.counters().stage_two_faults;

    let result = perform(channel, request);
    let faults: Vec<_> = core::iter::from_fn(|| guest.vm.take_fault()).collect();

    if expected.is_ok() && request.op.writes() {
        let new = if request.op == Op::FetchUpdate { WORD + 1 } else { NEW };
        page[OFFSET as usize..][..8].copy_from_slice(&new.to_le_bytes());
    }
    let mut held = [0; PAGE];
    guest.memory.read(Gpa(DATA), &mut held).unwrap();
    let is_hosts = |stop: StageTwoFault| stop.owner == StageTwoOwner::Host;
    let of_host = expected.is_err_and(|stop| stop.stage_two.is_some_and(is_hosts));
    let counted = guest.vm.counters().stage_two_faults - hosts;

    let read = if request.op.reads() { WORD } else { 0 };
    let expected = match expected {
        Ok(()) => (Ok(read), vec![]),
        Err(stop) => stopped(request, stop),
    };
    if (result, faults.clone()) != expected {
        return Err(format!("{:x?} instead of {expected:x?}", (result, faults)));
    }
    if held != page {
        return Err("memory is not as it must be".into());
    }
    if counted != u64::from(of_host) {
        return Err(format!("{counted} faults of the host's stage 2"));
    }
    Ok(())
}

/// What a device and the guest are told of a stop.
fn stopped(request: Request, stop: Stop) -> (Result<u64, DmaError>, Vec<Fault>) {
    let Request { space, at, op } = request;
    let address = Iova(at);
    let access = if stop.read { Access::Read } else { op.access() };
    let error = match stop.is_page() {
        true => DmaError::Page { address, access },
        false => DmaError::Refused { address, access },
    };
    let fault = Fault {
        requester: DEVICE,
        pasid: space.pasid,
        address,
        access,
        privileged: space.privileged,
        translation_request: false,
        reason: stop.reason,
        stage_two: stop.stage_two,
    };
    (Err(error), if stop.recorded { vec![fault] } else { vec![] })
}

/// Cells, and what is wrong with some of them.
#[derive(Default)]
pub struct Tally {
    pub cells: usize,
    wrong: Vec<String>,
}

impl Tally {
    /// Adds what [`check`] said of an access.
    pub fn note(&mut self, outcome: Result<(), String>, what: impl FnOnce() -> String) {
        if let Err(wrong) = outcome {
            self.wrong.push(format!("{}: {wrong}", what()));
        }
    }

    /// Asserts that there were so many cells and that all were right.
    pub fn end(self, cells: usize) {
        let some = self.wrong.iter().take(20).map(String::as_str).collect::<Vec<_>>();
        assert!(some.is_empty(), "{} wrong:\n{}", self.wrong.len(), some.join("\n"));
        assert_eq!(self.cells, cells);
    }
}

/// What was read, or 0. A read that is refused leaves the device's buffer as it was.
fn perform(channel: &Channel, Request { space, at, op }: Request) -> Result<u64, DmaError> {
    let dma = channel.enter();
    let at = Iova(at);
    match op {
        Op::Read => {
            let mut bytes = [REST; 8];
            let result = dma.read(space, at, &mut bytes);
            assert!(result.is_ok() || bytes == [REST; 8], "a refused read gave something");
            result.map(|()| u64::from_le_bytes(bytes))
        }
        Op::Write => dma.write(space, at, &NEW.to_le_bytes()).map(|()| 0),
        Op::FetchUpdate => dma.fetch_update_u64(space, at, |word| word + 1),
        Op::CompareExchange => {
            let held = dma.compare_exchange_u64(space, at, WORD, NEW)?;
            Ok(held.unwrap_or_else(|other| panic!("{other:#x} instead of the word")))
        }
    }
}
