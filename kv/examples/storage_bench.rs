//! What the storage engines cost: CPU of this process per put, get and scan, memory and disk.
//!
//! `cargo run --release -p leadline-kv --example storage_bench -- [keys] [engine]...`
//! (100 000 keys and every engine unless said otherwise; 16 B keys, 128 B values, batches of 32)

#![expect(clippy::unwrap_used, reason = "a benchmark ends where it fails")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use leadline_kv::storage::{Batch, EngineKind, GroupStorage, Position, Store, StoreOptions};
use leadline_kv::{ScanOrder, Timestamp, storage::Row};
use leadline_raft::GroupId;

const BATCH: u64 = 32;
const VALUE: usize = 128;

/// User and system time of this process. Linux counts it in hundredths of a second.
fn cpu() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(')').unwrap();
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().unwrap())
        .sum();
    Duration::from_millis(ticks * 10)
}

fn rss_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    let kib: u64 = line
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    kib / 1024
}

/// A key of the Redis keyspace, spread over its slots.
fn key(number: u64) -> Bytes {
    let spread = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut key = BytesMut::with_capacity(16);
    key.put_u8(0x10);
    key.put_u64(spread);
    key.put_slice(&[0x61; 7]);
    key.freeze()
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // xorshift64 (Marsaglia 2003)
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn value(&mut self) -> [u8; VALUE] {
        let mut value = [0; VALUE];
        for part in value.chunks_exact_mut(8) {
            part.copy_from_slice(&self.next().to_le_bytes());
        }
        value
    }
}

fn measure(what: &str, count: u64, work: impl FnOnce()) {
    let (cpu_before, began) = (cpu(), Instant::now());
    work();
    let per = |time: Duration| time.as_secs_f64() * 1e6 / count as f64;
    println!(
        "  {what:<18} {:7.2} us CPU {:7.2} us wall   RSS {} MiB",
        per(cpu() - cpu_before),
        per(began.elapsed()),
        rss_mib()
    );
}

fn fill(group: &GroupStorage, keys: u64, random: &mut Random, pick: impl Fn(u64, u64) -> u64) {
    let applied = group.position().map_or(0, |position| position.index);
    for (index, first) in (applied + 1..).zip((0..keys).step_by(BATCH as usize)) {
        let mut batch = Batch::with_capacity(BATCH as usize);
        for number in first..(first + BATCH).min(keys) {
            let number = pick(number, random.next());
            batch.put(key(number), Row::encode(Timestamp(number), &random.value()));
        }
        let state = Bytes::from_static(b"a position as long as openraft's, in bytes");
        group.apply(batch, Position { index, state }).unwrap();
    }
}

fn run(engine: EngineKind, keys: u64) {
    println!("{engine}: {keys} keys");
    let dir = std::env::temp_dir().join(format!("leadline-storage-bench-{}", std::process::id()));
    let options = StoreOptions {
        engine,
        ..StoreOptions::default()
    };
    let store: Arc<Store> = Store::open(&dir, options).unwrap().store;
    let group = store.group(GroupId(1)).unwrap();
    let whole = [Bytes::from_static(&[0x10])..Bytes::from_static(&[0x11])];
    let mut random = Random(0x1234_5678_9ABC_DEF1);
    let reads = keys.min(200_000);

    measure("put, new", keys, || {
        fill(&group, keys, &mut random, |number, _| number)
    });
    measure("put, overwrite", keys, || {
        fill(&group, keys, &mut random, |_, random| random % keys);
    });
    measure("flush (one)", 1, || {
        group.flush(&whole).unwrap();
    });
    measure("get, uncached", reads, || {
        let view = group.view().unwrap();
        for _ in 0..reads {
            assert!(view.rows.get(&key(random.next() % keys)).unwrap().is_some());
        }
    });
    let hot = 1000.min(keys);
    for number in 0..hot {
        group.get(&key(number)).unwrap();
    }
    measure("get, cached", reads * 10, || {
        let hot_keys: Vec<Bytes> = (0..hot).map(key).collect();
        for _ in 0..reads * 10 {
            let key = &hot_keys[(random.next() % hot) as usize];
            assert!(group.get(key).unwrap().is_some());
        }
    });
    let scans = (reads / 50).max(1);
    measure("scan of 50", scans, || {
        for _ in 0..scans {
            let start = key(random.next());
            let mut left = 50;
            let mut visit = |_: &[u8], _: &[u8]| {
                left -= 1;
                left > 0
            };
            group
                .scan(&start..&whole[0].end, ScanOrder::Ascending, &mut visit)
                .unwrap();
        }
    });
    println!(
        "  disk: {:.2} of the logical size",
        store.approximate_size() as f64 / (keys * (16 + VALUE as u64)) as f64
    );
    store.close().unwrap();
    drop((group, store));
    measure("open again (one)", 1, || {
        let store = Store::open(&dir, options).unwrap().store;
        store.close().unwrap();
    });
    std::fs::remove_dir_all(&dir).unwrap();
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let keys = arguments
        .next()
        .map_or(100_000, |keys| keys.parse().unwrap());
    let mut engines: Vec<EngineKind> = arguments.map(|name| name.parse().unwrap()).collect();
    if engines.is_empty() {
        engines = vec![EngineKind::Fjall, EngineKind::Sled];
    }
    for engine in engines {
        run(engine, keys);
    }
}
