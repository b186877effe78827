//! A subscriber that writes down what it is told, and does what the test says.

use std::sync::{Arc, Mutex};

use ioasid::{Config, Event, Priority, Refusal, SetEvent, Space, Subscriber, Subscription, Work};

pub(crate) type Data = u32;

/// What was told, as "name EVENT number", in the order in which it was.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub(crate) fn write(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }

    /// What was written since it was last asked.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

/// Which handler is running.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum What {
    Alloc,
    Prepare,
    Commit,
    Abort,
    Unbind,
    Free,
}

type Answer = dyn Fn(What, &Event<'_, Data>) -> Result<(), Refusal> + Send + Sync;

pub(crate) struct Recorder {
    name: &'static str,
    log: Log,
    answer: Box<Answer>,
}

impl Recorder {
    pub(crate) fn new(name: &'static str, log: &Log) -> Arc<Self> {
        Self::with(name, log, |_, _| Ok(()))
    }

    /// One that calls `answer` in every handler; what it gives matters to `prepare_bind`.
    pub(crate) fn with(
        name: &'static str,
        log: &Log,
        answer: impl Fn(What, &Event<'_, Data>) -> Result<(), Refusal> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { name, log: log.clone(), answer: Box::new(answer) })
    }

    fn told(&self, what: What, event: &Event<'_, Data>) -> Result<(), Refusal> {
        self.log.write(format!("{} {what:?} {}", self.name, event.id().0));
        (self.answer)(what, event)
    }
}

impl Subscriber<Data> for Recorder {
    fn alloc(&self, event: &Event<'_, Data>) {
        let _ = self.told(What::Alloc, event);
    }

    fn prepare_bind(&self, event: &Event<'_, Data>) -> Result<(), Refusal> {
        self.told(What::Prepare, event)
    }

    fn commit_bind(&self, event: &Event<'_, Data>) {
        let _ = self.told(What::Commit, event);
    }

    fn abort_bind(&self, event: &Event<'_, Data>) {
        let _ = self.told(What::Abort, event);
    }

    fn unbind(&self, event: &Event<'_, Data>) {
        let _ = self.told(What::Unbind, event);
    }

    fn free(&self, event: &Event<'_, Data>) {
        let _ = self.told(What::Free, event);
    }

    fn set_event(&self, event: &SetEvent<'_>) {
        self.log.write(format!("{} {:?} {}", self.name, event.change(), event.name()));
    }
}

pub(crate) fn space() -> Space<Data> {
    Space::new(Config { width: 6, shards: 2, ..Config::default() }).unwrap()
}

/// Subscribes to the space, with a holder of the subscriber's name.
pub(crate) fn subscribe(
    space: &Space<Data>,
    priority: Priority,
    subscriber: &Arc<Recorder>,
) -> Subscription<Data> {
    let holder = space.holder(subscriber.name).unwrap();
    space.subscribe(&holder, priority, subscriber.clone()).unwrap()
}

/// Does all the work there is.
pub(crate) fn work(space: &Space<Data>) {
    assert_eq!(space.work(1_000), Work::Idle, "more work than there can be");
}

/// Nothing is out, and nothing is missing.
pub(crate) fn assert_idle(space: &Space<Data>) {
    work(space);
    space.release_parked();
    let usage = space.usage();
    assert_eq!((usage.live, usage.parked), (0, 0));
    assert_eq!(usage.unreserved, usage.capacity);
}
