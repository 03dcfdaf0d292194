//! Accounts and the audit log, as whoever runs the server looks after them.

use std::net::IpAddr;

use hyper::{Method, StatusCode};
use serde_json::json;
use shardwire_proto::error::ErrorCode;

use super::{AdminSettings, Caller, Endpoint, Reply, limit, reply};
use crate::side::accounts::{AccountPatch, AccountsHandle, Actor, Entry, Keeper, NewAccount};

impl Caller<'_> {
    /// Calls about accounts.
    pub(super) async fn people(&self) -> Reply {
        let accounts = self
            .settings
            .accounts
            .as_ref()
            .ok_or(ErrorCode::Unavailable)?;
        let id = self.call.id.clone();
        match self.call.endpoint {
            Endpoint::Accounts => {
                let all = accounts
                    .ask(|keeper| keeper.accounts(Keeper::list_max()))
                    .await?;
                let page = self.page(
                    "accounts",
                    all.iter().map(|account| (&*account.id, account)),
                )?;
                Ok(reply(StatusCode::OK, &page))
            }
            Endpoint::CreateAccount => {
                let new: NewAccount = self.read()?;
                let (account, link) = accounts.create(new).await?;
                let body = json!({ "account": account, "link": link });
                Ok(reply(StatusCode::CREATED, &body))
            }
            Endpoint::Account => {
                let account = accounts.ask(move |keeper| keeper.account(&id)).await?;
                Ok(reply(StatusCode::OK, &account))
            }
            Endpoint::UpdateAccount => {
                let patch: AccountPatch = self.read()?;
                let account = accounts
                    .ask(move |keeper| keeper.patch_account(&id, &patch))
                    .await?;
                Ok(reply(StatusCode::OK, &account))
            }
            Endpoint::DeleteAccount => {
                accounts
                    .ask(move |keeper| keeper.delete_account(&id))
                    .await?;
                Ok(reply(StatusCode::OK, &json!({})))
            }
            Endpoint::ResetAccount => {
                let link = accounts.ask(move |keeper| keeper.reset_link(&id)).await?;
                Ok(reply(StatusCode::CREATED, &json!({ "link": link })))
            }
            Endpoint::Audit => self.audit(accounts).await,
            _ => Err(ErrorCode::NotFound.into()),
        }
    }

    /// The audit log, the newest entry first: of all, a team or an account.
    async fn audit(&self, accounts: &AccountsHandle) -> Reply {
        let mut parameters = self.parameters(&["limit", "cursor", "team", "account"])?;
        let limit = limit(&parameters)?;
        let (team, account) = (parameters.remove("team"), parameters.remove("account"));
        let cursor = parameters.remove("cursor");
        let page = accounts.ask(move |keeper| {
            let label = match (&team, &account) {
                (Some(team), _) => ("team", &**team),
                (None, Some(account)) => ("account", &**account),
                (None, None) => ("all", ""),
            };
            keeper.audit(label, cursor.as_deref(), limit)
        });
        Ok(reply(StatusCode::OK, &page.await?))
    }
}

/// Notes in the audit log what the admin token was used for, where it changes something.
pub(super) fn note_operator(
    settings: &AdminSettings,
    method: &Method,
    path: &str,
    from: IpAddr,
    answered: &Reply,
) {
    let Some(accounts) = settings.accounts.as_ref().filter(|_| !method.is_safe()) else {
        return;
    };
    let status = answered
        .as_ref()
        .map_or_else(|refusal| refusal.status, |response| response.status());
    let mut parts = path.split('/').skip(2);
    let app = match (parts.next(), parts.next()) {
        (Some("apps"), Some(app)) => Some(app.to_owned()),
        _ => None,
    };
    let actor = Actor {
        account: None,
        name: "admin token".into(),
        address: Some(from),
    };
    let mut entry = Entry::of(&actor, format!("{method} {path}"), status.as_u16());
    entry.app = app.clone();
    let told = accounts.tell(move |keeper| {
        entry.team = app.and_then(|app| keeper.team_of(&app).ok().flatten());
        keeper.note(entry);
    });
    if !told {
        log::error!(path; "an entry of the audit log is lost: too much waits");
    }
}
