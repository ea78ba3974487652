//! The world that the cases share.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath_common::{
    BackendState, Config, FlowState, Frontend, FrontendFlags, Hook, Mac, Node, NodeClient, Reason,
    Via, proto,
};

use super::Case;
use crate::model::flow::reply_of;
use crate::model::{BackendRow, FlowId, FlowRow, Tuple, Verdict, World};
use crate::packet::{Spec, Tunnel, Upper, internet_checksum, tcp_flag, tunnel, upper_checksum};
use crate::strategies::{config, local_via, vxlan_via};

/// The tick that it is in every case.
pub const NOW: u32 = 5_000_000;

/// Client's port.
pub const SPORT: u16 = 40001;
/// Backends' port.
pub const BPORT: u16 = 8080;

/// One family's addresses, and the tables.
pub struct Fixture {
    /// IPv6.
    pub v6: bool,
    /// The tables.
    pub world: World,
    /// The client: a pod of this node.
    pub client: IpAddr,
    /// Another pod of this node.
    pub pod: IpAddr,
    /// A pod of another node.
    pub remote: IpAddr,
    /// Backend outside of the cluster.
    pub outside: IpAddr,
    /// TCP, UDP, SCTP port 80: backend `pod`.
    pub local_service: IpAddr,
    /// The same: backend `remote`.
    pub remote_service: IpAddr,
    /// The same: backend `outside`.
    pub outside_service: IpAddr,
    /// The same: backend `client`.
    pub own_service: IpAddr,
    /// The same: no backend.
    pub empty_service: IpAddr,
}

/// Backend ids by service, for TCP; UDP's is 10 higher, SCTP's 20.
pub const LOCAL_ID: u32 = 1;
/// Id of `remote`.
pub const REMOTE_ID: u32 = 2;
/// Id of `outside`.
pub const OUTSIDE_ID: u32 = 3;
/// Id of `client`.
pub const OWN_ID: u32 = 4;

fn address(v6: bool, service: bool, node: u8, host: u8) -> IpAddr {
    match (v6, service) {
        (false, true) => Ipv4Addr::new(10, 96, 0, host).into(),
        (false, false) => Ipv4Addr::new(10, 244, node, host).into(),
        (true, true) => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, u16::from(host)).into(),
        (true, false) => {
            Ipv6Addr::new(0xfd00, 0x244, u16::from(node), 0, 0, 0, 0, u16::from(host)).into()
        }
    }
}

impl Fixture {
    /// The world of IPv4 or IPv6.
    pub fn new(v6: bool) -> Self {
        let mut world = World::new(config(0));
        world.now = NOW;
        let pod_ip = |host| address(v6, false, 1, host);
        let (client, pod, remote) = (pod_ip(2), pod_ip(3), address(v6, false, 2, 9));
        world.pods.insert(client, local_via(2));
        world.pods.insert(pod, local_via(3));
        let node = Ipv4Addr::new(192, 168, 7, 2);
        let way = vxlan_via(&world.config, node);
        let bits = if v6 { 64 } else { 24 };
        world.peers.push((address(v6, false, 2, 0), bits, way));
        world.nodes.insert(
            node,
            Node {
                vtep_mac: way.dst_mac,
                reserved: 0,
            },
        );
        let outside: IpAddr = if v6 {
            Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7).into()
        } else {
            Ipv4Addr::new(198, 51, 100, 7).into()
        };
        let service = |host| address(v6, true, 0, host);
        let ends = [
            (service(11), LOCAL_ID, pod, local_via(3)),
            (service(12), REMOTE_ID, remote, way),
            (service(13), OUTSIDE_ID, outside, Via::KERNEL),
            (service(14), OWN_ID, client, local_via(2)),
        ];
        world.segments.push(0);
        for (more, proto) in [(0, proto::TCP), (10, proto::UDP), (20, proto::SCTP)] {
            for (addr, id, to, via) in ends {
                let id = id + more;
                let start = world.segments.len() as u32;
                world.segments.push(id);
                let frontend = Frontend {
                    service: 100 + id,
                    start,
                    len: 1,
                    ..Frontend::default()
                };
                world.frontends.insert((addr, 80, proto), frontend);
                let row = BackendRow {
                    addr: to,
                    port: BPORT,
                    proto,
                    state: BackendState::Active,
                    generation: 7,
                    via,
                };
                world.backends.insert((if v6 { 6 } else { 4 }, id), row);
            }
            world
                .frontends
                .insert((service(15), 80, proto), Frontend::default());
        }
        for host in 11..=15 {
            let marker = Frontend {
                flags: FrontendFlags::ADDRESS,
                ..Frontend::default()
            };
            world.frontends.insert((service(host), 0, 0), marker);
        }
        Self {
            v6,
            world,
            client,
            pod,
            remote,
            outside,
            local_service: service(11),
            remote_service: service(12),
            outside_service: service(13),
            own_service: service(14),
            empty_service: service(15),
        }
    }

    /// A packet from the client.
    pub fn from_client(&self, upper: Upper, dst: IpAddr, dport: u16) -> Spec {
        Spec::new(upper, self.client, SPORT, dst, dport)
    }

    /// Has the local service served by two backends, local and outside, and a table behind their
    /// list if it has slots. `more`: from the ids for TCP to the protocol's; `row`: the rest of
    /// the frontend.
    pub fn serve_by_two(
        &self,
        case: &mut Case,
        proto: u8,
        more: u32,
        table: &[u32],
        row: Frontend,
    ) {
        let start = case.world.segments.len() as u32;
        let list = [LOCAL_ID + more, OUTSIDE_ID + more];
        case.world.segments.extend(list.iter().chain(table));
        let slots = table.len() as u16;
        let row = Frontend {
            start,
            len: 2,
            table: slots,
            out_start: start,
            out_len: 2,
            out_table: slots,
            ..row
        };
        let key = (self.local_service, 80, proto);
        case.world.frontends.insert(key, row);
    }

    /// The case of a packet that goes to the local backend, or to the one outside.
    pub fn goes(&self, case: Case, spec: &Spec, id: u32) -> Case {
        let dst = if id == LOCAL_ID {
            self.pod
        } else {
            self.outside
        };
        let out = Spec {
            dst,
            dport: BPORT,
            ..spec.clone()
        };
        if id == LOCAL_ID {
            let (verdict, out) = Self::delivered(&out, 3);
            case.leaves(Reason::DeliveredLocal, verdict, out)
        } else {
            case.leaves(Reason::TranslatedToKernel, Verdict::Kernel, out.build())
        }
    }

    /// The case of a packet that a pod sends.
    pub fn case(&self, name: &str, spec: &Spec) -> Case {
        self.case_at(Hook::PodFrom, name, spec.build())
    }

    /// The case of a frame at a hook.
    pub fn case_at(&self, hook: Hook, name: &str, frame: Vec<u8>) -> Case {
        let name = format!("{} v{}: {name}", hook.name(), if self.v6 { 6 } else { 4 });
        Case::new(&name, &self.world, hook, frame)
    }

    /// The packet as `tulle_xdp` leaves what it took out of the overlay.
    pub fn stripped(&self, spec: &Spec) -> Spec {
        Spec {
            src_mac: self.world.config.stripped_mac,
            ..spec.clone()
        }
    }

    /// Delivery into a pod: the frame and the verdict.
    pub fn delivered(spec: &Spec, pod: u8) -> (Verdict, Vec<u8>) {
        let via = local_via(pod);
        let mut spec = spec.clone();
        spec.ttl -= 1;
        (spec.src_mac, spec.dst_mac) = (via.src_mac, via.dst_mac);
        (
            Verdict::RedirectPeer {
                ifindex: via.ifindex,
            },
            spec.build(),
        )
    }

    /// The way to the other node.
    pub fn way(&self) -> Via {
        vxlan_via(&self.world.config, Ipv4Addr::new(192, 168, 7, 2))
    }

    /// Departure through the overlay.
    pub fn encapsulated(&self, spec: &Spec) -> (Verdict, Vec<u8>) {
        let way = self.way();
        let mut spec = spec.clone();
        spec.ttl -= 1;
        (spec.src_mac, spec.dst_mac) = (way.src_mac, way.dst_mac);
        let config = &self.world.config;
        let outer = Tunnel {
            src: config.node_ip4.into(),
            dst: way.node.into(),
            sport: 0,
            dport: config.vxlan_port,
            flags: 8,
            vni: config.vni,
            option_words: 0,
            piece: None,
        };
        let next_hop = way.next_hop.into();
        (
            Verdict::RedirectNeigh {
                ifindex: way.ifindex,
                next_hop,
            },
            tunnel(&outer, &spec.build()),
        )
    }

    /// What comes from the other node through the overlay.
    pub fn arriving(&self, spec: &Spec) -> (Tunnel, Vec<u8>) {
        let config: &Config = &self.world.config;
        let outer = Tunnel {
            src: self.way().node.into(),
            dst: config.node_ip4.into(),
            sport: 45678,
            dport: config.vxlan_port,
            flags: 8,
            vni: config.vni,
            option_words: 0,
            piece: None,
        };
        let mut spec = spec.clone();
        (spec.src_mac, spec.dst_mac) = (Mac::new([0xee, 2, 2, 2, 2, 2]), config.vtep_mac);
        (outer, spec.build())
    }

    /// Both rows of a flow from the client to a service: forward, reply.
    pub fn rows(
        &self,
        proto: u8,
        service: IpAddr,
        id: u32,
        state: FlowState,
        age: u32,
    ) -> [(FlowId, FlowRow); 2] {
        let tuple = Tuple {
            src: self.client,
            dst: service,
            sport: SPORT,
            dport: 80,
            proto,
        };
        let backend = self.world.backends.get(&(if self.v6 { 6 } else { 4 }, id));
        let addr = backend.map_or(self.client, |row| row.addr);
        let forward = FlowRow {
            addr,
            port: BPORT,
            nat: None,
            state,
            hairpin: addr == self.client,
            node: NodeClient::No,
            backend: id,
            generation: 7,
            service: 100 + id,
            counted: false,
            opened: NOW - age,
            seen: NOW - age,
        };
        let reply = FlowRow {
            addr: service,
            port: 80,
            ..forward
        };
        [
            (tuple.forward(), forward),
            (reply_of(tuple, &forward), reply),
        ]
    }

    /// An ICMP error about a packet, back to who sent it.
    pub fn error(&self, about: &Spec, kind: u8, code: u8, mtu: u16) -> Vec<u8> {
        let config = &self.world.config;
        let router: IpAddr = if self.v6 {
            IpAddr::from(config.router_ip6.octets())
        } else {
            IpAddr::from(config.router_ip4.octets())
        };
        self.error_from(router, about, kind, code, mtu)
    }

    /// The same from any address.
    pub fn error_from(
        &self,
        router: IpAddr,
        about: &Spec,
        kind: u8,
        code: u8,
        mtu: u16,
    ) -> Vec<u8> {
        let sent = about.build();
        let upper = Upper::Icmp(kind);
        let mut answer = Spec::new(upper, router, 0, about.src, 0);
        (answer.src_mac, answer.dst_mac) = (about.dst_mac, about.src_mac);
        answer.payload = sent
            .iter()
            .skip(14)
            .take(if self.v6 { 48 } else { 28 })
            .copied()
            .collect();
        let mut frame = answer.build();
        // The builder writes an echo header; the rest of an error's is code and MTU.
        let at = frame.len() - answer.payload.len() - 8;
        let message = &mut frame[at..];
        message[..8].copy_from_slice(&[kind, code, 0, 0, 0, 0, 0, 0]);
        message[6..8].copy_from_slice(&mtu.to_be_bytes());
        let sum = if self.v6 {
            upper_checksum(router, about.src, proto::ICMPV6, message)
        } else {
            internet_checksum(&[message])
        };
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    /// The reset that answers the SYN `to`.
    pub fn reset(&self, to: &Spec) -> Vec<u8> {
        let upper = Upper::Tcp(tcp_flag::RST | tcp_flag::ACK);
        let mut answer = Spec::new(upper, to.dst, to.dport, to.src, to.sport);
        (answer.src_mac, answer.dst_mac) = (to.dst_mac, to.src_mac);
        (answer.payload, answer.id) = (Vec::new(), 0);
        let mut frame = answer.build();
        let at = frame.len() - 20;
        let tcp = &mut frame[at..];
        // Nothing of its own to say; what the SYN and its data took is acknowledged.
        let next = 1 + 1 + to.payload.len() as u32;
        tcp[4..8].fill(0);
        tcp[8..12].copy_from_slice(&next.to_be_bytes());
        tcp[14..20].fill(0);
        let sum = upper_checksum(to.dst, to.src, proto::TCP, tcp);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        frame
    }
}
