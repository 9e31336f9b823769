//! Small files that must be there whole after a power cut, or not at all.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::StorageError;

/// Writes `bytes` to `path` so that after a crash it holds either them or what it held before.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<(), StorageError> {
    let temporary = temporary(path);
    let mut file = File::create(&temporary).map_err(StorageError::io("create", &temporary))?;
    file.write_all(bytes)
        .map_err(StorageError::io("write", &temporary))?;
    publish(&file, &temporary, path)
}

/// Syncs `file`, written under the name `temporary`, and gives it the name `path`.
pub(super) fn publish(file: &File, temporary: &Path, path: &Path) -> Result<(), StorageError> {
    file.sync_all()
        .map_err(StorageError::io("sync", temporary))?;
    fs::rename(temporary, path).map_err(StorageError::io("rename", temporary))?;
    sync_parent(path)
}

/// Removes `path`, durably; an absent file is no error.
pub(super) fn remove(path: &Path) -> Result<(), StorageError> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(StorageError::io("remove", path)(error)),
    }
}

/// The content of `path`, `None` if there is no such file.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>, StorageError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StorageError::io("read", path)(error)),
    }
}

pub(super) fn create_dir(path: &Path) -> Result<(), StorageError> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path).map_err(StorageError::io("create directory", path))?;
    sync_parent(path)
}

/// Makes the names in the directory of `path` durable.
pub(super) fn sync_parent(path: &Path) -> Result<(), StorageError> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(StorageError::io("sync directory", parent))
}

/// The name under which `path` is written first.
fn temporary(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}
