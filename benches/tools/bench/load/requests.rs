//! Requests of 64 bytes, one after the other, on one open connection.
use std::io::{Read, Write};
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use super::{REQUEST, Wish, open};
use crate::Outcome;

/// How long each answer took.
pub(crate) fn requests(target: SocketAddrV4, [warm_up, window]: [Duration; 2]) -> Outcome<Vec<Duration>> {
    let (mut stream, _server) = open(target, 0, Wish::Echo, Duration::from_secs(1))?;
    let begin = Instant::now();
    let mut answers = Vec::new();
    let mut buffer = [0; REQUEST];
    while begin.elapsed() < warm_up + window {
        let start = Instant::now();
        stream.write_all(&buffer)?;
        stream.read_exact(&mut buffer)?;
        if start - begin >= warm_up {
            answers.push(start.elapsed());
        }
    }
    Ok(answers)
}
