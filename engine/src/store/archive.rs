//! A store of messages as a whole: what it takes to move it elsewhere. For a process that is alone with it.

use shardwire_proto::record::Record;

use super::BackendError;

/// A channel, without its messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchivedChannel {
    pub app: String,
    pub name: String,
    pub epoch: String,
    /// Of the last message ever stored.
    pub last_seq: i64,
    pub last_ts: i64,
    /// Messages up to here are gone; those behind it are there.
    pub gone_seq: i64,
    pub gone_ts: i64,
    /// Retention, as of the last message.
    pub messages_max: i64,
    pub age_ms: i64,
}

/// All that a store of messages holds.
pub trait Archive {
    /// Channels in the order of app and name, behind one.
    ///
    /// # Errors
    /// They cannot be read.
    fn channels(
        &mut self,
        after: Option<(&str, &str)>,
        limit: usize,
    ) -> Result<Vec<ArchivedChannel>, BackendError>;

    /// A channel.
    ///
    /// # Errors
    /// It cannot be read.
    fn channel(&mut self, app: &str, name: &str) -> Result<Option<ArchivedChannel>, BackendError>;

    /// Messages of a channel from a number on, in order.
    ///
    /// # Errors
    /// They cannot be read.
    fn messages(
        &mut self,
        channel: &ArchivedChannel,
        from: i64,
        limit: usize,
    ) -> Result<Vec<Record>, BackendError>;

    /// The number of the newest message that [`Self::restore`] has put into a channel which is not finished; `None`
    /// where there is none. Whatever is there that does not belong to such a beginning is removed.
    ///
    /// # Errors
    /// It cannot be read.
    fn begun(&mut self, channel: &ArchivedChannel) -> Result<Option<i64>, BackendError>;

    /// Adds messages that follow what is there.
    ///
    /// # Errors
    /// Not all are there; they may be added again.
    fn restore(
        &mut self,
        channel: &ArchivedChannel,
        messages: &[Record],
    ) -> Result<(), BackendError>;

    /// Puts a channel that has all its messages into its final state.
    ///
    /// # Errors
    /// It is not in it.
    fn finish(&mut self, channel: &ArchivedChannel) -> Result<(), BackendError>;
}
