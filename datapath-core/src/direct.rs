//! Direct server return, at the backend's node: another node chose the backend and sent the
//! client's packet here as it came; what the backend answers goes straight to the client.
//!
//! The other node is trusted as any node of the overlay is, and knows better: this one may not know
//! the frontend (a node port of the other), nor yet the backend. So its rows have backend 0.

use datapath_common::{Address, Flow, NodeClient, Reason, ViaKind, proto};

use crate::{
    Decision, Family, Grant, Headers, Rewrite, Signal, Tables,
    flow::{self, is_same},
    flow_hash,
    hooks::is_behind_bridge,
    open::{FAILED, Opening, how_kept, port_of},
    ports::facts,
    tables::FlowRow,
};

/// A backend that another node chose.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Named<A> {
    /// The pod's address.
    pub addr: A,
    /// Its port, host order.
    pub port: u16,
}

/// Decides about a packet that is for a backend of this node whatever its destination says: that is
/// the frontend.
#[inline(always)]
pub fn to_named<'t, F: Family, T: Tables<F::Addr>>(
    tables: &'t T,
    h: &mut Headers<F::Addr>,
    named: &Named<F::Addr>,
) -> Decision<'t, F::Addr> {
    let config = tables.config();
    // No service has others.
    if !matches!(h.proto, proto::TCP | proto::UDP | proto::SCTP) {
        return Decision::drop(Reason::BadHeader, h);
    }
    let via = if F::is_own_pod(config, named.addr) {
        tables.pod(&named.addr)
    } else {
        None
    };
    let via = via.filter(|via| via.kind == ViaKind::Local as u8);
    if via.is_none() && !is_behind_bridge::<F>(config, named.addr) {
        return Decision::drop(Reason::BackendGone, h);
    }
    // Whose answers would not leave this node, nor its own pods' go on as they are. (The node itself
    // asks another one with its own address.)
    if F::is_own_pod(config, h.src) || F::is_martian(h.src) {
        return Decision::drop(Reason::MartianSource, h);
    }
    // The other node sends nothing that would expire here.
    if h.ttl <= 1 {
        return Decision::drop(Reason::TtlExceeded, h);
    }
    let mut moved = 0;
    // Without its ports a later fragment needs another address, and no more.
    if flow::recall_ports(tables, h) {
        match source_port::<F, T>(tables, h, named) {
            Ok(port) => moved = port,
            Err(reason) => return Decision::drop(reason, h),
        }
        flow::remember_ports(tables, h);
    }
    let sport = if moved == 0 { h.sport } else { moved };
    let rewrite = Rewrite {
        any: true,
        src: h.src,
        sport,
        dst: named.addr,
        dport: named.port,
    };
    match via {
        Some(via) => Decision::deliver(via, Reason::Decapsulated, h),
        None => Decision::bridge(Reason::Decapsulated, h),
    }
    .translated(rewrite)
}

/// The port that the backend knows the client by, where that is another than the client's own; else 0. Opens
/// the flow, or goes on with it.
#[inline(always)]
fn source_port<F: Family, T: Tables<F::Addr>>(
    tables: &T,
    h: &Headers<F::Addr>,
    named: &Named<F::Addr>,
) -> Result<u16, Reason> {
    // Without its reply row answers would go out with the pod's address: looked after each time.
    if let Some(row) = flow::continued(tables, h, true, |row| goes_to(row, h, named)) {
        return Ok(row.get().nat_port);
    }
    // What ends a flow that nobody knows opens none.
    if h.signal == Signal::Close {
        return Ok(0);
    }
    let mut told = stage_apart::<F, T>(tables, h, named);
    if told & FAILED == 0 {
        let hash = flow_hash(h.src, h.dst, h.sport, h.dport, h.proto);
        told = tables.claim_port(hash, facts(h) | told);
    }
    if told & FAILED == 0 {
        told = finish_apart::<F, T>(tables, h, named, told);
    }
    if told & FAILED == 0 {
        stays_apart::<F, T>(tables, h, named, told);
    }
    port_of(told)
}

/// Whether a forward row leads to the backend, with the client's own address.
#[inline(always)]
fn goes_to<A: Address>(row: &Flow<A>, h: &Headers<A>, named: &Named<A>) -> bool {
    row.node == NodeClient::Forwarded as u8
        && row.port == named.port
        && is_same(row.addr, named.addr)
        && (row.nat_port == 0 || is_same(row.nat_addr, h.src))
}

// Functions of their own: each needs much of the stack.

/// Prepares the reply row. Returns how to claim its port.
#[inline(never)]
fn stage_apart<F: Family, T: Tables<F::Addr>>(
    tables: &T,
    h: &Headers<F::Addr>,
    named: &Named<F::Addr>,
) -> u32 {
    if !tables.grant(Grant::Flow) {
        FAILED | Reason::NewFlowLimit as u32
    } else if !opening(h, named, 0).stage_reply(tables, h, 0) {
        FAILED | Reason::FlowTableFull as u32
    } else {
        how_kept(tables.config(), h)
    }
}

/// Writes the forward row of a flow whose reply row is written.
#[inline(never)]
fn finish_apart<F: Family, T: Tables<F::Addr>>(
    tables: &T,
    h: &Headers<F::Addr>,
    named: &Named<F::Addr>,
    told: u32,
) -> u32 {
    opening(h, named, told).finish(tables, h, told)
}

/// Writes the reply row once more if there is none: the forward row may have pushed it out.
#[inline(never)]
fn stays_apart<F: Family, T: Tables<F::Addr>>(
    tables: &T,
    h: &Headers<F::Addr>,
    named: &Named<F::Addr>,
    told: u32,
) {
    opening(h, named, told).stays(tables, h, told);
}

#[inline(always)]
fn opening<'a, A: Address>(h: &Headers<A>, named: &'a Named<A>, told: u32) -> Opening<'a, A> {
    Opening {
        through: None,
        named: Some(named),
        hairpin: false,
        node: NodeClient::Forwarded as u8,
        nat: if told as u16 == 0 {
            A::UNSPECIFIED
        } else {
            h.src
        },
    }
}
