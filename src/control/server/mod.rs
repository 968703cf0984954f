//! The control socket inside lbd: one thread accepts, and each client has a thread of its own for as long as it talks.
//!
//! Clients are bounded in number, in what they may send and in how long they may take, so none of them holds up the
//! others or lbd.
mod session;
mod socket;

use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};

use self::socket::SocketFile;
use super::Handler;

/// Clients at once.
pub const MAX_CLIENTS: usize = 16;

const ACCEPT: Token = Token(0);
const STOP: Token = Token(1);

/// A control socket that is being served. Dropped, it stops as [`Server::stop`] does.
#[derive(Debug)]
pub struct Server {
    stop: Waker,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at `path`, mode 0600, and lets `handler` answer. Its directory is created where it is missing, and the
    /// socket of an lbd that is no more is replaced.
    ///
    /// # Errors
    /// Another lbd listens there, something else than a socket is there, or the system refuses.
    pub fn start(path: &Path, handler: Arc<dyn Handler>) -> io::Result<Self> {
        let poll = Poll::new()?;
        let stop = Waker::new(poll.registry(), STOP)?;
        let (listener, file) = socket::listen(path)?;
        listener.set_nonblocking(true)?;
        let fd = listener.as_raw_fd();
        poll.registry()
            .register(&mut SourceFd(&fd), ACCEPT, Interest::READABLE)?;
        let acceptor = Acceptor {
            poll,
            listener,
            handler,
            clients: Vec::new(),
            _file: file,
        };
        let thread = Builder::new()
            .name("lbd-control".to_owned())
            .spawn(move || acceptor.run())?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Turns clients away, waits for requests that are being carried out, and removes the socket.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.stop.wake() {
            tracing::error!("the control socket goes on: cannot wake its thread: {error}");
            return;
        }
        if let Some(thread) = self.thread.take() {
            join(thread);
        }
    }
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!("a control thread panicked; traffic is not affected");
    }
}

struct Client {
    stream: UnixStream,
    thread: JoinHandle<()>,
}

struct Acceptor {
    poll: Poll,
    listener: UnixListener,
    handler: Arc<dyn Handler>,
    clients: Vec<Client>,
    /// Removed from the disk when the acceptor goes.
    _file: SocketFile,
}

impl Acceptor {
    fn run(mut self) {
        let mut events = Events::with_capacity(4);
        loop {
            match self.poll.poll(&mut events, None) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    tracing::error!("the control socket is no longer served: {error}");
                    break;
                }
                Ok(()) => {}
            }
            if events.iter().any(|event| event.token() == STOP) {
                break;
            }
            self.accept_all();
        }
        for client in self.clients {
            // A client that has gone already cannot be shut down, and need not be.
            client.stream.shutdown(Shutdown::Both).ok();
            join(client.thread);
        }
    }

    fn accept_all(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => self.welcome(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if is_about_one_client(&error) => {}
                Err(error) => {
                    tracing::warn!("cannot accept a control client: {error}");
                    return;
                }
            }
        }
    }

    fn welcome(&mut self, stream: UnixStream) {
        for done in self.clients.extract_if(.., |client| client.thread.is_finished()) {
            join(done.thread);
        }
        if self.clients.len() >= MAX_CLIENTS {
            session::turn_away(&stream);
            return;
        }
        match self.spawn(stream) {
            Ok(client) => self.clients.push(client),
            Err(error) => tracing::warn!("cannot serve a control client: {error}"),
        }
    }

    fn spawn(&self, stream: UnixStream) -> io::Result<Client> {
        let handler = Arc::clone(&self.handler);
        let kept = stream.try_clone()?;
        let thread = Builder::new()
            .name("lbd-control-client".to_owned())
            .spawn(move || session::serve(&stream, &*handler))?;
        Ok(Client { stream: kept, thread })
    }
}

fn is_about_one_client(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests;
