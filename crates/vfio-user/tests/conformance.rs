//! What each message does, byte for byte, and what each malformed one does.

mod common;

use std::os::fd::{AsFd, OwnedFd};

use common::*;
use mem::Gpa;
use rustix::fs::{memfd_create, MemfdFlags};
use vfio_user::{Disconnect, ErrorKind, ProtocolError, UnmapRange, MAX_FDS, MAX_MESSAGE};

const CONFIG: u32 = 7;
const MSIX: u32 = 2;
const ERROR_IRQ: u32 = 3;

/// `VFIO_IRQ_SET_*` of linux/vfio.h.
const NONE: u32 = 1;
const BOOL: u32 = 2;
const EVENTFD: u32 = 4;
const MASK: u32 = 8;
const UNMASK: u32 = 16;
const TRIGGER: u32 = 32;

#[test]
fn the_version_reply_is_zero_dot_zero_with_our_limits() {
    let rig = Rig::new();
    let mut client = rig.stranger();
    let json = b"{\"capabilities\":{\"max_msg_fds\":1,\"write_multiple\":true}}\0";
    let reply = client.call(VERSION, &[&[0, 0, 1, 0], &json[..]].concat(), &[]);
    assert_eq!(reply.error(), None);
    let ours = b"\0\0\0\0{\"capabilities\":{\"max_data_xfer_size\":65536,\"max_msg_fds\":16,\
        \"write_multiple\":true}}\0";
    assert_eq!(reply.payload, ours);
    assert!(client.works());
}

#[test]
fn a_reply_as_it_stands_on_the_wire() {
    let rig = Rig::new();
    let mut client = rig.client();
    client.send_raw(&[0x34, 0x12, 4, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &[]);
    client.send_raw(&words(&[16, 0, 0, 0]), &[]);
    let reply = client.receive().unwrap().bytes();
    // Flags: PCI and resettable; 9 regions, 5 kinds of interrupts.
    let golden = [
        0x34, 0x12, 4, 0, 32, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, //
        16, 0, 0, 0, 3, 0, 0, 0, 9, 0, 0, 0, 5, 0, 0, 0,
    ];
    assert_eq!(reply, golden);
}

#[test]
fn regions_and_interrupts_are_described() {
    let rig = Rig::new();
    let mut client = rig.client();
    for index in 0..9u32 {
        let size: u64 = match index {
            0 => BAR0_SIZE,
            CONFIG => 4096,
            _ => 0,
        };
        let flags = if size == 0 { 0 } else { 3 };
        let reply = client.call(GET_REGION_INFO, &words(&[32, 0, index, 0, 0, 0, 0, 0]), &[]);
        let expected = words(&[32, flags, index, 0, size as u32, 0, 0, 0]);
        assert_eq!((reply.error(), reply.payload), (None, expected), "region {index}");
    }
    for index in 0..5u32 {
        let (flags, count) = match index {
            MSIX => (3, u32::from(VECTORS)),
            ERROR_IRQ => (3, 1),
            _ => (0, 0),
        };
        let reply = client.call(GET_IRQ_INFO, &words(&[16, 0, index, 0]), &[]);
        assert_eq!(reply.payload, words(&[16, flags, index, count]), "kind {index}");
    }
    let reply = client.call(GET_REGION_INFO, &words(&[32, 0, 9, 0, 0, 0, 0, 0]), &[]);
    assert_eq!(reply.error(), Some(EINVAL));
    let reply = client.call(GET_IRQ_INFO, &words(&[16, 0, 5, 0]), &[]);
    assert_eq!(reply.error(), Some(EINVAL));
    let reply = client.call(GET_REGION_INFO, &words(&[31, 0, 0, 0, 0, 0, 0, 0]), &[]);
    assert_eq!(reply.error(), Some(EINVAL), "no room for the structure");
}

#[test]
fn regions_are_read_and_written() {
    let rig = Rig::new();
    let mut client = rig.client();
    assert_eq!(client.read(CONFIG, 0, 4), [0x36, 0x1b, 0xfe, 0x00]);
    assert_eq!(client.read(CONFIG, 0, 4096).len(), 4096);
    client.write(CONFIG, 4, &[6, 0]);
    assert_eq!(client.read(CONFIG, 4, 2), [6, 0]);
    client.write(0, BAR0_SIZE - 8, &[1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(client.read(0, BAR0_SIZE - 6, 6), [3, 4, 5, 6, 7, 8]);
    assert_eq!(client.read(0, 0, BAR0_SIZE as u32).len() as u64, BAR0_SIZE);
    assert!(client.read(0, BAR0_SIZE, 0).is_empty());
    assert_eq!(rig.server.counters().all_errors(), 0);
}

#[test]
fn accesses_outside_a_region_are_refused() {
    let rig = Rig::new();
    let mut client = rig.client();
    let outside = [
        (0, BAR0_SIZE - 3, 4),
        (0, u64::MAX, 4),
        (0, 0, BAR0_SIZE as u32 + 1),
        (0, 0, u32::MAX),
        (1, 0, 1),
        (6, 0, 1),
        (CONFIG, 4093, 4),
        (CONFIG, 1 << 32, 4),
        (8, 0, 1),
        (9, 0, 0),
        (u32::MAX, 0, 4),
    ];
    for (region, offset, count) in outside {
        let reply = client.call(REGION_READ, &access(region, offset, count), &[]);
        assert_eq!(reply.error(), Some(EINVAL), "{region} {offset:#x} {count}");
        let data = vec![0xff; count.min(8) as usize];
        let payload = [access(region, offset, data.len() as u32), data].concat();
        if count <= 8 {
            let reply = client.call(REGION_WRITE, &payload, &[]);
            assert_eq!(reply.error(), Some(EINVAL));
        }
    }
    assert_eq!(rig.errors(ErrorKind::Region), 11 + 9);
    assert!(client.read(0, 0, BAR0_SIZE as u32).iter().all(|&byte| byte == 0));
}

#[test]
fn several_writes_in_one_message_are_all_done_or_none() {
    let rig = Rig::new();
    let mut client = rig.stranger();
    let json = b"\0\0\0\0{\"capabilities\":{\"write_multiple\":true}}\0";
    assert_eq!(client.call(VERSION, json, &[]).error(), None);
    let one =
        |offset: u64, count: u32, byte: u8| [access(0, offset, count), vec![byte; 8]].concat();
    let two = 2u64.to_le_bytes().to_vec();

    let good = [two.clone(), one(16, 8, 1), one(20, 2, 2)].concat();
    let reply = client.call(WRITE_MULTI, &good, &[]);
    assert_eq!((reply.error(), reply.payload), (None, two.clone()));
    assert_eq!(client.read(0, 16, 8), [1, 1, 1, 1, 2, 2, 1, 1]);

    for bad in [
        [two.clone(), one(16, 8, 9), one(BAR0_SIZE - 1, 2, 9)].concat(),
        [two.clone(), one(16, 8, 9), one(16, 9, 9)].concat(),
        [two.clone(), one(16, 8, 9)].concat(),
        [two.clone(), one(16, 8, 9), vec![0; 23]].concat(),
        [257u64.to_le_bytes().to_vec(), one(16, 8, 9).repeat(257)].concat(),
        [u64::MAX.to_le_bytes().to_vec(), one(16, 8, 9)].concat(),
        vec![0; 7],
    ] {
        assert_eq!(client.call(WRITE_MULTI, &bad, &[]).error(), Some(EINVAL));
    }
    assert_eq!(client.read(0, 16, 8), [1, 1, 1, 1, 2, 2, 1, 1]);

    drop(client);
    rig.platform.end(1);
    let mut plain = rig.client();
    assert_eq!(plain.call(WRITE_MULTI, &good, &[]).error(), Some(EOPNOTSUPP), "not agreed on");
}

#[test]
fn memory_is_mapped_and_unmapped() {
    let rig = Rig::new();
    let mut client = rig.client();
    let file = memfd_create("ram", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, 0x4000).unwrap();
    let reply = client.call(DMA_MAP, &dma_map(3, 0x1000, 0x10_0000, 0x2000), &[&file]);
    assert_eq!((reply.error(), reply.payload.len()), (None, 0));
    assert_eq!(client.call(DMA_MAP, &dma_map(1, 0, 0, 1), &[]).error(), None);
    assert_eq!(client.call(DMA_MAP, &dma_map(3, 0, u64::MAX, 1), &[]).error(), None);
    let request = dma_unmap(0, 0x10_0000, 0x2000);
    let reply = client.call(DMA_UNMAP, &request, &[]);
    assert_eq!((reply.error(), reply.payload), (None, request));
    assert_eq!(client.call(DMA_UNMAP, &dma_unmap(2, 0, 0), &[]).error(), None);

    let log = rig.platform.log.lock().unwrap();
    let [ram, rom, top] = &log.maps[..] else { panic!("{:?}", log.maps) };
    assert_eq!((ram.range.start, ram.range.last), (Gpa(0x10_0000), Gpa(0x10_1fff)));
    assert_eq!((ram.offset, ram.readable, ram.writable), (0x1000, true, true));
    let (sent, got) = (rustix::fs::fstat(&file), rustix::fs::fstat(ram.fd.as_ref().unwrap()));
    assert_eq!(sent.unwrap().st_ino, got.unwrap().st_ino);
    assert!(rom.fd.is_none() && rom.readable && !rom.writable);
    assert_eq!((top.range.start, top.range.last), (Gpa(u64::MAX), Gpa(u64::MAX)));
    assert_eq!(log.unmaps, [UnmapRange::Range(ram.range), UnmapRange::All]);
}

#[test]
fn bad_maps_are_refused() {
    let rig = Rig::new();
    let mut client = rig.client();
    let file = memfd_create("ram", MemfdFlags::CLOEXEC).unwrap();
    for request in [
        dma_map(0, 0, 0, 0x1000),
        dma_map(7, 0, 0, 0x1000),
        dma_map(3, 0, 0, 0),
        dma_map(3, 0, u64::MAX, 2),
        dma_map(3, u64::MAX, 0, 0x1000),
        [words(&[31, 3]), vec![0; 24]].concat(),
    ] {
        assert_eq!(client.call(DMA_MAP, &request, &[&file]).error(), Some(EINVAL));
    }
    let two = client.call(DMA_MAP, &dma_map(3, 0, 0, 0x1000), &[&file, &file]);
    assert_eq!(two.error(), Some(EINVAL));
    for request in [
        dma_unmap(1, 0, 0x1000),
        dma_unmap(4, 0, 0x1000),
        dma_unmap(0, 0, 0),
        dma_unmap(0, u64::MAX, 2),
        dma_unmap(2, 0, 0x1000),
        dma_unmap(2, 0x1000, 0),
    ] {
        assert_eq!(client.call(DMA_UNMAP, &request, &[]).error(), Some(EINVAL));
    }
    // The embedder's own refusals keep their errno.
    assert_eq!(client.call(DMA_MAP, &dma_map(3, 0, REFUSED, 1), &[]).error(), Some(1));
    assert_eq!(client.call(DMA_UNMAP, &dma_unmap(0, REFUSED, 1), &[]).error(), Some(2));
    assert_eq!(rig.server.counters().dma_refusals, 2);
    assert!(rig.platform.log.lock().unwrap().maps.is_empty());
    assert!(client.works());
}

#[test]
fn interrupts_go_where_they_are_bound() {
    let rig = Rig::new();
    let mut client = rig.client();
    let ring = |client: &mut Client, vector: u8| client.write(0, DOORBELL, &[vector]);
    let events = [event(), event(), event()];
    let fds: Vec<_> = events.iter().collect();
    ring(&mut client, 4);
    assert_eq!(rig.server.counters().interrupts_dropped, 1);

    let bind = irq_set(EVENTFD | TRIGGER, MSIX, 4, 3);
    assert_eq!(client.call(SET_IRQS, &bind, &fds).error(), None);
    ring(&mut client, 5);
    ring(&mut client, 5);
    ring(&mut client, 6);
    assert_eq!(fds.iter().map(|event| signals(event)).collect::<Vec<_>>(), [0, 2, 1]);

    // The error notification can be bound like QEMU does, and is none of these.
    let error = event();
    let bind = irq_set(EVENTFD | TRIGGER, ERROR_IRQ, 0, 1);
    assert_eq!(client.call(SET_IRQS, &bind, &[&error]).error(), None);
    ring(&mut client, 0);
    assert_eq!(signals(&error), 0);

    // Masked, they wait.
    let set = |client: &mut Client, flags, start, count| {
        client.call(SET_IRQS, &irq_set(flags, MSIX, start, count), &[]).error()
    };
    assert_eq!(set(&mut client, NONE | MASK, 4, 2), None);
    ring(&mut client, 4);
    ring(&mut client, 4);
    assert_eq!(signals(&events[0]), 0);
    assert_eq!(set(&mut client, NONE | UNMASK, 4, 2), None);
    assert_eq!((signals(&events[0]), signals(&events[1])), (1, 0));

    // A client can trigger them itself, all or some.
    assert_eq!(set(&mut client, NONE | TRIGGER, 4, 3), None);
    assert_eq!(fds.iter().map(|event| signals(event)).collect::<Vec<_>>(), [1, 1, 1]);
    let some = [irq_set(BOOL | TRIGGER, MSIX, 4, 3), vec![1, 0, 7]].concat();
    assert_eq!(client.call(SET_IRQS, &some, &[]).error(), None);
    assert_eq!(fds.iter().map(|event| signals(event)).collect::<Vec<_>>(), [1, 0, 1]);

    // Eventfds without descriptors unbind, and so does a count of zero.
    assert_eq!(set(&mut client, EVENTFD | TRIGGER, 4, 1), None);
    ring(&mut client, 4);
    ring(&mut client, 5);
    assert_eq!((signals(&events[0]), signals(&events[1])), (0, 1));
    assert_eq!(set(&mut client, NONE | TRIGGER, 0, 0), None);
    ring(&mut client, 5);
    assert_eq!(signals(&events[1]), 0);
}

#[test]
fn bad_interrupt_requests_are_refused() {
    let rig = Rig::new();
    let mut client = rig.client();
    let good = event();
    let vectors = u32::from(VECTORS);
    for request in [
        irq_set(NONE | TRIGGER, MSIX, 0, vectors + 1),
        irq_set(NONE | TRIGGER, MSIX, u32::MAX, 2),
        irq_set(NONE | TRIGGER, MSIX, vectors, 1),
        irq_set(NONE | TRIGGER, 0, 0, 1),
        irq_set(NONE | TRIGGER, 5, 0, 0),
        irq_set(NONE, MSIX, 0, 1),
        irq_set(NONE | MASK | UNMASK, MSIX, 0, 1),
        irq_set(NONE | BOOL | TRIGGER, MSIX, 0, 1),
        irq_set(TRIGGER, MSIX, 0, 1),
        irq_set(EVENTFD | MASK, MSIX, 0, 1),
        irq_set(NONE | TRIGGER | 64, MSIX, 0, 1),
        irq_set(BOOL | TRIGGER, MSIX, 0, 1),
        [irq_set(NONE | TRIGGER, MSIX, 0, 1), vec![1]].concat(),
        words(&[19, NONE | TRIGGER, MSIX, 0, 1]),
    ] {
        assert_eq!(client.call(SET_IRQS, &request, &[]).error(), Some(EINVAL), "{request:?}");
    }
    let three = irq_set(EVENTFD | TRIGGER, MSIX, 0, 3);
    assert_eq!(client.call(SET_IRQS, &three, &[&good]).error(), Some(EINVAL));
    let none = irq_set(NONE | TRIGGER, MSIX, 0, 1);
    assert_eq!(client.call(SET_IRQS, &none, &[&good]).error(), Some(EINVAL));
    // Something that is no eventfd could block whoever raises an interrupt.
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    let two = irq_set(EVENTFD | TRIGGER, MSIX, 0, 2);
    assert_eq!(client.call(SET_IRQS, &two, &[&good, &pipe]).error(), Some(EINVAL));
    assert_eq!(rig.errors(ErrorKind::NotAnEventfd), 1);
    client.write(0, DOORBELL, &[0]);
    assert_eq!(signals(&good), 0, "nothing of it was bound");
}

#[test]
fn an_eventfd_that_is_full_blocks_nobody() {
    let rig = Rig::new();
    let mut client = rig.client();
    let full = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
    rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    let bind = irq_set(EVENTFD | TRIGGER, MSIX, 0, 1);
    assert_eq!(client.call(SET_IRQS, &bind, &[&full]).error(), None);
    client.write(0, DOORBELL, &[0]);
    assert!(client.works());
}

#[test]
fn reset_resets() {
    let rig = Rig::new();
    let mut client = rig.client();
    client.write(0, 0, &[1, 2, 3]);
    client.write(CONFIG, 4, &[6]);
    let reply = client.call(RESET, &[], &[]);
    assert_eq!((reply.error(), reply.payload.len()), (None, 0));
    assert_eq!((client.read(0, 0, 3), client.read(CONFIG, 4, 1)), (vec![0; 3], vec![0]));
    assert_eq!(client.call(RESET, &[0], &[]).error(), Some(EINVAL));
}

#[test]
fn no_reply_means_none_to_errors_too() {
    let rig = Rig::new();
    let mut client = rig.client();
    let write = [access(0, 0, 1), vec![7]].concat();
    client.send(REGION_WRITE, NO_REPLY, &write, &[]);
    client.send(REGION_WRITE, NO_REPLY, &[access(0, BAR0_SIZE, 1), vec![7]].concat(), &[]);
    client.send(99, NO_REPLY, &[1, 2, 3], &[]);
    assert_eq!(client.read(0, 0, 1), [7]);
    assert_eq!(rig.server.counters().failed_requests, 2);
}

/// QEMU probes for commands that are not there, with payloads that must not become headers.
#[test]
fn unknown_commands_are_answered_and_their_payload_skipped() {
    let rig = Rig::new();
    let mut client = rig.client();
    for command in [0, 6, 11, 12, 14, 15, 16, 17, 18, 19, 0xffff] {
        assert_eq!(client.call(command, &[0xee; 333], &[]).error(), Some(EOPNOTSUPP));
    }
    assert_eq!(rig.errors(ErrorKind::UnknownCommand), 11);
    assert!(client.works());
}

#[test]
fn payloads_of_the_wrong_length_are_refused() {
    let rig = Rig::new();
    let mut client = rig.client();
    let good: [(u16, Vec<u8>); 8] = [
        (DMA_MAP, dma_map(3, 0, 0, 1)),
        (DMA_UNMAP, dma_unmap(0, 0, 1)),
        (GET_INFO, words(&[16, 0, 0, 0])),
        (GET_REGION_INFO, words(&[32, 0, 0, 0, 0, 0, 0, 0])),
        (GET_IRQ_INFO, words(&[16, 0, 0, 0])),
        (SET_IRQS, irq_set(NONE | TRIGGER, MSIX, 0, 1)),
        (REGION_READ, access(0, 0, 1)),
        (REGION_WRITE, [access(0, 0, 1), vec![0]].concat()),
    ];
    let mut refused = 0;
    for (command, payload) in good {
        let long = [payload.clone(), vec![0; 4]].concat();
        for bad in [&payload[..payload.len() - 1], &payload[..payload.len() / 2], &[], &long] {
            assert_eq!(client.call(command, bad, &[]).error(), Some(EINVAL), "{command}");
            refused += 1;
        }
        assert_eq!(client.call(command, &payload, &[]).error(), None, "{command}");
    }
    assert_eq!(rig.errors(ErrorKind::PayloadSize), refused);
}

#[test]
fn descriptors_nobody_asked_for_are_closed() {
    let rig = Rig::new();
    let mut client = rig.client();
    let (here, there) = rustix::pipe::pipe().unwrap();
    let payload = words(&[16, 0, 0, 0]);
    assert_eq!(client.call(GET_INFO, &payload, &[&there]).error(), Some(EINVAL));
    assert_eq!(rig.errors(ErrorKind::Descriptors), 1);
    // The other end of the pipe reads its end only if the server's copy is gone.
    drop(there);
    let mut byte = [0];
    assert_eq!(rustix::io::read(&here, &mut byte), Ok(0));
}

#[test]
fn descriptors_stay_with_their_message() {
    let rig = Rig::new();
    let mut client = rig.client();
    let files: Vec<_> = (0..4).map(|_| memfd_create("ram", MemfdFlags::CLOEXEC).unwrap()).collect();
    // Sent without waiting, so that all are in the socket at once, some without a descriptor.
    for (index, file) in files.iter().enumerate() {
        let at = 0x1000 * index as u64;
        client.send(DMA_MAP, 0, &dma_map(3, 0, at, 0x1000), &[file]);
        client.send(DMA_MAP, 0, &dma_map(3, 0, 0x10_0000 + at, 0x1000), &[]);
    }
    for _ in 0..8 {
        assert_eq!(client.receive().unwrap().error(), None);
    }
    let log = rig.platform.log.lock().unwrap();
    let inode = |fd: std::os::fd::BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_ino;
    for (pair, file) in log.maps.chunks(2).zip(&files) {
        assert_eq!(inode(pair[0].fd.as_ref().unwrap().as_fd()), inode(file.as_fd()));
        assert!(pair[1].fd.is_none());
    }
}

/// Sends, and expects the connection to end for this reason, which is counted.
fn ends(send: impl FnOnce(&mut Client), error: ProtocolError) {
    let rig = Rig::new();
    let mut client = rig.client();
    send(&mut client);
    assert_eq!(rig.platform.end(1), Disconnect::Protocol(error));
    assert_eq!(rig.errors(error.kind()), 1);
    assert!(client.closed());
    assert!(rig.client().works(), "the next client is served");
}

#[test]
fn broken_framing_ends_the_connection() {
    let header = |size: u32, flags: u32| {
        let mut bytes = Wire { id: 9, command: GET_INFO, flags, errno: 0, payload: vec![] }.bytes();
        bytes[4..8].copy_from_slice(&size.to_le_bytes());
        bytes
    };
    for size in [0, 15, MAX_MESSAGE as u32 + 1, u32::MAX] {
        ends(|client| client.send_raw(&header(size, 0), &[]), ProtocolError::MessageSize(size));
    }
    for flags in [2, 0xf, 0x17] {
        ends(|client| client.send_raw(&header(16, flags), &[]), ProtocolError::MessageType(flags));
    }
    let close = |client: &mut Client| client.socket.shutdown(std::net::Shutdown::Write).unwrap();
    ends(
        |client| {
            client.send_raw(&header(32, 0)[..7], &[]);
            close(client);
        },
        ProtocolError::Truncated { wanted: 16, got: 7 },
    );
    ends(
        |client| {
            client.send_raw(&header(32, 0), &[]);
            client.send_raw(&[0; 5], &[]);
            close(client);
        },
        ProtocolError::Truncated { wanted: 16, got: 5 },
    );
    let reply = Wire { id: 77, command: DMA_WRITE, flags: REPLY, errno: 0, payload: vec![] };
    ends(|client| client.send_raw(&reply.bytes(), &[]), ProtocolError::UnsolicitedReply(77));
}

#[test]
fn floods_of_descriptors_end_the_connection() {
    let one = event();
    for count in [MAX_FDS + 1, 100, 253] {
        let fds = vec![one.as_fd(); count];
        let message =
            Wire { id: 1, command: DMA_MAP, flags: 0, errno: 0, payload: dma_map(3, 0, 0, 1) };
        ends(|client| client.send_raw(&message.bytes(), &fds), ProtocolError::TooManyDescriptors);
    }
    // Also if they come bit by bit with one message.
    let header = Wire { id: 1, command: DMA_MAP, flags: 0, errno: 0, payload: vec![0; 32] }.bytes();
    let fds = vec![one.as_fd(); 6];
    ends(
        |client| header.chunks(16).for_each(|part| client.send_raw(part, &fds)),
        ProtocolError::TooManyDescriptors,
    );
}

#[test]
fn a_message_may_come_in_pieces() {
    let rig = Rig::new();
    let mut client = rig.client();
    let message =
        Wire { id: 5, command: GET_INFO, flags: 0, errno: 0, payload: words(&[16, 0, 0, 0]) };
    for byte in message.bytes() {
        client.send_raw(&[byte], &[]);
    }
    assert_eq!(client.receive().unwrap().id, 5);
}

/// Sends this first, which is answered with an error and ends the connection.
fn begins(command: u16, payload: &[u8], fds: &[&OwnedFd], error: ProtocolError) {
    let rig = Rig::new();
    let mut client = rig.stranger();
    client.send(command, 0, payload, fds);
    assert_eq!(client.receive().unwrap().error(), Some(EINVAL));
    assert!(client.closed());
    let mut next = rig.client();
    assert!(next.works(), "the next client is served");
    assert_eq!(rig.errors(error.kind()), 1);
    let log = rig.platform.log.lock().unwrap();
    assert_eq!((log.connections.len(), log.ends.len()), (1, 0), "only the second was a client");
}

#[test]
fn the_version_comes_first() {
    for command in [DMA_MAP, GET_INFO, REGION_WRITE, RESET, 0, 99] {
        begins(command, &[], &[], ProtocolError::BeforeVersion(command));
    }
    begins(VERSION, &[1, 0, 0, 0], &[], ProtocolError::MajorVersion(1));
    for data in [
        &b""[..],
        b"\0\0\0",
        b"\0\0\0\0{}",
        b"\0\0\0\0{\0",
        b"\0\0\0\0[]\0",
        b"\0\0\0\0{\"capabilities\":[]}\0",
    ] {
        begins(VERSION, data, &[], ProtocolError::VersionData);
    }
    begins(VERSION, &[0; 4], &[&event()], ProtocolError::VersionData);

    let rig = Rig::new();
    let mut client = rig.client();
    assert_eq!(client.call(VERSION, &[0; 4], &[]).error(), Some(EINVAL));
    assert_eq!(rig.errors(ErrorKind::VersionAgain), 1);
    assert!(client.works());
}
