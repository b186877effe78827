//! Engines on threads of their own, against each other, commands and resets.

mod rig;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use dsa::model::{Engine, Ran};
use dsa::spec::*;
use iommu::{PageRequest, PageResponse, ResponseCode, Vm};
use mem::{Gpa, GuestMemory};
use pci::Function;
use rig::paged::*;
use rig::*;

use CommandCode as Code;

/// No wait in here takes longer, or something hangs.
const DEADLINE: Duration = Duration::from_secs(20);
/// Steps that a worker does before it looks whether it is to stop.
const BUDGET: usize = 64;

/// Worker threads as an embedder has them: each sleeps until its engine is woken.
struct Workers {
    stop: Arc<AtomicBool>,
    bells: Vec<Arc<(Mutex<bool>, Condvar)>>,
    threads: Vec<thread::JoinHandle<Engine>>,
}

impl Workers {
    fn start(rig: &mut Rig) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let bells: Vec<_> =
            rig.engines.iter().map(|_| Arc::new((Mutex::new(true), Condvar::new()))).collect();
        let ring = bells.clone();
        rig.device.set_waker(Some(Arc::new(move |engine: usize| {
            let (rung, bell) = &*ring[engine];
            *rung.lock().unwrap() = true;
            bell.notify_one();
        })));
        let run = |(mut engine, bell): (Engine, &Arc<(Mutex<bool>, Condvar)>)| {
            let (stop, bell) = (stop.clone(), bell.clone());
            thread::spawn(move || {
                while !stop.load(Ordering::Acquire) {
                    if engine.run(BUDGET) == Ran::Idle {
                        let mut rung = bell.0.lock().unwrap();
                        while !*rung {
                            rung = bell.1.wait(rung).unwrap();
                        }
                        *rung = false;
                    }
                }
                engine
            })
        };
        let threads = rig.engines.drain(..).zip(&bells).map(run).collect();
        Self { stop, bells, threads }
    }

    fn join(self, rig: &mut Rig) {
        self.stop.store(true, Ordering::Release);
        for bell in &self.bells {
            *bell.0.lock().unwrap() = true;
            bell.1.notify_one();
        }
        rig.engines = self.threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    }
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < DEADLINE, "{what}");
        thread::yield_now();
    }
}

fn status(rig: &Rig, record: u64) -> u8 {
    // As software polls it: the first word, with acquire ordering.
    rig.memory.load_u64(Gpa(Rig::record_at(record).0)).unwrap() as u8
}

/// Two queues in two groups, each with an engine of its own, and a storm of checked copies in each.
#[test]
fn two_engines_at_once() {
    let mut rig = Rig::new();
    rig.enable_function();
    for group in 0..2 {
        rig.configure(group, group, 16, user_mode(true).with_pasid(PASID));
        rig.set_engines(group, 1 << group);
    }
    rig.enable(&[0, 1]);
    let workers = Workers::start(&mut rig);
    let rig_ref = &rig;
    thread::scope(|scope| {
        for wq in 0..2u8 {
            scope.spawn(move || {
                let base = FLAT + u64::from(wq) * 0x40_0000;
                let record = u64::from(wq);
                for round in 0..20u64 {
                    let len = 1 + (round * 7919 % 0x2_0000) as usize;
                    let data = noise(round + u64::from(wq) * 1000, len);
                    rig_ref.fill(base, &data);
                    rig_ref.memory.store_u64(Gpa(Rig::record_at(record).0), 0).unwrap();
                    let copy = Descriptor::new(memory_move(base, base + 0x20_0001, len as u32))
                        .with_record(Rig::record_at(record))
                        .with_flags(Flags::REQUEST_RECORD);
                    rig_ref.post(wq, &copy);
                    wait("a copy", || status(rig_ref, record) != 0);
                    assert_eq!(status(rig_ref, record), 1);
                    assert!(rig_ref.bytes(base + 0x20_0001, len) == data, "round {round}");
                }
            });
        }
    });
    workers.join(&mut rig);
    assert_eq!(rig.device.counters().ended(Status::Success), 40);
}

/// All engines on one queue: whatever the order, each descriptor is done exactly once.
#[test]
fn four_engines_on_one_queue() {
    let mut rig = Rig::dedicated();
    let workers = Workers::start(&mut rig);
    for round in 0..20u64 {
        rig.clear_records();
        for index in 0..16u64 {
            let fill = Operation::Fill {
                pattern: round << 32 | index,
                destination: Iova(FLAT + index * 0x1_0000),
                size: 0x1_0000,
            };
            let fill = Descriptor::new(fill).with_record(Rig::record_at(index));
            rig.post(0, &fill.with_flags(Flags::REQUEST_RECORD));
        }
        let drain = Operation::Drain { readback1: Iova(0), readback2: Iova(0) };
        let drain = Descriptor::new(drain).with_record(Rig::record_at(16));
        wait("room for the drain", || rig.wq(0).occupancy.occupancy() < 16);
        rig.post(0, &drain.with_flags(Flags::REQUEST_RECORD));
        wait("the drain", || status(&rig, 16) != 0);
        for index in 0..16 {
            assert_eq!(status(&rig, index), 1, "before the drain");
            let word = rig.memory.load_u64(Gpa(FLAT + index * 0x1_0000 + 0xfff8)).unwrap();
            assert_eq!(word, round << 32 | index);
        }
    }
    workers.join(&mut rig);
    assert_eq!(rig.device.counters().descriptors, 20 * 17);
}

/// Once an abort, a queue reset, a device reset or a disable is complete, nothing of what was
/// submitted before writes any more.
#[test]
fn nothing_is_written_after_a_command_is_complete() {
    let mut rig = Rig::dedicated();
    let workers = Workers::start(&mut rig);
    let commands = [
        (Code::AbortAll, 0),
        (Code::ResetWq, 1),
        (Code::ResetDevice, 0),
        (Code::DisableDevice, 0),
        (Code::DrainPasid, PASID),
        (Code::AbortPasid, PASID),
    ];
    for round in 0..36u64 {
        let (code, operand) = commands[round as usize % commands.len()];
        for index in 0..8u64 {
            let to = Iova(FLAT + index * 0x8_0000);
            let fill =
                Operation::Fill { pattern: round << 8 | 0xff, destination: to, size: 0x8_0000 };
            rig.post(0, &Descriptor::new(fill));
        }
        for _ in 0..round * 50 {
            std::hint::spin_loop();
        }
        rig.start(code, operand);
        wait("the command", || !rig.command_status().active());
        assert_eq!(rig.command_status().into_bits(), 0, "{code:?}");
        // Whatever was written stays as it is, or becomes this.
        rig.fill(FLAT, &[0xa5; 0x1000]);
        let before = rig.bytes(FLAT, 0x40_0000);
        thread::sleep(Duration::from_micros(300));
        let after = rig.bytes(FLAT, 0x40_0000);
        assert!(before == after, "{code:?} was complete, and something was written");
        if rig.state().state() == DeviceState::Disabled
            || rig.wq(0).occupancy.state() == WqState::Disabled
        {
            rig.device.reset();
            rig.enable_function();
            rig.configure(0, 0, 16, user_mode(true).with_pasid(PASID));
            rig.set_engines(0, 0xf);
            rig.enable(&[0]);
        }
    }
    workers.join(&mut rig);
}

/// Resets, halts and register accesses from one thread, submissions from another, engines at work.
#[test]
fn resets_in_a_storm() {
    let mut rig = Rig::dedicated();
    let workers = Workers::start(&mut rig);
    let rig_ref = &rig;
    let over = &AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(move || {
            while !over.load(Ordering::Acquire) {
                let copy = memory_move(FLAT, FLAT + 0x20_0000, 0x8_0000);
                rig_ref.post(0, &Descriptor::new(copy));
            }
        });
        for round in 0..100 {
            // Something is under way each time, however the machine schedules the threads. No
            // panic in here: the submitter would never be told that it is over.
            let (before, start) = (rig_ref.device.counters().descriptors, Instant::now());
            while rig_ref.device.counters().descriptors == before && start.elapsed() < DEADLINE {
                thread::yield_now();
            }
            match round % 4 {
                0 => rig_ref.device.reset(),
                1 => rig_ref.device.config_write(0x226, &[0, 0]),
                2 => rig_ref.start(Code::DisableDevice, 0),
                _ => rig_ref.start(Code::AbortWq, 1),
            }
            thread::yield_now();
            rig_ref.device.reset();
            rig_ref.enable_function();
            rig_ref.configure(0, 0, 16, user_mode(true).with_pasid(PASID));
            rig_ref.set_engines(0, 0xf);
            rig_ref.enable(&[0]);
        }
        over.store(true, Ordering::Release);
    });
    rig.start(Code::DrainAll, 0);
    wait("the last drain", || !rig.command_status().active());
    workers.join(&mut rig);
    let counters = rig.device.counters();
    // How many of them were abandoned is the scheduler's choice; that they are is tested by steps.
    assert!(counters.descriptors > 0, "{counters:?}");
}

/// Engines that wait for pages, a guest that pages, submitters and commands, each on its own thread.
#[test]
fn pages_come_while_everything_runs() {
    let mut paged = Paged::new(2);
    paged.enable_function(4);
    for wq in 0..2 {
        paged.rig.configure(wq, 0, 16, blocking(true).with_pasid(wq as u32 + 1));
    }
    paged.rig.set_engines(0, 0xf);
    paged.rig.enable(&[0, 1]);
    let workers = Workers::start(&mut paged.rig);
    let (device, memory) = (paged.rig.device.clone(), paged.rig.memory.clone());
    let running = AtomicUsize::new(2);
    thread::scope(|scope| {
        for wq in 0..2u8 {
            let (device, memory, running) = (&device, &memory, &running);
            scope.spawn(move || {
                for round in 0..24u64 {
                    let from = FLAT + u64::from(wq) * 0x40_0000 + round * 0x2_0000;
                    let (to, record) = (from + 0x1_0000, Rig::record_at(u64::from(wq)));
                    let data = noise(round, 1 + (round * 7919 % 0x6000) as usize);
                    memory.write(Gpa(from), &data).unwrap();
                    memory.store_u64(Gpa(record.0), 0).unwrap();
                    let copy = memory_move(from, to, data.len() as u32);
                    let copy = recorded(copy, u64::from(wq));
                    device.bar_write(2, Portal::LIMITED.offset(wq), &copy.to_bytes());
                    wait("a copy", || memory.load_u64(Gpa(record.0)).unwrap() != 0);
                    let mut copied = vec![0; data.len()];
                    memory.read(Gpa(to), &mut copied).unwrap();
                    assert!(copied == data, "queue {wq}, round {round}");
                }
                running.fetch_sub(1, Ordering::Release);
            });
        }
        // Drains come to an end, and aborts of a PASID that nobody has end at once.
        let (commands, running) = (&device, &running);
        scope.spawn(move || {
            let command = |bits: u32| commands.bar_write(0, 0xa0, &bits.to_le_bytes());
            let mut status = [0; 4];
            while running.load(Ordering::Acquire) != 0 {
                command((Code::AbortPasid as u32) << 20 | 77);
                commands.bar_read(0, 0xa8, &mut status);
                assert_eq!(status, [0; 4]);
                command((Code::DrainWq as u32) << 20 | 3);
                wait("a drain", || {
                    commands.bar_read(0, 0xa8, &mut status);
                    status == [0; 4]
                });
            }
        });
        let start = Instant::now();
        while running.load(Ordering::Acquire) != 0 {
            assert!(start.elapsed() < DEADLINE, "copies");
            match paged.vm.take_page_request() {
                Some(request) => paged.bring(&request),
                None => thread::yield_now(),
            }
        }
    });
    workers.join(&mut paged.rig);
    let counters = device.counters();
    assert_eq!((counters.ended(Status::Success), counters.blocked), (48, 0));
    assert_eq!(counters.page_requests, counters.page_responses_success);
}

/// Function-level resets while pages are asked for and answered: nothing of before is answered after.
#[test]
fn resets_while_pages_come() {
    let mut paged = Paged::dedicated(32);
    let workers = Workers::start(&mut paged.rig);
    let vm = paged.vm.clone();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                let Some(PageRequest { requester, pasid, group, .. }) = vm.take_page_request()
                else {
                    thread::yield_now();
                    continue;
                };
                // It may be forgotten by now.
                let code = ResponseCode::Success;
                let response = PageResponse { requester, pasid, group, code };
                let _ = vm.respond_page_request(response);
            }
        });
        for round in 0..100u64 {
            for index in 0..12 {
                let copy = memory_move(FLAT + index * 0x1000, DESTINATION, 16);
                paged.rig.post(0, &recorded(copy, index));
            }
            let before = paged.rig.device.counters().page_requests;
            wait("a request", || paged.rig.device.counters().page_requests > before + round % 7);
            paged.rig.device.reset();
            let none = |index| paged.rig.record(index).status.is_pending();
            assert!((0..12).all(none), "no page ever comes");
            paged.bring_up(32);
        }
        paged.rig.device.reset();
        wait("an end", || paged.vm.page_request_counters().outstanding == 0);
        done.store(true, Ordering::Release);
    });
    workers.join(&mut paged.rig);
    assert_eq!(paged.rig.device.counters().blocked, 0);
}
