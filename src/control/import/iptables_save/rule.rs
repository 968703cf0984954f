//! One rule: its conditions and its target, whatever their order on the line.
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::words::words;
use lbd_core::matcher::rules::Condition;

/// A kind of condition, to ask which of them a rule has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Source,
    Destination,
    Protocol,
    SourcePort,
    DestinationPort,
    Probability,
    Recent,
    SourceType,
    DestinationType,
    InInterface,
    PhysicalDevice,
    Mark,
    State,
    /// A counter of packets; every packet meets it.
    Accounting,
    /// One that only foreign rules have.
    Other,
}

/// `-m recent`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Recent {
    pub(super) checks: bool,
    pub(super) sets: bool,
    pub(super) seconds: Option<u64>,
    pub(super) mask: Option<IpAddr>,
}

/// A rule. What is not given matches everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Rule {
    pub(super) chain: String,
    /// Whether it is for IPv4 (`-4`) or for IPv6 (`-6`), or has addresses of it.
    pub(super) v4: Option<bool>,
    /// It has `-4` or `-6`.
    pub(super) marked: bool,
    pub(super) source: Option<Condition<IpNet>>,
    pub(super) destination: Option<Condition<IpNet>>,
    pub(super) protocol: Option<Condition<String>>,
    pub(super) source_port: Option<Condition<RangeInclusive<u16>>>,
    pub(super) destination_port: Option<Condition<RangeInclusive<u16>>>,
    pub(super) probability: Option<f64>,
    pub(super) recent: Option<Recent>,
    pub(super) source_type: Option<Condition<String>>,
    pub(super) destination_type: Option<Condition<String>>,
    pub(super) in_interface: Option<Condition<String>>,
    pub(super) comment: Option<String>,
    pub(super) target: Option<String>,
    /// `--to-destination`
    pub(super) to: Option<String>,
    /// `--match-set`: rules of kube-proxy's ipvs mode have it.
    pub(super) set: bool,
    pub(super) physical_device: bool,
    pub(super) mark: bool,
    pub(super) state: bool,
    pub(super) accounting: bool,
    /// Options that kube-proxy's rules do not have.
    pub(super) others: Vec<String>,
}

impl Rule {
    /// Reads `-A CHAIN ...`, with `[packets:bytes]`, `-4` or `-6` before it or not.
    ///
    /// # Errors
    /// What is wrong with which word.
    pub(super) fn parse(line: &str) -> Result<Self, String> {
        let mut rule = Self::default();
        let cut = words(line)?;
        let counters = cut.first().is_some_and(|word| word.starts_with('['));
        let mut reader = Reader {
            words: cut.into_iter().skip(usize::from(counters)).peekable(),
        };
        let mut negated = false;
        while let Some(word) = reader.words.next() {
            if word == "!" {
                negated = true;
                continue;
            }
            rule.option(&word, negated, &mut reader)?;
            negated = false;
        }
        if rule.chain.is_empty() {
            return Err("not a rule: it does not begin with -A and a chain".to_owned());
        }
        rule.marked = rule.v4.is_some();
        rule.v4 = rule.v4.or_else(|| rule.family());
        Ok(rule)
    }

    fn option(&mut self, word: &str, negated: bool, reader: &mut Reader) -> Result<(), String> {
        match word {
            "-4" | "--ipv4" => self.v4 = Some(true),
            "-6" | "--ipv6" => self.v4 = Some(false),
            "-A" | "--append" => self.chain = reader.value(word)?,
            "-j" | "--jump" | "-g" | "--goto" => self.target = Some(reader.value(word)?),
            "-s" | "--source" | "--src" => self.source = is(negated, network(&reader.value(word)?)?),
            "-d" | "--destination" | "--dst" => self.destination = is(negated, network(&reader.value(word)?)?),
            "-p" | "--protocol" | "--proto" => {
                self.protocol = is(negated, reader.value(word)?).filter(|p| p.value != "all");
            }
            "--sport" | "--source-port" => self.source_port = is(negated, ports(&reader.value(word)?)?),
            "--dport" | "--destination-port" => self.destination_port = is(negated, ports(&reader.value(word)?)?),
            "--src-type" => self.source_type = is(negated, reader.value(word)?),
            "--dst-type" => self.destination_type = is(negated, reader.value(word)?),
            "-i" | "--in-interface" => self.in_interface = is(negated, reader.value(word)?),
            "--comment" => self.comment = Some(reader.value(word)?),
            "--to-destination" => self.to = Some(reader.value(word)?),
            _ if negated => self.other(word, true, reader),
            _ => self.module_option(word, reader)?,
        }
        Ok(())
    }

    fn module_option(&mut self, word: &str, reader: &mut Reader) -> Result<(), String> {
        match word {
            // A module is known by its options; kube-proxy uses none that matches without any.
            "-m" | "--match" => drop(reader.value(word)?),
            "-c" | "--set-counters" => drop((reader.value(word)?, reader.value(word)?)),
            "--mode" if reader.peek_is("random") => drop(reader.value(word)?),
            "--probability" => self.probability = Some(share(&reader.value(word)?)?),
            "--rcheck" => self.recent().checks = true,
            "--set" => self.recent().sets = true,
            "--reap" | "--rsource" => drop(self.recent()),
            "--name" => drop((self.recent(), reader.value(word)?)),
            "--seconds" => self.recent().seconds = Some(number(&reader.value(word)?)?),
            "--mask" => self.recent().mask = Some(address(&reader.value(word)?)?),
            "--physdev-is-in" => self.physical_device = true,
            "--nfacct-name" => {
                self.accounting = true;
                reader.value(word)?;
            }
            // What targets do, by their names: marks, masquerading, refusals.
            "--set-xmark" | "--set-mark" | "--or-mark" | "--xor-mark" | "--and-mark" | "--reject-with" => {
                reader.value(word)?;
            }
            "--random" | "--random-fully" | "--persistent" => {}
            "--mark" => self.mark_condition(reader, word)?,
            "--ctstate" | "--state" => self.state_condition(reader, word)?,
            _ => self.other(word, false, reader),
        }
        Ok(())
    }

    fn mark_condition(&mut self, reader: &mut Reader, word: &str) -> Result<(), String> {
        self.mark = true;
        reader.value(word).map(drop)
    }

    fn state_condition(&mut self, reader: &mut Reader, word: &str) -> Result<(), String> {
        self.state = true;
        reader.value(word).map(drop)
    }

    /// An option of which nothing is known: what follows it up to the next option is its values.
    fn other(&mut self, word: &str, negated: bool, reader: &mut Reader) {
        match (word, negated) {
            ("--mark", true) => self.mark = true,
            ("--ctstate" | "--state", true) => self.state = true,
            ("--physdev-is-in", true) => self.physical_device = true,
            ("--match-set", _) => {
                self.set = true;
                self.others.push(word.to_owned());
            }
            _ => self.others.push(word.to_owned()),
        }
        while reader
            .words
            .peek()
            .is_some_and(|next| !next.starts_with('-') && next != "!")
        {
            reader.words.next();
        }
    }

    fn recent(&mut self) -> &mut Recent {
        self.recent.get_or_insert_default()
    }

    /// Every kind of condition that the rule has.
    pub(super) fn kinds(&self) -> Vec<Kind> {
        let all = [
            (self.source.is_some(), Kind::Source),
            (self.destination.is_some(), Kind::Destination),
            (self.protocol.is_some(), Kind::Protocol),
            (self.source_port.is_some(), Kind::SourcePort),
            (self.destination_port.is_some(), Kind::DestinationPort),
            (self.probability.is_some(), Kind::Probability),
            (self.recent.is_some(), Kind::Recent),
            (self.source_type.is_some(), Kind::SourceType),
            (self.destination_type.is_some(), Kind::DestinationType),
            (self.in_interface.is_some(), Kind::InInterface),
            (self.physical_device, Kind::PhysicalDevice),
            (self.mark, Kind::Mark),
            (self.state, Kind::State),
            (self.accounting, Kind::Accounting),
            (!self.others.is_empty(), Kind::Other),
        ];
        all.into_iter().filter(|(has, _)| *has).map(|(_, kind)| kind).collect()
    }

    /// Whether the rule has no condition beyond these.
    pub(super) fn has_only(&self, allowed: &[Kind]) -> bool {
        self.kinds().iter().all(|kind| allowed.contains(kind))
    }

    /// The target, or nothing.
    pub(super) fn target(&self) -> &str {
        self.target.as_deref().unwrap_or("")
    }

    /// The one host that it is for.
    pub(super) fn host(&self) -> Option<IpAddr> {
        let condition = self.destination.as_ref().filter(|condition| !condition.negated)?;
        (condition.value.prefix_len() == condition.value.max_prefix_len()).then(|| condition.value.addr())
    }

    /// The one port that it is for; 0 where it is for all.
    pub(super) fn port(&self) -> Option<u16> {
        match &self.destination_port {
            None => Some(0),
            Some(Condition { negated: false, value }) if value.start() == value.end() => Some(*value.start()),
            Some(_) => None,
        }
    }

    /// Whether the sender must be an address of this host.
    pub(super) fn is_from_here(&self) -> bool {
        is_local(self.source_type.as_ref())
    }

    /// Whether the receiver must be an address of this host.
    pub(super) fn is_to_here(&self) -> bool {
        is_local(self.destination_type.as_ref())
    }

    fn family(&self) -> Option<bool> {
        let networks = [&self.source, &self.destination].into_iter().flatten();
        let to = self
            .to
            .as_deref()
            .map(|to| !to.starts_with('[') && to.matches(':').count() < 2);
        networks.map(|network| network.value.addr().is_ipv4()).next().or(to)
    }
}

fn is_local(condition: Option<&Condition<String>>) -> bool {
    condition.is_some_and(|condition| !condition.negated && condition.value == "LOCAL")
}

/// A condition that the rule has.
#[expect(clippy::unnecessary_wraps, reason = "what it is given to may be without one")]
const fn is<T>(negated: bool, value: T) -> Option<Condition<T>> {
    Some(Condition { negated, value })
}

struct Reader {
    words: std::iter::Peekable<std::iter::Skip<std::vec::IntoIter<String>>>,
}

impl Reader {
    fn value(&mut self, option: &str) -> Result<String, String> {
        self.words.next().ok_or_else(|| format!("{option} has no value"))
    }

    fn peek_is(&mut self, word: &str) -> bool {
        self.words.peek().is_some_and(|next| next == word)
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    let wrong = || format!("{text:?} is no address or network");
    let (host, mask) = text
        .split_once('/')
        .map_or((text, None), |(host, mask)| (host, Some(mask)));
    let host: IpAddr = host.parse().ok().ok_or_else(wrong)?;
    let length = match mask {
        None if host.is_ipv4() => 32,
        None => 128,
        Some(mask) => match mask.parse::<IpAddr>() {
            Ok(mask) => ipnet::ip_mask_to_prefix(mask).ok().ok_or_else(wrong)?,
            Err(_) => mask.parse().ok().ok_or_else(wrong)?,
        },
    };
    Ok(IpNet::new(host, length).ok().ok_or_else(wrong)?.trunc())
}

/// `80` or `1024:65535`; `:80` and `1024:` are open on one side.
fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    let read = |text: &str, open: u16| match text {
        "" => Some(open),
        digits => digits.parse().ok(),
    };
    match (read(first, 0), read(last, u16::MAX)) {
        (Some(first), Some(last)) if first <= last && !text.is_empty() => Ok(first..=last),
        _ => Err(format!("{text:?} is no port or range of ports")),
    }
}

fn share(text: &str) -> Result<f64, String> {
    let read = text.parse::<f64>().ok().filter(|share| (0.0..=1.0).contains(share));
    read.ok_or_else(|| format!("{text:?} is no probability"))
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().ok().ok_or_else(|| format!("{text:?} is no whole number"))
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().ok().ok_or_else(|| format!("{text:?} is no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_the_same_in_whatever_order_its_conditions_are_written() {
        let written =
            "-A KUBE-SERVICES -m comment --comment \"a cluster IP\" -m tcp -p tcp -d 10.0.0.1 --dport 80 -j X";
        let saved = "[7:420] -A KUBE-SERVICES -d 10.0.0.1/32 -p tcp -m comment --comment \"a cluster IP\" -m tcp --dport 80 -j X";
        assert_eq!(Rule::parse(written), Rule::parse(saved));
        let rule = Rule::parse(saved).unwrap();
        assert_eq!((rule.host(), rule.port()), (Some([10, 0, 0, 1].into()), Some(80)));
        assert_eq!(rule.v4, Some(true));
    }

    #[test]
    fn what_kube_proxy_never_writes_is_a_condition_all_the_same() {
        let rule = Rule::parse("-A X -m multiport --dports 80,443 -m mark ! --mark 0x4000/0x4000 -j Y").unwrap();
        assert_eq!(rule.kinds(), [Kind::Mark, Kind::Other]);
        assert_eq!(rule.target(), "Y");
    }

    #[test]
    fn values_that_cannot_be_are_named() {
        for (line, word) in [
            ("-A X -d 10.0.0.1/33", "10.0.0.1/33"),
            ("-A X --dport 70000", "70000"),
            ("-A X --probability 2", "\"2\""),
            ("-A X -j", "-j"),
            ("-D X -j Y", "-A"),
        ] {
            let error = Rule::parse(line).unwrap_err();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
