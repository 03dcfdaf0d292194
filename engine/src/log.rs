//! The log: one line per event on stderr, behind the `log` facade, so that libraries' warnings arrive too.
//!
//! Fields are the facade's key-values: `log::info!(shards, listen:%; "serving")`. A line is made where the event is and
//! written, with one `write(2)`, by a thread of its own: a reader of stderr that stalls must not stall a shard. When
//! [`QUEUE_LINES_MAX`] lines wait, further ones are left out and their number is told later. Callers keep secrets out.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, bounded};
use log::kv::{self, Key, Value, VisitSource, VisitValue};
use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::config::{Log as LogConfig, LogFormat};

/// Lines that may wait to be written: a burst of a second or two, below 2 MiB.
const QUEUE_LINES_MAX: usize = 4096;
/// Longest wait for waiting lines to be written before the process ends.
const FLUSH_MAX: Duration = Duration::from_secs(1);
/// What targets of this program begin with; of other crates only warnings are of interest.
const OWN_TARGET: &str = "shardwire";

/// Starts logging. A second call changes nothing. Panics are logged from here on, too.
///
/// # Panics
/// The writing thread cannot be started: there is no process without it.
pub fn init(config: &LogConfig) {
    let json = match config.format {
        LogFormat::Auto => !std::io::stderr().is_terminal(),
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let (lines, waiting) = bounded(QUEUE_LINES_MAX);
    let logger = Logger {
        json,
        lines,
        dropped: AtomicU64::new(0),
    };
    if log::set_boxed_logger(Box::new(logger)).is_err() {
        return;
    }
    set_level(config.level);
    let writer = std::thread::Builder::new().name("log".to_owned());
    writer
        .spawn(move || write_lines(&waiting))
        .expect("a thread can be started");
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let place = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        let text = panic.payload_as_str().unwrap_or("panic");
        log::error!(thread = thread.name().unwrap_or("unnamed"), place = place.as_str(); "panic: {text}");
        log::logger().flush();
    }));
}

/// Sets what is logged: events of this level and graver ones.
pub fn set_level(level: LevelFilter) {
    log::set_max_level(level);
}

enum Line {
    Text(String),
    /// Answered once everything before it is written.
    Flush(Sender<()>),
}

struct Logger {
    json: bool,
    lines: Sender<Line>,
    dropped: AtomicU64,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let own = metadata.target().starts_with(OWN_TARGET);
        let bound = if own || log::max_level() == LevelFilter::Trace {
            LevelFilter::Trace
        } else {
            LevelFilter::Warn
        };
        metadata.level() <= bound.min(log::max_level())
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let unix_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let dropped = self.dropped.swap(0, Ordering::Relaxed);
        let mut text = String::with_capacity(256);
        if dropped > 0 {
            let told = format_args!("log lines left out: {dropped}");
            let record = Record::builder()
                .level(Level::Warn)
                .target(OWN_TARGET)
                .args(told)
                .build();
            write_line(&mut text, self.json, unix_ms, &record);
        }
        write_line(&mut text, self.json, unix_ms, record);
        if self.lines.try_send(Line::Text(text)).is_err() {
            self.dropped.fetch_add(dropped + 1, Ordering::Relaxed);
        }
    }

    fn flush(&self) {
        let (done, written) = bounded(1);
        if self
            .lines
            .send_timeout(Line::Flush(done), FLUSH_MAX)
            .is_ok()
        {
            // Late is as good as never: the process ends either way.
            let _ = written.recv_timeout(FLUSH_MAX);
        }
    }
}

fn write_lines(waiting: &Receiver<Line>) {
    for line in waiting {
        match line {
            // A closed stderr is the reader's choice.
            Line::Text(text) => _ = std::io::stderr().write_all(text.as_bytes()),
            Line::Flush(done) => _ = done.send(()),
        }
    }
}

/// Appends an event's line. JSON: one object with `time`, `level`, `message`, then the fields. Text: the same in a row.
fn write_line(out: &mut String, json: bool, unix_ms: u64, record: &Record<'_>) {
    let own = record.target().starts_with(OWN_TARGET);
    let target = (!own).then(|| record.target());
    let mut fields = Fields { out, json };
    if json {
        fields.out.push_str("{\"time\":\"");
        push_time(fields.out, unix_ms);
        let level = record.level().as_str().to_ascii_lowercase();
        _ = write!(fields.out, "\",\"level\":\"{level}\",\"message\":");
        push_json(fields.out, &record.args().to_string());
    } else {
        push_time(fields.out, unix_ms);
        _ = write!(fields.out, " {:5} ", record.level());
        push_plain(fields.out, &record.args().to_string());
    }
    if let Some(target) = target {
        fields.push("target", |fields| fields.quoted(target));
    }
    // A value that cannot be shown is left out; the event matters more.
    _ = record.key_values().visit(&mut fields);
    fields.out.push_str(if json { "}\n" } else { "\n" });
}

/// Writes key-values; numbers and booleans stay such in JSON.
struct Fields<'o> {
    out: &'o mut String,
    json: bool,
}

impl Fields<'_> {
    fn push<R>(&mut self, key: &str, value: impl FnOnce(&mut Self) -> R) -> R {
        if self.json {
            self.out.push(',');
            push_json(self.out, key);
            self.out.push(':');
        } else {
            _ = write!(self.out, " {key}=");
        }
        value(self)
    }

    fn quoted(&mut self, text: &str) {
        let bare = |c: char| {
            c.is_alphanumeric() || c.is_ascii_punctuation() && !matches!(c, '"' | '\\' | '=')
        };
        if !self.json && !text.is_empty() && text.chars().all(bare) {
            self.out.push_str(text);
        } else {
            push_json(self.out, text);
        }
    }

    fn bare(&mut self, value: impl std::fmt::Display) -> Result<(), kv::Error> {
        write!(self.out, "{value}").map_err(kv::Error::from)
    }
}

impl<'kvs> VisitSource<'kvs> for Fields<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), kv::Error> {
        self.push(key.as_str(), |fields| value.visit(fields))
    }
}

impl<'v> VisitValue<'v> for Fields<'_> {
    fn visit_any(&mut self, value: Value<'_>) -> Result<(), kv::Error> {
        self.quoted(&value.to_string());
        Ok(())
    }

    fn visit_u64(&mut self, value: u64) -> Result<(), kv::Error> {
        self.bare(value)
    }

    fn visit_i64(&mut self, value: i64) -> Result<(), kv::Error> {
        self.bare(value)
    }

    fn visit_bool(&mut self, value: bool) -> Result<(), kv::Error> {
        self.bare(value)
    }
}

/// Text as a JSON string, quotes included.
fn push_json(out: &mut String, text: &str) {
    // A string always has a JSON form.
    out.push_str(&serde_json::to_string(text).unwrap_or_default());
}

/// Text for a terminal: nothing in it can end the line or drive the terminal.
fn push_plain(out: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default())
        } else {
            out.push(c)
        }
    }
}

/// `2026-11-24T03:02:20.123Z`: milliseconds since 1970 in UTC (RFC 3339).
fn push_time(out: &mut String, unix_ms: u64) {
    let (days, ms) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let (year, month, day) = crate::clock::civil(days);
    let (hour, minute, second) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    _ = write!(
        out,
        "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:03}Z",
        ms % 1000
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(json: bool, target: &str, message: &str, fields: &[(&str, Value<'_>)]) -> String {
        let mut out = String::new();
        let args = format_args!("{message}");
        let record = Record::builder()
            .level(Level::Info)
            .target(target)
            .args(args)
            .key_values(&fields)
            .build();
        write_line(&mut out, json, 1_732_417_340_123, &record);
        out
    }

    #[test]
    fn json_lines_are_objects_with_typed_fields() {
        let fields = [
            ("shards", Value::from(2u64)),
            ("ok", Value::from(true)),
            ("path", Value::from("a \"b\"\n")),
            ("error", Value::from_display(&std::fmt::Error)),
        ];
        let text = line(true, "shardwire::server", "serving", &fields);
        assert!(text.ends_with("}\n") && text.matches('\n').count() == 1);
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
        let expected = serde_json::json!({
            "time": "2024-11-24T03:02:20.123Z", "level": "info", "message": "serving",
            "shards": 2, "ok": true, "path": "a \"b\"\n", "error": std::fmt::Error.to_string(),
        });
        assert_eq!(parsed, expected);
    }

    #[test]
    fn text_lines_keep_to_one_line() {
        let fields = [
            ("n", Value::from(2)),
            ("plain", Value::from("127.0.0.1:9001")),
            ("odd", Value::from("a b\n")),
        ];
        assert_eq!(
            line(false, "shardwire", "two\nlines\u{1b}[0m", &fields),
            "2024-11-24T03:02:20.123Z INFO  two\\nlines\\u{1b}[0m n=2 plain=127.0.0.1:9001 odd=\"a b\\n\"\n"
        );
    }

    #[test]
    fn other_crates_are_named() {
        assert!(
            line(false, "glommio::reactor", "x", &[]).ends_with(" x target=glommio::reactor\n")
        );
        assert!(line(true, "glommio", "x", &[]).contains(r#""target":"glommio""#));
    }

    #[test]
    fn dates_are_right_around_leap_days() {
        for (unix_s, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_800, "2000-03-01T00:00:00.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            let mut out = String::new();
            push_time(&mut out, unix_s * 1000);
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn a_stalled_reader_costs_lines_but_never_time_and_the_loss_is_told() {
        log::set_max_level(LevelFilter::Info);
        let (lines, waiting) = bounded(1);
        let logger = Logger {
            json: false,
            lines,
            dropped: AtomicU64::new(0),
        };
        let event = |text: &str| {
            logger.log(
                &Record::builder()
                    .level(Level::Info)
                    .target("shardwire")
                    .args(format_args!("{text}"))
                    .build(),
            );
        };
        (0..4).for_each(|_| event("waits"));
        let text = |line| {
            if let Line::Text(text) = line {
                text
            } else {
                String::new()
            }
        };
        assert!(text(waiting.recv().unwrap()).contains("waits"));
        event("after");
        let told = text(waiting.recv().unwrap());
        assert!(
            told.contains("log lines left out: 3") && told.lines().count() == 2,
            "{told}"
        );
    }

    #[test]
    fn libraries_are_heard_from_warnings_up() {
        log::set_max_level(LevelFilter::Info);
        let logger = Logger {
            json: false,
            lines: bounded(1).0,
            dropped: AtomicU64::new(0),
        };
        let enabled = |target, level| {
            logger.enabled(&Metadata::builder().target(target).level(level).build())
        };
        assert!(
            enabled("shardwire::server", Level::Info) && enabled("shardwire_proto", Level::Info)
        );
        assert!(enabled("glommio", Level::Warn) && !enabled("glommio", Level::Info));
        assert!(!enabled("shardwire", Level::Debug));
    }
}
