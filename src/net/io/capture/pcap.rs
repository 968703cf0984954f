//! The classic format: one header, one link type (draft-ietf-opsawg-pcap).
use std::io::{self, Read, Write};

use super::{Damage, Endian, Entry, LinkType, MAX_RECORD, Record, Source};
use lbd_core::time::Instant;

const MAGIC_MICROSECONDS: u32 = 0xa1b2_c3d4;
const MAGIC_NANOSECONDS: u32 = 0xa1b2_3c4d;

/// The format's version since 1998; minor numbers never mattered.
const VERSION_MAJOR: u16 = 2;

/// Offset of the snaplen in the file header.
const SNAPLEN_OFFSET: usize = 16;

/// What the file header says.
pub(super) struct Pcap {
    endian: Endian,
    nanos_per_unit: u64,
    link: LinkType,
}

/// The time of a packet as in the file, whose magic number says what the fraction counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    endian: Endian,
    seconds: u32,
    fraction: u32,
}

impl Pcap {
    /// Reads what follows `magic`; gives the header that a copy needs.
    pub(super) fn open<R: Read>(source: &mut Source<R>, magic: [u8; 4]) -> Result<(Self, Vec<u8>), Damage> {
        let (endian, nanos_per_unit) = meaning(magic).ok_or(Damage::NotACapture(magic))?;
        let rest = source.expect_array::<20>("the pcap file header after its magic number")?;
        let [major_0, major_1, .., link_0, link_1, link_2, link_3] = rest;
        let major = endian.u16([major_0, major_1]);
        if major != VERSION_MAJOR {
            return Err(Damage::Field {
                field: "the pcap file's version",
                value: major.into(),
                expected: VERSION_MAJOR.to_string(),
            });
        }
        // The upper half holds the length of a frame check sequence.
        let number = endian.u32([link_0, link_1, link_2, link_3]) & 0xffff;
        let link = LinkType::from_number(number).ok_or(Damage::LinkType(number))?;
        let mut header = [&magic[..], &rest].concat();
        endian.raise_snaplen(&mut header, SNAPLEN_OFFSET);
        let pcap = Self {
            endian,
            nanos_per_unit,
            link,
        };
        Ok((pcap, header))
    }

    pub(super) fn next<R: Read>(&self, source: &mut Source<R>, data: &mut Vec<u8>) -> Result<Option<Entry>, Damage> {
        let Some(header) = source.array::<16>("the packet's header")? else {
            return Ok(None);
        };
        let (words, _) = header.as_chunks::<4>();
        let [seconds, fraction, captured, original_len] = std::array::from_fn(|index| self.endian.u32(words[index]));
        if captured > MAX_RECORD {
            return Err(Damage::TooLong {
                what: "the packet",
                claimed: captured,
                limit: MAX_RECORD,
            });
        }
        source.append(data, captured, "the packet")?;
        Ok(Some(Entry::Packet(Record {
            time: self.time(seconds, fraction),
            link: self.link,
            original_len,
            stamp: super::Stamp::Pcap(Stamp {
                endian: self.endian,
                seconds,
                fraction,
            }),
        })))
    }

    /// 2^32 seconds and 2^32 milliseconds together are far from 2^64 nanoseconds.
    fn time(&self, seconds: u32, fraction: u32) -> Instant {
        let nanos = u64::from(fraction) * self.nanos_per_unit;
        Instant::from_nanos(u64::from(seconds) * 1_000_000_000 + nanos)
    }
}

fn meaning(magic: [u8; 4]) -> Option<(Endian, u64)> {
    [Endian::Little, Endian::Big]
        .into_iter()
        .find_map(|endian| match endian.u32(magic) {
            MAGIC_MICROSECONDS => Some((endian, 1_000)),
            MAGIC_NANOSECONDS => Some((endian, 1)),
            _ => None,
        })
}

impl Stamp {
    pub(super) fn write(&self, out: &mut impl Write, data: &[u8], captured: u32, original_len: u32) -> io::Result<()> {
        for word in [self.seconds, self.fraction, captured, original_len] {
            out.write_all(&self.endian.bytes(word))?;
        }
        out.write_all(data)
    }
}
