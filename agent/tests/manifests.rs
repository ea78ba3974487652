//! A real directory, watched for real.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use tempfile::TempDir;
use tokio::time::timeout;
use tulle_agent::model::{Family, Object, ObjectKey};
use tulle_agent::source::manifests::{Manifests, SourceError, Timing};
use tulle_agent::source::{Batch, Change};

/// Far above what anything here takes; only a failure waits so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Without rescans inside a test: what is seen is seen through inotify.
const NO_RESCAN: Timing = Timing {
    debounce: Duration::from_millis(2),
    settle: Duration::from_millis(250),
    rescan: Duration::from_hours(1),
};

struct Watched {
    dir: TempDir,
    source: Manifests,
    objects: BTreeMap<ObjectKey, Object>,
    warnings: Vec<String>,
    synced: usize,
}

fn service(name: &str, port: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
         spec: {{clusterIP: 10.96.0.1, ports: [{{port: {port}}}]}}\n"
    )
}

impl Watched {
    async fn new(files: &[(&str, &str)], timing: Timing) -> Self {
        let dir = TempDir::new().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let source = Manifests::watch(dir.path(), timing).unwrap();
        let mut watched = Self {
            dir,
            source,
            objects: BTreeMap::new(),
            warnings: Vec::new(),
            synced: 0,
        };
        let first = watched.next().await;
        assert_eq!(first.changes.last(), Some(&Change::Synced));
        watched
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    async fn next(&mut self) -> Batch {
        let batch = timeout(PATIENCE, self.source.recv())
            .await
            .expect("a batch")
            .expect("alive");
        for change in &batch.changes {
            match change {
                Change::Apply(object) => drop(self.objects.insert(object.key(), object.clone())),
                Change::Delete(key) => {
                    assert!(
                        self.objects.remove(key).is_some(),
                        "{key} was never applied"
                    );
                }
                Change::Synced => self.synced += 1,
            }
        }
        self.warnings = batch.warnings.iter().map(ToString::to_string).collect();
        batch
    }

    fn ports(&self) -> Vec<(String, u16)> {
        let services = self.objects.values().filter_map(|object| match object {
            Object::Service(s) => Some((s.name.name.to_string(), s.ports[0].port)),
            Object::Slice(_) | Object::Node(_) | Object::Pod(_) | Object::ServiceCidr(_) => None,
        });
        services.collect()
    }

    fn assert_ports(&self, want: &[(&str, u16)]) {
        let want: Vec<_> = want.iter().map(|(n, p)| ((*n).to_owned(), *p)).collect();
        assert_eq!(self.ports(), want);
    }
}

#[tokio::test]
async fn everything_is_in_the_first_batch_and_synced_comes_once() {
    let mut watched = Watched::new(
        &[
            ("a.yaml", &(service("a", "1") + "---\n" + &service("b", "2"))),
            ("c.yml", &service("c", "3")),
            (
                "d.json",
                r#"{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"Service",
                    "metadata":{"name":"d"},"spec":{"clusterIP":"10.96.0.4","ports":[{"port":4}]}}]}"#,
            ),
            (".hidden.yaml", &service("h", "5")),
            ("x.yaml~", &service("x", "6")),
            (".x.yaml.swp", &service("x", "6")),
            ("#x.yaml", &service("x", "6")),
            ("notes.txt", "nothing"),
        ],
        NO_RESCAN,
    )
    .await;
    watched.assert_ports(&[("a", 1), ("b", 2), ("c", 3), ("d", 4)]);
    assert_eq!(watched.warnings, Vec::<String>::new());
    fs::write(watched.path("e.yaml"), service("e", "5")).unwrap();
    watched.next().await;
    assert_eq!(watched.synced, 1);
    watched.assert_ports(&[("a", 1), ("b", 2), ("c", 3), ("d", 4), ("e", 5)]);
}

#[tokio::test]
async fn an_empty_directory_is_synced() {
    let watched = Watched::new(&[], NO_RESCAN).await;
    assert_eq!(watched.synced, 1);
    assert!(watched.objects.is_empty());
}

#[tokio::test]
async fn files_are_replaced_edited_and_removed() {
    let mut watched = Watched::new(&[("a.yaml", &service("a", "1"))], NO_RESCAN).await;

    // As an editor does.
    fs::write(watched.path(".a.yaml.tmp"), service("a", "2")).unwrap();
    fs::rename(watched.path(".a.yaml.tmp"), watched.path("a.yaml")).unwrap();
    let batch = watched.next().await;
    watched.assert_ports(&[("a", 2)]);
    assert!(batch.noticed <= Instant::now());

    // In place.
    fs::write(watched.path("a.yaml"), service("a", "3")).unwrap();
    let batch = watched.next().await;
    assert_eq!(batch.changes.len(), 1, "never empty in between");
    watched.assert_ports(&[("a", 3)]);

    // Renamed away from the names that count.
    fs::rename(watched.path("a.yaml"), watched.path("a.off")).unwrap();
    watched.next().await;
    watched.assert_ports(&[]);
    fs::rename(watched.path("a.off"), watched.path("b.yaml")).unwrap();
    watched.next().await;
    watched.assert_ports(&[("a", 3)]);

    fs::remove_file(watched.path("b.yaml")).unwrap();
    watched.next().await;
    watched.assert_ports(&[]);
}

#[tokio::test]
async fn a_file_being_written_is_read_when_it_is_closed() {
    use std::io::Write as _;
    // However slow this writer gets, only its close counts.
    let timing = Timing {
        settle: NO_RESCAN.rescan,
        ..NO_RESCAN
    };
    let mut watched = Watched::new(&[("a.yaml", &service("a", "1"))], timing).await;
    let mut file = fs::File::create(watched.path("a.yaml")).unwrap();
    for part in service("a", "2").as_bytes().chunks(8) {
        file.write_all(part).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(file);
    let batch = watched.next().await;
    assert_eq!(batch.changes.len(), 1);
    assert_eq!(watched.warnings, Vec::<String>::new());
    watched.assert_ports(&[("a", 2)]);
}

#[tokio::test]
async fn bad_yaml_keeps_all_objects_of_its_file() {
    let both = service("a", "1") + "---\n" + &service("b", "2");
    let mut watched = Watched::new(&[("a.yaml", &both)], NO_RESCAN).await;

    fs::write(watched.path("a.yaml"), "a: [\n").unwrap();
    let batch = watched.next().await;
    assert_eq!(batch.changes, []);
    watched.assert_ports(&[("a", 1), ("b", 2)]);
    assert!(
        watched.warnings[0].contains("a.yaml: document at line 1: is not YAML"),
        "{:?}",
        watched.warnings
    );

    // Another document of the same file still counts, and nothing is removed.
    fs::write(watched.path("a.yaml"), service("a", "7") + "---\na: [\n").unwrap();
    watched.next().await;
    watched.assert_ports(&[("a", 7), ("b", 2)]);

    fs::write(watched.path("a.yaml"), service("a", "7")).unwrap();
    watched.next().await;
    watched.assert_ports(&[("a", 7)]);
    assert_eq!(watched.warnings, Vec::<String>::new());

    fs::write(watched.path("a.yaml"), [0xff, 0xfe, b'a']).unwrap();
    watched.next().await;
    watched.assert_ports(&[("a", 7)]);
    assert!(
        watched.warnings[0].contains("cannot be read"),
        "{:?}",
        watched.warnings
    );
}

#[tokio::test]
async fn a_bad_field_keeps_its_object_and_no_other() {
    let both = |a: &str, b: &str| service("a", a) + "---\n" + &service("b", b);
    let mut watched = Watched::new(&[("a.yaml", &both("1", "2"))], NO_RESCAN).await;

    fs::write(watched.path("a.yaml"), both("70000", "3")).unwrap();
    watched.next().await;
    watched.assert_ports(&[("a", 1), ("b", 3)]);
    let warning = &watched.warnings[0];
    for part in [
        "a.yaml",
        "Service default/a",
        "spec.ports[0].port",
        "70000",
        "1 to 65535",
    ] {
        assert!(warning.contains(part), "{part:?} is not in {warning:?}");
    }

    // A fault of type is named by its path too.
    fs::write(watched.path("a.yaml"), both("http", "3")).unwrap();
    watched.next().await;
    watched.assert_ports(&[("a", 1), ("b", 3)]);
    assert!(watched.warnings[0].contains("Service default/a: spec.ports[0].port"));

    fs::write(watched.path("a.yaml"), both("4", "3")).unwrap();
    watched.next().await;
    watched.assert_ports(&[("a", 4), ("b", 3)]);
    assert_eq!(watched.warnings, Vec::<String>::new());
}

#[tokio::test]
async fn documents_that_stay_count_as_before_wherever_they_move() {
    let (a, b, c) = (service("a", "1"), service("b", "2"), service("c", "3"));
    let bad = service("x", "70000");
    let file = |parts: &[&str]| parts.join("---\n");
    let all = file(&[&a, &b, "a: [\n", &bad, &b]);
    let mut watched = Watched::new(&[("a.yaml", &all)], NO_RESCAN).await;
    watched.assert_ports(&[("a", 1), ("b", 2)]);
    let told = |watched: &Watched, parts: [&str; 3]| {
        for part in parts {
            let found = watched.warnings.iter().any(|w| w.contains(part));
            assert!(found, "{part:?} is not in {:?}", watched.warnings);
        }
        assert_eq!(watched.warnings.len(), parts.len());
    };
    let twice = "Service default/b: is in this file twice";
    let port = "Service default/x: spec.ports[0].port";
    told(&watched, ["document at line 10: is not YAML", port, twice]);

    // One is edited, one is new, all others stand elsewhere.
    let edited = service("a", "7");
    let other = file(&[&b, &bad, &c, &b, "a: [\n", &edited]);
    fs::write(watched.path("a.yaml"), other).unwrap();
    let batch = watched.next().await;
    assert_eq!(batch.changes.len(), 2, "{:?}", batch.changes);
    watched.assert_ports(&[("a", 7), ("b", 2), ("c", 3)]);
    told(&watched, ["document at line 20: is not YAML", port, twice]);

    // What was there before the last reading is read like anything new.
    fs::write(watched.path("a.yaml"), file(&[&a, &c])).unwrap();
    watched.next().await;
    watched.assert_ports(&[("a", 1), ("c", 3)]);
    assert_eq!(watched.warnings, Vec::<String>::new());
}

#[tokio::test]
async fn of_two_files_with_one_object_the_first_by_name_counts() {
    let mut watched = Watched::new(
        &[
            ("a.yaml", &service("x", "1")),
            ("b.yaml", &service("x", "2")),
        ],
        NO_RESCAN,
    )
    .await;
    watched.assert_ports(&[("x", 1)]);
    assert!(watched.warnings[0].contains("b.yaml: Service default/x: is also in"));

    fs::remove_file(watched.path("a.yaml")).unwrap();
    let batch = watched.next().await;
    assert_eq!(batch.changes.len(), 1, "never deleted in between");
    watched.assert_ports(&[("x", 2)]);
    assert_eq!(watched.warnings, Vec::<String>::new());
}

#[tokio::test]
async fn a_change_takes_milliseconds() {
    let mut watched = Watched::new(&[("a.yaml", &service("a", "1"))], NO_RESCAN).await;
    let mut best = PATIENCE;
    for port in 2..12 {
        fs::write(watched.path(".new"), service("a", &port.to_string())).unwrap();
        let start = Instant::now();
        fs::rename(watched.path(".new"), watched.path("a.yaml")).unwrap();
        watched.next().await;
        best = best.min(start.elapsed());
    }
    assert!(best < Duration::from_millis(50), "{best:?}");
}

#[tokio::test]
async fn a_mounted_config_map_swaps_all_files_at_once() {
    let mut watched = Watched::new(&[], NO_RESCAN).await;
    let write = |name: &str, port: &str| {
        let dir = watched.path(name);
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("a.yaml"), service("a", port)).unwrap();
    };
    write("..1", "1");
    std::os::unix::fs::symlink("..1", watched.path("..data")).unwrap();
    std::os::unix::fs::symlink("..data/a.yaml", watched.path("a.yaml")).unwrap();
    watched.next().await;
    watched.assert_ports(&[("a", 1)]);

    let dir = watched.path("..2");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("a.yaml"), service("a", "2")).unwrap();
    std::os::unix::fs::symlink("..2", watched.path("..data_tmp")).unwrap();
    fs::rename(watched.path("..data_tmp"), watched.path("..data")).unwrap();
    watched.next().await;
    watched.assert_ports(&[("a", 2)]);
}

#[tokio::test]
async fn a_directory_that_is_gone_prunes_nothing_and_may_come_back() {
    let timing = Timing {
        rescan: Duration::from_millis(20),
        ..NO_RESCAN
    };
    let mut watched = Watched::new(&[], timing).await;
    let home = TempDir::new().unwrap();
    let state = home.path().join("state");
    fs::create_dir(&state).unwrap();
    fs::write(state.join("a.yaml"), service("a", "1")).unwrap();
    watched.source = Manifests::watch(&state, timing).unwrap();
    watched.next().await;
    watched.assert_ports(&[("a", 1)]);

    fs::rename(&state, home.path().join("away")).unwrap();
    let batch = watched.next().await;
    assert_eq!(batch.changes, []);
    assert!(
        watched.warnings[0].contains("cannot be read"),
        "{:?}",
        watched.warnings
    );

    fs::create_dir(&state).unwrap();
    fs::write(state.join("a.yaml"), service("a", "2")).unwrap();
    while watched.ports() != [("a".to_owned(), 2)] {
        watched.next().await;
    }
    assert_eq!(watched.warnings, Vec::<String>::new());
}

#[tokio::test]
async fn a_missing_directory_is_refused() {
    let error = Manifests::watch(Path::new("/nonexistent/state"), NO_RESCAN).unwrap_err();
    assert!(matches!(error, SourceError::Directory { .. }), "{error}");
    assert!(error.to_string().contains("create it"), "{error}");
}

#[tokio::test]
async fn kp160_what_caused_a_change_is_told_with_it() {
    let slice = |host: &str, family: &str, more: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: web\n  \
             annotations: {{endpoints.kubernetes.io/last-change-trigger-time: {more}}}\n  \
             labels: {{kubernetes.io/service-name: web}}\naddressType: {family}\nports: []\n\
             endpoints: [{{addresses: [\"{host}\"]}}]\n"
        )
    };
    let early = "\"2026-11-22T10:00:00Z\"";
    let mut watched =
        Watched::new(&[("a.yaml", &slice("10.0.0.1", "IPv4", early))], NO_RESCAN).await;
    // Another time alone is no change: what comes next is the other file's.
    let late = "\"2026-11-22T10:00:01.5Z\"";
    fs::write(watched.path("a.yaml"), slice("10.0.0.1", "IPv4", late)).unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    fs::write(watched.path("b.yaml"), service("b", "1")).unwrap();
    let batch = watched.next().await;
    assert_eq!((batch.changes.len(), batch.triggers), (1, vec![]));
    for (host, family, time, at) in [
        (
            "10.0.0.2",
            "IPv4",
            late,
            Some((Family::V4, 1_795_341_601_500)),
        ),
        (
            "fd00::2",
            "IPv6",
            early,
            Some((Family::V6, 1_795_341_600_000)),
        ),
        ("fd00::3", "IPv6", "\"yesterday\"", None),
    ] {
        fs::write(watched.path("a.yaml"), slice(host, family, time)).unwrap();
        let batch = watched.next().await;
        assert_eq!(batch.changes.len(), 1);
        let told = batch.triggers.iter().map(|trigger| {
            let since = trigger.at.duration_since(SystemTime::UNIX_EPOCH).unwrap();
            (trigger.family, since.as_millis())
        });
        assert_eq!(told.collect::<Vec<_>>(), at.into_iter().collect::<Vec<_>>());
    }
    fs::write(watched.path("a.yaml"), slice("10.0.0.9", "IPv4", late)).unwrap();
    watched.next().await;
    fs::remove_file(watched.path("a.yaml")).unwrap();
    let batch = watched.next().await;
    assert_eq!(
        (batch.changes.len(), batch.triggers),
        (1, vec![]),
        "it is gone"
    );
}
