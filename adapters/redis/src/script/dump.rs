//! FUNCTION DUMP and RESTORE: the payload that Redis itself reads and writes, so that libraries move
//! both ways.
//!
//! ```text
//! 0xF5 string     for each library: its code (Redis' RDB: opcode FUNCTION2)
//! version u16 LE  of the RDB format
//! crc u64 LE      CRC-64/Jones of all before
//! ```

use std::sync::LazyLock;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::reply::ReplyError;

const FUNCTION: u8 = 0xF5;

/// Redis 7.0's, which later ones read too.
const VERSION: u16 = 10;

/// The latest that has no other way to write a library.
const LATEST: u16 = 12;

/// No library that RESTORE takes is larger.
const MOST_BYTES: usize = 64 << 20;

pub(super) fn write<'c>(codes: impl Iterator<Item = &'c Bytes>) -> Bytes {
    let mut out = BytesMut::new();
    for code in codes {
        out.put_u8(FUNCTION);
        match code.len() {
            count @ 0..0x40 => out.put_u8(count as u8),
            count @ 0x40..0x4000 => out.put_u16(0x4000 | count as u16),
            count => {
                out.put_u8(0x80);
                out.put_u32(u32::try_from(count).unwrap_or(u32::MAX));
            }
        }
        out.put_slice(code);
    }
    out.put_u16_le(VERSION);
    let crc = crc64(&out);
    out.put_u64_le(crc);
    out.freeze()
}

/// The codes of the libraries in `payload`.
pub(super) fn read(payload: &Bytes) -> Result<Vec<Bytes>, ReplyError> {
    let wrong = || ReplyError::err("DUMP payload version or checksum are wrong");
    let split = payload.len().checked_sub(10).ok_or_else(wrong)?;
    let mut footer = payload.slice(split..);
    let version = footer.get_u16_le();
    let checked = &payload[..split + 2];
    if version > LATEST || footer.get_u64_le() != crc64(checked) {
        return Err(wrong());
    }
    let mut rest = payload.slice(..split);
    let mut codes = Vec::new();
    while !rest.is_empty() {
        if rest.get_u8() != FUNCTION {
            return Err(ReplyError::err("given type is not a function"));
        }
        let code =
            string(&mut rest).ok_or_else(|| ReplyError::err("Failed loading library payload"))?;
        codes.push(code);
    }
    Ok(codes)
}

enum Length {
    Plain(usize),
    Special(u8),
}

fn length(rest: &mut Bytes) -> Option<Length> {
    let first = rest.try_get_u8().ok()?;
    Some(match first >> 6 {
        0 => Length::Plain(usize::from(first)),
        1 => Length::Plain(usize::from(first & 0x3F) << 8 | usize::from(rest.try_get_u8().ok()?)),
        2 if first == 0x80 => Length::Plain(rest.try_get_u32().ok()? as usize),
        2 => Length::Plain(usize::try_from(rest.try_get_u64().ok()?).ok()?),
        _ => Length::Special(first & 0x3F),
    })
}

/// A string as RDB writes it: plain or compressed.
fn string(rest: &mut Bytes) -> Option<Bytes> {
    const LZF: u8 = 3;
    let plain = |rest: &mut Bytes| match length(rest)? {
        Length::Plain(count) => Some(count),
        Length::Special(_) => None,
    };
    let cut = |rest: &mut Bytes, count: usize| (rest.len() >= count).then(|| rest.split_to(count));
    match length(rest)? {
        Length::Plain(count) => cut(rest, count),
        Length::Special(LZF) => {
            let (packed, size) = (plain(rest)?, plain(rest)?);
            let packed = cut(rest, packed)?;
            decompress(&packed, size)
        }
        Length::Special(_) => None,
    }
}

/// LZF (Marc Lehmann's liblzf): a control byte, then literals or a reference back.
fn decompress(mut packed: &[u8], size: usize) -> Option<Bytes> {
    if size > MOST_BYTES {
        return None;
    }
    let mut out = Vec::with_capacity(size.min(packed.len() * 16));
    while let [control, rest @ ..] = packed {
        packed = rest;
        let control = usize::from(*control);
        if control < 32 {
            let (literals, rest) = packed.split_at_checked(control + 1)?;
            out.extend_from_slice(literals);
            packed = rest;
        } else {
            let mut length = control >> 5;
            if length == 7 {
                let [more, rest @ ..] = packed else {
                    return None;
                };
                length += usize::from(*more);
                packed = rest;
            }
            let [low, rest @ ..] = packed else {
                return None;
            };
            packed = rest;
            let back = ((control & 0x1F) << 8 | usize::from(*low)) + 1;
            let from = out.len().checked_sub(back)?;
            for at in from..from + length + 2 {
                out.push(out[at]);
            }
        }
        if out.len() > size {
            return None;
        }
    }
    (out.len() == size).then(|| out.into())
}

/// CRC-64 with Jones' polynomial, reflected, as Redis has it.
fn crc64(bytes: &[u8]) -> u64 {
    static TABLE: LazyLock<[u64; 256]> = LazyLock::new(|| {
        const POLYNOMIAL: u64 = 0xAD93_D235_94C9_35A9;
        let reflected = POLYNOMIAL.reverse_bits();
        std::array::from_fn(|byte| {
            (0..8).fold(byte as u64, |crc, _| {
                if crc & 1 == 1 {
                    crc >> 1 ^ reflected
                } else {
                    crc >> 1
                }
            })
        })
    });
    bytes.iter().fold(0, |crc, &byte| {
        TABLE[usize::from((crc as u8) ^ byte)] ^ crc >> 8
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_redis_own() {
        assert_eq!(crc64(b"123456789"), 0xE9C6_D914_C4B8_D9CA);
    }

    #[test]
    fn a_payload_is_read_back_and_a_changed_one_is_refused() {
        let codes = [
            Bytes::from_static(b"#!lua name=a\n"),
            Bytes::from(vec![b'x'; 70_000]),
        ];
        let payload = write(codes.iter());
        assert_eq!(read(&payload).unwrap(), codes);
        let mut changed = payload.to_vec();
        changed[3] ^= 1;
        read(&changed.into()).unwrap_err();
        read(&Bytes::from_static(b"short")).unwrap_err();
    }

    #[test]
    fn compressed_strings_are_read() {
        // A literal, then ten bytes from one back.
        let packed = [0, b'a', 7 << 5, 1, 0];
        assert_eq!(decompress(&packed, 11).unwrap(), &b"aaaaaaaaaaa"[..]);
        assert_eq!(decompress(&[7 << 5, 1, 0], 10), None);
    }
}
