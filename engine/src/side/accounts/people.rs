//! Accounts: how they come to be, change and go. Passwords arrive here as hashes.

use serde::{Deserialize, Serialize};
use shardwire_proto::account::{check_name, normalize_email};

use super::audit::{Actor, Entry};
use super::documents::{Account, Document, Email, Member, Purpose, Session};
use super::keeper::{Keeper, Kept, LIST_MAX, Result, add, bad, make_id, record};
use super::sessions::Client;
use crate::records::{Change, Scan};

/// Requests for letters of an address, or to one, that are granted at once.
pub(super) const LETTERS_FREE: u32 = 4;

/// What an operator is told about an account.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AccountInfo {
    pub id: String,
    pub email: String,
    pub name: String,
    pub operator: bool,
    pub disabled: bool,
    pub verified: bool,
    pub second_factor: bool,
    pub created_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_login_ms: Option<u64>,
}

/// An account that an operator makes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewAccount {
    pub email: String,
    pub name: Option<String>,
    /// Without one a link is returned, with which they set it themselves.
    pub password: Option<String>,
    /// Runs this server, and is an owner of its first team.
    #[serde(default)]
    pub operator: bool,
}

/// What an operator changes of an account.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccountPatch {
    pub name: Option<String>,
    pub operator: Option<bool>,
    pub disabled: Option<bool>,
    /// Only `false`: takes the second factor away, for somebody who has lost it.
    pub second_factor: Option<bool>,
}

pub(super) fn info(kept: &Kept<Account>) -> AccountInfo {
    let account = &kept.document;
    AccountInfo {
        id: kept.id.clone(),
        email: account.email.clone(),
        name: account.name.clone(),
        operator: account.is_operator,
        disabled: account.is_disabled,
        verified: account.verified_ms.is_some(),
        second_factor: account.second_factor.is_some(),
        created_ms: account.created_ms,
        last_login_ms: account.last_login_ms,
    }
}

impl Keeper {
    /// All accounts, by when they were made.
    pub fn accounts(&mut self, limit: usize) -> Result<Vec<AccountInfo>> {
        let found = self.scan::<Account>(&Scan::of(Account::KIND, limit))?;
        Ok(found.iter().map(info).collect())
    }

    /// An account by id or address.
    pub fn account(&mut self, id: &str) -> Result<AccountInfo> {
        let id = self.account_id(id)?;
        self.get::<Account>(&id).map(|kept| info(&kept))
    }

    fn account_id(&mut self, id: &str) -> Result<String> {
        Ok(match self.find::<Email>(&id.to_lowercase())? {
            Some(email) => email.document.account,
            None => id.to_owned(),
        })
    }

    pub(super) fn by_email(&mut self, email: &str) -> Result<Option<Kept<Account>>> {
        let Some(owner) = self.find::<Email>(email)? else {
            return Ok(None);
        };
        let found = self.find::<Account>(&owner.document.account)?;
        // Not by an address that it had.
        Ok(found.filter(|kept| kept.document.email == email))
    }

    /// Adds an account. With `verified`, the address is known to be theirs.
    pub(super) fn account_changes(
        &mut self,
        email: &str,
        name: &str,
        password: Option<String>,
        verified: bool,
        is_operator: bool,
    ) -> Result<(String, Vec<Change>)> {
        let now_ms = self.now();
        let id = make_id("a");
        let account = Account {
            email: email.to_owned(),
            name: check_name(name)?,
            password,
            verified_ms: verified.then_some(now_ms),
            is_operator,
            is_disabled: false,
            created_ms: now_ms,
            last_login_ms: None,
            second_factor: None,
            pending_factor: None,
        };
        let owner = Email {
            account: id.clone(),
        };
        let mut changes = vec![
            add::<Email>(record(email, &owner, &[("account", &id)], now_ms)?),
            add::<Account>(record(id.clone(), &account, &[], now_ms)?),
        ];
        if is_operator {
            changes.extend(self.first_team_changes(&id)?);
        }
        Ok((id, changes))
    }

    /// Makes an account for somebody; `hash` is of the password in `new`. Returned with a link to set one, where there is
    /// none.
    pub fn create_account(
        &mut self,
        new: &NewAccount,
        hash: Option<String>,
    ) -> Result<(AccountInfo, Option<String>)> {
        let email = normalize_email(&new.email)?;
        if self.find::<Email>(&email)?.is_some() {
            return Err(bad("there is an account with this address already"));
        }
        let name = new.name.as_deref().unwrap_or_else(|| local_part(&email));
        let needs_link = hash.is_none();
        let (id, mut changes) = self.account_changes(&email, name, hash, true, new.operator)?;
        let mut link = None;
        if needs_link {
            let (url, put) = self.link(Purpose::Reset, &id, Some(&id))?;
            changes.push(put);
            link = Some(url);
        }
        self.apply(&changes)?;
        Ok((self.account(&id)?, link))
    }

    /// Changes an account; ends its sessions where it must not be used any more.
    pub fn patch_account(&mut self, id: &str, patch: &AccountPatch) -> Result<AccountInfo> {
        let id = self.account_id(id)?;
        let mut kept = self.get::<Account>(&id)?;
        let account = &mut kept.document;
        if let Some(name) = &patch.name {
            account.name = check_name(name)?;
        }
        match patch.second_factor {
            Some(true) => return Err(bad("a second factor is set up by its owner")),
            Some(false) => account.second_factor = None,
            None => {}
        }
        account.is_operator = patch.operator.unwrap_or(account.is_operator);
        account.is_disabled = patch.disabled.unwrap_or(account.is_disabled);
        let is_disabled = account.is_disabled;
        let mut changes = vec![kept.put()?];
        if patch.operator == Some(true) {
            changes.extend(self.first_team_changes(&id)?);
        }
        if is_disabled {
            changes.extend(self.session_ends(&id, None)?);
        }
        self.apply(&changes)?;
        self.account(&id)
    }

    /// Removes an account with its sessions and memberships.
    pub fn delete_account(&mut self, id: &str) -> Result<()> {
        let id = self.account_id(id)?;
        let kept = self.get::<Account>(&id)?;
        let mut changes = self.session_ends(&id, None)?;
        for member in self.labelled::<Member>("account", &id)? {
            self.check_not_last_owner(&member.document)?;
            changes.push(member.delete());
        }
        changes.push(Change::delete(Email::KIND, kept.document.email.clone()));
        for had in self.labelled::<Email>("account", &id)? {
            if had.id != kept.document.email {
                changes.push(had.delete());
            }
        }
        changes.push(kept.delete());
        self.apply(&changes)
    }

    /// A link with which somebody sets a password, for an operator to hand over.
    pub fn reset_link(&mut self, id: &str) -> Result<String> {
        let id = self.account_id(id)?;
        self.get::<Account>(&id)?;
        let (url, put) = self.link(Purpose::Reset, &id, Some(&id))?;
        self.apply(&[put])?;
        Ok(url)
    }

    pub(super) fn session_ends(&mut self, account: &str, but: Option<&str>) -> Result<Vec<Change>> {
        let sessions = self.labelled::<Session>("account", account)?;
        let ends = sessions
            .into_iter()
            .filter(|session| Some(&*session.id) != but);
        Ok(ends
            .map(|session| Change::delete(Session::KIND, session.id))
            .collect())
    }

    /// Changes one's own name.
    pub fn rename(&mut self, account: &str, name: &str) -> Result<AccountInfo> {
        let mut kept = self.get::<Account>(account)?;
        kept.document.name = check_name(name)?;
        let put = kept.put()?;
        self.apply(&[put])?;
        self.account(account)
    }

    // -- the first account ------------------------------------------------------------------------------------------

    /// The link that makes the first account, if there is none yet.
    pub(super) fn setup_link(&mut self) -> Result<Option<String>> {
        if self.count::<Account>(None)? > 0 {
            return Ok(None);
        }
        let (url, put) = self.link(Purpose::Setup, "", None)?;
        self.apply(&[put])?;
        Ok(Some(url))
    }

    /// Whether a link makes the first account.
    pub fn is_setup(&mut self, token: &str) -> Result<()> {
        self.find_link(token, Purpose::Setup)?;
        match self.count::<Account>(None)? {
            0 => Ok(()),
            _ => Err(bad(
                "there are accounts already; ask one of them for an invitation",
            )),
        }
    }

    /// Makes the first account.
    pub(super) fn set_up(
        &mut self,
        token: &str,
        email: &str,
        name: &str,
        hash: String,
    ) -> Result<String> {
        self.is_setup(token)?;
        let link = self.find_link(token, Purpose::Setup)?;
        let email = normalize_email(email)?;
        let (id, mut changes) = self.account_changes(&email, name, Some(hash), true, true)?;
        changes.push(link.delete());
        self.apply(&changes)?;
        Ok(id)
    }

    // -- sign-up and addresses --------------------------------------------------------------------------------------

    /// Lets so many letters be asked for, and no more.
    pub(super) fn admit_letter(&mut self, client: &Client, email: &str) -> Result<()> {
        for name in [
            format!("letters from {}", client.address),
            format!("letters to {email}"),
        ] {
            self.admit(&name, LETTERS_FREE)?;
            let now_ms = self.now();
            self.attempts.note(&name, now_ms);
        }
        Ok(())
    }

    /// Makes an account whose address is to be shown theirs; if it has one, tells its owner. The answer is the same.
    pub(super) fn sign_up(
        &mut self,
        email: &str,
        name: &str,
        hash: String,
        client: &Client,
    ) -> Result<()> {
        self.admit_letter(client, email)?;
        if self.find::<Email>(email)?.is_some() {
            let text = "Somebody, probably you, wanted to make a Shardwire account with this address. You have one \
                already: sign in with it, or set another password from the sign-in page.\n";
            self.send(email, "You have an account already", text.to_owned());
            return Ok(());
        }
        let (id, mut changes) = self.account_changes(email, name, Some(hash), false, false)?;
        let (url, put) = self.link(Purpose::Verify, &id, Some(&id))?;
        changes.push(put);
        self.apply(&changes)?;
        self.send_verification(email, &url);
        self.note_event(Some(id), email, client, "sign-up", 200);
        Ok(())
    }

    pub(super) fn send_verification(&self, email: &str, url: &str) {
        let text = format!(
            "Open this page to show that this address is yours:\n\n{url}\n\nThe link works for a day.\n"
        );
        self.send(email, "Is this your address?", text);
    }

    /// Notes that an address is its account's.
    pub fn verify_address(&mut self, token: &str, client: &Client) -> Result<()> {
        let link = self.find_link(token, Purpose::Verify)?;
        let mut kept = self.get::<Account>(&link.document.subject)?;
        kept.document.verified_ms = Some(self.now());
        let put = kept.put()?;
        self.apply(&[put, link.delete()])?;
        self.note_event(
            Some(kept.id.clone()),
            &kept.document.email,
            client,
            "address verified",
            200,
        );
        Ok(())
    }

    // -- passwords --------------------------------------------------------------------------------------------------

    /// Sends a link to set another password, if there is such an account. The answer is the same.
    pub fn forgot(&mut self, email: &str, client: &Client) -> Result<()> {
        let email = normalize_email(email)?;
        self.admit_letter(client, &email)?;
        let found = self.by_email(&email)?;
        if let Some(kept) = found.filter(|kept| !kept.document.is_disabled) {
            let (url, put) = self.link(Purpose::Reset, &kept.id, Some(&kept.id))?;
            self.apply(&[put])?;
            let text = format!(
                "Open this page to set another password:\n\n{url}\n\nThe link works for an hour, once. If you did not ask \
                 for it, ignore this letter: nothing has changed.\n"
            );
            self.send(&email, "Set another password", text);
            self.note_event(
                Some(kept.id.clone()),
                &email,
                client,
                "password reset asked for",
                200,
            );
        }
        Ok(())
    }

    /// Whose password a link sets.
    pub fn reset_email(&mut self, token: &str) -> Result<String> {
        let link = self.find_link(token, Purpose::Reset)?;
        Ok(self.get::<Account>(&link.document.subject)?.document.email)
    }

    /// Sets a password by a link, which also shows that the address is theirs; ends all sessions.
    pub(super) fn reset(&mut self, token: &str, hash: String, client: &Client) -> Result<()> {
        let link = self.find_link(token, Purpose::Reset)?;
        let mut kept = self.get::<Account>(&link.document.subject)?;
        let now_ms = self.now();
        kept.document.password = Some(hash);
        kept.document.verified_ms.get_or_insert(now_ms);
        let mut changes = vec![kept.put()?, link.delete()];
        changes.extend(self.session_ends(&kept.id, None)?);
        changes.extend(self.link_ends(&kept.id, &[Purpose::NewAddress])?);
        self.apply(&changes)?;
        self.told_of_password(&kept, client, "password reset");
        Ok(())
    }

    /// Sets one's own password; ends all other sessions.
    pub(super) fn change_password(
        &mut self,
        account: &str,
        session: &str,
        hash: String,
        client: &Client,
    ) -> Result<()> {
        let mut kept = self.get::<Account>(account)?;
        kept.document.password = Some(hash);
        let mut changes = vec![kept.put()?];
        changes.extend(self.session_ends(account, Some(session))?);
        changes.extend(self.link_ends(account, &[Purpose::NewAddress])?);
        self.apply(&changes)?;
        self.told_of_password(&kept, client, "password changed");
        Ok(())
    }

    fn told_of_password(&mut self, kept: &Kept<Account>, client: &Client, event: &str) {
        let email = kept.document.email.clone();
        let address = client.address.to_canonical();
        let text = format!(
            "The password of your Shardwire account was changed, from {address}. All other sessions have ended. If it was \
             not you, set another one from the sign-in page at once.\n"
        );
        self.send(&email, "Your password was changed", text);
        self.note_event(Some(kept.id.clone()), &email, client, event, 200);
    }

    pub(super) fn note_event(
        &mut self,
        account: Option<String>,
        name: &str,
        client: &Client,
        event: &str,
        status: u16,
    ) {
        let actor = Actor {
            account,
            name: name.to_owned(),
            address: Some(client.address),
        };
        self.note(Entry::of(&actor, event, status));
    }

    /// How many accounts there are, for a page that says what to do first.
    pub fn has_accounts(&mut self) -> Result<bool> {
        Ok(self.count::<Account>(None)? > 0)
    }

    /// Accounts in a list at most.
    #[must_use]
    pub const fn list_max() -> usize {
        LIST_MAX
    }
}

fn local_part(email: &str) -> &str {
    email.split('@').next().unwrap_or(email)
}
