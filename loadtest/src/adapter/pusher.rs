//! Pusher protocol 7: private channels signed by the generator, publishes as client events or over HTTP.

use hmac::{Hmac, Mac};
use md5::{Digest, Md5};
use memchr::memmem;
use sha2::Sha256;

use super::{Event, Outgoing, encode_post};
use crate::frame::{self, Opcode};
use crate::opts::TargetOpts;
use crate::stamp::encode_payload;

/// Credentials of the app under test.
#[derive(Clone, Debug)]
pub struct Pusher {
    key: String,
    secret: String,
    app_id: String,
}

impl Pusher {
    /// Takes the credentials from the options.
    pub fn new(opts: &TargetOpts) -> Self {
        Self {
            key: opts.key.clone().unwrap_or_default(),
            secret: opts.secret.clone().unwrap_or_default(),
            app_id: opts.app_id.clone().unwrap_or_default(),
        }
    }

    pub(super) fn target(&self) -> String {
        format!(
            "/app/{}?protocol=7&client=shardwire-loadtest&version=1.0.0&flash=false",
            self.key
        )
    }

    pub(super) fn on_message(&self, channel: &str, message: &[u8], out: &mut Vec<u8>) -> Event {
        let Some(at) = memmem::find(message, b"\"event\":\"") else {
            return Event::None;
        };
        let event = &message[at + 9..];
        if event.starts_with(b"pusher:connection_established") {
            match parse_socket_id(message) {
                Some(socket_id) => self.encode_subscribe(socket_id, channel, out),
                None => {
                    return Event::Error("connection_established without a socket id".to_owned());
                }
            }
        } else if event.starts_with(b"pusher_internal:subscription_succeeded") {
            return Event::Ready;
        } else if event.starts_with(b"pusher:ping") {
            frame::encode(Opcode::Text, br#"{"event":"pusher:pong","data":{}}"#, out);
        } else if event.starts_with(b"pusher:error")
            || event.starts_with(b"pusher:subscription_error")
        {
            return Event::Error(String::from_utf8_lossy(frame::first_line(message)).into_owned());
        }
        Event::None
    }

    pub(super) fn encode_publish(&self, message: Outgoing<'_>, out: &mut Vec<u8>) {
        frame::encode_with(Opcode::Text, out, |out| {
            out.extend_from_slice(b"{\"event\":\"client-lt\",\"channel\":\"");
            out.extend_from_slice(message.channel.as_bytes());
            out.extend_from_slice(b"\",\"data\":");
            encode_payload(message.stamp, message.size, out);
            out.push(b'}');
        });
    }

    /// `POST /apps/{id}/events`, signed as the HTTP API asks.
    pub(super) fn encode_http(
        &self,
        host: &str,
        message: Outgoing<'_>,
        unix_s: u64,
        out: &mut Vec<u8>,
    ) {
        let mut data = Vec::with_capacity(message.size);
        encode_payload(message.stamp, message.size, &mut data);
        let data = serde_json::Value::from(String::from_utf8_lossy(&data).into_owned());
        let body = format!(
            r#"{{"name":"lt","channels":["{}"],"data":{data}}}"#,
            message.channel
        );
        let path = format!("/apps/{}/events", self.app_id);
        let query = format!(
            "auth_key={}&auth_timestamp={unix_s}&auth_version=1.0&body_md5={}",
            self.key,
            hex(&Md5::digest(body.as_bytes()))
        );
        let signature = self.sign(&format!("POST\n{path}\n{query}"));
        let target = format!("{path}?{query}&auth_signature={signature}");
        encode_post(host, &target, "", body.as_bytes(), out);
    }

    fn encode_subscribe(&self, socket_id: &str, channel: &str, out: &mut Vec<u8>) {
        let signature = self.sign(&format!("{socket_id}:{channel}"));
        let text = format!(
            r#"{{"event":"pusher:subscribe","data":{{"channel":"{channel}","auth":"{}:{signature}"}}}}"#,
            self.key
        );
        frame::encode(Opcode::Text, text.as_bytes(), out);
    }

    fn sign(&self, text: &str) -> String {
        // HMAC takes a key of any length (RFC 2104), so this branch is not reached.
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(self.secret.as_bytes()) else {
            return String::new();
        };
        mac.update(text.as_bytes());
        hex(&mac.finalize().into_bytes())
    }
}

/// The socket id sits in JSON inside a JSON string, so its quotes are escaped.
fn parse_socket_id(message: &[u8]) -> Option<&str> {
    let at = memmem::find(message, b"socket_id")?;
    let rest = &message[at + 9..];
    let start = rest.iter().position(u8::is_ascii_digit)?;
    let id = &rest[start..];
    let end = id.iter().position(|b| !b.is_ascii_digit() && *b != b'.')?;
    std::str::from_utf8(&id[..end]).ok()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::unmask;
    use super::*;
    use crate::stamp::{Scanner, Stamp};

    fn adapter() -> Pusher {
        Pusher {
            key: "app-key".into(),
            secret: "app-secret".into(),
            app_id: "7".into(),
        }
    }

    #[test]
    fn established_is_answered_with_a_signed_subscribe() {
        let hello = br#"{"event":"pusher:connection_established","data":"{\"socket_id\":\"151772.9831440\",\"activity_timeout\":120}"}"#;
        let mut out = Vec::new();
        assert_eq!(
            adapter().on_message("private-orders", hello, &mut out),
            Event::None
        );
        let json: serde_json::Value = serde_json::from_slice(&unmask(&out)).unwrap();
        assert_eq!(json["data"]["channel"], "private-orders");
        // The worked example of the protocol specification, checked with openssl.
        let expected = "app-key:c72b1af85db20bafa0e80f4ee6d8f6daa00100b626be21a07af33f719f19dc3f";
        assert_eq!(json["data"]["auth"], expected);
    }

    #[test]
    fn stamps_survive_both_ways_of_carrying_data() {
        let stamp = Stamp {
            stream: 1,
            seq: 2,
            sent_ns: 3,
        };
        let message = Outgoing {
            channel: "private-c",
            stamp,
            size: 100,
        };
        let mut out = Vec::new();
        adapter().encode_publish(message, &mut out);
        assert_eq!(Scanner::default().find(&unmask(&out)), Some(stamp));
        let mut request = Vec::new();
        adapter().encode_http("h", message, 1_700_000_000, &mut request);
        assert_eq!(Scanner::default().find(&request), Some(stamp));
        let text = String::from_utf8(request).unwrap();
        let body = text.split_once("\r\n\r\n").unwrap().1;
        let json: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(json["data"].as_str().unwrap().len(), 100);
    }

    #[test]
    fn errors_and_pings() {
        let mut out = Vec::new();
        let error = br#"{"event":"pusher:error","data":{"code":4009,"message":"x"}}"#;
        assert!(matches!(
            adapter().on_message("c", error, &mut out),
            Event::Error(_)
        ));
        let ok = br#"{"event":"pusher_internal:subscription_succeeded","channel":"c","data":"{}"}"#;
        assert_eq!(adapter().on_message("c", ok, &mut out), Event::Ready);
        assert!(out.is_empty());
        adapter().on_message("c", br#"{"event":"pusher:ping","data":"{}"}"#, &mut out);
        assert!(!out.is_empty());
    }
}
