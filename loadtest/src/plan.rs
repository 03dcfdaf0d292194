//! Who publishes what to whom in one run: channels, their subscribers, and the streams that feed them.
//!
//! Pure data, built once by a scenario and then shared read-only by all generator threads. Invariants:
//! the streams of a channel are a contiguous range, and every stream has exactly one publisher.

use std::ops::Range;

/// How a stream decides when to send.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// Closed loop: at most this many messages not yet with their last subscriber.
    InFlight(u32),
    /// Open loop: this many messages per second, whatever happens.
    Rate(f64),
    /// Only when told.
    OnDemand,
}

/// A channel and how many connections subscribe to it.
#[derive(Clone, Debug)]
pub struct Channel {
    /// Name on the wire (adapters may add a prefix that their protocol needs).
    pub name: String,
    /// Connections that subscribe and are checked.
    pub subscribers: u32,
    /// Streams that publish to it.
    pub streams: Range<u32>,
}

/// One publisher's messages to one channel, numbered from 0.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// Index of the channel.
    pub channel: u32,
    /// Index of the publisher.
    pub publisher: u32,
    /// When it sends.
    pub pace: Pace,
}

/// How a publisher reaches the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// A WebSocket connection of the protocol under test.
    Socket,
    /// Requests on one kept-alive HTTP connection, one at a time.
    Http,
    /// The connection of the channel's one subscriber, which gets its own messages.
    Subscriber,
}

/// A connection that publishes.
#[derive(Clone, Debug)]
pub struct Publisher {
    /// Socket or HTTP.
    pub via: Via,
    /// Indices of its streams.
    pub streams: Vec<u32>,
}

/// Connections that come and go.
#[derive(Clone, Copy, Debug, Default)]
pub struct Churn {
    /// Channel that each subscribes to.
    pub channel: u32,
    /// How many are held open before the oldest is closed.
    pub hold: u32,
    /// How many may be connecting at a time.
    pub window: u32,
    /// Connects per second, spread over the threads; `None`: as fast as they complete.
    pub rate: Option<f64>,
}

impl Churn {
    /// Connections that exist at most; 0 means that there is no churn.
    pub fn slots(&self) -> u32 {
        if self.window == 0 {
            0
        } else {
            self.hold + self.window
        }
    }
}

/// How connections that hold several channels are cut.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cuts {
    /// Per second, spread over the threads.
    pub rate: f64,
    /// Longest time away.
    pub away_ms: u64,
    /// Messages up to this much below a token's timestamp may come again.
    pub overlap_ms: u64,
    /// Cut those too whose resume is under way.
    pub cut_resuming: bool,
    /// Seed of all choices.
    pub seed: u64,
}

/// Everything a run does.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// All channels.
    pub channels: Vec<Channel>,
    /// All streams, those of one channel next to each other.
    pub streams: Vec<Stream>,
    /// All publishers.
    pub publishers: Vec<Publisher>,
    /// Connections that come and go while the rest runs.
    pub churn: Churn,
    /// Channels of each connection that is cut and resumes. They have one stream each, and their
    /// `subscribers` do not count these connections.
    pub clients: Vec<Vec<u32>>,
    /// How these are cut.
    pub cuts: Cuts,
    /// Named connections that enter the first channel, which do not subscribe.
    pub members: u32,
}

/// A part of a plan: alike channels with their publishers.
#[derive(Clone, Debug)]
pub struct Group {
    /// Start of the channel names.
    pub prefix: String,
    /// How many channels.
    pub channels: u32,
    /// Subscribers of each channel.
    pub subscribers: u32,
    /// Publishers of each channel, when not shared.
    pub publishers: u32,
    /// Publishers that serve all channels of the group between them, instead of `publishers`.
    pub shared_publishers: Option<u32>,
    /// Pace of each stream.
    pub pace: Pace,
    /// How the publishers connect.
    pub via: Via,
}

impl Plan {
    /// Adds the channels, publishers and streams of `group`.
    pub fn add(&mut self, group: &Group) {
        let first_publisher = self.publishers.len() as u32;
        let publishers = match group.shared_publishers {
            Some(shared) => shared.min(group.channels),
            None => group.publishers * group.channels,
        };
        self.publishers.extend((0..publishers).map(|_| Publisher {
            via: group.via,
            streams: Vec::new(),
        }));
        for index in 0..group.channels {
            let first_stream = self.streams.len() as u32;
            let of_channel = match group.shared_publishers {
                Some(_) => {
                    first_publisher + index % publishers..first_publisher + index % publishers + 1
                }
                None => {
                    let first = first_publisher + index * group.publishers;
                    first..first + group.publishers
                }
            };
            for publisher in of_channel {
                let stream = self.streams.len() as u32;
                let channel = self.channels.len() as u32;
                self.streams.push(Stream {
                    channel,
                    publisher,
                    pace: group.pace,
                });
                self.publishers[publisher as usize].streams.push(stream);
            }
            self.channels.push(Channel {
                name: format!("{}-{index}", group.prefix),
                subscribers: group.subscribers,
                streams: first_stream..self.streams.len() as u32,
            });
        }
    }

    /// Checked subscriber connections.
    pub fn subscribers(&self) -> u64 {
        let single: u64 = self.channels.iter().map(|c| u64::from(c.subscribers)).sum();
        single + self.clients.len() as u64
    }

    /// Adds `clients` connections with `each` channels apiece, spread evenly over all of the plan's.
    pub fn add_clients(&mut self, clients: u32, each: u32) {
        let channels = self.channels.len() as u32;
        let of_client = |client: u32| (0..each).map(move |nth| (client * each + nth) % channels);
        self.clients
            .extend((0..clients).map(|client| of_client(client).collect()));
    }

    /// Connections that must be there before the run starts.
    pub fn connections(&self) -> u64 {
        let own = self
            .publishers
            .iter()
            .filter(|p| p.via != Via::Subscriber)
            .count();
        self.subscribers() + own as u64 + u64::from(self.members)
    }

    /// The publisher that shares the connection of the subscriber of `channel`.
    pub fn publisher_of_subscriber(&self, channel: u32) -> Option<u32> {
        let stream = self.channels[channel as usize].streams.clone().next()?;
        let publisher = self.streams[stream as usize].publisher;
        (self.publishers[publisher as usize].via == Via::Subscriber).then_some(publisher)
    }

    /// Slots of the completion window of each stream: a power of two, twice the messages in flight.
    pub fn window(&self) -> u32 {
        let in_flight = self.streams.iter().map(|s| match s.pace {
            Pace::InFlight(n) => n,
            Pace::Rate(_) => 128,
            Pace::OnDemand => 1,
        });
        (in_flight.max().unwrap_or(1).max(1) * 2).next_power_of_two()
    }

    /// The thread, of `threads`, that holds subscriber `index` (counted over the plan) of `channel`.
    pub fn thread_of_subscriber(&self, channel: u32, index: u64, threads: usize) -> usize {
        // A small channel stays on one thread, so that its completions need no other thread.
        if self.channels.len() >= threads * 4 {
            channel as usize % threads
        } else {
            (index % threads as u64) as usize
        }
    }

    /// The thread, of `threads`, that holds `publisher`.
    pub fn thread_of_publisher(&self, publisher: u32, threads: usize) -> usize {
        let channel = self.publishers[publisher as usize]
            .streams
            .first()
            .map(|&s| self.streams[s as usize].channel);
        match channel {
            // Such channels are alone in their plan and have one subscriber each, so the numbers agree.
            Some(channel) if self.publishers[publisher as usize].via == Via::Subscriber => {
                self.thread_of_subscriber(channel, u64::from(channel), threads)
            }
            Some(channel) if self.channels.len() >= threads * 4 => channel as usize % threads,
            _ => publisher as usize % threads,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(channels: u32, publishers: u32, shared: Option<u32>) -> Group {
        Group {
            prefix: "c".into(),
            channels,
            subscribers: 3,
            publishers,
            shared_publishers: shared,
            pace: Pace::InFlight(4),
            via: Via::Socket,
        }
    }

    #[test]
    fn own_publishers_each_have_one_stream() {
        let mut plan = Plan::default();
        plan.add(&group(5, 2, None));
        assert_eq!(
            (
                plan.streams.len(),
                plan.publishers.len(),
                plan.subscribers()
            ),
            (10, 10, 15)
        );
        for (index, channel) in plan.channels.iter().enumerate() {
            for s in channel.streams.clone() {
                let stream = plan.streams[s as usize];
                assert_eq!(stream.channel as usize, index);
                assert_eq!(plan.publishers[stream.publisher as usize].streams, [s]);
            }
        }
        assert_eq!(plan.window(), 8);
    }

    #[test]
    fn shared_publishers_split_the_channels() {
        let mut plan = Plan::default();
        plan.add(&group(1, 1, None));
        plan.add(&group(7, 9, Some(3)));
        assert_eq!((plan.streams.len(), plan.publishers.len()), (8, 4));
        assert_eq!(plan.publishers[1].streams.len(), 3);
        assert_eq!(plan.streams.iter().filter(|s| s.publisher == 0).count(), 1);
    }

    #[test]
    fn a_publishing_subscriber_is_one_connection_on_one_thread() {
        for (channels, threads) in [(3, 2), (50, 3)] {
            let mut plan = Plan::default();
            plan.add(&Group {
                subscribers: 1,
                via: Via::Subscriber,
                ..group(channels, 1, None)
            });
            assert_eq!(plan.connections(), u64::from(channels));
            for channel in 0..channels {
                let publisher = plan.publisher_of_subscriber(channel).unwrap();
                let home = plan.thread_of_subscriber(channel, u64::from(channel), threads);
                assert_eq!(plan.thread_of_publisher(publisher, threads), home);
            }
        }
        let mut plan = Plan::default();
        plan.add(&group(1, 1, None));
        assert_eq!(plan.publisher_of_subscriber(0), None);
    }

    #[test]
    fn a_small_channel_lives_on_one_thread() {
        let mut plan = Plan::default();
        plan.add(&group(8, 1, None));
        for channel in 0..8 {
            let home = plan.thread_of_publisher(channel, 2);
            assert!((0..3).all(|i| plan.thread_of_subscriber(
                channel,
                u64::from(channel) * 3 + i,
                2
            ) == home));
        }
    }
}
