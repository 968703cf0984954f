//! Curves in an SVG picture, both axes logarithmic.
use std::fmt::Write;

/// A line of the plot.
pub(crate) struct Curve {
    pub(crate) name: String,
    /// Ascending in x.
    pub(crate) points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 460.0;
/// Room for the labels: left, top, right, bottom.
const MARGINS: [f64; 4] = [70.0, 40.0, 170.0, 50.0];
const COLOURS: [&str; 16] = [
    "#c0392b", "#2471a3", "#239b56", "#b9770e", "#7d3c98", "#5d6d7e", "#e74c9c", "#17a2b8", "#8a6d3b", "#6b8e23",
    "#34495e", "#f08030", "#00695c", "#a1887f", "#9c27b0", "#827717",
];

/// What an axis shows, and where its lines are.
struct Axis {
    low: f64,
    high: f64,
    lines: Vec<f64>,
}

impl Axis {
    /// From 1, 2 or 5 with zeros below all values to the next one above them; lines at powers of ten, or at these all where
    /// the axis is short.
    fn around(values: impl Iterator<Item = f64> + Clone) -> Self {
        let least = values.clone().fold(f64::INFINITY, f64::min).max(1e-9);
        let most = values.fold(least, f64::max);
        let powers = least.log10().floor() as i32..=most.log10().floor() as i32 + 1;
        let steps: Vec<f64> = powers
            .flat_map(|power| [1.0, 2.0, 5.0].map(|step| step * 10_f64.powi(power)))
            .collect();
        // What is a line but for rounding is that line.
        let low = steps.iter().rposition(|&step| step <= least * 1.001).unwrap_or(0);
        let high = steps.iter().position(|&step| step >= most * 0.999);
        let high = high.unwrap_or(steps.len() - 1).max(low + 1);
        let is_short = high - low < 7;
        let lines = (low..=high).filter(|number| is_short || number.is_multiple_of(3));
        Self {
            low: steps[low].log10(),
            high: steps[high].log10(),
            lines: lines.map(|number| steps[number]).collect(),
        }
    }

    fn at(&self, value: f64) -> f64 {
        (value.log10() - self.low) / (self.high - self.low)
    }
}

/// Draws the curves.
pub(crate) fn svg(title: &str, x_label: &str, y_label: &str, curves: &[Curve]) -> String {
    let all = curves.iter().flat_map(|curve| &curve.points);
    let xs = Axis::around(all.clone().map(|point| point.0));
    let ys = Axis::around(all.map(|point| point.1));
    let [left, top, right, bottom] = MARGINS;
    let x = |value: f64| left + xs.at(value) * (WIDTH - left - right);
    let y = |value: f64| HEIGHT - bottom - ys.at(value) * (HEIGHT - top - bottom);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let text = |x: f64, y: f64, anchor: &str, words: &str| {
        format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>\n")
    };
    out += &text(WIDTH / 2.0, 22.0, "middle", title);
    out += &text((left + WIDTH - right) / 2.0, HEIGHT - 12.0, "middle", x_label);
    out += &text(8.0, top - 10.0, "start", y_label);
    for &value in &xs.lines {
        out += &line((x(value), top), (x(value), HEIGHT - bottom));
        out += &text(x(value), HEIGHT - bottom + 18.0, "middle", &value.to_string());
    }
    for &value in &ys.lines {
        out += &line((left, y(value)), (WIDTH - right, y(value)));
        out += &text(left - 8.0, y(value) + 4.0, "end", &value.to_string());
    }
    let mut curves: Vec<&Curve> = curves.iter().filter(|curve| !curve.points.is_empty()).collect();
    let end = |curve: &Curve| curve.points.last().map_or(0.0, |&(_, value)| y(value));
    curves.sort_by(|one, other| end(one).total_cmp(&end(other)));
    let mut free = top;
    for (curve, colour) in curves.into_iter().zip(COLOURS.iter().cycle()) {
        let mut path = String::new();
        for &(each, value) in &curve.points {
            write!(path, "{:.1},{:.1} ", x(each), y(value)).unwrap_or_default();
        }
        out += &format!("<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\n");
        // Names of curves that end close together stand one below the other.
        free = free.max(end(curve) + 4.0);
        let label = text(WIDTH - right + 8.0, free, "start", &curve.name);
        out += &label.replace("<text", &format!("<text fill=\"{colour}\""));
        free += 14.0;
    }
    out + "</svg>\n"
}

fn line(from: (f64, f64), to: (f64, f64)) -> String {
    let ((x1, y1), (x2, y2)) = (from, to);
    format!("<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#ddd\"/>\n")
}
