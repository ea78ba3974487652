//! Pods that leave the cluster with the node's address.

use datapath_common::{Address, Config, Flow, Network, NodeClient, Reason};

use crate::{
    Decision, Family, Grant, Headers, Rewrite, Signal, Tables, flow, flow_hash,
    open::{ANY, FAILED, Opening, port_of},
    ports::facts,
    tables::FlowRow,
};

/// Whether `src` is in this node's pod network, and `dst` out of the cluster.
/// `network`: bits of the network of `dst`.
#[inline(always)]
pub(crate) fn leaves<F: Family, T: Tables<F::Addr>>(
    tables: &T,
    src: F::Addr,
    dst: F::Addr,
    network: u32,
) -> bool {
    let config = tables.config();
    F::is_own_pod(config, src)
        && !F::is_own_pod(config, dst)
        && network & Network::DIRECT == 0
        && tables.peer(&dst).is_none()
}

/// Gives a packet that leaves the cluster the node's address. `headers` has its ports.
#[inline(always)]
pub(crate) fn masquerade<'t, F: Family, T: Tables<F::Addr>>(
    tables: &'t T,
    h: &Headers<F::Addr>,
) -> Decision<'t, F::Addr> {
    let nat = F::node(tables.config());
    // Without a port to tell its flow by, or an address to give: as it is.
    if h.sport == 0 || tables.config().snat_ports == 0 || nat == F::Addr::UNSPECIFIED {
        return Decision::kernel(Reason::NotOurs, h);
    }
    let port = if let Some(port) = known_port(tables, h) {
        port
    } else if matches!(h.signal, Signal::Accept | Signal::Close) {
        // It opens no flow, and belongs to none that is known.
        return Decision::kernel(Reason::NotOurs, h);
    } else {
        let staged = stage_apart::<F, T>(tables, h);
        let mut told = (staged >> 32) as u32;
        if told == 0 {
            told = tables.claim_port(staged as u32, facts(h));
        }
        if told & FAILED == 0 {
            told = finish_apart::<F, T>(tables, h, told);
        }
        match port_of(told) {
            Ok(port) => port,
            Err(reason) => return Decision::drop(reason, h),
        }
    };
    flow::remember_ports(tables, h);
    Decision::kernel(Reason::Masqueraded, h).translated(Rewrite {
        any: true,
        src: nat,
        sport: port,
        dst: h.dst,
        dport: h.dport,
    })
}

/// The port that the flow has already.
#[inline(always)]
fn known_port<A: Address, T: Tables<A>>(tables: &T, h: &Headers<A>) -> Option<u16> {
    let is_own = |flow: &Flow<A>| flow.backend == 0 && flow.nat_port != 0;
    let row = flow::continued(tables, h, false, is_own)?;
    Some(row.get().nat_port)
}

// Functions of their own: each needs much of the stack.

/// Prepares the reply row. Returns the hash for its port; above it, if that
/// failed, [`FAILED`] and a reason.
#[inline(never)]
fn stage_apart<F: Family, T: Tables<F::Addr>>(tables: &T, h: &Headers<F::Addr>) -> u64 {
    let failed = |reason| ((FAILED | reason as u32) as u64) << 32;
    if !tables.grant(Grant::Flow) {
        return failed(Reason::NewFlowLimit);
    }
    if !leaving::<F>(tables.config()).stage_reply(tables, h, ANY) {
        return failed(Reason::FlowTableFull);
    }
    flow_hash(h.src, h.dst, h.sport, h.dport, h.proto) as u64
}

#[inline(never)]
fn finish_apart<F: Family, T: Tables<F::Addr>>(tables: &T, h: &Headers<F::Addr>, told: u32) -> u32 {
    leaving::<F>(tables.config()).finish(tables, h, told)
}

/// A flow that leaves the cluster.
#[inline(always)]
fn leaving<F: Family>(config: &Config) -> Opening<'static, F::Addr> {
    Opening {
        through: None,
        named: None,
        hairpin: false,
        node: NodeClient::No as u8,
        nat: F::node(config),
    }
}
