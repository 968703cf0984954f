//! The packet path of lbd: packet bytes and a time in, a verdict out.
//!
//! It owns no file descriptor, clock, thread, log or random number generator: time and randomness are parameters, and
//! [`router::Router`] is what it asks of whoever sends packets on. So the same code runs on TUN, on AF_XDP, over a capture, in a
//! benchmark and in the fuzzer. [`engine`] holds the order of the steps; the map of the whole is in the crate `lbd`.
//!
//! Two circles of modules are left (`scripts/layers` refuses further ones): `affinity`, `conntrack`, `matcher`, `policy`, `scheduler`
//! and `service`, because [`service::Service`] owns its scheduler while schedulers read [`service::Backend`]s, and [`policy`] uses
//! words that matcher, scheduler and connection table define; `nat` and `ruleset`, because a ruleset owns its pool of
//! masquerade addresses while [`nat`] asks the ruleset which addresses are local.
#![forbid(unsafe_code)]

pub mod affinity;
pub mod conntrack;
pub mod engine;
pub mod flow;
pub mod fragments;
pub mod host;
pub mod matcher;
pub mod nat;
pub mod packet;
pub mod policy;
pub mod rewrite;
pub mod router;
pub mod ruleset;
pub mod scheduler;
pub mod service;
pub mod shadow;
pub mod time;
pub mod verdict;
