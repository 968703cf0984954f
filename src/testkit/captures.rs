//! Capture files for tests, written and read by the crate pcap-file, which shares no code with lbd.
use std::borrow::Cow;
use std::time::Duration;

use pcap_file::pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter};
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption};
use pcap_file::pcapng::{Block, PcapNgReader, PcapNgWriter};
pub use pcap_file::{DataLink, Endianness, TsResolution};

/// A packet: nanoseconds since the epoch, and its bytes.
pub type Timed = (u64, Vec<u8>);

/// A pcap file.
pub fn pcap(packets: &[Timed], link: DataLink, endianness: Endianness, resolution: TsResolution) -> Vec<u8> {
    let header = PcapHeader {
        datalink: link,
        endianness,
        ts_resolution: resolution,
        snaplen: 262_144,
        ..PcapHeader::default()
    };
    let mut writer = PcapWriter::with_header(Vec::new(), header).unwrap();
    for (nanos, bytes) in packets {
        let len = u32::try_from(bytes.len()).unwrap();
        let packet = PcapPacket::new(Duration::from_nanos(*nanos), len, bytes);
        writer.write_packet(&packet).unwrap();
    }
    writer.into_writer()
}

/// A little-endian pcap file of IP packets, with nanoseconds.
pub fn raw_pcap(packets: &[Timed]) -> Vec<u8> {
    pcap(packets, DataLink::RAW, Endianness::Little, TsResolution::NanoSecond)
}

/// A pcapng file with one interface for each of `links`, whose unit is the nanosecond.
pub fn pcapng(packets: &[(u32, Timed)], links: &[DataLink], endianness: Endianness) -> Vec<u8> {
    let mut writer = PcapNgWriter::with_endianness(Vec::new(), endianness).unwrap();
    for link in links {
        let mut interface = InterfaceDescriptionBlock::new(*link, 0);
        interface.options = vec![InterfaceDescriptionOption::IfTsResol(9)];
        writer.write_pcapng_block(interface).unwrap();
    }
    for (interface, (nanos, bytes)) in packets {
        let block = EnhancedPacketBlock {
            interface_id: *interface,
            timestamp: Duration::from_nanos(*nanos),
            original_len: u32::try_from(bytes.len()).unwrap(),
            data: Cow::Borrowed(bytes),
            options: Vec::new(),
        };
        writer.write_pcapng_block(block).unwrap();
    }
    writer.into_inner()
}

/// The header and the packets of a pcap file.
pub fn read_pcap(file: &[u8]) -> (PcapHeader, Vec<Timed>) {
    let mut reader = PcapReader::new(file).unwrap();
    let mut packets = Vec::new();
    while let Some(packet) = reader.next_packet() {
        let packet = packet.unwrap();
        let nanos = u64::try_from(packet.timestamp.as_nanos()).unwrap();
        packets.push((nanos, packet.data.into_owned()));
    }
    (reader.header(), packets)
}

/// The packets of a pcapng file with their interfaces; times are in the interfaces' units.
pub fn read_pcapng(file: &[u8]) -> Vec<(u32, Timed)> {
    let mut reader = PcapNgReader::new(file).unwrap();
    let mut packets = Vec::new();
    while let Some(block) = reader.next_block() {
        if let Block::EnhancedPacket(packet) = block.unwrap() {
            let ticks = u64::try_from(packet.timestamp.as_nanos()).unwrap();
            packets.push((packet.interface_id, (ticks, packet.data.into_owned())));
        }
    }
    packets
}
