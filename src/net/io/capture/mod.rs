//! Capture files: pcap and pcapng, read and written one record at a time.
//!
//! A [`Reader`] yields [`Entry`]s: pieces of layout (the pcap header, pcapng sections and interfaces), which a copy of
//! the file needs as they are, and packets, whose [`Record`] knows how to write a packet in the format, byte order,
//! resolution and interface that it was read in. So a written file has its source's format by construction.
//!
//! - pcap: both byte orders, micro- and nanoseconds (draft-ietf-opsawg-pcap).
//! - pcapng: both byte orders, many sections and interfaces, `if_tsresol` and `if_tsoffset`; enhanced, simple and
//!   obsolete packet blocks are read, enhanced ones are written, without options: a hash or a comment about a packet
//!   is not true of the rewritten one. Other blocks are skipped (draft-ietf-opsawg-pcapng).
//! - A record is at most [`MAX_RECORD`] bytes, so no length in a file decides how much memory is used.
//! - A simple packet block carries no time; it happens at the latest time seen before it.
//! - An Ethernet frame check sequence, where a capture has one, counts as padding; it is not recomputed.
//!
//! Written by hand, because the crate pcap-file 2.0 takes every pcapng timestamp for nanoseconds whatever
//! `if_tsresol` says (its `EnhancedPacketBlock::from_slice`), refuses pcap records that a snaplen has cut
//! (`orig_len > snap_len`), hides how far a damaged file was good, and keeps the padding of simple packets as data.
//! The tests use it as an independent second opinion on the files both can read.
mod link;
mod pcap;
mod pcapng;
mod source;

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

pub use link::{LinkType, Payload};
use source::{Endian, Source};

use lbd_core::time::Instant;

/// The longest packet accepted, in bytes: libpcap's `MAXIMUM_SNAPLEN` (pcap-int.h).
pub const MAX_RECORD: u32 = 262_144;

/// What a capture file consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Part of the file's frame; a copy of the file starts with, or continues by, these very bytes.
    Layout,
    /// A packet.
    Packet(Record),
}

/// What a capture says about a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// When it was captured, since the Unix epoch; cut to nanoseconds where the file is finer.
    pub time: Instant,
    /// What its bytes begin with.
    pub link: LinkType,
    /// Its length on the wire, in bytes; more than was captured where a snaplen has cut it.
    pub original_len: u32,
    stamp: Stamp,
}

/// The timestamp as the file has it, so that no precision is lost when it is written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stamp {
    Pcap(pcap::Stamp),
    PcapNg(pcapng::Stamp),
}

impl Record {
    /// Writes a packet of `data` in this record's format and at its time; `original_len` is its length on the wire.
    ///
    /// # Errors
    /// When `out` cannot be written, or `data` is 4 GiB and more.
    pub fn write(&self, out: &mut impl Write, data: &[u8], original_len: u32) -> io::Result<()> {
        let captured = u32::try_from(data.len()).map_err(io::Error::other)?;
        match &self.stamp {
            Stamp::Pcap(stamp) => stamp.write(out, data, captured, original_len),
            Stamp::PcapNg(stamp) => stamp.write(out, data, captured, original_len),
        }
    }
}

enum Format {
    Pcap(pcap::Pcap),
    PcapNg(pcapng::PcapNg),
}

/// Reads a capture.
pub struct Reader<R> {
    file: PathBuf,
    source: Source<R>,
    format: Format,
    header: Option<Vec<u8>>,
    packets: u64,
}

impl Reader<BufReader<File>> {
    /// Opens the capture `file` and reads its header.
    ///
    /// # Errors
    /// When the file cannot be opened, or its header is not one of a pcap or pcapng file.
    pub fn open(file: &Path) -> Result<Self, CaptureError> {
        let opened = File::open(file).map_err(|error| CaptureError {
            file: file.to_owned(),
            packet: None,
            damage: Damage::Open(error),
        })?;
        Self::new(BufReader::new(opened), file)
    }
}

impl<R: Read> Reader<R> {
    /// Reads the header of the capture in `bytes`; `name` is what errors call it.
    ///
    /// # Errors
    /// When the header is not one of a pcap or pcapng file.
    pub fn new(bytes: R, name: &Path) -> Result<Self, CaptureError> {
        let mut source = Source::new(bytes);
        let (format, header) = open_format(&mut source).map_err(|damage| CaptureError {
            file: name.to_owned(),
            packet: None,
            damage,
        })?;
        Ok(Self {
            file: name.to_owned(),
            source,
            format,
            header: Some(header),
            packets: 0,
        })
    }

    /// Reads the next entry into `data`, which then holds its bytes and nothing else; `None` at the end of the file.
    ///
    /// # Errors
    /// When the file is damaged here; what came before is good, what follows cannot be found.
    pub fn next(&mut self, data: &mut Vec<u8>) -> Result<Option<Entry>, CaptureError> {
        data.clear();
        if let Some(header) = self.header.take() {
            data.extend_from_slice(&header);
            return Ok(Some(Entry::Layout));
        }
        let entry = match &mut self.format {
            Format::Pcap(pcap) => pcap.next(&mut self.source, data),
            Format::PcapNg(pcapng) => pcapng.next(&mut self.source, data),
        };
        let entry = entry.map_err(|damage| CaptureError {
            file: self.file.clone(),
            packet: Some(self.packets + 1),
            damage,
        })?;
        if matches!(entry, Some(Entry::Packet(_))) {
            self.packets += 1;
        }
        Ok(entry)
    }
}

fn open_format<R: Read>(source: &mut Source<R>) -> Result<(Format, Vec<u8>), Damage> {
    let magic = source.array::<4>("the file's magic number")?;
    let magic = magic.ok_or(Damage::Empty)?;
    if magic == pcapng::SECTION_HEADER.to_be_bytes() {
        let (pcapng, header) = pcapng::PcapNg::open(source)?;
        return Ok((Format::PcapNg(pcapng), header));
    }
    let (pcap, header) = pcap::Pcap::open(source, magic)?;
    Ok((Format::Pcap(pcap), header))
}

/// A capture that cannot be read, or not to its end.
#[derive(Debug, thiserror::Error)]
#[error("{}: {}{damage}", file.display(), at(*packet))]
pub struct CaptureError {
    /// The capture.
    pub file: PathBuf,
    /// The number of the packet, from 1, that cannot be read; `None` while reading the header.
    pub packet: Option<u64>,
    /// What is wrong.
    pub damage: Damage,
}

fn at(packet: Option<u64>) -> String {
    packet.map_or_else(String::new, |number| format!("packet {number}: "))
}

/// What is wrong with a capture.
#[derive(Debug, thiserror::Error)]
pub enum Damage {
    /// The operating system says no.
    #[error("cannot open: {0}")]
    Open(io::Error),
    /// The operating system stops in the middle.
    #[error("cannot read: {0}")]
    Read(#[from] io::Error),
    /// No bytes at all.
    #[error("the file is empty, expected a pcap or pcapng capture")]
    Empty,
    /// Some other kind of file.
    #[error("not a capture: starts with {0:02x?}, expected a pcap or pcapng file (not compressed)")]
    NotACapture([u8; 4]),
    /// The end comes too early.
    #[error("the file ends after {present} of the {expected} bytes of {what}")]
    Truncated {
        /// The part that is cut.
        what: &'static str,
        /// Bytes there are.
        present: u64,
        /// Bytes there should be.
        expected: u64,
    },
    /// A length that no honest capture has.
    #[error("{what} claims {claimed} bytes, expected at most {limit}")]
    TooLong {
        /// Whose length it is.
        what: &'static str,
        /// The length, in bytes.
        claimed: u32,
        /// The most that is accepted, in bytes.
        limit: u32,
    },
    /// A field with a value that it cannot have.
    #[error("{field} is {value}, expected {expected}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u32,
        /// What would be right.
        expected: String,
    },
    /// Packets that begin with something else than Ethernet or IP.
    #[error("link type {0} is not supported, expected EN10MB (1), RAW (101, 12, 14), IPV4 (228) or IPV6 (229)")]
    LinkType(u32),
}

#[cfg(test)]
mod tests;
