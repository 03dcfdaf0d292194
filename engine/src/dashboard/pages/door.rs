//! Pages in front of the door: sign-in, sign-up, invitations, and links from letters.

use maud::Markup;
use shardwire_proto::error::ErrorCode;

use super::{Again, Form, Next, object};
use crate::dashboard::face::pages::auth;
use crate::dashboard::face::paths;
use crate::dashboard::visit::Visit;
use crate::http::Refusal;

const MAIL_SENT: &str = "If the address can be used, a letter is on its way.";

/// Whether a form is one of these, for people who are not signed in.
pub(super) fn is_at(parts: &[&str]) -> bool {
    matches!(
        parts,
        [
            "login" | "email" | "signup" | "setup" | "verify" | "forgot" | "reset" | "join",
            ..
        ]
    )
}

pub(super) async fn show(
    visit: &mut Visit<'_>,
    parts: &[&str],
    query: &Form,
    again: &Again,
) -> Result<Markup, Refusal> {
    let shell = visit.shell(None, None, again).await?;
    let form = &again.form;
    // A form that is shown again has the link's token in itself.
    let token = if form.get("token").is_empty() {
        query.get("token")
    } else {
        form.get("token")
    };
    Ok(match parts {
        ["login"] => {
            let next = if form.get("next").is_empty() {
                query.get("next")
            } else {
                form.get("next")
            };
            let view = auth::Login {
                next: own_path(next).unwrap_or_default(),
                is_signup_open: visit.config.accounts.signup,
            };
            auth::login(&shell, &view)
        }
        ["login", "code"] => auth::code(&shell),
        ["signup"] => auth::signup(&shell),
        ["setup"] => {
            let known = token.to_owned();
            visit
                .accounts
                .ask(move |keeper| keeper.is_setup(&known))
                .await?;
            let view = auth::Setup {
                token: token.to_owned(),
            };
            auth::setup(&shell, &view)
        }
        ["verify"] => auth::verify(&shell, token),
        ["email", "confirm"] => auth::confirm_email(&shell, token),
        ["email", "undo"] => {
            let known = token.to_owned();
            let email = visit
                .accounts
                .ask(move |keeper| keeper.way_back_to(&known))
                .await?;
            auth::undo_email(&shell, token, &email)
        }
        ["forgot"] => auth::forgot(&shell),
        ["reset"] => {
            let known = token.to_owned();
            visit
                .accounts
                .ask(move |keeper| keeper.reset_email(&known))
                .await?;
            auth::reset(&shell, token)
        }
        ["join"] => {
            let known = token.to_owned();
            let invitation = visit
                .accounts
                .ask(move |keeper| keeper.invitation_of(&known))
                .await?;
            let view = auth::Join {
                token: token.to_owned(),
                team: invitation.team_name,
                role: invitation.role.name().to_owned(),
                email: invitation.email,
                has_account: invitation.has_account || visit.who.is_some(),
            };
            auth::join(&shell, &view)
        }
        _ => return Err(ErrorCode::NotFound.into()),
    })
}

pub(super) async fn send(
    visit: &mut Visit<'_>,
    parts: &[&str],
    form: &Form,
) -> Result<Next, Refusal> {
    let home = paths::to(&[]);
    let go = |to: &str, say: &str| Ok(Next::Go(to.to_owned(), say.to_owned()));
    match parts {
        ["login"] => {
            let next = own_path(form.get("next")).unwrap_or(home);
            let answer = visit
                .post("/login", form.object(&["email", "password"]))
                .await?;
            if answer["codeWanted"] == true {
                visit.keep_next(&next);
                return go(&paths::to(&["login", "code"]), "");
            }
            go(&next, "")
        }
        ["login", "code"] => {
            visit.post("/login/code", form.object(&["code"])).await?;
            let next = visit
                .take_next()
                .and_then(|next| own_path(&next))
                .unwrap_or(home);
            go(&next, "")
        }
        ["logout"] => {
            visit.post("/logout", super::nothing()).await?;
            go(&paths::to(&["login"]), "You are signed out.")
        }
        ["signup"] => {
            visit
                .post("/signup", form.object(&["email", "name", "password"]))
                .await?;
            mail_sent(visit).await
        }
        ["forgot"] => {
            visit.post("/forgot", form.object(&["email"])).await?;
            mail_sent(visit).await
        }
        ["setup"] => {
            visit
                .post(
                    "/setup",
                    form.object(&["token", "email", "name", "password"]),
                )
                .await?;
            go(&home, "Welcome. This is your server.")
        }
        ["verify"] => {
            visit.post("/verify", form.object(&["token"])).await?;
            go(&paths::to(&["login"]), "The address is yours. Sign in.")
        }
        ["email", "confirm"] => {
            visit
                .post("/email/confirm", form.object(&["token"]))
                .await?;
            go(&paths::to(&["account"]), "The address is your account’s.")
        }
        ["email", "undo"] => {
            let done = visit.post("/email/undo", form.object(&["token"])).await?;
            let link = done["link"].as_str().unwrap_or_default();
            let (_, token) = link.split_once("token=").ok_or(ErrorCode::Internal)?;
            let reset = paths::with_query(&paths::to(&["reset"]), &[("token", token)]);
            go(&reset, "The account is yours again. Set another password.")
        }
        ["reset"] => {
            visit
                .post("/reset", form.object(&["token", "password"]))
                .await?;
            go(
                &paths::to(&["login"]),
                "The password is set. Sign in with it.",
            )
        }
        ["join"] => join(visit, form).await,
        _ => Err(ErrorCode::NotFound.into()),
    }
}

/// With the account that is signed in, one that is there, or one that is made.
async fn join(visit: &mut Visit<'_>, form: &Form) -> Result<Next, Refusal> {
    let token = form.get("token").to_owned();
    if visit.who.is_some() {
        let team = visit.post("/me/join", form.object(&["token"])).await?;
        let id = team["id"].as_str().unwrap_or_default();
        return Ok(Next::Go(
            paths::to(&["teams", id]),
            "You are in the team.".to_owned(),
        ));
    }
    let known = token.clone();
    let invitation = visit
        .accounts
        .ask(move |keeper| keeper.invitation_of(&known))
        .await?;
    if invitation.has_account {
        let back = paths::with_query(&paths::to(&["join"]), &[("token", &token)]);
        let login = paths::with_query(&paths::to(&["login"]), &[("next", &back)]);
        return Ok(Next::Go(login, "Sign in to join the team.".to_owned()));
    }
    let body = object([
        ("token", form.text("token")),
        ("name", Some(form.get("name").into())),
        ("password", Some(form.get("password").into())),
    ]);
    visit.post("/join", body).await?;
    Ok(Next::Go(paths::to(&[]), "Welcome to the team.".to_owned()))
}

async fn mail_sent(visit: &mut Visit<'_>) -> Result<Next, Refusal> {
    let shell = visit.shell(None, None, &Again::default()).await?;
    Ok(Next::Page(auth::look_at_mail(&shell, MAIL_SENT)))
}

/// Where to go after a sign-in: a page of the dashboard, and no other site.
fn own_path(next: &str) -> Option<String> {
    let is_own = next == paths::BASE || next.starts_with(&format!("{}/", paths::BASE));
    let is_plain = next.bytes().all(|b| b.is_ascii_graphic() && b != b'\\');
    (is_own && is_plain && !next.contains("//")).then(|| next.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_in_leads_to_no_other_site() {
        for own in ["/dashboard", "/dashboard/apps/dev?x=1"] {
            assert_eq!(own_path(own).as_deref(), Some(own));
        }
        for other in [
            "",
            "//evil.example",
            "https://evil.example/dashboard/",
            "/dashboard//evil",
            "/dashboardx",
            "/dashboard/\\evil",
            "/dashboard/\r\nx: y",
        ] {
            assert_eq!(own_path(other), None, "{other}");
        }
    }
}
