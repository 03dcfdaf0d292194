//! Apple Push Notification service over HTTP/2, with a token (ES256) or a certificate.

use std::cell::RefCell;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use http_body_util::Full;
use hyper::{Method, header};
use jsonwebtoken::{Algorithm, Header};
use serde_json::json;
use shardwire_proto::push::Address;
use shardwire_proto::push::verdict::{self, Verdict};

use super::Request;
use super::client::{Clients, Http, Trouble, ask};
use crate::clock::now_ms;
use crate::side::push::provider::{Access, ApnsAuth};

/// A token is used for this long: Apple wants it between 20 and 60 minutes old when another comes.
const TOKEN_LIFE_MS: u64 = 50 * 60_000;

/// What is kept for a provider.
#[derive(Default)]
pub(super) struct Connection {
    /// The token and until when it is used, Unix ms.
    token: RefCell<Option<(String, u64)>>,
    /// The client that shows the certificate.
    client: RefCell<Option<Http>>,
}

pub(super) async fn send(
    clients: &Clients,
    kept: &Connection,
    access: &Access,
    request: &Request<'_>,
) -> Result<Verdict, Trouble> {
    let refused = |text: &str| Trouble::Refused(text.to_owned());
    let (
        Access::Apns {
            endpoint,
            topic,
            auth,
        },
        Address::Device { token: device },
    ) = (access, request.address)
    else {
        return Err(refused("not a device of APNs"));
    };
    let content = request.content;
    let expires_s = match request.ttl_s {
        0 => 0,
        ttl_s => now_ms() / 1000 + u64::from(ttl_s),
    };
    let push_type = if content.is_shown() {
        "alert"
    } else {
        "background"
    };
    let mut http = hyper::Request::builder()
        .method(Method::POST)
        .uri(format!("{endpoint}/3/device/{device}"))
        .header(header::CONTENT_TYPE, "application/json")
        .header("apns-id", uuid())
        .header("apns-topic", topic)
        .header("apns-push-type", push_type)
        .header("apns-priority", u16::from(content.apns_priority()))
        .header("apns-expiration", expires_s);
    if let Some(id) = &content.collapse_id {
        http = http.header("apns-collapse-id", id);
    }
    let mut shown = None;
    let client = match auth {
        ApnsAuth::Token { .. } => {
            let token = kept.token(auth)?;
            http = http.header(header::AUTHORIZATION, format!("bearer {token}"));
            shown = Some(token);
            clients.http2.clone()
        }
        ApnsAuth::Certificate { chain, key } => {
            let mut kept = kept.client.borrow_mut();
            match &*kept {
                Some(client) => client.clone(),
                None => {
                    let made = clients.with_certificate(chain.clone(), key.clone_key())?;
                    kept.insert(made).clone()
                }
            }
        }
    };
    let http = http
        .body(Full::new(Bytes::from(content.to_apns())))
        .map_err(|_| refused("APNs cannot be asked"))?;
    let answer = ask(&client, http).await?;
    let verdict = verdict::of_apns(answer.status, &answer.body, answer.after_ms);
    if matches!(verdict, Verdict::Renew(_)) {
        // Another request may have a new one already.
        let mut kept = kept.token.borrow_mut();
        if kept.as_ref().map(|(token, _)| token) == shown.as_ref() {
            *kept = None;
        }
    }
    Ok(verdict)
}

impl Connection {
    fn token(&self, auth: &ApnsAuth) -> Result<String, Trouble> {
        let ApnsAuth::Token {
            key_id,
            team_id,
            key,
        } = auth
        else {
            return Err(Trouble::Refused("no token is used".into()));
        };
        let mut kept = self.token.borrow_mut();
        if let Some((token, until_ms)) = &*kept
            && now_ms() < *until_ms
        {
            return Ok(token.clone());
        }
        let mut head = Header::new(Algorithm::ES256);
        head.kid = Some(key_id.clone());
        let claims = json!({ "iss": team_id, "iat": now_ms() / 1000 });
        let token = jsonwebtoken::encode(&head, &claims, key)
            .map_err(|error| Trouble::Refused(format!("APNs: {error}")))?;
        *kept = Some((token.clone(), now_ms() + TOKEN_LIFE_MS));
        Ok(token)
    }
}

/// A random UUID (RFC 9562, 5.4).
fn uuid() -> String {
    let mut bytes = crate::sys::random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex = HEXLOWER.encode(&bytes);
    [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-")
}
