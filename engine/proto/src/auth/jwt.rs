//! Tokens (contract D6): whether one is genuine and valid at a given time, and what it says.
//!
//! The key that `kid` names fixes the algorithm; a token that says another one is refused before anything is computed.
//! Signatures and JSON are the `jsonwebtoken` crate's work, times are checked here, as the clock is the caller's.

use std::sync::Arc;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk};
use jsonwebtoken::{DecodingKey, EncodingKey, Header, Validation};
use serde_json::{Map, Value, json};

use super::capability::Capabilities;
use super::is_valid_client_id;
use super::registry::Registry;
use super::signing::{Algorithm, KeyMaterial, SigningKey};
use crate::error::{ErrorCode, ProtocolError};
use crate::limits::{
    HS256_SECRET_BYTES_MIN, NAME_BYTES_MAX, TOKEN_BYTES_MAX, TOKEN_LEEWAY_S, TOKEN_LIFETIME_S_MAX,
};

/// What claims are called, for people who come from another issuer.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct ClaimNames {
    /// The client id.
    pub sub: String,
    /// The capability map.
    pub cap: String,
    /// What webhooks and operators are told about the client.
    pub info: String,
}

impl Default for ClaimNames {
    fn default() -> Self {
        Self {
            sub: "sub".into(),
            cap: "cap".into(),
            info: "info".into(),
        }
    }
}

/// How tokens are judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRules {
    /// By how much clocks may differ, seconds.
    pub leeway_s: u64,
    /// Longest time from `iat`, where it is absent from the moment of use, to `exp`, seconds.
    pub lifetime_s_max: u64,
    /// What claims are called.
    pub claims: ClaimNames,
}

impl Default for TokenRules {
    fn default() -> Self {
        Self {
            leeway_s: TOKEN_LEEWAY_S,
            lifetime_s_max: TOKEN_LIFETIME_S_MAX,
            claims: ClaimNames::default(),
        }
    }
}

/// What a valid token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// `sub`; without it the client is anonymous.
    pub client_id: Option<Arc<str>>,
    /// `cap`; without it everything its key grants.
    pub capabilities: Option<Capabilities>,
    /// `exp`, Unix ms.
    pub expires_ms: u64,
    /// `iat`, Unix ms.
    pub issued_ms: Option<u64>,
    /// `jti`.
    pub jti: Option<Box<str>>,
    /// `info`, as JSON.
    pub info: Option<Box<str>>,
}

/// Verifies a token with the key that its `kid` names; `app` is that of a key presented beside it.
///
/// # Errors
/// 40102 when it is not genuine or not valid here, 40142 when it has expired, 40301 when its key is disabled or over.
pub(super) fn verify(
    token: &str,
    registry: &Registry,
    app: Option<&str>,
    rules: &TokenRules,
    now_ms: u64,
) -> Result<(Arc<SigningKey>, Claims), ProtocolError> {
    if token.len() > TOKEN_BYTES_MAX {
        return Err(bad("token is above 8192 bytes"));
    }
    let header = jsonwebtoken::decode_header(token).map_err(|_| bad("not a token"))?;
    let kid = header.kid.as_deref().ok_or_else(|| bad("`kid` missing"))?;
    let verifier = registry.verifier(kid, app);
    let verifier = verifier.ok_or_else(|| bad("no signing key of this `kid`"))?;
    let algorithm = library_algorithm(verifier.key.algorithm);
    if header.alg != algorithm {
        return Err(bad("`alg` is not that of the signing key"));
    }
    let decoded = jsonwebtoken::decode::<Map<String, Value>>(
        token,
        &verifier.decoding,
        &signature_only(algorithm),
    );
    let claims = decoded.map_err(|_| bad("signature or claims cannot be verified"))?;
    if !verifier.key.is_valid(now_ms) {
        return Err(ErrorCode::Disabled.into());
    }
    let claims = read_claims(&claims.claims, rules, now_ms)?;
    Ok((verifier.key.clone(), claims))
}

/// Checks nothing but algorithm and signature.
fn signature_only(algorithm: jsonwebtoken::Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation
}

fn read_claims(
    claims: &Map<String, Value>,
    rules: &TokenRules,
    now_ms: u64,
) -> Result<Claims, ProtocolError> {
    let names = &rules.claims;
    let leeway_ms = rules.leeway_s.saturating_mul(1000);
    let expires_ms = time(claims, "exp")?.ok_or_else(|| bad("`exp` missing"))?;
    let issued_ms = time(claims, "iat")?;
    let latest_ms = now_ms.saturating_add(leeway_ms);
    if now_ms >= expires_ms.saturating_add(leeway_ms) {
        return Err(ErrorCode::TokenExpired.into());
    }
    if time(claims, "nbf")?.is_some_and(|from| from > latest_ms) {
        return Err(bad("not valid yet (`nbf`)"));
    }
    if issued_ms.is_some_and(|issued| issued > latest_ms) {
        return Err(bad("issued in the future (`iat`)"));
    }
    let lifetime_ms = rules.lifetime_s_max.saturating_mul(1000);
    let longest = issued_ms.unwrap_or(latest_ms).saturating_add(lifetime_ms);
    if expires_ms > longest {
        return Err(bad("valid for too long (`exp`)"));
    }
    let client_id = text(claims, &names.sub)?;
    if client_id.is_some_and(|id| !is_valid_client_id(id)) {
        return Err(bad("the client id is not one"));
    }
    let jti = text(claims, "jti")?;
    if jti.is_some_and(|jti| jti.is_empty() || jti.len() > NAME_BYTES_MAX) {
        return Err(bad("`jti` must have 1 to 128 bytes"));
    }
    let capabilities = present(claims, &names.cap).map(Capabilities::from_claim);
    let info = present(claims, &names.info);
    if info.is_some_and(|info| !info.is_object()) {
        return Err(bad("`info` is not an object"));
    }
    Ok(Claims {
        client_id: client_id.map(Into::into),
        capabilities: capabilities
            .transpose()
            .map_err(|error| ProtocolError::with_text(ErrorCode::BadToken, error.to_string()))?,
        expires_ms,
        issued_ms,
        jti: jti.map(Into::into),
        info: info.map(|info| info.to_string().into()),
    })
}

fn bad(text: &'static str) -> ProtocolError {
    ProtocolError::with_text(ErrorCode::BadToken, text)
}

/// A claim; `null` counts as absent.
fn present<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    claims.get(name).filter(|value| !value.is_null())
}

fn text<'a>(claims: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, ProtocolError> {
    let Some(value) = present(claims, name) else {
        return Ok(None);
    };
    let text = value.as_str();
    text.map(Some).ok_or_else(|| {
        ProtocolError::with_text(ErrorCode::BadToken, format!("`{name}` is not a string"))
    })
}

/// A NumericDate (RFC 7519, section 2), in ms: seconds, perhaps with a fraction.
fn time(claims: &Map<String, Value>, name: &str) -> Result<Option<u64>, ProtocolError> {
    let Some(value) = present(claims, name) else {
        return Ok(None);
    };
    // Beyond it there is no date; a float of this size is still exact to the millisecond.
    const SECONDS_MAX: f64 = 253_402_300_800.0;
    let seconds = value.as_f64().filter(|s| (0.0..=SECONDS_MAX).contains(s));
    let seconds = seconds.ok_or_else(|| {
        ProtocolError::with_text(ErrorCode::BadToken, format!("`{name}` is not a time"))
    })?;
    Ok(Some((seconds * 1000.0) as u64))
}

fn library_algorithm(algorithm: Algorithm) -> jsonwebtoken::Algorithm {
    match algorithm {
        Algorithm::Hs256 => jsonwebtoken::Algorithm::HS256,
        Algorithm::Rs256 => jsonwebtoken::Algorithm::RS256,
        Algorithm::Es256 => jsonwebtoken::Algorithm::ES256,
        Algorithm::EdDsa => jsonwebtoken::Algorithm::EdDSA,
    }
}

/// What the library verifies with.
///
/// # Errors
/// The material is not a key of the algorithm.
pub(super) fn decoding_key(key: &SigningKey) -> Result<DecodingKey, String> {
    let kid = &key.kid;
    let wrong = |what: String| format!("signing key {kid}: {what}");
    match (&key.material, key.algorithm) {
        (KeyMaterial::Secret(secret), Algorithm::Hs256) => {
            if secret.len() < HS256_SECRET_BYTES_MIN {
                let least = HS256_SECRET_BYTES_MIN;
                return Err(wrong(format!("a secret has at least {least} bytes")));
            }
            Ok(DecodingKey::from_secret(secret.as_bytes()))
        }
        (KeyMaterial::Pem(pem), Algorithm::Rs256) => DecodingKey::from_rsa_pem(pem.as_bytes())
            .map_err(|_| wrong("not an RSA public key in PEM".into())),
        (KeyMaterial::Pem(pem), Algorithm::Es256) => DecodingKey::from_ec_pem(pem.as_bytes())
            .map_err(|_| wrong("not a P-256 public key in PEM".into())),
        (KeyMaterial::Pem(pem), Algorithm::EdDsa) => DecodingKey::from_ed_pem(pem.as_bytes())
            .map_err(|_| wrong("not an Ed25519 public key in PEM".into())),
        (KeyMaterial::Jwk(jwk), algorithm) => {
            let jwk: Jwk = serde_json::from_value(jwk.clone())
                .map_err(|_| wrong("not a JSON Web Key".into()))?;
            if jwk_algorithm(&jwk) != Some(algorithm) {
                return Err(wrong("the JSON Web Key is of another algorithm".into()));
            }
            DecodingKey::from_jwk(&jwk).map_err(|error| wrong(error.to_string()))
        }
        (KeyMaterial::Secret(_), Algorithm::Rs256 | Algorithm::Es256 | Algorithm::EdDsa) => {
            Err(wrong("a secret is for HS256 alone".into()))
        }
        (KeyMaterial::Pem(_), Algorithm::Hs256) => {
            Err(wrong("HS256 takes a secret, not a public key".into()))
        }
    }
}

/// The algorithm of a public JSON Web Key; symmetric ones do not belong where keys are published.
fn jwk_algorithm(jwk: &Jwk) -> Option<Algorithm> {
    let by_kind = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::Rs256,
        AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => {
            Algorithm::Es256
        }
        AlgorithmParameters::OctetKeyPair(okp) if okp.curve == EllipticCurve::Ed25519 => {
            Algorithm::EdDsa
        }
        AlgorithmParameters::EllipticCurve(_)
        | AlgorithmParameters::OctetKeyPair(_)
        | AlgorithmParameters::OctetKey(_) => return None,
    };
    let stated = jwk.common.key_algorithm;
    let fits = stated.is_none_or(|stated| stated.to_string() == by_kind.name());
    fits.then_some(by_kind)
}

/// The keys of a key set (RFC 7517, section 5) for an app. Those of other kinds and uses are left out.
///
/// # Errors
/// It is not a key set.
pub fn parse_key_set(
    text: &[u8],
    app: &str,
    capabilities: &Capabilities,
) -> Result<Vec<SigningKey>, String> {
    let set: Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let keys = set.get("keys").and_then(Value::as_array);
    let keys = keys.ok_or("no `keys`")?;
    let usable = keys.iter().filter_map(|value| {
        let jwk: Jwk = serde_json::from_value(value.clone()).ok()?;
        let algorithm = jwk_algorithm(&jwk)?;
        let signs = value.get("use").is_none_or(|for_what| for_what == "sig");
        Some(SigningKey {
            kid: jwk.common.key_id.clone().filter(|_| signs)?,
            app: app.into(),
            algorithm,
            material: KeyMaterial::Jwk(value.clone()),
            capabilities: capabilities.clone(),
            disabled: false,
            created_ms: 0,
            expires_ms: None,
        })
    });
    Ok(usable.collect())
}

/// Signs a token with an HS256 key.
///
/// # Errors
/// [`ErrorCode::BadField`] for a key of another algorithm.
pub(super) fn sign(
    key: &SigningKey,
    client_id: Option<&str>,
    capabilities: Option<&Capabilities>,
    jti: &str,
    issued_s: u64,
    expires_s: u64,
) -> Result<String, ProtocolError> {
    let KeyMaterial::Secret(secret) = &key.material else {
        let text = "only HS256 keys can sign";
        return Err(ProtocolError::with_text(ErrorCode::BadField, text));
    };
    let mut claims = json!({ "iat": issued_s, "exp": expires_s, "jti": jti });
    if let Some(claims) = claims.as_object_mut() {
        if let Some(id) = client_id {
            claims.insert("sub".into(), id.into());
        }
        if let Some(capabilities) = capabilities {
            claims.insert("cap".into(), json!(capabilities));
        }
    }
    let mut header = Header::new(jsonwebtoken::Algorithm::HS256);
    header.kid = Some(key.kid.clone());
    jsonwebtoken::encode(
        &header,
        &claims,
        &EncodingKey::from_secret(secret.as_bytes()),
    )
    .map_err(|_| ErrorCode::Internal.into())
}
