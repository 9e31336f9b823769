//! Many runs: every workload under every fault; and our own store, broken on purpose.

use jepsen::check::Validity;

use crate::nemesis::Composition;
use crate::workload::Kind;
use crate::{Ended, Stage};

/// One run per workload and fault; all are made, whatever the first ones say.
pub(crate) async fn all(
    stage: &Stage,
    kinds: &[Kind],
    faults: &[Composition],
) -> Result<Ended, String> {
    let mut rows = Vec::new();
    let mut worst = Ended::Valid;
    let mut seed = stage.seed;
    for kind in kinds {
        // Without faults first: what fails there needs none.
        for fault in std::iter::once(None).chain(faults.iter().map(Some)) {
            let composition: Vec<Composition> = fault.into_iter().cloned().collect();
            let names: Vec<String> = composition
                .iter()
                .flat_map(|faults| faults.0.iter().map(|kind| kind.name()))
                .collect();
            let name = kind.name();
            let (word, ops, struck) = match stage.run(&[*kind], &composition, seed).await {
                Ok(outcome) => {
                    let word = match outcome.verdict.validity() {
                        Validity::Valid => "valid",
                        Validity::Invalid => {
                            worst = Ended::Invalid;
                            "INVALID"
                        }
                        Validity::Unknown => {
                            worst = worse(worst);
                            "no verdict"
                        }
                    };
                    (word.to_owned(), outcome.ops, outcome.faults)
                }
                Err(why) => {
                    worst = worse(worst);
                    println!("  no run: {why}");
                    (format!("no run: {why}"), 0, 0)
                }
            };
            let faults = if names.is_empty() {
                "none".to_owned()
            } else {
                names.join("+")
            };
            rows.push(format!(
                "| {name} | {faults} | {seed} | {ops} | {struck} | {word} |"
            ));
            seed += 1;
        }
    }
    println!(
        "\n| workload | faults | seed | operations | struck | verdict |\n|---|---|---|---|---|---|"
    );
    for row in rows {
        println!("{row}");
    }
    Ok(worst)
}

fn worse(ended: Ended) -> Ended {
    if ended == Ended::Valid {
        Ended::NoVerdict
    } else {
        ended
    }
}

/// A safety that can be dropped, and where its absence shows.
struct Mutation {
    name: &'static str,
    workloads: &'static [Kind],
    faults: &'static str,
    options: &'static [&'static str],
    /// Clients, and operations per second of all.
    load: (u32, u32),
}

/// Those of `raft/src/mutations.rs` that clients of real processes can see. `no-fence` needs proposals
/// that change places between executor and log: `kv/tests/executor_model.rs` makes them do so, and
/// fails under `LEADLINE_MUTATION=no-fence`.
const MUTATIONS: [Mutation; 3] = [
    Mutation {
        name: "no-validate",
        workloads: &[Kind::Append, Kind::Wr],
        faults: "none",
        options: &[],
        load: (16, 600),
    },
    Mutation {
        name: "no-fsync",
        workloads: &[Kind::Set, Kind::Register, Kind::Append],
        faults: "power-cut",
        options: &[],
        load: (10, 300),
    },
    Mutation {
        name: "no-lease-margin",
        workloads: &[Kind::Register, Kind::Counter],
        // A leader that is cut off believes in its lease, and clients still reach it: many, since it
        // steps down soon after the next one was elected.
        faults: "blackhole,halves",
        options: &["--read-mode", "lease", "--shards", "1"],
        load: (40, 2000),
    },
];

/// Runs the mutated binary: each mutation must be found within the time of one run.
pub(crate) async fn mutations(stage: &Stage, only: &[String]) -> Result<Ended, String> {
    let mut rows = Vec::new();
    let mut ended = Ended::Valid;
    for mutation in MUTATIONS {
        if !only.is_empty() && !only.iter().any(|name| name == mutation.name) {
            continue;
        }
        println!("\n{}:", mutation.name);
        let names: Vec<String> = mutation.faults.split(',').map(str::to_owned).collect();
        let faults = stage.faults(&names)?;
        let environment = [("LEADLINE_MUTATION".to_owned(), mutation.name.to_owned())];
        let outcome = stage
            .under(mutation.load)
            .run_with(
                mutation.workloads,
                &faults,
                stage.seed,
                mutation.options,
                &environment,
            )
            .await?;
        let classes: Vec<&str> = {
            let mut classes: Vec<&str> = outcome
                .verdict
                .anomalies
                .iter()
                .map(|anomaly| anomaly.class.as_str())
                // Nodes that refuse to start after a power cut found it out themselves.
                .filter(|class| *class != "late")
                .collect();
            classes.dedup();
            classes
        };
        if classes.is_empty() {
            ended = Ended::Invalid;
            rows.push(format!("| {} | NOT FOUND |", mutation.name));
        } else {
            rows.push(format!("| {} | {} |", mutation.name, classes.join(", ")));
        }
    }
    println!("\n| dropped | found as |\n|---|---|");
    for row in rows {
        println!("{row}");
    }
    Ok(ended)
}
