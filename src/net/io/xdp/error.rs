//! Why sockets cannot be opened, and what to do about it.
use std::fmt;
use std::io;

use crate::io::limits;

/// What the XDP program and its sockets need. CAP_PERFMON: it compares pointers (`allow_ptr_leaks`, include/linux/bpf.h).
pub(super) const CAPABILITIES: &str = "AF_XDP needs CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW and CAP_PERFMON of the host itself, not of a user namespace, and \
    CAP_IPC_LOCK or LimitMEMLOCK=infinity: run lbd as root, or with AmbientCapabilities= in its unit";

/// What lbd asked the kernel for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// An AF_XDP socket.
    Socket,
    /// Memory for frames.
    Memory,
    /// To register that memory.
    Register,
    /// The four rings of a socket.
    Rings,
    /// To bind in copy mode.
    Bind,
    /// To bind in zero-copy mode.
    BindZeroCopy,
    /// Busy polling.
    BusyPoll,
    /// A queue to send by.
    SendQueue,
}

/// An AF_XDP socket cannot be opened.
#[derive(Debug)]
pub struct OpenError {
    /// The interface's name.
    pub interface: String,
    /// The queue of the interface.
    pub queue: u32,
    /// What failed.
    pub step: Step,
    /// What the kernel says.
    pub error: io::Error,
}

impl OpenError {
    /// Whether the driver cannot do zero copy, or not here.
    pub(super) fn is_lack_of_zero_copy(&self) -> bool {
        self.step == Step::BindZeroCopy && matches!(self.error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL))
    }

    fn remedy(&self) -> &'static str {
        if let Some(remedy) = limits::remedy(&self.error) {
            return remedy;
        }
        match (self.error.raw_os_error().unwrap_or(0), self.step) {
            (_, Step::SendQueue) => {
                "set [datapath] workers to at most the number of send queues (`ethtool -l`), or give the interface more (`ethtool -L`)"
            }
            (libc::EPERM | libc::EACCES, _) => CAPABILITIES,
            (libc::EBUSY, _) => {
                "another AF_XDP program owns this queue: stop it (`ss --xdp -p` names it), or leave the interface out of [af_xdp] interfaces"
            }
            (libc::ENOBUFS | libc::ENOMEM, _) => {
                "lbd may not lock this much memory: raise `ulimit -l`, set LimitMEMLOCK=infinity in its systemd unit, or give it CAP_IPC_LOCK"
            }
            (libc::EOPNOTSUPP | libc::EINVAL, Step::BindZeroCopy) => {
                "the driver has no zero copy here: set [af_xdp] zero_copy = \"auto\""
            }
            (libc::EAFNOSUPPORT, _) => {
                "this kernel has no AF_XDP (CONFIG_XDP_SOCKETS): use [datapath] backend = \"tun\""
            }
            (libc::ENODEV, _) => "there is no such interface any more: see `ip link` and [af_xdp] interfaces",
            (libc::EINVAL, Step::Bind) => {
                "the interface must have this queue (`ethtool -l`), and an MTU above 3,800 needs Linux 6.6 or later: lower it or the number of workers"
            }
            (_, _) => "see `dmesg`, or use [datapath] backend = \"tun\"",
        }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wanted = match self.step {
            Step::Socket => "an AF_XDP socket",
            Step::Memory => "memory for frames",
            Step::Register => "registering the memory of its frames",
            Step::Rings => "the rings of an AF_XDP socket",
            Step::Bind => "binding an AF_XDP socket in copy mode",
            Step::BindZeroCopy => "binding an AF_XDP socket in zero-copy mode",
            Step::BusyPoll => "busy polling",
            Step::SendQueue => "sending",
        };
        let Self {
            interface,
            queue,
            error,
            ..
        } = self;
        write!(f, "{interface}, queue {queue}: {wanted}: {error}; {}", self.remedy())
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_interface_queue_and_remedy() {
        for (step, errno, remedy) in [
            (Step::Socket, libc::EPERM, "CAP_NET_RAW"),
            (Step::Bind, libc::EBUSY, "ss --xdp -p"),
            (Step::Register, libc::ENOBUFS, "ulimit -l"),
            (Step::BindZeroCopy, libc::EOPNOTSUPP, "zero_copy = \"auto\""),
        ] {
            let error = OpenError {
                interface: "eth0".into(),
                queue: 3,
                step,
                error: io::Error::from_raw_os_error(errno),
            };
            let text = error.to_string();
            assert!(text.starts_with("eth0, queue 3: ") && text.contains(remedy), "{text}");
        }
    }
}
