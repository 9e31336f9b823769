//! MD5 for ETags, and the checksums that clients send and ask for.
//!
//! SHA-1 and SHA-256 are *ring*'s (OpenSSL's assembly), the CRCs use the CPU's carry-less
//! multiplication. [`Hashes`] is moved to other threads and back, chunk by chunk, beside the pushing
//! of the chunk and the receiving of the next one; the MD5s of several bodies share [`Lanes`].

mod lanes;
mod md5;

use bytes::Bytes;
use leadline_raft::Context;
use ring::digest;
use s3s::{S3Error, S3Result};
use tokio::task::JoinHandle;

use self::md5::Md5;
pub(crate) use lanes::Lanes;

use crate::error;
use crate::rows::Algorithm;

/// Hashing fewer bytes than this is not worth another thread.
const HASHED_IN_PLACE: usize = 32 << 10;

/// Hashes of one body, as it comes.
pub(crate) struct Hashes {
    md5: Md5,
    sha256: Option<digest::Context>,
    algorithm: Algorithm,
    sum: Sum,
}

enum Sum {
    None,
    Crc(Box<crc_fast::Digest>),
    Ring(Box<digest::Context>),
}

/// What a body hashes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hashed {
    pub(crate) md5: [u8; 16],
    /// Where it was asked for.
    pub(crate) sha256: Option<[u8; 32]>,
    /// In Base64; empty without an algorithm.
    pub(crate) checksum: String,
}

impl Hashes {
    /// `payload`: the SHA-256 that a signature speaks of is wanted, too.
    pub(crate) fn new(algorithm: Algorithm, payload: bool) -> Self {
        let sum = match algorithm {
            Algorithm::None => Sum::None,
            Algorithm::Crc32 | Algorithm::Crc32c | Algorithm::Crc64Nvme => {
                let crc = crc(algorithm).expect("it is a CRC");
                Sum::Crc(Box::new(crc_fast::Digest::new(crc)))
            }
            Algorithm::Sha1 => Sum::Ring(Box::new(digest::Context::new(
                &digest::SHA1_FOR_LEGACY_USE_ONLY,
            ))),
            Algorithm::Sha256 => Sum::Ring(Box::new(digest::Context::new(&digest::SHA256))),
        };
        Self {
            md5: Md5::new(),
            sha256: payload.then(|| digest::Context::new(&digest::SHA256)),
            algorithm,
            sum,
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.md5.update(bytes);
        self.update_sums(bytes);
    }

    /// Begins to hash the next chunk, on other threads unless it is small.
    pub(crate) fn start(mut self, lanes: &Lanes, chunk: Bytes) -> Hashing {
        if chunk.len() <= HASHED_IN_PLACE {
            self.update(&chunk);
            return Hashing::of(self);
        }
        let md5 = std::mem::replace(&mut self.md5, Md5::new());
        let md5 = Some(lanes.update(md5, chunk.clone()));
        let sums = if self.sha256.is_none() && matches!(self.sum, Sum::None) {
            Sums::Here(Box::new(self))
        } else {
            Sums::There(tokio::task::spawn_blocking(move || {
                self.update_sums(&chunk);
                self
            }))
        };
        Hashing { md5, sums }
    }

    fn update_sums(&mut self, bytes: &[u8]) {
        if let Some(sha256) = &mut self.sha256 {
            sha256.update(bytes);
        }
        match &mut self.sum {
            Sum::None => {}
            Sum::Crc(crc) => crc.update(bytes),
            Sum::Ring(context) => context.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Hashed {
        Hashed {
            md5: self.md5.finish(),
            sha256: self
                .sha256
                .and_then(|context| context.finish().as_ref().try_into().ok()),
            checksum: match self.sum {
                Sum::None => String::new(),
                Sum::Crc(crc) => crc_text(self.algorithm, crc.finalize()),
                Sum::Ring(context) => base64(context.finish().as_ref()),
            },
        }
    }
}

/// Hashing of a chunk, under way. Whoever drops it lets the sums run out; the MD5 ends.
pub(crate) struct Hashing {
    md5: Option<lanes::Pending>,
    sums: Sums,
}

enum Sums {
    Here(Box<Hashes>),
    There(JoinHandle<Hashes>),
}

/// Hashing ended before its result: the process stops, or a thread panicked.
#[derive(Debug, thiserror::Error)]
#[error("a chunk was not hashed to its end")]
pub(crate) struct Lost;

impl Hashing {
    /// Of nothing, yet.
    pub(crate) fn of(hashes: Hashes) -> Self {
        Self {
            md5: None,
            sums: Sums::Here(Box::new(hashes)),
        }
    }

    /// The hashes with the chunk.
    pub(crate) async fn finish(self, ctx: &Context) -> S3Result<Hashes> {
        let hashes = ctx.run(self.hashed()).await.map_err(error::of_ended)?;
        hashes.map_err(S3Error::internal_error)
    }

    async fn hashed(self) -> Result<Hashes, Lost> {
        let md5 = match self.md5 {
            Some(md5) => Some(md5.wait().await?),
            None => None,
        };
        let mut hashes = match self.sums {
            Sums::Here(hashes) => *hashes,
            Sums::There(sums) => sums.await.map_err(|_| Lost)?,
        };
        if let Some(md5) = md5 {
            hashes.md5 = md5;
        }
        Ok(hashes)
    }
}

impl std::fmt::Debug for Hashes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hashes")
            .field("algorithm", &self.algorithm)
            .finish_non_exhaustive()
    }
}

fn crc(algorithm: Algorithm) -> Option<crc_fast::CrcAlgorithm> {
    match algorithm {
        Algorithm::Crc32 => Some(crc_fast::CrcAlgorithm::Crc32IsoHdlc),
        Algorithm::Crc32c => Some(crc_fast::CrcAlgorithm::Crc32Iscsi),
        Algorithm::Crc64Nvme => Some(crc_fast::CrcAlgorithm::Crc64Nvme),
        Algorithm::None | Algorithm::Sha1 | Algorithm::Sha256 => None,
    }
}

/// A CRC as S3 writes it: big endian, in Base64.
fn crc_text(algorithm: Algorithm, value: u64) -> String {
    let bytes = value.to_be_bytes();
    match algorithm {
        Algorithm::Crc64Nvme => base64(&bytes),
        _ => base64(&bytes[4..]),
    }
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    base64_simd::STANDARD.encode_to_string(bytes)
}

pub(crate) fn from_base64(text: &str) -> Option<Vec<u8>> {
    base64_simd::STANDARD.decode_to_vec(text).ok()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    hex_simd::encode_to_string(bytes, hex_simd::AsciiCase::Lower)
}

/// The ETag of an object of parts: the MD5 of their MD5s, and how many they are.
pub(crate) fn multipart_etag(md5s: &[String]) -> Option<String> {
    let mut whole = Md5::new();
    for md5 in md5s {
        whole.update(&hex_simd::decode_to_vec(md5).ok()?);
    }
    Some(format!("{}-{}", hex(&whole.finish()), md5s.len()))
}

/// The checksum of checksums.
pub(crate) fn composite<'a>(
    algorithm: Algorithm,
    sums: impl Iterator<Item = &'a str>,
) -> Option<String> {
    let mut hashes = Hashes::new(algorithm, false);
    for sum in sums {
        hashes.update(&from_base64(sum)?);
    }
    Some(hashes.finish().checksum)
}

/// The checksum of the bytes whose parts have these, for those algorithms that allow it.
pub(crate) fn combined<'a>(
    algorithm: Algorithm,
    parts: impl Iterator<Item = (&'a str, u64)>,
) -> Option<String> {
    let crc = crc(algorithm)?;
    let mut whole: Option<u64> = None;
    for (sum, size) in parts {
        let value = from_base64(sum)?
            .iter()
            .fold(0, |value, &byte| value << 8 | u64::from(byte));
        whole = Some(match whole {
            None => value,
            Some(before) => crc_fast::checksum_combine(crc, before, value, size),
        });
    }
    Some(crc_text(algorithm, whole?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(algorithm: Algorithm, bytes: &[u8]) -> String {
        let mut hashes = Hashes::new(algorithm, false);
        hashes.update(bytes);
        hashes.finish().checksum
    }

    /// Check values of the CRC catalogue (`123456789`), of FIPS 180 and RFC 1321.
    #[test]
    fn checksums_are_those_of_their_definitions() {
        let check = b"123456789";
        let crc = |bytes: &[u8]| base64(bytes);
        assert_eq!(
            sum(Algorithm::Crc32, check),
            crc(&0xCBF4_3926_u32.to_be_bytes())
        );
        assert_eq!(
            sum(Algorithm::Crc32c, check),
            crc(&0xE306_9283_u32.to_be_bytes())
        );
        assert_eq!(
            sum(Algorithm::Crc64Nvme, check),
            crc(&0xAE8B_1486_0A79_9888_u64.to_be_bytes())
        );
        assert_eq!(sum(Algorithm::Sha1, b"abc"), "qZk+NkcGgWq6PiVxeFDCbJzQ2J0=");
        assert_eq!(
            sum(Algorithm::Sha256, b"abc"),
            "ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0="
        );
        let mut hashes = Hashes::new(Algorithm::None, true);
        hashes.update(b"abc");
        let hashed = hashes.finish();
        assert_eq!(hex(&hashed.md5), "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(hex(&hashed.sha256.unwrap())[..8], *"ba7816bf");
    }

    #[test]
    fn the_crc_of_the_whole_is_put_together_from_those_of_its_parts() {
        let whole: Vec<u8> = (0..100_000_u32).map(|i| (i * 7 % 251) as u8).collect();
        for algorithm in [Algorithm::Crc32, Algorithm::Crc32c, Algorithm::Crc64Nvme] {
            let sums: Vec<_> = whole
                .chunks(30_000)
                .map(|part| (sum(algorithm, part), part.len() as u64))
                .collect();
            let parts = sums.iter().map(|(sum, size)| (sum.as_str(), *size));
            assert_eq!(combined(algorithm, parts).unwrap(), sum(algorithm, &whole));
        }
        assert_eq!(combined(Algorithm::Sha256, [("", 1)].into_iter()), None);
    }

    /// Two parts `a` and `b`: the value that S3 gives.
    #[test]
    fn a_multipart_etag_is_the_md5_of_md5s_and_their_number() {
        let md5s = [
            "0cc175b9c0f1b6a831c399e269772661".to_owned(),
            "92eb5ffee6ae2fec3ad71c777531578f".to_owned(),
        ];
        let etag = multipart_etag(&md5s).unwrap();
        assert!(etag.ends_with("-2") && etag.len() == 34);
        assert_eq!(multipart_etag(&["zz".to_owned()]), None);
    }
}
