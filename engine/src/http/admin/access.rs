//! Who may use the admin API: whoever has the admin token, and does not guess at it.
//!
//! Invariants: a wrong token is told by a comparison of hashes in constant time; the table of addresses that guess is
//! bounded, and an address that has guessed too often is refused before its token is looked at.

use std::cell::RefCell;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use hyper::header::AUTHORIZATION;
use hyper::{HeaderMap, StatusCode};
use shardwire_proto::auth::key::KeyHash;
use shardwire_proto::error::{ErrorCode, ProtocolError};

use crate::conn::head::bearer;
use crate::http::Refusal;

/// Wrong tokens that an address may present in one window.
const FAILURES_MAX: u32 = 20;
/// Length of the window, ms.
const WINDOW_MS: u64 = 10_000;
/// Addresses remembered; the one whose window began first makes room.
const ADDRESSES_MAX: usize = 256;

/// The admin token's hash, and who has failed to present it.
pub(super) struct Access {
    token: KeyHash,
    failures: RefCell<Vec<Failures>>,
}

struct Failures {
    from: IpAddr,
    /// When the window began, ms on the shard's clock.
    since_ms: u64,
    count: u32,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Access")
    }
}

impl Access {
    #[must_use]
    pub(super) fn new(token: &str) -> Self {
        Self {
            token: KeyHash::of(token.trim()),
            failures: RefCell::default(),
        }
    }

    /// Lets a request with the admin token pass.
    ///
    /// # Errors
    /// 401 with 40100 without a token and 40102 with a wrong one; 429 with 42900 for an address with too many wrong
    /// ones.
    pub(super) fn check(
        &self,
        headers: &HeaderMap,
        from: IpAddr,
        now_ms: u64,
    ) -> Result<(), Refusal> {
        let presented = headers.get(AUTHORIZATION).ok_or(ErrorCode::NoCredentials)?;
        let from = network(from);
        if self.is_guessing(from, now_ms) {
            let text = "too many wrong tokens from this address";
            return Err(ProtocolError::with_text(ErrorCode::RateExceeded, text).into());
        }
        let presented = presented.to_str().ok().and_then(bearer);
        if presented.is_some_and(|token| KeyHash::of(token) == self.token) {
            return Ok(());
        }
        self.note_failure(from, now_ms);
        let mut refusal = Refusal::from(ProtocolError::with_text(
            ErrorCode::BadToken,
            "not the admin token",
        ));
        refusal.status = StatusCode::UNAUTHORIZED;
        Err(refusal)
    }

    fn is_guessing(&self, from: IpAddr, now_ms: u64) -> bool {
        self.failures.borrow().iter().any(|known| {
            known.from == from && known.count >= FAILURES_MAX && !known.is_over(now_ms)
        })
    }

    fn note_failure(&self, from: IpAddr, now_ms: u64) {
        let mut failures = self.failures.borrow_mut();
        failures.retain(|known| !known.is_over(now_ms));
        if let Some(known) = failures.iter_mut().find(|known| known.from == from) {
            known.count += 1;
            return;
        }
        if failures.len() >= ADDRESSES_MAX {
            // In order of their beginning, as entries are only added at the end.
            failures.remove(0);
        }
        failures.push(Failures {
            from,
            since_ms: now_ms,
            count: 1,
        });
    }
}

/// The address that counts: of IPv6 the part that one host is given whole.
fn network(from: IpAddr) -> IpAddr {
    match from.to_canonical() {
        IpAddr::V4(v4) => v4.into(),
        IpAddr::V6(v6) => Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64).into(),
    }
}

impl Failures {
    fn is_over(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.since_ms) >= WINDOW_MS
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const TOKEN: &str = "at_0123456789abcdef";

    fn presenting(authorization: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, authorization.parse().unwrap());
        headers
    }

    fn from(last: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, last).into()
    }

    fn code(result: Result<(), Refusal>) -> u16 {
        result.map_or_else(|refusal| refusal.error.code.code(), |()| 200)
    }

    #[test]
    fn only_the_token_as_bearer_passes() {
        let access = Access::new(&format!("{TOKEN}\n"));
        let check = |headers: &HeaderMap| code(access.check(headers, from(1), 0));
        assert_eq!(check(&HeaderMap::new()), 40100);
        assert_eq!(check(&presenting(&format!("Bearer {TOKEN}"))), 200);
        assert_eq!(check(&presenting(&format!("bearer  {TOKEN}"))), 200);
        for wrong in [
            "Bearer ",
            "Bearer at_0123456789abcde",
            TOKEN,
            "Basic at_0123456789abcdef",
        ] {
            assert_eq!(check(&presenting(wrong)), 40102, "{wrong}");
        }
    }

    #[test]
    fn guessing_is_refused_for_its_address_until_the_window_ends() {
        let access = Access::new(TOKEN);
        let (wrong, right) = (
            presenting("Bearer no"),
            presenting(&format!("Bearer {TOKEN}")),
        );
        for _ in 0..FAILURES_MAX {
            assert_eq!(code(access.check(&wrong, from(1), 1000)), 40102);
        }
        assert_eq!(code(access.check(&right, from(1), 1000)), 42900);
        assert_eq!(code(access.check(&right, from(2), 1000)), 200);
        assert_eq!(code(access.check(&right, from(1), 1000 + WINDOW_MS)), 200);
        assert_eq!(
            network(IpAddr::from([0x2001, 0xdb8, 0, 1, 2, 3, 4, 5])),
            network(IpAddr::from([0x2001, 0xdb8, 0, 1, 9, 9, 9, 9]))
        );
    }

    #[test]
    fn the_table_of_addresses_is_bounded() {
        let access = Access::new(TOKEN);
        let wrong = presenting("Bearer no");
        for n in 0..=u8::MAX {
            assert_eq!(code(access.check(&wrong, from(n), 0)), 40102);
            let v6 = IpAddr::from([0x2001, 0xdb8, 0, u16::from(n), 0, 0, 0, 1]);
            assert_eq!(code(access.check(&wrong, v6, 0)), 40102);
        }
        assert_eq!(access.failures.borrow().len(), ADDRESSES_MAX);
    }
}
