//! What of this host's own would drop lbd's packets: packet filters, the reverse path filter, the kernel's choice of ports.
//!
//! A packet that lbd writes is forwarded by the kernel like any other, so a policy of DROP in FORWARD (Docker, ufw) or a
//! final REJECT (firewalld) takes it. An accept rule in a table of lbd's own could not help: a packet has to be accepted by
//! every base chain of a hook (nft(8), "accept"). So `[tun] firewall = "open"` puts its rules at the front of the very
//! chains that would drop, as kube-proxy does with KUBE-FORWARD, each marked by a comment, and puts them in again when the
//! chains are written anew. `judge` says what would drop, `nft` and `saved` read the filters, `host` asks the programs.
mod host;
mod judge;
mod nft;
mod rules;
mod saved;
mod watch;

use std::collections::BTreeSet;

pub use watch::Firewall;

/// The comment of lbd's own rules.
const TAG: &str = "lbd: firewall = open";

/// What lbd needs to come through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// lbd's device.
    pub device: String,
    /// Packets of other hosts go past the kernel (`backend = "af_xdp"`).
    pub af_xdp: bool,
    /// Whether there are services of IPv4, and of IPv6.
    pub families: (bool, bool),
    /// Configured.
    pub node_ports: BTreeSet<u16>,
    /// Whether to put in accept rules.
    pub open: bool,
}

/// Something of the host's that drops or takes away packets of lbd's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Obstacle {
    /// Where, and what.
    pub what: String,
    /// A command for root that removes it.
    pub remedy: String,
    /// `[tun] firewall = "open"` removes it, too.
    opens: bool,
}

impl std::fmt::Display for Obstacle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let open = if self.opens {
            ", or set firewall = \"open\" in [tun]"
        } else {
            ""
        };
        write!(f, "{}: {}{open}", self.what, self.remedy)
    }
}

/// The sysctls that stand in lbd's way. `read` gives the value of one, by its path below `/proc/sys`.
fn of_sysctls(needs: &Needs, read: impl Fn(&str) -> Option<String>) -> Vec<Obstacle> {
    let Needs {
        device,
        families,
        node_ports,
        ..
    } = needs;
    let mut all = Vec::new();
    let filter = |of: &str| {
        read(&format!("net/ipv4/conf/{of}/rp_filter"))?
            .trim()
            .parse::<u8>()
            .ok()
    };
    // The larger one counts (`IN_DEV_MAXCONF`): 1 is strict.
    if families.0 && filter(device).max(filter("all")) == Some(1) {
        all.push(Obstacle {
            what: format!(
                "net.ipv4.conf.{device}.rp_filter is strict: the kernel drops what lbd writes in clients' names"
            ),
            remedy: format!("sysctl -w net.ipv4.conf.{device}.rp_filter=2"),
            opens: false,
        });
    }
    all.extend(of_ports(node_ports, read));
    all
}

/// Node ports that the kernel may give to this host's own connections.
fn of_ports(node_ports: &BTreeSet<u16>, read: impl Fn(&str) -> Option<String>) -> Option<Obstacle> {
    let range = read("net/ipv4/ip_local_port_range")?;
    let mut ends = range.split_whitespace().filter_map(|end| end.parse::<u16>().ok());
    let (first, last) = (ends.next()?, ends.next()?);
    let reserved = read("net/ipv4/ip_local_reserved_ports").unwrap_or_default();
    let reserved = reserved.trim();
    let is_reserved = |port: u16| {
        let within = |part: &str| {
            let (low, high) = part.split_once('-').unwrap_or((part, part));
            (low.parse().ok()..=high.parse().ok()).contains(&Some(port))
        };
        reserved.split(',').any(within)
    };
    let taken: Vec<String> = (node_ports.iter())
        .filter(|&&port| (first..=last).contains(&port) && !is_reserved(port))
        .map(u16::to_string)
        .collect();
    let kept = if reserved.is_empty() {
        String::new()
    } else {
        format!("{reserved},")
    };
    let ports = taken.join(",");
    (!taken.is_empty()).then(|| Obstacle {
        what: format!(
            "net.ipv4.ip_local_port_range is {first} to {last}, so the kernel may give node port {ports} to a connection of this host's own"
        ),
        remedy: format!("sysctl -w net.ipv4.ip_local_reserved_ports={kept}{ports}"),
        opens: false,
    })
}

#[cfg(test)]
mod tests;
