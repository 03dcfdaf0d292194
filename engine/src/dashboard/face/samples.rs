//! Every page with believable data, for the tests, and for eyes: with `SHARDWIRE_PREVIEW_DIR` set, the test `preview`
//! writes them there, to be opened in a browser.

use shardwire_proto::account::permissions::{Role, Standing};

use super::{Flash, Named, Person, Sent, Shell, paths};

mod apps;
mod people;
mod traffic;

/// 2026-11-24 10:15 UTC.
pub(super) const NOW: u64 = 1_795_515_300_000;
pub(super) const MINUTE: u64 = 60_000;
pub(super) const HOUR: u64 = 60 * MINUTE;
pub(super) const DAY: u64 = 24 * HOUR;

/// What happens to every text of the data: nothing, or something nasty.
pub(super) type Texts = fn(&str) -> String;

/// A page by its name.
pub(super) struct Sample {
    pub(super) name: &'static str,
    pub(super) html: String,
}

pub(super) fn sample(name: &'static str, page: maud::Markup) -> Sample {
    Sample {
        name,
        html: page.into_string(),
    }
}

/// Every page, with its texts through `texts`.
pub(super) fn all(texts: Texts) -> Vec<Sample> {
    let mut all = people::all(texts);
    all.extend(apps::all(texts));
    all.extend(traffic::all(texts));
    all
}

/// Of whoever has a role in the team of the page.
pub(super) fn shell_of(role: Role, is_operator: bool, texts: Texts) -> Shell {
    let named = |id: &str, name: &str| Named {
        id: texts(id),
        name: texts(name),
    };
    Shell {
        csrf: "Zx81kq3vT0".to_owned(),
        account: Some(Person {
            name: texts("Ada Byron"),
            email: texts("ada@example.org"),
            is_operator,
        }),
        teams: vec![
            named("t_7fq", "Engines Ltd"),
            named("t_8aa", "Side project"),
        ],
        apps: vec![
            named("shop", "Shop"),
            named("support", "Support chat"),
            named("dev", "dev"),
        ],
        team: Some(named("t_7fq", "Engines Ltd")),
        app: None,
        standing: Some(Standing {
            is_operator,
            role: Some(role),
        }),
        flash: None,
        sent: Sent::default(),
        now_ms: NOW,
        has_webhooks: true,
        has_push: true,
    }
}

/// Of an owner, on a page of an app.
pub(super) fn app_shell(texts: Texts) -> Shell {
    Shell {
        app: Some(Named {
            id: texts("shop"),
            name: texts("Shop"),
        }),
        ..shell_of(Role::Owner, false, texts)
    }
}

/// Of nobody.
pub(super) fn outside(flash: Option<Flash>) -> Shell {
    Shell {
        csrf: "Zx81kq3vT0".to_owned(),
        flash,
        now_ms: NOW,
        ..Shell::default()
    }
}

/// After a form of the page was refused.
pub(super) fn refused(
    shell: &Shell,
    parts: &[&str],
    values: &[(&str, &str)],
    error: (&str, &str),
    texts: Texts,
) -> Shell {
    let values = values.iter();
    let values = values.map(|(name, value)| ((*name).to_owned(), texts(value)));
    Shell {
        flash: Some(Flash::Failed(
            "Look at the field that is marked.".to_owned(),
        )),
        sent: Sent {
            action: paths::to(parts),
            values: values.collect(),
            errors: [(error.0.to_owned(), texts(error.1))].into(),
        },
        ..shell.clone()
    }
}
