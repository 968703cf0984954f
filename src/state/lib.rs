//! What is wanted of lbd: the configuration file as written, validated, compared, edited and saved.
#![forbid(unsafe_code)]

pub mod config;
