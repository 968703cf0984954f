//! "Did you mean": the known word nearest to a mistyped one.

/// How many words are looked at: with thousands of services a suggestion is not worth the time.
const MOST_WORDS: usize = 1000;

/// The word that `typed` was most likely meant to be, if any is near enough.
pub(super) fn nearest<'w>(typed: &str, words: impl IntoIterator<Item = &'w str>) -> Option<&'w str> {
    let most = (typed.chars().count() / 3).clamp(1, 3);
    let near = words.into_iter().take(MOST_WORDS).filter_map(|word| {
        let far = distance(typed, word, most)?;
        Some((far, word))
    });
    near.min_by_key(|&(far, _)| far).map(|(_, word)| word)
}

/// ` did you mean "word"?`, or nothing.
pub(super) fn did_you_mean<'w>(typed: &str, words: impl IntoIterator<Item = &'w str>) -> String {
    nearest(typed, words).map_or_else(String::new, |word| format!(" did you mean {word:?}?"))
}

/// How many letters must be typed, left out, changed or swapped with their neighbour; None above `most`.
fn distance(a: &str, b: &str, most: usize) -> Option<usize> {
    if a.len().abs_diff(b.len()) > most * 4 {
        return None;
    }
    let a: Vec<char> = a.chars().flat_map(char::to_lowercase).collect();
    let b: Vec<char> = b.chars().flat_map(char::to_lowercase).collect();
    if a.len().abs_diff(b.len()) > most {
        return None;
    }
    let mut before_last = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let row = next_row(&a, &b, i, &last, &before_last);
        before_last = std::mem::replace(&mut last, row);
    }
    last.last().copied().filter(|&far| far <= most)
}

/// One row of the optimal string alignment table.
fn next_row(a: &[char], b: &[char], i: usize, last: &[usize], before_last: &[usize]) -> Vec<usize> {
    let mut row = vec![i; b.len() + 1];
    for j in 1..=b.len() {
        let change = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
        row[j] = change.min(last[j] + 1).min(row[j - 1] + 1);
        if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
            row[j] = row[j].min(before_last[j - 2] + 1);
        }
    }
    row
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn a_typo_finds_the_word_that_was_meant() {
        let words = ["scheduler", "services", "socket", "mode"];
        assert_eq!(nearest("schedular", words), Some("scheduler"));
        assert_eq!(nearest("service", words), Some("services"));
        assert_eq!(nearest("modr", words), Some("mode"));
        assert_eq!(nearest("moed", words), Some("mode"));
        assert_eq!(nearest("MODE", words), Some("mode"));
    }

    #[test]
    fn a_word_unlike_any_other_gets_no_suggestion() {
        assert_eq!(nearest("frobnicate", ["scheduler", "mode"]), None);
        assert_eq!(nearest(&"x".repeat(100_000), ["scheduler"]), None);
    }
}
