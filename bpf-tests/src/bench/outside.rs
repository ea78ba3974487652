//! Scenes of clients outside, of the node's own packets, of pods that leave the
//! cluster, and of counting for each service.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use datapath_common::{FlowState, Frontend, Hook, NodeClient, Reason, proto};

use super::scaffold::{FRAME, Vary};
use super::scenes::{LOCAL, REMOTE, Repeats, Scene, Table, scene, sized, through_overlay};
use super::setup::Setup;
use crate::cases::uplink::{Flow, Kind, MASQUERADE, NODE_PORT, SNAT, SYN, Uplink};
use crate::cases::{Fixture, NOW};
use crate::model::flow::reply_of;
use crate::model::{FlowId, FlowRow, Tuple, World};
use crate::packet::tcp_flag::ACK;
use crate::packet::{Spec, Upper};

/// Node ports whose clients are masqueraded, with a backend here and elsewhere.
const HIDING: [u16; 2] = [NODE_PORT, NODE_PORT + 1];
/// The node port with a backend here that sees its clients, as with
/// `externalTrafficPolicy: Local`.
const KEEPING: u16 = NODE_PORT + 2;

/// Data of a connection.
const DATA: Kind = Kind {
    name: "TCP data",
    upper: Upper::Tcp(ACK),
    ..SYN
};

/// The pair of scenes that says what counting costs: without, with.
pub const COUNTING: [&str; 2] = [
    "TCP flow, backend here, uplink served",
    "TCP flow, backend here, uplink served, counted",
];

/// Adds the node ports: the fixture's services under another address.
pub fn add_node_ports(world: &mut World, f: &Fixture) -> Result<()> {
    let own = Uplink::new(f.v6).own;
    for (port, service, flags) in [
        (HIDING[0], f.local_service, MASQUERADE),
        (HIDING[1], f.remote_service, MASQUERADE),
        (KEEPING, f.local_service, 0),
    ] {
        let row = world.frontends.get(&(service, 80, proto::TCP)).copied();
        let row = row.with_context(|| format!("no service at {service}"))?;
        let row = Frontend {
            out_start: row.start,
            out_len: row.len,
            flags,
            ..row
        };
        world.frontends.insert((own, port, proto::TCP), row);
    }
    Ok(())
}

/// Every scene of a family.
pub fn scenes(f: &Fixture) -> Result<Vec<Scene>> {
    let u = Uplink::new(f.v6);
    let mut scenes = nic_in(&u)?;
    scenes.extend(nic_out(f, &u)?);
    scenes.extend(pod_from(&u)?);
    scenes.extend(counting(f, &u)?);
    Ok(scenes)
}

/// A scene in programs that serve the uplink.
fn serving(
    u: &Uplink,
    hook: Hook,
    name: &'static str,
    reason: Reason,
    spec: Spec,
) -> Result<Scene> {
    let scene = scene(&u.base, hook, name, reason, sized(spec, FRAME))?;
    Ok(Scene {
        setup: Setup::Serving,
        ..scene
    })
}

/// Data to `dst` that is for no service.
fn plain(src: IpAddr, dst: IpAddr) -> Spec {
    Spec::new(Upper::Tcp(ACK), src, 40001, dst, 443)
}

/// Data of the backend's answer.
fn answer(u: &Uplink, flow: &Flow) -> Spec {
    let (sent, _) = u.answer(flow);
    Spec {
        upper: Upper::Tcp(ACK),
        ..sent
    }
}

fn rows(u: &Uplink, flow: &Flow) -> Vec<(FlowId, FlowRow)> {
    u.rows(flow, FlowState::Established, 0).into()
}

/// A flow from outside to a node port that hides its clients.
fn hidden(u: &Uplink, kind: Kind, id: u32) -> Flow {
    let flow = u.outside_flow(kind, id);
    let port = HIDING[usize::from(id == REMOTE)];
    Flow {
        frontend: (u.own, port),
        nat: Some(u.masquerade(&flow)),
        ..flow
    }
}

/// A flow from outside to the node port that does not.
fn kept(u: &Uplink) -> Flow {
    Flow {
        frontend: (u.own, KEEPING),
        ..u.outside_flow(DATA, LOCAL)
    }
}

fn nic_in(u: &Uplink) -> Result<Vec<Scene>> {
    let packet = |name, reason, spec| serving(u, Hook::NicIn, name, reason, spec);
    let here = "node port, source translated, backend here";
    let for_node = plain(u.client, u.own);
    let mut off = packet(
        "to the node, no service, uplink not served",
        Reason::NotOurs,
        for_node.clone(),
    )?;
    off.setup = Setup::Plain;
    let on = packet("to the node, no service", Reason::NotOurs, for_node)?;

    let (near, far) = (hidden(u, DATA, LOCAL), hidden(u, DATA, REMOTE));
    let flows = [rows(u, &near), rows(u, &far)].concat();
    let mut local = packet(here, Reason::DeliveredLocal, u.sent(&near))?;
    let mut remote = packet(
        "node port, source translated, backend elsewhere",
        Reason::Encapsulated,
        u.sent(&far),
    )?;
    remote.repeats = Repeats::After(here);
    local.flows.clone_from(&flows);
    remote.flows = flows;

    let mut seen = packet(
        "node port, client kept, backend here",
        Reason::DeliveredLocal,
        u.sent(&kept(u)),
    )?;
    seen.flows = rows(u, &kept(u));

    let mut opens = packet(
        "new flow to a node port, source translated",
        Reason::DeliveredLocal,
        u.sent(&hidden(u, SYN, LOCAL)),
    )?;
    opens.rounds.vary = Vary::Source;
    opens.table = Table::Translated;

    let mut back = scene(
        &u.base,
        Hook::NicIn,
        "out of the overlay, reply to a client outside",
        Reason::ReplyTranslated,
        through_overlay(&u.base, answer(u, &far)),
    )?;
    back.setup = Setup::Serving;
    back.flows = rows(u, &far);
    back.loses_head();
    Ok(vec![off, on, local, remote, seen, opens, back])
}

fn nic_out(f: &Fixture, u: &Uplink) -> Result<Vec<Scene>> {
    let packet = |name, reason, spec| serving(u, Hook::NicOut, name, reason, spec);
    let here = "node to a cluster IP, backend here";
    let other = packet(
        "of the node, no service",
        Reason::NotOurs,
        plain(u.own, u.client),
    )?;
    let near = Flow {
        frontend: (f.local_service, 80),
        ..u.node_flow(DATA, LOCAL)
    };
    let far = u.node_flow(DATA, REMOTE);
    let far = Flow {
        frontend: (f.remote_service, 80),
        nat: Some(u.masquerade(&far)),
        ..far
    };
    let flows = [rows(u, &near), rows(u, &far)].concat();
    let mut local = packet(here, Reason::DeliveredLocal, u.sent(&near))?;
    let mut remote = packet(
        "node to a cluster IP, backend elsewhere",
        Reason::Encapsulated,
        u.sent(&far),
    )?;
    remote.repeats = Repeats::After(here);
    local.flows.clone_from(&flows);
    remote.flows = flows;

    let mut leaves = packet(
        "pod leaves the cluster, masqueraded",
        Reason::Masqueraded,
        plain(u.base.client, u.client),
    )?;
    leaves.flows = leaving(u).into();
    Ok(vec![other, local, remote, leaves])
}

/// Both rows of the masqueraded flow of [`plain`] from the pod to the client.
fn leaving(u: &Uplink) -> [(FlowId, FlowRow); 2] {
    let spec = plain(u.base.client, u.client);
    let tuple = Tuple {
        src: spec.src,
        dst: spec.dst,
        sport: spec.sport,
        dport: spec.dport,
        proto: proto::TCP,
    };
    let forward = FlowRow {
        addr: tuple.dst,
        port: tuple.dport,
        nat: Some((u.own, SNAT)),
        state: FlowState::Established,
        hairpin: false,
        node: NodeClient::No,
        backend: 0,
        generation: 0,
        service: 0,
        counted: false,
        opened: NOW,
        seen: NOW,
    };
    let reply = FlowRow {
        nat: Some((tuple.src, tuple.sport)),
        ..forward
    };
    [
        (tuple.forward(), forward),
        (reply_of(tuple, &forward), reply),
    ]
}

fn pod_from(u: &Uplink) -> Result<Vec<Scene>> {
    let packet = |name, reason, spec| serving(u, Hook::PodFrom, name, reason, spec);
    let mut scenes = vec![packet(
        "to nobody we know: kernel, uplink served",
        Reason::NotOurs,
        plain(u.base.client, u.client),
    )?];
    for (name, flow) in [
        ("reply to a client outside", kept(u)),
        (
            "reply to a client outside, source was translated",
            hidden(u, DATA, LOCAL),
        ),
    ] {
        let mut back = packet(name, Reason::ReplyTranslated, answer(u, &flow))?;
        back.flows = rows(u, &flow);
        scenes.push(back);
    }
    Ok(scenes)
}

/// The same packet without counting and with it, one right after the other.
fn counting(f: &Fixture, u: &Uplink) -> Result<Vec<Scene>> {
    let flow = Flow {
        frontend: (f.local_service, 80),
        ..u.pod_flow(DATA, LOCAL)
    };
    let [without, with] = COUNTING;
    let mut off = serving(
        u,
        Hook::PodFrom,
        without,
        Reason::DeliveredLocal,
        u.sent(&flow),
    )?;
    off.flows = rows(u, &flow);
    let on = Scene {
        name: with,
        setup: Setup::Counting,
        ..off.clone()
    };
    Ok(vec![off, on])
}
