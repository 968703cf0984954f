//! SCTP packets (RFC 9260 section 3): the ports, and the chunk that says something about the association.
use super::{ParseError, Payload, ports};

/// Source port, destination port, verification tag, checksum (RFC 9260 section 3.1).
const COMMON_HEADER: usize = 12;
/// Type, flags, length; the length counts this header and not the padding to four bytes (RFC 9260 section 3.2).
const CHUNK_HEADER: usize = 4;

/// What a packet says about its association: the events of `sctp_events`, net/netfilter/ipvs/ip_vs_proto_sctp.c.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Chunk {
    /// DATA, SACK, HEARTBEAT, and whatever else says nothing about the state.
    Data,
    /// Asks for an association.
    Init,
    /// Answers INIT, with a cookie.
    InitAck,
    /// Brings the cookie back.
    CookieEcho,
    /// The association is there.
    CookieAck,
    /// Nothing more will be sent.
    Shutdown,
    /// The other side agrees.
    ShutdownAck,
    /// The association is over.
    ShutdownComplete,
    /// Something was wrong.
    Error,
    /// The association is over at once.
    Abort,
}

impl Chunk {
    /// Every kind, in the kernel's order.
    pub const ALL: [Self; 10] = [
        Self::Data,
        Self::Init,
        Self::InitAck,
        Self::CookieEcho,
        Self::CookieAck,
        Self::Shutdown,
        Self::ShutdownAck,
        Self::ShutdownComplete,
        Self::Error,
        Self::Abort,
    ];

    /// By its number (RFC 9260 table 1).
    const fn of(number: u8) -> Self {
        match number {
            1 => Self::Init,
            2 => Self::InitAck,
            6 => Self::Abort,
            7 => Self::Shutdown,
            8 => Self::ShutdownAck,
            9 => Self::Error,
            10 => Self::CookieEcho,
            11 => Self::CookieAck,
            14 => Self::ShutdownComplete,
            _ => Self::Data,
        }
    }

    /// `init`, `cookie_ack`; `data` for all that says nothing about the state.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Init => "init",
            Self::InitAck => "init_ack",
            Self::CookieEcho => "cookie_echo",
            Self::CookieAck => "cookie_ack",
            Self::Shutdown => "shutdown",
            Self::ShutdownAck => "shutdown_ack",
            Self::ShutdownComplete => "shutdown_complete",
            Self::Error => "error",
            Self::Abort => "abort",
        }
    }
}

/// Reads a whole SCTP packet. It holds at least one chunk, and the first one is all there.
pub(super) fn parse(bytes: &[u8]) -> Result<Payload, ParseError> {
    let (header, chunks) = bytes
        .split_first_chunk::<COMMON_HEADER>()
        .ok_or(ParseError::Malformed)?;
    let (first, length) = chunk(chunks).ok_or(ParseError::Malformed)?;
    if length < CHUNK_HEADER || length > chunks.len() {
        return Err(ParseError::Malformed);
    }
    Ok(Payload::Sctp(ports(header), telling(first, chunks, length)))
}

/// The chunk that drives the state: the first one, but an ABORT right behind COOKIE ECHO or COOKIE ACK goes before it
/// (`set_sctp_state`): these two alone may be bundled with one while an association is set up (RFC 9260 section 3.3.7).
fn telling(first: Chunk, chunks: &[u8], length: usize) -> Chunk {
    match first {
        Chunk::CookieEcho | Chunk::CookieAck => {
            let behind = chunks.get(length.next_multiple_of(4)..).and_then(chunk);
            behind.map_or(first, |(second, _)| if second == Chunk::Abort { second } else { first })
        }
        Chunk::Data
        | Chunk::Init
        | Chunk::InitAck
        | Chunk::Shutdown
        | Chunk::ShutdownAck
        | Chunk::ShutdownComplete
        | Chunk::Error
        | Chunk::Abort => first,
    }
}

/// Kind and length of the chunk at the start of `bytes`.
fn chunk(bytes: &[u8]) -> Option<(Chunk, usize)> {
    let header: &[u8; CHUNK_HEADER] = bytes.first_chunk()?;
    let length = u16::from_be_bytes([header[2], header[3]]);
    Some((Chunk::of(header[0]), length.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::Ports;

    fn read(chunks: &[&[u8]]) -> Result<Payload, ParseError> {
        let header = [0x0f, 0x1c, 0x00, 0x50, 0, 0, 0, 7, 1, 2, 3, 4];
        parse(&[&header[..], &chunks.concat()].concat())
    }

    fn kind(chunks: &[&[u8]]) -> Chunk {
        match read(chunks) {
            Ok(Payload::Sctp(ports, chunk)) => {
                let expected = Ports {
                    source: 3868,
                    destination: 80,
                };
                assert_eq!(ports, expected);
                chunk
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_chunk_says_what_the_packet_is() {
        let numbers = [0, 1, 2, 10, 11, 7, 8, 14, 9, 6];
        for (number, expected) in numbers.into_iter().zip(Chunk::ALL) {
            assert_eq!(kind(&[&[number, 0, 0, 4]]), expected);
        }
        // SACK, HEARTBEAT, HEARTBEAT ACK, ECNE, CWR, AUTH, ASCONF, and one that nobody has defined.
        for number in [3, 4, 5, 12, 13, 15, 0xc1, 0xff] {
            assert_eq!(kind(&[&[number, 0, 0, 4]]), Chunk::Data);
        }
        assert_eq!(kind(&[&[0, 3, 0, 4], &[6, 0, 0, 4]]), Chunk::Data);
    }

    #[test]
    fn an_abort_behind_a_cookie_counts_though_the_cookie_is_padded() {
        let (echo, ack, abort, data) = ([10, 0, 0, 5, 9, 0, 0, 0], [11, 0, 0, 4], [6, 0, 0, 4], [0, 3, 0, 4]);
        assert_eq!(kind(&[&echo, &abort]), Chunk::Abort);
        assert_eq!(kind(&[&ack, &abort]), Chunk::Abort);
        assert_eq!(kind(&[&echo, &data]), Chunk::CookieEcho);
        assert_eq!(kind(&[&ack, &data, &abort]), Chunk::CookieAck);
        assert_eq!(kind(&[&echo[..5]]), Chunk::CookieEcho);
    }

    #[test]
    fn a_packet_without_a_whole_first_chunk_is_malformed() {
        for chunks in [
            &[][..],
            &[1, 0, 0],
            &[1, 0, 0, 3],
            &[1, 0, 0, 5],
            &[0, 0, 0xff, 0xff, 1],
        ] {
            assert_eq!(read(&[chunks]), Err(ParseError::Malformed), "{chunks:?}");
        }
        assert_eq!(parse(&[0; 11]), Err(ParseError::Malformed));
    }
}
