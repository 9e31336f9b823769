//! The files of the chunk store, behind a trait that tests replace to make a disk fail.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf, Bytes};
use rustix::buffer::spare_capacity;

use super::pages;
use super::record::PAGE;

/// What one call of `writev` takes.
const MOST_PARTS: usize = 1024;

/// An open file. Positions are given with each call, so that readers share it with the writer.
pub(in crate::blobs) trait BlobFile: Send + Sync {
    /// Writes `parts`, one behind the other, at `offset`, without putting them together first.
    fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()>;
    /// Reads `len` bytes at `offset`; `UnexpectedEof` if there are fewer. They lie in their page of
    /// memory where they lie in their page of the file, so a chunk can be written as it was read.
    fn read_at(&self, len: usize, offset: u64) -> io::Result<Bytes>;
    fn size(&self) -> io::Result<u64>;
    fn set_size(&self, size: u64) -> io::Result<()>;
    /// Makes what was written durable (`fdatasync`).
    fn sync(&self) -> io::Result<()>;
}

/// A directory's files.
pub(in crate::blobs) trait Files: Send + Sync {
    /// Opens `path` to read and write; creates or empties it if `fresh`.
    fn open(&self, path: &Path, fresh: bool) -> io::Result<Arc<dyn BlobFile>>;
    /// Creates or empties `path`, to write whole pages that lie at pages' addresses: past the page
    /// cache, where the file system can.
    fn create_for_pages(&self, path: &Path) -> io::Result<Arc<dyn BlobFile>>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes `path`; that it is gone already is no error.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// The files in `dir`, which is made if it does not exist.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    /// Makes creations, renames and removals in `dir` durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Bytes free on the disk of `dir`.
    fn free(&self, dir: &Path) -> io::Result<u64>;
}

/// The file system.
#[derive(Debug, Default)]
pub(in crate::blobs) struct SystemFiles {
    /// It does not write past the page cache.
    cached_only: Arc<AtomicBool>,
}

fn open(path: &Path, fresh: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(fresh)
        .truncate(fresh)
        .open(path)
}

impl Files for SystemFiles {
    fn open(&self, path: &Path, fresh: bool) -> io::Result<Arc<dyn BlobFile>> {
        Ok(Arc::new(open(path, fresh)?))
    }

    fn create_for_pages(&self, path: &Path) -> io::Result<Arc<dyn BlobFile>> {
        let cached = open(path, true)?;
        let direct = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(path);
        let direct = match direct {
            Ok(direct) => direct,
            Err(error) if is_refusal(&error) => {
                note_refusal(&self.cached_only, &error);
                return Ok(Arc::new(cached));
            }
            Err(error) => return Err(error),
        };
        Ok(Arc::new(PageFile {
            cached,
            direct,
            cached_only: Arc::clone(&self.cached_only),
        }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        if !dir.is_dir() {
            fs::create_dir_all(dir)?;
            if let Some(parent) = dir.parent() {
                self.sync_dir(parent)?;
            }
        }
        fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn free(&self, dir: &Path) -> io::Result<u64> {
        let disk = rustix::fs::statvfs(dir)?;
        Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
}

fn write_all(file: &File, parts: &[&[u8]], mut offset: u64) -> io::Result<()> {
    let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
    let mut rest = slices.as_mut_slice();
    while !rest.is_empty() {
        let written = match rustix::io::pwritev(file, &rest[..rest.len().min(MOST_PARTS)], offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => written,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        offset += written as u64;
        IoSlice::advance_slices(&mut rest, written);
    }
    Ok(())
}

/// Whether an error says that the file system does not write past the page cache, or not such pages.
fn is_refusal(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP))
}

/// From now on nothing is written past the page cache; says so the first time.
fn note_refusal(cached_only: &AtomicBool, error: &io::Error) {
    if !cached_only.swap(true, Ordering::Relaxed) {
        tracing::info!(%error, "chunks are written through the page cache: the file system refuses O_DIRECT");
    }
}

/// A file whose pages the disk takes from the writer's memory. What was not written past the page
/// cache, because it could not be, is written through it.
struct PageFile {
    cached: File,
    /// The same file.
    direct: File,
    cached_only: Arc<AtomicBool>,
}

impl BlobFile for PageFile {
    fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        if !self.cached_only.load(Ordering::Relaxed) {
            match write_all(&self.direct, parts, offset) {
                Err(error) if is_refusal(&error) => note_refusal(&self.cached_only, &error),
                outcome => return outcome,
            }
        }
        write_all(&self.cached, parts, offset)
    }

    fn read_at(&self, len: usize, offset: u64) -> io::Result<Bytes> {
        self.cached.read_at(len, offset)
    }

    fn size(&self) -> io::Result<u64> {
        self.cached.size()
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.cached.set_size(size)
    }

    fn sync(&self) -> io::Result<()> {
        self.cached.sync()
    }
}

impl BlobFile for File {
    fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        write_all(self, parts, offset)
    }

    fn read_at(&self, len: usize, offset: u64) -> io::Result<Bytes> {
        let mut bytes: Vec<u8> = Vec::with_capacity(len + PAGE);
        let before = pages::before(bytes.as_ptr(), offset as usize);
        bytes.resize(before, 0);
        while bytes.len() < before + len {
            let at = offset + (bytes.len() - before) as u64;
            // The vector may have more room than was asked for: what is read too much is cut below.
            match rustix::io::pread(self, spare_capacity(&mut bytes), at) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        bytes.truncate(before + len);
        let mut bytes = Bytes::from(bytes);
        bytes.advance(before);
        Ok(bytes)
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.set_len(size)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
