//! The way in: passwords are looked at by the hashing threads, between two questions to the accounts thread.
//!
//! Invariants: an address without an account costs as much and is answered as a wrong password; failures are counted by
//! address, by account, and by both together, before anything is hashed.

use shardwire_proto::account::access::{Bearer, Purpose as TokenPurpose};
use shardwire_proto::account::normalize_email;
use shardwire_proto::account::password::{PASSWORD_BYTES_MAX, check_password};
use shardwire_proto::error::{ErrorCode, ProtocolError};

use super::documents::{Account, Purpose};
use super::keeper::{Keeper, Result, bad};
use super::people::{AccountInfo, NewAccount};
use super::sessions::{Client, NewSession};
use super::{AccountsHandle, people};

/// Failures that cost no wait: of a client with one account, of an account, of an address.
const FREE: [u32; 3] = [5, 50, 20];
/// Seconds for the second step.
const CODE_S: u64 = 300;

/// How far a sign-in has come. Holds tokens: not `Debug`.
pub enum LoginStep {
    Done(NewSession),
    /// A code is asked for, with this token.
    CodeWanted(String),
    /// The address has to be shown theirs; another letter is on its way.
    Unverified,
}

/// A password that is being looked at.
#[derive(Clone)]
pub struct Begun {
    account: Option<String>,
    hash: Option<String>,
}

/// Under which names failures are counted.
fn names(client: &Client, email: &str) -> [String; 3] {
    let address = client.address.to_canonical();
    [
        format!("{address} {email}"),
        format!("account {email}"),
        format!("address {address}"),
    ]
}

fn wrong_password() -> ProtocolError {
    ProtocolError::with_text(ErrorCode::UnknownKey, "address or password is wrong")
}

impl Keeper {
    /// Refuses while a name has to wait.
    pub(super) fn admit(&self, name: &str, free: u32) -> Result<()> {
        match self.attempts.wait_ms(name, free, self.now()) {
            0 => Ok(()),
            wait_ms => {
                let text = format!("too many tries; wait {} s", wait_ms.div_ceil(1000));
                Err(ProtocolError::with_text(ErrorCode::RateExceeded, text))
            }
        }
    }

    fn begin_login(&mut self, email: &str, client: &Client) -> Result<Begun> {
        for (name, free) in names(client, email).iter().zip(FREE) {
            self.admit(name, free)?;
        }
        let found = self.by_email(email)?;
        Ok(Begun {
            hash: found
                .as_ref()
                .and_then(|kept| kept.document.password.clone()),
            account: found.map(|kept| kept.id),
        })
    }

    pub(super) fn failed(&mut self, email: &str, client: &Client) {
        let now_ms = self.now();
        for name in names(client, email) {
            self.attempts.note(&name, now_ms);
        }
    }

    fn end_login(
        &mut self,
        begun: &Begun,
        email: &str,
        is_right: bool,
        client: &Client,
    ) -> Result<LoginStep> {
        let account = begun.account.as_deref().filter(|_| is_right);
        let found = account
            .map(|id| self.find::<Account>(id))
            .transpose()?
            .flatten();
        let Some(mut kept) = found.filter(|kept| !kept.document.is_disabled) else {
            self.failed(email, client);
            self.note_event(begun.account.clone(), email, client, "sign-in failed", 401);
            return Err(wrong_password());
        };
        if kept.document.verified_ms.is_none() {
            let (url, put) = self.link(Purpose::Verify, &kept.id, Some(&kept.id))?;
            self.apply(&[put])?;
            self.send_verification(email, &url);
            return Ok(LoginStep::Unverified);
        }
        if kept.document.second_factor.is_some() {
            let bearer = Bearer {
                account: kept.id,
                session: String::new(),
            };
            let purpose = TokenPurpose::SecondFactor;
            let token = self
                .secrets
                .signer
                .sign(&bearer, purpose, CODE_S, self.now())?;
            return Ok(LoginStep::CodeWanted(token));
        }
        let [pair, ..] = names(client, email);
        self.attempts.forget(&pair);
        let session = self.begin_session(&mut kept, client)?;
        self.note_event(Some(kept.id.clone()), email, client, "signed in", 200);
        Ok(LoginStep::Done(session))
    }

    /// The second step of a sign-in: a code of the authenticator app, or a recovery code.
    pub fn login_code(&mut self, token: &str, code: &str, client: &Client) -> Result<NewSession> {
        let purpose = TokenPurpose::SecondFactor;
        let bearer = self.secrets.signer.verify(token, purpose, self.now())?;
        let mut kept = self
            .find::<Account>(&bearer.account)?
            .ok_or(ErrorCode::BadToken)?;
        if kept.document.is_disabled {
            return Err(ErrorCode::BadToken.into());
        }
        let email = kept.document.email.clone();
        for (name, free) in names(client, &email).iter().zip(FREE) {
            self.admit(name, free)?;
        }
        let Some(how) = self.take_code(&mut kept, code)? else {
            self.failed(&email, client);
            self.note_event(
                Some(kept.id.clone()),
                &email,
                client,
                "sign-in failed: code",
                401,
            );
            return Err(ProtocolError::with_text(
                ErrorCode::UnknownKey,
                "`code` is wrong or was used already",
            ));
        };
        let [pair, ..] = names(client, &email);
        self.attempts.forget(&pair);
        let session = self.begin_session(&mut kept, client)?;
        self.note_event(Some(kept.id.clone()), &email, client, how, 200);
        Ok(session)
    }

    /// Begins a session for somebody who has just made or joined an account.
    fn begin_for(&mut self, account: &str, client: &Client, event: &str) -> Result<NewSession> {
        let mut kept = self.get::<Account>(account)?;
        let session = self.begin_session(&mut kept, client)?;
        let email = kept.document.email.clone();
        self.note_event(Some(kept.id.clone()), &email, client, event, 200);
        Ok(session)
    }
}

impl AccountsHandle {
    /// Signs somebody in, as far as a password goes.
    ///
    /// # Errors
    /// 40101 for a wrong address or password, 42900 after too many, 50300 when too many come at once.
    pub async fn login(&self, email: &str, password: String, client: Client) -> Result<LoginStep> {
        if password.len() > PASSWORD_BYTES_MAX {
            return Err(wrong_password());
        }
        // What cannot be an address is nobody's, and takes the same way.
        let email = normalize_email(email).unwrap_or_else(|_| "?".to_owned());
        let (of, from) = (email.clone(), client.clone());
        let begun = self
            .ask(move |keeper| keeper.begin_login(&of, &from))
            .await?;
        let is_right = self.hashing.verify(password, begun.hash.clone()).await?;
        self.ask(move |keeper| keeper.end_login(&begun, &email, is_right, &client))
            .await
    }

    /// Makes the first account and signs it in.
    ///
    /// # Errors
    /// 40400 for a link that is used up, 40003 for a password that is not taken.
    pub async fn set_up(
        &self,
        token: String,
        email: String,
        name: String,
        password: String,
        client: Client,
    ) -> Result<NewSession> {
        check_password(&password, &normalize_email(&email)?)?;
        let known = token.clone();
        self.ask(move |keeper| keeper.is_setup(&known)).await?;
        let hash = self.hashing.hash(password).await?;
        self.ask(move |keeper| {
            let account = keeper.set_up(&token, &email, &name, hash)?;
            keeper.begin_for(&account, &client, "first account made")
        })
        .await
    }

    /// Makes an account for an operator.
    ///
    /// # Errors
    /// 40003 for fields that are not taken, or an address that has an account.
    pub async fn create(&self, new: NewAccount) -> Result<(AccountInfo, Option<String>)> {
        let hash = match &new.password {
            Some(password) => {
                check_password(password, &normalize_email(&new.email)?)?;
                Some(self.hashing.hash(password.clone()).await?)
            }
            None => None,
        };
        self.ask(move |keeper| keeper.create_account(&new, hash))
            .await
    }

    /// Makes an account for whoever comes, where that is allowed.
    ///
    /// # Errors
    /// 40300 where it is not; 40003 for fields that are not taken.
    pub async fn sign_up(
        &self,
        email: &str,
        name: String,
        password: String,
        client: Client,
    ) -> Result<()> {
        let email = normalize_email(email)?;
        check_password(&password, &email)?;
        self.ask(|keeper| keeper.may_sign_up()).await?;
        let hash = self.hashing.hash(password).await?;
        self.ask(move |keeper| keeper.sign_up(&email, &name, hash, &client))
            .await
    }

    /// Sets a password by a link.
    ///
    /// # Errors
    /// 40400 for a link that is used up, 40003 for a password that is not taken.
    pub async fn reset(&self, token: String, password: String, client: Client) -> Result<()> {
        let known = token.clone();
        let email = self.ask(move |keeper| keeper.reset_email(&known)).await?;
        check_password(&password, &email)?;
        let hash = self.hashing.hash(password).await?;
        self.ask(move |keeper| keeper.reset(&token, hash, &client))
            .await
    }

    /// Takes an invitation, with an account that is made for it. Signs them in.
    ///
    /// # Errors
    /// 40400 for a link that is used up, 40003 for fields that are not taken, or an address that has an account.
    pub async fn join(
        &self,
        token: String,
        name: String,
        password: String,
        client: Client,
    ) -> Result<NewSession> {
        let known = token.clone();
        let invitation = self.ask(move |keeper| keeper.invitation_of(&known)).await?;
        if invitation.has_account {
            return Err(bad(
                "this address has an account already: sign in, then open the link again",
            ));
        }
        check_password(&password, &invitation.email)?;
        let hash = self.hashing.hash(password).await?;
        self.ask(move |keeper| {
            let account = keeper.join_anew(&token, &name, hash)?;
            keeper.begin_for(&account, &client, "joined by invitation")
        })
        .await
    }

    /// Checks the password of somebody who is signed in, before what needs it.
    ///
    /// # Errors
    /// 40101 where it is wrong.
    pub async fn confirm(&self, account: String, password: String, client: Client) -> Result<()> {
        let from = client.clone();
        let (email, hash) = self
            .ask(move |keeper| {
                let kept = keeper.get::<Account>(&account)?;
                for (name, free) in names(&from, &kept.document.email).iter().zip(FREE) {
                    keeper.admit(name, free)?;
                }
                Ok((kept.document.email, kept.document.password))
            })
            .await?;
        let is_short = password.len() <= PASSWORD_BYTES_MAX;
        if is_short && self.hashing.verify(password, hash).await? {
            return Ok(());
        }
        self.tell(move |keeper| keeper.failed(&email, &client));
        Err(ProtocolError::with_text(
            ErrorCode::UnknownKey,
            "`password` is wrong",
        ))
    }

    /// Changes one's own password.
    ///
    /// # Errors
    /// 40101 where the one so far is wrong, 40003 where the other one is not taken.
    pub async fn change_password(
        &self,
        who: &super::Principal,
        current: String,
        password: String,
        client: Client,
    ) -> Result<()> {
        check_password(&password, &who.email)?;
        let confirmed = self
            .confirm(who.account.clone(), current, client.clone())
            .await;
        confirmed.map_err(|error| match error.code {
            ErrorCode::UnknownKey => ProtocolError::with_text(error.code, "`current` is wrong"),
            _ => error,
        })?;
        let hash = self.hashing.hash(password).await?;
        let (account, session) = (who.account.clone(), who.session.clone());
        self.ask(move |keeper| keeper.change_password(&account, &session, hash, &client))
            .await
    }
}

impl Keeper {
    pub(super) fn may_sign_up(&self) -> Result<()> {
        match self.config.signup {
            true => Ok(()),
            false => Err(super::keeper::not_permitted(
                "accounts are made by invitation here",
            )),
        }
    }

    /// What is told about an account.
    pub fn me(&mut self, account: &str) -> Result<AccountInfo> {
        self.get::<Account>(account).map(|kept| people::info(&kept))
    }
}
