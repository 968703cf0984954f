//! The threads that move packets: started together, stopped together, and missed when one of them fails.
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::Receiver;
use mio::Waker;

use super::control::Datapath;
use super::{Error, system};
use lbd_core::engine::Lane;
use lbd_net::io::PacketIo;
use lbd_net::io::owners::Owners;
use lbd_net::worker::{Stopper, Worker};

/// Running workers. Dropped, they stop.
pub(super) struct Crew {
    members: Vec<(Stopper, JoinHandle<()>)>,
    failures: Receiver<Error>,
}

impl Crew {
    /// A worker for each queue. When one fails, `waker` is woken, and [`Self::failure`] tells why.
    pub(super) fn start(
        queues: Vec<Box<dyn PacketIo>>,
        lanes: Vec<Lane>,
        datapath: &Datapath,
        waker: &Arc<Waker>,
    ) -> Result<Self, Error> {
        // As many as there are workers: none waits to tell.
        let (failed, failures) = crossbeam_channel::bounded(queues.len());
        let mut crew = Self {
            members: Vec::new(),
            failures,
        };
        for (index, (queue, lane)) in queues.into_iter().zip(lanes).enumerate() {
            let (failed, waker) = (failed.clone(), Arc::clone(waker));
            let engine = Arc::clone(&datapath.engine);
            let unsent = Arc::clone(&datapath.unsent);
            let worker = Worker::new(queue, engine, lane, datapath.clock, unsent);
            let (worker, stopper) = worker.map_err(system("epoll for a worker"))?;
            let owners = Owners::open().map_err(system("netlink for a worker"))?;
            let worker = worker.on_host(Some(Box::new(owners)));
            let body = move || {
                let error = match catch_unwind(AssertUnwindSafe(|| worker.run())) {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => Error::Worker { index, error },
                    Err(_) => Error::Panicked { index },
                };
                if failed.send(error).is_err() || waker.wake().is_err() {
                    tracing::error!("worker {index} failed while lbd was stopping");
                }
            };
            let builder = std::thread::Builder::new().name(format!("lbd-worker-{index}"));
            let thread = builder.spawn(body).map_err(system("a thread"))?;
            crew.members.push((stopper, thread));
        }
        Ok(crew)
    }

    /// Why a worker failed, if one did.
    pub(super) fn failure(&self) -> Option<Error> {
        self.failures.try_recv().ok()
    }

    /// Has every worker end with the batch it is at, and waits for that.
    pub(super) fn stop(&mut self) {
        for (stopper, thread) in self.members.drain(..) {
            if let Err(error) = stopper.stop() {
                tracing::warn!("cannot wake a worker, it stops within a second: {error}");
            }
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.stop();
    }
}
