//! RFC 6455 from the client's side: the opening handshake and frame headers, over the caller's buffers.
//!
//! It is not a WebSocket library: no fragments (a continuation frame is an error, since every server
//! measured here sends whole messages), no extensions, one constant mask. A mask protects proxies from
//! scripts in browsers (section 10.3); a generator needs it only to be well formed, so it is fixed and
//! non-zero, and the server has to unmask as for any client.

use memchr::memchr;

/// Mask of every frame sent.
pub const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
/// The key of the sample handshake in RFC 6455 section 1.3, and the answer it must get.
const HANDSHAKE_KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const HANDSHAKE_ACCEPT: &[u8] = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// Longest response head accepted, in bytes.
const RESPONSE_HEAD_BYTES_MAX: usize = 16 * 1024;

/// RFC 6455 section 5.2 opcodes that a message-at-a-time client meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opcode {
    /// A whole text message.
    Text,
    /// A whole binary message.
    Binary,
    /// The peer closes.
    Close,
    /// To be answered with [`Opcode::Pong`].
    Ping,
    /// Answer to a ping.
    Pong,
}

impl Opcode {
    fn bits(self) -> u8 {
        match self {
            Self::Text => 1,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }
}

/// What the start of a buffer holds.
#[derive(Debug, PartialEq, Eq)]
pub enum Parsed<'b> {
    /// One frame; `used` bytes of the buffer belong to it.
    Frame {
        opcode: Opcode,
        payload: &'b [u8],
        used: usize,
    },
    /// Not yet a whole frame; at least this many bytes are needed in all.
    Need(usize),
    /// Not a frame that a server may send to this client.
    Bad(&'static str),
}

/// Reads the frame at the start of `buf`.
pub fn parse(buf: &[u8]) -> Parsed<'_> {
    let [first, second, rest @ ..] = buf else {
        return Parsed::Need(2);
    };
    if first & 0x70 != 0 {
        return Parsed::Bad("reserved bits set though no extension was agreed");
    }
    if second & 0x80 != 0 {
        return Parsed::Bad("masked frame from the server");
    }
    let opcode = match first & 0x8f {
        0x81 => Opcode::Text,
        0x82 => Opcode::Binary,
        0x88 => Opcode::Close,
        0x89 => Opcode::Ping,
        0x8a => Opcode::Pong,
        _ => return Parsed::Bad("fragment or unknown opcode"),
    };
    let (header, len): (usize, usize) = match second & 0x7f {
        126 => match rest.first_chunk::<2>() {
            Some(bytes) => (4, usize::from(u16::from_be_bytes(*bytes))),
            None => return Parsed::Need(4),
        },
        127 => match rest.first_chunk::<8>() {
            Some(bytes) => (10, u64::from_be_bytes(*bytes) as usize),
            None => return Parsed::Need(10),
        },
        short => (2, usize::from(short)),
    };
    let Some(used) = header.checked_add(len) else {
        return Parsed::Bad("frame length");
    };
    match buf.get(header..used) {
        Some(payload) => Parsed::Frame {
            opcode,
            payload,
            used,
        },
        None => Parsed::Need(used),
    }
}

/// Appends one masked frame whose payload `write` appends.
pub fn encode_with(opcode: Opcode, out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    // The header for medium lengths is the common one; others shift the payload once it is known.
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    write(out);
    let len = out.len() - start - 8;
    let mut header = [0u8; 14];
    header[0] = 0x80 | opcode.bits();
    let header_len = if len < 126 {
        header[1] = 0x80 | len as u8;
        6
    } else if let Ok(short) = u16::try_from(len) {
        header[1] = 0x80 | 126;
        header[2..4].copy_from_slice(&short.to_be_bytes());
        8
    } else {
        header[1] = 0x80 | 127;
        header[2..10].copy_from_slice(&(len as u64).to_be_bytes());
        14
    };
    header[header_len - 4..header_len].copy_from_slice(&MASK);
    if header_len == 8 {
        out[start..start + 8].copy_from_slice(&header[..8]);
    } else {
        out.splice(start..start + 8, header[..header_len].iter().copied());
    }
    mask(&mut out[start + header_len..]);
}

/// Appends one masked frame.
pub fn encode(opcode: Opcode, payload: &[u8], out: &mut Vec<u8>) {
    encode_with(opcode, out, |out| out.extend_from_slice(payload));
}

fn mask(payload: &mut [u8]) {
    let (words, tail) = payload.as_chunks_mut::<4>();
    for word in words {
        *word = (u32::from_ne_bytes(*word) ^ u32::from_ne_bytes(MASK)).to_ne_bytes();
    }
    for (byte, mask) in tail.iter_mut().zip(MASK) {
        *byte ^= mask;
    }
}

/// Appends the opening handshake (RFC 6455 section 4.1).
pub fn encode_handshake(host: &str, target: &str, out: &mut Vec<u8>) {
    for part in [
        "GET ",
        target,
        " HTTP/1.1\r\nHost: ",
        host,
        "\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: ",
        HANDSHAKE_KEY,
        "\r\nSec-WebSocket-Version: 13\r\n\r\n",
    ] {
        out.extend_from_slice(part.as_bytes());
    }
}

/// Appends the answer to a handshake made by [`encode_handshake`], and only to that: it has the same key
/// every time.
pub fn encode_accept(out: &mut Vec<u8>) {
    out.extend_from_slice(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
    );
    out.extend_from_slice(b"Sec-WebSocket-Accept: ");
    out.extend_from_slice(HANDSHAKE_ACCEPT);
    out.extend_from_slice(b"\r\n\r\n");
}

/// Opcode byte and unmasked payload of the client frame at the start of `buf`, and its length.
pub fn parse_masked(buf: &[u8]) -> Option<(u8, Vec<u8>, usize)> {
    let (&first, &second) = (buf.first()?, buf.get(1)?);
    let (header, len): (usize, usize) = match second & 0x7f {
        126 => (
            4,
            usize::from(u16::from_be_bytes(*buf.get(2..)?.first_chunk()?)),
        ),
        127 => (
            10,
            u64::from_be_bytes(*buf.get(2..)?.first_chunk()?) as usize,
        ),
        short => (2, usize::from(short)),
    };
    let mask: [u8; 4] = *buf.get(header..)?.first_chunk()?;
    let used = header.checked_add(4)?.checked_add(len)?;
    let payload = buf.get(header + 4..used)?;
    let payload = payload
        .iter()
        .zip(mask.iter().cycle())
        .map(|(byte, mask)| byte ^ mask)
        .collect();
    Some((first, payload, used))
}

/// Appends an unmasked text frame, as a server sends it.
pub fn encode_unmasked(payload: &[u8], out: &mut Vec<u8>) {
    out.push(0x81);
    match payload.len() {
        len @ 0..126 => out.push(len as u8),
        len @ 126..=65_535 => {
            out.push(126);
            out.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            out.push(127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}

/// What a server's answer to the handshake says.
#[derive(Debug, PartialEq, Eq)]
pub enum Handshake {
    /// Accepted; this many bytes were the response.
    Accepted(usize),
    /// Not all of the head is there yet.
    Partial,
    /// Refused with this status.
    Refused(u16),
    /// Not an answer that section 4.2.2 allows.
    Bad(&'static str),
}

/// Reads the response at the start of `buf`.
pub fn parse_handshake(buf: &[u8]) -> Handshake {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let used = match response.parse(buf) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) if buf.len() < RESPONSE_HEAD_BYTES_MAX => {
            return Handshake::Partial;
        }
        Ok(httparse::Status::Partial) => return Handshake::Bad("response head too long"),
        Err(_) => return Handshake::Bad("not an HTTP response"),
    };
    match response.code {
        Some(101) => {}
        other => return Handshake::Refused(other.unwrap_or_default()),
    }
    let accept = response
        .headers
        .iter()
        .find(|h| h.name.eq_ignore_ascii_case("sec-websocket-accept"));
    match accept {
        Some(header) if header.value == HANDSHAKE_ACCEPT => Handshake::Accepted(used),
        _ => Handshake::Bad("wrong Sec-WebSocket-Accept"),
    }
}

/// First line of `bytes`, for error samples.
pub fn first_line(bytes: &[u8]) -> &[u8] {
    &bytes[..memchr(b'\n', bytes).unwrap_or(bytes.len()).min(160)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn coalesced_frames_come_apart() {
        let buf = [&[0x81, 2, b'h', b'i'][..], &[0x89, 0], &[0x82, 1]].concat();
        let Parsed::Frame {
            opcode: Opcode::Text,
            payload: b"hi",
            used: 4,
        } = parse(&buf)
        else {
            panic!()
        };
        let Parsed::Frame {
            opcode: Opcode::Ping,
            payload: b"",
            used: 2,
        } = parse(&buf[4..])
        else {
            panic!()
        };
        assert_eq!(parse(&buf[6..]), Parsed::Need(3));
    }

    #[test]
    fn frames_that_no_server_may_send_are_bad() {
        assert!(matches!(parse(&[0x81, 0x80]), Parsed::Bad(_)));
        assert!(matches!(parse(&[0xc1, 0]), Parsed::Bad(_)));
        assert!(matches!(parse(&[0x01, 0]), Parsed::Bad(_)));
        assert!(matches!(parse(&[0x80, 0]), Parsed::Bad(_)));
    }

    #[test]
    fn handshake_answers() {
        let ok = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\
            sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n\x81\x00";
        assert_eq!(parse_handshake(ok), Handshake::Accepted(ok.len() - 2));
        let mut accept = Vec::new();
        encode_accept(&mut accept);
        assert_eq!(parse_handshake(&accept), Handshake::Accepted(accept.len()));
        assert_eq!(parse_handshake(&ok[..40]), Handshake::Partial);
        assert_eq!(
            parse_handshake(b"HTTP/1.1 401 Unauthorized\r\n\r\n"),
            Handshake::Refused(401)
        );
        assert!(matches!(
            parse_handshake(b"HTTP/1.1 101 OK\r\n\r\n"),
            Handshake::Bad(_)
        ));
        assert!(matches!(
            parse_handshake(b"SSH-2.0-x\r\n\r\n"),
            Handshake::Bad(_)
        ));
    }

    proptest! {
        #[test]
        fn encoded_frames_unmask_to_their_payload(len in prop_oneof![0usize..300, 65_500usize..65_600], lead in 0usize..5) {
            let payload: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let mut out = vec![7; lead];
            encode(Opcode::Binary, &payload, &mut out);
            prop_assert_eq!(out[lead + 1] & 0x80, 0x80, "client frames are masked");
            prop_assert_eq!(parse_masked(&out[lead..]), Some((0x82, payload, out.len() - lead)));
            prop_assert_eq!(parse_masked(&out[lead..out.len() - 1]), None);
        }

        #[test]
        fn a_cut_frame_asks_for_its_length(len in prop_oneof![0usize..300, 65_500usize..65_600], cut in 0usize..1000) {
            let mut frame = Vec::new();
            encode_unmasked(&vec![1; len], &mut frame);
            let cut = cut.min(frame.len() - 1);
            prop_assert!(matches!(parse(&frame[..cut]), Parsed::Need(n) if n > cut && n <= frame.len()));
            let Parsed::Frame { used, payload, .. } = parse(&frame) else { panic!() };
            prop_assert_eq!((used, payload.len()), (frame.len(), len));
        }
    }
}
