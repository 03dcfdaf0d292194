//! Who may make which call of the dashboard's API: one table, in which a call that is missing is nobody's.
//!
//! Paths are those below `/dashboard/api`; those of an app are named as below `/admin`. The table is also what requests
//! are routed by, so that there is no way past it. Not here: what a call does.

use serde::{Deserialize, Serialize};

/// What an account is in a team.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Everything, the team itself included.
    Owner,
    /// Everything but what only an owner may: owners, ownership and the end of the team.
    Admin,
    /// Apps with all that is in them.
    Developer,
    /// Looks, changes nothing, and sees no secret.
    Viewer,
    /// Usage and plans.
    Billing,
}

impl Role {
    /// All roles, the highest first.
    pub const ALL: [Self; 5] = [
        Self::Owner,
        Self::Admin,
        Self::Developer,
        Self::Viewer,
        Self::Billing,
    ];

    /// As it is written.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Admin => "admin",
            Self::Developer => "developer",
            Self::Viewer => "viewer",
            Self::Billing => "billing",
        }
    }

    /// What it is for, in a sentence.
    #[must_use]
    pub const fn description(self) -> &'static str {
        match self {
            Self::Owner => "Everything, the team itself included",
            Self::Admin => "Everything but owners and the end of the team",
            Self::Developer => "Apps, keys, channels, webhooks and push",
            Self::Viewer => "Looks at everything, changes nothing",
            Self::Billing => "Usage and plans",
        }
    }

    /// The role with this name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    /// Whether an account with this role may give `other` to somebody, or take it away.
    #[must_use]
    pub const fn may_assign(self, other: Self) -> bool {
        match self {
            Self::Owner => true,
            Self::Admin => !matches!(other, Self::Owner),
            Self::Developer | Self::Viewer | Self::Billing => false,
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A set of roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles(u8);

impl Roles {
    const fn of(roles: &[Role]) -> Self {
        let (mut bits, mut rest) = (0, roles);
        while let [role, others @ ..] = rest {
            bits |= role.bit();
            rest = others;
        }
        Self(bits)
    }

    /// Whether a role is among them.
    #[must_use]
    pub const fn contains(self, role: Role) -> bool {
        self.0 & role.bit() != 0
    }
}

/// Whom a call is open to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Whoever comes: what proves who somebody is cannot ask for that proof.
    Anyone,
    /// Whoever is signed in; it is about their own account.
    Account,
    /// Whoever has one of these roles in the team of the path.
    Team(Roles),
    /// Whoever has one of these roles in the team that the app of the path belongs to.
    App(Roles),
    /// Accounts that run this server.
    Operator,
}

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permission {
    /// The method; a `HEAD` is a `GET`.
    pub method: &'static str,
    /// The path below `/dashboard/api`.
    pub path: &'static str,
    /// Whom it is open to.
    pub who: Who,
}

const OWNER: Roles = Roles::of(&[Role::Owner]);
const LEAD: Roles = Roles::of(&[Role::Owner, Role::Admin]);
const BUILD: Roles = Roles::of(&[Role::Owner, Role::Admin, Role::Developer]);
const LOOK: Roles = Roles::of(&[Role::Owner, Role::Admin, Role::Developer, Role::Viewer]);
const PAY: Roles = Roles::of(&[Role::Owner, Role::Admin, Role::Billing]);
const ALL: Roles = Roles::of(&Role::ALL);

const fn row(method: &'static str, path: &'static str, who: Who) -> Permission {
    Permission { method, path, who }
}

use Who::{Account, Anyone, App, Operator, Team};

/// The table.
pub const PERMISSIONS: &[Permission] = &[
    // Proof of who somebody is.
    row("POST", "/login", Anyone),
    row("POST", "/login/code", Anyone),
    row("POST", "/refresh", Anyone),
    row("POST", "/signup", Anyone),
    row("POST", "/setup", Anyone),
    row("POST", "/verify", Anyone),
    row("POST", "/forgot", Anyone),
    row("POST", "/reset", Anyone),
    row("POST", "/join", Anyone),
    row("POST", "/email/confirm", Anyone),
    row("POST", "/email/undo", Anyone),
    // One's own account.
    row("POST", "/logout", Account),
    row("GET", "/me", Account),
    row("PATCH", "/me", Account),
    row("POST", "/me/password", Account),
    row("POST", "/me/email", Account),
    row("DELETE", "/me/email", Account),
    row("GET", "/me/sessions", Account),
    row("DELETE", "/me/sessions", Account),
    row("DELETE", "/me/sessions/{id}", Account),
    row("GET", "/me/audit", Account),
    row("POST", "/me/totp", Account),
    row("POST", "/me/totp/confirm", Account),
    row("POST", "/me/totp/remove", Account),
    row("POST", "/me/recovery-codes", Account),
    row("POST", "/me/join", Account),
    row("GET", "/apps", Account),
    row("GET", "/teams", Account),
    row("POST", "/teams", Account),
    // Teams.
    row("GET", "/teams/{team}", Team(ALL)),
    row("PATCH", "/teams/{team}", Team(LEAD)),
    row("DELETE", "/teams/{team}", Team(OWNER)),
    row("GET", "/teams/{team}/members", Team(ALL)),
    row("PATCH", "/teams/{team}/members/{id}", Team(LEAD)),
    row("DELETE", "/teams/{team}/members/{id}", Team(LEAD)),
    row("POST", "/teams/{team}/leave", Team(ALL)),
    row("POST", "/teams/{team}/transfer", Team(OWNER)),
    row("GET", "/teams/{team}/invitations", Team(LEAD)),
    row("POST", "/teams/{team}/invitations", Team(LEAD)),
    row("DELETE", "/teams/{team}/invitations/{id}", Team(LEAD)),
    row("GET", "/teams/{team}/audit", Team(LEAD)),
    row("POST", "/teams/{team}/apps", Team(BUILD)),
    // Apps: settings and credentials.
    row("GET", "/apps/{app}", App(ALL)),
    row("PATCH", "/apps/{app}", App(BUILD)),
    row("DELETE", "/apps/{app}", App(LEAD)),
    row("POST", "/apps/{app}/transfer", App(OWNER)),
    row("GET", "/apps/{app}/keys", App(LOOK)),
    row("POST", "/apps/{app}/keys", App(BUILD)),
    row("GET", "/apps/{app}/keys/{id}", App(LOOK)),
    row("PATCH", "/apps/{app}/keys/{id}", App(BUILD)),
    row("DELETE", "/apps/{app}/keys/{id}", App(BUILD)),
    row("POST", "/apps/{app}/keys/{id}/rotate", App(BUILD)),
    row("GET", "/apps/{app}/signing-keys", App(LOOK)),
    row("POST", "/apps/{app}/signing-keys", App(BUILD)),
    row("GET", "/apps/{app}/signing-keys/{id}", App(LOOK)),
    row("PATCH", "/apps/{app}/signing-keys/{id}", App(BUILD)),
    row("DELETE", "/apps/{app}/signing-keys/{id}", App(BUILD)),
    row("GET", "/apps/{app}/revocations", App(LOOK)),
    row("POST", "/apps/{app}/revocations", App(BUILD)),
    row("DELETE", "/apps/{app}/revocations/{id}", App(BUILD)),
    row("POST", "/apps/{app}/tokens", App(BUILD)),
    row("GET", "/apps/{app}/usage", App(ALL)),
    row("GET", "/apps/{app}/plan", App(PAY)),
    // Apps: what goes on in them.
    row("GET", "/apps/{app}/channels", App(LOOK)),
    row("GET", "/apps/{app}/channels/{channel}", App(LOOK)),
    row("GET", "/apps/{app}/channels/{channel}/messages", App(LOOK)),
    row(
        "POST",
        "/apps/{app}/channels/{channel}/messages",
        App(BUILD),
    ),
    row(
        "DELETE",
        "/apps/{app}/channels/{channel}/messages",
        App(BUILD),
    ),
    row("GET", "/apps/{app}/channels/{channel}/presence", App(LOOK)),
    row("POST", "/apps/{app}/publish", App(BUILD)),
    row(
        "POST",
        "/apps/{app}/clients/{client}/disconnect",
        App(BUILD),
    ),
    row(
        "POST",
        "/apps/{app}/clients/{client}/unsubscribe",
        App(BUILD),
    ),
    // Apps: webhooks and push.
    row("GET", "/apps/{app}/webhooks", App(LOOK)),
    row("POST", "/apps/{app}/webhooks", App(BUILD)),
    row("GET", "/apps/{app}/webhooks/{id}", App(LOOK)),
    row("PATCH", "/apps/{app}/webhooks/{id}", App(BUILD)),
    row("DELETE", "/apps/{app}/webhooks/{id}", App(BUILD)),
    row("POST", "/apps/{app}/webhooks/{id}/rotate", App(BUILD)),
    row("POST", "/apps/{app}/webhooks/{id}/test", App(BUILD)),
    row("GET", "/apps/{app}/webhooks/{id}/events", App(LOOK)),
    row("GET", "/apps/{app}/webhooks/{id}/deliveries", App(LOOK)),
    row("GET", "/apps/{app}/webhooks/{id}/dead-letters", App(LOOK)),
    row("POST", "/apps/{app}/webhooks/{id}/dead-letters", App(BUILD)),
    row(
        "DELETE",
        "/apps/{app}/webhooks/{id}/dead-letters",
        App(BUILD),
    ),
    row(
        "GET",
        "/apps/{app}/webhooks/{id}/dead-letters/{item}",
        App(LOOK),
    ),
    row(
        "DELETE",
        "/apps/{app}/webhooks/{id}/dead-letters/{item}",
        App(BUILD),
    ),
    row(
        "POST",
        "/apps/{app}/webhooks/{id}/dead-letters/{item}/replay",
        App(BUILD),
    ),
    row("POST", "/apps/{app}/push/register", App(BUILD)),
    row("POST", "/apps/{app}/push/unregister", App(BUILD)),
    row("DELETE", "/apps/{app}/push/unregister", App(BUILD)),
    row("GET", "/apps/{app}/push/subscriptions", App(LOOK)),
    row("DELETE", "/apps/{app}/push/subscriptions/{id}", App(BUILD)),
    row("POST", "/apps/{app}/push/channels/add", App(BUILD)),
    row("POST", "/apps/{app}/push/channels/remove", App(BUILD)),
    row("POST", "/apps/{app}/push/send", App(BUILD)),
    row("POST", "/apps/{app}/push/broadcast", App(BUILD)),
    row("GET", "/apps/{app}/push/vapid-key", App(LOOK)),
    row("GET", "/apps/{app}/push/config", App(LOOK)),
    row("GET", "/apps/{app}/push/stats", App(LOOK)),
    row("GET", "/apps/{app}/push/jobs", App(LOOK)),
    row("GET", "/apps/{app}/push/jobs/{id}", App(LOOK)),
    row("DELETE", "/apps/{app}/push/jobs/{id}", App(BUILD)),
    row("GET", "/apps/{app}/push/providers", App(LOOK)),
    row("PUT", "/apps/{app}/push/providers/{id}", App(BUILD)),
    row("DELETE", "/apps/{app}/push/providers/{id}", App(BUILD)),
    // The server, and everybody's.
    row("GET", "/nodes", Operator),
    row("GET", "/config", Operator),
    row("GET", "/drain", Operator),
    row("POST", "/drain", Operator),
    row("GET", "/connections", Operator),
    row("GET", "/connections/{id}", Operator),
    row("DELETE", "/connections/{id}", Operator),
    row("GET", "/plans", Operator),
    row("GET", "/plans/{id}", Operator),
    row("PUT", "/plans/{id}", Operator),
    row("DELETE", "/plans/{id}", Operator),
    row("POST", "/apps", Operator),
    row("GET", "/accounts", Operator),
    row("POST", "/accounts", Operator),
    row("GET", "/accounts/{id}", Operator),
    row("PATCH", "/accounts/{id}", Operator),
    row("DELETE", "/accounts/{id}", Operator),
    row("POST", "/accounts/{id}/reset", Operator),
    row("GET", "/audit", Operator),
    row("GET", "/openapi.json", Account),
];

/// What is known of whoever makes a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Whether they run this server.
    pub is_operator: bool,
    /// Their role in the team that the call is about, if it is about one and they are in it.
    pub role: Option<Role>,
}

impl Who {
    /// Whether the call is open to somebody. `None`: they are not signed in.
    ///
    /// Whoever runs the server may do in every team what its owner may: they have the data folder anyway.
    #[must_use]
    pub fn admits(self, standing: Option<Standing>) -> bool {
        let Some(standing) = standing else {
            return matches!(self, Self::Anyone);
        };
        match self {
            Self::Anyone | Self::Account => true,
            Self::Team(roles) | Self::App(roles) => {
                standing.is_operator || standing.role.is_some_and(|role| roles.contains(role))
            }
            Self::Operator => standing.is_operator,
        }
    }
}

#[cfg(test)]
mod tests;
