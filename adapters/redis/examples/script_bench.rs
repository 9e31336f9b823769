//! What a script of two commands costs beside its two commands: evaluated in memory, on one thread.
//!
//! `cargo run --release -p leadline-redis --example script_bench`

use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use leadline_kv::testing::MemoryRows;
use leadline_kv::{OperationCodec, Timestamp};
use leadline_redis::RedisCodec;

const ROUNDS: u32 = 200_000;

/// A command as one node forwards it to another.
fn forwarded(args: &[&str]) -> Bytes {
    let mut out = BytesMut::new();
    out.put_slice(&[1, 0, 2]);
    for arg in args {
        out.put_u32(u32::try_from(arg.len()).expect("short"));
        out.put_slice(arg.as_bytes());
    }
    out.freeze()
}

/// Parses and evaluates `commands`, in rounds; the time of one round.
fn round(commands: &[Bytes]) -> Duration {
    let mut rows = MemoryRows::default();
    let mut stamp = 1u64 << 40;
    let mut run = |times: u32| {
        let began = Instant::now();
        for _ in 0..times {
            for command in commands {
                stamp += 1;
                rows.set_now(Timestamp(stamp));
                let operation = RedisCodec.decode(command.clone()).expect("well formed");
                let reply = operation.evaluate(&mut rows).expect("evaluated");
                assert_ne!(reply.first(), Some(&b'-'), "{reply:?}");
            }
        }
        began.elapsed()
    };
    run(ROUNDS / 10);
    run(ROUNDS) / ROUNDS
}

fn script(body: &str) -> Bytes {
    forwarded(&["LEADLINE.SCRIPT", "rw", body, "", "1", "key", "value"])
}

fn main() {
    let (get, set) = (
        forwarded(&["GET", "key"]),
        forwarded(&["SET", "key", "value"]),
    );
    let two = "redis.call('get',KEYS[1]) return redis.call('set',KEYS[1],ARGV[1])";
    let padded = format!("{two}\n--{}", "x".repeat(10_000));
    for (name, commands) in [
        ("GET and SET", vec![get, set]),
        ("a script that does nothing", vec![script("return 1")]),
        ("a script of GET and SET", vec![script(two)]),
        ("the same with 10 kB of text", vec![script(&padded)]),
    ] {
        println!("{name:<30} {:>7} ns", round(&commands).as_nanos());
    }
}
