//! What pages are made of: forms, tables, badges, dialogs. None of it needs a script: dialogs and menus are popovers,
//! which browsers open, close and focus by themselves.

use maud::{Markup, Render, html};

use super::{Sent, Shell, format};

/// An input with its label, its hint and what is wrong with it.
pub(crate) struct Field<'a> {
    name: &'a str,
    label: &'a str,
    kind: &'a str,
    value: &'a str,
    hint: &'a str,
    autocomplete: &'a str,
    sent: Option<&'a Sent>,
    required: bool,
    max: Option<usize>,
    rows: Option<u32>,
    min: Option<u64>,
    /// Nothing is said of its being optional: of such forms all fields are.
    is_bare: bool,
    /// Makes ids differ where two forms of a page have a field of the same name.
    scope: &'a str,
}

impl<'a> Field<'a> {
    pub(crate) fn new(name: &'a str, label: &'a str) -> Self {
        Self {
            name,
            label,
            kind: "text",
            value: "",
            hint: "",
            autocomplete: "off",
            sent: None,
            required: false,
            max: None,
            rows: None,
            min: None,
            is_bare: false,
            scope: "f",
        }
    }

    /// The `type` of the input.
    pub(crate) fn kind(mut self, kind: &'a str) -> Self {
        self.kind = kind;
        self
    }

    pub(crate) fn value(mut self, value: &'a str) -> Self {
        self.value = value;
        self
    }

    pub(crate) fn hint(mut self, hint: &'a str) -> Self {
        self.hint = hint;
        self
    }

    pub(crate) fn autocomplete(mut self, autocomplete: &'a str) -> Self {
        self.autocomplete = autocomplete;
        self
    }

    /// Shows again what was typed, and what is wrong with it.
    pub(crate) fn sent(mut self, sent: &'a Sent) -> Self {
        self.sent = Some(sent);
        self
    }

    pub(crate) fn required(mut self) -> Self {
        self.required = true;
        self
    }

    pub(crate) fn max(mut self, characters: usize) -> Self {
        self.max = Some(characters);
        self
    }

    /// A number, not below this one.
    pub(crate) fn number(mut self, min: u64) -> Self {
        self.kind = "number";
        self.min = Some(min);
        self
    }

    /// Of a form whose fields may all be left empty.
    pub(crate) fn bare(mut self) -> Self {
        self.is_bare = true;
        self
    }

    /// Several lines, in the type of code.
    pub(crate) fn rows(mut self, rows: u32) -> Self {
        self.rows = Some(rows);
        self
    }

    pub(crate) fn scope(mut self, scope: &'a str) -> Self {
        self.scope = scope;
        self
    }
}

impl Field<'_> {
    /// What is wrong, as a sentence with the field's label in it.
    fn error(&self) -> Option<String> {
        let error = self.sent?.errors.get(self.name)?;
        Some(match error.strip_prefix(':') {
            Some(text) => format::sentence(text.trim()),
            None => format::sentence(&format!("{} {}", self.label, error.trim())),
        })
    }

    fn shown(&self) -> &str {
        match self.sent {
            Some(sent) if self.kind != "password" => sent.or(self.name, self.value),
            _ => self.value,
        }
    }
}

impl Render for Field<'_> {
    fn render(&self) -> Markup {
        let (error, value) = (self.error(), self.shown());
        let id = format!("{}-{}", self.scope, self.name);
        let (hint_id, error_id) = (format!("{id}-hint"), format!("{id}-error"));
        let mut described = Vec::new();
        if !self.hint.is_empty() {
            described.push(hint_id.as_str());
        }
        if error.is_some() {
            described.push(error_id.as_str());
        }
        let described = (!described.is_empty()).then(|| described.join(" "));
        let invalid = error.is_some().then_some("true");
        html! {
            div class="field" {
                label for=(id) {
                    (self.label)
                    @if !self.required && !self.is_bare { " " span class="optional" { "optional" } }
                }
                @if let Some(rows) = self.rows {
                    textarea id=(id) name=(self.name) rows=(rows) class="code" spellcheck="false"
                        autocomplete="off" required[self.required] maxlength=[self.max]
                        aria-describedby=[described.as_deref()] aria-invalid=[invalid] autofocus[error.is_some()] {
                        // The parser drops a first line break.
                        "\n" (value)
                    }
                } @else {
                    input id=(id) name=(self.name) type=(self.kind) value=(value)
                        autocomplete=(self.autocomplete) required[self.required] maxlength=[self.max] min=[self.min]
                        aria-describedby=[described.as_deref()] aria-invalid=[invalid] autofocus[error.is_some()];
                }
                @if !self.hint.is_empty() { p class="hint" id=(hint_id) { (self.hint) } }
                @if let Some(error) = &error { p class="field-error" id=(error_id) { (error) } }
            }
        }
    }
}

/// A choice of one.
pub(crate) fn select(
    id: &str,
    name: &str,
    label: &str,
    options: &[(&str, &str)],
    chosen: &str,
) -> Markup {
    html! {
        div class="field" {
            label for=(id) { (label) }
            select id=(id) name=(name) {
                @for (value, text) in options {
                    option value=(value) selected[*value == chosen] { (text) }
                }
            }
        }
    }
}

/// A yes or no.
pub(crate) fn checkbox(id: &str, name: &str, value: &str, label: &str, is_on: bool) -> Markup {
    html! {
        div class="check" {
            input type="checkbox" id=(id) name=(name) value=(value) checked[is_on];
            label for=(id) { (label) }
        }
    }
}

/// A form that changes something.
pub(crate) fn form(shell: &Shell, action: &str, body: Markup) -> Markup {
    html! {
        form method="post" action=(action) class="form" {
            (csrf(shell))
            (body)
        }
    }
}

pub(crate) fn csrf(shell: &Shell) -> Markup {
    html! { input type="hidden" name="csrf" value=(shell.csrf); }
}

/// A form that is nothing but its button.
pub(crate) fn button(shell: &Shell, action: &str, label: &str) -> Markup {
    html! {
        form method="post" action=(action) class="inline" {
            (csrf(shell))
            button type="submit" class="button small" { (label) }
        }
    }
}

/// A button that asks before it does what it says.
pub(crate) struct Confirm<'a> {
    /// Of the dialog; one per page.
    pub(crate) id: &'a str,
    /// On the button that opens the dialog.
    pub(crate) label: &'a str,
    /// What is about to happen, as a question.
    pub(crate) title: &'a str,
    /// What it entails.
    pub(crate) text: &'a str,
    pub(crate) action: &'a str,
    /// On the button that does it.
    pub(crate) verb: &'a str,
    /// Asked for in the dialog.
    pub(crate) fields: Markup,
    pub(crate) is_dangerous: bool,
}

impl Confirm<'_> {
    pub(crate) fn render(&self, shell: &Shell) -> Markup {
        let title_id = format!("{}-title", self.id);
        let (opener, doer) = if self.is_dangerous {
            ("button small danger-quiet", "button danger")
        } else {
            ("button small", "button primary")
        };
        html! {
            button type="button" class=(opener) popovertarget=(self.id) { (self.label) }
            div popover id=(self.id) class="dialog" role="dialog" aria-labelledby=(title_id)
                data-open[shell.sent_to(self.action).is_some()] {
                h2 id=(title_id) { (self.title) }
                @if !self.text.is_empty() { p { (self.text) } }
                form method="post" action=(self.action) class="form" {
                    (csrf(shell))
                    (self.fields)
                    div class="actions" {
                        button type="submit" class=(doer) { (self.verb) }
                        button type="button" class="button" popovertarget=(self.id)
                            popovertargetaction="hide" { "Cancel" }
                    }
                }
            }
        }
    }
}

/// Colours of a badge. The word in it says the same.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Tone {
    Good,
    Warn,
    Bad,
    Plain,
    Accent,
}

pub(crate) fn badge(tone: Tone, text: &str) -> Markup {
    let class = match tone {
        Tone::Good => "badge good",
        Tone::Warn => "badge warn",
        Tone::Bad => "badge bad",
        Tone::Plain => "badge",
        Tone::Accent => "badge accent",
    };
    html! { span class=(class) { (text) } }
}

/// A table with a name. Head cells that begin with `#` are of numbers; the name of the class is on the cells too.
pub(crate) fn table(caption: &str, head: &[&str], rows: &[Markup]) -> Markup {
    html! {
        div class="table" role="region" aria-label={ (caption) " table" } tabindex="0" {
            table {
                caption class="sr" { (caption) }
                thead { tr {
                    @for name in head {
                        @match name.strip_prefix('#') {
                            Some(name) => { th scope="col" class="num" { (name) } }
                            None if name.is_empty() => { td {} }
                            None => { th scope="col" { (name) } }
                        }
                    }
                } }
                tbody { @for row in rows { (row) } }
            }
        }
    }
}

/// What stands where there is nothing yet.
pub(crate) fn empty(title: &str, text: &str) -> Markup {
    html! {
        div class="empty" {
            p class="empty-title" { (title) }
            p { (text) }
        }
    }
}

/// A time, relative to the page's; the script keeps it so.
pub(crate) fn time(shell: &Shell, time_ms: u64) -> Markup {
    html! {
        time datetime=(format::rfc3339(time_ms)) title=(format::date_time(time_ms)) data-relative {
            (format::relative(time_ms, shell.now_ms))
        }
    }
}

/// As [`time`], or a word where there is none.
pub(crate) fn time_or(shell: &Shell, time_ms: Option<u64>, word: &str) -> Markup {
    match time_ms {
        Some(time_ms) => time(shell, time_ms),
        None => html! { span class="muted" { (word) } },
    }
}

/// Text to be copied as it is.
pub(crate) fn copyable(id: &str, label: &str, text: &str) -> Markup {
    html! {
        div class="copyable" {
            code id=(id) tabindex="0" role="textbox" aria-readonly="true" aria-label=(label) { (text) }
            button type="button" class="button small" data-copy=(id) hidden { "Copy" }
        }
    }
}

/// A link to the next page of a list, where there is one.
pub(crate) fn more(href: Option<&str>) -> Markup {
    html! {
        @if let Some(href) = href {
            nav class="pages" aria-label="Pages" { a class="button" rel="next" href=(href) { "Next page" } }
        }
    }
}

/// A number with its name.
pub(crate) fn tile(id: &str, label: &str, value: &str, note: &str) -> Markup {
    html! {
        div class="tile" {
            dt { (label) }
            dd {
                span class="tile-value" id=(id) { (value) }
                span class="tile-note" id={ (id) "-note" } { (note) }
            }
        }
    }
}

/// A part of a page with its heading.
pub(crate) fn card(id: &str, title: &str, body: Markup) -> Markup {
    html! {
        section class="card" aria-labelledby=(id) {
            h2 id=(id) { (title) }
            (body)
        }
    }
}
