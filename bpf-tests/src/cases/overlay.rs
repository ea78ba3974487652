//! `tulle_nic_in` and `tulle_xdp`.

use std::net::Ipv4Addr;

use datapath_common::{Feature, Hook, Reason};

use super::{Case, Fixture};
use crate::model::Verdict;
use crate::packet::{Piece, Spec, Tunnel, Upper, tcp_flag, tunnel};

pub fn cases(f: &Fixture) -> Vec<Case> {
    let mut cases = Vec::new();
    let spec = Spec::new(Upper::Tcp(tcp_flag::ACK), f.remote, 1234, f.pod, 80);
    let (outer, inner) = f.arriving(&spec);
    let wire = tunnel(&outer, &inner);
    let (verdict, out) = Fixture::delivered(&spec, 3);
    let case = f.case_at(Hook::NicIn, "out of the overlay into a pod", wire.clone());
    cases.push(case.leaves(Reason::Decapsulated, verdict, out));
    let mut out = inner.clone();
    out[..6].copy_from_slice(&f.world.config.uplink_mac.octets());
    let case = f.case_at(
        Hook::Xdp,
        "out of the overlay, on to the stack",
        wire.clone(),
    );
    cases.push(case.leaves(Reason::Decapsulated, Verdict::Pass, out));
    if f.v6 {
        let case = f.case_at(
            Hook::NicIn,
            "IPv6 where the protocol cannot change",
            wire.clone(),
        );
        let mut case = case.passes(Reason::OverlayToKernel);
        case.world.config = crate::strategies::config(0);
        case.world.config.features = Feature::OVERLAY;
        cases.push(case);
    }
    for hook in [Hook::NicIn, Hook::Xdp] {
        let mut other = |name: &str, change: &dyn Fn(&mut Tunnel), reason: Reason| {
            let mut outer = outer;
            change(&mut outer);
            let case = f.case_at(hook, name, tunnel(&outer, &inner));
            let dropped = reason.group() == datapath_common::Group::Dropped;
            cases.push(if dropped {
                case.drops(reason)
            } else {
                case.passes(reason)
            });
        };
        other("another VNI", &|o| o.vni = 2, Reason::ForeignVni);
        other("no VNI flag", &|o| o.flags = 0, Reason::ForeignVni);
        other("more flags", &|o| o.flags = 0x0c, Reason::ForeignVni);
        let stranger = Ipv4Addr::new(192, 168, 7, 200);
        other(
            "an unknown node",
            &|o| o.src = stranger,
            Reason::UnknownNode,
        );
        other(
            "another VNI of an unknown node",
            &|o| {
                (o.src, o.vni) = (stranger, 2);
            },
            Reason::ForeignVni,
        );
        other("another port", &|o| o.dport = 4789, Reason::NotOurs);
        other("to another node", &|o| o.dst = stranger, Reason::NotOurs);
        other("outer options", &|o| o.option_words = 1, Reason::NotOurs);
        let piece = Some(Piece {
            offset: 0,
            more: true,
        });
        other("an outer fragment", &|o| o.piece = piece, Reason::NotOurs);

        let mut inside = |name: &str, change: &dyn Fn(&mut Spec), reason: Reason| {
            let mut spec = spec.clone();
            spec.dst_mac = f.world.config.vtep_mac;
            change(&mut spec);
            cases.push(
                f.case_at(hook, name, tunnel(&outer, &spec.build()))
                    .passes(reason),
            );
        };
        let kernel = Reason::OverlayToKernel;
        inside("for another VTEP", &|s| s.dst_mac = s.src_mac, kernel);
        inside(
            "inner destination no pod of ours",
            &|s| s.dst = f.outside,
            kernel,
        );
        inside("inner TTL 1", &|s| s.ttl = 1, kernel);
        inside("inner TTL 0", &|s| s.ttl = 0, kernel);

        let mut arp = wire.clone();
        arp[62..64].copy_from_slice(&[8, 6]);
        cases.push(f.case_at(hook, "inner ARP", arp).passes(kernel));
        let mut broken = wire.clone();
        broken[64] = 0x95;
        cases.push(
            f.case_at(hook, "inner version", broken)
                .drops(Reason::BadHeader),
        );
        let mut off = f.case_at(hook, "the overlay is off", tunnel(&outer, &inner));
        off.world.config.features &= !Feature::OVERLAY;
        cases.push(off.passes(Reason::NotOurs));
        let short = tunnel(&outer, &inner[..13]);
        cases.push(
            f.case_at(hook, "no room for an inner header", short)
                .passes(Reason::NotOurs),
        );
        let size = if f.v6 { 40 } else { 20 };
        let cut = tunnel(&outer, &inner[..14 + size - 1]);
        cases.push(
            f.case_at(hook, "inner header cut", cut)
                .drops(Reason::Truncated),
        );
        let plain = f.case_at(
            hook,
            "not to us",
            f.from_client(Upper::Udp, f.outside, 8472).build(),
        );
        cases.push(plain.passes(Reason::NotOurs));
    }
    let tagged = Spec {
        vlan: Some(3),
        ..spec
    };
    cases.push(
        f.case_at(Hook::Xdp, "a VLAN tag", tagged.build())
            .passes(Reason::NotOurs),
    );
    cases.push(
        f.case_at(Hook::NicIn, "a VLAN tag", tagged.build())
            .passes(Reason::Tagged),
    );
    cases
}
