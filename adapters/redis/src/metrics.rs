//! What the Redis door counts. Commands are numbered by their place in the command table, so the
//! hot path touches an array of atomics and looks nothing up.
//!
//! | metric | meaning |
//! |---|---|
//! | `leadline_redis_commands_total{command}` | commands answered |
//! | `leadline_redis_errors_total{command,class}` | of them, with an error |
//! | `leadline_redis_command_duration_seconds{command}` | from decoding to the reply |
//! | `leadline_redis_connections` | open now |
//! | `leadline_redis_connections_opened_total` | accepted so far |
//! | `leadline_redis_connections_rejected_total` | refused, or closed for breaking a limit |
//! | `leadline_redis_client_gone_total` | clients that left with work running |
//! | `leadline_redis_blocked_clients` | in BLPOP and its like now |
//! | `leadline_redis_received_bytes_total`, `leadline_redis_sent_bytes_total` | socket traffic |

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use leadline_kv::{DoorStatistics, DoorStats, ErrorClass, Latencies};
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::time::Instant;

use crate::commands;

/// Command histograms have a bucket per power of two of microseconds, from 2^6 to 2^23.
const FIRST_OCTAVE: u32 = 6;
const OCTAVES: usize = 18;

/// First words of errors that are counted each for itself, as in Redis; those of scripts are anyone's.
const ERROR_WORDS: usize = 128;
const LONGEST_ERROR_WORD: usize = 32;
const OTHER_ERRORS: &str = "OTHER";

/// Looks at the rate of commands that come closer together are one: every listener looks.
const CLOSE_LOOKS: Duration = Duration::from_millis(500);

/// Counters of one command.
#[derive(Debug, Default)]
struct CommandCounts {
    calls: AtomicU64,
    errors: [AtomicU64; ErrorClass::ALL.len()],
    nanos: AtomicU64,
    /// The last bucket holds what is longer than all.
    durations: [AtomicU64; OCTAVES + 1],
}

/// Everything this door counts.
pub(crate) struct Metrics {
    /// The last is for requests that name no command.
    commands: Vec<CommandCounts>,
    latencies: [AtomicU64; Latencies::BUCKETS],
    error_words: Mutex<BTreeMap<String, u64>>,
    /// When commands were counted last, and how many there had been.
    last_look: Mutex<(Instant, u64)>,
    /// Commands a second between the last two looks.
    pub(crate) per_second: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) opened: AtomicU64,
    pub(crate) rejected: AtomicU64,
    pub(crate) client_gone: AtomicU64,
    pub(crate) blocked: AtomicU64,
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Adds one to a counter that nobody orders anything by.
pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

fn read(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

/// Commands of one kind, one after another, whose latencies share a bucket: a pipeline's commands
/// are counted by few atomic operations.
#[derive(Debug, Default)]
pub(crate) struct Run {
    command: usize,
    bucket: usize,
    /// Of all together.
    latency: Duration,
    count: u64,
}

impl Run {
    /// Counts an answered command.
    pub(crate) fn add(&mut self, metrics: &Metrics, command: usize, latency: Duration) {
        let bucket = Latencies::bucket(micros(latency));
        if self.command != command || self.bucket != bucket {
            self.flush(metrics);
            (self.command, self.bucket) = (command, bucket);
        }
        self.latency += latency;
        self.count += 1;
    }

    /// Hands over what was counted.
    pub(crate) fn flush(&mut self, metrics: &Metrics) {
        if self.count > 0 {
            metrics.answered(self);
            (self.latency, self.count) = (Duration::ZERO, 0);
        }
    }
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            commands: (0..=commands::count())
                .map(|_| CommandCounts::default())
                .collect(),
            latencies: [const { AtomicU64::new(0) }; Latencies::BUCKETS],
            error_words: Mutex::default(),
            last_look: Mutex::new((Instant::now(), 0)),
            per_second: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            client_gone: AtomicU64::new(0),
            blocked: AtomicU64::new(0),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
        }
    }

    fn answered(&self, run: &Run) {
        let counts = &self.commands[run.command];
        let nanos = u64::try_from(run.latency.as_nanos()).unwrap_or(u64::MAX);
        counts.calls.fetch_add(run.count, Ordering::Relaxed);
        counts.nanos.fetch_add(nanos, Ordering::Relaxed);
        // Buckets of `latencies` lie within those of `durations`.
        let octave = octave(Latencies::longest(run.bucket));
        counts.durations[octave].fetch_add(run.count, Ordering::Relaxed);
        self.latencies[run.bucket].fetch_add(run.count, Ordering::Relaxed);
    }

    /// Counts an error of a command that [`Run::add`] counts too; `line` is without its `-`.
    pub(crate) fn failed(&self, command: usize, class: ErrorClass, line: &[u8]) {
        count(&self.commands[command].errors[class as usize]);
        let word = line.split(|byte| b" \r\n".contains(byte)).next();
        let word = word
            .filter(|word| (1..=LONGEST_ERROR_WORD).contains(&word.len()))
            .filter(|word| word.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'_'))
            .and_then(|word| std::str::from_utf8(word).ok())
            .unwrap_or(OTHER_ERRORS);
        let mut words = self.error_words.lock();
        if let Some(count) = words.get_mut(word) {
            *count += 1;
            return;
        }
        let full = words.len() >= ERROR_WORDS;
        let word = if full { OTHER_ERRORS } else { word };
        *words.entry(word.to_owned()).or_default() += 1;
    }

    /// First words of the errors given, such as `WRONGTYPE`, and how many there were of each.
    pub(crate) fn error_words(&self) -> BTreeMap<String, u64> {
        self.error_words.lock().clone()
    }

    /// Called every second or so: measures [`Metrics::per_second`].
    pub(crate) fn look(&self, now: Instant) {
        let mut last = self.last_look.lock();
        let elapsed = now.saturating_duration_since(last.0);
        if elapsed < CLOSE_LOOKS {
            return;
        }
        let (calls, _) = self.totals();
        // Fewer than before after CONFIG RESETSTAT.
        let rate = calls.saturating_sub(last.1) as f64 / elapsed.as_secs_f64();
        self.per_second
            .store(rate.round() as u64, Ordering::Relaxed);
        *last = (now, calls);
    }

    /// Calls, microseconds, refused and failed calls of each command that was called.
    pub(crate) fn per_command(&self) -> impl Iterator<Item = (&'static str, u64, u64, u64, u64)> {
        commands::all()
            .zip(&self.commands)
            .filter_map(|(spec, counts)| {
                let calls = read(&counts.calls);
                let refused = read(&counts.errors[ErrorClass::Refused as usize]);
                let failed: u64 = counts.errors.iter().map(read).sum::<u64>() - refused;
                let micros = read(&counts.nanos) / 1000;
                (calls > 0).then_some((spec.lower, calls, micros, refused, failed))
            })
    }

    /// Commands answered and errors given.
    pub(crate) fn totals(&self) -> (u64, [u64; ErrorClass::ALL.len()]) {
        let mut errors = [0; ErrorClass::ALL.len()];
        let mut calls = 0;
        for counts in &self.commands {
            calls += read(&counts.calls);
            for (sum, class) in errors.iter_mut().zip(&counts.errors) {
                *sum += read(class);
            }
        }
        (calls, errors)
    }

    /// `CONFIG RESETSTAT`: what INFO counts begins anew. Gauges stay, and so does `/metrics`' right
    /// to see counters fall to zero.
    pub(crate) fn reset(&self) {
        let zero = |counter: &AtomicU64| counter.store(0, Ordering::Relaxed);
        for counts in &self.commands {
            zero(&counts.calls);
            zero(&counts.nanos);
            counts.errors.iter().for_each(zero);
            counts.durations.iter().for_each(zero);
        }
        self.error_words.lock().clear();
        for counter in [
            &self.opened,
            &self.rejected,
            &self.bytes_in,
            &self.bytes_out,
        ] {
            zero(counter);
        }
    }
}

fn micros(latency: Duration) -> u64 {
    u64::try_from(latency.as_micros()).unwrap_or(u64::MAX)
}

fn octave(micros: u64) -> usize {
    let octave = (u64::BITS - micros.leading_zeros()).saturating_sub(FIRST_OCTAVE);
    (octave as usize).min(OCTAVES)
}

impl DoorStatistics for Metrics {
    fn stats(&self) -> DoorStats {
        let (requests, errors) = self.totals();
        let mut latencies = [0; Latencies::BUCKETS];
        for (copy, counter) in latencies.iter_mut().zip(&self.latencies) {
            *copy = read(counter);
        }
        DoorStats {
            door: "redis",
            requests,
            errors,
            client_gone: read(&self.client_gone),
            connections: read(&self.connections),
            rejected: read(&self.rejected),
            waiting: read(&self.blocked),
            bytes_in: read(&self.bytes_in),
            bytes_out: read(&self.bytes_out),
            latency: Latencies::new(latencies),
        }
    }
}

/// Shows [`Metrics`] to a registry.
#[derive(Debug)]
pub(crate) struct Shown(pub(crate) std::sync::Arc<Metrics>);

impl Collector for Shown {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let metrics = &self.0;
        let called = || {
            commands::all()
                .zip(&metrics.commands)
                .filter(|(_, counts)| read(&counts.calls) > 0)
        };

        let mut family = encoder.encode_descriptor(
            "redis_commands",
            "Commands answered",
            None,
            MetricType::Counter,
        )?;
        for (spec, counts) in called() {
            let calls = ConstCounter::new(read(&counts.calls));
            calls.encode(family.encode_family(&[("command", spec.lower)])?)?;
        }

        let mut family = encoder.encode_descriptor(
            "redis_errors",
            "Commands answered with an error, by what the client should do",
            None,
            MetricType::Counter,
        )?;
        for (spec, counts) in called() {
            for class in ErrorClass::ALL {
                let errors = read(&counts.errors[class as usize]);
                if errors > 0 {
                    let labels = [("command", spec.lower), ("class", class.label())];
                    ConstCounter::new(errors).encode(family.encode_family(&labels)?)?;
                }
            }
        }

        let mut family = encoder.encode_descriptor(
            "redis_command_duration_seconds",
            "Time from decoding a command to its reply",
            None,
            MetricType::Histogram,
        )?;
        for (spec, counts) in called() {
            let buckets: Vec<(f64, u64)> = counts
                .durations
                .iter()
                .enumerate()
                .map(|(octave, counter)| {
                    let bound = if octave == OCTAVES {
                        f64::INFINITY
                    } else {
                        2_f64.powi(i32::try_from(octave).unwrap_or(0) + FIRST_OCTAVE as i32) / 1e6
                    };
                    (bound, read(counter))
                })
                .collect();
            let seconds = Duration::from_nanos(read(&counts.nanos)).as_secs_f64();
            let seen = buckets.iter().map(|(_, count)| count).sum();
            family
                .encode_family(&[("command", spec.lower)])?
                .encode_histogram::<[(&str, &str); 0]>(seconds, seen, &buckets, None)?;
        }

        for (name, help, gauge) in [
            (
                "redis_connections",
                "Open connections",
                &metrics.connections,
            ),
            (
                "redis_blocked_clients",
                "Clients waiting in a blocking command",
                &metrics.blocked,
            ),
        ] {
            let value = ConstGauge::new(i64::try_from(read(gauge)).unwrap_or(i64::MAX));
            value.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        for (name, help, counter) in [
            (
                "redis_connections_opened",
                "Connections accepted",
                &metrics.opened,
            ),
            (
                "redis_connections_rejected",
                "Connections refused, or closed for breaking a limit",
                &metrics.rejected,
            ),
            (
                "redis_client_gone",
                "Clients that left with work running",
                &metrics.client_gone,
            ),
            (
                "redis_received_bytes",
                "Bytes read from clients",
                &metrics.bytes_in,
            ),
            (
                "redis_sent_bytes",
                "Bytes written to clients",
                &metrics.bytes_out,
            ),
        ] {
            let value = ConstCounter::new(read(counter));
            value.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prometheus_client::encoding::text;
    use prometheus_client::registry::Registry;

    use super::*;

    /// `histogram_quantile` needs it, and parsers refuse a histogram without it.
    #[test]
    fn the_last_bucket_of_a_histogram_is_open_and_holds_all() {
        let metrics = Arc::new(Metrics::new());
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Shown(metrics.clone())));
        let mut run = Run::default();
        for latency in [Duration::from_micros(3), Duration::from_secs(3600)] {
            run.add(&metrics, 0, latency);
        }
        run.flush(&metrics);
        let mut page = String::new();
        text::encode(&mut page, &registry).unwrap();
        let last = page
            .lines()
            .rfind(|line| line.contains("_bucket{"))
            .unwrap();
        assert!(
            last.contains("le=\"+Inf\"") && last.ends_with(" 2"),
            "{last}"
        );
    }

    #[test]
    fn the_rate_is_that_between_the_last_two_looks() {
        let metrics = Metrics::new();
        let rate = || metrics.per_second.load(Ordering::Relaxed);
        let mut now = metrics.last_look.lock().0;
        let mut look = |commands: u32, millis: u64| {
            let mut run = Run::default();
            for _ in 0..commands {
                run.add(&metrics, 0, Duration::ZERO);
            }
            run.flush(&metrics);
            now += Duration::from_millis(millis);
            metrics.look(now);
        };
        for (commands, millis, expected) in [
            (100, 1000, 100),
            // By another listener: too close to the last.
            (10, 400, 100),
            (50, 600, 60),
            (500, 2000, 250),
            (0, 1000, 0),
        ] {
            look(commands, millis);
            assert_eq!(rate(), expected, "{commands} in {millis} ms");
        }
        metrics.reset();
        look(7, 1000);
        assert_eq!(rate(), 0, "not known across CONFIG RESETSTAT");
    }
}
