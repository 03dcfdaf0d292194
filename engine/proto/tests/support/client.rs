//! A client's end of a connection: decodes what it is sent, and says it in short.

use serde_json::Value;
use shardwire_proto::error::CloseCause;
use shardwire_proto::ids::ConnId;
use shardwire_proto::ws::{Decoder, DecoderConfig, Event, Role};

#[derive(Debug)]
pub struct Client {
    pub shard: usize,
    /// None once it has ended.
    pub conn: Option<ConnId>,
    /// How it ended.
    pub ended: Option<CloseCause>,
    /// Every text frame, oldest first.
    pub frames: Vec<Value>,
    /// Close code and PONG payloads.
    pub control: Vec<String>,
    /// Bytes that its socket takes until it is given more.
    pub room: usize,
    decoder: Decoder,
    taken: usize,
}

impl Client {
    pub fn new(shard: usize, conn: ConnId) -> Self {
        Self {
            shard,
            conn: Some(conn),
            ended: None,
            frames: Vec::new(),
            control: Vec::new(),
            room: usize::MAX,
            decoder: Decoder::default(),
            taken: 0,
        }
    }

    pub fn receive(&mut self, mut bytes: Vec<u8>) {
        let config = DecoderConfig {
            message_bytes_max: 1 << 20,
            role: Role::Client,
            tolerate_unmasked_control: false,
        };
        let mut rest = &mut bytes[..];
        loop {
            let step = self
                .decoder
                .step(rest, &config)
                .expect("well-formed frames");
            let consumed = step.consumed;
            match step.event {
                None => return,
                Some(Event::Text(text)) => {
                    let frame = serde_json::from_str(text);
                    self.frames.push(frame.expect("frames are JSON"));
                }
                Some(Event::Close(close)) => {
                    self.control.push(format!("close {:?}", close.map(|c| c.0)));
                }
                Some(Event::Pong(payload)) => {
                    let payload = String::from_utf8_lossy(payload);
                    self.control.push(format!("pong {payload}"));
                }
                Some(event) => panic!("a server does not send {event:?}"),
            }
            rest = &mut rest[consumed..];
        }
    }

    /// The frames since the last call, each as [`summary`].
    pub fn take(&mut self) -> Vec<String> {
        let frames = &self.frames[self.taken..];
        self.taken = self.frames.len();
        frames.iter().map(summary).collect()
    }
}

/// A frame in short: `subscribed a`, `a#3 id replay`, `ack id a#3`, `error 50300 a id`,
/// `history a 1,2 more`, `resumed a:true:2`, `enter a me{"x":1}`, `members a me you`,
/// `count a 7 events`. Panics at a field that breaks a client (contract 4.3).
pub fn summary(frame: &Value) -> String {
    let text = |field: &str| frame[field].as_str().expect(field).to_owned();
    let option = |field: &str| match &frame[field] {
        Value::Null => String::new(),
        value => format!(" {}", value.as_str().expect(field)),
    };
    let place = || {
        assert!(frame["timestamp"].is_u64(), "{frame}");
        frame["sequence"]
            .as_u64()
            .map_or("-".to_owned(), |s| s.to_string())
    };
    match frame["action"].as_str().expect("an action") {
        "subscribed" if frame["recovered"].is_boolean() => format!(
            "subscribed {} recovered={} at {}",
            text("channel"),
            frame["recovered"],
            frame["sequence"]
        ),
        action @ ("subscribed" | "unsubscribed") => format!("{action} {}", text("channel")),
        "message" => {
            assert!(frame.get("data").is_some(), "{frame}");
            let replay = frame["replay"].as_bool().map(|r| assert!(r));
            let replay = replay.map_or("", |()| " replay");
            format!("{}#{} {}{replay}", text("channel"), place(), text("id"))
        }
        "ack" if frame["id"] == "resume" => {
            let channels = frame["data"]["channels"].as_object().expect("channels");
            channels
                .iter()
                .fold("resumed".to_owned(), |line, (name, c)| {
                    format!("{line} {name}:{}:{}", c["recovered"], c["replayed"])
                })
        }
        "ack" => format!("ack {} {}#{}", text("id"), text("channel"), place()),
        "error" => {
            text("error");
            format!(
                "error {}{}{}",
                frame["code"],
                option("channel"),
                option("id")
            )
        }
        "history" => {
            let page = if frame["messages"].is_array() {
                frame
            } else {
                &frame["data"]
            };
            let messages = page["messages"].as_array().expect("messages").iter();
            let sequences: Vec<String> = messages.map(|m| m["sequence"].to_string()).collect();
            let more = if page["hasMore"].as_bool().expect("hasMore") {
                " more"
            } else {
                ""
            };
            format!("history {} {}{more}", text("channel"), sequences.join(","))
        }
        action @ ("presence.enter" | "presence.update" | "presence.leave") => {
            let (client, state) = member(frame);
            let verb = &action["presence.".len()..];
            format!("{verb} {} {client}{state}", text("channel"))
        }
        "presence.members" => {
            let list = ["members", "data"].map(|field| frame[field].as_array());
            let list = list.into_iter().flatten().next().expect("members");
            let names = list.iter().map(|m| {
                let (client, state) = member(m);
                format!(" {client}{state}")
            });
            let cut = frame["total"].as_u64().map_or(String::new(), |n| {
                assert_eq!(frame["truncated"], true);
                format!(" of {n}")
            });
            format!(
                "members {}{}{cut}",
                text("channel"),
                names.collect::<String>()
            )
        }
        "presence.count" => {
            assert!(frame["timestamp"].is_u64(), "{frame}");
            let events = if frame["events"] == true {
                " events"
            } else {
                ""
            };
            format!("count {} {}{events}", text("channel"), frame["count"])
        }
        action => action.to_owned(),
    }
}

/// Client id and state of a member, whatever the shape.
fn member(frame: &Value) -> (String, String) {
    let nested = &frame["data"]["clientId"];
    let member = if nested.is_string() {
        assert!(frame["clientId"].is_null() || frame["clientId"] == *nested);
        &frame["data"]
    } else {
        frame
    };
    assert!(member["joinedAt"].is_u64(), "{frame}");
    let state = match &member["data"] {
        Value::Null => String::new(),
        state => {
            assert!(state.is_object(), "{frame}");
            state.to_string()
        }
    };
    (
        member["clientId"].as_str().expect("clientId").to_owned(),
        state,
    )
}
