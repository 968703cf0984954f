//! Numbers, addresses and ports as ipvsadm reads them (`string_to_number`, `parse_service` of ipvsadm.c).
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::names;
use lbd_core::flow::Protocol;

/// `strtol` of the whole text, within bounds; blanks and a sign may come first.
pub(super) fn number(text: &str, least: u32, most: u32) -> Option<u32> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\u{b}', '\u{c}', '\r']);
    let number: i64 = text.parse().ok()?;
    let number = u32::try_from(number).ok()?;
    (least..=most).contains(&number).then_some(number)
}

/// `host`, `host:port`, a bare IPv6 address or `[v6]:port`. None: no address.
pub(super) fn service(text: &str, protocol: Option<Protocol>) -> Option<(IpAddr, Option<u16>)> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (text, mut port) = match text.strip_prefix('[') {
        Some(inner) => {
            let (host, port) = inner.split_once("]:")?;
            (host, Some(port))
        }
        None => (text, None),
    };
    let address = match text.parse::<Ipv6Addr>() {
        Ok(address) => address.into(),
        Err(_) => {
            let split = text.rsplit_once(':');
            port = split.map(|(_, port)| port);
            IpAddr::V4(ipv4(split.map_or(text, |(host, _)| host))?)
        }
    };
    let port = match port {
        None => None,
        Some(port) => Some(match number(port, 0, 65535) {
            // Within the bounds of a port.
            Some(port) => port as u16,
            None => names::port_of(port, protocol?)?,
        }),
    };
    Some((address, port))
}

/// `inet_aton`, else the resolver.
pub(super) fn ipv4(text: &str) -> Option<Ipv4Addr> {
    dotted(text).or_else(|| names::host(text))
}

/// One to four numbers, decimal, octal (0) or hexadecimal (0x); the last one fills the bytes that are left.
fn dotted(text: &str) -> Option<Ipv4Addr> {
    let parts: Vec<u32> = text.split('.').map(part).collect::<Option<_>>()?;
    let (last, bytes) = parts.split_last()?;
    if bytes.len() > 3 || bytes.iter().any(|&byte| byte > 255) {
        return None;
    }
    let free = 8 * (4 - bytes.len() as u32);
    if free < 32 && *last >= 1 << free {
        return None;
    }
    let high = bytes.iter().fold(0_u32, |high, byte| high << 8 | byte);
    Some(Ipv4Addr::from_bits(high.checked_shl(free).unwrap_or(0) | last))
}

fn part(text: &str) -> Option<u32> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => (&text[1..], 8),
        None => (text, 10),
    };
    let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    plain.then(|| u32::from_str_radix(digits, radix).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_ipvsadm_reads_them() {
        let cases = [
            ("10.9.9.9:80", Some(("10.9.9.9", Some(80)))),
            ("10.9.9.9", Some(("10.9.9.9", None))),
            ("10.9.9.9:0", Some(("10.9.9.9", Some(0)))),
            ("10.9:80", Some(("10.0.0.9", Some(80)))),
            ("0x0a.010.9.9:80", Some(("10.8.9.9", Some(80)))),
            ("[fd00::9]:80", Some(("fd00::9", Some(80)))),
            ("fd00::9", Some(("fd00::9", None))),
            ("[fd00::9]", None),
            ("10.9.9.9:65536", None),
            ("80", None),
            ("", None),
        ];
        for (text, expected) in cases {
            let expected = expected.map(|(address, port)| (address.parse().unwrap(), port));
            assert_eq!(service(text, Some(Protocol::Tcp)), expected, "{text}");
        }
    }

    #[test]
    fn numbers_are_whole_and_within_bounds() {
        assert_eq!(number("65535", 0, 65535), Some(65535));
        assert_eq!(number(" +3", 0, 9), Some(3));
        for text in ["", "-1", "70000", "3x", "3 ", "0x3"] {
            assert_eq!(number(text, 0, 65535), None, "{text:?}");
        }
    }
}
