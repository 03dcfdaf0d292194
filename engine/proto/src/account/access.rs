//! The short tokens of a session (JWT, HS256): they carry who and which session, so that a request without a good one is
//! refused before anything is looked up.
//!
//! Not here: whether the session is still there, which is asked with every request. Invariant: a token for one purpose is
//! not taken for another.

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

use crate::error::{ErrorCode, ProtocolError};

/// What a token is for: its `aud`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// Calls and pages.
    #[serde(rename = "shardwire-dashboard")]
    Access,
    /// The second step of a login: the password was right.
    #[serde(rename = "shardwire-second-factor")]
    SecondFactor,
}

#[derive(Debug, Serialize, Deserialize)]
struct Claims {
    sub: String,
    sid: String,
    aud: Purpose,
    iat: u64,
    exp: u64,
}

/// Whom a good token speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bearer {
    /// The account's id.
    pub account: String,
    /// The session's id; empty before there is one.
    pub session: String,
}

/// Signs and verifies. Holds a secret: not `Debug`.
#[derive(Clone)]
pub struct Signer {
    encoding: EncodingKey,
    decoding: DecodingKey,
}

impl Signer {
    /// With a secret of 32 random bytes.
    #[must_use]
    pub fn new(secret: &[u8; 32]) -> Self {
        Self {
            encoding: EncodingKey::from_secret(secret),
            decoding: DecodingKey::from_secret(secret),
        }
    }

    /// A token that is good for `life_s` seconds from `now_ms` on.
    ///
    /// # Errors
    /// 50000 where the library cannot sign.
    pub fn sign(
        &self,
        bearer: &Bearer,
        aud: Purpose,
        life_s: u64,
        now_ms: u64,
    ) -> Result<String, ProtocolError> {
        let iat = now_ms / 1000;
        let claims = Claims {
            sub: bearer.account.clone(),
            sid: bearer.session.clone(),
            aud,
            iat,
            exp: iat.saturating_add(life_s),
        };
        let header = Header::new(Algorithm::HS256);
        jsonwebtoken::encode(&header, &claims, &self.encoding)
            .map_err(|_| ErrorCode::Internal.into())
    }

    /// Whom a token speaks for.
    ///
    /// # Errors
    /// 40102 where it is not genuine or for another purpose, 40142 where it has expired.
    pub fn verify(
        &self,
        token: &str,
        purpose: Purpose,
        now_ms: u64,
    ) -> Result<Bearer, ProtocolError> {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        let wrong =
            || ProtocolError::with_text(ErrorCode::BadToken, "not a token of this dashboard");
        let decoded = jsonwebtoken::decode::<Claims>(token, &self.decoding, &validation);
        let claims = decoded.map_err(|_| wrong())?.claims;
        if claims.aud != purpose {
            return Err(wrong());
        }
        if now_ms >= claims.exp.saturating_mul(1000) {
            return Err(ErrorCode::TokenExpired.into());
        }
        Ok(Bearer {
            account: claims.sub,
            session: claims.sid,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer() -> Bearer {
        Bearer {
            account: "a_1".into(),
            session: "s_1".into(),
        }
    }

    #[test]
    fn a_token_is_good_for_its_purpose_and_its_time() {
        let signer = Signer::new(&[7; 32]);
        let token = signer
            .sign(&bearer(), Purpose::Access, 600, 5_000_000)
            .unwrap();
        let verify = |purpose, now_ms| signer.verify(&token, purpose, now_ms);
        assert_eq!(verify(Purpose::Access, 5_000_000).unwrap(), bearer());
        assert_eq!(verify(Purpose::Access, 5_599_999).unwrap(), bearer());
        let code = |result: Result<Bearer, ProtocolError>| result.unwrap_err().code;
        assert_eq!(
            code(verify(Purpose::Access, 5_600_000)),
            ErrorCode::TokenExpired
        );
        assert_eq!(
            code(verify(Purpose::SecondFactor, 5_000_000)),
            ErrorCode::BadToken
        );
    }

    #[test]
    fn what_others_sign_or_nobody_is_refused() {
        let signer = Signer::new(&[7; 32]);
        let other = Signer::new(&[8; 32]);
        let token = other.sign(&bearer(), Purpose::Access, 600, 0).unwrap();
        assert!(signer.verify(&token, Purpose::Access, 0).is_err());
        let own = signer.sign(&bearer(), Purpose::Access, 600, 0).unwrap();
        let (rest, _) = own.rsplit_once('.').unwrap();
        // {"alg":"none"}
        let (_, claims) = rest.split_once('.').unwrap();
        for forged in [
            format!("{rest}."),
            format!("eyJhbGciOiJub25lIn0.{claims}."),
            String::new(),
        ] {
            assert!(
                signer.verify(&forged, Purpose::Access, 0).is_err(),
                "{forged}"
            );
        }
    }
}
