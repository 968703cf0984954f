//! Flows that live in another shard than the one that their clients' packets lead to.
//!
//! A masqueraded flow lives in the shard of the port that the backend sees. As long as the client's own shard has a free one, both
//! are the same. After that the flow goes to a shard that has, and the client's shard keeps a note where that is. A note is a hint,
//! put there before the flow is stored and taken away after the flow is gone; the flow itself is in one shard, under one lock.
use std::collections::HashMap;

use ahash::RandomState;

use crate::flow::Key;

/// A note, and what tells it from an older one about the same packets.
#[derive(Clone, Copy, Debug)]
struct Note {
    host: u32,
    ticket: u32,
}

/// What a shard knows of them.
#[derive(Debug)]
pub(super) struct Away {
    /// Of this shard's clients: by the key of a client's packets.
    notes: HashMap<Key, Note, RandomState>,
    last_ticket: u32,
    /// Slots of flows here whose clients are another shard's, with the ticket of the note there.
    guests: HashMap<u32, u32, RandomState>,
    /// Notes about guests that are gone: other shards have to forget them.
    departed: Vec<(Key, u32)>,
}

impl Away {
    pub(super) fn new(hasher: RandomState) -> Self {
        Self {
            notes: HashMap::with_hasher(hasher.clone()),
            last_ticket: 0,
            guests: HashMap::with_hasher(hasher),
            departed: Vec::new(),
        }
    }

    /// The shard that the flow of a client's packets is in, where it is not this one.
    #[inline]
    pub(super) fn host(&self, original: &Key) -> Option<u32> {
        match self.notes.is_empty() {
            true => None,
            false => self.notes.get(original).map(|note| note.host),
        }
    }

    /// Whether there are any notes.
    #[inline]
    pub(super) fn has_notes(&self) -> bool {
        !self.notes.is_empty()
    }

    /// How many notes there are.
    #[cfg(test)]
    pub(super) fn notes(&self) -> usize {
        self.notes.len()
    }

    /// Notes that the flow of a client's packets is in the shard `host`.
    pub(super) fn note(&mut self, original: Key, host: u32) -> u32 {
        self.last_ticket = self.last_ticket.wrapping_add(1);
        let ticket = self.last_ticket;
        self.notes.insert(original, Note { host, ticket });
        ticket
    }

    /// Forgets a note that was given this ticket.
    pub(super) fn forget(&mut self, original: &Key, ticket: u32) {
        if self.notes.get(original).is_some_and(|note| note.ticket == ticket) {
            self.notes.remove(original);
        }
    }

    /// Forgets whatever is noted about a client's packets.
    pub(super) fn forget_all(&mut self, original: &Key) {
        self.notes.remove(original);
    }

    /// The flow in `slot` is a guest.
    pub(super) fn welcome(&mut self, slot: u32, ticket: u32) {
        self.guests.insert(slot, ticket);
    }

    /// The flow in `slot` is gone; `original` is the key of its client's packets.
    #[inline]
    pub(super) fn leave(&mut self, slot: u32, original: &Key) {
        if !self.guests.is_empty()
            && let Some(ticket) = self.guests.remove(&slot)
        {
            self.departed.push((*original, ticket));
        }
    }

    /// Notes that other shards have to forget.
    #[inline]
    pub(super) fn take_departed(&mut self) -> Vec<(Key, u32)> {
        std::mem::take(&mut self.departed)
    }

    /// Bytes that it takes.
    pub(super) fn memory(&self) -> usize {
        self.notes.capacity() * size_of::<(Key, Note)>() + self.guests.capacity() * size_of::<(u32, u32)>()
    }
}
