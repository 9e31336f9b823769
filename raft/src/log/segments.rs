//! The segment files: made ahead of need, read from, given up and used again.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::files::{Files, LogFile, remove, sync_dir, zero};
use super::group::Location;
use super::record::{self, Seed, SegmentHeader};

/// Segments kept for use again. One is enough: each new one takes it, each old one brings it back.
const SPARES: usize = 1;
/// Reads closer together than this become one.
const READ_GAP: u32 = 16 << 10;
const READ_SPAN: u32 = 2 << 20;

pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) size: u64,
    pub(super) seed: Seed,
    pub(super) path: PathBuf,
    pub(super) file: Box<dyn LogFile>,
}

pub(super) struct Segments {
    dir: PathBuf,
    files: Arc<dyn Files>,
    log: u64,
    size: u64,
    /// Segments that may hold live records, the active one included.
    live: Mutex<BTreeMap<u64, Arc<Segment>>>,
    spares: Mutex<Vec<PathBuf>>,
}

impl Segments {
    pub(super) fn new(dir: &Path, files: Arc<dyn Files>, log: u64, size: u64) -> Self {
        Self {
            dir: dir.to_path_buf(),
            files,
            log,
            size,
            live: Mutex::default(),
            spares: Mutex::default(),
        }
    }

    pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
        dir.join(format!("{number:016x}.log"))
    }

    /// Makes an empty segment, its header durable: filled with zeros once, or used before, so that
    /// writing records into it changes no metadata. Blocks on the disk.
    pub(super) fn create(&self, number: u64) -> io::Result<Arc<Segment>> {
        let temporary = self.dir.join("next.tmp");
        let spare = self.spares.lock().pop();
        if let Some(spare) = &spare {
            fs::rename(spare, &temporary)?;
        }
        let file = self.files.open(&temporary)?;
        if spare.is_none() {
            zero(&*file, 0, self.size)?;
        }
        let header = SegmentHeader {
            log: self.log,
            segment: number,
            size: self.size,
        };
        file.write_at(&header.encode(), 0)?;
        file.sync()?;
        let path = Self::path(&self.dir, number);
        fs::rename(&temporary, &path)?;
        sync_dir(&self.dir)?;
        Ok(Arc::new(Segment {
            number,
            size: self.size,
            seed: Seed::new(self.log, number),
            path,
            file,
        }))
    }

    pub(super) fn add(&self, segment: Arc<Segment>) {
        self.live.lock().insert(segment.number, segment);
    }

    pub(super) fn get(&self, number: u64) -> Option<Arc<Segment>> {
        self.live.lock().get(&number).cloned()
    }

    pub(super) fn oldest(&self) -> Option<u64> {
        self.live.lock().keys().next().copied()
    }

    pub(super) fn count(&self) -> usize {
        self.live.lock().len()
    }

    pub(super) fn total_bytes(&self) -> u64 {
        self.live.lock().values().map(|segment| segment.size).sum()
    }

    /// Gives up every segment before `oldest`. The watermark must say so durably by now.
    pub(super) fn release_before(&self, oldest: u64) -> io::Result<()> {
        loop {
            let segment = {
                let mut live = self.live.lock();
                match live.first_key_value() {
                    Some((number, _)) if *number < oldest => live.pop_first(),
                    _ => None,
                }
            };
            let Some((_, segment)) = segment else {
                return Ok(());
            };
            let mut spares = self.spares.lock();
            // Nobody can get hold of it any more; a reader that still does keeps the unlinked file.
            let unused = Arc::strong_count(&segment) == 1;
            if unused && spares.len() < SPARES && segment.size == self.size {
                let spare = self.dir.join(format!("spare-{:016x}.tmp", segment.number));
                fs::rename(&segment.path, &spare)?;
                spares.push(spare);
            } else {
                drop(spares);
                remove(&segment.path)?;
            }
        }
    }

    /// Reads the bodies of the records at `locations`, in that order. Blocks on the disk.
    ///
    /// # Errors
    /// `NotFound` when a segment was given up meanwhile; `InvalidData`, naming file and offset, when
    /// the disk gives back something else than was written.
    pub(super) fn read(&self, locations: &[Location]) -> io::Result<Vec<Vec<u8>>> {
        let mut bodies = Vec::with_capacity(locations.len());
        let mut rest = locations;
        while let Some(first) = rest.first() {
            let run = 1 + rest
                .windows(2)
                .take_while(|pair| {
                    let end = pair[0].offset + pair[0].length;
                    pair[1].segment == first.segment
                        && pair[1].offset >= end
                        && pair[1].offset - end < READ_GAP
                        && pair[1].offset + pair[1].length - first.offset < READ_SPAN
                })
                .count();
            let (run, behind) = rest.split_at(run);
            rest = behind;
            let last = run[run.len() - 1];
            let segment = self
                .get(u64::from(first.segment))
                .ok_or(io::ErrorKind::NotFound)?;
            let mut bytes = vec![0; (last.offset + last.length - first.offset) as usize];
            segment.file.read_at(&mut bytes, u64::from(first.offset))?;
            for location in run {
                let at = (location.offset - first.offset) as usize;
                let record = record::get(&bytes[at..], segment.seed, u64::from(location.offset))
                    .ok_or_else(|| {
                        io::Error::new(
                            io::ErrorKind::InvalidData,
                            format!(
                                "{} is damaged at offset {}",
                                segment.path.display(),
                                location.offset
                            ),
                        )
                    })?;
                bodies.push(record.body.to_vec());
            }
        }
        Ok(bodies)
    }
}
