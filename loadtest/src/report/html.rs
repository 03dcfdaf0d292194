//! The report as one HTML page that needs nothing else: style and charts are inside.

use std::fmt::Write;

use super::chart::{Chart, Line, nines, nines_text};
use super::table::{count, duration, percentiles};
use super::{Latency, Point, Report};

const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1d2330;--dim:#667085;--line:#e3e6ec;--card:#fff;--page:#f5f6f9;--good:#0f8a5f;--bad:#c4320a}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9f0;--dim:#98a2b3;--line:#2c3342;--card:#171c27;--page:#0f131b;--good:#3ccb94;--bad:#ff8a5c}}
*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1080px;margin:0 auto;padding:28px 18px 60px}h1{font-size:24px;margin:0}h2{font-size:15px;margin:0 0 8px;font-weight:600}
p{margin:4px 0;color:var(--dim)}.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:20px 0}
.card,section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px}section{margin:12px 0;overflow-x:auto}
.card b{display:block;font-size:22px;font-weight:650;font-variant-numeric:tabular-nums}.card span{color:var(--dim);font-size:13px}
.good{color:var(--good)}.bad{color:var(--bad)}.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:12px}.charts section{margin:0}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}th,td{text-align:right;padding:5px 10px;border-bottom:1px solid var(--line)}
th{font-weight:500;color:var(--dim)}th:first-child,td:first-child{text-align:left}tr:last-child td{border:0}h2 i{font:13px system-ui,sans-serif;color:var(--dim);margin-left:14px}h2 i::before{content:\"\";display:inline-block;width:14px;height:3px;
margin-right:5px;vertical-align:middle;background:var(--c)}svg{width:100%;height:auto;display:block}
code{font:13px ui-monospace,monospace;overflow-wrap:anywhere}@media(max-width:520px){.charts{grid-template-columns:1fr}}";

/// The page.
pub fn render(report: &Report) -> anyhow::Result<String> {
    let about = &report.about;
    let title = escape(&about.title);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><style>{STYLE}</style><main>\n<h1>{title}</h1>\
         <p>{} over {} at {}: {} subscribers, {} publishers, {} channels; {}; measured for {:.1} s</p>\n",
        escape(&about.scenario),
        escape(&about.protocol),
        escape(&about.url),
        count(about.subscribers as f64),
        count(about.publishers as f64),
        count(about.channels as f64),
        escape(&about.load),
        report.seconds,
    );
    for warning in &report.warnings {
        let _ = writeln!(page, "<section class=\"bad\">{}</section>", escape(warning));
    }
    cards(&mut page, report);
    latency_table(&mut page, report);
    charts(&mut page, report)?;
    rounds(&mut page, report);
    server_table(&mut page, report);
    faults(&mut page, report);
    let machine = &about.machine;
    let _ = writeln!(
        page,
        "<section><h2>How this was measured</h2><p>{}, {} cores, {:.0} GiB, Linux {}; {} generator thread(s); \
         shardwire-loadtest {}</p><p><code>{}</code></p></section></main></html>",
        escape(&machine.cpu),
        machine.cores,
        machine.memory_bytes as f64 / 1_073_741_824.0,
        escape(&machine.kernel),
        about.threads,
        escape(&about.version),
        escape(&about.command),
    );
    Ok(page)
}

fn cards(page: &mut String, report: &Report) {
    let mut cards = Vec::new();
    let mut card = |value: String, label: &str, class: &'static str| {
        cards.push((value, label.to_owned(), class))
    };
    if report.deliveries > 0 && report.rounds.is_empty() {
        card(count(report.deliveries_per_s), "deliveries per second", "");
    }
    if report.published > 0 && report.rounds.is_empty() {
        card(count(report.publishes_per_s), "publishes per second", "");
    }
    if let Some(joins) = &report.joins {
        card(count(joins.joins_per_s), "joins per second", "");
    }
    if report.connects > 0 {
        card(count(report.connects_per_s), "connects per second", "");
    }
    if let Some(latency) = report.latency.as_ref().or(report.connect.as_ref()) {
        card(duration(latency.p99_us), "latency, 99th percentile", "");
    }
    if let Some(server) = &report.server {
        let per = [
            (server.cpu_us_per_delivery, "server CPU per delivery"),
            (server.cpu_us_per_connect, "server CPU per connect"),
        ];
        for (us, label) in per {
            if let Some(us) = us {
                card(format!("{us:.2} \u{b5}s"), label, "");
            }
        }
        if let Some(bytes) = server.rss_per_connection_bytes.filter(|&bytes| bytes > 0.0) {
            card(
                format!("{} B", count(bytes)),
                "server memory per connection",
                "",
            );
        }
    }
    if report.integrity.due > 0 {
        let integrity = &report.integrity;
        let faulty =
            integrity.lost + integrity.duplicated + integrity.out_of_order + integrity.alien;
        let class = if faulty == 0 { "good" } else { "bad" };
        card(
            count(faulty as f64),
            "lost, duplicated or out of order",
            class,
        );
    }
    page.push_str("<div class=\"cards\">");
    for (value, label, class) in cards {
        let _ = write!(
            page,
            "<div class=\"card\"><b class=\"{class}\">{value}</b><span>{label}</span></div>"
        );
    }
    page.push_str("</div>\n");
}

/// The latencies that were recorded, with their names.
fn latencies(report: &Report) -> Vec<(&'static str, &Latency)> {
    let all = [
        ("delivery", &report.latency),
        ("last subscriber", &report.completion),
        ("ack", &report.ack),
        ("connect", &report.connect),
    ];
    all.into_iter()
        .filter_map(|(name, latency)| latency.as_ref().map(|latency| (name, latency)))
        .collect()
}

fn latency_table(page: &mut String, report: &Report) {
    let rows = latencies(report);
    if rows.is_empty() {
        return;
    }
    page.push_str(
        "<section><h2>Latency</h2><table><tr><th></th><th>count</th><th>mean</th><th>p50</th><th>p90</th>\
         <th>p99</th><th>p99.9</th><th>max</th></tr>",
    );
    for (name, latency) in rows {
        let cells = percentiles(latency)
            .map(|us| format!("<td>{}</td>", duration(us)))
            .concat();
        let (count, mean) = (count(latency.count as f64), duration(latency.mean_us));
        let _ = write!(
            page,
            "<tr><td>{name}</td><td>{count}</td><td>{mean}</td>{cells}</tr>"
        );
    }
    page.push_str("</table></section>\n");
}

fn charts(page: &mut String, report: &Report) -> anyhow::Result<()> {
    page.push_str("<div class=\"charts\">");
    let over_time = |name: &str, value: &dyn Fn(&Point) -> Option<f64>| Line {
        name: name.to_owned(),
        points: report
            .series
            .iter()
            .filter_map(|point| Some((point.at_s, value(point)?)))
            .collect(),
    };
    let plain = |y: f64| count(y);
    let mut time_chart = |title: &str, y_text: &dyn Fn(f64) -> String, lines: Vec<Line>| {
        let chart = Chart {
            x_label: "seconds",
            x_text: &|x| format!("{x:.1}"),
            x_labels: 8,
            x_max: None,
            y_text,
            lines,
        };
        section(page, title, &chart)
    };
    if report.deliveries > 0 {
        time_chart(
            "Deliveries per second",
            &plain,
            vec![over_time("deliveries", &|p| Some(p.deliveries_per_s))],
        )?;
    } else if report.connects > 0 {
        time_chart(
            "Connects per second",
            &plain,
            vec![over_time("connects", &|p| Some(p.connects_per_s))],
        )?;
    }
    let lines = vec![
        over_time("p50", &|p| p.p50_us),
        over_time("p99", &|p| p.p99_us),
    ];
    time_chart("Delivery latency over time", &duration, lines)?;
    if report.server.is_some() {
        let percent = |y: f64| format!("{y:.0} %");
        time_chart(
            "Server CPU",
            &percent,
            vec![over_time("CPU", &|p| p.server_cpu_percent)],
        )?;
        let mib = |y: f64| format!("{y:.0} MiB");
        let rss = over_time("memory", &|p| {
            p.server_rss_bytes.map(|bytes| bytes as f64 / 1_048_576.0)
        });
        time_chart("Server memory", &mib, vec![rss])?;
    }
    let to_line = |(name, latency): (&str, &Latency)| Line {
        name: name.to_owned(),
        points: latency
            .curve
            .iter()
            .map(|&(percentile, us)| (nines(percentile), us))
            .collect(),
    };
    let lines: Vec<_> = latencies(report).into_iter().map(to_line).collect();
    // The axis ends on a whole nine, the last that the samples support.
    let x_max = lines
        .iter()
        .flat_map(|line| &line.points)
        .map(|point| point.0)
        .fold(0.0, f64::max);
    let x_max = x_max.floor().clamp(2.0, 5.0);
    let clip = |line: Line| Line {
        points: line.points.into_iter().filter(|p| p.0 <= x_max).collect(),
        ..line
    };
    let chart = Chart {
        x_label: "percentile",
        x_text: &nines_text,
        x_labels: x_max as usize + 1,
        x_max: Some(x_max),
        y_text: &duration,
        lines: lines.into_iter().map(clip).collect(),
    };
    section(page, "Latency by percentile", &chart)?;
    page.push_str("</div>\n");
    Ok(())
}

fn section(page: &mut String, title: &str, chart: &Chart<'_>) -> anyhow::Result<()> {
    let svg = chart.to_svg()?;
    if !svg.is_empty() {
        let _ = write!(page, "<section><h2>{title}");
        for (name, colour) in chart.legend() {
            let _ = write!(page, "<i style=\"--c:{colour}\">{}</i>", escape(name));
        }
        let _ = write!(page, "</h2>{svg}</section>");
    }
    Ok(())
}

fn rounds(page: &mut String, report: &Report) {
    if report.rounds.is_empty() {
        return;
    }
    page.push_str(
        "<section><h2>Coming back</h2><table><tr><th>round</th><th>all subscribed after</th><th>all served after</th>\
         <th>server CPU</th></tr>",
    );
    for (index, round) in report.rounds.iter().enumerate() {
        let _ = write!(
            page,
            "<tr><td>{}</td><td>{:.0} ms</td><td>{:.0} ms</td><td>{:.2} s</td></tr>",
            index + 1,
            round.ready_ms,
            round.served_ms,
            round.server_cpu_s
        );
    }
    page.push_str("</table></section>\n");
}

fn server_table(page: &mut String, report: &Report) {
    let Some(server) = &report.server else { return };
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / 1_048_576.0);
    let _ = write!(
        page,
        "<section><h2>Server</h2><table><tr><th>CPU</th><th>memory before</th><th>connected</th><th>after</th></tr>\
         <tr><td>{:.1} % of a core</td><td>{}</td><td>{}</td><td>{}</td></tr></table>",
        server.cpu_percent,
        mib(server.rss_before_bytes),
        mib(server.rss_connected_bytes),
        mib(server.rss_after_bytes)
    );
    page.push_str("<table><tr><th>thread</th><th>CPU</th></tr>");
    for thread in server
        .threads
        .iter()
        .filter(|thread| thread.cpu_ns > 0)
        .take(12)
    {
        let seconds = thread.cpu_ns as f64 / 1e9;
        let _ = write!(
            page,
            "<tr><td>{} ({})</td><td>{seconds:.3} s</td></tr>",
            escape(&thread.name),
            thread.tid
        );
    }
    page.push_str("</table></section>\n");
}

fn faults(page: &mut String, report: &Report) {
    let (integrity, faults) = (&report.integrity, &report.faults);
    let _ = write!(
        page,
        "<section><h2>Integrity</h2><table><tr><th>due</th><th>received</th><th>lost</th><th>duplicated</th>\
         <th>out of order</th><th>foreign</th><th>errors</th><th>connections ended</th><th>failed to connect</th></tr><tr>"
    );
    let cells = [
        integrity.due,
        integrity.received,
        integrity.lost,
        integrity.duplicated,
        integrity.out_of_order,
        integrity.alien,
        faults.errors,
        faults.connections_ended,
        faults.connect_failures,
    ];
    for cell in cells {
        let _ = write!(page, "<td>{}</td>", count(cell as f64));
    }
    page.push_str("</tr></table>");
    for sample in &faults.samples {
        let _ = write!(page, "<p><code>{}</code></p>", escape(sample));
    }
    page.push_str("</section>\n");
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            _ => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_whole_and_needs_nothing_else() {
        let page = render(&super::super::tests::sample()).unwrap();
        assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
        assert!(page.contains("A &amp; B &lt;test&gt;") && !page.contains("<test>"));
        assert!(page.matches("<svg").count() >= 3, "charts are drawn");
        let fetched = ["src=", "href=", "@import", "url("];
        assert!(fetched.iter().all(|needle| !page.contains(needle)));
        assert!(
            page.contains("class=\"bad\">1</b>"),
            "the lost message is shown"
        );
    }
}
