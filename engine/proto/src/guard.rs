//! Who presents wrong credentials too often: by address, in a bounded table (contract D5: refusals are cheap).
//!
//! Only failures count. An address above its rate is refused without a look at what it presents, until it has been
//! quiet long enough for one more. An IPv6 address stands for its /64, which one machine usually has.

use std::net::{IpAddr, Ipv6Addr};

use hashbrown::HashMap;

use crate::limits::FAILING_ADDRESSES_MAX;
use crate::rate::{RateLimit, RateWindow};

/// Failures by address.
#[derive(Debug, Default)]
pub struct Guard {
    failures: HashMap<IpAddr, Failing, foldhash::fast::RandomState>,
}

#[derive(Debug, Default)]
struct Failing {
    window: RateWindow,
    /// Refused until then, monotonic ms.
    until_ms: u64,
    /// Of the last failure, monotonic ms.
    last_ms: u64,
}

impl Guard {
    /// Milliseconds that an address has to wait before its credentials are looked at; 0: they are.
    #[must_use]
    pub fn wait_ms(&self, address: IpAddr, now_ms: u64) -> u64 {
        let failing = self.failures.get(&network(address));
        failing.map_or(0, |failing| failing.until_ms.saturating_sub(now_ms))
    }

    /// Counts wrong credentials. With a full table those that have been quiet are forgotten, and if there are none,
    /// all: better than to hold what an attacker fills it with.
    pub fn note_failure(&mut self, address: IpAddr, limit: &RateLimit, now_ms: u64) {
        if self.failures.len() >= FAILING_ADDRESSES_MAX {
            let quiet_ms = limit.span_ms().saturating_mul(2);
            self.failures
                .retain(|_, failing| now_ms.saturating_sub(failing.last_ms) < quiet_ms);
            if self.failures.len() >= FAILING_ADDRESSES_MAX {
                self.failures.clear();
            }
        }
        let failing = self.failures.entry(network(address)).or_default();
        failing.last_ms = now_ms;
        failing.window.try_acquire(now_ms, limit);
        failing.until_ms = now_ms + failing.window.retry_after_ms(now_ms, limit);
    }
}

/// What counts as one: an IPv4 address, or an IPv6 /64.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => {
            let upper = u128::from(v6) & !u128::from(u64::MAX);
            Ipv6Addr::from(upper).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_above_the_rate_wait_and_others_do_not() {
        let limit = RateLimit::new(10, 1000, 50).unwrap();
        let mut guard = Guard::default();
        let (bad, other) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        for _ in 0..49 {
            guard.note_failure(bad, &limit, 1000);
            assert_eq!(guard.wait_ms(bad, 1000), 0);
        }
        guard.note_failure(bad, &limit, 1000);
        let wait = guard.wait_ms(bad, 1000);
        assert!(wait > 0 && wait <= 2 * limit.span_ms(), "{wait}");
        assert_eq!(guard.wait_ms(other, 1000), 0);
        assert_eq!(guard.wait_ms(bad, 1000 + wait), 0);
    }

    #[test]
    fn a_network_of_ipv6_is_one() {
        let same = ["2001:db8::1", "2001:db8::ffff:1"].map(|a| network(a.parse().unwrap()));
        assert_eq!(same[0], same[1]);
        assert_ne!(same[0], network("2001:db8:0:1::1".parse().unwrap()));
        assert_eq!(
            network("::ffff:10.0.0.1".parse().unwrap()),
            "10.0.0.1".parse::<IpAddr>().unwrap()
        );
    }

    #[test]
    fn the_table_is_bounded() {
        let limit = RateLimit::new(1, 1000, 1).unwrap();
        let mut guard = Guard::default();
        for n in 0..FAILING_ADDRESSES_MAX + 10 {
            let address = Ipv6Addr::from((n as u128) << 64);
            guard.note_failure(address.into(), &limit, 1);
            assert!(guard.failures.len() <= FAILING_ADDRESSES_MAX);
        }
    }
}
