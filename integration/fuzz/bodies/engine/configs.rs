//! What the fuzzed engine is told: both modes, all protocols and both IP versions, small tables and pools.
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use lbd::policy::Policy;

/// Flows that each of them allows.
pub const MAX_FLOWS: usize = 12;

/// What services have in common, in several ways: top level, tables, keys of each service, backends of each family.
const WAYS: [[&str; 4]; 5] = [
    ["mode = \"ipvs\"", "", "", "1, 2, 3"],
    [
        "mode = \"iptables\"",
        "[nat]\nmasquerade = \"always\"\npool = [\"198.18.0.0/32\", \"2001:2::/128\"]\n\
         [[rules]]\nsource_port = 7\naction = \"reject\"\n[[rules]]\nsource_port = 9\nprobability = 0.5\naction = \"drop\"\n",
        "persistence = { timeout = \"10s\" }",
        "1, 2",
    ],
    [
        "mode = \"ipvs\"",
        "[nat]\nmasquerade = \"always\"",
        "scheduler = \"sh\"\nexternal_addresses = [EXTERNAL]\nnode_port = 30080",
        "2, 3",
    ],
    [
        "mode = \"iptables\"",
        "",
        "scheduler = \"lc\"\nexternal_addresses = [EXTERNAL]",
        "3",
    ],
    ["mode = \"ipvs\"", "", "persistence = { timeout = \"1m\" }", ""],
];

const ON_BACKEND_REMOVED: [&str; 4] = ["preserve", "reset", "reschedule", "drop"];

/// All of them, each with every rule for the flows of removed backends.
pub fn policies() -> &'static [Arc<Policy>] {
    static POLICIES: LazyLock<Vec<Arc<Policy>>> = LazyLock::new(|| {
        let all = WAYS
            .iter()
            .flat_map(|way| ON_BACKEND_REMOVED.map(|removed| policy(way, removed)));
        all.collect()
    });
    &POLICIES
}

fn policy([mode, tables, keys, backends]: &[&str; 4], removed: &str) -> Arc<Policy> {
    let mut toml = format!("{mode}\n{tables}\n[node]\naddresses = [\"192.168.0.2\", \"fd00:168::2\"]\n");
    toml += &format!("[conntrack]\nmax_flows = {MAX_FLOWS}\non_backend_removed = \"{removed}\"\n");
    for protocol in ["tcp", "udp", "sctp"] {
        for v6 in [false, true] {
            toml += &service(protocol, v6, keys, backends);
        }
    }
    let loaded = lbd::config::parse("fuzz.toml", &toml);
    let mut config = loaded.unwrap_or_else(|errors| panic!("{errors:#?}\n{toml}")).config;
    config.policy.node_addresses = config.node_addresses.unwrap_or_default();
    Arc::new(config.policy)
}

fn service(protocol: &str, v6: bool, keys: &str, backends: &str) -> String {
    let external = if v6 { "\"2001:db8::10\"" } else { "\"203.0.113.10\"" };
    // Each family has a node port of its own.
    let keys = keys.replace("EXTERNAL", external);
    let keys = if v6 { keys.replace("30080", "30081") } else { keys };
    let backends = backends.split(", ").filter_map(|number| number.parse::<u8>().ok());
    let backends: Vec<String> = backends
        .map(|number| format!("{{ address = \"{}\" }}", endpoint(v6, 3 + number)))
        .collect();
    let address = endpoint(v6, 1);
    format!(
        "[[services]]\nname = \"{protocol}{}\"\nprotocol = \"{protocol}\"\naddress = \"{address}\"\n{keys}\nbackends = [{}]\n",
        if v6 { 6 } else { 4 },
        backends.join(", ")
    )
}

/// Endpoints that matter: this node, the service, its external address, a node port, three backends, and clients.
pub fn endpoint(v6: bool, number: u8) -> SocketAddr {
    let port = 40_000 + u16::from(number >> 5);
    let text = match (number & 31, v6) {
        (0, false) => "192.168.0.2:30080".to_owned(),
        (0, true) => "[fd00:168::2]:30081".to_owned(),
        (1 | 8..=15, false) => "10.96.0.10:80".to_owned(),
        (1 | 8..=15, true) => "[fd00:96::10]:80".to_owned(),
        (2, false) => "203.0.113.10:80".to_owned(),
        (2, true) => "[2001:db8::10]:80".to_owned(),
        (3, false) => "10.1.0.1:7".to_owned(),
        (3, true) => "[fd00:1::1]:9".to_owned(),
        (backend @ 4..=6, false) => format!("10.2.0.{backend}:8080"),
        (backend @ 4..=6, true) => format!("[fd00:2::{backend}]:8080"),
        (7, false) => "198.18.0.0:40000".to_owned(),
        (7, true) => "[2001:2::]:40000".to_owned(),
        (client, false) => format!("10.1.0.{client}:{port}"),
        (client, true) => format!("[fd00:1::{client}]:{port}"),
    };
    text.parse().expect("an address")
}
