//! How an account's e-mail address becomes another one (OWASP Authentication Cheat Sheet, "Change a User's Registered
//! Email Address").
//!
//! ```text
//!  asked for ──letter to the new address──► confirmed: it is the account's; sessions stay
//!      │                                        │
//!      └────letter to the address so far────────┴──► undone: that address stays or comes back, all sessions end, the
//!                                                     password is void and set anew
//! ```
//! Not here: names and passwords (`people`). Invariants: nobody learns whether the new address has an account; at most one
//! change waits to be confirmed; the address so far stays the account's for as long as there is a way back to it; a way
//! back takes away those that came after it, and never one that came before.

use serde::Deserialize;
use shardwire_proto::account::normalize_email;
use shardwire_proto::error::{ErrorCode, ProtocolError};

use super::audit::{Actor, Entry};
use super::documents::{Account, Document, Email, Link, Purpose};
use super::keeper::{Keeper, Kept, Result, add, bad, record};
use super::people::LETTERS_FREE;
use super::sessions::Client;
use super::{AccountsHandle, Principal};
use crate::records::Change;

/// What somebody sends who wants another address. Holds a password: not `Debug`.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewAddress {
    /// The address.
    pub email: String,
    /// Of the account.
    pub password: String,
    /// Of the second factor, where there is one.
    pub code: Option<String>,
}

impl AccountsHandle {
    /// Sends a link to another address, with which it becomes the account's.
    ///
    /// # Errors
    /// 40003 for what is no address or the account's already, 40101 for a wrong password or code, 42900 after too many.
    pub async fn change_address(
        &self,
        who: &Principal,
        new: NewAddress,
        client: Client,
    ) -> Result<()> {
        let email = normalize_email(&new.email)?;
        if email == who.email {
            return Err(bad("`email` is the account's already"));
        }
        self.confirm(who.account.clone(), new.password, client.clone())
            .await?;
        let account = who.account.clone();
        let code = new.code.unwrap_or_default();
        self.ask(move |keeper| keeper.change_address(&account, &email, &code, &client))
            .await
    }
}

impl Keeper {
    /// Sends the letters. The password is known to be right.
    pub(super) fn change_address(
        &mut self,
        account: &str,
        email: &str,
        code: &str,
        client: &Client,
    ) -> Result<()> {
        let mut kept = self.get::<Account>(account)?;
        let mut changes = Vec::new();
        if kept.document.second_factor.is_some() {
            self.check_code_of(&mut kept, code, client)?;
            changes.push(kept.put()?);
        }
        let name = format!("letters of {account}");
        self.admit(&name, LETTERS_FREE)?;
        self.attempts.note(&name, self.now());
        self.admit_letter(client, email)?;
        changes.extend(self.link_ends(account, &[Purpose::NewAddress])?);
        let so_far = kept.document.email.clone();
        let (url, put) = self.link_to(Purpose::NewAddress, account, Some(account), Some(email))?;
        let (back, put_back) =
            self.link_to(Purpose::OldAddress, account, Some(account), Some(&so_far))?;
        changes.extend([put, put_back]);
        self.apply(&changes)?;
        let text = match self.is_of_another(email, account)? {
            // The link that was made is nobody's.
            true => {
                "Somebody wanted to make this the address of their Shardwire account. It is that of yours, and stays so: \
                 there is nothing to do.\n"
                    .to_owned()
            }
            false => format!(
                "Open this page to make this the address of your Shardwire account, which so far is {so_far}:\n\n{url}\n\n\
                 The link works for a day, once. If you did not ask for it, ignore this letter.\n"
            ),
        };
        self.send(email, "Is this your new address?", text);
        let text = format!(
            "Somebody with your password, from {}, wants to make {email} the address of your Shardwire account. If that was \
             you, open the link in the letter that went there.\n\n{}",
            client.address.to_canonical(),
            way_back(&back)
        );
        self.send(&so_far, "Another address for your account", text);
        self.note_address(&kept, client, "address change asked for", email);
        Ok(())
    }

    /// Refuses a wrong code of the second factor, and counts it.
    fn check_code_of(
        &mut self,
        kept: &mut Kept<Account>,
        code: &str,
        client: &Client,
    ) -> Result<()> {
        if code.trim().is_empty() {
            return Err(bad("`code` is missing: the second factor is on"));
        }
        if self.take_code(kept, code)?.is_some() {
            return Ok(());
        }
        let email = kept.document.email.clone();
        self.failed(&email, client);
        let event = "address change refused: code";
        self.note_event(Some(kept.id.clone()), &email, client, event, 401);
        let text = "`code` is wrong or was used already";
        Err(ProtocolError::with_text(ErrorCode::UnknownKey, text))
    }

    /// The address that waits to be confirmed.
    pub fn pending_address(&mut self, account: &str) -> Result<Option<String>> {
        let links = self.labelled::<Link>("account", account)?;
        let mut waiting = links.into_iter().map(|link| link.document);
        let found = waiting.find(|link| link.purpose == Purpose::NewAddress);
        Ok(found.and_then(|link| link.address))
    }

    /// Gives up a change that waits to be confirmed.
    pub fn keep_address(&mut self, account: &str) -> Result<()> {
        let changes = self.link_ends(account, &[Purpose::NewAddress])?;
        self.apply(&changes)
    }

    /// Makes the address of a link the account's. Sessions stay.
    pub fn confirm_address(&mut self, token: &str, client: &Client) -> Result<()> {
        let link = self.find_link(token, Purpose::NewAddress)?;
        let email = link.document.address.clone().ok_or(ErrorCode::Internal)?;
        let mut kept = self.get::<Account>(&link.document.subject)?;
        if kept.document.is_disabled {
            return Err(ErrorCode::Disabled.into());
        }
        let id = kept.id.clone();
        let so_far = std::mem::replace(&mut kept.document.email, email.clone());
        let now_ms = self.now();
        kept.document.verified_ms = Some(now_ms);
        let mut changes = vec![kept.put()?];
        changes.extend(self.take_email(&email, &id)?);
        if let Some(mut old) = self.find::<Email>(&so_far)? {
            let (_, life_ms) = Purpose::OldAddress.page();
            changes.push(old.put_until(now_ms.saturating_add(life_ms))?);
        }
        changes.extend(self.link_ends(&id, &[Purpose::NewAddress, Purpose::Reset])?);
        let (back, put_back) = self.link_to(Purpose::OldAddress, &id, Some(&id), Some(&so_far))?;
        changes.push(put_back);
        self.apply(&changes)?;
        let text = format!(
            "The address of your Shardwire account is {email}. This one is not used any more.\n\n{}",
            way_back(&back)
        );
        self.send(&so_far, "The address of your account was changed", text);
        self.note_address(&kept, client, "address changed", &email);
        Ok(())
    }

    /// Which address a way back leads to.
    pub fn way_back_to(&mut self, token: &str) -> Result<String> {
        let link = self.find_link(token, Purpose::OldAddress)?;
        link.document
            .address
            .ok_or_else(|| ErrorCode::Internal.into())
    }

    /// Gives an account back to whoever has the address that it had: somebody else knows its password. Returned with a link
    /// to set another one.
    pub fn undo_address(&mut self, token: &str, client: &Client) -> Result<String> {
        let link = self.find_link(token, Purpose::OldAddress)?;
        let email = link.document.address.clone().ok_or(ErrorCode::Internal)?;
        let mut kept = self.get::<Account>(&link.document.subject)?;
        let id = kept.id.clone();
        let (asked_ms, _) = link.place();
        let mut changes = Vec::new();
        if kept.document.email != email {
            changes.push(Change::delete(Email::KIND, kept.document.email.clone()));
            changes.extend(self.take_email(&email, &id)?);
            kept.document.email.clone_from(&email);
        }
        kept.document.password = None;
        // One that was set up meanwhile would keep its owner out.
        let is_later = |since_ms: u64| i64::try_from(since_ms).is_ok_and(|since| since >= asked_ms);
        let factor = kept.document.second_factor.take();
        kept.document.second_factor = factor.filter(|factor| !is_later(factor.since_ms));
        kept.document.pending_factor = None;
        changes.push(kept.put()?);
        changes.extend(self.session_ends(&id, None)?);
        for other in self.labelled::<Link>("account", &id)? {
            let is_way_back = other.document.purpose == Purpose::OldAddress;
            let is_earlier =
                other.place().0 < asked_ms && other.document.address != Some(email.clone());
            if !is_way_back || !is_earlier {
                changes.push(Change::delete(Link::KIND, other.id));
            }
        }
        let (url, put) = self.link(Purpose::Reset, &id, Some(&id))?;
        changes.push(put);
        self.apply(&changes)?;
        self.note_address(&kept, client, "address change undone", &email);
        Ok(url)
    }

    /// Whether an address is another account's, also one that has left it of late.
    fn is_of_another(&mut self, email: &str, account: &str) -> Result<bool> {
        let found = self.find::<Email>(email)?;
        Ok(found.is_some_and(|found| found.document.account != account))
    }

    /// Makes an address an account's for good.
    fn take_email(&mut self, email: &str, account: &str) -> Result<Option<Change>> {
        let owner = Email {
            account: account.to_owned(),
        };
        match self.find::<Email>(email)? {
            None => {
                let labels = [("account", account)];
                Ok(Some(add::<Email>(record(
                    email,
                    &owner,
                    &labels,
                    self.now(),
                )?)))
            }
            Some(mut own) if own.document.account == account => own.put_for_good().map(Some),
            Some(_) => Err(bad("there is an account with this address meanwhile")),
        }
    }

    /// Ends links of an account.
    pub(super) fn link_ends(&mut self, account: &str, purposes: &[Purpose]) -> Result<Vec<Change>> {
        let links = self.labelled::<Link>("account", account)?;
        let ended = links
            .into_iter()
            .filter(|link| purposes.contains(&link.document.purpose));
        Ok(ended
            .map(|link| Change::delete(Link::KIND, link.id))
            .collect())
    }

    fn note_address(&mut self, kept: &Kept<Account>, client: &Client, event: &str, email: &str) {
        let actor = Actor {
            account: Some(kept.id.clone()),
            name: kept.document.email.clone(),
            address: Some(client.address),
        };
        self.note(Entry {
            detail: Some(format!("email: {email}")),
            ..Entry::of(&actor, event, 200)
        });
    }
}

fn way_back(url: &str) -> String {
    format!(
        "If it was not you, open this page: this address stays the account's, everybody is signed out, and you set another \
         password.\n\n{url}\n\nThe link works for a week, once.\n"
    )
}
