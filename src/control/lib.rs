//! Talking to a running lbd: commands and replies as plain data, a socket to send them over, tables to show them in.
//!
//! [`server::Server`] listens inside lbd and hands every [`protocol::Request`] to a [`Handler`]; [`client::ask`] is the
//! other end, in `lbctl`, which shows the [`protocol::Reply`] through [`render`].
#![forbid(unsafe_code)]

pub mod client;
pub mod estimator;
pub mod explain;
pub mod export;
pub mod import;
pub mod ipvsadm;
pub mod names;
pub mod protocol;
pub mod render;
pub mod selector;
pub mod server;
pub mod views;

use protocol::{ConnectionView, Data, Reply, Request};

/// Where lbd listens unless `[control] socket` says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/lbd/lbd.sock";

/// Carries out what an operator asks for. Called from several threads at once.
pub trait Handler: Send + Sync {
    /// Does it, or says why not.
    fn handle(&self, request: Request) -> Reply;

    /// What [`Request::Connections`] asks for, one by one: a full table is not to be in memory a second time for each client.
    ///
    /// # Errors
    /// The refusal.
    fn connections(&self, service: Option<&str>) -> Result<Connections<'_>, Reply> {
        let service = service.map(str::to_owned);
        match self.handle(Request::Connections { service }) {
            Reply::Ok(Data::Connections(all)) => Ok(Box::new(all.into_iter())),
            other @ (Reply::Ok(_) | Reply::Err { .. }) => Err(other),
        }
    }
}

/// Flows and templates, in any order.
pub type Connections<'a> = Box<dyn Iterator<Item = ConnectionView> + 'a>;
