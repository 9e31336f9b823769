//! What clients did and were told, in order of real time; written as Jepsen writes it.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// An operation on a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Write(u64),
    /// What was read; `None`: absent.
    Read(Option<u64>),
}

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was acknowledged.
    Ok,
    /// It was refused: nothing was applied.
    Fail,
    /// Nobody knows.
    Info,
}

/// One operation, from call to answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Event {
    pub(crate) process: usize,
    pub(crate) key: usize,
    pub(crate) action: Action,
    pub(crate) called: Duration,
    pub(crate) returned: Duration,
    pub(crate) ended: Ended,
}

/// Writes the history as EDN, an invocation and a completion per operation.
pub(crate) fn write_edn(events: &[Event], path: &Path) -> std::io::Result<()> {
    let mut lines: Vec<(Duration, String)> = Vec::new();
    for event in events {
        let (f, value) = match event.action {
            Action::Write(value) => (":write", value.to_string()),
            Action::Read(value) => (
                ":read",
                value.map_or_else(|| "nil".to_owned(), |value| value.to_string()),
            ),
        };
        let kind = match event.ended {
            Ended::Ok => ":ok",
            Ended::Fail => ":fail",
            Ended::Info => ":info",
        };
        let line = |kind: &str, value: &str, at: Duration| {
            let (process, key) = (event.process, event.key);
            format!(
                "{{:type {kind}, :f {f}, :value [{key} {value}], :process {process}, :time {}}}",
                at.as_nanos()
            )
        };
        let asked = if matches!(event.action, Action::Read(_)) {
            "nil"
        } else {
            &value
        };
        lines.push((event.called, line(":invoke", asked, event.called)));
        lines.push((event.returned, line(kind, &value, event.returned)));
    }
    lines.sort_by_key(|(at, _)| *at);
    let mut text = String::new();
    for (_, line) in lines {
        // Writing to a string does not fail.
        writeln!(text, "{line}").ok();
    }
    std::fs::write(path, text)
}
