//! From a frontend to a backend: flow table, then affinity, then segment.

use datapath_common::{
    Address, AffinityKey, Backend, BackendState, Config, Direction, Feature, Frontend,
    FrontendFlags, NodeClient, Reason, TICK_SHIFT, Via, ViaKind, proto,
};

use crate::{
    Decision, Family, Headers, Packet, Rewrite, Signal, Tables, flow, flow_hash,
    hooks::{expired, is_bridged_pod, outer_port},
    icmp::IcmpError,
    open::{Manner, Source, open, open_directly, port_of},
    pick::Rules,
    reduce,
    room::Way,
    source_hash,
    tables::FlowRow,
};

/// Who sends to a frontend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Client {
    /// A pod of this node.
    Pod,
    /// A process of this node that sends by the uplink.
    Node,
    /// One that uses an address of the node's own, over the loopback device.
    Loopback,
    /// Anybody else.
    Outside,
}

impl Client {
    /// Whether it is a process of this node.
    #[inline(always)]
    pub(crate) const fn is_node(self) -> bool {
        matches!(self, Self::Node | Self::Loopback)
    }

    /// What the rows of its flows say.
    #[inline(always)]
    pub(crate) const fn node(self) -> NodeClient {
        match self {
            Self::Pod | Self::Outside => NodeClient::No,
            Self::Node => NodeClient::Uplink,
            Self::Loopback => NodeClient::Loopback,
        }
    }
}

/// What a frontend says to one kind of client.
#[derive(Clone, Copy)]
struct Offer {
    /// Whether it is for clients outside.
    outside: bool,
    /// First slot of the segment.
    start: u32,
    /// Slots in it.
    len: u32,
    /// Slots in the table behind it.
    table: u16,
    /// Why there is no backend if there are no slots.
    empty: Reason,
    /// Whether flows are masqueraded, unless the backend is on this node itself.
    masquerade: bool,
}

impl Offer {
    #[inline(always)]
    fn of(front: &Frontend, client: Client, config: &Config) -> Self {
        let whole = config.features & Feature::UPLINK_SERVICES != 0;
        let outside = client == Client::Outside;
        let (drop, masquerade) = match client {
            Client::Pod => (
                FrontendFlags::DROP_INSIDE,
                front.flags & FrontendFlags::MASQUERADE_PODS != 0,
            ),
            Client::Node | Client::Loopback => (FrontendFlags::DROP_INSIDE, true),
            Client::Outside => (
                FrontendFlags::DROP_OUTSIDE,
                front.flags & FrontendFlags::MASQUERADE_OUTSIDE != 0,
            ),
        };
        Self {
            outside,
            start: if outside {
                front.out_start
            } else {
                front.start
            },
            len: if outside { front.out_len } else { front.len },
            table: if outside {
                front.out_table
            } else {
                front.table
            },
            empty: if front.flags & drop == 0 {
                Reason::NoEndpoints
            } else {
                Reason::NoLocalEndpoints
            },
            masquerade: whole && masquerade,
        }
    }

    /// The slot that a new flow is given; there are some.
    #[inline(always)]
    fn slot(&self, hash: u32) -> u32 {
        let (first, slots) = if self.table == 0 {
            (self.start, self.len)
        } else {
            (self.start.wrapping_add(self.len), self.table as u32)
        };
        first.wrapping_add(reduce(hash, slots))
    }
}

/// Whether the node there takes packets as they came, and answers their clients itself.
#[inline(always)]
const fn is_direct(via: &Via) -> bool {
    via.flags & Via::DIRECT != 0 && via.kind == ViaKind::Vxlan as u8
}

/// Whether the backend is to see the client of a new flow as it is: direct server return. Not who is a
/// pod of another node, to whom the backend's node would send its answers as they are.
#[inline(always)]
fn shows<F: Family, T: Tables<F::Addr>>(
    tables: &T,
    h: &Headers<F::Addr>,
    front: &Frontend,
    via: &Via,
    client: Client,
) -> bool {
    client == Client::Outside
        && front.flags & FrontendFlags::DIRECT_RETURN != 0
        && (via.kind == ViaKind::Local as u8 || is_direct(via))
        && tables.peer(&h.src).is_none()
}

/// Decides about a packet for the frontend `front`. `headers` has its ports.
#[inline(always)]
pub(crate) fn decide<'t, F: Family, P: Packet, T: Tables<F::Addr>>(
    packet: &P,
    tables: &'t T,
    headers: &Headers<F::Addr>,
    front: &Frontend,
    client: Client,
) -> Decision<'t, F::Addr> {
    let h = headers;
    if F::is_martian(h.src) {
        return Decision::drop(Reason::MartianSource, h);
    }
    if h.ttl <= 1 {
        return expired(h);
    }
    let hash = flow_hash(h.src, h.dst, h.sport, h.dport, h.proto);
    let offer = Offer::of(front, client, tables.config());
    let chosen = choose::<F, T>(tables, h, front, &offer, hash);
    let Some(backend) = chosen.backend else {
        return if chosen.missing == Reason::NoEndpoints {
            Decision::refuse(IcmpError::PortUnreachable, Reason::NoEndpoints, h)
        } else {
            Decision::drop(chosen.missing, h)
        };
    };
    let via: &Via = &backend.via;
    let way = Way::to::<F, P, T>(packet, tables, h, backend, client);
    let shown = !chosen.pinned && shows::<F, T>(tables, h, front, via, client);
    // A flow stays as it was opened.
    if client == Client::Outside
        && is_direct(via)
        && chosen.nat_port == 0
        && (shown || chosen.pinned)
    {
        return forward::<F, T>(tables, h, front, &chosen, backend, way, hash);
    }
    if way.is_too_narrow() {
        return Decision::refuse(IcmpError::TooBig, Reason::TooBig, h);
    }
    let (mut nat, mut nat_port) = (chosen.nat, chosen.nat_port);
    if !chosen.pinned {
        // What a pod of this node answers comes by here, whoever asked.
        let source = if offer.masquerade && !shown && !way.is_bridged() {
            Source::masqueraded::<F>(tables.config(), client, via, h)
        } else {
            Source::Own
        };
        if chosen.opens {
            let manner = Manner::to(chosen.id)
                .hairpin(way.is_hairpin() && source == Source::Own)
                .client(client)
                .source(source);
            match open::<F, T>(tables, h, front, manner, hash) {
                Ok(port) => nat_port = port,
                Err(reason) => return Decision::drop(reason, h),
            }
            nat = if source == Source::Own {
                h.src
            } else {
                source.address::<F>(tables.config())
            };
        } else if source != Source::Own {
            return Decision::drop(Reason::UnknownFlow, h);
        }
    }
    tables.count(front.service, chosen.id, Direction::Forward);
    flow::remember_ports(tables, h);
    // It may keep its address, and get another port all the same.
    let masqueraded = nat_port != 0 && !flow::is_same(nat, h.src);
    let (src, sport) = if nat_port != 0 {
        (nat, nat_port)
    } else {
        (if way.is_hairpin() { h.dst } else { h.src }, h.sport)
    };
    let rewrite = Rewrite {
        any: true,
        src,
        sport,
        dst: backend.addr,
        dport: backend.port,
    };
    let vxlan = via.kind == ViaKind::Vxlan as u8;
    let answered_by_kernel = client == Client::Pod
        && tables.config().bridge != 0
        && !masqueraded
        && vxlan
        && is_bridged_pod::<F, T>(tables, h.src);
    if way.divides() && (client.is_node() || (masqueraded && !way.is_bridged())) {
        // Nowhere else does the kernel take a source of its own.
        Decision::to_loopback(Reason::TranslatedToKernel, h)
    } else if way.divides() {
        Decision::kernel(Reason::TranslatedToKernel, h)
    } else if via.kind == ViaKind::Local as u8 {
        Decision::deliver(via, Reason::DeliveredLocal, h)
    } else if vxlan && !answered_by_kernel {
        Decision::encapsulate(via, outer_port(hash), h)
    } else if via.kind == ViaKind::Host as u8 && client == Client::Node {
        Decision::turn_back(Reason::TranslatedToKernel, h)
    } else if way.is_bridged() {
        Decision::bridge(Reason::DeliveredLocal, h)
    } else if via.kind == ViaKind::Kernel as u8 && (masqueraded || client.is_node()) {
        Decision::route(Reason::TranslatedToKernel, h)
    } else {
        Decision::kernel(Reason::TranslatedToKernel, h)
    }
    .translated(rewrite)
}

/// A packet of a client outside for a backend whose node answers the client: it goes there as it came.
#[inline(always)]
fn forward<'t, F: Family, T: Tables<F::Addr>>(
    tables: &'t T,
    h: &Headers<F::Addr>,
    front: &Frontend,
    chosen: &Chosen<'t, F::Addr>,
    backend: &'t Backend<F::Addr>,
    way: Way,
    hash: u32,
) -> Decision<'t, F::Addr> {
    // It has a hop more to go.
    if h.ttl <= 2 {
        return expired(h);
    }
    // No router divides what is not addressed to anybody on its way.
    if way.is_too_narrow() || way.divides() {
        return Decision::refuse(IcmpError::TooBig, Reason::TooBig, h);
    }
    if chosen.opens
        && let Err(reason) = port_of(open_directly::<F, T>(tables, h, front, chosen.id))
    {
        return Decision::drop(reason, h);
    }
    if chosen.opens && front.flags & FrontendFlags::LEAST_FLOWS != 0 {
        tables.count_live(chosen.id, true);
    }
    tables.count(front.service, chosen.id, Direction::Forward);
    flow::remember_ports(tables, h);
    Decision::forward(backend, outer_port(hash), h)
}

/// A choice. Like a [`Decision`] it has no field that is undefined at times.
struct Chosen<'t, A> {
    /// The backend, if there is one.
    backend: Option<&'t Backend<A>>,
    /// Why there is none.
    missing: Reason,
    /// Whether the flow table named it.
    pinned: bool,
    /// The translated source that the flow table named with it.
    nat: A,
    /// Its port; 0 if the source is not translated.
    nat_port: u16,
    /// Whether the packet opens a flow.
    opens: bool,
    /// The backend's id.
    id: u32,
}

#[inline(always)]
fn choose<'t, F: Family, T: Tables<F::Addr>>(
    tables: &'t T,
    h: &Headers<F::Addr>,
    front: &Frontend,
    offer: &Offer,
    hash: u32,
) -> Chosen<'t, F::Addr> {
    const ASK: u16 = FrontendFlags::FLOWS_DECIDE
        | FrontendFlags::FLOWS_MAY_BE_LOST
        | FrontendFlags::SOURCE_RANGES;
    // Data of TCP and SCTP on an unchanged service: the segment has the answer.
    let known = h.signal == Signal::Data
        && h.proto != proto::UDP
        && front.flags & ASK == 0
        && front.affinity_secs == 0
        && !offer.masquerade
        && offer.len != 0;
    let mut chosen = Chosen {
        backend: None,
        missing: Reason::BackendGone,
        pinned: false,
        nat: F::Addr::UNSPECIFIED,
        nat_port: 0,
        opens: false,
        id: 0,
    };
    if !known {
        if let Some((id, backend, nat, nat_port)) = pinned::<F, T>(tables, h, front, offer) {
            chosen.backend = Some(backend);
            chosen.pinned = true;
            chosen.id = id;
            (chosen.nat, chosen.nat_port) = (nat, nat_port);
            return chosen;
        }
        // What ends a flow that nobody knows opens none.
        chosen.opens = h.signal != Signal::Close;
        if front.flags & FrontendFlags::SOURCE_RANGES != 0
            && !tables.source_allowed(front.service, h.src)
        {
            chosen.missing = Reason::SourceNotAllowed;
            return chosen;
        }
    }
    if offer.len == 0 {
        chosen.missing = offer.empty;
        return chosen;
    }
    if front.affinity_secs != 0
        && let Some((id, backend)) = remembered::<F, T>(tables, h, front, offer)
    {
        chosen.id = id;
        chosen.backend = Some(backend);
        return chosen;
    }
    let hash = if front.flags & FrontendFlags::SOURCE_HASH == 0 {
        hash
    } else {
        source_hash(h.src)
    };
    let by_history = front.flags & FrontendFlags::BY_HISTORY != 0;
    let slot = if by_history && (h.signal == Signal::Open || h.proto == proto::UDP) {
        Rules::new(front, offer.outside).slot(tables, hash)
    } else {
        offer.slot(hash)
    };
    let Some(id) = tables.slot(slot) else {
        return chosen;
    };
    chosen.id = id;
    chosen.backend = tables.backend(id).filter(|backend| backend.is_active());
    chosen
}

/// The backend of the client's last new flow, if new ones may still go there.
#[inline(always)]
fn remembered<'t, F: Family, T: Tables<F::Addr>>(
    tables: &'t T,
    h: &Headers<F::Addr>,
    front: &Frontend,
    offer: &Offer,
) -> Option<(u32, &'t Backend<F::Addr>)> {
    let row = tables.affinity(AffinityKey {
        client: h.src,
        service: front.service,
    })?;
    let limit = ((front.affinity_secs as u64 * 1_000_000_000) >> TICK_SHIFT) as u32;
    let age = tables.now().wrapping_sub(row.seen);
    // Written by another CPU in a tick that has not begun here.
    if age > limit && age != u32::MAX {
        return None;
    }
    let backend = tables.backend(row.backend)?;
    if backend.generation != row.generation
        || !backend.is_active()
        || !tables.holds(offer.start, offer.len, row.backend)
    {
        return None;
    }
    Some((row.backend, backend))
}

/// Steps of a binary search through the longest segment.
const SEARCH_STEPS: u32 = 18;

/// Whether a segment holds the id. Ids ascend in it.
#[inline(always)]
pub fn holds<A, T: Tables<A>>(tables: &T, start: u32, len: u32, id: u32) -> bool {
    let (mut low, mut len) = (start, len);
    for _ in 0..SEARCH_STEPS {
        if len == 0 {
            return false;
        }
        let half = len / 2;
        let middle = low.wrapping_add(half);
        match tables.slot(middle) {
            Some(found) if found == id => return true,
            Some(found) if found < id => {
                low = middle.wrapping_add(1);
                len -= half + 1;
            }
            Some(_) => len = half,
            None => return false,
        }
    }
    false
}

/// A backend's id and row, with the translated source and its port, as a flow's
/// row names them.
type Pinned<'t, A> = (u32, &'t Backend<A>, A, u16);

/// The backend that the flow table names for this packet, if it may have it,
/// and its translated source.
#[inline(always)]
fn pinned<'t, F: Family, T: Tables<F::Addr>>(
    tables: &'t T,
    h: &Headers<F::Addr>,
    front: &Frontend,
    offer: &Offer,
) -> Option<Pinned<'t, F::Addr>> {
    let lost = front.flags & FrontendFlags::FLOWS_MAY_BE_LOST != 0;
    // A datagram does not go where its own service would send none (KP-117).
    let moves = front.flags & FrontendFlags::FLOWS_DECIDE != 0 && h.proto == proto::UDP;
    let mut backend = None;
    let row = flow::continued(tables, h, lost, |flow| {
        backend = tables.backend(flow.backend).filter(|backend| {
            let opens = h.signal == Signal::Open || h.proto == proto::UDP;
            backend.generation == flow.generation
                && backend.state != BackendState::Free as u8
                && (backend.is_active() || !opens)
                && (!moves || tables.holds(offer.start, offer.len, flow.backend))
        });
        backend.is_some()
    })?;
    // Read only now: kept over the calls it would take much of the stack.
    let flow = row.get();
    Some((flow.backend, backend?, flow.nat_addr, flow.nat_port))
}
