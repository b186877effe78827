use std::collections::BTreeMap;

use super::*;

fn wire(message: &FromGuest) -> String {
    encode(message).unwrap()
}

#[test]
fn the_wire_form_is_fixed() {
    let run = ToGuest::Run { scenario: "sva-copy".into(), seed: u64::MAX };
    assert_eq!(
        encode(&run).unwrap(),
        "{\"type\":\"Run\",\"scenario\":\"sva-copy\",\"seed\":18446744073709551615}\n"
    );
    assert_eq!(
        encode(&ToGuest::Continue { ok: false }).unwrap(),
        "{\"type\":\"Continue\",\"ok\":false}\n"
    );
    assert_eq!(
        encode(&ToGuest::Pasids { pasids: vec![7, 8] }).unwrap(),
        "{\"type\":\"Pasids\",\"pasids\":[7,8]}\n"
    );
    assert_eq!(encode(&ToGuest::PowerOff).unwrap(), "{\"type\":\"PowerOff\"}\n");
    assert_eq!(
        wire(&FromGuest::Hello { kernel: "7.2.0".into(), cpus: 2 }),
        "{\"type\":\"Hello\",\"kernel\":\"7.2.0\",\"cpus\":2}\n"
    );
    let values = BTreeMap::from([("wq".to_owned(), 0), ("pasid".to_owned(), 0xabcde)]);
    assert_eq!(
        wire(&FromGuest::Sync { point: sync::INJECT_UNBOUND_PASID.into(), values }),
        "{\"type\":\"Sync\",\"point\":\"inject-unbound-pasid\",\"values\":{\"pasid\":703710,\"wq\":0}}\n"
    );
    assert_eq!(
        wire(&FromGuest::Holds { refused: false, pasids: vec![1, 2] }),
        "{\"type\":\"Holds\",\"refused\":false,\"pasids\":[1,2]}\n"
    );
}

#[test]
fn every_message_survives_the_wire() {
    let values = BTreeMap::from([("bytes".to_owned(), u64::MAX)]);
    let text = "line\nbreak, \"quotes\", ünïcode".to_owned();
    for message in [
        FromGuest::Hello { kernel: text.clone(), cpus: u32::MAX },
        FromGuest::Check { check: "c".into(), ok: true, detail: text.clone() },
        FromGuest::Note { text: text.clone() },
        FromGuest::Sync { point: "p".into(), values: values.clone() },
        FromGuest::Holds { refused: true, pasids: vec![1, 0xfffff] },
        FromGuest::Counts { values },
        FromGuest::Done { scenario: "s".into() },
        FromGuest::Fatal { text },
    ] {
        let line = wire(&message);
        assert_eq!(line.matches('\n').count(), 1, "a message is one line");
        assert_eq!(decode::<FromGuest>(line.as_bytes()).unwrap(), message);
    }
}

#[test]
fn what_is_not_a_message_is_refused() {
    for line in [
        &b""[..],
        b"{}",
        b"null",
        b"{\"type\":\"Reboot\"}",
        b"{\"type\":\"Continue\"}",
        b"{\"type\":\"Continue\",\"ok\":1}",
        b"{\"type\":\"Run\",\"scenario\":\"x\",\"seed\":-1}",
        b"{\"type\":\"PowerOff\"} trailing",
        b"\xff\xfe",
    ] {
        assert!(matches!(decode::<ToGuest>(line), Err(LineError::Decode(_))), "{line:?}");
    }
    let long = vec![b' '; MAX_LINE + 1];
    assert!(matches!(decode::<ToGuest>(&long), Err(LineError::TooLong { .. })));
}

#[test]
fn a_message_that_is_too_long_is_not_sent() {
    let message = FromGuest::Note { text: "x".repeat(MAX_LINE) };
    assert!(matches!(encode(&message), Err(LineError::TooLong { .. })));
}

#[test]
fn as_many_pasids_as_are_allowed_fit_into_a_line() {
    let pasids = vec![0xfffff; MAX_HELD];
    assert!(encode(&ToGuest::Pasids { pasids: pasids.clone() }).is_ok());
    assert!(encode(&FromGuest::Holds { refused: false, pasids }).is_ok());
}

fn lines_of(lines: &mut Lines) -> Vec<Result<String, usize>> {
    std::iter::from_fn(|| lines.next())
        .map(|line| match line {
            Ok(line) => Ok(String::from_utf8(line).unwrap()),
            Err(LineError::TooLong { got }) => Err(got),
            Err(other) => panic!("{other}"),
        })
        .collect()
}

#[test]
fn lines_come_out_however_the_bytes_went_in() {
    let stream = b"one\ntwo\r\n\n\nthree\nunfinished";
    for step in 1..stream.len() {
        let mut lines = Lines::new();
        stream.chunks(step).for_each(|chunk| lines.feed(chunk));
        assert_eq!(
            lines_of(&mut lines),
            [Ok("one".into()), Ok("two".into()), Ok("three".into())],
            "fed {step} bytes at a time"
        );
        lines.feed(b"!\n");
        assert_eq!(lines_of(&mut lines), [Ok("unfinished!".into())]);
    }
}

#[test]
fn an_overlong_line_is_reported_once_and_costs_no_memory() {
    let mut lines = Lines::new();
    lines.feed(b"before\n");
    for _ in 0..64 {
        lines.feed(&[b'x'; MAX_LINE]);
        assert!(lines.held() <= 2 * MAX_LINE);
    }
    lines.feed(b"tail\nafter\n");
    assert_eq!(
        lines_of(&mut lines),
        [Ok("before".into()), Err(64 * MAX_LINE + 5), Ok("after".into())]
    );
}

#[test]
fn the_longest_line_allowed_is_allowed() {
    let mut lines = Lines::new();
    let mut line = vec![b'x'; MAX_LINE - 1];
    line.push(b'\n');
    lines.feed(&line);
    assert_eq!(
        lines_of(&mut lines).first().map(|line| line.as_ref().map(String::len)),
        Some(Ok(MAX_LINE - 1))
    );
}
