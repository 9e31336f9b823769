//! The log's promises, tested on real files; disks that fail are in `faults`.

mod crash;
mod faults;
mod limits;
mod suite;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft::{EntryPayload, Membership, RaftLogReader};

use super::*;
use crate::types::{Entry, LogId, Payload, Peer, TypeConfig, Vote};

const G1: GroupId = GroupId(1);
const G2: GroupId = GroupId(2);

/// As small as segments may be, so that a test sees many of them.
fn small() -> LogOptions {
    LogOptions {
        segment_bytes: MIN_SEGMENT,
        disk_bytes: 4 * MIN_SEGMENT,
        tail_bytes: 8 << 10,
        queue_bytes: 64 << 10,
    }
}

fn open(dir: &Path) -> Result<Arc<SharedLog>, LogOpenError> {
    SharedLog::open(dir, small(), LogMetrics::default())
}

fn log_id(term: u64, index: u64) -> LogId {
    record::log_id(term, index)
}

fn entry(term: u64, index: u64, payload: impl Into<Bytes>) -> Entry {
    Entry {
        log_id: log_id(term, index),
        payload: EntryPayload::Normal(Payload(payload.into())),
    }
}

/// Entries of every kind, their content a function of their place.
fn entries(term: u64, indexes: std::ops::Range<u64>, size: usize) -> Vec<Entry> {
    indexes
        .map(|index| match index % 11 {
            3 => Entry {
                log_id: log_id(term, index),
                payload: EntryPayload::Blank,
            },
            7 => {
                let nodes: BTreeMap<u64, Peer> = (1..4 + index % 3)
                    .map(|node| {
                        let address = format!("node-{node}:{index}");
                        (node, Peer { address })
                    })
                    .collect();
                let voters = nodes.keys().copied().take(3).collect();
                Entry {
                    log_id: log_id(term, index),
                    payload: EntryPayload::Membership(
                        Membership::new(vec![voters], nodes).unwrap(),
                    ),
                }
            }
            _ => entry(term, index, vec![(term + index) as u8; size]),
        })
        .collect()
}

/// Appends, and waits until that is durable.
async fn append(log: &mut GroupLog, entries: Vec<Entry>) -> io::Result<()> {
    let (done, durable) = TypeConfig::oneshot();
    log.append(entries, IOFlushed::signal(done)).await?;
    durable.await.unwrap()
}

/// Appends, and does not wait.
async fn append_later(log: &mut GroupLog, entries: Vec<Entry>) {
    log.append(entries, IOFlushed::noop()).await.unwrap();
}

/// What can be seen of a group.
#[derive(Clone, Debug, Default, PartialEq)]
struct Seen {
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: Vec<Entry>,
}

type Model = BTreeMap<GroupId, Seen>;

async fn look(log: &SharedLog) -> Model {
    let mut model = Model::new();
    for id in log.groups() {
        let mut group = log.group(id);
        let state = group.get_log_state().await.unwrap();
        let seen = Seen {
            vote: group.read_vote().await.unwrap(),
            purged: state.last_purged_log_id,
            entries: group.try_get_log_entries(..).await.unwrap(),
        };
        let last = seen.entries.last().map(|entry| entry.log_id);
        assert_eq!(state.last_log_id, last.or(seen.purged));
        if seen != Seen::default() {
            model.insert(id, seen);
        }
    }
    model
}

/// The files of `dir`, also of a log that is open: its housekeeper renames a segment once it is
/// prepared, and what vanished under the copy's hands is looked up again.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    for _ in 0..100 {
        match copy_of(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            copied => return copied.unwrap(),
        }
    }
    panic!(
        "the files of {} change faster than they can be copied",
        dir.display()
    )
}

fn copy_of(dir: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    fs::read_dir(dir)?
        .map(|entry| {
            let path = entry?.path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            Ok((name, fs::read(path)?))
        })
        .collect()
}

/// A directory with `files` in it.
fn restore(files: &BTreeMap<String, Vec<u8>>) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn segment_name(number: u64) -> String {
    format!("{number:016x}.log")
}

#[tokio::test]
async fn a_fresh_log_is_empty_and_has_no_groups() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(&dir.path().join("a/b")).unwrap();
    assert_eq!(log.groups(), Vec::new());
    let state = log.group(G1).get_log_state().await.unwrap();
    assert_eq!(state, openraft::storage::LogState::default());
    log.close().await.unwrap();
}

#[tokio::test]
async fn entries_votes_and_marks_are_there_after_a_reopen() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path()).unwrap();
    let mut group = log.group(G1);
    group.save_vote(&Vote::new_committed(3, 7)).await.unwrap();
    append(&mut group, entries(2, 0..20, 100)).await.unwrap();
    group.truncate_after(Some(log_id(2, 14))).await.unwrap();
    append_later(&mut group, entries(3, 15..30, 50)).await;
    group.purge(log_id(2, 4)).await.unwrap();
    group.save_committed(Some(log_id(3, 20))).await.unwrap();
    append(&mut group, entries(3, 30..31, 10)).await.unwrap();
    append(&mut log.group(G2), entries(9, 5..6, 10))
        .await
        .unwrap();
    let before = look(&log).await;
    log.close().await.unwrap();

    let log = open(dir.path()).unwrap();
    assert_eq!(look(&log).await, before);
    let mut group = log.group(G1);
    assert_eq!(
        group.read_committed().await.unwrap(),
        Some(log_id(3, 20)),
        "what was said to be committed travels with the next append"
    );
    let keys = group
        .get_key_log_ids(log_id(2, 5)..=log_id(3, 30))
        .await
        .unwrap();
    assert_eq!(keys, [log_id(2, 14), log_id(3, 30)]);
    log.close().await.unwrap();
}

#[tokio::test]
async fn a_vote_is_durable_when_save_vote_returns() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path()).unwrap();
    let vote = Vote::new(4, 2);
    log.group(G1).save_vote(&vote).await.unwrap();
    let copy = restore(&files(dir.path()));
    drop(log);
    let log = open(copy.path()).unwrap();
    assert_eq!(log.group(G1).read_vote().await.unwrap(), Some(vote));
}

#[tokio::test]
async fn an_append_that_leaves_a_hole_or_overlaps_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path()).unwrap();
    let mut group = log.group(G1);
    append(&mut group, entries(1, 0..3, 10)).await.unwrap();
    for wrong in [2..4, 4..5] {
        let error = append(&mut group, entries(1, wrong, 10)).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
    append(&mut group, entries(1, 3..5, 10)).await.unwrap();
    assert_eq!(
        group.try_get_log_entries(..).await.unwrap(),
        entries(1, 0..5, 10)
    );
}

#[tokio::test]
async fn a_removed_group_is_gone_and_may_come_back_empty() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path()).unwrap();
    let mut group = log.group(G1);
    append(&mut group, entries(1, 0..50, 100)).await.unwrap();
    append(&mut log.group(G2), entries(1, 0..5, 100))
        .await
        .unwrap();
    log.remove_group(G1).await.unwrap();
    assert_eq!(log.groups(), [G2]);
    let refused = group.save_vote(&Vote::new(1, 1)).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::NotFound);
    append(&mut log.group(G1), entries(7, 3..5, 10))
        .await
        .unwrap();
    log.close().await.unwrap();

    let log = open(dir.path()).unwrap();
    let seen = look(&log).await;
    assert_eq!(seen[&G1].entries, entries(7, 3..5, 10));
    assert_eq!(seen[&G2].entries, entries(1, 0..5, 100));
}

#[tokio::test]
async fn a_second_open_of_the_directory_is_refused_until_the_first_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path()).unwrap();
    assert!(matches!(open(dir.path()), Err(LogOpenError::InUse { .. })));
    log.close().await.unwrap();
    open(dir.path()).unwrap();
}

#[tokio::test]
async fn calls_after_close_fail() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path()).unwrap();
    let mut group = log.group(G1);
    log.close().await.unwrap();
    assert!(append(&mut group, entries(1, 0..1, 1)).await.is_err());
    assert!(group.save_vote(&Vote::new(1, 1)).await.is_err());
    assert!(log.failed().borrow().is_none(), "closing is no failure");
}
