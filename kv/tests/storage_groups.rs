//! What a node's store promises of its groups, on every engine.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use leadline_kv::ScanOrder;
use leadline_kv::storage::{
    Batch, EngineKind, FjallOptions, GroupStorage, Install, Position, Store, StoreOptions,
};
use leadline_raft::GroupId;

const DURABLE: [EngineKind; 2] = [EngineKind::Fjall, EngineKind::Sled];
const EVERY: [EngineKind; 3] = [EngineKind::Fjall, EngineKind::Sled, EngineKind::Memory];

fn options(engine: EngineKind) -> StoreOptions {
    StoreOptions {
        engine,
        cache_bytes: 1 << 20,
        fjall: FjallOptions {
            memtable_bytes: 64 * 1024,
            ..FjallOptions::default()
        },
        ..StoreOptions::default()
    }
}

fn open(dir: &Path, engine: EngineKind) -> Arc<Store> {
    let opened = Store::open(dir, options(engine)).unwrap();
    assert_eq!(opened.rebuilt, None);
    opened.store
}

fn bytes(text: impl AsRef<str>) -> Bytes {
    Bytes::copy_from_slice(text.as_ref().as_bytes())
}

fn range(start: &str, end: &str) -> Range<Bytes> {
    bytes(start)..bytes(end)
}

fn at(index: u64) -> Position {
    Position {
        index,
        state: bytes(format!("state {index}")),
    }
}

fn put(group: &GroupStorage, index: u64, rows: &[(&str, &str)]) {
    let mut batch = Batch::default();
    for (key, value) in rows {
        batch.put(bytes(key), bytes(value));
    }
    group.apply(batch, at(index)).unwrap();
}

fn keys(group: &GroupStorage, start: &str, end: &str) -> Vec<String> {
    let mut found = Vec::new();
    group
        .scan(
            start.as_bytes()..end.as_bytes(),
            ScanOrder::Ascending,
            &mut |key, _| {
                found.push(String::from_utf8(key.to_vec()).unwrap());
                true
            },
        )
        .unwrap();
    found
}

fn send(from: &GroupStorage, ranges: &[Range<Bytes>], mut to: Install) -> (Install, Bytes) {
    let mut export = from.export(ranges).unwrap();
    while let Some(chunk) = export.next_chunk().unwrap() {
        assert!(chunk.len() <= 1024 * 1024 + 4, "a chunk of {}", chunk.len());
        to.write_chunk(&chunk).unwrap();
    }
    (to, export.position().state.clone())
}

#[test]
fn a_group_s_position_comes_back_with_its_rows() {
    for engine in DURABLE {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), engine);
        let one = store.group(GroupId(1)).unwrap();
        assert_eq!(one.position(), None);
        assert_eq!(one.flush(&[]).unwrap(), None);
        put(&one, 7, &[("a1", "x"), ("a2", "y")]);
        put(&store.group(GroupId(2)).unwrap(), 900, &[("b1", "z")]);
        assert_eq!(one.flush(&[range("a", "b")]).unwrap(), Some(at(7)));
        store.close().unwrap();
        drop((one, store));

        let store = open(dir.path(), engine);
        assert_eq!(store.groups().unwrap(), [GroupId(1), GroupId(2)]);
        let one = store.group(GroupId(1)).unwrap();
        assert_eq!(one.position(), Some(at(7)));
        assert_eq!(one.get(b"a2").unwrap(), Some(bytes("y")));
        let two = store.group(GroupId(2)).unwrap();
        assert_eq!(two.view().unwrap().position, Some(at(900)));
    }
}

#[test]
fn reads_after_an_apply_see_it_whether_cached_or_not() {
    for engine in EVERY {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), engine);
        let group = store.group(GroupId(1)).unwrap();
        assert_eq!(group.get_cached(b"a"), None);
        assert_eq!(group.get(b"a").unwrap(), None);
        assert_eq!(group.get_cached(b"a"), Some(None), "absence is cached");
        put(&group, 1, &[("a", "1")]);
        assert_eq!(group.get_cached(b"a"), Some(Some(bytes("1"))));
        let mut batch = Batch::default();
        batch.delete_range(range("a", "b"));
        group.apply(batch, at(2)).unwrap();
        assert_eq!(group.get(b"a").unwrap(), None);
        assert!(store.cache_stats().hits >= 2);
    }
}

#[test]
fn a_view_has_the_position_of_its_rows() {
    for engine in EVERY {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), engine);
        let group = store.group(GroupId(1)).unwrap();
        put(&group, 1, &[("a", "1")]);
        let view = group.view().unwrap();
        put(&group, 2, &[("a", "2")]);
        assert_eq!(view.position, Some(at(1)));
        assert_eq!(view.rows.get(b"a").unwrap(), Some(bytes("1")));
    }
}

/// Three megabytes are several chunks, and one row is larger than a chunk.
#[test]
fn a_snapshot_replaces_the_group_s_rows_and_no_others() {
    for engine in EVERY {
        let (source_dir, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let source = open(source_dir.path(), EngineKind::Fjall);
        let source = source.group(GroupId(5)).unwrap();
        let large = "v".repeat(2 << 20);
        let mut batch = Batch::default();
        for row in 0..2000 {
            batch.put(bytes(format!("c{row:04}")), bytes("w".repeat(500)));
        }
        batch.put(bytes("c-large"), bytes(&large));
        batch.put(source.private_key(b"incarnation"), bytes("i5"));
        source.apply(batch, at(41)).unwrap();

        let store = open(dir.path(), engine);
        let (group, other) = (
            store.group(GroupId(5)).unwrap(),
            store.group(GroupId(6)).unwrap(),
        );
        put(&other, 3, &[("b", "other"), ("d", "other")]);
        let mut batch = Batch::default();
        batch.put(bytes("c-old"), bytes("old"));
        batch.put(bytes("e-old"), bytes("of a range that the snapshot lacks"));
        batch.put(group.private_key(b"old"), bytes("old"));
        group.apply(batch, at(8)).unwrap();
        assert_eq!(group.get(b"c-old").unwrap(), Some(bytes("old")));

        let owned = [range("c", "d"), range("e", "f")];
        let install = group.begin_install(&owned).unwrap();
        let (install, state) = send(&source, &[range("c", "d")], install);
        // Applies on the receiver before the commit are replaced too.
        assert_eq!(group.get(b"c-old").unwrap(), Some(bytes("old")));
        install.commit(state).unwrap();

        let check = |store: &Arc<Store>| {
            let group = store.group(GroupId(5)).unwrap();
            assert_eq!(group.position(), Some(at(41)), "{engine}");
            assert_eq!(keys(&group, "a", "z").len(), 2 + 2000 + 1);
            assert_eq!(group.get(b"c-old").unwrap(), None);
            assert_eq!(group.get(b"e-old").unwrap(), None);
            assert_eq!(group.get(b"c-large").unwrap(), Some(bytes(&large)));
            let private = |name: &[u8]| group.get(&group.private_key(name)).unwrap();
            assert_eq!(private(b"incarnation"), Some(bytes("i5")));
            assert_eq!(private(b"old"), None);
            let other = store.group(GroupId(6)).unwrap();
            assert_eq!(other.position(), Some(at(3)));
            assert_eq!(other.get(b"b").unwrap(), Some(bytes("other")));
        };
        check(&store);
        assert_eq!(group.flush(&owned).unwrap(), Some(at(41)));
        store.close().unwrap();
        drop((group, other, store));
        if engine != EngineKind::Memory {
            check(&open(dir.path(), engine));
        }
    }
}

#[test]
fn a_snapshot_that_is_cut_flipped_or_of_another_group_leaves_the_old_state() {
    let (source_dir, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let source = open(source_dir.path(), EngineKind::Memory);
    let source = source.group(GroupId(5)).unwrap();
    put(&source, 4, &[("c1", "1"), ("c2", "2")]);
    let ranges = [range("c", "d")];
    let chunk = source
        .export(&ranges)
        .unwrap()
        .next_chunk()
        .unwrap()
        .unwrap();

    let store = open(dir.path(), EngineKind::Memory);
    let group = store.group(GroupId(5)).unwrap();
    put(&group, 1, &[("c-old", "old")]);
    let refused = |group: &GroupStorage, chunk: &[u8]| {
        let mut install = group.begin_install(&ranges).unwrap();
        let received = install.write_chunk(chunk);
        received
            .and_then(|()| install.commit(bytes("s")))
            .unwrap_err();
    };
    for at in 0..chunk.len() {
        let mut flipped = chunk.to_vec();
        flipped[at] ^= 0x10;
        refused(&group, &flipped);
        refused(&group, &chunk[..at]);
        // Cut with a checksum that matches: a sender that stopped.
        if at > 4 {
            let mut cut = crc32c::crc32c(&chunk[4..at]).to_le_bytes().to_vec();
            cut.extend_from_slice(&chunk[4..at]);
            refused(&group, &cut);
        }
    }
    refused(&store.group(GroupId(6)).unwrap(), &chunk);
    assert_eq!(keys(&group, "a", "z"), ["c-old"]);
    assert_eq!(group.position(), Some(at(1)));
    let left: Vec<_> = std::fs::read_dir(dir.path().join("install"))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_destroyed_group_is_gone_for_good_and_leaves_the_others() {
    for engine in DURABLE {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), engine);
        let (one, two) = (
            store.group(GroupId(1)).unwrap(),
            store.group(GroupId(2)).unwrap(),
        );
        put(&one, 1, &[("a", "1")]);
        put(&two, 1, &[("b", "1")]);
        one.flush(&[range("a", "b")]).unwrap();
        two.flush(&[range("b", "c")]).unwrap();
        one.destroy(&[range("a", "b")]).unwrap();
        assert_eq!(one.position(), None);
        assert_eq!(one.get(b"a").unwrap(), None);
        drop((one, two, store));
        let store = open(dir.path(), engine);
        assert_eq!(store.groups().unwrap(), [GroupId(2)]);
        let one = store.group(GroupId(1)).unwrap();
        assert_eq!(one.position(), None);
        assert_eq!(keys(&one, "a", "c"), ["b"]);
    }
}

#[test]
fn nothing_is_applied_after_the_store_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineKind::Fjall);
    let group = store.group(GroupId(1)).unwrap();
    put(&group, 1, &[("a", "1")]);
    store.close().unwrap();
    store.close().unwrap();
    group.apply(Batch::default(), at(2)).unwrap_err();
    group.flush(&[]).unwrap_err();
}

/// sled is rebuilt from the files of the last flush when the machine may have gone down under it.
#[test]
fn sled_is_rebuilt_from_the_last_flush_after_an_unclean_boot() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineKind::Sled);
    let group = store.group(GroupId(1)).unwrap();
    put(&group, 1, &[("a", "1"), ("b", "1")]);
    assert_eq!(group.flush(&[range("a", "m")]).unwrap(), Some(at(1)));
    put(&group, 2, &[("a", "2"), ("c", "2")]);
    drop((group, store));

    // Still this boot: what was applied after the flush is there.
    let store = open(dir.path(), EngineKind::Sled);
    assert_eq!(store.group(GroupId(1)).unwrap().position(), Some(at(2)));
    drop(store);

    std::fs::write(dir.path().join("boot"), "open another-boot\n").unwrap();
    let opened = Store::open(dir.path(), options(EngineKind::Sled)).unwrap();
    assert!(opened.rebuilt.unwrap().contains("went down"));
    let group = opened.store.group(GroupId(1)).unwrap();
    assert_eq!(group.position(), Some(at(1)));
    assert_eq!(keys(&group, "a", "z"), ["a", "b"]);
    assert_eq!(group.get(b"a").unwrap(), Some(bytes("1")));
    opened.store.close().unwrap();
    drop((group, opened.store));

    std::fs::write(dir.path().join("boot"), "open another-boot\n").unwrap();
    std::fs::remove_dir_all(dir.path().join("durable")).unwrap();
    let error = Store::open(dir.path(), options(EngineKind::Sled)).unwrap_err();
    assert!(error.to_string().contains("lost data"), "{error}");
}

/// A record of durability that the engine does not reach is a refusal, not a shorter history.
#[test]
fn an_engine_behind_its_watermark_is_refused_and_the_directory_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), EngineKind::Fjall);
    let group = store.group(GroupId(3)).unwrap();
    put(&group, 50, &[("a", "1")]);
    group.flush(&[range("a", "b")]).unwrap();
    drop((group, store));
    std::fs::remove_dir_all(dir.path().join("fjall")).unwrap();
    let error = Store::open(dir.path(), options(EngineKind::Fjall)).unwrap_err();
    let text = error.to_string();
    assert!(error.is_damage());
    assert!(text.contains(dir.path().to_str().unwrap()), "{text}");
    assert!(text.contains("group 3 is at 0, and 50"), "{text}");
}
