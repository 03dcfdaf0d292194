//! The report as text for a terminal.

use std::fmt::Write;

use super::{Latency, Report};

/// The whole report.
pub fn render(report: &Report) -> String {
    let mut out = String::new();
    let about = &report.about;
    line(
        &mut out,
        "",
        &format!(
            "{} ({} over {})",
            about.title, about.scenario, about.protocol
        ),
    );
    line(&mut out, "load", &about.load);
    let connections = format!(
        "{} subscribers, {} publishers, {} channels",
        about.subscribers, about.publishers, about.channels
    );
    line(&mut out, "connections", &connections);
    line(&mut out, "measured", &format!("{:.1} s", report.seconds));
    if report.deliveries > 0 {
        line(
            &mut out,
            "deliveries",
            &format!(
                "{}/s ({} in all)",
                count(report.deliveries_per_s),
                report.deliveries
            ),
        );
    }
    if report.published > 0 {
        line(
            &mut out,
            "publishes",
            &format!("{}/s", count(report.publishes_per_s)),
        );
    }
    if report.connects > 0 {
        line(
            &mut out,
            "connects",
            &format!(
                "{}/s ({} in all)",
                count(report.connects_per_s),
                report.connects
            ),
        );
    }
    latencies(&mut out, report);
    server(&mut out, report);
    if !report.generator_cpu_percent.is_empty() {
        let each: Vec<_> = report
            .generator_cpu_percent
            .iter()
            .map(|p| format!("{p:.0} %"))
            .collect();
        line(&mut out, "generator CPU", &each.join(", "));
    }
    if let Some(joins) = &report.joins {
        let mut text = format!(
            "{}/s ({} in {:.2} s)",
            count(joins.joins_per_s),
            joins.members,
            joins.seconds
        );
        if let Some(us) = joins.server_cpu_us_per_join {
            let _ = write!(text, ", {us:.2} us of server CPU each");
        }
        if let Some(bytes) = joins.server_rss_bytes_per_member {
            let _ = write!(text, ", {bytes:.0} bytes of server memory per member");
        }
        line(&mut out, "joins", &text);
    }
    for (index, round) in report.rounds.iter().enumerate() {
        let text = format!(
            "all subscribed after {:.0} ms, all served after {:.0} ms",
            round.ready_ms, round.served_ms
        );
        line(&mut out, &format!("round {}", index + 1), &text);
    }
    faults(&mut out, report);
    out
}

fn latencies(out: &mut String, report: &Report) {
    let rows = [
        ("delivery", &report.latency),
        ("last subscriber", &report.completion),
        ("ack", &report.ack),
        ("connect", &report.connect),
    ];
    if rows.iter().all(|(_, latency)| latency.is_none()) {
        return;
    }
    let heads = ["p50", "p90", "p99", "p99.9", "max"];
    let _ = writeln!(
        out,
        "{:<16}{}",
        "latency",
        heads.map(|head| format!("{head:>11}")).concat()
    );
    for (label, latency) in rows {
        if let Some(latency) = latency {
            let cells = percentiles(latency)
                .map(|us| format!("{:>11}", duration(us)))
                .concat();
            let _ = writeln!(out, "  {label:<14}{cells}");
        }
    }
}

/// p50, p90, p99, p99.9, maximum, in microseconds.
pub(super) fn percentiles(latency: &Latency) -> [f64; 5] {
    [
        latency.p50_us,
        latency.p90_us,
        latency.p99_us,
        latency.p999_us,
        latency.max_us,
    ]
}

fn server(out: &mut String, report: &Report) {
    let Some(server) = &report.server else { return };
    let mut text = format!("{:.1} %", server.cpu_percent);
    let per = [
        (server.cpu_us_per_delivery, "delivery"),
        (server.cpu_us_per_publish, "publish"),
        (server.cpu_us_per_connect, "connect"),
    ];
    for (us, what) in per {
        if let Some(us) = us {
            let _ = write!(text, ", {us:.2} us per {what}");
        }
    }
    line(out, "server CPU", &text);
    let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
    let mut text = format!(
        "{:.1} MiB before, {:.1} MiB connected, {:.1} MiB after",
        mib(server.rss_before_bytes),
        mib(server.rss_connected_bytes),
        mib(server.rss_after_bytes)
    );
    if let Some(bytes) = server.rss_per_connection_bytes {
        let _ = write!(text, ", {bytes:.0} bytes per connection");
    }
    line(out, "server memory", &text);
}

fn faults(out: &mut String, report: &Report) {
    let integrity = &report.integrity;
    let mut text = format!(
        "{} of {} received, {} lost, {} duplicated, {} out of order",
        integrity.received,
        integrity.due,
        integrity.lost,
        integrity.duplicated,
        integrity.out_of_order
    );
    if integrity.alien > 0 {
        let _ = write!(text, ", {} foreign", integrity.alien);
    }
    if integrity.due > 0 {
        line(out, "integrity", &text);
    }
    if let Some(returns) = &report.returns {
        let text = format!(
            "{} cut, {} resumes ({} not complete), {} messages replayed, {} of them again, as allowed",
            returns.cuts, returns.resumes, returns.unrecovered, returns.replayed, returns.repeated
        );
        line(out, "returns", &text);
    }
    let faults = &report.faults;
    if faults.errors + faults.connections_ended + faults.connect_failures > 0 {
        let text = format!(
            "{} errors, {} connections ended, {} failed to connect",
            faults.errors, faults.connections_ended, faults.connect_failures
        );
        line(out, "faults", &text);
    }
    for sample in &faults.samples {
        line(out, "", &format!("  {}", sample.trim_end()));
    }
    for warning in &report.warnings {
        line(out, "warning", warning);
    }
}

fn line(out: &mut String, label: &str, text: &str) {
    let _ = if label.is_empty() {
        writeln!(out, "{text}")
    } else {
        writeln!(out, "{label:<16}{text}")
    };
}

/// A count with thousands separated.
pub fn count(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Microseconds in the unit that reads best.
pub fn duration(us: f64) -> String {
    if us < 1e3 {
        format!("{us:.1} us")
    } else if us < 1e6 {
        format!("{:.2} ms", us / 1e3)
    } else {
        format!("{:.2} s", us / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(1_234_567.4), "1,234,567");
        assert_eq!(count(999.0), "999");
        assert_eq!(duration(12.34), "12.3 us");
        assert_eq!(duration(12_340.0), "12.34 ms");
        assert_eq!(duration(2_500_000.0), "2.50 s");
    }

    #[test]
    fn the_table_says_what_was_lost() {
        let text = render(&super::super::tests::sample());
        assert!(text.contains("1000 of 1001 received, 1 lost"), "{text}");
        assert!(text.contains("deliveries      1,000/s"), "{text}");
    }
}
