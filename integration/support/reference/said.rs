//! What both sides of a TCP flow have said, and whether a segment fits it.
use super::super::packets::{ACK, FIN, RST, SYN};

/// What a packet says.
#[derive(Clone, Copy, Debug)]
pub struct Said {
    /// TCP flags, or the number of an SCTP chunk.
    pub told: u8,
    pub sequence: u32,
    pub acknowledges: u32,
    /// Bytes, without SYN and FIN.
    pub length: u32,
    /// Its checksum is right, by what is there of it.
    pub is_intact: bool,
    /// Only in fragments.
    pub is_cut: bool,
}

/// The end of a stream, and the highest acknowledgement sent.
#[derive(Clone, Copy, Debug, Default)]
struct Speaker {
    end: Option<u32>,
    acknowledged: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Talk {
    client: Speaker,
    backend: Speaker,
}

impl Said {
    fn end(self) -> u32 {
        let more = u32::from(self.told & SYN != 0) + u32::from(self.told & FIN != 0);
        self.sequence.wrapping_add(self.length + more)
    }

    fn acknowledged(self) -> Option<u32> {
        (self.told & ACK != 0).then_some(self.acknowledges)
    }
}

/// Whether `number` is at most `most` behind `from`.
fn is_within(number: u32, from: Option<u32>, most: u64) -> bool {
    from.is_some_and(|from| u64::from(number.wrapping_sub(from)) <= most)
}

impl Talk {
    fn sides(&self, original: bool) -> (Speaker, Speaker) {
        match original {
            true => (self.client, self.backend),
            false => (self.backend, self.client),
        }
    }

    pub fn believes(&self, state: &str, original: bool, said: Said) -> bool {
        let (own, other) = self.sides(original);
        let nothing_known = other.end.is_none();
        // It has sent a SYN, and nothing since.
        let other_asks = other.end.is_some() && other.acknowledged.is_none();
        if said.told & RST != 0 {
            let behind_its_last = own.acknowledged.is_some() && own.end == Some(said.sequence);
            let answers = other_asks && said.acknowledged() == other.end;
            let expected = other.acknowledged == Some(said.sequence) || nothing_known;
            return said.is_intact && !said.is_cut && (behind_its_last || answers || expected);
        }
        if said.told & SYN != 0 {
            let fits = match (original, said.told & ACK != 0) {
                (true, with_ack) => !with_ack,
                (false, true) => nothing_known || other_asks && said.acknowledged() == other.end,
                (false, false) => !["FW", "CW", "LA"].contains(&state),
            };
            return fits && said.is_intact && !said.is_cut;
        }
        let near = |most| is_within(said.end(), other.acknowledged, most);
        let acknowledges = |most| {
            said.acknowledged()
                .is_some_and(|ack| is_within(ack, own.acknowledged, most))
        };
        let fits = near(65_535) || acknowledges(65_535) || near(1 << 24) && acknowledges(1 << 24) || nothing_known;
        fits && (said.told & FIN == 0 || said.is_intact)
    }

    /// Of what is believed.
    pub fn note(&mut self, original: bool, said: Said) {
        let (mut own, other) = self.sides(original);
        let half_way = 1 << 30;
        match (said.told & RST != 0, said.told & SYN != 0, original) {
            (true, _, _) => return,
            (false, true, true) => (own.end, own.acknowledged) = (Some(said.end()), None),
            (false, true, false) if said.told & ACK == 0 => return,
            (false, true, false) => (own.end, own.acknowledged) = (Some(said.end()), said.acknowledged()),
            (false, false, _) => {
                let strange = !is_within(own.end.unwrap_or(0), Some(other.acknowledged.unwrap_or(0)), half_way);
                if own.acknowledged.is_none() || strange || is_within(said.end(), own.end, half_way) {
                    own.end = Some(said.end());
                }
                let strange = !is_within(other.end.unwrap_or(0), own.acknowledged, half_way);
                if let Some(ack) = said.acknowledged()
                    && (own.acknowledged.is_none() || strange || is_within(ack, own.acknowledged, half_way))
                {
                    own.acknowledged = Some(ack);
                }
            }
        }
        match original {
            true => self.client = own,
            false => self.backend = own,
        }
    }
}
