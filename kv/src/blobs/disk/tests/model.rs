//! Random work against a model, with the process killed and the power lost at any operation.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;

const CHUNKS: u32 = 40;

/// What must be there: chunks whose write returned, and when they were last needed.
#[derive(Default)]
struct Model {
    kept: BTreeMap<u32, u32>,
}

struct World {
    rt: Runtime,
    disk: Disk,
    store: Arc<ChunkStore>,
    model: Model,
    rng: StdRng,
}

impl World {
    fn new(seed: u64) -> Self {
        let disk = Disk::default();
        Self {
            rt: runtime(),
            store: open(&disk),
            disk,
            model: Model::default(),
            rng: StdRng::seed_from_u64(seed),
        }
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..55 => self.put(),
            55..65 => {
                let i = self.rng.random_range(0..CHUNKS);
                self.check(i);
            }
            65..75 => self.store.advance(self.rng.random_range(1..5)),
            75..82 => self.collect(),
            82..90 => self.compact(),
            90..93 => {
                self.store.close();
                if !self.disk.is_dead() {
                    self.reopen();
                }
            }
            93..97 => {
                let after = self.rng.random_range(0..12);
                self.disk.kill_after(after);
            }
            _ => {
                let records = self.store.sealed().into_iter().next();
                if let Some(segment) = records
                    && let Ok(live) = self.store.live_in(&segment)
                {
                    for (hash, at) in live {
                        let good = self.store.scrub(hash, at);
                        assert!(good || self.disk.is_dead());
                    }
                }
            }
        }
        if self.disk.is_dead() {
            // The old process' threads are gone before the new one looks.
            self.store.close();
            self.come_back();
            self.reopen();
        }
    }

    fn come_back(&mut self) {
        if self.rng.random_bool(0.5) {
            self.disk.restart();
        } else {
            self.disk.lose_power(&mut self.rng);
        }
    }

    fn put(&mut self) {
        let several = self.rng.random_range(1..5);
        let which: Vec<u32> = (0..several)
            .map(|_| self.rng.random_range(0..CHUNKS))
            .collect();
        let store = &self.store;
        let written = self.rt.block_on(async {
            let writes = which.iter().map(|&i| async move {
                let (name, bytes) = chunk(i);
                // As a caller does: what is here is refreshed, and read before it is relied on.
                if store.refresh(name) && matches!(store.read(name), Ok(Some(_))) {
                    return (i, true);
                }
                let crc = crc32c::crc32c(&bytes);
                let written = store.write(&seconds(60), name, crc, bytes, None).await;
                (i, written.is_ok())
            });
            futures::future::join_all(writes).await
        });
        let now = self.store.now();
        for (i, written) in written {
            if written {
                self.model.kept.insert(i, now);
            } else {
                assert!(self.disk.is_dead(), "a write fails with the disk only");
            }
        }
    }

    fn check(&self, i: u32) {
        let (name, bytes) = chunk(i);
        let found = match self.store.read(name) {
            Ok(found) => found,
            Err(error) => {
                assert!(self.disk.is_dead(), "{error}");
                return;
            }
        };
        if let Some(found) = &found {
            assert_eq!(found, &bytes, "what is read is what was written");
        }
        if self.model.kept.contains_key(&i) && !self.disk.is_dead() {
            assert!(found.is_some(), "chunk {i} is lost");
        }
    }

    fn collect(&mut self) {
        let limit = self.store.now().saturating_sub(3);
        self.store.collect(limit);
        self.model.kept.retain(|_, stamp| *stamp >= limit);
    }

    fn compact(&mut self) {
        for segment in self.store.sparse(60) {
            let Ok(live) = self.store.live_in(&segment) else {
                return;
            };
            for (hash, at) in live {
                if self.store.relocate(hash, at).is_err() {
                    return;
                }
            }
            if self.store.delete_if_empty(&segment).is_err() {
                return;
            }
        }
    }

    fn reopen(&mut self) {
        // Opening may be killed as anything else may.
        if self.rng.random_bool(0.3) {
            self.disk.kill_after(self.rng.random_range(0..8));
        }
        self.store = loop {
            match try_open(&self.disk) {
                Ok(store) => break store,
                Err(error) => assert!(self.disk.is_dead(), "{error}"),
            }
            self.come_back();
        };
        assert_eq!(self.store.found().damaged, 0, "nothing was damaged");
        for stamp in self.model.kept.values_mut() {
            *stamp = 0;
        }
        for i in 0..CHUNKS {
            self.check(i);
        }
        let stats = self.store.stats();
        assert!(stats.live_bytes <= stats.used_bytes, "{stats:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_was_acknowledged_is_whole_whatever_is_killed_and_whenever(seed in any::<u64>()) {
        let mut world = World::new(seed);
        for _ in 0..120 {
            world.step();
        }
        world.store.close();
        world.come_back();
        world.reopen();
    }
}
