//! The segment files: opened when they are read, counted, given up.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use quick_cache::sync::Cache;

use super::files::{BlobFile, Files};
use super::pages::Pages;
use super::record::{self, DATA_START, Location, RECORD_HEADER, RecordHeader, SegmentHead};
use crate::blobs::ChunkHash;

/// Segments kept open for reading.
const OPEN_FILES: usize = 256;

/// One segment.
#[derive(Debug)]
pub(in crate::blobs) struct Segment {
    pub(super) head: SegmentHead,
    /// Where its records end.
    pub(super) end: AtomicU64,
    /// Bytes of records that the index points to.
    pub(super) live: AtomicU64,
    /// Something in it was found damaged: it is not given up while the process lives.
    suspect: AtomicBool,
}

impl Segment {
    pub(super) fn new(head: SegmentHead) -> Self {
        Self {
            head,
            end: AtomicU64::new(DATA_START),
            live: AtomicU64::new(0),
            suspect: AtomicBool::new(false),
        }
    }

    pub(super) fn used(&self) -> u64 {
        self.end.load(Ordering::Relaxed) - DATA_START
    }

    pub(super) fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Relaxed)
    }

    pub(super) fn live(&self) -> u64 {
        self.live.load(Ordering::Relaxed)
    }
}

pub(super) struct Segments {
    dir: PathBuf,
    files: Arc<dyn Files>,
    all: Mutex<BTreeMap<u32, Arc<Segment>>>,
    open: Cache<u32, Arc<dyn BlobFile>>,
}

impl Segments {
    pub(super) fn new(dir: &Path, files: Arc<dyn Files>) -> Self {
        Self {
            dir: dir.to_owned(),
            files,
            all: Mutex::default(),
            open: Cache::new(OPEN_FILES),
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn files(&self) -> &dyn Files {
        &*self.files
    }

    pub(super) fn path(&self, number: u32) -> PathBuf {
        self.dir.join(format!("{number:08x}.blob"))
    }

    pub(super) fn hint_path(&self, number: u32) -> PathBuf {
        self.dir.join(format!("{number:08x}.hint"))
    }

    pub(super) fn add(&self, segment: Arc<Segment>) {
        self.all.lock().insert(segment.head.number, segment);
    }

    /// All of them, the oldest first.
    pub(super) fn all(&self) -> Vec<Arc<Segment>> {
        self.all.lock().values().cloned().collect()
    }

    pub(super) fn suspect(&self, number: u32) {
        if let Some(segment) = self.all.lock().get(&number) {
            segment.suspect.store(true, Ordering::Relaxed);
        }
    }

    /// Bytes that a chunk's record takes are needed, or not any more.
    pub(super) fn count_live(&self, at: Location, now_live: bool) {
        if let Some(segment) = self.all.lock().get(&at.segment) {
            let bytes = segment.head.stride(at);
            if now_live {
                segment.live.fetch_add(bytes, Ordering::Relaxed);
            } else {
                segment.live.fetch_sub(bytes, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn open(&self, number: u32) -> io::Result<Arc<dyn BlobFile>> {
        self.open
            .get_or_insert_with(&number, || self.files.open(&self.path(number), false))
    }

    /// Reads a chunk and checks it; `InvalidData` if it is not what was written.
    pub(super) fn read(&self, at: Location) -> io::Result<Bytes> {
        let file = self.open(at.segment)?;
        let bytes = file.read_at(at.len as usize, at.payload_offset())?;
        if crc32c::crc32c(&bytes) != at.crc {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(bytes)
    }

    /// Makes an empty segment, its head and its name durable. It grows as it is written: blocks
    /// reserved ahead make each sync dearer (`docs/blobs.md`), and zeros written ahead double what
    /// the disk has to write.
    pub(super) fn create(&self, number: u32) -> io::Result<(Arc<Segment>, Arc<dyn BlobFile>)> {
        let temporary = self.dir.join("next.tmp");
        let head = SegmentHead::new(number);
        let file = self.files.create_for_pages(&temporary)?;
        let mut pages = Pages::default();
        file.write_at(
            &pages.lay_out([(&head.encode()[..], &[][..])].into_iter()),
            0,
        )?;
        file.sync()?;
        self.files.rename(&temporary, &self.path(number))?;
        self.files.sync_dir(&self.dir)?;
        let segment = Arc::new(Segment::new(head));
        self.add(Arc::clone(&segment));
        Ok((segment, file))
    }

    /// Writes what a sealed segment holds beside it. It may be lost or torn: it is checked when it
    /// is read, and can be made again.
    pub(super) fn write_hint(
        &self,
        head: SegmentHead,
        end: u64,
        records: &[(ChunkHash, Location)],
    ) -> io::Result<()> {
        let temporary = self.dir.join("hint.tmp");
        let file = self.files.open(&temporary, true)?;
        file.write_at(&[&record::encode_hint(head.seed, end, records)], 0)?;
        self.files.rename(&temporary, &self.hint_path(head.number))
    }

    pub(super) fn read_hint(&self, head: SegmentHead) -> Option<(u64, Vec<(ChunkHash, Location)>)> {
        let file = self.files.open(&self.hint_path(head.number), false).ok()?;
        let size = usize::try_from(file.size().ok()?).ok()?;
        record::decode_hint(&file.read_at(size, 0).ok()?, head)
    }

    /// What a sealed segment holds, by its hint, else by walking it.
    pub(super) fn records(&self, segment: &Segment) -> io::Result<Vec<(ChunkHash, Location)>> {
        if let Some((_, records)) = self.read_hint(segment.head) {
            return Ok(records);
        }
        let file = self.open(segment.head.number)?;
        let end = segment.end.load(Ordering::Relaxed);
        let mut records = Vec::new();
        let mut offset = DATA_START;
        while offset < end {
            let bytes = file.read_at(RECORD_HEADER, offset)?;
            match RecordHeader::decode(&bytes, segment.head.seed, offset) {
                Some(header) => {
                    let at = header.at(segment.head.number, offset);
                    records.push((header.chunk.hash, at));
                    offset += segment.head.stride(at);
                }
                None => offset += segment.head.align(),
            }
        }
        Ok(records)
    }

    /// Deletes a segment that holds nothing needed. A crash may bring it back: then what it holds
    /// is nobody's, and goes again.
    pub(super) fn delete(&self, number: u32) -> io::Result<()> {
        self.all.lock().remove(&number);
        self.open.remove(&number);
        self.files.remove(&self.path(number))?;
        self.files.remove(&self.hint_path(number))
    }
}

impl RecordHeader {
    /// The place of the record at `offset` of segment `number`.
    pub(super) fn at(&self, number: u32, offset: u64) -> Location {
        Location {
            segment: number,
            // A segment is shorter than 4 GiB (`Options`).
            offset: offset as u32,
            len: self.chunk.len,
            crc: self.crc,
        }
    }
}
