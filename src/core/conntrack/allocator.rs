//! Which ports of an address that stands for clients are taken towards which server, in one shard.
//!
//! A port is given again only once all others of its share have been: the backend may still remember its last connection
//! (TIME-WAIT, RFC 9293 section 3.6.1), and answers a SYN from there with a challenge ACK (RFC 5961 section 4.2), which costs the
//! client a second. Among the 64 that are next, chance decides (RFC 6056).
use std::collections::HashMap;

use ahash::RandomState;

use crate::flow::Key;
use crate::flow::ports::{place, port};
use crate::scheduler::Rng;

/// Places of a word.
const WORD: u32 = u64::BITS;

/// The ports of a shard, by the key of the server's packets without the port that they go to.
#[derive(Debug)]
pub(super) struct Allocator {
    taken: HashMap<Key, Taken, RandomState>,
    /// Words of a share of the ports.
    words: usize,
}

/// The ports of one address towards one server.
#[derive(Debug)]
struct Taken {
    /// A bit for each place of the share.
    words: Box<[u64]>,
    count: u32,
    /// The word that ports are given of now, and those of its places that were not looked at yet.
    at: usize,
    pending: u64,
    /// Where the next search for a flow that yields begins.
    hand: u32,
}

impl Allocator {
    pub(super) fn new(hasher: RandomState, words: usize) -> Self {
        Self {
            taken: HashMap::with_hasher(hasher),
            words,
        }
    }

    /// Bytes that it takes.
    pub(super) fn memory(&self) -> usize {
        self.taken.capacity() * size_of::<(Key, Taken)>() + self.taken.len() * self.words * size_of::<u64>()
    }

    /// A flow has the port that packets with this key go to.
    pub(super) fn take(&mut self, reply: &Key) {
        let (word, bit) = self.split(reply);
        let words = self.words;
        let taken = self.taken.entry(reply.without_destination_port());
        let taken = taken.or_insert_with(|| Taken::new(words, word));
        if taken.words[word] & bit == 0 {
            taken.words[word] |= bit;
            taken.count += 1;
        }
    }

    /// It has it no more.
    pub(super) fn release(&mut self, reply: &Key) {
        let (word, bit) = self.split(reply);
        let server = reply.without_destination_port();
        let Some(taken) = self.taken.get_mut(&server) else {
            return;
        };
        if taken.words[word] & bit != 0 {
            taken.words[word] &= !bit;
            taken.count -= 1;
        }
        if taken.count == 0 {
            self.taken.remove(&server);
        }
    }

    /// The next of the `allowed` ports that no flow has towards `server`, and its place in the share.
    pub(super) fn next_free(&mut self, server: &Key, allowed: &[u64], rng: &mut Rng) -> Option<u32> {
        match self.taken.get_mut(server) {
            Some(taken) => taken.next_free(allowed, rng),
            None => {
                let first = rng.usize(..self.words);
                let mut words = (0..self.words).map(|step| (first + step) % self.words);
                let word = words.find(|&word| allowed[word] != 0)?;
                Some(word as u32 * WORD + any_bit(allowed[word], rng))
            }
        }
    }

    /// The next of the `allowed` ports that a flow has towards `server`, from the place `hand` on, where the last search ended.
    pub(super) fn next_taken(&self, server: &Key, allowed: &[u64], from: u32) -> Option<u32> {
        let taken = self.taken.get(server)?;
        let (mut word, mut mask) = ((from / WORD) as usize, u64::MAX << (from % WORD));
        while word < self.words {
            let bits = taken.words[word] & allowed[word] & mask;
            if bits != 0 {
                return Some(word as u32 * WORD + bits.trailing_zeros());
            }
            (word, mask) = (word + 1, u64::MAX);
        }
        None
    }

    /// Where the last search for a flow that yields has ended.
    pub(super) fn hand(&self, server: &Key) -> u32 {
        self.taken.get(server).map_or(0, |taken| taken.hand)
    }

    /// The next search for one begins there.
    pub(super) fn set_hand(&mut self, server: &Key, hand: u32) {
        if let Some(taken) = self.taken.get_mut(server) {
            taken.hand = hand;
        }
    }

    /// The port in a place of the share.
    pub(super) fn port(&self, share: usize, place: u32) -> u16 {
        port((share as u32 * self.words as u32 * WORD + place) as u16)
    }

    /// Places of the share.
    pub(super) const fn places(&self) -> u32 {
        self.words as u32 * WORD
    }

    fn split(&self, reply: &Key) -> (usize, u64) {
        let place = u32::from(place(reply.destination_port())) % self.places();
        ((place / WORD) as usize, 1 << (place % WORD))
    }
}

impl Taken {
    /// None yet; those of the same word are the next.
    fn new(words: usize, at: usize) -> Self {
        Self {
            words: vec![0; words].into_boxed_slice(),
            count: 0,
            at,
            pending: u64::MAX,
            hand: 0,
        }
    }

    fn next_free(&mut self, allowed: &[u64], rng: &mut Rng) -> Option<u32> {
        // The first word comes a second time at the end: some of its places were looked at before this round.
        for _ in 0..=self.words.len() {
            let free = allowed[self.at] & !self.words[self.at] & self.pending;
            if free != 0 {
                let bit = any_bit(free, rng);
                self.pending &= !(1 << bit);
                return Some(self.at as u32 * WORD + bit);
            }
            self.at = (self.at + 1) % self.words.len();
            self.pending = u64::MAX;
        }
        None
    }
}

/// One of the bits that are set, by chance.
fn any_bit(bits: u64, rng: &mut Rng) -> u32 {
    let turn = rng.u32(..WORD);
    (bits.rotate_right(turn).trailing_zeros() + turn) % WORD
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::flow::Protocol;
    use crate::flow::ports::PortSet;

    const SHARES: usize = 64;
    const SHARE: usize = 5;

    fn reply(port: u16) -> Key {
        let address = |text: &str| text.parse::<std::net::IpAddr>().unwrap().into();
        Key::new(Protocol::Tcp, (address("10.2.0.11"), 80), (address("192.0.2.1"), port))
    }

    fn allocator() -> (Allocator, PortSet, Rng) {
        let allocator = Allocator::new(RandomState::with_seeds(1, 2, 3, 4), 1024 / SHARES);
        (allocator, PortSet::from(1_024..=65_535), Rng::with_seed(7))
    }

    fn next(allocator: &mut Allocator, ports: &PortSet, rng: &mut Rng) -> Option<u16> {
        let allowed = ports.share(SHARE, SHARES);
        let place = allocator.next_free(&reply(0), allowed, rng)?;
        Some(allocator.port(SHARE, place))
    }

    #[test]
    fn every_port_is_given_once_before_one_is_given_again_though_most_are_free_again_at_once() {
        let (mut allocator, ports, mut rng) = allocator();
        let all: u32 = ports.share(SHARE, SHARES).iter().map(|word| word.count_ones()).sum();
        let kept = next(&mut allocator, &ports, &mut rng).unwrap();
        allocator.take(&reply(kept));
        let mut seen = HashSet::from([kept]);
        for _ in 1..all {
            let port = next(&mut allocator, &ports, &mut rng).unwrap();
            allocator.take(&reply(port));
            allocator.release(&reply(port));
            assert!(ports.contains(port) && seen.insert(port), "{port} again");
        }
        assert_eq!(seen.len(), all as usize);
        let again = next(&mut allocator, &ports, &mut rng).unwrap();
        assert!(again != kept && !seen.insert(again));
    }

    #[test]
    fn all_ports_of_a_share_are_given_and_then_none() {
        let (mut allocator, ports, mut rng) = allocator();
        let all: u32 = ports.share(SHARE, SHARES).iter().map(|word| word.count_ones()).sum();
        for _ in 0..all {
            let port = next(&mut allocator, &ports, &mut rng).unwrap();
            allocator.take(&reply(port));
        }
        assert_eq!(next(&mut allocator, &ports, &mut rng), None);
        allocator.release(&reply(40_000));
        allocator.take(&reply(41_000));
        let allowed = ports.share(SHARE, SHARES);
        let taken = std::iter::successors(allocator.next_taken(&reply(0), allowed, 0), |&place| {
            allocator.next_taken(&reply(0), allowed, place + 1)
        });
        assert!(taken.count() >= all as usize - 1);
    }

    #[test]
    fn an_address_without_flows_takes_no_room() {
        let (mut allocator, ..) = allocator();
        allocator.take(&reply(2_000));
        allocator.take(&reply(2_000));
        allocator.release(&reply(2_000));
        assert!(allocator.taken.is_empty());
        allocator.release(&reply(2_000));
    }
}
