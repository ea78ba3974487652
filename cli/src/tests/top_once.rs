use std::time::Duration;

use super::*;
use crate::top::page::Sort;
use crate::top::world;

const STYLE: Style = Style {
    color: false,
    width: Some(80),
};

fn args(page: Option<Page>) -> TopArgs {
    TopArgs {
        interval: Duration::from_secs(1),
        page,
        sort: None,
        once: true,
        limit: None,
    }
}

#[test]
fn every_page_is_printed() {
    let (shown, notes) = text(&world::view(), &args(None), STYLE);
    assert!(
        shown.starts_with("tulle top  n1  agent up 1m05s  rates over 2.00 s  01:02:06.000 UTC\n\n"),
        "{shown}"
    );
    for line in [
        "\nServices\nSERVICE ",
        "\nBackends\nADDRESS ",
        "\nDrops\nREASON ",
        "\nMaps\nMAP ",
        "\nunknown_node\n  overlay packet",
    ] {
        assert!(shown.contains(line), "{line:?} in {shown}");
    }
    assert!(
        shown
            .lines()
            .all(|line| line.chars().count() <= 80 && !line.ends_with(' ')),
        "{shown}"
    );
    assert!(notes.is_empty(), "{notes:?}");
}

#[test]
fn a_page_is_sorted_and_limited() {
    let mut args = args(Some(Page::Services));
    (args.sort, args.limit) = (Some(Sort::Name), Some(2));
    let (shown, notes) = text(&world::view(), &args, STYLE);
    let names: Vec<&str> = shown
        .lines()
        .skip(3)
        .map(|l| l.split(' ').next().unwrap())
        .collect();
    assert_eq!(
        names,
        ["default/web:http", "kube-system/metrics"],
        "{shown}"
    );
    assert_eq!(notes, ["the first 2 of 3 rows of services; -n 0 shows all"]);
    let view = ordered(world::view(), &args);
    let numbers: Vec<u32> = view.services.iter().map(|row| row.number).collect();
    assert_eq!((numbers, view.backends.len()), (vec![7, 9], 2));
    args.limit = Some(0);
    assert_eq!(ordered(world::view(), &args).services.len(), 3);
}

#[test]
fn faults_are_told_beside_it() {
    let mut view = world::view();
    view.faults.push("map tulle_events is not pinned".into());
    view.agent.faults.push("overlay".into());
    view.drops.clear();
    let (shown, notes) = text(&view, &args(Some(Page::Drops)), STYLE);
    assert!(shown.ends_with("\nnothing lost\n"), "{shown}");
    assert_eq!(
        notes,
        [
            "fault: map tulle_events is not pinned",
            "the agent's fault: overlay"
        ]
    );
}

#[test]
fn json_has_rates_and_totals() {
    let text = output::document("tulle.top", &world::view(), false).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["schema"], "tulle.top");
    assert_eq!(json["services"][0]["rates"]["flows"], 15.0);
    assert_eq!(json["services"][2]["rates"], serde_json::Value::Null);
    assert_eq!(json["hooks"][0]["hook"], "pod_from");
    let again: View = serde_json::from_str(&text).unwrap();
    assert_eq!(again, world::view());
}
