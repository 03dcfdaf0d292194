//! Firebase Cloud Messaging, HTTP v1, with access tokens of a service account (RFC 7523).

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, header};
use jsonwebtoken::{Algorithm, Header};
use serde::Deserialize;
use serde_json::json;
use shardwire_proto::push::Address;
use shardwire_proto::push::verdict::{self, Verdict};
use tokio::sync::Mutex;

use super::Request;
use super::client::{Clients, Trouble, ask};
use crate::clock::now_ms;
use crate::side::push::provider::Access;

const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";
const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
/// An assertion's life: Google allows an hour.
const ASSERTION_LIFE_S: u64 = 3600;
/// A token is renewed so long before its end.
const MARGIN_MS: u64 = 300_000;

/// The access token, and until when it is used, Unix ms. One task at a time gets another.
#[derive(Default)]
pub(super) struct Tokens(Mutex<Option<(String, u64)>>);

#[derive(Deserialize)]
struct Grant {
    access_token: String,
    #[serde(default)]
    expires_in: u64,
}

pub(super) async fn send(
    clients: &Clients,
    tokens: &Tokens,
    access: &Access,
    request: &Request<'_>,
) -> Result<Verdict, Trouble> {
    let refused = |text: &str| Trouble::Refused(text.to_owned());
    let (
        Access::Fcm {
            endpoint, project, ..
        },
        Address::Device { token: device },
    ) = (access, request.address)
    else {
        return Err(refused("not a device of FCM"));
    };
    let token = tokens.current(clients, access).await?;
    let http = hyper::Request::builder()
        .method(Method::POST)
        .uri(format!("{endpoint}/v1/projects/{project}/messages:send"))
        .header(header::AUTHORIZATION, format!("Bearer {token}"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(request.content.to_fcm(device))))
        .map_err(|_| refused("FCM cannot be asked"))?;
    let answer = ask(&clients.trusted, http).await?;
    let verdict = verdict::of_fcm(answer.status, &answer.body, answer.after_ms);
    if matches!(verdict, Verdict::Renew(_)) {
        tokens.forget(&token).await;
    }
    Ok(verdict)
}

impl Tokens {
    async fn current(&self, clients: &Clients, access: &Access) -> Result<String, Trouble> {
        let mut kept = self.0.lock().await;
        if let Some((token, until_ms)) = &*kept
            && now_ms() < *until_ms
        {
            return Ok(token.clone());
        }
        let grant = fetch(clients, access).await?;
        let until_ms = now_ms() + (grant.expires_in * 1000).saturating_sub(MARGIN_MS);
        *kept = Some((grant.access_token.clone(), until_ms));
        Ok(grant.access_token)
    }

    /// Another task may have a new one already.
    async fn forget(&self, token: &str) {
        let mut kept = self.0.lock().await;
        if kept.as_ref().is_some_and(|(kept, _)| kept == token) {
            *kept = None;
        }
    }
}

async fn fetch(clients: &Clients, access: &Access) -> Result<Grant, Trouble> {
    let refused = |text: String| Trouble::Refused(text);
    let Access::Fcm {
        token_uri,
        email,
        key_id,
        key,
        ..
    } = access
    else {
        return Err(refused("not FCM".into()));
    };
    let now_s = now_ms() / 1000;
    let claims = json!({
        "iss": email, "scope": SCOPE, "aud": token_uri,
        "iat": now_s, "exp": now_s + ASSERTION_LIFE_S,
    });
    let mut head = Header::new(Algorithm::RS256);
    head.kid.clone_from(key_id);
    let assertion = jsonwebtoken::encode(&head, &claims, key)
        .map_err(|error| refused(format!("service account: {error}")))?;
    // Neither part has characters that a form would escape, but for the grant's colons.
    let form = format!(
        "grant_type={}&assertion={assertion}",
        GRANT.replace(':', "%3A")
    );
    let http = hyper::Request::builder()
        .method(Method::POST)
        .uri(token_uri)
        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
        .body(Full::new(Bytes::from(form)))
        .map_err(|_| refused("the token address cannot be asked".into()))?;
    let answer = ask(&clients.trusted, http).await?;
    match answer.status {
        200 => serde_json::from_slice(&answer.body)
            .map_err(|_| Trouble::Unreachable("no token in the answer for one".into())),
        400..=428 | 430..=499 => Err(refused(format!(
            "FCM: the service account is not accepted (HTTP {})",
            answer.status
        ))),
        status => Err(Trouble::Unreachable(format!(
            "FCM: no token (HTTP {status})"
        ))),
    }
}
