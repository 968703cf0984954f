//! What lbctl prints: plain data in, text out. Tables that ipvsadm or iptables also have look as theirs do.
pub mod connections;
mod drains;
pub mod drops;
pub mod explain;
pub mod list;
pub mod rules;
mod shadow;
pub mod status;
mod timeouts;

pub use connections::{CONNECTIONS_TITLE, connection_rows, connections};
pub use drains::drains;
pub use drops::drops;
pub use explain::explain;
pub use list::{Columns, list};
pub use rules::rules;
pub use shadow::disagreement;
pub use status::status;
pub use timeouts::timeouts;

use lbd_core::flow::Protocol;

/// The word in ipvsadm's tables.
pub(crate) const fn protocol_word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

/// The samples of the real ipvsadm, where this machine has them.
#[cfg(test)]
pub(crate) fn sample(file: &str) -> Option<String> {
    let shared = std::env::var_os("LBD_SHARED").map_or_else(
        || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
        std::path::PathBuf::from,
    );
    let path = shared.join("reference/ipvsadm-samples").join(file);
    let sample = std::fs::read_to_string(&path).ok();
    if sample.is_none() {
        eprintln!("not compared with {}: not there; set LBD_SHARED", path.display());
    }
    sample
}

/// What `command` printed in the first such session of a sample.
#[cfg(test)]
pub(crate) fn session(sample: &str, command: &str) -> String {
    let wanted = format!("$ {command}");
    let after = sample.lines().skip_while(|line| *line != wanted).skip(1);
    after
        .take_while(|line| !line.starts_with("# ") && !line.starts_with("$ "))
        .map(|line| format!("{line}\n"))
        .collect()
}
