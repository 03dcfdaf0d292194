//! What a change of the registry does to those who are in.

use serde_json::json;
use shardwire_proto::auth::change::{AppPatch, Change, Changed, KeyPatch, NewToken};
use shardwire_proto::error::{CloseCause, ErrorCode};

use crate::support::{CLIENT_KEY, World};

fn client_key(patch: KeyPatch) -> Change {
    Change::UpdateKey {
        app: "app".into(),
        id: "c".into(),
        patch,
    }
}

fn token(w: &mut World, client_id: &str, ttl_s: u64) -> String {
    let token = NewToken {
        client_id: Some(client_id.into()),
        ttl_s: Some(ttl_s),
        ..NewToken::default()
    };
    let minted = w.change(Change::MintToken {
        app: "app".into(),
        token,
    });
    let Changed::Token { token, .. } = minted else {
        panic!("{minted:?}");
    };
    token
}

fn with_signing_key(w: &mut World) {
    w.change(Change::CreateSigningKey {
        app: "app".into(),
        key: serde_json::from_value(json!({"algorithm": "HS256"})).unwrap(),
    });
}

#[test]
fn a_disabled_key_ends_its_connections_on_every_shard_and_no_other() {
    let mut w = World::new(3);
    let query = format!("key={CLIENT_KEY}");
    let theirs: Vec<usize> = (0..30).map(|n| w.connect_with(n % 3, &query)).collect();
    let other = w.connect(0);
    w.change(client_key(KeyPatch {
        disabled: Some(true),
        ..KeyPatch::default()
    }));
    for client in theirs {
        assert_eq!(w.clients[client].ended, Some(CloseCause::Disabled));
    }
    assert_eq!(w.clients[other].ended, None);
    assert_eq!(w.refused(0, &query), ErrorCode::Disabled);
}

#[test]
fn a_sweep_is_bounded_per_step_and_reaches_all() {
    let mut w = World::new(1);
    let query = format!("key={CLIENT_KEY}");
    let clients: Vec<usize> = (0..5000).map(|_| w.connect_with(0, &query)).collect();
    let disable = client_key(KeyPatch {
        disabled: Some(true),
        ..KeyPatch::default()
    });
    let edited = w.registry.changed(disable, &mut || [7; 24], w.unix_ms());
    let now = w.now();
    w.shards[0].set_registry(std::sync::Arc::new(edited.unwrap().registry), now);
    assert!(w.shards[0].sweep(now));
    w.carry(0);
    let ended = |w: &World| {
        let ended = clients.iter().filter(|c| w.clients[**c].ended.is_some());
        ended.count()
    };
    assert!((1..5000).contains(&ended(&w)), "{}", ended(&w));
    while w.shards[0].sweep(now) {}
    w.carry(0);
    assert_eq!(ended(&w), 5000);
}

#[test]
fn a_key_that_is_over_is_noticed_by_the_tick() {
    let mut w = World::new(2);
    let query = format!("key={CLIENT_KEY}");
    let client = w.connect_with(1, &query);
    w.change(Change::RotateKey {
        app: "app".into(),
        id: "c".into(),
        overlap_s: 10,
    });
    w.advance_us(9_900_000);
    assert_eq!(w.clients[client].ended, None);
    w.connect_with(0, &query);
    w.advance_us(1_200_000);
    let now = w.now();
    while w.shards[1].sweep(now) {}
    w.carry(1);
    assert_eq!(w.clients[client].ended, Some(CloseCause::Disabled));
    assert_eq!(w.refused(0, &query), ErrorCode::Disabled);
}

#[test]
fn rights_that_are_gone_take_their_channels() {
    let mut w = World::new(2);
    let client = w.connect_with(0, &format!("key={CLIENT_KEY}"));
    for channel in ["kept", "lost"] {
        w.say(client, &json!({"action": "subscribe", "channel": channel}));
    }
    w.take(client);
    let rights = json!({"kept": ["subscribe"]});
    w.change(client_key(
        serde_json::from_value(json!({"capabilities": rights})).unwrap(),
    ));
    let told = w.take(client);
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(told[0], "unsubscribed lost");
    assert!(told[1].contains("40300") && told[1].contains("lost"));
}

#[test]
fn a_token_ends_its_connection_after_the_grace() {
    let mut w = World::new(1);
    with_signing_key(&mut w);
    let text = token(&mut w, "ann", 60);
    let client = w.connect_with(0, &format!("token={text}"));
    w.advance_us(89_000_000);
    assert_eq!(w.clients[client].ended, None);
    w.advance_us(3_000_000);
    assert_eq!(w.clients[client].ended, Some(CloseCause::TokenExpired));
    w.advance_us(60_000_000);
    assert_eq!(
        w.refused(0, &format!("token={text}")),
        ErrorCode::TokenExpired
    );
}

#[test]
fn a_revoked_client_is_out_until_the_revocation_ends() {
    let mut w = World::new(2);
    with_signing_key(&mut w);
    let (ann, bob) = (token(&mut w, "ann", 3600), token(&mut w, "bob", 3600));
    let out = w.connect_with(1, &format!("token={ann}"));
    let stays = w.connect_with(1, &format!("token={bob}"));
    w.change(Change::Revoke {
        app: "app".into(),
        revocation: serde_json::from_value(json!({"clientId": "ann", "ttlS": 60})).unwrap(),
    });
    assert_eq!(w.clients[out].ended, Some(CloseCause::EndedByAdmin));
    assert_eq!(w.refused(0, &format!("token={ann}")), ErrorCode::BadToken);
    w.advance_us(60_000_000);
    w.connect_with(0, &format!("token={ann}"));
    assert_eq!(w.clients[stays].ended, None);
}

#[test]
fn an_app_has_its_share_of_connections() {
    let mut w = World::new(2);
    let settings = json!({"limits": {"connectionsMax": 4}});
    let patch = AppPatch {
        settings: settings.as_object().cloned(),
        ..AppPatch::default()
    };
    w.change(Change::UpdateApp {
        id: "app".into(),
        patch,
    });
    let first = w.connect(0);
    w.connect(0);
    let query = format!("key={CLIENT_KEY}");
    assert_eq!(w.refused(0, &query), ErrorCode::ConnectionLimit);
    w.connect(1);
    w.cut(first);
    w.connect_with(0, &query);
}
