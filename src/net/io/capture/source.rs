//! Bytes of a file in order, and numbers in them in either byte order.
use std::io::{self, Read};

use super::Damage;

/// Byte order of a file or section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endian {
    Little,
    Big,
}

impl Endian {
    pub(super) fn u16(self, bytes: [u8; 2]) -> u16 {
        match self {
            Self::Little => u16::from_le_bytes(bytes),
            Self::Big => u16::from_be_bytes(bytes),
        }
    }

    pub(super) fn u32(self, bytes: [u8; 4]) -> u32 {
        match self {
            Self::Little => u32::from_le_bytes(bytes),
            Self::Big => u32::from_be_bytes(bytes),
        }
    }

    pub(super) fn i64(self, bytes: [u8; 8]) -> i64 {
        match self {
            Self::Little => i64::from_le_bytes(bytes),
            Self::Big => i64::from_be_bytes(bytes),
        }
    }

    pub(super) fn bytes(self, number: u32) -> [u8; 4] {
        match self {
            Self::Little => number.to_le_bytes(),
            Self::Big => number.to_be_bytes(),
        }
    }

    /// Raises the snaplen at `bytes[at..at + 4]` to what answers and everything else read will need.
    pub(super) fn raise_snaplen(self, bytes: &mut [u8], at: usize) {
        if let Some(field) = bytes.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
            *field = self.bytes(self.u32(*field).max(super::MAX_RECORD));
        }
    }
}

/// A block's fields, taken from the front.
pub(super) struct Fields<'a> {
    pub(super) rest: &'a [u8],
    pub(super) endian: Endian,
    pub(super) what: &'static str,
}

impl<'a> Fields<'a> {
    pub(super) fn u16(&mut self) -> Result<u16, Damage> {
        self.array().map(|bytes| self.endian.u16(bytes))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Damage> {
        self.array().map(|bytes| self.endian.u32(bytes))
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], Damage> {
        let Some((field, rest)) = self.rest.split_first_chunk() else {
            return Err(self.too_short(N));
        };
        self.rest = rest;
        Ok(*field)
    }

    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], Damage> {
        let Some((field, rest)) = self.rest.split_at_checked(len) else {
            return Err(self.too_short(len));
        };
        self.rest = rest;
        Ok(field)
    }

    fn too_short(&self, needed: usize) -> Damage {
        Damage::Truncated {
            what: self.what,
            present: self.rest.len() as u64,
            expected: needed as u64,
        }
    }
}

/// A file read from front to back.
pub(super) struct Source<R> {
    reader: R,
}

impl<R: Read> Source<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader }
    }

    /// The next `N` bytes, or `None` when the file ends right here.
    pub(super) fn array<const N: usize>(&mut self, what: &'static str) -> Result<Option<[u8; N]>, Damage> {
        let mut bytes = [0; N];
        let mut present = 0;
        while present < N {
            match self.reader.read(&mut bytes[present..]) {
                Ok(0) => break,
                Ok(count) => present += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        match present {
            0 => Ok(None),
            _ if present == N => Ok(Some(bytes)),
            _ => Err(truncated(what, present as u64, N as u64)),
        }
    }

    /// The next `N` bytes, which must be there.
    pub(super) fn expect_array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Damage> {
        self.array(what)?.ok_or_else(|| truncated(what, 0, N as u64))
    }

    /// Appends the next `len` bytes to `data`; memory grows with the file, not with `len`.
    pub(super) fn append(&mut self, data: &mut Vec<u8>, len: u32, what: &'static str) -> Result<(), Damage> {
        let expected = u64::from(len);
        let present = self.reader.by_ref().take(expected).read_to_end(data)? as u64;
        if present < expected {
            return Err(truncated(what, present, expected));
        }
        Ok(())
    }

    /// Leaves out the next `len` bytes.
    pub(super) fn skip(&mut self, len: u32, what: &'static str) -> Result<(), Damage> {
        let expected = u64::from(len);
        let present = io::copy(&mut self.reader.by_ref().take(expected), &mut io::sink())?;
        if present < expected {
            return Err(truncated(what, present, expected));
        }
        Ok(())
    }
}

fn truncated(what: &'static str, present: u64, expected: u64) -> Damage {
    Damage::Truncated {
        what,
        present,
        expected,
    }
}
