//! One client of the control socket: requests in, replies out, within bounds.
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use crate::protocol::{Reply, Request};
use crate::{Connections, Handler};

use super::MAX_CLIENTS;

/// For a whole request to arrive, and for each part of a reply to be taken.
const PATIENCE: Duration = Duration::from_secs(5);
/// For a whole reply to be taken: a million connections are a few hundred megabytes.
const REPLY_PATIENCE: Duration = Duration::from_secs(120);
/// Bytes of a request.
pub(super) const MAX_REQUEST: usize = 1 << 20;

/// Answers requests until the client leaves, says nothing for too long or says too much.
pub(super) fn serve(stream: &UnixStream, handler: &dyn Handler) {
    let _hang_up = HangUp(stream);
    if let Err(error) = talk(stream, handler) {
        tracing::debug!("a control client was left: {error}");
    }
}

/// The registry of clients holds another descriptor of the connection, so closing ours would not end it; and it must
/// end even if the handler panics.
struct HangUp<'a>(&'a UnixStream);

impl Drop for HangUp<'_> {
    fn drop(&mut self) {
        // A client that has left already need not be told.
        self.0.shutdown(Shutdown::Both).ok();
    }
}

/// Says why there is no room, without waiting for the request.
pub(super) fn turn_away(stream: &UnixStream) {
    let message = format!(
        "lbd already talks to {MAX_CLIENTS} control clients, as many as it does at once: try again in a few seconds"
    );
    // A few bytes into an empty socket buffer do not block; a client that has left hears nothing.
    reply(stream, &Reply::error(message)).ok();
}

fn talk(stream: &UnixStream, handler: &dyn Handler) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut incoming = Incoming::default();
    while let Some(line) = incoming.line(stream)? {
        if line.len() > MAX_REQUEST {
            let message = format!("the request is longer than {MAX_REQUEST} bytes");
            return reply(stream, &Reply::error(message));
        }
        answer(&line, handler, &mut hurried(stream))?;
    }
    Ok(())
}

/// Answers with one line.
fn answer(line: &[u8], handler: &dyn Handler, to: &mut impl Write) -> io::Result<()> {
    let reply = match serde_json::from_slice::<Request>(line) {
        Ok(Request::Connections { service }) => match handler.connections(service.as_deref()) {
            Ok(all) => return tell_all(all, to),
            Err(refusal) => refusal,
        },
        Ok(request) => handler.handle(request),
        Err(error) => Reply::error(format!(
            "not a request: {error}: expected one JSON document a line, e.g. {{\"command\":\"status\"}}"
        )),
    };
    tell(&reply, to)
}

fn reply(stream: &UnixStream, reply: &Reply) -> io::Result<()> {
    tell(reply, &mut hurried(stream))
}

fn hurried(stream: &UnixStream) -> impl Write + '_ {
    let deadline = crossbeam_channel::after(REPLY_PATIENCE);
    BufWriter::with_capacity(1 << 16, Hurried { stream, deadline })
}

fn tell(reply: &Reply, to: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut *to, reply)?;
    to.write_all(b"\n")?;
    to.flush()
}

/// The same as [`tell`] would write of [`Data::Connections`](crate::protocol::Data::Connections), one by one.
fn tell_all(all: Connections<'_>, to: &mut impl Write) -> io::Result<()> {
    to.write_all(b"{\"ok\":{\"connections\":[")?;
    for (place, each) in all.enumerate() {
        if place > 0 {
            to.write_all(b",")?;
        }
        serde_json::to_writer(&mut *to, &each)?;
    }
    to.write_all(b"]}}\n")?;
    to.flush()
}

fn too_slow(what: &str) -> io::Error {
    io::Error::new(ErrorKind::TimedOut, format!("it took too long to {what}"))
}

/// What was read of the next requests.
#[derive(Default)]
struct Incoming(Vec<u8>);

impl Incoming {
    /// The next line, without its end; one byte more than [`MAX_REQUEST`] where it is longer than that. None when the
    /// client has said everything.
    fn line(&mut self, mut stream: &UnixStream) -> io::Result<Option<Vec<u8>>> {
        let deadline = crossbeam_channel::after(PATIENCE);
        let mut chunk = [0; 4096];
        let mut searched = 0;
        loop {
            if let Some(end) = self.0[searched..].iter().position(|&byte| byte == b'\n') {
                let rest = self.0.split_off(searched + end + 1);
                let mut line = std::mem::replace(&mut self.0, rest);
                line.pop();
                return Ok(Some(line));
            }
            searched = self.0.len();
            if searched > MAX_REQUEST {
                return Ok(Some(std::mem::take(&mut self.0)));
            }
            if has_passed(&deadline) {
                return Err(too_slow("send a request"));
            }
            match stream.read(&mut chunk)? {
                0 if self.0.is_empty() => return Ok(None),
                // The last line may lack its end.
                0 => return Ok(Some(std::mem::take(&mut self.0))),
                count => self.0.extend_from_slice(&chunk[..count]),
            }
        }
    }
}

/// Each write has its own timeout; this bounds them all together.
struct Hurried<'a> {
    stream: &'a UnixStream,
    deadline: Receiver<Instant>,
}

impl Write for Hurried<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if has_passed(&self.deadline) {
            return Err(too_slow("take a reply"));
        }
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

fn has_passed(deadline: &Receiver<Instant>) -> bool {
    deadline.try_recv().is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::{ConnectionView, Data};
    use lbd_core::flow::{Endpoint, Protocol};

    struct Willing;

    impl Handler for Willing {
        fn handle(&self, _request: Request) -> Reply {
            Reply::message("done")
        }
    }

    fn answered(line: &[u8]) -> String {
        let mut told = Vec::new();
        answer(line, &Willing, &mut told).unwrap();
        String::from_utf8(told).unwrap()
    }

    fn is_one_line(reply: &str) -> bool {
        reply.find('\n') == Some(reply.len() - 1)
    }

    proptest! {
        #[test]
        fn whatever_a_client_says_is_answered_with_one_line(line in any::<Vec<u8>>()) {
            prop_assert!(is_one_line(&answered(&line)));
        }

        #[test]
        fn whatever_json_a_client_says_is_answered_with_one_line(
            command in "[a-z_]{0,12}|status|list|switch_mode",
            value in "[^\"\\\\]*",
        ) {
            let line = format!("{{\"command\":\"{command}\",\"service\":\"{value}\",\"mode\":\"{value}\"}}");
            prop_assert!(is_one_line(&answered(line.as_bytes())));
        }
    }

    #[test]
    fn json_nested_without_end_is_answered_with_an_error() {
        let line = "[".repeat(MAX_REQUEST);
        let reply: Reply = serde_json::from_str(&answered(line.as_bytes())).unwrap();
        assert!(matches!(reply, Reply::Err { .. }));
    }

    /// Has flows.
    struct Busy(Vec<ConnectionView>);

    impl Handler for Busy {
        fn handle(&self, _request: Request) -> Reply {
            Reply::Ok(Data::Connections(self.0.clone()))
        }
    }

    #[test]
    fn flows_that_are_told_one_by_one_are_told_as_if_they_were_told_at_once() {
        let flow = |port| ConnectionView {
            protocol: Protocol::Tcp,
            state: "ESTABLISHED".into(),
            expires_seconds: 897,
            client: Endpoint::new([10, 1, 0, 2].into(), port),
            virtual_address: "10.9.9.9:80".parse().unwrap(),
            backend: "10.2.2.2:80".parse().unwrap(),
            source: Endpoint::new([10, 1, 0, 2].into(), port),
            service: "a \"b\"".to_owned(),
            masqueraded: false,
        };
        for count in 0..4 {
            let busy = Busy((0..count).map(flow).collect());
            let mut told = Vec::new();
            answer(b"{\"command\":\"connections\"}", &busy, &mut told).unwrap();
            let mut at_once = Vec::new();
            tell(&busy.handle(Request::Status), &mut at_once).unwrap();
            assert_eq!(told, at_once, "{count} flows");
        }
    }
}
