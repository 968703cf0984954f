//! From the TOML as written to a valid configuration.
