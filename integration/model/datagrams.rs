//! Datagrams that are sent in fragments, some of them by someone who means no good.
use proptest::prelude::*;

use lbd::flow::Protocol;

use super::fragments::{fragment, header};
use super::packets;
use super::reference::{Ends, Piece, Said};

/// How a fragment is sent.
#[derive(Clone, Copy, Debug)]
pub(super) enum Twist {
    Honest,
    /// Over bytes of the one before.
    Earlier,
    /// Over bytes of the next one, or behind the end.
    Longer,
    /// As if it were the last one, or not the last one.
    OtherwiseLast,
    /// Beyond the longest datagram.
    Far,
}

pub(super) fn twist() -> impl Strategy<Value = Twist> {
    prop_oneof![
        20 => Just(Twist::Honest), 1 => Just(Twist::Earlier), 1 => Just(Twist::Longer), 1 => Just(Twist::OtherwiseLast),
        1 => Just(Twist::Far),
    ]
}

/// How a datagram is cut: few identifications, so that some are used again.
#[derive(Clone, Debug)]
pub(super) struct Cut {
    identification: u32,
    /// Of the payload.
    length: usize,
    /// Where fragments end, but the last.
    ends: Vec<usize>,
}

pub(super) fn cut() -> impl Strategy<Value = Cut> {
    (0..3_u32, 0..120_usize, prop::collection::vec(1..8_usize, 1..4)).prop_map(|(identification, length, eighths)| {
        let ends = eighths.iter().scan(0, |end, eighth| {
            *end += eighth * 8;
            Some(*end)
        });
        Cut {
            identification,
            length,
            ends: ends.collect(),
        }
    })
}

#[derive(Clone, Debug)]
pub(super) struct Datagram {
    pub(super) ends: Ends,
    pub(super) said: Said,
    pub(super) cut: Cut,
}

impl Datagram {
    fn whole(&self, ends: Ends) -> Vec<u8> {
        let payload: Vec<u8> = (0..self.cut.length).map(|n| n as u8).collect();
        match ends.protocol {
            Protocol::Tcp => {
                let Said {
                    told,
                    sequence,
                    acknowledges,
                    ..
                } = self.said;
                packets::tcp(ends.from, ends.to, told, sequence, acknowledges, &payload)
            }
            Protocol::Udp => packets::udp(ends.from, ends.to, &payload),
            Protocol::Sctp => packets::sctp_of(ends.from, ends.to, &packets::chunk(self.said.told, &payload)),
        }
    }

    fn bytes(&self, ends: Ends) -> Vec<u8> {
        let whole = self.whole(ends);
        whole[header(&whole)..].to_vec()
    }

    fn borders(&self) -> Vec<usize> {
        let length = self.bytes(self.ends).len();
        let inner = self.cut.ends.iter().copied().filter(|&end| end < length);
        std::iter::once(0).chain(inner).chain([length]).collect()
    }

    /// How many fragments it has.
    pub(super) fn pieces(&self) -> usize {
        self.borders().len() - 1
    }

    pub(super) fn piece(&self, place: usize, twist: Twist) -> Piece {
        let borders = self.borders();
        let (mut start, mut end, mut more) = (borders[place], borders[place + 1], place + 1 < self.pieces());
        match twist {
            Twist::Earlier if start > 8 => start -= 8,
            Twist::Longer if more || start > 0 => end += 8,
            Twist::OtherwiseLast if start > 0 => more = !more,
            Twist::Far if start > 0 => (start, end) = (65_528, 65_528 + end - start),
            Twist::Honest | Twist::Earlier | Twist::Longer | Twist::OtherwiseLast | Twist::Far => {}
        }
        let mut piece = Piece {
            ends: self.ends,
            said: self.said,
            identification: self.cut.identification,
            start,
            end,
            more,
            packet: Vec::new(),
        };
        piece.packet = self.leaving(&piece, self.ends);
        piece
    }

    /// The fragment as it must leave: what begins the datagram is rewritten, of what does not only the IP header.
    pub(super) fn leaving(&self, piece: &Piece, ends: Ends) -> Vec<u8> {
        // In IPv6 the first fragment may have been another protocol's, whose ports and addresses count.
        let ends = Ends {
            protocol: self.ends.protocol,
            ..ends
        };
        let mut bytes = self.bytes(if piece.start == 0 { ends } else { self.ends });
        bytes.resize(bytes.len().max(piece.end), 0);
        let bytes = &bytes[piece.start..piece.end];
        fragment(&self.whole(ends), piece.identification, piece.start, bytes, piece.more)
    }
}
