//! Apps on one shard: their settings in force, and how many connections they have here.
//!
//! An app's own settings come before the process's. Entries stay for the life of the process: a name that has been used
//! costs a few bytes, and what refers to it by index never goes wrong.

use std::sync::Arc;

use hashbrown::HashMap;

use super::Options;
use crate::auth::app::{App, AppLimits};
use crate::auth::registry::Registry;
use crate::limits::default_rates;
use crate::namespace::{Namespaces, Settings};
use crate::quota::Plan;
use crate::rate::RateLimit;
use crate::rate::table::{Rates, Scopes, Setting};

/// An app's settings in force.
#[derive(Debug, Clone)]
pub(super) struct Policy {
    pub(super) namespaces: Namespaces,
    pub(super) self_asserted_ids: bool,
    /// Empty: any.
    pub(super) allowed_origins: Vec<String>,
    pub(super) hello: bool,
    pub(super) publish_rate: RateLimit,
    /// Of app and process.
    pub(super) rates: Rates,
    pub(super) plan: Option<Arc<Plan>>,
    pub(super) publish_bytes_max: usize,
    pub(super) channels_per_conn_max: usize,
    /// This shard's share.
    pub(super) connections_max: usize,
}

impl Policy {
    /// What is kept of a channel.
    pub(super) fn settings(&self, channel: &str) -> Settings {
        let mut settings = self.namespaces.of(channel);
        let plan = self.plan.as_deref();
        if let Some(ttl_s) = plan.and_then(|plan| plan.history_ttl_s_max) {
            let age_ms = &mut settings.retention.age_ms;
            *age_ms = ttl_s.saturating_mul(1000).min(*age_ms);
        }
        settings
    }

    fn of(app: &str, options: &Options, registry: &Registry, shards: u16) -> Self {
        let app = registry.app(app).map(|app| &**app);
        let plan = app.and_then(|app| registry.plan_of(app));
        Self::new(options, app, plan, shards)
    }

    fn new(options: &Options, app: Option<&App>, plan: Option<&Arc<Plan>>, shards: u16) -> Self {
        let limits = &options.limits;
        let process = Self {
            namespaces: options.namespaces.clone(),
            self_asserted_ids: options.self_asserted_ids,
            allowed_origins: options.allowed_origins.clone(),
            hello: options.hello,
            publish_rate: limits.publish_rate,
            rates: limits.rates.or(&default_rates(limits.publish_rate)),
            plan: None,
            publish_bytes_max: limits.publish_bytes_max,
            channels_per_conn_max: limits.channels_per_conn_max,
            connections_max: usize::MAX,
        };
        let Some(App { settings, .. }) = app else {
            return process;
        };
        let own = &settings.limits;
        let share = |most: usize| most.div_ceil(usize::from(shards));
        Self {
            namespaces: process.namespaces.preceded_by(&settings.namespaces),
            self_asserted_ids: settings
                .self_asserted_ids
                .unwrap_or(process.self_asserted_ids),
            allowed_origins: settings
                .allowed_origins
                .clone()
                .unwrap_or(process.allowed_origins),
            hello: settings.hello.unwrap_or(process.hello),
            publish_rate: own.publish_rate.unwrap_or(process.publish_rate),
            rates: own_rates(own).or(&process.rates),
            plan: plan.cloned(),
            publish_bytes_max: own
                .publish_bytes_max
                .into_iter()
                .chain(plan.and_then(|plan| plan.message_bytes_max))
                .fold(process.publish_bytes_max, usize::min),
            channels_per_conn_max: own
                .channels_per_conn_max
                .unwrap_or(process.channels_per_conn_max),
            connections_max: own.connections_max.map_or(usize::MAX, share),
        }
    }
}

/// Rates of an app; its rate of publishes may be written in two places.
fn own_rates(own: &AppLimits) -> Rates {
    let publish = Rates {
        publish: Scopes {
            connection: own.publish_rate.map(Setting::Limit),
            ..Scopes::default()
        },
        ..Rates::default()
    };
    own.rates.or(&publish)
}

#[derive(Debug)]
struct Entry {
    name: Arc<str>,
    policy: Policy,
    /// Connections that hold a slot.
    conns: usize,
}

/// All apps that this shard has met.
#[derive(Debug, Default)]
pub(super) struct Apps {
    entries: Vec<Entry>,
    by_name: HashMap<Arc<str>, u32, foldhash::fast::RandomState>,
    /// Of an app that nobody has met, which has no settings of its own.
    fallback: Option<Box<Policy>>,
}

impl Apps {
    /// Finds or makes an app's entry.
    pub(super) fn enter(
        &mut self,
        name: &str,
        options: &Options,
        registry: &Registry,
        shards: u16,
    ) -> u32 {
        if let Some(index) = self.by_name.get(name) {
            return *index;
        }
        let policy = Policy::of(name, options, registry, shards);
        let name: Arc<str> = name.into();
        let index = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        self.entries.push(Entry {
            name: name.clone(),
            policy,
            conns: 0,
        });
        self.by_name.insert(name, index);
        index
    }

    /// Takes over changed settings: of all apps of the registry, since a shard is home to channels of apps that have no
    /// connection on it.
    pub(super) fn reconfigure(&mut self, options: &Options, registry: &Registry, shards: u16) {
        for entry in &mut self.entries {
            entry.policy = Policy::of(&entry.name, options, registry, shards);
        }
        for app in registry.apps() {
            self.enter(&app.id, options, registry, shards);
        }
        self.fallback = Some(Box::new(Policy::new(options, None, None, shards)));
    }

    pub(super) fn name(&self, index: u32) -> Option<&Arc<str>> {
        self.entries.get(index as usize).map(|entry| &entry.name)
    }

    pub(super) fn policy(&self, index: u32) -> Option<&Policy> {
        self.entries.get(index as usize).map(|entry| &entry.policy)
    }

    /// Rates of what no app has a say in.
    pub(super) fn rates_of_process(&self) -> Option<&Rates> {
        self.fallback.as_ref().map(|policy| &policy.rates)
    }

    /// What is kept of an app's channel.
    pub(super) fn settings(&self, app: &str, channel: &str) -> Settings {
        let index = self.by_name.get(app).copied();
        let policy = index.and_then(|index| self.policy(index));
        policy
            .or(self.fallback.as_deref())
            .map_or_else(Settings::default, |policy| policy.settings(channel))
    }

    /// Apps met so far; indices are below it.
    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.entries.len()).unwrap_or(u32::MAX)
    }

    /// Whether one more connection of the app may open.
    pub(super) fn has_room(&self, index: u32) -> bool {
        let entry = self.entries.get(index as usize);
        entry.is_none_or(|entry| entry.conns < entry.policy.connections_max)
    }

    pub(super) fn count_opened(&mut self, index: u32) {
        if let Some(entry) = self.entries.get_mut(index as usize) {
            entry.conns += 1;
        }
    }

    pub(super) fn count_released(&mut self, index: u32) {
        if let Some(entry) = self.entries.get_mut(index as usize) {
            entry.conns = entry.conns.saturating_sub(1);
        }
    }
}
