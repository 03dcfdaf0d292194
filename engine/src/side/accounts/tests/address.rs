//! An account's address becomes another one, and comes back.

use crossbeam_channel::Receiver;

use super::*;
use crate::side::accounts::Letter;

const DAY_MS: u64 = 24 * 60 * MINUTE_MS;

fn posted(folder: &TempDir) -> (Keeper, Receiver<Letter>) {
    let mut keeper = keeper(folder);
    let (letters, post) = crossbeam_channel::unbounded();
    keeper.post = Post::to(letters);
    (keeper, post)
}

/// The token in the next letter, which must be to an address.
fn next(post: &Receiver<Letter>, to: &str) -> Option<String> {
    let letter = post.try_recv().unwrap();
    assert_eq!(letter.to, to);
    let (_, rest) = letter.text.split_once("token=")?;
    Some(rest.split_whitespace().next().unwrap().to_owned())
}

fn email(keeper: &mut Keeper, id: &str) -> String {
    keeper.account(id).unwrap().email
}

#[test]
fn a_confirmed_address_is_the_accounts_and_sessions_stay() {
    let folder = tempfile::tempdir().unwrap();
    let (mut keeper, post) = posted(&folder);
    let (ann, session) = person(&mut keeper, "ann@example.com", false);
    let id = &ann.account;
    keeper
        .change_address(id, "new@example.com", "", &client())
        .unwrap();
    let token = next(&post, "new@example.com").unwrap();
    assert!(next(&post, "ann@example.com").is_some());
    assert_eq!(email(&mut keeper, id), "ann@example.com");
    assert_eq!(
        keeper.pending_address(id).unwrap().unwrap(),
        "new@example.com"
    );
    keeper.confirm_address(&token, &client()).unwrap();
    assert_eq!(email(&mut keeper, id), "new@example.com");
    assert_eq!(keeper.pending_address(id).unwrap(), None);
    assert_eq!(
        code(keeper.confirm_address(&token, &client())),
        ErrorCode::NotFound
    );
    let who = keeper.principal(&session.access).unwrap();
    assert_eq!(who.email, "new@example.com");
    // Nobody signs in with the old one, and nobody else has it while there is a way back.
    assert!(keeper.by_email("ann@example.com").unwrap().is_none());
    let other = NewAccount {
        email: "ann@example.com".into(),
        name: None,
        password: Some("x".into()),
        operator: false,
    };
    assert!(keeper.create_account(&other, Some("h".into())).is_err());
    keeper.fixed_ms += 7 * DAY_MS;
    keeper.create_account(&other, Some("h".into())).unwrap();
    assert_eq!(email(&mut keeper, id), "new@example.com");
}

#[test]
fn the_way_back_of_an_earlier_address_outranks_that_of_a_later_one() {
    let folder = tempfile::tempdir().unwrap();
    let (mut keeper, post) = posted(&folder);
    let (ann, session) = person(&mut keeper, "ann@example.com", false);
    let id = &ann.account;
    let mut backs = Vec::new();
    for (from, to) in [
        ("ann@example.com", "eve@example.com"),
        ("eve@example.com", "eve2@example.com"),
    ] {
        keeper.fixed_ms += MINUTE_MS;
        keeper.change_address(id, to, "", &client()).unwrap();
        let token = next(&post, to).unwrap();
        next(&post, from).unwrap();
        keeper.fixed_ms += 1;
        keeper.confirm_address(&token, &client()).unwrap();
        backs.push(next(&post, from).unwrap());
    }
    assert_eq!(keeper.way_back_to(&backs[0]).unwrap(), "ann@example.com");
    keeper.undo_address(&backs[1], &client()).unwrap();
    assert_eq!(email(&mut keeper, id), "eve@example.com");
    let reset = keeper.undo_address(&backs[0], &client()).unwrap();
    assert_eq!(email(&mut keeper, id), "ann@example.com");
    assert!(keeper.principal(&session.access).is_err());
    let kept = keeper.get::<Account>(id).unwrap();
    assert_eq!(kept.document.password, None);
    assert!(keeper.by_email("eve@example.com").unwrap().is_none());
    for back in &backs {
        assert_eq!(
            code(keeper.undo_address(back, &client())),
            ErrorCode::NotFound
        );
    }
    keeper
        .reset(&token(&reset), "other".into(), &client())
        .unwrap();
}

#[test]
fn an_address_of_another_is_not_taken_and_the_answer_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (mut keeper, post) = posted(&folder);
    let (ann, _) = person(&mut keeper, "ann@example.com", false);
    person(&mut keeper, "bob@example.com", false);
    keeper
        .change_address(&ann.account, "bob@example.com", "", &client())
        .unwrap();
    assert_eq!(next(&post, "bob@example.com"), None);
    let pending = keeper.pending_address(&ann.account).unwrap();
    assert_eq!(pending.unwrap(), "bob@example.com");
    keeper.keep_address(&ann.account).unwrap();
    assert_eq!(keeper.pending_address(&ann.account).unwrap(), None);
}

#[test]
fn a_change_that_waits_ends_with_another_and_with_the_password_and_asks_are_few() {
    let folder = tempfile::tempdir().unwrap();
    let (mut keeper, post) = posted(&folder);
    let (ann, session) = person(&mut keeper, "ann@example.com", false);
    let id = &ann.account;
    let ask = |keeper: &mut Keeper, to: &str| {
        keeper.change_address(id, to, "", &client())?;
        let token = next(&post, to);
        next(&post, "ann@example.com");
        Ok::<_, ProtocolError>(token.unwrap())
    };
    let first = ask(&mut keeper, "a@example.com").unwrap();
    let second = ask(&mut keeper, "b@example.com").unwrap();
    assert_eq!(
        code(keeper.confirm_address(&first, &client())),
        ErrorCode::NotFound
    );
    let who = keeper.principal(&session.access).unwrap();
    keeper
        .change_password(id, &who.session, "other".into(), &client())
        .unwrap();
    assert_eq!(
        code(keeper.confirm_address(&second, &client())),
        ErrorCode::NotFound
    );
    post_is_over(&post);
    let asked = (0..9).map(|n| keeper.change_address(id, &format!("{n}@b.c"), "", &client()));
    let refused = asked.filter_map(Result::err).collect::<Vec<_>>();
    assert_eq!(refused[0].code, ErrorCode::RateExceeded);
}

fn post_is_over(post: &Receiver<Letter>) {
    while post.try_recv().is_ok() {}
}

#[test]
fn with_a_second_factor_a_code_is_asked_for_and_good_once() {
    let folder = tempfile::tempdir().unwrap();
    let (mut keeper, _post) = posted(&folder);
    let (ann, _) = person(&mut keeper, "ann@example.com", false);
    let id = &ann.account;
    let secret = keeper.begin_second_factor(id).unwrap().secret;
    let secret: [u8; SECRET_BYTES] = data_encoding::BASE32_NOPAD
        .decode(secret.as_bytes())
        .unwrap()
        .try_into()
        .unwrap();
    let at = |ms| code_at(&secret, ms).unwrap();
    keeper.confirm_second_factor(id, &at(START_MS)).unwrap();
    keeper.fixed_ms += MINUTE_MS;
    let good = at(START_MS + MINUTE_MS);
    let mut ask = |entered: &str| keeper.change_address(id, "b@example.com", entered, &client());
    assert_eq!(code(ask("")), ErrorCode::BadField);
    assert_eq!(code(ask("000000")), ErrorCode::UnknownKey);
    ask(&good).unwrap();
    assert_eq!(code(ask(&good)), ErrorCode::UnknownKey);
}
