//! A look through fjall's journals before fjall opens them.
//!
//! fjall cuts a journal at the first entry that it cannot read and goes on. For the newest journal
//! that is the end of what an interrupted process wrote, and our watermark catches more. A *sealed*
//! journal, though, is followed by newer ones: a cut in it is a hole in the middle of the history
//! that no last position shows. A sealed journal was whole and synced when it was sealed, so here it
//! must still be; nothing is changed by looking.
//!
//! The format is that of fjall 3 (its `journal/entry.rs`): entries follow each other without gaps,
//! and zeroes preallocated at the end may remain.
//! ```text
//! start | 1 | items u32 | seqno u64 |
//! item  | 2 | type u8 | compression u8 | keyspace u64 | key u16 | value u32 | stored u32 | key | value |
//! end   | 3 | checksum u64 | magic |          clear | 4 | keyspace u64 |
//! ```

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use super::StorageError;

/// fjall seals a journal once it is longer than this (its `worker_pool.rs`).
const SEALED_AT_LEAST: u64 = 64_000_000;
const MAGIC: &[u8] = b"FJL\x03";

/// Refuses `dir` when one of its sealed journals is not whole. A directory that is not there, or
/// has no journals, passes.
pub(super) fn check(dir: &Path) -> Result<(), StorageError> {
    if !dir.exists() {
        return Ok(());
    }
    let mut journals = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(StorageError::io("list", dir))? {
        let path = entry.map_err(StorageError::io("list", dir))?.path();
        if path.extension().is_some_and(|extension| extension == "jnl") {
            let number: Option<u64> = path
                .file_stem()
                .and_then(|stem| stem.to_str())
                .and_then(|stem| stem.parse().ok());
            match number {
                Some(number) => journals.push((number, path)),
                None => return Err(damaged(path, "no journal has such a name".to_owned())),
            }
        }
    }
    journals.sort();
    let newest = journals.pop();
    let mut numbers = journals.iter().chain(&newest).map(|(number, _)| *number);
    if let Some(mut last) = numbers.next() {
        for number in numbers {
            if number != last + 1 {
                let missing = dir.join(format!("{}.jnl", last + 1));
                return Err(damaged(missing, "it is missing".to_owned()));
            }
            last = number;
        }
    }
    for (_, path) in journals {
        check_sealed(&path, SEALED_AT_LEAST)?;
    }
    Ok(())
}

fn damaged(path: PathBuf, what: String) -> StorageError {
    StorageError::Damaged { path, what }
}

fn check_sealed(path: &Path, at_least: u64) -> Result<(), StorageError> {
    let file = File::open(path).map_err(StorageError::io("open", path))?;
    let mut journal = Journal {
        file: BufReader::with_capacity(256 * 1024, file),
        at: 0,
    };
    let mut whole = 0;
    let ended = loop {
        match journal.batch() {
            Ok(true) => whole = journal.at,
            Ok(false) => break true,
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break false,
            Err(error) if error.kind() == std::io::ErrorKind::InvalidData => break false,
            Err(error) => return Err(StorageError::io("read", path)(error)),
        }
    };
    if !ended
        || !journal
            .only_zeroes_left()
            .map_err(StorageError::io("read", path))?
    {
        return Err(damaged(
            path.to_owned(),
            format!("a sealed journal is not readable beyond byte {whole}"),
        ));
    }
    if whole <= at_least {
        return Err(damaged(
            path.to_owned(),
            format!("a sealed journal ends at byte {whole}: it was cut"),
        ));
    }
    Ok(())
}

struct Journal<R> {
    file: R,
    at: u64,
}

impl<R: Read> Journal<R> {
    /// Steps over one batch; `false` at the end of what was written.
    fn batch(&mut self) -> std::io::Result<bool> {
        let mut tag = [0];
        if self.file.read(&mut tag)? == 0 {
            return Ok(false);
        }
        self.at += 1;
        match tag[0] {
            0 => return Ok(false),
            1 => {}
            _ => return Err(std::io::ErrorKind::InvalidData.into()),
        }
        let items = u32::from_le_bytes(self.take()?);
        let _seqno: [u8; 8] = self.take()?;
        for _ in 0..items {
            self.item()?;
        }
        let [3] = self.take()? else {
            return Err(std::io::ErrorKind::InvalidData.into());
        };
        let _checksum: [u8; 8] = self.take()?;
        let magic: [u8; 4] = self.take()?;
        if magic != MAGIC {
            return Err(std::io::ErrorKind::InvalidData.into());
        }
        Ok(true)
    }

    fn item(&mut self) -> std::io::Result<()> {
        match self.take()? {
            [2] => {
                let _kind_and_compression: [u8; 2] = self.take()?;
                let _keyspace: [u8; 8] = self.take()?;
                let key = u16::from_le_bytes(self.take()?);
                let _value: [u8; 4] = self.take()?;
                let stored = u32::from_le_bytes(self.take()?);
                self.skip(u64::from(key) + u64::from(stored))
            }
            [4] => self.skip(8),
            _ => Err(std::io::ErrorKind::InvalidData.into()),
        }
    }

    fn take<const N: usize>(&mut self) -> std::io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes)?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn skip(&mut self, bytes: u64) -> std::io::Result<()> {
        let skipped = std::io::copy(&mut self.file.by_ref().take(bytes), &mut std::io::sink())?;
        self.at += skipped;
        if skipped < bytes {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    fn only_zeroes_left(&mut self) -> std::io::Result<bool> {
        let mut buffer = [0; 8192];
        loop {
            let read = self.file.read(&mut buffer)?;
            if read == 0 {
                return Ok(true);
            }
            if buffer[..read].iter().any(|&byte| byte != 0) {
                return Ok(false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::{FjallOptions, FjallStorage, Storage, Write};
    use super::*;

    /// fjall itself writes what is looked through here: should its format change, this tells.
    #[test]
    fn a_journal_of_fjall_is_read_to_its_end_and_a_cut_or_bent_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let engine = FjallStorage::open(dir.path(), FjallOptions::default()).unwrap();
        for round in 0..20u8 {
            let write = |key: &'static [u8], value| Write {
                key: Bytes::from_static(key),
                value,
            };
            let value = Bytes::from(vec![round; usize::from(round) * 400]);
            engine
                .apply(&[write(b"a", Some(value)), write(b"b", None)])
                .unwrap();
        }
        engine.flush().unwrap();
        drop(engine);
        let path = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some_and(|extension| extension == "jnl"))
            .unwrap();
        check(dir.path()).unwrap();
        check_sealed(&path, 10_000).unwrap();

        let bytes = std::fs::read(&path).unwrap();
        let length = bytes.iter().rposition(|&byte| byte != 0).unwrap() + 1;
        assert!(
            check_sealed(&path, length as u64).is_err(),
            "too short to be sealed"
        );
        for at in (0..length).step_by(97) {
            std::fs::write(&path, &bytes[..at]).unwrap();
            assert!(
                check_sealed(&path, length as u64 - 1).is_err(),
                "cut at {at}"
            );
        }
        // The first entry of the journal claims more items than there are.
        let mut bent = bytes[..length].to_vec();
        bent[1] += 1;
        std::fs::write(&path, &bent).unwrap();
        assert!(check_sealed(&path, 10_000).is_err());
    }

    #[test]
    fn a_missing_journal_between_two_others_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("1.jnl"), "").unwrap();
        std::fs::write(dir.path().join("3.jnl"), "").unwrap();
        let error = check(dir.path()).unwrap_err().to_string();
        assert!(error.contains("2.jnl"), "{error}");
    }

    #[test]
    fn a_sealed_journal_that_was_cut_is_refused_before_fjall_sees_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("1.jnl"), "").unwrap();
        std::fs::write(dir.path().join("2.jnl"), "").unwrap();
        let error = check(dir.path()).unwrap_err();
        assert!(
            error.is_damage() && error.to_string().contains("1.jnl"),
            "{error}"
        );
    }
}
