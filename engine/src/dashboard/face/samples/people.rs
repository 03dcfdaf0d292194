//! Pages about accounts and teams.

use super::{Sample, Texts, errors, outside, sample};
use crate::dashboard::face::pages::auth;
use crate::dashboard::face::{Errors, Flash};

pub(super) fn all(texts: Texts) -> Vec<Sample> {
    let none = outside(None);
    let wrong = outside(Some(Flash::Failed(texts("Wrong e-mail or password."))));
    let login = auth::Login {
        email: texts("ada@example.org"),
        next: texts("/dashboard/apps"),
        is_signup_open: true,
        errors: Errors::new(),
    };
    let signup = auth::Signup {
        email: texts("ada@example"),
        name: texts("Ada"),
        errors: errors(
            &[(
                "password",
                "The password is too short: 12 characters or more.",
            )],
            texts,
        ),
    };
    let setup = auth::Setup {
        token: texts("tok"),
        ..auth::Setup::default()
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
        sample(
            "login-code",
            auth::code(
                &none,
                &errors(&[("code", "That code is not right, or was used.")], texts),
            ),
        ),
        sample("signup", auth::signup(&none, &signup)),
        sample(
            "mail",
            auth::look_at_mail(
                &none,
                &texts("If the address can be used, a link is on its way."),
            ),
        ),
        sample("setup", auth::setup(&none, &setup)),
        sample("verify", auth::verify(&none, &texts("tok"))),
        sample(
            "forgot",
            auth::forgot(&none, &texts("ada@example.org"), &Errors::new()),
        ),
        sample("reset", auth::reset(&none, &texts("tok"), &Errors::new())),
        sample("join", auth::join(&none, &join)),
        sample("join-known", auth::join(&none, &known)),
    ]
}
