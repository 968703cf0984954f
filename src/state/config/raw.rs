//! The TOML as written: every key that exists, each value with its place in the file.
//!
//! Not derived with serde, because serde stops at the first wrong value, and people want to see all of them.
use std::fmt;
use std::marker::PhantomData;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::Report;
use super::suggest::did_you_mean;
use super::words;

/// A key of a table.
#[derive(Debug, Default)]
pub enum Key<T> {
    /// Not written.
    #[default]
    Absent,
    /// Written, but not of the right kind; it is reported already.
    Bad,
    /// Written.
    Given(Spanned<T>),
}

impl<T> Key<T> {
    /// The value, if one was written that could be read.
    #[must_use]
    pub const fn given(&self) -> Option<&Spanned<T>> {
        match self {
            Self::Given(value) => Some(value),
            Self::Absent | Self::Bad => None,
        }
    }
}

impl<T> Key<Vec<T>> {
    /// The values of a list; none if it is not written.
    #[must_use]
    pub fn items(&self) -> &[T] {
        self.given().map_or(&[], |list| list.get_ref())
    }
}

/// Text in the file.
pub type Text<'t> = &'t str;
/// A list in the file.
pub type List<T> = Vec<Spanned<T>>;

/// A whole number, or text that may stand for one.
#[derive(Clone, Copy, Debug)]
pub enum Scalar<'t> {
    /// Quoted.
    Text(&'t str),
    /// Not quoted.
    Integer(i128),
}

impl fmt::Display for Scalar<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => write!(f, "{text:?}"),
            Self::Integer(number) => number.fmt(f),
        }
    }
}

/// `true`, `false` or a word.
#[derive(Clone, Copy, Debug)]
pub enum Switch<'t> {
    /// A word.
    Text(&'t str),
    /// Not quoted.
    Boolean(bool),
}

/// A value of the file, of a certain kind.
pub(super) trait Read<'t>: Sized {
    /// Reads it, or reports what is wrong.
    fn read(key: &str, value: &'t Spanned<DeValue<'t>>, report: &mut Report) -> Option<Self>;
}

macro_rules! tables {
    ($($(#[$doc:meta])* $name:ident $place:literal { $($key:ident: $kind:ty,)+ })+) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Default)]
            pub struct $name<'t> {
                $(#[doc = concat!("`", stringify!($key), "`")] pub $key: Key<$kind>,)+
                /// Not every table has a text in the file.
                text: PhantomData<&'t str>,
            }

            impl<'t> Read<'t> for $name<'t> {
                fn read(key: &str, value: &'t Spanned<DeValue<'t>>, report: &mut Report) -> Option<Self> {
                    let DeValue::Table(table) = value.get_ref() else {
                        return wrong_kind(key, value, &format!("a table, with keys out of: {}", Self::KEYS.join(", ")), report);
                    };
                    Some(Self::of(table, report))
                }
            }

            impl<'t> $name<'t> {
                /// Every key, in the order of the contract.
                pub const KEYS: &'static [&'static str] = &[$(stringify!($key)),+];

                /// Reads the keys of a table; what is wrong with them goes into the report.
                pub(super) fn of(table: &'t DeTable<'t>, report: &mut Report) -> Self {
                    let mut this = Self::default();
                    for (key, value) in table {
                        match key.get_ref().as_ref() {
                            $(stringify!($key) => this.$key = read_key(stringify!($key), value, report),)+
                            unknown => unknown_key(unknown, key.span().start, $place, Self::KEYS, report),
                        }
                    }
                    this
                }
            }
        )+

        /// Every table and its keys.
        pub const TABLES: &[(&str, &[&str])] = &[$(($place, $name::KEYS)),+];
    };
}

tables! {
    /// The whole file.
    File "the top level" {
        mode: Text<'t>,
        scheduler: Text<'t>,
        shadow: bool,
        allow_empty: bool,
        datapath: Datapath<'t>,
        tun: Tun<'t>,
        af_xdp: AfXdp<'t>,
        iptables: Iptables<'t>,
        node: Node<'t>,
        nat: Nat<'t>,
        conntrack: Conntrack<'t>,
        icmp: Icmp<'t>,
        control: Control<'t>,
        rules: List<Rule<'t>>,
        services: List<Service<'t>>,
    }
    /// Which device, how many threads.
    Datapath "[datapath]" {
        backend: Text<'t>,
        workers: i128,
        seed: i128,
    }
    /// The TUN device.
    Tun "[tun]" {
        name: Text<'t>,
        mtu: i128,
        offload: bool,
        firewall: Text<'t>,
    }
    /// AF_XDP sockets.
    AfXdp "[af_xdp]" {
        interfaces: List<Text<'t>>,
        attach: Text<'t>,
        zero_copy: Switch<'t>,
        busy_poll: bool,
        announce: bool,
        masquerade_ports: Scalar<'t>,
    }
    /// The ordered rules.
    Iptables "[iptables]" {
        evaluation: Text<'t>,
    }
    /// This host.
    Node "[node]" {
        addresses: List<Text<'t>>,
    }
    /// Source NAT.
    Nat "[nat]" {
        masquerade: Text<'t>,
        pool: List<Text<'t>>,
    }
    /// The connection table.
    Conntrack "[conntrack]" {
        max_flows: i128,
        on_backend_removed: Text<'t>,
        unknown_tcp: Text<'t>,
        unknown_reply: Text<'t>,
        expire_quiescent_template: bool,
        conn_reuse_mode: i128,
        tcp_none: Scalar<'t>,
        tcp_established: Scalar<'t>,
        tcp_syn_sent: Scalar<'t>,
        tcp_syn_recv: Scalar<'t>,
        tcp_fin: Scalar<'t>,
        tcp_time_wait: Scalar<'t>,
        tcp_close: Scalar<'t>,
        tcp_close_wait: Scalar<'t>,
        tcp_last_ack: Scalar<'t>,
        tcp_listen: Scalar<'t>,
        tcp_synack: Scalar<'t>,
        udp: Scalar<'t>,
        sctp_none: Scalar<'t>,
        sctp_init1: Scalar<'t>,
        sctp_init: Scalar<'t>,
        sctp_cookie_sent: Scalar<'t>,
        sctp_cookie_replied: Scalar<'t>,
        sctp_cookie_wait: Scalar<'t>,
        sctp_cookie: Scalar<'t>,
        sctp_cookie_echoed: Scalar<'t>,
        sctp_established: Scalar<'t>,
        sctp_shutdown_sent: Scalar<'t>,
        sctp_shutdown_received: Scalar<'t>,
        sctp_shutdown_ack_sent: Scalar<'t>,
        sctp_rejected: Scalar<'t>,
        sctp_closed: Scalar<'t>,
    }
    /// What lbd itself sends.
    Icmp "[icmp]" {
        echo: bool,
        rate_limit: i128,
    }
    /// The operator's socket.
    Control "[control]" {
        socket: Text<'t>,
    }
    /// One rule of iptables mode.
    Rule "[[rules]]" {
        name: Text<'t>,
        source: Text<'t>,
        destination: Text<'t>,
        protocol: Text<'t>,
        source_port: Scalar<'t>,
        destination_port: Scalar<'t>,
        probability: f64,
        action: Text<'t>,
    }
    /// One virtual server.
    Service "[[services]]" {
        name: Text<'t>,
        protocol: Text<'t>,
        address: Text<'t>,
        external_addresses: List<Text<'t>>,
        node_port: i128,
        scheduler: Text<'t>,
        scheduler_flags: List<Text<'t>>,
        persistence: Persistence<'t>,
        on_backend_removed: Text<'t>,
        backends: List<Backend<'t>>,
    }
    /// Client affinity.
    Persistence "persistence" {
        timeout: Scalar<'t>,
        netmask: Scalar<'t>,
    }
    /// One real server.
    Backend "backends" {
        address: Text<'t>,
        weight: i128,
        upper_threshold: i128,
        lower_threshold: i128,
    }
}

impl<'t> Conntrack<'t> {
    /// The timeouts of the TCP states, in the kernel's order.
    #[must_use]
    pub const fn tcp(&self) -> [&Key<Scalar<'t>>; 11] {
        [
            &self.tcp_none,
            &self.tcp_established,
            &self.tcp_syn_sent,
            &self.tcp_syn_recv,
            &self.tcp_fin,
            &self.tcp_time_wait,
            &self.tcp_close,
            &self.tcp_close_wait,
            &self.tcp_last_ack,
            &self.tcp_listen,
            &self.tcp_synack,
        ]
    }

    /// The timeouts of the SCTP states, in the kernel's order.
    #[must_use]
    pub const fn sctp(&self) -> [&Key<Scalar<'t>>; 14] {
        [
            &self.sctp_none,
            &self.sctp_init1,
            &self.sctp_init,
            &self.sctp_cookie_sent,
            &self.sctp_cookie_replied,
            &self.sctp_cookie_wait,
            &self.sctp_cookie,
            &self.sctp_cookie_echoed,
            &self.sctp_established,
            &self.sctp_shutdown_sent,
            &self.sctp_shutdown_received,
            &self.sctp_shutdown_ack_sent,
            &self.sctp_rejected,
            &self.sctp_closed,
        ]
    }
}

fn read_key<'t, T: Read<'t>>(key: &str, value: &'t Spanned<DeValue<'t>>, report: &mut Report) -> Key<T> {
    match T::read(key, value, report) {
        Some(read) => Key::Given(Spanned::new(value.span(), read)),
        None => Key::Bad,
    }
}

fn unknown_key(typed: &str, offset: usize, place: &str, known: &[&'static str], report: &mut Report) {
    // In TOML a key belongs to the table before it, however far up that began.
    if File::KEYS.contains(&typed) {
        let remedy = "it belongs at the top of the file, before the first line in [ ]";
        return report.error(offset, format!("unknown key {typed:?} in {place}: {remedy}"));
    }
    let hint = did_you_mean(typed, known.iter().copied());
    let known = known.join(", ");
    report.error(
        offset,
        format!("unknown key {typed:?} in {place}:{hint} known keys: {known}"),
    );
}

fn wrong_kind<T>(key: &str, value: &Spanned<DeValue<'_>>, expected: &str, report: &mut Report) -> Option<T> {
    let found = shown(value.get_ref());
    report.bad(value.span().start, key, found, format!("expected {expected}"));
    None
}

/// The value as written, or its kind where it is long.
fn shown(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(number) => number.to_string(),
        DeValue::Float(number) => number.to_string(),
        DeValue::Boolean(boolean) => boolean.to_string(),
        DeValue::Datetime(time) => time.to_string(),
        DeValue::Array(_) => "[...]".to_owned(),
        DeValue::Table(_) => "{...}".to_owned(),
    }
}

fn text_expected(key: &str) -> String {
    match &words::of_key(key)[..] {
        [] => "a string, in quotes".to_owned(),
        words => format!("a word, in quotes: known: {}", words.join(", ")),
    }
}

impl<'t> Read<'t> for &'t str {
    fn read(key: &str, value: &'t Spanned<DeValue<'t>>, report: &mut Report) -> Option<Self> {
        match value.get_ref().as_str() {
            Some(text) => Some(text),
            None => wrong_kind(key, value, &text_expected(key), report),
        }
    }
}

/// A whole number of any size that fits; values beyond are none of any key's.
fn integer(value: &DeValue<'_>) -> Option<i128> {
    let number = value.as_integer()?;
    i128::from_str_radix(number.as_str(), number.radix()).ok()
}

impl<'t> Read<'t> for i128 {
    fn read(key: &str, value: &'t Spanned<DeValue<'t>>, report: &mut Report) -> Option<Self> {
        integer(value.get_ref()).or_else(|| wrong_kind(key, value, "a whole number, without quotes", report))
    }
}

impl<'t> Read<'t> for f64 {
    fn read(key: &str, value: &'t Spanned<DeValue<'t>>, report: &mut Report) -> Option<Self> {
        let number = match value.get_ref() {
            DeValue::Float(number) => number.as_str().parse().ok(),
            DeValue::Integer(number) if number.radix() == 10 => number.as_str().parse().ok(),
            DeValue::String(_)
            | DeValue::Integer(_)
            | DeValue::Boolean(_)
            | DeValue::Datetime(_)
            | DeValue::Array(_)
            | DeValue::Table(_) => None,
        };
        number.or_else(|| wrong_kind(key, value, "a number, e.g. 0.5", report))
    }
}

impl<'t> Read<'t> for bool {
    fn read(key: &str, value: &'t Spanned<DeValue<'t>>, report: &mut Report) -> Option<Self> {
        let boolean = value.get_ref().as_bool();
        boolean.or_else(|| wrong_kind(key, value, "true or false, without quotes", report))
    }
}

impl<'t> Read<'t> for Scalar<'t> {
    fn read(key: &str, value: &'t Spanned<DeValue<'t>>, report: &mut Report) -> Option<Self> {
        let text = value.get_ref().as_str().map(Self::Text);
        text.or_else(|| integer(value.get_ref()).map(Self::Integer))
            .or_else(|| wrong_kind(key, value, "a string or a whole number", report))
    }
}

impl<'t> Read<'t> for Switch<'t> {
    fn read(key: &str, value: &'t Spanned<DeValue<'t>>, report: &mut Report) -> Option<Self> {
        let text = value.get_ref().as_str().map(Self::Text);
        text.or_else(|| value.get_ref().as_bool().map(Self::Boolean))
            .or_else(|| wrong_kind(key, value, "\"auto\", true or false", report))
    }
}

impl<'t, T: Read<'t>> Read<'t> for List<T> {
    fn read(key: &str, value: &'t Spanned<DeValue<'t>>, report: &mut Report) -> Option<Self> {
        let DeValue::Array(items) = value.get_ref() else {
            let expected = match value.get_ref().is_table() {
                true => format!("a list: write [[{key}]] for each of them"),
                false => "a list, in [ ]".to_owned(),
            };
            return wrong_kind(key, value, &expected, report);
        };
        let mut read = Self::with_capacity(items.len());
        for item in items.iter() {
            let known = T::read(key, item, report);
            read.extend(known.map(|known| Spanned::new(item.span(), known)));
        }
        (!read.is_empty() || items.is_empty()).then_some(read)
    }
}
