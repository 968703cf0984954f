//! lbd: a layer-4 load balancer in user space.
pub mod config;
pub mod conntrack;
pub mod control;
pub mod flow;
pub mod io;
pub mod matcher;
pub mod packet;
pub mod plumbing;
pub mod policy;
pub mod replay;
pub mod scheduler;
pub mod service;
pub mod time;
pub mod verdict;
