//! What is wrong with a configuration, and where: `FILE:LINE:COL: message`.
use std::fmt;

/// One finding. Its message names the key, the value and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Diagnostic {
    /// The file's name, as it was given.
    pub file: String,
    /// From 1; 0 where the file could not even be read.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// For people.
    pub message: String,
}

impl Diagnostic {
    /// A finding about the file as a whole: `FILE: message`.
    #[must_use]
    pub fn of_file(file: &str, message: String) -> Self {
        Self {
            file: file.to_owned(),
            line: 0,
            column: 0,
            message,
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            return write!(f, "{}: {}", self.file, self.message);
        }
        let Self {
            file,
            line,
            column,
            message,
        } = self;
        write!(f, "{file}:{line}:{column}: {message}")
    }
}

/// Findings by byte offset, while a file is read.
#[derive(Debug, Default)]
pub struct Report {
    errors: Vec<(usize, String)>,
    warnings: Vec<(usize, String)>,
}

impl Report {
    /// Something that makes the file unusable.
    pub fn error(&mut self, offset: usize, message: impl Into<String>) {
        self.errors.push((offset, message.into()));
    }

    /// `key = value: problem`.
    pub fn bad(&mut self, offset: usize, key: &str, value: impl fmt::Display, problem: impl fmt::Display) {
        self.error(offset, format!("{key} = {value}: {problem}"));
    }

    /// Something that is probably not meant.
    pub fn warning(&mut self, offset: usize, message: impl Into<String>) {
        self.warnings.push((offset, message.into()));
    }

    /// Whether the file is unusable.
    #[must_use]
    pub const fn has_errors(&self) -> bool {
        !self.errors.is_empty()
    }

    /// The errors and the warnings, each in the order of the file.
    #[must_use]
    pub fn finish(self, file: &str, text: &str) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
        if self.errors.is_empty() && self.warnings.is_empty() {
            return (Vec::new(), Vec::new());
        }
        let positions = Positions::new(file, text);
        (positions.all(self.errors), positions.all(self.warnings))
    }
}

/// Lines and columns of a text.
struct Positions<'t> {
    file: &'t str,
    text: &'t str,
    line_starts: Vec<usize>,
}

impl<'t> Positions<'t> {
    fn new(file: &'t str, text: &'t str) -> Self {
        let newlines = text.match_indices('\n').map(|(offset, _)| offset + 1);
        let line_starts = std::iter::once(0).chain(newlines).collect();
        Self {
            file,
            text,
            line_starts,
        }
    }

    fn all(&self, mut findings: Vec<(usize, String)>) -> Vec<Diagnostic> {
        findings.sort_by_key(|&(offset, _)| offset);
        let place = |(offset, message)| self.diagnostic(offset, message);
        findings.into_iter().map(place).collect()
    }

    fn diagnostic(&self, offset: usize, message: String) -> Diagnostic {
        let line = self.line_starts.partition_point(|&start| start <= offset);
        let start = line.checked_sub(1).map_or(0, |row| self.line_starts[row]);
        let end = self.text.floor_char_boundary(offset);
        let before = self.text.get(start..end).unwrap_or("");
        // A byte order mark takes no room on the screen.
        let column = before.chars().filter(|&c| c != '\u{feff}').count() + 1;
        Diagnostic {
            file: self.file.to_owned(),
            line,
            column,
            message,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_and_lines_count_from_one() {
        let mut report = Report::default();
        report.error(0, "first");
        report.error("é = ".len(), "after an accent");
        report.error("é = 1\nb".len(), "second line");
        let (errors, _) = report.finish("a.toml", "é = 1\nbc");
        let shown: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "a.toml:1:1: first",
                "a.toml:1:5: after an accent",
                "a.toml:2:2: second line"
            ]
        );
    }

    #[test]
    fn a_finding_about_a_whole_file_has_no_line() {
        let finding = Diagnostic::of_file("a.toml", "cannot read: gone".into());
        assert_eq!(finding.to_string(), "a.toml: cannot read: gone");
    }
}
