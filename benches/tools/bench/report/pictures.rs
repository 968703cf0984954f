//! The plots.
use super::bars::{self, Series};
use super::figures::Figures;
use super::plot::{self, Curve};
use crate::questions::Question;

/// The pictures that there are figures for, with their file names.
pub(super) fn all(figures: &Figures<'_>) -> Vec<(&'static str, String)> {
    let bars = [
        ("1-throughput.svg", Question::Bulk, "TCP bulk", "Gbit/s"),
        (
            "1-cpu.svg",
            Question::Bulk,
            "TCP bulk: CPU seconds of the machine for 10⁹ bytes",
            "CPU s/GB",
        ),
        (
            "2-delivered.svg",
            Question::Datagrams,
            "64-byte UDP at overload",
            "delivered/s",
        ),
        (
            "2-cpu.svg",
            Question::Datagrams,
            "64-byte UDP at a fixed load: CPU seconds of the machine for a million",
            "CPU s/M at the fixed load",
        ),
        (
            "3-connections.svg",
            Question::Connections,
            "New TCP connections a second",
            "connections/s",
        ),
        (
            "4-requests.svg",
            Question::Requests,
            "A request on an open connection, median",
            "p50 µs",
        ),
    ];
    let curves = [
        (
            "3-latency.svg",
            Question::Connections,
            "A new connection, 99th percentile",
            "p99 µs",
        ),
        (
            "5-change.svg",
            Question::Change,
            "From an endpoint change to its effect",
            "ms to effect",
        ),
    ];
    let bars = bars
        .into_iter()
        .map(|(file, question, title, metric)| (file, bar_picture(figures, question, title, metric)));
    let curves = curves
        .into_iter()
        .map(|(file, question, title, metric)| (file, curve_picture(figures, question, title, metric)));
    bars.chain(curves)
        .filter_map(|(file, picture)| Some((file, picture?)))
        .collect()
}

fn bar_picture(figures: &Figures<'_>, question: Question, title: &str, metric: &str) -> Option<String> {
    let cases = figures.cases(question);
    let of = |case: &String, label: &str| {
        let figure = figures.get(question, case, label, metric)?;
        Some([figure.min, figure.median, figure.max])
    };
    let series = figures.labels(question).into_iter().map(|label| Series {
        values: cases.iter().map(|case| of(case, &label)).collect(),
        name: label,
    });
    let series: Vec<Series> = series
        .filter(|series| series.values.iter().any(Option::is_some))
        .collect();
    (!series.is_empty()).then(|| bars::svg(title, metric, &cases, &series))
}

/// Against the number of services, with which the case begins.
fn curve_picture(figures: &Figures<'_>, question: Question, title: &str, metric: &str) -> Option<String> {
    let cases = figures.cases(question);
    let point = |case: &String, label: &str| {
        let services = case.split_whitespace().next()?.parse::<f64>().ok()?;
        let value = figures.get(question, case, label, metric)?.median;
        (value > 0.0).then_some((services, value))
    };
    let curve = |label: String| {
        let mut points: Vec<_> = cases.iter().filter_map(|case| point(case, &label)).collect();
        points.sort_by(|one, other| one.0.total_cmp(&other.0));
        Curve { name: label, points }
    };
    let curves: Vec<Curve> = figures.labels(question).into_iter().map(curve).collect();
    let has_points = curves.iter().any(|curve| !curve.points.is_empty());
    has_points.then(|| plot::svg(title, "services", metric, &curves))
}

#[cfg(test)]
mod tests {
    use super::super::figures::tests::record;
    use super::*;

    fn picture(file: &str, records: &[super::super::Record]) -> String {
        let pictures = all(&Figures::of(records));
        pictures.into_iter().find(|(name, _)| *name == file).unwrap().1
    }

    #[test]
    fn a_bar_far_longer_than_the_others_is_cut_and_says_its_figure() {
        let of = |system, value| record(Question::Bulk, 0, system, "1 stream up", &[("CPU s/GB", value)]);
        let records = [of("routing", 4.0), of("iptables", 5.0), of("nginx", 75.0)];
        let picture = picture("1-cpu.svg", &records);
        assert!(picture.contains(">75<") && picture.contains(">10<"), "{picture}");
        assert!(
            !picture.contains(">100<"),
            "the axis ends at twice what is usual: {picture}"
        );
    }

    #[test]
    fn curves_that_lie_close_together_are_told_apart() {
        let of = |case, value| record(Question::Connections, 0, "iptables", case, &[("p99 µs", value)]);
        let picture = picture("3-latency.svg", &[of("1 service", 320.0), of("100 services", 1_400.0)]);
        assert!(picture.contains(">200<") && picture.contains(">2000<"), "{picture}");
        assert!(!picture.contains(">10000<"), "{picture}");
    }
}
