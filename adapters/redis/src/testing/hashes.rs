//! Hashes against Redis, and what becomes of their elements.

use std::collections::BTreeSet;

use super::{Ours, Value, same_as_redis};
use crate::rows::invariants::{self, Census};

#[test]
fn hashes_answer_as_redis_does() {
    same_as_redis(
        "hashes",
        &[
            "HSET {k} {e} {v}",
            "HSET {k} {e} {v} {e} {v} {e} {v}",
            "HSET {k} {e} {v} {e}",
            "HMSET {k} {e} {v} {e} {v}",
            "HMSET {k} {e} {v} {e}",
            "HSETNX {k} {e} {v}",
            "HGET {k} {e}",
            "HMGET {k} {e} {e} {e}",
            "HGETALL {k}",
            "HKEYS {k}",
            "HVALS {k}",
            "HDEL {k} {e}",
            "HDEL {k} {e} {e} {e} {e} {e} {e} {e}",
            "HEXISTS {k} {e}",
            "HLEN {k}",
            "HSTRLEN {k} {e}",
            "HINCRBY {k} {e} {i}",
            "HINCRBYFLOAT {k} {e} {f}",
            "HRANDFIELD {k}",
            "HRANDFIELD {k} 0",
            "HRANDFIELD {k} x",
            "HRANDFIELD {k} 1 nope",
            "HSCAN {k} 0",
            "HSCAN {k} 0 COUNT 2 MATCH {p}",
            "HSCAN {k} 0 TYPE string",
            "HSCAN {k} x",
            "GET {k}",
            "SET {k} {v}",
            "DEL {k}",
            "DEL {k}",
            "RENAME {k} {k}",
            "RENAMENX {k} {k}",
            "COPY {k} {k}",
            "COPY {k} {k} REPLACE",
            "MOVE {k} 1",
            "COPY {k} {k} DB 1 REPLACE",
            "EXPIRE {k} {t}",
            "TTL {k}",
            "TYPE {k}",
            "OBJECT ENCODING nokey",
            "KEYS *",
            "SCAN 0 TYPE hash",
            "STRLEN {k}",
            "MGET {k} {k}",
            "SET {k} {v} GET",
            "LCS {k} {k}",
        ],
        2000,
    );
}

fn sweep(ours: &mut Ours) -> Census {
    while ours.call("SWEEP.GENERATIONS").items()[1].integer() == Some(1) {
        invariants::check(&mut ours.rows);
    }
    invariants::check(&mut ours.rows)
}

fn fill(ours: &mut Ours, key: &str, fields: usize) {
    for field in 0..fields {
        ours.call(&format!("HSET {key} f{field} v{field}"));
    }
}

#[test]
fn a_hash_deleted_and_made_again_shows_nothing_old_before_and_after_sweeping() {
    let mut ours = Ours::at_millis(1_000);
    fill(&mut ours, "h", 10);
    ours.call("DEL h");
    assert_eq!(ours.call("HGETALL h").items(), []);
    ours.call("HSET h f3 new");
    assert_eq!(ours.call("HLEN h").integer(), Some(1));
    assert_eq!(ours.call("HGETALL h").items().len(), 2);
    let census = invariants::check(&mut ours.rows);
    assert_eq!((census.dead_elements, census.dead_generations), (10, 1));
    let census = sweep(&mut ours);
    assert_eq!((census.dead_elements, census.dead_generations), (0, 0));
    assert_eq!(ours.call("HGET h f3").text().unwrap(), "new");
}

#[test]
fn the_elements_of_a_large_hash_are_swept_in_bounded_steps() {
    let mut ours = Ours::at_millis(1_000);
    fill(&mut ours, "h", 9_000);
    ours.call("SET h string");
    let step = ours.call("SWEEP.GENERATIONS");
    assert_eq!(step.items()[0].integer(), Some(4096));
    assert_eq!(step.items()[1].integer(), Some(1));
    assert_eq!(
        sweep(&mut ours),
        Census {
            keys: 1,
            dead_elements: 0,
            dead_generations: 0
        }
    );
}

#[test]
fn renaming_a_large_hash_within_its_slot_moves_no_element() {
    let mut ours = Ours::at_millis(1_000);
    fill(&mut ours, "{t}a", 20_000);
    let rows = ours.rows.len();
    ours.call("RENAME {t}a {t}b");
    assert_eq!(ours.rows.len(), rows);
    // The old name is free, its new elements lie beside those that were renamed away.
    fill(&mut ours, "{t}a", 3);
    ours.call("HDEL {t}b f7");
    ours.call("HSET {t}b more v");
    assert_eq!(ours.call("HLEN {t}b").integer(), Some(20_000));
    assert_eq!(ours.call("HLEN {t}a").integer(), Some(3));
    assert_eq!(ours.call("HGET {t}b f19999").text().unwrap(), "v19999");
    ours.call("RENAME {t}b {t}a");
    assert_eq!(ours.call("HLEN {t}a").integer(), Some(20_000));
    assert_eq!(invariants::check(&mut ours.rows).dead_elements, 3);
    ours.call("DEL {t}a");
    assert_eq!(sweep(&mut ours).dead_elements, 0);
    assert!(ours.call("KEYS *").items().is_empty());
}

#[test]
fn a_hash_too_large_to_copy_is_refused_and_nothing_is_changed() {
    let mut ours = Ours::at_millis(1_000);
    fill(&mut ours, "a", 16_385);
    for command in ["COPY a b", "RENAME a b", "MOVE a 1"] {
        let reply = ours.call(command);
        assert!(
            format!("{reply:?}").contains("too large to copy"),
            "{reply:?}"
        );
    }
    assert_eq!(ours.call("EXISTS a b").integer(), Some(1));
    assert_eq!(ours.call("HLEN a").integer(), Some(16_385));
    invariants::check(&mut ours.rows);
}

#[test]
fn random_fields_are_fields_and_distinct_ones_differ() {
    for size in [5, 100, 1000] {
        let mut ours = Ours::at_millis(1_000);
        fill(&mut ours, "h", size);
        for count in [1, 3, size - 1, size, size + 5] {
            let reply = ours.call(&format!("HRANDFIELD h {count}"));
            let distinct: BTreeSet<Value> = reply.items().iter().cloned().collect();
            assert_eq!(reply.items().len(), count.min(size));
            assert_eq!(distinct.len(), count.min(size));
        }
        let reply = ours.call(&format!("HRANDFIELD h -{} WITHVALUES", size * 3));
        assert_eq!(reply.items().len(), size * 6);
        for pair in reply.items().chunks(2) {
            let field = std::str::from_utf8(pair[0].text().unwrap()).unwrap();
            assert_eq!(ours.call(&format!("HGET h {field}")), pair[1]);
        }
        let drawn: BTreeSet<Value> = (0..size * 12).map(|_| ours.call("HRANDFIELD h")).collect();
        assert!(drawn.len() > size * 9 / 10, "{} of {size}", drawn.len());
    }
}
