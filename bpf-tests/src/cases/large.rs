//! Packets larger than what they are to go through: refused, or divided by the kernel.

use datapath_common::{FlowState, Hook, NodeClient, Reason, proto};

use super::Case;
use super::fixture::{LOCAL_ID, NOW, OUTSIDE_ID, REMOTE_ID, SPORT};
use super::loopback::{LOOPBACK, by_loopback};
use super::north_south::masqueraded;
use super::uplink::{Flow, MASQUERADE, NODE_PORT, OPENERS, Uplink};
use crate::model::{FragmentId, FragmentRow, Verdict};
use crate::packet::{Piece, Spec, Upper};

pub fn cases(v6: bool) -> Vec<Case> {
    let u = Uplink::new(v6);
    let mut cases = services(&u);
    cases.extend(segments(&u));
    if !v6 {
        cases.extend(fragments(&u));
        cases.extend(after_its_first(&u));
    }
    cases
}

/// A flow, where its packets are, the flags of its frontend, and whether an own source
/// keeps the kernel from taking them where they are.
struct Way {
    name: &'static str,
    hook: Hook,
    flow: Flow,
    flags: u16,
    own: bool,
}

/// To the backends that not everything fits.
fn ways(u: &Uplink) -> Vec<Way> {
    let udp = OPENERS[1];
    let (outside, pod) = (u.outside_flow(udp, REMOTE_ID), u.pod_flow(udp, REMOTE_ID));
    let mut ways = Vec::new();
    let mut way = |name, hook, flow, flags, own| {
        ways.push(Way {
            name,
            hook,
            flow,
            flags,
            own,
        });
    };
    way("from outside, kept", Hook::NicIn, outside, 0, false);
    let hidden = masqueraded(u, outside);
    way("from outside", Hook::NicIn, hidden, MASQUERADE, true);
    way("from a pod", Hook::PodFrom, pod, 0, false);
    let hidden = masqueraded(u, pod);
    way(
        "from a pod, hidden",
        Hook::PodFrom,
        hidden,
        MASQUERADE,
        true,
    );
    for (id, name) in [
        (REMOTE_ID, "from the node"),
        (LOCAL_ID, "from the node to its pod"),
    ] {
        let plain = u.node_flow(udp, id);
        let nat = (id == REMOTE_ID).then(|| u.masquerade(&plain));
        way(name, Hook::NicOut, Flow { nat, ..plain }, 0, true);
    }
    for (id, name) in [
        (REMOTE_ID, "from the node to itself"),
        (LOCAL_ID, "from the node to itself, its pod"),
        (OUTSIDE_ID, "from the node to itself, outside"),
    ] {
        let plain = Flow {
            frontend: (u.own, NODE_PORT),
            node: NodeClient::Loopback,
            ..u.node_flow(udp, id)
        };
        let nat = (id == REMOTE_ID).then(|| u.masquerade(&plain));
        way(name, Hook::NicOut, Flow { nat, ..plain }, 0, true);
    }
    ways
}

/// To the kernel, translated: where it is, or by the loopback device.
fn to_kernel(way: &Way, to: &Spec) -> (Verdict, Vec<u8>) {
    if way.own {
        let (_, out) = by_loopback(to);
        let ifindex = loopback(way);
        (Verdict::RedirectIngress { ifindex }, out)
    } else {
        (Verdict::Kernel, to.build())
    }
}

fn case(u: &Uplink, way: &Way, name: &str, frame: Vec<u8>) -> Case {
    let mut world = u.world(&way.flow, way.flags);
    world.config.loopback = loopback(way);
    u.case(way.hook, &format!("{}: {name}", way.name), &world, frame)
}

/// Index of the loopback device: that which packets of tests are at, or another.
fn loopback(way: &Way) -> u32 {
    match way.flow.node {
        NodeClient::Loopback => LOOPBACK,
        _ => LOOPBACK + 8,
    }
}

fn services(u: &Uplink) -> Vec<Case> {
    let mtu = u.base.world.config.overlay_mtu;
    let headers = if u.base.v6 { 48 } else { 28 };
    let too_big = if u.base.v6 { (2, 0) } else { (3, 4) };
    let mut cases = Vec::new();
    for way in ways(u) {
        let sized = |octets, dont_fragment| Spec {
            payload: vec![1; octets],
            dont_fragment,
            ..u.sent(&way.flow)
        };
        let rows = u.rows(&way.flow, FlowState::Opening, 0);
        let fits = sized(usize::from(mtu) - headers, false);
        let to = u.translated(&way.flow, &fits);
        let (reason, verdict, out) = u.leaving(way.hook, &way.flow, &to);
        cases.push(
            case(u, &way, "just fits", fits.build())
                .leaves(reason, verdict, out)
                .writes(rows),
        );
        let divisible = sized(usize::from(mtu) - headers + 1, false);
        let whole = Spec {
            dont_fragment: true,
            ..divisible.clone()
        };
        let refused = |spec: &Spec, name: &str| {
            let (kind, code) = too_big;
            let case = case(u, &way, name, spec.build());
            if way.hook == Hook::NicOut {
                let config = &case.world.config;
                let ifindex = match way.flow.node {
                    NodeClient::Loopback => config.loopback,
                    _ => config.uplink,
                };
                let error = u.base.error_from(spec.dst, spec, kind, code, mtu);
                case.leaves(Reason::TooBig, Verdict::AnswerNode { ifindex }, error)
            } else {
                case.answered(Reason::TooBig, u.base.error(spec, kind, code, mtu))
            }
        };
        cases.push(refused(&whole, "too big, whole"));
        if u.base.v6 {
            continue;
        }
        let (verdict, out) = to_kernel(&way, &u.translated(&way.flow, &divisible));
        cases.push(
            case(u, &way, "too big", divisible.build())
                .leaves(Reason::TranslatedToKernel, verdict, out)
                .writes(rows),
        );
    }
    cases
}

/// What Linux says of segments that are of different sizes.
const BY_FRAGS: u32 = 0xffff;

/// SCTP that is to be cut by offload: only the kernel can.
fn segments(u: &Uplink) -> Vec<Case> {
    let mut cases = Vec::new();
    for way in ways(u) {
        let way = Way {
            flow: Flow {
                kind: OPENERS[2],
                ..way.flow
            },
            ..way
        };
        let sent = Spec {
            payload: vec![1; 2000],
            ..u.sent(&way.flow)
        };
        let (verdict, out) = to_kernel(&way, &u.translated(&way.flow, &sent));
        let mut case = case(u, &way, "SCTP segments", sent.build())
            .leaves(Reason::TranslatedToKernel, verdict, out)
            .writes(u.rows(&way.flow, FlowState::Opening, 0));
        case.ctx.gso_size = BY_FRAGS;
        cases.push(case);
    }
    cases
}

/// All fragments of a datagram go the way of the first one.
fn fragments(u: &Uplink) -> Vec<Case> {
    let mtu = u.base.world.config.overlay_mtu;
    let mut cases = Vec::new();
    for way in ways(u) {
        let old = u.rows(&way.flow, FlowState::Established, 1);
        let piece = |offset, more, octets| Spec {
            piece: Some(Piece { offset, more }),
            dont_fragment: false,
            payload: vec![1; octets],
            ..u.sent(&way.flow)
        };
        // 20 octets of the IP header, and 8 of UDP's, are more.
        let first = piece(0, true, usize::from(mtu) & !7);
        let (last, large_last) = (piece(184, false, 16), piece(184, false, usize::from(mtu)));
        let id = FragmentId {
            src: first.src,
            dst: first.dst,
            id: first.id,
            proto: proto::UDP,
        };
        let row = |first_octets| FragmentRow {
            sport: first.sport,
            dport: first.dport,
            seen: NOW,
            first_octets,
        };
        let divided = |name: &str, spec: &Spec| {
            let (verdict, out) = to_kernel(&way, &u.translated(&way.flow, spec));
            let mut case =
                case(u, &way, name, spec.build()).leaves(Reason::TranslatedToKernel, verdict, out);
            case.world.flows.extend(old);
            case
        };
        let mut leads = divided("a first fragment that is too big", &first);
        leads.fragments.push((id, row(first.ip_octets())));
        let mut follows = divided("a fragment after one that was too big", &last);
        follows.world.fragments.insert(id, row(u32::from(mtu) + 1));
        let mut alone = divided("a later fragment alone too big", &large_last);
        alone.world.fragments.insert(id, row(u32::from(mtu)));
        let to = u.translated(&way.flow, &last);
        let (reason, verdict, out) = u.leaving(way.hook, &way.flow, &to);
        let mut goes = case(u, &way, "a fragment after one that fitted", last.build())
            .leaves(reason, verdict, out);
        goes.world.flows.extend(old);
        goes.world.fragments.insert(id, row(u32::from(mtu)));
        cases.extend([leads, follows, alone, goes]);
    }
    cases
}

/// For no service it is the same.
fn after_its_first(u: &Uplink) -> Vec<Case> {
    let mtu = u32::from(u.base.world.config.overlay_mtu);
    let last = Spec {
        piece: Some(Piece {
            offset: 184,
            more: false,
        }),
        dont_fragment: false,
        ..u.base.from_client(Upper::Udp, u.base.remote, 9)
    };
    let id = FragmentId {
        src: last.src,
        dst: last.dst,
        id: last.id,
        proto: proto::UDP,
    };
    let at = |first_octets, name: &str| {
        let mut case = u.base.case(name, &last);
        let row = FragmentRow {
            sport: SPORT,
            dport: 9,
            seen: NOW,
            first_octets,
        };
        case.world.fragments.insert(id, row);
        case
    };
    let (verdict, out) = u.base.encapsulated(&last);
    vec![
        at(mtu + 1, "to a peer, after a fragment that was too big").passes(Reason::SlowPath),
        at(mtu, "to a peer, after a fragment that fitted").leaves(
            Reason::Encapsulated,
            verdict,
            out,
        ),
    ]
}
