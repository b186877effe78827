//! Guests that die while their accelerator waits for pages that nobody gives: everything of them is free at once, and
//! a neighbour on the same server is not disturbed. Alone in its program: it counts what the process has.

mod peer;

use std::process::Command;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use peer::holdings::{mappings, Holdings};
use peer::kernel::Kernel;
use peer::waiting::{go_on, Ended, World, NAME, SETUPS, SOON, WAITING};
use peer::*;

/// How often a guest dies in each way.
const LIVES: u64 = 3;

/// How a guest dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Death {
    /// The accelerator's connection is gone, and then the unit's.
    AcceleratorFirst,
    /// The other way round.
    UnitFirst,
    /// The process that has both, and the memory, is killed.
    Killed,
}

impl Death {
    const ALL: [Self; 3] = [Self::AcceleratorFirst, Self::UnitFirst, Self::Killed];

    /// Has it come to a guest that waits. Gives when.
    fn come(self, kernel: Kernel, world: &World) -> Instant {
        let one_after_the_other = |first: Client, last: Client| {
            let begun = Instant::now();
            drop(first);
            // Half a guest waits for nothing any more.
            eventually("the end of waiting", || world.waits() == (0, 0));
            assert!(world.place.is_connected());
            drop(last);
            begun
        };
        match self {
            Self::AcceleratorFirst => {
                let [accelerator, unit] = kernel.into_clients();
                one_after_the_other(accelerator, unit)
            }
            Self::UnitFirst => {
                let [accelerator, unit] = kernel.into_clients();
                one_after_the_other(unit, accelerator)
            }
            Self::Killed => {
                let [accelerator, unit] = kernel.into_sockets();
                let memory = world.ram.try_clone().unwrap();
                let mut process = Command::new("sleep")
                    .arg("1000")
                    .stdin(accelerator)
                    .stdout(unit)
                    .stderr(memory)
                    .spawn()
                    .unwrap();
                // It lives on without us, and goes on waiting.
                std::thread::sleep(Duration::from_millis(20));
                assert_eq!(world.waits(), (WAITING, WAITING));
                let begun = Instant::now();
                process.kill().unwrap();
                process.wait().unwrap();
                begun
            }
        }
    }

    /// Whether all groups may have ended so.
    fn explains(self, ended: Ended) -> bool {
        match self {
            Self::AcceleratorFirst => ended.is_by_the_accelerator(),
            Self::UnitFirst => ended.is_by_the_unit(),
            // Both at the same time.
            Self::Killed => ended.is_by_somebody(),
        }
    }
}

#[test]
fn guests_that_die_while_they_wait_for_pages_leave_nothing() {
    for setup in SETUPS {
        let world = World::new(setup);
        let what = &world.what;
        let (rounds, longest) = world.beside_a_neighbour(|rounds| {
            let before = Holdings::now();
            for death in Death::ALL {
                for _ in 0..LIVES {
                    die(&world, death, what, rounds);
                    assert_eq!(Holdings::now(), before, "{what}, {death:?}");
                }
            }
        });
        println!("{what}: the neighbour did {rounds} rounds, the longest took {longest:?}");
        assert_eq!(world.place.lives(), Death::ALL.len() as u64 * LIVES);
        let said = world.said.lock().unwrap();
        // Nothing else: no wait was too long, no PASID stayed parked.
        let is_usual = |line: &str| line.contains(": 1 PASIDs taken back, out of all use in ");
        assert!(said.iter().all(|(_, line)| is_usual(line)), "{said:?}");
    }
}

/// One life: it works, it waits, it dies.
fn die(world: &World, death: Death, what: &str, rounds: &AtomicU64) {
    let place = &world.place;
    let mut kernel = Kernel::boot(place, &world.ram);
    let before = world.have_it_wait(&mut kernel);
    go_on(rounds);
    assert_eq!(world.waits(), (WAITING, WAITING), "nobody else ends the waiting");
    let begun = death.come(kernel, world);
    let took = place.wait_ended(PATIENCE).unwrap();
    let wall = begun.elapsed();
    let ended = world.ended_since(before);
    println!(
        "{what}, {death:?}: over after {wall:?}, of which the server took {took:?}; {ended:?}"
    );
    assert!(wall < SOON, "{what}, {death:?}: {wall:?}");
    assert!(death.explains(ended), "{what}, {death:?}: {ended:?}");
    world.nothing_is_left(&format!("{what}, {death:?}"));
    assert_eq!((place.memory(), mappings(NAME)), ((0, 0), 0), "{what}, {death:?}");
    world.is_free_of_strays(what);
}
