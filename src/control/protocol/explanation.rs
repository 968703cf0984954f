//! What `lbctl explain` asks and is told.
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use lbd_core::flow::{Endpoint, Protocol, Tuple};
use lbd_core::policy::Mode;
use lbd_core::verdict::Verdict;
use lbd_state::config::text;

/// The packet to explain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// A first packet: a SYN, or a datagram.
    First {
        /// Transport protocol.
        #[serde(with = "text")]
        protocol: Protocol,
        /// Who sends it.
        #[serde(with = "text")]
        source: Endpoint,
        /// Where to.
        #[serde(with = "text")]
        destination: Endpoint,
    },
    /// This very IP packet.
    Hex(#[serde(with = "text")] Hex),
}

/// Bytes, written as hexadecimal digits; spaces and colons between them count for nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hex(pub Vec<u8>);

/// The text is no bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoHex {
    /// Another character.
    #[error("{0:?} is no hexadecimal digit: expected an IP packet as 0-9 and a-f, two digits a byte")]
    Digit(char),
    /// Half a byte is left over, or nothing is there.
    #[error("{0} hexadecimal digits are no whole bytes: expected an IP packet, two digits a byte")]
    Odd(usize),
}

impl FromStr for Hex {
    type Err = NoHex;

    fn from_str(text: &str) -> Result<Self, NoHex> {
        let text = text.trim();
        let text = text.strip_prefix("0x").unwrap_or(text);
        let digits = text.chars().filter(|letter| !letter.is_whitespace() && *letter != ':');
        let value = |letter: char| letter.to_digit(16).ok_or(NoHex::Digit(letter));
        let digits: Vec<u32> = digits.map(value).collect::<Result<_, _>>()?;
        if digits.is_empty() || digits.len() % 2 == 1 {
            return Err(NoHex::Odd(digits.len()));
        }
        // Two digits are at most 255.
        Ok(Self(
            digits
                .chunks_exact(2)
                .map(|pair| (pair[0] << 4 | pair[1]) as u8)
                .collect(),
        ))
    }
}

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What would happen to a packet, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// Which matcher.
    #[serde(with = "text::mode")]
    pub mode: Mode,
    /// One after the other.
    pub steps: Vec<Step>,
    /// `forward`, `pass`, `reject` or `drop`.
    pub verdict: Cow<'static, str>,
    /// Of all but `forward`.
    pub reason: Option<Cow<'static, str>>,
    /// Whose packet it is, where it is one's.
    pub service: Option<String>,
    /// Where it goes, or whom it comes from.
    #[serde(default, with = "text::option")]
    pub backend: Option<Endpoint>,
    /// Whether the backend, or the verdict, is one of several between which chance decides.
    pub by_chance: bool,
    /// What was not looked at.
    pub notes: Vec<Cow<'static, str>>,
}

impl Explanation {
    /// Sets the end of the packet's way.
    pub fn end(&mut self, verdict: Verdict) {
        self.verdict = Cow::Borrowed(verdict.name());
        self.reason = verdict.reason().map(Cow::Borrowed);
    }
}

/// A step on the way of a packet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// The packet as it is read.
    Packet(PacketStep),
    /// It cannot be read.
    Unreadable {
        /// `not_ip` or `malformed`.
        problem: Cow<'static, str>,
    },
    /// It belongs to a flow.
    Flow(Box<FlowStep>),
    /// It belongs to no flow.
    NoFlow,
    /// iptables mode: the list is looked through.
    Rules(RulesStep),
    /// ipvs mode: the destination is looked up.
    VirtualServer {
        /// What is looked up.
        #[serde(with = "text")]
        destination: Endpoint,
        /// Whose address it is.
        service: Option<String>,
        /// Whether the service answers on all ports of the address.
        all_ports: bool,
    },
    /// A TCP segment that belongs to no flow must be a SYN.
    NotSyn,
    /// An SCTP packet that belongs to no flow must be an INIT.
    NotInit,
    /// Client affinity is asked.
    Affinity(AffinityStep),
    /// The scheduler is asked.
    Scheduler(SchedulerStep),
    /// The sender that the backend will see is chosen.
    Source(SourceStep),
    /// The flow is put into the connection table.
    Table {
        /// In the table.
        flows: usize,
        /// As many may be.
        max_flows: usize,
        /// `stored`, `evicts` (another flow) or `full`.
        outcome: Cow<'static, str>,
    },
    /// The packet is rewritten.
    Rewrite(RewriteStep),
    /// The packet is refused, or a question to lbd itself.
    Answer {
        /// `tcp_reset`, `icmp_port_unreachable`, `icmp_echo_reply`, `tcp_reset_to_receiver`; `none`: it may not be answered.
        answer: Cow<'static, str>,
    },
}

/// A packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketStep {
    /// Of IP: 4 or 6.
    pub version: u8,
    /// `tcp`, `udp`, `sctp`, or the IANA number.
    pub protocol: String,
    /// With the port, where there is one.
    pub source: String,
    /// With the port, where there is one.
    pub destination: String,
    /// `["syn"]`; None: no TCP.
    pub tcp_flags: Option<Vec<Cow<'static, str>>>,
    /// `init`, `abort`: the chunk that tells the state; None: no SCTP.
    #[serde(default)]
    pub sctp_chunk: Option<Cow<'static, str>>,
    /// In bytes, by the IP header.
    pub length: usize,
    /// `segment`, `datagram`, `chunks`, `fragment`, `icmp_error` or `other`.
    pub kind: Cow<'static, str>,
    /// The packet that an ICMP error is about, where that can be read.
    pub about: Option<String>,
}

/// A flow, and what becomes of the packet by it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowStep {
    /// Name.
    pub service: String,
    /// Who answers.
    #[serde(with = "text")]
    pub backend: Endpoint,
    /// Who asked.
    #[serde(with = "text")]
    pub client: Endpoint,
    /// What the client asked.
    #[serde(rename = "virtual", with = "text")]
    pub virtual_address: Endpoint,
    /// The client as the backend sees it.
    #[serde(with = "text")]
    pub source: Endpoint,
    /// `original` or `reply`.
    pub direction: Cow<'static, str>,
    /// In the words of `ipvsadm -Lc`.
    pub state: Cow<'static, str>,
    /// The state after this packet.
    pub next_state: Cow<'static, str>,
    /// Until it is forgotten, if it stays idle.
    pub expires_seconds: u64,
    /// Whether the backend has left the configuration.
    pub backend_removed: bool,
    /// `follows`; `reopened` or `rescheduled` (the flow is forgotten, and the packet opens another one); `over` (it is forgotten,
    /// and the packet is of a connection past the services); `ends`;
    /// `waits` (for its backend to come back; the packet is dropped).
    pub outcome: Cow<'static, str>,
}

/// Rules, as they are checked one after the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RulesStep {
    /// In their order: the first ones that do not match, those that chance decides on, and the one that matches.
    pub looked_at: Vec<RuleLook>,
    /// Others that do not match.
    pub not_shown: usize,
    /// The number of the rule that matches.
    pub matched: Option<usize>,
}

/// A rule that is looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuleLook {
    /// As in `lbctl rules`.
    pub number: usize,
    /// The rule's, or the service's.
    pub name: Option<String>,
    /// `drop`, `reject`, `pass` or `service:NAME`.
    pub action: String,
    /// `yes`, `no`, or `perhaps`: by chance.
    pub matches: Cow<'static, str>,
    /// The condition that is not met, or the share of packets.
    pub why: String,
}

/// Client affinity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AffinityStep {
    /// The client or its network.
    pub client: String,
    /// Where its flows go.
    #[serde(default, with = "text::option")]
    pub backend: Option<Endpoint>,
    /// Without a new flow.
    pub expires_seconds: Option<u64>,
    /// `used`, `unusable` (the backend is removed or drained, or the time is over), `none` (the client is new).
    pub outcome: Cow<'static, str>,
}

/// A scheduler's choice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchedulerStep {
    /// Its name.
    pub scheduler: String,
    /// In scheduling order.
    pub candidates: Vec<Candidate>,
    /// None: nobody may take a new flow. By chance, it is one of those that may.
    #[serde(default, with = "text::option")]
    pub pick: Option<Endpoint>,
    /// Whether the pick is by chance.
    pub by_chance: bool,
}

/// A backend that a scheduler looks at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Where it listens.
    #[serde(with = "text")]
    pub backend: Endpoint,
    /// Its share.
    pub weight: u32,
    /// Flows in an active state.
    pub active_connections: u32,
    /// All other flows.
    pub inactive_connections: u32,
    /// Whether its weight is 0.
    pub drained: bool,
    /// Whether its upper threshold keeps new flows away.
    pub overloaded: bool,
}

/// The sender that the backend sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStep {
    /// Whether it is not the client.
    pub masqueraded: bool,
    /// None: it has a port, or an address and a port, chosen by chance; or there is none.
    #[serde(default, with = "text::option")]
    pub source: Option<Endpoint>,
    /// The addresses that stand for the client.
    pub addresses: Vec<String>,
    /// Their ports, `1024-65535`.
    pub ports: Option<String>,
    /// `client`, `always`, `local_client`, `backend_itself` or `in_use` (the client's own address and port are).
    pub why: Cow<'static, str>,
    /// Whether a sender is free.
    pub found: bool,
}

/// A packet as it leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RewriteStep {
    /// Transport protocol; of an ICMP error, that of the packet that it is about.
    #[serde(with = "text")]
    pub protocol: Protocol,
    /// None: chosen by chance, see the step before.
    #[serde(default, with = "text::option")]
    pub source: Option<Endpoint>,
    /// Where it goes.
    #[serde(with = "text")]
    pub destination: Endpoint,
    /// Whether these are the addresses of the packet that an ICMP error is about, seen as an answer to it.
    pub of_quoted: bool,
}

impl RewriteStep {
    /// The packet leaves with this tuple.
    #[must_use]
    pub const fn to(tuple: &Tuple, of_quoted: bool) -> Self {
        Self {
            protocol: tuple.protocol,
            source: Some(tuple.source),
            destination: tuple.destination,
            of_quoted,
        }
    }
}
