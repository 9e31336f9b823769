//! Walks over the keys of several shards: cut into parts, evaluated each on its own rows, put together.

use std::sync::Arc;

use bytes::Bytes;
use leadline_kv::{Operation, Scattered};

use super::{Ours, Value, words};
use crate::operation::RedisOperation;
use crate::reply::Resp;

/// Shards in a row; a key is on the shard that its last byte names.
fn shards() -> [Ours; 2] {
    [Ours::at_millis(1_000), Ours::at_millis(1_000)]
}

fn shard_of(key: &[u8]) -> usize {
    usize::from(key.last().is_some_and(|byte| byte % 2 == 1))
}

/// A walk over the keys of both shards.
fn gathered(shards: &mut [Ours; 2], command: &str, resp: Resp) -> Value {
    let args = words(command);
    let whole = Arc::new(RedisOperation::from_args(args, 0, resp).unwrap());
    let Scattered { part, gather } = whole.scatter().unwrap();
    let replies: Vec<Bytes> = shards
        .iter_mut()
        .map(|shard| part.evaluate(&mut shard.rows).unwrap())
        .collect();
    Value::parse_all(&gather(replies))
}

#[test]
fn a_walk_over_two_shards_answers_as_over_one() {
    for resp in [Resp::V2, Resp::V3] {
        let (mut two, mut one) = (shards(), Ours::at_millis(1_000));
        one.resp = resp;
        for key in ["k1", "k2", "k3", "k4", "k5"] {
            let command = format!("SET {key} value-of-{key}");
            two[shard_of(key.as_bytes())].call(&command);
            one.call(&command);
        }
        two[0].call("HSET k6 f v");
        one.call("HSET k6 f v");
        for command in ["DBSIZE", "KEYS *", "KEYS k[1-3]"] {
            assert_eq!(
                gathered(&mut two, command, resp).sorted(1),
                one.call(command).sorted(1),
                "{command}"
            );
        }
        let mut chosen = std::collections::BTreeSet::new();
        for _ in 0..300 {
            chosen.insert(gathered(&mut two, "RANDOMKEY", resp));
        }
        assert_eq!(chosen.len(), 6);
        assert_eq!(gathered(&mut two, "FLUSHDB", resp), one.call("FLUSHDB"));
        assert!(gathered(&mut two, "RANDOMKEY", resp).is_null());
        assert_eq!(gathered(&mut two, "DBSIZE", resp).integer(), Some(0));
    }
}

#[test]
fn what_names_its_keys_is_never_cut() {
    for command in [
        "MGET k1 k2",
        "MSET k1 a k2 b",
        "DEL k1 k2",
        "RENAME k1 k2",
        "COPY k1 k2",
    ] {
        let operation = RedisOperation::from_args(words(command), 0, Resp::V2).unwrap();
        assert!(Arc::new(operation).scatter().is_none(), "{command}");
    }
}
