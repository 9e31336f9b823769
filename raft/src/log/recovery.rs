//! Opening a log: replays the segments and decides between a torn tail, which is cut back, and
//! damage, which is refused.
//!
//! # Rules
//! 1. What follows the last whole record of the last segment was never acknowledged, unless the
//!    watermark says otherwise, or a later synced write is behind it. Then it is damage.
//! 2. Any other segment ends exactly where its successor's head says.
//! 3. Segments follow each other without a gap, from the oldest the watermark names.
//! 4. Every checkpoint says what the replay says, and in the end no entry is missing.
//! 5. A damaged log is left as it was found.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::GroupId;

use super::files::{Files, LogFile, remove, sync_dir, zero};
use super::flusher::Resume;
use super::group::{Group, Location, OnDisk, State, View};
use super::record::{self, BATCH_START, BadHeader, Checkpoint, DATA_START, FORMAT, Kind, Raw};
use super::record::{Seed, SegmentHeader, Start};
use super::segments::{Segment, Segments};
use super::watermark::{Mark, Watermark};
use super::{LogOpenError, LogOptions};

pub(super) struct Recovered {
    pub(super) segments: Segments,
    pub(super) watermark: Watermark,
    pub(super) resume: Resume,
}

/// Replays the log in `dir`, or creates it. The caller holds the directory's lock.
pub(super) fn open(
    dir: &Path,
    options: &LogOptions,
    files: &Arc<dyn Files>,
) -> Result<Recovered, LogOpenError> {
    let listed = list(dir)?;
    let watermark = Watermark::open(dir, &**files)?;
    let mut watermark = match (watermark, listed.first()) {
        (Some(watermark), _) => watermark,
        (None, None) => {
            let mark = Mark {
                log: rand::random(),
                oldest: 1,
                segment: 0,
                offset: 0,
                records: 0,
            };
            Watermark::create(dir, &**files, mark).map_err(at(&Watermark::path(dir)))?
        }
        (None, Some(_)) => {
            return Err(LogOpenError::Missing {
                path: Watermark::path(dir),
                what: "there are segments, but not the record of how far they are durable",
            });
        }
    };
    let mark = watermark.mark();
    let mut replay = Replay::new(mark);
    let mut found = Vec::new();
    for (number, path) in listed.iter().filter(|(number, _)| *number >= mark.oldest) {
        let expected = mark.oldest + found.len() as u64;
        if *number != expected {
            return Err(missing_segment(dir, expected));
        }
        let bytes = fs::read(path).map_err(at(path))?;
        found.push((path.clone(), replay.segment(path, *number, &bytes)?));
    }
    if found.is_empty() && mark.segment != 0 {
        return Err(missing_segment(dir, mark.oldest));
    }
    replay.check_end(dir)?;

    // From here on files change.
    for (number, path) in &listed {
        if *number < mark.oldest {
            remove(path).map_err(at(path))?;
        }
    }
    let segments = Segments::new(dir, Arc::clone(files), mark.log, options.segment_bytes);
    let mut active = None;
    for (number, (path, size)) in (mark.oldest..).zip(found) {
        if number > replay.end.segment {
            // Made ahead, or begun by a write that was never synced.
            remove(&path).map_err(at(&path))?;
            continue;
        }
        let segment = Arc::new(Segment {
            number,
            size,
            seed: Seed::new(mark.log, number),
            file: files.open(&path).map_err(at(&path))?,
            path,
        });
        segments.add(Arc::clone(&segment));
        active = Some(segment);
    }
    sync_dir(dir).map_err(at(dir))?;
    let active = match active {
        Some(active) => {
            // Whatever a torn write left behind the end must never be taken for a record.
            settle(&*active.file, replay.end.offset, active.size).map_err(at(&active.path))?;
            active
        }
        None => {
            let first = segments.create(mark.oldest).map_err(at(dir))?;
            replay.end = begin(&first).map_err(at(&first.path))?;
            segments.add(Arc::clone(&first));
            first
        }
    };
    // What was found is durable now, also what no one was told of.
    watermark
        .write(|mark| {
            mark.segment = replay.end.segment;
            mark.offset = replay.end.offset;
            mark.records = replay.end.records;
        })
        .and_then(|()| watermark.sync())
        .map_err(at(&Watermark::path(dir)))?;
    Ok(Recovered {
        segments,
        watermark,
        resume: Resume {
            active,
            offset: replay.end.offset,
            records: replay.end.records,
            groups: replay.into_groups(),
        },
    })
}

/// Zeroes what is behind `end`, and makes all of the file durable.
fn settle(file: &dyn LogFile, end: u64, size: u64) -> io::Result<()> {
    let mut rest = vec![0; (size - end) as usize];
    file.read_at(&mut rest, end)?;
    if let Some(last) = rest.iter().rposition(|byte| *byte != 0) {
        zero(file, end, end + last as u64 + 1)?;
    }
    file.sync()
}

/// Writes the head of a log's first segment.
fn begin(segment: &Segment) -> io::Result<End> {
    let start = Start {
        previous_end: 0,
        records: 0,
        groups: 0,
    };
    let mut head = Vec::new();
    record::put(
        &mut head,
        segment.seed,
        DATA_START,
        (Kind::Start, BATCH_START),
        GroupId::META,
        &start.encode(),
        &[],
    );
    segment.file.write_at(&head, DATA_START)?;
    segment.file.sync()?;
    Ok(End {
        segment: segment.number,
        offset: DATA_START + head.len() as u64,
        records: 1,
    })
}

/// The segment files of `dir`, by number. Removes what was only half made.
fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>, LogOpenError> {
    let mut segments = Vec::new();
    for entry in fs::read_dir(dir).map_err(at(dir))? {
        let path = entry.map_err(at(dir))?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("tmp") => remove(&path).map_err(at(&path))?,
            Some("log") => {
                let number = path
                    .file_stem()
                    .and_then(|stem| u64::from_str_radix(stem.to_str()?, 16).ok());
                segments.extend(number.map(|number| (number, path)));
            }
            _ => {}
        }
    }
    segments.sort();
    Ok(segments)
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> LogOpenError {
    let path = path.to_path_buf();
    |source| LogOpenError::Io { path, source }
}

fn missing_segment(dir: &Path, number: u64) -> LogOpenError {
    LogOpenError::Missing {
        path: Segments::path(dir, number),
        what: "a segment of the log is missing",
    }
}

/// Where the last whole record ends.
#[derive(Clone, Copy, Debug, Default)]
struct End {
    segment: u64,
    offset: u64,
    records: u64,
}

#[derive(Default)]
struct GroupReplay {
    disk: OnDisk,
    /// The term of each entry.
    terms: VecDeque<u64>,
}

struct Replay {
    mark: Mark,
    groups: BTreeMap<GroupId, GroupReplay>,
    end: End,
    /// A segment without a whole head was seen: only more of these may follow.
    ended: bool,
}

impl Replay {
    fn new(mark: Mark) -> Self {
        Self {
            mark,
            groups: BTreeMap::new(),
            end: End::default(),
            ended: false,
        }
    }

    /// Replays one segment and returns its size.
    fn segment(&mut self, path: &Path, number: u64, bytes: &[u8]) -> Result<u64, LogOpenError> {
        let corrupt = |offset: u64, what| LogOpenError::Corrupt {
            path: path.to_path_buf(),
            offset,
            what,
        };
        let header = SegmentHeader::decode(bytes).map_err(|bad| match bad {
            BadHeader::Damaged => corrupt(0, "the segment's header"),
            BadHeader::Newer(found) => LogOpenError::NewerFormat {
                path: path.to_path_buf(),
                found,
                supported: FORMAT,
            },
        })?;
        if header.log != self.mark.log {
            return Err(corrupt(0, "the segment belongs to another log"));
        }
        if header.segment != number {
            return Err(corrupt(0, "the segment has another number than its name"));
        }
        if header.size != bytes.len() as u64 {
            return Err(corrupt(bytes.len() as u64, "the segment is cut short"));
        }
        let seed = Seed::new(header.log, number);
        let Some(head) = head(bytes, seed) else {
            // No write to this segment was synced, or else there is one behind the first.
            if let Some(later) = record::find_batch_start(bytes, seed, DATA_START + 8) {
                return Err(corrupt(later, "the segment's head is damaged before this"));
            }
            self.ended = true;
            return Ok(header.size);
        };
        if self.ended {
            return Err(corrupt(0, "the segment before this one has no head"));
        }
        if self.end.segment == 0 {
            self.begin(head.start, head.checkpoints);
        } else {
            self.check_head(head.start, &head.checkpoints)
                .map_err(|what| self.corrupt_before(path, what))?;
        }
        self.end.records += 1 + head.start.groups;
        let mut offset = head.end;
        while let Some(record) = record::get(&bytes[offset as usize..], seed, offset) {
            let location = Location {
                segment: number as u32,
                offset: offset as u32,
                length: record.stride() as u32,
            };
            self.record(record, location)
                .map_err(|what| corrupt(offset, what))?;
            offset += record.stride() as u64;
            self.end.records += 1;
        }
        self.end.segment = number;
        self.end.offset = offset;
        if record::find_batch_start(bytes, seed, offset + 8).is_some() {
            return Err(corrupt(
                offset,
                "a record is damaged, and whole ones are behind it",
            ));
        }
        Ok(header.size)
    }

    /// Takes over what the oldest segment's head says.
    fn begin(&mut self, start: Start, checkpoints: Vec<(GroupId, Checkpoint)>) {
        self.end.records = start.records;
        for (group, checkpoint) in checkpoints {
            let terms = (0..checkpoint.count).map(|_| 0).collect();
            let disk = OnDisk::restore(checkpoint);
            self.groups.insert(group, GroupReplay { disk, terms });
        }
    }

    /// Compares a segment's head with what was replayed before it.
    fn check_head(
        &self,
        start: Start,
        checkpoints: &[(GroupId, Checkpoint)],
    ) -> Result<(), &'static str> {
        if start.previous_end != self.end.offset {
            return Err("a record is damaged: the segment goes on behind it");
        }
        let same = start.records == self.end.records
            && checkpoints.len() == self.groups.len()
            && checkpoints.iter().all(|(group, checkpoint)| {
                self.groups
                    .get(group)
                    .is_some_and(|replayed| replayed.disk.checkpoint() == *checkpoint)
            });
        if !same {
            return Err("the next segment's head does not say what the records before it say");
        }
        Ok(())
    }

    fn corrupt_before(&self, path: &Path, what: &'static str) -> LogOpenError {
        let dir = path.parent().unwrap_or(path);
        LogOpenError::Corrupt {
            path: Segments::path(dir, self.end.segment),
            offset: self.end.offset,
            what,
        }
    }

    fn record(&mut self, record: Raw<'_>, location: Location) -> Result<(), &'static str> {
        const UNREADABLE: &str = "a record's body is not what its kind says";
        if record.kind == Kind::Remove {
            self.groups.remove(&record.group);
            return Ok(());
        }
        let group = self.groups.entry(record.group).or_default();
        match record.kind {
            Kind::Entry => {
                let log_id = record::decode_entry_id(record.body).ok_or(UNREADABLE)?;
                if !group.disk.continues_at(log_id.index) {
                    return Err("an entry does not continue its group's log");
                }
                group.disk.push(log_id, location);
                group.terms.push_back(log_id.leader_id.term);
            }
            Kind::Rewrite => {
                let log_id = record::decode_entry_id(record.body).ok_or(UNREADABLE)?;
                let indexes = group.disk.indexes();
                if !indexes.contains(&log_id.index) {
                    return Err("an entry carried forward is not in its group's log");
                }
                group.disk.relocate(log_id.index, location);
                group.terms[(log_id.index - indexes.start) as usize] = log_id.leader_id.term;
            }
            Kind::Vote => {
                group.disk.vote = Some(record::decode_vote(record.body).ok_or(UNREADABLE)?);
            }
            Kind::Committed => {
                group.disk.committed = record::decode_log_id(record.body).ok_or(UNREADABLE)?;
            }
            Kind::Truncate => {
                let after = record::decode_log_id(record.body).ok_or(UNREADABLE)?;
                group.disk.truncate(after.as_ref());
                let kept = group.disk.indexes();
                group.terms.truncate((kept.end - kept.start) as usize);
            }
            Kind::Purge => {
                let upto = record::decode_log_id(record.body)
                    .flatten()
                    .ok_or(UNREADABLE)?;
                group.disk.purge(upto);
                let kept = group.disk.indexes();
                let gone = group.terms.len() - (kept.end - kept.start) as usize;
                group.terms.drain(..gone);
            }
            Kind::Start | Kind::Checkpoint | Kind::Remove => {
                return Err("a segment's head in the middle of it");
            }
        }
        Ok(())
    }

    /// Compares what was found with what was acknowledged.
    fn check_end(&self, dir: &Path) -> Result<(), LogOpenError> {
        let (mark, end) = (self.mark, self.end);
        if (end.segment, end.offset) < (mark.segment, mark.offset) || end.records < mark.records {
            let ended_in = end.segment.max(mark.oldest);
            return Err(LogOpenError::AcknowledgedMissing {
                path: Segments::path(dir, ended_in),
                offset: end.offset,
                records: mark.records.saturating_sub(end.records),
            });
        }
        for (group, replayed) in &self.groups {
            if let Some(index) = replayed.disk.missing() {
                return Err(LogOpenError::EntryMissing {
                    dir: dir.to_path_buf(),
                    group: *group,
                    index,
                });
            }
        }
        Ok(())
    }

    fn into_groups(self) -> BTreeMap<GroupId, Arc<Group>> {
        let mut groups = BTreeMap::new();
        for (id, GroupReplay { disk, terms }) in self.groups {
            let mut runs: VecDeque<(u64, u64)> = VecDeque::new();
            for (index, term) in disk.indexes().zip(terms) {
                if runs.back().is_none_or(|(_, last)| *last != term) {
                    runs.push_back((index, term));
                }
            }
            let group = Group::new(id);
            *group.state.lock() = State {
                view: View::recovered(&disk, runs),
                disk,
            };
            groups.insert(id, Arc::new(group));
        }
        groups
    }
}

/// The head of a segment: its start, and a checkpoint of every group.
struct Head {
    start: Start,
    checkpoints: Vec<(GroupId, Checkpoint)>,
    /// Where the records behind it begin.
    end: u64,
}

/// The head of a segment, if all of it is there.
fn head(bytes: &[u8], seed: Seed) -> Option<Head> {
    let mut end = DATA_START;
    let first = record::get(bytes.get(end as usize..)?, seed, end)?;
    if first.kind != Kind::Start {
        return None;
    }
    let start = Start::decode(first.body)?;
    end += first.stride() as u64;
    let mut checkpoints = Vec::new();
    for _ in 0..start.groups {
        let record = record::get(bytes.get(end as usize..)?, seed, end)?;
        if record.kind != Kind::Checkpoint {
            return None;
        }
        checkpoints.push((record.group, Checkpoint::decode(record.body)?));
        end += record.stride() as u64;
    }
    Some(Head {
        start,
        checkpoints,
        end,
    })
}
