//! The SCTP state table of IPVS: (state, direction, chunk) to state, and nothing else.
//!
//! Source: `sctp_states`, net/netfilter/ipvs/ip_vs_proto_sctp.c, rows INPUT and OUTPUT; the third, for replies that take
//! another way, is not for NAT. States are as the backend would see them.
use crate::flow::Direction;
use crate::packet::sctp::Chunk;

/// An association's state, in the kernel's order (`IP_VS_SCTP_S_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum State {
    /// Nothing seen yet.
    None,
    /// The client asks for the first time.
    Init1,
    /// The client asks again.
    Init,
    /// The backend has sent its cookie.
    CookieSent,
    /// The client has brought it back.
    CookieReplied,
    /// The backend asks.
    CookieWait,
    /// The client has sent its cookie.
    Cookie,
    /// The backend has brought it back.
    CookieEchoed,
    /// Open.
    Established,
    /// The backend closes.
    ShutdownSent,
    /// The client closes.
    ShutdownReceived,
    /// The backend agrees.
    ShutdownAckSent,
    /// Refused by the side that was asked.
    Rejected,
    /// Over.
    Closed,
}

use State::{
    Closed as CL, Cookie as CO, CookieEchoed as CE, CookieReplied as CR, CookieSent as CS, CookieWait as CW,
    Established as ES, Init as IN, Init1 as I1, None as NO, Rejected as RJ, ShutdownAckSent as SA,
    ShutdownReceived as SR, ShutdownSent as SS,
};

impl State {
    /// Every state, in the kernel's order.
    pub const ALL: [Self; 14] = [NO, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL];

    /// The word in `ipvsadm -Lc` (`sctp_state_name_table`), whose column has 11 places.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            NO => "NONE",
            I1 => "INIT1",
            IN => "INIT",
            CS => "C-SENT",
            CR => "C-REPLIED",
            CW => "C-WAIT",
            CO => "COOKIE",
            CE => "C-ECHOED",
            ES => "ESTABLISHED",
            SS => "S-SENT",
            SR => "S-RECEIVED",
            SA => "S-ACK-SENT",
            RJ => "REJECTED",
            CL => "CLOSED",
        }
    }

    /// Whether it counts as ActiveConn (`set_sctp_state`).
    #[must_use]
    pub const fn is_active(self) -> bool {
        matches!(self, ES)
    }

    /// Whether the handshake is not over, so that the flow may be a forged one.
    #[must_use]
    pub const fn is_embryonic(self) -> bool {
        matches!(self, NO | I1 | IN | CS | CR | CW | CO | CE)
    }

    /// Whether an INIT may open a new flow in its place (`is_new_conn_expected`, ip_vs_core.c).
    #[must_use]
    pub const fn is_reusable(self) -> bool {
        matches!(self, CL)
    }

    /// The state after a packet.
    #[must_use]
    pub const fn next(self, direction: Direction, chunk: Chunk) -> Self {
        match direction {
            Direction::Original => self.after_client(chunk),
            Direction::Reply => self.after_backend(chunk),
        }
    }

    /// What the client's chunk changes; all else stays as it is.
    const fn after_client(self, chunk: Chunk) -> Self {
        match (chunk, self) {
            (Chunk::Data, NO) => ES,
            (Chunk::Init, NO) => I1,
            (Chunk::Init, I1 | RJ | CL) => IN,
            (Chunk::InitAck, NO | I1 | IN) => CW,
            (Chunk::InitAck, CW) => CO,
            (Chunk::CookieEcho, NO | CS) => CR,
            (Chunk::CookieEcho, I1) => IN,
            (Chunk::CookieAck, NO | CE) => ES,
            (Chunk::Shutdown, NO | ES) => SR,
            (Chunk::ShutdownAck, NO | SS | SA) => CL,
            (Chunk::ShutdownAck, I1) => IN,
            (Chunk::ShutdownComplete, NO | I1 | IN | SA) => CL,
            (Chunk::Error, NO | CE) => CL,
            (Chunk::Abort, CW) => RJ,
            (Chunk::Abort, _) => CL,
            (
                Chunk::Data
                | Chunk::Init
                | Chunk::InitAck
                | Chunk::CookieEcho
                | Chunk::CookieAck
                | Chunk::Shutdown
                | Chunk::ShutdownAck
                | Chunk::ShutdownComplete
                | Chunk::Error,
                same,
            ) => same,
        }
    }

    /// What the backend's chunk changes; all else stays as it is.
    const fn after_backend(self, chunk: Chunk) -> Self {
        match (chunk, self) {
            (Chunk::Data, NO) => ES,
            (Chunk::Init, NO | I1 | IN | CS | CR | CW | CO | CE | SS | SR | SA | RJ | CL) => CW,
            (Chunk::InitAck, NO | I1 | IN) => CS,
            (Chunk::CookieEcho, NO | I1 | IN | CS | CR | CW | CO) => CE,
            (Chunk::CookieAck, NO | I1 | IN | CS | CR | CW | CO | CE) => ES,
            (Chunk::Shutdown, NO | I1 | IN | CS | CR | CW | CO | CE | ES) => SS,
            (Chunk::ShutdownAck, NO | I1 | IN | CS | CR | SS | SR) => SA,
            (Chunk::ShutdownComplete, NO) => CL,
            (Chunk::Error, NO | I1 | IN | CS | CR) => CL,
            (Chunk::Abort, I1) => RJ,
            (Chunk::Abort, _) => CL,
            (
                Chunk::Data
                | Chunk::Init
                | Chunk::InitAck
                | Chunk::CookieEcho
                | Chunk::CookieAck
                | Chunk::Shutdown
                | Chunk::ShutdownAck
                | Chunk::ShutdownComplete
                | Chunk::Error,
                same,
            ) => same,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Direction::{Original, Reply};

    /// The states on the way, from nothing on.
    fn way(packets: &[(Direction, Chunk)]) -> Vec<&'static str> {
        let mut state = NO;
        let states = packets.iter().map(|&(direction, chunk)| {
            state = state.next(direction, chunk);
            state.name()
        });
        states.collect()
    }

    const HANDSHAKE: [(Direction, Chunk); 4] = [
        (Original, Chunk::Init),
        (Reply, Chunk::InitAck),
        (Original, Chunk::CookieEcho),
        (Reply, Chunk::CookieAck),
    ];

    #[test]
    fn all_280_cells_are_those_of_the_kernel() {
        let mut cells = Vec::new();
        for direction in [Original, Reply] {
            for chunk in Chunk::ALL {
                cells.extend(State::ALL.map(|state| state.next(direction, chunk) as u8));
            }
        }
        // Of the numbers in the INPUT and OUTPUT rows of `sctp_states`, in their order.
        assert_eq!((cells.len(), crc32c::crc32c(&cells)), (280, 0xc8fa_6f68));
    }

    #[test]
    fn a_client_opens_and_closes() {
        let closing = [
            (Original, Chunk::Data),
            (Original, Chunk::Shutdown),
            (Reply, Chunk::ShutdownAck),
            (Original, Chunk::ShutdownComplete),
        ];
        let expected = ["INIT1", "C-SENT", "C-REPLIED", "ESTABLISHED"];
        let expected = [&expected[..], &["ESTABLISHED", "S-RECEIVED", "S-ACK-SENT", "CLOSED"]].concat();
        assert_eq!(way(&[&HANDSHAKE[..], &closing].concat()), expected);
    }

    #[test]
    fn a_backend_closes() {
        let closing = [
            (Reply, Chunk::Shutdown),
            (Original, Chunk::ShutdownAck),
            (Reply, Chunk::ShutdownComplete),
        ];
        let states = way(&[&HANDSHAKE[..], &closing].concat());
        assert_eq!(states[4..], ["S-SENT", "CLOSED", "CLOSED"]);
    }

    #[test]
    fn a_client_that_asks_again_has_a_longer_time_and_a_refused_one_a_shorter() {
        assert_eq!(way(&[HANDSHAKE[0], HANDSHAKE[0]]), ["INIT1", "INIT"]);
        assert_eq!(way(&[HANDSHAKE[0], (Reply, Chunk::Abort)]), ["INIT1", "REJECTED"]);
        assert_eq!(way(&[HANDSHAKE[0], (Original, Chunk::Abort)]), ["INIT1", "CLOSED"]);
    }

    #[test]
    fn names_fit_their_column() {
        assert!(State::ALL.iter().all(|state| state.name().len() <= 11));
        assert!(State::ALL.iter().zip(0..).all(|(state, number)| *state as u8 == number));
    }
}
