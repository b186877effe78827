use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

const COMMAND: u16 = 0x04;
const BAR0: u16 = 0x10;
const MEMORY_SPACE: u16 = 1 << 1;

/// A page that remembers what was done to it, and reads as 0x5a.
#[derive(Default)]
struct Page {
    reads: Mutex<Vec<(u64, usize)>>,
    writes: Mutex<Vec<(u64, Vec<u8>)>>,
    resets: AtomicUsize,
}

impl RegisterPage for Page {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.reads.lock().unwrap().push((offset, data.len()));
        data.fill(0x5a);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.writes.lock().unwrap().push((offset, data.to_vec()));
    }

    fn reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }
}

struct Carrier {
    page: Arc<Page>,
    misplaced: Arc<Mutex<Vec<Misplaced>>>,
    function: IommuFunction,
}

impl Carrier {
    fn new() -> Self {
        let (page, misplaced) = (Arc::<Page>::default(), Arc::<Mutex<Vec<Misplaced>>>::default());
        let seen = misplaced.clone();
        let tell = Box::new(move |what| seen.lock().unwrap().push(what));
        let function = IommuFunction::new(page.clone(), CARRIER_BAR_ADDRESS, tell).unwrap();
        Self { page, misplaced, function }
    }

    fn config(&self, offset: u16) -> u32 {
        let mut bytes = [0; 4];
        self.function.config_read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn place(&self, address: u64) {
        self.function.config_write(BAR0, &(address as u32).to_le_bytes());
    }

    fn command(&self, command: u16) {
        self.function.config_write(COMMAND, &command.to_le_bytes());
    }

    fn misplaced(&self) -> Vec<Misplaced> {
        self.misplaced.lock().unwrap().clone()
    }

    fn read(&self, bar: u8, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0xee; len];
        self.function.bar_read(bar, offset, &mut data);
        data
    }
}

#[test]
fn identity_is_that_of_a_host_bridge_without_interrupts() {
    let carrier = Carrier::new();
    assert_eq!(carrier.config(0), 0x0001_5653, "vendor and device");
    assert_eq!(carrier.config(8) >> 8, 0x06_00_00, "class: host bridge");
    assert_eq!(carrier.function.vectors(), 0);
    assert_eq!(carrier.function.bars(), BARS);
}

#[test]
fn bar_is_sized_as_firmware_does() {
    let carrier = Carrier::new();
    carrier.place(u64::MAX);
    assert_eq!(carrier.config(BAR0), 0xf000_0000, "256 MiB, 32-bit, not prefetchable");
    carrier.place(CARRIER_BAR_ADDRESS);
    assert_eq!(u64::from(carrier.config(BAR0)), CARRIER_BAR_ADDRESS);
    for bar in 1..6 {
        let at = BAR0 + 4 * bar;
        carrier.function.config_write(at, &[0xff; 4]);
        assert_eq!(carrier.config(at), 0, "BAR {bar}");
    }
}

#[test]
fn a_bar_in_its_place_is_no_news() {
    let carrier = Carrier::new();
    carrier.place(CARRIER_BAR_ADDRESS);
    carrier.command(MEMORY_SPACE);
    // Linux sizes the BARs of a host bridge while they are decoded.
    carrier.place(u64::MAX);
    carrier.place(CARRIER_BAR_ADDRESS);
    assert_eq!(carrier.misplaced(), []);
}

#[test]
fn a_misplaced_bar_is_told_of_once_for_each_time_that_it_is_switched_on() {
    let carrier = Carrier::new();
    let found = 0xc000_0000;
    carrier.place(found);
    assert_eq!(carrier.misplaced(), [], "not decoded yet");
    let misplaced = Misplaced { expected: CARRIER_BAR_ADDRESS, found };
    carrier.command(MEMORY_SPACE);
    assert_eq!(carrier.misplaced(), [misplaced]);
    carrier.command(MEMORY_SPACE | 1 << 2);
    assert_eq!(carrier.misplaced(), [misplaced], "on already");
    carrier.command(0);
    carrier.command(MEMORY_SPACE);
    assert_eq!(carrier.misplaced(), [misplaced, misplaced]);
    let text = misplaced.to_string();
    assert!(text.contains("0xc0000000") && text.contains("0xe0000000"), "{text}");
}

#[test]
fn who_is_told_of_a_misplaced_bar_may_look_at_the_function() {
    // The lock of the configuration space must not be held.
    let slot = Arc::<Mutex<Option<Arc<IommuFunction>>>>::default();
    let seen = Arc::new(AtomicUsize::new(0));
    let tell = {
        let (slot, seen) = (slot.clone(), seen.clone());
        Box::new(move |_| {
            let mut ids = [0; 4];
            if let Some(function) = &*slot.lock().unwrap() {
                function.config_read(0, &mut ids);
            }
            seen.store(u32::from_le_bytes(ids) as usize, Ordering::Relaxed);
        })
    };
    let page = Arc::<Page>::default();
    let function = Arc::new(IommuFunction::new(page, CARRIER_BAR_ADDRESS, tell).unwrap());
    *slot.lock().unwrap() = Some(function.clone());
    function.config_write(COMMAND, &MEMORY_SPACE.to_le_bytes());
    assert_eq!(seen.load(Ordering::Relaxed), 0x0001_5653);
}

#[test]
fn accesses_of_the_page_reach_it_and_no_others() {
    let carrier = Carrier::new();
    assert_eq!(carrier.read(0, 0xff8, 8), [0x5a; 8]);
    assert_eq!(carrier.read(0, 0xffc, 8), [0; 8], "across the end of the page");
    assert_eq!(carrier.read(0, 0x1000, 4), [0; 4]);
    assert_eq!(carrier.read(0, CARRIER_BAR_SIZE - 4, 4), [0; 4]);
    assert_eq!(carrier.read(0, CARRIER_BAR_SIZE - 3, 4), [0xff; 4], "past the BAR");
    assert_eq!(carrier.read(0, u64::MAX, 8), [0xff; 8]);
    assert_eq!(carrier.read(1, 0, 4), [0xff; 4], "no such BAR");
    assert_eq!(*carrier.page.reads.lock().unwrap(), [(0xff8, 8)]);

    for (bar, offset) in [(0, 0xffd), (0, 0x1000), (0, u64::MAX), (1, 0), (255, 8)] {
        carrier.function.bar_write(bar, offset, &[1; 4]);
    }
    assert_eq!(*carrier.page.writes.lock().unwrap(), []);
    carrier.function.bar_write(0, 0xffc, &[1, 2, 3, 4]);
    assert_eq!(*carrier.page.writes.lock().unwrap(), [(0xffc, vec![1, 2, 3, 4])]);
}

#[test]
fn reset_is_that_of_the_configuration_and_of_the_page() {
    let carrier = Carrier::new();
    carrier.place(CARRIER_BAR_ADDRESS);
    carrier.command(MEMORY_SPACE);
    carrier.function.reset();
    assert_eq!(carrier.config(BAR0), 0);
    assert_eq!(carrier.config(COMMAND) as u16, 0);
    assert_eq!(carrier.page.resets.load(Ordering::Relaxed), 1);
    // Off before, so this is switching on.
    carrier.command(MEMORY_SPACE);
    assert_eq!(carrier.misplaced(), [Misplaced { expected: CARRIER_BAR_ADDRESS, found: 0 }]);
}
