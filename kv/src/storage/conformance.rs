//! What every engine must do, run against each of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::{
    Batch, FjallOptions, FjallStorage, MemoryStorage, Reader, SledOptions, SledStorage, Storage,
    Write,
};
use crate::ScanOrder;

type Model = BTreeMap<Bytes, Bytes>;
type Open = fn(&Path) -> Arc<dyn Storage>;

fn open_memory(_: &Path) -> Arc<dyn Storage> {
    Arc::new(MemoryStorage::new())
}

/// A memtable so small that the tests reach the disk.
fn open_fjall(dir: &Path) -> Arc<dyn Storage> {
    let options = FjallOptions {
        memtable_bytes: 16 * 1024,
        ..FjallOptions::default()
    };
    Arc::new(FjallStorage::open(&dir.join("fjall"), options).unwrap())
}

fn open_sled(dir: &Path) -> Arc<dyn Storage> {
    Arc::new(SledStorage::open(&dir.join("sled"), SledOptions::default()).unwrap())
}

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn apply(engine: &dyn Storage, batch: Batch) {
    let writes = batch.into_writes(engine, &mut |_| ()).unwrap();
    engine.apply(&writes).unwrap();
}

fn put(engine: &dyn Storage, rows: &[(&str, &str)]) {
    let mut batch = Batch::default();
    for (key, value) in rows {
        batch.put(bytes(key), bytes(value));
    }
    apply(engine, batch);
}

fn rows(reader: &dyn Reader, start: &[u8], end: &[u8], order: ScanOrder) -> Vec<(Bytes, Bytes)> {
    let mut found = Vec::new();
    reader
        .scan(start..end, order, &mut |key, value| {
            found.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            true
        })
        .unwrap();
    found
}

fn keys(reader: &dyn Reader, start: &str, end: &str, order: ScanOrder) -> Vec<String> {
    rows(reader, start.as_bytes(), end.as_bytes(), order)
        .into_iter()
        .map(|(key, _)| String::from_utf8(key.to_vec()).unwrap())
        .collect()
}

fn assert_holds(reader: &dyn Reader, model: &Model) {
    let all: Vec<_> = model.clone().into_iter().collect();
    assert_eq!(rows(reader, &[], &[0xFF; 4], ScanOrder::Ascending), all);
    let reversed: Vec<_> = model.clone().into_iter().rev().collect();
    assert_eq!(
        rows(reader, &[], &[0xFF; 4], ScanOrder::Descending),
        reversed
    );
    for (key, value) in model {
        assert_eq!(reader.get(key).unwrap().as_ref(), Some(value));
    }
}

fn a_row_is_put_overwritten_and_deleted(open: Open) {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    assert_eq!(engine.get(b"a").unwrap(), None);
    put(&*engine, &[("a", "1"), ("b", "")]);
    assert_eq!(engine.get(b"a").unwrap(), Some(bytes("1")));
    assert_eq!(engine.get(b"b").unwrap(), Some(bytes("")));
    put(&*engine, &[("a", "2")]);
    assert_eq!(engine.get(b"a").unwrap(), Some(bytes("2")));
    let mut batch = Batch::default();
    batch.delete(bytes("a"));
    batch.delete(bytes("absent"));
    apply(&*engine, batch);
    assert_eq!(engine.get(b"a").unwrap(), None);
    assert_eq!(engine.get(b"b").unwrap(), Some(bytes("")));
}

fn the_last_effect_on_a_row_wins_within_a_batch(open: Open) {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    put(&*engine, &[("b", "0"), ("c", "0"), ("d", "0")]);
    let mut batch = Batch::default();
    batch.put(bytes("a"), bytes("1"));
    batch.put(bytes("a"), bytes("2"));
    batch.put(bytes("bb"), bytes("gone with the range"));
    batch.delete_range(bytes("b")..bytes("d"));
    batch.put(bytes("c"), bytes("3"));
    batch.delete(bytes("e"));
    apply(&*engine, batch);
    let expected = Model::from([
        (bytes("a"), bytes("2")),
        (bytes("c"), bytes("3")),
        (bytes("d"), bytes("0")),
    ]);
    assert_holds(&*engine, &expected);
}

fn scans_go_both_ways_and_end_at_their_borders(open: Open) {
    use ScanOrder::{Ascending, Descending};
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    put(
        &*engine,
        &[("a", "1"), ("b", "1"), ("b\0", "1"), ("c", "1"), ("d", "1")],
    );
    assert_eq!(keys(&*engine, "b", "d", Ascending), ["b", "b\0", "c"]);
    assert_eq!(keys(&*engine, "b", "d", Descending), ["c", "b\0", "b"]);
    assert_eq!(keys(&*engine, "b\0", "c", Ascending), ["b\0"]);
    assert_eq!(keys(&*engine, "bb", "c", Descending), [""; 0]);
    assert_eq!(keys(&*engine, "c", "c", Ascending), [""; 0]);
    assert_eq!(keys(&*engine, "d", "a", Descending), [""; 0]);
    assert_eq!(keys(&*engine, "e", "z", Ascending), [""; 0]);

    let mut seen = 0;
    let mut stop_at_second = |_: &[u8], _: &[u8]| {
        seen += 1;
        seen < 2
    };
    engine
        .scan(b"a"..b"z", Ascending, &mut stop_at_second)
        .unwrap();
    assert_eq!(seen, 2);
}

/// The last keys of a range are all ones, and keys and values may be long.
fn odd_keys_and_large_values_are_rows_like_others(open: Open) {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let model: Model = [
        (vec![0x00], vec![0; 3]),
        (vec![0xFF, 0xFF, 0xFF], vec![1]),
        (vec![0x61; 60_000], vec![2; 10]),
        (vec![0x62], vec![7; 3 << 20]),
    ]
    .into_iter()
    .map(|(key, value)| (Bytes::from(key), Bytes::from(value)))
    .collect();
    let mut batch = Batch::default();
    for (key, value) in &model {
        batch.put(key.clone(), value.clone());
    }
    apply(&*engine, batch);
    assert_holds(&*engine, &model);
}

/// 10 000 rows are several steps of a range deletion, and many chunks of a view's scan.
fn a_large_range_is_deleted_whole_and_its_view_keeps_it(open: Open) {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    let model: Model = (0..10_000)
        .map(|row| (bytes(&format!("k{row:05}")), bytes(&format!("{row}"))))
        .collect();
    let mut batch = Batch::default();
    for (key, value) in &model {
        batch.put(key.clone(), value.clone());
    }
    batch.put(bytes("j"), bytes("stays"));
    apply(&*engine, batch);
    let view = engine.view().unwrap();
    let mut batch = Batch::default();
    batch.delete_range(bytes("k")..bytes("l"));
    batch.put(bytes("k00007"), bytes("new"));
    apply(&*engine, batch);
    assert_eq!(
        keys(&*engine, "a", "z", ScanOrder::Ascending),
        ["j", "k00007"]
    );
    let all: Vec<_> = model.into_iter().collect();
    assert_eq!(rows(&*view, b"k", b"l", ScanOrder::Ascending), all);
    let reversed: Vec<_> = all.into_iter().rev().collect();
    assert_eq!(rows(&*view, b"k", b"l", ScanOrder::Descending), reversed);
}

/// One thread writes pairs that are always equal; views and scans must never see them differ.
fn readers_never_see_half_a_batch(open: Open) {
    let dir = tempfile::tempdir().unwrap();
    let engine = open(dir.path());
    put(&*engine, &[("a", "0"), ("z", "0")]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 1..=2000 {
                let value = round.to_string();
                // Enough that an engine flushes and compacts meanwhile.
                let filler = value.repeat(200);
                put(&*engine, &[("a", &value), ("m", &filler), ("z", &value)]);
            }
            done.store(true, Ordering::Release);
        });
        let mut last = 0;
        loop {
            let finished = done.load(Ordering::Acquire);
            let view = engine.view().unwrap();
            let (a, z) = (view.get(b"a").unwrap(), view.get(b"z").unwrap());
            assert_eq!(a, z, "a view changed between two reads");
            let seen = rows(&*engine, b"a", b"zz", ScanOrder::Ascending);
            assert_eq!(
                seen.first().unwrap().1,
                seen.last().unwrap().1,
                "a torn scan"
            );
            let number: u32 = std::str::from_utf8(&a.unwrap()).unwrap().parse().unwrap();
            assert!(number >= last, "views went back in time");
            last = number;
            if finished {
                break;
            }
        }
        writer.join().unwrap();
        assert_eq!(engine.get(b"z").unwrap(), Some(bytes("2000")));
    });
}

#[derive(Clone, Debug)]
enum Step {
    Apply(Vec<(u8, Option<u16>)>, Option<(u8, u8)>),
    View,
    DropView,
    Flush,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let writes = prop::collection::vec((0u8..40, prop::option::of(any::<u16>())), 0..12);
    let range = prop::option::weighted(0.2, (0u8..40, 0u8..40));
    prop::collection::vec(
        prop_oneof![
            8 => (writes, range).prop_map(|(writes, range)| Step::Apply(writes, range)),
            2 => Just(Step::View),
            1 => Just(Step::DropView),
            1 => Just(Step::Flush),
            1 => Just(Step::Reopen),
        ],
        1..40,
    )
}

fn any_history_gives_what_a_map_gives(open: Open, durable: bool) {
    let config = Config {
        cases: 24,
        failure_persistence: None,
        ..Config::default()
    };
    let key = |number: u8| bytes(&format!("key {number:02}"));
    TestRunner::new(config)
        .run(&steps(), |steps| {
            let dir = tempfile::tempdir().unwrap();
            let mut engine = open(dir.path());
            let mut model = Model::new();
            let mut views: Vec<(Arc<dyn Reader>, Model)> = Vec::new();
            for step in steps {
                match step {
                    Step::Apply(writes, range) => {
                        let mut batch = Batch::default();
                        if let Some((start, end)) = range {
                            batch.delete_range(key(start)..key(end));
                            if start < end {
                                model.retain(|row, _| *row < key(start) || *row >= key(end));
                            }
                        }
                        for (number, value) in writes {
                            match value {
                                Some(value) => {
                                    // Long enough to fill a memtable now and then.
                                    let value = Bytes::from(format!("{value:0600}"));
                                    batch.put(key(number), value.clone());
                                    model.insert(key(number), value);
                                }
                                None => {
                                    batch.delete(key(number));
                                    model.remove(&key(number));
                                }
                            }
                        }
                        apply(&*engine, batch);
                    }
                    Step::View => views.push((engine.view().unwrap(), model.clone())),
                    Step::DropView => {
                        views.pop();
                    }
                    Step::Flush => engine.flush().unwrap(),
                    Step::Reopen if durable => {
                        views.clear();
                        engine.flush().unwrap();
                        drop(engine);
                        engine = open(dir.path());
                    }
                    Step::Reopen => {}
                }
                assert_holds(&*engine, &model);
                for (view, model) in &views {
                    assert_holds(&**view, model);
                }
            }
            Ok(())
        })
        .unwrap();
}

macro_rules! conforms {
    ($engine:ident, $open:expr, $durable:expr) => {
        mod $engine {
            use super::*;

            #[test]
            fn a_row_is_put_overwritten_and_deleted() {
                super::a_row_is_put_overwritten_and_deleted($open);
            }

            #[test]
            fn the_last_effect_on_a_row_wins_within_a_batch() {
                super::the_last_effect_on_a_row_wins_within_a_batch($open);
            }

            #[test]
            fn scans_go_both_ways_and_end_at_their_borders() {
                super::scans_go_both_ways_and_end_at_their_borders($open);
            }

            #[test]
            fn odd_keys_and_large_values_are_rows_like_others() {
                super::odd_keys_and_large_values_are_rows_like_others($open);
            }

            #[test]
            fn a_large_range_is_deleted_whole_and_its_view_keeps_it() {
                super::a_large_range_is_deleted_whole_and_its_view_keeps_it($open);
            }

            #[test]
            fn readers_never_see_half_a_batch() {
                super::readers_never_see_half_a_batch($open);
            }

            #[test]
            fn any_history_gives_what_a_map_gives() {
                super::any_history_gives_what_a_map_gives($open, $durable);
            }
        }
    };
}

conforms!(memory, open_memory, false);
conforms!(fjall, open_fjall, true);
conforms!(sled, open_sled, true);

#[test]
fn a_write_of_an_absent_row_is_not_a_row() {
    let engine = MemoryStorage::new();
    let absent = Write {
        key: bytes("a"),
        value: None,
    };
    engine.apply(&[absent]).unwrap();
    assert_eq!(engine.approximate_size(), 0);
}
