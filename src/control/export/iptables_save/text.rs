//! Lines of `iptables-save`, in the order in which it prints them.
use std::fmt;
use std::net::IpAddr;

/// The longest comment in bytes: `XT_MAX_COMMENT_LEN` is 256, with its end.
const LONGEST_COMMENT: usize = 255;

/// Which of the two programs a rule is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Both,
    V4,
    V6,
}

impl Family {
    pub(super) const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

/// One table: its chains, then their rules.
#[derive(Debug)]
pub(super) struct Table {
    name: &'static str,
    /// Whether there are rules of IPv6, so that the families need to be told apart.
    both: bool,
    built_in: &'static [&'static str],
    chains: Vec<(String, Vec<String>)>,
}

impl Table {
    /// A table with these chains of the kernel.
    pub(super) fn new(name: &'static str, both: bool, built_in: &'static [&'static str]) -> Self {
        let chains = built_in.iter().map(|&chain| (chain.to_owned(), Vec::new()));
        Self {
            name,
            both,
            built_in,
            chains: chains.collect(),
        }
    }

    /// Whether there are rules of IPv6.
    pub(super) const fn has_both(&self) -> bool {
        self.both
    }

    /// A chain; its rules may be added later, or never.
    pub(super) fn chain(&mut self, name: &str) {
        self.chains.push((name.to_owned(), Vec::new()));
    }

    /// A chain with all of its rules.
    pub(super) fn full_chain(&mut self, name: &str, family: Family, rules: impl IntoIterator<Item = String>) {
        let rules = rules.into_iter().map(|rule| self.line(family, name, &rule)).collect();
        self.chains.push((name.to_owned(), rules));
    }

    /// A rule at the end of a chain that was declared.
    pub(super) fn rule(&mut self, family: Family, chain: &str, rule: &str) {
        let line = self.line(family, chain, rule);
        if let Some((_, rules)) = self.chains.iter_mut().find(|(name, _)| name == chain) {
            rules.push(line);
        }
    }

    fn line(&self, family: Family, chain: &str, rule: &str) -> String {
        let family = match family {
            Family::V4 if self.both => "-4 ",
            Family::V6 => "-6 ",
            Family::Both | Family::V4 => "",
        };
        format!("{family}-A {chain} {rule}")
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "*{}", self.name)?;
        let (built_in, own) = self.chains.split_at(self.built_in.len());
        let mut own: Vec<_> = own.iter().collect();
        own.sort_by_key(|(name, _)| name);
        for (name, _) in built_in {
            writeln!(f, ":{name} ACCEPT [0:0]")?;
        }
        for (name, _) in &own {
            writeln!(f, ":{name} - [0:0]")?;
        }
        for rule in built_in.iter().chain(own).flat_map(|(_, rules)| rules) {
            writeln!(f, "{rule}")?;
        }
        writeln!(f, "COMMIT")
    }
}

/// `-m comment --comment "..."`, as `xtables_save_string` quotes it.
pub(super) fn comment(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for letter in fitting(text).chars() {
        if matches!(letter, '"' | '\\' | '\'') {
            quoted.push('\\');
        }
        quoted.push(letter);
    }
    format!("-m comment --comment \"{quoted}\"")
}

/// As much as fits, to a whole letter.
pub(super) fn fitting(text: &str) -> &str {
    &text[..text.floor_char_boundary(LONGEST_COMMENT)]
}

/// A probability as `iptables-save` prints it: what the kernel has kept of it (31 bits), with 11 digits.
pub(super) fn probability(share: f64) -> String {
    const UNITS: f64 = 2_147_483_648.0;
    format!("{:.11}", (share * UNITS).round() / UNITS)
}
