//! Flipped and missing bytes in any file of a store: it is refused with a clear error, cut back to
//! no less than what was flushed, or rebuilt. Never a panic, never rows that were not written, and
//! never a hole.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::path::{Path, PathBuf};

use bytes::Bytes;
use leadline_kv::ScanOrder;
use leadline_kv::storage::{
    Batch, EngineKind, FjallOptions, Position, StorageError, Store, StoreOptions,
};
use leadline_raft::GroupId;

const BATCHES: u64 = 160;
const FLUSHED: u64 = 150;

fn options(engine: EngineKind) -> StoreOptions {
    StoreOptions {
        engine,
        cache_bytes: 0,
        fjall: FjallOptions {
            memtable_bytes: 16 * 1024,
            ..FjallOptions::default()
        },
        ..StoreOptions::default()
    }
}

fn value(index: u64) -> Bytes {
    // Not to be compressed away: flips must be able to hit it.
    let mut value = Vec::with_capacity(400);
    let mut word = index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    while value.len() < 400 {
        word = word.rotate_left(7).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        value.extend_from_slice(&word.to_le_bytes());
    }
    Bytes::from(value)
}

fn row(index: u64) -> Bytes {
    Bytes::from(format!("row/{index:06}"))
}

fn owned() -> [std::ops::Range<Bytes>; 1] {
    [Bytes::from_static(b"a")..Bytes::from_static(b"z")]
}

fn build(dir: &Path, engine: EngineKind) {
    let store = Store::open(dir, options(engine)).unwrap().store;
    let group = store.group(GroupId(1)).unwrap();
    for index in 1..=BATCHES {
        let mut batch = Batch::default();
        batch.put(row(index), value(index));
        batch.put(Bytes::from_static(b"last"), value(index));
        let state = row(index);
        group.apply(batch, Position { index, state }).unwrap();
        if index == FLUSHED {
            group.flush(&owned()).unwrap();
        }
    }
    drop((group, store));
    // fjall's journal is preallocated; opened once more it has the length of what is in it.
    drop(Store::open(dir, options(engine)).unwrap());
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
    found.sort();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}

/// Opens the store and reads everything; says how it ended.
fn look(dir: &Path, engine: EngineKind) -> Result<u64, StorageError> {
    let store = Store::open(dir, options(engine))?.store;
    let group = store.group(GroupId(1))?;
    let index = group.position().map_or(0, |position| position.index);
    let mut found = Vec::new();
    let [range] = owned();
    group.scan(
        &range.start..&range.end,
        ScanOrder::Ascending,
        &mut |key, value| {
            found.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            true
        },
    )?;
    let mut expected = vec![(Bytes::from_static(b"last"), value(index))];
    expected.extend((1..=index).map(|index| (row(index), value(index))));
    for (key, value) in &expected {
        assert_eq!(group.get(key)?.as_ref(), Some(value), "{key:?} at {index}");
    }
    assert!(
        found == expected,
        "rows at {index} are not those that were applied"
    );
    Ok(index)
}

fn every_damage(engine: EngineKind) {
    let original = tempfile::tempdir().unwrap();
    build(original.path(), engine);
    assert_eq!(look(original.path(), engine).unwrap(), BATCHES);
    let mut paths = Vec::new();
    files(original.path(), &mut paths);
    assert!(paths.len() > 4, "{paths:?}");
    let (mut refused, mut survived) = (0, 0);
    for path in &paths {
        let name = path.strip_prefix(original.path()).unwrap();
        let whole = std::fs::read(path).unwrap();
        let mut damages: Vec<(String, Vec<u8>)> = Vec::new();
        for part in 0..6 {
            let at = (whole.len() * part / 6 + part * 7).min(whole.len().saturating_sub(1));
            if let Some(byte) = whole.get(at) {
                let mut flipped = whole.clone();
                flipped[at] = byte ^ 0x55;
                damages.push((format!("{} flipped at {at}", name.display()), flipped));
            }
            if at < whole.len() {
                let cut = whole[..at].to_vec();
                damages.push((format!("{} cut to {at}", name.display()), cut));
            }
        }
        for (what, bytes) in damages {
            let trial = tempfile::tempdir().unwrap();
            copy(original.path(), trial.path());
            std::fs::write(trial.path().join(name), bytes).unwrap();
            match look(trial.path(), engine) {
                Ok(index) => {
                    assert!(
                        index >= FLUSHED,
                        "{what}: lost flushed batches after {index}"
                    );
                    survived += 1;
                }
                Err(error) => {
                    let text = error.to_string();
                    assert!(!text.contains('\n'), "{what}: {text}");
                    let named = trial.path().to_str().unwrap();
                    assert!(text.contains(named) || error.is_damage(), "{what}: {text}");
                    refused += 1;
                }
            }
        }
    }
    println!("{engine}: {refused} damages refused, {survived} survived without loss");
    assert!(refused + survived > 40);
}

#[test]
fn fjall_with_damaged_files_is_refused_or_whole() {
    every_damage(EngineKind::Fjall);
}

#[test]
fn sled_with_damaged_files_is_rebuilt_refused_or_whole() {
    every_damage(EngineKind::Sled);
}
