//! Rates on the way of HTTP calls: of the API as a whole, and of what connections do too.

use super::{Place, Shard};
use crate::auth::Caller;
use crate::ids::Now;
use crate::rate::table::{Bucket, Class, Scope};

/// Where an HTTP caller stands with a limit, for the `RateLimit` fields of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HttpRate {
    /// Most calls at once.
    pub limit: u32,
    /// Calls that this shard can admit without asking.
    pub remaining: u32,
    /// Seconds until the window is as good as new.
    pub reset_s: u64,
    /// Of a refusal, seconds until another try is of use.
    pub retry_after_s: Option<u64>,
}

impl Shard {
    /// Whether an HTTP call may go on that does what connections do too: by the rates of the client id that a token vouches
    /// for, of the channel, and of the app; back ends have no other (D25).
    pub(in crate::shard) fn admit_caller(
        &mut self,
        caller: &Caller,
        index: u32,
        class: Class,
        channel: &str,
        now: Now,
    ) -> bool {
        let (limits, namespace) = self.meters.resolved(index, class, channel);
        let by_client = limits.limit(Scope::Client);
        let client = by_client.zip(caller.credential.client_id());
        let bucket = limits.bucket(class, Scope::Client, namespace);
        if let Some((limit, client_id)) = client
            && !self.spend_client_id(index, client_id, bucket, limit, now)
        {
            self.refuse(index, class, Scope::Client);
            return false;
        }
        let place = Place {
            index,
            class,
            // Publishes count at its home.
            channel: (class != Class::Publish).then_some(channel),
        };
        if let Err(scope) = self.spend_shared(&place, (&limits, namespace), now) {
            if let Some((_, client_id)) = client {
                self.meters.unspend_client_id(index, client_id, bucket);
            }
            self.refuse(index, class, scope);
            return false;
        }
        self.send_notes();
        true
    }

    /// Counts a call of the HTTP API against the rate of the client id that a token vouches for, and of the app. `None`:
    /// the app has none.
    ///
    /// # Errors
    /// 42900, with what to say about it.
    pub fn admit_http(&mut self, caller: &Caller, now: Now) -> Result<Option<HttpRate>, HttpRate> {
        let index = self.app_index(&caller.app.id);
        let (limits, _) = self.meters.resolved(index, Class::Http, "");
        let bucket = Bucket::wide(Class::Http);
        if let (Some(limit), Some(client_id)) =
            (limits.limit(Scope::Client), caller.credential.client_id())
            && !self.spend_client_id(index, client_id, bucket, limit, now)
        {
            self.refuse(index, Class::Http, Scope::Client);
            return Err(HttpRate {
                limit: limit.burst(),
                remaining: 0,
                reset_s: limit.span_ms().div_ceil(1000),
                retry_after_s: Some(limit.span_ms().div_ceil(1000)),
            });
        }
        let Some(limit) = limits.limit(Scope::App) else {
            self.send_notes();
            return Ok(None);
        };
        let admitted = self.meters.spend_app(index, bucket, limit, now);
        let mut rate = HttpRate {
            limit: limit.burst(),
            remaining: self.meters.left_of_app(index, bucket, now),
            reset_s: limit.span_ms().div_ceil(1000),
            retry_after_s: None,
        };
        if admitted {
            self.send_notes();
            return Ok(Some(rate));
        }
        self.refuse(index, Class::Http, Scope::App);
        let wait_ms = self.meters.retry_after_ms(index, bucket, now);
        rate.retry_after_s = Some(wait_ms.div_ceil(1000).max(1));
        Err(rate)
    }

    /// Whether one more history call over HTTP may be made.
    pub fn admit_http_history(&mut self, caller: &Caller, channel: &str, now: Now) -> bool {
        let index = self.app_index(&caller.app.id);
        self.admit_caller(caller, index, Class::History, channel, now)
    }
}
