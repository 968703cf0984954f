//! `lbd replay` and `lbd check`, the program itself.
