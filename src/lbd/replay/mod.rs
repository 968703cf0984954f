//! `lbd replay`: the engine over a capture file, on the capture's own clock.
//!
//! - OUT holds what was forwarded and the answers to what was rejected, each in the format, on the interface and at
//!   the time of the packet that caused it, behind that packet's link header. What was passed or dropped is not in it.
//! - A fragment that came before the first one of its datagram is decided about together with it: it is in OUT behind it,
//!   and its line of verdict still has its own place and time. One whose first fragment never comes is dropped.
//! - The clock is the latest timestamp so far: a capture that goes back in time does not turn the clock back, but
//!   its packets keep their timestamps in OUT.
//! - A damaged capture is replayed up to the damage. OUT and the verdicts then hold that part, and the run fails with
//!   [`ReplayError::Damaged`]. Every other failure leaves OUT and the verdicts as they were before.
mod lines;
mod output;
pub mod run;
mod verdicts;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use lines::Lines;
use output::Output;

use lbd_core::flow::{Direction, Endpoint};
use lbd_core::packet::frame::{Checksum, Frame};
use lbd_core::time::Instant;
use lbd_core::verdict::{Drop, Pass, Verdict};
use lbd_net::io::capture::{CaptureError, Entry, Payload, Reader, Record};

/// Bytes behind a packet for an answer longer than it: the longest is an ICMPv6 error of 1,280 (RFC 4443 section 2.4).
const ANSWER_ROOM: usize = 2_048;

/// What a capture is replayed over.
pub trait Engine {
    /// The clock has reached `now`: what ends by then ends. Called before each packet that is processed.
    fn advance(&mut self, now: Instant);

    /// Decides about a packet, and rewrites it or replaces it by the answer to it.
    fn process(&mut self, frame: &mut Frame<'_>, now: Instant) -> Verdict;

    /// Packets that were held until now, and what became of them; asked after each of the calls above.
    fn released(&mut self) -> Vec<Released> {
        Vec::new()
    }

    /// Tells about a packet that was just forwarded, given as it was before; asked only where verdicts are wanted.
    fn describe(&mut self, before: &[u8], now: Instant) -> Option<Description>;
}

/// A packet that was held, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Released {
    /// How many packets had been held before it.
    pub ticket: u64,
    /// What became of it: anything but [`Verdict::Hold`].
    pub verdict: Verdict,
    /// The IP packet to be sent.
    pub packet: Vec<u8>,
    /// See [`Engine::describe`].
    pub description: Option<Description>,
}

/// What the verdicts tell about a forwarded packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Who sent it.
    pub direction: Direction,
    /// Name of the flow's service.
    pub service: String,
    /// The flow's backend.
    pub backend: Endpoint,
    /// The client's address as the backend sees it.
    pub source: Endpoint,
}

/// What became of the packets of a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    counts: [u64; Verdict::COUNT],
}

impl Summary {
    /// Packets that ended so.
    #[must_use]
    pub fn count(&self, verdict: Verdict) -> u64 {
        self.counts[verdict.index()]
    }

    /// All packets of the capture.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.counts.iter().sum()
    }

    fn named(&self, name: &str) -> u64 {
        Verdict::all()
            .filter(|verdict| verdict.name() == name)
            .map(|verdict| self.count(verdict))
            .sum()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} packets", self.packets())?;
        for name in ["forward", "pass", "reject", "drop"] {
            write!(f, ", {name} {}", self.named(name))?;
        }
        Ok(())
    }
}

/// Why a capture was not replayed, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The capture cannot be read at all; nothing was written.
    #[error(transparent)]
    Unreadable(CaptureError),
    /// The capture is damaged; what comes before the damage was replayed, and its results were kept.
    #[error("{capture}; the {replayed} packets before it were replayed into {}", output.display())]
    Damaged {
        /// Where and what.
        capture: CaptureError,
        /// How many packets were replayed.
        replayed: u64,
        /// Where the results are.
        output: PathBuf,
    },
    /// A result cannot be written; none was.
    #[error("{}: cannot write: {error}", file.display())]
    Write {
        /// The file that was to be written.
        file: PathBuf,
        /// What the operating system says.
        error: io::Error,
    },
    /// Two of the three files are one.
    #[error("{} and {} are the same file; {} needs a file of its own", one.display(), other.display(), other.display())]
    SameFile {
        /// The first of them.
        one: PathBuf,
        /// The file that would overwrite it.
        other: PathBuf,
    },
}

/// Replays the capture `input` over `engine` into the capture `output`, and writes one JSON line a packet into
/// `verdicts`.
///
/// # Errors
/// When a file cannot be read or written, or two of them are the same; see [`ReplayError`].
pub fn run(
    engine: &mut dyn Engine,
    input: &Path,
    output: &Path,
    verdicts: Option<&Path>,
) -> Result<Summary, ReplayError> {
    refuse_same_file(input, output)?;
    if let Some(verdicts) = verdicts {
        refuse_same_file(input, verdicts)?;
        refuse_same_file(output, verdicts)?;
    }
    let mut reader = Reader::open(input).map_err(ReplayError::Unreadable)?;
    let mut replay = Replay {
        engine,
        output: Output::create(output)?,
        verdicts: verdicts.map(Output::create).transpose()?.map(Lines::new),
        began: None,
        clock: Instant::ZERO,
        counts: [0; Verdict::COUNT],
        packets: 0,
        waiting: BTreeMap::new(),
        tickets: 0,
    };
    let damage = replay.play(&mut reader)?;
    replay.give_up()?;
    let summary = replay.commit()?;
    match damage {
        None => Ok(summary),
        Some(capture) => Err(ReplayError::Damaged {
            capture,
            replayed: summary.packets(),
            output: output.to_owned(),
        }),
    }
}

fn refuse_same_file(one: &Path, other: &Path) -> Result<(), ReplayError> {
    if output::same_file(one, other) {
        return Err(ReplayError::SameFile {
            one: one.to_owned(),
            other: other.to_owned(),
        });
    }
    Ok(())
}

struct Replay<'a> {
    engine: &'a mut dyn Engine,
    output: Output,
    verdicts: Option<Lines>,
    began: Option<Instant>,
    clock: Instant,
    counts: [u64; Verdict::COUNT],
    /// How many were read.
    packets: u64,
    /// Packets that are held, by ticket.
    waiting: BTreeMap<u64, Waiting>,
    tickets: u64,
}

/// A packet that is held.
#[derive(Clone, Copy)]
struct Waiting {
    /// Its number in the capture, from 1.
    number: u64,
    /// Since the first packet.
    time: Duration,
}

/// What became of one packet: the frame to send lies in the first `len` bytes.
struct Outcome {
    verdict: Verdict,
    description: Option<Description>,
    len: usize,
    /// Where the IP packet begins, behind its link header.
    start: usize,
}

impl Outcome {
    fn unprocessed(verdict: Verdict) -> Self {
        Self {
            verdict,
            description: None,
            len: 0,
            start: 0,
        }
    }
}

impl Replay<'_> {
    /// Replays until the end, or until the capture is damaged.
    fn play<R: io::Read>(&mut self, reader: &mut Reader<R>) -> Result<Option<CaptureError>, ReplayError> {
        let mut data = Vec::new();
        loop {
            match reader.next(&mut data) {
                Ok(None) => return Ok(None),
                Ok(Some(Entry::Layout)) => self.layout(&data)?,
                Ok(Some(Entry::Packet(record))) => self.packet(&record, &mut data)?,
                Err(damage) => return Ok(Some(damage)),
            }
        }
    }

    fn layout(&mut self, bytes: &[u8]) -> Result<(), ReplayError> {
        self.output.write(|out| out.write_all(bytes))
    }

    fn packet(&mut self, record: &Record, data: &mut Vec<u8>) -> Result<(), ReplayError> {
        self.clock = self.clock.max(record.time);
        let captured = data.len();
        let outcome = match record.link.payload(data) {
            Payload::Ip(start) => self.process(data, start),
            Payload::NotIp => Outcome::unprocessed(Verdict::Pass(Pass::NotIp)),
            Payload::Malformed => Outcome::unprocessed(Verdict::Drop(Drop::Malformed)),
        };
        self.log(&outcome)?;
        let original_len = match outcome.verdict {
            Verdict::Forward => Some(original_len(record.original_len, captured, outcome.len)),
            Verdict::Reject(_) => Some(u32::try_from(outcome.len).unwrap_or(u32::MAX)),
            Verdict::Pass(_) | Verdict::Drop(_) | Verdict::Hold => None,
        };
        if let Some(original_len) = original_len {
            let frame = &data[..outcome.len];
            self.output.write(|out| record.write(out, frame, original_len))?;
        }
        let released = self.engine.released();
        let link_header = &data[..outcome.start];
        released
            .into_iter()
            .try_for_each(|released| self.release(record, link_header, &released))
    }

    /// Sends a packet that was held until now, behind the link header of the one that it waited for.
    fn release(&mut self, record: &Record, link_header: &[u8], released: &Released) -> Result<(), ReplayError> {
        self.end(released.ticket, released.verdict, released.description.as_ref())?;
        match released.verdict {
            Verdict::Forward | Verdict::Reject(_) => {
                let frame = [link_header, &released.packet].concat();
                let length = u32::try_from(frame.len()).unwrap_or(u32::MAX);
                self.output.write(|out| record.write(out, &frame, length))
            }
            Verdict::Pass(_) | Verdict::Drop(_) | Verdict::Hold => Ok(()),
        }
    }

    /// A packet that was held is decided about.
    fn end(&mut self, ticket: u64, verdict: Verdict, description: Option<&Description>) -> Result<(), ReplayError> {
        let Some(Waiting { number, time }) = self.waiting.remove(&ticket) else {
            return Ok(());
        };
        self.counts[verdict.index()] += 1;
        match &mut self.verdicts {
            Some(verdicts) => verdicts.fill(number, verdicts::line(number, time, verdict, description)),
            None => Ok(()),
        }
    }

    /// For what is still held, nothing more comes.
    fn give_up(&mut self) -> Result<(), ReplayError> {
        let tickets: Vec<u64> = self.waiting.keys().copied().collect();
        let given_up = Verdict::Drop(Drop::FragmentTimeout);
        tickets
            .into_iter()
            .try_for_each(|ticket| self.end(ticket, given_up, None))
    }

    /// Has the engine process the IP packet that begins at `start`.
    fn process(&mut self, data: &mut Vec<u8>, start: usize) -> Outcome {
        let captured = data.len();
        let before = self.verdicts.is_some().then(|| data[start..].to_vec());
        data.resize(captured + ANSWER_ROOM, 0);
        let mut frame = Frame::new(data, start, captured, Checksum::Complete);
        self.engine.advance(self.clock);
        let verdict = self.engine.process(&mut frame, self.clock);
        let len = frame.range().end;
        let description = before
            .filter(|_| verdict == Verdict::Forward)
            .and_then(|before| self.engine.describe(&before, self.clock));
        Outcome {
            verdict,
            description,
            len,
            start,
        }
    }

    /// Counts a packet and writes its line, or keeps a place for that.
    fn log(&mut self, outcome: &Outcome) -> Result<(), ReplayError> {
        let began = *self.began.get_or_insert(self.clock);
        self.packets += 1;
        let (number, time, verdict) = (self.packets, self.clock - began, outcome.verdict);
        let is_held = verdict == Verdict::Hold;
        match is_held {
            true => {
                self.waiting.insert(self.tickets, Waiting { number, time });
                self.tickets += 1;
            }
            false => self.counts[verdict.index()] += 1,
        }
        let Some(verdicts) = &mut self.verdicts else {
            return Ok(());
        };
        let line = (!is_held).then(|| verdicts::line(number, time, verdict, outcome.description.as_ref()));
        verdicts.push(line)
    }

    fn commit(self) -> Result<Summary, ReplayError> {
        let output = self.output.finish()?;
        let verdicts = self.verdicts.map(Lines::finish).transpose()?;
        output.publish()?;
        if let Some(verdicts) = verdicts {
            verdicts.publish()?;
        }
        Ok(Summary { counts: self.counts })
    }
}

/// The wire length of a forwarded frame: what a snaplen has cut off is still missing.
fn original_len(original: u32, captured: usize, emitted: usize) -> u32 {
    let cut = (original as usize).saturating_sub(captured);
    u32::try_from(emitted + cut).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
