//! The bytes as hardware would walk them, by a walker that knows only addresses and masks.

use std::collections::BTreeMap;

use iommu::pasid::translation::{
    Directory, DirectoryEntry, Ia32Pasid, TranslationEntry, PAGE_SIZE, TABLES,
};
use iommu::{HostPasid, Vm};
use mem::HostAddr;

use super::scenarios::{Submitter, CONFIG};
use crate::common::hosted::guest;
use crate::common::{pasid, wait};

#[test]
fn golden_words() {
    assert_eq!(TranslationEntry::to_host(HostPasid(pasid(0x1_2345))).into_bits(), 0x8001_2345);
    assert_eq!(TranslationEntry::from_bits(0x8000_0000).host(), Some(HostPasid(pasid(0))));
    assert_eq!(TranslationEntry::from_bits(0x7fff_ffff).host(), None);
    let table = HostAddr(0x000a_bcde_f012_3000);
    assert_eq!(DirectoryEntry::to_table(table).into_bits(), 0x000a_bcde_f012_3001);
    assert_eq!(DirectoryEntry::from_bits(0x000a_bcde_f012_3001).table(), table);
    assert_eq!(Ia32Pasid::of(guest(0xf_ffff)).into_bits(), 0x800f_ffff);
    assert_eq!(Directory::of(guest(0x7_ffff)), Directory::Low);
    assert_eq!(Directory::of(guest(0x8_0000)), Directory::High);
}

/// Memory of a host: pages by address.
type Memory = BTreeMap<u64, [u8; PAGE_SIZE]>;

fn load(memory: &Memory, at: u64, len: usize) -> u64 {
    let page = &memory[&(at & !0xfff)];
    let at = (at & 0xfff) as usize;
    (0..len).rev().fold(0, |word, byte| word << 8 | u64::from(page[at + byte]))
}

/// As a processor does with the two fields of the VM control structure.
fn walk(memory: &Memory, directories: [u64; 2], number: u32) -> Option<u32> {
    let number = u64::from(number);
    let directory = directories[(number >> 19) as usize];
    let entry = load(memory, directory + 8 * (number >> 10 & 0x1ff), 8);
    if entry & 1 == 0 {
        return None;
    }
    let entry = load(memory, (entry & 0x000f_ffff_ffff_f000) + 4 * (number & 0x3ff), 4);
    (entry >> 31 == 1).then_some((entry & 0xf_ffff) as u32)
}

#[test]
fn hardware_finds_what_is_bound_and_nothing_else() {
    const BOUND: [u32; 5] = [1, 15, 16, 0x7_ffff, 0x8_0000];
    let submitter = Submitter::new(CONFIG);
    let table = submitter.table();
    for number in BOUND {
        submitter.hosted.grant(number);
        submitter.attach(number).unwrap();
    }
    let mut memory = Memory::new();
    let directories = [0x7000_0000_1000, 0x1000];
    let at = |table: usize| HostAddr(0x10_0000_0000 + (table as u64) * 0x3000);
    memory.insert(directories[0], table.directory(Directory::Low, at));
    memory.insert(directories[1], table.directory(Directory::High, at));
    let tables = (0..TABLES).filter_map(|index| Some((at(index).0, table.table(index)?)));
    memory.extend(tables);
    assert_eq!(memory.len(), 2 + 3, "PASIDs of three tables");
    for number in BOUND.into_iter().chain([0, 2, 0x400, 0x7_fffe, 0x8_0001, 0xf_ffff]) {
        let found = walk(&memory, directories, number);
        assert_eq!(found, table.walk(guest(number)).map(|host| host.0.get()), "{number:#x}");
        assert_eq!(found, table.peek(guest(number)).map(|host| host.0.get()), "{number:#x}");
        assert_eq!(found.is_some(), BOUND.contains(&number), "{number:#x}");
    }
    wait(submitter.vm(), submitter.vm().release_pasids());
    let zeros = table.table(0).unwrap().iter().all(|byte| *byte == 0);
    assert!(zeros, "nothing is left where it was");
    submitter.end();
}
