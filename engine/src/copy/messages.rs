//! Channels with their messages.

use indicatif::ProgressBar;

use super::AT_ONCE;
use super::sides::Sum;
use crate::store::archive::{Archive, ArchivedChannel};

/// How many there are.
pub(super) struct Messages {
    pub(super) channels: u64,
    pub(super) messages: u64,
}

/// Does something with each channel, in order.
fn each(
    store: &mut Box<dyn Archive>,
    mut act: impl FnMut(&mut Box<dyn Archive>, &ArchivedChannel) -> Result<(), String>,
) -> Result<u64, String> {
    let mut last: Option<ArchivedChannel> = None;
    let mut count = 0;
    loop {
        let after = last.as_ref().map(|last| (&*last.app, &*last.name));
        let page = store.channels(after, AT_ONCE).map_err(told)?;
        for channel in &page {
            act(store, channel)?;
        }
        count += page.len() as u64;
        match page.into_iter().last() {
            Some(channel) => last = Some(channel),
            None => return Ok(count),
        }
    }
}

pub(super) fn copy(
    from: &mut Box<dyn Archive>,
    into: &mut Box<dyn Archive>,
    bar: &ProgressBar,
) -> Result<(), String> {
    let mut all = 0;
    each(from, |_, channel| {
        all += channel.last_seq - channel.gone_seq;
        Ok(())
    })?;
    bar.set_length(u64::try_from(all).unwrap_or(0));
    each(from, |from, channel| {
        // Already whole, from before an interruption.
        let there = into.channel(&channel.app, &channel.name).map_err(told)?;
        if there.as_ref() == Some(channel) {
            bar.inc(u64::try_from(channel.last_seq - channel.gone_seq).unwrap_or(0));
            return Ok(());
        }
        copy_channel(from, into, channel, bar)
    })?;
    Ok(())
}

fn copy_channel(
    from: &mut Box<dyn Archive>,
    into: &mut Box<dyn Archive>,
    channel: &ArchivedChannel,
    bar: &ProgressBar,
) -> Result<(), String> {
    let begun = into.begun(channel).map_err(told)?;
    let mut next = begun.unwrap_or(channel.gone_seq) + 1;
    bar.inc(u64::try_from(next - 1 - channel.gone_seq).unwrap_or(0));
    loop {
        let page = from.messages(channel, next, AT_ONCE).map_err(told)?;
        let Some(last) = page.last() else {
            break;
        };
        let numbers = page.iter().map(|message| message.sequence);
        if let Some((_, missing)) = numbers
            .zip(u64::try_from(next).unwrap_or(0)..)
            .find(|(is, expected)| is != expected)
        {
            return Err(format!(
                "app {:?}, channel {:?}: message {missing} is missing, although there are older ones",
                channel.app, channel.name
            ));
        }
        next = i64::try_from(last.sequence).unwrap_or(i64::MAX - 1) + 1;
        into.restore(channel, &page).map_err(told)?;
        bar.inc(page.len() as u64);
    }
    into.finish(channel).map_err(told)
}

pub(super) fn sum(
    store: &mut Box<dyn Archive>,
    sum: &mut Sum,
    bar: &ProgressBar,
) -> Result<Messages, String> {
    let mut messages = 0;
    let channels = each(store, |store, channel| {
        let ArchivedChannel {
            app,
            name,
            epoch,
            last_seq,
            last_ts,
            gone_seq,
            gone_ts,
            messages_max,
            age_ms,
        } = channel;
        [app, name, epoch].iter().for_each(|text| sum.text(text));
        let numbers = [last_seq, last_ts, gone_seq, gone_ts, messages_max, age_ms];
        numbers.iter().for_each(|number| sum.number(**number));
        let mut next = channel.gone_seq + 1;
        loop {
            let page = store.messages(channel, next, AT_ONCE).map_err(told)?;
            for message in &page {
                next = i64::try_from(message.sequence).unwrap_or(i64::MAX - 1) + 1;
                sum.number(next);
                sum.number(i64::try_from(message.timestamp).unwrap_or(i64::MAX));
                sum.text(&message.id);
                sum.text(&message.publisher);
                sum.text(&message.data);
            }
            messages += page.len() as u64;
            bar.inc(page.len() as u64);
            if page.is_empty() {
                return Ok(());
            }
        }
    })?;
    Ok(Messages { channels, messages })
}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err wants")]
fn told(error: crate::store::BackendError) -> String {
    error.to_string()
}
