//! Connections between clients and backends past the services: a list of those that were seen to be opened.
use lbd::flow::Protocol;

use super::{ABORT, Ends, FIN, INIT, Model, RST, SECOND, SYN, TICK};

#[derive(Debug)]
pub struct Connection {
    /// Of the server's packets.
    ends: Ends,
    is_closing: bool,
    is_opening: bool,
    seen: u64,
}

/// `told` are TCP flags, or the number of an SCTP chunk (RFC 9260 table 1).
fn opens(protocol: Protocol, told: u8) -> bool {
    match protocol {
        Protocol::Tcp => told & RST == 0 && told & SYN != 0,
        Protocol::Udp => true,
        Protocol::Sctp => [INIT, 2].contains(&told),
    }
}

fn closes(protocol: Protocol, told: u8) -> bool {
    match protocol {
        Protocol::Tcp => told & FIN != 0,
        Protocol::Udp => false,
        Protocol::Sctp => [7, 8].contains(&told),
    }
}

fn ends(protocol: Protocol, told: u8) -> bool {
    match protocol {
        Protocol::Tcp => told & RST != 0,
        Protocol::Udp => false,
        Protocol::Sctp => [ABORT, 14].contains(&told),
    }
}

impl Connection {
    fn life(&self) -> u64 {
        SECOND
            * match (self.ends.protocol, self.is_closing, self.is_opening) {
                (Protocol::Tcp, true, _) => 120,
                (Protocol::Tcp, false, true) => 60,
                (Protocol::Udp, _, _) => 300,
                (Protocol::Sctp, true, _) | (Protocol::Sctp, false, true) => 61,
                (Protocol::Tcp | Protocol::Sctp, false, false) => 900,
            }
    }
}

impl Model {
    /// A packet passes.
    pub(super) fn note_bypass(&mut self, packet: Ends, told: u8) {
        if self.is_known(packet.from.ip()) {
            self.note(packet, told);
        }
        if self.is_known(packet.to.ip()) {
            self.note(packet.reply(), told);
        }
    }

    fn note(&mut self, server: Ends, told: u8) {
        let (protocol, seen) = (server.protocol, self.now);
        let at = self.bypass.iter().position(|connection| connection.ends == server);
        if opens(protocol, told) {
            self.bypass.retain(|connection| connection.ends != server);
            self.bypass.push(Connection {
                ends: server,
                is_closing: false,
                is_opening: true,
                seen,
            });
        } else if let Some(at) = at {
            if ends(protocol, told) {
                self.bypass.remove(at);
                return;
            }
            self.bypass[at].seen = seen;
            self.bypass[at].is_opening = false;
            self.bypass[at].is_closing |= closes(protocol, told);
        }
    }

    /// Whether the backend has a connection with whom the packet, as it leaves, is from.
    pub(super) fn is_bypass(&self, leaves: Ends) -> bool {
        self.bypass.iter().any(|connection| {
            let age = ((self.now >> TICK) - (connection.seen >> TICK)) << TICK;
            connection.ends == leaves.reply() && age < connection.life()
        })
    }
}
