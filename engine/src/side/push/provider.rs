//! An app's access to a provider: what operators set, what is kept of it, and what a sender works with.
//!
//! Not here: sealing (`vault`) and sending (`send`). Invariants: what an operator set has been tried as a key before it
//! is kept; secrets are never shown again.

use std::path::PathBuf;

use data_encoding::BASE64URL_NOPAD;
use hyper::http::Uri;
use jsonwebtoken::EncodingKey;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shardwire_proto::push::Platform;

use super::crypt::VapidKey;

/// Requests to one provider of an app at once, when the operator does not say.
const CONCURRENCY_DEFAULT: u16 = 64;
/// And at most.
const CONCURRENCY_MAX: u16 = 1000;
/// Bytes of a file of credentials.
const FILE_BYTES_MAX: u64 = 64 * 1024;
const FCM_ENDPOINT: &str = "https://fcm.googleapis.com";
const FCM_TOKEN_URI: &str = "https://oauth2.googleapis.com/token";
const APNS_ENDPOINT: &str = "https://api.push.apple.com";
const APNS_SANDBOX: &str = "https://api.sandbox.push.apple.com";

/// What an operator sets and the store keeps sealed. Secrets are given as such or by a file of the host, which is read
/// at each start of use. Not `Debug`: it holds secrets.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Web {
    /// Whom a push service turns to: `mailto:` or `https://` (RFC 8292, 2.1).
    subject: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    private_key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    private_key_file: Option<PathBuf>,
    #[serde(default = "concurrency")]
    concurrency: u16,
}

/// As [`Web`], for FCM.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Fcm {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    service_account: Option<ServiceAccount>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    service_account_file: Option<PathBuf>,
    /// In place of Google's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    #[serde(default = "concurrency")]
    concurrency: u16,
}

/// The parts of Google's file that are used.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ServiceAccount {
    project_id: String,
    client_email: String,
    private_key: String,
    #[serde(default)]
    private_key_id: Option<String>,
    #[serde(default)]
    token_uri: Option<String>,
}

/// As [`Web`], for APNs: a token key with its ids, or a certificate with its key.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Apns {
    /// The application's bundle id.
    topic: String,
    #[serde(default)]
    sandbox: bool,
    /// In place of Apple's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    team_id: Option<String>,
    /// PEM of the `.p8` file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_file: Option<PathBuf>,
    /// PEM of the certificate chain and its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    certificate: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    certificate_file: Option<PathBuf>,
    #[serde(default = "concurrency")]
    concurrency: u16,
}

fn concurrency() -> u16 {
    CONCURRENCY_DEFAULT
}

/// Credentials of any provider.
#[derive(Clone, PartialEq)]
pub(super) enum Credentials {
    Web(Web),
    Fcm(Fcm),
    Apns(Apns),
}

/// What a sender works with. Not `Debug`: it holds secrets.
pub(super) struct Provider {
    /// Of the record that it was read from: another one means other credentials.
    pub(super) version: u64,
    pub(super) concurrency: usize,
    pub(super) access: Access,
}

pub(super) enum Access {
    Web {
        subject: String,
        key: VapidKey,
    },
    Fcm {
        endpoint: String,
        token_uri: String,
        project: String,
        email: String,
        key_id: Option<String>,
        key: EncodingKey,
    },
    Apns {
        endpoint: String,
        topic: String,
        auth: ApnsAuth,
    },
}

pub(super) enum ApnsAuth {
    Token {
        key_id: String,
        team_id: String,
        key: EncodingKey,
    },
    Certificate {
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    },
}

impl Credentials {
    /// Reads what an operator sends. `known`: what is there; a VAPID key stays unless another one is given, since
    /// browsers have subscribed with it.
    ///
    /// # Errors
    /// What is wrong.
    pub(super) fn read(
        platform: Platform,
        body: Value,
        known: Option<&Self>,
    ) -> Result<Self, String> {
        let told = |error: serde_json::Error| error.to_string();
        let credentials = match platform {
            Platform::Web => {
                let mut web: Web = serde_json::from_value(body).map_err(told)?;
                if web.private_key.is_none() && web.private_key_file.is_none() {
                    match known {
                        Some(Self::Web(known)) => {
                            web.private_key.clone_from(&known.private_key);
                            web.private_key_file.clone_from(&known.private_key_file);
                        }
                        _ => {
                            let made = VapidKey::generate().map_err(|_| "no key can be made")?;
                            web.private_key = Some(made.private);
                        }
                    }
                }
                Self::Web(web)
            }
            Platform::Fcm => Self::Fcm(serde_json::from_value(body).map_err(told)?),
            Platform::Apns => Self::Apns(serde_json::from_value(body).map_err(told)?),
        };
        credentials.load(0)?;
        Ok(credentials)
    }

    /// Reads what the store keeps.
    pub(super) fn from_stored(platform: Platform, text: &[u8]) -> Result<Self, String> {
        let told = |error: serde_json::Error| error.to_string();
        Ok(match platform {
            Platform::Web => Self::Web(serde_json::from_slice(text).map_err(told)?),
            Platform::Fcm => Self::Fcm(serde_json::from_slice(text).map_err(told)?),
            Platform::Apns => Self::Apns(serde_json::from_slice(text).map_err(told)?),
        })
    }

    /// What the store is to keep, sealed.
    pub(super) fn to_stored(&self) -> Vec<u8> {
        let written = match self {
            Self::Web(web) => serde_json::to_vec(web),
            Self::Fcm(fcm) => serde_json::to_vec(fcm),
            Self::Apns(apns) => serde_json::to_vec(apns),
        };
        debug_assert!(written.is_ok(), "credentials have string keys");
        written.unwrap_or_default()
    }

    /// What operators are shown: everything but secrets.
    pub(super) fn shown(&self) -> Value {
        match self {
            Self::Web(web) => json!({
                "platform": "web", "subject": web.subject, "concurrency": web.concurrency,
                "privateKeyFile": web.private_key_file,
                "vapidPublicKey": web.key().ok().map(|key| key.public),
            }),
            Self::Fcm(fcm) => {
                let account = fcm.account().ok();
                json!({
                    "platform": "fcm", "concurrency": fcm.concurrency, "endpoint": fcm.endpoint,
                    "serviceAccountFile": fcm.service_account_file,
                    "project": account.as_ref().map(|account| &account.project_id),
                    "clientEmail": account.as_ref().map(|account| &account.client_email),
                })
            }
            Self::Apns(apns) => json!({
                "platform": "apns", "concurrency": apns.concurrency, "endpoint": apns.endpoint(),
                "topic": apns.topic, "sandbox": apns.sandbox,
                "keyId": apns.key_id, "teamId": apns.team_id, "keyFile": apns.key_file,
                "certificateFile": apns.certificate_file,
                "auth": if apns.uses_token() { "token" } else { "certificate" },
            }),
        }
    }

    /// Reads files and keys.
    ///
    /// # Errors
    /// What cannot be used.
    pub(super) fn load(&self, version: u64) -> Result<Provider, String> {
        let (concurrency, access) = match self {
            Self::Web(web) => (web.concurrency, web.access()?),
            Self::Fcm(fcm) => (fcm.concurrency, fcm.access()?),
            Self::Apns(apns) => (apns.concurrency, apns.access()?),
        };
        if !(1..=CONCURRENCY_MAX).contains(&concurrency) {
            return Err(format!("`concurrency` must be 1 to {CONCURRENCY_MAX}"));
        }
        Ok(Provider {
            version,
            concurrency: usize::from(concurrency),
            access,
        })
    }
}

impl Web {
    fn key(&self) -> Result<VapidKey, String> {
        let text = secret(&self.private_key, &self.private_key_file, "privateKey")?;
        let private = BASE64URL_NOPAD.decode(text.trim().trim_end_matches('=').as_bytes());
        private
            .ok()
            .and_then(|private| VapidKey::from_private(&private).ok())
            .ok_or_else(|| "`privateKey` must be 32 bytes in base64url".to_owned())
    }

    fn access(&self) -> Result<Access, String> {
        if !self.subject.starts_with("mailto:") && !self.subject.starts_with("https://") {
            return Err("`subject` must begin with mailto: or https://".into());
        }
        Ok(Access::Web {
            subject: self.subject.clone(),
            key: self.key()?,
        })
    }
}

impl Fcm {
    fn account(&self) -> Result<ServiceAccount, String> {
        match (&self.service_account, &self.service_account_file) {
            (Some(account), None) => Ok(account.clone()),
            (None, Some(file)) => serde_json::from_str(&read_file(file)?)
                .map_err(|error| format!("`serviceAccountFile`: {error}")),
            _ => Err("one of `serviceAccount` and `serviceAccountFile` is needed".into()),
        }
    }

    fn access(&self) -> Result<Access, String> {
        let account = self.account()?;
        let key = EncodingKey::from_rsa_pem(account.private_key.as_bytes())
            .map_err(|error| format!("`private_key` of the service account: {error}"))?;
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        if account.project_id.is_empty() || !account.project_id.bytes().all(is_plain) {
            return Err("`project_id` of the service account is not one".into());
        }
        Ok(Access::Fcm {
            endpoint: checked_url(self.endpoint.as_deref().unwrap_or(FCM_ENDPOINT))?,
            token_uri: checked_url(account.token_uri.as_deref().unwrap_or(FCM_TOKEN_URI))?,
            project: account.project_id,
            email: account.client_email,
            key_id: account.private_key_id,
            key,
        })
    }
}

impl Apns {
    fn uses_token(&self) -> bool {
        self.key.is_some() || self.key_file.is_some()
    }

    fn endpoint(&self) -> &str {
        let apple = if self.sandbox {
            APNS_SANDBOX
        } else {
            APNS_ENDPOINT
        };
        self.endpoint.as_deref().unwrap_or(apple)
    }

    fn access(&self) -> Result<Access, String> {
        if self.topic.is_empty() || !self.topic.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("`topic` must be the application's bundle id".into());
        }
        let auth = if self.uses_token() {
            let key = secret(&self.key, &self.key_file, "key")?;
            let (Some(key_id), Some(team_id)) = (&self.key_id, &self.team_id) else {
                return Err("`keyId` and `teamId` are needed with `key`".into());
            };
            ApnsAuth::Token {
                key_id: key_id.clone(),
                team_id: team_id.clone(),
                key: EncodingKey::from_ec_pem(key.as_bytes())
                    .map_err(|error| format!("`key`: {error}"))?,
            }
        } else {
            let pem = secret(&self.certificate, &self.certificate_file, "certificate")?;
            let told = |error: rustls::pki_types::pem::Error| format!("`certificate`: {error}");
            let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
                .collect::<Result<_, _>>()
                .map_err(told)?;
            if chain.is_empty() {
                return Err("`certificate` holds none".into());
            }
            ApnsAuth::Certificate {
                chain,
                key: PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(told)?,
            }
        };
        Ok(Access::Apns {
            endpoint: checked_url(self.endpoint())?,
            topic: self.topic.clone(),
            auth,
        })
    }
}

/// A secret that is given as such or by a file.
fn secret(given: &Option<String>, file: &Option<PathBuf>, name: &str) -> Result<String, String> {
    match (given, file) {
        (Some(secret), None) => Ok(secret.clone()),
        (None, Some(file)) => read_file(file),
        _ => Err(format!("one of `{name}` and `{name}File` is needed")),
    }
}

fn read_file(path: &PathBuf) -> Result<String, String> {
    // What is in it is not repeated: it is not the file's reader who set it.
    let failed = |error: std::io::Error| format!("{}: {}", path.display(), error.kind());
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
        return Err(format!("{}: not a file of credentials", path.display()));
    }
    std::fs::read_to_string(path).map_err(failed)
}

/// An operator's URL without a slash at its end.
fn checked_url(text: &str) -> Result<String, String> {
    let uri: Option<Uri> = text.parse().ok();
    let is_usable = uri.is_some_and(|uri| {
        matches!(uri.scheme_str(), Some("https" | "http")) && uri.host().is_some()
    });
    if is_usable {
        return Ok(text.trim_end_matches('/').to_owned());
    }
    Err(format!("{text:?} is not a URL"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(platform: Platform, body: Value) -> String {
        Credentials::read(platform, body, None).err().unwrap()
    }

    #[test]
    fn a_vapid_key_is_made_once_and_stays() {
        let first =
            Credentials::read(Platform::Web, json!({"subject": "mailto:a@b"}), None).unwrap();
        let stored = first.to_stored();
        let read = Credentials::from_stored(Platform::Web, &stored).unwrap();
        assert!(read == first);
        let shown = first.shown();
        assert_eq!(shown["vapidPublicKey"].as_str().unwrap().len(), 87);
        assert!(shown.get("privateKey").is_none());
        let body = json!({"subject": "https://b"});
        let second = Credentials::read(Platform::Web, body, Some(&first)).unwrap();
        assert_eq!(second.shown()["vapidPublicKey"], shown["vapidPublicKey"]);
    }

    #[test]
    fn what_cannot_be_used_is_told() {
        let web = |body| wrong(Platform::Web, body);
        assert!(web(json!({})).contains("subject"));
        assert!(web(json!({"subject": "me"})).contains("mailto"));
        assert!(web(json!({"subject": "mailto:a", "privateKey": "x"})).contains("privateKey"));
        assert!(web(json!({"subject": "mailto:a", "concurrency": 0})).contains("concurrency"));
        assert!(web(json!({"subject": "mailto:a", "privatekey": "x"})).contains("privatekey"));
        assert!(wrong(Platform::Fcm, json!({})).contains("serviceAccount"));
        let account = json!({"project_id": "p", "client_email": "e", "private_key": "x"});
        assert!(wrong(Platform::Fcm, json!({"serviceAccount": account})).contains("private_key"));
        assert!(wrong(Platform::Apns, json!({"topic": "t"})).contains("certificate"));
        assert!(wrong(Platform::Apns, json!({"topic": "t", "key": "x"})).contains("keyId"));
        let file = json!({"topic": "t", "certificateFile": "/dev/zero"});
        assert!(wrong(Platform::Apns, file).contains("not a file"));
        let certificate = json!({"topic": "t", "certificate": "x"});
        assert!(wrong(Platform::Apns, certificate).contains("none"));
    }
}
