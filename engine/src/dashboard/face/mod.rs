//! What a person sees of the dashboard: every page as a pure function of its data.
//!
//! `pages` has a function per page, [`Shell`] is what they share, `components` and `chart` are what they are made of,
//! [`paths`] has every address they link to, and [`assets`] the style sheet and the scripts.
//!
//! Not here: requests, cookies, storage, and who may do what (the permission table of `shardwire_proto::account` decides;
//! pages ask it only in order to leave out what would be refused). Invariants: all text is escaped by the template
//! engine; there is no script and no style in a page, so that the strictest content security policy holds; whatever
//! changes something is a `POST` form with the CSRF field, which works without script.

use std::collections::BTreeMap;

use shardwire_proto::account::permissions::{PERMISSIONS, Standing};

pub mod assets;
mod chart;
mod components;
pub(crate) mod format;
mod icons;
mod layout;
pub mod pages;
pub mod paths;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;

/// A form that was refused, to be shown again: what was typed into it, and what is wrong. What concerns no field of it goes
/// into [`Shell::flash`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sent {
    /// Where it was sent to; empty: there is none.
    pub action: String,
    /// Names and values of its fields. Those of passwords are not shown.
    pub values: Vec<(String, String)>,
    /// What is wrong, by the name of the field: what follows the field's name in a sentence.
    pub errors: BTreeMap<String, String>,
}

impl Sent {
    /// Whether there is one.
    pub(crate) fn is_some(&self) -> bool {
        !self.action.is_empty()
    }

    /// What was typed into a field.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        let mut values = self.values.iter();
        let found = values.find(|(own, _)| own == name);
        found.map(|(_, value)| value.as_str())
    }

    /// What was typed into a field, or what stands there otherwise.
    pub(crate) fn or<'a>(&'a self, name: &str, otherwise: &'a str) -> &'a str {
        self.value(name).unwrap_or(otherwise)
    }

    /// Whether a box was ticked; where nothing was sent, whether it is.
    pub(crate) fn ticked(&self, name: &str, value: &str, otherwise: bool) -> bool {
        if !self.is_some() {
            return otherwise;
        }
        let mut values = self.values.iter();
        values.any(|(own, sent)| own == name && sent == value)
    }
}

/// Something with an id and a name for people.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(default)]
pub struct Named {
    pub id: String,
    pub name: String,
}

impl Named {
    /// What to call it.
    pub(crate) fn label(&self) -> &str {
        if self.name.is_empty() {
            &self.id
        } else {
            &self.name
        }
    }
}

/// Whoever is signed in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Person {
    pub name: String,
    pub email: String,
    /// Whether they run this server.
    pub is_operator: bool,
}

/// What is said once, at the top of the next page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Flash {
    Done(String),
    Failed(String),
}

/// What every page has around it.
#[derive(Debug, Clone, Default)]
pub struct Shell {
    /// For the hidden field of forms, and for scripts.
    pub csrf: String,
    /// `None`: nobody is signed in.
    pub account: Option<Person>,
    /// The account's.
    pub teams: Vec<Named>,
    /// Those that can be switched to.
    pub apps: Vec<Named>,
    /// The one that the page is about, or that the page's app belongs to.
    pub team: Option<Named>,
    /// The one that the page is about.
    pub app: Option<Named>,
    /// The account's, in that team.
    pub standing: Option<Standing>,
    pub flash: Option<Flash>,
    /// The form that was refused; see [`Self::sent_to`].
    pub sent: Sent,
    /// Unix time, ms.
    pub now_ms: u64,
    pub has_webhooks: bool,
    pub has_push: bool,
}

impl Shell {
    /// Whether a call of the permission table is open to whoever looks at the page. One that is not in the table is not.
    #[must_use]
    pub fn can(&self, method: &str, path: &str) -> bool {
        let mut rows = PERMISSIONS.iter();
        rows.find(|row| row.method == method && row.path == path)
            .is_some_and(|row| row.who.admits(self.standing))
    }

    /// The form that was sent to an address, if it was refused.
    pub(crate) fn sent_to(&self, action: &str) -> &Sent {
        static NONE: Sent = Sent {
            action: String::new(),
            values: Vec::new(),
            errors: BTreeMap::new(),
        };
        if self.sent.action == action {
            &self.sent
        } else {
            &NONE
        }
    }

    pub(crate) fn is_operator(&self) -> bool {
        self.account
            .as_ref()
            .is_some_and(|account| account.is_operator)
    }

    /// The id of the page's app; empty where there is none.
    pub(crate) fn app_id(&self) -> &str {
        self.app.as_ref().map_or("", |app| &app.id)
    }

    /// The id of the page's team; empty where there is none.
    pub(crate) fn team_id(&self) -> &str {
        self.team.as_ref().map_or("", |team| &team.id)
    }
}
