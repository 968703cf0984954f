//! The lines of `--verdicts` in the order of the packets: the line of a packet that is held keeps back those after it.
use std::collections::VecDeque;
use std::io::Write;

use super::ReplayError;
use super::output::{Finished, Output};

/// See the module.
pub(super) struct Lines {
    output: Output,
    /// The number of the packet whose line is to be written next, from 1.
    next: u64,
    /// The lines from that one on; None where nothing is decided yet.
    kept: VecDeque<Option<String>>,
}

impl Lines {
    pub(super) const fn new(output: Output) -> Self {
        Self {
            output,
            next: 1,
            kept: VecDeque::new(),
        }
    }

    /// The line of the next packet, or a place for it.
    pub(super) fn push(&mut self, line: Option<String>) -> Result<(), ReplayError> {
        self.kept.push_back(line);
        self.write()
    }

    /// The line of packet number `packet`, which has a place.
    pub(super) fn fill(&mut self, packet: u64, line: String) -> Result<(), ReplayError> {
        let place = usize::try_from(packet - self.next).ok();
        if let Some(place) = place.and_then(|place| self.kept.get_mut(place)) {
            *place = Some(line);
        }
        self.write()
    }

    pub(super) fn finish(self) -> Result<Finished, ReplayError> {
        self.output.finish()
    }

    fn write(&mut self) -> Result<(), ReplayError> {
        while let Some(Some(line)) = self.kept.front() {
            self.output.write(|out| out.write_all(line.as_bytes()))?;
            self.kept.pop_front();
            self.next += 1;
        }
        Ok(())
    }
}
