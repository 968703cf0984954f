//! Where packets come from and go to: the only room with packet file descriptors and `unsafe`.
pub mod capture;
