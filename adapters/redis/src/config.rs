//! Settings of the door: what the binary starts it with, and what CONFIG shows and changes.
//!
//! CONFIG SET changes this node only, until it stops.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::glob;
use bytes::Bytes;
use leadline_raft::FALLBACK_DEADLINE;

/// How a [`crate::RedisServer`] starts.
#[derive(Clone, Debug)]
pub struct RedisConfig {
    /// Connections at once; more are refused with an error line.
    pub max_clients: usize,
    /// The password of the user `default`; `None` asks for none.
    pub password: Option<String>,
    /// The deadline of a command that brings none.
    pub fallback_deadline: Duration,
    /// Memory for requests and replies of all connections together.
    pub memory_limit: usize,
    /// The longest argument, in bytes.
    pub proto_max_bulk_len: u64,
    /// The port that INFO and CONFIG GET name.
    pub port: u16,
}

impl Default for RedisConfig {
    fn default() -> Self {
        Self {
            max_clients: 10_000,
            password: None,
            fallback_deadline: FALLBACK_DEADLINE,
            memory_limit: 1 << 30,
            proto_max_bulk_len: 512 << 20,
            port: 6379,
        }
    }
}

/// What CONFIG SET can change.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) requirepass: Bytes,
    pub(crate) maxclients: usize,
    /// Idle connections are closed after so many seconds; 0: never.
    pub(crate) timeout_s: u64,
    pub(crate) proto_max_bulk_len: u64,
    /// Negative: the slow log is off.
    pub(crate) slowlog_log_slower_than_us: i64,
    pub(crate) slowlog_max_len: usize,
    pub(crate) fallback_deadline: Duration,
    port: u16,
}

/// Changes a parameter, or says what is wrong with the value.
type Set = fn(&mut Settings, &[u8]) -> Result<(), Cow<'static, str>>;

/// One parameter of CONFIG.
struct Parameter {
    name: &'static str,
    get: fn(&Settings) -> String,
    /// `None`: cannot be changed while running.
    set: Option<Set>,
}

const fn fixed(name: &'static str, get: fn(&Settings) -> String) -> Parameter {
    Parameter {
        name,
        get,
        set: None,
    }
}

/// A number within `limits`.
fn number(text: &[u8], limits: RangeInclusive<i64>) -> Result<i64, Cow<'static, str>> {
    let number = crate::args::parse_integer(text);
    within(
        number.ok_or("argument couldn't be parsed into an integer")?,
        limits,
    )
}

fn within(number: i64, limits: RangeInclusive<i64>) -> Result<i64, Cow<'static, str>> {
    if limits.contains(&number) {
        return Ok(number);
    }
    let (least, most) = limits.into_inner();
    Err(format!("argument must be between {least} and {most} inclusive").into())
}

fn count(number: i64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// `512mb` and its like.
fn memory(text: &[u8]) -> Result<i64, &'static str> {
    const NOT_MEMORY: &str = "argument must be a memory value";
    let text = std::str::from_utf8(text)
        .map_err(|_| NOT_MEMORY)?
        .to_ascii_lowercase();
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor = match &text[digits.len()..] {
        "" | "b" => 1,
        "k" => 1000,
        "kb" => 1 << 10,
        "m" => 1_000_000,
        "mb" => 1 << 20,
        "g" => 1_000_000_000,
        "gb" => 1 << 30,
        _ => return Err(NOT_MEMORY),
    };
    digits
        .parse::<i64>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .ok_or(NOT_MEMORY)
}

const PARAMETERS: &[Parameter] = &[
    fixed("appendfsync", |_| "always".into()),
    fixed("appendonly", |_| "yes".into()),
    fixed("bind", |_| String::new()),
    fixed("cluster-enabled", |_| "no".into()),
    fixed("databases", |_| "16".into()),
    Parameter {
        name: "fallback-deadline-ms",
        get: |settings| settings.fallback_deadline.as_millis().to_string(),
        set: Some(|settings, text| {
            let millis = number(text, 1..=i64::MAX)?;
            settings.fallback_deadline = Duration::from_millis(millis.unsigned_abs());
            Ok(())
        }),
    },
    fixed("lazyfree-lazy-expire", |_| "yes".into()),
    Parameter {
        name: "maxclients",
        get: |settings| settings.maxclients.to_string(),
        set: Some(|settings, text| {
            settings.maxclients = count(number(text, 1..=u32::MAX.into())?);
            Ok(())
        }),
    },
    fixed("maxmemory", |_| "0".into()),
    fixed("maxmemory-policy", |_| "noeviction".into()),
    fixed("notify-keyspace-events", |_| String::new()),
    fixed("port", |settings| settings.port.to_string()),
    Parameter {
        name: "proto-max-bulk-len",
        get: |settings| settings.proto_max_bulk_len.to_string(),
        set: Some(|settings, text| {
            let length = within(memory(text)?, 1 << 20..=i64::MAX)?;
            settings.proto_max_bulk_len = length.unsigned_abs();
            Ok(())
        }),
    },
    Parameter {
        name: "requirepass",
        get: |settings| String::from_utf8_lossy(&settings.requirepass).into_owned(),
        set: Some(|settings, text| {
            settings.requirepass = Bytes::copy_from_slice(text);
            Ok(())
        }),
    },
    fixed("save", |_| String::new()),
    Parameter {
        name: "slowlog-log-slower-than",
        get: |settings| settings.slowlog_log_slower_than_us.to_string(),
        set: Some(|settings, text| {
            settings.slowlog_log_slower_than_us = number(text, -1..=i64::MAX)?;
            Ok(())
        }),
    },
    Parameter {
        name: "slowlog-max-len",
        get: |settings| settings.slowlog_max_len.to_string(),
        set: Some(|settings, text| {
            settings.slowlog_max_len = count(number(text, 0..=100_000)?);
            Ok(())
        }),
    },
    Parameter {
        name: "timeout",
        get: |settings| settings.timeout_s.to_string(),
        set: Some(|settings, text| {
            settings.timeout_s = number(text, 0..=i32::MAX.into())?.unsigned_abs();
            Ok(())
        }),
    },
];

impl Settings {
    pub(crate) fn new(config: &RedisConfig) -> Self {
        Self {
            requirepass: config.password.clone().unwrap_or_default().into(),
            maxclients: config.max_clients,
            timeout_s: 0,
            proto_max_bulk_len: config.proto_max_bulk_len,
            slowlog_log_slower_than_us: 10_000,
            slowlog_max_len: 128,
            fallback_deadline: config.fallback_deadline,
            port: config.port,
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Names and values of the parameters that match one of `patterns`, in order.
    pub(crate) fn matching(&self, patterns: &[Bytes]) -> Vec<(&'static str, String)> {
        PARAMETERS
            .iter()
            .filter(|parameter| {
                patterns
                    .iter()
                    .any(|pattern| glob::matches_ignoring_case(pattern, parameter.name.as_bytes()))
            })
            .map(|parameter| (parameter.name, (parameter.get)(self)))
            .collect()
    }

    /// These settings with `changes`, names and values by turns.
    ///
    /// # Errors
    /// The line that Redis gives.
    pub(crate) fn with(&self, changes: &[Bytes]) -> Result<Self, String> {
        let failed = |name: &Bytes, why: &str| {
            let shown = String::from_utf8_lossy(name);
            format!("ERR CONFIG SET failed (possibly related to argument '{shown}') - {why}")
        };
        // All names are looked at before the first value, as in Redis.
        let mut found: Vec<(&Parameter, Set)> = Vec::new();
        for name in changes.iter().step_by(2) {
            let parameter = PARAMETERS
                .iter()
                .find(|parameter| name.eq_ignore_ascii_case(parameter.name.as_bytes()))
                .ok_or_else(|| {
                    let shown = String::from_utf8_lossy(name);
                    format!("ERR Unknown option or number of arguments for CONFIG SET - '{shown}'")
                })?;
            let set = parameter
                .set
                .ok_or_else(|| failed(name, "can't set immutable config"))?;
            if found.iter().any(|(other, _)| other.name == parameter.name) {
                return Err(failed(name, "duplicate parameter"));
            }
            found.push((parameter, set));
        }
        let mut changed = self.clone();
        for (pair, (_, set)) in changes.chunks_exact(2).zip(found) {
            set(&mut changed, &pair[1]).map_err(|why| failed(&pair[0], &why))?;
        }
        Ok(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::words;

    #[test]
    fn a_parameter_is_changed_only_to_a_value_it_can_have() {
        let settings = Settings::new(&RedisConfig::default());
        let changed = settings.with(&words("Proto-Max-Bulk-Len 1mb")).unwrap();
        assert_eq!(changed.proto_max_bulk_len, 1 << 20);
        for (name, value) in [
            ("proto-max-bulk-len", "much"),
            ("maxclients", "0"),
            ("maxclients", "-5"),
            ("databases", "3"),
            ("no-such", "1"),
        ] {
            let refused = settings.with(&words(&format!("{name} {value}")));
            assert!(refused.unwrap_err().contains(name), "{name} {value}");
        }
    }
}
