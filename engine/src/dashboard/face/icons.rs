//! Small pictures beside words. Each says nothing that a word does not, so none is read out.

use maud::{Markup, html};

/// Paths in a box of 16 by 16, drawn as lines.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Icon(&'static str);

pub(crate) const OVERVIEW: Icon = Icon("M2 10.5h2.5L6.5 4l3 9 2-5.5H14");
pub(crate) const APPS: Icon =
    Icon("M2.5 2.5h4.5v4.5H2.5zM9 2.5h4.5v4.5H9zM2.5 9h4.5v4.5H2.5zM9 9h4.5v4.5H9z");
pub(crate) const SETTINGS: Icon =
    Icon("M2 4.5h6M12 4.5h2M2 11.5h2M8 11.5h6M8 2.75v3.5h4v-3.5zM4 9.75v3.5h4v-3.5z");
pub(crate) const KEY: Icon = Icon("M10.5 9A3.5 3.5 0 1 0 7.2 6.7L2 12v2h2.5v-1.5H6V11h1.5l1.6-2.2");
pub(crate) const CHANNELS: Icon = Icon("M6 2 4.5 14M11.5 2 10 14M2.5 5.5h11.5M2 10.5h11.5");
pub(crate) const CONSOLE: Icon = Icon("M2 3h12v10H2zM4.5 6l2 2-2 2M8.5 10.5H11");
pub(crate) const USAGE: Icon = Icon("M2.5 13.5h11M4 11V8M8 11V3M12 11V6");
pub(crate) const WEBHOOK: Icon = Icon(
    "M6 10.5l-2 1.8a2.3 2.3 0 1 0 1.6 2M5 5.5a3 3 0 1 1 5.5 1.6L12.5 11M8 4.5 5 10M12.5 11a2 2 0 1 1-1.6 3M5.5 12.5h5",
);
pub(crate) const BELL: Icon = Icon(
    "M3 11.5h10c-1-1-1.5-2-1.5-5a3.5 3.5 0 0 0-7 0c0 3-.5 4-1.5 5zM6.5 13.7a1.6 1.6 0 0 0 3 0",
);
pub(crate) const TEAM: Icon = Icon(
    "M8 6.5a2.25 2.25 0 1 1-4.5 0 2.25 2.25 0 0 1 4.5 0zM1.5 13.5c0-2.5 1.8-4 4.25-4s4.25 1.5 4.25 4M10.5 4.4a2.25 2.25 0 0 1 0 4.2M12 10c1.6.5 2.5 1.8 2.5 3.5",
);
pub(crate) const AUDIT: Icon = Icon("M3.5 2h9v12h-9zM6 5.5h4M6 8h4M6 10.5h2.5");
pub(crate) const PERSON: Icon = Icon(
    "M10.75 5.25a2.75 2.75 0 1 1-5.5 0 2.75 2.75 0 0 1 5.5 0zM2.75 14c0-3 2.25-4.5 5.25-4.5s5.25 1.5 5.25 4.5",
);
pub(crate) const PLUG: Icon = Icon("M5.5 2v3M10.5 2v3M4 5h8v2.5a4 4 0 0 1-8 0zM8 11.5V14");
pub(crate) const MENU: Icon = Icon("M2 4h12M2 8h12M2 12h12");
pub(crate) const SWITCH: Icon = Icon("M5 6l3-3 3 3M5 10l3 3 3-3");

impl maud::Render for Icon {
    fn render(&self) -> Markup {
        html! {
            svg class="icon" viewBox="0 0 16 16" width="16" height="16" aria-hidden="true" focusable="false" {
                path d=(self.0) {}
            }
        }
    }
}

/// The mark beside the name.
pub(crate) fn mark() -> Markup {
    html! {
        svg class="mark" viewBox="0 0 24 24" width="24" height="24" aria-hidden="true" focusable="false" {
            path class="mark-back" d="M12 1 22 6.5v11L12 23 2 17.5v-11z" {}
            path class="mark-wire" d="M4.5 13.5h3.2l2-6 3.6 10.5 2.5-8 1.2 3.5h2.5" {}
        }
    }
}
