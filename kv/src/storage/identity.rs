//! Whose data directory this is, and that only one process uses it.
//!
//! `identity` is a text file, so that a person can read it:
//! ```text
//! leadline data directory
//! format 1
//! cluster 0f3c5a9be1d24477
//! node 3
//! engine fjall
//! checksum 1b2f94aa
//! ```

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use leadline_raft::{ClusterId, NodeId};

use super::{EngineKind, StorageError, files};

const FILE: &str = "identity";
const LOCK: &str = "lock";
const TITLE: &str = "leadline data directory";

/// The newest layout of a data directory that this program reads, and the one it makes.
const FORMAT: u64 = 1;

/// What a data directory remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cluster: ClusterId,
    pub node: NodeId,
    pub engine: EngineKind,
}

/// Why a data directory cannot be used. Each is one line that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(
        "cannot write to the data directory {}: {source}; choose another with --data-dir, or \
         change its owner or permissions",
        dir.display()
    )]
    NotWritable {
        dir: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "the data directory {} is in use by process {pid}; stop it, or choose another directory \
         with --data-dir",
        dir.display()
    )]
    Locked { dir: PathBuf, pid: String },
    #[error(
        "the data directory {} was made with --engine {found}, not {asked}; start with --engine \
         {found}, or choose another directory with --data-dir",
        dir.display()
    )]
    OtherEngine {
        dir: PathBuf,
        found: EngineKind,
        asked: EngineKind,
    },
    #[error(
        "the data directory {} has format {found}, and this program reads up to {FORMAT}: start the \
         version that made it, or a newer one",
        dir.display()
    )]
    Newer { dir: PathBuf, found: u64 },
    #[error(
        "{} is damaged ({what}); restore the data directory from a backup, or remove this node \
         from the cluster and add it again with an empty data directory",
        path.display()
    )]
    Damaged { path: PathBuf, what: &'static str },
    #[error("the data directory {} belongs to node {node} of cluster {cluster:016x} already", dir.display())]
    Exists {
        dir: PathBuf,
        cluster: u64,
        node: NodeId,
    },
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// Keeps other processes out of a data directory until it is dropped.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

impl DirLock {
    /// Makes the directory if it is absent, and locks it.
    ///
    /// # Errors
    /// [`IdentityError::Locked`] names the process that holds it; [`IdentityError::NotWritable`].
    pub fn acquire(dir: &Path) -> Result<Self, IdentityError> {
        let not_writable = |source| IdentityError::NotWritable {
            dir: dir.to_owned(),
            source,
        };
        std::fs::create_dir_all(dir).map_err(not_writable)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(dir.join(LOCK))
            .map_err(not_writable)?;
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).map_err(not_writable)?;
                let pid = pid.trim();
                return Err(IdentityError::Locked {
                    dir: dir.to_owned(),
                    pid: if pid.is_empty() { "(unknown)" } else { pid }.to_owned(),
                });
            }
            Err(error) => return Err(not_writable(error.into())),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()))
            .map_err(not_writable)?;
        Ok(Self { _file: file })
    }
}

impl Identity {
    /// Reads the identity of `dir`; `None` when it has none yet.
    ///
    /// # Errors
    /// [`IdentityError::Damaged`], [`IdentityError::Newer`], or the file cannot be read.
    pub fn load(dir: &Path) -> Result<Option<Self>, IdentityError> {
        let path = dir.join(FILE);
        let Some(bytes) = files::read(&path)? else {
            return Ok(None);
        };
        let damaged = |what| IdentityError::Damaged {
            path: path.clone(),
            what,
        };
        let text = String::from_utf8(bytes).map_err(|_| damaged("not text"))?;
        let (body, checksum) = text
            .rsplit_once("checksum ")
            .ok_or_else(|| damaged("no checksum: the file is cut short"))?;
        if checksum != format!("{:08x}\n", crc32c::crc32c(body.as_bytes())) {
            return Err(damaged("checksum mismatch"));
        }
        let mut lines = body.lines();
        if lines.next() != Some(TITLE) {
            return Err(damaged("not an identity file"));
        }
        let mut field = |name: &'static str| {
            lines
                .next()
                .and_then(|line| line.strip_prefix(name))
                .and_then(|rest| rest.strip_prefix(' '))
                .ok_or_else(|| damaged(name))
        };
        let format: u64 = field("format")?.parse().map_err(|_| damaged("format"))?;
        if format > FORMAT {
            return Err(IdentityError::Newer {
                dir: dir.to_owned(),
                found: format,
            });
        }
        Ok(Some(Self {
            cluster: ClusterId(
                u64::from_str_radix(field("cluster")?, 16).map_err(|_| damaged("cluster"))?,
            ),
            node: NodeId(field("node")?.parse().map_err(|_| damaged("node"))?),
            engine: field("engine")?.parse().map_err(|_| damaged("engine"))?,
        }))
    }

    /// Makes `self` the identity of `dir`, durably. Hold the [`DirLock`].
    ///
    /// # Errors
    /// [`IdentityError::Exists`] when `dir` has one already.
    pub fn create(self, dir: &Path) -> Result<(), IdentityError> {
        if let Some(other) = Self::load(dir)? {
            return Err(IdentityError::Exists {
                dir: dir.to_owned(),
                cluster: other.cluster.0,
                node: other.node,
            });
        }
        let mut text = format!(
            "{TITLE}\nformat {FORMAT}\ncluster {:016x}\nnode {}\nengine {}\n",
            self.cluster.0, self.node, self.engine
        );
        let checksum = crc32c::crc32c(text.as_bytes());
        text.push_str(&format!("checksum {checksum:08x}\n"));
        files::replace(&dir.join(FILE), text.as_bytes()).map_err(|error| match error {
            StorageError::Io { source, .. } => IdentityError::NotWritable {
                dir: dir.to_owned(),
                source,
            },
            other => other.into(),
        })
    }

    /// Refuses an engine other than the directory's own.
    ///
    /// # Errors
    /// [`IdentityError::OtherEngine`].
    pub fn check_engine(self, dir: &Path, asked: EngineKind) -> Result<(), IdentityError> {
        if self.engine == asked {
            return Ok(());
        }
        Err(IdentityError::OtherEngine {
            dir: dir.to_owned(),
            found: self.engine,
            asked,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Identity = Identity {
        cluster: ClusterId(0x0f3c),
        node: NodeId(3),
        engine: EngineKind::Sled,
    };

    #[test]
    fn an_identity_is_remembered_and_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Identity::load(dir.path()).unwrap(), None);
        OURS.create(dir.path()).unwrap();
        assert_eq!(Identity::load(dir.path()).unwrap(), Some(OURS));
        let again = OURS.create(dir.path()).unwrap_err().to_string();
        assert!(
            again.contains("node 3 of cluster 0000000000000f3c"),
            "{again}"
        );
    }

    #[test]
    fn another_engine_than_the_directory_s_is_refused_by_name() {
        let error = OURS
            .check_engine(Path::new("/data"), EngineKind::Fjall)
            .unwrap_err()
            .to_string();
        assert!(error.contains("start with --engine sled"), "{error}");
    }

    #[test]
    fn a_cut_or_flipped_identity_is_damage_and_never_another_identity() {
        let dir = tempfile::tempdir().unwrap();
        OURS.create(dir.path()).unwrap();
        let path = dir.path().join(FILE);
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            std::fs::write(&path, &whole[..at]).unwrap();
            assert!(Identity::load(dir.path()).is_err(), "cut at {at}");
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            std::fs::write(&path, &flipped).unwrap();
            assert!(Identity::load(dir.path()).is_err(), "flip at {at}");
        }
    }

    #[test]
    fn a_newer_format_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let body = format!("{TITLE}\nformat 2\ncluster 1\nnode 1\nengine tape\n");
        let text = format!("{body}checksum {:08x}\n", crc32c::crc32c(body.as_bytes()));
        std::fs::write(dir.path().join(FILE), text).unwrap();
        let error = Identity::load(dir.path()).unwrap_err();
        assert!(
            matches!(error, IdentityError::Newer { found: 2, .. }),
            "{error}"
        );
    }

    #[test]
    fn a_second_user_of_the_directory_is_refused_and_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let held = DirLock::acquire(dir.path()).unwrap();
        let error = DirLock::acquire(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        drop(held);
        DirLock::acquire(dir.path()).unwrap();
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_one_clear_line() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = DirLock::acquire(&file.join("data"))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("--data-dir") && !error.contains('\n'),
            "{error}"
        );
    }
}
