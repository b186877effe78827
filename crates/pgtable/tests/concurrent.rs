//! Walkers and a processor on one table at once: no flag is lost.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};

use pgtable::{
    walk, Access, ArmFlags, ArmStageOne, ArmStageTwo, FirstStage, Format, Granule, Request,
    SecondStage, SecondStageLevels, Tables,
};

const PAGES: usize = 64;
/// How often the processor changes each entry. A walk uses two entries here, of which each can
/// change under it this often, and by the other walker's flags: never `MAX_ATTEMPTS` times.
const COUNTS: usize = 5;

/// One table, which is its own at every level down to 1.
struct Shared([AtomicU64; 512]);

impl Tables for Shared {
    type Error = Infallible;

    fn load(&self, entry: u64) -> Result<u64, Infallible> {
        Ok(self.0[entry as usize / 8 % 512].load(Ordering::Acquire))
    }

    fn compare_exchange(
        &self,
        entry: u64,
        current: u64,
        new: u64,
    ) -> Result<Result<u64, u64>, Infallible> {
        let entry = &self.0[entry as usize / 8 % 512];
        Ok(entry.compare_exchange(current, new, Ordering::SeqCst, Ordering::SeqCst))
    }
}

/// An entry that is a table above level 1 and a page there, before and after its use.
struct Use {
    clean: u64,
    read: u64,
    written: u64,
    /// The lowest of the bits that software owns.
    software: u32,
}

/// Everybody touches every page in an order of their own: two walkers for writing and reading,
/// and a processor that owns the software bits and counts in them.
fn run<F: Format + Sync>(format: &F, uses: &Use) {
    let shared = Shared(std::array::from_fn(|_| AtomicU64::new(uses.clean)));
    let touch = |access: Access, stride: usize, pages: usize| {
        for index in 0..pages {
            let address = ((index * stride % pages) as u64) << 12;
            walk(format, 0x1000, address, &Request::user(access), &shared).unwrap();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| touch(Access::Write, 7, PAGES));
        scope.spawn(|| touch(Access::Read, 11, 2 * PAGES));
        scope.spawn(|| {
            for index in 0..COUNTS * PAGES {
                shared.0[index * 5 % PAGES].fetch_add(1 << uses.software, Ordering::SeqCst);
            }
        });
    });
    for (index, entry) in shared.0.iter().enumerate() {
        let expected = match index {
            0..PAGES => uses.written | (COUNTS as u64) << uses.software,
            _ if index < 2 * PAGES => uses.read,
            _ => uses.clean,
        };
        assert_eq!(entry.load(Ordering::SeqCst), expected, "page {index}");
    }
}

#[test]
fn first_stage() {
    for _ in 0..50 {
        let uses = Use { clean: 0x1007, read: 0x1027, written: 0x1067, software: 52 };
        run(&FirstStage::FOUR_LEVEL, &uses);
    }
}

#[test]
fn second_stage() {
    for _ in 0..50 {
        let uses = Use { clean: 0x1007, read: 0x1107, written: 0x1307, software: 52 };
        run(&SecondStage::new(SecondStageLevels::Four), &uses);
    }
}

#[test]
fn arm_stage_one() {
    let format = ArmStageOne::new(Granule::Kib4, 48, 48).unwrap();
    for _ in 0..50 {
        // AF, and AP[2] cleared.
        let modifier = 1 << 51;
        let uses = Use {
            clean: modifier | 0x10c3,
            read: modifier | 0x14c3,
            written: modifier | 0x1443,
            software: 55,
        };
        run(&format.with_flags(ArmFlags::AccessDirty), &uses);
    }
}

#[test]
fn arm_stage_two() {
    let format = ArmStageTwo::new(Granule::Kib4, 48, 48).unwrap();
    for _ in 0..50 {
        // AF, and S2AP[1] set.
        let modifier = 1 << 51;
        let uses = Use {
            clean: modifier | 0x1043,
            read: modifier | 0x1443,
            written: modifier | 0x14c3,
            software: 55,
        };
        run(&format.with_flags(ArmFlags::AccessDirty), &uses);
    }
}
