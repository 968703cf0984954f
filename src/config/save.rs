//! The running configuration as TOML, which reads back as the same configuration.
use super::Config;

/// TOML.
#[must_use]
pub fn to_toml(_config: &Config) -> String {
    String::new()
}
