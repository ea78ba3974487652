//! One function for each hook: the order in which a packet is asked.

use datapath_common::{
    Address, Config, Feature, FrontendKey, Network, Reason, Scope, Via, ViaKind, proto,
};

use crate::{
    Decision, ETH_LEN, Family, Fragment, Headers, Packet, Rewrite, Tables,
    flow::{self, Asker},
    flow_hash,
    icmp::IcmpError,
    masquerade::{leaves, masquerade},
    reduce,
    reply::to_client,
    room::{Extent, Room},
    service::{self, Client},
    straight::{comes_straight, opens_straight},
};

/// Decides about a packet that comes from a pod of this node.
#[inline(always)]
pub fn pod_from<'t, F: Family, P: Packet, T: Tables<F::Addr>>(
    packet: &P,
    tables: &'t T,
    headers: &mut Headers<F::Addr>,
) -> Decision<'t, F::Addr> {
    let has_ports = matches!(headers.proto, proto::TCP | proto::UDP | proto::SCTP)
        && flow::recall_ports(tables, headers);
    if has_ports && let Some(front) = tables.frontend(&front_key(headers)) {
        return service::decide::<F, P, T>(packet, tables, headers, front, Client::Pod);
    }
    let config = tables.config();
    let own_net = F::is_own_pod(config, headers.dst);
    if own_net {
        if let Some(via) = tables.pod(&headers.dst) {
            if headers.ttl <= 1 {
                return expired(headers);
            }
            return to_pod::<F, T>(tables, headers, via, Reason::DeliveredLocal, false);
        }
    } else if let Some(via) = tables.peer(&headers.dst)
        && (config.bridge == 0 || !is_bridged_pod::<F, T>(tables, headers.src))
    {
        return to_peer::<F, P, T>(packet, tables, headers, via);
    }
    // An answer to a client outside or on the node, or of a pod to itself: by
    // whichever address of the service, the node's own too.
    let clients =
        serves_uplink(config) && (!own_net || config.bridge != 0 || headers.dst == F::vtep(config));
    let itself = headers.ttl > 1;
    let wanted = if clients && itself {
        None
    } else {
        Some(itself)
    };
    if has_ports
        && (clients || itself)
        && let Some((rewrite, asker)) = flow::reply_of(tables, headers, wanted)
        && rewrite.any
    {
        if !asker.hairpin {
            let from = Client::Pod;
            return to_client::<F, P, T>(packet, tables, headers, rewrite, from, asker);
        }
        if let Some(via) = tables.pod(&headers.src) {
            return Decision::deliver(via, Reason::ReplyTranslated, headers).translated(rewrite);
        }
        if is_behind_bridge::<F>(config, headers.src) {
            return Decision::bridge(Reason::ReplyTranslated, headers).translated(rewrite);
        }
    }
    off_path::<F, T>(tables, headers)
}

/// Whether the kernel reaches a pod of this node that has no row by the bridge.
#[inline(always)]
pub(crate) fn is_behind_bridge<F: Family>(config: &Config, addr: F::Addr) -> bool {
    config.bridge != 0 && F::is_own_pod(config, addr) && addr != F::vtep(config)
}

/// Whether a pod that sends is behind the bridge. What comes to it from other nodes the
/// kernel delivers, so the kernel forwards what it sends there too, and its connection
/// tracking sees both halves.
#[inline(never)]
pub(crate) fn is_bridged_pod<F: Family, T: Tables<F::Addr>>(tables: &T, src: F::Addr) -> bool {
    F::is_own_pod(tables.config(), src) && tables.pod(&src).is_none()
}

/// Whether services are served on the uplink too.
#[inline(always)]
fn serves_uplink(config: &Config) -> bool {
    config.features & Feature::UPLINK_SERVICES != 0
}

/// Decides about an ICMP error that was translated already, at a hook of `from`;
/// `node` is the [`datapath_common::NodeClient`] that it is for.
#[inline(always)]
pub fn error_on_its_way<'t, F: Family, P: Packet, T: Tables<F::Addr>>(
    packet: &P,
    tables: &'t T,
    headers: &Headers<F::Addr>,
    from: Client,
    node: u8,
) -> Decision<'t, F::Addr> {
    let asker = Asker {
        hairpin: false,
        node,
        left: false,
    };
    to_client::<F, P, T>(packet, tables, headers, Rewrite::none(headers), from, asker)
        .counted(Reason::ErrorTranslated)
}

/// How a packet came in that meets [`nic_in`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// By the uplink, as it is.
    Wire,
    /// Out of the overlay at the uplink, addressed to the VTEP device.
    Overlay,
    /// By the VTEP device: the kernel took it out of the overlay.
    Vtep,
}

/// Decides about a packet that comes in by `entry` and is for no pod.
#[inline(always)]
pub fn nic_in<'t, F: Family, P: Packet, T: Tables<F::Addr>>(
    packet: &P,
    tables: &'t T,
    headers: &mut Headers<F::Addr>,
    entry: Entry,
) -> Decision<'t, F::Addr> {
    let config = tables.config();
    let known = flow::recall_ports(tables, headers);
    if entry == Entry::Wire
        && is_own_source::<F>(config, headers.src)
        && is_ours(tables, headers, known)
    {
        return Decision::drop(Reason::MartianSource, headers);
    }
    if known
        && (headers.dst == F::node(config) || headers.dst == F::vtep(config))
        && let Some((rewrite, asker)) = flow::reply_of(tables, headers, Some(false))
    {
        let from = Client::Outside;
        return to_client::<F, P, T>(packet, tables, headers, rewrite, from, asker);
    }
    match entry {
        Entry::Wire => serve::<F, P, T>(packet, tables, headers, known, Client::Outside),
        Entry::Overlay => Decision::to_vtep(headers),
        Entry::Vtep => Decision::kernel(Reason::NotOurs, headers),
    }
}

/// Whether a source is none that the link can have: this node's own, one of its pods, or
/// nobody's. What is turned back to the uplink has the frontend's address.
#[inline(always)]
pub fn is_own_source<F: Family>(config: &Config, src: F::Addr) -> bool {
    src == F::node(config) || F::is_own_pod(config, src) || F::is_martian(src)
}

/// Whether the datapath would serve, translate or refuse the packet. A function of its own:
/// few packets ask, and it needs much of the stack.
#[inline(never)]
fn is_ours<A: Address, T: Tables<A>>(tables: &T, headers: &Headers<A>, known_ports: bool) -> bool {
    has_address(tables, headers) || (known_ports && flow::is_translated(tables, headers))
}

/// The process of this node that sends a packet and may be served. `at_loopback`: the
/// packet is at the loopback device; `forwarded`: it came in by another.
#[inline(always)]
pub fn sender<F: Family, P: Packet>(
    packet: &P,
    config: &Config,
    at_loopback: bool,
    forwarded: bool,
) -> Option<Client> {
    if !serves_uplink(config) || (forwarded && !at_loopback) {
        return None;
    }
    let (src, dst) = F::addresses(packet, ETH_LEN)?;
    // An address of a bridge of pods is no node's to those who answer.
    if F::is_own_pod(config, src) && src != F::vtep(config) {
        return None;
    }
    if !at_loopback {
        return Some(Client::Node);
    }
    // 127.0.0.1 has no node ports, and who sends from there can be answered by
    // nobody else.
    (!F::is_martian(src) && !F::is_martian(dst)).then_some(Client::Loopback)
}

/// Decides about a packet that leaves by the uplink or the loopback device.
/// `sender` as [`sender`] says.
#[inline(always)]
pub fn nic_out<'t, F: Family, P: Packet, T: Tables<F::Addr>>(
    packet: &P,
    tables: &'t T,
    headers: &mut Headers<F::Addr>,
    sender: Option<Client>,
) -> Decision<'t, F::Addr> {
    let config = tables.config();
    if headers.proto == proto::UDP
        && headers.dport == config.vxlan_port
        && headers.src == F::node(config)
    {
        return Decision::kernel(Reason::NotOurs, headers);
    }
    let known = flow::recall_ports(tables, headers);
    if known && let Some((rewrite, asker)) = flow::reply_of(tables, headers, None) {
        return if !rewrite.any {
            // Who came straight to the pod is answered by it.
            Decision::kernel(Reason::NotOurs, headers)
        } else if asker.hairpin {
            Decision::turn_back(Reason::ReplyTranslated, headers)
        } else {
            Decision::kernel(Reason::ReplyTranslated, headers)
        }
        .translated(rewrite);
    }
    if let Some(client) = sender {
        return serve::<F, P, T>(packet, tables, headers, known, client);
    }
    let masquerades = config.features & Feature::MASQUERADE != 0;
    let network = if masquerades || has_service_networks(config) {
        tables.network(&headers.dst)
    } else {
        0
    };
    if has_service_networks(config)
        && network & Network::SERVICES != 0
        && !has_address(tables, headers)
    {
        return Decision::drop(Reason::FreeServiceAddress, headers);
    }
    if masquerades
        && known
        && headers.has_flow()
        && headers.src != F::vtep(config)
        && leaves::<F, T>(tables, headers.src, headers.dst, network)
    {
        return masquerade::<F, T>(tables, headers);
    }
    Decision::kernel(Reason::NotOurs, headers)
}

/// A packet for a frontend or a service address, or the kernel's.
#[inline(always)]
fn serve<'t, F: Family, P: Packet, T: Tables<F::Addr>>(
    packet: &P,
    tables: &'t T,
    headers: &Headers<F::Addr>,
    known_ports: bool,
    client: Client,
) -> Decision<'t, F::Addr> {
    if known_ports
        && matches!(headers.proto, proto::TCP | proto::UDP | proto::SCTP)
        && let Some(front) = tables.frontend(&front_key(headers))
    {
        return service::decide::<F, P, T>(packet, tables, headers, front, client);
    }
    // Other ports of an address of the node's own are other processes'.
    if client == Client::Loopback {
        return Decision::kernel(Reason::NotOurs, headers);
    }
    off_path::<F, T>(tables, headers)
}

/// Key of the frontend that a packet is for.
#[inline(always)]
pub(crate) fn front_key<A: Address>(headers: &Headers<A>) -> FrontendKey<A> {
    FrontendKey {
        addr: headers.dst,
        port: headers.dport,
        proto: headers.proto,
        scope: Scope::Any as u8,
    }
}

/// A packet that the kernel delivers to a pod: translated if it is a reply.
#[inline(always)]
pub fn pod_to<F: Family, T: Tables<F::Addr>>(
    tables: &T,
    headers: &mut Headers<F::Addr>,
) -> Option<Rewrite<F::Addr>> {
    if !flow::recall_ports(tables, headers) {
        return None;
    }
    let reply = flow::reply(tables, headers);
    if reply.is_none() {
        opens_straight(tables, headers);
    }
    reply
}

/// A packet for the pod behind `via`: translated if it is a reply, then
/// delivered. `reason` counts it if it is none. `straight`: it comes from outside,
/// and not through the overlay; what the pod sends there the kernel forwards, so it
/// forwards this too, and its connection tracking sees both halves.
#[inline(always)]
pub fn to_pod<'t, F: Family, T: Tables<F::Addr>>(
    tables: &T,
    headers: &mut Headers<F::Addr>,
    via: &'t Via,
    reason: Reason,
    straight: bool,
) -> Decision<'t, F::Addr> {
    // What is to expire here is the kernel's to answer: not every hook can.
    if via.kind != ViaKind::Local as u8 || headers.ttl <= 1 {
        return Decision::kernel(Reason::SlowPath, headers);
    }
    let known_ports = flow::recall_ports(tables, headers);
    if straight {
        if is_own_source::<F>(tables.config(), headers.src) {
            return if is_ours(tables, headers, known_ports) {
                Decision::drop(Reason::MartianSource, headers)
            } else {
                Decision::kernel(Reason::SlowPath, headers)
            };
        }
        if known_ports && tables.config().features & Feature::MASQUERADE != 0 {
            comes_straight::<F, T>(tables, headers);
        }
        return Decision::kernel(Reason::SlowPath, headers);
    }
    if known_ports && let Some(rewrite) = flow::reply(tables, headers) {
        return Decision::deliver(via, Reason::ReplyTranslated, headers).translated(rewrite);
    }
    opens_straight(tables, headers);
    Decision::deliver(via, reason, headers)
}

/// Notes a packet from outside, and not through the overlay, if it goes straight to a pod
/// behind the bridge, which the kernel delivers.
#[inline(always)]
pub fn to_bridge<F: Family, T: Tables<F::Addr>>(tables: &T, headers: &mut Headers<F::Addr>) {
    let config = tables.config();
    if config.features & Feature::MASQUERADE != 0
        && is_behind_bridge::<F>(config, headers.dst)
        && !is_own_source::<F>(config, headers.src)
        && flow::recall_ports(tables, headers)
    {
        comes_straight::<F, T>(tables, headers);
    }
}

/// TTL or hop limit used up on the way to a pod.
#[inline(always)]
pub(crate) const fn expired<'t, A: Copy>(h: &Headers<A>) -> Decision<'t, A> {
    Decision::refuse(IcmpError::TimeExceeded, Reason::TtlExceeded, h)
}

/// A packet for a pod of another node, for no service.
#[inline(always)]
fn to_peer<'t, F: Family, P: Packet, T: Tables<F::Addr>>(
    packet: &P,
    tables: &'t T,
    h: &Headers<F::Addr>,
    via: &'t Via,
) -> Decision<'t, F::Addr> {
    if via.kind != ViaKind::Vxlan as u8 {
        return Decision::kernel(Reason::SlowPath, h);
    }
    if h.ttl <= 1 {
        return expired(h);
    }
    match Room::of(Extent::of(packet), tables.config(), h) {
        Room::Enough => {
            opens_straight(tables, h);
            let hash = flow_hash(h.src, h.dst, h.sport, h.dport, h.proto);
            Decision::encapsulate(via, outer_port(hash), h)
        }
        Room::Divided => Decision::kernel(Reason::SlowPath, h),
        Room::No => Decision::refuse(IcmpError::TooBig, Reason::TooBig, h),
    }
}

/// Neither service nor pod: a service address refuses, a free one is nowhere
/// (KP-29), all else is the kernel's.
#[inline(always)]
fn off_path<'t, F: Family, T: Tables<F::Addr>>(
    tables: &'t T,
    headers: &Headers<F::Addr>,
) -> Decision<'t, F::Addr> {
    if has_address(tables, headers) {
        return no_such_port(headers);
    }
    if has_service_networks(tables.config())
        && tables.network(&headers.dst) & Network::SERVICES != 0
    {
        return Decision::drop(Reason::FreeServiceAddress, headers);
    }
    Decision::kernel(Reason::NotOurs, headers)
}

/// Whether some networks have only addresses of services.
#[inline(always)]
fn has_service_networks(config: &Config) -> bool {
    config.features & Feature::SERVICE_NETWORKS != 0
}

/// Whether the packet is for a service address.
#[inline(always)]
fn has_address<A: Address, T: Tables<A>>(tables: &T, headers: &Headers<A>) -> bool {
    tables
        .frontend(&FrontendKey::address(headers.dst))
        .is_some()
}

/// A packet for a service address on which nothing is served (KP-28).
#[inline(always)]
fn no_such_port<'t, A: Copy>(headers: &Headers<A>) -> Decision<'t, A> {
    if headers.ttl <= 1 {
        return expired(headers);
    }
    if headers.fragment == Fragment::Later {
        return Decision::drop(Reason::FragmentWithoutFirst, headers);
    }
    Decision::refuse(IcmpError::PortUnreachable, Reason::NoSuchPort, headers)
}

/// Outer UDP source ports (RFC 7348 §4.1): Linux' default ephemeral range.
const OUTER_PORT_FIRST: u16 = 32_768;
const OUTER_PORTS: u32 = 28_232;

/// The outer source port of a flow.
#[inline(always)]
pub(crate) fn outer_port(hash: u32) -> u16 {
    OUTER_PORT_FIRST + reduce(hash, OUTER_PORTS) as u16
}
