use std::fs;

use proptest::prelude::*;
use tempfile::TempDir;

use lbd_testkit::packets;

use super::*;
use lbd_core::verdict::Reject;
use lbd_testkit::captures::{self, DataLink, Endianness, Timed, TsResolution};

const CLIENT: &str = "10.1.0.2:40000";
const BACKEND: &str = "10.2.0.11:8080";

/// Decides by the UDP destination port, and remembers the clock.
#[derive(Default)]
struct Fake {
    clock: Vec<u64>,
    advanced: u64,
}

const FORWARD: u16 = 1;
const PASS: u16 = 2;
const REJECT: u16 = 3;
const DROP: u16 = 4;

/// An answer longer than any packet of these tests but the largest.
const ANSWER: [u8; 576] = [0x45; 576];

impl Engine for Fake {
    fn advance(&mut self, now: Instant) {
        self.advanced = now.as_nanos();
    }

    fn process(&mut self, frame: &mut Frame<'_>, now: Instant) -> Verdict {
        assert_eq!(self.advanced, now.as_nanos());
        self.clock.push(now.as_nanos());
        let port = match frame.bytes().get(22..24) {
            Some(&[high, low]) => u16::from_be_bytes([high, low]),
            Some(_) | None => return Verdict::Drop(Drop::Malformed),
        };
        match port {
            FORWARD => {
                frame.bytes_mut()[19] = 99;
                Verdict::Forward
            }
            REJECT => {
                frame.replace(&ANSWER);
                Verdict::Reject(Reject::NoBackend)
            }
            DROP => Verdict::Drop(Drop::NotSyn),
            _ => Verdict::Pass(Pass::NoMatch),
        }
    }

    fn describe(&mut self, before: &[u8], _: Instant) -> Option<Description> {
        let (source, destination) = packets::endpoints(before);
        assert_eq!(destination.ip().to_string(), "10.96.0.10");
        Some(Description {
            direction: Direction::Original,
            service: "default/web:http".into(),
            backend: BACKEND.parse().unwrap(),
            source: source.into(),
        })
    }
}

/// A directory with a capture.
struct Run {
    directory: TempDir,
    engine: Fake,
}

impl Run {
    fn of(capture: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("in.pcap"), capture).unwrap();
        Self {
            directory,
            engine: Fake::default(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn run(&mut self) -> Result<Summary, ReplayError> {
        let (input, output) = (self.path("in.pcap"), self.path("out.pcap"));
        let verdicts = self.path("verdicts");
        run(&mut self.engine, &input, &output, Some(&verdicts))
    }

    fn out(&self) -> Vec<u8> {
        fs::read(self.path("out.pcap")).unwrap()
    }

    fn verdicts(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("verdicts")).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.directory.path()).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn to(port: u16) -> Vec<u8> {
    packets::udp(CLIENT, format!("10.96.0.10:{port}"), b"hello")
}

fn forwarded(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    packet[19] = 99;
    packet
}

fn ethernet(frames: &[Timed]) -> Vec<u8> {
    captures::pcap(frames, DataLink::ETHERNET, Endianness::Big, TsResolution::MicroSecond)
}

#[test]
fn only_forwarded_packets_and_answers_are_emitted_each_at_its_cause_s_time() {
    let ports = [FORWARD, PASS, REJECT, DROP];
    let input: Vec<Timed> = ports.iter().map(|&port| (u64::from(port) * 10, to(port))).collect();
    let mut run = Run::of(&captures::raw_pcap(&input));
    let summary = run.run().unwrap();
    let (header, out) = captures::read_pcap(&run.out());
    assert_eq!(header.datalink, DataLink::RAW);
    assert_eq!(out, [(10, forwarded(&to(FORWARD))), (30, ANSWER.to_vec())]);
    assert_eq!(summary.packets(), 4);
    assert_eq!(summary.count(Verdict::Reject(Reject::NoBackend)), 1);
    assert_eq!(summary.to_string(), "4 packets, forward 1, pass 1, reject 1, drop 1");
}

#[test]
fn every_packet_gets_one_line_of_verdict() {
    let ports = [FORWARD, PASS, REJECT, DROP];
    let input: Vec<Timed> = ports
        .iter()
        .map(|&port| (5_000_000_000 + u64::from(port) * 500_000_000, to(port)))
        .collect();
    let mut run = Run::of(&captures::raw_pcap(&input));
    run.run().unwrap();
    assert_eq!(
        run.verdicts(),
        [
            r#"{"packet":1,"time":0.0,"verdict":"forward","direction":"original","service":"default/web:http","backend":"10.2.0.11:8080","source":"10.1.0.2:40000"}"#,
            r#"{"packet":2,"time":0.5,"verdict":"pass","reason":"no_match"}"#,
            r#"{"packet":3,"time":1.0,"verdict":"reject","reason":"no_backend"}"#,
            r#"{"packet":4,"time":1.5,"verdict":"drop","reason":"not_syn"}"#,
        ]
    );
}

#[test]
fn the_clock_never_runs_back_but_packets_keep_their_times() {
    let input = [(1_000, to(FORWARD)), (400, to(FORWARD)), (1_001, to(FORWARD))];
    let mut run = Run::of(&captures::raw_pcap(&input));
    run.run().unwrap();
    assert_eq!(run.engine.clock, [1_000, 1_000, 1_001]);
    let times: Vec<u64> = captures::read_pcap(&run.out())
        .1
        .iter()
        .map(|packet| packet.0)
        .collect();
    assert_eq!(times, [1_000, 400, 1_001]);
    assert!(run.verdicts()[1].contains(r#""time":0.0,"#));
}

#[test]
fn link_headers_and_padding_stay_on_forwarded_frames_and_answers_have_no_padding() {
    let frame = |port, vlans: &[u16]| {
        let mut frame = packets::ethernet(&to(port), vlans);
        frame.resize(frame.len().max(60), 0xee);
        frame
    };
    let tagged = frame(FORWARD, &[7, 8]);
    let refused = frame(REJECT, &[9]);
    let mut run = Run::of(&ethernet(&[(1_000, tagged.clone()), (2_000, refused.clone())]));
    run.run().unwrap();
    let (header, out) = captures::read_pcap(&run.out());
    assert_eq!(
        (header.datalink, header.endianness),
        (DataLink::ETHERNET, Endianness::Big)
    );
    let mut expected = tagged;
    expected[22 + 19] = 99;
    assert_eq!(out[0], (1_000, expected));
    assert_eq!(out[1], (2_000, [&refused[..18], &ANSWER].concat()));
}

#[test]
fn frames_that_are_not_ip_or_cut_within_their_header_never_reach_the_engine() {
    let mut run = Run::of(&ethernet(&[(0, packets::arp()), (0, vec![2; 13]), (0, vec![])]));
    let summary = run.run().unwrap();
    assert_eq!(summary.count(Verdict::Pass(Pass::NotIp)), 1);
    assert_eq!(summary.count(Verdict::Drop(Drop::Malformed)), 2);
    assert!(run.engine.clock.is_empty());
    assert_eq!(
        run.verdicts()[0],
        r#"{"packet":1,"time":0.0,"verdict":"pass","reason":"not_ip"}"#
    );
    assert!(captures::read_pcap(&run.out()).1.is_empty());
}

#[test]
fn a_pcapng_capture_stays_one_with_each_packet_on_its_interface() {
    let frame = packets::ethernet(&to(FORWARD), &[]);
    let input = [(1, (7, to(FORWARD))), (0, (8, frame.clone())), (1, (9, to(DROP)))];
    let links = [DataLink::ETHERNET, DataLink::RAW];
    let mut run = Run::of(&captures::pcapng(&input, &links, Endianness::Little));
    run.run().unwrap();
    let mut expected = frame;
    expected[14 + 19] = 99;
    assert_eq!(
        captures::read_pcapng(&run.out()),
        [(1, (7, forwarded(&to(FORWARD)))), (0, (8, expected))]
    );
}

#[test]
fn a_packet_of_64_kib_passes_whole() {
    let packet = packets::udp(CLIENT, "10.96.0.10:1", &[7; 65_507]);
    assert_eq!(packet.len(), 65_535);
    let input = [
        (1, packet.clone()),
        (2, packets::udp(CLIENT, "10.96.0.10:3", &[7; 65_507])),
    ];
    let mut run = Run::of(&captures::raw_pcap(&input));
    run.run().unwrap();
    let out = captures::read_pcap(&run.out()).1;
    assert_eq!(out, [(1, forwarded(&packet)), (2, ANSWER.to_vec())]);
}

#[test]
fn a_cut_packet_keeps_its_wire_length_and_an_answer_has_its_own() {
    let mut capture = captures::raw_pcap(&[(1, to(FORWARD)), (2, to(REJECT))]);
    let second = 24 + 16 + to(FORWARD).len();
    for header in [24, second] {
        capture[header + 12..header + 16].copy_from_slice(&1_500_u32.to_le_bytes());
    }
    let mut run = Run::of(&capture);
    run.run().unwrap();
    let out = run.out();
    assert_eq!(out[36..40], 1_500_u32.to_le_bytes());
    assert_eq!(out[second + 12..second + 16], 576_u32.to_le_bytes());
}

#[test]
fn a_damaged_capture_is_replayed_up_to_the_damage_and_then_reported() {
    let capture = captures::raw_pcap(&[(1, to(FORWARD)), (2, to(FORWARD)), (3, to(FORWARD))]);
    let mut run = Run::of(&capture[..capture.len() - 1]);
    let error = run.run().unwrap_err().to_string();
    let place = run.directory.path().display();
    assert_eq!(
        error,
        format!(
            "{place}/in.pcap: packet 3: the file ends after 32 of the 33 bytes of the packet; \
             the 2 packets before it were replayed into {place}/out.pcap"
        )
    );
    assert_eq!(captures::read_pcap(&run.out()).1.len(), 2);
    assert_eq!(run.verdicts().len(), 2);
    assert_eq!(run.files(), ["in.pcap", "out.pcap", "verdicts"]);
}

#[test]
fn a_file_that_is_no_capture_leaves_no_output() {
    let mut run = Run::of(b"not a capture");
    let error = run.run().unwrap_err();
    assert!(matches!(error, ReplayError::Unreadable(_)), "{error}");
    assert_eq!(run.files(), ["in.pcap"]);
}

#[test]
fn a_run_that_cannot_write_its_verdicts_leaves_the_old_output() {
    let mut run = Run::of(&captures::raw_pcap(&[(1, to(FORWARD))]));
    fs::write(run.path("out.pcap"), b"old").unwrap();
    let (input, output) = (run.path("in.pcap"), run.path("out.pcap"));
    let verdicts = run.path("missing/verdicts");
    let error = super::run(&mut run.engine, &input, &output, Some(&verdicts)).unwrap_err();
    assert!(error.to_string().contains("missing/verdicts: cannot write: "));
    assert_eq!(run.out(), b"old");
    assert_eq!(run.files(), ["in.pcap", "out.pcap"]);
}

#[test]
fn a_full_device_is_an_error_and_a_device_is_never_replaced() {
    let mut run = Run::of(&captures::raw_pcap(&[(1, to(FORWARD))]));
    let input = run.path("in.pcap");
    let error = super::run(&mut run.engine, &input, Path::new("/dev/full"), None).unwrap_err();
    assert!(error.to_string().starts_with("/dev/full: cannot write: "), "{error}");
    let null = Path::new("/dev/null");
    super::run(&mut run.engine, &input, null, Some(null)).unwrap();
    assert!(!fs::metadata(null).unwrap().is_file());
}

#[test]
fn input_output_and_verdicts_must_be_three_files() {
    let mut run = Run::of(&captures::raw_pcap(&[(1, to(FORWARD))]));
    let input = run.path("in.pcap");
    let same = run.directory.path().join(".").join("in.pcap");
    fs::hard_link(&input, run.path("link")).unwrap();
    for output in [&same, &run.path("link")] {
        let error = super::run(&mut run.engine, &input, output, None).unwrap_err();
        assert!(matches!(error, ReplayError::SameFile { .. }), "{error}");
    }
    let new = run.path("new");
    let error = super::run(&mut run.engine, &input, &new, Some(&new)).unwrap_err();
    assert!(error.to_string().contains("are the same file"), "{error}");
    assert_eq!(run.files(), ["in.pcap", "link"]);
}

#[test]
fn two_runs_over_one_capture_give_the_same_bytes() {
    let input: Vec<Timed> = (0..50_u16).map(|n| (n.into(), to(n % 5))).collect();
    let capture = captures::raw_pcap(&input);
    let (mut one, mut other) = (Run::of(&capture), Run::of(&capture));
    one.run().unwrap();
    other.run().unwrap();
    assert_eq!(one.out(), other.out());
    assert_eq!(one.verdicts(), other.verdicts());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn whatever_frames_a_capture_holds_each_gets_one_verdict(
        frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..90), 0..12),
        link in prop::sample::select(vec![1, 101, 228, 229]),
    ) {
        let timed: Vec<Timed> = frames.into_iter().map(|frame| (0, frame)).collect();
        let file = captures::pcap(&timed, DataLink::from(link), Endianness::Little, TsResolution::NanoSecond);
        let mut run = Run::of(&file);
        let (input, output, log) = (run.path("in.pcap"), run.path("out.pcap"), run.path("verdicts"));
        let summary = super::run(&mut Undescribed(&mut run.engine), &input, &output, Some(&log)).unwrap();
        prop_assert_eq!(summary.packets(), timed.len() as u64);
        prop_assert_eq!(run.verdicts().len(), timed.len());
    }
}

/// An engine that cannot tell about its packets.
struct Undescribed<'a>(&'a mut Fake);

impl Engine for Undescribed<'_> {
    fn advance(&mut self, now: Instant) {
        self.0.advance(now);
    }

    fn process(&mut self, frame: &mut Frame<'_>, now: Instant) -> Verdict {
        self.0.process(frame, now)
    }

    fn describe(&mut self, _: &[u8], _: Instant) -> Option<Description> {
        None
    }
}

/// What the checker of `packets` says about packets of its own making.
mod support {
    use lbd_testkit::packets::{self, IcmpError};

    fn flows() -> [(&'static str, &'static str); 2] {
        [
            ("10.1.0.2:40000", "10.96.0.10:80"),
            ("[fd00:1::2]:40000", "[fd00:96::10]:80"),
        ]
    }

    fn errors() -> [IcmpError; 4] {
        [
            IcmpError::HostUnreachable,
            IcmpError::PortUnreachable,
            IcmpError::TimeExceeded,
            IcmpError::TooBig { mtu: 1_400 },
        ]
    }

    fn all() -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        for (client, service) in flows() {
            let router = packets::socket(service).ip();
            let flags = packets::PSH | packets::ACK;
            let segment = packets::tcp(client, service, flags, 7, 8, &[b'x'; 1_400]);
            all.push(packets::syn(client, service));
            all.push(packets::udp(client, service, b"odd"));
            all.push(packets::sctp(client, service, 1));
            all.push(packets::ping(packets::socket(client).ip(), router));
            for error in errors() {
                all.push(packets::icmp_error(router, error, &segment));
                all.push(packets::icmp_error(router, error, &packets::syn(client, service)));
            }
            all.push(segment);
        }
        all
    }

    #[test]
    fn every_crafted_packet_is_valid() {
        for packet in all() {
            packets::assert_valid(&packet);
        }
    }

    #[test]
    fn a_changed_address_or_payload_is_noticed() {
        for packet in all() {
            // SCTP's CRC does not cover addresses, and IPv6 has no header checksum.
            let sctp_over_ipv6 = packet[0] >> 4 == 6 && packet[6] == 132;
            let address = if sctp_over_ipv6 { packet.len() - 2 } else { 12 };
            for index in [address, packet.len() - 1] {
                let mut changed = packet.clone();
                changed[index] ^= 0x10;
                let check = std::panic::catch_unwind(|| packets::assert_valid(&changed));
                assert!(check.is_err(), "byte {index} of {packet:02x?}");
            }
        }
    }
}
