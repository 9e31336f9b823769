//! The metrics registry as JSON, so that a page need not read OpenMetrics text.

use std::collections::BTreeMap;

use prometheus_client::registry::Registry;
use serde::Serialize;

/// One metric family: `name`, what kind it is, and its samples.
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Family {
    name: String,
    kind: String,
    help: String,
    samples: Vec<Sample>,
}

/// One sample; its name carries the suffix (`_total`, `_bucket`, `_sum`, `_count`).
#[derive(Debug, PartialEq, Serialize)]
pub(crate) struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// # Errors
/// A metric of ours that cannot be written or read back.
pub(crate) fn collect(registry: &Registry) -> Result<Vec<Family>, String> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry)
        .map_err(|error| error.to_string())?;
    parse(&text)
}

fn parse(text: &str) -> Result<Vec<Family>, String> {
    let mut families: Vec<Family> = Vec::new();
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let mut words = comment.splitn(3, ' ');
            let (what, name) = (words.next(), words.next().unwrap_or_default());
            let rest = words.next().unwrap_or_default();
            match what {
                Some("HELP") => families.push(Family {
                    name: name.into(),
                    kind: String::new(),
                    help: rest.into(),
                    samples: Vec::new(),
                }),
                Some("TYPE") => {
                    if let Some(family) = families.last_mut() {
                        family.kind = rest.into();
                    }
                }
                // UNIT and EOF say nothing that the page needs.
                _ => {}
            }
        } else if let Some(family) = families.last_mut() {
            let sample = parse_sample(line).ok_or_else(|| format!("cannot read '{line}'"))?;
            family.samples.push(sample);
        }
    }
    Ok(families)
}

fn parse_sample(line: &str) -> Option<Sample> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, parse_labels(labels.strip_suffix('}')?)?),
        None => (series, BTreeMap::new()),
    };
    Some(Sample {
        name: name.into(),
        labels,
        value: value.parse().ok()?,
    })
}

/// `name="value",…`; a value escapes `\`, `"` and the line feed.
fn parse_labels(text: &str) -> Option<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (name, after) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = after.char_indices();
        let end = loop {
            match characters.next()? {
                (at, '"') => break at,
                (_, '\\') => value.push(match characters.next()?.1 {
                    'n' => '\n',
                    other => other,
                }),
                (_, other) => value.push(other),
            }
        };
        labels.insert(name.to_owned(), value);
        rest = after[end + 1..]
            .strip_prefix(',')
            .unwrap_or(&after[end + 1..]);
    }
    Some(labels)
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::family;
    use prometheus_client::metrics::histogram::Histogram;

    use super::*;

    #[test]
    fn a_registry_reads_back_with_its_labels_and_buckets() {
        let mut registry = Registry::default();
        let errors = family::Family::<Vec<(String, String)>, Counter>::default();
        errors
            .get_or_create(&vec![("class".into(), "a \"b\", c\\d}".into())])
            .inc_by(3);
        registry.register("errors", "Errors by class", errors);
        let seconds = Histogram::new([0.5]);
        seconds.observe(0.1);
        registry.register("seconds", "Durations", seconds);

        let families = collect(&registry).unwrap();

        assert_eq!(
            (families[0].name.as_str(), families[0].kind.as_str()),
            ("errors", "counter")
        );
        assert_eq!(families[0].samples[0].name, "errors_total");
        assert_eq!(families[0].samples[0].labels["class"], "a \"b\", c\\d}");
        assert_eq!(families[0].samples[0].value, 3.0);
        let bucket = families[1]
            .samples
            .iter()
            .find(|sample| sample.labels.contains_key("le"));
        assert_eq!(bucket.unwrap().labels["le"], "0.5");
        assert!(
            families[1]
                .samples
                .iter()
                .any(|s| s.labels.get("le").is_some_and(|le| le == "+Inf"))
        );
    }
}
