//! Packet filters as tables, chains and rules, whichever program wrote them and whichever told them.
use std::fmt;

/// Whose tables they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// `nf_tables`, also by `iptables-nft`.
    Nft,
    /// `ip_tables` and `ip6_tables`, by `iptables-legacy`.
    Legacy,
}

/// The family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Both.
    Inet,
}

impl Family {
    /// As `nft` writes it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Inet => "inet",
        }
    }

    /// The family of that name, where packets of lbd's meet its chains.
    pub(super) fn of(name: &str) -> Option<Self> {
        [Self::Ip, Self::Ip6, Self::Inet]
            .into_iter()
            .find(|family| family.name() == name)
    }

    /// Whether packets of this IP version come there.
    pub(super) const fn sees(self, v4: bool) -> bool {
        match self {
            Self::Ip => v4,
            Self::Ip6 => !v4,
            Self::Inet => true,
        }
    }
}

/// Where a base chain looks at packets (`enum nf_inet_hooks`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// What comes in.
    Prerouting,
    /// What is for this host.
    Input,
    /// What goes on.
    Forward,
    /// What this host sends.
    Output,
}

impl Hook {
    /// The hook of that name, as nft and iptables write it.
    pub(super) fn of(name: &str) -> Option<Self> {
        match name {
            "prerouting" | "PREROUTING" => Some(Self::Prerouting),
            "input" | "INPUT" => Some(Self::Input),
            "forward" | "FORWARD" => Some(Self::Forward),
            "output" | "OUTPUT" => Some(Self::Output),
            _ => None,
        }
    }
}

/// A table.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Table {
    pub(super) source: Source,
    pub(super) family: Family,
    pub(super) name: String,
    pub(super) chains: Vec<Chain>,
}

/// A chain.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chain {
    pub(super) name: String,
    /// Of a base chain.
    pub(super) hook: Option<Hook>,
    /// Its policy is to drop.
    pub(super) drops: bool,
    pub(super) rules: Vec<Rule>,
}

/// A rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Rule {
    /// By which nft removes it.
    pub(super) handle: Option<u64>,
    pub(super) comment: Option<String>,
    pub(super) conditions: Vec<Condition>,
    pub(super) verdict: Verdict,
}

/// A condition, as far as it tells lbd's packets from others.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Condition {
    /// The interface that the packet came by: one of these, or none of these.
    In(Vec<String>, bool),
    /// The same of the interface that it leaves by.
    Out(Vec<String>, bool),
    /// Its state for the kernel's connection tracking: one of these, or none of these.
    State(Vec<String>, bool),
    /// Answers to its sender would leave by another interface than the one it came by.
    ReversePath,
    /// Whether it is of IPv4.
    Version4(bool),
    /// No packet of lbd's meets it: marks, connections that the kernel translates.
    Never,
    /// Some may meet it: addresses, ports, whatever is not known here.
    Perhaps(String),
}

/// What a rule does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Verdict {
    Accept,
    Drop,
    Reject,
    Return,
    Jump(String),
    Goto(String),
    /// Counts, logs, marks.
    #[default]
    Continue,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.conditions {
            write!(f, "{condition} ")?;
        }
        match &self.verdict {
            Verdict::Accept => f.write_str("accept"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::Reject => f.write_str("reject"),
            Verdict::Return => f.write_str("return"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
            Verdict::Continue => f.write_str("continue"),
        }
    }
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = |negated: &bool| if *negated { "!= " } else { "" };
        match self {
            Self::In(names, negated) => write!(f, "iifname {}{}", not(negated), names.join(",")),
            Self::Out(names, negated) => write!(f, "oifname {}{}", not(negated), names.join(",")),
            Self::State(states, negated) => write!(f, "ct state {}{}", not(negated), states.join(",")),
            Self::ReversePath => f.write_str("reverse path filter"),
            Self::Version4(v4) => write!(f, "nfproto ipv{}", if *v4 { 4 } else { 6 }),
            Self::Never => f.write_str("mark or status"),
            Self::Perhaps(what) => f.write_str(what),
        }
    }
}
