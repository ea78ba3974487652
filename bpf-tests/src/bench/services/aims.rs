//! What is to be reached, whether it is, and where Tulle is behind.

use std::fmt::Write as _;

use super::report::{Case, ServicesReport, figures, shown};
use super::ways::{Figure, Front, Way, Work};
use crate::bench::report::counted;

/// Sockets beside the pod's own address.
const SOCKETS: f64 = 0.97;
/// Packets beside iptables with few services: with so many.
const IPTABLES: (usize, f64) = (10, 1.0);
/// Packets beside nftables with many.
const NFTABLES: (usize, f64) = (10_000, 1.5);
/// What is left of the rate from the fewest services to the most: the same
/// three in a hundred as at sockets.
const FLAT: f64 = 0.97;
/// The loads that aims are for: rates.
const LOADS: [Work; 2] = [Work::Connect, Work::Exchange];

/// Each aim beside its figure, and where rules are compared beside what would be
/// measured if nothing were translated; those that were not measured are left out.
pub fn table(report: &ServicesReport) -> String {
    let mut text = String::from(
        "| aim | load | at least | measured | | the pod's own address instead |\n\
         |---|---|--:|--:|---|--:|\n",
    );
    for work in LOADS {
        let ratio = |services, way, over| {
            let case = cluster_ip(work, services);
            let ratio = report.ratio(case, Figure::Rate, way, over)?;
            Some(ratio.middle)
        };
        let mut row = |what: &str, limit: f64, measured: Option<f64>, most: Option<f64>| {
            if let Some(measured) = measured {
                let most = most.map_or("–".to_owned(), |most| format!("{most:.2}"));
                let verdict = if measured >= limit { "met" } else { "missed" };
                let load = work.title(Figure::Rate);
                // Writing to a String cannot fail.
                let _ = writeln!(
                    text,
                    "| {what} | {load} | {limit} | {measured:.2} | {verdict} | {most} |"
                );
            }
        };
        let least = report
            .services()
            .into_iter()
            .filter_map(|n| Some((n, ratio(n, Way::TulleSockets, Way::TulleDirect)?)))
            .min_by(|(_, a), (_, b)| a.total_cmp(b));
        if let Some((services, measured)) = least {
            let what = format!(
                "ClusterIP at sockets beside the pod's own address, lowest of all numbers ({})",
                counted(services as u32)
            );
            row(&what, SOCKETS, Some(measured), None);
        }
        for ((services, limit), over) in [(IPTABLES, Way::Iptables), (NFTABLES, Way::Nftables)] {
            let what = format!(
                "ClusterIP by packets beside {}, {}",
                over.name(),
                counted(services as u32)
            );
            let most = ratio(services, Way::TulleDirect, over);
            row(&what, limit, ratio(services, Way::TullePackets, over), most);
        }
        let all = report.services();
        if let (Some(few), Some(many)) = (all.first(), all.last())
            && few < many
        {
            // Each beside the pod's own address, in turn with it: the machine is not
            // equally fast all the time.
            let of = |services| ratio(services, Way::TullePackets, Way::TulleDirect);
            let kept = of(*many).zip(of(*few)).map(|(many, few)| many / few);
            let what = format!(
                "ClusterIP by packets with {} beside {}",
                counted(*many as u32),
                counted(*few as u32)
            );
            row(&what, FLAT, kept, None);
        }
    }
    text
}

/// Every ratio whose middle half lies wholly on the worse side of 1.
pub fn losses(report: &ServicesReport) -> String {
    let mut text = String::new();
    for front in Front::ALL {
        for (work, figure) in figures() {
            for over in [Way::Nftables, Way::Iptables, Way::Ipvs, Way::TulleDirect] {
                // Whoever translates packets is behind one who does not.
                let way = if over.is_direct() {
                    Way::TulleSockets
                } else {
                    Way::TullePackets
                };
                let behind: Vec<String> = report
                    .services()
                    .into_iter()
                    .filter_map(|services| {
                        let case = Case {
                            front,
                            work,
                            services,
                        };
                        let ratio = report.ratio(case, figure, way, over)?;
                        let worse = if figure.more_is_better() {
                            ratio.upper < 1.0
                        } else {
                            ratio.lower > 1.0
                        };
                        let number = counted(services as u32);
                        worse.then(|| format!("{number}: {}", shown(ratio)))
                    })
                    .collect();
                if !behind.is_empty() {
                    // Writing to a String cannot fail.
                    let _ = writeln!(
                        text,
                        "- {}, {}: {} beside {}; {}.",
                        front.name(),
                        work.title(figure),
                        way.name(),
                        over.name(),
                        behind.join("; ")
                    );
                }
            }
        }
    }
    if text.is_empty() {
        return "Nowhere in this run: no ratio's middle half lies wholly on the worse side of 1.\n"
            .to_owned();
    }
    format!(
        "Where the whole middle half of a ratio is worse than 1 (rates below, times above):\n\n{text}"
    )
}

fn cluster_ip(work: Work, services: usize) -> Case {
    Case {
        front: Front::ClusterIp,
        work,
        services,
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn aims_are_met_or_missed() {
        let good = report(&[1, 10, 10_000], |_, way| match way {
            Way::TulleSockets | Way::TulleDirect => 400.0,
            Way::TullePackets => 300.0,
            _ => 150.0,
        });
        let text = table(&good);
        assert_eq!(text.matches("| met |").count(), 8, "{text}");
        assert!(losses(&good).starts_with("Nowhere"));

        let bad = report(&[1, 10, 10_000], |case, way| match way {
            Way::TulleSockets => 380.0,
            Way::TullePackets if case.services > 10 => 200.0,
            Way::TullePackets => 300.0,
            Way::TulleDirect => 400.0,
            _ => 310.0,
        });
        let text = table(&bad);
        assert_eq!(text.matches("| missed |").count(), 8, "{text}");
        let text = losses(&bad);
        assert!(text.contains(
            "- ClusterIP, TCP request/response: Tulle, packets beside iptables; \
             1 service: 0.97 (0.97–0.97); 10 services"
        ));
        // A time that is longer is a loss, too.
        assert!(text.contains("- NodePort, UDP, first datagram answered, median"));
        assert!(!text.contains("NodePort, TCP request/response: Tulle, sockets"));
    }

    #[test]
    fn what_was_not_measured_is_left_out() {
        let text = table(&report(&[1], |_, _| 100.0));
        // No growth, no ten, no ten thousand services.
        assert_eq!(text.lines().count(), 2 + LOADS.len());
    }
}
