//! What became of every line of a dump: nothing is left out silently.
use std::collections::BTreeMap;

/// What of kube-proxy's rules is no use to lbd, because it does the same in its own way or has no need of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Plumbing {
    Frame,
    Jump,
    Marks,
    Hairpin,
    LocalClients,
    OffCluster,
    External,
    Guards,
    Forwarding,
    SameForAll,
    Notes,
    Empty,
}

impl Plumbing {
    /// What lbd does instead.
    const fn instead(self) -> &'static str {
        match self {
            Self::Frame => "tables, empty built-in chains, canaries and ends of tables",
            Self::Jump => "jumps into kube-proxy's chains: lbd's routes bring it the packets",
            Self::Marks => "marks and what is done with marked packets: lbd masquerades and drops by itself",
            Self::Hairpin => {
                "masquerading of a backend that reaches itself: lbd does it unless nat.masquerade = \"never\""
            }
            Self::LocalClients => "masquerading of clients on this node: lbd does it unless nat.masquerade = \"never\"",
            Self::OffCluster => {
                "masquerading of clients outside of the cluster: replies come back through lbd without it, \
                 and backends see the client's address; nat.masquerade = \"always\" brings it back"
            }
            Self::External => {
                "masquerading at external addresses and node ports: replies come back through lbd without it, \
                 and backends see the client's address; nat.masquerade = \"always\" brings it back"
            }
            Self::Guards => "guarding of loopback and drops of INVALID packets: lbd has no need of them",
            Self::Forwarding => {
                "accepting of forwarded packets: where this host's firewall drops them (FORWARD policy DROP), set \
                 firewall = \"open\" in [tun], and lbd does the same for its own"
            }
            Self::SameForAll => "ways of pods and of clients on this node to the backends that everybody gets",
            Self::Notes => "rules that are only a comment",
            Self::Empty => "declarations of chains of other programs: their rules are listed",
        }
    }
}

/// What became of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It says nothing: a comment, or no word at all.
    Blank,
    /// It is in the configuration.
    Used,
    /// It need not be.
    Needless(Plumbing),
    /// It is not, and why.
    Lost(String),
    /// It is, but not all that it says, and why.
    Partly(String),
    /// It is not unless another line has a use for it, and why.
    Idle(String),
}

/// The fates of all lines, by index from 0.
#[derive(Debug)]
pub(super) struct Ledger {
    fates: Vec<Option<Fate>>,
}

impl Ledger {
    /// Nothing is known yet of so many lines.
    pub(super) fn new(lines: usize) -> Self {
        Self {
            fates: vec![None; lines],
        }
    }

    /// The line is in the configuration, unless something else was said of it before but that it is [`Fate::Idle`].
    pub(super) fn used(&mut self, line: usize) {
        self.first(line, Fate::Used);
    }

    /// The line is not in the configuration unless [`Self::used`] is said of it, before or after.
    pub(super) fn idle(&mut self, line: usize, why: impl Into<String>) {
        if let Some(slot @ (None | Some(Fate::Idle(_)))) = self.fates.get_mut(line) {
            *slot = Some(Fate::Idle(why.into()));
        }
    }

    /// The line is in the configuration, but for what is told here.
    pub(super) fn partly(&mut self, line: usize, why: impl Into<String>) {
        if let Some(slot) = self.fates.get_mut(line)
            && !matches!(slot, Some(Fate::Lost(_)))
        {
            *slot = Some(Fate::Partly(why.into()));
        }
    }

    /// The line says nothing.
    pub(super) fn blank(&mut self, line: usize) {
        self.first(line, Fate::Blank);
    }

    /// The line need not be in the configuration, unless something else was said of it before but that it is
    /// [`Fate::Idle`].
    pub(super) fn needless(&mut self, line: usize, why: Plumbing) {
        self.first(line, Fate::Needless(why));
    }

    /// The line is not in the configuration, whatever was said of it before but that.
    pub(super) fn lost(&mut self, line: usize, why: impl Into<String>) {
        if let Some(slot) = self.fates.get_mut(line)
            && !matches!(slot, Some(Fate::Lost(_)))
        {
            *slot = Some(Fate::Lost(why.into()));
        }
    }

    /// Whether the line is in the configuration, as far as is known.
    pub(super) fn is_used(&self, line: usize) -> bool {
        matches!(self.fates.get(line), Some(Some(Fate::Used)))
    }

    /// Whether nothing of the line is in the configuration.
    pub(super) fn is_lost(&self, line: usize) -> bool {
        matches!(self.fates.get(line), Some(None | Some(Fate::Lost(_) | Fate::Idle(_))))
    }

    /// Whether anything was said of the line.
    pub(super) fn knows(&self, line: usize) -> bool {
        self.fates.get(line).is_some_and(Option::is_some)
    }

    /// Whether any line was understood.
    pub(super) fn understood_any(&self) -> bool {
        let of_use = |fate: &Option<Fate>| match fate {
            Some(Fate::Used | Fate::Partly(_)) => true,
            Some(Fate::Needless(why)) => !matches!(why, Plumbing::Frame | Plumbing::Empty),
            Some(Fate::Blank | Fate::Lost(_) | Fate::Idle(_)) | None => false,
        };
        self.fates.iter().any(of_use)
    }

    fn first(&mut self, line: usize, fate: Fate) {
        if let Some(slot) = self.fates.get_mut(line) {
            match slot {
                None | Some(Fate::Idle(_)) => *slot = Some(fate),
                Some(Fate::Blank | Fate::Used | Fate::Needless(_) | Fate::Lost(_) | Fate::Partly(_)) => {}
            }
        }
    }

    /// A comment for each line that is lost, then one for each kind of plumbing.
    pub(super) fn remarks(&self, file: &str, lines: &[&str]) -> Vec<String> {
        let mut remarks = Vec::new();
        let mut counts: BTreeMap<Plumbing, usize> = BTreeMap::new();
        for ((number, line), fate) in (1..).zip(lines).zip(&self.fates) {
            let why = match fate {
                Some(Fate::Blank | Fate::Used) => continue,
                Some(Fate::Needless(kind)) => {
                    *counts.entry(*kind).or_default() += 1;
                    continue;
                }
                Some(Fate::Lost(why) | Fate::Partly(why) | Fate::Idle(why)) => why,
                None => "it is not a rule that kube-proxy writes",
            };
            let line = line.trim();
            remarks.push(format!("# {file}:{number}: not carried over: {line}: {why}"));
        }
        let needless = |(kind, count): (Plumbing, usize)| {
            let lines = if count == 1 { "line" } else { "lines" };
            let is_a_setting = kind == Plumbing::Forwarding;
            let fate = if is_a_setting {
                "left to lbd's own settings"
            } else {
                "not needed"
            };
            format!("# {file}: {count} {lines} {fate}: {}", kind.instead())
        };
        remarks.extend(counts.into_iter().map(needless));
        remarks
    }
}
