//! ICMP errors about translated packets.

use std::net::IpAddr;

use datapath_common::{FlowState, Hook, Reason, proto};

use super::fixture::{LOCAL_ID, OUTSIDE_ID};
use super::uplink::{Flow, Kind, OPENERS, SYN, Uplink};
use super::{Case, Fixture, leaving};
use crate::model::{Verdict, World};
use crate::packet::{ETHERNET, Piece, Spec, Upper, internet_checksum, upper_checksum};
use crate::strategies::outside_ip;

const FIRST: Piece = Piece {
    offset: 0,
    more: true,
};

/// Octets before the transport header.
fn header(of: &Spec) -> usize {
    match (of.src.is_ipv6(), of.piece) {
        (false, _) => 20,
        (true, None) => 40,
        (true, Some(_)) => 48,
    }
}

/// An error from `src` to `dst` about `about`, of which `octets` are quoted.
fn error(u: &Uplink, src: IpAddr, dst: IpAddr, about: &Spec, octets: usize) -> Spec {
    let kind = if u.base.v6 { 1 } else { 3 };
    let mut spec = Spec::new(Upper::Icmp(kind), src, 0, dst, 0);
    let header = header(about);
    spec.payload = about
        .build()
        .into_iter()
        .skip(ETHERNET)
        .take(header + octets)
        .collect();
    spec
}

/// The error about `to` instead of the packet quoted; the quoted transport header keeps its
/// checksum, which `from` had.
fn about(spec: &Spec, from: &Spec, to: &Spec, octets: usize) -> Spec {
    let header = header(to);
    let (old, mut new) = (from.build(), to.build());
    let sum = match to.upper {
        Upper::Tcp(_) => Some((16, 18)),
        Upper::Udp => Some((6, 8)),
        Upper::Sctp(_) => Some((8, 12)),
        Upper::Icmp(_) => Some((2, 4)),
        Upper::Other(_) => None,
    };
    if let Some((start, end)) = sum {
        let upper = ETHERNET + header;
        new[upper + start..upper + end].copy_from_slice(&old[upper + start..upper + end]);
    }
    Spec {
        payload: new
            .into_iter()
            .skip(ETHERNET)
            .take(header + octets)
            .collect(),
        ..spec.clone()
    }
}

/// A flow in a world that knows it, its packets on both sides of the translation.
struct Known {
    name: &'static str,
    world: World,
    /// From the client, as sent and as translated.
    there: (Spec, Spec),
    /// The answer, as sent and as translated.
    back: (Spec, Spec),
    client: IpAddr,
    backend: IpAddr,
}

fn echo(u: &Uplink) -> Kind {
    let (upper, proto) = if u.base.v6 {
        (Upper::Icmp(128), proto::ICMPV6)
    } else {
        (Upper::Icmp(8), proto::ICMP)
    };
    Kind {
        name: "echo",
        upper,
        proto,
        more: 0,
    }
}

fn service(u: &Uplink, name: &'static str, flow: &Flow) -> Known {
    let mut world = u.world(flow, 0);
    world.flows.extend(u.rows(flow, FlowState::Established, 1));
    let sent = u.sent(flow);
    Known {
        name,
        world,
        there: (sent.clone(), u.translated(flow, &sent)),
        back: u.answer(flow),
        client: flow.client.0,
        backend: u.backend(flow).0,
    }
}

fn masqueraded(u: &Uplink, name: &'static str, kind: Kind) -> Known {
    let flow = leaving::flow(u, kind);
    let mut world = leaving::world(u);
    world
        .flows
        .extend(leaving::rows(u, &flow, FlowState::Established, 1));
    let sent = u.sent(&flow);
    let (src, sport) = flow.nat.unwrap_or(flow.client);
    let out = Spec {
        src,
        sport,
        ..sent.clone()
    };
    let turned = |spec: &Spec| Spec {
        src: spec.dst,
        sport: spec.dport,
        dst: spec.src,
        dport: spec.sport,
        ..spec.clone()
    };
    Known {
        name,
        world,
        back: (turned(&out), turned(&sent)),
        there: (sent, out),
        client: flow.client.0,
        backend: flow.frontend.0,
    }
}

/// How the error leaves: to a pod of this node by its veth, to others by the uplink.
fn way(u: &Uplink, hook: Hook, to: &Spec) -> (Verdict, Vec<u8>) {
    let pod = [(u.base.client, 2), (u.base.pod, 3)];
    match pod.into_iter().find(|(addr, _)| *addr == to.dst) {
        _ if hook == Hook::PodTo => (Verdict::Kernel, to.build()),
        Some((_, number)) => {
            let (verdict, frame) = Fixture::delivered(to, number);
            match verdict {
                Verdict::RedirectPeer { ifindex } if hook == Hook::NicOut => {
                    (Verdict::Redirect { ifindex }, frame)
                }
                other => (other, frame),
            }
        }
        None if to.dst == u.own && hook == Hook::PodFrom => u.turned_back(to),
        None if to.dst == u.own => (Verdict::Kernel, to.build()),
        None => u.routed(to),
    }
}

pub fn cases(u: &Uplink) -> Vec<Case> {
    let mut known = Vec::new();
    for kind in OPENERS {
        known.push(service(u, kind.name, &u.outside_flow(kind, LOCAL_ID)));
        known.push(masqueraded(u, kind.name, kind));
        let pod = Flow {
            nat: Some((u.own, super::uplink::SNAT)),
            ..u.pod_flow(kind, OUTSIDE_ID)
        };
        known.push(service(u, kind.name, &pod));
    }
    known.push(masqueraded(u, "echo", echo(u)));
    let mut pieces = masqueraded(u, "first fragment", OPENERS[1]);
    for (sent, seen) in [&mut pieces.there, &mut pieces.back] {
        for spec in [sent, seen] {
            (spec.piece, spec.dont_fragment) = (Some(FIRST), false);
        }
    }
    known.push(pieces);
    let mut cases = Vec::new();
    for (number, known) in known.iter().enumerate() {
        for hook in [Hook::PodFrom, Hook::NicIn, Hook::NicOut, Hook::PodTo] {
            for octets in [8, 36] {
                let name = format!("{} error, flow {number}, {octets} octets", known.name);
                cases.extend(of_flow(u, hook, &name, known, octets));
            }
        }
    }
    cases.extend(untouched(u));
    cases
}

/// Errors about a packet there and about one back, from a router and from the end.
fn of_flow(u: &Uplink, hook: Hook, name: &str, known: &Known, octets: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    let router = outside_ip(u.base.v6, 250);
    let (sent, seen) = &known.there;
    let mut add = |name: String, (src, new_src): (IpAddr, IpAddr), seen: &Spec, sent: &Spec| {
        let got = error(u, src, seen.src, seen, octets);
        let to = Spec {
            src: new_src,
            dst: sent.src,
            ..about(&got, seen, sent, octets)
        };
        let (verdict, out) = way(u, hook, &to);
        let case = u.case(hook, &name, &known.world, got.build());
        // Nobody on the link has a pod's address.
        if hook == Hook::NicIn && [u.base.client, u.base.pod].contains(&src) {
            cases.push(case.drops(Reason::MartianSource));
            return;
        }
        cases.push(case.leaves(Reason::ErrorTranslated, verdict, out));
    };
    add(format!("{name}, by a router"), (router, router), seen, sent);
    let end = (known.backend, sent.dst);
    add(format!("{name}, by the backend"), end, seen, sent);
    // An echo reply is no packet that errors are sent about.
    if matches!(sent.upper, Upper::Icmp(_)) {
        return cases;
    }
    let (answered, received) = &known.back;
    add(
        format!("{name}, of a reply"),
        (router, router),
        received,
        answered,
    );
    let end = (known.client, seen.src);
    add(format!("{name}, by the client"), end, received, answered);
    cases
}

/// Errors that are any other packet: for the kernel as they are.
fn untouched(u: &Uplink) -> Vec<Case> {
    let known = masqueraded(u, "TCP", SYN);
    let seen = &known.there.1;
    let router = outside_ip(u.base.v6, 250);
    let case = |name: &str, spec: &Spec| {
        let name = format!("an error {name} is not translated");
        u.case(Hook::NicIn, &name, &known.world, spec.build())
    };
    let of = |about: &Spec, octets| error(u, router, u.own, about, octets);
    let mut stranger = seen.clone();
    stranger.sport += 1;
    let mut later = seen.clone();
    later.piece = Some(Piece {
        offset: 100,
        more: false,
    });
    let mut extended = seen.clone();
    extended.extensions = vec![60];
    let mut options = of(seen, 8);
    (options.option_words, options.extensions) = (1, vec![60]);
    let mut other = seen.clone();
    other.upper = Upper::Other(47);
    let mut cases = vec![
        case("about an unknown flow", &of(&stranger, 8)),
        case("about a later fragment", &of(&later, 8)),
        case("with options or extension headers", &options),
        case("about another protocol", &of(&other, 8)),
        case("that quotes no ports", &of(seen, 3)),
        case(
            "that quotes nothing",
            &Spec {
                payload: Vec::new(),
                ..of(seen, 8)
            },
        ),
    ];
    if u.base.v6 {
        cases.push(case("about extension headers", &of(&extended, 16)));
    }
    let mut old = case("about an expired flow", &of(seen, 8));
    for row in old.world.flows.values_mut() {
        row.seen -= 1000;
    }
    cases.push(old);
    // The frame is right to begin with, as its own checksums say.
    let frame = of(seen, 8).build();
    let at = ETHERNET + if u.base.v6 { 40 } else { 20 };
    let sum = if u.base.v6 {
        let mut body = frame[at..].to_vec();
        body[2..4].fill(0);
        upper_checksum(router, u.own, proto::ICMPV6, &body)
            == u16::from_be_bytes([frame[at + 2], frame[at + 3]])
    } else {
        internet_checksum(&[&frame[at..]]) == 0
    };
    assert!(sum, "the error's checksum is wrong");
    cases
}
