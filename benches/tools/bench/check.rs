//! That a system serves, before anything is measured of it.
use std::time::Duration;

use crate::Outcome;
use crate::load::{Wish, open};
use crate::questions::Sink;
use crate::rig::{self, CLIENT_CPU, Place, wait_until};
use crate::systems::{Running, System};

/// How long a system may take for its first answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The first, the last and the middle service are answered by a server that is behind them, and a datagram arrives.
pub(crate) fn serves(running: &Running, sink: &Sink) -> Outcome<()> {
    if running.system.without_tcp().is_none() {
        let last = running.targets().len() - 1;
        for service in [0, last / 2, last] {
            answers(running, service)?;
        }
    }
    if running.world.udp().is_some() && running.system.without_udp().is_none() {
        takes_datagrams(running, sink)?;
    }
    Ok(())
}

fn answers(running: &Running, service: usize) -> Outcome<()> {
    let target = running.targets()[service];
    let expected = if running.system == System::Routing {
        vec![service as u8 + 1]
    } else {
        running.world.servers(service as u32)
    };
    let mut last = String::new();
    let result = rig::within(Place::Client, CLIENT_CPU, || {
        wait_until("an answer", PATIENCE, || {
            match open(target, 0, Wish::Name, Duration::from_secs(1)) {
                Ok((_stream, server)) if expected.contains(&server) => Ok(true),
                Ok((_stream, server)) => Err(format!("server {server} answered, not one of {expected:?}").into()),
                Err(error) => {
                    last = error.to_string();
                    Ok(false)
                }
            }
        })
    });
    result.map_err(|error| format!("{target} is not served: {error} ({last})").into())
}

fn takes_datagrams(running: &Running, sink: &Sink) -> Outcome<()> {
    let before = Sink::delivered(running.system)?;
    wait_until("a datagram at the server", PATIENCE, || {
        let blast = sink.blast(running, 1, None)?;
        rig::within(Place::Client, CLIENT_CPU, || blast.send(|sent| sent == 0).map(drop))?;
        std::thread::sleep(Duration::from_millis(50));
        Ok(Sink::delivered(running.system)? > before)
    })
}
