//! A capture file of any bytes: packets, or an error; and a copy written from what was read reads as the same.
use std::path::Path;

use lbd::io::capture::{Entry, MAX_RECORD, Payload, Reader};

/// The packets, and the copy of as much of the file as is good.
fn read(file: &[u8]) -> (Vec<(u64, Vec<u8>)>, Vec<u8>) {
    let (mut packets, mut copy) = (Vec::new(), Vec::new());
    let Ok(mut reader) = Reader::new(file, Path::new("fuzz.pcap")) else {
        return (packets, copy);
    };
    let mut data = Vec::new();
    while let Ok(Some(entry)) = reader.next(&mut data) {
        match entry {
            Entry::Layout => copy.extend_from_slice(&data),
            Entry::Packet(record) => {
                assert!(data.len() <= MAX_RECORD as usize && data.len() <= file.len());
                if let Payload::Ip(at) = record.link.payload(&data) {
                    assert!(at <= data.len(), "a packet begins within its frame");
                }
                let written = record.write(&mut copy, &data, record.original_len);
                assert!(written.is_ok(), "what was read can be written");
                packets.push((record.time.as_nanos(), data.clone()));
            }
        }
        assert!(packets.len() <= file.len(), "every packet takes bytes of the file");
    }
    (packets, copy)
}

/// Any bytes.
pub fn run(data: &[u8]) {
    let (packets, copy) = read(data);
    let (again, _) = read(&copy);
    assert_eq!(packets, again, "the copy holds what the original holds");
}
