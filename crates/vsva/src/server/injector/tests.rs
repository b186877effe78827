//! Time passes by hand; the levers write down what is done with them.

use std::cell::{Cell, RefCell};

use super::*;

#[derive(Default)]
struct Fake {
    done: RefCell<Vec<String>>,
    overflows: Cell<u64>,
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

    fn delay_answers(&self, late: Option<Duration>) {
        self.note(late.map_or_else(|| "in time".to_owned(), |late| format!("late by {late:?}")));
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
    assert_eq!(injector.step(ms(1000), &levers), None, "nobody has met it");
    levers.overflows.set(1);
    assert_eq!(injector.step(ms(2000), &levers), Some(ms(2040)));
    assert_eq!(injector.step(ms(2039), &levers), Some(ms(2040)));
    assert!(levers.done().is_empty());
    assert_eq!(injector.step(ms(2040), &levers), None);
    assert_eq!(levers.done(), ["room"]);
    levers.overflows.set(2);
    assert_eq!(injector.step(ms(3000), &levers), None, "once");
    assert!(levers.done().is_empty());
}

#[test]
fn what_overflowed_before_does_not_count() {
    let (injector, levers) = (Injector::default(), Fake::default());
    levers.overflows.set(7);
    injector.inject("overflow-queue=5".parse().unwrap(), &levers);
    assert_eq!(injector.step(ms(10), &levers), None);
    let (forever, levers) = injecting("overflow-queue");
    levers.overflows.set(1);
    assert_eq!(forever.step(ms(1_000_000), &levers), None);
    assert_eq!(levers.done(), ["full"]);
}

#[test]
fn all_is_put_right() {
    let (injector, levers) = injecting("overflow-queue=10");
    for text in ["delay-invalidation=5", "drop-response=3", "fail-walk=9"] {
        injector.inject(text.parse().unwrap(), &levers);
    }
    assert_eq!(levers.done(), ["full", "late by 5ms", "drop-response=3", "word 9"]);
    injector.clear(&levers);
    assert_eq!(levers.done(), ["responses", "room", "in time", "walks"]);
    levers.overflows.set(1);
    assert_eq!(injector.step(ms(1), &levers), None);
    assert!(levers.done().is_empty());
}
