//! Entry points of the fuzz targets: each checks what must hold for any bytes, and panics where it does not.
//!
//! `engine/proto/fuzz` runs them under libFuzzer; `tests/ws_fuzz_replay.rs` replays the corpus and seeded input.

use super::decoder::{Decoder, DecoderConfig, Event, Role};
use super::error::DecodeError;
use super::handshake::{HEAD_BYTES_MAX, HeadError, HeadKind, parse_head};

/// All that a stream led to: its events, and the error or Close that ended it.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Events as owned text.
    pub events: Vec<String>,
    /// What the decoder refused.
    pub error: Option<DecodeError>,
}

/// Decodes `stream` cut into pieces of the lengths `cuts` gives; checks the step contract throughout.
pub fn decode_in_pieces(
    stream: &[u8],
    mut cuts: impl FnMut() -> usize,
    config: &DecoderConfig,
) -> Outcome {
    let mut decoder = Decoder::default();
    let mut outcome = Outcome {
        events: Vec::new(),
        error: None,
    };
    let mut left = stream;
    while !left.is_empty() {
        let (piece, rest) = left.split_at(cuts().clamp(1, left.len()));
        left = rest;
        if let Err(error) = decode_piece(
            &mut decoder,
            &mut piece.to_vec(),
            config,
            &mut outcome.events,
        ) {
            outcome.error = Some(error);
            assert!(
                decoder.is_finished() && decoder.held_bytes() == 0,
                "a failed decoder holds memory"
            );
            break;
        }
        let bound = config.message_bytes_max.max(8) + 1024;
        assert!(
            decoder.held_bytes() <= bound,
            "{} bytes held",
            decoder.held_bytes()
        );
    }
    outcome
}

fn decode_piece(
    decoder: &mut Decoder,
    mut piece: &mut [u8],
    config: &DecoderConfig,
    events: &mut Vec<String>,
) -> Result<(), DecodeError> {
    loop {
        let len = piece.len();
        let step = decoder.step(piece, config)?;
        let consumed = step.consumed;
        let Some(event) = step.event else {
            assert_eq!(consumed, len, "no event, yet input is left");
            return Ok(());
        };
        check_event(&event, config);
        events.push(format!("{event:?}"));
        (_, piece) = piece.split_at_mut(consumed);
    }
}

fn check_event(event: &Event<'_>, config: &DecoderConfig) {
    match event {
        Event::Text(text) => assert!(text.len() <= config.message_bytes_max),
        Event::Binary(bytes) => assert!(bytes.len() <= config.message_bytes_max),
        Event::Ping(bytes) | Event::Pong(bytes) => assert!(bytes.len() <= 125),
        Event::Close(None) => {}
        Event::Close(Some((code, reason))) => {
            assert!(super::close::is_valid(*code) && reason.len() <= 123)
        }
    }
}

/// The first two bytes choose role, tolerance, limit and cuts; the rest is the stream. Any cut gives the same outcome.
pub fn fuzz_decoder(data: &[u8]) {
    let [mode, seed, stream @ ..] = data else {
        return;
    };
    let config = DecoderConfig {
        message_bytes_max: if mode & 4 == 0 { 64 } else { 1 << 17 },
        role: if mode & 1 == 0 {
            Role::Server
        } else {
            Role::Client
        },
        tolerate_unmasked_control: mode & 2 != 0,
    };
    let whole = decode_in_pieces(stream, || usize::MAX, &config);
    let bytewise = decode_in_pieces(stream, || 1, &config);
    assert_eq!(whole, bytewise);
    let mut state = u32::from(*seed);
    let ragged = decode_in_pieces(
        stream,
        || {
            // Numerical Recipes' generator: piece lengths of 1 to 32, different for each seed.
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 27) as usize + 1
        },
        &config,
    );
    assert_eq!(whole, ragged);
}

/// A head is found, or refused, the same way however much of the stream has arrived.
pub fn fuzz_handshake(data: &[u8]) {
    let whole = parse_head(data);
    if let Ok(Some(head)) = &whole {
        assert!(head.len <= data.len().min(HEAD_BYTES_MAX));
        assert!(
            data.get(..head.len)
                .is_some_and(|bytes| bytes.ends_with(b"\n"))
        );
        if let HeadKind::Upgrade(upgrade) = &head.kind
            && upgrade.validate().is_ok()
        {
            assert_eq!(
                (head.method, upgrade.version, upgrade.key.len()),
                ("GET", "13", 24)
            );
        }
    }
    // Every prefix of a short head, and of a long one enough to cover each kind of place.
    let stride = data.len() / 512 + 1;
    for len in (0..data.len()).step_by(stride) {
        match parse_head(data.get(..len).unwrap_or_default()) {
            Ok(None) => {
                assert!(len < HEAD_BYTES_MAX);
                if let Ok(Some(head)) = &whole {
                    assert!(
                        len < head.len,
                        "head of {} bytes not found in {len}",
                        head.len
                    );
                }
            }
            Ok(Some(head)) => assert_eq!(Ok(Some(head)), whole),
            Err(HeadError::Malformed) => assert_eq!(whole, Err(HeadError::Malformed)),
            Err(HeadError::TooLarge) => assert_eq!(whole, Err(HeadError::TooLarge)),
        }
    }
}
