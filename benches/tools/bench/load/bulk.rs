//! TCP bulk: streams that carry as much as they can.
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::serve::Taken;
use super::{Wish, open};
use crate::Outcome;
use crate::machine::Reading;
use crate::rig::{self, CLIENT_CPU, Place};

const CHUNK: usize = 256 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Client to server.
    Up,
    Down,
}

/// What was carried, counted where it arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Carried {
    pub(crate) bytes: u64,
    pub(crate) time: Duration,
    /// Of the whole machine.
    pub(crate) cpu_seconds: f64,
}

/// Runs the streams, and counts for `window` after `warm_up`. `taken`: what servers count.
pub(crate) fn carry(
    target: SocketAddrV4,
    streams: u32,
    direction: Direction,
    taken: &[Taken],
    [warm_up, window]: [Duration; 2],
) -> Outcome<Carried> {
    let (stop, received) = (AtomicBool::new(false), AtomicU64::new(0));
    let wish = match direction {
        Direction::Up => Wish::Sink,
        Direction::Down => Wish::Source,
    };
    let arrived = || match direction {
        Direction::Up => taken.iter().map(|taken| taken.load(Ordering::Relaxed)).sum::<u64>(),
        Direction::Down => received.load(Ordering::Relaxed),
    };
    thread::scope(|scope| {
        let run = |number| {
            let (stop, received) = (&stop, &received);
            move || {
                rig::enter(Place::Client, Some(CLIENT_CPU))?;
                let (stream, _server) = open(target, number, wish, Duration::from_secs(2))?;
                stream_until(stop, &stream, direction, received)
            }
        };
        let threads: Vec<_> = (0..streams).map(|number| scope.spawn(run(number))).collect();
        thread::sleep(warm_up);
        let (before, start) = (arrived(), Reading::now()?);
        thread::sleep(window);
        let (cpu_seconds, time) = start.since()?;
        let bytes = arrived() - before;
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            thread.join().unwrap_or_else(|_panic| Err("a stream panicked".into()))?;
        }
        if bytes == 0 {
            return Err("nothing arrived".into());
        }
        Ok(Carried {
            bytes,
            time,
            cpu_seconds,
        })
    })
}

fn stream_until(stop: &AtomicBool, mut stream: &TcpStream, direction: Direction, received: &AtomicU64) -> Outcome<()> {
    let tick = Some(Duration::from_millis(200));
    stream.set_read_timeout(tick)?;
    stream.set_write_timeout(tick)?;
    let mut buffer = vec![0; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        let step = match direction {
            Direction::Up => stream.write(&buffer),
            Direction::Down => stream.read(&mut buffer),
        };
        match step {
            Ok(0) => return Err("the stream ended".into()),
            Ok(length) if direction == Direction::Down => drop(received.fetch_add(length as u64, Ordering::Relaxed)),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(format!("the stream broke: {error}").into()),
        }
    }
    Ok(())
}
