//! Line charts as SVG that read on a light and on a dark page.

use anyhow::anyhow;
use plotters::prelude::*;

/// Size of a chart in SVG units.
const SIZE: (u32, u32) = (540, 240);
const INK: RGBColor = RGBColor(128, 132, 140);
const COLOURS: [RGBColor; 4] = [
    RGBColor(47, 111, 237),
    RGBColor(234, 115, 23),
    RGBColor(20, 158, 110),
    RGBColor(168, 85, 200),
];

/// One line of a chart.
pub struct Line {
    /// What it shows.
    pub name: String,
    /// Points, x rising.
    pub points: Vec<(f64, f64)>,
}

/// A chart: axes, their labels, and lines.
pub struct Chart<'a> {
    /// Under the x axis.
    pub x_label: &'a str,
    /// How an x value is written.
    pub x_text: &'a dyn Fn(f64) -> String,
    /// Number of labels along x.
    pub x_labels: usize,
    /// Largest x; `None`: the largest of the points.
    pub x_max: Option<f64>,
    /// How a y value is written.
    pub y_text: &'a dyn Fn(f64) -> String,
    /// The lines.
    pub lines: Vec<Line>,
}

impl Chart<'_> {
    /// Name and CSS colour of each line, when there is more than one to tell apart.
    pub fn legend(&self) -> Vec<(&str, String)> {
        if self.lines.len() < 2 {
            return Vec::new();
        }
        let entry = |(line, RGBColor(r, g, b)): (_, &RGBColor)| {
            let Line { name, .. }: &Line = line;
            (name.as_str(), format!("rgb({r},{g},{b})"))
        };
        self.lines
            .iter()
            .zip(COLOURS.iter().cycle())
            .map(entry)
            .collect()
    }

    /// The chart as an SVG element; empty text when no line has two points.
    pub fn to_svg(&self) -> anyhow::Result<String> {
        if self.lines.iter().all(|line| line.points.len() < 2) {
            return Ok(String::new());
        }
        let mut svg = String::new();
        self.draw(&mut svg).map_err(|error| anyhow!("{error}"))?;
        // Drawn for a page that scales it: the view box stays, the fixed size goes.
        let fixed = format!("width=\"{}\" height=\"{}\" ", SIZE.0, SIZE.1);
        Ok(svg.replacen(&fixed, "", 1))
    }

    fn draw(&self, svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let x_min = points().map(|p| p.0).fold(f64::INFINITY, f64::min).min(0.0);
        let x_max = self
            .x_max
            .unwrap_or_else(|| points().map(|p| p.0).fold(x_min, f64::max))
            .max(x_min + 1e-9);
        let y_max = points().map(|p| p.1).fold(0.0, f64::max).max(1e-9) * 1.08;
        let font = ("sans-serif", 13).into_font().color(&INK);
        let mut chart = ChartBuilder::on(&root)
            .margin(6)
            .margin_right(18)
            .x_label_area_size(36)
            .y_label_area_size(70)
            .build_cartesian_2d(x_min..x_max, 0.0..y_max)?;
        chart
            .configure_mesh()
            .axis_style(INK)
            .bold_line_style(INK.mix(0.25))
            .light_line_style(TRANSPARENT)
            .label_style(font.clone())
            .axis_desc_style(font.clone())
            .x_desc(self.x_label)
            .x_labels(self.x_labels)
            .y_labels(6)
            .x_label_formatter(&|x| (self.x_text)(*x))
            .y_label_formatter(&|y| (self.y_text)(*y))
            .draw()?;
        for (line, colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            chart.draw_series(LineSeries::new(
                line.points.iter().copied(),
                colour.stroke_width(2),
            ))?;
        }
        root.present()?;
        Ok(())
    }
}

/// A percentile (below 100) on an axis on which each nine takes one unit.
pub fn nines(percentile: f64) -> f64 {
    -(1.0 - percentile / 100.0).max(1e-9).log10()
}

/// The percentile at a place of that axis, as text.
pub fn nines_text(place: f64) -> String {
    let percentile = 100.0 - 100.0 * 10f64.powf(-place);
    let digits = (place.round() as usize).saturating_sub(2).min(6);
    format!("{percentile:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_nine_is_one_unit() {
        for (percentile, place) in [(0.0, 0.0), (90.0, 1.0), (99.0, 2.0), (99.9, 3.0)] {
            assert!((nines(percentile) - place).abs() < 1e-9);
        }
        assert_eq!(
            [0.0, 1.0, 2.0, 3.0, 4.0].map(nines_text),
            ["0", "90", "99", "99.9", "99.99"]
        );
    }

    #[test]
    fn a_chart_has_its_lines_and_labels() {
        let line = |name: &str| Line {
            name: name.into(),
            points: vec![(0.0, 1.0), (1.0, 3.0)],
        };
        let mut chart = Chart {
            x_label: "seconds",
            x_text: &|x| format!("{x:.1}"),
            x_labels: 5,
            x_max: None,
            y_text: &|y| format!("{y}"),
            lines: vec![line("first"), line("second")],
        };
        let svg = chart.to_svg().unwrap();
        assert!(
            svg.starts_with("<svg viewBox") && svg.contains("seconds"),
            "{svg}"
        );
        let legend = chart.legend();
        assert_eq!(
            legend.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
            ["first", "second"]
        );
        assert_ne!(legend[0].1, legend[1].1);
        for (_, colour) in &legend {
            let hex: String = colour[4..colour.len() - 1]
                .split(',')
                .map(|n| format!("{:02X}", n.parse::<u8>().unwrap()))
                .collect();
            assert!(
                svg.contains(&format!("stroke=\"#{hex}\"")),
                "{colour} {svg}"
            );
        }
        chart.lines.clear();
        assert_eq!(chart.to_svg().unwrap(), "");
    }
}
