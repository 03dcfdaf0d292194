//! Bars over time and shares of a limit, as SVG that needs no script.
//!
//! The picture is stretched to whatever width there is, so words stay outside of it, in HTML, where they keep their
//! size. What it shows is told in a sentence and in a table too. `chart.js` draws what is live in the same form.

use maud::{Markup, html};

use super::format;

/// A bar of a [`bars`].
pub(crate) struct Bar {
    /// When, in short: below the axis.
    pub(crate) label: String,
    /// When, in full: in the table.
    pub(crate) name: String,
    pub(crate) value: u64,
}

/// A chart of bars, all of one kind.
pub(crate) fn bars(id: &str, title: &str, bars: &[Bar]) -> Markup {
    let highest = bars.iter().map(|bar| bar.value).max().unwrap_or(0);
    let top = round_up(highest);
    let total: u64 = bars.iter().map(|bar| bar.value).sum();
    let summary = match (bars.first(), bars.last()) {
        (Some(first), Some(last)) => format!(
            "{title}, from {} to {}: at most {}, {} at the end.",
            first.name,
            last.name,
            format::count(highest),
            format::count(last.value)
        ),
        _ => format!("{title}: no data."),
    };
    let width = bars.len().max(1);
    html! {
        figure class="chart" id=(id) {
            figcaption {
                span class="chart-title" { (title) }
                @if total == 0 { span class="muted" { "nothing in this time" } }
            }
            div class="plot" {
                div class="plot-y" aria-hidden="true" {
                    span { (format::short(top)) }
                    span { (format::short(top / 2)) }
                    span { "0" }
                }
                svg class="plot-area" role="img" aria-label=(summary) preserveAspectRatio="none"
                    viewBox={ "0 0 " (width * 10) " 100" } {
                    (grid(width * 10))
                    @for (index, bar) in bars.iter().enumerate() {
                        @let height = share(bar.value, top) * 100.0;
                        @if bar.value > 0 {
                            // Not thinner than can be seen.
                            @let height = height.max(1.0);
                            rect class="bar-value" x=(index * 10 + 1) y=(number(100.0 - height))
                                width="8" height=(number(height)) {
                                title { (bar.name) ": " (format::count(bar.value)) }
                            }
                        }
                    }
                }
                div class="plot-x" aria-hidden="true" {
                    @for label in ends_and_middle(bars) { span { (label) } }
                }
            }
            (table(title, bars))
        }
    }
}

fn table(title: &str, bars: &[Bar]) -> Markup {
    html! {
        details class="chart-data" {
            summary { "Data" span class="sr" { " of " (title) } }
            div class="table" role="region" aria-label={ (title) ", data" } tabindex="0" {
                table {
                    caption class="sr" { (title) }
                    thead { tr { th scope="col" { "Time" } th scope="col" class="num" { (title) } } }
                    tbody {
                        @for bar in bars.iter().rev() {
                            tr { th scope="row" { (bar.name) } td class="num" { (format::count(bar.value)) } }
                        }
                    }
                }
            }
        }
    }
}

fn ends_and_middle(bars: &[Bar]) -> Vec<&str> {
    let at = |index: usize| bars.get(index).map(|bar| bar.label.as_str());
    let picked = [at(0), at(bars.len() / 2), at(bars.len().saturating_sub(1))];
    picked.into_iter().flatten().collect()
}

fn grid(width: usize) -> Markup {
    html! {
        @for y in [0, 50, 100] {
            line class="grid" x1="0" x2=(width) y1=(y) y2=(y) {}
        }
    }
}

/// A bar of how much of a limit is used.
pub(crate) fn meter(label: &str, used: u64, limit: Option<u64>) -> Markup {
    let share = limit.map_or(0.0, |limit| share(used, limit)) * 100.0;
    let width = share.min(100.0);
    let class = match share {
        ..80.0 => "meter-value",
        80.0..100.0 => "meter-value warn",
        _ => "meter-value bad",
    };
    html! {
        div class="meter" {
            div class="meter-text" {
                span { (label) }
                span class="num" {
                    (format::count(used))
                    @match limit {
                        Some(limit) => {
                            span class="muted" { " of " (format::count(limit)) }
                            @if limit > 0 { " · " (format!("{share:.0}")) " %" }
                        }
                        None => { span class="muted" { " · no limit" } }
                    }
                }
            }
            svg class="meter-bar" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true" {
                rect class="meter-back" width="100" height="6" {}
                @if limit.is_some() { rect class=(class) width=(number(width)) height="6" {} }
            }
        }
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        return 0.0;
    }
    part as f64 / whole as f64
}

fn number(value: f64) -> String {
    format!("{value:.2}")
}

/// The next of 2, 4, 6, 8, 10, 20, 40 …: even, so that its half is a whole number too.
fn round_up(value: u64) -> u64 {
    let mut step: u64 = 1;
    loop {
        for factor in [2, 4, 6, 8, 10] {
            let top = step.saturating_mul(factor);
            if top >= value {
                return top;
            }
        }
        step = step.saturating_mul(10);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_numbers() {
        let pairs = [
            (0, 2),
            (3, 4),
            (5, 6),
            (11, 20),
            (100, 100),
            (41_234, 60_000),
        ];
        for (value, top) in pairs {
            assert_eq!(round_up(value), top);
        }
        assert!(round_up(u64::MAX) >= u64::MAX / 10);
    }

    #[test]
    fn a_chart_tells_its_numbers_without_its_picture() {
        let bar = |label: &str, value| Bar {
            label: label.to_owned(),
            name: format!("at {label}"),
            value,
        };
        let page = bars("x", "Messages", &[bar("1", 0), bar("2", 1500)]).into_string();
        assert!(page.contains("Messages, from at 1 to at 2: at most 1,500, 1,500 at the end."));
        assert!(page.contains("<th scope=\"row\">at 2</th><td class=\"num\">1,500</td>"));
        assert_eq!(
            page.matches("<rect").count(),
            1,
            "nothing drawn for nothing"
        );
        assert!(bars("x", "Messages", &[]).into_string().contains("no data"));
    }

    #[test]
    fn a_meter_never_leaves_its_bar() {
        let page = meter("Messages", 300, Some(100)).into_string();
        assert!(
            page.contains("width=\"100.00\"") && page.contains("bad") && page.contains("300 %")
        );
        assert!(meter("M", 5, Some(0)).into_string().contains("of 0"));
        assert!(meter("M", 5, None).into_string().contains("no limit"));
    }
}
