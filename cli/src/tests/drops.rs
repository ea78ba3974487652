use datapath_common::Reason;

use super::*;

const STYLE: Style = Style {
    color: false,
    width: Some(80),
};

fn counter(hook: Hook, reason: u8, packets: u64) -> CounterRow {
    CounterRow {
        hook,
        reason,
        packets,
        bytes: packets * 64,
    }
}

fn counters() -> Vec<CounterRow> {
    vec![
        counter(Hook::PodFrom, Reason::Truncated as u8, 3),
        counter(Hook::NicIn, Reason::Truncated as u8, 1),
        counter(Hook::PodFrom, Reason::DeliveredLocal as u8, 1_000_000),
        counter(Hook::Xdp, 127, 12),
    ]
}

#[test]
fn losses_are_explained_and_the_unknown_is_not_hidden() {
    let report = rows(&counters(), false);
    assert_eq!(
        render(&report, STYLE),
        "\
REASON      OUTCOME  PACKETS  BYTES  pod_from  nic_in  xdp
reason_127  unknown       12  768 B         -       -   12
truncated   dropped        4  256 B         3       1    -

reason_127
  a reason of a later release
  → Use agent and tulle of one release.

truncated
  shorter than its headers say
  → A broken sender or a bad cable; capture at the interface that `tulle
    monitor` names.
"
    );
    let text = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
}

#[test]
fn all_shows_what_was_forwarded() {
    let reasons = rows(&counters(), true).reasons;
    let labels: Vec<&str> = reasons.iter().map(|row| row.reason.as_str()).collect();
    assert_eq!(labels, ["delivered_local", "reason_127", "truncated"]);
    assert_eq!(reasons[0].group, "forwarded");
}

#[test]
fn rates_are_of_the_time_between() {
    let before = rows(&counters(), false);
    let mut later = counters();
    later[0].packets += 10;
    later.push(counter(Hook::PodFrom, Reason::BackendGone as u8, 5));
    let mut report = rows(&later, false);
    add_rates(&mut report, &before, Duration::from_secs(2));
    let rate = |label: &str| {
        report
            .reasons
            .iter()
            .find(|row| row.reason == label)
            .unwrap()
            .per_second
            .unwrap()
    };
    assert!((rate("truncated") - 5.0).abs() < 1e-9);
    assert!(
        (rate("backend_gone") - 2.5).abs() < 1e-9,
        "a reason that is new"
    );
    assert!(rate("reason_127").abs() < 1e-9);
    assert!(render(&report, STYLE).contains("PER SECOND"));
}

#[test]
fn nothing_counted_is_told_from_nothing_lost() {
    assert_eq!(rows(&[], false).notes, ["no packet has been counted yet"]);
    let passed = [counter(Hook::Xdp, Reason::NotOurs as u8, 5)];
    assert_eq!(render(&rows(&passed, false), STYLE), "nothing lost\n");
}
