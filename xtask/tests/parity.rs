//! `docs/kube-proxy-parity.md` has a row for each behaviour, and names tests that exist.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Groups 1 to 7 of the catalogue, and IPVS's schedulers; what was found later has numbers of its
/// own.
fn ids() -> impl Iterator<Item = u16> {
    (1..=161).chain(192..=195)
}

/// What a row says.
struct Row {
    state: String,
    told: String,
    tests: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All rows of the page by ID.
fn rows() -> BTreeMap<u16, Row> {
    let page = fs::read_to_string(root().join("docs/kube-proxy-parity.md")).unwrap();
    let mut rows = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with("| KP-")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", id, _, state, told, tests, ""] = cells[..] else {
            panic!("{line:?} has not five cells");
        };
        let id = id.strip_prefix("KP-").unwrap().parse().unwrap();
        let row = Row {
            state: state.to_owned(),
            told: told.to_owned(),
            tests: tests.to_owned(),
        };
        assert!(rows.insert(id, row).is_none(), "KP-{id} has two rows");
    }
    rows
}

/// The text of all sources by name of the file without `.rs`.
fn sources() -> BTreeMap<String, String> {
    let mut sources: BTreeMap<String, String> = BTreeMap::new();
    let mut open = vec![root()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() {
                if name != "target" && !name.starts_with('.') {
                    open.push(path);
                }
            } else if let Some(stem) = name.strip_suffix(".rs") {
                let text = fs::read_to_string(&path).unwrap();
                sources.entry(stem.to_owned()).or_default().push_str(&text);
            }
        }
    }
    sources
}

#[test]
fn every_behaviour_has_a_row() {
    let found: Vec<u16> = rows().into_keys().collect();
    let wanted: Vec<u16> = ids().collect();
    assert_eq!(found, wanted);
}

#[test]
fn every_row_has_a_state_and_says_what_it_means() {
    for (id, row) in rows() {
        let states = ["yes", "planned", "differs", "not yet", "n/a"];
        assert!(
            states.contains(&row.state.as_str()),
            "KP-{id}: {}",
            row.state
        );
        assert!(!row.told.is_empty(), "KP-{id} says nothing");
        let proves = ["yes", "planned", "differs"].contains(&row.state.as_str());
        let reason = row.tests.strip_prefix("no test: ");
        let is_empty = row.tests.is_empty() || reason == Some("");
        assert!(!(proves && is_empty), "KP-{id}: neither test nor reason");
    }
}

#[test]
fn every_test_that_is_named_exists() {
    let sources = sources();
    let fixtures = root().join("agent/tests/fixtures");
    let mut seen = 0;
    for (id, row) in rows() {
        for named in row.tests.split('`').skip(1).step_by(2) {
            let (file, name) = named
                .split_once("::")
                .unwrap_or_else(|| panic!("KP-{id}: {named:?} is no file::name"));
            let source = sources.get(file);
            let source = source.unwrap_or_else(|| panic!("KP-{id}: no {file}.rs"));
            assert!(source.contains(name), "KP-{id}: no {name:?} in {file}.rs");
            let directory = match file {
                "plan_services" => "services",
                "plan_cases" => "plan",
                _ => "",
            };
            let fixture = fixtures.join(directory).join(format!("{name}.yaml"));
            assert!(directory.is_empty() || fixture.is_file(), "{fixture:?}");
            seen += 1;
        }
    }
    assert!(seen > 0, "no row names a test");
}
