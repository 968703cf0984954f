//! Policy rules: which tables a packet that lbd forwards is looked up in, where that is the same for all of them.
use super::Family;

/// A table to look up in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lookup {
    pub(super) table: u32,
    /// Routes of shorter prefixes do not count (`fib4_rule_suppress`, net/ipv4/fib_rules.c).
    pub(super) shortest: u8,
}

impl From<u32> for Lookup {
    fn from(table: u32) -> Self {
        Self { table, shortest: 0 }
    }
}

/// What a rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Lookup(Lookup),
    /// Drops the packet, silently or not.
    Refuse,
    Nothing,
    /// A jump, or what lbd does not know.
    Other,
}

/// For which packets a rule is, beside [`Rule::input`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Selector {
    All,
    /// Some, by address, port, type of service ...
    Some,
    /// None that is forwarded and bears no mark.
    Others,
}

/// A policy rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) family: Family,
    pub(super) priority: u32,
    pub(super) selector: Selector,
    /// The device by which the packet must have come.
    pub(super) input: Option<String>,
    /// `not`: for the packets that are not selected.
    pub(super) inverted: bool,
    pub(super) action: Action,
    /// Put in by lbd.
    pub(super) ours: bool,
    /// As `ip rule` shows it, about.
    pub(super) text: String,
}

/// The tables in which `family` looks up, in order; or the rule because of which that differs from packet to packet.
///
/// `device` is lbd's own, `is_received` knows the names of the interfaces whose packets lbd receives.
pub(super) fn order(
    rules: &[Rule],
    family: Family,
    device: &str,
    is_received: impl Fn(&str) -> bool,
) -> Result<Vec<Lookup>, String> {
    let mut rules: Vec<&Rule> = rules.iter().filter(|rule| rule.family == family).collect();
    rules.sort_by_key(|rule| rule.priority);
    let mut tables = Vec::new();
    for rule in rules {
        if !rule.concerns(device, &is_received) {
            continue;
        }
        match rule.for_all(device) {
            Some(Action::Lookup(lookup)) => tables.push(lookup),
            Some(Action::Refuse) => break,
            Some(Action::Nothing) => {}
            Some(Action::Other) | None => return Err(rule.text.clone()),
        }
    }
    Ok(tables)
}

impl Rule {
    /// Whether it can select a packet that lbd forwards.
    fn concerns(&self, device: &str, is_received: impl Fn(&str) -> bool) -> bool {
        if self.inverted {
            return true;
        }
        let comes = |name: &str| name == device || is_received(name);
        match &self.input {
            // lbd's packets are to go as if they came from lbd's device, past lbd's own tables (see `plumbing`).
            _ if self.ours => self.selects_by_device(device) || self.is_of_local_table(),
            Some(name) if !comes(name) => false,
            Some(_) | None => self.selector != Selector::Others,
        }
    }

    /// What it does, if it does that to all packets of lbd's.
    fn for_all(&self, device: &str) -> Option<Action> {
        let all = self.selector == Selector::All && !self.inverted;
        match &self.input {
            None => all.then_some(self.action),
            Some(name) => (all && self.ours && name == device).then_some(self.action),
        }
    }

    fn selects_by_device(&self, device: &str) -> bool {
        // Its jumps only skip lbd's other rules, which do not concern these packets anyway.
        self.input.as_deref() == Some(device) && self.action != Action::Other
    }

    fn is_of_local_table(&self) -> bool {
        self.input.is_none()
            && self.selector == Selector::All
            && self.action == Action::Lookup(u32::from(libc::RT_TABLE_LOCAL).into())
    }
}
