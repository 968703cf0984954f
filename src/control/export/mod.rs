//! The configuration in the words of other programs.
pub mod iptables_save;
