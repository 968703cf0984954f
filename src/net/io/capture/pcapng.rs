//! The block format: sections, each with interfaces of their own (draft-ietf-opsawg-pcapng).
use std::io::{self, Read, Write};

use super::source::Fields;
use super::{Damage, Endian, Entry, LinkType, MAX_RECORD, Record, Source};
use lbd_core::time::Instant;

/// Block types (draft-ietf-opsawg-pcapng section 4); the section header's reads the same in both byte orders.
pub(super) const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const OBSOLETE_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

const BYTE_ORDER_MAGIC: u32 = 0x1a2b_3c4d;
const VERSION_MAJOR: u16 = 1;

/// Options of an interface description (section 4.2).
const END_OF_OPTIONS: u16 = 0;
const IF_TSRESOL: u16 = 9;
const IF_TSOFFSET: u16 = 14;

/// Microseconds, where an interface does not say (section 4.2, `if_tsresol`).
const DEFAULT_RESOLUTION: u8 = 6;

/// Type, length, and the length again at the end.
const BLOCK_OVERHEAD: u32 = 12;

/// An enhanced packet's interface, time (two words) and two lengths.
const PACKET_FIELDS: u32 = 20;

/// A packet with room for its options.
const MAX_BLOCK: u32 = 4 * MAX_RECORD;

/// Where the snaplen is in a whole interface description block, and the section length in a section header block.
const SNAPLEN_OFFSET: usize = 12;
const SECTION_LENGTH: std::ops::Range<usize> = 16..24;

/// The section read right now.
pub(super) struct PcapNg {
    endian: Endian,
    interfaces: Vec<Interface>,
    latest: Instant,
    body: Vec<u8>,
}

struct Interface {
    link: u16,
    snaplen: u32,
    resolution: u8,
    /// Seconds added to every timestamp.
    offset: i64,
}

/// The time of a packet as in the file, and the interface that says what it counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    endian: Endian,
    interface: u32,
    ticks: u64,
}

impl PcapNg {
    /// Reads what follows the first block's type; gives the block that a copy needs.
    pub(super) fn open<R: Read>(source: &mut Source<R>) -> Result<(Self, Vec<u8>), Damage> {
        let mut pcapng = Self {
            endian: Endian::Little,
            interfaces: Vec::new(),
            latest: Instant::ZERO,
            body: Vec::new(),
        };
        let mut header = Vec::new();
        pcapng.begin_section(source, &mut header)?;
        Ok((pcapng, header))
    }

    pub(super) fn next<R: Read>(
        &mut self,
        source: &mut Source<R>,
        data: &mut Vec<u8>,
    ) -> Result<Option<Entry>, Damage> {
        while let Some(kind) = source.array::<4>("a block's type")? {
            let entry = match self.endian.u32(kind) {
                SECTION_HEADER => self.begin_section(source, data)?,
                INTERFACE_DESCRIPTION => self.add_interface(source, data)?,
                ENHANCED_PACKET => self.enhanced_packet(source, data)?,
                OBSOLETE_PACKET => self.obsolete_packet(source, data)?,
                SIMPLE_PACKET => self.simple_packet(source, data)?,
                _ => {
                    self.skip_block(source)?;
                    continue;
                }
            };
            return Ok(Some(entry));
        }
        Ok(None)
    }

    /// The byte order is known only behind the length, from the byte-order magic.
    fn begin_section<R: Read>(&mut self, source: &mut Source<R>, data: &mut Vec<u8>) -> Result<Entry, Damage> {
        let length = source.expect_array::<4>("a section header block")?;
        let magic = source.expect_array::<4>("a section header block")?;
        self.endian = byte_order(magic)?;
        self.interfaces.clear();
        let length = self.checked_length(length, MAX_BLOCK)?;
        let body_left = length
            .checked_sub(BLOCK_OVERHEAD + 4)
            .ok_or_else(|| bad_length(length, "at least 28"))?;
        self.body.clear();
        self.body.extend_from_slice(&magic);
        source.append(&mut self.body, body_left, "a section header block")?;
        self.check_trailer(source, length)?;
        self.check_version()?;
        self.copy_block(SECTION_HEADER, length, data);
        // The copy's length differs; all ones is "not specified" (section 4.1).
        data[SECTION_LENGTH].fill(0xff);
        Ok(Entry::Layout)
    }

    fn check_version(&self) -> Result<(), Damage> {
        let mut fields = self.fields("a section header block");
        fields.u32()?;
        let major = fields.u16()?;
        fields.take(2 + SECTION_LENGTH.len())?;
        if major == VERSION_MAJOR {
            return Ok(());
        }
        Err(Damage::Field {
            field: "the pcapng section's version",
            value: major.into(),
            expected: VERSION_MAJOR.to_string(),
        })
    }

    fn add_interface<R: Read>(&mut self, source: &mut Source<R>, data: &mut Vec<u8>) -> Result<Entry, Damage> {
        let length = self.read_block(source)?;
        let interface = Interface::parse(self.fields("an interface description block"))?;
        self.copy_block(INTERFACE_DESCRIPTION, length, data);
        if interface.snaplen != 0 {
            self.endian.raise_snaplen(data, SNAPLEN_OFFSET);
        }
        self.interfaces.push(interface);
        Ok(Entry::Layout)
    }

    fn enhanced_packet<R: Read>(&mut self, source: &mut Source<R>, data: &mut Vec<u8>) -> Result<Entry, Damage> {
        self.read_block(source)?;
        let mut fields = self.fields("the packet's block");
        let interface = fields.u32()?;
        let (ticks, original_len) = timed_packet(&mut fields, data)?;
        self.entry(interface, ticks, original_len)
    }

    /// Its interface number has 16 bits, the others count lost packets (appendix A).
    fn obsolete_packet<R: Read>(&mut self, source: &mut Source<R>, data: &mut Vec<u8>) -> Result<Entry, Damage> {
        self.read_block(source)?;
        let mut fields = self.fields("the packet's block");
        let interface = fields.u16()?;
        fields.u16()?;
        let (ticks, original_len) = timed_packet(&mut fields, data)?;
        self.entry(interface.into(), ticks, original_len)
    }

    /// It is of interface 0, and as long as the snaplen allows (section 4.4).
    fn simple_packet<R: Read>(&mut self, source: &mut Source<R>, data: &mut Vec<u8>) -> Result<Entry, Damage> {
        self.read_block(source)?;
        let mut fields = self.fields("the packet's block");
        let original_len = fields.u32()?;
        let interface = self.interface(0)?;
        let captured = match interface.snaplen {
            0 => original_len,
            snaplen => original_len.min(snaplen),
        };
        data.extend_from_slice(packet_bytes(&mut fields, captured)?);
        self.entry(0, interface.ticks_at(self.latest), original_len)
    }

    fn entry(&mut self, number: u32, ticks: u64, original_len: u32) -> Result<Entry, Damage> {
        let interface = self.interface(number)?;
        let link = u32::from(interface.link);
        let time = interface.time(ticks);
        let link = LinkType::from_number(link).ok_or(Damage::LinkType(link))?;
        self.latest = self.latest.max(time);
        Ok(Entry::Packet(Record {
            time,
            link,
            original_len,
            stamp: super::Stamp::PcapNg(Stamp {
                endian: self.endian,
                interface: number,
                ticks,
            }),
        }))
    }

    fn interface(&self, number: u32) -> Result<&Interface, Damage> {
        self.interfaces.get(number as usize).ok_or_else(|| Damage::Field {
            field: "the packet's interface number",
            value: number,
            expected: format!("less than the section's {}", self.interfaces.len()),
        })
    }

    fn skip_block<R: Read>(&self, source: &mut Source<R>) -> Result<(), Damage> {
        let length = source.expect_array::<4>("a block's length")?;
        let length = self.checked_length(length, u32::MAX)?;
        source.skip(length - BLOCK_OVERHEAD, "a block")?;
        self.check_trailer(source, length)
    }

    /// Reads the block whose type has been read into `self.body`; gives its total length.
    fn read_block<R: Read>(&mut self, source: &mut Source<R>) -> Result<u32, Damage> {
        let length = source.expect_array::<4>("a block's length")?;
        let length = self.checked_length(length, MAX_BLOCK)?;
        self.body.clear();
        source.append(&mut self.body, length - BLOCK_OVERHEAD, "a block")?;
        self.check_trailer(source, length)?;
        Ok(length)
    }

    fn checked_length(&self, length: [u8; 4], limit: u32) -> Result<u32, Damage> {
        let length = self.endian.u32(length);
        if length < BLOCK_OVERHEAD || !length.is_multiple_of(4) {
            return Err(bad_length(length, "a multiple of 4 from 12 on"));
        }
        if length > limit {
            return Err(Damage::TooLong {
                what: "a block",
                claimed: length,
                limit,
            });
        }
        Ok(length)
    }

    fn check_trailer<R: Read>(&self, source: &mut Source<R>, length: u32) -> Result<(), Damage> {
        let trailer = source.expect_array::<4>("a block's second length")?;
        let trailer = self.endian.u32(trailer);
        if trailer == length {
            return Ok(());
        }
        Err(Damage::Field {
            field: "a block's second length",
            value: trailer,
            expected: format!("its first, {length}"),
        })
    }

    fn copy_block(&self, kind: u32, length: u32, data: &mut Vec<u8>) {
        data.extend_from_slice(&self.endian.bytes(kind));
        data.extend_from_slice(&self.endian.bytes(length));
        data.extend_from_slice(&self.body);
        data.extend_from_slice(&self.endian.bytes(length));
    }

    fn fields(&self, what: &'static str) -> Fields<'_> {
        Fields {
            rest: &self.body,
            endian: self.endian,
            what,
        }
    }
}

fn byte_order(magic: [u8; 4]) -> Result<Endian, Damage> {
    [Endian::Little, Endian::Big]
        .into_iter()
        .find(|endian| endian.u32(magic) == BYTE_ORDER_MAGIC)
        .ok_or_else(|| Damage::Field {
            field: "the pcapng section's byte-order magic",
            value: u32::from_be_bytes(magic),
            expected: format!("{BYTE_ORDER_MAGIC} in either byte order"),
        })
}

fn bad_length(value: u32, expected: &str) -> Damage {
    Damage::Field {
        field: "a block's length",
        value,
        expected: expected.to_owned(),
    }
}

/// The common part of enhanced and obsolete packets: ticks, and the length on the wire.
fn timed_packet(fields: &mut Fields<'_>, data: &mut Vec<u8>) -> Result<(u64, u32), Damage> {
    let (high, low) = (fields.u32()?, fields.u32()?);
    let (captured, original_len) = (fields.u32()?, fields.u32()?);
    data.extend_from_slice(packet_bytes(fields, captured)?);
    Ok((u64::from(high) << 32 | u64::from(low), original_len))
}

fn packet_bytes<'a>(fields: &mut Fields<'a>, captured: u32) -> Result<&'a [u8], Damage> {
    if captured > MAX_RECORD {
        return Err(Damage::TooLong {
            what: "the packet",
            claimed: captured,
            limit: MAX_RECORD,
        });
    }
    fields.take(captured as usize)
}

impl Interface {
    fn parse(mut fields: Fields<'_>) -> Result<Self, Damage> {
        let link = fields.u16()?;
        fields.u16()?;
        let mut interface = Self {
            link,
            snaplen: fields.u32()?,
            resolution: DEFAULT_RESOLUTION,
            offset: 0,
        };
        while !fields.rest.is_empty() {
            let (code, len) = (fields.u16()?, fields.u16()?);
            let value = fields.take(usize::from(len))?;
            let padding = usize::from(len).next_multiple_of(4) - usize::from(len);
            fields.take(padding)?;
            match (code, value) {
                (END_OF_OPTIONS, _) => break,
                (IF_TSRESOL, &[resolution]) => interface.resolution = resolution,
                (IF_TSOFFSET, value) => interface.offset = parse_offset(value, fields.endian)?,
                _ => {}
            }
        }
        Ok(interface)
    }

    /// Nanoseconds since the epoch of a timestamp, within what an [`Instant`] can hold.
    fn time(&self, ticks: u64) -> Instant {
        // Below 2^94, since ticks have 64 bits and 10^9 has 30.
        let scaled = u128::from(ticks) * 1_000_000_000;
        let nanos = scaled.checked_div(self.ticks_per_second()).unwrap_or(0);
        let nanos = i128::try_from(nanos).unwrap_or(i128::MAX);
        let nanos = nanos.saturating_add(self.offset_nanos()).max(0);
        Instant::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// The timestamp of a time, within what 64 bits can hold.
    fn ticks_at(&self, time: Instant) -> u64 {
        let nanos = (i128::from(time.as_nanos()) - self.offset_nanos()).max(0);
        let ticks = u128::try_from(nanos)
            .unwrap_or(0)
            .checked_mul(self.ticks_per_second())
            .map_or(u128::MAX, |scaled| scaled / 1_000_000_000);
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    /// The highest bit says whether the others are a power of two or of ten; beyond 2^127, a tick is as good as no time.
    fn ticks_per_second(&self) -> u128 {
        let base: u128 = if self.resolution & 0x80 == 0 { 10 } else { 2 };
        base.checked_pow(u32::from(self.resolution & 0x7f)).unwrap_or(u128::MAX)
    }

    fn offset_nanos(&self) -> i128 {
        i128::from(self.offset) * 1_000_000_000
    }
}

fn parse_offset(value: &[u8], endian: Endian) -> Result<i64, Damage> {
    let Ok(bytes) = value.try_into() else {
        return Err(Damage::Field {
            field: "the length of an interface's if_tsoffset",
            value: u32::try_from(value.len()).unwrap_or(u32::MAX),
            expected: "8".to_owned(),
        });
    };
    Ok(endian.i64(bytes))
}

impl Stamp {
    /// An enhanced packet block without options (section 4.3).
    pub(super) fn write(&self, out: &mut impl Write, data: &[u8], captured: u32, original_len: u32) -> io::Result<()> {
        let length = captured
            .checked_next_multiple_of(4)
            .and_then(|padded| padded.checked_add(PACKET_FIELDS + BLOCK_OVERHEAD))
            .ok_or_else(|| io::Error::other("a packet of 4 GiB does not fit into a block"))?;
        let padding = (4 - data.len() % 4) % 4;
        let high = (self.ticks >> 32) as u32;
        let low = self.ticks as u32;
        for word in [
            ENHANCED_PACKET,
            length,
            self.interface,
            high,
            low,
            captured,
            original_len,
        ] {
            out.write_all(&self.endian.bytes(word))?;
        }
        out.write_all(data)?;
        out.write_all(&[0; 3][..padding])?;
        out.write_all(&self.endian.bytes(length))
    }
}
