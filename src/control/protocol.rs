//! What is said over the control socket: one JSON document a line, a [`Request`] up and a [`Reply`] down.
//!
//! The views below are also what `lbctl --json` prints: their keys are part of the outside surface.
pub mod explanation;
pub mod shadow;

use std::borrow::Cow;
use std::path::PathBuf;

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use self::explanation::{Explanation, Question};
use self::shadow::ShadowView;
use lbd_core::flow::{Endpoint, Protocol};
use lbd_core::policy::Mode;
use lbd_core::service::Totals;
use lbd_core::verdict::Verdict;
use lbd_state::config::edit::{Edit, Mistake, Refusal, Which};
use lbd_state::config::text;

/// What an operator asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case")]
pub enum Request {
    /// How it goes. Answered with [`Data::Status`].
    Status,
    /// Services and backends. Answered with [`Data::Services`].
    List {
        /// Only this one: a name, or one of its addresses. See [`super::selector::Selector`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service: Option<String>,
    },
    /// Flows. Answered with [`Data::Connections`].
    Connections {
        /// Only those of this service: a name, or the address that the client used.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service: Option<String>,
    },
    /// The ordered rule list. Answered with [`Data::Rules`].
    Rules,
    /// Counts of every reason. Answered with [`Data::Drops`].
    Drops,
    /// What would happen to a packet; nothing happens. Answered with [`Data::Explanation`].
    Explain {
        /// The packet.
        packet: Question,
    },
    /// Which matcher is in use. Answered with [`Data::Mode`].
    Mode,
    /// Use the other matcher. Answered with [`Data::Message`].
    SwitchMode {
        /// The one to use from now on.
        #[serde(with = "text::mode")]
        mode: Mode,
    },
    /// Read the configuration file again. Answered with [`Data::Message`], or an error of one line a mistake.
    Reload,
    /// The running configuration. Answered with [`Data::Configuration`].
    Save,
    /// Change the running configuration: all of it, or nothing. Answered with [`Data::Message`].
    Edit {
        /// One after the other.
        edits: Vec<Edit>,
    },
    /// Have a backend's flows come to an end. Answered with [`Data::Drains`], those of this backend.
    Drain {
        /// The backend: `ADDRESS:PORT`, or `ADDRESS` for all its ports.
        backend: String,
        /// Only this service's; a name or an address.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service: Option<String>,
        /// After so many seconds the flows that are left are reset; None: never.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline_seconds: Option<u64>,
    },
    /// The backends that are being drained. Answered with [`Data::Drains`].
    Drains,
    /// The timeouts that `ipvsadm --set` sets. Answered with [`Data::Timeouts`].
    Timeouts,
    /// Count traffic from zero again. Answered with [`Data::Message`].
    Zero {
        /// Only this service's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service: Option<Which>,
    },
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// Done, or here it is.
    Ok(Data),
    /// Not done.
    #[serde(rename = "error")]
    Err {
        /// What was asked for, why it failed, what would be right. May have several lines.
        message: String,
        /// In short, where it was an edit.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mistake: Option<Mistake>,
    },
}

impl Reply {
    /// A refusal.
    #[must_use]
    pub fn error(message: impl Into<String>) -> Self {
        Self::Err {
            message: message.into(),
            mistake: None,
        }
    }

    /// Success with nothing to show but a line.
    #[must_use]
    pub fn message(message: impl Into<String>) -> Self {
        Self::Ok(Data::Message(message.into()))
    }
}

impl From<Refusal> for Reply {
    fn from(Refusal { mistake, message }: Refusal) -> Self {
        Self::Err {
            message,
            mistake: Some(mistake),
        }
    }
}

/// What an answer holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Data {
    /// Of [`Request::Status`].
    Status(Box<Status>),
    /// Of [`Request::List`], in the order of the configuration.
    Services(Vec<ServiceView>),
    /// Of [`Request::Connections`], in any order.
    Connections(Vec<ConnectionView>),
    /// Of [`Request::Rules`], in the order in which they are checked.
    Rules(Vec<RuleView>),
    /// Of [`Request::Drops`].
    Drops(Drops),
    /// Of [`Request::Explain`].
    Explanation(Box<Explanation>),
    /// Of [`Request::Mode`].
    Mode(#[serde(with = "text::mode")] Mode),
    /// The running configuration as TOML.
    Configuration(String),
    /// Backends that are being drained.
    Drains(Vec<DrainView>),
    /// Of [`Request::Timeouts`].
    Timeouts(TimeoutsView),
    /// One line on what was done.
    Message(String),
}

/// How lbd is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Of lbd.
    pub version: String,
    /// Which matcher.
    #[serde(with = "text::mode")]
    pub mode: Mode,
    /// Where packets come from: `tun` or `af_xdp`.
    pub backend: String,
    /// The configuration file.
    pub config: PathBuf,
    /// Of lbd.
    pub pid: u32,
    /// Since traffic was first served.
    pub uptime_seconds: u64,
    /// Threads that move packets.
    pub workers: usize,
    /// Configured.
    pub services: usize,
    /// Configured, of all services.
    pub backends: usize,
    /// In the connection table.
    pub flows: usize,
    /// As many may be.
    pub max_flows: usize,
    /// Bytes that the connection table takes; what flows that are gone took is kept for others.
    #[serde(default)]
    pub flow_table_bytes: usize,
    /// What becomes of TCP segments of unknown connections: `drop`, `pass` or `reset`.
    #[serde(default)]
    pub unknown_tcp: String,
    /// Whether services' addresses answer echo requests.
    #[serde(default)]
    pub echo: bool,
    /// Flows by protocol and state; states without a flow may be left out.
    pub flows_by_state: Vec<StateCount>,
    /// Since the start.
    pub packets: PacketCounts,
    /// Datagrams that come in fragments.
    pub fragments: FragmentsView,
    /// Packets that the device did not take.
    pub unsent: u64,
    /// None before the first reload.
    pub last_reload: Option<LastReload>,
    /// What lbd needs in the kernel and others took away, where it cannot be put back: why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub troubles: Vec<String>,
    /// What of this host's own drops packets of lbd's, each with its remedy.
    #[serde(default)]
    pub firewall: Vec<String>,
    /// Backends that are being drained.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub draining: Vec<DrainView>,
    /// Of `shadow = true`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowView>,
    /// Of `backend = "af_xdp"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub af_xdp: Option<AfXdpView>,
}

/// How lbd serves interfaces by AF_XDP. All counts are packets since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AfXdpView {
    /// In the order of the configuration.
    pub interfaces: Vec<InterfaceView>,
    /// Taken by the XDP program for lbd.
    pub taken: u64,
    /// Left to the kernel by the XDP program.
    pub left_to_kernel: u64,
    /// Translated by lbd and routed by the kernel: to this host itself, by another device, or while a neighbour was
    /// unresolved.
    pub routed_by_kernel: u64,
    /// Given back to the kernel as they came, because they were not lbd's.
    pub given_back: u64,
    /// Whose checksum a local sender had left unfinished.
    pub finished_checksums: u64,
    /// Questions for the link address of a service that were answered.
    pub answered_neighbours: u64,
    /// Why all packets of an IP version are routed by the kernel, where they are.
    pub detours: Vec<String>,
}

/// An interface that is served by AF_XDP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceView {
    /// Its name.
    pub name: String,
    /// Where the XDP program runs: `native` or `generic`; `gone`: the interface was removed.
    pub attach: String,
    /// Its receive queues.
    pub queues: Vec<QueueView>,
}

/// A socket on a receive queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueView {
    /// Of the interface.
    pub queue: u32,
    /// Whether the driver writes to lbd's memory itself.
    pub zero_copy: bool,
    /// Packets received.
    pub received: u64,
    /// Packets sent.
    pub sent: u64,
    /// Packets that were not sent: the ring was full, or the device refused them.
    pub unsent: u64,
    /// Packets that the kernel dropped: longer than a frame, or no memory.
    pub dropped: u64,
    /// Packets that came while the receive ring was full.
    pub receive_ring_full: u64,
    /// Times that there was no frame for a packet.
    pub no_frame: u64,
    /// Descriptors that the kernel did not take; anything but 0 is a fault of lbd.
    pub invalid: u64,
}

/// A backend that is being drained: it gets no new flow, and those that it has come to an end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainView {
    /// Name of the service.
    pub service: String,
    /// Where it listens.
    #[serde(with = "text")]
    pub backend: Endpoint,
    /// Since when.
    pub draining_seconds: u64,
    /// Until the flows that are left are reset; 0 when that is under way, None when it will not be.
    pub deadline_seconds: Option<u64>,
    /// That are left.
    pub remaining_flows: u64,
    /// Age of the oldest of them.
    pub oldest_flow_seconds: Option<u64>,
}

/// Seconds, as `ipvsadm -L --timeout` shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it all")]
pub struct TimeoutsView {
    pub tcp_established_seconds: u64,
    pub tcp_fin_seconds: u64,
    pub udp_seconds: u64,
}

/// How many flows are in a state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateCount {
    /// Transport protocol.
    #[serde(with = "text")]
    pub protocol: Protocol,
    /// As in [`ConnectionView::state`].
    pub state: Cow<'static, str>,
    /// How many.
    pub flows: u64,
}

/// Packets by verdict: `in` = forward + pass + reject + drop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketCounts {
    /// All that came.
    #[serde(rename = "in")]
    pub received: u64,
    /// Rewritten and sent on.
    pub forward: u64,
    /// Left alone.
    pub pass: u64,
    /// Answered with a refusal.
    pub reject: u64,
    /// Gone.
    pub drop: u64,
}

impl PacketCounts {
    /// Sums up counters by verdict.
    #[must_use]
    pub fn new(count: impl Fn(Verdict) -> u64) -> Self {
        let mut sums = Self::default();
        for verdict in Verdict::all() {
            let packets = count(verdict);
            let sum = match verdict {
                Verdict::Forward => &mut sums.forward,
                Verdict::Pass(_) => &mut sums.pass,
                Verdict::Reject(_) => &mut sums.reject,
                Verdict::Drop(_) => &mut sums.drop,
                // Not counted before it is decided about.
                Verdict::Hold => continue,
            };
            *sum += packets;
            sums.received += packets;
        }
        sums
    }
}

/// Datagrams that come in fragments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FragmentsView {
    /// Datagrams of which some fragments have come, and not all.
    pub datagrams: usize,
    /// Fragments that wait for the first one of their datagram.
    pub held: usize,
    /// The length of these.
    pub held_bytes: usize,
}

/// How the last reload went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastReload {
    /// How long ago.
    pub seconds_ago: u64,
    /// Whether the file was taken over.
    pub succeeded: bool,
    /// The summary of changes, or the errors.
    pub result: String,
}

/// A virtual server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceView {
    /// Unique.
    pub name: String,
    /// Transport protocol.
    #[serde(with = "text")]
    pub protocol: Protocol,
    /// Where it answers: the cluster address, external addresses, then node ports.
    #[serde(with = "text::list")]
    pub addresses: Vec<Endpoint>,
    /// The one in use, named by the service or not.
    pub scheduler: String,
    /// `sh-fallback`, `sh-port`, `mh-fallback`, `mh-port`.
    pub scheduler_flags: Vec<String>,
    /// Client affinity.
    pub persistence: Option<PersistenceView>,
    /// Each datagram is scheduled anew.
    #[serde(default)]
    pub one_packet: bool,
    /// Since the start.
    pub stats: StatsView,
    /// Now, by and large.
    pub rates: RatesView,
    /// In scheduling order.
    pub backends: Vec<BackendView>,
}

/// Client affinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PersistenceView {
    /// After the last flow.
    pub timeout_seconds: u64,
    /// Leading bits of the client's address that count.
    pub prefix_length: u8,
}

/// A real server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendView {
    /// Where it listens.
    #[serde(with = "text")]
    pub address: Endpoint,
    /// Its share; 0 drains it.
    pub weight: u32,
    /// No new flow at this many; 0: no limit.
    pub upper_threshold: u32,
    /// New flows again below this; 0: three quarters of the upper one.
    pub lower_threshold: u32,
    /// Flows in an active state.
    pub active_connections: u32,
    /// All other flows.
    pub inactive_connections: u32,
    /// Clients that affinity keeps here.
    #[serde(default)]
    pub persistent_connections: u32,
    /// Whether the upper threshold keeps new flows away.
    pub overloaded: bool,
    /// Since the start.
    pub stats: StatsView,
    /// Now, by and large.
    pub rates: RatesView,
}

/// Traffic so far; `in` is from clients, `out` is to clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it all")]
pub struct StatsView {
    pub connections: u64,
    pub in_packets: u64,
    pub out_packets: u64,
    pub in_bytes: u64,
    pub out_bytes: u64,
}

impl From<Totals> for StatsView {
    fn from(totals: Totals) -> Self {
        Self {
            connections: totals.connections,
            in_packets: totals.in_packets,
            out_packets: totals.out_packets,
            in_bytes: totals.in_bytes,
            out_bytes: totals.out_bytes,
        }
    }
}

/// Smoothed traffic; see [`super::estimator`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it all")]
pub struct RatesView {
    pub connections_per_second: u64,
    pub in_packets_per_second: u64,
    pub out_packets_per_second: u64,
    pub in_bytes_per_second: u64,
    pub out_bytes_per_second: u64,
}

/// A flow, or a persistence template (client port 0).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionView {
    /// Transport protocol.
    #[serde(with = "text")]
    pub protocol: Protocol,
    /// In the words of `ipvsadm -Lc`: `ESTABLISHED`, `UDP`, ...
    pub state: Cow<'static, str>,
    /// Until it is forgotten, if it stays idle.
    pub expires_seconds: u64,
    /// Who opened it.
    #[serde(with = "text")]
    pub client: Endpoint,
    /// What the client talks to.
    #[serde(rename = "virtual", with = "text")]
    pub virtual_address: Endpoint,
    /// Who answers.
    #[serde(with = "text")]
    pub backend: Endpoint,
    /// The client as the backend sees it.
    #[serde(with = "text")]
    pub source: Endpoint,
    /// Name of the service.
    pub service: String,
    /// Whether `source` is one of lbd's addresses.
    pub masqueraded: bool,
}

/// Where a rule comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleKind {
    /// Written in `[[rules]]`.
    User,
    /// Made from one of `[[services]]`.
    Service,
}

/// A rule of iptables mode. Conditions are written as in the configuration, `!` included; None matches everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RuleView {
    /// From 1, in the order in which rules are checked.
    pub number: usize,
    /// The rule's, or the service's.
    pub name: Option<String>,
    /// Where it comes from.
    pub kind: RuleKind,
    /// `tcp`
    pub protocol: Option<String>,
    /// `203.0.113.0/24`
    pub source: Option<String>,
    /// `10.96.0.0/16`
    pub destination: Option<String>,
    /// `1024-65535`
    pub source_port: Option<String>,
    /// `80`
    pub destination_port: Option<String>,
    /// From 0 to 1.
    pub probability: Option<f64>,
    /// `drop`, `reject`, `pass` or `service:NAME`.
    pub action: String,
    /// That matched.
    pub packets: u64,
    /// That matched.
    pub bytes: u64,
}

/// How a packet that was not forwarded ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// Gone.
    Drop,
    /// Answered with a refusal.
    Reject,
    /// Left alone.
    Pass,
}

impl Ending {
    /// `drop`, `reject` or `pass`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Reject => "reject",
            Self::Pass => "pass",
        }
    }

    const fn of(verdict: Verdict) -> Option<Self> {
        match verdict {
            Verdict::Forward | Verdict::Hold => None,
            Verdict::Pass(_) => Some(Self::Pass),
            Verdict::Reject(_) => Some(Self::Reject),
            Verdict::Drop(_) => Some(Self::Drop),
        }
    }
}

/// The count of one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonCount {
    /// What became of the packets.
    pub verdict: Ending,
    /// Why.
    pub reason: Cow<'static, str>,
    /// How many.
    pub packets: u64,
}

/// Every reason with its count: drops first, then rejects, then passes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Drops(pub Vec<ReasonCount>);

impl Drops {
    /// All reasons there are, from counters by verdict.
    #[must_use]
    pub fn new(count: impl Fn(Verdict) -> u64) -> Self {
        let counts = |ending: Ending| {
            let verdicts = Verdict::all().filter(move |&verdict| Ending::of(verdict) == Some(ending));
            verdicts.filter_map(|verdict| Some((verdict, verdict.reason()?)))
        };
        let endings = [Ending::Drop, Ending::Reject, Ending::Pass];
        let reasons = endings
            .into_iter()
            .flat_map(|ending| counts(ending).map(move |(verdict, reason)| (ending, verdict, reason)));
        let count = |(verdict, of, reason)| ReasonCount {
            verdict,
            reason: Cow::Borrowed(reason),
            packets: count(of),
        };
        Self(reasons.map(count).collect())
    }

    /// `{"drops":{REASON:COUNT},"rejects":{...},"passes":{...}}`, as `lbctl drops --json` prints it.
    #[must_use]
    pub fn by_verdict(&self) -> impl Serialize + '_ {
        ByVerdict {
            drops: Reasons(self, Ending::Drop),
            rejects: Reasons(self, Ending::Reject),
            passes: Reasons(self, Ending::Pass),
        }
    }
}

#[derive(Serialize)]
struct ByVerdict<'a> {
    drops: Reasons<'a>,
    rejects: Reasons<'a>,
    passes: Reasons<'a>,
}

struct Reasons<'a>(&'a Drops, Ending);

impl Serialize for Reasons<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(None)?;
        let Drops(counts) = self.0;
        for count in counts.iter().filter(|count| count.verdict == self.1) {
            map.serialize_entry(&count.reason, &count.packets)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests;
