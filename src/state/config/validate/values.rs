//! Single values: words, addresses, networks, ports, numbers, durations. Each knows its remedy.
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use ipnet::IpNet;
use toml::Spanned;

use crate::config::diagnostic::Report;
use crate::config::raw::{Key, Scalar, Text};
use crate::config::suggest::did_you_mean;
use crate::config::words::{Words, meaning_of};
use lbd_core::flow::Endpoint;

/// The longest timeout: `MAX_TIMEOUT` of ipvsadm.c, 31 days.
const LONGEST: Duration = Duration::from_secs(31 * 24 * 60 * 60);

/// Where a value begins.
pub(super) fn offset<T>(value: &Spanned<T>) -> usize {
    value.span().start
}

/// Reports `key = "text": problem`.
fn bad_text<T>(key: &str, text: &Spanned<Text<'_>>, problem: &str, report: &mut Report) -> Option<T> {
    report.bad(offset(text), key, format!("{:?}", text.get_ref()), problem);
    None
}

/// A word of a closed set, or its default.
pub(super) fn word<T: Copy + Default>(key: &str, written: &Key<Text<'_>>, words: &Words<T>, report: &mut Report) -> T {
    let known = written.given().and_then(|text| known_word(key, text, words, report));
    known.unwrap_or_default()
}

/// A word of a closed set.
pub(super) fn known_word<T: Copy>(
    key: &str,
    text: &Spanned<Text<'_>>,
    words: &Words<T>,
    report: &mut Report,
) -> Option<T> {
    let known = || words.iter().map(|&(word, _)| word);
    meaning_of(text.get_ref(), words).or_else(|| {
        let hint = did_you_mean(text.get_ref(), known());
        let list: Vec<&str> = known().collect();
        let problem = format!("unknown word:{hint} known: {}", list.join(", "));
        bad_text(key, text, &problem, report)
    })
}

/// A number within a range; `meaning` says what the range is about.
pub(super) fn number<T: TryFrom<i128>>(
    key: &str,
    value: &Spanned<i128>,
    range: RangeInclusive<i128>,
    meaning: &str,
    report: &mut Report,
) -> Option<T> {
    let number = *value.get_ref();
    let fits = range.contains(&number).then_some(number);
    fits.and_then(|number| T::try_from(number).ok()).or_else(|| {
        let (low, high) = range.into_inner();
        let problem = format!("must be {low} to {high}{meaning}");
        report.bad(offset(value), key, number, problem);
        None
    })
}

/// A duration: `"15m"`, or whole seconds.
pub(super) fn duration(
    key: &str,
    value: &Spanned<Scalar<'_>>,
    shortest: Duration,
    report: &mut Report,
) -> Option<Duration> {
    let read = match value.get_ref() {
        Scalar::Text(text) => humantime::parse_duration(text).ok(),
        Scalar::Integer(seconds) => u64::try_from(*seconds).ok().map(Duration::from_secs),
    };
    let Some(read) = read else {
        let problem = "not a duration: write e.g. \"90s\", \"15m\", \"1h 30m\", or whole seconds without quotes";
        report.bad(offset(value), key, value.get_ref(), problem);
        return None;
    };
    if (shortest..=LONGEST).contains(&read) {
        return Some(read);
    }
    let shortest = humantime::format_duration(shortest);
    let problem = format!("must be {shortest} to 31days");
    report.bad(offset(value), key, value.get_ref(), problem);
    None
}

/// Why no single host that lbd can reach has this address.
fn not_a_host(address: IpAddr) -> Option<String> {
    let why = match address {
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => {
            let mapped = address.to_canonical();
            return Some(format!("an IPv4-mapped IPv6 address: write it as IPv4, {mapped}"));
        }
        // `ip_route_input_slow` and `ip6_rcv_core` drop such packets as martians.
        _ if address.is_loopback() => {
            let why = "a loopback address, which no packet of lbd can come from or go to";
            return Some(format!("{why}: give an address of an interface"));
        }
        IpAddr::V4(v4) if v4.is_broadcast() => "the broadcast address",
        _ if address.is_unspecified() => "the unspecified address",
        _ if address.is_multicast() => "a multicast address",
        IpAddr::V4(_) | IpAddr::V6(_) => return None,
    };
    Some(format!("{why}: give the address of one host"))
}

/// The address of a host.
pub(super) fn address(key: &str, text: &Spanned<Text<'_>>, report: &mut Report) -> Option<IpAddr> {
    let Ok(address) = text.get_ref().parse::<IpAddr>() else {
        let problem = "not an IP address without a port: write e.g. \"203.0.113.10\" or \"fd00::10\"";
        return bad_text(key, text, problem, report);
    };
    match not_a_host(address) {
        None => Some(address),
        Some(problem) => bad_text(key, text, &problem, report),
    }
}

/// An address and a port, or port 0.
pub(super) fn endpoint(key: &str, text: &Spanned<Text<'_>>, report: &mut Report) -> Option<Endpoint> {
    let problem = match split_endpoint(text.get_ref()) {
        Err(problem) => problem,
        Ok(endpoint) => match not_a_host(endpoint.address) {
            Some(problem) => problem,
            None => return Some(endpoint),
        },
    };
    bad_text(key, text, &problem, report)
}

fn split_endpoint(text: &str) -> Result<Endpoint, String> {
    if let Ok(endpoint) = text.parse::<Endpoint>()
        && !text.contains('%')
    {
        return Ok(endpoint);
    }
    Err(match text.parse::<IpAddr>() {
        Ok(address) => {
            let example = Endpoint::new(address, 80);
            format!("no port: write it after the address, e.g. \"{example}\"")
        }
        Err(_) if text.contains('%') => "an interface (after %) cannot be given: leave it out".into(),
        Err(_) => wrong_endpoint(text),
    })
}

fn wrong_endpoint(text: &str) -> String {
    let port = text
        .rsplit_once(':')
        .map(|(address, port)| (address.parse::<IpAddr>().is_ok(), port));
    match port {
        Some((true, port)) if port.parse::<u16>().is_err() => {
            format!("{port:?} is no port: ports are 1 to 65535")
        }
        _ => "not an address and a port: write e.g. \"10.96.0.10:80\" or \"[fd00::10]:80\"".into(),
    }
}

/// How many leading bits a mask keeps: `24`, `"24"`, `"/24"`, `"255.255.255.0"` or `"ffff:ffff::"`.
pub(super) fn prefix_length(mask: &Scalar<'_>, v4: bool) -> Option<u8> {
    let most = if v4 { 32 } else { 128 };
    let length = match mask {
        Scalar::Integer(length) => u8::try_from(*length).ok(),
        Scalar::Text(text) => match text.parse::<IpAddr>() {
            Ok(mask) if mask.is_ipv4() == v4 => ipnet::ip_mask_to_prefix(mask).ok(),
            Ok(_) => None,
            Err(_) => plain_number(text.strip_prefix('/').unwrap_or(text)),
        },
    };
    length.filter(|&length| length <= most)
}

/// Digits alone; `str::parse` would take a sign.
fn plain_number<T: std::str::FromStr>(text: &str) -> Option<T> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// A network, or a single address. Host bits are masked, as iptables does.
pub(super) fn network(key: &str, at: &Spanned<Text<'_>>, text: &str, report: &mut Report) -> Option<IpNet> {
    let (host, mask) = text
        .split_once('/')
        .map_or((text, None), |(host, mask)| (host, Some(mask)));
    let Ok(address) = host.parse::<IpAddr>() else {
        let problem = "not a network: write e.g. \"203.0.113.0/24\", \"fd00::/64\" or one address";
        return bad_text(key, at, problem, report);
    };
    if let IpAddr::V6(v6) = address
        && v6.to_ipv4_mapped().is_some()
    {
        let problem = format!(
            "an IPv4-mapped IPv6 address: write it as IPv4, {}",
            address.to_canonical()
        );
        return bad_text(key, at, &problem, report);
    }
    let most = if address.is_ipv4() { 32 } else { 128 };
    let length = mask.map_or(Some(most), |mask| prefix_length(&Scalar::Text(mask), address.is_ipv4()));
    let network = length.and_then(|length| IpNet::new(address, length).ok());
    match network {
        Some(network) => Some(network.trunc()),
        None => bad_text(
            key,
            at,
            &format!("bad prefix length after /: must be 0 to {most}"),
            report,
        ),
    }
}

/// A port, or a range of ports.
pub(super) fn ports(
    key: &str,
    at: &Spanned<Scalar<'_>>,
    text: &str,
    report: &mut Report,
) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let problem = match (plain_number(first.trim()), plain_number(last.trim())) {
        (Some(first), Some(last)) if first <= last => return Some(first..=last),
        (Some(first), Some(last)) => {
            format!("the range is reversed: write \"{last}-{first}\"")
        }
        _ => "not a port or range: write e.g. \"80\" or \"1024-65535\"".to_owned(),
    };
    report.bad(offset(at), key, at.get_ref(), problem);
    None
}

/// Names that the kernel takes for a device (`dev_valid_name`, net/core/dev.c), without `%`, which it would replace.
pub(super) fn device_name(key: &str, text: &Spanned<Text<'_>>, report: &mut Report) -> Option<String> {
    let name = *text.get_ref();
    let letters = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '/' | ':' | '%');
    let valid = (1..=15).contains(&name.len()) && name.chars().all(letters) && !matches!(name, "." | "..");
    if valid {
        return Some(name.to_owned());
    }
    let problem = "not a device name: 1 to 15 bytes without blanks, '/', ':' and '%', e.g. \"lbd0\"";
    bad_text(key, text, problem, report)
}

/// A name for people: something, and on one line.
pub(super) fn name(text: &Spanned<Text<'_>>, report: &mut Report) -> Option<String> {
    let name = *text.get_ref();
    if !name.is_empty() && name.trim() == name && !name.chars().any(char::is_control) {
        return Some(name.to_owned());
    }
    let problem = "must not be empty, begin or end with a blank, or hold control characters; e.g. \"default/web:http\"";
    bad_text("name", text, problem, report)
}
