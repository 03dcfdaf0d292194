//! Pages about accounts and teams.

use shardwire_proto::account::permissions::Role;

use super::{DAY, HOUR, MINUTE, NOW, Sample, Texts, outside, refused, sample, shell_of};
use crate::dashboard::face::Flash;
use crate::dashboard::face::pages::{account, audit, auth, error, server, teams};

pub(super) fn all(texts: Texts) -> Vec<Sample> {
    let mut all = outside_pages(texts);
    all.extend(account_pages(texts));
    all.extend(team_pages(texts));
    all.extend(server_pages(texts));
    all
}

fn outside_pages(texts: Texts) -> Vec<Sample> {
    let none = outside(None);
    let wrong = outside(Some(Flash::Failed(texts("Wrong e-mail or password."))));
    let login = auth::Login {
        next: texts("/dashboard/apps"),
        is_signup_open: true,
    };
    let signup = refused(
        &none,
        &["signup"],
        &[("email", "ada@example"), ("name", "Ada")],
        ("password", "is too short: 12 characters or more"),
        texts,
    );
    let code = refused(
        &none,
        &["login", "code"],
        &[("code", "000000")],
        ("code", "is wrong or was used already"),
        texts,
    );
    let setup = auth::Setup {
        token: texts("tok"),
    };
    let join = auth::Join {
        token: texts("tok"),
        team: texts("Engines Ltd"),
        role: texts("developer"),
        email: texts("grace@example.org"),
        ..auth::Join::default()
    };
    let known = auth::Join {
        has_account: true,
        ..join.clone()
    };
    vec![
        sample("login", auth::login(&none, &login)),
        sample("login-wrong", auth::login(&wrong, &login)),
        sample("login-code", auth::code(&code)),
        sample("signup", auth::signup(&signup)),
        sample(
            "mail",
            auth::look_at_mail(
                &none,
                &texts("If the address can be used, a link is on its way."),
            ),
        ),
        sample("setup", auth::setup(&none, &setup)),
        sample("email-confirm", auth::confirm_email(&none, &texts("tok"))),
        sample(
            "email-undo",
            auth::undo_email(&none, &texts("tok"), &texts("ada@example.org")),
        ),
        sample("verify", auth::verify(&none, &texts("tok"))),
        sample("forgot", auth::forgot(&none)),
        sample("reset", auth::reset(&none, &texts("tok"))),
        sample("join", auth::join(&none, &join)),
        sample("join-known", auth::join(&none, &known)),
    ]
}

fn account_pages(texts: Texts) -> Vec<Sample> {
    let shell = shell_of(Role::Owner, false, texts);
    let firefox = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0";
    let phone =
        "Mozilla/5.0 (iPhone; CPU iPhone OS 19_0 like Mac OS X) Version/19.0 Mobile Safari/604.1";
    let session = |id: &str, agent: &str, seen_ms, current| account::Session {
        id: texts(id),
        created_ms: NOW - 3 * DAY,
        seen_ms,
        expires_ms: NOW + 27 * DAY,
        address: texts("203.0.113.7"),
        agent: texts(agent),
        current,
    };
    let sessions = [
        session("s1", firefox, NOW, true),
        session("s2", phone, NOW - 5 * HOUR, false),
    ];
    let profile = account::Profile {
        name: texts("Ada Byron"),
        email: texts("ada@example.org"),
        is_verified: true,
        pending_email: Some(texts("ada@example.net")),
        has_second_factor: true,
    };
    let wrong_password = refused(
        &shell,
        &["account", "password"],
        &[],
        ("current", "is wrong"),
        texts,
    );
    let wrong_code = refused(
        &shell,
        &["account", "email"],
        &[("email", "ada@example.net")],
        ("code", "is wrong or was used already"),
        texts,
    );
    let off = account::Security {
        entries: entries(texts),
        ..account::Security::default()
    };
    let on = account::Security {
        has_second_factor: true,
        codes_left: Some(8),
        entries: entries(texts),
    };
    let enrolment = account::Enrolment {
        secret: texts("JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP"),
        url: texts(
            "otpauth://totp/Shardwire:ada@example.org?secret=JBSWY3DPEHPK3PXPJBSWY3DPEHPK3PXP&issuer=Shardwire",
        ),
    };
    let codes: Vec<_> = (0..10)
        .map(|index| texts(&format!("k7f{index}-92xq")))
        .collect();
    vec![
        sample("profile", account::profile(&shell, &profile)),
        sample("sessions", account::sessions(&shell, &sessions)),
        sample("profile-wrong", account::profile(&wrong_code, &profile)),
        sample("security", account::security(&wrong_password, &off)),
        sample("security-on", account::security(&shell, &on)),
        sample("second-factor", account::enrolment(&shell, &enrolment)),
        sample("recovery-codes", account::recovery_codes(&shell, &codes)),
    ]
}

fn team_pages(texts: Texts) -> Vec<Sample> {
    let owner = shell_of(Role::Owner, false, texts);
    let viewer = shell_of(Role::Viewer, false, texts);
    let member = |id: &str, name: &str, role, second_factor| teams::Member {
        id: texts(id),
        email: texts(&format!("{id}@example.org")),
        name: texts(name),
        role,
        second_factor,
        since_ms: NOW - 40 * DAY,
    };
    let team = teams::Team {
        id: texts("t_7fq"),
        name: texts("Engines Ltd"),
        created_ms: NOW - 90 * DAY,
        role: Some(Role::Owner),
    };
    let view = teams::TeamView {
        team: team.clone(),
        members: vec![
            member("ada", "Ada Byron", Role::Owner, true),
            member("grace", "Grace Hopper", Role::Admin, true),
            member("linus", "Linus Pauling", Role::Developer, false),
            member("bill", "Bill Payer", Role::Billing, false),
        ],
        invitations: vec![teams::Invitation {
            id: texts("i1"),
            email: texts("rosalind@example.org"),
            role: Role::Developer,
            created_ms: NOW - HOUR,
            expires_ms: NOW + 6 * DAY,
        }],
        own_id: texts("ada"),
        link: Some(texts("http://localhost:9002/dashboard/join?token=abc")),
    };
    let as_viewer = teams::TeamView {
        team: teams::Team {
            role: Some(Role::Viewer),
            ..team.clone()
        },
        own_id: texts("someone"),
        ..view.clone()
    };
    let side = teams::Team {
        id: texts("t_8aa"),
        name: texts("Side project"),
        role: Some(Role::Viewer),
        ..team.clone()
    };
    let list = teams::Teams {
        teams: vec![team, side],
    };
    let log = audit::Audit {
        entries: entries(texts),
        cursor: Some(texts("next")),
    };
    vec![
        sample("teams", teams::list(&owner, &list)),
        sample("team", teams::one(&owner, &view)),
        sample("team-viewer", teams::one(&viewer, &as_viewer)),
        sample("team-audit", audit::render(&owner, &log, false)),
    ]
}

fn entries(texts: Texts) -> Vec<audit::Entry> {
    let entry = |ago, call: &str, app: Option<&str>, target: Option<&str>, status| audit::Entry {
        time_ms: NOW - ago,
        actor: texts("ada@example.org"),
        address: Some(texts("203.0.113.7")),
        call: texts(call),
        app: app.map(texts),
        target: target.map(texts),
        detail: None,
        status,
    };
    vec![
        entry(
            MINUTE,
            "POST /apps/{app}/keys/{id}/rotate",
            Some("shop"),
            Some("k_1"),
            201,
        ),
        entry(20 * MINUTE, "PATCH /apps/{app}", Some("shop"), None, 200),
        entry(3 * HOUR, "login", None, None, 200),
        entry(3 * HOUR + MINUTE, "login failed", None, None, 401),
        entry(
            2 * DAY,
            "DELETE /teams/{team}/members/{id}",
            None,
            Some("linus"),
            403,
        ),
    ]
}

fn server_pages(texts: Texts) -> Vec<Sample> {
    let shell = shell_of(Role::Owner, true, texts);
    let member = shell_of(Role::Viewer, false, texts);
    let connection = |id: &str, client: &str, kid: Option<&str>| server::Connection {
        id: texts(id),
        app: texts("shop"),
        client_id: texts(client),
        key_id: Some(texts("k_1")),
        kid: kid.map(texts),
        connected_ms: NOW - 40 * MINUTE,
        remote: texts("198.51.100.24:50114"),
        subscriptions: 3,
        outbox_bytes: 0,
    };
    let connections = server::Connections {
        connections: vec![
            connection("0-1.7", "anon-3kfQ0aZ1b2c3d4e5f6g7h8", None),
            connection("1-9.2", "customer-1181", Some("main-2026")),
        ],
        cursor: Some(texts("c")),
        app: texts("shop"),
        client_id: String::new(),
    };
    let account = |id: &str, name: &str, operator, disabled| server::Account {
        id: texts(id),
        email: texts(&format!("{id}@example.org")),
        name: texts(name),
        operator,
        disabled,
        verified: true,
        second_factor: operator,
        created_ms: NOW - 90 * DAY,
        last_login_ms: operator.then_some(NOW - HOUR),
    };
    let accounts = server::Accounts {
        accounts: vec![
            account("ada", "Ada Byron", true, false),
            account("grace", "Grace Hopper", false, false),
            account("old", "Old Hand", false, true),
        ],
        cursor: None,
    };
    let log = audit::Audit {
        entries: entries(texts),
        cursor: None,
    };
    vec![
        sample("connections", server::connections(&shell, &connections)),
        sample("accounts", server::accounts(&shell, &accounts)),
        sample("audit", audit::render(&shell, &log, true)),
        sample(
            "forbidden",
            error::render(&member, 403, &texts("viewer may not do that")),
        ),
        sample("not-found", error::render(&outside(None), 404, "")),
    ]
}
