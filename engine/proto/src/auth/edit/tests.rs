//! What changes do to a registry and to its documents.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::super::revocation::Subject;
use super::*;
use crate::rate::RateLimit;

/// Random bytes that are not.
fn counting() -> impl FnMut() -> [u8; 24] {
    let mut n = 0u64;
    move || {
        n += 1;
        let mut bytes = [0; 24];
        // Ids take the first six bytes.
        bytes[..8].copy_from_slice(&(n << 16).to_be_bytes());
        bytes
    }
}

/// What a storage that applies changes holds.
#[derive(Default)]
struct Stored(BTreeMap<(DocumentKind, String), String>);

impl Stored {
    fn apply(&mut self, changes: &[DocumentChange]) {
        for change in changes.iter().cloned() {
            match change {
                DocumentChange::Put { kind, id, json } => _ = self.0.insert((kind, id), json),
                DocumentChange::Delete { kind, id } => _ = self.0.remove(&(kind, id)),
            }
        }
    }

    fn read(&self) -> Registry {
        let all = self.0.iter();
        let all: Vec<_> = all
            .map(|((kind, id), json)| (*kind, id.clone(), json.clone()))
            .collect();
        Registry::from_documents(&all).unwrap()
    }
}

fn pick<T: Clone>(from: &[T], n: u8) -> Option<T> {
    from.get(usize::from(n) % from.len().max(1)).cloned()
}

/// A change of one of few apps, by numbers; of something that is there, mostly.
fn change(registry: &Registry, (what, a, b): (u8, u8, u8)) -> Change {
    let app = format!("app{}", a % 3);
    let keys: Vec<String> = registry.keys(&app).map(|key| key.id.clone()).collect();
    let kids: Vec<String> = registry.signing_keys(&app).map(|k| k.kid.clone()).collect();
    let revocations: Vec<String> = registry.revocations(&app).map(|r| r.id.clone()).collect();
    let of = |ids: &[String]| pick(ids, b).unwrap_or_else(|| "none".into());
    match what % 13 {
        0 => Change::CreateApp(NewApp {
            id: Some(app),
            ..NewApp::default()
        }),
        1 => Change::UpdateApp {
            id: app,
            patch: serde_json::from_value(json!({
                "disabled": b % 2 == 0,
                "settings": {"hello": (b % 3 == 0).then_some(false), "limits": {"connectionsMax": 5}},
            }))
            .unwrap(),
        },
        2 if b % 8 == 0 => Change::DeleteApp { id: app },
        2..=4 => Change::CreateKey {
            app,
            key: NewKey {
                kind: KeyKind::Client,
                name: String::new(),
                capabilities: None,
                expires_ms: (b % 2 == 0).then_some(u64::from(b) * 1000),
                publish_rate: None,
            },
        },
        5 => Change::UpdateKey {
            app,
            id: of(&keys),
            patch: KeyPatch {
                disabled: Some(b % 2 == 0),
                ..KeyPatch::default()
            },
        },
        6 => Change::RotateKey {
            app,
            id: of(&keys),
            overlap_s: b.into(),
        },
        7 => Change::DeleteKey {
            app,
            id: of(&keys),
        },
        8 => Change::CreateSigningKey {
            app,
            key: serde_json::from_value(json!({"algorithm": "HS256"})).unwrap(),
        },
        9 => Change::UpdateSigningKey {
            app,
            kid: of(&kids),
            patch: SigningKeyPatch {
                disabled: Some(b % 2 == 0),
                ..SigningKeyPatch::default()
            },
        },
        10 => Change::DeleteSigningKey {
            app,
            kid: of(&kids),
        },
        11 => Change::Revoke {
            app,
            revocation: NewRevocation {
                subject: Subject::ClientId("ann".into()),
                channel: None,
                ttl_s: Some(b.into()),
                issued_before_ms: None,
            },
        },
        _ => Change::DeleteRevocation {
            app,
            id: of(&revocations),
        },
    }
}

proptest! {
    #[test]
    fn what_is_stored_is_what_counts(steps in prop::collection::vec(any::<(u8, u8, u8)>(), 1..60)) {
        let (mut registry, mut stored) = (Registry::default(), Stored::default());
        let mut random = counting();
        let mut now_ms = 0;
        for step in steps {
            now_ms += 20_000_000;
            if let Ok(edited) = registry.changed(change(&registry, step), &mut random, now_ms) {
                stored.apply(&edited.documents);
                registry = edited.registry;
            }
            if step.0 > 200 && let Some((pruned, documents)) = registry.pruned(now_ms) {
                stored.apply(&documents);
                registry = pruned;
            }
            let read = stored.read();
            prop_assert_eq!(read.documents(), registry.documents());
            prop_assert_eq!(read.ring().len(), registry.ring().len());
            let apps: Vec<_> = registry.apps().map(|app| app.id.clone()).collect();
            let keys = apps.iter().map(|app| registry.keys(app).count()).sum::<usize>();
            prop_assert_eq!(registry.ring().len(), keys, "a key that is gone still opens");
        }
    }
}

fn with_app() -> Registry {
    let new = NewApp {
        id: Some("app".into()),
        ..NewApp::default()
    };
    let made = Registry::default().changed(Change::CreateApp(new), &mut counting(), 0);
    made.unwrap().registry
}

#[test]
fn a_rotated_key_lasts_for_the_overlap_and_never_longer_than_before() {
    let registry = with_app();
    let mut random = counting();
    let key = NewKey {
        kind: KeyKind::Server,
        name: "back end".into(),
        capabilities: None,
        expires_ms: Some(5000),
        publish_rate: RateLimit::new(5, 1000, 5),
    };
    let app = String::from("app");
    let made = registry
        .changed(
            Change::CreateKey {
                app: app.clone(),
                key,
            },
            &mut random,
            0,
        )
        .unwrap();
    let Changed::Key { info, secret } = made.changed else {
        panic!("not a key");
    };
    let rotate = |overlap_s| Change::RotateKey {
        app: app.clone(),
        id: info.id.clone(),
        overlap_s,
    };
    let soon = made.registry.changed(rotate(2), &mut random, 1000).unwrap();
    let late = made
        .registry
        .changed(rotate(60), &mut random, 1000)
        .unwrap();
    let ends = |registry: &Registry| registry.key("app", &info.id).unwrap().expires_ms;
    assert_eq!(
        (ends(&soon.registry), ends(&late.registry)),
        (Some(3000), Some(5000))
    );
    let old = secret.unwrap();
    assert!(soon.registry.ring().authenticate(&old, 2999).is_ok());
    let over = soon.registry.ring().authenticate(&old, 3000);
    assert_eq!(over.unwrap_err(), ErrorCode::Disabled);
    let Changed::Key { info: new, .. } = soon.changed else {
        panic!("not a key");
    };
    assert_eq!((new.kind, &*new.name), (KeyKind::Server, "back end"));
    assert_eq!(new.publish_rate, info.publish_rate);
    assert!(new.publish_rate.is_some());
}

#[test]
fn what_is_not_there_is_told_apart_from_what_is_wrong() {
    let registry = with_app();
    let code = |change| {
        registry
            .changed(change, &mut counting(), 0)
            .unwrap_err()
            .code
    };
    let none = || String::from("none");
    let missing = Change::DeleteKey {
        app: "app".into(),
        id: none(),
    };
    assert_eq!(code(missing), ErrorCode::NotFound);
    assert_eq!(code(Change::DeleteApp { id: none() }), ErrorCode::NotFound);
    let again = NewApp {
        id: Some("app".into()),
        ..NewApp::default()
    };
    assert_eq!(code(Change::CreateApp(again)), ErrorCode::BadField);
    let mint = Change::MintToken {
        app: "app".into(),
        token: NewToken::default(),
    };
    assert_eq!(code(mint), ErrorCode::BadField);
}
