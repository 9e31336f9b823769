//! What clients did and were told.
//!
//! An [`Op`] is one operation from call to answer. On disk a history is a line per event, an
//! invocation and a completion, as JSON and as Jepsen's own EDN (list-append and register
//! transactions as Elle reads them), so that other checkers can check ours.
//!
//! # Invariants
//! 1. What an operation read is trusted only if it ended as [`End::Ok`].
//! 2. A process has one operation open at a time; one whose operation ended as [`End::Info`] never
//!    calls again.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{BufRead, Write};
use std::path::Path;

use serde_json::{Map, Value, json};

/// A register, list, account, counter, set or queue.
pub type Key = u32;

/// A micro-operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mop {
    /// Appends to a list.
    Append(Key, i64),
    /// The whole of a list.
    List(Key, Vec<i64>),
    /// Writes a register.
    Write(Key, i64),
    /// Reads a register; `None`: absent.
    Read(Key, Option<i64>),
}

/// What an operation does, with what it was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Read {
        key: Key,
        value: Option<i64>,
    },
    Write {
        key: Key,
        value: i64,
    },
    /// Succeeded in replacing `from` by `to`.
    Cas {
        key: Key,
        from: i64,
        to: i64,
    },
    Delete {
        key: Key,
    },
    /// Writes if nothing is there; not `won`: something was.
    Create {
        key: Key,
        value: i64,
        won: bool,
    },
    Txn(Vec<Mop>),
    Transfer {
        from: Key,
        to: Key,
        amount: i64,
    },
    /// Every account, at one instant.
    Balances(Vec<(Key, i64)>),
    /// Adds one; `value` is the sum it was told.
    Increment {
        key: Key,
        value: i64,
    },
    Count {
        key: Key,
        value: i64,
    },
    Add {
        key: Key,
        value: i64,
    },
    Remove {
        key: Key,
        value: i64,
    },
    Members {
        key: Key,
        values: Vec<i64>,
    },
    Enqueue {
        key: Key,
        value: i64,
    },
    /// `None`: nothing came until the timeout.
    Dequeue {
        key: Key,
        value: Option<i64>,
    },
    /// A write that lives for so long.
    Expiring {
        key: Key,
        value: i64,
        ttl_ms: u64,
    },
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// It was acknowledged.
    Ok,
    /// It was refused: nothing was applied.
    Fail,
    /// Nobody knows.
    Info,
}

/// One operation, from call to answer. Times are nanoseconds since the run began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    pub process: u64,
    /// The node that was asked.
    pub node: u8,
    pub action: Action,
    pub called: u64,
    pub returned: u64,
    pub end: End,
    /// What the store said, or what became of the connection.
    pub error: Option<String>,
    /// The deadline it was sent with.
    pub deadline_ms: Option<u64>,
}

impl Op {
    /// When it is certain to have taken effect or not: never, for an unknown outcome.
    #[must_use]
    pub fn settled(&self) -> u64 {
        if self.end == End::Info {
            u64::MAX
        } else {
            self.returned
        }
    }
}

/// What was done to the cluster, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub name: String,
    pub detail: String,
    /// Nodes that could not be expected to answer in time meanwhile.
    pub silenced: Vec<u8>,
    pub began: u64,
    pub ended: u64,
}

fn mop_value(mop: &Mop, asked: bool) -> Value {
    match mop {
        Mop::Append(key, value) => json!(["append", key, value]),
        Mop::Write(key, value) => json!(["w", key, value]),
        Mop::List(key, _) | Mop::Read(key, _) if asked => json!(["r", key, null]),
        Mop::List(key, list) => json!(["r", key, list]),
        Mop::Read(key, value) => json!(["r", key, value]),
    }
}

/// The function and the value of an operation, as asked or as answered.
fn parts(action: &Action, asked: bool) -> (&'static str, Value) {
    let read = |key: &Key, value: Value| {
        let value = if asked { Value::Null } else { value };
        json!([key, value])
    };
    match action {
        Action::Read { key, value } => ("read", read(key, json!(value))),
        Action::Write { key, value } => ("write", json!([key, value])),
        Action::Cas { key, from, to } => ("cas", json!([key, [from, to]])),
        Action::Delete { key } => ("delete", json!([key])),
        Action::Create { key, value, .. } if asked => ("create", json!([key, value])),
        Action::Create { key, value, won } => ("create", json!([key, value, won])),
        Action::Txn(mops) => (
            "txn",
            Value::Array(mops.iter().map(|mop| mop_value(mop, asked)).collect()),
        ),
        Action::Transfer { from, to, amount } => (
            "transfer",
            json!({"from": from, "to": to, "amount": amount}),
        ),
        Action::Balances(balances) => {
            let map: Map<String, Value> = balances
                .iter()
                .map(|(account, balance)| (account.to_string(), json!(balance)))
                .collect();
            (
                "balances",
                if asked {
                    Value::Null
                } else {
                    Value::Object(map)
                },
            )
        }
        Action::Increment { key, value } => ("increment", read(key, json!(value))),
        Action::Count { key, value } => ("count", read(key, json!(value))),
        Action::Add { key, value } => ("add", json!([key, value])),
        Action::Remove { key, value } => ("remove", json!([key, value])),
        Action::Members { key, values } => ("members", read(key, json!(values))),
        Action::Enqueue { key, value } => ("enqueue", json!([key, value])),
        Action::Dequeue { key, value } => ("dequeue", read(key, json!(value))),
        Action::Expiring { key, value, ttl_ms } => ("expiring", json!([key, value, ttl_ms])),
    }
}

fn action(f: &str, value: &Value) -> Option<Action> {
    let key = || u32::try_from(value.get(0)?.as_u64()?).ok();
    let number = |value: &Value| value.as_i64();
    let list = |value: &Value| -> Vec<i64> {
        value
            .as_array()
            .map(|list| list.iter().filter_map(Value::as_i64).collect())
            .unwrap_or_default()
    };
    let account = |name: &str| u32::try_from(value.get(name)?.as_u64()?).ok();
    Some(match f {
        "read" => Action::Read {
            key: key()?,
            value: number(&value[1]),
        },
        "write" => Action::Write {
            key: key()?,
            value: number(&value[1])?,
        },
        "cas" => Action::Cas {
            key: key()?,
            from: number(&value[1][0])?,
            to: number(&value[1][1])?,
        },
        "delete" => Action::Delete { key: key()? },
        "create" => Action::Create {
            key: key()?,
            value: number(&value[1])?,
            won: value[2].as_bool().unwrap_or(false),
        },
        "txn" => Action::Txn(
            value
                .as_array()?
                .iter()
                .map(|mop| {
                    let key = u32::try_from(mop[1].as_u64()?).ok()?;
                    Some(match mop[0].as_str()? {
                        "append" => Mop::Append(key, mop[2].as_i64()?),
                        "w" => Mop::Write(key, mop[2].as_i64()?),
                        _ if mop[2].is_array() => Mop::List(key, list(&mop[2])),
                        _ => Mop::Read(key, mop[2].as_i64()),
                    })
                })
                .collect::<Option<_>>()?,
        ),
        "transfer" => Action::Transfer {
            from: account("from")?,
            to: account("to")?,
            amount: number(&value["amount"])?,
        },
        "balances" => Action::Balances(
            value
                .as_object()
                .map(|map| {
                    map.iter()
                        .filter_map(|(key, balance)| Some((key.parse().ok()?, balance.as_i64()?)))
                        .collect()
                })
                .unwrap_or_default(),
        ),
        "increment" => Action::Increment {
            key: key()?,
            value: number(&value[1]).unwrap_or_default(),
        },
        "count" => Action::Count {
            key: key()?,
            value: number(&value[1]).unwrap_or_default(),
        },
        "add" => Action::Add {
            key: key()?,
            value: number(&value[1])?,
        },
        "remove" => Action::Remove {
            key: key()?,
            value: number(&value[1])?,
        },
        "members" => Action::Members {
            key: key()?,
            values: list(&value[1]),
        },
        "enqueue" => Action::Enqueue {
            key: key()?,
            value: number(&value[1])?,
        },
        "dequeue" => Action::Dequeue {
            key: key()?,
            value: number(&value[1]),
        },
        "expiring" => Action::Expiring {
            key: key()?,
            value: number(&value[1])?,
            ttl_ms: value[2].as_u64()?,
        },
        _ => return None,
    })
}

/// One line of a history.
fn events(ops: &[Op], faults: &[Fault]) -> Vec<Value> {
    let mut lines: Vec<(u64, u8, Value)> = Vec::with_capacity(ops.len() * 2 + faults.len() * 2);
    for op in ops {
        let (f, asked) = parts(&op.action, true);
        let (_, answered) = parts(&op.action, op.end != End::Ok);
        let kind = match op.end {
            End::Ok => "ok",
            End::Fail => "fail",
            End::Info => "info",
        };
        let mut invoke = json!({"type": "invoke", "f": f, "value": asked, "process": op.process, "time": op.called, "node": op.node});
        if let Some(deadline) = op.deadline_ms {
            invoke["deadline-ms"] = json!(deadline);
        }
        let mut complete = json!({"type": kind, "f": f, "value": answered, "process": op.process, "time": op.returned, "node": op.node});
        if let Some(error) = &op.error {
            complete["error"] = json!(error);
        }
        // Of two events at one time the invocation is first: they count as concurrent.
        lines.push((op.called, 0, invoke));
        lines.push((op.returned, 1, complete));
    }
    for fault in faults {
        for (f, at) in [("start", fault.began), ("stop", fault.ended)] {
            let line = json!({"type": "info", "f": format!("{f}-{}", fault.name), "value": fault.detail, "process": "nemesis", "time": at});
            lines.push((at, 2, line));
        }
    }
    lines.sort_by_key(|(at, order, _)| (*at, *order));
    lines
        .into_iter()
        .enumerate()
        .map(|(index, (_, _, mut line))| {
            line["index"] = json!(index);
            line
        })
        .collect()
}

/// EDN of a value; strings that Jepsen has as keywords become keywords.
fn edn(value: &Value, keyword: bool, out: &mut String) {
    // Writing to a string does not fail.
    match value {
        Value::Null => out.push_str("nil"),
        Value::Bool(flag) => out.push_str(if *flag { "true" } else { "false" }),
        Value::Number(number) => write!(out, "{number}").unwrap_or_default(),
        Value::String(text) if keyword => write!(out, ":{text}").unwrap_or_default(),
        Value::String(text) => write!(out, "{text:?}").unwrap_or_default(),
        Value::Array(items) => {
            out.push('[');
            for (nth, item) in items.iter().enumerate() {
                if nth > 0 {
                    out.push(' ');
                }
                edn(item, true, out);
            }
            out.push(']');
        }
        Value::Object(map) => {
            out.push('{');
            for (nth, (name, item)) in map.iter().enumerate() {
                if nth > 0 {
                    out.push_str(", ");
                }
                if name.bytes().all(|byte| byte.is_ascii_digit()) {
                    out.push_str(name);
                } else {
                    write!(out, ":{name}").unwrap_or_default();
                }
                out.push(' ');
                edn(item, matches!(name.as_str(), "type" | "f" | "process"), out);
            }
            out.push('}');
        }
    }
}

/// Writes the history as JSON lines to `dir/history.jsonl` and as EDN to `dir/history.edn`.
///
/// # Errors
/// Why a file cannot be written.
pub fn write(ops: &[Op], faults: &[Fault], dir: &Path) -> std::io::Result<()> {
    let mut json = std::io::BufWriter::new(std::fs::File::create(dir.join("history.jsonl"))?);
    let mut text = std::io::BufWriter::new(std::fs::File::create(dir.join("history.edn"))?);
    let mut line = String::new();
    for event in events(ops, faults) {
        writeln!(json, "{event}")?;
        line.clear();
        edn(&event, false, &mut line);
        writeln!(text, "{line}")?;
    }
    json.flush()?;
    text.flush()
}

/// Reads a history of JSON lines back; an operation without completion is of unknown outcome.
///
/// # Errors
/// Why the file cannot be read, or the first line that is not of a history.
pub fn read(path: &Path) -> Result<Vec<Op>, String> {
    let file = std::fs::File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut open: HashMap<u64, Op> = HashMap::new();
    let mut ops = Vec::new();
    for (nth, line) in std::io::BufReader::new(file).lines().enumerate() {
        let line = line.map_err(|error| error.to_string())?;
        let wrong = || format!("{}:{}: not an event of a history", path.display(), nth + 1);
        let event: Value = serde_json::from_str(&line).map_err(|_| wrong())?;
        let Some(process) = event["process"].as_u64() else {
            continue;
        };
        let time = event["time"].as_u64().ok_or_else(wrong)?;
        let f = event["f"].as_str().ok_or_else(wrong)?;
        let action = action(f, &event["value"]).ok_or_else(wrong)?;
        let end = match event["type"].as_str() {
            Some("invoke") => {
                let op = Op {
                    process,
                    node: event["node"]
                        .as_u64()
                        .and_then(|node| u8::try_from(node).ok())
                        .unwrap_or(0),
                    action,
                    called: time,
                    returned: u64::MAX,
                    end: End::Info,
                    error: None,
                    deadline_ms: event["deadline-ms"].as_u64(),
                };
                open.insert(process, op);
                continue;
            }
            Some("ok") => End::Ok,
            Some("fail") => End::Fail,
            _ => End::Info,
        };
        let mut op = open.remove(&process).ok_or_else(wrong)?;
        if end == End::Ok {
            op.action = action;
        }
        op.returned = time;
        op.end = end;
        op.error = event["error"].as_str().map(str::to_owned);
        ops.push(op);
    }
    ops.extend(open.into_values());
    ops.sort_by_key(|op| (op.called, op.process));
    Ok(ops)
}

/// An operation on one line, for people.
#[must_use]
pub fn show(op: &Op) -> String {
    let (f, value) = parts(&op.action, op.end != End::Ok);
    let mut text = String::new();
    edn(&value, true, &mut text);
    let seconds = |nanos: u64| {
        if nanos == u64::MAX {
            "…".to_owned()
        } else {
            format!("{:.6}", nanos as f64 / 1e9)
        }
    };
    let error = op
        .error
        .as_ref()
        .map_or(String::new(), |error| format!(" ({error})"));
    format!(
        "{}–{} s process {} node {}: {f} {text} {:?}{error}",
        seconds(op.called),
        seconds(op.returned),
        op.process,
        op.node,
        op.end
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ops() -> Vec<Op> {
        let actions = vec![
            (
                Action::Read {
                    key: 1,
                    value: None,
                },
                End::Ok,
            ),
            (
                Action::Read {
                    key: 1,
                    value: Some(-4),
                },
                End::Ok,
            ),
            (Action::Write { key: 2, value: 7 }, End::Info),
            (
                Action::Cas {
                    key: 2,
                    from: 7,
                    to: 8,
                },
                End::Ok,
            ),
            (
                Action::Txn(vec![
                    Mop::Append(3, 1),
                    Mop::List(3, vec![1, 2]),
                    Mop::Write(4, 1),
                    Mop::Read(5, None),
                ]),
                End::Ok,
            ),
            (
                Action::Transfer {
                    from: 1,
                    to: 2,
                    amount: 5,
                },
                End::Fail,
            ),
            (Action::Balances(vec![(0, 10), (1, 20)]), End::Ok),
            (Action::Increment { key: 0, value: 3 }, End::Ok),
            (Action::Count { key: 0, value: 3 }, End::Ok),
            (Action::Add { key: 0, value: 3 }, End::Ok),
            (Action::Remove { key: 0, value: 3 }, End::Info),
            (Action::Delete { key: 2 }, End::Ok),
            (
                Action::Create {
                    key: 2,
                    value: 9,
                    won: true,
                },
                End::Ok,
            ),
            (
                Action::Create {
                    key: 2,
                    value: 10,
                    won: false,
                },
                End::Info,
            ),
            (
                Action::Members {
                    key: 0,
                    values: vec![3],
                },
                End::Ok,
            ),
            (Action::Enqueue { key: 0, value: 3 }, End::Ok),
            (
                Action::Dequeue {
                    key: 0,
                    value: None,
                },
                End::Ok,
            ),
            (
                Action::Expiring {
                    key: 0,
                    value: 3,
                    ttl_ms: 50,
                },
                End::Ok,
            ),
        ];
        let mut at = 0;
        actions
            .into_iter()
            .map(|(action, end)| {
                at += 10;
                Op {
                    process: at,
                    node: 1,
                    action,
                    called: at,
                    returned: at + 5,
                    end,
                    error: (end != End::Ok).then(|| "why \"not\"".to_owned()),
                    deadline_ms: (at % 20 == 0).then_some(500),
                }
            })
            .collect()
    }

    #[test]
    fn a_history_read_back_from_json_lines_is_the_one_written() {
        let dir = tempfile::tempdir().unwrap();
        write(&ops(), &[], dir.path()).unwrap();
        assert_eq!(read(&dir.path().join("history.jsonl")).unwrap(), ops());
    }

    #[test]
    fn edn_has_what_elle_reads() {
        let dir = tempfile::tempdir().unwrap();
        let fault = Fault {
            name: "kill".into(),
            detail: "node 1".into(),
            silenced: vec![1],
            began: 1,
            ended: 2,
        };
        write(&ops()[4..5], &[fault], dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join("history.edn")).unwrap();
        assert!(
            text.contains(":value [[:append 3 1] [:r 3 [1 2]] [:w 4 1] [:r 5 nil]]"),
            "{text}"
        );
        assert!(
            text.contains(":value [[:append 3 1] [:r 3 nil] [:w 4 1] [:r 5 nil]]"),
            "{text}"
        );
        assert!(text.contains(":process :nemesis"), "{text}");
        assert!(text.contains(":type :invoke"), "{text}");
    }

    proptest! {
        #[test]
        fn any_text_of_an_error_survives(error in ".*") {
            let mut op = ops().remove(2);
            op.error = Some(error);
            let dir = tempfile::tempdir().unwrap();
            write(std::slice::from_ref(&op), &[], dir.path()).unwrap();
            prop_assert_eq!(read(&dir.path().join("history.jsonl")).unwrap(), vec![op]);
        }
    }
}
