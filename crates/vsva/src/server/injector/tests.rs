//! Time passes by hand; the levers write down what is done with them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use super::*;

#[derive(Default)]
struct Fake {
    done: RefCell<Vec<String>>,
    overflows: Cell<u64>,
    owed: RefCell<BTreeSet<Ticket>>,
}

impl Fake {
    fn note(&self, what: impl Into<String>) {
        self.done.borrow_mut().push(what.into());
    }

    fn done(&self) -> Vec<String> {
        self.done.take()
    }
}

impl Levers for Fake {
    fn break_responses(&self, injection: Option<Injection>) {
        self.note(injection.map_or_else(|| "responses".to_owned(), |wrong| wrong.to_string()));
    }

    fn fill_queue(&self, full: bool) {
        self.note(if full { "full" } else { "room" });
    }

    fn overflows(&self) -> u64 {
        self.overflows.get()
    }

    fn keep_answers(&self, keep: bool) {
        if !keep {
            self.owed.take();
        }
        self.note(if keep { "keep" } else { "answer" });
    }

    fn owes(&self, ticket: Ticket) -> bool {
        self.owed.borrow().contains(&ticket)
    }

    fn fail_walk(&self, word: Option<u64>) {
        self.note(word.map_or_else(|| "walks".to_owned(), |word| format!("word {word}")));
    }
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn injecting(text: &str) -> (Injector, Fake) {
    let (injector, levers) = (Injector::default(), Fake::default());
    injector.inject(text.parse().unwrap(), &levers);
    (injector, levers)
}

#[test]
fn a_queue_has_room_again_so_long_after_the_first_request() {
    let (injector, levers) = injecting("overflow-queue=40");
    assert_eq!(levers.done(), ["full"]);
    assert_eq!(injector.step(ms(1000), None, &levers), None, "nobody has met it");
    levers.overflows.set(1);
    assert_eq!(injector.step(ms(2000), None, &levers), Some(ms(2040)));
    assert_eq!(injector.step(ms(2039), None, &levers), Some(ms(2040)));
    assert!(levers.done().is_empty());
    assert_eq!(injector.step(ms(2040), None, &levers), None);
    assert_eq!(levers.done(), ["room"]);
    levers.overflows.set(2);
    assert_eq!(injector.step(ms(3000), None, &levers), None, "once");
    assert!(levers.done().is_empty());
}

#[test]
fn what_overflowed_before_does_not_count() {
    let (injector, levers) = (Injector::default(), Fake::default());
    levers.overflows.set(7);
    injector.inject("overflow-queue=5".parse().unwrap(), &levers);
    assert_eq!(injector.step(ms(10), None, &levers), None);
    let (forever, levers) = injecting("overflow-queue");
    levers.overflows.set(1);
    assert_eq!(forever.step(ms(1_000_000), None, &levers), None);
    assert_eq!(levers.done(), ["full"]);
}

#[test]
fn an_invalidation_is_answered_so_long_after_it_was_met() {
    let (injector, levers) = injecting("delay-invalidation=30");
    let ticket = Ticket::new(4);
    assert_eq!(injector.step(ms(1), Some(ticket), &levers), None, "it waits for something else");
    levers.owed.borrow_mut().insert(ticket);
    assert_eq!(injector.step(ms(10), Some(ticket), &levers), Some(ms(40)));
    // The unit has given up; the answer comes all the same.
    assert_eq!(injector.step(ms(20), None, &levers), Some(ms(40)));
    assert_eq!(levers.done(), ["keep"]);
    assert_eq!(injector.step(ms(41), None, &levers), None);
    assert_eq!(levers.done(), ["answer", "keep"]);
    // The next one is as late.
    let next = Ticket::new(5);
    levers.owed.borrow_mut().insert(next);
    assert_eq!(injector.step(ms(50), Some(next), &levers), Some(ms(80)));
    // A device that was reset owes nothing, and no answer is given for it.
    levers.owed.borrow_mut().clear();
    assert_eq!(injector.step(ms(90), None, &levers), None);
    assert!(levers.done().is_empty());
}

#[test]
fn all_is_put_right() {
    let (injector, levers) = injecting("overflow-queue=10");
    for text in ["delay-invalidation=5", "drop-response=3", "fail-walk=9"] {
        injector.inject(text.parse().unwrap(), &levers);
    }
    assert_eq!(levers.done(), ["full", "keep", "drop-response=3", "word 9"]);
    injector.clear(&levers);
    assert_eq!(levers.done(), ["responses", "room", "answer", "walks"]);
    levers.overflows.set(1);
    assert_eq!(injector.step(ms(1), Some(Ticket::new(1)), &levers), None);
    assert!(levers.done().is_empty());
}
