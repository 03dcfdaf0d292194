//! The accounts thread's state against records in a file, with a clock of the tests' own.

mod address;

use std::sync::Arc;

use shardwire_proto::account::permissions::Role;
use shardwire_proto::account::second_factor::{SECRET_BYTES, code_at};
use shardwire_proto::error::{ErrorCode, ProtocolError};
use tempfile::TempDir;

use super::documents::Account;
use super::keeper::Keeper;
use super::mail::Post;
use super::secrets::Secrets;
use super::{AccountPatch, Client, NewAccount, NewSession, Principal, Refreshed};
use crate::config;
use crate::records::sqlite::SqliteRecordStorage;
use crate::records::{Area, RecordStorage};

const START_MS: u64 = 2_000_000_000_000;
const MINUTE_MS: u64 = 60_000;

fn keeper(folder: &TempDir) -> Keeper {
    let records = SqliteRecordStorage::new(folder.path())
        .open(Area::Accounts)
        .unwrap();
    let secrets = Arc::new(Secrets::open(folder.path()).unwrap());
    let post = Post::start(&config::Mail::default()).unwrap();
    let config = config::Accounts {
        signup: true,
        ..config::Accounts::default()
    };
    let mut keeper = Keeper::new(records, secrets, post, &config, "http://host/dashboard");
    keeper.fixed_ms = START_MS;
    keeper
}

fn client() -> Client {
    Client {
        address: "10.1.2.3".parse().unwrap(),
        agent: "test".into(),
    }
}

fn token(link: &str) -> String {
    link.split_once("token=").unwrap().1.to_owned()
}

/// An account with a session.
fn person(keeper: &mut Keeper, email: &str, operator: bool) -> (Principal, NewSession) {
    let new = NewAccount {
        email: email.into(),
        name: None,
        password: Some("unused".into()),
        operator,
    };
    let (account, link) = keeper.create_account(&new, Some("hash".into())).unwrap();
    assert!(link.is_none());
    let mut kept = keeper.get::<Account>(&account.id).unwrap();
    let session = keeper.begin_session(&mut kept, &client()).unwrap();
    (keeper.principal(&session.access).unwrap(), session)
}

fn code<T>(result: Result<T, ProtocolError>) -> ErrorCode {
    result.err().expect("an error").code
}

#[test]
fn the_setup_link_makes_one_account_and_no_second() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = keeper(&folder);
    let link = keeper.setup_link().unwrap().unwrap();
    assert!(link.starts_with("http://host/dashboard/setup?token="));
    let (first, other) = (token(&link), token(&keeper.setup_link().unwrap().unwrap()));
    assert_eq!(
        code(keeper.set_up("x", "a@b.c", "A", "h".into())),
        ErrorCode::NotFound
    );
    let id = keeper
        .set_up(&first, "Ann@Example.com", "Ann", "h".into())
        .unwrap();
    let account = keeper.account(&id).unwrap();
    assert!(account.operator && account.verified && account.email == "ann@example.com");
    assert_eq!(
        code(keeper.set_up(&first, "b@b.c", "B", "h".into())),
        ErrorCode::NotFound
    );
    assert_eq!(
        code(keeper.set_up(&other, "b@b.c", "B", "h".into())),
        ErrorCode::BadField
    );
    assert_eq!(keeper.setup_link().unwrap(), None);
}

#[test]
fn a_link_is_good_once_and_for_a_time_and_kept_as_a_hash() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = keeper(&folder);
    let (ann, session) = person(&mut keeper, "ann@example.com", false);
    let (first, second) = (
        keeper.reset_link(&ann.account).unwrap(),
        keeper.reset_link(&ann.account).unwrap(),
    );
    keeper
        .reset(&token(&first), "other".into(), &client())
        .unwrap();
    assert_eq!(
        code(keeper.reset(&token(&first), "x".into(), &client())),
        ErrorCode::NotFound
    );
    // A reset ends all sessions.
    assert_eq!(
        code(keeper.principal(&session.access)),
        ErrorCode::TokenExpired
    );
    keeper.fixed_ms += 60 * MINUTE_MS;
    assert_eq!(
        code(keeper.reset(&token(&second), "x".into(), &client())),
        ErrorCode::NotFound
    );
    let files = ["accounts.db", "accounts.db-wal"]
        .map(|name| std::fs::read(folder.path().join(name)).unwrap());
    for secret in [token(&first), token(&second), session.refresh] {
        let secret = secret.rsplit('.').next().unwrap().as_bytes();
        assert!(
            !files
                .iter()
                .any(|file| file.windows(secret.len()).any(|part| part == secret))
        );
    }
}

#[test]
fn refresh_tokens_rotate_and_a_copy_ends_the_session() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = keeper(&folder);
    let (ann, first) = person(&mut keeper, "ann@example.com", false);
    keeper.fixed_ms += MINUTE_MS;
    let Refreshed::Rotated(second) = keeper.refresh(&first.refresh, &client()).unwrap() else {
        panic!("not rotated");
    };
    keeper.fixed_ms += 1000;
    // Another request of the same page.
    let again = keeper.refresh(&first.refresh, &client()).unwrap();
    assert!(matches!(again, Refreshed::Repeated { .. }));
    keeper.fixed_ms += MINUTE_MS;
    assert_eq!(
        code(keeper.refresh(&first.refresh, &client())),
        ErrorCode::BadToken
    );
    assert_eq!(
        code(keeper.refresh(&second.refresh, &client())),
        ErrorCode::TokenExpired
    );
    assert_eq!(
        code(keeper.principal(&second.access)),
        ErrorCode::TokenExpired
    );
    let log = keeper.audit(("account", &ann.account), None, 10).unwrap();
    assert!(log.entries[0].call.contains("its token came twice"));
}

#[test]
fn access_ends_with_its_time_the_session_or_the_account() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = keeper(&folder);
    let (ann, session) = person(&mut keeper, "ann@example.com", false);
    keeper.fixed_ms += 10 * MINUTE_MS;
    assert_eq!(
        code(keeper.principal(&session.access)),
        ErrorCode::TokenExpired
    );
    let access = keeper
        .refresh(&session.refresh, &client())
        .unwrap()
        .access()
        .to_owned();
    assert!(keeper.principal(&access).is_ok());
    let patch = AccountPatch {
        disabled: Some(true),
        ..AccountPatch::default()
    };
    keeper.patch_account("ANN@example.com", &patch).unwrap();
    assert_eq!(code(keeper.principal(&access)), ErrorCode::TokenExpired);
    assert!(keeper.sessions(&ann.account, "").unwrap().is_empty());
}

#[test]
fn sessions_are_their_owners_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = keeper(&folder);
    let (ann, one) = person(&mut keeper, "ann@example.com", false);
    let (bob, _) = person(&mut keeper, "bob@example.com", false);
    let mut kept = keeper.get::<Account>(&ann.account).unwrap();
    let two = keeper.begin_session(&mut kept, &client()).unwrap();
    assert_eq!(
        code(keeper.end_session(&bob.account, &one.session)),
        ErrorCode::NotFound
    );
    let listed = keeper.sessions(&ann.account, &two.session).unwrap();
    assert_eq!(listed.len(), 2);
    assert_eq!(listed.iter().filter(|session| session.current).count(), 1);
    keeper
        .end_other_sessions(&ann.account, &two.session)
        .unwrap();
    assert!(keeper.principal(&two.access).is_ok() && keeper.principal(&one.access).is_err());
}

#[test]
fn of_many_sessions_the_oldest_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = keeper(&folder);
    let (ann, first) = person(&mut keeper, "ann@example.com", false);
    for _ in 0..55 {
        keeper.fixed_ms += 1;
        let mut kept = keeper.get::<Account>(&ann.account).unwrap();
        keeper.begin_session(&mut kept, &client()).unwrap();
    }
    assert_eq!(keeper.sessions(&ann.account, "").unwrap().len(), 50);
    assert!(keeper.principal(&first.access).is_err());
}

#[test]
fn a_second_factor_is_confirmed_taken_once_and_replaced_by_recovery_codes() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = keeper(&folder);
    let (ann, _) = person(&mut keeper, "ann@example.com", false);
    let enrolment = keeper.begin_second_factor(&ann.account).unwrap();
    let secret = data_encoding::BASE32_NOPAD
        .decode(enrolment.secret.as_bytes())
        .unwrap();
    let secret: [u8; SECRET_BYTES] = secret.try_into().unwrap();
    assert!(
        keeper
            .confirm_second_factor(&ann.account, "000000")
            .is_err()
    );
    let now = code_at(&secret, START_MS).unwrap();
    let codes = keeper.confirm_second_factor(&ann.account, &now).unwrap();
    let mut kept = keeper.get::<Account>(&ann.account).unwrap();
    // The step that confirmed it is used up.
    assert_eq!(keeper.take_code(&mut kept, &now).unwrap(), None);
    keeper.fixed_ms += MINUTE_MS;
    let later = code_at(&secret, keeper.fixed_ms).unwrap();
    assert_eq!(
        keeper.take_code(&mut kept, &later).unwrap(),
        Some("signed in with a code")
    );
    assert_eq!(keeper.take_code(&mut kept, &later).unwrap(), None);
    assert_eq!(
        keeper.take_code(&mut kept, &codes[3]).unwrap(),
        Some("signed in with a recovery code")
    );
    assert_eq!(keeper.take_code(&mut kept, &codes[3]).unwrap(), None);
    let kept = serde_json::to_string(&kept.document).unwrap();
    assert!(!kept.contains(&enrolment.secret) && !kept.contains(&codes[0]));
}

#[test]
fn a_team_has_an_owner_at_all_times() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = keeper(&folder);
    let (ann, _) = person(&mut keeper, "ann@example.com", true);
    let team = keeper.first_team().unwrap().unwrap();
    assert_eq!(ann.role_in(&team), Some(Role::Owner));
    let last = keeper.set_role(&team, &ann.account, Role::Admin, Some(Role::Owner));
    assert_eq!(code(last), ErrorCode::BadField);
    assert!(keeper.remove_member(&team, &ann.account, None).is_err());
    assert!(keeper.delete_account(&ann.account).is_err());
    let (bob, _) = person(&mut keeper, "bob@example.com", true);
    assert_eq!(bob.role_in(&team), Some(Role::Owner));
    keeper
        .set_role(&team, &ann.account, Role::Admin, Some(Role::Owner))
        .unwrap();
    // An admin neither makes owners nor unmakes them.
    let up = keeper.set_role(&team, &ann.account, Role::Owner, Some(Role::Admin));
    let down = keeper.set_role(&team, &bob.account, Role::Viewer, Some(Role::Admin));
    let out = keeper.remove_member(&team, &bob.account, Some(Role::Admin));
    for refused in [up, down, out] {
        assert_eq!(code(refused), ErrorCode::NotPermitted);
    }
    keeper
        .transfer_team(&team, &bob.account, &ann.account)
        .unwrap();
    let roles: Vec<_> = keeper
        .members(&team)
        .unwrap()
        .into_iter()
        .map(|m| (m.email, m.role))
        .collect();
    let expected = [
        ("ann@example.com", Role::Owner),
        ("bob@example.com", Role::Admin),
    ];
    assert_eq!(
        roles,
        expected.map(|(email, role)| (email.to_owned(), role))
    );
}

#[test]
fn an_invitation_is_for_its_address_and_good_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = keeper(&folder);
    let (ann, _) = person(&mut keeper, "ann@example.com", false);
    let team = keeper.create_team("Shop", &ann.account).unwrap().id;
    let (ann, eve) = {
        let members = keeper
            .labelled::<super::documents::Member>("account", &ann.account)
            .unwrap();
        let mut ann = ann;
        ann.roles = members
            .into_iter()
            .map(|m| (m.document.team, m.document.role))
            .collect();
        (ann, person(&mut keeper, "eve@example.com", false).0)
    };
    assert_eq!(
        code(keeper.invite(&team, "x@example.com", Role::Viewer, &eve)),
        ErrorCode::NotPermitted
    );
    let invitation = keeper
        .invite(&team, "BOB@example.com", Role::Developer, &ann)
        .unwrap();
    assert_eq!(invitation.email, "bob@example.com");
    // The letter holds the only copy of the token: one for the test.
    let (url, put) = keeper
        .link(super::documents::Purpose::Join, &invitation.id, None)
        .unwrap();
    keeper.apply(&[put]).unwrap();
    assert_eq!(
        code(keeper.join(&token(&url), &eve)),
        ErrorCode::NotPermitted
    );
    let bob = keeper
        .join_anew(&token(&url), "Bob", "hash".into())
        .unwrap();
    assert!(keeper.account(&bob).unwrap().verified);
    assert!(
        keeper
            .join_anew(&token(&url), "Bob", "hash".into())
            .is_err()
    );
    assert!(keeper.invitations(&team).unwrap().is_empty());
    assert_eq!(keeper.members(&team).unwrap()[1].role, Role::Developer);
    assert_eq!(
        code(keeper.withdraw("other", &invitation.id)),
        ErrorCode::NotFound
    );
}

#[test]
fn apps_belong_to_the_first_team_until_they_are_given_away() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = keeper(&folder);
    assert_eq!(keeper.team_of("dev").unwrap(), None);
    let (ann, _) = person(&mut keeper, "ann@example.com", true);
    let first = keeper.first_team().unwrap();
    assert_eq!(keeper.team_of("dev").unwrap(), first);
    let shop = keeper.create_team("Shop", &ann.account).unwrap().id;
    keeper.give_app("dev", &shop).unwrap();
    assert_eq!(keeper.team_of("dev").unwrap().as_ref(), Some(&shop));
    assert!(keeper.delete_team(&shop).is_err() && keeper.delete_team(&first.unwrap()).is_err());
    keeper.forget_app("dev").unwrap();
    keeper.delete_team(&shop).unwrap();
    assert!(keeper.members(&shop).unwrap().is_empty());
}

#[test]
fn letters_are_few_and_the_same_for_every_address() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = keeper(&folder);
    person(&mut keeper, "ann@example.com", false);
    let from = |n: u8| Client {
        address: [10, 0, 0, n].into(),
        agent: String::new(),
    };
    assert!(keeper.forgot("ann@example.com", &from(1)).is_ok());
    assert!(keeper.forgot("nobody@example.com", &from(2)).is_ok());
    assert!(
        keeper
            .sign_up("ann@example.com", "Ann", "h".into(), &from(3))
            .is_ok()
    );
    assert!(
        keeper
            .sign_up("bob@example.com", "Bob", "h".into(), &from(4))
            .is_ok()
    );
    for n in 10..12 {
        keeper.forgot("ann@example.com", &from(n)).unwrap();
    }
    assert_eq!(
        code(keeper.forgot("ann@example.com", &from(20))),
        ErrorCode::RateExceeded
    );
    for n in 0..4 {
        keeper
            .forgot(&format!("x{n}@example.com"), &from(99))
            .unwrap();
    }
    assert_eq!(
        code(keeper.forgot("y@example.com", &from(99))),
        ErrorCode::RateExceeded
    );
}

#[test]
fn the_audit_log_has_pages_and_an_end() {
    let folder = tempfile::tempdir().unwrap();
    let mut keeper = keeper(&folder);
    for n in 0..5 {
        keeper.fixed_ms += 1;
        keeper.note_event(None, &format!("n{n}"), &client(), "event", 200);
    }
    let first = keeper.audit(("all", ""), None, 3).unwrap();
    let names: Vec<_> = first.entries.iter().map(|entry| &*entry.actor).collect();
    assert_eq!(names, ["n4", "n3", "n2"]);
    let rest = keeper
        .audit(("all", ""), first.cursor.as_deref(), 3)
        .unwrap();
    assert_eq!((rest.entries.len(), rest.cursor), (2, None));
    assert!(keeper.audit(("all", ""), Some("x"), 3).is_err());
    keeper.fixed_ms += 401 * 24 * 60 * MINUTE_MS;
    assert!(
        keeper
            .audit(("all", ""), None, 3)
            .unwrap()
            .entries
            .is_empty()
    );
}
