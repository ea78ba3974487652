//! From a frontend to a backend: flow table, then segment.

use datapath_common::{
    Address, Backend, BackendState, Direction, Flow, FlowState, Frontend, FrontendFlags, Reason,
    Via, ViaKind, proto,
};

use crate::{
    Decision, Family, Grant, Headers, Packet, Rewrite, Signal, Tables,
    flow::{self, is_stale, live_state, step, touch_mate},
    flow_hash,
    hooks::{expired, fits_overlay, needs_kernel, outer_port},
    icmp::IcmpError,
    reduce,
    tables::FlowRow,
};

/// Decides about a packet for the frontend `front`. `headers` has its ports.
#[inline(always)]
pub(crate) fn decide<'t, F: Family, P: Packet, T: Tables<F::Addr>>(
    packet: &P,
    tables: &'t T,
    headers: &Headers<F::Addr>,
    front: &Frontend,
) -> Decision<'t, F::Addr> {
    let h = headers;
    if F::is_martian(h.src) {
        return Decision::drop(Reason::MartianSource, h);
    }
    if h.ttl <= 1 {
        return expired(h);
    }
    let hash = flow_hash(h.src, h.dst, h.sport, h.dport, h.proto);
    let chosen = choose::<F, T>(tables, h, front, hash);
    let Some(backend) = chosen.backend else {
        return if chosen.missing == Reason::NoEndpoints {
            Decision::refuse(IcmpError::PortUnreachable, Reason::NoEndpoints, h)
        } else {
            Decision::drop(chosen.missing, h)
        };
    };
    let via: &Via = &backend.via;
    let vxlan = via.kind == ViaKind::Vxlan as u8;
    let by_kernel = needs_kernel(packet);
    if vxlan && !by_kernel && !fits_overlay(packet, tables.config(), h) {
        return Decision::refuse(IcmpError::TooBig, Reason::TooBig, h);
    }
    let hairpin = backend.addr == h.src;
    if chosen.opens
        && let Err(reason) = open::<F, T>(tables, h, front, chosen.id, backend, hairpin)
    {
        return Decision::drop(reason, h);
    }
    flow::remember_ports(tables, h);
    let rewrite = Rewrite {
        any: true,
        src: if hairpin { h.dst } else { h.src },
        sport: h.sport,
        dst: backend.addr,
        dport: backend.port,
    };
    if via.kind == ViaKind::Local as u8 {
        Decision::deliver(via, Reason::DeliveredLocal, h)
    } else if vxlan && !by_kernel {
        Decision::encapsulate(via, outer_port(hash), h)
    } else {
        Decision::kernel(Reason::TranslatedToKernel, h)
    }
    .translated(rewrite)
}

/// A choice. Like a [`Decision`] it has no field that is undefined at times.
struct Chosen<'t, A> {
    /// The backend, if there is one.
    backend: Option<&'t Backend<A>>,
    /// Why there is none.
    missing: Reason,
    /// Whether the packet opens a flow.
    opens: bool,
    /// The backend's id, if it does.
    id: u32,
}

#[inline(always)]
fn choose<'t, F: Family, T: Tables<F::Addr>>(
    tables: &'t T,
    h: &Headers<F::Addr>,
    front: &Frontend,
    hash: u32,
) -> Chosen<'t, F::Addr> {
    // Data of TCP and SCTP on an unchanged service: the segment has the answer.
    let known = h.signal == Signal::Data
        && h.proto != proto::UDP
        && front.flags & (FrontendFlags::FLOWS_DECIDE | FrontendFlags::FLOWS_MAY_BE_LOST) == 0
        && front.len != 0;
    let mut chosen = Chosen {
        backend: None,
        missing: Reason::BackendGone,
        opens: false,
        id: 0,
    };
    if !known {
        let lost = front.flags & FrontendFlags::FLOWS_MAY_BE_LOST != 0;
        chosen.backend = pinned::<F, T>(tables, h, lost);
        if chosen.backend.is_some() {
            return chosen;
        }
        // What ends a flow that nobody knows opens none.
        chosen.opens = h.signal != Signal::Close;
    }
    if front.len == 0 {
        chosen.missing = Reason::NoEndpoints;
        return chosen;
    }
    let slot = front.start.wrapping_add(reduce(hash, front.len));
    let Some(id) = tables.slot(slot) else {
        return chosen;
    };
    chosen.id = id;
    chosen.backend = tables.backend(id).filter(|backend| backend.is_active());
    chosen
}

/// The backend that the flow table names for this packet, if it may have it.
/// `lost`: the reply's row may be missing, however fresh this one is.
#[inline(always)]
fn pinned<'t, F: Family, T: Tables<F::Addr>>(
    tables: &'t T,
    h: &Headers<F::Addr>,
    lost: bool,
) -> Option<&'t Backend<F::Addr>> {
    let row = tables.flow(flow::key(h, Direction::Forward))?;
    let flow = row.get();
    let now = tables.now();
    let state = live_state(&tables.config().idle, &flow, h.proto, now)?;
    let backend = tables.backend(flow.backend)?;
    if backend.generation != flow.generation || backend.state == BackendState::Free as u8 {
        return None;
    }
    let opening = h.signal == Signal::Open;
    if opening && state == FlowState::Closing {
        // The client uses the port again.
        return None;
    }
    if !backend.is_active() && (opening || h.proto == proto::UDP) {
        return None;
    }
    let next = step(state, Direction::Forward, h.signal);
    if lost || is_stale(&flow, next, now) {
        row.touch(next, now);
        touch_mate(tables, h, Direction::Forward, &flow, next, now);
    }
    Some(backend)
}

/// Writes both rows of a new flow: the reply's first, so that no answer can
/// come back untranslated.
#[inline(always)]
fn open<F: Family, T: Tables<F::Addr>>(
    tables: &T,
    h: &Headers<F::Addr>,
    front: &Frontend,
    id: u32,
    backend: &Backend<F::Addr>,
    hairpin: bool,
) -> Result<(), Reason> {
    if !tables.grant(Grant::Flow) {
        return Err(Reason::NewFlowLimit);
    }
    let now = tables.now();
    let key = flow::key(h, Direction::Forward);
    let mut row = Flow {
        addr: backend.addr,
        port: backend.port,
        state: FlowState::Opening as u8,
        hairpin: hairpin as u8,
        nat_addr: F::Addr::UNSPECIFIED,
        nat_port: 0,
        reserved: 0,
        backend: id,
        generation: backend.generation,
        service: front.service,
        opened: now,
        seen: now,
    };
    let reply_key = flow::mate(&key, &row);
    // Data whose reply row is still there: a connection that lost its forward
    // row. The backend has spoken; it need not do so again soon.
    if h.signal == Signal::Data
        && h.proto != proto::UDP
        && tables.flow(reply_key).is_some_and(|reply| {
            let reply = reply.get();
            reply.backend == id && reply.generation == backend.generation
        })
    {
        row.state = FlowState::Established as u8;
    }
    (row.addr, row.port) = (h.dst, h.dport);
    if !tables.open_flow(reply_key, row) {
        return Err(Reason::FlowTableFull);
    }
    (row.addr, row.port) = (backend.addr, backend.port);
    if !tables.open_flow(key, row) {
        return Err(Reason::FlowTableFull);
    }
    tables.flow_opened(h, backend);
    Ok(())
}
