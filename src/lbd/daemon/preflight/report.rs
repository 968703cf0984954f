//! What is missing, a line each, and lines to copy that would mend all of it.
use std::fmt::{self, Display, Formatter};

use super::{Capability, Missing};

/// Everything that is missing; not empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Report(pub Vec<Missing>);

/// Enough for thousands of queues.
const DESCRIPTORS: u32 = 65_536;

impl Display for Missing {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capabilities { lacking, .. } => write!(f, "capabilities: {}", names(lacking, ", ")),
            Self::Host => f.write_str(
                "AF_XDP needs the capabilities of the host itself, and this is a user namespace: run lbd outside of it, or set \
                 [datapath] backend = \"tun\"",
            ),
            Self::Tun(why) => write!(f, "/dev/net/tun: {why}"),
            Self::Setting { key, value, is } => {
                write!(f, "sysctl {key} is {is}, must be {value}, and cannot be set here")
            }
            Self::Descriptors { limit, needed } => {
                write!(f, "lbd may have {limit} open files, and needs {needed} (RLIMIT_NOFILE)")
            }
            Self::Locked { limit, needed } => {
                write!(
                    f,
                    "lbd may lock {limit} bytes of memory, and needs {needed} for its sockets (RLIMIT_MEMLOCK, or CAP_IPC_LOCK)"
                )
            }
        }
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("this is missing, and nothing was changed:")?;
        for missing in &self.0 {
            write!(f, "\n  {missing}")?;
        }
        let lines = [
            ("in a container", self.container()),
            ("on the host, without root", self.file_capabilities()),
            ("on the host", self.settings()),
            ("in a unit of systemd", self.unit()),
        ];
        for (place, lines) in lines.iter().filter(|(_, lines)| !lines.is_empty()) {
            write!(f, "\n{place}:\n  {}", lines.replace('\n', "\n  "))?;
        }
        Ok(())
    }
}

impl Report {
    /// As docker and podman want it.
    fn container(&self) -> String {
        let options: Vec<String> = self.0.iter().flat_map(container_options).collect();
        match options.is_empty() {
            true => String::new(),
            false => format!("docker run {} …", options.join(" ")),
        }
    }

    /// As setcap(8) wants it: it forgets those that a file had.
    fn file_capabilities(&self) -> String {
        let needed = self.0.iter().find_map(|missing| match missing {
            Missing::Capabilities { needed, .. } => Some(needed.clone()),
            Missing::Host
            | Missing::Tun(_)
            | Missing::Setting { .. }
            | Missing::Descriptors { .. }
            | Missing::Locked { .. } => None,
        });
        let Some(mut needed) = needed else {
            return String::new();
        };
        let must_lock = self.0.iter().any(|missing| matches!(missing, Missing::Locked { .. }));
        needed.extend(must_lock.then_some(Capability::IpcLock));
        let names = names(&needed, ",").to_lowercase();
        format!("sudo setcap {names}+ep \"$(command -v lbd)\"")
    }

    fn settings(&self) -> String {
        let settings: Vec<String> = self.0.iter().filter_map(assignment).collect();
        match settings.is_empty() {
            true => String::new(),
            false => format!("sudo sysctl -w {}", settings.join(" ")),
        }
    }

    fn unit(&self) -> String {
        let lines: Vec<String> = self.0.iter().filter_map(unit_line).collect();
        lines.join("\n")
    }
}

fn names(capabilities: &[Capability], between: &str) -> String {
    let names: Vec<String> = capabilities.iter().map(|one| format!("CAP_{}", one.name())).collect();
    names.join(between)
}

/// A setting as `sysctl -w` takes it.
fn assignment(missing: &Missing) -> Option<String> {
    match missing {
        Missing::Setting { key, value, .. } => Some(format!("{key}={value}")),
        Missing::Capabilities { .. }
        | Missing::Host
        | Missing::Tun(_)
        | Missing::Descriptors { .. }
        | Missing::Locked { .. } => None,
    }
}

fn container_options(missing: &Missing) -> Vec<String> {
    match missing {
        Missing::Capabilities { needed, .. } => {
            let options = needed.iter().map(|one| format!("--cap-add {}", one.name()));
            options.collect()
        }
        Missing::Host => vec!["--userns host".into()],
        Missing::Tun(_) => vec!["--device /dev/net/tun".into()],
        Missing::Setting { key, value, .. } => vec![format!("--sysctl {key}={value}")],
        Missing::Descriptors { .. } => vec![format!("--ulimit nofile={DESCRIPTORS}")],
        Missing::Locked { .. } => vec!["--ulimit memlock=-1".into()],
    }
}

fn unit_line(missing: &Missing) -> Option<String> {
    match missing {
        Missing::Capabilities { needed, .. } => Some(format!("AmbientCapabilities={}", names(needed, " "))),
        Missing::Descriptors { .. } => Some(format!("LimitNOFILE={DESCRIPTORS}")),
        Missing::Locked { .. } => Some("LimitMEMLOCK=infinity".into()),
        Missing::Host | Missing::Tun(_) | Missing::Setting { .. } => None,
    }
}
