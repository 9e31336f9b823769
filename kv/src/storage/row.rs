//! The header of a row: the format's version and the stamp of the command that wrote it.
//!
//! ```text
//! | version u8 = 1 | commit_ts u64 BE | value |
//! ```

use bytes::{BufMut, Bytes, BytesMut};

use crate::Timestamp;

const VERSION: u8 = 1;

/// A row as stored: the adapter's value under our header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub commit_ts: Timestamp,
    pub value: Bytes,
}

/// Why a stored row cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowFormatError {
    #[error("a row of {0} bytes is too short for its header")]
    Short(usize),
    #[error(
        "a row has format {found}, and this program reads up to {VERSION}: a newer one wrote it"
    )]
    Newer { found: u8 },
    #[error("a row has format 0, which nothing writes")]
    Zero,
}

impl Row {
    /// Bytes that a stored row has beside its value.
    pub const HEADER: usize = 1 + 8;

    /// The bytes that [`Row::decode`] reads.
    #[must_use]
    pub fn encode(commit_ts: Timestamp, value: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(Self::HEADER + value.len());
        Self::encode_into(commit_ts, value, &mut out);
        out.freeze()
    }

    /// Appends the bytes that [`Row::decode`] reads.
    pub fn encode_into(commit_ts: Timestamp, value: &[u8], out: &mut BytesMut) {
        out.put_u8(VERSION);
        out.put_u64(commit_ts.0);
        out.put_slice(value);
    }

    /// Reads a stored row; its value shares the memory of `stored`.
    pub fn decode(stored: &Bytes) -> Result<Self, RowFormatError> {
        let (commit_ts, value) = Self::decode_ref(stored)?;
        Ok(Self {
            commit_ts,
            value: stored.slice_ref(value),
        })
    }

    /// Reads a stored row in place.
    pub fn decode_ref(stored: &[u8]) -> Result<(Timestamp, &[u8]), RowFormatError> {
        let Some((&version, rest)) = stored.split_first() else {
            return Err(RowFormatError::Short(0));
        };
        match version {
            VERSION => {}
            0 => return Err(RowFormatError::Zero),
            found => return Err(RowFormatError::Newer { found }),
        }
        let (stamp, value) = rest
            .split_first_chunk::<8>()
            .ok_or(RowFormatError::Short(stored.len()))?;
        Ok((Timestamp(u64::from_be_bytes(*stamp)), value))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_row_comes_back_as_it_was(stamp: u64, value: Vec<u8>) {
            let stored = Row::encode(Timestamp(stamp), &value);
            let row = Row::decode(&stored).unwrap();
            prop_assert_eq!(row.commit_ts, Timestamp(stamp));
            prop_assert_eq!(&row.value[..], &value[..]);
        }

        #[test]
        fn any_bytes_are_a_row_or_an_error(stored: Vec<u8>) {
            let _ = Row::decode_ref(&stored);
        }
    }

    #[test]
    fn a_row_of_a_newer_format_is_refused_by_name() {
        let error = Row::decode(&Bytes::from_static(b"\x02123456789")).unwrap_err();
        assert_eq!(error, RowFormatError::Newer { found: 2 });
        assert!(error.to_string().contains("newer"));
        assert_eq!(
            Row::decode(&Bytes::from_static(b"\x011234567")),
            Err(RowFormatError::Short(8))
        );
    }
}
