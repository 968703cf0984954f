//! The words of closed sets, one list for reading, writing and comparing.
use super::validate::ONE_PACKET;
use super::{Attach, Backend, Firewall};
use lbd_core::flow::Protocol;
use lbd_core::policy::{Evaluation, Masquerade, Mode, OnBackendRemoved, UnknownReply, UnknownTcp};
use lbd_core::scheduler::{IdleFlags, Kind};

/// Words and what they mean.
pub(super) type Words<T> = [(&'static str, T)];

pub(super) const MODE: &Words<Mode> = &[("ipvs", Mode::Ipvs), ("iptables", Mode::Iptables)];

pub(super) const PROTOCOLS: &Words<Protocol> =
    &[("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("sctp", Protocol::Sctp)];

pub(super) const EVALUATION: &Words<Evaluation> = &[("compiled", Evaluation::Compiled), ("linear", Evaluation::Linear)];

pub(super) const BACKEND: &Words<Backend> = &[("tun", Backend::Tun), ("af_xdp", Backend::AfXdp)];

pub(super) const ATTACH: &Words<Attach> = &[
    ("auto", Attach::Auto),
    ("native", Attach::Native),
    ("generic", Attach::Generic),
];

pub(super) const FIREWALL: &Words<Firewall> = &[("warn", Firewall::Warn), ("open", Firewall::Open)];

pub(super) const MASQUERADE: &Words<Masquerade> = &[
    ("auto", Masquerade::Auto),
    ("always", Masquerade::Always),
    ("never", Masquerade::Never),
];

pub(super) const ON_BACKEND_REMOVED: &Words<OnBackendRemoved> = &[
    ("preserve", OnBackendRemoved::Preserve),
    ("reset", OnBackendRemoved::Reset),
    ("reschedule", OnBackendRemoved::Reschedule),
    ("drop", OnBackendRemoved::Drop),
];

pub(super) const UNKNOWN_TCP: &Words<UnknownTcp> = &[
    (UnknownTcp::Drop.name(), UnknownTcp::Drop),
    (UnknownTcp::Pass.name(), UnknownTcp::Pass),
    (UnknownTcp::Reset.name(), UnknownTcp::Reset),
];

pub(super) const UNKNOWN_REPLY: &Words<UnknownReply> = &[
    (UnknownReply::Drop.name(), UnknownReply::Drop),
    (UnknownReply::Reset.name(), UnknownReply::Reset),
];

/// `scheduler_flags` of schedulers that the service does not have.
pub(super) const IDLE_FLAGS: &Words<IdleFlags> = &[
    ("sh-port", IdleFlags::SH_PORT),
    ("sh-fallback", IdleFlags::SH_FALLBACK),
    ("mh-port", IdleFlags::MH_PORT),
    ("mh-fallback", IdleFlags::MH_FALLBACK),
];

/// Keys of `[conntrack]` for the TCP states, in the order of [`lbd_core::conntrack::tcp::State::ALL`].
pub(super) const TCP_TIMEOUTS: [&str; 11] = [
    "tcp_none",
    "tcp_established",
    "tcp_syn_sent",
    "tcp_syn_recv",
    "tcp_fin",
    "tcp_time_wait",
    "tcp_close",
    "tcp_close_wait",
    "tcp_last_ack",
    "tcp_listen",
    "tcp_synack",
];

/// Keys of `[conntrack]` for the SCTP states, in the order of [`lbd_core::conntrack::sctp::State::ALL`].
pub(super) const SCTP_TIMEOUTS: [&str; 14] = [
    "sctp_none",
    "sctp_init1",
    "sctp_init",
    "sctp_cookie_sent",
    "sctp_cookie_replied",
    "sctp_cookie_wait",
    "sctp_cookie",
    "sctp_cookie_echoed",
    "sctp_established",
    "sctp_shutdown_sent",
    "sctp_shutdown_received",
    "sctp_shutdown_ack_sent",
    "sctp_rejected",
    "sctp_closed",
];

/// The words that a key takes; none where it takes any text.
pub(super) fn of_key(key: &str) -> Vec<&'static str> {
    match key {
        "mode" => names(MODE),
        "protocol" => names(PROTOCOLS),
        "scheduler" => Kind::ALL.map(Kind::name).to_vec(),
        "scheduler_flags" => names(IDLE_FLAGS).into_iter().chain([ONE_PACKET]).collect(),
        "evaluation" => names(EVALUATION),
        "backend" => names(BACKEND),
        "attach" => names(ATTACH),
        "masquerade" => names(MASQUERADE),
        "on_backend_removed" => names(ON_BACKEND_REMOVED),
        "unknown_tcp" => names(UNKNOWN_TCP),
        "unknown_reply" => names(UNKNOWN_REPLY),
        _ => Vec::new(),
    }
}

fn names<T>(words: &Words<T>) -> Vec<&'static str> {
    words.iter().map(|&(word, _)| word).collect()
}

/// The word for `value`.
pub(super) fn word_of<T: Copy + PartialEq>(value: T, words: &Words<T>) -> &'static str {
    words
        .iter()
        .find(|(_, meaning)| *meaning == value)
        .map_or("", |(word, _)| word)
}

/// The meaning of `word`.
pub(super) fn meaning_of<T: Copy>(word: &str, words: &Words<T>) -> Option<T> {
    words
        .iter()
        .find(|(known, _)| *known == word)
        .map(|&(_, meaning)| meaning)
}
