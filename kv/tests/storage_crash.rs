//! kill -9 at any moment: an engine comes back with a prefix of what was applied, never less than
//! what was flushed, and an install with the old state or the new one.
//!
//! The writer is this test binary itself, run again with a directory in the environment.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use leadline_kv::ScanOrder;
use leadline_kv::storage::{Batch, EngineKind, FjallOptions, Position, Store, StoreOptions};
use leadline_raft::GroupId;

const DIR: &str = "LEADLINE_TEST_STORAGE_DIR";
const ENGINE: &str = "LEADLINE_TEST_STORAGE_ENGINE";
const GROUPS: u64 = 2;

fn open(dir: &Path, engine: EngineKind) -> Arc<Store> {
    let options = StoreOptions {
        engine,
        fjall: FjallOptions {
            memtable_bytes: 32 * 1024,
            ..FjallOptions::default()
        },
        ..StoreOptions::default()
    };
    Store::open(dir, options).unwrap().store
}

fn key(group: u64, name: &str) -> Bytes {
    Bytes::from(format!("g{group}/{name}"))
}

fn number(index: u64) -> Bytes {
    Bytes::from(format!("{index:0200}"))
}

fn position(index: u64) -> Position {
    Position {
        index,
        state: number(index),
    }
}

fn owned(group: u64) -> [std::ops::Range<Bytes>; 1] {
    [key(group, "")..Bytes::from(format!("g{group}0"))]
}

/// Each batch writes the same number to two rows and one new row, and deletes an old one.
fn batch(group: u64, index: u64) -> Batch {
    let mut batch = Batch::default();
    batch.put(key(group, "a"), number(index));
    batch.put(key(group, &format!("row/{index:08}")), number(index));
    batch.put(key(group, "z"), number(index));
    if index > 100 {
        batch.delete(key(group, &format!("row/{:08}", index - 100)));
    }
    batch
}

/// Not a test of its own: the process that is killed.
#[test]
fn writer_that_is_killed() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    let engine = std::env::var(ENGINE).unwrap().parse().unwrap();
    let store = open(Path::new(&dir), engine);
    let groups: Vec<_> = (0..GROUPS)
        .map(|group| store.group(GroupId(group)).unwrap())
        .collect();
    loop {
        for (number, group) in (0..).zip(&groups) {
            let index = group.position().map_or(0, |position| position.index) + 1;
            group.apply(batch(number, index), position(index)).unwrap();
            if index % 64 == number {
                let flushed = group.flush(&owned(number)).unwrap().unwrap();
                println!("\nflushed {number} {}", flushed.index);
            }
            // Every now and then the group becomes a snapshot of itself.
            if index % 192 == 0 {
                let mut export = group.export(&owned(number)).unwrap();
                let mut install = group.begin_install(&owned(number)).unwrap();
                while let Some(chunk) = export.next_chunk().unwrap() {
                    install.write_chunk(&chunk).unwrap();
                }
                install.commit(export.position().state.clone()).unwrap();
                println!("\nflushed {number} {index}");
            }
        }
    }
}

/// Runs the writer until it has flushed `flushes` times, and kills it. Returns what it had flushed.
fn run_and_kill(dir: &Path, engine: EngineKind, flushes: usize, linger: u64) -> [u64; 2] {
    let mut writer = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writer_that_is_killed", "--nocapture"])
        .env(DIR, dir)
        .env(ENGINE, engine.name())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut flushed = [0; 2];
    let mut seen = 0;
    let lines = BufReader::new(writer.stdout.take().unwrap()).lines();
    let mut killed = false;
    for line in lines {
        // What was printed before the kill is read to the end.
        let Ok(line) = line else { break };
        let Some(rest) = line.strip_prefix("flushed ") else {
            continue;
        };
        if let Some((group, index)) = rest.split_once(' ') {
            flushed[group.parse::<usize>().unwrap()] = index.parse().unwrap();
        }
        seen += 1;
        if seen >= flushes && !killed {
            // A different moment in each round.
            std::thread::sleep(std::time::Duration::from_micros(linger));
            writer.kill().unwrap();
            killed = true;
        }
    }
    writer.wait().unwrap();
    assert!(killed, "the writer ended by itself");
    flushed
}

fn check(store: &Arc<Store>, group: u64, flushed: u64) -> u64 {
    let storage = store.group(GroupId(group)).unwrap();
    let index = storage.position().map_or(0, |position| position.index);
    assert!(
        index >= flushed,
        "group {group} is at {index}, {flushed} was flushed"
    );
    assert_eq!(storage.position(), Some(position(index)));
    let mut found = Vec::new();
    let [range] = owned(group);
    storage
        .scan(
            &range.start..&range.end,
            ScanOrder::Ascending,
            &mut |key, value| {
                found.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
                true
            },
        )
        .unwrap();
    let mut expected = vec![(key(group, "a"), number(index))];
    for row in index.saturating_sub(99).max(1)..=index {
        expected.push((key(group, &format!("row/{row:08}")), number(row)));
    }
    expected.push((key(group, "z"), number(index)));
    assert!(
        found == expected,
        "group {group} at {index} is not a prefix"
    );
    index
}

fn rounds(engine: EngineKind) {
    let dir = tempfile::tempdir().unwrap();
    let mut reached = [0; 2];
    for round in 0..6 {
        let flushed = run_and_kill(dir.path(), engine, 4 + round, 700 * round as u64);
        let store = open(dir.path(), engine);
        for group in 0..GROUPS {
            let index = check(
                &store,
                group,
                flushed[group as usize].max(reached[group as usize]),
            );
            let storage = store.group(GroupId(group)).unwrap();
            reached[group as usize] = storage
                .flush(&owned(group))
                .unwrap()
                .map_or(0, |position| position.index);
            assert_eq!(reached[group as usize], index);
        }
    }
}

#[test]
fn fjall_killed_at_any_moment_comes_back_with_a_prefix_and_all_that_was_flushed() {
    rounds(EngineKind::Fjall);
}

#[test]
fn sled_killed_at_any_moment_comes_back_with_a_prefix_and_all_that_was_flushed() {
    rounds(EngineKind::Sled);
}
