//! Whether ports that lbd masquerades with are such as the kernel gives to this host's own sockets.
use std::ops::RangeInclusive;

/// Of IPv4 and IPv6 alike (Documentation/networking/ip-sysctl.rst).
const LOCAL: &str = "/proc/sys/net/ipv4/ip_local_port_range";
/// Ports that the kernel keeps out of those.
const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// A warning where both may use the same port towards the same backend: answers to the host's own socket would be taken
/// for those of a flow.
pub(super) fn warning(masquerade: &RangeInclusive<u16>) -> Option<String> {
    let read = |file| std::fs::read_to_string(file).unwrap_or_default();
    clash(masquerade, &read(LOCAL), &read(RESERVED))
}

fn clash(masquerade: &RangeInclusive<u16>, local: &str, reserved: &str) -> Option<String> {
    let (local, reserved) = (range(local)?, reserved.trim());
    let first = *masquerade.start().max(local.start());
    let last = *masquerade.end().min(local.end());
    let kept: Vec<RangeInclusive<u16>> = reserved.split(',').filter_map(range).collect();
    let mut shared = (first..=last).filter(|port| !kept.iter().any(|kept| kept.contains(port)));
    shared.next()?;
    let more = if reserved.is_empty() { "" } else { "," };
    Some(format!(
        "af_xdp.masquerade_ports = {}-{}: the kernel gives ports {first}-{last} to this host's own sockets, whose \
         connections to backends may clash with flows of lbd; choose ports outside of net.ipv4.ip_local_port_range = \
         {}-{}, or keep them free: sysctl -w net.ipv4.ip_local_reserved_ports={reserved}{more}{first}-{last}",
        masquerade.start(),
        masquerade.end(),
        local.start(),
        local.end()
    ))
}

/// `1-2`, `1`, or `1 2` with blanks between.
fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let mut ports = text
        .split(|c: char| c == '-' || c.is_whitespace())
        .filter(|part| !part.is_empty());
    let first = ports.next()?.parse().ok()?;
    let last = ports.next().map_or(Some(first), |last| last.parse().ok())?;
    Some(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_beside_those_of_the_hosts_own_sockets_are_fine() {
        assert_eq!(clash(&(61_000..=65_535), "32768\t60999\n", "\n"), None);
        assert_eq!(clash(&(1_024..=32_767), "32768\t60999\n", "\n"), None);
    }

    #[test]
    fn ports_of_the_hosts_own_sockets_are_named_with_key_and_sysctl() {
        let text = clash(&(50_000..=65_535), "32768\t60999\n", "8080,9148-9200\n").unwrap();
        for part in [
            "af_xdp.masquerade_ports = 50000-65535",
            "net.ipv4.ip_local_port_range = 32768-60999",
            "sysctl -w net.ipv4.ip_local_reserved_ports=8080,9148-9200,50000-60999",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn ports_that_the_kernel_keeps_free_are_fine() {
        assert_eq!(clash(&(50_000..=60_000), "32768\t60999\n", "8080,50000-60500\n"), None);
        assert!(clash(&(50_000..=60_000), "32768\t60999\n", "50000-59999\n").is_some());
    }
}
