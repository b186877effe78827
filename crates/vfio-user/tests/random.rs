//! Random bytes, random messages and random cuts of them: no panic, every connection ends or
//! answers, and a neighbour notices nothing. The same numbers every time.

mod common;

use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use common::*;
use vfio_user::ErrorKind;

const ROUNDS: u64 = 1000;
/// What a loaded machine needs at most for them.
const BUDGET: Duration = Duration::from_secs(60);

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn bytes(&mut self, len: u64) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    /// A number that is small, or at an edge, or anything.
    fn number(&mut self) -> u64 {
        match self.below(6) {
            0 => self.below(10),
            1 => self.below(BAR0_SIZE),
            2 => BAR0_SIZE - self.below(16),
            3 => u64::MAX - self.below(16),
            4 => u64::from(u32::MAX) - self.below(16),
            _ => self.next(),
        }
    }

    /// A payload of numbers of 4 and 8 bytes, of about the length of the command's.
    fn payload(&mut self) -> Vec<u8> {
        let mut payload = Vec::new();
        for _ in 0..self.below(7) {
            let number = self.number();
            if self.below(2) == 0 {
                payload.extend((number as u32).to_le_bytes());
            } else {
                payload.extend(number.to_le_bytes());
            }
        }
        if self.below(4) == 0 {
            let len = self.below(40);
            payload.extend(self.bytes(len));
        }
        payload
    }

    /// A well-framed message; mostly requests, mostly known.
    fn message(&mut self) -> Vec<u8> {
        let flags = match self.below(8) {
            0 => NO_REPLY,
            1 if self.below(10) == 0 => REPLY,
            2 if self.below(10) == 0 => self.next() as u32,
            _ => 0,
        };
        let command = self.below(18) as u16;
        let payload = if self.below(3) == 0 { self.valid(command) } else { self.payload() };
        Wire { id: self.next() as u16, command, flags, errno: 0, payload }.bytes()
    }

    /// A payload that the command may well take.
    fn valid(&mut self, command: u16) -> Vec<u8> {
        let count = self.below(64);
        let region = self.below(10) as u32;
        let offset = self.below(0x1100);
        match command {
            DMA_MAP => dma_map(self.below(4) as u32, 0, self.number(), self.number()),
            DMA_UNMAP => dma_unmap(self.below(4) as u32, self.number(), self.number()),
            GET_INFO => words(&[16, 0, 0, 0]),
            GET_REGION_INFO => words(&[32, 0, region, 0, 0, 0, 0, 0]),
            GET_IRQ_INFO => words(&[16, 0, region, 0]),
            SET_IRQS => irq_set(self.below(64) as u32, 2, self.below(45) as u32, count as u32),
            REGION_READ => access(region, offset, count as u32),
            // Past the register that panics on purpose.
            REGION_WRITE => {
                [access(region, PANIC + 1 + offset, count as u32), self.bytes(count)].concat()
            }
            _ => Vec::new(),
        }
    }
}

/// Reads whatever the server says, so that it is never stalled, until it closes.
fn drain(client: &mut Client) -> u64 {
    let mut messages = 0;
    while client.receive().is_some() {
        messages += 1;
    }
    messages
}

#[test]
fn random_input_ends_or_is_answered() {
    let rig = Rig::new();
    let other = Rig::new();
    let mut neighbour = other.client();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let spare = event();
    let begun = Instant::now();
    let mut answers = 0;
    for _ in 0..ROUNDS {
        let mut client = if random.below(8) == 0 { rig.stranger() } else { rig.client() };
        let mut reader = Client::from(client.socket.try_clone().unwrap());
        let reading = std::thread::spawn(move || drain(&mut reader));
        for _ in 0..random.below(200) {
            let bytes = match random.below(100) {
                0 => {
                    let len = 1 + random.below(64);
                    random.bytes(len)
                }
                _ => random.message(),
            };
            let fds = vec![
                spare.as_fd();
                if random.below(10) == 0 { random.below(20) } else { 0 } as usize
            ];
            let sent = if fds.is_empty() {
                client.socket.write_all(&bytes).is_ok()
            } else {
                client.try_send_raw(&bytes, &fds)
            };
            if !sent {
                break;
            }
        }
        // The last message may be cut.
        let last = random.message();
        let cut = random.below(last.len() as u64) as usize;
        let _ = client.socket.write_all(&last[..cut]);
        let _ = client.socket.shutdown(Shutdown::Write);
        answers += reading.join().unwrap();
        assert!(neighbour.works());
    }
    let counters = rig.server.counters();
    assert_eq!((counters.panics, counters.refused), (0, 0), "{counters:?}");
    assert!(begun.elapsed() < BUDGET, "{:?}", begun.elapsed());
    // The input is worth something if it gets everywhere.
    assert!(answers > ROUNDS * 10, "{answers} answers");
    let unreached = [ErrorKind::ReplyContent, ErrorKind::NotAnEventfd];
    for kind in ErrorKind::ALL.iter().filter(|kind| !unreached.contains(kind)) {
        assert_ne!(counters.errors(*kind), 0, "{}", kind.name());
    }
    let counters = other.server.counters();
    assert_eq!((counters.connections, counters.all_errors()), (1, 0));
    assert!(rig.client().works());
}
