//! Any bytes as one packet: parsed, answered, complained about, rewritten and rewritten back. Nothing outside the packet's
//! buffer is read or written: the buffer's other bytes stay, and what they are changes nothing.
use lbd::flow::{Address, Key, Protocol};
use lbd::packet::frame::{Checksum, Frame};
use lbd::packet::refusal::{self, Complaint};
use lbd::packet::{Headers, Version, icmp, ip};
use lbd::rewrite;

/// Room before the packet and behind it.
const HEAD: usize = 14;
const TAIL: usize = 1_400;

/// 24 bytes that say what is done, then the packet.
pub fn run(data: &[u8]) {
    let Some((choices, packet)) = data.split_first_chunk::<24>() else {
        return;
    };
    let _length = ip::length(packet);
    let mut finished = packet.to_vec();
    rewrite::finish_checksum(&mut finished);
    let Ok(headers) = Headers::parse(packet) else { return };
    assert!(headers.transport <= headers.length && headers.length <= packet.len());
    let key = key(&headers, choices);
    let checksum = checksum(choices[0], &headers);
    let tail = if choices[1] & 1 == 0 {
        TAIL
    } else {
        usize::from(choices[1])
    };
    let own = (choices[1] & 2 == 0).then(|| key.source.into());
    let mtu = usize::from(choices[2]) << 6;
    let try_all = |run: &mut dyn FnMut(&mut Frame<'_>) -> bool| twice(packet, checksum, tail, run);
    try_all(&mut |frame| refusal::answer(frame, &headers).is_ok());
    try_all(&mut |frame| refusal::complain(frame, &headers, Complaint::TooBig { mtu }, own).is_ok());
    try_all(&mut |frame| refusal::complain(frame, &headers, Complaint::TimeExceeded, own).is_ok());
    try_all(&mut |frame| refusal::abort(frame, &headers, &key).is_ok());
    if let Some(quoted) = icmp::quoted(packet, &headers) {
        let inner = with_protocol(&key, quoted.key.protocol());
        try_all(&mut |frame| {
            rewrite::error(frame, &headers, &quoted, key.source, &inner);
            true
        });
        there_and_back_in_a_quotation(packet, &headers, &quoted, &inner);
    }
    if let Some(before) = headers.key() {
        try_all(&mut |frame| {
            rewrite::apply(frame, &headers, &key);
            assert_eq!(
                Headers::parse(frame.bytes()).ok().and_then(|after| after.key()),
                Some(key)
            );
            true
        });
        there_and_back(packet, &headers, &before, &key);
    }
}

fn key(headers: &Headers, choices: &[u8; 24]) -> Key {
    let word = |at: usize| u16::from_be_bytes([choices[at], choices[at + 1]]);
    let long = |at: usize| u64::from_be_bytes(std::array::from_fn(|index| choices[at + index]));
    let address = |at: usize| match headers.version {
        Version::V4 => Address::v4(long(at) as u32),
        Version::V6 => Address::v6(0xfd00_0000_0000_0000 | long(at) >> 8, long(at)),
    };
    let protocol = headers.key().map_or(Protocol::Udp, |key| key.protocol());
    Key::new(protocol, (address(8), word(4)), (address(16), word(6)))
}

fn with_protocol(key: &Key, protocol: Protocol) -> Key {
    let [high, low, to_high, to_low] = key.ports().to_be_bytes();
    let port = |high, low| u16::from_be_bytes([high, low]);
    Key::new(
        protocol,
        (key.source, port(high, low)),
        (key.destination, port(to_high, to_low)),
    )
}

/// As a device says, which knows where a transport header begins only of packets that it has made.
fn checksum(choice: u8, headers: &Headers) -> Checksum {
    match choice % 4 {
        0 | 1 => Checksum::Complete,
        2 => Checksum::Unsure,
        _ => Checksum::Partial {
            start: headers.transport + usize::from(choice & 4),
            offset: headers.checksum_offset().unwrap_or(8),
        },
    }
}

/// Runs it over buffers that hold other bytes elsewhere; what cannot be done changes nothing.
fn twice(packet: &[u8], checksum: Checksum, tail: usize, run: &mut dyn FnMut(&mut Frame<'_>) -> bool) {
    let mut once = |filling: u8| {
        let mut storage = vec![filling; HEAD + packet.len() + tail];
        let end = HEAD + packet.len();
        storage[HEAD..end].copy_from_slice(packet);
        let mut frame = Frame::new(&mut storage, HEAD, end, checksum);
        let done = run(&mut frame);
        let (range, after) = (frame.range(), frame.checksum);
        assert_eq!(range.start, HEAD);
        let out = storage[range.clone()].to_vec();
        assert!(storage[..HEAD].iter().all(|&byte| byte == filling), "before the packet");
        let behind = &storage[range.end.max(end)..];
        assert!(behind.iter().all(|&byte| byte == filling), "behind the packet");
        assert!(done || out == packet, "what cannot be answered is as it came");
        (out, after)
    };
    assert_eq!(once(0xa5), once(0x5a), "bytes beyond the packet do not matter");
}

fn there_and_back(packet: &[u8], headers: &Headers, before: &Key, key: &Key) {
    let mut bytes = packet.to_vec();
    for key in [key, before] {
        let length = bytes.len();
        let mut frame = Frame::new(&mut bytes, 0, length, Checksum::Complete);
        rewrite::apply(&mut frame, headers, key);
    }
    assert_same_but_for_zeros(packet, &bytes);
}

fn there_and_back_in_a_quotation(packet: &[u8], headers: &Headers, quoted: &icmp::Quoted, inner: &Key) {
    let mut bytes = packet.to_vec();
    for (source, inner) in [(inner.destination, inner), (headers.source, &quoted.key)] {
        let length = bytes.len();
        let mut frame = Frame::new(&mut bytes, 0, length, Checksum::Complete);
        rewrite::error(&mut frame, headers, quoted, source, inner);
    }
    assert_same_but_for_zeros(packet, &bytes);
}

/// The same, but a word that was all zeros may be all ones and the other way round: both are zero to a ones' complement sum
/// (RFC 1624), which only packets with wrong checksums show.
fn assert_same_but_for_zeros(before: &[u8], after: &[u8]) {
    let zero = |word: &[u8]| matches!(word, [0, 0] | [0xff, 0xff]);
    assert_eq!(before.len(), after.len());
    for (at, (old, new)) in before.chunks(2).zip(after.chunks(2)).enumerate() {
        assert!(
            old == new || (zero(old) && zero(new)),
            "word {at}: {old:02x?} {new:02x?}"
        );
    }
}
