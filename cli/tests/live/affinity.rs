//! Session affinity: shown and flushed.

use crate::fixture::{fill_affinity, fill_outside, fill_services, now_tick};
use crate::pins::Pins;
use crate::tulle::Tulle;

#[test]
fn affinity_is_shown_filtered_and_flushed() {
    let pins = Pins::new();
    fill_services(&pins);
    fill_outside(&pins);
    fill_affinity(&pins, now_tick(), 10);
    let tulle = Tulle::new(&pins.dir);
    let json = tulle.json(&["affinity"]);
    assert_eq!(json["matching"], 6);
    let row = &json["affinities"][0];
    assert_eq!(row["backend"], "10.244.0.5:8080");
    assert_eq!(row["state"], "live");
    assert_eq!(row["affinity_secs"], 60);
    let left = row["remaining_secs"].as_u64().unwrap();
    assert!((40..=49).contains(&left), "{left}");
    assert_eq!(json["affinities"][5]["state"], "expired", "of no affinity");
    let text = tulle.ok(&["affinity", "--client", "10.244.0.20"]).stdout;
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(
        lines[1].starts_with("10.244.0.20  #7       10.244.0.5:8080  1"),
        "{text}"
    );
    assert!(lines[1].ends_with("  live"), "{text}");

    let refused = tulle.run(&["affinity", "flush", "--client", "10.244.0.20/31"]);
    assert!(!refused.ok);
    assert_eq!(
        refused.stderr,
        "tulle: 2 rows would be forgotten; add --yes to do it\n"
    );
    assert_eq!(tulle.json(&["affinity"])["matching"], 6);
    let line = ["affinity", "flush", "--client", "10.244.0.20/31", "--yes"];
    let flushed = tulle.ok(&line);
    assert_eq!(flushed.stdout, "2 rows forgotten\n");
    assert_eq!(flushed.stderr, "");
    assert_eq!(tulle.json(&["affinity"])["matching"], 4);

    // A name needs the agent, a number does not.
    let unnamed = tulle.ok(&["affinity", "flush", "--service", "web", "--yes"]);
    assert_eq!(unnamed.stdout, "0 rows forgotten\n");
    assert_eq!(unnamed.stderr, "agent not running: names are not shown\n");
    assert_eq!(tulle.json(&["affinity", "--service", "#8"])["matching"], 1);
    tulle.serve();
    let named = tulle.json(&["affinity", "flush", "--service", "default/web", "--yes"]);
    assert_eq!(
        (&named["matching"], &named["rows_removed"]),
        (&3.into(), &3.into())
    );
    assert_eq!(tulle.json(&["affinity"])["affinities"][0]["number"], 8);
}

#[test]
fn affinity_ends_with_its_time() {
    let pins = Pins::new();
    fill_services(&pins);
    fill_outside(&pins);
    fill_affinity(&pins, now_tick(), 70);
    let tulle = Tulle::new(&pins.dir);
    let json = tulle.json(&["affinity", "--service", "7"]);
    let rows = json["affinities"].as_array().unwrap();
    assert_eq!(rows.len(), 5);
    let over = |row: &serde_json::Value| row["state"] == "expired" && row["remaining_secs"] == 0;
    assert!(rows.iter().all(over), "{json}");
}
