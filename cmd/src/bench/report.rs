//! What a run prints.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::load::Outcome;
use crate::output::say;

/// One workload on one server in one round.
#[derive(Clone, Debug)]
pub(super) struct Row {
    per_second: f64,
    operations: u64,
    errors: u64,
    first_error: Option<String>,
    latency: Histogram<u64>,
    cpu_us: Option<f64>,
}

impl Row {
    pub(super) fn new(outcome: &Outcome, cpu: Option<Duration>) -> Self {
        let operations = outcome.latency.len().max(1) as f64;
        Self {
            per_second: outcome.latency.len() as f64 / outcome.elapsed.as_secs_f64().max(1e-9),
            operations: outcome.latency.len(),
            errors: outcome.errors,
            first_error: outcome.first_error.clone(),
            latency: outcome.latency.clone(),
            cpu_us: cpu.map(|cpu| cpu.as_secs_f64() * 1e6 / operations),
        }
    }
}

/// A bar on a terminal; nothing elsewhere or with `--json`.
pub(super) fn progress(what: &str, duration: Duration, json: bool) -> ProgressBar {
    let bar = ProgressBar::new(
        u64::try_from(duration.as_millis())
            .unwrap_or(u64::MAX)
            .max(1),
    );
    if json {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    let style = ProgressStyle::with_template("{prefix} {wide_bar} {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style);
    bar.set_prefix(what.to_owned());
    bar
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

struct Summary {
    per_second: f64,
    latency: Histogram<u64>,
    cpu_us: Option<f64>,
    operations: u64,
    errors: u64,
    first_error: Option<String>,
}

fn summarize(rounds: &[Row]) -> Summary {
    let mut latency = super::load::new_histogram();
    for row in rounds {
        // Same bounds, made by the same function.
        latency.add(&row.latency).ok();
    }
    let cpu: Vec<f64> = rounds.iter().filter_map(|row| row.cpu_us).collect();
    Summary {
        per_second: median(rounds.iter().map(|row| row.per_second).collect()),
        latency,
        cpu_us: (!cpu.is_empty()).then(|| median(cpu)),
        operations: rounds.iter().map(|row| row.operations).sum(),
        errors: rounds.iter().map(|row| row.errors).sum(),
        first_error: rounds.iter().find_map(|row| row.first_error.clone()),
    }
}

/// Prints a line per workload and side, and the ratio of the first side to the second.
///
/// # Errors
/// Names the workloads of which every operation failed.
pub(super) fn print(
    sides: &[&str],
    report: &[(String, Vec<Vec<Row>>)],
    json: bool,
) -> Result<(), String> {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "workload",
        "server",
        "ops/s",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "max us",
        "CPU us/op",
        "errors",
        "ratio",
        "CPU ratio",
    ]);
    let (mut complaints, mut in_vain) = (Vec::new(), Vec::new());
    for (workload, rounds) in report {
        let summaries: Vec<Summary> = rounds.iter().map(|rows| summarize(rows)).collect();
        let ratio = match rounds.as_slice() {
            [ours, theirs] => Some(median(
                ours.iter()
                    .zip(theirs)
                    .map(|(a, b)| a.per_second / b.per_second.max(1e-9))
                    .collect(),
            )),
            _ => None,
        };
        let cpu_ratio = match summaries.as_slice() {
            [ours, theirs] => ours.cpu_us.zip(theirs.cpu_us).map(|(a, b)| a / b.max(1e-9)),
            _ => None,
        };
        for (position, (side, summary)) in sides.iter().zip(&summaries).enumerate() {
            let at = |quantile: f64| summary.latency.value_at_quantile(quantile);
            let (ratio, cpu_ratio) = if position == 0 {
                (ratio, cpu_ratio)
            } else {
                (None, None)
            };
            if let Some(error) = &summary.first_error {
                complaints.push(format!(
                    "{workload} on {side}: {} operations failed, first: {error}",
                    summary.errors
                ));
                if summary.operations == 0 {
                    in_vain.push(format!("{workload} on {side}"));
                }
            }
            if json {
                let line = serde_json::json!({
                    "workload": workload, "server": side, "ops_per_second": summary.per_second,
                    "operations": summary.operations, "errors": summary.errors,
                    "p50_us": at(0.5), "p99_us": at(0.99), "p999_us": at(0.999),
                    "max_us": summary.latency.max(), "cpu_us_per_op": summary.cpu_us,
                    "ratio": ratio, "cpu_ratio": cpu_ratio,
                });
                say!("{line}");
            } else {
                let number =
                    |value: Option<f64>| value.map_or_else(String::new, |v| format!("{v:.2}"));
                table.add_row([
                    workload.clone(),
                    (*side).to_owned(),
                    format!("{:.0}", summary.per_second),
                    at(0.5).to_string(),
                    at(0.99).to_string(),
                    at(0.999).to_string(),
                    summary.latency.max().to_string(),
                    number(summary.cpu_us),
                    summary.errors.to_string(),
                    number(ratio),
                    number(cpu_ratio),
                ]);
            }
        }
    }
    if !json {
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        say!("{table}");
    }
    for complaint in complaints {
        eprintln!("leadline: {complaint}");
    }
    if in_vain.is_empty() {
        return Ok(());
    }
    Err(format!("every operation failed of {}", in_vain.join(", ")))
}
