//! How refresh tokens of a session follow each other.
//!
//! Each is used once: it is replaced by the next, and one that comes again later has been copied, which ends the session
//! for whoever holds any of its tokens (OAuth 2.0 Security BCP, 4.14.2). A page that sends several requests at once may
//! present the token before last within [`SessionRules::repeat_ms`]: it is let in, and gets no further token.
//!
//! ```text
//!            the current one            the one before, soon              anything else
//!  session ──────────────────► rotate   ──────────────────► let in        ──────────────► end the session
//! ```
//! Not here: where sessions are kept, and that their ids are secret enough (128 random bits).

use serde::{Deserialize, Serialize};

use crate::auth::key::KeyHash;

/// How long sessions last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionRules {
    /// From the login, ms.
    pub life_ms: u64,
    /// Without use, ms.
    pub idle_ms: u64,
    /// How long the token before last may still come, ms.
    pub repeat_ms: u64,
}

/// What a session's tokens are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// Hash of the one that is good.
    current: KeyHash,
    /// Hash of the one before it.
    previous: Option<KeyHash>,
    /// When the current one took its place, Unix ms.
    rotated_ms: u64,
    /// When the session began, Unix ms.
    created_ms: u64,
}

/// What becomes of a token that is presented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Replace it by another.
    Rotate,
    /// Let in, without another token.
    Repeat,
    /// A copy is about: end the session.
    Reused,
    /// The session has ended by itself.
    Over,
}

impl Tokens {
    /// Of a session that begins with `token`.
    #[must_use]
    pub fn begin(token: &str, now_ms: u64) -> Self {
        Self {
            current: KeyHash::of(token),
            previous: None,
            rotated_ms: now_ms,
            created_ms: now_ms,
        }
    }

    /// Judges a token.
    #[must_use]
    pub fn judge(&self, token: &str, rules: &SessionRules, now_ms: u64) -> Verdict {
        if now_ms >= self.ends_ms(rules) {
            return Verdict::Over;
        }
        let presented = KeyHash::of(token);
        if presented == self.current {
            return Verdict::Rotate;
        }
        let is_soon = now_ms.saturating_sub(self.rotated_ms) < rules.repeat_ms;
        match self.previous {
            Some(previous) if previous == presented && is_soon => Verdict::Repeat,
            _ => Verdict::Reused,
        }
    }

    /// The tokens after a rotation to `next`.
    #[must_use]
    pub fn rotate(&self, next: &str, now_ms: u64) -> Self {
        Self {
            current: KeyHash::of(next),
            previous: Some(self.current),
            rotated_ms: now_ms,
            created_ms: self.created_ms,
        }
    }

    /// When the session ends unless its token is used, Unix ms.
    #[must_use]
    pub fn ends_ms(&self, rules: &SessionRules) -> u64 {
        let idle = self.rotated_ms.saturating_add(rules.idle_ms);
        idle.min(self.created_ms.saturating_add(rules.life_ms))
    }

    /// When the session began, Unix ms.
    #[must_use]
    pub fn created_ms(&self) -> u64 {
        self.created_ms
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: SessionRules = SessionRules {
        life_ms: 1000,
        idle_ms: 300,
        repeat_ms: 10,
    };

    #[test]
    fn each_token_is_good_once_and_shortly_after() {
        let first = Tokens::begin("a", 0);
        assert_eq!(first.judge("a", &RULES, 299), Verdict::Rotate);
        assert_eq!(first.judge("b", &RULES, 5), Verdict::Reused);
        let second = first.rotate("b", 100);
        assert_eq!(second.judge("b", &RULES, 100), Verdict::Rotate);
        assert_eq!(second.judge("a", &RULES, 109), Verdict::Repeat);
        assert_eq!(second.judge("a", &RULES, 110), Verdict::Reused);
        let third = second.rotate("c", 105);
        assert_eq!(third.judge("a", &RULES, 106), Verdict::Reused);
    }

    #[test]
    fn a_session_ends_without_use_and_in_the_end_with_it() {
        let mut tokens = Tokens::begin("0", 0);
        assert_eq!(tokens.judge("0", &RULES, 300), Verdict::Over);
        for n in 1..=4u64 {
            tokens = tokens.rotate(&n.to_string(), n * 200);
        }
        assert_eq!(tokens.ends_ms(&RULES), 1000);
        assert_eq!(tokens.judge("4", &RULES, 999), Verdict::Rotate);
        assert_eq!(tokens.judge("4", &RULES, 1000), Verdict::Over);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever is presented when: of all tokens that were ever given out, only the last one rotates.
        #[test]
        fn only_the_newest_token_rotates(steps in prop::collection::vec(0u64..40, 1..20), wait in 0u64..40) {
            let rules = SessionRules { life_ms: u64::MAX, idle_ms: u64::MAX, repeat_ms: 20 };
            let (mut tokens, mut now) = (Tokens::begin("0", 0), 0);
            for (n, step) in steps.iter().enumerate() {
                now += step;
                tokens = tokens.rotate(&(n + 1).to_string(), now);
            }
            for n in 0..=steps.len() {
                let verdict = tokens.judge(&n.to_string(), &rules, now + wait);
                let expected = match steps.len() - n {
                    0 => Verdict::Rotate,
                    1 if wait < 20 => Verdict::Repeat,
                    _ => Verdict::Reused,
                };
                prop_assert_eq!(verdict, expected);
            }
        }
    }
}
