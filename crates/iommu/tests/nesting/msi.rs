//! Doorbells: the rows of §7.4.

use iommu::nesting::{MsiBinding, MsiBindings, MsiError, MAX_MSI_BINDINGS};
use mem::{Gpa, HostAddr, Iova};

const DOORBELL: HostAddr = HostAddr(0xfee0_0000);
const OTHER: HostAddr = HostAddr(0xfef0_0000);

fn binding(iova: u64, gpa: u64, size: u64) -> MsiBinding {
    MsiBinding { iova: Iova(iova), gpa: Gpa(gpa), size }
}

fn table(bindings: &[(u64, u64)]) -> MsiBindings {
    let mut table = MsiBindings::new(0x1000);
    for (iova, gpa) in bindings {
        assert_eq!(table.bind(Iova(*iova), Gpa(*gpa), 0x1000), Ok(true));
    }
    table
}

#[test]
fn both_addresses_are_rounded_down_to_the_page() {
    let mut table = MsiBindings::new(0x1_0000);
    assert_eq!(table.bind(Iova(0x8040), Gpa(0x1_2040), 0x1000), Ok(true));
    assert_eq!(table.bind(Iova(0x3_8040), Gpa(0x4_2040), 0x1_0000), Ok(true));
    let expected = [binding(0x8000, 0x1_2000, 0x1000), binding(0x3_0000, 0x4_0000, 0x1_0000)];
    assert!(table.iter().eq(expected.map(|binding| (binding, None))));
}

#[test]
fn a_page_larger_than_stage_twos_and_one_that_is_none_are_refused() {
    let mut table = table(&[]);
    let mut bind = |size| table.bind(Iova(0), Gpa(0), size);
    assert_eq!(bind(0x2000), Err(MsiError::TooLarge { size: 0x2000, limit: 0x1000 }));
    assert_eq!(bind(u64::MAX), Err(MsiError::TooLarge { size: u64::MAX, limit: 0x1000 }));
    for size in [0, 3, 0xfff] {
        assert_eq!(bind(size), Err(MsiError::Size(size)));
    }
    assert_eq!(table.iter().count(), 0);
}

#[test]
fn an_iova_that_is_recorded_keeps_what_it_has() {
    let mut table = table(&[(0x8000, 0x1000)]);
    assert_eq!(table.bind(Iova(0x8040), Gpa(0x2000), 0x1000), Ok(false));
    assert!(table.iter().eq([(binding(0x8000, 0x1000, 0x1000), None)]));
}

#[test]
fn the_table_is_bounded() {
    let mut table = table(&[]);
    for page in 0..MAX_MSI_BINDINGS as u64 {
        assert_eq!(table.bind(Iova(page << 12), Gpa(0), 0x1000), Ok(true));
    }
    let full = Err(MsiError::TooMany { limit: MAX_MSI_BINDINGS });
    assert_eq!(table.bind(Iova(1 << 40), Gpa(0), 0x1000), full);
    assert_eq!(table.bind(Iova(0), Gpa(0), 0x1000), Ok(false));
    assert!(table.unbind(Iova(0x3000)).is_some());
    assert_eq!(table.bind(Iova(1 << 40), Gpa(0), 0x1000), Ok(true));
}

#[test]
fn unbind_finds_the_page_and_says_what_is_mapped() {
    let mut table = table(&[(0x8000, 0x1000), (0x9000, 0x2000)]);
    assert_eq!(table.assign(DOORBELL), Some(binding(0x8000, 0x1000, 0x1000)));
    assert_eq!(table.unbind(Iova(0x7fff)), None);
    let mapped = (binding(0x8000, 0x1000, 0x1000), Some(DOORBELL));
    assert_eq!(table.unbind(Iova(0x8fff)), Some(mapped));
    assert_eq!(table.unbind(Iova(0x8fff)), None);
    assert_eq!(table.unbind(Iova(0x9000)), Some((binding(0x9000, 0x2000, 0x1000), None)));
}

#[test]
fn a_doorbell_has_one_place_and_another_the_next() {
    let mut table = table(&[(0x8000, 0x1000), (0x9000, 0x2000)]);
    let (first, second) = (binding(0x8000, 0x1000, 0x1000), binding(0x9000, 0x2000, 0x1000));
    assert_eq!(table.assign(DOORBELL), Some(first));
    assert_eq!(table.assign(OTHER), Some(second));
    assert_eq!(table.assign(DOORBELL), Some(first), "it is mapped already");
    assert_eq!(table.assign(HostAddr(0)), None, "none is free");
}

#[test]
fn in_several_tables_or_in_none() {
    let full = |mut table: MsiBindings| {
        for page in 0..MAX_MSI_BINDINGS as u64 {
            let _ = table.bind(Iova((1 << 40) + (page << 12)), Gpa(0), 0x1000);
        }
        table
    };
    let is_in = |table: &MsiBindings| table.iter().any(|(at, _)| at.iova == Iova(0x8000));
    let mut tables = [table(&[]), table(&[(0x8000, 0x7000)]), table(&[])];
    MsiBindings::bind_in_all(&mut tables, Iova(0x8010), Gpa(0x1000), 0x1000).unwrap();
    assert!(tables.iter().all(is_in));

    for k in 0..3 {
        let mut tables = [table(&[]), table(&[(0x8000, 0x7000)]), table(&[]), table(&[])];
        tables[if k == 1 { 3 } else { k }] = full(table(&[]));
        let result = MsiBindings::bind_in_all(&mut tables, Iova(0x8010), Gpa(0x1000), 0x1000);
        assert_eq!(result, Err(MsiError::TooMany { limit: MAX_MSI_BINDINGS }));
        // The second had it before, and has it still.
        assert_eq!(tables.map(|table| is_in(&table)), [false, true, false, false]);
    }
}
