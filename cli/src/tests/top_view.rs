use datapath_common::Reason;

use super::*;
use crate::top::world::{self, backend, counter, part, sample, service, traffic};

const SECOND: Duration = Duration::from_secs(1);

/// Rates of one service in two readings that are half a second apart.
fn of_services(before: Vec<ServiceSample>, now: Vec<ServiceSample>) -> Vec<Option<f64>> {
    let before = part(SECOND, 1, before);
    let now = part(SECOND * 3 / 2, 1, now);
    let rows = services(Some(&before), &now);
    rows.iter()
        .map(|row| row.rates.map(|rates| rates.flows))
        .collect()
}

#[test]
fn rates_are_over_the_real_time() {
    let view = world::view();
    assert_eq!(view.between_secs, Some(2.0));
    let rates = view.services[0].rates.unwrap();
    assert_eq!(
        rates,
        Rates {
            flows: 15.0,
            packets: 150.0,
            bits: 120_000.0,
            reply_packets: 300.0,
            reply_bits: 240_000.0,
        }
    );
    assert_eq!(view.services[2].rates, None, "it is not counted");
    assert_eq!(view.all_services.map(|rates| rates.flows), Some(20.0));
    let first = view.backends[0].rates;
    assert_eq!(first.map(|rates| rates.flows), Some(10.0));
    assert_eq!(view.backends[2].services, ["#8"]);
    let from_pods = view.hooks[0].rates.unwrap();
    assert_eq!(
        (from_pods.packets, from_pods.lost, from_pods.forwarded),
        (255.0, 5.0, 250.0)
    );
    assert_eq!(Some(from_pods.bits), Some(255.0 * 800.0));
    let from_wire = view.hooks[2].rates.unwrap();
    assert_eq!((from_wire.passed, from_wire.lost), (5.0, 0.0));
    let lost: Vec<_> = view
        .drops
        .iter()
        .map(|d| (d.reason.as_str(), d.packets_per_second))
        .collect();
    assert_eq!(
        lost,
        [("no_endpoints", Some(5.0)), ("unknown_node", Some(0.0))]
    );
    assert!(view.drops[0].next_step.contains("tulle services"));
}

#[test]
fn the_first_reading_has_no_rates() {
    let view = View::new(None, &sample(SECOND, 1));
    assert_eq!((view.between_secs, view.all_services), (None, None));
    assert!(view.services.iter().all(|row| row.rates.is_none()));
    assert!(view.hooks.iter().all(|row| row.rates.is_none()));
    assert!(
        view.drops
            .iter()
            .all(|row| row.packets_per_second.is_none())
    );
    assert!(view.services[0].traffic.is_some(), "but totals");
}

#[test]
fn a_number_that_another_service_had_is_not_charged() {
    let web = || service(7, Some("default/web"), "10.96.0.10:80", 100);
    let more = |name, frontend| service(7, name, frontend, 150);
    let of = |now| of_services(vec![web()], vec![now]);
    assert_eq!(
        of(more(Some("default/web"), "10.96.0.10:80")),
        [Some(100.0)]
    );
    assert_eq!(
        of(more(Some("default/web"), "10.96.0.99:80")),
        [Some(100.0)],
        "by its name"
    );
    assert_eq!(
        of(more(None, "10.96.0.10:80")),
        [Some(100.0)],
        "by its address"
    );
    assert_eq!(of(more(Some("default/other"), "10.96.0.10:80")), [None]);
    assert_eq!(of(more(None, "10.96.0.99:80")), [None]);
    assert_eq!(
        of(service(6, Some("default/web"), "10.96.0.10:80", 150)),
        [None],
        "another counter"
    );
}

#[test]
fn a_counter_that_fell_has_no_rate() {
    let with = |counters| {
        vec![ServiceSample {
            traffic: Some(counters),
            ..service(7, Some("a"), "10.96.0.10:80", 0)
        }]
    };
    assert_eq!(of_services(with(traffic(9)), with(traffic(8))), [None]);
    let mut partly = traffic(9);
    partly.reply_bytes -= 1;
    assert_eq!(of_services(with(traffic(9)), with(partly)), [None]);
    assert_eq!(of_services(with(traffic(9)), with(traffic(9))), [Some(0.0)]);
}

#[test]
fn another_backend_or_map_has_no_rate() {
    let rates = |before: Part<BackendSample>, now: Part<BackendSample>| {
        let rows = backends(Some(&before), &now, &HashMap::new());
        rows[0].rates.map(|rates| rates.flows)
    };
    let at = |secs: u32, map, row| part(SECOND * secs, map, vec![row]);
    let row = |n| backend(1, "10.244.0.5:80", &[], n);
    assert_eq!(rates(at(1, 5, row(1)), at(2, 5, row(4))), Some(3.0));
    assert_eq!(
        rates(at(1, 5, row(1)), at(2, 6, row(4))),
        None,
        "another map"
    );
    assert_eq!(
        rates(at(2, 5, row(1)), at(2, 5, row(4))),
        None,
        "no time has passed"
    );
    let mut again = row(4);
    again.id.2 = 2;
    assert_eq!(
        rates(at(1, 5, row(1)), at(2, 5, again)),
        None,
        "another generation"
    );
    let moved = backend(1, "10.244.0.6:80", &[], 4);
    assert_eq!(
        rates(at(1, 5, row(1)), at(2, 5, moved)),
        None,
        "another address"
    );

    let unread = Sample::failed("gone".into(), 0, Agent::default());
    let view = View::new(Some(&sample(SECOND, 5)), &unread);
    assert!(view.is_blind() && view.hooks.is_empty());
    let back = View::new(Some(&unread), &sample(SECOND * 2, 9));
    assert!(!back.is_blind());
    assert!(back.hooks.iter().all(|row| row.rates.is_none()));
}

#[test]
fn a_loss_that_is_new_counts_from_zero() {
    let part = |secs: u32, map, rows| part(SECOND * secs, map, rows);
    let now = || part(2, 3, vec![counter(Hook::Xdp, Reason::Truncated, 7)]);
    let rate = |before: Part<CounterRow>| losses(Some(&before), &now())[0].packets_per_second;
    assert_eq!(rate(part(1, 3, Vec::new())), Some(7.0));
    assert_eq!(rate(part(1, 4, Vec::new())), None, "of another map");
    let other_hook = vec![counter(Hook::NicIn, Reason::Truncated, 5)];
    assert_eq!(rate(part(1, 3, other_hook)), Some(7.0));
    let fell = vec![counter(Hook::Xdp, Reason::Truncated, 8)];
    assert_eq!(rate(part(1, 3, fell)), None);
    let later_release = CounterRow {
        reason: 127,
        ..counter(Hook::Xdp, Reason::Truncated, 3)
    };
    let shown = losses(None, &part(1, 3, vec![later_release]));
    assert_eq!(
        (shown[0].reason.as_str(), shown[0].group.as_str()),
        ("reason_127", "unknown")
    );
}
