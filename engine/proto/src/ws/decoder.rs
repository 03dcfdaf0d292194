//! Received bytes to messages (RFC 6455 sections 5 to 8), for either end of a conn.
//!
//! A frame that lies whole in the caller's buffer is unmasked there and handed out from there. Anything else is
//! unmasked, checked and gathered as its bytes arrive, so that a broken message fails at the byte that breaks it.
//!
//! Not here: answering a PING or a Close, and what a message means.
//!
//! Invariants:
//! - Between messages nothing is allocated: [`Decoder`] is one pointer and one flag.
//! - Gathered bytes never exceed what frame headers announced, nor `message_bytes_max`.
//! - Events and errors do not depend on how the stream is cut.

use super::close;
use super::error::DecodeError;
use super::frame::{FrameHeader, HEADER_BYTES_MAX, OpCode};
use super::mask;
use super::utf8::{TextBuffer, growth};

/// Which end of the conn this decoder is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Reads what clients send: every frame must be masked.
    Server,
    /// Reads what a server sends: no frame may be masked.
    Client,
}

/// What a decoder demands; shared by all conns of a listener.
#[derive(Debug, Clone)]
pub struct DecoderConfig {
    /// Longest message in bytes, over all its fragments. Control frames have their own bound of 125.
    pub message_bytes_max: usize,
    /// Decides whether a mask is required or forbidden.
    pub role: Role,
    /// As a server, take PONG and Close without a mask, which sdk-php sends (contract 5.7).
    pub tolerate_unmasked_control: bool,
}

/// What a peer sent. Borrowed from the input or from the decoder until the next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole text message.
    Text(&'a str),
    /// A whole binary message.
    Binary(&'a [u8]),
    /// To be answered with a PONG of the same payload (at most 125 bytes).
    Ping(&'a [u8]),
    /// Answer to a PING, or unsolicited.
    Pong(&'a [u8]),
    /// The peer closes, with its code and reason if it gave them. Whatever follows is discarded.
    Close(Option<(u16, &'a str)>),
}

/// Outcome of [`Decoder::step`].
#[derive(Debug)]
pub struct Step<'a> {
    /// Bytes of the input that are done with.
    pub consumed: usize,
    /// `None` only when all of the input has been consumed.
    pub event: Option<Event<'a>>,
}

/// Turns one conn's received bytes into events.
///
/// **Call [`step`](Self::step) again on what it did not consume until it gives no event; only then has the input been
/// consumed, and a gathered message been freed.** After an error or a Close the decoder discards all input.
///
/// ```
/// use shardwire_proto::ws::{Decoder, DecoderConfig, Event, Role};
/// let config = DecoderConfig { message_bytes_max: 1024, role: Role::Server, tolerate_unmasked_control: false };
/// let mut decoder = Decoder::default();
/// let mut input = *b"\x81\x82\x00\x00\x00\x00hi\x89\x80\x00\x00\x00\x00";
/// let mut events = Vec::new();
/// let mut rest = &mut input[..];
/// loop {
///     let step = decoder.step(rest, &config).unwrap();
///     let consumed = step.consumed;
///     let Some(event) = step.event else { break };
///     events.push(format!("{event:?}"));
///     rest = &mut rest[consumed..];
/// }
/// assert_eq!(events, [r#"Text("hi")"#, "Ping([])"]);
/// ```
#[derive(Debug, Default)]
pub struct Decoder {
    /// What has been received of an unfinished frame or message, or the last event if it was gathered.
    partial: Option<Box<Partial>>,
    /// An error or a Close has been handed out.
    finished: bool,
}

const _: () = assert!(size_of::<Decoder>() <= 16);

impl Decoder {
    /// Reads `input` up to and including the next event. Payload bytes in `input` are unmasked in place.
    ///
    /// # Errors
    /// The first breach of the protocol or of `config`; it ends the stream.
    #[inline]
    pub fn step<'a>(
        &'a mut self,
        input: &'a mut [u8],
        config: &DecoderConfig,
    ) -> Result<Step<'a>, DecodeError> {
        if self.partial.is_none() && !self.finished {
            let header = FrameHeader::parse(input, None, config).inspect_err(|_| self.fail())?;
            // The hot path: a whole message or control frame, nothing held.
            if let Some(header) = header
                && header.fin
                && header.frame_len() <= input.len()
            {
                let consumed = header.frame_len();
                let (frame, _) = input.split_at_mut(consumed);
                let (_, payload) = frame.split_at_mut(header.len);
                let event = self.whole_frame(&header, payload)?;
                return Ok(Step {
                    consumed,
                    event: Some(event),
                });
            }
            if input.is_empty() {
                return Ok(Step {
                    consumed: 0,
                    event: None,
                });
            }
        }
        self.step_held(input, config)
    }

    /// Bytes allocated for a message that is not complete, or complete and not yet followed by another step.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.partial
            .as_ref()
            .map_or(0, |partial| partial.held_bytes())
    }

    /// Whether an error or a Close has been handed out, after which all input is discarded.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.finished
    }

    #[inline]
    fn whole_frame<'a>(
        &mut self,
        header: &FrameHeader,
        payload: &'a mut [u8],
    ) -> Result<Event<'a>, DecodeError> {
        if let Some(key) = header.mask {
            mask::apply(payload, key);
        }
        self.finished = header.opcode == OpCode::Close;
        frame_event(header.opcode, payload).inspect_err(|_| self.fail())
    }

    #[cold]
    fn fail(&mut self) {
        self.finished = true;
        self.partial = None;
    }

    fn step_held<'a>(
        &'a mut self,
        input: &'a mut [u8],
        config: &DecoderConfig,
    ) -> Result<Step<'a>, DecodeError> {
        let len = input.len();
        if self.finished {
            self.partial = None;
            return Ok(Step {
                consumed: len,
                event: None,
            });
        }
        let mut rest = input;
        let ready = match self
            .partial
            .get_or_insert_default()
            .advance(&mut rest, config)
        {
            Ok(ready) => ready,
            Err(error) => {
                self.fail();
                return Err(error);
            }
        };
        let consumed = len - rest.len();
        let event = match ready {
            Ready::Nothing => {
                self.partial.take_if(|partial| partial.is_empty());
                None
            }
            Ready::Whole(header, payload) => Some(self.whole_frame(&header, payload)?),
            Ready::HeldControl(opcode) => {
                self.finished = opcode == OpCode::Close;
                Some(frame_event(
                    opcode,
                    &self.partial.get_or_insert_default().control,
                )?)
            }
            Ready::HeldMessage => self
                .partial
                .get_or_insert_default()
                .message
                .as_ref()
                .map(Message::event),
        };
        Ok(Step { consumed, event })
    }
}

/// The event of a frame that is a whole message or a control frame.
#[inline]
fn frame_event(opcode: OpCode, payload: &[u8]) -> Result<Event<'_>, DecodeError> {
    Ok(match opcode {
        OpCode::Text => Event::Text(str::from_utf8(payload).map_err(|_| DecodeError::InvalidUtf8)?),
        OpCode::Binary => Event::Binary(payload),
        OpCode::Ping => Event::Ping(payload),
        OpCode::Pong => Event::Pong(payload),
        OpCode::Close => Event::Close(close::parse(payload)?),
        OpCode::Continuation => return Err(DecodeError::UnexpectedContinuation),
    })
}

/// What [`Partial::advance`] found; `Held` ones are in the `Partial`.
enum Ready<'i> {
    /// The input is used up.
    Nothing,
    /// A frame that lies whole in the input, still masked.
    Whole(FrameHeader, &'i mut [u8]),
    /// A control frame whose payload has been checked.
    HeldControl(OpCode),
    HeldMessage,
}

/// State of a stream that is inside a frame or a message.
///
/// ```text
///            ┌── whole in the input, no part of a longer message: Ready::Whole ──┐
///            ▼                                                                   │
/// awaits header (frame: None) ── header read ────────────────────────────────────┤
///            ▲                                                                   ▼
///            └── last byte: Ready::Held…, or on to the next fragment ── awaits payload (frame: Some)
/// ```
#[derive(Debug, Default)]
struct Partial {
    /// Beginning of a header cut by the end of the input.
    header: [u8; HEADER_BYTES_MAX],
    /// Bytes used of `header`.
    header_len: usize,
    /// The frame whose payload is being received; `None` while waiting for a header.
    frame: Option<OpenFrame>,
    /// Payload of a control frame cut by the end of the input.
    control: Vec<u8>,
    /// The message being gathered.
    message: Option<Message>,
    /// `message` has been handed out and goes with the next step.
    delivered: bool,
}

#[derive(Debug)]
struct OpenFrame {
    opcode: OpCode,
    fin: bool,
    /// Key turned to the next byte.
    mask: Option<[u8; 4]>,
    /// Payload bytes to come.
    left: usize,
}

#[derive(Debug)]
struct Message {
    body: Body,
    /// Payload bytes announced by its frames so far; bounds the allocation.
    announced: usize,
}

#[derive(Debug)]
enum Body {
    Text(TextBuffer),
    Binary(Vec<u8>),
}

impl Partial {
    /// Reads on until something is ready or `rest` is empty; leaves in `rest` what it did not read.
    fn advance<'i>(
        &mut self,
        rest: &mut &'i mut [u8],
        config: &DecoderConfig,
    ) -> Result<Ready<'i>, DecodeError> {
        if std::mem::take(&mut self.delivered) {
            self.message = None;
        }
        loop {
            let Some(frame) = &mut self.frame else {
                let Some(header) = self.read_header(rest, config)? else {
                    return Ok(Ready::Nothing);
                };
                let is_whole = header.opcode.is_control()
                    || (header.fin && header.opcode != OpCode::Continuation);
                if is_whole && header.payload_len <= rest.len() {
                    return Ok(Ready::Whole(header, take(rest, header.payload_len)));
                }
                self.open_frame(&header);
                continue;
            };
            if rest.is_empty() && frame.left > 0 {
                return Ok(Ready::Nothing);
            }
            let piece = take(rest, frame.left.min(rest.len()));
            if let Some(key) = &mut frame.mask {
                mask::apply(piece, *key);
                *key = mask::rotate(*key, piece.len());
            }
            frame.left -= piece.len();
            let (opcode, ends_frame, ends_message) =
                (frame.opcode, frame.left == 0, frame.left == 0 && frame.fin);
            if ends_frame {
                self.frame = None;
            }
            if opcode.is_control() {
                self.control.extend_from_slice(piece);
                if ends_frame {
                    frame_event(opcode, &self.control)?;
                    return Ok(Ready::HeldControl(opcode));
                }
            } else if let Some(message) = &mut self.message {
                message.push(piece)?;
                if ends_message {
                    message.finish()?;
                    self.delivered = true;
                    return Ok(Ready::HeldMessage);
                }
            }
        }
    }

    /// The next header, from the bytes kept and those in `rest`; keeps them when they do not suffice.
    fn read_header(
        &mut self,
        rest: &mut &mut [u8],
        config: &DecoderConfig,
    ) -> Result<Option<FrameHeader>, DecodeError> {
        let kept = self.header_len;
        let mut filled = kept;
        for (slot, byte) in self.header.iter_mut().skip(kept).zip(rest.iter()) {
            *slot = *byte;
            filled += 1;
        }
        let announced = self.message.as_ref().map(|message| message.announced);
        let header = FrameHeader::parse(
            self.header.get(..filled).unwrap_or_default(),
            announced,
            config,
        )?;
        match &header {
            Some(header) => {
                self.header_len = 0;
                take(rest, header.len - kept);
            }
            None => {
                self.header_len = filled;
                take(rest, filled - kept);
            }
        }
        Ok(header)
    }

    fn open_frame(&mut self, header: &FrameHeader) {
        let FrameHeader {
            opcode,
            fin,
            mask,
            payload_len,
            ..
        } = *header;
        self.frame = Some(OpenFrame {
            opcode,
            fin,
            mask,
            left: payload_len,
        });
        match opcode {
            OpCode::Text => {
                self.message = Some(Message::new(Body::Text(TextBuffer::default()), payload_len))
            }
            OpCode::Binary => {
                self.message = Some(Message::new(Body::Binary(Vec::new()), payload_len))
            }
            OpCode::Continuation => {
                if let Some(message) = &mut self.message {
                    message.announced += payload_len;
                }
            }
            OpCode::Close | OpCode::Ping | OpCode::Pong => self.control.clear(),
        }
    }

    /// Nothing of the stream is held: the decoder can do without it.
    fn is_empty(&self) -> bool {
        self.header_len == 0 && self.frame.is_none() && self.message.is_none()
    }

    fn held_bytes(&self) -> usize {
        let message = match self.message.as_ref().map(|message| &message.body) {
            Some(Body::Text(text)) => text.capacity(),
            Some(Body::Binary(bytes)) => bytes.capacity(),
            None => 0,
        };
        size_of::<Self>() + self.control.capacity() + message
    }
}

impl Message {
    fn new(body: Body, announced: usize) -> Self {
        Self { body, announced }
    }

    fn push(&mut self, piece: &[u8]) -> Result<(), DecodeError> {
        match &mut self.body {
            Body::Text(text) => text.push(piece, self.announced)?,
            Body::Binary(bytes) => {
                bytes.reserve_exact(growth(
                    bytes.len(),
                    bytes.capacity(),
                    piece.len(),
                    self.announced,
                ));
                bytes.extend_from_slice(piece);
            }
        }
        Ok(())
    }

    fn finish(&self) -> Result<(), DecodeError> {
        match &self.body {
            Body::Text(text) => Ok(text.finish()?),
            Body::Binary(_) => Ok(()),
        }
    }

    fn event(&self) -> Event<'_> {
        match &self.body {
            Body::Text(text) => Event::Text(text.as_str()),
            Body::Binary(bytes) => Event::Binary(bytes),
        }
    }
}

/// Splits the first `len` bytes off `rest`; `len` is at most its length.
fn take<'i>(rest: &mut &'i mut [u8], len: usize) -> &'i mut [u8] {
    let (taken, left) = std::mem::take(rest).split_at_mut(len);
    *rest = left;
    taken
}
