//! The packets that are measured, and the way each of them has to take.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use datapath_common::{FlowState, Frontend, FrontendFlags, Hook, Reason, proto};

use super::outside;
use super::scaffold::{FRAME, Restore, Rounds, Vary};
use super::setup::Setup;
use crate::cases::Fixture;
use crate::model::{FlowId, FlowRow, World};
use crate::packet::tcp_flag::{ACK, SYN};
use crate::packet::{Spec, Upper, tunnel};

/// Backend ids of the fixture, for TCP; UDP's are 10 higher.
pub const LOCAL: u32 = 1;
pub const REMOTE: u32 = 2;
/// The client's port in the fixture, and the backends'.
const CLIENT_PORT: u16 = 40001;
const BACKEND_PORT: u16 = 8080;

/// What the flow table holds besides the scene's rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Table {
    /// Nothing.
    Quiet,
    /// What the scene opens, and it is emptied before it is full.
    Room,
    /// What the scene opens, each flow with a translated source, and it is
    /// emptied before ports get scarce.
    Translated,
    /// As much as fits.
    Full,
}

/// Whether a packet can be measured many times in one test run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repeats {
    /// The scaffold restores what the program does.
    Always,
    /// Once in a test run: the kernel marks a packet that it encapsulated, and
    /// nothing removes the mark. Rounds of the scene of this name, which shares
    /// the way up to there, go before it.
    After(&'static str),
    /// Once in a test run, and no scene can go before it.
    Never,
}

/// One packet and its way through one program.
#[derive(Clone, Debug)]
pub struct Scene {
    /// What it is, for people.
    pub name: &'static str,
    /// The program.
    pub hook: Hook,
    /// What is switched on in it.
    pub setup: Setup,
    /// It goes through the program's hand-written twin instead.
    pub twin: bool,
    /// The packet.
    pub rounds: Rounds,
    /// Whether and how it can be measured many times in one test run.
    pub repeats: Repeats,
    /// What has to be counted, and nothing else.
    pub reason: Reason,
    /// Flow rows before the first round.
    pub flows: Vec<(FlowId, FlowRow)>,
    /// What else the flow table holds.
    pub table: Table,
}

impl Scene {
    /// The program's name without its prefix.
    pub fn program(&self) -> &'static str {
        if self.twin { TWIN } else { self.hook.name() }
    }

    /// The program, at TC, takes the packet out of the overlay.
    pub fn loses_head(&mut self) {
        self.rounds.restore = Restore::Head;
        // Only XDP finds the outer packet's family again: at TC a packet that
        // was IPv6 inside stays IPv6 for the kernel.
        if self.rounds.v6 {
            self.repeats = Repeats::Never;
        }
    }

    /// 4 or 6.
    pub fn version(&self) -> u8 {
        if self.rounds.v6 { 6 } else { 4 }
    }
}

/// How the twin of `pod_from` is called in tables.
pub const TWIN: &str = "twin";

/// The twin's scenes: those of its two ways, and those that go before them.
pub const TWIN_PACKETS: [&str; 4] = [
    "to a pod of this node",
    "to a pod of another node",
    "TCP flow, backend here",
    "TCP flow, backend elsewhere",
];

/// Adds the services whose flows the flow table decides on: the fixture's, at
/// other addresses.
pub fn add_deciding(world: &mut World, fixture: &Fixture) {
    for service in [fixture.local_service, fixture.remote_service] {
        for protocol in [proto::TCP, proto::UDP] {
            if let Some(row) = world.frontends.get(&(service, 80, protocol)).copied() {
                let flags = FrontendFlags::FLOWS_DECIDE;
                let row = Frontend { flags, ..row };
                world
                    .frontends
                    .insert((deciding(service), 80, protocol), row);
            }
        }
    }
}

/// The address of the deciding twin of a service.
fn deciding(service: IpAddr) -> IpAddr {
    match service {
        IpAddr::V4(addr) => IpAddr::V4((addr.to_bits() + 0x40).into()),
        IpAddr::V6(addr) => IpAddr::V6((addr.to_bits() + 0x40).into()),
    }
}

/// Every scene of a family.
pub fn scenes(f: &Fixture) -> Result<Vec<Scene>> {
    let mut scenes = pod_from(f)?;
    if !f.v6 {
        let by_twin = scenes
            .iter()
            .filter(|scene| TWIN_PACKETS.contains(&scene.name));
        let by_twin: Vec<_> = by_twin
            .map(|scene| Scene {
                twin: true,
                ..scene.clone()
            })
            .collect();
        scenes.extend(by_twin);
    }
    scenes.extend(new_flows(f)?);
    scenes.extend(arriving(f)?);
    scenes.extend(outside::scenes(f)?);
    Ok(scenes)
}

/// A scene of [`Setup::Plain`] that can be repeated, without flow rows.
pub fn scene(
    f: &Fixture,
    hook: Hook,
    name: &'static str,
    reason: Reason,
    frame: Vec<u8>,
) -> Result<Scene> {
    ensure!(
        frame.len() == FRAME,
        "{name}: {} octets, not {FRAME}",
        frame.len()
    );
    Ok(Scene {
        name,
        hook,
        setup: Setup::Plain,
        twin: false,
        rounds: Rounds {
            frame,
            restore: Restore::Octets,
            vary: Vary::Nothing,
            v6: f.v6,
        },
        repeats: Repeats::Always,
        reason,
        flows: Vec::new(),
        table: Table::Quiet,
    })
}

/// A frame of so many octets.
pub fn sized(mut spec: Spec, octets: usize) -> Vec<u8> {
    spec.payload.clear();
    let missing = octets.saturating_sub(spec.build().len());
    spec.payload = vec![0x55; missing];
    spec.build()
}

fn pod_from(f: &Fixture) -> Result<Vec<Scene>> {
    let packet = |name, reason, upper, dst, port| {
        let frame = sized(f.from_client(upper, dst, port), FRAME);
        scene(f, Hook::PodFrom, name, reason, frame)
    };
    let data = Upper::Tcp(ACK);
    let (sent, local) = (Reason::Encapsulated, Reason::DeliveredLocal);
    let mut scenes = vec![
        packet(
            "to nobody we know: kernel",
            Reason::NotOurs,
            data,
            f.outside,
            443,
        )?,
        packet("to a pod of this node", local, data, f.pod, 443)?,
        packet("to a pod of another node", sent, data, f.remote, 443)?,
    ];
    scenes[2].repeats = Repeats::After("to a pod of this node");
    let twins = (deciding(f.local_service), deciding(f.remote_service));
    for (here, elsewhere, upper, services) in [
        (
            "TCP flow, backend here",
            "TCP flow, backend elsewhere",
            data,
            (f.local_service, f.remote_service),
        ),
        (
            "TCP flow, flows decide, backend here",
            "TCP flow, flows decide, backend elsewhere",
            data,
            twins,
        ),
        (
            "UDP flow, backend here",
            "UDP flow, backend elsewhere",
            Upper::Udp,
            (f.local_service, f.remote_service),
        ),
    ] {
        let (protocol, more) = match upper {
            Upper::Udp => (proto::UDP, 10),
            _ => (proto::TCP, 0),
        };
        let rows = |service, id| f.rows(protocol, service, id + more, FlowState::Established, 0);
        let flows = [rows(services.0, LOCAL), rows(services.1, REMOTE)].concat();
        let mut near = packet(here, local, upper, services.0, 80)?;
        let mut far = packet(elsewhere, sent, upper, services.1, 80)?;
        far.repeats = Repeats::After(here);
        near.flows.clone_from(&flows);
        far.flows = flows;
        scenes.extend([near, far]);
    }
    // A pod of this node answers another one.
    let mut answer = sized_reply(f, Hook::PodFrom, f.pod, f.local_service, LOCAL)?;
    answer.name = "reply to a pod of this node";
    scenes.push(answer);
    let mut refused = packet(
        "service without endpoints: refused",
        Reason::NoEndpoints,
        Upper::Tcp(SYN),
        f.empty_service,
        80,
    )?;
    refused.rounds.restore = Restore::Tail;
    scenes.push(refused);
    Ok(scenes)
}

fn new_flows(f: &Fixture) -> Result<Vec<Scene>> {
    let spec = f.from_client(Upper::Tcp(SYN), f.local_service, 80);
    let mut room = scene(
        f,
        Hook::PodFrom,
        "new TCP flow, room in the table",
        Reason::DeliveredLocal,
        sized(spec, FRAME),
    )?;
    room.rounds.vary = Vary::Source;
    room.table = Table::Room;
    let mut full = room.clone();
    full.name = "new TCP flow, table full";
    full.table = Table::Full;
    Ok(vec![room, full])
}

/// A reply of `backend` to the client, of a flow through `service`.
fn sized_reply(
    f: &Fixture,
    hook: Hook,
    backend: IpAddr,
    service: IpAddr,
    id: u32,
) -> Result<Scene> {
    let spec = reply(f, backend);
    let mut scene = scene(
        f,
        hook,
        "reply of a service",
        Reason::ReplyTranslated,
        sized(spec, FRAME),
    )?;
    scene.flows = f
        .rows(proto::TCP, service, id, FlowState::Established, 0)
        .into();
    Ok(scene)
}

fn reply(f: &Fixture, backend: IpAddr) -> Spec {
    Spec::new(
        Upper::Tcp(ACK),
        backend,
        BACKEND_PORT,
        f.client,
        CLIENT_PORT,
    )
}

/// The frame of a packet that comes through the overlay.
pub fn through_overlay(f: &Fixture, mut spec: Spec) -> Vec<u8> {
    const OVERHEAD: usize = 50;
    spec.payload.clear();
    let missing = (FRAME - OVERHEAD).saturating_sub(spec.build().len());
    spec.payload = vec![0x55; missing];
    let (outer, inner) = f.arriving(&spec);
    tunnel(&outer, &inner)
}

fn arriving(f: &Fixture) -> Result<Vec<Scene>> {
    let overlaid = || through_overlay(f, reply(f, f.remote));
    let other = Spec::new(Upper::Tcp(ACK), f.outside, 443, f.outside, 50000);
    let not_ours = sized(other, FRAME);
    let flows: Vec<_> = f
        .rows(
            proto::TCP,
            f.remote_service,
            REMOTE,
            FlowState::Established,
            0,
        )
        .into();
    let mut scenes = vec![
        scene(f, Hook::Xdp, "not ours", Reason::NotOurs, not_ours.clone())?,
        scene(
            f,
            Hook::Xdp,
            "out of the overlay",
            Reason::Decapsulated,
            overlaid(),
        )?,
        scene(
            f,
            Hook::NicIn,
            "not ours",
            Reason::NotOurs,
            not_ours.clone(),
        )?,
        scene(
            f,
            Hook::NicIn,
            "out of the overlay, to a pod",
            Reason::Decapsulated,
            overlaid(),
        )?,
        scene(
            f,
            Hook::NicIn,
            "out of the overlay, reply of a service",
            Reason::ReplyTranslated,
            overlaid(),
        )?,
    ];
    for scene in &mut scenes {
        if scene.hook == Hook::NicIn && scene.reason != Reason::NotOurs {
            scene.loses_head();
        }
        if scene.reason == Reason::ReplyTranslated {
            scene.flows.clone_from(&flows);
        }
    }
    let bare = sized(f.stripped(&reply(f, f.remote)), FRAME);
    let name = "after XDP, reply of a service";
    let mut bare = scene(f, Hook::NicIn, name, Reason::ReplyTranslated, bare)?;
    bare.flows.clone_from(&flows);
    scenes.push(bare);
    scenes.push(scene(
        f,
        Hook::PodTo,
        "not ours",
        Reason::NotOurs,
        not_ours,
    )?);
    scenes.push(sized_reply(
        f,
        Hook::PodTo,
        f.remote,
        f.remote_service,
        REMOTE,
    )?);
    Ok(scenes)
}
