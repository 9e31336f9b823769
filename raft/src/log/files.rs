//! The files of the log, behind a trait that tests replace to make a disk fail.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::mutations::{self, Mutation};

/// An open file. Positions are given with each call, so that readers share it with the writer.
pub(super) trait LogFile: Send + Sync {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()>;
    /// Makes what was written durable (`fdatasync`).
    fn sync(&self) -> io::Result<()>;
}

/// Opens files.
pub(super) trait Files: Send + Sync {
    /// Opens `path` to read and write, creating it if need be.
    fn open(&self, path: &Path) -> io::Result<Box<dyn LogFile>>;
}

/// The file system.
pub(super) struct SystemFiles;

impl Files for SystemFiles {
    fn open(&self, path: &Path) -> io::Result<Box<dyn LogFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        Ok(Box::new(file))
    }
}

impl LogFile for File {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        if mutations::active(Mutation::NoFsync) {
            return Ok(());
        }
        self.sync_data()
    }
}

/// Writes zeros over `from..to`, so that later writes there change no metadata.
pub(super) fn zero(file: &dyn LogFile, from: u64, to: u64) -> io::Result<()> {
    const CHUNK: u64 = 1 << 20;
    let zeros = vec![0; CHUNK.min(to.saturating_sub(from)) as usize];
    let mut at = from;
    while at < to {
        let length = CHUNK.min(to - at);
        file.write_at(&zeros[..length as usize], at)?;
        at += length;
    }
    Ok(())
}

/// Makes creations, renames and removals in `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Removes `path`; that it is gone already is no error.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
