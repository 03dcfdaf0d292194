//! `subscribe`: a client of its own, with a token that it has the server sign.
//!
//! It keeps its place by sequence and epoch, so that what is missed while its connection is lost comes when it is back.
//! Invariant: stored messages are printed in the order of their sequences, each once.

use std::borrow::Cow;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

use super::Session;
use super::connections::channel_path;
use crate::cli::Subscribe;
use crate::client::{Client, Query, part};
use crate::failure::Failure;
use crate::output;

/// Seconds a token is valid: when it ends the connection does, and the next one has another token.
const TOKEN_TTL_S: u64 = 3600;
/// The server says something every 25 s; more silence than this is a lost connection.
const SILENCE: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Pauses between attempts to come back; the last one again and again.
const PAUSES_MS: [u64; 5] = [200, 500, 1000, 2000, 5000];

/// What the server sends, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Frame<'a> {
    #[serde(borrow)]
    action: Cow<'a, str>,
    #[serde(borrow)]
    channel: Option<Cow<'a, str>>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(borrow)]
    id: Option<Cow<'a, str>>,
    timestamp: Option<u64>,
    sequence: Option<u64>,
    epoch: Option<Cow<'a, str>>,
    recovered: Option<bool>,
    #[serde(borrow)]
    error: Option<Cow<'a, str>>,
    code: Option<u64>,
}

/// A place in the channel.
#[derive(Debug, Clone)]
struct Place {
    epoch: String,
    sequence: u64,
}

/// Why a connection is over.
enum Over {
    /// As many messages as were asked for have been printed.
    Done,
    /// It is worth coming back.
    Lost(String),
    Failed(Failure),
}

impl From<Failure> for Over {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

struct Tail<'a> {
    session: Session<'a>,
    command: &'a Subscribe,
    place: Option<Place>,
    /// Messages printed.
    printed: u64,
}

impl Session<'_> {
    pub(super) fn subscribe(self, command: &Subscribe) -> Result<(), Failure> {
        let mut tail = Tail {
            session: self,
            command,
            place: None,
            printed: 0,
        };
        let mut attempts = 0;
        loop {
            match tail.follow(&mut attempts) {
                Over::Done => return Ok(()),
                Over::Failed(failure) => return Err(failure),
                Over::Lost(why) if tail.place.is_none() => return Err(Failure::Unreachable(why)),
                Over::Lost(why) => {
                    let last = PAUSES_MS.len() - 1;
                    let pause = PAUSES_MS[last.min(attempts)];
                    if attempts == 0 {
                        eprintln!("{why}; coming back");
                    }
                    attempts += 1;
                    thread::sleep(Duration::from_millis(pause));
                }
            }
        }
    }
}

impl Tail<'_> {
    /// Follows the channel over one connection.
    fn follow(&mut self, attempts: &mut usize) -> Over {
        let mut socket = match self.connect() {
            Ok(socket) => socket,
            Err(over) => return over,
        };
        let since = self.place.as_ref().map_or_else(
            || json!({}),
            |place| json!({ "sequence": place.sequence, "epoch": place.epoch }),
        );
        let ask = json!({ "action": "subscribe", "channel": self.command.channel, "since": since });
        if let Err(error) = socket.send(Message::text(ask.to_string())) {
            return Over::Lost(error.to_string());
        }
        loop {
            let text = match socket.read() {
                Ok(Message::Text(text)) => text,
                Ok(Message::Close(frame)) => {
                    let why =
                        frame.map_or_else(String::new, |f| format!(": {} {}", f.code, f.reason));
                    return Over::Lost(format!("the server has ended the connection{why}"));
                }
                Ok(_) => continue,
                Err(error) => return Over::Lost(format!("connection lost: {error}")),
            };
            match self.handle(&text) {
                Ok(()) => *attempts = 0,
                Err(over) => {
                    if matches!(over, Over::Done) {
                        // The server should not have to find out; it may be gone itself.
                        let _ = socket.close(None).and_then(|()| socket.flush());
                    }
                    return over;
                }
            }
        }
    }

    fn handle(&mut self, text: &str) -> Result<(), Over> {
        let Ok(frame) = serde_json::from_str::<Frame<'_>>(text) else {
            return Ok(());
        };
        if frame.channel.as_deref() != Some(&*self.command.channel) {
            return Ok(());
        }
        match &*frame.action {
            "subscribed" => self.enter(&frame),
            "message" => self.print(text, &frame),
            "error" => Err(Over::Failed(Failure::Refused {
                status: 400,
                code: frame.code.unwrap_or_default(),
                text: without_code(&frame.error.unwrap_or_default()).to_owned(),
            })),
            _ => Ok(()),
        }
    }

    /// The place is known; what came before it is printed as far as it was asked for.
    fn enter(&mut self, frame: &Frame<'_>) -> Result<(), Over> {
        let (Some(epoch), Some(sequence)) = (&frame.epoch, frame.sequence) else {
            return Ok(());
        };
        if self.place.is_some() {
            if frame.recovered == Some(false) {
                eprintln!("some messages were missed");
            }
            // What was missed follows, from the old place on, unless the channel is numbered anew.
            if let Some(place) = self.place.as_mut()
                && place.epoch != **epoch
            {
                place.epoch = epoch.clone().into_owned();
                place.sequence = 0;
            }
            return Ok(());
        }
        self.place = Some(Place {
            epoch: epoch.clone().into_owned(),
            sequence: 0,
        });
        if !self.session.json {
            eprintln!("following {}; Ctrl-C ends", self.command.channel);
        }
        if self.command.rewind > 0 {
            self.print_past(sequence)?;
        }
        if let Some(place) = self.place.as_mut() {
            place.sequence = sequence;
        }
        Ok(())
    }

    /// Prints the messages up to `through` that `--rewind` asks for.
    fn print_past(&mut self, through: u64) -> Result<(), Over> {
        let mut query = Query::default();
        query.set("limit", self.command.rewind);
        query.set("beforeSeq", through + 1);
        let channel = channel_path(&self.command.app.app, &self.command.channel);
        let path = query.path(&format!("{channel}/messages"));
        let page = self.session.client.get(&path)?;
        let messages = page["messages"].as_array().into_iter().flatten().rev();
        // A page is not cut between messages of one millisecond: it may hold more than was asked for.
        let asked = usize::try_from(self.command.rewind).unwrap_or(usize::MAX);
        let count = page["messages"].as_array().map_or(0, Vec::len);
        for message in messages.skip(count.saturating_sub(asked)) {
            let mut message = message.clone();
            message["action"] = "message".into();
            message["replay"] = true.into();
            let text = message.to_string();
            if let Ok(frame) = serde_json::from_str(&text) {
                self.print(&text, &frame)?;
            }
        }
        Ok(())
    }

    fn print(&mut self, text: &str, frame: &Frame<'_>) -> Result<(), Over> {
        if let (Some(place), Some(sequence)) = (self.place.as_mut(), frame.sequence) {
            if sequence <= place.sequence {
                return Ok(());
            }
            place.sequence = sequence;
        }
        if self.session.json {
            output::line(text)?;
        } else {
            let time = output::time(&frame.timestamp.into());
            let sequence = frame
                .sequence
                .map_or_else(|| "-".to_owned(), |n| n.to_string());
            let id = frame.id.as_deref().unwrap_or_default();
            let data = frame.data.map_or("null", RawValue::get);
            let line = format!("{time}  {sequence:>6}  {id}  {data}");
            output::line(&output::clean(&line))?;
        }
        self.printed += 1;
        match self.command.count {
            Some(count) if self.printed >= count => Err(Over::Done),
            _ => Ok(()),
        }
    }

    fn connect(&self) -> Result<WebSocket<TcpStream>, Over> {
        let client = self.session.client;
        let host = match &self.command.socket {
            Some(url) => host_of(url)?.to_owned(),
            None => self.lost(public_address(client))?,
        };
        let token = self.lost(self.mint())?;
        let lost = |error: &dyn std::fmt::Display| Over::Lost(format!("ws://{host}: {error}"));
        let addresses = host.to_socket_addrs().map_err(|error| lost(&error))?;
        let mut stream = Err(lost(&"no address"));
        for address in addresses {
            stream = TcpStream::connect_timeout(&address, CONNECT_TIMEOUT).map_err(|e| lost(&e));
            if stream.is_ok() {
                break;
            }
        }
        let stream = stream?;
        for set in [
            stream.set_read_timeout(Some(SILENCE)),
            stream.set_write_timeout(Some(SILENCE)),
        ] {
            set.map_err(|error| lost(&error))?;
        }
        let url = format!("ws://{host}/?token={token}");
        let request = url.into_client_request().map_err(|error| lost(&error))?;
        match tungstenite::client(request, stream) {
            Ok((socket, _)) => Ok(socket),
            Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(answer))) => {
                let status = answer.status().as_u16();
                let body = answer.into_body().unwrap_or_default();
                let body: Value = serde_json::from_slice(&body).unwrap_or_default();
                let text = body["error"].as_str().unwrap_or("refused").to_owned();
                if matches!(status, 429 | 503) {
                    return Err(lost(&text));
                }
                Err(Over::Failed(Failure::Refused {
                    // It is not the admin token that was refused.
                    status: 403,
                    code: body["code"].as_u64().unwrap_or(u64::from(status) * 100),
                    text,
                }))
            }
            Err(error) => Err(lost(&error)),
        }
    }

    /// A token for this channel alone.
    fn mint(&self) -> Result<String, Failure> {
        let channel = &self.command.channel;
        let wanted = json!({ "ttlS": TOKEN_TTL_S, "capabilities": { channel: ["subscribe"] } });
        let path = format!("/admin/apps/{}/tokens", part(&self.command.app.app));
        let made = self.session.client.post(&path, &wanted)?;
        let token = made["token"].as_str().map(str::to_owned);
        token.ok_or_else(|| Failure::Failed("the server has signed no token".into()))
    }

    /// Once there is a place to come back to, a server that does not answer may yet do so.
    fn lost<T>(&self, result: Result<T, Failure>) -> Result<T, Over> {
        result.map_err(|failure| match failure {
            Failure::Unreachable(why) if self.place.is_some() => Over::Lost(why),
            Failure::Refused {
                status: 503, text, ..
            } if self.place.is_some() => Over::Lost(text),
            other => Over::Failed(other),
        })
    }
}

/// Where the server's public listener can be reached from here.
fn public_address(client: &Client) -> Result<String, Failure> {
    let answer = client.get("/admin/nodes")?;
    let listen = answer["nodes"][0]["listen"].as_str().unwrap_or_default();
    let address: SocketAddr = listen
        .parse()
        .map_err(|_| Failure::Failed("the server names no public listener; use --socket".into()))?;
    Ok(if address.ip().is_unspecified() {
        format!("{}:{}", client.host(), address.port())
    } else {
        address.to_string()
    })
}

/// Host and port of a `ws://` URL.
fn host_of(url: &str) -> Result<&str, Failure> {
    let wrong = || Failure::Usage(format!("{url}: give ws://host:port"));
    let host = url
        .strip_prefix("ws://")
        .ok_or_else(wrong)?
        .trim_end_matches('/');
    if host.contains('/') || !host.contains(':') {
        return Err(wrong());
    }
    Ok(host)
}

/// The text of an error frame, which repeats its code.
fn without_code(text: &str) -> &str {
    text.rsplit_once(" [").map_or(text, |(text, _)| text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_given_with_its_port() {
        assert_eq!(host_of("ws://a:1").ok(), Some("a:1"));
        assert_eq!(host_of("ws://[::1]:9001/").ok(), Some("[::1]:9001"));
        for wrong in ["a:1", "wss://a:1", "ws://a", "ws://a:1/x"] {
            assert!(host_of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_error_is_told_with_one_code() {
        assert_eq!(without_code("not permitted [40300]"), "not permitted");
        assert_eq!(without_code("plain"), "plain");
    }
}
