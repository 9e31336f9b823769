//! What a run leaves behind: a text for people, and a picture of latencies, throughput and faults.

use std::fmt::Write as _;
use std::time::Duration;

use hdrhistogram::Histogram;
use jepsen::check::{Validity, Verdict};
use jepsen::history::{End, Fault, Op};

use crate::run::Plan;

/// The report, as Markdown.
pub(crate) fn text(plan: &Plan, ops: &[Op], faults: &[Fault], verdict: &Verdict) -> String {
    let word = match verdict.validity() {
        Validity::Valid => "valid",
        Validity::Invalid => "**INVALID**",
        Validity::Unknown => "no verdict",
    };
    let mut text = format!("# {}: {word}\n\n", names(plan));
    let mut line = |what: String| {
        // Writing to a string does not fail.
        writeln!(text, "{what}").unwrap_or_default();
    };
    line(format!(
        "- {} operations at {}/s by {} clients over {:?}; seed {}",
        ops.len(),
        plan.rate,
        plan.clients,
        plan.time_limit,
        plan.seed
    ));
    line(format!("- nodes apart by {}", plan.mode));
    for note in &verdict.notes {
        line(format!("- {note}"));
    }
    for (name, end) in [
        ("acknowledged", End::Ok),
        ("refused", End::Fail),
        ("unknown", End::Info),
    ] {
        if let Some((p50, p99, max)) = latencies(ops, end) {
            line(format!(
                "- {name}: p50 {p50:.1?}, p99 {p99:.1?}, longest {max:.1?}"
            ));
        }
    }
    for what in &verdict.undecided {
        line(format!("- undecided: {what}"));
    }
    for anomaly in &verdict.anomalies {
        line(format!(
            "\n## {}\n\n{}\n\n```",
            anomaly.class, anomaly.summary
        ));
        for evidence in &anomaly.evidence {
            line(evidence.clone());
        }
        line("```".into());
    }
    line("\n## Faults\n".into());
    for fault in faults {
        line(format!(
            "- {:.1}–{:.1} s {} {}",
            fault.began as f64 / 1e9,
            fault.ended as f64 / 1e9,
            fault.name,
            fault.detail
        ));
    }
    line(
        "\n![timeline](timeline.svg)\n\n`history.jsonl` and `history.edn` have every event.".into(),
    );
    text
}

fn names(plan: &Plan) -> String {
    let kinds: Vec<String> = plan.kinds.iter().map(|kind| kind.name()).collect();
    let faults: Vec<String> = plan
        .faults
        .iter()
        .map(|composition| {
            let names: Vec<String> = composition.0.iter().map(|kind| kind.name()).collect();
            names.join("+")
        })
        .collect();
    let faults = if faults.is_empty() {
        "none".to_owned()
    } else {
        faults.join(", ")
    };
    format!("{} under {faults}", kinds.join(", "))
}

fn latencies(ops: &[Op], end: End) -> Option<(Duration, Duration, Duration)> {
    let mut histogram = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3).ok()?;
    for op in ops.iter().filter(|op| op.end == end) {
        histogram.saturating_record((op.returned.saturating_sub(op.called) / 1000).max(1));
    }
    if histogram.is_empty() {
        return None;
    }
    let at = |quantile| Duration::from_micros(histogram.value_at_quantile(quantile));
    Some((at(0.5), at(0.99), Duration::from_micros(histogram.max())))
}

const WIDTH: f64 = 1200.0;
const LEFT: f64 = 60.0;
/// Top and height of the two panels.
const LATENCY: (f64, f64) = (30.0, 300.0);
const THROUGHPUT: (f64, f64) = (370.0, 140.0);
/// Points drawn of each outcome at the most.
const POINTS: usize = 6000;

/// A picture: each operation's latency, operations per second, faults as bands behind both.
pub(crate) fn timeline(ops: &[Op], faults: &[Fault]) -> String {
    let end = ops
        .iter()
        .map(|op| op.called)
        .chain(faults.iter().map(|fault| fault.ended))
        .max()
        .unwrap_or(1)
        .max(1_000_000_000) as f64;
    let x = |at: u64| LEFT + at as f64 / end * (WIDTH - LEFT - 20.0);
    // 100 us at the bottom, 10 s at the top.
    let y = |nanos: u64| {
        let decades = ((nanos.max(1) as f64 / 1e5).log10() / 5.0).clamp(0.0, 1.0);
        LATENCY.0 + LATENCY.1 * (1.0 - decades)
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"540\" font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut draw = |what: String| {
        svg.push_str(&what);
        svg.push('\n');
    };
    for (nth, fault) in faults.iter().enumerate() {
        let (from, to) = (x(fault.began), x(fault.ended).max(x(fault.began) + 1.0));
        draw(format!(
            "<rect x=\"{from:.1}\" y=\"20\" width=\"{:.1}\" height=\"500\" fill=\"#d33\" opacity=\"0.10\"><title>{} {}</title></rect>",
            to - from,
            escape(&fault.name),
            escape(&fault.detail)
        ));
        let row = 12 + 10 * (nth % 2);
        draw(format!(
            "<text x=\"{from:.1}\" y=\"{row}\" fill=\"#a00\" font-size=\"9\">{}</text>",
            escape(&fault.name)
        ));
    }
    for (label, nanos) in [
        ("100 us", 100_000),
        ("1 ms", 1_000_000),
        ("10 ms", 10_000_000),
        ("100 ms", 100_000_000),
        ("1 s", 1_000_000_000),
        ("10 s", 10_000_000_000),
    ] {
        let at = y(nanos);
        draw(format!(
            "<line x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/><text x=\"4\" y=\"{:.1}\">{label}</text>",
            at + 4.0
        ));
    }
    for (kind, colour) in [(End::Ok, "#28a"), (End::Fail, "#e90"), (End::Info, "#c0c")] {
        let some: Vec<&Op> = ops.iter().filter(|op| op.end == kind).collect();
        let step = some.len().div_ceil(POINTS).max(1);
        for op in some.into_iter().step_by(step) {
            draw(format!(
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"1.3\" fill=\"{colour}\"/>",
                x(op.called),
                y(op.returned.saturating_sub(op.called))
            ));
        }
    }
    let seconds = (end / 1e9).ceil() as usize;
    let mut rates = vec![0u32; seconds + 1];
    for op in ops.iter().filter(|op| op.end == End::Ok) {
        let second = usize::try_from(op.returned / 1_000_000_000).unwrap_or(0);
        rates[second.min(seconds)] += 1;
    }
    let most = f64::from(rates.iter().copied().max().unwrap_or(1).max(1));
    let mut points = String::new();
    for (second, rate) in rates.iter().enumerate() {
        let height = THROUGHPUT.0 + THROUGHPUT.1 * (1.0 - f64::from(*rate) / most);
        write!(
            points,
            "{:.1},{height:.1} ",
            x(second as u64 * 1_000_000_000)
        )
        .unwrap_or_default();
    }
    draw(format!(
        "<polyline points=\"{points}\" fill=\"none\" stroke=\"#28a\"/>"
    ));
    draw(format!(
        "<text x=\"4\" y=\"{}\">{most}/s</text>",
        THROUGHPUT.0 + 8.0
    ));
    draw(format!(
        "<text x=\"{LEFT}\" y=\"535\">0 s</text><text x=\"{:.0}\" y=\"535\">{:.0} s</text>",
        WIDTH - 60.0,
        end / 1e9
    ));
    draw("<text x=\"400\" y=\"535\"><tspan fill=\"#28a\">acknowledged</tspan> <tspan fill=\"#e90\">refused</tspan> <tspan fill=\"#c0c\">unknown</tspan> <tspan fill=\"#a00\">fault</tspan></text>".into());
    svg.push_str("</svg>\n");
    svg
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use jepsen::history::Action;

    #[test]
    fn a_timeline_has_a_point_per_operation_and_a_band_per_fault() {
        let op = Op {
            process: 0,
            node: 1,
            action: Action::Read {
                key: 0,
                value: None,
            },
            called: 5,
            returned: 900_000,
            end: End::Ok,
            error: None,
            deadline_ms: None,
        };
        let fault = Fault {
            name: "kill<one>".into(),
            detail: "node 1 & 2".into(),
            silenced: vec![1],
            began: 0,
            ended: 10,
        };
        let svg = timeline(&[op], &[fault]);
        assert_eq!(svg.matches("<circle").count(), 1);
        assert!(svg.contains("kill&lt;one&gt; node 1 &amp; 2"));
    }
}
