//! A group's rows as a stream: to send to a replica, to receive from one, and as a file of ours.
//!
//! The stream is a header and the rows, cut into chunks without regard to rows. Numbers are little
//! endian.
//! ```text
//! chunk    | crc32c u32 of the rest | at most 1 MiB of the stream |
//! stream   | "LLSN" | version u8 = 1 | group u64 | index u64 | ranges u32 | { start, end }* | rows | end |
//! bytes    | length u32 | bytes |                       (start, end, key, value)
//! row      | key | value |
//! end      | u32::MAX | rows u64 |
//! ```
//! A file is a list of blocks, each `| length u32 | crc32c u32 | bytes |`: a head that says which
//! rows must go when it is installed, the payloads of the chunks, an empty block, and the position.
//! It has its final name only when it is whole and synced, and until then one that no other has: a
//! new leader may send its snapshot while the old one's is still being received.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{BufMut, Bytes, BytesMut};
use leadline_raft::GroupId;
use leadline_raft::engine::{SnapshotSink, SnapshotSource, StateError};

use super::store::{GroupStorage, POSITION, Position, private_prefix, private_range};
use super::{Reader, StorageError, Write, files};
use crate::ScanOrder;

const STREAM_MAGIC: &[u8; 4] = b"LLSN";
const FILE_MAGIC: &[u8; 4] = b"LLSF";
const VERSION: u8 = 1;
/// Bytes of the stream in one chunk.
const CHUNK: usize = 1024 * 1024;
const END: u32 = u32::MAX;
/// No block of a file is larger, except its head.
const LARGEST_BLOCK: usize = 64 * CHUNK;
/// How many files this process has begun.
static BEGUN: AtomicU64 = AtomicU64::new(0);
/// A header is a list of key ranges: far less than this.
const LARGEST_HEADER: usize = 16 * CHUNK;

/// The rows of a group as of one instant, as chunks to send. Holds a view and about one chunk.
pub struct Export {
    view: Arc<dyn Reader>,
    position: Position,
    /// What is still to be read, last first.
    ranges: Vec<Range<Bytes>>,
    pending: BytesMut,
    rows: u64,
    ended: bool,
}

impl Export {
    pub(super) fn new(
        group: GroupId,
        view: Arc<dyn Reader>,
        position: Position,
        ranges: &[Range<Bytes>],
    ) -> Self {
        let mut pending = BytesMut::with_capacity(CHUNK + 4096);
        pending.put_slice(STREAM_MAGIC);
        pending.put_u8(VERSION);
        pending.put_u64_le(group.0);
        pending.put_u64_le(position.index);
        put_ranges(&mut pending, ranges);
        let private = private_range(group);
        let mut left: Vec<_> = ranges.iter().rev().cloned().collect();
        left.push(private);
        Self {
            view,
            position,
            ranges: left,
            pending,
            rows: 0,
            ended: false,
        }
    }

    /// The position that the rows belong to.
    #[must_use]
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// The next chunk, `None` at the end.
    pub fn next_chunk(&mut self) -> Result<Option<Bytes>, StorageError> {
        self.fill()?;
        if self.pending.is_empty() {
            return Ok(None);
        }
        let payload = self.pending.split_to(self.pending.len().min(CHUNK));
        let mut chunk = BytesMut::with_capacity(4 + payload.len());
        chunk.put_u32_le(crc32c::crc32c(&payload));
        chunk.put_slice(&payload);
        Ok(Some(chunk.freeze()))
    }

    /// Reads rows until there is a whole chunk, or the stream has ended.
    fn fill(&mut self) -> Result<(), StorageError> {
        while self.pending.len() < CHUNK {
            let Some(range) = self.ranges.last_mut() else {
                if !self.ended {
                    self.pending.put_u32_le(END);
                    self.pending.put_u64_le(self.rows);
                    self.ended = true;
                }
                return Ok(());
            };
            let (pending, rows) = (&mut self.pending, &mut self.rows);
            let mut last = None;
            let start = range.start.clone();
            self.view.scan(
                &start..&range.end,
                ScanOrder::Ascending,
                &mut |key, value| {
                    if !is_position(key) {
                        put_bytes(pending, key);
                        put_bytes(pending, value);
                        *rows += 1;
                    }
                    let full = pending.len() >= CHUNK;
                    if full {
                        last = Some(Bytes::copy_from_slice(key));
                    }
                    !full
                },
            )?;
            match last {
                Some(last) => range.start = successor(&last),
                None => {
                    self.ranges.pop();
                }
            }
        }
        Ok(())
    }
}

impl SnapshotSource for Export {
    fn position(&self) -> Bytes {
        self.position.state.clone()
    }

    fn next_chunk(&mut self) -> Result<Option<Bytes>, StateError> {
        Ok(Export::next_chunk(self)?)
    }
}

/// The first key after `key`.
fn successor(key: &[u8]) -> Bytes {
    let mut next = BytesMut::with_capacity(key.len() + 1);
    next.put_slice(key);
    next.put_u8(0);
    next.freeze()
}

fn is_position(key: &[u8]) -> bool {
    key.len() == 10 && key[0] == 0 && key[9] == POSITION
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32_le(u32::try_from(bytes.len()).unwrap_or(END));
    out.put_slice(bytes);
}

fn put_ranges(out: &mut BytesMut, ranges: &[Range<Bytes>]) {
    out.put_u32_le(u32::try_from(ranges.len()).unwrap_or(u32::MAX));
    for range in ranges {
        put_bytes(out, &range.start);
        put_bytes(out, &range.end);
    }
}

fn bad(what: impl Into<String>) -> StorageError {
    StorageError::BadSnapshot(what.into())
}

/// What a stream says first.
#[derive(Clone, Debug)]
struct Header {
    group: GroupId,
    index: u64,
    ranges: Vec<Range<Bytes>>,
}

impl Header {
    /// Whether `key` may be a row of this snapshot: it must not touch what other groups own.
    fn owns(&self, key: &[u8]) -> bool {
        let within = |range: &Range<Bytes>| range.start[..] <= *key && *key < range.end[..];
        !is_position(key)
            && (key.starts_with(&private_prefix(self.group)) || self.ranges.iter().any(within))
    }
}

/// Takes a stream apart, whatever its cuts; holds at most one unfinished row.
#[derive(Debug, Default)]
struct Decoder {
    pending: BytesMut,
    header: Option<Header>,
    rows: u64,
    ended: bool,
}

type TakeRow<'a> = dyn FnMut(&[u8], &[u8]) -> Result<(), StorageError> + 'a;

impl Decoder {
    /// Takes the next bytes of the stream and gives each row that is whole to `row`.
    fn push(&mut self, bytes: &[u8], row: &mut TakeRow<'_>) -> Result<(), StorageError> {
        if self.ended && !bytes.is_empty() {
            return Err(bad("bytes after its end"));
        }
        self.pending.put_slice(bytes);
        let mut input = Input {
            bytes: &self.pending,
            at: 0,
        };
        let mut taken = 0;
        if self.header.is_none() {
            match read_header(&mut input) {
                Ok(header) => self.header = Some(header),
                Err(Cut::Short) => return Ok(()),
                Err(Cut::Bad(error)) => return Err(error),
            }
            taken = input.at;
        }
        let header = self.header.as_ref().expect("read just now");
        while !self.ended {
            let length = match input.u32() {
                Ok(length) => length,
                Err(_) => break,
            };
            if length == END {
                match input.u64() {
                    Ok(rows) if rows == self.rows => self.ended = true,
                    Ok(rows) => return Err(bad(format!("{} rows of {rows}", self.rows))),
                    Err(_) => break,
                }
            } else {
                let (Ok(key), Ok(value)) = (input.take(length as usize), input.bytes()) else {
                    break;
                };
                if !header.owns(key) {
                    return Err(bad("a row that is not the group's"));
                }
                row(key, value)?;
                self.rows += 1;
            }
            taken = input.at;
        }
        if self.ended && taken != self.pending.len() {
            return Err(bad("bytes after its end"));
        }
        let _ = self.pending.split_to(taken);
        Ok(())
    }

    fn finished(&self) -> Result<&Header, StorageError> {
        match &self.header {
            Some(header) if self.ended => Ok(header),
            _ => Err(bad("it is not complete")),
        }
    }
}

enum Cut {
    /// More bytes are needed.
    Short,
    Bad(StorageError),
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Cut> {
        let taken = self
            .bytes
            .get(self.at..)
            .and_then(|rest| rest.get(..length))
            .ok_or(Cut::Short)?;
        self.at += length;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, Cut> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn u64(&mut self) -> Result<u64, Cut> {
        let (low, high) = (self.u32()?, self.u32()?);
        Ok(u64::from(high) << 32 | u64::from(low))
    }

    fn bytes(&mut self) -> Result<&'a [u8], Cut> {
        let length = self.u32()?;
        self.take(length as usize)
    }

    fn ranges(&mut self) -> Result<Vec<Range<Bytes>>, Cut> {
        let count = self.u32()?;
        let mut ranges = Vec::new();
        for _ in 0..count {
            let start = Bytes::copy_from_slice(self.bytes()?);
            let end = Bytes::copy_from_slice(self.bytes()?);
            ranges.push(start..end);
        }
        Ok(ranges)
    }
}

fn read_header(input: &mut Input<'_>) -> Result<Header, Cut> {
    if input.take(4)? != STREAM_MAGIC {
        return Err(Cut::Bad(bad("not a snapshot")));
    }
    match input.take(1)?[0] {
        VERSION => {}
        found => {
            return Err(Cut::Bad(bad(format!(
                "its format is {found}, and this program reads {VERSION}: upgrade this node"
            ))));
        }
    }
    let (group, index) = (GroupId(input.u64()?), input.u64()?);
    let ranges = input.ranges()?;
    if ranges
        .iter()
        .any(|range| range.start.first().is_none_or(|&first| first == 0))
    {
        return Err(Cut::Bad(bad("a range outside the keyspace")));
    }
    Ok(Header {
        group,
        index,
        ranges,
    })
}

/// A snapshot being received into a file. Dropped before `commit`, it leaves nothing behind.
pub struct Install {
    storage: GroupStorage,
    path: PathBuf,
    /// Rows that the group has here, beside those of the snapshot's ranges.
    owned: Vec<Range<Bytes>>,
    /// Made once the stream's header, and so what is to be wiped, is known.
    file: Option<FileWriter>,
    /// What came before that.
    held: BytesMut,
    decoder: Decoder,
}

impl Install {
    pub(super) fn begin(storage: GroupStorage, path: PathBuf, owned: &[Range<Bytes>]) -> Self {
        Self {
            storage,
            path,
            owned: owned.to_vec(),
            file: None,
            held: BytesMut::new(),
            decoder: Decoder::default(),
        }
    }

    /// Takes the next chunk of the stream.
    ///
    /// # Errors
    /// [`StorageError::BadSnapshot`]: the chunk is not what the source made; begin again.
    pub fn write_chunk(&mut self, chunk: &[u8]) -> Result<(), StorageError> {
        let (checksum, payload) = chunk
            .split_first_chunk::<4>()
            .ok_or_else(|| bad("a chunk without a checksum"))?;
        if crc32c::crc32c(payload) != u32::from_le_bytes(*checksum) {
            return Err(bad("a chunk's checksum does not match"));
        }
        if payload.is_empty() || payload.len() > CHUNK {
            return Err(bad(format!("a chunk of {} bytes", payload.len())));
        }
        self.decoder.push(payload, &mut |_, _| Ok(()))?;
        match (&mut self.file, &self.decoder.header) {
            (Some(file), _) => file.block(payload),
            (None, None) if self.held.len() > LARGEST_HEADER => Err(bad("its header is too long")),
            (None, None) => {
                self.held.put_slice(payload);
                Ok(())
            }
            (None, Some(header)) => {
                if header.group != self.storage.group() {
                    return Err(bad(format!("it is of group {}", header.group)));
                }
                let mut wipe = self.owned.clone();
                wipe.extend(header.ranges.iter().cloned());
                let file = self
                    .file
                    .insert(FileWriter::create(&self.path, header.group, &wipe)?);
                self.held.put_slice(payload);
                for block in self.held.split().chunks(CHUNK) {
                    file.block(block)?;
                }
                Ok(())
            }
        }
    }

    /// Replaces the group's rows by those received, durably before it returns. `state` is what
    /// [`Position::state`] is from now on.
    ///
    /// # Errors
    /// [`StorageError::BadSnapshot`]: the stream is not complete, or older than what the group has
    /// by now; the old state stands. Any other error is fatal for the group; the next open finishes the install or has the old state.
    pub fn commit(self, state: Bytes) -> Result<(), StorageError> {
        let position = Position {
            index: self.decoder.finished()?.index,
            state,
        };
        let file = self.file.ok_or_else(|| bad("it is empty"))?;
        self.storage.install(file, Some(&position))
    }
}

impl SnapshotSink for Install {
    fn write_chunk(&mut self, chunk: Bytes) -> Result<(), StateError> {
        Ok(Install::write_chunk(self, &chunk)?)
    }

    fn commit(self: Box<Self>, position: Bytes) -> Result<(), StateError> {
        Ok(Install::commit(*self, position)?)
    }
}

/// A snapshot file being written, under a temporary name until it is finished.
pub(super) struct FileWriter {
    file: Option<BufWriter<File>>,
    temporary: PathBuf,
    path: PathBuf,
}

impl FileWriter {
    /// Begins the file `path` for `group`; installing it deletes the rows in `wipe` first.
    pub(super) fn create(
        path: &Path,
        group: GroupId,
        wipe: &[Range<Bytes>],
    ) -> Result<Self, StorageError> {
        let begun = BEGUN.fetch_add(1, Ordering::Relaxed);
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{begun}.part"));
        let temporary = PathBuf::from(temporary);
        let file = File::create_new(&temporary).map_err(StorageError::io("create", &temporary))?;
        let mut writer = Self {
            file: Some(BufWriter::with_capacity(256 * 1024, file)),
            temporary,
            path: path.to_owned(),
        };
        let mut head = BytesMut::new();
        head.put_slice(FILE_MAGIC);
        head.put_u8(VERSION);
        head.put_u64_le(group.0);
        put_ranges(&mut head, wipe);
        writer.block(&head)?;
        Ok(writer)
    }

    /// Appends a block; of the stream, an empty one ends it.
    pub(super) fn block(&mut self, payload: &[u8]) -> Result<(), StorageError> {
        let file = self.file.as_mut().expect("taken only by finish and drop");
        let length = u32::try_from(payload.len()).expect("a block is far less than 4 GiB");
        file.write_all(&length.to_le_bytes())
            .and_then(|()| file.write_all(&crc32c::crc32c(payload).to_le_bytes()))
            .and_then(|()| file.write_all(payload))
            .map_err(StorageError::io("write", &self.temporary))
    }

    /// Appends what [`Export::next_chunk`] gave.
    pub(super) fn chunk(&mut self, chunk: &[u8]) -> Result<(), StorageError> {
        self.block(chunk.get(4..).unwrap_or_default())
    }

    /// Ends the file with `position`, syncs it and gives it its name. `None`: the group has no
    /// state after it.
    pub(super) fn finish(mut self, position: Option<&Position>) -> Result<PathBuf, StorageError> {
        self.block(&[])?;
        let mut tail = BytesMut::new();
        if let Some(position) = position {
            tail.put_u64_le(position.index);
            tail.put_slice(&position.state);
        }
        self.block(&tail)?;
        let file = self.file.take().expect("taken only here and by drop");
        let file = file
            .into_inner()
            .map_err(|error| StorageError::io("write", &self.temporary)(error.into_error()))?;
        files::publish(&file, &self.temporary, &self.path)?;
        Ok(self.path.clone())
    }
}

impl Drop for FileWriter {
    fn drop(&mut self) {
        if self.file.take().is_some()
            && let Err(error) = std::fs::remove_file(&self.temporary)
        {
            tracing::warn!(path = %self.temporary.display(), %error, "cannot remove an unfinished snapshot");
        }
    }
}

/// A finished snapshot file being read. Its checksums are verified on the way.
pub(super) struct FileReader {
    file: BufReader<File>,
    path: PathBuf,
    pub(super) group: GroupId,
    pub(super) wipe: Vec<Range<Bytes>>,
}

impl FileReader {
    pub(super) fn open(path: &Path) -> Result<Self, StorageError> {
        let file = File::open(path).map_err(StorageError::io("open", path))?;
        let mut reader = Self {
            file: BufReader::with_capacity(256 * 1024, file),
            path: path.to_owned(),
            group: GroupId(0),
            wipe: Vec::new(),
        };
        let head = reader.block()?;
        let mut input = Input {
            bytes: &head,
            at: 0,
        };
        let parsed = (|| {
            if input.take(4)? != FILE_MAGIC {
                return Err(Cut::Short);
            }
            let version = input.take(1)?[0];
            if version != VERSION {
                return Err(Cut::Bad(StorageError::Newer {
                    path: path.to_owned(),
                    found: version.into(),
                    supported: VERSION.into(),
                }));
            }
            Ok((GroupId(input.u64()?), input.ranges()?))
        })();
        match parsed {
            Ok((group, wipe)) => {
                reader.group = group;
                reader.wipe = wipe;
                Ok(reader)
            }
            Err(Cut::Short) => Err(reader.damaged("not a snapshot file")),
            Err(Cut::Bad(error)) => Err(error),
        }
    }

    fn damaged(&self, what: &str) -> StorageError {
        StorageError::Damaged {
            path: self.path.clone(),
            what: what.to_owned(),
        }
    }

    fn block(&mut self) -> Result<Vec<u8>, StorageError> {
        let mut number = [0; 4];
        let read = |file: &mut BufReader<File>, into: &mut [u8]| match file.read_exact(into) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(StorageError::io("read", &self.path)(error)),
        };
        let mut next = |file: &mut BufReader<File>| {
            Ok(read(file, &mut number)?.then(|| u32::from_le_bytes(number)))
        };
        let (Some(length), Some(checksum)) = (next(&mut self.file)?, next(&mut self.file)?) else {
            return Err(self.damaged("it is cut short"));
        };
        if length as usize > LARGEST_BLOCK {
            return Err(self.damaged("a block is too long"));
        }
        let mut payload = vec![0; length as usize];
        if !read(&mut self.file, &mut payload)? {
            return Err(self.damaged("it is cut short"));
        }
        if crc32c::crc32c(&payload) != checksum {
            return Err(self.damaged("checksum mismatch"));
        }
        Ok(payload)
    }

    /// Gives `apply` the rows in batches of about `batch_bytes`, and returns the position they
    /// belong to; `None` when the file says that the group has no state.
    pub(super) fn load(
        mut self,
        batch_bytes: usize,
        apply: &mut dyn FnMut(&[Write]) -> Result<(), StorageError>,
    ) -> Result<Option<Position>, StorageError> {
        let mut decoder = Decoder::default();
        let mut writes = Vec::new();
        let mut bytes = 0;
        loop {
            let payload = self.block()?;
            if payload.is_empty() {
                break;
            }
            let pushed = decoder.push(&payload, &mut |key, value| {
                bytes += key.len() + value.len();
                writes.push(Write {
                    key: Bytes::copy_from_slice(key),
                    value: Some(Bytes::copy_from_slice(value)),
                });
                if bytes >= batch_bytes {
                    apply(&writes)?;
                    writes.clear();
                    bytes = 0;
                }
                Ok(())
            });
            pushed.map_err(|error| match error {
                StorageError::BadSnapshot(what) => self.damaged(&what),
                other => other,
            })?;
        }
        if !writes.is_empty() {
            apply(&writes)?;
        }
        let tail = self.block()?;
        let Some((index, state)) = tail.split_first_chunk::<8>() else {
            return if tail.is_empty() && decoder.header.is_none() {
                Ok(None)
            } else {
                Err(self.damaged("no position"))
            };
        };
        if decoder.finished().is_err() {
            return Err(self.damaged("its stream is not complete"));
        }
        Ok(Some(Position {
            index: u64::from_le_bytes(*index),
            state: Bytes::copy_from_slice(state),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Batch, EngineKind, Store, StoreOptions};
    use super::*;

    fn open(dir: &Path, engine: EngineKind) -> GroupStorage {
        let options = StoreOptions {
            engine,
            ..StoreOptions::default()
        };
        let store = Store::open(dir, options).unwrap().store;
        store.group(GroupId(1)).unwrap()
    }

    fn position(index: u64) -> Position {
        Position {
            index,
            state: Bytes::from(index.to_string()),
        }
    }

    fn put(group: &GroupStorage, index: u64, keys: &[&'static str]) {
        let mut batch = Batch::default();
        for key in keys {
            batch.put(
                Bytes::from_static(key.as_bytes()),
                Bytes::from(index.to_string()),
            );
        }
        group.apply(batch, position(index)).unwrap();
    }

    fn stored(group: &GroupStorage) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let mut found = Vec::new();
        let mut row = |key: &[u8], value: &[u8]| {
            found.push((text(key), text(value)));
            true
        };
        group
            .scan(b"c"..b"d", ScanOrder::Ascending, &mut row)
            .unwrap();
        found
    }

    /// Rows worth several chunks, all of one value that names the position.
    fn fill(group: &GroupStorage, index: u64) -> Vec<(String, String)> {
        let mut batch = Batch::default();
        let value = Bytes::from(index.to_string().repeat(600_000));
        for number in 0..6 {
            batch.put(Bytes::from(format!("c{index}{number}")), value.clone());
        }
        group.apply(batch, position(index)).unwrap();
        stored(group)
    }

    fn chunks(group: &GroupStorage, ranges: &[Range<Bytes>]) -> Vec<Bytes> {
        let mut export = group.export(ranges).unwrap();
        std::iter::from_fn(|| export.next_chunk().unwrap()).collect()
    }

    /// An old leader's stream goes on, or is noticed to have ended, after the new leader's began.
    #[test]
    fn snapshots_received_side_by_side_do_not_touch_each_other() {
        let ranges = [Bytes::from_static(b"c")..Bytes::from_static(b"d")];
        let sent = |index| {
            let from = tempfile::tempdir().unwrap();
            let source = open(from.path(), EngineKind::Memory);
            let rows = fill(&source, index);
            (rows, chunks(&source, &ranges))
        };
        let ((old_rows, old), (new_rows, new)) = (sent(4), sent(9));
        assert!(old.len() > 3 && new.len() > 3);
        let state = || Bytes::from_static(b"9");

        for engine in [EngineKind::Fjall, EngineKind::Sled] {
            // The old one ends early, before the new one is whole.
            let dir = tempfile::tempdir().unwrap();
            let group = open(dir.path(), engine);
            let mut first = group.begin_install(&ranges).unwrap();
            old[..3].iter().for_each(|c| first.write_chunk(c).unwrap());
            let mut second = group.begin_install(&ranges).unwrap();
            new.iter().for_each(|c| second.write_chunk(c).unwrap());
            first.write_chunk(&old[3]).unwrap();
            drop(first);
            second.commit(state()).unwrap();
            assert!(stored(&group) == new_rows, "{engine}");
            assert_eq!(group.position(), Some(position(9)));

            // The old one comes to its end: before the new one it counts, after it no more.
            for late in [false, true] {
                let dir = tempfile::tempdir().unwrap();
                let group = open(dir.path(), engine);
                let mut first = group.begin_install(&ranges).unwrap();
                let mut second = group.begin_install(&ranges).unwrap();
                for (old, new) in old.iter().zip(&new) {
                    first.write_chunk(old).unwrap();
                    second.write_chunk(new).unwrap();
                }
                if late {
                    second.commit(state()).unwrap();
                    let refused = first.commit(Bytes::from_static(b"4"));
                    assert!(matches!(refused, Err(StorageError::BadSnapshot(_))));
                } else {
                    first.commit(Bytes::from_static(b"4")).unwrap();
                    assert!(stored(&group) == old_rows, "{engine}");
                    second.commit(state()).unwrap();
                }
                assert!(stored(&group) == new_rows, "{engine}");
                assert_eq!(group.position(), Some(position(9)));
                let left = std::fs::read_dir(dir.path().join("install")).unwrap();
                assert_eq!(left.count(), 0);
            }
        }
    }

    /// Their names are never used again, so nothing else would remove them.
    #[test]
    fn what_a_crash_left_unfinished_is_removed_at_open() {
        let dir = tempfile::tempdir().unwrap();
        let group = open(dir.path(), EngineKind::Sled);
        put(&group, 4, &["c1"]);
        group.flush(&[]).unwrap();
        for of in ["install", "durable"] {
            std::fs::create_dir_all(dir.path().join(of)).unwrap();
            let path = dir.path().join(of).join("1.snap");
            std::mem::forget(FileWriter::create(&path, GroupId(1), &[]).unwrap());
        }
        drop(group);

        let group = open(dir.path(), EngineKind::Sled);
        let names = |of| {
            let names = std::fs::read_dir(dir.path().join(of)).unwrap();
            names.map(|entry| entry.unwrap().file_name()).collect()
        };
        let (installs, durable): (Vec<_>, Vec<_>) = (names("install"), names("durable"));
        assert!(installs.is_empty(), "{installs:?}");
        assert_eq!(durable, ["1.snap"]);
        assert_eq!(group.position(), Some(position(4)));
    }

    /// The crash comes after the file has its name and before, or while, the engine takes it.
    #[test]
    fn an_install_that_a_crash_interrupted_is_finished_at_open_or_never_was() {
        for engine in [EngineKind::Fjall, EngineKind::Sled] {
            for named in [false, true] {
                let (from, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
                let source = open(from.path(), EngineKind::Memory);
                put(&source, 9, &["c1", "c2", "c3"]);
                let ranges = [Bytes::from_static(b"c")..Bytes::from_static(b"d")];

                let group = open(dir.path(), engine);
                put(&group, 4, &["c0", "c1"]);
                group.flush(&ranges).unwrap();
                let mut install = group.begin_install(&ranges).unwrap();
                let mut export = source.export(&ranges).unwrap();
                while let Some(chunk) = export.next_chunk().unwrap() {
                    install.write_chunk(&chunk).unwrap();
                }
                let file = install.file.take().unwrap();
                if named {
                    file.finish(Some(&position(9))).unwrap();
                    // Half wiped: also the position, which the watermark would miss.
                    let store = group.store();
                    store
                        .engine_for_tests()
                        .apply(&[Write {
                            key: Bytes::from_static(b"c0"),
                            value: None,
                        }])
                        .unwrap();
                    let private = private_range(GroupId(1));
                    super::super::batch::wipe(
                        store.engine_for_tests(),
                        &private.start,
                        &private.end,
                    )
                    .unwrap();
                } else {
                    // As a crash would: the unfinished file stays.
                    std::mem::forget(file);
                }
                drop(install);
                drop(group);

                let group = open(dir.path(), engine);
                let (index, keys): (u64, &[&str]) = match named {
                    true => (9, &["c1", "c2", "c3"]),
                    false => (4, &["c0", "c1"]),
                };
                assert_eq!(group.position(), Some(position(index)), "{engine}");
                let mut found = Vec::new();
                group
                    .scan(b"c"..b"d", ScanOrder::Ascending, &mut |key, value| {
                        assert_eq!(value, index.to_string().as_bytes());
                        found.push(String::from_utf8(key.to_vec()).unwrap());
                        true
                    })
                    .unwrap();
                assert_eq!(found, keys);
                let left = std::fs::read_dir(dir.path().join("install"))
                    .unwrap()
                    .count();
                assert_eq!(left, 0);
            }
        }
    }
}
