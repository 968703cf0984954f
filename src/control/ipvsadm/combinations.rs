//! Every option of ipvsadm, and which go with which command (`commands_v_options` of ipvsadm.c).
use super::words::{Spec, Takes};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    AddService,
    EditService,
    DeleteService,
    Clear,
    List,
    AddServer,
    DeleteServer,
    EditServer,
    Set([u32; 3]),
    StartDaemon,
    StopDaemon,
    Restore,
    Save,
    Zero,
    Help,
    Version,
}

const fn spec(long: &'static str, short: Option<char>, value: Takes) -> Spec {
    Spec { long, short, value }
}

use Takes::{MaybeValue, Nothing, Value};

pub(super) const SPECS: &[Spec] = &[
    spec("add-service", Some('A'), Nothing),
    spec("edit-service", Some('E'), Nothing),
    spec("delete-service", Some('D'), Nothing),
    spec("clear", Some('C'), Nothing),
    spec("list", Some('L'), Nothing),
    spec("list", Some('l'), Nothing),
    spec("zero", Some('Z'), Nothing),
    spec("add-server", Some('a'), Nothing),
    spec("edit-server", Some('e'), Nothing),
    spec("delete-server", Some('d'), Nothing),
    spec("set", None, Nothing),
    spec("help", Some('h'), Nothing),
    spec("version", Some('v'), Nothing),
    spec("restore", Some('R'), Nothing),
    spec("save", Some('S'), Nothing),
    spec("start-daemon", None, Value),
    spec("stop-daemon", None, Value),
    spec("tcp-service", Some('t'), Value),
    spec("udp-service", Some('u'), Value),
    spec("sctp-service", None, Value),
    spec("fwmark-service", Some('f'), Value),
    spec("scheduler", Some('s'), Value),
    spec("persistent", Some('p'), MaybeValue),
    spec("netmask", Some('M'), Value),
    spec("real-server", Some('r'), Value),
    spec("masquerading", Some('m'), Nothing),
    spec("ipip", Some('i'), Nothing),
    spec("gatewaying", Some('g'), Nothing),
    spec("weight", Some('w'), Value),
    spec("u-threshold", Some('x'), Value),
    spec("l-threshold", Some('y'), Value),
    spec("numeric", Some('n'), Nothing),
    spec("connection", Some('c'), Nothing),
    spec("mcast-interface", None, Value),
    spec("syncid", None, Value),
    spec("timeout", None, Nothing),
    spec("daemon", None, Nothing),
    spec("stats", None, Nothing),
    spec("rate", None, Nothing),
    spec("thresholds", None, Nothing),
    spec("persistent-conn", None, Nothing),
    spec("nosort", None, Nothing),
    spec("sort", None, Nothing),
    spec("exact", Some('X'), Nothing),
    spec("ipv6", Some('6'), Nothing),
    spec("ops", Some('o'), Nothing),
    spec("pe", None, Value),
    spec("sched-flags", Some('b'), Value),
    spec("mcast-group", None, Value),
    spec("mcast-port", None, Value),
    spec("mcast-ttl", None, Value),
    spec("sync-maxlen", None, Value),
    spec("tun-info", None, Nothing),
    spec("tun-type", None, Value),
    spec("tun-port", None, Value),
    spec("tun-nocsum", None, Nothing),
    spec("tun-csum", None, Nothing),
    spec("tun-remcsum", None, Nothing),
];

/// `optnames`: the words of messages, in the order in which combinations are checked.
pub(super) const NAMES: [&str; 34] = [
    "numeric",
    "connection",
    "service-address",
    "scheduler",
    "persistent",
    "netmask",
    "real-server",
    "forwarding-method",
    "weight",
    "u-threshold",
    "l-threshold",
    "mcast-interface",
    "timeout",
    "daemon",
    "stats",
    "rate",
    "thresholds",
    "persistent-conn",
    "nosort",
    "syncid",
    "exact",
    "ops",
    "pe",
    "sched-flags",
    "mcast-group",
    "mcast-port",
    "mcast-ttl",
    "sync-maxlen",
    "tun-info",
    "tun-type",
    "tun-port",
    "tun-nocsum",
    "tun-csum",
    "tun-remcsum",
];

/// Which options a command needs, takes at most one of, and takes.
pub(super) struct Combination {
    pub(super) name: &'static str,
    pub(super) needs: &'static [&'static str],
    pub(super) one_of: &'static [&'static str],
    pub(super) takes: &'static [&'static str],
}

const SERVICE_KEYS: &[&str] = &["scheduler", "persistent", "netmask", "ops", "pe", "sched-flags"];
const SERVER_KEYS: &[&str] = &[
    "forwarding-method",
    "weight",
    "u-threshold",
    "l-threshold",
    "tun-type",
    "tun-port",
    "tun-nocsum",
    "tun-csum",
    "tun-remcsum",
];
const LIST_KEYS: &[&str] = &[
    "numeric",
    "stats",
    "rate",
    "thresholds",
    "persistent-conn",
    "nosort",
    "exact",
    "tun-info",
    "syncid",
];
const DAEMON_KEYS: &[&str] = &[
    "mcast-interface",
    "syncid",
    "mcast-group",
    "mcast-port",
    "mcast-ttl",
    "sync-maxlen",
];
const SERVICE: &[&str] = &["service-address"];
const SERVER: &[&str] = &["service-address", "real-server"];
const LISTED: &[&str] = &["connection", "service-address", "timeout", "daemon"];

impl Command {
    pub(super) const fn combination(self) -> Combination {
        let (name, needs, one_of, takes): (_, &[&str], &[&str], &[&str]) = match self {
            Self::AddService => ("add-service", SERVICE, &[], SERVICE_KEYS),
            Self::EditService => ("edit-service", SERVICE, &[], SERVICE_KEYS),
            Self::DeleteService => ("delete-service", SERVICE, &[], &[]),
            Self::Clear => ("flush", &[], &[], &[]),
            Self::List => ("list", &[], LISTED, LIST_KEYS),
            Self::AddServer => ("add-server", SERVER, &[], SERVER_KEYS),
            Self::DeleteServer => ("delete-server", SERVER, &[], &[]),
            Self::EditServer => ("edit-server", SERVER, &[], SERVER_KEYS),
            Self::Set(_) => ("set", &[], &[], &[]),
            Self::StartDaemon => ("start-daemon", &[], &[], DAEMON_KEYS),
            Self::StopDaemon => ("stop-daemon", &[], &[], &["syncid"]),
            Self::Restore => ("restore", &[], &[], &[]),
            Self::Save => ("save", &[], &[], &["numeric"]),
            Self::Zero => ("zero", &[], &[], SERVICE),
            Self::Help => ("help", &[], &[], &[]),
            Self::Version => ("version", &[], &[], &[]),
        };
        Combination {
            name,
            needs,
            one_of,
            takes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_a_message_is_a_name_in_the_table() {
        let sets = [SERVICE_KEYS, SERVER_KEYS, LIST_KEYS, DAEMON_KEYS, SERVER, LISTED];
        for name in sets.concat() {
            assert!(NAMES.contains(&name), "{name}");
        }
    }
}
