//! What other programs saved, turned into a configuration.
//!
//! `ipvsadm -Sn` is read in [`crate::ipvsadm::import`], beside the command line that it is made of.
pub mod iptables_save;
pub mod kube_proxy;

pub use crate::ipvsadm::import::Imported;
