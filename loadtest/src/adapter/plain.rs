//! Servers that relay every frame of a path to the other connections of that path.
//!
//! Subscribers and publishers may use different paths (Nchan has a location for each, the Bun example
//! subscribes only those that ask), so that a publisher is not sent its own messages.

use super::{Duty, Outgoing, encode_post};
use crate::frame::{self, Opcode};
use crate::opts::TargetOpts;
use crate::stamp::encode_payload;

/// Paths, in which `{channel}` stands for the channel's name.
#[derive(Clone, Debug)]
pub struct Plain {
    subscribe_path: String,
    publish_path: String,
    echo_path: String,
}

impl Plain {
    /// Takes the paths from the options.
    pub fn new(opts: &TargetOpts) -> Self {
        Self {
            subscribe_path: opts.subscribe_path.clone(),
            publish_path: opts.publish_path.clone(),
            echo_path: opts.echo_path.clone(),
        }
    }

    pub(super) fn target(&self, duty: Duty, channel: &str) -> String {
        let path = match duty {
            Duty::Subscribe => &self.subscribe_path,
            Duty::Publish | Duty::Member => &self.publish_path,
            Duty::Echo => &self.echo_path,
        };
        path.replace("{channel}", channel)
    }

    pub(super) fn encode_publish(&self, message: Outgoing<'_>, out: &mut Vec<u8>) {
        frame::encode_with(Opcode::Text, out, |out| {
            encode_payload(message.stamp, message.size, out)
        });
    }

    pub(super) fn encode_http(&self, host: &str, message: Outgoing<'_>, out: &mut Vec<u8>) {
        let mut body = Vec::with_capacity(message.size);
        encode_payload(message.stamp, message.size, &mut body);
        encode_post(
            host,
            &self.target(Duty::Publish, message.channel),
            "",
            &body,
            out,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::unmask;
    use super::*;
    use crate::stamp::Stamp;

    #[test]
    fn path_and_payload() {
        let plain = Plain {
            subscribe_path: "/sub/{channel}".into(),
            publish_path: "/pub/{channel}?x=1".into(),
            echo_path: "/echo/{channel}".into(),
        };
        assert_eq!(plain.target(Duty::Subscribe, "c-1"), "/sub/c-1");
        assert_eq!(plain.target(Duty::Echo, "c-1"), "/echo/c-1");
        assert_eq!(plain.target(Duty::Publish, "c-1"), "/pub/c-1?x=1");
        let mut out = Vec::new();
        let stamp = Stamp {
            stream: 0,
            seq: 0,
            sent_ns: 1,
        };
        plain.encode_publish(
            Outgoing {
                channel: "c-1",
                stamp,
                size: 64,
            },
            &mut out,
        );
        assert_eq!(unmask(&out).len(), 64);
    }
}
