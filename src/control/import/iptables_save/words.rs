//! A line of `iptables-save` cut into words, as `iptables-restore` cuts it (`add_param_to_argv`, iptables/xshared.c).

/// The words of a line. Double quotes hold blanks together; within them a backslash takes the next character as it is.
///
/// # Errors
/// Where a quote is never closed.
pub(super) fn words(line: &str) -> Result<Vec<String>, String> {
    let mut all = Vec::new();
    let mut word: Option<String> = None;
    let mut quoted = false;
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match (letter, quoted) {
            ('"', _) => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ('\\', true) => word.get_or_insert_default().extend(letters.next()),
            (blank, false) if blank.is_whitespace() => all.extend(word.take()),
            (letter, _) => word.get_or_insert_default().push(letter),
        }
    }
    if quoted {
        return Err("a quote is never closed".to_owned());
    }
    all.extend(word);
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_hold_blanks_together_and_a_backslash_takes_what_follows() {
        let line = r#"-A X  -m comment --comment "a \"b\\ \'c" --comment "" -j Y"#;
        let cut = words(line).unwrap();
        assert_eq!(
            cut,
            [
                "-A",
                "X",
                "-m",
                "comment",
                "--comment",
                "a \"b\\ 'c",
                "--comment",
                "",
                "-j",
                "Y"
            ]
        );
    }

    #[test]
    fn a_quote_that_is_never_closed_is_an_error() {
        assert!(words("-A X --comment \"a b").is_err());
    }
}
