//! The wSocket contract: JSON text messages, one object each, authentication in the query string.

use data_encoding::{BASE64, BASE64URL_NOPAD};
use memchr::memmem;

use super::{Duty, Event, Outgoing, Position, encode_post};
use crate::frame::{self, Opcode};
use crate::opts::TargetOpts;
use crate::stamp::{Stamp, encode_payload, parse_hex8, push_hex8};

/// Settings of the adapter.
#[derive(Clone, Debug)]
pub struct Wsocket {
    key: String,
    publish_key: String,
    ephemeral: bool,
    no_acks: bool,
    nonce: String,
}

impl Wsocket {
    /// Publishers use the server key where there is one: it has no rate limit.
    pub fn new(opts: &TargetOpts, nonce: &str) -> Self {
        let key = opts.key.clone().unwrap_or_default();
        Self {
            publish_key: opts.server_key.clone().unwrap_or_else(|| key.clone()),
            key,
            ephemeral: !opts.persist,
            no_acks: opts.no_acks,
            nonce: nonce.to_owned(),
        }
    }

    pub(super) fn target(&self, duty: Duty) -> String {
        match duty {
            Duty::Subscribe => format!("/?key={}", self.key),
            Duty::Publish | Duty::Echo | Duty::Member => {
                let ack = if self.no_acks { "&ack=false" } else { "" };
                format!("/?key={}{ack}", self.publish_key)
            }
        }
    }

    pub(super) fn member_target(&self, member: u32) -> String {
        let target = self.target(Duty::Member);
        format!("{target}&clientId=lt-{}-{member:06}", self.nonce)
    }

    /// Nothing answers an enter in a large channel: the ping behind it is answered when the
    /// connection's shard has taken it.
    pub(super) fn encode_enter(&self, channel: &str, out: &mut Vec<u8>) {
        let enter = format!(r#"{{"action":"presence.enter","channel":"{channel}"}}"#);
        frame::encode(Opcode::Text, enter.as_bytes(), out);
        frame::encode(Opcode::Text, br#"{"action":"ping"}"#, out);
    }

    pub(super) fn on_open(&self, duty: Duty, channel: &str, out: &mut Vec<u8>) -> Event {
        match duty {
            Duty::Publish | Duty::Member => Event::Ready,
            Duty::Subscribe | Duty::Echo => {
                frame::encode_with(Opcode::Text, out, |out| {
                    out.extend_from_slice(b"{\"action\":\"subscribe\",\"channel\":\"");
                    out.extend_from_slice(channel.as_bytes());
                    out.extend_from_slice(b"\"}");
                });
                Event::None
            }
        }
    }

    /// The token is made by the client (contract 5.6), in turn as the JavaScript, the Python and the Ruby
    /// SDK make it.
    pub(super) fn on_reopen(
        &self,
        channels: &[&str],
        last_ts: u64,
        variant: u32,
        out: &mut Vec<u8>,
    ) {
        let names = |separator| format!("\"{}\"", channels.join(separator));
        let (field, token) = match variant % 3 {
            0 => {
                let json = format!(r#"{{"channels":[{}],"lastTs":{last_ts}}}"#, names(r#"",""#));
                ("resumeToken", BASE64.encode(json.as_bytes()))
            }
            1 => {
                let json = format!(
                    r#"{{"channels": [{}], "lastTs": {last_ts}}}"#,
                    names(r#"", ""#)
                );
                ("resumeToken", BASE64URL_NOPAD.encode(json.as_bytes()))
            }
            _ => {
                let json = format!(r#"{{"channels":[{}],"since":{last_ts}}}"#, names(r#"",""#));
                ("token", BASE64URL_NOPAD.encode(json.as_bytes()))
            }
        };
        let request = format!(r#"{{"action":"resume","{field}":"{token}"}}"#);
        frame::encode(Opcode::Text, request.as_bytes(), out);
    }

    pub(super) fn on_message(&self, message: &[u8]) -> Event {
        let action = memmem::find(message, b"\"action\":\"").map(|at| &message[at + 10..]);
        match action {
            Some(rest)
                if rest.starts_with(b"ack\"")
                    && memmem::find(rest, b"\"id\":\"resume\"").is_some() =>
            {
                Event::Resumed(memmem::find(rest, b"\"recovered\":false").is_none())
            }
            Some(rest) if rest.starts_with(b"ack\"") => {
                self.parse_id(message).map_or(Event::None, Event::Ack)
            }
            Some(rest) if rest.starts_with(b"subscribed\"") => Event::Ready,
            Some(rest) if rest.starts_with(b"pong\"") => Event::Entered,
            Some(rest) if rest.starts_with(b"error\"") => {
                Event::Error(String::from_utf8_lossy(frame::first_line(message)).into_owned())
            }
            _ => Event::None,
        }
    }

    pub(super) fn encode_publish(&self, message: Outgoing<'_>, out: &mut Vec<u8>) {
        frame::encode_with(Opcode::Text, out, |out| {
            out.extend_from_slice(b"{\"action\":\"publish\",\"channel\":\"");
            out.extend_from_slice(message.channel.as_bytes());
            out.extend_from_slice(b"\",");
            self.push_fields(message, out);
        });
    }

    pub(super) fn encode_http(&self, host: &str, message: Outgoing<'_>, out: &mut Vec<u8>) {
        let mut body = vec![b'{'];
        self.push_fields(message, &mut body);
        let target = format!("/api/channels/{}/messages", message.channel);
        encode_post(
            host,
            &target,
            &format!("Authorization: Bearer {}\r\n", self.publish_key),
            &body,
            out,
        );
    }

    fn push_fields(&self, message: Outgoing<'_>, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\"data\":");
        encode_payload(message.stamp, message.size, out);
        out.extend_from_slice(b",\"id\":\"");
        out.extend_from_slice(self.nonce.as_bytes());
        out.push(b'.');
        push_hex8(message.stamp.stream, out);
        push_hex8(message.stamp.seq, out);
        push_hex8((message.stamp.sent_ns >> 32) as u32, out);
        push_hex8(message.stamp.sent_ns as u32, out);
        out.extend_from_slice(if self.ephemeral {
            b"\",\"persist\":false}"
        } else {
            b"\"}"
        });
    }

    /// The stamp that an id of this run repeats, so that an ack's latency needs no table.
    fn parse_id(&self, message: &[u8]) -> Option<Stamp> {
        let at = memmem::find(message, b"\"id\":\"")?;
        let digits = message[at + 6..]
            .strip_prefix(self.nonce.as_bytes())?
            .strip_prefix(b".")?;
        let high = parse_hex8(digits.get(16..)?)?;
        let low = parse_hex8(digits.get(24..)?)?;
        Some(Stamp {
            stream: parse_hex8(digits)?,
            seq: parse_hex8(digits.get(8..)?)?,
            sent_ns: u64::from(high) << 32 | u64::from(low),
        })
    }
}

/// Reads the fields behind the payload, which holds none of their names.
pub(super) fn parse_position(message: &[u8]) -> Option<Position> {
    let number = |name: &[u8]| {
        let at = memmem::find(message, name)? + name.len();
        let digits = message[at..]
            .iter()
            .take_while(|byte| byte.is_ascii_digit());
        Some(digits.fold(0u64, |value, digit| {
            value.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'))
        }))
    };
    Some(Position {
        timestamp: number(b"\"timestamp\":")?,
        sequence: number(b"\"sequence\":").unwrap_or(0),
        is_replay: memmem::find(message, b"\"replay\":true").is_some(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::unmask;
    use super::*;

    fn adapter() -> Wsocket {
        Wsocket {
            key: "client-key-0000000".into(),
            publish_key: "server-key-0000000".into(),
            ephemeral: true,
            no_acks: false,
            nonce: "ab12".into(),
        }
    }

    const STAMP: Stamp = Stamp {
        stream: 5,
        seq: 77,
        sent_ns: 0x1_2345_6789,
    };

    #[test]
    fn publish_is_one_json_object_and_its_ack_comes_home() {
        let mut out = Vec::new();
        adapter().encode_publish(
            Outgoing {
                channel: "c",
                stamp: STAMP,
                size: 100,
            },
            &mut out,
        );
        let json: serde_json::Value = serde_json::from_slice(&unmask(&out)).unwrap();
        assert_eq!(
            (&json["action"], &json["channel"], &json["persist"]),
            (&"publish".into(), &"c".into(), &false.into())
        );
        assert_eq!(serde_json::to_string(&json["data"]).unwrap().len(), 100);
        let ack = format!(
            "{{\"action\":\"ack\",\"id\":{},\"channel\":\"c\"}}",
            json["id"]
        );
        assert_eq!(adapter().on_message(ack.as_bytes()), Event::Ack(STAMP));
        let foreign = ack.replace("ab12.", "zz99.");
        assert_eq!(adapter().on_message(foreign.as_bytes()), Event::None);
    }

    #[test]
    fn replies_are_told_apart() {
        assert_eq!(
            adapter().on_message(br#"{"action":"subscribed","channel":"c"}"#),
            Event::Ready
        );
        assert_eq!(
            adapter().on_message(br#"{"action":"connected","id":"1"}"#),
            Event::None
        );
        assert!(matches!(
            adapter().on_message(br#"{"action":"error","error":"no [40300]"}"#),
            Event::Error(_)
        ));
    }

    #[test]
    fn tokens_of_all_forms_say_the_same() {
        for (variant, field, bound) in [
            (0, "resumeToken", "lastTs"),
            (1, "resumeToken", "lastTs"),
            (5, "token", "since"),
        ] {
            let mut out = Vec::new();
            adapter().on_reopen(&["a:b", "c"], 1_700_000_000_123, variant, &mut out);
            let json: serde_json::Value = serde_json::from_slice(&unmask(&out)).unwrap();
            assert_eq!(json["action"], "resume");
            let token = json[field].as_str().unwrap().as_bytes();
            let decoded = BASE64
                .decode(token)
                .or_else(|_| BASE64URL_NOPAD.decode(token));
            let token: serde_json::Value = serde_json::from_slice(&decoded.unwrap()).unwrap();
            assert_eq!(
                token,
                serde_json::json!({"channels": ["a:b", "c"], bound: 1_700_000_000_123u64})
            );
        }
    }

    #[test]
    fn a_resume_ends_with_its_own_ack() {
        let ack = |recovered: &str| {
            let text = format!(
                r#"{{"action":"ack","id":"resume","data":{{"channels":{{"a":{{"recovered":true,"replayed":3}},"b":{{"recovered":{recovered},"replayed":0}}}}}}}}"#
            );
            adapter().on_message(text.as_bytes())
        };
        assert_eq!(ack("true"), Event::Resumed(true));
        assert_eq!(ack("false"), Event::Resumed(false));
    }

    #[test]
    fn positions_are_read_behind_the_payload() {
        let text = br#"{"action":"message","channel":"c","data":{"d":"~lt~"},"id":"i","timestamp":1700,"sequence":12,"replay":true}"#;
        let position = Position {
            timestamp: 1700,
            sequence: 12,
            is_replay: true,
        };
        assert_eq!(parse_position(text), Some(position));
        let text = br#"{"action":"message","channel":"c","data":1,"id":"i","timestamp":17}"#;
        let position = Position {
            timestamp: 17,
            sequence: 0,
            is_replay: false,
        };
        assert_eq!(parse_position(text), Some(position));
        assert_eq!(parse_position(b"{}"), None);
    }

    #[test]
    fn http_request_has_the_length_it_says() {
        let mut out = Vec::new();
        adapter().encode_http(
            "h:1",
            Outgoing {
                channel: "c",
                stamp: STAMP,
                size: 100,
            },
            &mut out,
        );
        let text = String::from_utf8(out).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /api/channels/c/messages HTTP/1.1\r\n"));
        assert!(head.contains("Authorization: Bearer server-key-0000000"));
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
        assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
    }
}
