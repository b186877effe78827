//! The three forms of one fixed snapshot, and the messages that carry it.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use super::snapshot::{
    End, Guest, Inspections, Numbering, PageGroup, PasidEntry, PasidTable, Space, StageTwo, State,
};
use super::wire::{
    send, Answer, LineError, Lines, Refusal, Reply, Request, MAX_REQUEST, SOCKET, VERSION,
};
use super::*;

const SOON: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(10);

fn granted(guest: u32, host: u32, state: State, age_ms: u64) -> PasidEntry {
    let host = Some(host);
    let age_ms = Some(age_ms);
    PasidEntry { guest, host, state, bound: false, age_ms, domain: None, holders: Vec::new() }
}

fn unanswered(pasid: Option<u32>, group: u16, age_ms: Option<u64>) -> PageGroup {
    PageGroup { device: "00:10.0".to_owned(), pasid, group, age_ms }
}

fn fixed() -> Snapshot {
    let identity = Guest {
        name: "guest0".to_owned(),
        connected: true,
        lives: 2,
        quota: 1024,
        numbering: Numbering::Identity,
        vcmd: Some("3.0".to_owned()),
        pasid_table: PasidTable::Host,
        stage_two: StageTwo::Shuffled,
        live: 1,
        parked: 1,
        bound: 1,
        last_end: Some(End { pasids: 5, reclaim_us: 310, took_us: 25_400 }),
        pasids: vec![
            PasidEntry {
                bound: true,
                domain: Some(0x23),
                holders: ["guest", "iotlb", "iommu"].map(str::to_owned).into(),
                ..granted(0x11, 0x11, State::Live, 72_400)
            },
            PasidEntry {
                holders: vec!["iotlb".to_owned()],
                ..granted(0x12, 0x12, State::Parked, 1_250)
            },
        ],
        pasids_left_out: 0,
        page_groups: vec![unanswered(Some(0x11), 7, Some(29_500)), unanswered(None, 511, None)],
        page_groups_left_out: 12,
        counters: BTreeMap::from([
            ("descriptors".to_owned(), 40_612),
            ("descriptors_blocked".to_owned(), 14),
            ("faults".to_owned(), 4),
            ("waits_held".to_owned(), 0),
        ]),
    };
    let private = Guest {
        name: "guest1".to_owned(),
        connected: false,
        lives: 0,
        quota: 16,
        numbering: Numbering::Private,
        vcmd: Some("3.3".to_owned()),
        pasid_table: PasidTable::Guest,
        stage_two: StageTwo::Identity,
        live: 0,
        parked: 0,
        bound: 0,
        last_end: None,
        pasids: Vec::new(),
        pasids_left_out: 0,
        page_groups: Vec::new(),
        page_groups_left_out: 0,
        counters: BTreeMap::from([("descriptors".to_owned(), 0), ("faults".to_owned(), 0)]),
    };
    let own = Guest {
        name: "guest2".to_owned(),
        connected: true,
        lives: 1,
        quota: 0,
        numbering: Numbering::Identity,
        vcmd: None,
        pasid_table: PasidTable::Guest,
        stage_two: StageTwo::None,
        live: 0,
        parked: 0,
        bound: 0,
        last_end: None,
        pasids: vec![PasidEntry {
            guest: 1,
            host: None,
            state: State::Own,
            bound: false,
            age_ms: None,
            domain: Some(7),
            holders: Vec::new(),
        }],
        pasids_left_out: 3,
        page_groups: Vec::new(),
        page_groups_left_out: 0,
        counters: BTreeMap::from([("descriptors".to_owned(), 12)]),
    };
    Snapshot {
        server: "0.1.0".to_owned(),
        uptime_ms: 3_725_000,
        inspections: Inspections { answers: 17, refusals: 1 },
        space: Space { capacity: 0xf_ffff, reserved: 1040, live: 1, parked: 1 },
        guests: vec![identity, private, own],
    }
}

#[test]
fn the_tables_are_these() {
    let text = render(fixed(), Form::Text { width: 100 });
    assert_eq!(text, include_str!("golden/view.txt"), "\n{text}");
}

#[test]
fn the_tables_of_one_guest_have_its_counters() {
    let mut one = fixed();
    one.guests.truncate(1);
    let text = render(one, Form::Text { width: 100 });
    assert_eq!(text, include_str!("golden/one.txt"), "\n{text}");
}

#[test]
fn the_json_is_this() {
    let line = render(fixed(), Form::Json);
    assert_eq!(line.matches('\n').count(), 1, "one line");
    let golden = include_str!("golden/snapshot.json");
    // The file is the line with spaces for people.
    let compact: String = golden.lines().map(str::trim_start).collect();
    assert_eq!(line, compact.replace("\": ", "\":") + "\n");
    assert_eq!(serde_json::from_str::<Snapshot>(&line).unwrap(), fixed());
}

#[test]
fn the_metrics_are_these() {
    let text = render(fixed(), Form::Metrics);
    assert_eq!(text, include_str!("golden/metrics.txt"), "\n{text}");
}

#[test]
fn a_hostile_server_moves_no_cursor_and_forges_no_metric() {
    let mut snapshot = fixed();
    snapshot.guests.truncate(1);
    snapshot.server = "1\x1b[2J".to_owned();
    let guest = &mut snapshot.guests[0];
    guest.name = "a\"} 7\nvsva_forged 1\x1b[2J".to_owned();
    guest.vcmd = Some("\x07".to_owned());
    guest.pasids[0].holders[0] = "\r".to_owned();
    guest.page_groups[0].device = "\x1b[H".to_owned();
    guest.counters.insert("x\ny 1".to_owned(), 1);
    let text = render(snapshot.clone(), Form::Text { width: 100 });
    assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    let metrics = render(snapshot, Form::Metrics);
    let forged = |line: &str| line.starts_with("vsva_forged") || line.starts_with("y 1");
    assert!(!metrics.lines().any(forged), "{metrics}");
}

#[test]
fn a_long_view_is_cut_to_the_screen() {
    let text = "1\n2\n3\n4\n5\n";
    assert_eq!(in_place(text, 7, true).matches('\n').count(), 5);
    assert_eq!(in_place(text, 6, true).matches('\n').count(), 5, "one line is the cursor's");
    let cut = in_place(text, 5, false);
    assert_eq!(cut.matches('\n').count(), 4);
    assert!(cut.contains("3\x1b[K\n… 2 more lines"), "{cut:?}");
    assert_eq!(in_place(text, 0, false).matches('\n').count(), 1);
}

#[test]
fn lines_come_in_pieces_and_together() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut lines = Lines::new(ours, 8);
    theirs.write_all(b"on").unwrap();
    let late = theirs.try_clone().unwrap();
    let writer = thread::spawn(move || {
        thread::sleep(SOON);
        (&late).write_all(b"e\ntwo\n7654321\n87654321\n").unwrap();
    });
    assert_eq!(lines.next(LONG).unwrap(), b"one");
    assert_eq!(lines.next(LONG).unwrap(), b"two");
    assert_eq!(lines.next(LONG).unwrap(), b"7654321", "as long as a line may be");
    assert!(matches!(lines.next(LONG), Err(LineError::TooLong { limit: 8 })));
    writer.join().unwrap();
}

#[test]
fn a_line_without_an_end_is_read_no_further_than_its_limit() {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let writer = thread::spawn(move || {
        // Fails when the reader has had enough.
        let chunk = vec![b'x'; 1 << 20];
        (0..1000).take_while(|_| theirs.write_all(&chunk).is_ok()).count()
    });
    let mut lines = Lines::new(ours, MAX_REQUEST);
    assert!(matches!(lines.next(LONG), Err(LineError::TooLong { limit: MAX_REQUEST })));
    drop(lines);
    assert!(writer.join().unwrap() < 1000);
}

#[test]
fn silence_and_the_end_are_told_apart() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut lines = Lines::new(ours, 8);
    assert!(matches!(lines.next(SOON), Err(LineError::TooSlow)));
    drop(theirs);
    assert!(matches!(lines.next(LONG), Err(LineError::Closed)));
}

/// A server that reads one request and answers with these bytes.
fn answering(bytes: Vec<u8>) -> (tempfile::TempDir, thread::JoinHandle<Request>) {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join(SOCKET)).unwrap();
    let server = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut lines = Lines::new(stream, MAX_REQUEST);
        let request = serde_json::from_slice(&lines.next(LONG).unwrap()).unwrap();
        let _ = lines.stream().write_all(&bytes);
        request
    });
    (dir, server)
}

fn reply(version: u32, answer: Answer) -> Vec<u8> {
    let mut line = serde_json::to_vec(&Reply { version, answer }).unwrap();
    line.push(b'\n');
    line
}

#[test]
fn a_snapshot_crosses() {
    let (dir, server) = answering(reply(VERSION, Answer::Snapshot(Box::new(fixed()))));
    let snapshot = Client::connect(dir.path()).unwrap().ask(Some("guest1")).unwrap();
    assert_eq!(snapshot, fixed());
    let asked = Request { version: VERSION, guest: Some("guest1".to_owned()) };
    assert_eq!(server.join().unwrap(), asked);
}

#[test]
fn the_messages_are_these() {
    let request = Request { version: 1, guest: None };
    assert_eq!(serde_json::to_string(&request).unwrap(), r#"{"version":1,"guest":null}"#);
    let refused = |refusal| String::from_utf8(reply(1, Answer::Refused(refusal))).unwrap();
    assert_eq!(
        refused(Refusal::Version { got: 2, known: 1 }),
        "{\"version\":1,\"refused\":{\"version\":{\"got\":2,\"known\":1}}}\n"
    );
    assert_eq!(refused(Refusal::Malformed), "{\"version\":1,\"refused\":\"malformed\"}\n");
}

#[test]
fn what_a_server_may_say_instead() {
    let busy = Refusal::Busy { limit: 8 };
    type Expected = fn(&Error) -> bool;
    let cases: [(Vec<u8>, Expected); 6] = [
        (reply(VERSION, Answer::Refused(busy)), |error| {
            matches!(error, Error::Refused(Refusal::Busy { limit: 8 }))
        }),
        (b"{\"version\":9,\"unheard\":[]}\n".to_vec(), |error| {
            matches!(error, Error::Version { got: 9 })
        }),
        (b"{\"version\":1}\n".to_vec(), |error| matches!(error, Error::Garbled(_))),
        (b"SSH-2.0\n".to_vec(), |error| matches!(error, Error::Garbled(_))),
        (vec![b'['; 1 << 16].into_iter().chain(*b"\n").collect(), |error| {
            matches!(error, Error::Garbled(_))
        }),
        (Vec::new(), |error| matches!(error, Error::Line(LineError::Closed))),
    ];
    for (bytes, expected) in cases {
        let (dir, server) = answering(bytes);
        let error = Client::connect(dir.path()).unwrap().ask(None).unwrap_err();
        assert!(expected(&error), "{error:?}");
        server.join().unwrap();
    }
}

#[test]
fn no_server_is_said_so() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = |error: &Error| matches!(error, Error::NoServer { .. });
    assert!(Client::connect(dir.path()).err().is_some_and(|error| nobody(&error)));
    // A server that was killed leaves its socket.
    drop(UnixListener::bind(dir.path().join(SOCKET)).unwrap());
    assert!(Client::connect(dir.path()).err().is_some_and(|error| nobody(&error)));
}

#[test]
fn a_peer_that_does_not_read_ends_the_sending() {
    let (mut ours, _theirs) = UnixStream::pair().unwrap();
    let begun = Instant::now();
    let error = send(&mut ours, &"x".repeat(8 << 20)).unwrap_err();
    assert!(matches!(error.kind(), std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock));
    assert!(begun.elapsed() < wire::MESSAGE_LIMIT + LONG);
}

#[test]
fn one_view_is_shown_or_many_until_the_server_ends() {
    let shown = |watch| {
        // Answers one request and is gone.
        let (dir, server) = answering(reply(VERSION, Answer::Snapshot(Box::new(fixed()))));
        let mut out = Vec::new();
        let look = || Look { form: Form::Json, watch };
        let outcome = run(dir.path(), None, look, &Stop::default(), &mut out);
        server.join().unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), render(fixed(), Form::Json));
        outcome
    };
    assert!(shown(None).is_ok());
    let ended = shown(Some(Watch::Stream)).unwrap_err();
    assert!(matches!(ended, Error::Connection(_) | Error::Line(LineError::Closed)), "{ended:?}");
}

#[test]
fn a_watch_ends_when_it_is_told_to() {
    let (dir, server) = answering(reply(VERSION, Answer::Snapshot(Box::new(fixed()))));
    let stop = Stop::default();
    let look = || {
        stop.raise();
        Look { form: Form::Metrics, watch: Some(Watch::Screen { height: 24 }) }
    };
    assert!(run(dir.path(), None, look, &stop, &mut Vec::new()).is_ok());
    server.join().unwrap();
}
