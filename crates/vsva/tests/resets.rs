//! Resets while the accelerator waits for pages that nobody gives: of the accelerator alone, and of the whole VM. The
//! guest goes on with both devices as after power-on, and a neighbour on the same server is not disturbed.

mod peer;

use std::time::Instant;

use peer::kernel::Kernel;
use peer::waiting::{go_on, Ended, World, SETUPS, SOON, WAITING};
use peer::*;

/// How often it is reset.
const RESETS: u64 = 3;

fn everywhere(story: impl Fn(&World, Kernel, &str) -> Kernel) {
    for setup in SETUPS {
        let world = World::new(setup);
        let what = &world.what;
        world.beside_a_neighbour(|rounds| {
            let mut kernel = Kernel::boot(&world.place, &world.ram);
            for _ in 0..RESETS {
                kernel = story(&world, kernel, what);
                world.is_free_of_strays(what);
                kernel.round(WAITING, 0x1234);
                go_on(rounds);
            }
        });
        assert_eq!(world.place.lives(), 1);
        assert_eq!(count(&world.place, "page_answers_unexpected"), 0, "{what}");
    }
}

#[test]
fn a_function_level_reset_forgets_what_was_asked() {
    everywhere(|world, mut kernel, what| {
        let late = || count(&world.place, "page_answers_late");
        let (before, late_before) = (world.have_it_wait(&mut kernel), late());
        let begun = Instant::now();
        kernel.reset_accelerator();
        let took = begun.elapsed();
        println!("{what}: the function-level reset took {took:?}");
        assert!(took < SOON, "{what}: {took:?}");
        assert_eq!(world.waits(), (0, 0), "{what}");
        let ended = world.ended_since(before);
        assert!(ended.is_by_the_accelerator(), "{what}: {ended:?}");
        kernel.open();
        // The kernel answers what it finds in its queue: nobody is there to hear it.
        kernel.serve();
        let ended = world.ended_since(before);
        assert!(ended.is_by_the_accelerator(), "{what}: {ended:?}");
        assert_eq!(late() - late_before, WAITING, "{what}");
        kernel
    });
}

#[test]
fn a_reset_of_the_vm_gives_its_devices_back() {
    vm_reset(["accelerator", "unit"], Ended::is_by_the_accelerator);
}

#[test]
fn a_reset_of_the_vm_gives_its_devices_back_the_unit_first() {
    vm_reset(["unit", "accelerator"], Ended::is_by_the_unit);
}

/// A VMM resets the functions of its VM, one after the other.
fn vm_reset(order: [&str; 2], is_expected: fn(Ended) -> bool) {
    everywhere(|world, mut kernel, what| {
        let before = world.have_it_wait(&mut kernel);
        let [mut accelerator, mut unit] = kernel.into_clients();
        let begun = Instant::now();
        for function in order {
            match function {
                "unit" => unit.reset(),
                _ => accelerator.reset(),
            }
            assert_eq!(world.waits().0, 0, "{what}: {function}");
        }
        let took = begun.elapsed();
        println!("{what}: the reset, {} first, took {took:?}", order[0]);
        assert!(took < SOON, "{what}: {took:?}");
        let ended = world.ended_since(before);
        assert!(is_expected(ended), "{what}: {ended:?}");
        world.nothing_is_left(what);
        // Its memory is its own as before.
        assert_eq!(world.place.memory(), (2, 1), "{what}");
        Kernel::reboot(unit, accelerator, &world.ram)
    });
}
