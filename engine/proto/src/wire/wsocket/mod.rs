//! The wSocket protocol's frames: requests in (contract section 3), replies and deliveries out
//! (contract section 9).
//!
//! Not here: who may do what (`auth`), and what a request does (`shard`).
//!
//! A publish's `data` is kept as the bytes that the client sent: it is checked to be JSON and is
//! then copied into the delivery frame as it stands, so the order of its keys and the spelling of
//! its numbers survive.

mod frames;
mod presence;
mod request;

pub use frames::*;
pub use presence::*;
pub use request::*;
pub(super) use request::{string, wrong_field};

use serde_json::value::RawValue;

/// Entry point of the fuzz target `envelope`: any bytes give a request or an error, and what a
/// request carries can be sent on as valid JSON.
#[doc(hidden)]
pub fn fuzz_envelope(payload: &[u8]) {
    let Ok(payload) = std::str::from_utf8(payload) else {
        return;
    };
    let Ok(request) = parse_request(payload) else {
        return;
    };
    if let Request::Publish {
        channel, data, id, ..
    } = request
    {
        let mut out = Vec::new();
        let position = Position {
            timestamp: 1,
            sequence: Some(1),
        };
        write_message(
            &mut out,
            &channel,
            data,
            id.as_deref().unwrap_or(""),
            position,
        );
        assert!(
            serde_json::from_slice::<&RawValue>(&out).is_ok(),
            "a delivery that is not JSON"
        );
    }
}
