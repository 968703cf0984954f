//! Talking to a running lbd: commands and replies as plain data, a socket to send them over, tables to show them in.
