//! A Service, or a Pod's host ports → the frontends that this node should have
//! of it: where it is reached, by whom, and where its clients go (pure).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use datapath_common::FrontendFlags;
use ipnet::IpNet;

use super::backends::BackendKey;
use super::desired::{PortKey, Wanted};
use super::kind::Kind;
use super::ops::FrontKey;
use super::table;
use crate::model::{
    EndpointSets, Exposure, Family, Forwarding, Model, NamespacedName, Pod, Policy, Scheduler,
    Service, ServicePort, Weights, select,
};

/// What of this node decides frontends.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Here {
    /// Name, as endpoints and hints write it (KP-20).
    pub node: String,
    /// Zone, if the Node says one (KP-84).
    pub zone: Option<String>,
    /// The node's addresses that serve NodePorts (KP-33).
    pub node_port_addresses: Vec<IpAddr>,
    /// The node's addresses, for those source ranges that hold one (KP-47).
    pub node_ips: Vec<IpAddr>,
    /// Whether pods are masqueraded towards ClusterIPs too (KP-106).
    pub masquerade_all: bool,
    /// How new flows are given a backend where the Service does not say it.
    pub scheduler: Scheduler,
    /// Slots of Maglev tables, a prime.
    pub maglev_slots: u16,
    /// How clients outside reach backends on other nodes where the Service does not say it.
    pub forwarding: Forwarding,
}

/// The frontends of one Service on this node, or of the Pod of which `name` is the
/// [`Pod::owner`]. None for a Service that is not served; in each family only
/// beside a ClusterIP (KP-05).
pub fn compile(model: &Model, name: &NamespacedName, here: &Here) -> Vec<Wanted> {
    if let Some(pod) = model.pod(name) {
        return host_ports(pod, here);
    }
    let mut wanted = Vec::new();
    let served = model.service(name);
    let Some(service) = served.filter(|s| s.exposure == Exposure::Served) else {
        return wanted;
    };
    for cluster_ip in &service.cluster_ips {
        let family = Family::of(*cluster_ip);
        for port in &service.ports {
            let zone = here.zone.as_deref();
            let mut sets = select(model.slices_of(name), family, port, &here.node, zone);
            drain(&mut sets, &service.choice.weights);
            let lists = Lists::of(&sets, service, port.protocol.number(), here);
            let key = PortKey {
                service: name.clone(),
                port: port.name.clone(),
                protocol: port.protocol,
                family,
            };
            for (addr, number, kind) in fronts(service, port, *cluster_ip, here) {
                let front = FrontKey {
                    addr,
                    port: number,
                    proto: port.protocol.number(),
                };
                wanted.push(frontend(service, front, key.clone(), kind, &lists, here));
            }
        }
    }
    wanted
}

/// What this node answers on for a Pod of its own: on all addresses that are
/// known to be the node's, unless one is named. Nobody is masqueraded, for the
/// answer comes back here.
fn host_ports(pod: &Pod, here: &Here) -> Vec<Wanted> {
    let mut wanted: Vec<Wanted> = Vec::new();
    if pod.node.as_deref() != Some(here.node.as_str()) {
        return wanted;
    }
    for (host_port, ip) in pod
        .host_ports
        .iter()
        .flat_map(|host_port| pod.ips.iter().map(move |ip| (host_port, ip)))
    {
        let all = here.node_ips.iter().chain(&here.node_port_addresses);
        let addrs: Vec<IpAddr> = match host_port.addr {
            Some(addr) => vec![addr],
            None => all.copied().collect(),
        };
        let proto = host_port.protocol.number();
        for addr in of_family(&addrs, Family::of(*ip)) {
            let front = FrontKey {
                addr,
                port: host_port.port,
                proto,
            };
            if wanted.iter().any(|held| held.front == front) {
                continue;
            }
            let at = SocketAddr::new(*ip, host_port.container_port);
            let backends = backends(&[at], proto);
            wanted.push(Wanted {
                front,
                port: PortKey {
                    service: pod.owner(),
                    port: host_port.port.to_string(),
                    protocol: host_port.protocol,
                    family: Family::of(*ip),
                },
                outside: backends.clone(),
                inside: backends,
                flags: 0,
                affinity_secs: 0,
                sources: Vec::new(),
                marks_address: false,
                lacks_local: false,
                kind: Kind::HostPort,
                table: Arc::default(),
                out_table: Arc::default(),
            });
        }
    }
    wanted
}

/// Where a service port is reached in the family of `cluster_ip`: each address
/// and port once, as the first kind that has it.
fn fronts(
    service: &Service,
    port: &ServicePort,
    cluster_ip: IpAddr,
    here: &Here,
) -> Vec<(IpAddr, u16, Kind)> {
    let family = Family::of(cluster_ip);
    let mut fronts = vec![(cluster_ip, port.port, Kind::ClusterIp)];
    let mut add = |addrs: &[IpAddr], number: u16, kind: Kind| {
        for addr in of_family(addrs, family) {
            if !fronts.iter().any(|(a, n, _)| (*a, *n) == (addr, number)) {
                fronts.push((addr, number, kind));
            }
        }
    };
    add(&service.vips, port.port, Kind::Vip);
    add(&service.external_ips, port.port, Kind::ExternalIp);
    if let Some(node_port) = port.node_port {
        add(&here.node_port_addresses, node_port, Kind::NodePort);
    }
    fronts
}

/// What a frontend does. All clients of a ClusterIP have what the internal
/// policy allows (KP-67, KP-69). Elsewhere the external policy is for clients
/// outside only: those inside may go to any node (KP-71, KP-72).
fn frontend(
    service: &Service,
    front: FrontKey,
    port: PortKey,
    kind: Kind,
    lists: &Lists,
    here: &Here,
) -> Wanted {
    let list = |policy: Policy| match policy {
        Policy::Cluster => lists.cluster.clone(),
        Policy::Local => lists.local.clone(),
    };
    let ((inside, table), (outside, out_table)) = if kind == Kind::ClusterIp {
        let list = list(service.internal_policy);
        (list.clone(), list)
    } else {
        (list(Policy::Cluster), list(service.external_policy))
    };
    let sources = if kind == Kind::Vip {
        sources(service, port.family, here)
    } else {
        Vec::new()
    };
    let policy = match kind {
        Kind::ClusterIp => service.internal_policy,
        _ => service.external_policy,
    };
    let lacks_local = lists.any && policy == Policy::Local && outside.is_empty();
    let mut flags = masquerade(kind, service.external_policy, here);
    for (list, drop) in [
        (&inside, FrontendFlags::DROP_INSIDE),
        (&outside, FrontendFlags::DROP_OUTSIDE),
    ] {
        if lists.any && list.is_empty() {
            flags |= drop;
        }
    }
    if !sources.is_empty() {
        flags |= FrontendFlags::SOURCE_RANGES;
    }
    flags |= choosing(scheduler(service, here), service, kind);
    flags |= returning(service, kind, here);
    Wanted {
        front,
        port,
        inside,
        outside,
        flags,
        affinity_secs: service.affinity_secs.unwrap_or(0),
        sources,
        marks_address: kind == Kind::ClusterIp,
        lacks_local,
        kind,
        table,
        out_table,
    }
}

/// Flags of a scheduler. The lists of a frontend are those of [`frontend`].
const fn choosing(scheduler: Scheduler, service: &Service, kind: Kind) -> u16 {
    match scheduler {
        Scheduler::Random | Scheduler::Maglev => 0,
        Scheduler::SourceHash | Scheduler::MaglevSource => FrontendFlags::SOURCE_HASH,
        Scheduler::LeastConnection => FrontendFlags::LEAST_FLOWS,
        Scheduler::RoundRobin => {
            let inside = FrontendFlags::LOCAL_INSIDE;
            let outside = FrontendFlags::LOCAL_OUTSIDE;
            let local = match (kind, service.internal_policy, service.external_policy) {
                (Kind::ClusterIp, Policy::Local, _) => inside | outside,
                (Kind::ClusterIp, Policy::Cluster, _) | (_, _, Policy::Cluster) => 0,
                (_, _, Policy::Local) => outside,
            };
            FrontendFlags::ROUND_ROBIN | local
        }
    }
}

/// Flags of how clients outside are answered. With `externalTrafficPolicy: Local` no backend is on
/// another node, and a ClusterIP is no address to answer from outside of the cluster's nodes.
fn returning(service: &Service, kind: Kind, here: &Here) -> u16 {
    let forwarding = service.forwarding.unwrap_or(here.forwarding);
    match (kind, service.external_policy, forwarding) {
        (Kind::ClusterIp, ..) | (_, Policy::Local, _) | (.., Forwarding::Snat) => 0,
        (_, Policy::Cluster, Forwarding::Dsr) => FrontendFlags::DIRECT_RETURN,
    }
}

fn scheduler(service: &Service, here: &Here) -> Scheduler {
    service.choice.scheduler.unwrap_or(here.scheduler)
}

/// Backends, and the table of positions among them by which new flows are given one.
type List = (Vec<BackendKey>, Arc<[u16]>);

/// The lists of a service port, made once for all of its frontends.
struct Lists {
    cluster: List,
    local: List,
    /// As in [`EndpointSets`].
    any: bool,
}

impl Lists {
    fn of(sets: &EndpointSets, service: &Service, proto: u8, here: &Here) -> Self {
        let list = |of: &[SocketAddr]| {
            let backends = backends(of, proto);
            let weight = |backend: &BackendKey| service.choice.weights.of(backend.addr);
            let weights: Vec<u16> = backends.iter().map(weight).collect();
            let table = match scheduler(service, here) {
                Scheduler::Maglev | Scheduler::MaglevSource => {
                    table::maglev(&backends, &weights, here.maglev_slots)
                }
                Scheduler::RoundRobin => table::in_turn(&weights),
                Scheduler::Random | Scheduler::SourceHash | Scheduler::LeastConnection => {
                    table::weighted(&weights)
                }
            };
            (backends, table.into())
        };
        let local = [service.internal_policy, service.external_policy].contains(&Policy::Local);
        Self {
            cluster: list(&sets.cluster),
            // Nobody else asks for it.
            local: if local {
                list(&sets.local)
            } else {
                List::default()
            },
            any: sets.any,
        }
    }
}

/// What weighs nothing gets no new flows, as if it were not there.
fn drain(sets: &mut EndpointSets, weights: &Weights) {
    let total = sets.cluster.len() + sets.local.len();
    for list in [&mut sets.cluster, &mut sets.local] {
        list.retain(|at| weights.of(at.ip()) > 0);
    }
    // Nobody is left: refused as with no endpoint, not dropped for want of a local one.
    let left = sets.cluster.len() + sets.local.len();
    sets.any &= left > 0 || total == 0;
}

fn backends(of: &[SocketAddr], proto: u8) -> Vec<BackendKey> {
    let backend = |at: &SocketAddr| BackendKey {
        addr: at.ip(),
        port: at.port(),
        proto,
    };
    of.iter().map(backend).collect()
}

/// The matrix of KP-106, without the node's own traffic, which the programs
/// themselves masquerade where it needs it.
fn masquerade(kind: Kind, external_policy: Policy, here: &Here) -> u16 {
    let pods = FrontendFlags::MASQUERADE_PODS;
    let outside = FrontendFlags::MASQUERADE_OUTSIDE;
    match (kind, external_policy) {
        (Kind::ClusterIp, _) if here.masquerade_all => pods | outside,
        (Kind::ClusterIp, _) => outside,
        (_, Policy::Cluster) => pods | outside,
        (_, Policy::Local) => 0,
    }
}

/// Who may open flows to the Service's load balancer addresses; none if all
/// may (KP-48). Where a range holds this node, its processes may come from such
/// an address, if it is configured on the node (KP-47).
fn sources(service: &Service, family: Family, here: &Here) -> Vec<IpNet> {
    let ours = |net: &&IpNet| Family::of(net.addr()) == family;
    let mut sources: Vec<IpNet> = service.source_ranges.iter().filter(ours).copied().collect();
    if sources
        .iter()
        .any(|net| here.node_ips.iter().any(|ip| net.contains(ip)))
    {
        sources.extend(of_family(&service.vips, family).map(IpNet::from));
    }
    sources.sort_unstable();
    sources.dedup();
    sources
}

fn of_family(addrs: &[IpAddr], family: Family) -> impl Iterator<Item = IpAddr> {
    let ours = move |addr: &&IpAddr| Family::of(**addr) == family;
    addrs.iter().filter(ours).copied()
}
