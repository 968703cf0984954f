//! Groups of bars in an SVG picture.

/// The bars of one colour, one in each group.
pub(crate) struct Series {
    pub(crate) name: String,
    /// Least, middle and most; None: no bar in this group.
    pub(crate) values: Vec<Option<[f64; 3]>>,
}

const WIDTH: f64 = 980.0;
const HEIGHT: f64 = 420.0;
/// Room for the labels: left, top, right, bottom.
const MARGINS: [f64; 4] = [80.0, 44.0, 190.0, 40.0];
/// Of a group's width, what is left free.
const GAP: f64 = 0.15;
const LINES: u32 = 5;
/// A bar that is so many times as long as most is cut and says its figure, so that the others can be told apart.
const CUT: f64 = 5.0;

/// Draws the bars from zero on, with a line from the least to the most.
pub(crate) fn svg(title: &str, y_label: &str, groups: &[String], series: &[Series]) -> String {
    let [left, top, right, bottom] = MARGINS;
    let most = scale(series);
    let y = |value: f64| HEIGHT - bottom - (value / most).min(1.0) * (HEIGHT - top - bottom);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    out += &text(WIDTH / 2.0, 20.0, "middle", title);
    out += &text(8.0, top - 10.0, "start", y_label);
    for step in 0..=LINES {
        let value = most / f64::from(LINES) * f64::from(step);
        out += &rectangle(left, y(value), WIDTH - left - right, 0.5, "#ddd");
        out += &text(left - 8.0, y(value) + 4.0, "end", &value_words(value));
    }
    let group = (WIDTH - left - right) / groups.len().max(1) as f64;
    let bar = group * (1.0 - GAP) / series.len().max(1) as f64;
    for (number, name) in groups.iter().enumerate() {
        out += &text(
            left + group * (number as f64 + 0.5),
            HEIGHT - bottom + 18.0,
            "middle",
            name,
        );
    }
    for (index, each) in series.iter().enumerate() {
        let colour = colour(index, series.len());
        for (number, value) in each.values.iter().enumerate() {
            let x = left + group * (number as f64 + GAP / 2.0) + bar * index as f64;
            if let Some([least, middle, upper]) = *value {
                out += &rectangle(x, y(middle), bar * 0.9, y(0.0) - y(middle), &colour);
                out += &rectangle(x + bar * 0.45 - 0.5, y(upper), 1.0, y(least) - y(upper), "#222");
                if middle > most {
                    out += &text(x + bar * 0.45, top - 4.0, "middle", &value_words(middle.round()));
                }
            }
        }
        let row = top + 18.0 * index as f64;
        out += &rectangle(WIDTH - right + 12.0, row, 12.0, 12.0, &colour);
        out += &text(WIDTH - right + 30.0, row + 10.0, "start", &each.name);
    }
    out + "</svg>\n"
}

/// The figure at the upper end.
fn scale(series: &[Series]) -> f64 {
    let values = series.iter().flat_map(|series| series.values.iter().flatten());
    let most = values.clone().map(|value| value[2]).fold(0.0, f64::max);
    let mut middles: Vec<f64> = values.map(|value| value[1]).collect();
    middles.sort_by(f64::total_cmp);
    let usual = middles.get(middles.len() / 2).copied().unwrap_or(most);
    round_up(if most > usual * CUT { usual * 2.0 } else { most })
}

/// As far apart as so many colours can be.
fn colour(index: usize, of: usize) -> String {
    let (hue, lightness) = (360 * index / of.max(1), if index.is_multiple_of(2) { 42 } else { 58 });
    format!("hsl({hue}, 60%, {lightness}%)")
}

/// The next 1, 2 or 5 with zeros.
fn round_up(value: f64) -> f64 {
    let power = 10_f64.powf(value.max(1e-9).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    steps
        .into_iter()
        .map(|step| step * power)
        .find(|&step| step >= value)
        .unwrap_or(value)
}

fn value_words(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{}M", value / 1e6),
        value if value >= 1e4 => format!("{}k", value / 1e3),
        value => format!("{}", (value * 1e4).round() / 1e4),
    }
}

fn text(x: f64, y: f64, anchor: &str, words: &str) -> String {
    format!("<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>\n")
}

fn rectangle(x: f64, y: f64, width: f64, height: f64, colour: &str) -> String {
    format!("<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{colour}\"/>\n")
}
