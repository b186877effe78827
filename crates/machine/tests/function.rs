//! The function that carries the registers, as a transport sees it.

mod bench;

use bench::*;
use machine::{BaseMismatch, BAR_SIZE, DEVICE_ID, VENDOR_ID};
use mem::Gpa;
use pci::{BarKind, Function};

fn config32(bench: &Bench, offset: u16) -> u32 {
    let mut data = [0; 4];
    bench.machine.iommu_function().config_read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn write_config(bench: &Bench, offset: u16, data: &[u8]) {
    bench.machine.iommu_function().config_write(offset, data);
}

/// Programs BAR 0 and switches memory decoding on, as firmware does.
fn assign(bench: &Bench, base: u32) {
    write_config(bench, 0x04, &[0, 0]);
    write_config(bench, 0x10, &base.to_le_bytes());
    write_config(bench, 0x04, &[2, 0]);
}

#[test]
fn it_is_a_host_bridge_that_no_driver_matches() {
    let bench = Bench::new();
    let id = u32::from(DEVICE_ID) << 16 | u32::from(VENDOR_ID);
    assert_eq!(config32(&bench, 0), id);
    assert_eq!(config32(&bench, 8) >> 16, 0x0600);
    assert_eq!(config32(&bench, 0xc) >> 16 & 0xff, 0, "one function, ordinary header");
    let function = bench.machine.iommu_function();
    assert_eq!(function.vectors(), 0);
    let [bar] = function.bars() else { panic!("one BAR") };
    assert_eq!((bar.index, bar.kind, bar.size), (0, BarKind::Memory32, 256 << 20));
}

#[test]
fn its_first_page_is_the_registers_and_the_rest_is_nothing() {
    let bench = Bench::new();
    assert_eq!(bench.read64(8), 0x81d2_078c_222f_0686);
    for offset in [0x1000, 0x1008, BAR_SIZE - 8] {
        bench.write64(offset, u64::MAX);
        assert_eq!(bench.read64(offset), 0, "{offset:#x}");
    }
    let function = bench.machine.iommu_function();
    for (bar, offset) in [(1, 8), (6, 8), (0, BAR_SIZE), (0, u64::MAX)] {
        let mut data = [0; 8];
        function.bar_read(bar, offset, &mut data);
        assert_eq!(data, [0xff; 8]);
        function.bar_write(bar, offset, &data);
    }
    // The last bytes of the page, and past them.
    let mut data = [0xaa; 8];
    function.bar_read(0, 0xffc, &mut data);
    assert_eq!(data, [0; 8]);
}

#[test]
fn a_base_as_the_dmar_table_says_is_no_news() {
    let bench = Bench::new();
    assert_eq!(bench.machine.iommu_function().base(), None);
    assign(&bench, BASE.0 as u32);
    assert_eq!(bench.machine.iommu_function().base(), Some(BASE));
    // Linux sizes the BAR of a host bridge with decoding on.
    write_config(&bench, 0x10, &[0xff; 4]);
    assert_eq!(config32(&bench, 0x10), 0xf000_0000);
    write_config(&bench, 0x10, &(BASE.0 as u32).to_le_bytes());
    assert_eq!(*bench.mismatches.lock().unwrap(), []);
}

#[test]
fn another_base_is_reported_once_with_the_fix() {
    let bench = Bench::new();
    assign(&bench, 0xc000_0000);
    assign(&bench, 0xd000_0000);
    let expected = BaseMismatch { expected: BASE, programmed: Gpa(0xc000_0000) };
    assert_eq!(*bench.mismatches.lock().unwrap(), [expected]);
    let words = expected.to_string();
    assert!(words.contains("DMAR table with register base 0xc0000000"), "{words}");
    assert!(words.contains("0xe0000000"), "{words}");
    // A guest that starts again may get it wrong again.
    bench.machine.iommu_function().reset();
    assign(&bench, 0xc000_0000);
    assert_eq!(bench.mismatches.lock().unwrap().len(), 2);
}

#[test]
fn the_table_names_the_function_s_place_and_the_devices() {
    let bench = Bench::new();
    let table = bench.machine.dmar().unwrap();
    assert_eq!(table.len(), 48 + 16 + 8);
    assert_eq!(table[36], 47);
    assert_eq!(table[56..64], BASE.0.to_le_bytes());
    assert_eq!(table[64..], [1, 8, 0, 0, 0, 0, 0x10, 0]);
}
