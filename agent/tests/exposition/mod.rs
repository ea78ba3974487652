//! A strict reader of what Prometheus scrapes: `OpenMetrics` 1.0, and Prometheus' older text.

#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::{BTreeMap, BTreeSet};

pub type Labels = BTreeMap<String, String>;

/// A metric with all its samples.
#[derive(Clone, PartialEq, Debug)]
pub struct Metric {
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    pub help: String,
    /// Name, labels, value; in their order.
    pub samples: Vec<(String, Labels, f64)>,
}

/// Metrics by the name that their samples begin with; a counter's has its `_total`.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Exposition(pub BTreeMap<String, Metric>);

impl Exposition {
    /// Reads a text; panics with the line that is wrong.
    pub fn parse(text: &str, openmetrics: bool) -> Self {
        assert!(text.ends_with('\n'), "the last line has no end");
        let mut lines: Vec<&str> = text.lines().collect();
        if openmetrics {
            assert_eq!(lines.pop(), Some("# EOF"));
        }
        let mut metrics = BTreeMap::<String, Metric>::new();
        let mut current: Option<String> = None;
        let mut help: Option<(String, String)> = None;
        for line in lines {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, text) = rest.split_once(' ').unwrap_or_else(|| panic!("{line}"));
                assert!(help.is_none() && text.ends_with('.'), "{line}");
                help = Some((name.to_owned(), text.to_owned()));
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap_or_else(|| panic!("{line}"));
                let (of, help) = help.take().unwrap_or_else(|| panic!("no help for {line}"));
                assert_eq!(of, name, "{line}");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                let key = match kind {
                    "counter" if openmetrics => format!("{name}_total"),
                    _ => name.to_owned(),
                };
                assert!(is_name(&key), "{line}");
                assert!(kind != "counter" || key.ends_with("_total"), "{line}");
                let metric = Metric {
                    kind: kind.to_owned(),
                    help,
                    samples: Vec::new(),
                };
                assert!(
                    metrics.insert(key.clone(), metric).is_none(),
                    "twice: {line}"
                );
                current = Some(key);
            } else {
                assert!(!line.starts_with('#') && help.is_none(), "{line}");
                let (name, labels, value) = sample(line);
                let of = current.as_deref().unwrap_or_else(|| panic!("{line}"));
                let metric = metrics.get_mut(of).unwrap();
                let fits = match metric.kind.as_str() {
                    "histogram" => ["_bucket", "_count", "_sum"]
                        .iter()
                        .any(|end| name.strip_suffix(end) == Some(of)),
                    _ => name == of,
                };
                assert!(fits, "{line} is no sample of {of}");
                assert!(metric.kind == "gauge" || value >= 0.0, "{line}");
                metric.samples.push((name, labels, value));
            }
        }
        for (name, metric) in &metrics {
            metric.check(name);
        }
        Self(metrics)
    }

    /// The samples of a metric with at least these labels.
    pub fn of<'a>(
        &'a self,
        name: &str,
        labels: &'a [(&str, &str)],
    ) -> impl Iterator<Item = f64> + 'a {
        let metric = self.0.get(name).or_else(|| {
            let ends = ["_count", "_sum", "_bucket"];
            ends.iter()
                .find_map(|end| self.0.get(name.strip_suffix(end)?))
        });
        let name = name.to_owned();
        let samples = metric.map_or(&[][..], |metric| &metric.samples);
        let has =
            |of: &Labels, (key, value): &(&str, &str)| of.get(*key).is_some_and(|v| v == value);
        samples
            .iter()
            .filter(move |(of, all, _)| *of == name && labels.iter().all(|label| has(all, label)))
            .map(|(_, _, value)| *value)
    }

    /// Their sum; panics if there is none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let values: Vec<f64> = self.of(name, labels).collect();
        assert!(!values.is_empty(), "no {name} {labels:?}");
        values.iter().sum()
    }
}

impl Metric {
    /// Names of the labels of its samples, but for a histogram's `le`.
    pub fn labels(&self) -> BTreeSet<String> {
        let names = self.samples.iter().flat_map(|(_, labels, _)| labels.keys());
        names.filter(|name| *name != "le").cloned().collect()
    }

    fn check(&self, name: &str) {
        let mut seen = BTreeSet::new();
        for (of, labels, _) in &self.samples {
            assert!(seen.insert((of, labels)), "{of} {labels:?} twice");
        }
        if self.kind != "histogram" {
            return;
        }
        let mut series = BTreeMap::<Labels, Vec<(f64, f64)>>::new();
        for (of, labels, value) in &self.samples {
            let mut rest = labels.clone();
            if of.ends_with("_bucket") {
                let le = rest
                    .remove("le")
                    .unwrap_or_else(|| panic!("{name} {labels:?}"));
                let le = if le == "+Inf" {
                    f64::INFINITY
                } else {
                    le.parse().unwrap()
                };
                series.entry(rest).or_default().push((le, *value));
            }
        }
        for (labels, buckets) in series {
            for pair in buckets.windows(2) {
                assert!(pair[0].0 < pair[1].0, "{name} {labels:?}: {pair:?}");
                assert!(pair[0].1 <= pair[1].1, "{name} {labels:?}: {pair:?}");
            }
            let (last, all) = *buckets.last().unwrap();
            let counts: Vec<f64> = self
                .samples
                .iter()
                .filter(|(of, own, _)| of.ends_with("_count") && *own == labels)
                .map(|(_, _, value)| *value)
                .collect();
            assert_eq!(
                (last, counts),
                (f64::INFINITY, vec![all]),
                "{name} {labels:?}"
            );
        }
    }
}

fn is_name(name: &str) -> bool {
    let mut chars = name.chars();
    chars.next().is_some_and(|c| c.is_ascii_lowercase())
        && chars.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

fn sample(line: &str) -> (String, Labels, f64) {
    let bad = || -> ! { panic!("{line:?} is no sample") };
    let (before, value) = line.rsplit_once(' ').unwrap_or_else(|| bad());
    let value = value.parse().unwrap_or_else(|_| bad());
    let Some((name, rest)) = before.split_once('{') else {
        return (before.to_owned(), Labels::new(), value);
    };
    let mut labels = Labels::new();
    let mut rest = rest.strip_suffix('}').unwrap_or_else(|| bad());
    while !rest.is_empty() {
        let (key, quoted) = rest.split_once("=\"").unwrap_or_else(|| bad());
        // No label of ours has a quote in it.
        let (text, more) = quoted.split_once('"').unwrap_or_else(|| bad());
        assert!(is_name(key) && !text.contains('\\'), "{line}");
        assert!(
            labels.insert(key.to_owned(), text.to_owned()).is_none(),
            "{line}"
        );
        rest = match more.strip_prefix(',') {
            Some(more) => more,
            None if more.is_empty() => more,
            None => bad(),
        };
    }
    (name.to_owned(), labels, value)
}
