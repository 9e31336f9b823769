//! Lists, sets and sorted sets against Redis.

use super::same_as_redis;

/// Commands on keys of any type, so that types meet.
const ANY: &[&str] = &[
    "DEL {k}",
    "DEL {k}",
    "SET {k} {v}",
    "RENAME {k} {k}",
    "COPY {k} {k} REPLACE",
    "MOVE {k} 1",
    "EXPIRE {k} 100000",
    "TTL {k}",
    "TYPE {k}",
    "KEYS *",
    "GET {k}",
];

fn with_any(templates: &[&'static str]) -> Vec<&'static str> {
    [templates, templates, templates, ANY].concat()
}

#[test]
fn lists_answer_as_redis_does() {
    same_as_redis(
        "lists",
        &with_any(&[
            "LPUSH {k} {e}",
            "LPUSH {k} {e} {e} {e}",
            "RPUSH {k} {e} {e}",
            "LPUSHX {k} {e} {e}",
            "RPUSHX {k} {e}",
            "LPOP {k}",
            "RPOP {k}",
            "LPOP {k} {s}",
            "RPOP {k} {s}",
            "LPOP {k} x",
            "LLEN {k}",
            "LRANGE {k} {s} {s}",
            "LRANGE {k} 0 -1",
            "LINDEX {k} {s}",
            "LSET {k} {s} {e}",
            "LINSERT {k} BEFORE {e} {e}",
            "LINSERT {k} AFTER {e} {e}",
            "LINSERT {k} NEAR {e} {e}",
            "LREM {k} {s} {e}",
            "LTRIM {k} {s} {s}",
            "LPOS {k} {e}",
            "LPOS {k} {e} RANK {s}",
            "LPOS {k} {e} COUNT {s}",
            "LPOS {k} {e} COUNT 0 RANK {s} MAXLEN {s}",
            "RPOPLPUSH {k} {k}",
            "LMOVE {k} {k} LEFT RIGHT",
            "LMOVE {k} {k} RIGHT LEFT",
            "LMOVE {k} {k} UP LEFT",
            "LMPOP 2 {k} {k} LEFT",
            "LMPOP 1 {k} RIGHT COUNT {s}",
            "LMPOP {s} {k} LEFT",
        ]),
        1500,
    );
}

#[test]
fn sets_answer_as_redis_does() {
    same_as_redis(
        "sets",
        &with_any(&[
            "SADD {k} {e}",
            "SADD {k} {e} {e} {e} {e}",
            "SREM {k} {e}",
            "SREM {k} {e} {e} {e} {e} {e}",
            "SCARD {k}",
            "SISMEMBER {k} {e}",
            "SMISMEMBER {k} {e} {e} {e}",
            "SMEMBERS {k}",
            "SMOVE {k} {k} {e}",
            "SRANDMEMBER {k}",
            "SRANDMEMBER {k} 0",
            "SRANDMEMBER {k} x",
            "SPOP {k} 0",
            "SPOP {k} 100",
            "SPOP {k} -1",
            "SINTER {k} {k}",
            "SUNION {k} {k} {k}",
            "SDIFF {k} {k}",
            "SINTERCARD 2 {k} {k}",
            "SINTERCARD 2 {k} {k} LIMIT {s}",
            "SINTERCARD {s} {k} {k}",
            "SINTERSTORE {k} {k} {k}",
            "SUNIONSTORE {k} {k} {k}",
            "SDIFFSTORE {k} {k} {k}",
            "SSCAN {k} 0",
            "SSCAN {k} 0 COUNT 2 MATCH {p}",
            "SSCAN {k} 0 nope",
        ]),
        1500,
    );
}

#[test]
fn sorted_sets_answer_as_redis_does() {
    same_as_redis(
        "sorted sets",
        &with_any(&[
            "ZADD {k} {score} {e}",
            "ZADD {k} {score} {e} {score} {e} {score} {e}",
            "ZADD {k} {NX} {score} {e}",
            "ZADD {k} {NX} CH {score} {e} {score} {e}",
            "ZADD {k} {NX} {NX} {score} {e}",
            "ZADD {k} INCR {score} {e}",
            "ZADD {k} {NX} INCR {score} {e}",
            "ZADD {k} {score} {e} {score}",
            "ZINCRBY {k} {score} {e}",
            "ZREM {k} {e} {e}",
            "ZCARD {k}",
            "ZSCORE {k} {e}",
            "ZMSCORE {k} {e} {e}",
            "ZRANK {k} {e}",
            "ZREVRANK {k} {e}",
            "ZCOUNT {k} {bound} {bound}",
            "ZRANGE {k} {s} {s}",
            "ZRANGE {k} 0 -1 WITHSCORES",
            "ZRANGE {k} {s} {s} REV WITHSCORES",
            "ZRANGE {k} {bound} {bound} BYSCORE",
            "ZRANGE {k} {bound} {bound} BYSCORE REV WITHSCORES LIMIT {s} {s}",
            "ZRANGE {k} {s} {s} LIMIT 0 1",
            "ZREVRANGE {k} {s} {s} WITHSCORES",
            "ZRANGEBYSCORE {k} {bound} {bound} WITHSCORES",
            "ZREVRANGEBYSCORE {k} {bound} {bound} LIMIT {s} {s}",
            "ZRANGESTORE {k} {k} {s} {s}",
            "ZRANGESTORE {k} {k} {bound} {bound} BYSCORE",
            "ZREMRANGEBYRANK {k} {s} {s}",
            "ZREMRANGEBYSCORE {k} {bound} {bound}",
            "ZPOPMIN {k}",
            "ZPOPMAX {k} {s}",
            "ZMPOP 2 {k} {k} MIN",
            "ZMPOP 1 {k} MAX COUNT {s}",
            "ZUNION 2 {k} {k} WITHSCORES",
            "ZUNION 2 {k} {k} WEIGHTS 2 0.5 AGGREGATE MAX WITHSCORES",
            "ZINTER 2 {k} {k} WITHSCORES",
            "ZDIFF 2 {k} {k} WITHSCORES",
            "ZINTERCARD 2 {k} {k} LIMIT {s}",
            "ZUNIONSTORE {k} 2 {k} {k} AGGREGATE MIN",
            "ZINTERSTORE {k} 2 {k} {k} WEIGHTS 2 -1",
            "ZDIFFSTORE {k} 2 {k} {k}",
            "ZRANDMEMBER {k}",
            "ZRANDMEMBER {k} 0",
            "ZSCAN {k} 0",
            "ZSCAN {k} 0 COUNT 2 MATCH {p}",
            "SADD {k} {e}",
        ]),
        2000,
    );
}

/// Ranges by name are defined only where all scores are equal.
#[test]
fn sorted_sets_of_one_score_answer_by_name_as_redis_does() {
    same_as_redis(
        "sorted sets by name",
        &[
            "ZADD {k} 0 {e}",
            "ZADD {k} 0 {e} 0 {e} 0 {e}",
            "ZREM {k} {e}",
            "DEL {k}",
            "ZRANGE {k} {lex} {lex} BYLEX REV LIMIT {s} {s}",
            "ZRANGESTORE {k} {k} {lex} {lex} BYLEX",
            "ZLEXCOUNT {k} {lex} {lex}",
            "ZRANGE {k} {lex} {lex} BYLEX LIMIT {s} {s}",
            "ZRANGEBYLEX {k} {lex} {lex}",
            "ZREVRANGEBYLEX {k} {lex} {lex}",
            "ZREMRANGEBYLEX {k} {lex} {lex}",
        ],
        1000,
    );
}
