//! The world of clients outside and of the node, and flows in it.

use std::net::IpAddr;

use datapath_common::{
    BackendState, Feature, FlowState, Frontend, FrontendFlags, Hook, NodeClient, Reason, ViaKind,
    proto,
};

use super::Case;
use super::fixture::{BPORT, Fixture, LOCAL_ID, NOW, OUTSIDE_ID, REMOTE_ID};
use crate::model::{BackendRow, FlowId, FlowRow, Tuple, Verdict, World};
use crate::packet::{Spec, Upper, tcp_flag, tunnel};
use crate::strategies::{external_ip, host_via, outside_ip, own_ip};

/// Id of the backend that is this node.
pub const HOST_ID: u32 = 5;
/// The node port.
pub const NODE_PORT: u16 = 30_080;
/// The only port for translated sources.
pub const SNAT: u16 = 10_000;

/// Masquerade of every client that has a flag for it.
pub const MASQUERADE: u16 = FrontendFlags::MASQUERADE_PODS | FrontendFlags::MASQUERADE_OUTSIDE;

/// One family's addresses, and the tables without a frontend.
pub struct Uplink {
    /// Pods, peers, nodes, backends.
    pub base: Fixture,
    /// A client outside.
    pub client: IpAddr,
    /// This node's address.
    pub own: IpAddr,
    /// The VTEP device's address.
    pub vtep: IpAddr,
    /// A load balancer's address.
    pub vip: IpAddr,
}

/// A kind of packet that opens a flow, and what goes with it.
#[derive(Clone, Copy)]
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    /// What it carries.
    pub upper: Upper,
    /// The protocol's number.
    pub proto: u8,
    /// What is added to a backend's id for TCP.
    pub more: u32,
}

/// TCP SYN.
pub const SYN: Kind = Kind {
    name: "TCP SYN",
    upper: Upper::Tcp(tcp_flag::SYN),
    proto: proto::TCP,
    more: 0,
};

/// What opens flows.
pub const OPENERS: [Kind; 3] = [
    SYN,
    Kind {
        name: "UDP",
        upper: Upper::Udp,
        proto: proto::UDP,
        more: 10,
    },
    Kind {
        name: "SCTP INIT",
        upper: Upper::Sctp(Some(1)),
        proto: proto::SCTP,
        more: 20,
    },
];

/// A flow, from whom to what.
#[derive(Clone, Copy)]
pub struct Flow {
    /// Protocol.
    pub kind: Kind,
    /// The client's address and port.
    pub client: (IpAddr, u16),
    /// The frontend's.
    pub frontend: (IpAddr, u16),
    /// Backend id for TCP.
    pub id: u32,
    /// What the backend sees as source, if it is translated.
    pub nat: Option<(IpAddr, u16)>,
    /// The backend sees the frontend's address as source.
    pub hairpin: bool,
    /// Whether the client is a process of the node.
    pub node: NodeClient,
}

impl Flow {
    /// Number of the service port that it is for.
    pub fn service(&self) -> u32 {
        100 + self.id + self.kind.more
    }
}

impl Uplink {
    /// The world of IPv4 or IPv6.
    pub fn new(v6: bool) -> Self {
        let mut base = Fixture::new(v6);
        base.world.frontends.clear();
        let config = &mut base.world.config;
        config.features |= Feature::UPLINK_SERVICES;
        (config.snat_first, config.snat_ports) = (SNAT, 1);
        let vtep = if v6 {
            IpAddr::from(config.pod_net6.octets())
        } else {
            IpAddr::from(config.pod_net4.octets())
        };
        let own = own_ip(v6);
        for kind in OPENERS {
            let row = BackendRow {
                addr: own,
                port: BPORT,
                proto: kind.proto,
                state: BackendState::Active,
                generation: 7,
                via: host_via(),
            };
            let key = (if v6 { 6 } else { 4 }, HOST_ID + kind.more);
            base.world.backends.insert(key, row);
        }
        Self {
            base,
            client: outside_ip(v6, 33),
            own,
            vtep,
            vip: external_ip(v6, 1),
        }
    }

    /// The tables with a frontend whose only backend, for every client, is `id`.
    pub fn world(&self, flow: &Flow, flags: u16) -> World {
        let id = flow.id + flow.kind.more;
        self.world_of(flow, flags, &[id], None)
    }

    /// The same with these ids for clients inside, and outside if they have others.
    pub fn world_of(
        &self,
        flow: &Flow,
        flags: u16,
        inside: &[u32],
        outside: Option<&[u32]>,
    ) -> World {
        let mut world = self.base.world.clone();
        let start = world.segments.len() as u32;
        let len = inside.len() as u32;
        world.segments.extend(inside);
        world.segments.extend(outside.unwrap_or_default());
        let (out_start, out_len) = match outside {
            Some(ids) => (start + len, ids.len() as u32),
            None => (start, len),
        };
        let row = Frontend {
            service: flow.service(),
            start,
            len,
            out_start,
            out_len,
            flags,
            ..Frontend::default()
        };
        let (addr, port) = flow.frontend;
        world.frontends.insert((addr, port, flow.kind.proto), row);
        if addr != self.own {
            let marker = Frontend {
                flags: FrontendFlags::ADDRESS,
                ..Frontend::default()
            };
            world.frontends.insert((addr, 0, 0), marker);
        }
        world
    }

    /// A flow from outside to the load balancer's address, not translated.
    pub fn outside_flow(&self, kind: Kind, id: u32) -> Flow {
        Flow {
            kind,
            client: (self.client, super::fixture::SPORT),
            frontend: (self.vip, 80),
            id,
            nat: None,
            hairpin: false,
            node: NodeClient::No,
        }
    }

    /// The same from the node.
    pub fn node_flow(&self, kind: Kind, id: u32) -> Flow {
        Flow {
            client: (self.own, super::fixture::SPORT),
            node: NodeClient::Uplink,
            ..self.outside_flow(kind, id)
        }
    }

    /// The same from the pod.
    pub fn pod_flow(&self, kind: Kind, id: u32) -> Flow {
        Flow {
            client: (self.base.client, super::fixture::SPORT),
            ..self.outside_flow(kind, id)
        }
    }

    /// The backend that a flow goes to.
    pub fn backend(&self, flow: &Flow) -> (IpAddr, u16) {
        let addr = match flow.id {
            LOCAL_ID => self.base.pod,
            REMOTE_ID => self.base.remote,
            OUTSIDE_ID => self.base.outside,
            HOST_ID => self.own,
            _ => self.base.client,
        };
        (addr, BPORT)
    }

    /// The address that masquerade gives on the way to a flow's backend.
    pub fn masquerade(&self, flow: &Flow) -> (IpAddr, u16) {
        let addr = if flow.id == OUTSIDE_ID {
            self.own
        } else {
            self.vtep
        };
        (addr, SNAT)
    }

    /// A packet of the flow as the client sends it.
    pub fn sent(&self, flow: &Flow) -> Spec {
        let ((src, sport), (dst, dport)) = (flow.client, flow.frontend);
        let mut spec = Spec::new(flow.kind.upper, src, sport, dst, dport);
        if src == self.own {
            spec.src_mac = self.base.world.config.uplink_mac;
        }
        spec
    }

    /// The packet as the backend gets it.
    pub fn translated(&self, flow: &Flow, sent: &Spec) -> Spec {
        let (dst, dport) = self.backend(flow);
        let mut spec = Spec {
            dst,
            dport,
            ..sent.clone()
        };
        if let Some(source) = flow.nat {
            (spec.src, spec.sport) = source;
        } else if flow.hairpin {
            spec.src = flow.frontend.0;
        }
        spec
    }

    /// The backend's answer as it sends it, and as the client gets it.
    pub fn answer(&self, flow: &Flow) -> (Spec, Spec) {
        let (src, sport) = self.backend(flow);
        let (dst, dport) = match flow.nat {
            Some(source) => source,
            None if flow.hairpin => (flow.frontend.0, flow.client.1),
            None => flow.client,
        };
        let upper = match flow.kind.upper {
            Upper::Tcp(_) => Upper::Tcp(tcp_flag::SYN | tcp_flag::ACK),
            Upper::Sctp(_) => Upper::Sctp(Some(2)),
            other => other,
        };
        let sent = Spec::new(upper, src, sport, dst, dport);
        let back = Spec {
            src: flow.frontend.0,
            sport: flow.frontend.1,
            dst: flow.client.0,
            dport: flow.client.1,
            ..sent.clone()
        };
        (sent, back)
    }

    /// Both rows of the flow: forward, reply.
    pub fn rows(&self, flow: &Flow, state: FlowState, age: u32) -> [(FlowId, FlowRow); 2] {
        let (sent, (answer, _)) = (self.sent(flow), self.answer(flow));
        let tuple = |spec: &Spec| Tuple {
            src: spec.src,
            dst: spec.dst,
            sport: spec.sport,
            dport: spec.dport,
            proto: flow.kind.proto,
        };
        let (addr, port) = self.backend(flow);
        let forward = FlowRow {
            addr,
            port,
            nat: flow.nat,
            state,
            hairpin: flow.hairpin,
            node: flow.node,
            backend: flow.id + flow.kind.more,
            generation: 7,
            service: flow.service(),
            counted: false,
            opened: NOW - age,
            seen: NOW - age,
        };
        let reply = FlowRow {
            addr: flow.frontend.0,
            port: flow.frontend.1,
            nat: flow.nat.map(|_| flow.client),
            ..forward
        };
        [
            (tuple(&sent).forward(), forward),
            (tuple(&answer).reply(), reply),
        ]
    }

    /// How a translated packet leaves at a hook: reason, verdict, frame.
    pub fn leaving(&self, hook: Hook, flow: &Flow, to: &Spec) -> (Reason, Verdict, Vec<u8>) {
        let node = hook == Hook::NicOut;
        let masqueraded = flow.nat.is_some_and(|(addr, _)| addr != flow.client.0);
        let key = (if self.base.v6 { 6 } else { 4 }, flow.id + flow.kind.more);
        let via = self.base.world.backends.get(&key).map(|row| row.via);
        let via = via.unwrap_or_default();
        if via.kind == ViaKind::Local as u8 {
            let (verdict, frame) = Fixture::delivered(to, if flow.id == LOCAL_ID { 3 } else { 2 });
            let verdict = match verdict {
                Verdict::RedirectPeer { ifindex } if node => Verdict::Redirect { ifindex },
                other => other,
            };
            (Reason::DeliveredLocal, verdict, frame)
        } else if via.kind == ViaKind::Vxlan as u8 {
            let (verdict, frame) = self.base.encapsulated(to);
            (Reason::Encapsulated, verdict, frame)
        } else {
            let (verdict, frame) =
                if flow.node == NodeClient::Loopback && via.kind == ViaKind::Host as u8 {
                    (Verdict::Kernel, to.build())
                } else if via.kind == ViaKind::Host as u8 && node {
                    self.turned_back(to)
                } else if via.kind == ViaKind::Kernel as u8 && (node || masqueraded) {
                    self.routed(to)
                } else {
                    (Verdict::Kernel, to.build())
                };
            (Reason::TranslatedToKernel, verdict, frame)
        }
    }

    /// Out of the uplink by the kernel's routes.
    pub fn routed(&self, spec: &Spec) -> (Verdict, Vec<u8>) {
        let mut spec = spec.clone();
        spec.ttl -= 1;
        let ifindex = self.base.world.config.uplink;
        (Verdict::Route { ifindex }, spec.build())
    }

    /// Into the node's own stack by the uplink.
    pub fn turned_back(&self, spec: &Spec) -> (Verdict, Vec<u8>) {
        let mut spec = spec.clone();
        spec.dst_mac = self.base.world.config.uplink_mac;
        let ifindex = self.base.world.config.uplink;
        (Verdict::RedirectIngress { ifindex }, spec.build())
    }

    /// The case of a frame at a hook in a world.
    pub fn case(&self, hook: Hook, name: &str, world: &World, frame: Vec<u8>) -> Case {
        let mut case = self.base.case_at(hook, name, frame);
        case.world = world.clone();
        case
    }

    /// A packet that opens the flow.
    pub fn opens(&self, hook: Hook, name: &str, flow: &Flow, flags: u16) -> Case {
        let sent = self.sent(flow);
        let (reason, verdict, out) = self.leaving(hook, flow, &self.translated(flow, &sent));
        let world = self.world(flow, flags);
        self.case(hook, name, &world, sent.build())
            .leaves(reason, verdict, out)
            .writes(self.rows(flow, FlowState::Opening, 0))
    }

    /// An answer of the flow at a hook, which gets to the client so. `inner`:
    /// through the overlay.
    pub fn answers(
        &self,
        hook: Hook,
        name: &str,
        flow: &Flow,
        inner: bool,
        way: impl Fn(&Spec) -> (Verdict, Vec<u8>),
    ) -> Case {
        let (sent, back) = self.answer(flow);
        let mut back = back;
        let frame = if inner {
            let (outer, inner) = self.base.arriving(&sent);
            (back.src_mac, back.dst_mac) = (
                datapath_common::Mac::new([0xee, 2, 2, 2, 2, 2]),
                self.base.world.config.vtep_mac,
            );
            tunnel(&outer, &inner)
        } else {
            sent.build()
        };
        let (verdict, out) = way(&back);
        let mut case = self
            .case(hook, name, &self.world(flow, MASQUERADE), frame)
            .leaves(Reason::ReplyTranslated, verdict, out)
            .writes(
                self.rows(flow, FlowState::Established, 0)
                    .map(|(id, mut row)| {
                        row.opened = NOW - 1;
                        (id, row)
                    }),
            );
        case.world
            .flows
            .extend(self.rows(flow, FlowState::Opening, 1));
        case
    }
}
