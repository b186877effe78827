//! Clients that come, go, are refused and are killed, and servers that stop.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use mem::Gpa;
use vfio_user::{
    Connection, Disconnect, DmaMap, DmaRefusal, Platform, SendError, Server, UnmapRange,
};

#[test]
fn only_the_owner_may_connect() {
    let rig = Rig::new();
    let mode = std::fs::metadata(rig.server.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn a_second_client_is_refused_at_once() {
    let rig = Rig::new();
    let mut first = rig.client();
    for refused in 1..=3 {
        assert!(rig.stranger().closed());
        assert_eq!(rig.server.counters().refused, refused);
    }
    assert!(first.works());
    drop(first);
    assert_eq!(rig.platform.end(1), Disconnect::ClosedByClient);
    assert!(rig.client().works());
    assert_eq!(rig.server.counters().connections, 2);
}

#[test]
fn a_client_that_was_killed_can_come_back_at_once() {
    let rig = Rig::new();
    for _ in 0..50 {
        let mut client = rig.client();
        client.write(0, 0, &[1]);
        // Its socket closes with requests of its still unread, as when it is killed.
        client.send(GET_INFO, 0, &words(&[16, 0, 0, 0]), &[]);
    }
    assert_eq!(rig.server.counters().refused, 0);
}

#[test]
fn the_end_of_a_connection_resets_the_function() {
    let rig = Rig::new();
    let mut client = rig.client();
    assert!(rig.function.sink().is_some());
    client.write(0, 0, &[1]);
    drop(client);
    rig.platform.end(1);
    assert!(rig.function.sink().is_none());
    assert_eq!(rig.function.resets.load(Ordering::SeqCst), 1);
    assert_eq!(rig.client().read(0, 0, 1), [0]);
}

#[test]
fn a_stranger_that_leaves_is_no_client() {
    let rig = Rig::new();
    drop(rig.stranger());
    let client = rig.client();
    // The platform hears of a client after the client has its answer.
    rig.platform.connection();
    let log = rig.platform.log.lock().unwrap();
    assert_eq!((log.connections.len(), log.ends.len()), (1, 0));
    drop(client);
}

#[test]
fn stopping_ends_everything() {
    let rig = Rig::new();
    let mut client = rig.client();
    let connection = rig.platform.connection();
    rig.server.stop();
    assert!(client.closed());
    assert_eq!(rig.platform.end(1), Disconnect::Stopped);
    assert_eq!(connection.dma_write(Gpa(0), &[0]), Err(SendError::Closed));
    assert!(UnixStream::connect(rig.server.path()).is_err());
    assert!(!rig.server.path().exists());
    rig.server.stop();
    assert_eq!(rig.platform.log.lock().unwrap().ends.len(), 1);
}

#[test]
fn a_server_without_a_client_stops() {
    drop(Rig::new());
    let rig = Rig::new();
    let stranger = rig.stranger();
    drop(rig);
    drop(stranger);
}

#[test]
fn an_embedder_can_end_a_connection() {
    let rig = Rig::new();
    let mut client = rig.client();
    rig.platform.connection().close();
    assert!(client.closed());
    assert_eq!(rig.platform.end(1), Disconnect::ClosedByEmbedder);
    assert!(rig.client().works());
}

#[test]
fn a_path_that_is_taken_is_an_error() {
    let rig = Rig::new();
    let again = Server::start(rig.server.path(), RegisterFile::new(), Recorder::new());
    assert_eq!(again.unwrap_err().kind(), std::io::ErrorKind::AddrInUse);
    assert!(rig.client().works());
}

#[test]
fn a_device_that_panics_ends_its_connection_only() {
    let rig = Rig::new();
    let other = Rig::new();
    let mut neighbour = other.client();
    let mut client = rig.client();
    let payload = [access(0, PANIC, 1), vec![0]].concat();
    client.send(REGION_WRITE, 0, &payload, &[]);
    assert!(client.closed());
    assert_eq!(rig.platform.end(1), Disconnect::Panicked);
    assert_eq!(rig.server.counters().panics, 1);
    assert!(neighbour.works() && rig.client().works());
}

/// Reads guest memory in the very call that the client waits for.
#[derive(Default)]
struct Impatient {
    connection: Mutex<Option<Connection>>,
    result: Mutex<Option<SendError>>,
}

impl Platform for Impatient {
    fn dma_map(&self, _: DmaMap) -> Result<(), DmaRefusal> {
        let connection = self.connection.lock().unwrap().clone().unwrap();
        let read = connection.dma_read(Gpa(0), &mut [0; 4], PATIENCE);
        *self.result.lock().unwrap() = read.err();
        Ok(())
    }

    fn dma_unmap(&self, _: UnmapRange) -> Result<(), DmaRefusal> {
        Ok(())
    }

    fn connected(&self, connection: Connection) {
        *self.connection.lock().unwrap() = Some(connection);
    }

    fn disconnected(&self, _: Disconnect) {}
}

#[test]
fn waiting_for_a_reply_where_it_cannot_come_is_refused() {
    let (_directory, socket) = place();
    let platform = Arc::new(Impatient::default());
    let server = Server::start(&socket, RegisterFile::new(), platform.clone()).unwrap();
    let mut client = Client::connect(server.path());
    assert_eq!(client.call(VERSION, &[0; 4], &[]).error(), None);
    assert_eq!(client.call(DMA_MAP, &dma_map(3, 0, 0, 1), &[]).error(), None);
    assert_eq!(*platform.result.lock().unwrap(), Some(SendError::OnReaderThread));
}

/// Takes its time to give memory up.
struct Slow(Arc<Recorder>);

impl Platform for Slow {
    fn dma_map(&self, map: DmaMap) -> Result<(), DmaRefusal> {
        self.0.dma_map(map)
    }

    fn dma_unmap(&self, range: UnmapRange) -> Result<(), DmaRefusal> {
        self.0.dma_unmap(range)
    }

    fn connected(&self, connection: Connection) {
        self.0.connected(connection);
    }

    fn disconnected(&self, why: Disconnect) {
        std::thread::sleep(Duration::from_millis(200));
        self.0.disconnected(why);
    }
}

#[test]
fn a_new_client_waits_until_the_last_one_is_cleaned_up() {
    let (_directory, socket) = place();
    let recorder = Recorder::new();
    let platform = Arc::new(Slow(recorder.clone()));
    let server = Server::start(&socket, RegisterFile::new(), platform).unwrap();
    let mut first = Client::connect(server.path());
    assert_eq!(first.call(VERSION, &[0; 4], &[]).error(), None);
    drop(first);
    let mut second = Client::connect(server.path());
    assert_eq!(second.call(VERSION, &[0; 4], &[]).error(), None);
    assert_eq!(recorder.log.lock().unwrap().ends.len(), 1, "the first is gone by then");
    assert_eq!(server.counters().refused, 0);
}
