//! What a packet may cost, and whether it does not cost more.

use std::fmt::Write as _;

use super::outside::COUNTING;
use super::report::{Method, Report, counted};
use super::scenes::{TWIN, TWIN_PACKETS};

/// A limit in nanoseconds over the empty program.
struct Aim {
    what: &'static str,
    program: &'static str,
    packet: &'static str,
    version: u8,
    limit: f64,
}

const AIMS: &[Aim] = &[
    aim(
        "no service, to a pod of another node, encapsulated",
        "pod_from",
        "to a pod of another node",
        4,
        40.0,
    ),
    aim("the same", "pod_from", "to a pod of another node", 6, 70.0),
    aim(
        "established service flow, encapsulated",
        "pod_from",
        "TCP flow, backend elsewhere",
        4,
        60.0,
    ),
    aim(
        "the same",
        "pod_from",
        "TCP flow, backend elsewhere",
        6,
        70.0,
    ),
    aim("not ours", "xdp", "not ours", 4, 15.0),
    aim(
        "out of the overlay, to a known pod",
        "xdp",
        "out of the overlay",
        4,
        25.0,
    ),
    aim("the same", "xdp", "out of the overlay", 6, 25.0),
    aim(
        "node port, source translated, encapsulated",
        "nic_in",
        "node port, source translated, backend elsewhere",
        4,
        90.0,
    ),
    aim(
        "the same",
        "nic_in",
        "node port, source translated, backend elsewhere",
        6,
        90.0,
    ),
    aim(
        "new flow to a node port, source translated",
        "nic_in",
        "new flow to a node port, source translated",
        4,
        400.0,
    ),
    aim(
        "the same",
        "nic_in",
        "new flow to a node port, source translated",
        6,
        400.0,
    ),
];

/// What counting for each service and backend may add to a packet.
const COUNTED: f64 = 5.0;

/// How many times the cost of its hand-written twin a packet may cost.
const OVER_TWIN: f64 = 1.1;

/// Each packet of the twin beside the program's, with the fewest services.
pub fn twin_table(report: &Report) -> String {
    let mut text = String::from(
        "| packet | IP | by hand | pod_from | ratio | at most | |\n|---|---|--:|--:|--:|--:|---|\n",
    );
    let few = report.services().into_iter().min().unwrap_or_default();
    for packet in TWIN_PACKETS {
        let middle = |program| {
            let figure = report.figure(program, packet, 4, few, None)?;
            Some(figure.over_empty.middle)
        };
        if let (Some(by_hand), Some(measured)) = (middle(TWIN), middle("pod_from")) {
            let ratio = measured / by_hand;
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "| {packet} | 4 | {by_hand:.0} | {measured:.0} | {ratio:.2} | {OVER_TWIN} | {} |",
                verdict(ratio, OVER_TWIN)
            );
        }
    }
    text
}

/// What a packet's cost may grow by between the fewest and the most services.
const GROWTH: f64 = 10.0;

const fn aim(
    what: &'static str,
    program: &'static str,
    packet: &'static str,
    version: u8,
    limit: f64,
) -> Aim {
    Aim {
        what,
        program,
        packet,
        version,
        limit,
    }
}

/// Each aim beside its figure; those that were not measured are left out.
pub fn table(report: &Report) -> String {
    let mut text = String::from(
        "| program | packet | IP | at most | measured | |\n|---|---|---|--:|--:|---|\n",
    );
    let services = report.services();
    let (Some(few), Some(many)) = (services.iter().min(), services.iter().max()) else {
        return text;
    };
    for aim in AIMS {
        if let Some(figure) = report.figure(aim.program, aim.packet, aim.version, *few, None) {
            let measured = figure.over_empty.middle;
            row(
                &mut text,
                aim.program,
                aim.what,
                aim.version,
                aim.limit,
                measured,
            );
        }
    }
    for version in [4, 6] {
        if let Some(measured) = counting(report, version) {
            let what = "counting for each service and backend";
            row(&mut text, "pod_from", what, version, COUNTED, measured);
        }
    }
    if few < many {
        for version in [4, 6] {
            if let Some(measured) = growth(report, version, *few, *many) {
                let what = format!("growth from {} to {}", counted(*few), counted(*many));
                row(&mut text, "pod_from", &what, version, GROWTH, measured);
            }
        }
    }
    text
}

/// What counting adds to a packet, on average over all numbers of services.
fn counting(report: &Report, version: u8) -> Option<f64> {
    let services = report.services();
    let middle = |packet, number| {
        let figure = report.figure("pod_from", packet, version, number, None)?;
        Some(figure.over_empty.middle)
    };
    let [without, with] = COUNTING;
    let added: Option<Vec<f64>> = services
        .iter()
        .map(|number| Some(middle(with, *number)? - middle(without, *number)?))
        .collect();
    let added = added?;
    (!added.is_empty()).then(|| added.iter().sum::<f64>() / added.len() as f64)
}

/// By how much packets of known flows and of none grow dearer, on average over
/// those that are measured best: the difference of two primed figures is mostly
/// noise.
fn growth(report: &Report, version: u8, few: u32, many: u32) -> Option<f64> {
    let grown: Vec<f64> = report
        .figures
        .iter()
        .filter(|figure| {
            figure.services == few
                && figure.version == version
                && figure.program == "pod_from"
                && figure.method == Method::Loop
                // A new flow's cost is that of the flow table, which is as it was.
                && !figure.packet.starts_with("new")
        })
        .filter_map(|figure| {
            let method = Some(figure.method);
            let later = report.figure(figure.program, figure.packet, version, many, method)?;
            Some(later.over_empty.middle - figure.over_empty.middle)
        })
        .collect();
    let count = grown.len();
    (count > 0).then(|| grown.iter().sum::<f64>() / count as f64)
}

fn verdict(measured: f64, limit: f64) -> &'static str {
    if measured <= limit { "met" } else { "missed" }
}

fn row(text: &mut String, program: &str, what: &str, version: u8, limit: f64, measured: f64) {
    let verdict = verdict(measured, limit);
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "| {program} | {what} | {version} | {limit:.0} | {measured:.0} | {verdict} |"
    );
}
