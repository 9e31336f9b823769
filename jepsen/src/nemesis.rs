//! Faults: what is done to a cluster, for how long, and how it is undone. Each is drawn from the
//! seed; several names joined by `+` happen at once.

use std::time::{Duration, Instant};

use clap::ValueEnum;
use jepsen::history::Fault;
use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rustix::process::Signal;

use crate::cluster::{Cluster, Meddler};

/// A fault. The names are those of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// kill -9 of one node, started again after a while.
    KillOne,
    /// kill -9 of as many nodes as may be lost.
    KillMinority,
    /// kill -9 of so many that none of the rest has a majority.
    KillMajority,
    /// kill -9 of every node at once.
    KillAll,
    /// SIGSTOP of one node, SIGCONT after a while.
    Pause,
    /// SIGSTOP of a majority.
    PauseMajority,
    /// One node cut off from all others, packets dropped and nothing refused.
    Blackhole,
    /// Two halves that do not hear each other.
    Halves,
    /// One node hears nothing from the others, and is heard.
    OneWay,
    /// Two sides that only one node hears both of.
    Bridge,
    /// Each node hears only its neighbours in a ring.
    Ring,
    /// Every node loses a part of the packets that other nodes send it.
    Loss,
    /// Narrow links that queue: every message is late under load.
    SlowLink,
    /// Every piece of every connection between nodes is held back for 5 to 50 ms.
    Delay,
    /// The same for 0 to 500 ms: connections overtake each other.
    Reorder,
    /// Wall clocks jump, forwards and backwards, by up to two minutes.
    ClockJump,
    /// A wall clock runs at half to three times its speed.
    ClockSkew,
    /// fsync fails on one node: it must stop itself.
    FsyncError,
    /// Every fsync of one node takes 20 to 200 ms longer.
    SlowDisk,
    /// One node's disk is full.
    FullDisk,
    /// The power of every node is cut: what was not durable is gone.
    PowerCut,
    /// One node loses its data directory; it is removed and joins under a new id.
    LostData,
    /// A node is removed while it lives, and joins again as a new one.
    Membership,
    /// Leaderships are handed around all the time.
    Transfer,
}

/// Faults that happen at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Composition(pub(crate) Vec<Kind>);

impl std::str::FromStr for Composition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.split('+')
            .map(|name| {
                Kind::from_str(name, false).map_err(|_| {
                    let names: Vec<String> = Kind::value_variants()
                        .iter()
                        .map(|kind| kind.name())
                        .collect();
                    format!(
                        "{name} is no fault; there are: none, all, {}",
                        names.join(", ")
                    )
                })
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl Kind {
    pub(crate) fn name(self) -> String {
        self.to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Needs proxies between the nodes.
    pub(crate) fn is_proxied(self) -> bool {
        matches!(self, Self::Delay | Self::Reorder)
    }

    /// Needs network namespaces.
    pub(crate) fn needs_namespaces(self) -> bool {
        matches!(self, Self::Loss | Self::SlowLink)
    }

    /// Needs root.
    pub(crate) fn needs_root(self) -> bool {
        self.needs_disk() || self.needs_namespaces()
    }

    /// Needs a file system per node.
    pub(crate) fn needs_disk(self) -> bool {
        matches!(self, Self::FullDisk | Self::PowerCut)
    }

    /// Needs wall clocks that can be set.
    pub(crate) fn hurts_clocks(self) -> bool {
        matches!(self, Self::ClockJump | Self::ClockSkew)
    }

    /// Works on a lone `redis-server`.
    pub(crate) fn is_for_any_system(self) -> bool {
        matches!(
            self,
            Self::KillOne | Self::KillAll | Self::Pause | Self::SlowDisk
        )
    }
}

/// How a fault is undone, and what it is called in the report.
struct Begun {
    kind: Kind,
    detail: String,
    silenced: Vec<u8>,
    meddlers: Vec<Meddler>,
}

/// The one that hurts.
pub(crate) struct Nemesis {
    faults: Vec<Composition>,
    random: SmallRng,
    began: Instant,
    pub(crate) done: Vec<Fault>,
    /// What is going on, for the progress line.
    pub(crate) now: String,
}

impl Nemesis {
    pub(crate) fn new(faults: Vec<Composition>, random: SmallRng, began: Instant) -> Self {
        Self {
            faults,
            random,
            began,
            done: Vec::new(),
            now: String::new(),
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.faults.is_empty()
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// A moment without faults.
    pub(crate) fn pause(&mut self) -> Duration {
        Duration::from_millis(self.random.random_range(500..2500))
    }

    /// One fault or several at once, from beginning to end.
    ///
    /// # Errors
    /// What could not be done to the cluster, or what it did not survive.
    pub(crate) async fn strike(&mut self, cluster: &mut Cluster) -> Result<(), String> {
        if self.faults.is_empty() {
            tokio::time::sleep(Duration::from_millis(500)).await;
            return Ok(());
        }
        let nth = self.random.random_range(0..self.faults.len());
        let kinds = self.faults[nth].0.clone();
        let length = Duration::from_millis(self.random.random_range(500..5000));
        let from = self.elapsed();
        let mut begun = Vec::new();
        for kind in kinds {
            begun.push(self.begin(kind, cluster).await?);
        }
        let names: Vec<String> = begun
            .iter()
            .map(|fault| format!("{} {}", fault.kind.name(), fault.detail))
            .collect();
        self.now = names.join(" + ");
        println!(
            "  {:>6.1} s  {} for {length:.1?}",
            from as f64 / 1e9,
            self.now
        );
        let until = Instant::now() + length;
        let storming = begun.iter().any(|fault| fault.kind == Kind::Transfer);
        while Instant::now() < until {
            if storming {
                self.transfer(cluster).await;
            }
            let left = until.saturating_duration_since(Instant::now());
            tokio::time::sleep(left.min(Duration::from_millis(300))).await;
        }
        for mut fault in begun {
            undo(&mut fault, cluster).await?;
            // A node that starts again answers a little later, and so does a pipe that was full.
            let grace = if fault.silenced.is_empty() {
                0
            } else {
                1_500_000_000
            };
            self.done.push(Fault {
                name: fault.kind.name(),
                detail: fault.detail,
                silenced: fault.silenced,
                began: from,
                ended: self.elapsed() + grace,
            });
        }
        self.now.clear();
        Ok(())
    }

    fn choose(&mut self, cluster: &Cluster, count: usize) -> Vec<u8> {
        let mut numbers = cluster.numbers();
        numbers.shuffle(&mut self.random);
        numbers.truncate(count);
        numbers.sort_unstable();
        numbers
    }

    async fn begin(&mut self, kind: Kind, cluster: &mut Cluster) -> Result<Begun, String> {
        let all = cluster.numbers();
        let majority = all.len() / 2 + 1;
        let count = match kind {
            Kind::KillMinority => (all.len() - 1) / 2,
            Kind::KillMajority | Kind::PauseMajority => majority,
            Kind::KillAll | Kind::PowerCut => all.len(),
            _ => 1,
        };
        let victims = self.choose(cluster, count.max(1));
        let mut begun = Begun {
            kind,
            detail: format!("{victims:?}"),
            silenced: Vec::new(),
            meddlers: Vec::new(),
        };
        match kind {
            Kind::KillOne | Kind::KillMinority | Kind::KillMajority | Kind::KillAll => {
                for number in &victims {
                    cluster.kill(*number)?;
                }
                begun.silenced = victims;
            }
            Kind::PowerCut => {
                // All at once: what one node still has would save the others.
                for number in &victims {
                    cluster.signal(*number, Signal::STOP)?;
                }
                for number in &victims {
                    cluster.cut_power(*number)?;
                }
                begun.silenced = victims;
            }
            Kind::Pause | Kind::PauseMajority => {
                for number in &victims {
                    cluster.signal(*number, Signal::STOP)?;
                }
                begun.silenced = victims;
            }
            Kind::Blackhole | Kind::Halves | Kind::OneWay | Kind::Bridge | Kind::Ring => {
                let mut order = all;
                order.shuffle(&mut self.random);
                let (blocked, detail) = partition(kind, &order);
                cluster.network.block(&blocked)?;
                begun.detail = detail;
            }
            Kind::Loss => {
                let percent = self.random.random_range(5..40);
                cluster.network.lose(&all, percent)?;
                begun.detail = format!("{percent} %");
            }
            Kind::SlowLink => {
                let kbit = self.random.random_range(500..4000);
                cluster.network.narrow(&all, kbit)?;
                begun.detail = format!("{kbit} kbit/s");
                // Their replies queue in the same pipe.
                begun.silenced = all;
            }
            Kind::Delay => {
                let bounds = (Duration::from_millis(5), Duration::from_millis(50));
                cluster.network.delay(Some(bounds))?;
                begun.detail = "5 to 50 ms".into();
            }
            Kind::Reorder => {
                let bounds = (Duration::ZERO, Duration::from_millis(500));
                cluster.network.delay(Some(bounds))?;
                begun.detail = "0 to 500 ms".into();
            }
            Kind::ClockJump => {
                begun.detail.clear();
                for number in all {
                    let seconds = self.random.random_range(-120..=120);
                    cluster.set_clock(number, seconds, 1.0)?;
                    begun.detail += &format!("node {number} {seconds:+} s; ");
                }
            }
            Kind::ClockSkew => {
                let speed = f64::from(self.random.random_range(5..30)) / 10.0;
                cluster.set_clock(victims[0], 0, speed)?;
                begun.detail = format!("node {} at {speed} times", victims[0]);
            }
            Kind::FsyncError | Kind::SlowDisk => {
                let injection = if kind == Kind::FsyncError {
                    "error=EIO".to_owned()
                } else {
                    let micros = self.random.random_range(20_000..200_000);
                    begun.detail = format!("node {} +{} ms", victims[0], micros / 1000);
                    format!("delay_enter={micros}")
                };
                if let Some(pid) = cluster.pid(victims[0]) {
                    begun.meddlers.push(Meddler::attach(pid, &injection)?);
                }
                if kind == Kind::FsyncError {
                    begun.silenced = victims;
                }
            }
            Kind::FullDisk => {
                cluster.fill_disk(victims[0])?;
                begun.silenced = victims;
            }
            Kind::LostData | Kind::Membership => {
                let victim = victims[0];
                let (_, id) = cluster.members(victim).await?;
                let other = self.other(cluster, victim);
                if kind == Kind::LostData {
                    cluster.kill(victim)?;
                }
                if let Some(id) = id {
                    removed(cluster, other, id).await?;
                }
                cluster.kill(victim)?;
                cluster.lose_data(victim)?;
                begun.detail = format!("node {victim}, member {id:?}");
                begun.silenced = victims;
            }
            Kind::Transfer => begun.detail = "all over".into(),
        }
        Ok(begun)
    }

    fn other(&mut self, cluster: &Cluster, than: u8) -> u8 {
        let mut others = cluster.numbers();
        others.retain(|number| *number != than);
        others[self.random.random_range(0..others.len())]
    }

    /// Hands one leadership to somebody; a refusal is an answer too.
    async fn transfer(&mut self, cluster: &Cluster) {
        let Ok((members, _)) = cluster.members(1).await else {
            return;
        };
        let to = members[self.random.random_range(0..members.len())].to_string();
        let shard = self.random.random_range(0..=4).to_string();
        let node = self.choose(cluster, 1)[0];
        let args = ["transfer-leader", "--shard", &shard, "--to", &to];
        cluster.operate(node, &args).await.ok();
    }
}

/// Which of `order` hear nothing from whom.
fn partition(kind: Kind, order: &[u8]) -> (Vec<(u8, u8)>, String) {
    let both = |a: &[u8], b: &[u8]| -> Vec<(u8, u8)> {
        a.iter()
            .flat_map(|x| b.iter().flat_map(move |y| [(*x, *y), (*y, *x)]))
            .collect()
    };
    match kind {
        Kind::Blackhole => {
            let (one, rest) = order.split_at(1);
            (both(one, rest), format!("{one:?}"))
        }
        Kind::OneWay => {
            let (one, rest) = order.split_at(1);
            let deaf = rest.iter().map(|from| (*from, one[0])).collect();
            (deaf, format!("{one:?} hears nothing"))
        }
        Kind::Halves => {
            let (a, b) = order.split_at(order.len() / 2);
            (both(a, b), format!("{a:?} | {b:?}"))
        }
        // A ring of three is whole: there it is a bridge.
        Kind::Ring if order.len() > 3 => {
            let count = order.len();
            let mut pairs = Vec::new();
            for a in 0..count {
                for b in 0..count {
                    let distance = (a + count - b) % count;
                    if distance > 1 && distance < count - 1 {
                        pairs.push((order[a], order[b]));
                    }
                }
            }
            (pairs, format!("{order:?}"))
        }
        _ => {
            let (bridge, rest) = order.split_at(1);
            let (a, b) = rest.split_at(rest.len() / 2);
            (both(a, b), format!("{a:?} | {b:?}, {bridge:?} hears both"))
        }
    }
}

/// Removes a member, as often as it takes for someone to take the order.
async fn removed(cluster: &Cluster, through: u8, id: u64) -> Result<(), String> {
    let mut last = String::new();
    for _ in 0..8 {
        match cluster.operate(through, &["remove", &id.to_string()]).await {
            Ok(()) => return Ok(()),
            Err(why) => last = why,
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let seen = cluster
        .wait(Duration::from_secs(2), "an overview", |seen| {
            Some(seen.to_string())
        })
        .await
        .unwrap_or_else(|why| why);
    Err(format!(
        "member {id} could not be removed: {last}; the cluster: {seen}"
    ))
}

async fn undo(fault: &mut Begun, cluster: &mut Cluster) -> Result<(), String> {
    match fault.kind {
        Kind::KillOne
        | Kind::KillMinority
        | Kind::KillMajority
        | Kind::KillAll
        | Kind::PowerCut => cluster.start_all(),
        Kind::Pause | Kind::PauseMajority => fault
            .silenced
            .iter()
            .try_for_each(|number| cluster.signal(*number, Signal::CONT)),
        Kind::Blackhole
        | Kind::Halves
        | Kind::OneWay
        | Kind::Bridge
        | Kind::Ring
        | Kind::Loss
        | Kind::Delay
        | Kind::Reorder => cluster.network.heal(),
        Kind::SlowLink => cluster.network.widen(&fault.silenced),
        Kind::ClockJump | Kind::ClockSkew => cluster
            .numbers()
            .into_iter()
            .try_for_each(|number| cluster.set_clock(number, 0, 1.0)),
        Kind::FsyncError => {
            fault.meddlers.clear();
            // It must have stopped itself, unless nothing was written meanwhile.
            for number in &fault.silenced {
                if cluster.exited(*number)?.is_some() {
                    fault.detail += ", stopped itself";
                }
            }
            cluster.start_all()
        }
        Kind::SlowDisk => {
            fault.meddlers.clear();
            Ok(())
        }
        Kind::FullDisk => {
            for number in &fault.silenced {
                cluster.free_disk(*number)?;
            }
            cluster.start_all()
        }
        Kind::LostData | Kind::Membership => {
            cluster.start_all()?;
            // The next loss must find three voters again: two at once lose what was promised.
            cluster.wait_until_whole(Duration::from_secs(60)).await
        }
        Kind::Transfer => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_of_five_leaves_each_node_its_two_neighbours() {
        let (blocked, _) = partition(Kind::Ring, &[1, 2, 3, 4, 5]);
        for node in 1..=5 {
            assert_eq!(blocked.iter().filter(|(from, _)| *from == node).count(), 2);
        }
        assert!(!blocked.contains(&(1, 2)) && !blocked.contains(&(5, 1)));
        assert!(blocked.contains(&(1, 3)) && blocked.contains(&(3, 1)));
    }

    #[test]
    fn a_bridge_hears_both_sides_that_do_not_hear_each_other() {
        let (blocked, _) = partition(Kind::Bridge, &[1, 2, 3]);
        assert_eq!(blocked, [(2, 3), (3, 2)]);
    }

    #[test]
    fn names_joined_by_a_plus_are_one_composition() {
        let both: Composition = "kill-one+clock-jump".parse().unwrap();
        assert_eq!(both.0, [Kind::KillOne, Kind::ClockJump]);
        assert!("kill-nobody".parse::<Composition>().is_err());
    }
}
