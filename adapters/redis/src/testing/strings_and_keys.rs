//! Strings and keys against Redis, and what only shows over time or size.

use std::collections::BTreeSet;

use bytes::Bytes;
use leadline_kv::executor::LARGEST_COMMAND;

use super::{Ours, Value, same_as_redis, words};
use crate::rows::invariants;

#[test]
fn strings_answer_as_redis_does() {
    same_as_redis(
        "strings",
        &[
            "GET {k}",
            "GET {k}",
            "SET {k} {v}",
            "SET {k} {v}",
            "SET {k} {v} NX",
            "SET {k} {v} XX",
            "SET {k} {v} GET",
            "SET {k} {v} NX GET",
            "SET {k} {v} XX GET KEEPTTL",
            "SET {k} {v} {EX} {t}",
            "SET {k} {v} EXAT {at}",
            "SET {k} {v} KEEPTTL",
            "SET {k} {v} NX XX",
            "SET {k} {v} EX",
            "SET {k} {v} KEEPTTL EX 100",
            "SET {k} {v} EX 100 PX 100",
            "SET {k} {v} nope",
            "SETNX {k} {v}",
            "SETEX {k} {t} {v}",
            "PSETEX {k} {t} {v}",
            "GETSET {k} {v}",
            "GETDEL {k}",
            "GETEX {k}",
            "GETEX {k} {EX} {t}",
            "GETEX {k} EXAT {at}",
            "GETEX {k} PERSIST",
            "GETEX {k} PERSIST EX 10",
            "GETEX {k} nope",
            "APPEND {k} {v}",
            "STRLEN {k}",
            "SETRANGE {k} {s} {v}",
            "SETRANGE {k} 536870912 {v}",
            "GETRANGE {k} {s} {s}",
            "GETRANGE {k} {i} {i}",
            "SUBSTR {k} {s} {s}",
            "INCR {k}",
            "DECR {k}",
            "INCRBY {k} {i}",
            "DECRBY {k} {i}",
            "INCRBYFLOAT {k} {f}",
            "MGET {k} {k} {k}",
            "MSET {k} {v} {k} {v}",
            "MSET {k} {v} {k}",
            "MSETNX {k} {v} {k} {v}",
            "LCS {k} {k}",
            "LCS {k} {k} LEN",
            "LCS {k} {k} IDX",
            "LCS {k} {k} IDX MINMATCHLEN {s} WITHMATCHLEN",
            "LCS {k} {k} IDX LEN",
            "TTL {k}",
            "DEL {k}",
            "GET",
            "LCS {k}",
        ],
        1500,
    );
}

#[test]
fn bitmaps_answer_as_redis_does() {
    same_as_redis(
        "bitmaps",
        &[
            "SET {k} {v}",
            "GET {k}",
            "DEL {k}",
            "SETBIT {k} {offset} 1",
            "SETBIT {k} {s} {s}",
            "GETBIT {k} {offset}",
            "BITCOUNT {k}",
            "BITCOUNT {k} {s} {s}",
            "BITCOUNT {k} {s} {s} BIT",
            "BITCOUNT {k} {s} {s} BYTE",
            "BITCOUNT {k} {s}",
            "BITPOS {k} 0",
            "BITPOS {k} 1 {s}",
            "BITPOS {k} 0 {s} {s}",
            "BITPOS {k} 1 {s} {s} BIT",
            "BITPOS {k} 0 {s} -1 BIT",
            "BITPOS {k} {s}",
            "BITOP AND {k} {k} {k}",
            "BITOP OR {k} {k} {k} {k}",
            "BITOP XOR {k} {k} {k}",
            "BITOP NOT {k} {k}",
            "BITOP NOT {k} {k} {k}",
            "BITFIELD {k} GET {field} {offset}",
            "BITFIELD {k} SET {field} {offset} {i} GET {field} {offset}",
            "BITFIELD {k} INCRBY {field} {offset} {i} INCRBY {field} {offset} {s}",
            "BITFIELD {k} OVERFLOW SAT INCRBY {field} {offset} {i} SET {field} {offset} {s}",
            "BITFIELD {k} OVERFLOW FAIL INCRBY {field} {offset} {i} SET {field} {offset} {i}",
            "BITFIELD {k} OVERFLOW NOPE",
            "BITFIELD {k} NOPE",
            "BITFIELD_RO {k} GET {field} {offset}",
            "BITFIELD_RO {k} SET u8 0 1",
            "EXPIRE {k} 100000",
            "TTL {k}",
        ],
        1500,
    );
}

#[test]
fn keys_answer_as_redis_does() {
    same_as_redis(
        "keys",
        &[
            "SET {k} {v}",
            "SET {k} {v}",
            "SET {k} {v} EX 1000",
            "DEL {k}",
            "DEL {k} {k} {k}",
            "UNLINK {k} {k}",
            "EXISTS {k} {k} {k}",
            "TOUCH {k} {k}",
            "TYPE {k}",
            "EXPIRE {k} {t}",
            "EXPIRE {k} {t} NX",
            "EXPIRE {k} {t} XX",
            "EXPIRE {k} {at} {NX} {NX}",
            "EXPIRE {k} 10 nope",
            "PEXPIRE {k} {t}",
            "EXPIREAT {k} {at} {NX}",
            "PEXPIREAT {k} 4102444800123",
            "PEXPIREAT {k} {at}",
            "TTL {k}",
            "PTTL {k}",
            "EXPIRETIME {k}",
            "PEXPIRETIME {k}",
            "PERSIST {k}",
            "RENAME {k} {k}",
            "RENAMENX {k} {k}",
            "COPY {k} {k}",
            "COPY {k} {k} REPLACE",
            "COPY {k} {k} DB {s}",
            "COPY {k} {k} DB",
            "MOVE {k} {s}",
            "MOVE {k} {i}",
            "RANDOMKEY",
            "KEYS {p}",
            "KEYS *",
            "SCAN 0",
            "SCAN 0 MATCH {p} COUNT {s}",
            "SCAN 0 TYPE string COUNT 2",
            "SCAN 0 TYPE hash",
            "SCAN 0 COUNT",
            "SCAN x",
            "OBJECT REFCOUNT nokey",
            "OBJECT IDLETIME nokey",
            "OBJECT FREQ {k}",
            "OBJECT ENCODING",
            "OBJECT NOPE {k}",
            "OBJECT HELP",
            "FLUSHDB nope",
            "GET {k}",
            "INCRBY {k} 3",
        ],
        1500,
    );
}

#[test]
fn an_expired_key_is_gone_for_every_command_and_for_good() {
    for command in [
        "GET k",
        "EXISTS k",
        "TTL k",
        "TYPE k",
        "KEYS *",
        "SCAN 0",
        "RANDOMKEY",
        "STRLEN k",
    ] {
        let mut ours = Ours::at_millis(1_000);
        let empty = ours.call(command);
        ours.call("SET k v PX 500");
        ours.set_millis(1_499);
        assert_ne!(ours.call(command), empty, "{command}");
        ours.set_millis(1_500);
        assert_eq!(ours.call(command), empty, "{command}");
        invariants::check(&mut ours.rows);
    }
}

#[test]
fn sweeping_deletes_expired_keys_in_bounded_steps_until_there_is_no_more() {
    let mut ours = Ours::at_millis(1_000);
    for key in 0..2400 {
        ours.database = u8::try_from(key % 3).unwrap();
        ours.call(&format!("SET k{key} v PX {}", 100 + key));
    }
    ours.call("SET stays v");
    ours.call("SET later v PX 100000");
    ours.set_millis(5_000);
    let mut removed = Vec::new();
    loop {
        let step = ours.call("SWEEP.EXPIRED");
        removed.push(step.items()[0].integer().unwrap());
        invariants::check(&mut ours.rows);
        if step.items()[1].integer() == Some(0) {
            break;
        }
    }
    assert_eq!(removed, [1024, 1024, 352]);
    assert_eq!(invariants::check(&mut ours.rows).keys, 2);
}

/// Runs `step` until there is no more to do, each time within what one command may write.
fn sweep_all(ours: &mut Ours, step: &str) -> usize {
    let mut steps = 0;
    loop {
        ours.rows.take_written();
        let swept = ours.call(step);
        let written = ours.rows.take_written();
        assert!(written < LARGEST_COMMAND / 2, "{step}: {written} bytes");
        steps += 1;
        if swept.items()[1].integer() == Some(0) {
            return steps;
        }
    }
}

/// A step that wrote more than the store takes at once would fail as a whole, each time anew.
#[test]
fn sweeping_gets_past_any_number_of_long_keys() {
    let mut ours = Ours::at_millis(1_000);
    for key in 0..1024 {
        ours.call(&format!("SET {key:016384} v PX 1"));
    }
    ours.call("SET short v PX 100");
    ours.set_millis(5_000);
    assert!(sweep_all(&mut ours, "SWEEP.EXPIRED") > 1);
    assert_eq!(invariants::check(&mut ours.rows).keys, 0);

    for key in 0..64 {
        ours.call(&format!("ZADD {key:060000} 1 m"));
        ours.call(&format!("DEL {key:060000}"));
    }
    assert_eq!(invariants::check(&mut ours.rows).dead_elements, 128);
    assert!(sweep_all(&mut ours, "SWEEP.GENERATIONS") > 1);
    assert_eq!(invariants::check(&mut ours.rows).dead_elements, 0);
}

fn scan_all(ours: &mut Ours, rest: &str, mut between: impl FnMut(&mut Ours)) -> Vec<Bytes> {
    let mut cursor = Bytes::from_static(b"0");
    let mut keys = Vec::new();
    loop {
        let text = std::str::from_utf8(&cursor).unwrap().to_owned();
        let reply = ours.call(&format!("SCAN {text}{rest}"));
        let [next, page] = reply.items() else {
            panic!("{reply:?}");
        };
        keys.extend(page.items().iter().map(|key| key.text().unwrap().clone()));
        cursor = next.text().unwrap().clone();
        if cursor.as_ref() == b"0" {
            return keys;
        }
        between(ours);
    }
}

#[test]
fn scan_answers_each_key_once_while_nothing_changes() {
    let mut ours = Ours::at_millis(1_000);
    let mut keys = BTreeSet::new();
    for key in 0..3000 {
        // Some thousand in one slot, the others spread.
        let tag = if key % 2 == 0 { "{tag}" } else { "" };
        keys.insert(format!("{tag}key:{key}"));
    }
    for key in &keys {
        ours.call(&format!("SET {key} v"));
        ours.database = 1;
        ours.call(&format!("SET {key}x v"));
        ours.database = 0;
    }
    for rest in ["", " COUNT 1", " COUNT 700", " COUNT 100000"] {
        let found = scan_all(&mut ours, rest, |_| ());
        assert_eq!(found.len(), keys.len(), "{rest}");
        let found: BTreeSet<_> = found
            .iter()
            .map(|key| String::from_utf8(key.to_vec()).unwrap())
            .collect();
        assert_eq!(found, keys, "{rest}");
    }
}

#[test]
fn scan_answers_every_key_that_is_there_throughout_whatever_comes_and_goes() {
    let mut ours = Ours::at_millis(1_000);
    for key in 0..1500 {
        ours.call(&format!("SET {{tag}}stays:{key} v"));
    }
    let mut round = 0;
    let found = scan_all(&mut ours, " COUNT 50", |ours| {
        for key in 0..400 {
            ours.call(&format!("SET {{tag}}new:{round}:{key} v"));
            ours.call(&format!("DEL {{tag}}new:{}:{}", round - 1, key));
        }
        round += 1;
    });
    let stays = found.iter().filter(|key| key.starts_with(b"{tag}stays"));
    assert_eq!(stays.collect::<BTreeSet<_>>().len(), 1500);
    assert!(round > 0, "one page held everything");
}

#[test]
fn flushdb_leaves_the_other_databases_and_flushall_nothing() {
    let mut ours = Ours::at_millis(1_000);
    for key in 0..200 {
        for database in 0..3 {
            ours.database = database;
            ours.call(&format!("SET k{key} v EX 100"));
        }
    }
    ours.database = 1;
    ours.call("FLUSHDB");
    assert_eq!(invariants::check(&mut ours.rows).keys, 400);
    assert_eq!(ours.call("DBSIZE").integer(), Some(0));
    ours.database = 2;
    assert_eq!(ours.call("DBSIZE").integer(), Some(200));
    ours.call("FLUSHALL ASYNC");
    assert!(ours.rows.is_empty());
}

#[test]
fn random_keys_are_all_chosen_sometimes() {
    for count in [10, 500] {
        let mut ours = Ours::at_millis(1_000);
        for key in 0..count {
            ours.call(&format!("SET k{key} v"));
        }
        let chosen: BTreeSet<Value> = (0..count * 20).map(|_| ours.call("RANDOMKEY")).collect();
        assert!(chosen.len() > count * 9 / 10, "{} of {count}", chosen.len());
    }
}

#[test]
fn encodings_are_named_as_redis_names_them_by_size() {
    let mut ours = Ours::at_millis(1_000);
    for (value, encoding) in [
        ("12345".to_owned(), "int"),
        ("hello".to_owned(), "embstr"),
        ("x".repeat(44), "embstr"),
        ("x".repeat(45), "raw"),
    ] {
        ours.call(&format!("SET k {value}"));
        let reply = ours.run(&words("OBJECT ENCODING k"));
        assert_eq!(reply.text().unwrap(), encoding);
    }
}
