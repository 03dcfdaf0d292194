//! Who may use the admin API: whoever has the admin token, and does not guess at it.
//!
//! Invariants: a wrong token is told by a comparison of hashes in constant time; an address that has guessed too often is
//! refused before its token is looked at.

use std::cell::RefCell;
use std::fmt;
use std::net::IpAddr;

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use shardwire_proto::auth::key::KeyHash;
use shardwire_proto::error::{ErrorCode, ProtocolError};
use shardwire_proto::guard::Guard;
use shardwire_proto::rate::RateLimit;

use crate::conn::head::bearer;
use crate::http::Refusal;

/// Wrong tokens of an address: enough for a person's mistakes.
const FAILURES: RateLimit = RateLimit::new(2, 1000, 20).expect("a burst above the rate");

/// The admin token's hash, and who has failed to present it.
pub(super) struct Access {
    token: KeyHash,
    guard: RefCell<Guard>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Access")
    }
}

impl Access {
    pub(super) fn new(token: &str) -> Self {
        Self {
            token: KeyHash::of(token.trim()),
            guard: RefCell::default(),
        }
    }

    /// Lets a request with the admin token pass.
    ///
    /// # Errors
    /// 40100 without a token, 40102 with a wrong one, 42900 for an address with too many wrong ones.
    pub(super) fn check(
        &self,
        headers: &HeaderMap,
        from: IpAddr,
        now_ms: u64,
    ) -> Result<(), Refusal> {
        let presented = headers.get(AUTHORIZATION).ok_or(ErrorCode::NoCredentials)?;
        let mut guard = self.guard.borrow_mut();
        if guard.wait_ms(from, now_ms) > 0 {
            let text = "too many wrong tokens from this address";
            return Err(ProtocolError::with_text(ErrorCode::RateExceeded, text).into());
        }
        let presented = presented.to_str().ok().and_then(bearer);
        if presented.is_some_and(|token| KeyHash::of(token) == self.token) {
            return Ok(());
        }
        guard.note_failure(from, &FAILURES, now_ms);
        Err(ProtocolError::with_text(ErrorCode::BadToken, "not the admin token").into())
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
    fn guessing_is_refused_for_its_address_until_it_has_been_quiet() {
        let access = Access::new(TOKEN);
        let wrong = presenting("Bearer no");
        let right = presenting(&format!("Bearer {TOKEN}"));
        for _ in 0..FAILURES.burst() {
            assert_eq!(code(access.check(&wrong, from(1), 1000)), 40102);
        }
        assert_eq!(code(access.check(&right, from(1), 1000)), 42900);
        assert_eq!(code(access.check(&right, from(2), 1000)), 200);
        let later = 1000 + 3 * FAILURES.span_ms();
        assert_eq!(code(access.check(&right, from(1), later)), 200);
    }
}
