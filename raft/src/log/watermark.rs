//! How far the log is durable, kept apart from the log.
//!
//! A log that ends before its watermark has lost what was acknowledged. From the log alone that
//! cannot be told from a torn tail.
//!
//! The file has two slots, written in turn, so that a torn write of one leaves the other. It is
//! written after each sync of the log without a sync of its own (a killed process loses nothing
//! that way), and synced when a segment is full, before one is given up, and at close.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::LogOpenError;
use super::files::{Files, LogFile, sync_dir};
use super::record::{BadHeader, FORMAT, seal, u64_at, unseal};

const MAGIC: [u8; 8] = *b"LLRAFTWM";
const SLOT: usize = 64;
/// Slots are in different blocks.
const SLOT_DISTANCE: u64 = 4096;

/// A position that everything before is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    /// Drawn at random when the log is created.
    pub(super) log: u64,
    /// The oldest segment that is needed.
    pub(super) oldest: u64,
    /// The segment of the last durable record, and where that record ends. 0: no record yet.
    pub(super) segment: u64,
    pub(super) offset: u64,
    /// Records up to there, over the log's life.
    pub(super) records: u64,
}

pub(super) struct Watermark {
    file: Arc<dyn LogFile>,
    mark: Mark,
    generation: u64,
}

impl Watermark {
    pub(super) fn path(dir: &Path) -> PathBuf {
        dir.join("watermark")
    }

    /// Creates the file of a new log, durably.
    pub(super) fn create(dir: &Path, files: &dyn Files, mark: Mark) -> io::Result<Self> {
        let (temporary, path) = (dir.join("watermark.tmp"), Self::path(dir));
        let file = Arc::from(files.open(&temporary)?);
        let mut watermark = Self {
            file,
            mark,
            generation: 0,
        };
        watermark.write(|_| ())?;
        watermark.write(|_| ())?;
        watermark.sync()?;
        fs::rename(&temporary, &path)?;
        sync_dir(dir)?;
        Ok(watermark)
    }

    /// Reads the file; `None` if there is none.
    pub(super) fn open(dir: &Path, files: &dyn Files) -> Result<Option<Self>, LogOpenError> {
        let path = Self::path(dir);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(LogOpenError::Io { path, source }),
        };
        let mut best: Option<(u64, Mark)> = None;
        for slot in 0..2 {
            match decode(bytes.get((slot * SLOT_DISTANCE) as usize..).unwrap_or(&[])) {
                Ok(found) if best.is_none_or(|(generation, _)| found.0 > generation) => {
                    best = Some(found);
                }
                Ok(_) | Err(BadHeader::Damaged) => {}
                Err(BadHeader::Newer(found)) => {
                    return Err(LogOpenError::NewerFormat {
                        path,
                        found,
                        supported: FORMAT,
                    });
                }
            }
        }
        let Some((generation, mark)) = best else {
            return Err(LogOpenError::Corrupt {
                path,
                offset: 0,
                what: "neither slot is whole",
            });
        };
        let file = files
            .open(&path)
            .map_err(|source| LogOpenError::Io { path, source })?;
        Ok(Some(Self {
            file: Arc::from(file),
            mark,
            generation,
        }))
    }

    pub(super) fn mark(&self) -> Mark {
        self.mark
    }

    /// Changes the mark and writes it, without a sync.
    pub(super) fn write(&mut self, change: impl FnOnce(&mut Mark)) -> io::Result<()> {
        change(&mut self.mark);
        self.generation += 1;
        let mut bytes = [0; SLOT];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&FORMAT.to_le_bytes());
        let numbers = [
            self.generation,
            self.mark.log,
            self.mark.oldest,
            self.mark.segment,
            self.mark.offset,
            self.mark.records,
        ];
        for (slot, number) in bytes[16..].chunks_exact_mut(8).zip(numbers) {
            slot.copy_from_slice(&number.to_le_bytes());
        }
        seal(&mut bytes);
        self.file
            .write_at(&bytes, self.generation % 2 * SLOT_DISTANCE)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    /// The file, to sync it while the mark goes on.
    pub(super) fn file(&self) -> Arc<dyn LogFile> {
        Arc::clone(&self.file)
    }
}

fn decode(bytes: &[u8]) -> Result<(u64, Mark), BadHeader> {
    let bytes = bytes.first_chunk::<SLOT>().ok_or(BadHeader::Damaged)?;
    unseal(bytes, MAGIC)?;
    let mark = Mark {
        log: u64_at(bytes, 24),
        oldest: u64_at(bytes, 32),
        segment: u64_at(bytes, 40),
        offset: u64_at(bytes, 48),
        records: u64_at(bytes, 56),
    };
    Ok((u64_at(bytes, 16), mark))
}
