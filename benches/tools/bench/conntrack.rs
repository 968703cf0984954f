//! The kernel's own flows in the balancer.
use std::fs;

use netlink_sys::{Socket, SocketAddr};

use crate::Outcome;
use crate::rig::{self, Place};

/// `NETLINK_NETFILTER`
const NETFILTER: isize = 12;
/// `NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE` (include/uapi/linux/netfilter/nfnetlink_conntrack.h)
const DELETE: u16 = 1 << 8 | 2;
/// `NLM_F_REQUEST | NLM_F_ACK`
const FLAGS: u16 = 1 | 4;
/// `struct nlmsghdr` and `struct nfgenmsg`
const LENGTH: u32 = 16 + 4;

/// Forgets every flow. A kernel without connection tracking has none.
pub(crate) fn flush() -> Outcome<()> {
    rig::within(Place::Balancer, rig::server_cpu(), || {
        let Ok(socket) = Socket::new(NETFILTER) else {
            return Ok(());
        };
        socket.connect(&SocketAddr::new(0, 0))?;
        let mut message = Vec::with_capacity(LENGTH as usize);
        message.extend(LENGTH.to_ne_bytes());
        message.extend(DELETE.to_ne_bytes());
        message.extend(FLAGS.to_ne_bytes());
        // Sequence number, port; then every family, version 0, no resource: without a tuple all flows go.
        message.extend([0; 12]);
        socket.send(&message, 0)?;
        socket.recv_from_full()?;
        Ok(())
    })
}

/// How many flows the balancer's kernel has.
pub(crate) fn count() -> Outcome<u64> {
    rig::within(Place::Balancer, rig::server_cpu(), || number("nf_conntrack_count"))
}

/// How many it may have.
pub(crate) fn limit() -> Outcome<u64> {
    number("nf_conntrack_max")
}

fn number(name: &str) -> Outcome<u64> {
    Ok(fs::read_to_string(format!("/proc/sys/net/netfilter/{name}"))?
        .trim()
        .parse()?)
}
