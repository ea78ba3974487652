//! Packets for no service: pods here and there, and the rest.

use datapath_common::{Hook, Reason};

use super::{Case, Fixture};
use crate::packet::{Piece, Spec, Sum, Upper, tcp_flag};

pub fn cases(f: &Fixture) -> Vec<Case> {
    let mut cases = Vec::new();
    for upper in [
        Upper::Tcp(tcp_flag::ACK),
        Upper::Udp,
        Upper::Sctp(Some(0)),
        Upper::Icmp(8),
        Upper::Other(47),
    ] {
        for sum in [Sum::Right, Sum::Flipped(0x1234)] {
            let spec = Spec {
                sum,
                ..f.from_client(upper, f.pod, 9)
            };
            let (verdict, out) = Fixture::delivered(&spec, 3);
            let name = format!("{upper:?} to a local pod, sum {sum:?}");
            cases.push(
                f.case(&name, &spec)
                    .leaves(Reason::DeliveredLocal, verdict, out),
            );
            let spec = Spec {
                dst: f.remote,
                ..spec
            };
            let (verdict, out) = f.encapsulated(&spec);
            let name = format!("{upper:?} to a remote pod, sum {sum:?}");
            cases.push(
                f.case(&name, &spec)
                    .leaves(Reason::Encapsulated, verdict, out),
            );
        }
        let spec = f.from_client(upper, f.outside, 9);
        cases.push(
            f.case(&format!("{upper:?} to the world"), &spec)
                .passes(Reason::NotOurs),
        );
    }
    let udp = f.from_client(Upper::Udp, f.pod, 9);
    for (name, offset, more) in [("first", 0, true), ("later", 64, true), ("last", 99, false)] {
        let piece = Some(Piece { offset, more });
        let spec = Spec {
            piece,
            dont_fragment: false,
            ..udp.clone()
        };
        let (verdict, out) = Fixture::delivered(&spec, 3);
        let case = f.case(&format!("{name} fragment to a local pod"), &spec);
        cases.push(case.leaves(Reason::DeliveredLocal, verdict, out));
    }
    let mut absent = f
        .case("a local pod that is not there", &udp)
        .passes(Reason::NotOurs);
    absent.world.pods.clear();
    cases.push(absent);

    // The longest prefix decides: the more special peer is another node.
    let spec = f.from_client(Upper::Udp, f.remote, 9);
    let (verdict, out) = f.encapsulated(&spec);
    let mut case = f
        .case("the longest prefix", &spec)
        .leaves(Reason::Encapsulated, verdict, out);
    if let Some((network, length, via)) = case.world.peers.first().copied() {
        let other = crate::strategies::vxlan_via(&case.world.config, [192, 168, 7, 77].into());
        case.world.peers = vec![(network, length - 8, other), (network, length, via)];
    }
    cases.push(case);

    let mtu = usize::from(f.world.config.overlay_mtu);
    let headers = if f.v6 { 48 } else { 28 };
    let fits = Spec {
        payload: vec![3; mtu - headers],
        ..f.from_client(Upper::Udp, f.remote, 9)
    };
    let (verdict, out) = f.encapsulated(&fits);
    cases.push(
        f.case("just fits the overlay", &fits)
            .leaves(Reason::Encapsulated, verdict, out),
    );
    if !f.v6 {
        let payload = vec![3; mtu - headers + 1];
        let spec = Spec {
            payload,
            dont_fragment: false,
            ..fits
        };
        cases.push(
            f.case("too big, may be fragmented", &spec)
                .passes(Reason::SlowPath),
        );
    }

    for hook in [Hook::PodTo, Hook::NicIn] {
        let spec = f.from_client(Upper::Udp, f.outside, 9);
        cases.push(
            f.case_at(hook, "not ours", spec.build())
                .passes(Reason::NotOurs),
        );
    }
    let spec = Spec::new(Upper::Udp, f.outside, 5, f.pod, 9);
    let case = f.case_at(Hook::NicIn, "from the underlay to a pod", spec.build());
    cases.push(case.passes(Reason::SlowPath));
    let sent = Spec::new(Upper::Udp, f.remote, 5, f.pod, 9);
    let (verdict, out) = Fixture::delivered(&sent, 3);
    let case = f.case_at(
        Hook::NicIn,
        "after XDP, to a pod",
        f.stripped(&sent).build(),
    );
    cases.push(case.leaves(Reason::DeliveredLocal, verdict, out));
    let mut broken = spec.build();
    broken[14] = 0x95;
    let case = f.case_at(Hook::PodTo, "pod_to never drops", broken);
    cases.push(case.passes(Reason::NotOurs));
    cases
}
