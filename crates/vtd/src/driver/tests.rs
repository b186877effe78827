//! The driver on units that are slow, wrong or hostile.

mod queues;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::vec::Vec;

use iommu::{Pasid, PasidRange};

use super::*;
use crate::spec::{VcmdLayout, VirtualOpcode};
use VcmdLayout::{Revision30, Revision33};

/// CAP and ECAP of a unit with virtual commands: CM is bit 7; SMTS and VCS are bits 43 and 44.
const CAPABILITY: u64 = 1 << 7;
const EXTENDED: u64 = 1 << 43 | 1 << 44;
/// Time that a pause takes, and how long the driver waits in these tests.
const PAUSE_NS: u64 = 1000;
const TIMEOUT_NS: u64 = 10 * PAUSE_NS;

/// What a unit does with a command.
#[derive(Clone, Copy)]
enum Answer {
    /// These bits, after so many pauses.
    After(u32, u64),
    /// Nothing: in progress until the test says otherwise.
    Never,
    /// It ignores the command: the response register stays as it is.
    Ignored,
}

/// A unit that does what its test says, and time.
struct Unit {
    layout: VcmdLayout,
    version: u32,
    capability: u64,
    extended: u64,
    offer: u64,
    answers: RefCell<VecDeque<Answer>>,
    /// Commands as written.
    commands: RefCell<Vec<u64>>,
    response: Cell<u64>,
    pending: Cell<Option<(u32, u64)>>,
    now: Cell<u64>,
}

impl Unit {
    fn new(layout: VcmdLayout, answers: &[Answer]) -> Self {
        Self {
            layout,
            version: 0x50,
            capability: CAPABILITY,
            extended: EXTENDED,
            offer: 1,
            answers: RefCell::new(answers.iter().copied().collect()),
            commands: RefCell::default(),
            response: Cell::new(0),
            pending: Cell::new(None),
            now: Cell::new(7),
        }
    }

    fn probe(
        &self,
        choice: LayoutChoice,
    ) -> Result<Option<VirtualCommands<&Self, &Self>>, ProbeError> {
        VirtualCommands::probe(self, self, choice)
    }

    fn driver(&self) -> VirtualCommands<&Self, &Self> {
        let choice = LayoutChoice::Known(self.layout);
        self.probe(choice).unwrap().unwrap().with_timeout(TIMEOUT_NS)
    }

    fn commands(&self) -> Vec<u64> {
        self.commands.borrow().clone()
    }

    /// Bits of an operand or result.
    fn number(&self, number: u64) -> u64 {
        number << self.shift()
    }

    fn shift(&self) -> u32 {
        match self.layout {
            Revision30 => 8,
            Revision33 => 16,
        }
    }

    fn free(&self, number: u64) -> u64 {
        self.number(number) | 2
    }

    /// The response "no PASID available" and "invalid PASID".
    fn failure(&self) -> u64 {
        match self.layout {
            Revision30 => 2 << 1,
            Revision33 => 16 << 1,
        }
    }

    fn command(&self, command: u64) {
        self.commands.borrow_mut().push(command);
        match self.answers.borrow_mut().pop_front().expect("a command that the test does not know")
        {
            Answer::After(0, bits) => self.response.set(bits),
            Answer::After(pauses, bits) => {
                self.response.set(1);
                self.pending.set(Some((pauses, bits)));
            }
            Answer::Never => self.response.set(1),
            Answer::Ignored => {}
        }
    }
}

impl Registers for Unit {
    fn read32(&self, offset: u16) -> u32 {
        assert_eq!(offset, 0, "only the version has 32 bits");
        self.version
    }

    fn write32(&self, offset: u16, value: u32) {
        panic!("{value:#x} to {offset:#x}");
    }

    fn read64(&self, offset: u16) -> u64 {
        let virtual_commands = match self.layout {
            Revision30 => [0xe00, 0xe10, 0xe20],
            Revision33 => [0xe30, 0xe00, 0xe10],
        };
        match offset {
            0x08 => self.capability,
            0x10 => self.extended,
            _ if offset == virtual_commands[0] => self.offer,
            _ if offset == virtual_commands[1] => self.commands().last().copied().unwrap_or(0),
            _ if offset == virtual_commands[2] => self.response.get(),
            _ => 0,
        }
    }

    fn write64(&self, offset: u16, value: u64) {
        let command = if self.layout == Revision30 { 0xe10 } else { 0xe00 };
        assert_eq!(offset, command, "the driver writes nothing but commands");
        self.command(value);
    }
}

impl Clock for Unit {
    fn now_ns(&self) -> u64 {
        self.now.get()
    }

    fn pause(&self) {
        self.now.set(self.now.get() + PAUSE_NS);
        if let Some((pauses, bits)) = self.pending.take() {
            match pauses {
                1 => self.response.set(bits),
                _ => self.pending.set(Some((pauses - 1, bits))),
            }
        }
    }
}

fn pasid(number: u32) -> Pasid {
    Pasid::new(number).unwrap()
}

fn range(first: u32, last: u32) -> PasidRange {
    PasidRange::new(pasid(first), pasid(last)).unwrap()
}

/// Runs a test with each layout.
fn in_each_layout(test: impl Fn(VcmdLayout)) {
    VcmdLayout::ALL.into_iter().for_each(test);
}

#[test]
fn commands_are_offered_only_with_all_that_they_need() {
    in_each_layout(|layout| {
        let offered = |unit: Unit| {
            let known = unit.probe(LayoutChoice::Known(layout)).unwrap().is_some();
            assert_eq!(unit.probe(LayoutChoice::Detect).unwrap().is_some(), known);
            assert!(unit.commands().is_empty(), "a probe changes nothing");
            known
        };
        let unit = || Unit::new(layout, &[]);
        assert!(offered(unit()));
        assert!(offered(Unit { offer: !0 - 2, ..unit() }), "capabilities of later revisions");
        assert!(!offered(Unit { capability: !CAPABILITY, ..unit() }), "no CM");
        assert!(!offered(Unit { extended: !(1 << 43), ..unit() }), "no SMTS");
        assert!(!offered(Unit { extended: !(1 << 44), ..unit() }), "no VCS");
        assert!(!offered(Unit { offer: !1, ..unit() }), "no PAS");
    });
}

#[test]
fn a_layout_is_told_from_the_other() {
    in_each_layout(|layout| {
        let unit = Unit::new(layout, &[Answer::After(0, 0x105 << 8)]);
        assert_eq!(unit.probe(LayoutChoice::Detect).unwrap().unwrap().layout(), layout);
        // A command that a predecessor left in the register that has the same place as the older
        // layout's capabilities, whose bit 0 it has set.
        unit.command(1);
        assert_eq!(unit.probe(LayoutChoice::Detect).unwrap().unwrap().layout(), layout);
    });
    let unit = Unit::new(Revision30, &[]);
    assert!(unit.probe(LayoutChoice::Known(Revision33)).unwrap().is_none());
    let unit = Unit::new(Revision33, &[]);
    assert!(unit.probe(LayoutChoice::Known(Revision30)).unwrap().is_none());
}

#[test]
fn what_reads_as_all_ones_is_no_unit() {
    in_each_layout(|layout| {
        let units = [
            Unit { version: 0, ..Unit::new(layout, &[]) },
            Unit { version: u32::MAX, ..Unit::new(layout, &[]) },
            Unit { capability: u64::MAX, ..Unit::new(layout, &[]) },
            Unit { extended: u64::MAX, ..Unit::new(layout, &[]) },
            Unit { offer: u64::MAX, ..Unit::new(layout, &[]) },
        ];
        for unit in units {
            let probed = unit.probe(LayoutChoice::Known(layout));
            assert_eq!(probed.err(), Some(ProbeError::Absent));
        }
    });
}

#[test]
fn a_number_comes_and_goes() {
    in_each_layout(|layout| {
        let unit = Unit::new(layout, &[]);
        let granted = Answer::After(3, unit.number(0xabcde));
        unit.answers.borrow_mut().extend([granted, Answer::After(9, 0)]);
        let mut driver = unit.driver();
        assert_eq!(driver.alloc(PasidRange::ALL), Ok(pasid(0xabcde)));
        assert_eq!(unit.now.get(), 7 + 3 * PAUSE_NS, "no longer than it takes");
        assert_eq!(driver.free(pasid(0xabcde)), Ok(()));
        assert_eq!(unit.commands(), [1, unit.free(0xabcde)]);
    });
}

#[test]
fn the_hosts_refusals_are_told() {
    in_each_layout(|layout| {
        let unit = Unit::new(layout, &[]);
        let failure = Answer::After(1, unit.failure());
        unit.answers.borrow_mut().extend([failure, failure]);
        let mut driver = unit.driver();
        assert_eq!(driver.alloc(PasidRange::ALL), Err(AllocError::NoneAvailable));
        assert_eq!(driver.free(pasid(5)), Err(FreeError::InvalidPasid(pasid(5))));
    });
}

#[test]
fn a_range_without_a_number_asks_nobody() {
    let unit = Unit::new(Revision33, &[]);
    let mut driver = unit.driver();
    assert_eq!(driver.alloc(range(0, 0)), Err(AllocError::NoneAvailable));
    let reversed = PasidRange { first: pasid(9), last: pasid(8) };
    assert_eq!(driver.alloc(reversed), Err(AllocError::NoneAvailable));
    assert!(unit.commands().is_empty());
}

#[test]
fn a_number_that_is_not_wanted_is_given_back() {
    in_each_layout(|layout| {
        for (wanted, taken, got) in [
            (range(10, 20), range(10, 20), 9),
            (range(10, 20), range(10, 20), 21),
            (range(10, 20), range(10, 20), 0xf_ffff),
            // Zero is nobody's, whatever is wanted.
            (range(0, 20), range(1, 20), 0),
        ] {
            for given_back in [true, false] {
                let unit = Unit::new(layout, &[]);
                let answer = if given_back { 0 } else { unit.failure() };
                let granted = Answer::After(1, unit.number(got.into()));
                unit.answers.borrow_mut().extend([granted, Answer::After(1, answer)]);
                let got = pasid(got);
                let error = AllocError::OutOfRange { got, wanted: taken, given_back };
                assert_eq!(unit.driver().alloc(wanted), Err(error));
                assert_eq!(unit.commands(), [1, unit.free(got.get().into())]);
            }
        }
    });
}

#[test]
fn a_number_that_is_too_wide_is_not_cut_down() {
    in_each_layout(|layout| {
        let unit = Unit::new(layout, &[]);
        for bit in 20..64 - unit.shift() {
            let wide = 1 << bit | 5;
            unit.answers.borrow_mut().push_back(Answer::After(1, unit.number(wide)));
            assert_eq!(unit.driver().alloc(PasidRange::ALL), Err(AllocError::TooWide(wide)));
        }
        assert!(unit.commands().iter().all(|command| *command == 1), "5 is somebody else's");
    });
}

#[test]
fn a_unit_that_repeats_itself_is_the_callers_to_notice() {
    let unit = Unit::new(Revision33, &[Answer::After(1, 5 << 16), Answer::Ignored]);
    let mut driver = unit.driver();
    assert_eq!(driver.alloc(PasidRange::ALL), Ok(pasid(5)));
    assert_eq!(driver.alloc(PasidRange::ALL), Ok(pasid(5)));
    assert_eq!(unit.commands(), [1, 1], "to free it would free it under its user");
}

#[test]
fn status_codes_that_a_command_cannot_have_are_errors() {
    in_each_layout(|layout| {
        let unit = Unit::new(layout, &[]);
        let (codes, failure): (&[u8], u8) = match layout {
            Revision30 => (&[3], 2),
            Revision33 => (&[2, 3, 15, 17, 64, 127], 16),
        };
        let mut driver = unit.driver();
        for (code, alloc) in codes.iter().flat_map(|code| [(*code, true), (*code, false)]) {
            // With a number beside it, which does not count.
            let bits = unit.number(5) | u64::from(code) << 1;
            unit.answers.borrow_mut().push_back(Answer::After(1, bits));
            let unknown = |command| CommandError::UnknownStatus { command, code };
            if alloc {
                let error = AllocError::Command(unknown(VirtualOpcode::AllocatePasid));
                assert_eq!(driver.alloc(PasidRange::ALL), Err(error));
            } else {
                let error = FreeError::Command(unknown(VirtualOpcode::FreePasid));
                assert_eq!(driver.free(pasid(5)), Err(error));
            }
        }
        // "Undefined command", and a failure that has a number beside it.
        let undefined = Answer::After(1, 1 << 1);
        let failed = Answer::After(1, unit.number(5) | u64::from(failure) << 1);
        unit.answers.borrow_mut().extend([undefined, undefined, failed]);
        let error = CommandError::Undefined(VirtualOpcode::AllocatePasid);
        assert_eq!(driver.alloc(PasidRange::ALL), Err(error.into()));
        let error = CommandError::Undefined(VirtualOpcode::FreePasid);
        assert_eq!(driver.free(pasid(5)), Err(error.into()));
        assert_eq!(driver.alloc(PasidRange::ALL), Err(AllocError::NoneAvailable));
    });
}

fn timeout(command: VirtualOpcode) -> CommandError {
    CommandError::Timeout { command, timeout_ns: TIMEOUT_NS }
}

#[test]
fn a_command_that_never_ends_has_a_deadline() {
    in_each_layout(|layout| {
        let unit = Unit::new(layout, &[Answer::Never]);
        let mut driver = unit.driver();
        let error = timeout(VirtualOpcode::AllocatePasid).into();
        assert_eq!(driver.alloc(PasidRange::ALL), Err(error));
        assert_eq!(unit.now.get(), 7 + TIMEOUT_NS);
        // No other command is given while it is in progress.
        let busy = CommandError::Busy { timeout_ns: TIMEOUT_NS };
        assert_eq!(driver.free(pasid(5)), Err(busy.into()));
        assert_eq!(driver.alloc(PasidRange::ALL), Err(busy.into()));
        assert_eq!(unit.now.get(), 7 + 3 * TIMEOUT_NS);
        assert_eq!(unit.commands(), [1]);
    });
}

#[test]
fn what_an_abandoned_allocation_got_goes_back() {
    in_each_layout(|layout| {
        let unit = Unit::new(layout, &[Answer::Never]);
        let mut driver = unit.driver();
        assert!(driver.alloc(PasidRange::ALL).is_err());
        unit.response.set(unit.number(4)); // late
        let granted = Answer::After(1, unit.number(5));
        unit.answers.borrow_mut().extend([Answer::After(1, 0), granted, Answer::After(1, 0)]);
        assert_eq!(driver.alloc(PasidRange::ALL), Ok(pasid(5)));
        assert_eq!(unit.commands(), [1, unit.free(4), 1]);
        // Once.
        assert_eq!(driver.free(pasid(5)), Ok(()));
        assert_eq!(unit.commands()[3..], [unit.free(5)]);
    });
}

#[test]
fn an_abandoned_allocation_that_got_nothing_gives_nothing_back() {
    in_each_layout(|layout| {
        // Refused; a wide number; the unit was reset meanwhile.
        for late in [Unit::failure, |unit: &Unit| unit.number(1 << 20 | 4), |_: &Unit| 0] {
            let unit = Unit::new(layout, &[Answer::Never]);
            let mut driver = unit.driver();
            assert!(driver.alloc(PasidRange::ALL).is_err());
            unit.response.set(late(&unit));
            unit.answers.borrow_mut().push_back(Answer::After(1, unit.number(5)));
            assert_eq!(driver.alloc(PasidRange::ALL), Ok(pasid(5)));
            assert_eq!(unit.commands(), [1, 1]);
        }
    });
}

#[test]
fn an_abandoned_free_is_left_alone() {
    in_each_layout(|layout| {
        let unit = Unit::new(layout, &[Answer::Never]);
        let mut driver = unit.driver();
        let error = timeout(VirtualOpcode::FreePasid).into();
        assert_eq!(driver.free(pasid(5)), Err(error));
        // Whatever number stands beside its success is not an allocation's.
        unit.response.set(unit.number(7));
        unit.answers.borrow_mut().push_back(Answer::After(1, unit.number(6)));
        assert_eq!(driver.alloc(PasidRange::ALL), Ok(pasid(6)));
        assert_eq!(unit.commands(), [unit.free(5), 1]);
    });
}

#[test]
fn giving_back_has_a_deadline_too() {
    let unit = Unit::new(Revision33, &[Answer::Never, Answer::Never]);
    let mut driver = unit.driver();
    assert!(driver.alloc(PasidRange::ALL).is_err());
    unit.response.set(4 << 16);
    let error = timeout(VirtualOpcode::FreePasid).into();
    assert_eq!(driver.alloc(PasidRange::ALL), Err(error));
    assert_eq!(unit.commands(), [1, 4 << 16 | 2]);
    // The free, when it is over, is no allocation.
    unit.response.set(0);
    unit.answers.borrow_mut().push_back(Answer::After(1, 5 << 16));
    assert_eq!(driver.alloc(PasidRange::ALL), Ok(pasid(5)));

    let unit = Unit::new(Revision33, &[Answer::After(1, 9 << 16), Answer::Never]);
    let refused = unit.driver().alloc(range(1, 8));
    let wanted = range(1, 8);
    let error = AllocError::OutOfRange { got: pasid(9), wanted, given_back: false };
    assert_eq!(refused, Err(error));
    assert_eq!(unit.now.get(), 7 + PAUSE_NS + TIMEOUT_NS);
}

#[test]
fn a_unit_that_answers_at_the_last_moment_is_waited_for_five_timeouts_at_most() {
    let slow = |bits| Answer::After(10, bits);
    let unit = Unit::new(Revision33, &[Answer::Never, slow(0), slow(9 << 16), slow(0)]);
    let mut driver = unit.driver();
    assert!(driver.alloc(PasidRange::ALL).is_err());
    unit.pending.set(Some((10, 4 << 16)));
    let before = unit.now.get();
    let wanted = range(1, 8);
    let error = AllocError::OutOfRange { got: pasid(9), wanted, given_back: true };
    assert_eq!(driver.alloc(wanted), Err(error));
    assert_eq!(unit.commands(), [1, 4 << 16 | 2, 1, 9 << 16 | 2]);
    assert!(unit.now.get() - before <= 5 * TIMEOUT_NS);
}

#[test]
fn a_unit_that_goes_is_noticed_at_once() {
    in_each_layout(|layout| {
        // In the middle of a command; then before the next one.
        let unit = Unit::new(layout, &[Answer::After(2, u64::MAX)]);
        let mut driver = unit.driver();
        assert_eq!(driver.alloc(PasidRange::ALL), Err(CommandError::Absent.into()));
        assert_eq!(driver.free(pasid(5)), Err(CommandError::Absent.into()));
        assert_eq!(unit.now.get(), 7 + 2 * PAUSE_NS);
        assert_eq!(unit.commands(), [1], "nothing is written to where there is nothing");
    });
}

#[test]
fn what_a_wrong_unit_does_has_a_name_for_every_interface_to_a_host() {
    use iommu::pasid;
    let command = VirtualOpcode::AllocatePasid;
    let zero = AllocError::OutOfRange { got: pasid(0), wanted: PasidRange::ALL, given_back: false };
    let cases = [
        (AllocError::TooWide(1 << 20), pasid::CommandError::NoPasid { number: 1 << 20 }),
        (zero, pasid::CommandError::NoPasid { number: 0 }),
        (CommandError::Busy { timeout_ns: 1 }.into(), pasid::CommandError::Deadline),
        (
            CommandError::UnknownStatus { command, code: 3 }.into(),
            pasid::CommandError::Status { status: 3 },
        ),
        (CommandError::Absent.into(), pasid::CommandError::Broken),
        (CommandError::Undefined(command).into(), pasid::CommandError::Broken),
    ];
    for (error, expected) in cases {
        assert_eq!(pasid::CommandError::from(error), expected);
    }
}

/// Registers that are reached by halves.
struct Halves<'a>(&'a Unit, Cell<u32>);

impl Registers for Halves<'_> {
    fn read32(&self, offset: u16) -> u32 {
        match offset % 8 {
            0 if offset == 0 => self.0.read32(0),
            0 => self.0.read64(offset) as u32,
            _ => (self.0.read64(offset - 4) >> 32) as u32,
        }
    }

    fn write32(&self, offset: u16, value: u32) {
        match offset % 8 {
            0 => self.0.write64(offset, u64::from(self.1.take()) << 32 | u64::from(value)),
            _ => self.1.set(value),
        }
    }
}

#[test]
fn registers_that_are_reached_by_halves_do_as_well() {
    in_each_layout(|layout| {
        let unit = Unit::new(layout, &[]);
        let granted = Answer::After(3, unit.number(0xabcde));
        unit.answers.borrow_mut().extend([granted, Answer::After(1, 0)]);
        let halves = Halves(&unit, Cell::new(0));
        let probed = VirtualCommands::probe(halves, &unit, LayoutChoice::Known(layout));
        let mut driver = probed.unwrap().unwrap();
        assert_eq!(driver.alloc(PasidRange::ALL), Ok(pasid(0xabcde)));
        assert_eq!(driver.free(pasid(0xabcde)), Ok(()));
        assert_eq!(unit.commands(), [1, unit.free(0xabcde)]);
    });
}
