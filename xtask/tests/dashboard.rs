//! `deploy/grafana/tulle.json` asks only for metrics and labels that `docs/metrics.md` lists,
//! in the way that their types ask for.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// What is no metric where a name may stand.
const WORDS: [&str; 13] = [
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "and",
    "or",
    "unless",
    "bool",
    "offset",
    "inf",
    "nan",
];
/// Labels that Prometheus adds, and that of a histogram's buckets.
const ADDED: [&str; 3] = ["instance", "job", "le"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

struct Metric {
    kind: String,
    labels: BTreeSet<String>,
}

fn documented() -> BTreeMap<String, Metric> {
    let page = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let mut metrics = BTreeMap::new();
    for line in page.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", name, kind, labels, _, ""] = cells[..] else {
            continue;
        };
        let is_metric = ["counter", "gauge", "histogram"].contains(&kind);
        let name = name.strip_prefix('`').and_then(|n| n.strip_suffix('`'));
        let Some(name) = name.filter(|_| is_metric) else {
            continue;
        };
        let labels = labels.split('`').skip(1).step_by(2).map(str::to_owned);
        let metric = Metric {
            kind: kind.to_owned(),
            labels: labels.collect(),
        };
        metrics.insert(name.to_owned(), metric);
    }
    metrics
}

fn dashboard() -> Value {
    let text = fs::read_to_string(root().join("deploy/grafana/tulle.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// All queries, those of variables too.
fn queries() -> Vec<String> {
    let dashboard = dashboard();
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            queries.push(target["expr"].as_str().unwrap().to_owned());
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if variable["type"] == "query" {
            assert_eq!(variable["definition"], variable["query"]["query"]);
            queries.push(variable["definition"].as_str().unwrap().to_owned());
        }
    }
    queries
}

/// A part of a query.
#[derive(Clone, PartialEq, Debug)]
enum Token {
    Name(String),
    Text(String),
    Sign(char),
}

fn tokens(query: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let mut chars = query.chars().peekable();
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$';
    while let Some(c) = chars.next() {
        if c == '"' {
            let text = chars.by_ref().take_while(|c| *c != '"').collect();
            tokens.push(Token::Text(text));
        } else if is_name(c) {
            let mut name = c.to_string();
            while let Some(c) = chars.next_if(|c| is_name(*c)) {
                name.push(c);
            }
            tokens.push(Token::Name(name));
        } else if !c.is_whitespace() {
            tokens.push(Token::Sign(c));
        }
    }
    tokens
}

/// What a query asks for.
#[derive(Default, Debug)]
struct Asked {
    /// Metrics, each with the labels of its selector and whether it is over a range.
    metrics: Vec<(String, BTreeSet<String>, bool)>,
    /// Labels of `by (…)`, `on (…)` and the like.
    groups: BTreeSet<String>,
}

fn asked(query: &str) -> Asked {
    let tokens = tokens(query);
    let mut asked = Asked::default();
    let mut at = 0;
    let names_until = |from: usize, end: char| {
        let rest = &tokens[from..];
        let len = rest
            .iter()
            .position(|t| *t == Token::Sign(end))
            .expect("an end");
        (from + len + 1, &rest[..len])
    };
    while at < tokens.len() {
        let Token::Name(name) = &tokens[at] else {
            at += 1;
            continue;
        };
        at += 1;
        let next = tokens.get(at);
        let lower = name.to_ascii_lowercase();
        if WORDS.contains(&lower.as_str()) {
            if next == Some(&Token::Sign('(')) && lower != "and" && lower != "or" {
                let (after, list) = names_until(at + 1, ')');
                for token in list {
                    match token {
                        Token::Name(label) => drop(asked.groups.insert(label.clone())),
                        other => assert_eq!(*other, Token::Sign(','), "{query}"),
                    }
                }
                at = after;
            }
            continue;
        }
        let groups = ["by", "without"].map(|word| Token::Name(word.to_owned()));
        let is_function =
            next == Some(&Token::Sign('(')) || next.is_some_and(|next| groups.contains(next));
        let is_number = name.starts_with(|c: char| c.is_ascii_digit());
        if is_function || is_number || name.starts_with('$') {
            continue;
        }
        if ["instance", "job"].contains(&name.as_str()) && query.starts_with("label_values(") {
            asked.groups.insert(name.clone());
            continue;
        }
        let mut labels = BTreeSet::new();
        if next == Some(&Token::Sign('{')) {
            let (after, list) = names_until(at + 1, '}');
            labels.extend(list.iter().filter_map(|token| match token {
                Token::Name(label) => Some(label.clone()),
                _ => None,
            }));
            at = after;
        }
        let range = tokens.get(at) == Some(&Token::Sign('['));
        asked.metrics.push((name.clone(), labels, range));
    }
    asked
}

#[test]
fn every_query_names_metrics_and_labels_that_exist() {
    let documented = documented();
    let mut seen = BTreeSet::new();
    for query in queries() {
        let asked = asked(&query);
        assert!(!asked.metrics.is_empty(), "{query} asks for nothing");
        let mut known: BTreeSet<&str> = ADDED.into();
        for (name, labels, range) in &asked.metrics {
            let part = ["_bucket", "_count", "_sum"].iter().find_map(|end| {
                let of = name.strip_suffix(end)?;
                documented
                    .get_key_value(of)
                    .filter(|(_, m)| m.kind == "histogram")
            });
            let whole = documented.get_key_value(name.as_str());
            let (name, metric) = part
                .or(whole)
                .unwrap_or_else(|| panic!("{query}: docs/metrics.md has no {name}"));
            assert!(
                part.is_some() || metric.kind != "histogram",
                "{query}: {name} is a histogram"
            );
            let grows = metric.kind != "gauge";
            assert!(!grows || *range, "{query}: {name} grows; ask for its rate");
            assert!(
                grows || !*range,
                "{query}: {name} is a gauge and has no rate"
            );
            // kube-proxy's names are those of kube-proxies of other nodes, too.
            let of_tulle = labels.contains("job") || query == "label_values(tulle_build_info, job)";
            assert!(of_tulle, "{query}: {name} of whatever job");
            for label in labels {
                let has = metric.labels.contains(label) || ADDED.contains(&label.as_str());
                assert!(has, "{query}: {name} has no label {label}");
            }
            known.extend(metric.labels.iter().map(String::as_str));
            seen.insert(name.clone());
        }
        for label in &asked.groups {
            assert!(
                known.contains(label.as_str()),
                "{query}: nothing has a label {label}"
            );
        }
    }
    // What an operator asks for first.
    for metric in [
        "tulle_service_bytes_total",
        "tulle_drops_total",
        "kubeproxy_network_programming_duration_seconds",
        "kubeproxy_sync_proxy_rules_duration_seconds",
        "tulle_map_entries",
        "tulle_map_max_entries",
        "tulle_flow_rows",
        "tulle_source_last_event_age_seconds",
        "tulle_drift_repairs_total",
        "tulle_faults",
        "process_resident_memory_bytes",
    ] {
        assert!(seen.contains(metric), "no panel shows {metric}");
    }
}

/// "All" means those jobs that tell of Tulle's build, not any job.
#[test]
fn jobs_are_those_of_tulle() {
    let dashboard = dashboard();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let job = variables.iter().find(|v| v["name"] == "job").unwrap();
    assert_eq!(job["definition"], "label_values(tulle_build_info, job)");
    assert_eq!(job.get("allValue"), None);
    for query in queries() {
        let selectors = query.matches("job=~\"$job\"").count();
        let metrics = asked(&query).metrics.len();
        assert!(
            selectors == metrics || query == job["definition"],
            "{query}"
        );
    }
}

/// An LRU table is full as a matter of course, and is never shown beside one that refuses.
#[test]
fn maps_that_evict_are_told_apart_from_those_that_refuse() {
    let of_maps = |query: &String| query.contains("tulle_map_max_entries");
    let queries: Vec<String> = queries().into_iter().filter(of_maps).collect();
    assert!(queries.len() >= 3);
    for query in queries {
        let refuses = query.matches("when_full=\"refuses\"").count();
        let evicts = query.matches("when_full=\"evicts\"").count();
        assert!([(2, 0), (0, 2)].contains(&(refuses, evicts)), "{query}");
    }
}

#[test]
fn no_packet_is_in_a_sum_twice() {
    for query in queries() {
        let sums = query.contains("tulle_packets_total") || query.contains("tulle_bytes_total");
        let once = query.contains("outcome!=\"handed_on\"") || query.contains("by (program");
        assert!(!sums || once, "{query}");
    }
}

#[test]
fn legends_name_labels_that_the_query_keeps() {
    for panel in dashboard()["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap();
            let legend = target["legendFormat"].as_str().unwrap_or_default();
            let asked = asked(query);
            for label in legend
                .split("{{")
                .skip(1)
                .map(|rest| rest.split("}}").next().unwrap())
            {
                let kept = asked.groups.contains(label) || !query.contains(" by (");
                assert!(kept, "{legend} of {query}");
            }
        }
    }
}

#[test]
fn panels_ask_the_chosen_source_and_do_not_overlap() {
    let dashboard = dashboard();
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = &panel["title"];
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}");
        let side = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        assert!(side("x") + side("w") <= 24, "{title}");
        for x in side("x")..side("x") + side("w") {
            for y in side("y")..side("y") + side("h") {
                assert!(cells.insert((x, y)), "{title} is upon another panel");
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        let targets = panel["targets"].as_array().unwrap();
        let sources = targets.iter().map(|target| &target["datasource"]);
        for source in sources.chain([&panel["datasource"]]) {
            assert_eq!(source["uid"], "${datasource}", "{title}");
            assert_eq!(source["type"], "prometheus", "{title}");
        }
    }
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let source = variables
        .iter()
        .find(|v| v["name"] == "datasource")
        .unwrap();
    assert_eq!(
        (&source["type"], &source["query"]),
        (&"datasource".into(), &"prometheus".into())
    );
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 39);
    assert!(dashboard["id"].is_null(), "Grafana gives it one");
}

#[test]
fn queries_are_understood() {
    let query = r#"topk(10, sum by (a, b) (rate(m_total{x=~"$y", z="by (c)"}[$__rate_interval])) > 0) and on (i) n - 1.5"#;
    let asked = asked(query);
    let names: Vec<(&str, bool)> = asked
        .metrics
        .iter()
        .map(|(n, _, r)| (n.as_str(), *r))
        .collect();
    assert_eq!(names, [("m_total", true), ("n", false)]);
    assert_eq!(
        asked.metrics[0].1,
        BTreeSet::from(["x".to_owned(), "z".to_owned()])
    );
    assert_eq!(asked.groups, ["a", "b", "i"].map(str::to_owned).into());
}
