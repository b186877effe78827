//! What a processor is given and what it answers.

use iommu::pasid::translation::{
    CommandWord, DeferrableWrite, Enqueued, GeneralProtection, Ia32Pasid, COMMAND_SIZE,
};

use super::scenarios::{Submitter, CONFIG};
use crate::common::hosted::guest;

/// A command whose bytes are all different, but for the first four.
fn command(word: u32) -> [u8; COMMAND_SIZE] {
    let mut command = std::array::from_fn(|index| index as u8 | 0x80);
    command[..4].copy_from_slice(&word.to_le_bytes());
    command
}

fn no_device(_: &[u8; COMMAND_SIZE]) -> DeferrableWrite {
    panic!("a device has seen it");
}

#[test]
fn a_command_reaches_the_device_with_the_hosts_number_and_a_users_privilege() {
    let submitter = Submitter::new(CONFIG);
    submitter.attach(5).unwrap();
    let host = submitter.table().peek(guest(5)).unwrap().0.get();
    let mut vcpu = submitter.table().vcpu().unwrap();
    for answer in [DeferrableWrite::Accepted, DeferrableWrite::Retry] {
        let taken = answer == DeferrableWrite::Accepted;
        let write = |written: &[u8; COMMAND_SIZE]| {
            assert_eq!(*written, command(host));
            answer
        };
        let enqueued = vcpu.enqcmd(Ia32Pasid::of(guest(5)), &command(0), write).unwrap();
        assert_eq!(enqueued, if taken { Enqueued::Accepted } else { Enqueued::Retry });
        assert_eq!(enqueued.zero_flag(), !taken);
        for privileged in [0, 1 << 31] {
            let write = |written: &[u8; COMMAND_SIZE]| {
                assert_eq!(*written, command(privileged | host));
                answer
            };
            let enqueued = vcpu.enqcmds(&command(privileged | 5), write).unwrap();
            assert_eq!(enqueued.zero_flag(), !taken);
        }
    }
    let counters = submitter.table().counters();
    assert_eq!((counters.accepted, counters.retried), (3, 3));
    drop(vcpu);
    submitter.end();
}

#[test]
fn what_has_no_translation_reaches_no_device() {
    let submitter = Submitter::new(CONFIG);
    submitter.attach(5).unwrap();
    let mut vcpu = submitter.table().vcpu().unwrap();
    // Its neighbours, none, the last of the flat part and the first beyond, and the last.
    for number in [4, 6, 0, 15, 16, 0xf_ffff] {
        let enqueued = vcpu.enqcmd(Ia32Pasid::of(guest(number)), &command(0), no_device).unwrap();
        assert_eq!((enqueued, enqueued.zero_flag()), (Enqueued::Untranslatable, true));
        let enqueued = vcpu.enqcmds(&command(1 << 31 | number), no_device).unwrap();
        assert_eq!(enqueued, Enqueued::Untranslatable);
    }
    assert_eq!(submitter.table().counters().untranslatable, 12);
    drop(vcpu);
    submitter.end();
}

#[test]
fn a_programs_error_raises_general_protection() {
    let submitter = Submitter::new(CONFIG);
    submitter.attach(5).unwrap();
    let mut vcpu = submitter.table().vcpu().unwrap();
    let none = Ia32Pasid::of(guest(5)).with_valid(false);
    let refused = vcpu.enqcmd(none, &command(0), no_device);
    assert_eq!(refused, Err(GeneralProtection::NoPasid(5)));
    // A user may not bring a PASID, nor privilege; a supervisor no reserved bits.
    for word in [5, 1 << 20, 1 << 31] {
        let refused = vcpu.enqcmd(Ia32Pasid::of(guest(5)), &command(word), no_device);
        assert_eq!(refused, Err(GeneralProtection::Reserved(word)));
    }
    for word in [1 << 20 | 5, 1 << 30 | 5] {
        let refused = vcpu.enqcmds(&command(word), no_device);
        assert_eq!(refused, Err(GeneralProtection::Reserved(word)));
        assert_ne!(CommandWord::from_bits(word).reserved(), 0);
    }
    assert_eq!(submitter.table().counters().protection, 6);
    drop(vcpu);
    submitter.end();
}

#[test]
fn there_are_as_many_processors_as_it_was_made_for() {
    let submitter = Submitter::new(CONFIG);
    let both = [0, 1].map(|_| submitter.table().vcpu().unwrap());
    assert!(submitter.table().vcpu().is_none());
    drop(both);
    assert!(submitter.table().vcpu().is_some());
    submitter.end();
}
