//! Pages about apps and what is set in them.

use serde_json::json;
use shardwire_proto::account::permissions::Role;

use super::{DAY, HOUR, MINUTE, NOW, Sample, Texts, app_shell, refused, sample, shell_of};
use crate::dashboard::face::pages::{apps, keys, settings};
use crate::dashboard::face::{Flash, Named, Shell};

pub(super) fn summaries(texts: Texts) -> Vec<apps::AppSummary> {
    let app =
        |id: &str, name: &str, connections, channels, messages_today, disabled| apps::AppSummary {
            id: texts(id),
            name: texts(name),
            team: texts("Engines Ltd"),
            disabled,
            connections,
            channels,
            messages_today,
        };
    vec![
        app("shop", "Shop", 12_408, 3_117, 1_840_233, false),
        app("support", "Support chat", 318, 96, 20_411, false),
        app("dev", "dev", 2, 1, 57, false),
        app("old-shop", "Old shop", 0, 0, 0, true),
    ]
}

pub(super) fn all(texts: Texts) -> Vec<Sample> {
    let owner = shell_of(Role::Owner, false, texts);
    let in_app = app_shell(texts);
    let viewer = Shell {
        app: in_app.app.clone(),
        ..shell_of(Role::Viewer, false, texts)
    };
    let list = apps::Apps {
        apps: summaries(texts),
        teams: owner.teams.clone(),
    };
    // Ids stay as they are here: they are compared.
    let taken = refused(
        &owner,
        &["teams", &texts("t_7fq"), "apps"],
        &[("id", "shop"), ("name", "Shop")],
        ("id", ": there is an app with this id"),
        texts,
    );
    let keys = keys(texts);
    let fresh = keys::Keys {
        secret: Some(keys::Secret {
            label: texts("Client key “Web shop”"),
            value: texts("ck_8Jm1hV0p3sXq2rTn6YwZbK4d"),
            is_client_key: true,
        }),
        ..keys.clone()
    };
    let wrong_key = refused(
        &in_app,
        &["apps", &texts("shop"), "keys"],
        &[
            ("kind", "server"),
            ("name", "Back end"),
            ("capabilities", "{\"chat:*\": [\"publish\"]"),
        ],
        ("capabilities", "is not JSON: it ends too early"),
        texts,
    );
    let wrong_limit = refused(
        &in_app,
        &["apps", &texts("shop")],
        &[
            ("limits.connectionsMax", "0"),
            ("namespaces.1.pattern", "x"),
        ],
        ("limits.connectionsMax", "is 0"),
        texts,
    );
    let settings = settings::Settings {
        app: settings::App {
            id: texts("shop"),
            name: texts("Shop"),
            disabled: false,
            settings: json!({"namespaces": [{"pattern": texts("chat:*"), "ttl_s": 86_400}], "selfAssertedIds": true}),
            created_ms: NOW - 90 * DAY,
        },
        plans: vec![texts("small")],
        other_teams: vec![Named {
            id: texts("t_8aa"),
            name: texts("Side project"),
        }],
    };
    let saved = Shell {
        flash: Some(Flash::Done(texts("Saved."))),
        ..in_app.clone()
    };
    vec![
        sample("apps", apps::render(&owner, &list)),
        sample("apps-refused", apps::render(&taken, &list)),
        sample(
            "apps-none",
            apps::render(
                &owner,
                &apps::Apps {
                    apps: Vec::new(),
                    ..list
                },
            ),
        ),
        sample("keys", keys::render(&in_app, &keys)),
        sample("keys-secret", keys::render(&in_app, &fresh)),
        sample("keys-wrong", keys::render(&wrong_key, &keys)),
        sample("keys-viewer", keys::render(&viewer, &keys)),
        sample("settings", settings::render(&saved, &settings)),
        sample("settings-wrong", settings::render(&wrong_limit, &settings)),
        sample("settings-viewer", settings::render(&viewer, &settings)),
    ]
}

fn keys(texts: Texts) -> keys::Keys {
    let rights = |pairs: &[(&str, &[&str])]| -> keys::Capabilities {
        let pair = |(pattern, operations): &(&str, &[&str])| {
            let operations = operations.iter().map(|operation| texts(operation));
            (texts(pattern), operations.collect())
        };
        pairs.iter().map(pair).collect()
    };
    let key = keys::Key {
        id: texts("k_1"),
        name: texts("Web shop"),
        kind: "client".to_owned(),
        prefix: texts("ck_8Jm1"),
        capabilities: rights(&[("*", &["subscribe", "presence", "history"])]),
        disabled: false,
        created_ms: NOW - 60 * DAY,
        expires_ms: None,
        last_used_ms: Some(NOW - MINUTE),
    };
    let server = keys::Key {
        id: texts("k_2"),
        name: texts("Order service"),
        kind: "server".to_owned(),
        prefix: texts("sk_Qm4x"),
        capabilities: rights(&[("*", &["*"])]),
        created_ms: NOW - 200 * DAY,
        expires_ms: Some(NOW + 20 * HOUR),
        ..key.clone()
    };
    let partner = keys::Key {
        id: texts("k_3"),
        name: texts("Partner feed"),
        prefix: texts("ck_p0Zt"),
        capabilities: rights(&[
            ("feed:*", &["subscribe"]),
            ("prices:eu", &["subscribe", "history"]),
            ("status", &["subscribe"]),
        ]),
        disabled: true,
        last_used_ms: None,
        ..key.clone()
    };
    keys::Keys {
        keys: vec![key, server, partner],
        signing_keys: vec![keys::SigningKey {
            kid: texts("main-2026"),
            algorithm: "ES256".to_owned(),
            capabilities: rights(&[("*", &["*"])]),
            disabled: false,
            created_ms: NOW - 60 * DAY,
            expires_ms: None,
        }],
        ..keys::Keys::default()
    }
}
