//! Opening: what the segments hold, by their hints, or by walking them.
//!
//! A segment with a hint is durable to its end. One without, as the last is after a crash, is read
//! whole. Records that end in something unreadable are a *torn tail* if no later write follows: that
//! write was never synced, nobody was told of it, and it is cut off. If a later write follows, what
//! lies between was synced once and is *damage*: those chunks are gone from this node, are reported,
//! and come back from its peers. Nothing is ever appended to a segment found at open, so nothing torn
//! is built upon.
//!
//! What can be read may be in the page cache only: a process that is killed leaves writes behind that
//! nobody synced, and after a failed sync Linux takes them for clean. So the last write of a segment
//! without a hint is written once more, and only then it gets its hint.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::files::{BlobFile, Files};
use super::index::Index;
use super::record::{
    Bad, DATA_START, FIRST_ALIGN, FORMAT, Location, RECORD_HEADER, RecordHeader, SegmentHead,
};
use super::segments::{Segment, Segments};
use crate::blobs::ChunkHash;

/// How much is read at a time in search of the next record.
const SEARCH: usize = 1 << 20;

/// Why the store does not open.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenStoreError {
    #[error("blobs in {}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{} has format {found}, and this program reads up to {FORMAT}: start the version that \
         wrote it, or a newer one",
        path.display()
    )]
    Newer { path: PathBuf, found: u16 },
}

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::blobs) struct Found {
    /// Regions that were written and synced and cannot be read.
    pub(in crate::blobs) damaged: u64,
    /// Bytes cut from the end of the last segment.
    pub(in crate::blobs) torn: bool,
}

/// What recovery leaves to the writer.
pub(super) struct Recovered {
    pub(super) segments: Segments,
    pub(super) index: Index,
    pub(super) next_number: u32,
    /// Chunks of the last write before a crash: they can be read, and may have been read from the
    /// page cache only. They are written once more before anybody relies on them.
    pub(super) unsure: Vec<(ChunkHash, Location)>,
    /// The segments without hints. They get theirs after the above.
    pub(super) unsealed: Vec<Sealed>,
    pub(super) found: Found,
}

/// A segment's hint to be.
pub(super) struct Sealed {
    pub(super) head: SegmentHead,
    pub(super) end: u64,
    pub(super) records: Vec<(ChunkHash, Location)>,
}

pub(super) fn recover(dir: &Path, files: Arc<dyn Files>) -> Result<Recovered, OpenStoreError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenStoreError::Io { path, source }
    };
    let mut numbers = Vec::new();
    for path in files.list(dir).map_err(io(dir))? {
        let number = path
            .file_stem()
            .and_then(|stem| u32::from_str_radix(stem.to_str()?, 16).ok());
        match (path.extension().and_then(|kind| kind.to_str()), number) {
            (Some("blob"), Some(number)) => numbers.push(number),
            (Some("tmp"), _) => files.remove(&path).map_err(io(&path))?,
            _ => {}
        }
    }
    numbers.sort_unstable();
    let last = numbers.last().copied();
    let mut recovered = Recovered {
        segments: Segments::new(dir, files),
        index: Index::default(),
        next_number: last.map_or(1, |last| last + 1),
        unsure: Vec::new(),
        unsealed: Vec::new(),
        found: Found::default(),
    };
    for number in numbers {
        let path = recovered.segments.path(number);
        recovered
            .take(number, Some(number) == last)
            .map_err(|error| match error {
                Unreadable::Io(source) => OpenStoreError::Io { path, source },
                Unreadable::Newer(found) => OpenStoreError::Newer { path, found },
            })?;
    }
    Ok(recovered)
}

enum Unreadable {
    Io(io::Error),
    Newer(u16),
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Recovered {
    fn take(&mut self, number: u32, last: bool) -> Result<(), Unreadable> {
        let file = self.segments.open(number)?;
        let size = file.size()?;
        let head = match SegmentHead::decode(&file.read_at(DATA_START.min(size) as usize, 0)?) {
            Ok(head) if head.number == number => head,
            Err(Bad::Newer(found)) => return Err(Unreadable::Newer(found)),
            Ok(_) | Err(Bad::Damaged) => {
                tracing::error!(
                    segment = %self.segments.path(number).display(),
                    "the head of a blob segment is damaged: its chunks are fetched from peers"
                );
                self.found.damaged += 1;
                return Ok(());
            }
        };
        let hint = self.segments.read_hint(head);
        let (end, records) = match hint {
            // A program of the first format left a tail so that was torn behind its last payload.
            Some((end, records)) if end <= size.next_multiple_of(FIRST_ALIGN) => (end, records),
            Some(_) => {
                tracing::error!(
                    segment = %self.segments.path(number).display(),
                    "a blob segment has lost its end: what is missing is fetched from peers"
                );
                self.found.damaged += 1;
                self.walk(&*file, head, size, last)?
            }
            None => self.walk(&*file, head, size, last)?,
        };
        if records.is_empty() && last {
            // Made, and nothing written.
            self.segments.delete(number)?;
            return Ok(());
        }
        let segment = Arc::new(Segment::new(head));
        segment.end.store(end, Ordering::Relaxed);
        self.segments.add(segment);
        self.index.reserve(records.len());
        for (hash, at) in records {
            self.segments.count_live(at, true);
            if let Some(old) = self.index.insert(hash, at, 0) {
                self.segments.count_live(old, false);
            }
        }
        Ok(())
    }

    fn walk(
        &mut self,
        file: &dyn BlobFile,
        head: SegmentHead,
        size: u64,
        last: bool,
    ) -> Result<(u64, Vec<(ChunkHash, Location)>), Unreadable> {
        let walked = walk(file, head, size)?;
        if walked.damaged > 0 {
            tracing::error!(
                segment = %self.segments.path(head.number).display(),
                regions = walked.damaged,
                "a blob segment is damaged: what is missing is fetched from peers"
            );
            self.found.damaged += walked.damaged;
        }
        if walked.end < size {
            self.found.torn |= last;
        }
        // Cut, or filled up where its last record lacks nothing but that.
        if walked.end != size {
            file.set_size(walked.end)?;
        }
        file.sync()?;
        self.unsure
            .extend_from_slice(&walked.records[walked.last_write..]);
        self.unsealed.push(Sealed {
            head,
            end: walked.end,
            records: walked.records.clone(),
        });
        Ok((walked.end, walked.records))
    }
}

#[derive(Default)]
struct Walked {
    records: Vec<(ChunkHash, Location)>,
    /// The first record of the last write.
    last_write: usize,
    end: u64,
    damaged: u64,
}

/// Reads a segment, every byte of it.
fn walk(file: &dyn BlobFile, head: SegmentHead, size: u64) -> io::Result<Walked> {
    let mut walked = Walked {
        end: DATA_START,
        ..Walked::default()
    };
    let mut offset = DATA_START;
    // After something unreadable: what follows counts once a later write is found.
    let mut doubtful: Option<Vec<(ChunkHash, Location)>> = None;
    while offset + RECORD_HEADER as u64 <= size {
        let header = RecordHeader::decode(&file.read_at(RECORD_HEADER, offset)?, head.seed, offset);
        let at = header.map(|header| header.at(head.number, offset));
        let good = match at {
            Some(at) => is_whole(file, at, size)?,
            None => false,
        };
        if let (Some(header), Some(at), true) = (header, at, good) {
            if header.first {
                if let Some(records) = doubtful.take() {
                    walked.damaged += 1;
                    walked.records.extend(records);
                }
                walked.last_write = walked.records.len();
            }
            let record = (header.chunk.hash, at);
            offset += head.stride(at);
            match &mut doubtful {
                Some(records) => records.push(record),
                None => {
                    walked.records.push(record);
                    walked.end = offset;
                }
            }
            continue;
        }
        doubtful.get_or_insert_default();
        let from = at.map_or(offset + head.align(), |at| offset + head.stride(at));
        match find_record(file, head, from, size)? {
            Some(found) => offset = found,
            None => break,
        }
    }
    // What is doubtful still was not followed by a write: it was never synced.
    Ok(walked)
}

fn is_whole(file: &dyn BlobFile, at: Location, size: u64) -> io::Result<bool> {
    if at.payload_offset() + u64::from(at.len) > size {
        return Ok(false);
    }
    match file.read_at(at.len as usize, at.payload_offset()) {
        Ok(bytes) => Ok(crc32c::crc32c(&bytes) == at.crc),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// The first place at or behind `from` where a record's header is.
fn find_record(
    file: &dyn BlobFile,
    head: SegmentHead,
    from: u64,
    size: u64,
) -> io::Result<Option<u64>> {
    let mut start = from;
    while start + RECORD_HEADER as u64 <= size {
        let len = (SEARCH as u64).min(size - start) as usize;
        let block = file.read_at(len, start)?;
        for at in (0..len).step_by(head.align() as usize) {
            let offset = start + at as u64;
            if RecordHeader::decode(&block[at..], head.seed, offset).is_some() {
                return Ok(Some(offset));
            }
        }
        start += SEARCH as u64;
    }
    Ok(None)
}
