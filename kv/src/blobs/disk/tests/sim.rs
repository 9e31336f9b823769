//! A disk in memory that can be killed at any operation, lose power, fill up, and fail its syncs.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use rand::Rng;
use rand::rngs::StdRng;

use super::super::files::{BlobFile, Files};
use super::super::record::PAGE;

const SECTOR: usize = 512;

#[derive(Clone, Default)]
struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Written and not synced.
    dirty: Vec<(usize, Vec<u8>)>,
}

#[derive(Clone)]
enum NameChange {
    Link(PathBuf, usize),
    Unlink(PathBuf),
}

#[derive(Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    unsynced: Vec<NameChange>,
    /// Operations until the process is killed.
    fuse: Option<u64>,
    dead: bool,
    fail_sync: bool,
    /// What reads fail with.
    fail_reads: Option<i32>,
    full: bool,
    syncs: u64,
    written: u64,
}

#[derive(Clone, Default)]
pub(super) struct Disk(Arc<Mutex<State>>, Arc<Mutex<()>>);

struct OpenFile {
    disk: Disk,
    inode: usize,
    /// It takes whole pages at pages' addresses, and refuses all else.
    pages: bool,
}

fn killed() -> io::Error {
    io::Error::other("killed")
}

impl Disk {
    /// The process dies at the `operations`th write, sync or change of a name from now.
    pub(super) fn kill_after(&self, operations: u64) {
        self.0.lock().fuse = Some(operations);
    }

    pub(super) fn is_dead(&self) -> bool {
        self.0.lock().dead
    }

    pub(super) fn fail_syncs(&self, fail: bool) {
        self.0.lock().fail_sync = fail;
    }

    /// While the guard lives, syncs wait.
    pub(super) fn hold_syncs(&self) -> MutexGuard<'_, ()> {
        self.1.lock()
    }

    pub(super) fn fail_reads(&self, with: Option<i32>) {
        self.0.lock().fail_reads = with;
    }

    pub(super) fn fill(&self, full: bool) {
        self.0.lock().full = full;
    }

    pub(super) fn syncs(&self) -> u64 {
        self.0.lock().syncs
    }

    pub(super) fn written(&self) -> u64 {
        self.0.lock().written
    }

    /// The process is gone and comes back: the kernel kept what was written.
    pub(super) fn restart(&self) {
        let mut state = self.0.lock();
        state.fuse = None;
        state.dead = false;
    }

    /// The power fails: of what was not synced, any sectors may be there, and names as of any
    /// moment since they were synced.
    pub(super) fn lose_power(&self, rng: &mut StdRng) {
        let mut state = self.0.lock();
        let kept = rng.random_range(0..=state.unsynced.len());
        let changes: Vec<_> = state.unsynced.drain(..).collect();
        let mut names = state.durable_names.clone();
        for change in &changes[..kept] {
            apply(&mut names, change);
        }
        state.names = names.clone();
        state.durable_names = names;
        for inode in &mut state.inodes {
            let mut after = inode.durable.clone();
            for (offset, bytes) in inode.dirty.drain(..) {
                for (at, sector) in bytes.chunks(SECTOR).enumerate() {
                    if rng.random_bool(0.5) {
                        let from = offset + at * SECTOR;
                        let to = from + sector.len();
                        if after.len() < to {
                            after.resize(to, 0);
                        }
                        after[from..to].copy_from_slice(sector);
                    }
                }
            }
            inode.now = after.clone();
            inode.durable = after;
        }
        drop(state);
        self.restart();
    }

    /// Changes a byte of `path` behind the store's back.
    pub(super) fn flip(&self, path: &Path, offset: usize) {
        let mut state = self.0.lock();
        let inode = state.names[path];
        let inode = &mut state.inodes[inode];
        inode.now[offset] ^= 0x40;
        inode.durable = inode.now.clone();
    }

    pub(super) fn cut(&self, path: &Path, size: usize) {
        let mut state = self.0.lock();
        let inode = state.names[path];
        state.inodes[inode].now.truncate(size);
    }

    pub(super) fn names(&self, kind: &str) -> Vec<PathBuf> {
        let state = self.0.lock();
        let named = |path: &&PathBuf| path.extension().is_some_and(|found| found == kind);
        state.names.keys().filter(named).cloned().collect()
    }

    pub(super) fn forget(&self, path: &Path) {
        self.0.lock().names.remove(path);
    }

    pub(super) fn size_of(&self, path: &Path) -> usize {
        let state = self.0.lock();
        state.inodes[state.names[path]].now.len()
    }

    fn open_as(&self, path: &Path, fresh: bool, pages: bool) -> io::Result<Arc<dyn BlobFile>> {
        let mut state = self.0.lock();
        if state.dead {
            return Err(killed());
        }
        let found = state.names.get(path).copied();
        let inode = match found {
            Some(inode) if !fresh => inode,
            None if !fresh => return Err(io::ErrorKind::NotFound.into()),
            _ => {
                let inode = state.inodes.len();
                state.inodes.push(Inode::default());
                state.change(vec![NameChange::Link(path.to_owned(), inode)]);
                inode
            }
        };
        drop(state);
        Ok(Arc::new(OpenFile {
            disk: self.clone(),
            inode,
            pages,
        }))
    }
}

fn apply(names: &mut BTreeMap<PathBuf, usize>, change: &NameChange) {
    match change {
        NameChange::Link(path, inode) => {
            names.insert(path.clone(), *inode);
        }
        NameChange::Unlink(path) => {
            names.remove(path);
        }
    }
}

impl State {
    /// Whether this operation is done at all; a write that kills is done in part.
    fn step(&mut self) -> Result<bool, io::Error> {
        if self.dead {
            return Err(killed());
        }
        if let Some(fuse) = &mut self.fuse {
            if *fuse == 0 {
                self.dead = true;
                return Ok(false);
            }
            *fuse -= 1;
        }
        Ok(true)
    }

    fn change(&mut self, changes: Vec<NameChange>) {
        for change in &changes {
            apply(&mut self.names, change);
        }
        self.unsynced.extend(changes);
    }
}

impl Files for Disk {
    fn open(&self, path: &Path, fresh: bool) -> io::Result<Arc<dyn BlobFile>> {
        self.open_as(path, fresh, false)
    }

    fn create_for_pages(&self, path: &Path) -> io::Result<Arc<dyn BlobFile>> {
        self.open_as(path, true, true)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        if !state.step()? {
            return Err(killed());
        }
        let inode = *state.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        state.change(vec![
            NameChange::Link(to.to_owned(), inode),
            NameChange::Unlink(from.to_owned()),
        ]);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        if !state.step()? {
            return Err(killed());
        }
        state.change(vec![NameChange::Unlink(path.to_owned())]);
        Ok(())
    }

    fn list(&self, _dir: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(self.0.lock().names.keys().cloned().collect())
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        if !state.step()? {
            return Err(killed());
        }
        state.unsynced.clear();
        state.durable_names = state.names.clone();
        Ok(())
    }

    fn free(&self, _dir: &Path) -> io::Result<u64> {
        Ok(if self.0.lock().full { 0 } else { 1 << 40 })
    }
}

impl BlobFile for OpenFile {
    fn write_at(&self, parts: &[&[u8]], offset: u64) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        let whole = state.step()?;
        if self.pages {
            let whole_pages = |part: &&[u8]| {
                part.as_ptr().addr().is_multiple_of(PAGE) && part.len().is_multiple_of(PAGE)
            };
            assert!(parts.iter().all(whole_pages) && offset.is_multiple_of(PAGE as u64));
        }
        let mut bytes = parts.concat();
        if !whole {
            // Where the kill hits depends on nothing but the content.
            bytes.truncate(bytes.len() / 2 / 8 * 8);
        }
        state.written += bytes.len() as u64;
        let offset = offset as usize;
        let inode = &mut state.inodes[self.inode];
        let end = offset + bytes.len();
        if inode.now.len() < end {
            inode.now.resize(end, 0);
        }
        inode.now[offset..end].copy_from_slice(&bytes);
        inode.dirty.push((offset, bytes));
        if whole { Ok(()) } else { Err(killed()) }
    }

    fn read_at(&self, len: usize, offset: u64) -> io::Result<Bytes> {
        let state = self.disk.0.lock();
        if let Some(error) = state.fail_reads {
            return Err(io::Error::from_raw_os_error(error));
        }
        let offset = offset as usize;
        let bytes = state.inodes[self.inode].now.get(offset..offset + len);
        Ok(Bytes::copy_from_slice(
            bytes.ok_or(io::ErrorKind::UnexpectedEof)?,
        ))
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.0.lock().inodes[self.inode].now.len() as u64)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        if !state.step()? {
            return Err(killed());
        }
        let inode = &mut state.inodes[self.inode];
        inode.now.resize(size as usize, 0);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        drop(self.disk.hold_syncs());
        let mut state = self.disk.0.lock();
        if !state.step()? {
            return Err(killed());
        }
        let failed = state.fail_sync;
        state.syncs += u64::from(!failed);
        let inode = &mut state.inodes[self.inode];
        let dirty = std::mem::take(&mut inode.dirty);
        if failed {
            // As Linux does it: what was not written counts as clean from now on.
            return Err(io::Error::from_raw_os_error(5));
        }
        inode.durable.resize(inode.now.len(), 0);
        for (offset, bytes) in dirty {
            let kept = bytes.len().min(inode.now.len().saturating_sub(offset));
            inode.durable[offset..offset + kept].copy_from_slice(&bytes[..kept]);
        }
        Ok(())
    }
}
