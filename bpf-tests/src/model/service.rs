//! "Service", and "Service address".

use datapath_common::{
    BackendState, Feature, Frontend, FrontendFlags, Group, NodeClient, Reason, Via, ViaKind, proto,
};

use std::net::IpAddr;

use super::client::{Client, as_reply};
use super::direct::is_direct;
use super::flow::{NewFlow, granted};
use super::forward::{
    Size, deliver, encapsulated, fits, into_overlay, over_bridge, route, size, to_loopback,
    turn_back,
};
use super::icmp::{is_martian, refuse};
use super::parse::Packet;
use super::rewrite::translate;
use super::world::{ticks_of, version_of};
use super::{
    AffinityRow, BackendRow, Choice, Ctx, FlowId, FlowRow, Hashed, Outcome, Tuple, World, snat,
};

/// The frontend row of a packet's destination, if its ports are known.
pub fn frontend_of(world: &World, packet: &Packet) -> Option<Frontend> {
    let key = (packet.ip.dst, packet.dport, packet.ip.proto);
    let row = packet.has_ports.then(|| world.frontends.get(&key))?;
    row.copied()
}

/// The service address itself: hairpin replies of a pod, and all that is refused.
pub fn service_address(
    world: &mut World,
    frame: &[u8],
    packet: &Packet,
    client: Client,
    ctx: &Ctx,
) -> Outcome {
    if packet.ip.ttl <= 1 {
        return refuse(world, frame, packet, Reason::TtlExceeded, client, ctx);
    }
    if client == Client::Pod
        && packet.has_ports
        && let Some(row) = world.live_reply(packet.tuple().reply())
        && row.hairpin
        && let Some(via) = world.local_pod(packet.ip.src)
    {
        let mut out = frame.to_vec();
        if let Err(fault) = translate(&mut out, packet, &as_reply(packet, &row)) {
            return Outcome::drop(fault, frame);
        }
        world.note_reply(packet, &row);
        world.leave_fragment_ports(packet);
        return deliver(out, packet, &via, client, Reason::ReplyTranslated);
    }
    if packet.is_later_fragment() {
        return Outcome::drop(Reason::FragmentWithoutFirst, frame);
    }
    refuse(world, frame, packet, Reason::NoSuchPort, client, ctx)
}

/// A packet to a frontend.
pub fn service(
    world: &mut World,
    frame: &[u8],
    packet: &Packet,
    frontend: &Frontend,
    client: Client,
    ctx: &Ctx,
) -> Outcome {
    if is_martian(packet.ip.src) {
        return Outcome::drop(Reason::MartianSource, frame);
    }
    if packet.ip.ttl <= 1 {
        return refuse(world, frame, packet, Reason::TtlExceeded, client, ctx);
    }
    let (start, len, table) = match client {
        Client::Outside => (frontend.out_start, frontend.out_len, frontend.out_table),
        Client::Pod | Client::Node | Client::Loopback => {
            (frontend.start, frontend.len, frontend.table)
        }
    };
    let segment = world.segment(start, len);
    let asked =
        every_packet_asks(frontend, client) || packet.asks_flow_table() || segment.is_empty();
    let row = asked
        .then(|| world.live(packet.tuple().forward(), packet))
        .flatten()
        // A flow of no service is none of this one's.
        .filter(|row| row.backend != 0)
        // A datagram does not go where its own service would send none.
        .filter(|row| {
            let moved = has(frontend, FrontendFlags::FLOWS_DECIDE)
                && packet.ip.proto == proto::UDP
                && !segment.contains(&row.backend);
            !moved
        })
        .filter(|row| {
            let lost = has(frontend, FrontendFlags::FLOWS_MAY_BE_LOST);
            world.note_forward(packet, row, lost)
        });
    let mut way = Way {
        packet,
        frontend,
        client,
        ctx,
        backend: 0,
        row,
        opened: None,
    };
    if let Some(row) = row {
        way.backend = row.backend;
        let mut outcome = way.forward(world, frame);
        way.give(&mut outcome);
        outcome.opened_flow = way.opened;
        return outcome;
    }
    let src = packet.ip.src;
    if has(frontend, FrontendFlags::SOURCE_RANGES)
        && !world.source_is_allowed(frontend.service, src)
    {
        return Outcome::drop(Reason::SourceNotAllowed, frame);
    }
    if segment.is_empty() {
        let silent = match client {
            Client::Outside => FrontendFlags::DROP_OUTSIDE,
            Client::Pod | Client::Node | Client::Loopback => FrontendFlags::DROP_INSIDE,
        };
        if has(frontend, silent) {
            return Outcome::drop(Reason::NoLocalEndpoints, frame);
        }
        return refuse(world, frame, packet, Reason::NoEndpoints, client, ctx);
    }
    let mut choice = None;
    way.backend = if let Some(id) = remembered(world, frontend, packet, &segment) {
        id
    } else {
        // A table, where there is one, instead of the segment.
        let slots = if table == 0 {
            segment
        } else {
            world.segment(start + len, table.into())
        };
        // Only what begins a flow takes a turn.
        let begins = packet.opens() || packet.ip.proto == proto::UDP;
        let in_turn = begins && has(frontend, FrontendFlags::ROUND_ROBIN);
        let by_source = has(frontend, FrontendFlags::SOURCE_HASH);
        let hash = if by_source {
            ctx.hash.of_source(src)
        } else {
            ctx.hash
        };
        if in_turn {
            let turn = world.take_turn(frontend, client == Client::Outside);
            slots[(turn % slots.len() as u64) as usize]
        } else {
            let mut at = hash.slot(slots.len());
            let by_flows = begins && has(frontend, FrontendFlags::LEAST_FLOWS);
            if by_flows && world.is_worst(&slots, at, src) {
                // Whichever it was compared with was better.
                at = (at + 1) % slots.len();
            }
            let id = slots.get(at).copied().unwrap_or(0);
            choice = Some(Choice {
                hashed: if by_source {
                    Hashed::Source(src)
                } else {
                    Hashed::Flow(packet.tuple())
                },
                segment: slots,
                backend: id,
                repeats: !by_flows,
            });
            id
        }
    };
    let mut outcome = way.forward(world, frame);
    way.give(&mut outcome);
    (outcome.choice, outcome.opened_flow) = (choice, way.opened);
    outcome
}

/// Whether a backend behind `via` sees the client of a new flow as it is.
fn is_shown(world: &World, frontend: &Frontend, client: Client, src: IpAddr, via: &Via) -> bool {
    client == Client::Outside
        && has(frontend, FrontendFlags::DIRECT_RETURN)
        && (goes(via, ViaKind::Local) || is_direct(via))
        && world.peer(src).is_none()
}

fn has(frontend: &Frontend, flag: u16) -> bool {
    frontend.flags & flag != 0
}

/// Whether a frontend masquerades such clients on the whole way to it.
fn masquerades(frontend: &Frontend, client: Client) -> bool {
    match client {
        Client::Pod => has(frontend, FrontendFlags::MASQUERADE_PODS),
        Client::Outside => has(frontend, FrontendFlags::MASQUERADE_OUTSIDE),
        Client::Node | Client::Loopback => false,
    }
}

/// Whether the segment alone does not do for data.
fn every_packet_asks(frontend: &Frontend, client: Client) -> bool {
    let any = FrontendFlags::FLOWS_DECIDE
        | FrontendFlags::FLOWS_MAY_BE_LOST
        | FrontendFlags::SOURCE_RANGES;
    frontend.flags & any != 0
        || frontend.affinity_secs != 0
        || client.is_node()
        || masquerades(frontend, client)
}

impl World {
    /// Takes a turn; says how many were taken before. A service port has them for all of its
    /// frontends, and others for the list of this node's endpoints.
    fn take_turn(&mut self, frontend: &Frontend, outside: bool) -> u64 {
        let local = if outside {
            FrontendFlags::LOCAL_OUTSIDE
        } else {
            FrontendFlags::LOCAL_INSIDE
        };
        let row = 2 * frontend.service + u32::from(has(frontend, local));
        let turns = self.turns.entry(row).or_default();
        *turns += 1;
        *turns - 1
    }
}

impl World {
    /// Whether the backend in a slot has more living flows for its weight than that in any
    /// other slot: it is never the better of two.
    fn is_worst(&self, slots: &[u32], at: usize, client: IpAddr) -> bool {
        let load = |slot: usize| {
            let id = slots[slot];
            let flows = self.live.get(&(version_of(client), id)).copied();
            let weight = slots.iter().filter(|other| **other == id).count();
            (flows.unwrap_or(0).max(0) + 1) as f64 / weight as f64
        };
        let mut others = (0..slots.len()).filter(|other| *other != at);
        slots.len() > 1 && others.all(|other| load(other) < load(at))
    }
}

/// The backend that the client's affinity names, if it may be used.
fn remembered(world: &World, frontend: &Frontend, packet: &Packet, segment: &[u32]) -> Option<u32> {
    if frontend.affinity_secs == 0 {
        return None;
    }
    let src = packet.ip.src;
    let row = world.affinities.get(&(src, frontend.service))?;
    let age = world.now.wrapping_sub(row.seen);
    let backend = world.backends.get(&(version_of(src), row.backend))?;
    let fits = u64::from(age) <= ticks_of(frontend.affinity_secs)
        && backend.generation == row.generation
        && backend.state == BackendState::Active
        && segment.contains(&row.backend);
    fits.then_some(row.backend)
}

/// A packet on its way to a backend.
struct Way<'a> {
    packet: &'a Packet,
    frontend: &'a Frontend,
    client: Client,
    ctx: &'a Ctx,
    /// Backend id.
    backend: u32,
    /// The live row that named it; otherwise affinity or segment did.
    row: Option<FlowRow>,
    opened: Option<FlowId>,
}

fn goes(via: &Via, kind: ViaKind) -> bool {
    via.kind == kind as u8
}

impl Way<'_> {
    /// Notes the backend of a packet that goes there.
    fn give(&self, outcome: &mut Outcome) {
        if matches!(outcome.reason.group(), Group::Passed | Group::Forwarded) {
            let version = version_of(self.packet.ip.src);
            outcome.given = Some((version, self.frontend.service, self.backend));
        }
    }

    /// From the backend on: steps 4 to 7.
    fn forward(&mut self, world: &mut World, frame: &[u8]) -> Outcome {
        let (packet, client, tuple) = (self.packet, self.client, self.packet.tuple());
        let key = (version_of(tuple.src), self.backend);
        let known = world.backends.get(&key).copied();
        // A live row's backend was looked at with the row.
        let usable = |row: &BackendRow| self.row.is_some() || row.state == BackendState::Active;
        let Some(backend) = known.filter(usable) else {
            return Outcome::drop(Reason::BackendGone, frame);
        };
        let via = backend.via;
        let behind_bridge = goes(&via, ViaKind::Kernel) && world.is_bridged(backend.addr);
        // What is refused opens no flow and leaves no ports.
        let limited = goes(&via, ViaKind::Vxlan)
            || match client {
                Client::Pod | Client::Outside => false,
                // The veth takes from its host no more than the pod's end does.
                Client::Node => goes(&via, ViaKind::Local) || behind_bridge,
                Client::Loopback => !goes(&via, ViaKind::Host),
            };
        let size = if limited {
            size(world, frame, packet, self.ctx)
        } else {
            Size::Fits
        };
        // As it was opened, or as the frontend says.
        let hidden = self
            .row
            .is_some_and(|row| row.translated_source().is_some());
        let direct = client == Client::Outside
            && is_direct(&via)
            && !hidden
            && (self.row.is_some() || is_shown(world, self.frontend, client, tuple.src, &via));
        if direct && packet.ip.ttl <= 2 {
            return refuse(world, frame, packet, Reason::TtlExceeded, client, self.ctx);
        }
        if size == Size::TooBig || (direct && size == Size::Divisible) {
            return refuse(world, frame, packet, Reason::TooBig, client, self.ctx);
        }
        let masquerade = match self.row {
            Some(_) => None,
            None if behind_bridge => None,
            None => self.masquerade_address(world, &via),
        };
        if masquerade.is_some() && packet.closes() {
            return Outcome::drop(Reason::UnknownFlow, frame);
        }
        // The loopback device takes what the node sends itself, from whatever address.
        let is_own = client != Client::Loopback
            && (backend.addr == tuple.src || (client == Client::Node && goes(&via, ViaKind::Host)));
        let mut nat = self.row.and_then(|row| row.translated_source());
        if self.opens() {
            let (limit, now) = (world.config.flows_per_tick, world.now);
            if !granted(&mut world.flow_grants, limit, now) {
                return Outcome::drop(Reason::NewFlowLimit, frame);
            }
            if direct {
                return self.open_directly(world, frame, &backend);
            }
            let wish = snat::Wish {
                tuple,
                opens: packet.opens(),
                data: packet.is_data(),
                to: (backend.addr, backend.port),
                backend: (self.backend, backend.generation),
                addr: masquerade.unwrap_or(tuple.src),
            };
            // What keeps its source needs its reply row all the same.
            let moves = !is_own
                && tuple.sport != 0
                && world.has(Feature::UPLINK_SERVICES)
                && world.config.snat_ports != 0;
            if masquerade.is_some() || (moves && !wish.keeps(world, self.ctx.hash)) {
                let Some(port) = snat::port(world, &wish, self.ctx.hash) else {
                    return Outcome::drop(Reason::SnatPortsExhausted, frame);
                };
                nat = Some((wish.addr, port));
            }
            if masquerade.is_none() && nat.is_some() && packet.ip.proto != proto::UDP {
                self.ask_always(world);
            }
            let flow = NewFlow {
                service: self.frontend.service,
                backend: self.backend,
                hairpin: is_own && nat.is_none(),
                nat,
                node: client.in_rows(),
                counted: has(self.frontend, FrontendFlags::LEAST_FLOWS),
            };
            self.opened = world.open(packet, &flow);
            self.remember(world, &backend);
        }
        if direct {
            return self.forward_directly(world, frame, &backend);
        }
        let (src, sport) = match nat {
            Some(source) => source,
            None if is_own => (tuple.dst, tuple.sport),
            None => (tuple.src, tuple.sport),
        };
        let to = Tuple {
            src,
            sport,
            dst: backend.addr,
            dport: backend.port,
            ..tuple
        };
        let mut out = frame.to_vec();
        if let Err(fault) = translate(&mut out, packet, &to) {
            return Outcome::drop(fault, frame);
        }
        world.leave_fragment_ports(packet);
        // Who is its own backend gets the frontend's address, but is not masqueraded.
        let masqueraded = nat.is_some_and(|(addr, _)| addr != tuple.src);
        if size == Size::Divisible {
            return self.divide(world, out, masqueraded);
        }
        if behind_bridge {
            // The kernel cuts what the bridge may not take, where it has the packet.
            return if client == Client::Outside && !fits(world, frame, packet, self.ctx) {
                Outcome::kernel(Reason::TranslatedToKernel, &out)
            } else {
                over_bridge(world, out, packet, Reason::DeliveredLocal)
            };
        }
        self.leave(world, out, &via, masqueraded)
    }

    /// Opens a flow whose answers do not come by here.
    fn open_directly(&mut self, world: &mut World, frame: &[u8], backend: &BackendRow) -> Outcome {
        let flow = NewFlow {
            service: self.frontend.service,
            backend: self.backend,
            hairpin: false,
            nat: None,
            node: NodeClient::Direct,
            counted: has(self.frontend, FrontendFlags::LEAST_FLOWS),
        };
        self.opened = world.open_directly(self.packet, &flow);
        self.remember(world, backend);
        self.forward_directly(world, frame, backend)
    }

    /// As it came, to the backend's node.
    fn forward_directly(&self, world: &mut World, frame: &[u8], backend: &BackendRow) -> Outcome {
        world.leave_fragment_ports(self.packet);
        let to = Some((backend.addr, backend.port));
        let (via, reason) = (&backend.via, Reason::Encapsulated);
        into_overlay(world, frame, self.packet, via, to, reason)
    }

    /// Every packet to the frontend has to ask for the port of its source.
    fn ask_always(&self, world: &mut World) {
        let packet = self.packet;
        let key = (packet.ip.dst, packet.dport, packet.ip.proto);
        if let Some(row) = world.frontends.get_mut(&key) {
            row.flags |= FrontendFlags::FLOWS_DECIDE;
        }
    }

    fn opens(&self) -> bool {
        let known = self.packet.is_data() && !every_packet_asks(self.frontend, self.client);
        self.row.is_none() && !known && !self.packet.closes()
    }

    /// To the kernel, which makes pieces of it.
    fn divide(&self, world: &World, out: Vec<u8>, masqueraded: bool) -> Outcome {
        let reason = Reason::TranslatedToKernel;
        if masqueraded || self.client.is_node() {
            // From an address of this node.
            to_loopback(world, out, reason)
        } else {
            Outcome::kernel(reason, &out)
        }
    }

    fn leave(&self, world: &World, out: Vec<u8>, via: &Via, masqueraded: bool) -> Outcome {
        let (packet, client) = (self.packet, self.client);
        let node = client.is_node();
        let translated = Reason::TranslatedToKernel;
        if goes(via, ViaKind::Local) {
            deliver(out, packet, via, client, Reason::DeliveredLocal)
        } else if goes(via, ViaKind::Vxlan)
            && client == Client::Pod
            && !masqueraded
            && world.comes_by_bridge(packet.ip.src)
        {
            // As what answers it.
            Outcome::kernel(translated, &out)
        } else if goes(via, ViaKind::Vxlan) {
            encapsulated(world, &out, packet, via, Reason::Encapsulated)
        } else if goes(via, ViaKind::Host) && client == Client::Node {
            turn_back(world, out, translated)
        } else if goes(via, ViaKind::Kernel)
            && (masqueraded || node)
            && world.has(Feature::UPLINK_SERVICES)
        {
            route(world, out, packet, translated)
        } else {
            Outcome::kernel(translated, &out)
        }
    }

    /// The address that the source of a new flow becomes, if it is masqueraded.
    fn masquerade_address(&self, world: &World, via: &Via) -> Option<std::net::IpAddr> {
        let src = self.packet.ip.src;
        // What comes back from outside is known by the node's first address only.
        let elsewhere = goes(via, ViaKind::Kernel) && world.node_address(src) != src;
        let shown = is_shown(world, self.frontend, self.client, src, via);
        let wanted = (masquerades(self.frontend, self.client) && !shown)
            || (self.client.is_node() && (goes(via, ViaKind::Vxlan) || elsewhere));
        if !wanted || goes(via, ViaKind::Host) || world.config.snat_ports == 0 {
            return None;
        }
        let addr = if goes(via, ViaKind::Kernel) {
            world.node_address(src)
        } else {
            world.vtep_address(src)
        };
        (!addr.is_unspecified()).then_some(addr)
    }

    /// Notes where the client's new flow went, if that is to count.
    fn remember(&self, world: &mut World, backend: &BackendRow) {
        if self.frontend.affinity_secs != 0 {
            let row = AffinityRow {
                backend: self.backend,
                generation: backend.generation,
                seen: world.now,
            };
            let id = (self.packet.ip.src, self.frontend.service);
            world.affinities.insert(id, row);
        }
    }
}
