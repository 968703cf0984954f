//! `lbd replay`: the engine over a capture file, on the capture's own clock.
//!
//! - OUT holds what was forwarded and the answers to what was rejected, each in the format, on the interface and at
//!   the time of the packet that caused it, behind that packet's link header. What was passed or dropped is not in it.
//! - The clock is the latest timestamp so far: a capture that goes back in time does not turn the clock back, but
//!   its packets keep their timestamps in OUT.
//! - A damaged capture is replayed up to the damage. OUT and the verdicts then hold that part, and the run fails with
//!   [`ReplayError::Damaged`]. Every other failure leaves OUT and the verdicts as they were before.
mod output;
pub mod run;
mod verdicts;

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use output::Output;

use crate::flow::{Direction, Endpoint};
use crate::io::capture::{CaptureError, Entry, Payload, Reader, Record};
use crate::packet::frame::{Checksum, Frame};
use crate::time::Instant;
use crate::verdict::{Drop, Pass, Verdict};

/// Bytes behind a packet for an answer longer than it: the longest is an ICMPv6 error of 1,280 (RFC 4443 section 2.4).
const ANSWER_ROOM: usize = 2_048;

/// What a capture is replayed over.
pub trait Engine {
    /// The clock has reached `now`: what ends by then ends. Called before each packet that is processed.
    fn advance(&mut self, now: Instant);

    /// Decides about a packet, and rewrites it or replaces it by the answer to it.
    fn process(&mut self, frame: &mut Frame<'_>, now: Instant) -> Verdict;

    /// Tells about a packet that was just forwarded, given as it was before; asked only where verdicts are wanted.
    fn describe(&mut self, before: &[u8], now: Instant) -> Option<Description>;
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
        verdicts: verdicts.map(Output::create).transpose()?,
        began: None,
        clock: Instant::ZERO,
        counts: [0; Verdict::COUNT],
    };
    let damage = replay.play(&mut reader)?;
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
    verdicts: Option<Output>,
    began: Option<Instant>,
    clock: Instant,
    counts: [u64; Verdict::COUNT],
}

/// What became of one packet: the frame to send lies in the first `len` bytes.
struct Outcome {
    verdict: Verdict,
    description: Option<Description>,
    len: usize,
}

impl Outcome {
    fn unprocessed(verdict: Verdict) -> Self {
        Self {
            verdict,
            description: None,
            len: 0,
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
        self.counts[outcome.verdict.index()] += 1;
        self.log(&outcome)?;
        let original_len = match outcome.verdict {
            Verdict::Forward => original_len(record.original_len, captured, outcome.len),
            Verdict::Reject(_) => u32::try_from(outcome.len).unwrap_or(u32::MAX),
            Verdict::Pass(_) | Verdict::Drop(_) => return Ok(()),
        };
        let frame = &data[..outcome.len];
        self.output.write(|out| record.write(out, frame, original_len))
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
        }
    }

    fn log(&mut self, outcome: &Outcome) -> Result<(), ReplayError> {
        let began = *self.began.get_or_insert(self.clock);
        let Some(verdicts) = &mut self.verdicts else {
            return Ok(());
        };
        let line = verdicts::line(
            self.counts.iter().sum(),
            self.clock - began,
            outcome.verdict,
            outcome.description.as_ref(),
        );
        verdicts.write(|out| out.write_all(line.as_bytes()))
    }

    fn commit(self) -> Result<Summary, ReplayError> {
        let output = self.output.finish()?;
        let verdicts = self.verdicts.map(Output::finish).transpose()?;
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

/// Packets for tests, here and in other rooms.
#[cfg(test)]
#[path = "../../integration/support/packets.rs"]
pub(crate) mod packets;
#[cfg(test)]
mod tests;
