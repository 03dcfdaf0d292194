//! A relay to test the generator against: the plain protocol, HTTP publishes, and as much of the wSocket
//! and Pusher protocols as the generator speaks. One blocking thread per connection; it can be told to err.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::thread;

use data_encoding::{BASE64, BASE64URL_NOPAD};
use shardwire_loadtest::frame;

/// What the relay does wrong, once, to the first subscriber of a topic.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// The 5th message is left out.
    Lose,
    /// The 5th message is sent twice.
    Repeat,
    /// The 5th message is sent after the 6th.
    Swap,
    /// The connection is closed at the 5th message.
    Close,
    /// Resumes leave out the oldest missed message.
    ForgetMissed,
    /// Resumes send one message more than was missed.
    RepeatReceived,
    /// The 5th publish is neither delivered nor acknowledged.
    Refuse,
}

const FAULTY: usize = 5;

#[derive(Default)]
struct Topic {
    subscribers: Vec<TcpStream>,
    published: usize,
    held: Vec<u8>,
    /// Stored messages with their timestamps (wSocket).
    log: Vec<(u64, serde_json::Value)>,
    members: HashSet<String>,
}

#[derive(Clone)]
struct Relay {
    topics: Arc<Mutex<HashMap<String, Topic>>>,
    fault: Fault,
    refused: Arc<AtomicBool>,
}

/// Starts a relay on a port of the kernel's choice, which is returned. It ends with the process.
pub(crate) fn start(fault: Fault) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let relay = Relay {
        topics: Arc::default(),
        fault,
        refused: Arc::default(),
    };
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let relay = relay.clone();
            thread::spawn(move || relay.serve(stream));
        }
    });
    port
}

impl Relay {
    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let mut input = Vec::new();
        let head = loop {
            if let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") {
                break input.drain(..end + 4).collect::<Vec<u8>>();
            }
            read_more(&mut stream, &mut input)?;
        };
        let head = String::from_utf8(head).ok()?;
        let mut words = head.split(' ');
        let (method, target) = (words.next()?, words.next()?.to_owned());
        if method == "POST" {
            return self.serve_http(stream, input, head);
        }
        if target == "/?key=refused" {
            return stream
                .write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
                .ok();
        }
        let mut accept = Vec::new();
        frame::encode_accept(&mut accept);
        stream.write_all(&accept).ok()?;
        if target.starts_with("/app/") {
            let hello = r#"{"event":"pusher:connection_established","data":"{\"socket_id\":\"7.9\",\"activity_timeout\":9}"}"#;
            send(&mut stream, hello)?;
        }
        let echo = target.strip_prefix("/echo/");
        if let Some(topic) = target.strip_prefix("/sub/").or(echo) {
            self.subscribe(topic, &stream);
        }
        loop {
            while let Some((_, payload, used)) = frame::parse_masked(&input) {
                input.drain(..used);
                match target.strip_prefix("/pub/").or(echo) {
                    Some(topic) => self.publish(topic, &payload),
                    None if target.starts_with("/app/") => {
                        self.handle_pusher(&payload, &mut stream)?
                    }
                    None => self.handle_wsocket(&payload, &target, &mut stream)?,
                }
            }
            read_more(&mut stream, &mut input)?;
        }
    }

    /// Keeps the connection for a few requests, then closes it as servers do.
    fn serve_http(
        &self,
        mut stream: TcpStream,
        mut input: Vec<u8>,
        mut head: String,
    ) -> Option<()> {
        for request in 0.. {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("Content-Length: "))?;
            let length: usize = length.parse().ok()?;
            while input.len() < length {
                read_more(&mut stream, &mut input)?;
            }
            let body: Vec<u8> = input.drain(..length).collect();
            let topic = head.split(' ').nth(1)?.strip_prefix("/pub/")?.to_owned();
            self.publish(&topic, &body);
            let is_last = request == 3;
            let connection = if is_last { "close" } else { "keep-alive" };
            let text = format!(
                "HTTP/1.1 200 OK\r\nConnection: {connection}\r\nContent-Length: 2\r\n\r\n{{}}"
            );
            stream.write_all(text.as_bytes()).ok()?;
            if is_last {
                break;
            }
            let end = loop {
                if let Some(end) = input.windows(4).position(|window| window == b"\r\n\r\n") {
                    break end;
                }
                read_more(&mut stream, &mut input)?;
            };
            head = String::from_utf8(input.drain(..end + 4).collect()).ok()?;
        }
        Some(())
    }

    fn handle_wsocket(&self, payload: &[u8], target: &str, stream: &mut TcpStream) -> Option<()> {
        let json: serde_json::Value = serde_json::from_slice(payload).ok()?;
        if json["action"] == "resume" {
            let token = json["resumeToken"].as_str().or(json["token"].as_str());
            return self.resume(token?, stream);
        }
        if json["action"] == "ping" {
            return send(stream, r#"{"action":"pong"}"#);
        }
        let channel = json["channel"].as_str()?;
        if json["action"] == "presence.enter" {
            return self.enter(channel, target);
        }
        let reply = if json["action"] == "subscribe" {
            self.subscribe(channel, stream);
            serde_json::json!({"action": "subscribed", "channel": channel})
        } else {
            let (data, id) = (&json["data"], &json["id"]);
            if !self.store(channel, data, id) {
                return Some(());
            }
            serde_json::json!({"action": "ack", "id": id, "channel": channel})
        };
        send(stream, &reply.to_string())
    }

    /// A client may enter once. [`Fault::Refuse`]: the first that does is cut off.
    fn enter(&self, channel: &str, target: &str) -> Option<()> {
        let (_, client_id) = target.split_once("&clientId=")?;
        if self.fault == Fault::Refuse && !self.refused.swap(true, Relaxed) {
            return None;
        }
        let mut topics = self.topics.lock().unwrap();
        let members = &mut topics.entry(channel.to_owned()).or_default().members;
        members.insert(client_id.to_owned()).then_some(())
    }

    /// Numbers, keeps and publishes a message. All channels share one clock, which rises with every third.
    fn store(&self, channel: &str, data: &serde_json::Value, id: &serde_json::Value) -> bool {
        let mut topics = self.topics.lock().unwrap();
        let stored: usize = topics.values().map(|topic| topic.log.len()).sum();
        if self.fault == Fault::Refuse && stored == FAULTY && !self.refused.swap(true, Relaxed) {
            return false;
        }
        let timestamp = 1000 + stored as u64 / 3;
        let log = &mut topics.entry(channel.to_owned()).or_default().log;
        let mut message =
            serde_json::json!({"action": "message", "channel": channel, "data": data, "id": id});
        message["timestamp"] = timestamp.into();
        message["sequence"] = (log.len() + 1).into();
        log.push((timestamp, message.clone()));
        self.publish_to(&mut topics, channel, message.to_string().as_bytes());
        true
    }

    /// As the contract's D19 has it.
    fn resume(&self, token: &str, stream: &mut TcpStream) -> Option<()> {
        let token = token.as_bytes();
        let token = BASE64
            .decode(token)
            .or_else(|_| BASE64URL_NOPAD.decode(token));
        let token: serde_json::Value = serde_json::from_slice(&token.ok()?).ok()?;
        let last_ts = token["lastTs"].as_u64().or(token["since"].as_u64())?;
        let channels = token["channels"].as_array()?.iter();
        let channels: Vec<&str> = channels.filter_map(|channel| channel.as_str()).collect();
        let mut topics = self.topics.lock().unwrap();
        let logs = channels.iter().filter_map(|&channel| topics.get(channel));
        let ties = logs
            .flat_map(|topic| &topic.log)
            .filter(|m| m.0 == last_ts)
            .count();
        let first = if ties > 1 { last_ts } else { last_ts + 1 };
        for channel in channels {
            let topic = topics.entry(channel.to_owned()).or_default();
            send(
                stream,
                &serde_json::json!({"action": "subscribed", "channel": channel}).to_string(),
            )?;
            let from = topic.log.partition_point(|message| message.0 < first);
            let from = match self.fault {
                Fault::ForgetMissed => from + 1,
                Fault::RepeatReceived => from.saturating_sub(1),
                _ => from,
            };
            for (_, message) in topic.log.iter().skip(from) {
                let mut message = message.clone();
                message["replay"] = true.into();
                send(stream, &message.to_string())?;
            }
            topic.subscribers.push(stream.try_clone().ok()?);
        }
        send(
            stream,
            r#"{"action":"ack","id":"resume","data":{"channels":{}}}"#,
        )
    }

    /// Publishers are subscribers here, and get their own messages too.
    fn handle_pusher(&self, payload: &[u8], stream: &mut TcpStream) -> Option<()> {
        let json: serde_json::Value = serde_json::from_slice(payload).ok()?;
        if json["event"] != "pusher:subscribe" {
            self.publish(json["channel"].as_str()?, payload);
            return Some(());
        }
        let (channel, auth) = (
            json["data"]["channel"].as_str()?,
            json["data"]["auth"].as_str()?,
        );
        let is_signed = auth
            .strip_prefix("k:")
            .is_some_and(|signature| signature.len() == 64);
        let event = if is_signed {
            "pusher_internal:subscription_succeeded"
        } else {
            "pusher:error"
        };
        self.subscribe(channel, stream);
        send(
            stream,
            &format!(r#"{{"event":"{event}","channel":"{channel}","data":"{{}}"}}"#),
        )
    }

    fn subscribe(&self, topic: &str, stream: &TcpStream) {
        let mut topics = self.topics.lock().unwrap();
        topics
            .entry(topic.to_owned())
            .or_default()
            .subscribers
            .push(stream.try_clone().unwrap());
    }

    fn publish(&self, topic: &str, payload: &[u8]) {
        self.publish_to(&mut self.topics.lock().unwrap(), topic, payload);
    }

    fn publish_to(&self, topics: &mut HashMap<String, Topic>, topic: &str, payload: &[u8]) {
        let topic = topics.entry(topic.to_owned()).or_default();
        topic.published += 1;
        let number = topic.published;
        let mut frame = Vec::new();
        frame::encode_unmasked(payload, &mut frame);
        for (index, subscriber) in topic.subscribers.iter_mut().enumerate() {
            let fault = if index == 0 { self.fault } else { Fault::None };
            let bytes = match (fault, number) {
                (Fault::Lose, FAULTY) => Vec::new(),
                (Fault::Repeat, FAULTY) => frame.repeat(2),
                (Fault::Swap, FAULTY) => {
                    topic.held = frame.clone();
                    Vec::new()
                }
                (Fault::Swap, 6) => [&frame[..], &topic.held].concat(),
                (Fault::Close, FAULTY) => {
                    let _ = subscriber.shutdown(std::net::Shutdown::Both);
                    Vec::new()
                }
                _ => frame.clone(),
            };
            // A subscriber that is gone is not missed.
            let _ = subscriber.write_all(&bytes);
        }
    }
}

fn send(stream: &mut TcpStream, text: &str) -> Option<()> {
    let mut out = Vec::new();
    frame::encode_unmasked(text.as_bytes(), &mut out);
    stream.write_all(&out).ok()
}

/// `None` at the end of the stream.
fn read_more(stream: &mut TcpStream, input: &mut Vec<u8>) -> Option<()> {
    let mut buffer = [0; 4096];
    match stream.read(&mut buffer) {
        Ok(0) | Err(_) => None,
        Ok(n) => {
            input.extend_from_slice(&buffer[..n]);
            Some(())
        }
    }
}
