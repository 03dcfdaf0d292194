//! Numbers and times as people read them.

const MS_OF_DAY: u64 = 86_400_000;

/// `12,345`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// In at most four characters and a letter: `950`, `12.4k`, `3.1M`.
pub(crate) fn short(number: u64) -> String {
    scaled(number as f64, 1000.0, &["", "k", "M", "G", "T", "P"], "")
}

/// `812 B`, `1.4 MiB`.
pub(crate) fn bytes(number: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    scaled(number as f64, 1024.0, &units, " ")
}

fn scaled(mut number: f64, step: f64, units: &[&str], space: &str) -> String {
    let mut units = units.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    // What would be rounded up to a whole step belongs to the next unit.
    while number >= step - 0.5 {
        let Some(next) = units.next() else { break };
        number /= step;
        unit = next;
    }
    let is_whole = (number - number.round()).abs() < 0.05 || number >= 100.0;
    let decimals = usize::from(!is_whole);
    format!("{number:.decimals$}{space}{unit}")
}

/// A length of time in its one or two largest units: `3 d 4 h`, `12 s`.
pub(crate) fn duration_s(seconds: u64) -> String {
    let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
    let (minutes, rest) = (seconds / 60 % 60, seconds % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{rest} s"),
        (0, 0, _) if rest == 0 || minutes >= 10 => format!("{minutes} min"),
        (0, 0, _) => format!("{minutes} min {rest} s"),
        (0, _, 0) => format!("{hours} h"),
        (0, _, _) => format!("{hours} h {minutes} min"),
        (_, 0, _) => format!("{days} d"),
        (..) => format!("{days} d {hours} h"),
    }
}

/// How far a time is from another: `5 min ago`, `in 2 d`.
pub(crate) fn relative(time_ms: u64, now_ms: u64) -> String {
    let seconds = time_ms.abs_diff(now_ms) / 1000;
    let amount = match seconds {
        0..5 => return "just now".to_owned(),
        5..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    };
    if time_ms > now_ms {
        format!("in {amount}")
    } else {
        format!("{amount} ago")
    }
}

/// `2026-11-24T10:15:00Z`.
pub(crate) fn rfc3339(time_ms: u64) -> String {
    let (date, time) = (date(time_ms), time_of_day(time_ms));
    format!("{date}T{time}Z")
}

/// `2026-11-24 10:15 UTC`.
pub(crate) fn date_time(time_ms: u64) -> String {
    let (date, time) = (date(time_ms), time_of_day(time_ms));
    format!("{date} {} UTC", time.get(..5).unwrap_or_default())
}

/// `2026-11-24`.
pub(crate) fn date(time_ms: u64) -> String {
    let (year, month, day) = crate::clock::civil(time_ms / MS_OF_DAY);
    format!("{year:04}-{month:02}-{day:02}")
}

/// `10:15:00`.
pub(crate) fn time_of_day(time_ms: u64) -> String {
    let seconds = time_ms % MS_OF_DAY / 1000;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}", seconds % 60)
}

/// As the beginning of a sentence with its end.
pub(crate) fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters
        .next()
        .map(|first| first.to_uppercase().to_string());
    let end = if text.ends_with(['.', '!', '?']) {
        ""
    } else {
        "."
    };
    format!("{}{}{end}", first.unwrap_or_default(), characters.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(0), "0");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(short(999), "999");
        assert_eq!(short(1000), "1k");
        assert_eq!(short(12_449), "12.4k");
        assert_eq!(short(999_999), "1M");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(duration_s(93_600), "1 d 2 h");
        assert_eq!(duration_s(600), "10 min");
        assert_eq!(duration_s(61), "1 min 1 s");
    }

    #[test]
    fn times_read_well() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(date_time(1_795_514_399_000), "2026-11-24 09:59 UTC");
        assert_eq!(relative(1000, 2000), "just now");
        assert_eq!(relative(0, 7_200_000), "2 h ago");
        assert_eq!(relative(172_800_000, 0), "in 2 d");
    }
}
