//! What surrounds a page: the head, the navigation, the breadcrumbs, and what is said at the top.

use maud::{DOCTYPE, Markup, html};

use super::icons::{self, Icon};
use super::{Flash, Named, Shell, assets, components, paths};

/// Where in the navigation a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Overview,
    Apps,
    Settings,
    Keys,
    Channels,
    Console,
    Usage,
    Webhooks,
    Push,
    Teams,
    TeamAudit,
    Account,
    Sessions,
    Security,
    Connections,
    Accounts,
    ServerAudit,
    Nowhere,
}

/// What a page says of itself.
pub(crate) struct Head<'a> {
    /// The heading, and the window's title.
    pub(crate) title: &'a str,
    /// A sentence below it.
    pub(crate) lead: Markup,
    pub(crate) place: Place,
    /// What leads here: names and addresses.
    pub(crate) crumbs: Vec<(String, String)>,
    /// Beside the heading.
    pub(crate) actions: Markup,
    /// Of [`assets`], beside `ui.js`.
    pub(crate) scripts: &'a [&'a str],
}

impl<'a> Head<'a> {
    pub(crate) fn new(title: &'a str, place: Place) -> Self {
        Self {
            title,
            lead: html! {},
            place,
            crumbs: Vec::new(),
            actions: html! {},
            scripts: &[],
        }
    }

    /// Of an app's page.
    pub(crate) fn of_app(title: &'a str, place: Place, shell: &Shell) -> Self {
        let mut head = Self::new(title, place);
        head.crumb("Apps", paths::to(&["apps"]));
        if let Some(app) = &shell.app {
            head.crumb(app.label(), paths::app(&app.id, &[]));
        }
        head
    }

    pub(crate) fn crumb(&mut self, name: &str, path: String) {
        self.crumbs.push((name.to_owned(), path));
    }

    pub(crate) fn lead(mut self, lead: Markup) -> Self {
        self.lead = lead;
        self
    }

    pub(crate) fn actions(mut self, actions: Markup) -> Self {
        self.actions = actions;
        self
    }

    pub(crate) fn scripts(mut self, scripts: &'a [&'a str]) -> Self {
        self.scripts = scripts;
        self
    }
}

/// A page for whoever is signed in.
pub(crate) fn page(shell: &Shell, head: &Head, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            (document_head(shell, head))
            body class="app" {
                a class="skip" href="#main" { "Skip to the content" }
                header class="bar" {
                    a class="brand" href=(paths::to(&[])) { (icons::mark()) "Shardwire" }
                    button type="button" class="button quiet menu-button" popovertarget="menu" {
                        (icons::MENU) "Menu"
                    }
                }
                (navigation(shell, head.place))
                main id="main" tabindex="-1" {
                    (breadcrumbs(&head.crumbs, head.title))
                    (flash(shell))
                    div class="title" {
                        div { h1 { (head.title) } div class="lead" { (head.lead) } }
                        div class="title-actions" { (head.actions) }
                    }
                    (body)
                }
            }
        }
    }
}

/// A page for whoever is not: one thing in the middle.
pub(crate) fn plain_page(shell: &Shell, head: &Head, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            (document_head(shell, head))
            body class="plain" {
                a class="skip" href="#main" { "Skip to the content" }
                main id="main" tabindex="-1" class="plain-card" {
                    p class="brand" { (icons::mark()) "Shardwire" }
                    h1 { (head.title) }
                    div class="lead" { (head.lead) }
                    (flash(shell))
                    (body)
                }
            }
        }
    }
}

fn document_head(shell: &Shell, head: &Head) -> Markup {
    let place = match &shell.app {
        Some(app) if !app.id.is_empty() => format!("{} · {} · Shardwire", head.title, app.label()),
        _ => format!("{} · Shardwire", head.title),
    };
    html! {
        head {
            meta charset="utf-8";
            title { (place) }
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            meta name="referrer" content="same-origin";
            meta name="robots" content="noindex";
            meta name="csrf-token" content=(shell.csrf);
            link rel="icon" type="image/svg+xml" href=(assets::path("icon.svg"));
            link rel="stylesheet" href=(assets::path("style.css"));
            script type="module" src=(assets::path("ui.js")) {}
            @for script in head.scripts {
                script type="module" src=(assets::path(script)) {}
            }
        }
    }
}

fn flash(shell: &Shell) -> Markup {
    html! {
        @match &shell.flash {
            Some(Flash::Done(text)) => { div class="flash good" role="status" { (text) } }
            Some(Flash::Failed(text)) => { div class="flash bad" role="alert" { (text) } }
            None => {}
        }
    }
}

fn breadcrumbs(crumbs: &[(String, String)], title: &str) -> Markup {
    html! {
        @if !crumbs.is_empty() {
            nav class="crumbs" aria-label="Breadcrumbs" {
                ol {
                    @for (name, path) in crumbs { li { a href=(path) { (name) } } }
                    li { span aria-current="page" { (title) } }
                }
            }
        }
    }
}

/// A line of the navigation.
struct Entry {
    place: Place,
    icon: Icon,
    label: &'static str,
    path: String,
}

fn navigation(shell: &Shell, place: Place) -> Markup {
    let entry = |place, icon, label, path| Entry {
        place,
        icon,
        label,
        path,
    };
    let mut general = vec![
        entry(Place::Overview, icons::OVERVIEW, "Overview", paths::to(&[])),
        entry(Place::Apps, icons::APPS, "Apps", paths::to(&["apps"])),
        entry(Place::Teams, icons::TEAM, "Teams", paths::to(&["teams"])),
    ];
    if shell.can("GET", "/teams/{team}/audit") && shell.team.is_some() {
        let path = paths::team(shell.team_id(), &["audit"]);
        general.push(entry(
            Place::TeamAudit,
            icons::AUDIT,
            "Team’s audit log",
            path,
        ));
    }
    let server = vec![
        entry(
            Place::Connections,
            icons::PLUG,
            "Connections",
            paths::to(&["connections"]),
        ),
        entry(
            Place::Accounts,
            icons::PERSON,
            "Accounts",
            paths::to(&["accounts"]),
        ),
        entry(
            Place::ServerAudit,
            icons::AUDIT,
            "Audit log",
            paths::to(&["audit"]),
        ),
    ];
    html! {
        nav class="side" id="menu" popover aria-label="Main" {
            (lines(place, &general))
            @if let Some(app) = &shell.app {
                (switcher(shell, app))
                (lines(place, &app_entries(shell, app)))
            }
            @if shell.is_operator() {
                p class="side-heading" { "Server" }
                (lines(place, &server))
            }
            (account(shell, place))
        }
    }
}

fn app_entries(shell: &Shell, app: &Named) -> Vec<Entry> {
    let all = [
        (
            Place::Channels,
            icons::CHANNELS,
            "Channels",
            "channels",
            "/apps/{app}/channels",
        ),
        (
            Place::Console,
            icons::CONSOLE,
            "Console",
            "console",
            "/apps/{app}/channels",
        ),
        (
            Place::Usage,
            icons::USAGE,
            "Usage",
            "usage",
            "/apps/{app}/usage",
        ),
        (Place::Keys, icons::KEY, "Keys", "keys", "/apps/{app}/keys"),
        (
            Place::Webhooks,
            icons::WEBHOOK,
            "Webhooks",
            "webhooks",
            "/apps/{app}/webhooks",
        ),
        (
            Place::Push,
            icons::BELL,
            "Push",
            "push",
            "/apps/{app}/push/stats",
        ),
        (
            Place::Settings,
            icons::SETTINGS,
            "Settings",
            "",
            "/apps/{app}",
        ),
    ];
    let shown = all.into_iter().filter(|(place, .., call)| {
        let exists = match place {
            Place::Webhooks => shell.has_webhooks,
            Place::Push => shell.has_push,
            _ => true,
        };
        exists && shell.can("GET", call)
    });
    shown
        .map(|(place, icon, label, part, _)| Entry {
            place,
            icon,
            label,
            path: match part {
                "" => paths::app(&app.id, &[]),
                part => paths::app(&app.id, &[part]),
            },
        })
        .collect()
}

fn lines(place: Place, entries: &[Entry]) -> Markup {
    html! {
        ul class="side-list" {
            @for entry in entries {
                @let current = (entry.place == place).then_some("page");
                li { a href=(entry.path) aria-current=[current] { (entry.icon) (entry.label) } }
            }
        }
    }
}

/// The app's name, and the way to others.
fn switcher(shell: &Shell, app: &Named) -> Markup {
    html! {
        p class="side-heading" { "App" }
        button type="button" class="switcher" popovertarget="apps-menu" {
            span class="switcher-name" { (app.label()) }
            span class="sr" { ", switch app" }
            (icons::SWITCH)
        }
        div popover id="apps-menu" class="popup" role="group" aria-label="Switch app" {
            ul class="side-list" {
                @for other in &shell.apps {
                    @let current = (other.id == app.id).then_some("true");
                    li {
                        a href=(paths::app(&other.id, &["channels"])) aria-current=[current] { (other.label()) }
                    }
                }
                li { a class="muted" href=(paths::to(&["apps"])) { "All apps" } }
            }
        }
    }
}

fn account(shell: &Shell, place: Place) -> Markup {
    let entries = [
        (Place::Account, "Profile", paths::to(&["account"])),
        (
            Place::Security,
            "Security",
            paths::to(&["account", "security"]),
        ),
        (
            Place::Sessions,
            "Sessions",
            paths::to(&["account", "sessions"]),
        ),
    ];
    html! {
        @if let Some(person) = &shell.account {
            div class="side-account" {
                p class="side-person" { strong { (person.name) } span { (person.email) } }
                ul class="side-list compact" {
                    @for (entry, label, path) in &entries {
                        @let current = (*entry == place).then_some("page");
                        li { a href=(path) aria-current=[current] { (label) } }
                    }
                }
                form method="post" action=(paths::to(&["logout"])) {
                    (components::csrf(shell))
                    button type="submit" class="button small" { "Sign out" }
                }
            }
        }
    }
}
