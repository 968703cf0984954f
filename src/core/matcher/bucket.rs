//! Rules that hashing cannot tell apart, in their order, and by port where they are for ranges of ports.
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

/// Fewer rules are looked at one by one, whatever their ports.
const FEW: usize = 4;

/// Beyond this many entries for each rule, ranges that lie within one another are not worth their memory.
const MOST_ENTRIES: usize = 16;

/// A rule on its way into a bucket.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// Its place in the list.
    pub(super) index: u32,
    /// The ports that it is for, where the bucket is about ports.
    pub(super) ports: Option<RangeInclusive<u16>>,
    /// Whether all packets that come to the bucket, and have the right port, meet it. The rules behind it are never met then.
    pub(super) certain: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) enum Bucket {
    /// All rules.
    List(Box<[u32]>),
    /// Those for each span of ports.
    Ranges(Ranges),
}

/// The ports in spans, within which no range begins or ends.
#[derive(Debug)]
pub(super) struct Ranges {
    /// The first port of each span, ascending.
    starts: Box<[u16]>,
    /// The rules for each span.
    rules: Box<[Box<[u32]>]>,
}

impl Bucket {
    /// A bucket of rules that are given in their order.
    pub(super) fn new(members: &[Member]) -> Self {
        let by_port = members.len() >= FEW && members[0].ports.is_some();
        by_port
            .then(|| Ranges::new(members))
            .flatten()
            .map_or_else(|| Self::list(members), Self::Ranges)
    }

    fn list(members: &[Member]) -> Self {
        let last = members
            .iter()
            .position(|member| member.certain && member.ports.is_none());
        let met = &members[..last.map_or(members.len(), |last| last + 1)];
        Self::List(met.iter().map(|member| member.index).collect())
    }

    /// The rules that a packet may meet; `port` is the one that the bucket is about.
    pub(super) fn candidates(&self, port: Option<u16>) -> &[u32] {
        match (self, port) {
            (Self::List(rules), _) => rules,
            (Self::Ranges(ranges), Some(port)) => ranges.candidates(port),
            (Self::Ranges(_), None) => &[],
        }
    }
}

impl Ranges {
    /// None: too many ranges lie within one another.
    fn new(members: &[Member]) -> Option<Self> {
        let (mut starts, mut rules) = (Vec::new(), Vec::new());
        let mut room = members.len() * MOST_ENTRIES;
        let mut active = BTreeSet::new();
        for (start, turns) in turns(members) {
            for turn in turns {
                match turn {
                    Turn::On(member) => active.insert(member),
                    Turn::Off(member) => active.remove(&member),
                };
            }
            let mut span: Vec<u32> = Vec::new();
            for &member in &active {
                room = room.checked_sub(1)?;
                span.push(members[member].index);
                if members[member].certain {
                    break;
                }
            }
            // The end of a range that goes to the last port lies behind it.
            if let Ok(start) = u16::try_from(start) {
                starts.push(start);
                rules.push(span.into());
            }
        }
        Some(Self {
            starts: starts.into(),
            rules: rules.into(),
        })
    }

    fn candidates(&self, port: u16) -> &[u32] {
        match self.starts.partition_point(|&start| start <= port) {
            0 => &[],
            behind => &self.rules[behind - 1],
        }
    }
}

/// What happens to a member at a port.
enum Turn {
    On(usize),
    Off(usize),
}

fn turns(members: &[Member]) -> BTreeMap<u32, Vec<Turn>> {
    let mut turns: BTreeMap<u32, Vec<Turn>> = BTreeMap::new();
    for (place, member) in members.iter().enumerate() {
        let ports = member.ports.clone().unwrap_or(0..=u16::MAX);
        if !ports.is_empty() {
            turns.entry((*ports.start()).into()).or_default().push(Turn::On(place));
            turns
                .entry(u32::from(*ports.end()) + 1)
                .or_default()
                .push(Turn::Off(place));
        }
    }
    turns
}
