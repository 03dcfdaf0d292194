//! Web Push: RFC 8030 with VAPID (RFC 8292), and bodies encrypted by RFC 8291.

use std::cell::RefCell;
use std::collections::HashMap;

use bytes::Bytes;
use http_body_util::Full;
use hyper::http::Uri;
use hyper::{Method, header};
use jsonwebtoken::{Algorithm, Header};
use serde_json::json;
use shardwire_proto::push::Address;
use shardwire_proto::push::request::decode_base64;
use shardwire_proto::push::verdict::{self, Verdict};

use super::Request;
use super::client::{Clients, Trouble};
use crate::clock::now_ms;
use crate::side::push::crypt::{Receiver, VapidKey, encrypt};

/// A token's life: RFC 8292 allows a day.
const TOKEN_LIFE_S: u64 = 12 * 3600;
/// A token is made anew so long before its end.
const TOKEN_MARGIN_S: u64 = 3600;
/// Push services whose tokens are kept.
const TOKENS_MAX: usize = 1000;

/// Tokens by the push service they are for, and until when they are used, Unix s.
#[derive(Default)]
pub(super) struct Tokens(RefCell<HashMap<String, (String, u64)>>);

impl Tokens {
    fn of(&self, audience: String, subject: &str, key: &VapidKey) -> Result<String, Trouble> {
        let now_s = now_ms() / 1000;
        let mut tokens = self.0.borrow_mut();
        if let Some((token, until_s)) = tokens.get(&audience)
            && now_s < *until_s
        {
            return Ok(token.clone());
        }
        let ends_s = now_s + TOKEN_LIFE_S;
        let claims = json!({ "aud": audience, "exp": ends_s, "sub": subject });
        let header = Header::new(Algorithm::ES256);
        let token = jsonwebtoken::encode(&header, &claims, &key.signing)
            .map_err(|error| Trouble::Refused(format!("VAPID: {error}")))?;
        if tokens.len() >= TOKENS_MAX {
            tokens.clear();
        }
        tokens.insert(audience, (token.clone(), ends_s - TOKEN_MARGIN_S));
        Ok(token)
    }
}

pub(super) async fn send(
    clients: &Clients,
    tokens: &Tokens,
    subject: &str,
    key: &VapidKey,
    request: &Request<'_>,
) -> Result<Verdict, Trouble> {
    let refused = |text: &str| Trouble::Refused(text.to_owned());
    let Address::Web {
        endpoint,
        p256dh,
        auth,
    } = request.address
    else {
        return Err(refused("not a browser's subscription"));
    };
    let uri: Uri = endpoint
        .parse()
        .map_err(|_| refused("the endpoint is not a URL"))?;
    let audience = match (uri.scheme_str(), uri.authority()) {
        (Some(scheme), Some(authority)) => format!("{scheme}://{authority}"),
        _ => return Err(refused("the endpoint is not a URL")),
    };
    let token = tokens.of(audience, subject, key)?;
    let (public, auth) = (decode_base64(p256dh), decode_base64(auth));
    let receiver = Receiver {
        public: &public.unwrap_or_default(),
        auth: &auth.unwrap_or_default(),
    };
    let body = encrypt(&request.content.to_web(), receiver)
        .map_err(|_| refused("the subscription's keys cannot be used"))?;
    let mut http = hyper::Request::builder()
        .method(Method::POST)
        .uri(uri)
        .header(
            header::AUTHORIZATION,
            format!("vapid t={token}, k={}", key.public),
        )
        .header(header::CONTENT_ENCODING, "aes128gcm")
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header("ttl", request.ttl_s)
        .header("urgency", request.content.urgency.name());
    if let Some(topic) = &request.content.collapse_id {
        http = http.header("topic", topic);
    }
    let http = http
        .body(Full::new(Bytes::from(body)))
        .map_err(|_| refused("the endpoint cannot be asked"))?;
    let answer = clients.ask_web(http).await?;
    Ok(verdict::of_web(answer.status, answer.after_ms))
}
