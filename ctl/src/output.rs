//! What goes to the terminal: tables for people, JSON for programs.
//!
//! Invariant: nothing that came from a client reaches a terminal with its control characters.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, UNIX_EPOCH};

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::Value;

use crate::failure::Failure;

/// Writes a line to stdout.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(())
}

/// Writes a table with these columns; on a terminal it fits its width.
pub(crate) fn table(columns: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
    line(&render(columns, rows, io::stdout().is_terminal()))
}

/// The text of a table.
pub(crate) fn render(columns: &[&str], rows: &[Vec<String>], fit: bool) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(columns);
    table.set_content_arrangement(if fit {
        ContentArrangement::Dynamic
    } else {
        ContentArrangement::Disabled
    });
    for row in rows {
        table.add_row(row.iter().map(|cell| clean(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let text = table.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

/// Text with its control characters made visible.
pub(crate) fn clean(text: &str) -> Cow<'_, str> {
    if !text.contains(char::is_control) {
        return text.into();
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out.into()
}

/// A moment given in Unix ms, in UTC; empty for none.
pub(crate) fn time(ms: &Value) -> String {
    let Some(moment) = ms
        .as_u64()
        .and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms)))
    else {
        return String::new();
    };
    humantime::format_rfc3339_millis(moment).to_string()
}

/// A cell: strings without their quotes, nothing for null.
pub(crate) fn cell(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        other => other.to_string(),
    }
}

/// Bytes in a unit that suits them.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{count} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_no_control_characters() {
        assert_eq!(clean("a\u{1b}[2Jb\u{9b}c\n"), "a\\u{1b}[2Jb\\u{9b}c\\n");
        let text = render(&["A"], &[vec!["x\ry".into()]], false);
        assert_eq!(text, "A\nx\\ry");
    }

    #[test]
    fn columns_stand_below_each_other() {
        let rows = [
            vec!["one".into(), "2".into()],
            vec!["three".into(), String::new()],
        ];
        assert_eq!(
            render(&["ID", "N"], &rows, false),
            "ID     N\none    2\nthree"
        );
    }

    #[test]
    fn units_suit_their_numbers() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1024), "1.0 KiB");
        assert_eq!(bytes(3 << 30), "3.0 GiB");
        assert_eq!(time(&Value::from(0)), "1970-01-01T00:00:00.000Z");
        assert_eq!(time(&Value::Null), "");
    }
}
