//! Connections between clients and backends past the services: a list of those that were seen to be opened.
use lbd::flow::Protocol;

use super::{ABORT, Ends, FIN, INIT, Model, RST, SECOND, SYN, TICK};

#[derive(Debug)]
pub struct Connection {
    /// Of the server's packets.
    ends: Ends,
    is_closing: bool,
    is_opening: bool,
    client_heard: bool,
    server_heard: bool,
    seen: u64,
}

/// `told` are TCP flags, or the number of an SCTP chunk (RFC 9260 table 1).
pub(super) fn opens(protocol: Protocol, told: u8) -> bool {
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
    /// Both sides were heard, or the server went on after its answer.
    fn is_believed(&self) -> bool {
        self.server_heard && (self.client_heard || !self.is_opening)
    }

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
            if packet.protocol != Protocol::Udp && opens(packet.protocol, told) {
                self.late.retain(|(ends, _)| *ends != packet);
            }
            self.note(packet, true, told);
        }
        if self.is_known(packet.to.ip()) {
            self.late.retain(|(ends, _)| *ends != packet.reply());
            self.note(packet.reply(), false, told);
        }
    }

    fn note(&mut self, server: Ends, by_server: bool, told: u8) {
        let protocol = server.protocol;
        let at = self.bypass.iter().position(|connection| connection.ends == server);
        let at = match (at, opens(protocol, told)) {
            (None, false) => return,
            (Some(at), false) if ends(protocol, told) => {
                self.bypass.remove(at);
                return;
            }
            (Some(at), false) => {
                self.bypass[at].is_opening &= !by_server;
                self.bypass[at].is_closing |= closes(protocol, told);
                at
            }
            (Some(at), true) if self.bypass[at].is_believed() && !self.bypass[at].is_closing => {
                self.bypass[at].is_opening &= !by_server;
                at
            }
            (Some(at), true) if self.bypass[at].is_opening => {
                self.bypass[at].is_closing = false;
                at
            }
            (at, true) => {
                at.map(|at| self.bypass.remove(at));
                self.bypass.push(Connection {
                    ends: server,
                    is_closing: false,
                    is_opening: true,
                    client_heard: false,
                    server_heard: false,
                    seen: 0,
                });
                self.bypass.len() - 1
            }
        };
        let connection = &mut self.bypass[at];
        connection.seen = self.now;
        connection.server_heard |= by_server;
        connection.client_heard |= !by_server;
    }

    /// Whether the backend seems to have a connection with whom the packet, as it leaves, is from, and if so whether that is
    /// believed.
    pub(super) fn past_services(&self, leaves: Ends) -> Option<bool> {
        let connection = self.bypass.iter().find(|connection| {
            let age = ((self.now >> TICK) - (connection.seen >> TICK)) << TICK;
            connection.ends == leaves.reply() && age < connection.life()
        });
        connection.map(Connection::is_believed)
    }
}
