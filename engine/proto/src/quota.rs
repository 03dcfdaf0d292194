//! Plans: what an app may use in all, by the day, by the month and at a time.
//!
//! Data and the calendar; who counts is in [`crate::meter`]. What counts as a message: each publish that was accepted,
//! stored or ephemeral; one recognised as a repeat does not. Days and months are those of UTC.

use serde::{Deserialize, Serialize};

use crate::auth::is_valid_client_id;

/// Milliseconds of a day.
pub const DAY_MS: u64 = 24 * 3600 * 1000;

/// What may be used. What is absent is not limited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Plan {
    /// Names the plan: 1 to 64 bytes without control characters.
    pub id: String,
    /// For people.
    #[serde(default)]
    pub name: String,
    /// Connections at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connections_max: Option<u64>,
    /// Channels with subscribers at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channels_max: Option<u64>,
    /// Messages per day.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages_per_day: Option<u64>,
    /// Messages per calendar month.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub messages_per_month: Option<u64>,
    /// Bytes of a message's `data`; not above the process's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message_bytes_max: Option<usize>,
    /// Seconds that messages are kept, whatever a namespace says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub history_ttl_s_max: Option<u64>,
    /// Push deliveries per calendar month.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub push_per_month: Option<u64>,
    /// Webhook targets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhooks_max: Option<usize>,
    /// What happens to clients when the messages are used up.
    #[serde(default)]
    pub on_exhausted: OnExhausted,
}

/// What happens to clients of an app whose messages are used up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnExhausted {
    /// They stay, and each publish is refused (42912).
    #[default]
    Refuse,
    /// They are ended (4004) and refused until there is room again.
    Close,
}

impl Plan {
    /// Checks what can be wrong with a plan.
    ///
    /// # Errors
    /// What is wrong, naming the field.
    pub fn validate(&self) -> Result<(), String> {
        if self.id.len() > 64 || !is_valid_client_id(&self.id) {
            return Err("`id` must be 1 to 64 bytes without control characters".into());
        }
        if self.name.len() > 128 {
            return Err("`name` is above 128 bytes".into());
        }
        if self.message_bytes_max == Some(0) {
            return Err("`messageBytesMax` is 0".into());
        }
        let least = crate::limits::RECOVERY_AGE_MS_MIN / 1000;
        if self.history_ttl_s_max.is_some_and(|ttl| ttl < least) {
            return Err(format!(
                "`historyTtlSMax` is below {least}, which resume needs"
            ));
        }
        Ok(())
    }

    /// Whether messages are counted against anything.
    #[must_use]
    pub fn limits_messages(&self) -> bool {
        self.messages_per_day.is_some() || self.messages_per_month.is_some()
    }
}

/// What an app has used, as told to the shards once a second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Day of the numbers, since 1970-01-01.
    pub day: u32,
    /// Messages of that day.
    pub messages_day: u64,
    /// Messages of that day's month.
    pub messages_month: u64,
}

impl Totals {
    /// The same, seen from a day that may be a later one.
    #[must_use]
    pub fn on(self, day: u32) -> Self {
        if day <= self.day {
            return self;
        }
        let same_month = month_of(day) == month_of(self.day);
        Self {
            day,
            messages_day: 0,
            messages_month: if same_month { self.messages_month } else { 0 },
        }
    }

    /// Whether a plan's messages are used up.
    #[must_use]
    pub fn exhaust(&self, plan: &Plan) -> bool {
        plan.messages_per_day
            .is_some_and(|most| self.messages_day >= most)
            || plan
                .messages_per_month
                .is_some_and(|most| self.messages_month >= most)
    }
}

/// What an app's clients use on the other nodes of a cluster, as of about a second ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Elsewhere {
    /// Messages of the day that they are about, and of its month.
    pub totals: Totals,
    pub connections: u64,
    /// Channels with subscribers; one that has some on several nodes counts on each.
    pub channels: u64,
    /// This node's part of the app's rates, of 1000.
    pub share: u32,
}

impl Default for Elsewhere {
    fn default() -> Self {
        Self {
            totals: Totals::default(),
            connections: 0,
            channels: 0,
            share: 1000,
        }
    }
}

/// The day of a Unix time in ms, counted from 1970-01-01.
#[must_use]
pub fn day_of(unix_ms: u64) -> u32 {
    u32::try_from(unix_ms / DAY_MS).unwrap_or(u32::MAX)
}

/// The month of a day, counted from January 1970.
#[must_use]
pub fn month_of(day: u32) -> u32 {
    // Howard Hinnant's civil_from_days, for days since 1970: years of it begin in March, eras have 400 of them.
    let shifted = u64::from(day) + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let months_from_march_0000 = (era * 400 + year_of_era) * 12 + month_from_march;
    // January 1970 is the 11th month of the year that began in March 1969.
    u32::try_from(months_from_march_0000 - (1969 * 12 + 10)).unwrap_or(u32::MAX)
}

/// The first day of a month, both as above.
#[must_use]
pub fn first_day_of(month: u32) -> u32 {
    // At most 31 days a month, at least 30 on average but for February: search is short.
    let guess = month.saturating_mul(30).saturating_sub(3);
    (guess..guess.saturating_add(month / 2 + 32))
        .find(|day| month_of(*day) == month)
        .unwrap_or(guess)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_are_those_of_the_calendar() {
        for (day, month) in [
            (0, 0),
            (30, 0),
            (31, 1),
            (58, 1),
            (59, 2),
            (364, 11),
            (365, 12),
            // 2000-02-28, 02-29, 03-01
            (11_015, 361),
            (11_016, 361),
            (11_017, 362),
            // 2026-11-24
            (20_781, 682),
        ] {
            assert_eq!(month_of(day), month, "day {day}");
        }
        for month in 0..2000 {
            let first = first_day_of(month);
            assert_eq!(month_of(first), month);
            assert!(first == 0 || month_of(first - 1) == month - 1);
        }
    }

    #[test]
    fn a_later_day_begins_with_nothing_used() {
        let totals = Totals {
            day: 30,
            messages_day: 5,
            messages_month: 9,
        };
        assert_eq!(totals.on(30), totals);
        assert_eq!(
            (totals.on(31).messages_day, totals.on(31).messages_month),
            (0, 0)
        );
        let totals = Totals { day: 29, ..totals };
        assert_eq!(
            (totals.on(30).messages_day, totals.on(30).messages_month),
            (0, 9)
        );
    }

    #[test]
    fn what_a_plan_cannot_mean_is_refused_by_name() {
        for (json, named) in [
            (r#"{"id":""}"#, "id"),
            (r#"{"id":"a","messageBytesMax":0}"#, "messageBytesMax"),
            (r#"{"id":"a","historyTtlSMax":60}"#, "historyTtlSMax"),
        ] {
            let plan: Plan = serde_json::from_str(json).unwrap();
            assert!(plan.validate().unwrap_err().contains(named));
        }
        assert!(serde_json::from_str::<Plan>(r#"{"id":"a","messagesPerDy":1}"#).is_err());
    }
}
