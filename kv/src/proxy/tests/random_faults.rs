//! Callers on three nodes, a leadership that wanders, streams that break and peers that fall silent:
//! whatever happens, requests end in time, and what they were told is true.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::Outcome;

/// What was evaluated, in order, and how many leaderships there had been: the state all replicas
/// share.
type History = Arc<Mutex<(u32, Vec<(u32, String)>)>>;

fn record(history: &History, name: String) {
    let mut history = history.lock();
    let leadership = history.0;
    history.1.push((leadership, name));
}

/// Commands taken by a leader and not answered yet, as an executor's queue.
type Queue = Arc<Mutex<Vec<(Arc<dyn Operation>, oneshot::Sender<Reply>)>>>;

/// A leader that takes commands into a queue; the test decides when they are evaluated, and what
/// becomes of them when the leadership ends.
struct Queued {
    shard: Arc<FakeShard>,
    queue: Queue,
}

impl LocalShard for Queued {
    fn submit(&self, ctx: &Context, submission: Submission) -> PendingReply {
        if !self.is_leading() {
            return PendingReply::ready(Err(self.shard.refuse()));
        }
        let (reply, received) = oneshot::channel();
        let read = submission.operation.access() == Access::Read;
        self.queue.lock().push((submission.operation, reply));
        let ctx = ctx.clone();
        PendingReply::running(Box::pin(async move {
            match ctx.run(received).await {
                Ok(reply) => reply.unwrap_or(Err(KvError::Unknown("dropped"))),
                Err(ended) if read => Err(KvError::NotApplied(ended)),
                // It may be evaluated yet.
                Err(_) => Err(KvError::Unknown("the deadline passed")),
            }
        }))
    }

    fn watch(&self, _keys: &[Bytes]) -> Result<KeyWatch, KvError> {
        Err(self.shard.refuse())
    }

    fn is_leading(&self) -> bool {
        self.shard.leading.load(Ordering::SeqCst)
    }

    fn leadership(&self) -> Leadership {
        *self.shard.leadership.borrow()
    }

    fn verify_leader<'a>(
        &'a self,
        _ctx: &'a Context,
    ) -> BoxFuture<'a, Result<ReadIndex, RaftError>> {
        Box::pin(async { Err(RaftError::NotLeader { leader: None }) })
    }
}

/// Evaluates the oldest `count` commands of `queue`.
fn evaluate(queue: &Queue, history: &History, count: usize) {
    let mut queue = queue.lock();
    let count = count.min(queue.len());
    for (operation, reply) in queue.drain(..count) {
        let mut rows = crate::testing::MemoryRows::default();
        let said = operation.evaluate(&mut rows).unwrap();
        if operation.access() == Access::Write {
            let name = String::from_utf8(said.to_vec()).unwrap();
            record(history, name);
        }
        // Who gave up is not told.
        drop(reply.send(Ok(said)));
    }
}

/// Ends a leadership: of what is queued some was evaluated and its fate lost, the rest is refused.
fn depose(queue: &Queue, history: &History, random: &mut StdRng) {
    let lost = random.random_range(0..3);
    for (at, (operation, reply)) in queue.lock().drain(..).enumerate() {
        if at < lost && operation.access() == Access::Write {
            if random.random() {
                let mut rows = crate::testing::MemoryRows::default();
                let said = operation.evaluate(&mut rows).unwrap();
                record(history, String::from_utf8(said.to_vec()).unwrap());
            }
            drop(reply.send(Err(KvError::Unknown("leadership ended"))));
        } else {
            drop(reply.send(Err(KvError::NoLeader { leader: None })));
        }
    }
}

/// One caller: pipelines on a few keys, answers taken in order. Returns the names of its writes on
/// each key, in order, with what it was told.
async fn call(
    coordinator: Arc<ShardedCoordinator>,
    caller: usize,
    mut random: StdRng,
) -> Vec<(usize, String, Reply)> {
    let mut told = Vec::new();
    let connection = Context::with_timeout(Duration::from_secs(3600)).as_caller();
    for round in 0..60 {
        let deadline = random.random_range(5..400);
        let ctx = connection.child(Duration::from_millis(deadline));
        let began = Instant::now();
        let mut pipeline = Vec::new();
        for at in 0..random.random_range(1..6) {
            let on = random.random_range(0..3_usize);
            let name = format!("{caller}.{round}.{at}");
            let mut say = if random.random_range(0..4) == 0 {
                (*read(&name)).clone()
            } else {
                (*write(&name)).clone()
            };
            say.keys = vec![
                [&key(0)[..], &[b'a' + u8::try_from(on).unwrap()]]
                    .concat()
                    .into(),
            ];
            let write = say.access == Access::Write;
            let reply = coordinator.submit(&ctx, Arc::new(say));
            pipeline.push((on, name, write, reply));
            // The leadership may wander in the middle of a pipeline.
            if random.random_range(0..3) == 0 {
                tokio::time::sleep(Duration::from_micros(random.random_range(0..4000))).await;
            }
        }
        for (on, name, write, reply) in pipeline {
            let reply = reply.await;
            let took = u64::try_from(began.elapsed().as_millis()).unwrap();
            assert!(
                took <= deadline + 5,
                "{took} ms of {deadline} ms: {reply:?}"
            );
            if write {
                told.push((on, name, reply));
            }
        }
        tokio::time::sleep(Duration::from_millis(random.random_range(0..20))).await;
    }
    told
}

async fn run(seed: u64) -> u32 {
    let mut random = StdRng::seed_from_u64(seed);
    let queues: Vec<Queue> = (0..3).map(|_| Queue::default()).collect();
    let history = History::default();
    let cluster = Cluster::with(|node, shard| {
        let at = usize::try_from(node.0).unwrap() - 1;
        Box::new(Queued {
            shard: Arc::clone(shard),
            queue: Arc::clone(&queues[at]),
        })
    })
    .await;
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..6 {
        let coordinator = Arc::clone(&cluster.nodes[caller % 3].coordinator);
        callers.spawn(call(
            coordinator,
            caller,
            StdRng::seed_from_u64(seed ^ caller as u64),
        ));
    }
    let mut leads: Option<usize> = None;
    let mut told: Vec<Vec<(usize, String, Reply)>> = Vec::new();
    while told.len() < 6 {
        match random.random_range(0..100) {
            0..=2 => {
                // A new leader, or none; not everybody hears of it.
                if let Some(old) = leads.take() {
                    cluster.nodes[old]
                        .shard
                        .leading
                        .store(false, Ordering::SeqCst);
                    depose(&queues[old], &history, &mut random);
                }
                history.lock().0 += 1;
                leads = (random.random_range(0..4) > 0).then(|| random.random_range(0..3));
                for (at, node) in cluster.nodes.iter().enumerate() {
                    match leads {
                        Some(new) if new == at => node.lead(),
                        Some(new) if random.random_range(0..4) > 0 => node.follow(new as u64 + 1),
                        _ => node.believe(Leadership::Unknown),
                    }
                }
            }
            // Whoever has not heard hears now.
            3..=8 => {
                if let Some(new) = leads {
                    for (at, node) in cluster.nodes.iter().enumerate() {
                        if at != new {
                            node.follow(new as u64 + 1);
                        }
                    }
                }
            }
            9 => cluster.network.reset(random.random_range(1..=3)),
            10 => cluster.network.blackhole(random.random_range(1..=3)),
            11..=14 => cluster.network.heal(),
            _ => {
                if let Some(at) = leads {
                    evaluate(&queues[at], &history, random.random_range(1..20));
                }
            }
        }
        let pause = tokio::time::sleep(Duration::from_micros(random.random_range(100..3000)));
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                Some(done) = callers.join_next() => told.push(done.unwrap()),
            }
        }
    }
    let overtaken = check(seed, &history.lock().1, &told);
    for node in &cluster.nodes {
        node.nothing_is_left();
    }
    overtaken
}

/// Returns how many writes were overtaken by a later one of their caller on their key.
fn check(seed: u64, history: &[(u32, String)], told: &[Vec<(usize, String, Reply)>]) -> u32 {
    let mut places: BTreeMap<&str, usize> = BTreeMap::new();
    for (at, (_, name)) in history.iter().enumerate() {
        let before = places.insert(name, at);
        assert_eq!(before, None, "seed {seed}: {name} was evaluated twice");
    }
    let (mut done, mut overtaken) = (0, 0);
    for caller in told {
        let mut last = [None::<usize>; 3];
        for (on, name, reply) in caller {
            let place = places.get(name.as_str()).copied();
            match reply {
                Ok(_) => {
                    let place = place.unwrap_or_else(|| {
                        panic!("seed {seed}: {name} was acknowledged and never evaluated")
                    });
                    if let Some(earlier) = last[*on].filter(|&earlier| earlier > place) {
                        // The one way that `Flight` knows of: the earlier one was on its way to
                        // a node that led again by the time it arrived.
                        assert!(
                            history[earlier].0 > history[place].0,
                            "seed {seed}: {name} changed places with {:?}, an earlier write on \
                             its key, under one leader",
                            history[earlier]
                        );
                        overtaken += 1;
                    }
                    last[*on] = Some(place);
                    done += 1;
                }
                Err(error) if error.outcome() == Outcome::NotApplied => {
                    assert_eq!(
                        place, None,
                        "seed {seed}: {name} was evaluated after all: {error}"
                    );
                }
                Err(_) => {}
            }
        }
    }
    assert!(
        done > 100,
        "seed {seed}: only {done} writes were acknowledged"
    );
    overtaken
}

/// Promises 4 and 5, and the order that pipelines rely on, under every fault this layer meets.
#[tokio::test(start_paused = true)]
async fn requests_end_in_time_and_what_they_are_told_is_true_whatever_fails() {
    let mut overtaken = 0;
    for seed in 0..24 {
        overtaken += run(seed).await;
    }
    assert!(overtaken <= 2, "{overtaken} writes were overtaken");
}
