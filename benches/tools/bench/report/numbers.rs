//! Numbers for people, and what many of them come to.
use serde::Serialize;

/// The middle of several rounds, and how far they were apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Figure {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Figure {
    /// None of no values. The median of an even number of values is the mean of the two in the middle.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, min, max })
    }

    /// `1.20 (1.10..1.30)`; of one value or equal ones, that alone.
    pub(crate) fn words(self) -> String {
        if self.min == self.max {
            short(self.median)
        } else {
            format!("{} ({}..{})", short(self.median), short(self.min), short(self.max))
        }
    }
}

/// Three digits that matter, and a letter for thousands and millions.
pub(crate) fn short(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        "–".to_owned()
    } else if size >= 999_500.0 {
        format!("{}M", digits(value / 1e6))
    } else if size >= 9_999.5 {
        format!("{}k", digits(value / 1e3))
    } else {
        digits(value)
    }
}

fn digits(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size < 0.0995 => format!("{value:.4}"),
        size if size < 9.995 => format!("{value:.2}"),
        size if size < 99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// How many times as much; None where nothing is to compare with.
pub(crate) fn ratio(value: f64, of: f64) -> Option<f64> {
    (of != 0.0).then(|| value / of).filter(|ratio| ratio.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_three_rounds_is_the_one_in_the_middle_whatever_their_order() {
        let figure = Figure::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!((figure.median, figure.min, figure.max), (2.0, 1.0, 3.0));
    }

    #[test]
    fn the_median_of_four_rounds_is_between_the_two_in_the_middle() {
        assert_eq!(Figure::of(&[1.0, 10.0, 2.0, 4.0]).unwrap().median, 3.0);
    }

    #[test]
    fn no_rounds_have_no_median() {
        assert_eq!(Figure::of(&[]), None);
    }

    #[test]
    fn one_round_has_no_spread_to_show() {
        assert_eq!(Figure::of(&[1.5]).unwrap().words(), "1.50");
        assert_eq!(Figure::of(&[1.0, 2.0, 4.0]).unwrap().words(), "2.00 (1.00..4.00)");
    }

    #[test]
    fn numbers_are_shown_with_three_digits() {
        let numbers = [0.0, 0.0123, 1.2345, 12.345, 123.45, 9_876.0, 12_345.0, 1_234_567.0];
        let shown = ["0", "0.0123", "1.23", "12.3", "123", "9876", "12.3k", "1.23M"];
        assert_eq!(numbers.map(short), shown);
    }

    #[test]
    fn nothing_is_a_multiple_of_nothing() {
        assert_eq!(ratio(5.0, 0.0), None);
        assert_eq!(ratio(3.0, 2.0), Some(1.5));
    }
}
