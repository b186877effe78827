//! Walkers and a processor on one table at once: no flag is lost.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};

use pgtable::{walk, Access, FirstStage, Request, SecondStage, SecondStageLevels, Tables};

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

/// Everybody touches every page in an order of their own: two walkers for writing and reading,
/// and a processor that owns the software bits 52 and up and counts in them.
fn run<F: pgtable::Format + Sync>(format: &F, accessed: u64, dirty: u64) {
    let shared = Shared([const { AtomicU64::new(0x1007) }; 512]);
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
                shared.0[index * 5 % PAGES].fetch_add(1 << 52, Ordering::SeqCst);
            }
        });
    });
    for (index, entry) in shared.0.iter().enumerate() {
        let entry = entry.load(Ordering::SeqCst);
        assert_eq!(entry & dirty != 0, index < PAGES, "dirty flag of page {index}");
        assert_eq!(entry & accessed != 0, index < 2 * PAGES, "accessed flag of page {index}");
        let counted = if index < PAGES { COUNTS as u64 } else { 0 };
        assert_eq!(entry >> 52, counted, "what the processor wrote to page {index}");
    }
}

#[test]
fn first_stage() {
    for _ in 0..50 {
        run(&FirstStage::FOUR_LEVEL, 1 << 5, 1 << 6);
    }
}

#[test]
fn second_stage() {
    for _ in 0..50 {
        run(&SecondStage::new(SecondStageLevels::Four), 1 << 8, 1 << 9);
    }
}
