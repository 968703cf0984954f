//! Neighbours in use are kept alive in the kernel, which sees none of the packets that go to them.
//!
//! Workers name the neighbours that they have looked up and that are not confirmed; the follower has the kernel use
//! them (NTF_USE, `neigh_event_send`), each at most once in [`PAUSE`].
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, TryIter, bounded};
use mio::Waker;

use super::neighbours::Key;
use lbd_core::time::Instant;

/// Requests that may wait. What does not fit is asked for again with a later packet.
const WAITING: usize = 1024;

/// Between two requests for one neighbour.
const PAUSE: Duration = Duration::from_secs(1);

/// Neighbours asked for within one [`PAUSE`]; as many as the kernel keeps by default (`gc_thresh3`).
const MOST: usize = 1024;

/// The workers' end.
#[derive(Debug)]
pub(super) struct Requests {
    sender: Sender<Key>,
    waker: Arc<Waker>,
    woken: Arc<AtomicBool>,
}

/// The follower's end.
#[derive(Debug)]
pub(super) struct Requested {
    receiver: Receiver<Key>,
    woken: Arc<AtomicBool>,
    asked: HashMap<Key, Instant>,
}

/// Both ends; `waker` wakes the follower.
pub(super) fn channel(waker: Arc<Waker>) -> (Requests, Requested) {
    let (sender, receiver) = bounded(WAITING);
    let woken = Arc::new(AtomicBool::new(false));
    let requested = Requested {
        receiver,
        woken: Arc::clone(&woken),
        asked: HashMap::new(),
    };
    (Requests { sender, waker, woken }, requested)
}

impl Requests {
    /// Never waits; wakes the follower once for all requests that come before it looks.
    pub(super) fn ask(&self, neighbour: Key) {
        let taken = self.sender.try_send(neighbour).is_ok();
        if taken
            && !self.woken.swap(true, Ordering::AcqRel)
            && let Err(error) = self.waker.wake()
        {
            tracing::debug!("cannot wake the thread that follows routes: {error}");
        }
    }
}

impl Requested {
    /// Those whose turn it is.
    pub(super) fn take(&mut self, now: Instant) -> Vec<Key> {
        self.woken.store(false, Ordering::Release);
        if self.asked.len() >= MOST {
            self.asked.retain(|_, at| now.saturating_since(*at) < PAUSE);
        }
        let asked = &mut self.asked;
        let waiting: TryIter<'_, Key> = self.receiver.try_iter();
        waiting.take(WAITING).filter(|key| admit(asked, *key, now)).collect()
    }
}

fn admit(asked: &mut HashMap<Key, Instant>, key: Key, now: Instant) -> bool {
    let full = asked.len() >= MOST;
    match asked.get_mut(&key) {
        Some(at) if now.saturating_since(*at) < PAUSE => false,
        Some(at) => {
            *at = now;
            true
        }
        None if full => false,
        None => {
            asked.insert(key, now);
            true
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn key(number: u32) -> Key {
        (2, std::net::Ipv4Addr::from_bits(number).into())
    }

    fn ends() -> (mio::Poll, Requests, Requested) {
        let poll = mio::Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), mio::Token(0)).unwrap());
        let (requests, requested) = channel(waker);
        (poll, requests, requested)
    }

    #[test]
    fn a_neighbour_is_asked_for_once_a_second_however_often_it_is_used() {
        let (_poll, requests, mut requested) = ends();
        for _ in 0..10 {
            requests.ask(key(1));
        }
        assert_eq!(requested.take(Instant::ZERO), [key(1)]);
        requests.ask(key(1));
        assert_eq!(requested.take(Instant::ZERO + SECOND / 2), []);
        requests.ask(key(1));
        assert_eq!(requested.take(Instant::ZERO + SECOND), [key(1)]);
    }

    #[test]
    fn a_scan_of_a_network_makes_no_more_requests_than_the_kernel_has_room_for_neighbours() {
        let (_poll, requests, mut requested) = ends();
        let mut made = 0;
        for number in 0..10_000 {
            requests.ask(key(number));
            made += requested.take(Instant::ZERO).len();
        }
        assert_eq!(made, MOST);
        requests.ask(key(0));
        requests.ask(key(9_999));
        assert_eq!(requested.take(Instant::ZERO + SECOND), [key(0), key(9_999)]);
    }

    #[test]
    fn requests_that_nobody_takes_are_dropped_and_not_waited_with() {
        let (_poll, requests, mut requested) = ends();
        for number in 0..10_000 {
            requests.ask(key(number));
        }
        assert_eq!(requested.take(Instant::ZERO).len(), WAITING);
    }
}
