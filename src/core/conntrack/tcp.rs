//! The TCP state table of IPVS: (state, direction, flags) to state, and nothing else.
//!
//! Source: `tcp_states`, net/netfilter/ipvs/ip_vs_proto_tcp.c. IPVS sees one packet at a time and checks no window,
//! so an out-of-window segment is forwarded and never turned into a reset.
use crate::flow::Direction;

/// A TCP flow's state, in the kernel's order (`IP_VS_TCP_S_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    /// Nothing seen yet.
    None,
    /// Open.
    Established,
    /// The backend opens (simultaneous open).
    SynSent,
    /// The client opens.
    SynRecv,
    /// The backend closed.
    FinWait,
    /// Both closed.
    TimeWait,
    /// Reset.
    Close,
    /// The client closed.
    CloseWait,
    /// Waiting for the last acknowledgement.
    LastAck,
    /// Not reached in NAT mode.
    Listen,
    /// Under SYN defence only.
    Synack,
}

use State::{
    Close as CL, CloseWait as CW, Established as ES, FinWait as FW, LastAck as LA, Listen as LI, None as NO,
    SynRecv as SR, SynSent as SS, Synack as SA, TimeWait as TW,
};

impl State {
    /// Every state, in the kernel's order.
    pub const ALL: [Self; 11] = [NO, ES, SS, SR, FW, TW, CL, CW, LA, LI, SA];

    /// The word in `ipvsadm -Lc` (`tcp_state_name_table`).
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            NO => "NONE",
            ES => "ESTABLISHED",
            SS => "SYN_SENT",
            SR => "SYN_RECV",
            FW => "FIN_WAIT",
            TW => "TIME_WAIT",
            CL => "CLOSE",
            CW => "CLOSE_WAIT",
            LA => "LAST_ACK",
            LI => "LISTEN",
            SA => "SYNACK",
        }
    }

    /// Whether it counts as ActiveConn (`tcp_state_active_table`).
    #[must_use]
    pub const fn is_active(self) -> bool {
        matches!(self, ES | SS | SR | SA)
    }

    /// Whether the handshake is not over, so that the flow may be a forged one.
    #[must_use]
    pub const fn is_embryonic(self) -> bool {
        matches!(self, NO | SS | SR | SA | LI)
    }

    /// Whether a SYN may open a new flow in its place (`is_new_conn_expected`, conn_reuse_mode 1, and a reset flow).
    #[must_use]
    pub const fn is_reusable(self) -> bool {
        matches!(self, TW | CL)
    }

    /// The state after a packet.
    #[must_use]
    pub const fn next(self, direction: Direction, event: Event) -> Self {
        let table = match direction {
            Direction::Original => &INPUT,
            Direction::Reply => &OUTPUT,
        };
        table[event as usize][self as usize]
    }
}

/// What a segment means for the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Event {
    /// Opens.
    Syn,
    /// Closes.
    Fin,
    /// Goes on.
    Ack,
    /// Aborts.
    Rst,
}

/// Rows: syn, fin, ack, rst; columns: the state before. Packets from the client.
const INPUT: [[State; 11]; 4] = [
    [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SR],
    [CL, CW, SS, TW, TW, TW, CL, CW, LA, LI, TW],
    [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES],
    [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, SR],
];

/// Packets from the backend.
const OUTPUT: [[State; 11]; 4] = [
    [SS, ES, SS, SR, SS, SS, SS, SS, SS, LI, SR],
    [TW, FW, SS, TW, FW, TW, CL, TW, LA, LI, TW],
    [ES, ES, SS, ES, FW, TW, CL, CW, LA, ES, ES],
    [CL, CL, SS, CL, CL, TW, CL, CL, CL, CL, CL],
];
