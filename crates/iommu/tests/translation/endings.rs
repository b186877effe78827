//! What ends entries besides an unbind: a free, the VM's end, the table's own; and submissions that
//! do not end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;

use ioasid::{Executor, Work};
use iommu::pasid::translation::{Patience, StuckSubmission, TranslationConfig, TranslationError};
use iommu::{HostConfig, ObjectError, SoftwareHost, Vm};

use super::scenarios::{submitted, Submitter, CONFIG, NUMBERS};
use crate::common::hosted::guest;
use crate::common::wait;

#[test]
fn a_free_closes_what_is_bound() {
    let submitter = Submitter::new(CONFIG);
    let mut vcpu = submitter.table().vcpu().unwrap();
    for number in NUMBERS {
        submitter.attach(number).unwrap();
        submitter.vm().free_pasid(guest(number)).unwrap();
    }
    // Whoever polls tells of them.
    let _ = submitter.vm().pasid_usage();
    assert_eq!(NUMBERS.map(|number| submitted(&mut vcpu, number)), [None; 2]);
    let counters = submitter.table().counters();
    assert_eq!((counters.opened, counters.closed, counters.open), (2, 2, 0));
    assert_eq!(counters.unmatched, 0);
    assert!(!submitter.holders().contains(&"cpu".to_owned()));
    drop(vcpu);
    submitter.end();
}

/// Nobody works.
struct Never;

impl Executor for Never {
    fn schedule(&self) {}
}

#[test]
fn until_it_is_told_of_a_free_its_number_is_nobody_elses() {
    let executor: Option<std::sync::Arc<dyn Executor>> = Some(std::sync::Arc::new(Never));
    let host = SoftwareHost::with_config(HostConfig { executor, ..HostConfig::default() }).unwrap();
    let submitter = Submitter::on(&host, CONFIG, 11);
    submitter.attach(5).unwrap();
    let number = submitter.table().peek(guest(5));
    submitter.vm().free_pasid(guest(5)).unwrap();
    // It is translated still, to a number that passes nowhere and that nobody gets.
    assert_eq!(submitter.table().peek(guest(5)), number);
    assert!(submitter.hosted.read(5).is_err());
    let holders = submitter.holders();
    assert_eq!(holders.iter().filter(|holder| *holder == "cpu").count(), 1);
    while host.work(8) == Work::More {}
    assert_eq!(submitter.table().peek(guest(5)), None);
    let ticket = submitter.vm().close();
    while !submitter.vm().is_complete(ticket) {
        host.work(8);
    }
    drop(submitter);
    host.work(8);
    host.check_books().unwrap();
}

#[test]
fn the_vms_end_empties_it() {
    let submitter = Submitter::new(CONFIG);
    let mut vcpu = submitter.table().vcpu().unwrap();
    NUMBERS.into_iter().for_each(|number| submitter.attach(number).unwrap());
    wait(submitter.vm(), submitter.vm().close());
    assert_eq!(NUMBERS.map(|number| submitted(&mut vcpu, number)), [None; 2]);
    assert_eq!(submitter.table().counters().open, 0);
    let again = submitter.vm().translate_pasids(CONFIG);
    assert_eq!(again.err(), Some(TranslationError::Closed));
    drop(vcpu);
    submitter.end();
}

#[test]
fn its_own_end_closes_it_and_gives_every_reference_back() {
    let mut submitter = Submitter::new(CONFIG);
    NUMBERS.into_iter().for_each(|number| submitter.attach(number).unwrap());
    let mut vcpu = submitter.table().vcpu().unwrap();
    assert!(submitted(&mut vcpu, 5).is_some());
    submitter.table = None;
    assert_eq!(NUMBERS.map(|number| submitted(&mut vcpu, number)), [None; 2]);
    assert!(!submitter.holders().contains(&"cpu".to_owned()));
    // Devices go on, and what is bound is in no table until it is bound again.
    assert_eq!(submitter.hosted.read(5), Ok(11));
    submitter.table = Some(submitter.vm().translate_pasids(CONFIG).unwrap());
    assert_eq!(submitter.table().peek(guest(5)), None);
    submitter.detach(5).unwrap();
    assert_eq!(submitter.table().counters().unmatched, 0, "it is not told of that end");
    submitter.attach(5).unwrap();
    assert!(submitter.table().peek(guest(5)).is_some());
    submitter.end();
}

#[test]
fn a_configuration_has_bounds() {
    let submitter = Submitter::new(CONFIG);
    let make = |config| submitter.vm().translate_pasids(config).err();
    let many = TranslationConfig { vcpus: 1025, ..CONFIG };
    assert_eq!(make(many), Some(TranslationError::TooManyVcpus { vcpus: 1025 }));
    let flat = TranslationConfig { flat_bits: 21, ..CONFIG };
    assert_eq!(make(flat), Some(TranslationError::TooFlat { bits: 21 }));
    // None at all, and all of them.
    for flat_bits in [0, 20] {
        assert_eq!(make(TranslationConfig { flat_bits, ..CONFIG }), None);
    }
    submitter.end();
}

#[test]
fn a_submission_that_does_not_end_holds_up_nobody_and_keeps_its_number() {
    let patience = Patience { looks: 3, ..CONFIG.patience };
    let submitter = Submitter::new(TranslationConfig { patience, ..CONFIG });
    submitter.attach(5).unwrap();
    let (mut stuck, mut other) =
        (submitter.table().vcpu().unwrap(), submitter.table().vcpu().unwrap());
    let (begin, begun) = mpsc::channel();
    let go_on = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            stuck.translated(guest(5), |host| {
                begin.send(host).unwrap();
                while !go_on.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
            })
        });
        let host = begun.recv().unwrap();
        // It returns though the submission goes on; no other can begin.
        submitter.detach(5).unwrap();
        assert_eq!(submitted(&mut other, 5), None);
        let error = StuckSubmission { vcpu: 0, guest: guest(5), host };
        assert_eq!(submitter.table().settle(), Err(error));
        let counters = submitter.table().counters();
        assert_eq!((counters.late, counters.closing, counters.open), (1, 1, 0));
        // The table's own reference keeps the number, also when the VM gives it back.
        assert!(submitter.holders().contains(&"cpu".to_owned()));
        // Bound again, there would be two translations of one number.
        assert_eq!(submitter.attach(5), Err(ObjectError::Refused));
        assert_eq!(submitter.table().counters().conflicts, 1);
        submitter.attach(NUMBERS[1]).unwrap();
        go_on.store(true, Ordering::SeqCst);
    });
    assert_eq!(submitter.table().settle(), Ok(()));
    assert_eq!(submitter.table().counters().closing, 0);
    submitter.attach(5).unwrap();
    assert!(submitted(&mut other, 5).is_some());
    drop((stuck, other));
    submitter.end();
}
