//! Plots of `docs/benchmarks.md`, as SVG on a white ground: readable on a dark page, too.
//! The same figures give the same octets.

use std::ops::Range;

use anyhow::{Context as _, Result, anyhow, ensure};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

/// Width and height of the drawing.
const SIZE: (u32, u32) = (760, 420);
/// Where the legend begins, beside the plot.
const LEGEND: i32 = 570;
/// Height of the legend's first line, and from one to the next.
const LEGEND_LINES: (i32, i32) = (48, 24);
/// Told apart by those who see red and green alike; each series has its own mark, too.
const COLORS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(60, 60, 60),
];
/// A family that every viewer has.
const FONT: &str = "sans-serif";

/// What an axis says and how it goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Axis {
    /// Its name, with the unit.
    pub name: &'static str,
    /// Whether equal lengths are equal ratios. All values must be above 0 then.
    pub log: bool,
}

/// Points under one name, in the order of x.
#[derive(Clone, PartialEq, Debug)]
pub struct Series {
    /// Its name in the legend.
    pub name: String,
    /// x and y.
    pub points: Vec<(f64, f64)>,
}

/// A plot of some series over one another.
#[derive(Clone, PartialEq, Debug)]
pub struct Plot {
    /// Its title.
    pub title: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis. One that is not logarithmic begins at 0.
    pub y: Axis,
    /// The series; one without points is left out, and the others keep their colours.
    pub series: Vec<Series>,
}

impl Plot {
    /// The plot as the text of a file.
    pub fn svg(&self) -> Result<String> {
        let mut text = String::new();
        {
            let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
            self.draw(&area)
                .and_then(|()| area.present().map_err(|e| anyhow!("{e}")))
                .with_context(|| format!("draw the plot {:?}", self.title))?;
        }
        Ok(text)
    }

    fn draw(&self, area: &DrawingArea<SVGBackend<'_>, Shift>) -> Result<()> {
        area.fill(&WHITE).map_err(|e| anyhow!("{e}"))?;
        let (x, mut y) = (self.range(self.x, |p| p.0)?, self.range(self.y, |p| p.1)?);
        if self.y.log {
            // Whole decades, so that there is more than one line to read from.
            let decade = |value: f64| 10_f64.powf(value);
            y = decade(y.start.log10().floor())..decade(y.end.log10().ceil());
        }
        match (self.x.log, self.y.log) {
            (false, false) => self.chart(area, x, y),
            (false, true) => self.chart(area, x, y.log_scale()),
            (true, false) => self.chart(area, x.log_scale(), y),
            (true, true) => self.chart(area, x.log_scale(), y.log_scale()),
        }
    }

    /// What an axis shows: all values, and some room.
    fn range(&self, axis: Axis, of: impl Fn(&(f64, f64)) -> f64) -> Result<Range<f64>> {
        let values: Vec<f64> = self.series.iter().flat_map(|s| &s.points).map(of).collect();
        let least = values.iter().copied().min_by(f64::total_cmp);
        let most = values.iter().copied().max_by(f64::total_cmp);
        let (Some(least), Some(most)) = (least, most) else {
            return Err(anyhow!("no point is there to be drawn"));
        };
        ensure!(
            least.is_finite() && most.is_finite(),
            "{}: not a number",
            axis.name
        );
        if axis.log {
            ensure!(least > 0.0, "{}: {least} has no logarithm", axis.name);
            return Ok(least / 1.3..most * 1.3);
        }
        ensure!(least >= 0.0, "{}: {least} is below 0", axis.name);
        Ok(0.0..if most > 0.0 { most * 1.08 } else { 1.0 })
    }

    fn chart<X, Y>(&self, area: &DrawingArea<SVGBackend<'_>, Shift>, x: X, y: Y) -> Result<()>
    where
        X: AsRangedCoord<Value = f64>,
        Y: AsRangedCoord<Value = f64>,
        X::CoordDescType: ValueFormatter<f64>,
        Y::CoordDescType: ValueFormatter<f64>,
    {
        let failed = |e: DrawingAreaErrorKind<_>| anyhow!("{e}");
        let (plot, _) = area.split_horizontally(LEGEND);
        let mut chart = ChartBuilder::on(&plot)
            .caption(&self.title, (FONT, 18))
            .margin(8)
            .x_label_area_size(46)
            .y_label_area_size(74)
            .build_cartesian_2d(x, y)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .x_desc(self.x.name)
            .y_desc(self.y.name)
            .x_labels(7)
            .y_labels(8)
            .x_label_formatter(&|value| label(*value))
            .y_label_formatter(&|value| label(*value))
            .label_style((FONT, 13))
            .axis_desc_style((FONT, 14))
            .light_line_style(RGBColor(244, 244, 244))
            .bold_line_style(RGBColor(216, 216, 216))
            .draw()
            .map_err(failed)?;
        let mut row = LEGEND_LINES.0;
        let drawn = self.series.iter().enumerate();
        for (n, series) in drawn.filter(|(_, series)| !series.points.is_empty()) {
            let color = COLORS[n % COLORS.len()];
            let line = LineSeries::new(series.points.iter().copied(), color.stroke_width(2));
            chart.draw_series(line).map_err(failed)?;
            for at in &series.points {
                mark(area, n, chart.plotting_area().map_coordinate(at), color)?;
            }
            // The legend stands beside the plot, where no line runs.
            let stroke = [(LEGEND, row), (LEGEND + 28, row)];
            let stroke = PathElement::new(stroke, color.stroke_width(2));
            area.draw(&stroke).map_err(failed)?;
            mark(area, n, (LEGEND + 14, row), color)?;
            let text = Text::new(series.name.clone(), (LEGEND + 36, row - 6), (FONT, 13));
            area.draw(&text).map_err(failed)?;
            row += LEGEND_LINES.1;
        }
        Ok(())
    }
}

/// The mark of series `n` at a point of the drawing.
fn mark(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    n: usize,
    at: (i32, i32),
    color: RGBColor,
) -> Result<()> {
    let drawn = match n % 3 {
        0 => area.draw(&Circle::new(at, 4, color.filled())),
        1 => area.draw(&TriangleMarker::new(at, 6, color.filled())),
        _ => area.draw(&Cross::new(at, 4, color.stroke_width(2))),
    };
    drawn.map_err(|e| anyhow!("{e}"))
}

/// A number for people: `10,000`, `0.25`.
fn label(value: f64) -> String {
    if value.abs() < 10.0 {
        let text = format!("{value:.3}");
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    grouped(&format!("{value:.0}"))
}

/// Digits with a comma before each three.
pub fn grouped(digits: &str) -> String {
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot(log: bool, points: &[(f64, f64)]) -> Plot {
        Plot {
            title: "a < b & c".into(),
            x: Axis {
                name: "services",
                log: true,
            },
            y: Axis { name: "ratio", log },
            series: vec![
                Series {
                    name: "drawn".into(),
                    points: points.to_vec(),
                },
                Series {
                    name: "not there".into(),
                    points: Vec::new(),
                },
            ],
        }
    }

    #[test]
    fn a_plot_is_one_svg_with_its_words_and_always_the_same() {
        let points = [(1.0, 2.0), (1000.0, 30.0), (50_000.0, 400.0)];
        for log in [false, true] {
            let svg = plot(log, &points).svg().unwrap();
            assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
            for word in ["a &lt; b &amp; c", "services", "ratio", "drawn", "10,000"] {
                assert!(svg.contains(word), "{word} in {svg}");
            }
            assert!(!svg.contains("not there"));
            // A mark for each point and one in the legend.
            assert_eq!(svg.matches("<circle").count(), points.len() + 1);
            assert_eq!(svg, plot(log, &points).svg().unwrap());
        }
    }

    #[test]
    fn what_cannot_be_drawn_is_an_error() {
        assert!(plot(false, &[]).svg().is_err());
        assert!(plot(true, &[(1.0, 0.0)]).svg().is_err());
        assert!(
            plot(false, &[(0.0, 1.0)]).svg().is_err(),
            "x is logarithmic"
        );
        assert!(plot(false, &[(1.0, -1.0)]).svg().is_err());
        assert!(plot(false, &[(1.0, f64::NAN)]).svg().is_err());
        assert!(plot(false, &[(1.0, 0.0)]).svg().is_ok());
    }

    #[test]
    fn numbers_are_for_people() {
        for (value, text) in [
            (0.0, "0"),
            (0.25, "0.25"),
            (1.5, "1.5"),
            (10.0, "10"),
            (999.6, "1,000"),
            (50_000.0, "50,000"),
            (1_234_567.0, "1,234,567"),
        ] {
            assert_eq!(label(value), text);
        }
    }
}
