//! Scenarios that end in a verdict, so that builds with a deliberate defect can prove that the
//! verdict turns.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::thread;
use std::time::Duration;

use ioasid::{Priority, Refusal};
use iommu::pasid::translation::{
    DeferrableWrite, Enqueued, Ia32Pasid, PasidTranslation, Patience, TranslationConfig, Vcpu,
    COMMAND_SIZE,
};
use iommu::{
    Channel, HostPasid, HwptId, Numbering, ObjectError, PasidEvent, PasidSubscriber,
    PasidSubscription, SoftwareHost, SoftwareVm, Vm,
};

use crate::common::hosted::{guest, Hosted, VA};
use crate::common::scenarios::Verdict;
use crate::common::{dma, wait, with, Op, DEVICE};

pub fn check(holds: bool, claim: &str) -> Verdict {
    if holds {
        Ok(())
    } else {
        Err(claim.into())
    }
}

pub const CONFIG: TranslationConfig = TranslationConfig {
    vcpus: 2,
    flat_bits: 4,
    tables: 4,
    patience: Patience {
        limit: Duration::from_secs(1),
        clock: None,
        looks: 1 << 20,
        pause: thread::yield_now,
    },
};

/// The PASIDs that are used: one in the flat part, one beyond it.
pub const NUMBERS: [u32; 2] = [5, 0x8_1234];

/// A VM with private numbers whose processors have a table, and what it may attach.
pub struct Submitter {
    pub hosted: Hosted,
    pub table: Option<PasidTranslation>,
    pub space: HwptId,
}

impl Submitter {
    pub fn new(config: TranslationConfig) -> Self {
        Self::on(&SoftwareHost::new(), config, 11)
    }

    /// Its address space maps [`VA`] to a page that holds `word`.
    pub fn on(host: &SoftwareHost, config: TranslationConfig, word: u64) -> Self {
        let mut hosted = Hosted::on(host, Numbering::Private);
        let space = hosted.space(0x10_0000, word);
        for number in NUMBERS {
            hosted.grant(number);
        }
        let table = hosted.guest.vm.translate_pasids(config).unwrap();
        Self { hosted, table: Some(table), space }
    }

    pub fn vm(&self) -> &SoftwareVm {
        &self.hosted.guest.vm
    }

    pub fn table(&self) -> &PasidTranslation {
        self.table.as_ref().unwrap()
    }

    pub fn attach(&self, number: u32) -> Result<(), ObjectError> {
        self.vm().attach_hwpt(DEVICE, Some(guest(number)), self.space)
    }

    pub fn detach(&self, number: u32) -> Result<(), ObjectError> {
        let ticket = self.vm().detach_hwpt(DEVICE, Some(guest(number)))?;
        wait(self.vm(), ticket);
        Ok(())
    }

    pub fn holders(&self) -> Vec<String> {
        let report = self.hosted.guest.host.pasid_report();
        let vm = report.vms.into_iter().next_back().unwrap();
        vm.entries.into_iter().flat_map(|entry| entry.holders).collect()
    }

    /// Everything is given back.
    pub fn end(self) {
        let Self { hosted, table, .. } = self;
        drop(table);
        hosted.end();
    }
}

/// The host's PASID that a submission reaches a device with.
pub fn submitted(vcpu: &mut Vcpu, number: u32) -> Option<u32> {
    let mut seen = None;
    let answer = vcpu.enqcmd(Ia32Pasid::of(guest(number)), &[0; COMMAND_SIZE], |command| {
        seen = Some(u32::from_le_bytes(command[..4].try_into().unwrap()));
        DeferrableWrite::Accepted
    });
    assert_eq!(answer.unwrap() == Enqueued::Accepted, seen.is_some());
    seen
}

/// What was told, and whether devices got through and processors were translated just then.
type Seen = (&'static str, bool, bool);

/// Looks at both tables whenever it is told something.
struct Probe {
    name: &'static str,
    channel: Arc<Channel>,
    table: Weak<PasidTranslation>,
    log: Arc<Mutex<Vec<(&'static str, Seen)>>>,
}

impl Probe {
    fn look(&self, told: &'static str, event: &PasidEvent<'_>) {
        let number = event.guest.0.get();
        let device = dma(&self.channel, with(number), VA, Op::Read).is_ok();
        let table = self.table.upgrade().unwrap();
        let cpu = table.peek(event.guest).is_some() || table.walk(event.guest).is_some();
        self.log.lock().unwrap().push((self.name, (told, device, cpu)));
    }
}

impl PasidSubscriber for Probe {
    fn prepare(&self, event: &PasidEvent<'_>) -> Result<(), Refusal> {
        self.look("prepare", event);
        Ok(())
    }

    fn commit(&self, event: &PasidEvent<'_>) {
        self.look("commit", event);
    }

    fn unbind(&self, event: &PasidEvent<'_>) {
        self.look("unbind", event);
    }
}

/// A processor's table opens when the devices' has its entry, and closes before that is cleared.
pub fn order() -> Verdict {
    for number in NUMBERS {
        let submitter = Submitter::new(CONFIG);
        let Submitter { hosted, table, space } = submitter;
        let (host, table) = (hosted.guest.host.clone(), Arc::new(table.unwrap()));
        let channel = Arc::new(hosted.endpoint.channel());
        let log = Arc::<Mutex<Vec<_>>>::default();
        let probe = |name, priority| -> PasidSubscription {
            let (channel, table) = (channel.clone(), Arc::downgrade(&table));
            let probe = Probe { name, channel, table, log: log.clone() };
            host.subscribe(name, priority, Arc::new(probe)).unwrap()
        };
        // Told of openings before and after the table, of closings after and before it.
        let probes = [probe("below", Priority::Device), probe("above", Priority::Cpu)];
        hosted.attach(number, space);
        wait(&hosted.guest.vm, hosted.guest.vm.detach_hwpt(DEVICE, Some(guest(number))).unwrap());
        let expected = [
            ("below", ("prepare", false, false)),
            ("above", ("prepare", false, false)),
            ("below", ("commit", true, false)),
            ("above", ("commit", true, true)),
            ("above", ("unbind", true, true)),
            ("below", ("unbind", true, false)),
        ];
        let seen = std::mem::take(&mut *log.lock().unwrap());
        drop((probes, table, channel));
        hosted.end();
        check(seen == expected, &format!("{number:#x}: {seen:?}"))?;
    }
    Ok(())
}

/// Refuses what it is told of.
struct Refuser;

impl PasidSubscriber for Refuser {
    fn prepare(&self, _event: &PasidEvent<'_>) -> Result<(), Refusal> {
        Err(Refusal::NotAllowed)
    }
}

/// Another's refusal leaves nothing in the table, and no reference.
pub fn rollback() -> Verdict {
    let submitter = Submitter::new(CONFIG);
    let mut vcpu = submitter.table().vcpu().unwrap();
    let host = submitter.hosted.guest.host.clone();
    let refuser = host.subscribe("refuser", Priority::Cpu, Arc::new(Refuser)).unwrap();
    let refused = submitter.attach(5);
    let held = submitter.holders().contains(&"cpu".to_owned());
    let through = submitted(&mut vcpu, 5);
    let closing = submitter.table().counters().closing;
    drop(refuser);
    let again = submitter.attach(5);
    let opened = submitted(&mut vcpu, 5);
    drop(vcpu);
    submitter.end();
    check(refused == Err(ObjectError::Refused), "the attachment is refused")?;
    check(!held && closing == 0, "no reference is left")?;
    check(through.is_none(), "nothing is translated")?;
    check(again.is_ok() && opened.is_some(), "it works without the refusal")
}

/// What the table has no place for is not bound.
pub fn refusal() -> Verdict {
    // One table of the two levels: the second number would need another.
    let submitter = Submitter::new(TranslationConfig { tables: 1, ..CONFIG });
    let attached = NUMBERS.map(|number| submitter.attach(number));
    let counters = submitter.table().counters();
    let through = submitter.hosted.read(NUMBERS[1]).is_ok();
    submitter.end();
    check(attached == [Ok(()), Err(ObjectError::Refused)], "the second is refused")?;
    check(!through, "no device gets through")?;
    check((counters.refused, counters.open, counters.tables) == (1, 1, 1), "counted")
}

/// What is unbound is refused to the submitter.
pub fn closed() -> Verdict {
    let submitter = Submitter::new(CONFIG);
    let mut vcpu = submitter.table().vcpu().unwrap();
    let mut verdict = Ok(());
    for number in NUMBERS {
        submitter.attach(number).unwrap();
        let open = submitted(&mut vcpu, number);
        submitter.detach(number).unwrap();
        let closed = submitted(&mut vcpu, number);
        let held = submitter.holders().contains(&"cpu".to_owned());
        let right = open.is_some() && closed.is_none() && !held;
        verdict = verdict.and(check(right, &format!("{number:#x}: {open:?} {closed:?} {held}")));
    }
    drop(vcpu);
    submitter.end();
    verdict
}

/// Commands of two guests with the same PASID reach the device with two of the host's, which are
/// those that the host's record says.
pub fn numbers() -> Verdict {
    let host = SoftwareHost::new();
    let submitters = [11, 22].map(|word| Submitter::on(&host, CONFIG, word));
    let seen = submitters.each_ref().map(|submitter| {
        submitter.attach(5).unwrap();
        let mut vcpu = submitter.table().vcpu().unwrap();
        submitted(&mut vcpu, 5)
    });
    let report = host.pasid_report();
    let recorded = [0, 1].map(|vm| {
        let entries = &report.vms[vm].entries;
        entries.iter().find(|entry| entry.guest == guest(5)).map(|entry| entry.host.0.get())
    });
    submitters.into_iter().for_each(|submitter| {
        drop(submitter.table);
        submitter.hosted.end_one();
    });
    check(seen == recorded && seen[0] != seen[1], &format!("{seen:?}, not {recorded:?}"))
}

/// How far the two threads of [`in_flight`] have come.
static PROGRESS: AtomicU8 = AtomicU8::new(0);
/// It is one, so one test at a time.
static ALONE: Mutex<()> = Mutex::new(());
/// The submission is under way.
const SUBMITTING: u8 = 1;
/// Whoever unbinds is waiting for it.
const WAITING: u8 = 2;
/// The unbind is over.
const UNBOUND: u8 = 3;

pub fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn now_waiting() {
    let _ = PROGRESS.compare_exchange(SUBMITTING, WAITING, Ordering::SeqCst, Ordering::SeqCst);
    thread::yield_now();
}

/// An unbind does not return while a submission is under way that was translated before it.
pub fn in_flight() -> Verdict {
    let _alone = alone();
    PROGRESS.store(0, Ordering::SeqCst);
    let patience = Patience { pause: now_waiting, looks: u64::MAX, ..CONFIG.patience };
    let submitter = Submitter::new(TranslationConfig { patience, ..CONFIG });
    submitter.attach(5).unwrap();
    let mut vcpu = submitter.table().vcpu().unwrap();
    let found = thread::scope(|scope| {
        let submission = scope.spawn(move || {
            vcpu.translated(guest(5), |_: HostPasid| {
                PROGRESS.store(SUBMITTING, Ordering::SeqCst);
                // It goes on until somebody waits for it, or does not care.
                while PROGRESS.load(Ordering::SeqCst) < WAITING {
                    thread::yield_now();
                }
                PROGRESS.load(Ordering::SeqCst)
            })
        });
        while PROGRESS.load(Ordering::SeqCst) < SUBMITTING {
            thread::yield_now();
        }
        submitter.detach(5).unwrap();
        PROGRESS.store(UNBOUND, Ordering::SeqCst);
        submission.join().unwrap()
    });
    submitter.end();
    check(found == Some(WAITING), "the unbind waited for the submission")
}
