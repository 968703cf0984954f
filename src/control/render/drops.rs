//! Every reason why a packet was not forwarded, with its count.
use crate::protocol::Drops;

/// One line a reason, those that never happened included.
#[must_use]
pub fn drops(drops: &Drops) -> String {
    let Drops(counts) = drops;
    let width = counts.iter().map(|count| count.reason.len()).max();
    let width = width.unwrap_or(0).max("reason".len());
    let mut text = format!("{:<7} {:<width$} {:>12}\n", "verdict", "reason", "packets");
    for count in counts {
        let verdict = count.verdict.name();
        let line = format!("{verdict:<7} {:<width$} {:>12}\n", count.reason, count.packets);
        text.push_str(&line);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use lbd_core::verdict::{Drop, Verdict};

    #[test]
    fn every_reason_is_shown_even_if_it_never_happened() {
        let counts = Drops::new(|verdict| u64::from(verdict == Verdict::Drop(Drop::Fragment)) * 7);
        let text = drops(&counts);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines.len(), Verdict::COUNT - 1, "a title, and all but forward and hold");
        assert_eq!(lines[0], ["verdict", "reason", "packets"]);
        assert_eq!(lines[1], ["drop", "malformed", "0"]);
        for line in [
            ["drop", "fragment", "7"],
            ["reject", "no_backend", "0"],
            ["pass", "no_match", "0"],
        ] {
            assert!(lines.contains(&line.to_vec()), "{text}");
        }
    }
}
