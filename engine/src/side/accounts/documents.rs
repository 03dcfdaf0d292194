//! What is kept, and under which labels.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use shardwire_proto::account::permissions::Role;
use shardwire_proto::account::second_factor::RecoveryCodes;
use shardwire_proto::account::session::Tokens;

/// A kind of record.
pub(super) trait Document: Serialize + DeserializeOwned {
    const KIND: &'static str;
}

macro_rules! documents {
    ($($name:ident $kind:literal),* $(,)?) => {
        $(impl Document for $name { const KIND: &'static str = $kind; })*
    };
}

documents! {
    Account "account", Email "email", Session "session", Link "link", Team "team", Member "member",
    Invitation "invitation", OwnedApp "app", Setting "setting",
}

/// A person. Id: `a_…`; rank: when it was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Account {
    pub(super) email: String,
    pub(super) name: String,
    /// PHC string; none until one was set.
    pub(super) password: Option<String>,
    /// Since when the address is known to be theirs.
    pub(super) verified_ms: Option<u64>,
    /// Runs this server.
    pub(super) is_operator: bool,
    pub(super) is_disabled: bool,
    pub(super) created_ms: u64,
    pub(super) last_login_ms: Option<u64>,
    pub(super) second_factor: Option<SecondFactor>,
    /// Encrypted secret of a second factor that is being set up.
    pub(super) pending_factor: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct SecondFactor {
    /// Encrypted secret.
    pub(super) sealed: String,
    /// The last time step that was taken.
    pub(super) last_step: u64,
    pub(super) recovery: RecoveryCodes,
    pub(super) since_ms: u64,
}

/// Whose an address is. Id: the address; label `account`. It expires where the account has another one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Email {
    pub(super) account: String,
}

/// Label `account`; rank: when it began.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Session {
    pub(super) account: String,
    pub(super) tokens: Tokens,
    /// Of the last use of its refresh token.
    pub(super) seen_ms: u64,
    pub(super) address: String,
    pub(super) agent: String,
}

/// What a link in a letter does, once. Id: the hash of its token. Label `account` where there is one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Link {
    pub(super) purpose: Purpose,
    /// The account, or for [`Purpose::Join`] the invitation.
    pub(super) subject: String,
    /// Of an address change: the one that the link makes the account's.
    #[serde(default)]
    pub(super) address: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Purpose {
    /// Makes the first account.
    Setup,
    /// Shows that an address is theirs.
    Verify,
    /// Sets a password.
    Reset,
    /// Takes an invitation.
    Join,
    /// Makes another address the account's.
    NewAddress,
    /// Leads back to the address that the account had.
    OldAddress,
}

impl Purpose {
    /// The page of the link, and how long it is good for.
    pub(super) const fn page(self) -> (&'static str, u64) {
        const HOUR_MS: u64 = 3600 * 1000;
        match self {
            Self::Setup => ("setup", 24 * HOUR_MS),
            Self::Verify => ("verify", 24 * HOUR_MS),
            Self::Reset => ("reset", HOUR_MS),
            Self::Join => ("join", 7 * 24 * HOUR_MS),
            Self::NewAddress => ("email/confirm", 24 * HOUR_MS),
            Self::OldAddress => ("email/undo", 7 * 24 * HOUR_MS),
        }
    }
}

/// Id: `t_…`; rank: when it was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Team {
    pub(super) name: String,
    pub(super) created_ms: u64,
}

/// Id: `team/account`; labels `team`, `account`; rank: since when.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Member {
    pub(super) team: String,
    pub(super) account: String,
    pub(super) role: Role,
    pub(super) since_ms: u64,
}

/// Id: `i_…`; label `team`; rank: when it was made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Invitation {
    pub(super) team: String,
    pub(super) email: String,
    pub(super) role: Role,
    /// The account that invites.
    pub(super) by: String,
    pub(super) created_ms: u64,
    pub(super) expires_ms: u64,
}

/// Which team an app belongs to. Id: the app's; label `team`. An app without one belongs to the first team.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct OwnedApp {
    pub(super) team: String,
}

/// One value. Id: its name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Setting {
    pub(super) value: String,
}
