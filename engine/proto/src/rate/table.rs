//! What is limited, per what, and how much of it: the settings, and what they come to for one app.
//!
//! Settings are written per process, per app and per namespace; the nearest that says anything about a class and scope
//! counts, also where it says `false`. Data: who counts is in [`super::window`] and [`super::lease`].

use serde::{Deserialize, Serialize};

use super::window::RateLimit;

/// What a client does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Class {
    /// Publishes, over the socket and HTTP.
    Publish,
    /// `subscribe`, and `resume` of however many channels.
    Subscribe,
    /// Presence actions.
    Presence,
    /// `history`, over the socket and HTTP.
    History,
    /// Handshakes.
    Connect,
    /// Calls of the HTTP API.
    Http,
}

impl Class {
    /// All of them, in the order of their indices.
    pub const ALL: [Self; 6] = [
        Self::Publish,
        Self::Subscribe,
        Self::Presence,
        Self::History,
        Self::Connect,
        Self::Http,
    ];

    /// Place in tables.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Name in settings and metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
            Self::Presence => "presence",
            Self::History => "history",
            Self::Connect => "connect",
            Self::Http => "http",
        }
    }
}

/// Per what it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// One connection.
    Connection,
    /// A client id, on all connections and shards.
    Client,
    /// A channel: publishes at its home, the rest on all shards.
    Channel,
    /// An app, on all shards.
    App,
    /// A network address, on each shard.
    Address,
}

impl Scope {
    /// All of them, in the order of their indices.
    pub const ALL: [Self; 5] = [
        Self::Connection,
        Self::Client,
        Self::Channel,
        Self::App,
        Self::Address,
    ];

    /// Place in tables.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Name in settings and metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Client => "client",
            Self::Channel => "channel",
            Self::App => "app",
            Self::Address => "address",
        }
    }
}

/// One entry of the settings: `false`, or a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum Setting {
    /// No limit, whatever a wider setting says.
    Off,
    /// At most so much.
    Limit(RateLimit),
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Switch(bool),
    Limit(RateLimit),
}

impl TryFrom<Written> for Setting {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        match written {
            Written::Switch(false) => Ok(Self::Off),
            Written::Switch(true) => Err("a rate is { per_window, window_ms, burst }, or false"),
            Written::Limit(limit) => Ok(Self::Limit(limit)),
        }
    }
}

impl From<Setting> for Written {
    fn from(setting: Setting) -> Self {
        match setting {
            Setting::Off => Self::Switch(false),
            Setting::Limit(limit) => Self::Limit(limit),
        }
    }
}

/// The scopes of a class. Absent: what a wider setting says, in the end none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scopes {
    /// See [`Scope::Connection`]; not for `connect` and `http`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<Setting>,
    /// See [`Scope::Client`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<Setting>,
    /// See [`Scope::Channel`]; not for `connect` and `http`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<Setting>,
    /// See [`Scope::App`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<Setting>,
    /// See [`Scope::Address`]; for `connect`, and of the process alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Setting>,
}

impl Scopes {
    fn of(&self, scope: Scope) -> Option<Setting> {
        match scope {
            Scope::Connection => self.connection,
            Scope::Client => self.client,
            Scope::Channel => self.channel,
            Scope::App => self.app,
            Scope::Address => self.address,
        }
    }
}

/// Rates as they are written: a table per class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rates {
    /// See [`Class::Publish`].
    #[serde(skip_serializing_if = "is_default")]
    pub publish: Scopes,
    /// See [`Class::Subscribe`].
    #[serde(skip_serializing_if = "is_default")]
    pub subscribe: Scopes,
    /// See [`Class::Presence`].
    #[serde(skip_serializing_if = "is_default")]
    pub presence: Scopes,
    /// See [`Class::History`].
    #[serde(skip_serializing_if = "is_default")]
    pub history: Scopes,
    /// See [`Class::Connect`].
    #[serde(skip_serializing_if = "is_default")]
    pub connect: Scopes,
    /// See [`Class::Http`].
    #[serde(skip_serializing_if = "is_default")]
    pub http: Scopes,
}

fn is_default(scopes: &Scopes) -> bool {
    *scopes == Scopes::default()
}

impl Rates {
    /// What is said about a class and scope.
    #[must_use]
    pub fn of(&self, class: Class, scope: Scope) -> Option<Setting> {
        let scopes = match class {
            Class::Publish => &self.publish,
            Class::Subscribe => &self.subscribe,
            Class::Presence => &self.presence,
            Class::History => &self.history,
            Class::Connect => &self.connect,
            Class::Http => &self.http,
        };
        scopes.of(scope)
    }

    /// This, and what it does not say from `wider`.
    #[must_use]
    pub fn or(&self, wider: &Self) -> Self {
        let or = |own: &Scopes, wider: &Scopes| Scopes {
            connection: own.connection.or(wider.connection),
            client: own.client.or(wider.client),
            channel: own.channel.or(wider.channel),
            app: own.app.or(wider.app),
            address: own.address.or(wider.address),
        };
        Self {
            publish: or(&self.publish, &wider.publish),
            subscribe: or(&self.subscribe, &wider.subscribe),
            presence: or(&self.presence, &wider.presence),
            history: or(&self.history, &wider.history),
            connect: or(&self.connect, &wider.connect),
            http: or(&self.http, &wider.http),
        }
    }

    /// Whether nothing is said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Checks that every entry is one that something counts. `place` is where the settings are.
    ///
    /// # Errors
    /// The entry that is not, named.
    pub fn validate(&self, place: Place) -> Result<(), String> {
        for class in Class::ALL {
            for scope in Scope::ALL {
                if self.of(class, scope).is_some() && !counts(class, scope, place) {
                    return Err(format!(
                        "rates.{}.{}: there is no such limit {}",
                        class.label(),
                        scope.label(),
                        place.text()
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Where rates are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// For the process.
    Process,
    /// For an app.
    App,
    /// For the channels of a pattern.
    Namespace,
}

impl Place {
    fn text(self) -> &'static str {
        match self {
            Self::Process => "at all",
            Self::App => "of an app",
            Self::Namespace => "of a namespace",
        }
    }
}

/// Whether a class of calls is counted per a scope in settings at a place.
#[must_use]
pub const fn counts(class: Class, scope: Scope, place: Place) -> bool {
    let has_channel = matches!(
        class,
        Class::Publish | Class::Subscribe | Class::Presence | Class::History
    );
    let is_counted = match scope {
        Scope::Connection | Scope::Channel => has_channel,
        Scope::Client | Scope::App => true,
        Scope::Address => matches!((class, place), (Class::Connect, Place::Process)),
    };
    is_counted && (!matches!(place, Place::Namespace) || has_channel)
}

/// Which settings a limit comes from, which is what it is counted by: a namespace's own limit counts what concerns its
/// channels apart from all else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Bucket {
    /// What is counted.
    pub class: Class,
    /// Index of the namespace among those of app and process; [`Bucket::WIDE`]: none's own.
    pub namespace: u16,
}

impl Bucket {
    /// Not a namespace's own.
    pub const WIDE: u16 = u16::MAX;

    /// What app or process say about a class.
    #[must_use]
    pub const fn wide(class: Class) -> Self {
        Self {
            class,
            namespace: Self::WIDE,
        }
    }
}

/// The limits of one class, resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resolved {
    limits: [Option<RateLimit>; 4],
    /// Bit per scope: the limit is a namespace's own.
    own: u8,
}

impl Resolved {
    /// The limit of a scope other than [`Scope::Address`].
    #[must_use]
    pub fn limit(&self, scope: Scope) -> Option<RateLimit> {
        self.limits.get(scope.index()).copied().flatten()
    }

    /// Whether nothing is limited.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.limits.iter().all(Option::is_none)
    }

    /// By what a scope is counted, where `namespace` is that of the channel.
    #[must_use]
    pub fn bucket(&self, class: Class, scope: Scope, namespace: u16) -> Bucket {
        let is_own = self.own & (1 << scope.index()) != 0;
        Bucket {
            class,
            namespace: if is_own { namespace } else { Bucket::WIDE },
        }
    }
}

/// Resolves a class from the nearest settings to the widest; `own` are those of the channel's namespace.
#[must_use]
pub fn resolve(class: Class, own: Option<&Rates>, wider: &[&Rates]) -> Resolved {
    let mut resolved = Resolved::default();
    for (scope, slot) in Scope::ALL.into_iter().zip(&mut resolved.limits) {
        let own = own.and_then(|rates| rates.of(class, scope));
        if own.is_some() {
            resolved.own |= 1 << scope.index();
        }
        let setting = own.or_else(|| wider.iter().find_map(|rates| rates.of(class, scope)));
        *slot = match setting {
            Some(Setting::Limit(limit)) => Some(limit),
            Some(Setting::Off) | None => None,
        };
    }
    resolved
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(json: &str) -> Rates {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn the_nearest_setting_counts_and_off_is_one() {
        let process = rates(
            r#"{"publish":{"connection":{"per_window":50,"burst":100},"app":{"per_window":9}}}"#,
        );
        let app = rates(r#"{"publish":{"app":false}}"#);
        let own = rates(r#"{"publish":{"channel":{"per_window":3}}}"#);
        let wide = resolve(Class::Publish, None, &[&app, &process]);
        assert_eq!(wide.limit(Scope::Connection), RateLimit::new(50, 1000, 100));
        assert_eq!(wide.limit(Scope::App), None);
        let narrow = resolve(Class::Publish, Some(&own), &[&app, &process]);
        assert_eq!(narrow.limit(Scope::Channel), RateLimit::new(3, 1000, 3));
        assert_eq!(
            narrow.bucket(Class::Publish, Scope::Channel, 4).namespace,
            4
        );
        assert_eq!(
            narrow.bucket(Class::Publish, Scope::Connection, 4),
            Bucket::wide(Class::Publish)
        );
        assert!(resolve(Class::History, Some(&own), &[&app, &process]).is_empty());
    }

    #[test]
    fn a_limit_that_nothing_counts_is_refused_by_name() {
        let limit = r#"{"per_window":5}"#;
        for (class, scope, place) in [
            ("http", "connection", Place::Process),
            ("connect", "channel", Place::Process),
            ("http", "channel", Place::App),
            ("connect", "address", Place::App),
            ("connect", "app", Place::Namespace),
        ] {
            let bad = rates(&format!(r#"{{"{class}":{{"{scope}":{limit}}}}}"#));
            let told = bad.validate(place).unwrap_err();
            assert!(told.contains(&format!("{class}.{scope}")), "{told}");
        }
        let good = rates(&format!(r#"{{"connect":{{"address":{limit}}}}}"#));
        assert_eq!(good.validate(Place::Process), Ok(()));
        for bad in [r#"{"publish":{"app":true}}"#, r#"{"publish":{"ap":false}}"#] {
            assert!(serde_json::from_str::<Rates>(bad).is_err(), "{bad}");
        }
    }
}
