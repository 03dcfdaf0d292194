//! Whole byte streams through the WebSocket decoder: the cases of RFC 6455, any cut of them, and tungstenite at the
//! other end.

use proptest::prelude::*;
use shardwire_proto::ws::frame::{self, OpCode};
use shardwire_proto::ws::fuzz::{Outcome, decode_in_pieces, fuzz_decoder, fuzz_handshake};
use shardwire_proto::ws::{DecodeError, Decoder, DecoderConfig, Event, Role};
use tungstenite::protocol::{CloseFrame, WebSocketConfig, frame::coding::CloseCode};
use tungstenite::{Message, WebSocket};

const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
const LIMIT: usize = 1 << 16;

fn server() -> DecoderConfig {
    DecoderConfig {
        message_bytes_max: LIMIT,
        role: Role::Server,
        tolerate_unmasked_control: true,
    }
}

/// A client frame with any first byte: FIN, RSV and opcode as given.
fn raw(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::write_masked_frame(&mut out, OpCode::Binary, payload, KEY);
    out[0] = first;
    out
}

/// Decodes at once and byte by byte, which must agree.
fn decode(stream: &[u8]) -> Outcome {
    let whole = decode_in_pieces(stream, || usize::MAX, &server());
    assert_eq!(whole, decode_in_pieces(stream, || 1, &server()));
    whole
}

fn events(frames: &[Vec<u8>]) -> Vec<String> {
    let outcome = decode(&frames.concat());
    assert_eq!(outcome.error, None);
    outcome.events
}

fn error(frames: &[Vec<u8>]) -> (u16, Vec<String>) {
    let outcome = decode(&frames.concat());
    (
        outcome.error.map_or(0, DecodeError::close_code),
        outcome.events,
    )
}

#[test]
fn examples_of_the_rfc() {
    let outcome = decode(&[
        0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58,
    ]);
    assert_eq!(outcome.events, [r#"Text("Hello")"#]);
    let client = DecoderConfig {
        role: Role::Client,
        ..server()
    };
    let stream = b"\x81\x05Hello\x01\x03Hel\x80\x02lo\x89\x05Hello";
    let outcome = decode_in_pieces(stream, || usize::MAX, &client);
    assert_eq!(
        outcome.events,
        [
            r#"Text("Hello")"#,
            r#"Text("Hello")"#,
            "Ping([72, 101, 108, 108, 111])"
        ]
    );
}

#[test]
fn fragments_with_control_frames_between() {
    let frames = [
        raw(0x01, b"a"),
        raw(0x89, b"1"),
        raw(0x00, b""),
        raw(0x8A, b""),
        raw(0x80, "é".as_bytes()),
        raw(0x82, b""),
    ];
    assert_eq!(
        events(&frames),
        ["Ping([49])", "Pong([])", r#"Text("aé")"#, "Binary([])"]
    );
    assert_eq!(
        events(&[raw(0x01, b""), raw(0x00, b""), raw(0x80, b"")]),
        [r#"Text("")"#]
    );
    assert_eq!(
        events(&[raw(0x02, b"\xff"), raw(0x80, b"\xfe")]),
        ["Binary([255, 254])"]
    );
}

#[test]
fn character_may_be_cut_by_frames_but_not_by_the_end() {
    assert_eq!(
        events(&[
            raw(0x01, b"\xf0\x9f"),
            raw(0x00, b"\x98"),
            raw(0x80, b"\x80")
        ]),
        [r#"Text("😀")"#]
    );
    assert_eq!(error(&[raw(0x01, b"\xf0\x9f"), raw(0x80, b"\x98")]).0, 1007);
    assert_eq!(error(&[raw(0x81, b"ok\xc3")]).0, 1007);
}

#[test]
fn close_forms() {
    assert_eq!(events(&[raw(0x88, b"")]), ["Close(None)"]);
    assert_eq!(
        events(&[raw(0x88, b"\x03\xe8bye")]),
        [r#"Close(Some((1000, "bye")))"#]
    );
    assert_eq!(error(&[raw(0x88, b"\x03")]).0, 1002);
    assert_eq!(error(&[raw(0x88, b"\x03\xee")]).0, 1002);
    assert_eq!(error(&[raw(0x88, b"\x03\xe8\xff")]).0, 1007);
    // Whatever follows a Close is not looked at.
    assert_eq!(
        events(&[raw(0x88, b""), raw(0xFF, b"x"), vec![1, 2, 3]]),
        ["Close(None)"]
    );
}

#[test]
fn breaches_end_the_stream_after_what_came_before() {
    let ping = || raw(0x89, b"");
    let text = || raw(0x01, b"a");
    for (name, frames, code) in [
        ("rsv1", vec![ping(), raw(0xC1, b"a")], 1002),
        ("rsv in a control frame", vec![ping(), raw(0x99, b"")], 1002),
        ("reserved data opcode", vec![ping(), raw(0x83, b"")], 1002),
        (
            "reserved control opcode",
            vec![ping(), raw(0x8F, b"")],
            1002,
        ),
        ("fragmented ping", vec![ping(), raw(0x09, b"")], 1002),
        ("long ping", vec![ping(), raw(0x89, &[0; 126])], 1002),
        ("stray continuation", vec![ping(), raw(0x80, b"")], 1002),
        (
            "stray unfinished continuation",
            vec![ping(), raw(0x00, b"")],
            1002,
        ),
        (
            "continuation after the end",
            vec![text(), raw(0x89, b""), raw(0x80, b""), raw(0x00, b"")],
            1002,
        ),
        (
            "message in a message",
            vec![ping(), text(), raw(0x81, b"b")],
            1002,
        ),
        ("unmasked text", vec![ping(), frame::text_frame(b"a")], 1002),
        ("unmasked ping", vec![ping(), vec![0x89, 0]], 1002),
        (
            "too large over fragments",
            vec![ping(), raw(0x02, &vec![0; LIMIT]), raw(0x80, b"x")],
            1009,
        ),
        (
            "too large in one",
            vec![ping(), raw(0x82, &vec![0; LIMIT + 1])],
            1009,
        ),
    ] {
        let (actual, events) = error(&frames);
        assert_eq!(actual, code, "{name}");
        assert!(!events.is_empty(), "{name}");
    }
    assert_eq!(
        events(&[vec![0x8A, 0], vec![0x88, 0]]),
        ["Pong([])", "Close(None)"]
    );
    assert_eq!(events(&[raw(0x82, &vec![7; LIMIT])]).len(), 1);
}

#[test]
fn bad_text_fails_in_the_middle_of_a_frame() {
    let mut decoder = Decoder::default();
    let mut stream = raw(0x81, &[b"good\xed\xa0".as_slice(), &[b'x'; 1000]].concat());
    let (head, rest) = stream.split_at_mut(4 + 4 + 5);
    assert!(decoder.step(head, &server()).unwrap().event.is_none());
    assert_eq!(
        decoder.step(&mut rest[..1], &server()).unwrap_err(),
        DecodeError::InvalidUtf8
    );
    assert!(decoder.is_finished());
    assert_eq!(
        decoder.step(&mut rest[1..], &server()).unwrap().consumed,
        rest.len() - 1
    );
}

#[test]
fn length_over_the_limit_fails_before_the_payload() {
    let mut decoder = Decoder::default();
    let mut header = raw(0x82, &vec![0; LIMIT + 1]);
    assert_eq!(
        decoder.step(&mut header[..10], &server()).unwrap_err(),
        DecodeError::TooLarge
    );
}

#[test]
fn memory_follows_what_was_received() {
    let mut decoder = Decoder::default();
    let mut stream = raw(0x82, &vec![1; LIMIT]);
    let (head, rest) = stream.split_at_mut(8 + 100);
    decoder.step(head, &server()).unwrap();
    assert!(
        decoder.held_bytes() < 1000,
        "{} bytes for 100 received",
        decoder.held_bytes()
    );
    let len = rest.len();
    let step = decoder.step(rest, &server()).unwrap();
    assert_eq!(step.consumed, len);
    assert!(matches!(step.event, Some(Event::Binary(bytes)) if bytes == vec![1; LIMIT]));
    assert!(decoder.held_bytes() < LIMIT + 1000);
    assert!(decoder.step(&mut [], &server()).unwrap().event.is_none());
    assert_eq!(decoder.held_bytes(), 0);
}

#[test]
fn whole_frames_hold_nothing() {
    let mut decoder = Decoder::default();
    let mut stream = [raw(0x81, b"abc"), raw(0x89, b"d")].concat();
    let first = decoder.step(&mut stream, &server()).unwrap().consumed;
    assert_eq!(decoder.held_bytes(), 0);
    decoder.step(&mut stream[first..], &server()).unwrap();
    assert_eq!(decoder.held_bytes(), 0);
}

/// Client messages, some of them in fragments with control frames between.
fn session() -> impl Strategy<Value = Vec<u8>> {
    let control = (
        prop_oneof![Just(0x89u8), Just(0x8A)],
        proptest::collection::vec(any::<u8>(), 0..20),
    )
        .prop_map(|(first, payload)| raw(first, &payload));
    let payload = prop_oneof![
        any::<String>().prop_map(|text| (0x1u8, text.into_bytes())),
        proptest::collection::vec(any::<u8>(), 0..300).prop_map(|bytes| (0x2u8, bytes)),
        // Mostly not UTF-8: the error must not depend on cuts either.
        proptest::collection::vec(any::<u8>(), 0..8).prop_map(|bytes| (0x1u8, bytes)),
    ];
    let message =
        (payload, 1usize..200, control.clone()).prop_map(|((opcode, payload), size, control)| {
            let mut pieces: Vec<&[u8]> = payload.chunks(size).collect();
            if pieces.is_empty() {
                pieces.push(&[]);
            }
            let last = pieces.len() - 1;
            let mut out = Vec::new();
            for (i, piece) in pieces.iter().enumerate() {
                let opcode = if i == 0 { opcode } else { 0 };
                out.extend(raw(if i == last { 0x80 | opcode } else { opcode }, piece));
                if i == 0 {
                    out.extend_from_slice(&control);
                }
            }
            out
        });
    proptest::collection::vec(message, 0..8).prop_map(|messages| messages.concat())
}

proptest! {
    #[test]
    fn any_cut_gives_the_same_outcome(
        mut stream in session(),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..2),
        cuts in proptest::collection::vec(1usize..40, 1..20),
    ) {
        for (at, value) in flips {
            if !stream.is_empty() {
                let at = at.index(stream.len());
                stream[at] ^= value;
            }
        }
        let mut cuts = cuts.into_iter().cycle();
        prop_assert_eq!(decode(&stream), decode_in_pieces(&stream, || cuts.next().unwrap(), &server()));
    }

    #[test]
    fn garbage_keeps_the_contract(data in proptest::collection::vec(any::<u8>(), 0..300)) {
        fuzz_decoder(&data);
        fuzz_handshake(&data);
    }

    #[test]
    fn tungstenite_client_is_understood(messages in proptest::collection::vec(message(), 0..8), cut in 1usize..100) {
        let mut client = WebSocket::from_raw_socket(std::io::Cursor::new(Vec::new()), tungstenite::protocol::Role::Client, None);
        let mut expected = Vec::new();
        for message in messages {
            expected.push(rendered(&message));
            client.send(message).unwrap();
        }
        client.close(Some(CloseFrame { code: CloseCode::Library(4001), reason: "done".into() })).unwrap();
        client.flush().unwrap();
        expected.push(r#"Close(Some((4001, "done")))"#.to_owned());
        let stream = client.get_ref().get_ref();
        let outcome = decode_in_pieces(stream, || cut, &server());
        prop_assert_eq!(outcome, Outcome { events: expected, error: None });
    }

    #[test]
    fn tungstenite_client_understands(messages in proptest::collection::vec(message(), 0..8)) {
        let mut stream = Vec::new();
        for message in &messages {
            match message {
                Message::Text(text) => frame::write_frame(&mut stream, OpCode::Text, text.as_bytes()),
                Message::Binary(bytes) => frame::write_frame(&mut stream, OpCode::Binary, bytes),
                Message::Ping(bytes) => frame::write_frame(&mut stream, OpCode::Ping, bytes),
                Message::Pong(bytes) => frame::write_frame(&mut stream, OpCode::Pong, bytes),
                Message::Close(_) | Message::Frame(_) => unreachable!("not generated"),
            }
        }
        frame::write_close(&mut stream, 4001, "done");
        let config = WebSocketConfig::default();
        let mut client = WebSocket::from_raw_socket(Duplex(&stream), tungstenite::protocol::Role::Client, Some(config));
        for message in messages {
            prop_assert_eq!(client.read().unwrap(), message);
        }
        let close = CloseFrame { code: CloseCode::Library(4001), reason: "done".into() };
        prop_assert_eq!(client.read().unwrap(), Message::Close(Some(close)));
    }
}

/// Reads from a slice; takes whatever tungstenite answers.
struct Duplex<'s>(&'s [u8]);

impl std::io::Read for Duplex<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buf)
    }
}

impl std::io::Write for Duplex<'_> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        Ok(buf.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn message() -> impl Strategy<Value = Message> {
    let bytes = |max| proptest::collection::vec(any::<u8>(), 0..max);
    prop_oneof![
        any::<String>().prop_map(Message::text),
        bytes(70_000usize.min(LIMIT)).prop_map(Message::binary),
        bytes(126).prop_map(|bytes| Message::Ping(bytes.into())),
        bytes(126).prop_map(|bytes| Message::Pong(bytes.into())),
    ]
}

/// As [`decode_in_pieces`] renders the event.
fn rendered(message: &Message) -> String {
    match message {
        Message::Text(text) => format!("{:?}", Event::Text(text.as_str())),
        Message::Binary(bytes) => format!("{:?}", Event::Binary(bytes)),
        Message::Ping(bytes) => format!("{:?}", Event::Ping(bytes)),
        Message::Pong(bytes) => format!("{:?}", Event::Pong(bytes)),
        Message::Close(_) | Message::Frame(_) => unreachable!("not generated"),
    }
}
