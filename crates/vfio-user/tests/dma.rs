//! Guest memory through the client: requests that go from server to client.

mod common;

use std::thread;
use std::time::{Duration, Instant};

use common::*;
use mem::Gpa;
use vfio_user::{
    Disconnect, Errno, ErrorKind, ProtocolError, SendError, MAX_OUTSTANDING, MAX_TRANSFER,
};

const SHORT: Duration = Duration::from_millis(30);

fn reply(to: &Wire, payload: Vec<u8>) -> Vec<u8> {
    Wire { flags: REPLY, payload, ..to.clone() }.bytes()
}

fn refusal(to: &Wire, errno: u32) -> Vec<u8> {
    Wire { flags: REPLY | ERROR, errno, payload: vec![], ..to.clone() }.bytes()
}

/// Waits for a count to reach a value.
fn counts(rig: &Rig, count: impl Fn(&vfio_user::Counters) -> u64, value: u64) {
    let begun = Instant::now();
    while count(&rig.server.counters()) != value {
        assert!(begun.elapsed() < PATIENCE, "{:?}", rig.server.counters());
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_write_as_it_stands_on_the_wire() {
    let rig = Rig::new();
    let mut client = rig.client();
    let connection = rig.platform.connection();
    // An interrupt message: it returns although nobody reads it yet.
    connection.dma_write(Gpa(0xfee0_1000), &[0x41, 0, 0, 0]).unwrap();
    let message = client.receive().unwrap();
    let golden = [
        0, 0, 12, 0, 36, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // header: DMA_WRITE of 36 bytes
        0, 0x10, 0xe0, 0xfe, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, // address, count of 64 bits
        0x41, 0, 0, 0,
    ];
    assert_eq!(message.bytes(), golden);
    client.send_raw(&reply(&message, vec![]), &[]);
    assert!(client.works());
    let counters = rig.server.counters();
    assert_eq!((counters.dma_writes, counters.dma_write_failures), (1, 0));
}

#[test]
fn a_refused_write_is_counted() {
    let rig = Rig::new();
    let mut client = rig.client();
    rig.platform.connection().dma_write(Gpa(0), &[1]).unwrap();
    let message = client.receive().unwrap();
    client.send_raw(&refusal(&message, 19), &[]);
    counts(&rig, |counters| counters.dma_write_failures, 1);
    assert!(client.works());
}

#[test]
fn long_writes_go_in_parts_the_client_takes() {
    let rig = Rig::new();
    let mut client = rig.stranger();
    let small = b"\0\0\0\0{\"capabilities\":{\"max_data_xfer_size\":1000}}\0";
    assert_eq!(client.call(VERSION, small, &[]).error(), None);
    let data: Vec<u8> = (0..2500u32).map(|byte| byte as u8).collect();
    rig.platform.connection().dma_write(Gpa(0x7000), &data).unwrap();
    let mut got = Vec::new();
    for (address, count) in [(0x7000, 1000), (0x73e8, 1000), (0x77d0, 500)] {
        let message = client.receive().unwrap();
        assert_eq!(message.payload[..16], dma(address, count));
        got.extend_from_slice(&message.payload[16..]);
        client.send_raw(&reply(&message, vec![]), &[]);
    }
    assert_eq!(got, data);
}

/// Answers `count` reads, each with bytes of its own address.
fn answer_reads(mut client: Client, count: usize) -> thread::JoinHandle<Client> {
    thread::spawn(move || {
        for _ in 0..count {
            let request = client.receive().unwrap();
            assert_eq!((request.command, request.flags), (DMA_READ, 0));
            let [address, len] = [0, 8]
                .map(|at| u64::from_le_bytes(request.payload[at..at + 8].try_into().unwrap()));
            let data = (address..address + len).map(|byte| byte as u8);
            let payload = request.payload[..16].iter().copied().chain(data).collect();
            client.send_raw(&reply(&request, payload), &[]);
        }
        client
    })
}

#[test]
fn reads_are_answered() {
    let rig = Rig::new();
    let client = answer_reads(rig.client(), 3);
    let connection = rig.platform.connection();
    let mut data = [0; 8];
    connection.dma_read(Gpa(0x1234), &mut data, PATIENCE).unwrap();
    assert_eq!(data, [0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3a, 0x3b]);
    let mut long = vec![0; MAX_TRANSFER + 3];
    connection.dma_read(Gpa(0), &mut long, PATIENCE).unwrap();
    assert!(long.iter().enumerate().all(|(at, &byte)| byte == at as u8));
    assert!(client.join().unwrap().works());
    assert_eq!(rig.server.counters().dma_reads, 3);
}

#[test]
fn a_refused_read_says_why() {
    let rig = Rig::new();
    let mut client = rig.client();
    let connection = rig.platform.connection();
    for (number, errno) in [(14, Errno::FAULT), (0, Errno::IO), (u32::MAX, Errno::IO)] {
        let client = &mut client;
        let result = thread::scope(|scope| {
            scope.spawn(move || {
                let request = client.receive().unwrap();
                client.send_raw(&refusal(&request, number), &[]);
            });
            connection.dma_read(Gpa(0), &mut [0; 4], PATIENCE)
        });
        assert_eq!(result, Err(SendError::Refused(errno)));
    }
}

#[test]
fn a_late_reply_is_nobodys_but_no_error() {
    let rig = Rig::new();
    let mut client = rig.client();
    let connection = rig.platform.connection();
    let late = connection.dma_read(Gpa(0), &mut [0; 4], SHORT);
    assert_eq!(late, Err(SendError::Deadline));
    let request = client.receive().unwrap();
    client.send_raw(&reply(&request, [dma(0, 4), vec![0; 4]].concat()), &[]);
    assert!(client.works());
    assert_eq!(rig.server.counters().all_errors(), 0);
    // The same reply again is one.
    client.send_raw(&reply(&request, [dma(0, 4), vec![0; 4]].concat()), &[]);
    let error = ProtocolError::UnsolicitedReply(request.id);
    assert_eq!(rig.platform.end(1), Disconnect::Protocol(error));
}

#[test]
fn replies_that_do_not_fit_end_the_connection() {
    let bad: [fn(&Wire) -> Wire; 6] = [
        |request| Wire { payload: vec![], ..request.clone() },
        |request| Wire { payload: [dma(0x1000, 4), vec![0; 3]].concat(), ..request.clone() },
        |request| Wire { payload: [dma(0x1000, 4), vec![0; 5]].concat(), ..request.clone() },
        |request| Wire { payload: [dma(0x1000, 8), vec![0; 8]].concat(), ..request.clone() },
        |request| Wire { payload: [dma(0x1001, 4), vec![0; 4]].concat(), ..request.clone() },
        |request| Wire { command: DMA_WRITE, ..request.clone() },
    ];
    for bad in bad {
        let rig = Rig::new();
        let mut client = rig.client();
        let connection = rig.platform.connection();
        let result = thread::scope(|scope| {
            let client = &mut client;
            scope.spawn(move || {
                let request = client.receive().unwrap();
                client.send_raw(&Wire { flags: REPLY, ..bad(&request) }.bytes(), &[]);
            });
            connection.dma_read(Gpa(0x1000), &mut [0; 4], PATIENCE)
        });
        assert_eq!(result, Err(SendError::Closed), "and the wait is over at once");
        assert!(matches!(
            rig.platform.end(1),
            Disconnect::Protocol(ProtocolError::ReplyContent(_))
        ));
        assert_eq!(rig.errors(ErrorKind::ReplyContent), 1);
    }
}

#[test]
fn a_client_that_never_replies_costs_a_bounded_number_of_requests() {
    let rig = Rig::new();
    let mut client = rig.client();
    let connection = rig.platform.connection();
    for _ in 0..MAX_OUTSTANDING {
        connection.dma_write(Gpa(0), &[0; 4]).unwrap();
        client.receive().unwrap();
    }
    let refused = connection.dma_write(Gpa(0), &[0; 4]);
    assert_eq!(refused, Err(SendError::TooManyOutstanding));
    assert!(client.works(), "which is not the end of it");
}

#[test]
fn a_client_that_never_reads_is_disconnected() {
    let rig = Rig::new();
    let _client = rig.client();
    let connection = rig.platform.connection();
    let begun = Instant::now();
    let data = vec![0; MAX_TRANSFER];
    let result = (0..MAX_OUTSTANDING).try_for_each(|_| connection.dma_write(Gpa(0), &data));
    assert_eq!(result, Err(SendError::Closed));
    assert_eq!(rig.platform.end(1), Disconnect::Stalled);
    assert!(begun.elapsed() < vfio_user::SEND_DEADLINE * 3);
}

#[test]
fn a_handle_outlives_its_connection() {
    let rig = Rig::new();
    let client = rig.client();
    let connection = rig.platform.connection();
    drop(client);
    rig.platform.end(1);
    assert_eq!(connection.dma_write(Gpa(0), &[0]), Err(SendError::Closed));
    let read = connection.dma_read(Gpa(0), &mut [0], PATIENCE);
    assert_eq!(read, Err(SendError::Closed));
    // And never reaches the next client.
    let mut next = rig.client();
    connection.close();
    assert!(next.works());
}

#[test]
fn a_wait_ends_with_the_connection() {
    let rig = Rig::new();
    let client = rig.client();
    let connection = rig.platform.connection();
    let result = thread::scope(|scope| {
        scope.spawn(move || {
            thread::sleep(SHORT);
            drop(client);
        });
        connection.dma_read(Gpa(0), &mut [0; 4], PATIENCE)
    });
    assert_eq!(result, Err(SendError::Closed));
}

#[test]
fn ranges_that_wrap_are_refused() {
    let rig = Rig::new();
    let mut client = rig.client();
    let connection = rig.platform.connection();
    assert_eq!(connection.dma_write(Gpa(u64::MAX), &[0; 2]), Err(SendError::Range));
    let read = connection.dma_read(Gpa(u64::MAX - 2), &mut [0; 4], PATIENCE);
    assert_eq!(read, Err(SendError::Range));
    connection.dma_write(Gpa(u64::MAX), &[0]).unwrap();
    assert_eq!(client.receive().unwrap().payload[..16], dma(u64::MAX, 1));
}
