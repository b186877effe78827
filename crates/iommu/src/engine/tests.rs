//! The engine over memory that a guest filled to do harm.

use core::cell::Cell;

use alloc::vec::Vec;

use mem::{MemError, MemoryMap, Window};
use proptest::prelude::*;

use super::*;
use crate::stage_two::HostStageTwo;
use crate::{ContextFault, Pasid, TableCaps};

const DEVICE: RequesterId = RequesterId::from_bits(0x0010);
/// Bytes of memory: so few that a random pointer often hits a table.
const MEMORY: u64 = 16 << 12;

/// Memory that counts how often it is reached.
struct Counting {
    map: MemoryMap,
    accesses: Cell<u64>,
}

impl GuestMemory for Counting {
    fn window(&self, gpa: Gpa, len: usize, access: Access) -> Result<Window<'_>, MemError> {
        self.accesses.set(self.accesses.get() + 1);
        self.map.window(gpa, len, access)
    }
}

impl Counting {
    fn new(words: impl IntoIterator<Item = u64>) -> Self {
        let map = MemoryMap::anonymous(&[(Gpa(0), MEMORY)]).unwrap();
        for (at, word) in (0..MEMORY).step_by(8).zip(words) {
            map.store_u64(Gpa(at), word).unwrap();
        }
        Self { map, accesses: Cell::new(0) }
    }
}

struct Fixed(DeviceContext);

impl ContextSource for Fixed {
    fn lookup(&self, _: &dyn GuestMemory, _: RequesterId) -> Result<DeviceContext, ContextFault> {
        Ok(self.0)
    }
}

const CAPS: TableCaps = TableCaps { address_bits: 46, ..TableCaps::FULL };

fn pasid_table(directory: u64) -> PasidTable {
    PasidTable {
        directory: Gpa(directory),
        pasid_bits: 20,
        rid_pasid: Pasid::MAX,
        rid_privileged: true,
        pasid_enable: true,
        ats: true,
        page_requests: true,
        fault_disable: false,
        caps: CAPS,
    }
}

/// Translates one request with empty caches; the answer, and how often memory was reached.
fn translate(
    memory: &Counting,
    context: DeviceContext,
    space: AddressSpace,
    address: u64,
    access: Access,
) -> (Result<Target, Refusal>, u64) {
    translate_over(memory, None, context, space, address, access)
}

/// The same over a stage 2 of the host's, if there is one.
fn translate_over(
    memory: &Counting,
    stage_two: Option<&HostStageTwo>,
    context: DeviceContext,
    space: AddressSpace,
    address: u64,
    access: Access,
) -> (Result<Target, Refusal>, u64) {
    let request = Request {
        requester: DEVICE,
        space,
        address: Iova(address),
        access,
        translation_request: false,
    };
    memory.accesses.set(0);
    let mut caches = Caches::new(DEVICE);
    let counters = ChannelCounters::default();
    let answer = Engine {
        memory: &GuestPhysical::new(memory, stage_two, &counters.tables),
        attached: None,
        contexts: Some(&Fixed(context)),
        grants: None,
        caches: &mut caches,
        counters: &counters,
        origin: None,
    }
    .translate(&request);
    (answer, memory.accesses.get())
}

fn space(pasid: Option<u32>, privileged: bool) -> AddressSpace {
    AddressSpace { pasid: pasid.map(Pasid::from_field), privileged }
}

/// A table entry that points into memory, with flags of either stage and sometimes a bad bit.
fn entry() -> impl Strategy<Value = u64> {
    let sane = (0..MEMORY >> 12, 0..0x1000u64).prop_map(|(page, flags)| page << 12 | flags | 7);
    // Without the bits that are large pages, PGTT or reserved in a PASID-table entry.
    let plain = (0..MEMORY >> 12).prop_map(|page| page << 12 | 7);
    prop_oneof![4 => plain, 4 => sane, 1 => any::<u64>(), 1 => Just(0)]
}

/// PASID-table entries wherever one may be read: a table of them fills page 1.
fn pasid_entry() -> impl Strategy<Value = [u64; 8]> {
    let root = || (0..MEMORY >> 12).prop_map(|page| page << 12);
    (1..5u64, 1..4u64, root(), root(), 0..0x100u64, prop::bool::weighted(0.1)).prop_map(
        |(kind, width, second, first, flags, bad)| {
            let reserved = u64::from(bad) << 10;
            let flags = flags & 0b0111_0101;
            [1 | width << 2 | kind << 6 | second | reserved, 1, first | flags, 0, 0, 0, 0, 0]
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn garbage_is_refused_within_the_step_bound(
        words in prop::collection::vec(entry(), 0x2000),
        entries in prop::collection::vec(pasid_entry(), 64),
        requests in prop::collection::vec(
            (prop::option::of(0..1u32 << 20), any::<bool>(), any::<u64>(), 0..65u32, any::<bool>()),
            64,
        ),
    ) {
        let memory = Counting::new(words);
        // The directory leads to page 1 from any of its first entries; the rest is garbage.
        for at in 0..64 {
            memory.map.store_u64(Gpa(at * 8), 0x1001).unwrap();
        }
        for (at, word) in (0x1000..).step_by(8).zip(entries.iter().flatten()) {
            memory.map.store_u64(Gpa(at), *word).unwrap();
        }
        for (pasid, privileged, address, shift, write) in requests {
            let access = if write { Access::Write } else { Access::Read };
            // Addresses of every width.
            let address = address.checked_shr(shift).unwrap_or(0);
            let context = DeviceContext::PasidTable(pasid_table(0));
            // Half of them within the first directory entries.
            let pasid = pasid.map(|pasid| if write { pasid } else { pasid & 0xfff });
            let (answer, accesses) =
                translate(&memory, context, space(pasid, privileged), address, access);
            prop_assert!(accesses <= MAX_TABLE_ACCESSES, "{accesses}");
            if let Ok(target) = answer {
                let interrupts = INTERRUPT_START..=INTERRUPT_LAST;
                let last = target.output.0.checked_add(target.len_minus_one).unwrap();
                prop_assert!(!interrupts.contains(&target.output.0) && !interrupts.contains(&last));
            }
        }
    }
}

/// A table whose every entry points at itself, in every mode: the walk ends at its last level.
#[test]
fn a_table_that_points_at_itself() {
    for kind in [1u64, 2, 3] {
        let memory = Counting::new([0x2001]);
        // AW 3, FSPM 1, SSADE: five levels in both stages, all flags kept.
        let words = [1 | 3 << 2 | kind << 6 | 1 << 9 | 0x3000, 1, 0x3000 | 1 << 2];
        for (at, word) in (0x2000 + 64 * 5..).step_by(8).zip(words) {
            memory.map.store_u64(Gpa(at), word).unwrap();
        }
        for index in 0..512 {
            memory.map.store_u64(Gpa(0x3000 + index * 8), 0x3007).unwrap();
        }
        let context = DeviceContext::PasidTable(pasid_table(0));
        for access in [Access::Read, Access::Write] {
            let (answer, accesses) =
                translate(&memory, context, space(Some(5), false), 0x1234, access);
            let target = answer.unwrap();
            assert_eq!((target.output, target.len_minus_one), (Output(0x3234), 0xdcb));
            // Every entry is one entry, so the first round of marks meets itself and starts over;
            // in the nested case each of its accesses is a walk of its own.
            let limit = if kind == 3 { 9 + 400 } else { 9 + 40 };
            assert!(accesses <= limit, "{kind} {accesses}");
        }
    }
}

/// Tables right at the end of the address space do not wrap around.
#[test]
fn pointers_at_the_end_of_the_address_space() {
    let memory = Counting::new([u64::MAX]);
    let context = DeviceContext::PasidTable(pasid_table(!0xfff));
    let (answer, _) = translate(&memory, context, space(Some(0xf_ffff), false), 0, Access::Read);
    assert_eq!(answer.unwrap_err().reason, FaultReason::PasidDirectoryAccess);
    let (answer, _) = translate(
        &memory,
        DeviceContext::PasidTable(pasid_table(0)),
        space(Some(0), false),
        0,
        Access::Read,
    );
    assert_eq!(answer.unwrap_err().reason, FaultReason::PasidDirectoryReserved);
}

/// A model that gives a nonsensical context is the guest's misfortune, not ours.
#[test]
fn contexts_out_of_range() {
    let memory = Counting::new(Vec::new());
    for levels in [0, 1, 2, 6, 255] {
        let table = StageTwo { root: Gpa(0), levels, accessed_dirty: true };
        let context = DeviceContext::StageTwo {
            domain: DomainId(1),
            table,
            ats: false,
            fault_disable: false,
        };
        let (answer, _) = translate(&memory, context, space(None, false), 0, Access::Read);
        assert_eq!(answer.unwrap_err().reason, FaultReason::ContextInvalid);
    }
    for pasid_bits in [0, 20, 21, 64, 255] {
        let table = PasidTable { pasid_bits, ..pasid_table(0) };
        let context = DeviceContext::PasidTable(table);
        let (answer, _) =
            translate(&memory, context, space(Some(0xf_ffff), false), 0, Access::Read);
        let expected = if pasid_bits == 0 {
            FaultReason::PasidRange
        } else {
            FaultReason::PasidDirectoryAccess
        };
        assert_eq!(answer.unwrap_err().reason, expected, "{pasid_bits}");
    }
    for address_bits in [0, 64, 255] {
        let caps = TableCaps { address_bits, ..CAPS };
        let context = DeviceContext::PasidTable(PasidTable { caps, ..pasid_table(0) });
        let (answer, _) = translate(&memory, context, space(Some(0), false), 0, Access::Read);
        assert_eq!(answer.unwrap_err().reason, FaultReason::PasidDirectoryNotPresent);
    }
}

mod smmuv3;
mod stage_two;
