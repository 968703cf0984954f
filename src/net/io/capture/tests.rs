use proptest::prelude::*;

use super::*;

use lbd_testkit::captures::{self, DataLink, Endianness, Timed, TsResolution};

/// 2024-01-01 and some nanoseconds.
const BEGAN: u64 = 1_704_067_200_123_456_789;

fn packets() -> Vec<Timed> {
    vec![
        (BEGAN, vec![0x45; 40]),
        (BEGAN + 1_000_000_007, vec![0x60; 61]),
        (BEGAN + 1_000_000_008, vec![]),
    ]
}

fn reader(file: &[u8]) -> Reader<&[u8]> {
    Reader::new(file, Path::new("in.pcap")).unwrap()
}

/// A packet as read, with its bytes.
type Read = (Record, Vec<u8>);

/// Reads a capture and writes it again; also gives its packets, and the error at its end.
fn copy(file: &[u8]) -> (Vec<u8>, Vec<Read>, Option<CaptureError>) {
    let (mut out, mut records, mut data) = (Vec::new(), Vec::new(), Vec::new());
    let mut reader = match Reader::new(file, Path::new("in.pcap")) {
        Ok(reader) => reader,
        Err(error) => return (out, records, Some(error)),
    };
    loop {
        match reader.next(&mut data) {
            Ok(None) => return (out, records, None),
            Ok(Some(Entry::Layout)) => out.extend_from_slice(&data),
            Ok(Some(Entry::Packet(record))) => {
                record.write(&mut out, &data, record.original_len).unwrap();
                records.push((record, data.clone()));
            }
            Err(error) => return (out, records, Some(error)),
        }
    }
}

/// The packets of a capture that is not damaged.
fn records(file: &[u8]) -> Vec<Read> {
    let (_, records, error) = copy(file);
    assert!(error.is_none(), "{error:?}");
    records
}

fn error(file: &[u8]) -> String {
    copy(file).2.expect("a damaged file").to_string()
}

/// A little-endian pcapng block.
fn block(kind: u32, body: &[u8]) -> Vec<u8> {
    let padding = vec![0; (4 - body.len() % 4) % 4];
    let length = (u32::try_from(body.len() + padding.len()).unwrap() + 12).to_le_bytes();
    [&kind.to_le_bytes(), &length, body, &padding, &length].concat()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn section() -> Vec<u8> {
    block(0x0a0d_0d0a, &words(&[0x1a2b_3c4d, 1, 100, 0]))
}

/// An interface of a link type, with a snaplen and options.
fn interface(link: u32, snaplen: u32, options: &[u8]) -> Vec<u8> {
    block(1, &[&words(&[link, snaplen]), options].concat())
}

fn enhanced(interface: u32, ticks: u64, data: &[u8]) -> Vec<u8> {
    let len = u32::try_from(data.len()).unwrap();
    let fields = [interface, (ticks >> 32) as u32, ticks as u32, len, len];
    block(6, &[&words(&fields), data].concat())
}

fn time_of(options: &[u8], ticks: u64) -> u64 {
    let file = [section(), interface(101, 0, options), enhanced(0, ticks, b"")].concat();
    records(&file)[0].0.time.as_nanos()
}

#[test]
fn a_pcap_file_copies_to_itself_in_every_byte_order_resolution_and_link_type() {
    for endianness in [Endianness::Little, Endianness::Big] {
        for (resolution, unit) in [(TsResolution::MicroSecond, 1_000), (TsResolution::NanoSecond, 1)] {
            for link in [1, 12, 14, 101, 228, 229].map(DataLink::from) {
                let file = captures::pcap(&packets(), link, endianness, resolution);
                let (out, records, error) = copy(&file);
                assert!(error.is_none(), "{error:?}");
                assert_eq!(out, file);
                for ((record, data), (nanos, bytes)) in records.iter().zip(packets()) {
                    assert_eq!(record.time.as_nanos(), nanos - nanos % unit);
                    assert_eq!(*data, bytes);
                }
            }
        }
    }
}

#[test]
fn a_pcapng_file_copies_to_itself_with_all_its_interfaces() {
    for endianness in [Endianness::Little, Endianness::Big] {
        let timed: Vec<(u32, Timed)> = [1, 0, 1].into_iter().zip(packets()).collect();
        let file = captures::pcapng(&timed, &[DataLink::RAW, DataLink::ETHERNET], endianness);
        let (out, records, error) = copy(&file);
        assert!(error.is_none(), "{error:?}");
        assert_eq!(captures::read_pcapng(&out), timed);
        assert_eq!(out.len(), file.len());
        let links: Vec<LinkType> = records.iter().map(|(record, _)| record.link).collect();
        assert_eq!(links, [LinkType::Ethernet, LinkType::Raw, LinkType::Ethernet]);
        assert_eq!(records[1].0.time.as_nanos(), BEGAN + 1_000_000_007);
    }
}

#[test]
fn an_interface_says_what_its_timestamps_count() {
    let resolution = |value| [9, 0, 1, 0, value, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(time_of(&[], 1_500_000), 1_500_000_000, "microseconds by default");
    assert_eq!(time_of(&resolution(0), 2), 2_000_000_000);
    assert_eq!(time_of(&resolution(9), 7), 7);
    assert_eq!(time_of(&resolution(12), 7_999), 7, "picoseconds are cut");
    assert_eq!(time_of(&resolution(0x80 | 1), 3), 1_500_000_000, "powers of two");
    assert_eq!(time_of(&resolution(0x7f), u64::MAX), 0);
    assert_eq!(time_of(&resolution(0), u64::MAX), u64::MAX);
}

#[test]
fn an_interface_offset_is_added_to_its_timestamps() {
    let offset = |seconds: i64| [&[14, 0, 8, 0][..], &seconds.to_le_bytes()].concat();
    assert_eq!(time_of(&offset(10), 1), 10_000_001_000);
    assert_eq!(time_of(&offset(-1), 1_000_001), 1_000);
    assert_eq!(time_of(&offset(-10), 1), 0, "the epoch is the earliest");
}

#[test]
fn a_simple_packet_is_cut_by_the_snaplen_and_happens_at_the_latest_time() {
    let simple = block(3, &[&words(&[9])[..], b"abcde"].concat());
    let file = [section(), interface(101, 5, &[]), enhanced(0, 77, b"xyz"), simple].concat();
    let (out, records, error) = copy(&file);
    assert!(error.is_none(), "{error:?}");
    let (record, data) = &records[1];
    assert_eq!(data, b"abcde");
    assert_eq!((record.time.as_nanos(), record.original_len), (77_000, 9));
    assert_eq!(captures::read_pcapng(&out)[1], (0, (77, b"abcde".to_vec())));
}

#[test]
fn obsolete_packets_are_read_and_unknown_blocks_are_skipped() {
    let obsolete = block(2, &[&words(&[0x0007_0001, 0, 5, 3, 3])[..], b"old"].concat());
    let file = [
        section(),
        interface(101, 0, &[]),
        block(0x0bad, b"whatever"),
        interface(1, 0, &[]),
        obsolete,
    ]
    .concat();
    let records = records(&file);
    assert_eq!(records[0].0.link, LinkType::Ethernet);
    assert_eq!(records[0].1, b"old");
}

#[test]
fn a_second_section_begins_its_interfaces_anew() {
    let first = [section(), interface(101, 0, &[]), enhanced(0, 1, b"a")].concat();
    let second = captures::pcapng(&[(0, (5, b"b".to_vec()))], &[DataLink::ETHERNET], Endianness::Big);
    let records = records(&[first.clone(), second].concat());
    assert_eq!(records[0].0.link, LinkType::Raw);
    assert_eq!(records[1].0.link, LinkType::Ethernet);
    let orphan = [first, section(), enhanced(0, 2, b"c")].concat();
    assert_eq!(
        error(&orphan),
        "in.pcap: packet 2: the packet's interface number is 0, expected less than the section's 0"
    );
}

#[test]
fn a_packet_that_a_snaplen_has_cut_keeps_its_wire_length() {
    let mut file = captures::raw_pcap(&[(BEGAN, vec![0x45; 40])]);
    file[16..20].copy_from_slice(&40_u32.to_le_bytes());
    file[36..40].copy_from_slice(&1500_u32.to_le_bytes());
    let (out, records, _) = copy(&file);
    assert_eq!(records[0].0.original_len, 1500);
    assert_eq!(out[24..], file[24..]);
    assert_eq!(out[16..20], MAX_RECORD.to_le_bytes(), "answers may be longer");
}

#[test]
fn a_file_cut_anywhere_yields_the_packets_before_the_cut() {
    let pcap = captures::raw_pcap(&packets());
    let timed: Vec<(u32, Timed)> = packets().into_iter().map(|packet| (0, packet)).collect();
    let pcapng = captures::pcapng(&timed, &[DataLink::RAW], Endianness::Little);
    for file in [pcap, pcapng] {
        let whole = records(&file);
        for len in 0..file.len() {
            let (_, some, error) = copy(&file[..len]);
            assert_eq!(some[..], whole[..some.len()]);
            if let Some(error) = error {
                assert!(error.packet.is_none_or(|number| number == some.len() as u64 + 1));
            }
        }
    }
}

#[test]
fn a_cut_file_names_the_packet_and_what_is_missing() {
    let file = captures::raw_pcap(&packets());
    assert_eq!(
        error(&file[..file.len() - 17]),
        "in.pcap: packet 2: the file ends after 60 of the 61 bytes of the packet"
    );
    assert_eq!(
        error(&file[..file.len() - 1]),
        "in.pcap: packet 3: the file ends after 15 of the 16 bytes of the packet's header"
    );
}

#[test]
fn a_hostile_length_is_refused_before_any_memory_is_taken() {
    let mut pcap = captures::raw_pcap(&packets());
    pcap[32..36].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(
        error(&pcap),
        "in.pcap: packet 1: the packet claims 4294967295 bytes, expected at most 262144"
    );
    let mut packet = enhanced(0, 1, b"abcd");
    packet[20..24].copy_from_slice(&300_000_u32.to_le_bytes());
    let pcapng = [section(), interface(101, 0, &[]), packet].concat();
    assert!(error(&pcapng).contains("claims 300000 bytes"));
}

#[test]
fn a_file_that_is_no_capture_is_named_as_such() {
    assert_eq!(
        error(b""),
        "in.pcap: the file is empty, expected a pcap or pcapng capture"
    );
    assert_eq!(
        error(b"\x1f\x8b\x08\x00gzip"),
        "in.pcap: not a capture: starts with [1f, 8b, 08, 00], expected a pcap or pcapng file (not compressed)"
    );
    let missing = Reader::open(Path::new("/nowhere/in.pcap")).err().unwrap();
    assert!(missing.to_string().starts_with("/nowhere/in.pcap: cannot open: "));
}

#[test]
fn another_link_type_is_refused_with_the_supported_ones() {
    let file = captures::pcap(&[], DataLink::from(113), Endianness::Little, TsResolution::MicroSecond);
    assert!(error(&file).starts_with("in.pcap: link type 113 is not supported, expected EN10MB (1)"));
    let unused = [section(), interface(113, 0, &[]), interface(101, 0, &[])].concat();
    assert_eq!(records(&[unused, enhanced(1, 0, b"a")].concat()).len(), 1);
}

#[test]
fn a_packet_of_64_kib_is_read_and_written_whole() {
    let file = captures::raw_pcap(&[(BEGAN, vec![0x45; 65_535])]);
    let (out, records, error) = copy(&file);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(records[0].1.len(), 65_535);
    assert_eq!(out, file);
}

/// Bytes that begin like a capture, so that damage is found in every part of one.
fn like_a_capture() -> impl Strategy<Value = Vec<u8>> {
    let begins = prop_oneof![
        Just(Vec::new()),
        Just(captures::raw_pcap(&packets())),
        Just([section(), interface(101, 5, &[9, 0, 1, 0, 6, 0, 0, 0])].concat()),
        Just(captures::pcapng(
            &[(0, (1, vec![1; 9]))],
            &[DataLink::RAW],
            Endianness::Big
        )),
        Just([section(), interface(1, 0, &[]), enhanced(0, 9, b"abc")].concat()),
    ];
    let damage = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
    let tail = prop::collection::vec(any::<u8>(), 0..80);
    (begins, damage, tail).prop_map(|(mut bytes, damage, tail)| {
        for (index, value) in damage {
            if !bytes.is_empty() {
                let index = index.index(bytes.len());
                bytes[index] = value;
            }
        }
        [bytes, tail].concat()
    })
}

proptest! {
    #[test]
    fn no_file_whatsoever_makes_reading_panic(file in like_a_capture()) {
        let (out, records, _) = copy(&file);
        let again = copy(&out).1;
        prop_assert_eq!(again.len(), records.len(), "what is written can be read");
    }
}

#[test]
fn a_reader_says_what_comes_first() {
    let file = captures::raw_pcap(&packets());
    let mut data = vec![1, 2, 3];
    assert_eq!(reader(&file).next(&mut data).unwrap(), Some(Entry::Layout));
    assert_eq!(data, file[..24]);
}
