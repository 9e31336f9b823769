//! What clients do: which operation comes next, how it is said in Redis' words (in S3's: `s3.rs`),
//! and what its answer means. Several workloads can run at once; each has keys of its own.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use jepsen::check::{self, Verdict};
use jepsen::history::{Action, End, Key, Mop, Op};
use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use crate::client::{Client, Failed, Reply};

/// A workload. The names are those of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Kind {
    /// GET, SET, and compare-and-set by WATCH and by Lua, on single keys: linearizable.
    Register,
    /// Registers of 1 KiB to 256 KiB, whose every byte is checked.
    Large,
    /// Transactions that append to lists and read them, over shards: strictly serializable.
    Append,
    /// Transactions that write and read registers, over shards: strictly serializable.
    Wr,
    /// Transfers between accounts on several shards; the total holds.
    Bank,
    /// INCR and GET: nothing lost, nothing twice.
    Counter,
    /// SADD and SMEMBERS.
    Set,
    /// RPUSH and BLPOP with blocked clients: nothing lost, nothing delivered twice.
    Queue,
    /// SET PX and GET: gone at its time, and for good.
    Ttl,
    /// Writes with deadlines from 5 ms to 1 s: each ends by its own, and tells the truth.
    Deadline,
    /// S3: GET, PUT, DELETE, PUT with If-Match and If-None-Match on single objects of up to 2.5 MB,
    /// whose every byte is checked: linearizable.
    S3Register,
    /// S3: contenders for locks, by PUT with If-None-Match: each lock has one winner.
    S3Lock,
    /// S3: PUT, DELETE and ListObjectsV2: listings have what was acknowledged, and nothing else.
    S3List,
}

/// All of them.
pub(crate) const ALL: [Kind; 13] = [
    Kind::Register,
    Kind::Large,
    Kind::Append,
    Kind::Wr,
    Kind::Bank,
    Kind::Counter,
    Kind::Set,
    Kind::Queue,
    Kind::Ttl,
    Kind::Deadline,
    Kind::S3Register,
    Kind::S3Lock,
    Kind::S3List,
];

impl Kind {
    /// As the command line has it.
    pub(crate) fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(|| format!("{self:?}"), |value| value.get_name().to_owned())
    }

    /// Whether its operations are S3's.
    pub(crate) fn is_s3(self) -> bool {
        matches!(self, Self::S3Register | Self::S3Lock | Self::S3List)
    }
}

/// Longer than any deadline of the store's.
pub(crate) const PATIENCE: Duration = Duration::from_secs(8);

/// The deadline of every connection.
pub(crate) const DEADLINE: Duration = Duration::from_secs(2);

const ACCOUNTS: Key = 10;
const OPENING: i64 = 100;
const QUEUES: Key = 2;
const COUNTERS: Key = 4;

/// What the store under test can do.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Abilities {
    /// EVAL.
    pub(crate) lua: bool,
    /// `DEADLINE` and `CLIENT DEADLINE`: ours.
    pub(crate) deadlines: bool,
}

/// How several things are asked at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// MULTI, EXEC and WATCH.
    Exec,
    /// EVAL.
    Script,
    /// MSET or MGET, where one of them will do.
    Command,
}

/// An operation, as it will be asked.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) action: Action,
    way: Way,
    /// A deadline of its own.
    deadline: Option<Duration>,
}

/// The operations of a run, in no order: each is drawn when a client is free.
pub(crate) struct Workload {
    kinds: Vec<Kind>,
    abilities: Abilities,
    began: Instant,
    values: AtomicI64,
    expiring: AtomicU32,
    /// Objects of each listing that are there and that nobody has begun to delete.
    listed: Mutex<HashMap<Key, Vec<i64>>>,
}

/// The keys of a kind are numbered from here.
fn base(kind: Kind) -> Key {
    (kind as Key) << 24
}

fn kind_of(key: Key) -> Option<Kind> {
    ALL.into_iter().find(|kind| *kind as Key == key >> 24)
}

/// A key's name in the store. Neighbours are on different shards.
fn name(key: Key) -> String {
    let kind = kind_of(key).map_or_else(|| "key".to_owned(), Kind::name);
    format!("{kind}:{}", key & 0x00FF_FFFF)
}

/// The text of a value; for large registers a long one that shows every tear.
fn encode(key: Key, value: i64) -> String {
    if kind_of(key) != Some(Kind::Large) {
        return value.to_string();
    }
    let random = (value as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let length = 1024 + usize::try_from(random >> 46).unwrap_or(0);
    let mut text = format!("{value}:");
    let word = format!("{random:016x}");
    while text.len() < length {
        text.push_str(&word);
    }
    text
}

/// A torn value reads as this, which nobody writes.
pub(crate) const TORN: i64 = -1;

fn decode(key: Key, text: &str) -> i64 {
    let number = text.split_once(':').map_or(text, |(number, _)| number);
    let value: i64 = number.parse().unwrap_or(TORN);
    if encode(key, value) == text {
        value
    } else {
        TORN
    }
}

const APPEND_SCRIPT: &str = "local out = {}
for i = 1, #KEYS do
  if ARGV[i] == '' then out[i] = redis.call('LRANGE', KEYS[i], 0, -1)
  else out[i] = redis.call('RPUSH', KEYS[i], ARGV[i]) end
end
return out";

const WR_SCRIPT: &str = "local out = {}
for i = 1, #KEYS do
  if ARGV[i] == '' then out[i] = redis.call('GET', KEYS[i])
  else redis.call('SET', KEYS[i], ARGV[i]); out[i] = 'OK' end
end
return out";

const CAS_SCRIPT: &str = "local now = redis.call('GET', KEYS[1])
if now == ARGV[1] then redis.call('SET', KEYS[1], ARGV[2]); return 1 end
return now";

const TRANSFER_SCRIPT: &str =
    "if tonumber(redis.call('GET', KEYS[1])) < tonumber(ARGV[1]) then return 0 end
redis.call('DECRBY', KEYS[1], ARGV[1])
redis.call('INCRBY', KEYS[2], ARGV[1])
return 1";

/// How an operation ended, with what it did or saw.
pub(crate) struct Answer {
    pub(crate) action: Action,
    pub(crate) end: End,
    pub(crate) error: Option<String>,
    /// The connection is of no more use.
    pub(crate) broken: bool,
}

/// Why an operation has no answer.
pub(crate) enum Missing {
    /// The store said so.
    Said(String),
    /// S3 said so, and means this.
    Refused(End, String),
    Failed(Failed),
    /// It was given up without effect: a conflict, too little money.
    GivenUp(&'static str),
    /// An answer that makes no sense here.
    Strange(String),
}

impl From<Failed> for Missing {
    fn from(failed: Failed) -> Self {
        Self::Failed(failed)
    }
}

/// What an error line means for the command it answers.
fn means(line: &str) -> End {
    if line.starts_with("UNKNOWN") || line.contains("may have been applied") {
        End::Info
    } else {
        End::Fail
    }
}

impl Workload {
    pub(crate) fn new(kinds: &[Kind], abilities: Abilities, began: Instant) -> Self {
        Self {
            kinds: kinds.to_vec(),
            abilities,
            began,
            values: AtomicI64::new(1),
            expiring: AtomicU32::new(0),
            listed: Mutex::default(),
        }
    }

    fn value(&self) -> i64 {
        self.values.fetch_add(1, Ordering::Relaxed)
    }

    /// A key that is one of `at_once`, all of which change every `period`.
    fn rotating(&self, kind: Kind, at_once: Key, period: Duration, random: &mut SmallRng) -> Key {
        let generation = self.began.elapsed().as_millis() / period.as_millis().max(1);
        let generation = Key::try_from(generation).unwrap_or(0);
        base(kind) + generation * at_once + random.random_range(0..at_once)
    }

    /// What must be there before clients begin.
    pub(crate) fn setup(&self) -> Vec<Vec<String>> {
        if !self.kinds.contains(&Kind::Bank) {
            return Vec::new();
        }
        (0..ACCOUNTS)
            .map(|account| {
                let name = name(base(Kind::Bank) + account);
                vec!["SET".into(), name, OPENING.to_string()]
            })
            .collect()
    }

    /// The next operation of a client.
    pub(crate) fn next(&self, random: &mut SmallRng) -> Ask {
        let kind = self.kinds[random.random_range(0..self.kinds.len())];
        let second = Duration::from_secs(1);
        let mut deadline = None;
        let action = match kind {
            Kind::Register | Kind::Large => {
                let key = self.rotating(kind, 4, 3 * second, random);
                match random.random_range(0..10) {
                    0..4 => Action::Read { key, value: None },
                    4..7 => Action::Write {
                        key,
                        value: self.value(),
                    },
                    _ if kind == Kind::Large => Action::Read { key, value: None },
                    _ => Action::Cas {
                        key,
                        from: 0,
                        to: self.value(),
                    },
                }
            }
            Kind::Wr if random.random_bool(0.4) => {
                let count = random.random_range(2..=4);
                let first = (self.rotating(kind, 1, 5 * second, random) - base(kind)) * 6;
                let writes = random.random_bool(0.5);
                let mut keys: Vec<Key> = (0..6).collect();
                keys.shuffle(random);
                let mops = keys[..count]
                    .iter()
                    .map(|key| {
                        let key = base(kind) + first + key;
                        if writes {
                            Mop::Write(key, self.value())
                        } else {
                            Mop::Read(key, None)
                        }
                    })
                    .collect();
                return Ask {
                    action: Action::Txn(mops),
                    way: Way::Command,
                    deadline: None,
                };
            }
            Kind::Append | Kind::Wr => {
                let count = random.random_range(1..=4);
                let mops = (0..count)
                    .map(|_| {
                        let key = self.rotating(kind, 6, 5 * second, random);
                        match (kind, random.random_bool(0.5)) {
                            (Kind::Append, true) => Mop::Append(key, self.value()),
                            (Kind::Append, false) => Mop::List(key, Vec::new()),
                            (_, true) => Mop::Write(key, self.value()),
                            (_, false) => Mop::Read(key, None),
                        }
                    })
                    .collect();
                Action::Txn(mops)
            }
            Kind::Bank => {
                if random.random_bool(0.3) {
                    Action::Balances(Vec::new())
                } else {
                    let from = random.random_range(0..ACCOUNTS);
                    let to = (from + random.random_range(1..ACCOUNTS)) % ACCOUNTS;
                    let amount = random.random_range(1..=5);
                    Action::Transfer { from, to, amount }
                }
            }
            Kind::Counter => {
                let key = base(kind) + random.random_range(0..COUNTERS);
                if random.random_bool(0.7) {
                    Action::Increment { key, value: 0 }
                } else {
                    Action::Count { key, value: 0 }
                }
            }
            Kind::Set => {
                let key = self.rotating(kind, 2, 5 * second, random);
                if random.random_bool(0.8) {
                    Action::Add {
                        key,
                        value: self.value(),
                    }
                } else {
                    Action::Members {
                        key,
                        values: Vec::new(),
                    }
                }
            }
            Kind::Queue => {
                let key = base(kind) + random.random_range(0..QUEUES);
                if random.random_bool(0.5) {
                    Action::Enqueue {
                        key,
                        value: self.value(),
                    }
                } else {
                    Action::Dequeue { key, value: None }
                }
            }
            Kind::Ttl => {
                let made = self.expiring.load(Ordering::Relaxed);
                if made == 0 || random.random_bool(0.3) {
                    let key = base(kind) + self.expiring.fetch_add(1, Ordering::Relaxed);
                    Action::Expiring {
                        key,
                        value: self.value(),
                        ttl_ms: random.random_range(100..1500),
                    }
                } else {
                    let back = random.random_range(1..=made.min(30));
                    Action::Read {
                        key: base(kind) + made - back,
                        value: None,
                    }
                }
            }
            Kind::S3Register => {
                let key = self.rotating(kind, 4, 3 * second, random);
                let value = self.value();
                match random.random_range(0..20) {
                    0..8 => Action::Read { key, value: None },
                    8..12 => Action::Write { key, value },
                    12..14 => Action::Delete { key },
                    14..16 => Action::Create {
                        key,
                        value,
                        won: false,
                    },
                    _ => Action::Cas {
                        key,
                        from: 0,
                        to: value,
                    },
                }
            }
            Kind::S3Lock => {
                let key = self.rotating(kind, 2, second, random);
                if random.random_bool(0.6) {
                    Action::Create {
                        key,
                        value: self.value(),
                        won: false,
                    }
                } else {
                    Action::Read { key, value: None }
                }
            }
            Kind::S3List => {
                let key = self.rotating(kind, 2, 5 * second, random);
                let choice = random.random_range(0..10);
                if choice < 3 {
                    let values = Vec::new();
                    Action::Members { key, values }
                } else if choice < 5
                    && let Some(value) = self.listed(key, random)
                {
                    Action::Remove { key, value }
                } else {
                    let value = self.value();
                    Action::Add { key, value }
                }
            }
            Kind::Deadline => {
                let millis: f64 = random.random_range(5f64.ln()..1000f64.ln());
                deadline = Some(Duration::from_millis(millis.exp() as u64));
                let key = self.rotating(kind, 4, 5 * second, random);
                if random.random_bool(0.8) {
                    Action::Add {
                        key,
                        value: self.value(),
                    }
                } else {
                    Action::Members {
                        key,
                        values: Vec::new(),
                    }
                }
            }
        };
        Ask {
            action,
            way: if self.abilities.lua && random.random_bool(0.4) {
                Way::Script
            } else {
                Way::Exec
            },
            deadline: deadline.filter(|_| self.abilities.deadlines),
        }
    }

    /// Takes an object of a listing that is there.
    fn listed(&self, key: Key, random: &mut SmallRng) -> Option<i64> {
        let mut listed = self.listed.lock().ok()?;
        let values = listed.get_mut(&key).filter(|values| !values.is_empty())?;
        let at = random.random_range(0..values.len());
        Some(values.swap_remove(at))
    }

    /// What is asked when all is calm again, until it is answered: everything that is there.
    pub(crate) fn finals(&self, history: &[Op]) -> Vec<Ask> {
        let mut keys: BTreeMap<Kind, Vec<Key>> = BTreeMap::new();
        let mut note = |key: Key| {
            if let Some(kind) = kind_of(key) {
                let known = keys.entry(kind).or_default();
                if !known.contains(&key) {
                    known.push(key);
                }
            }
        };
        for op in history {
            match &op.action {
                Action::Txn(mops) => {
                    for mop in mops {
                        let (Mop::Append(key, _)
                        | Mop::List(key, _)
                        | Mop::Write(key, _)
                        | Mop::Read(key, _)) = mop;
                        note(*key);
                    }
                }
                action => key_of(action).into_iter().for_each(&mut note),
            }
        }
        let mut asks = Vec::new();
        let mut ask = |action| {
            asks.push(Ask {
                action,
                way: Way::Exec,
                deadline: None,
            });
        };
        for (kind, keys) in keys {
            match kind {
                Kind::Append | Kind::Wr => {
                    for some in keys.chunks(8) {
                        let read = |key: &Key| match kind {
                            Kind::Append => Mop::List(*key, Vec::new()),
                            _ => Mop::Read(*key, None),
                        };
                        ask(Action::Txn(some.iter().map(read).collect()));
                    }
                }
                Kind::Register | Kind::Large | Kind::Ttl | Kind::S3Register | Kind::S3Lock => {
                    for key in keys {
                        ask(Action::Read { key, value: None });
                    }
                }
                Kind::Counter => {
                    for key in keys {
                        ask(Action::Count { key, value: 0 });
                    }
                }
                Kind::Set | Kind::Deadline | Kind::S3List => {
                    for key in keys {
                        let values = Vec::new();
                        ask(Action::Members { key, values });
                    }
                }
                Kind::Bank | Kind::Queue => {}
            }
        }
        if self.kinds.contains(&Kind::Bank) {
            ask(Action::Balances(Vec::new()));
        }
        asks
    }

    /// Takes until nothing is left: which queues.
    pub(crate) fn queues(&self) -> Vec<Ask> {
        if !self.kinds.contains(&Kind::Queue) {
            return Vec::new();
        }
        (0..QUEUES)
            .map(|queue| Ask {
                action: Action::Dequeue {
                    key: base(Kind::Queue) + queue,
                    value: None,
                },
                way: Way::Exec,
                deadline: None,
            })
            .collect()
    }

    /// The deadline that an operation is held to, if it has one by which it must end.
    pub(crate) fn deadline_ms(&self, ask: &Ask) -> Option<u64> {
        if !self.abilities.deadlines {
            return None;
        }
        match &ask.action {
            // A blocking command's own time, and several commands in turn.
            Action::Dequeue { .. } | Action::Cas { .. } | Action::Transfer { .. } => None,
            // Pages in turn.
            Action::Members { key, .. } if kind_of(*key) == Some(Kind::S3List) => None,
            _ => u64::try_from(ask.deadline.unwrap_or(DEADLINE).as_millis()).ok(),
        }
    }

    /// Asks, and says what the answer means.
    pub(crate) async fn perform(&self, client: &mut Client, ask: &Ask) -> Answer {
        let mut tried = ask.action.clone();
        let done = match key_of(&ask.action) {
            Some(key) if kind_of(key).is_some_and(Kind::is_s3) => match &mut client.s3 {
                Some(s3) => s3.attempt(&name(key), &ask.action, &mut tried).await,
                None => Err(Missing::GivenUp("there is no connection to S3")),
            },
            _ => self.attempt(client, ask, &mut tried).await,
        };
        match done {
            Ok(action) => {
                self.note(&action);
                Answer {
                    action,
                    end: End::Ok,
                    error: None,
                    broken: false,
                }
            }
            Err(missing) => {
                let broken = matches!(missing, Missing::Failed(_) | Missing::Strange(_));
                let (end, error) = match missing {
                    Missing::Said(line) => (means(&line), line),
                    Missing::Refused(end, text) => (end, text),
                    Missing::Failed(failed @ Failed::Connect(_)) => (End::Fail, failed.to_string()),
                    Missing::Failed(failed) => (End::Info, failed.to_string()),
                    Missing::GivenUp(why) => (End::Fail, why.to_owned()),
                    Missing::Strange(what) => (End::Info, what),
                };
                Answer {
                    action: tried,
                    end,
                    error: Some(error),
                    broken,
                }
            }
        }
    }

    /// Remembers what may be deleted.
    fn note(&self, action: &Action) {
        if let Action::Add { key, value } = action
            && kind_of(*key) == Some(Kind::S3List)
            && let Ok(mut listed) = self.listed.lock()
        {
            listed.entry(*key).or_default().push(*value);
        }
    }

    /// `tried` becomes what may have been applied, as soon as that is known.
    async fn attempt(
        &self,
        client: &mut Client,
        ask: &Ask,
        tried: &mut Action,
    ) -> Result<Action, Missing> {
        let mut one = async |args: &[&str]| -> Result<Reply, Missing> {
            let millis = ask
                .deadline
                .map(|deadline| deadline.as_millis().to_string());
            let mut command = Vec::new();
            if let Some(millis) = &millis {
                command.extend(["DEADLINE", millis.as_str()]);
            }
            command.extend(args);
            match client.call(&command, PATIENCE).await? {
                Reply::Error(line) => Err(Missing::Said(line)),
                reply => Ok(reply),
            }
        };
        Ok(match &ask.action {
            Action::Read { key, .. } => Action::Read {
                key: *key,
                value: register(*key, one(&["GET", &name(*key)]).await?)?,
            },
            Action::Write { key, value } => {
                let text = encode(*key, *value);
                ok(one(&["SET", &name(*key), &text]).await?)?;
                ask.action.clone()
            }
            Action::Expiring { key, value, ttl_ms } => {
                let (value, ttl) = (value.to_string(), ttl_ms.to_string());
                ok(one(&["SET", &name(*key), &value, "PX", &ttl]).await?)?;
                ask.action.clone()
            }
            Action::Cas { key, to, .. } if ask.way == Way::Script => {
                let name = name(*key);
                let Some(from) = register(*key, one(&["GET", &name]).await?)? else {
                    return Ok(Action::Read {
                        key: *key,
                        value: None,
                    });
                };
                *tried = Action::Cas {
                    key: *key,
                    from,
                    to: *to,
                };
                let (old, new) = (from.to_string(), to.to_string());
                match one(&["EVAL", CAS_SCRIPT, "1", &name, &old, &new]).await? {
                    Reply::Integer(1) => Action::Cas {
                        key: *key,
                        from,
                        to: *to,
                    },
                    now => Action::Read {
                        key: *key,
                        value: register(*key, now)?,
                    },
                }
            }
            Action::Cas { key, to, .. } => return swap(client, *key, *to, tried).await,
            Action::Txn(mops) => {
                let mops = transact(client, mops, ask.way).await?;
                Action::Txn(mops)
            }
            Action::Transfer { from, to, amount } => {
                let names = [from, to].map(|account| name(base(Kind::Bank) + account));
                if ask.way == Way::Script {
                    let amount = amount.to_string();
                    let [from, to] = &names;
                    match one(&["EVAL", TRANSFER_SCRIPT, "2", from, to, &amount]).await? {
                        Reply::Integer(1) => {}
                        Reply::Integer(0) => return Err(Missing::GivenUp("too little money")),
                        other => return Err(strange(&other)),
                    }
                } else {
                    transfer(client, &names, *amount).await?;
                }
                ask.action.clone()
            }
            Action::Balances(_) => {
                let names: Vec<String> = (0..ACCOUNTS)
                    .map(|account| name(base(Kind::Bank) + account))
                    .collect();
                let mut args = vec!["MGET"];
                args.extend(names.iter().map(String::as_str));
                let Reply::List(balances) = one(&args).await? else {
                    return Err(Missing::Strange("MGET without a list".into()));
                };
                Action::Balances(
                    (0..)
                        .zip(&balances)
                        .map(|(account, balance)| Ok((account, integer(balance)?)))
                        .collect::<Result<_, Missing>>()?,
                )
            }
            Action::Increment { key, .. } => Action::Increment {
                key: *key,
                value: integer(&one(&["INCR", &name(*key)]).await?)?,
            },
            Action::Count { key, .. } => Action::Count {
                key: *key,
                value: register(*key, one(&["GET", &name(*key)]).await?)?.unwrap_or(0),
            },
            Action::Add { key, value } => {
                integer(&one(&["SADD", &name(*key), &value.to_string()]).await?)?;
                ask.action.clone()
            }
            Action::Members { key, .. } => Action::Members {
                key: *key,
                values: integers(&one(&["SMEMBERS", &name(*key)]).await?)?,
            },
            Action::Enqueue { key, value } => {
                integer(&one(&["RPUSH", &name(*key), &value.to_string()]).await?)?;
                ask.action.clone()
            }
            Action::Dequeue { key, .. } => {
                let value = match one(&["BLPOP", &name(*key), "0.5"]).await? {
                    Reply::Nil => None,
                    Reply::List(pair) if pair.len() == 2 => Some(integer(&pair[1])?),
                    other => return Err(strange(&other)),
                };
                Action::Dequeue { key: *key, value }
            }
            Action::Delete { .. } | Action::Create { .. } | Action::Remove { .. } => {
                let what = format!("{:?} is not asked of Redis", ask.action);
                return Err(Missing::Strange(what));
            }
        })
    }

    /// What the checkers say of a history. `clocks_hurt`: wall clocks were moved.
    pub(crate) fn check(&self, ops: &[Op], clocks_hurt: bool) -> Verdict {
        let mut verdict = Verdict::default();
        for kind in &self.kinds {
            let own: Vec<Op> = ops
                .iter()
                .filter(|op| is_of(*kind, &op.action))
                .cloned()
                .collect();
            let mut found = match kind {
                Kind::Register | Kind::Large | Kind::S3Register | Kind::S3Lock => {
                    check::register::check(&own, check::register::LIMIT)
                }
                Kind::S3List => check::listing::check(&own),
                Kind::Append => check::append::check(&own),
                Kind::Wr => check::wr::check(&own),
                Kind::Bank => check::bank::check(&own, ACCOUNTS, OPENING),
                Kind::Counter => check::counter::check(&own),
                Kind::Set | Kind::Deadline => check::set::check(&own),
                Kind::Queue => check::queue::check(&own),
                // What a wake-up and a busy machine take.
                Kind::Ttl => check::ttl::check(&own, (!clocks_hurt).then_some(250)),
            };
            let count = |end| own.iter().filter(|op| op.end == end).count();
            let (done, refused, unknown) = (count(End::Ok), count(End::Fail), count(End::Info));
            found.notes.push(format!(
                "{}: {done} acknowledged, {refused} refused, {unknown} unknown",
                kind.name()
            ));
            if done == 0 {
                found
                    .undecided
                    .push(format!("{}: nothing was acknowledged", kind.name()));
            }
            found.checked = own.len();
            let checked = verdict.checked + found.checked;
            verdict = verdict.and(found);
            verdict.checked = checked;
        }
        verdict
    }
}

pub(crate) fn is_of(kind: Kind, action: &Action) -> bool {
    if let Action::Transfer { .. } | Action::Balances(_) = action {
        return kind == Kind::Bank;
    }
    key_of(action).and_then(kind_of) == Some(kind)
}

/// A key that an operation names; all are of one kind.
fn key_of(action: &Action) -> Option<Key> {
    match action {
        Action::Txn(mops) => mops.first().map(|mop| {
            let (Mop::Append(key, _) | Mop::List(key, _) | Mop::Write(key, _) | Mop::Read(key, _)) =
                mop;
            *key
        }),
        Action::Transfer { .. } | Action::Balances(_) => None,
        Action::Read { key, .. }
        | Action::Write { key, .. }
        | Action::Cas { key, .. }
        | Action::Delete { key }
        | Action::Create { key, .. }
        | Action::Increment { key, .. }
        | Action::Count { key, .. }
        | Action::Add { key, .. }
        | Action::Remove { key, .. }
        | Action::Members { key, .. }
        | Action::Enqueue { key, .. }
        | Action::Dequeue { key, .. }
        | Action::Expiring { key, .. } => Some(*key),
    }
}

fn strange(reply: &Reply) -> Missing {
    let mut text = format!("a strange answer: {reply:?}");
    text.truncate(200);
    Missing::Strange(text)
}

fn ok(reply: Reply) -> Result<(), Missing> {
    match reply {
        Reply::Text(text) if text == "OK" => Ok(()),
        other => Err(strange(&other)),
    }
}

fn register(key: Key, reply: Reply) -> Result<Option<i64>, Missing> {
    match reply {
        Reply::Nil => Ok(None),
        Reply::Text(text) => Ok(Some(decode(key, &text))),
        other => Err(strange(&other)),
    }
}

fn integer(reply: &Reply) -> Result<i64, Missing> {
    match reply {
        Reply::Integer(value) => Ok(*value),
        Reply::Text(text) => text.parse().map_err(|_| strange(reply)),
        other => Err(strange(other)),
    }
}

fn integers(reply: &Reply) -> Result<Vec<i64>, Missing> {
    match reply {
        Reply::List(items) => items.iter().map(integer).collect(),
        other => Err(strange(other)),
    }
}

/// What EXEC answered.
fn executed(reply: Reply) -> Result<Vec<Reply>, Missing> {
    match reply {
        Reply::List(replies) => match replies.iter().find(|r| matches!(r, Reply::Error(_))) {
            Some(Reply::Error(line)) => Err(Missing::Strange(format!("inside EXEC: {line}"))),
            _ => Ok(replies),
        },
        Reply::Nil => Err(Missing::GivenUp("a watched key changed")),
        Reply::Error(line) => Err(Missing::Said(line)),
        other => Err(strange(&other)),
    }
}

/// WATCH, GET, MULTI, SET, EXEC.
async fn swap(
    client: &mut Client,
    key: Key,
    to: i64,
    tried: &mut Action,
) -> Result<Action, Missing> {
    let name = name(key);
    let watched = client
        .pipeline(&[vec!["WATCH", &name], vec!["GET", &name]], PATIENCE)
        .await?;
    let value = match watched.as_slice() {
        [Reply::Text(_), now @ (Reply::Text(_) | Reply::Nil)] => register(key, now.clone())?,
        [Reply::Error(line), _] | [_, Reply::Error(line)] => {
            // Nothing was written yet.
            let line = line.clone();
            client.call(&["UNWATCH"], PATIENCE).await?;
            return Err(if means(&line) == End::Info {
                Missing::GivenUp("a read without an answer")
            } else {
                Missing::Said(line)
            });
        }
        _ => return Err(Missing::Strange("WATCH and GET".into())),
    };
    let Some(from) = value else {
        client.call(&["UNWATCH"], PATIENCE).await?;
        return Ok(Action::Read { key, value });
    };
    *tried = Action::Cas { key, from, to };
    let text = to.to_string();
    exec(client, &[vec!["SET", &name, &text]]).await?;
    Ok(Action::Cas { key, from, to })
}

/// MULTI, the commands, EXEC; what each was answered.
async fn exec(client: &mut Client, commands: &[Vec<&str>]) -> Result<Vec<Reply>, Missing> {
    let mut pipeline = vec![vec!["MULTI"]];
    pipeline.extend(commands.iter().cloned());
    pipeline.push(vec!["EXEC"]);
    let mut replies = client.pipeline(&pipeline, PATIENCE).await?;
    let last = replies
        .pop()
        .ok_or_else(|| Missing::Strange("no answer to EXEC".into()))?;
    executed(last)
}

async fn transact(client: &mut Client, mops: &[Mop], way: Way) -> Result<Vec<Mop>, Missing> {
    let names: Vec<String> = mops
        .iter()
        .map(|mop| {
            let (Mop::Append(key, _) | Mop::List(key, _) | Mop::Write(key, _) | Mop::Read(key, _)) =
                mop;
            name(*key)
        })
        .collect();
    let values: Vec<String> = mops
        .iter()
        .map(|mop| match mop {
            Mop::Append(_, value) | Mop::Write(_, value) => value.to_string(),
            Mop::List(..) | Mop::Read(..) => String::new(),
        })
        .collect();
    let replies = if way == Way::Command {
        multi_key(client, mops, &names, &values).await?
    } else if way == Way::Script {
        let lists = matches!(mops.first(), Some(Mop::Append(..) | Mop::List(..)));
        let script = if lists { APPEND_SCRIPT } else { WR_SCRIPT };
        let count = names.len().to_string();
        let mut args = vec!["EVAL", script, &count];
        args.extend(names.iter().map(String::as_str));
        args.extend(values.iter().map(String::as_str));
        executed(client.call(&args, PATIENCE).await?)?
    } else {
        let commands: Vec<Vec<&str>> = mops
            .iter()
            .zip(names.iter().zip(&values))
            .map(|(mop, (name, value))| match mop {
                Mop::Append(..) => vec!["RPUSH", name, value],
                Mop::List(..) => vec!["LRANGE", name, "0", "-1"],
                Mop::Write(..) => vec!["SET", name, value],
                Mop::Read(..) => vec!["GET", name],
            })
            .collect();
        exec(client, &commands).await?
    };
    if replies.len() != mops.len() {
        return Err(Missing::Strange(format!("{} answers", replies.len())));
    }
    mops.iter()
        .zip(replies)
        .map(|(mop, reply)| {
            Ok(match mop {
                Mop::List(key, _) => Mop::List(*key, integers(&reply)?),
                Mop::Read(key, _) => Mop::Read(*key, register(*key, reply)?),
                other => other.clone(),
            })
        })
        .collect()
}

/// All reads by MGET, or all writes by MSET.
async fn multi_key(
    client: &mut Client,
    mops: &[Mop],
    names: &[String],
    values: &[String],
) -> Result<Vec<Reply>, Missing> {
    let writes = matches!(mops.first(), Some(Mop::Write(..)));
    let mut args = vec![if writes { "MSET" } else { "MGET" }];
    for (name, value) in names.iter().zip(values) {
        args.push(name);
        if writes {
            args.push(value);
        }
    }
    match client.call(&args, PATIENCE).await? {
        Reply::Error(line) => Err(Missing::Said(line)),
        reply if writes => {
            ok(reply)?;
            Ok(vec![Reply::Text("OK".into()); mops.len()])
        }
        Reply::List(replies) => Ok(replies),
        other => Err(strange(&other)),
    }
}

/// WATCH both accounts, read them, and write them in a transaction.
async fn transfer(client: &mut Client, names: &[String; 2], amount: i64) -> Result<(), Missing> {
    let [from, to] = names;
    let watched = client
        .pipeline(
            &[vec!["WATCH", from, to], vec!["GET", from], vec!["GET", to]],
            PATIENCE,
        )
        .await?;
    let [Reply::Text(_), Reply::Text(a), Reply::Text(b)] = watched.as_slice() else {
        client.call(&["UNWATCH"], PATIENCE).await?;
        return Err(Missing::GivenUp("the accounts could not be read"));
    };
    let parse = |text: &String| {
        text.parse::<i64>()
            .map_err(|_| Missing::Strange(text.clone()))
    };
    let (a, b) = (parse(a)?, parse(b)?);
    if a < amount {
        client.call(&["UNWATCH"], PATIENCE).await?;
        return Err(Missing::GivenUp("too little money"));
    }
    let (a, b) = ((a - amount).to_string(), (b + amount).to_string());
    exec(client, &[vec!["SET", from, &a], vec!["SET", to, &b]])
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_value_that_lost_a_byte_is_torn() {
        let key = base(Kind::Large) + 3;
        let mut text = encode(key, 77);
        assert!(text.len() >= 1024);
        assert_eq!(decode(key, &text), 77);
        text.replace_range(500..501, "!");
        assert_eq!(decode(key, &text), TORN);
        text.truncate(400);
        assert_eq!(decode(key, &text), TORN);
    }

    #[test]
    fn only_an_unknown_outcome_may_have_been_applied() {
        assert_eq!(means("UNKNOWN the write may have been applied"), End::Info);
        assert_eq!(means("TIMEOUT not applied"), End::Fail);
        assert_eq!(means("CLUSTERDOWN no leader"), End::Fail);
    }
}
