//! The way of a translated reply to a client that is not behind the hook itself.

use datapath_common::{Address, Direction, FlowKey, NodeClient, Reason, ViaKind};

use crate::{
    Decision, Family, Headers, Packet, Rewrite, Tables,
    flow::key,
    flow_hash,
    hooks::{fits_overlay, needs_kernel, outer_port},
    service::Client,
    tables::FlowRow,
};

/// Sends a reply to its client, `rewrite.dst`. `from` is who sends it; `node` is a
/// [`NodeClient`].
#[inline(always)]
pub(crate) fn to_client<'t, F: Family, P: Packet, T: Tables<F::Addr>>(
    packet: &P,
    tables: &'t T,
    h: &Headers<F::Addr>,
    rewrite: Rewrite<F::Addr>,
    from: Client,
    node: u8,
) -> Decision<'t, F::Addr> {
    let config = tables.config();
    let client = rewrite.dst;
    if h.ttl <= 1 {
        return Decision::kernel(Reason::SlowPath, h);
    }
    if node != NodeClient::No as u8 || client == F::node(config) {
        return if node == NodeClient::Loopback as u8 && !from.is_node() {
            Decision::to_loopback(Reason::ReplyTranslated, h)
        } else if from == Client::Pod {
            Decision::turn_back(Reason::ReplyTranslated, h)
        } else {
            Decision::kernel(Reason::ReplyTranslated, h)
        }
        .translated(rewrite);
    }
    if F::is_own_pod(config, client) {
        if let Some(via) = tables.pod(&client)
            && via.kind == ViaKind::Local as u8
        {
            // Masqueraded behind a service: `pod_to` translates it once more.
            if from == Client::Outside
                && rewrite.any
                && rewrite.src == h.src
                && is_behind_service(tables, h)
            {
                return Decision::kernel(Reason::ReplyTranslated, h).translated(rewrite);
            }
            return Decision::deliver(via, Reason::ReplyTranslated, h).translated(rewrite);
        }
    } else if let Some(via) = tables.peer(&client) {
        if via.kind != ViaKind::Vxlan as u8
            || needs_kernel(packet)
            || !fits_overlay(packet, config, h)
        {
            return Decision::kernel(Reason::SlowPath, h);
        }
        let hash = flow_hash(h.src, h.dst, h.sport, h.dport, h.proto);
        return Decision::encapsulate(via, outer_port(hash), h)
            .counted(Reason::ReplyTranslated)
            .translated(rewrite);
    }
    Decision::route(Reason::ReplyTranslated, h).translated(rewrite)
}

/// Whether what a masqueraded reply becomes is the reply of a service. A function
/// of its own, that reads the row again: keys take much of the stack.
#[inline(never)]
fn is_behind_service<A: Address, T: Tables<A>>(tables: &T, h: &Headers<A>) -> bool {
    let Some(row) = tables.flow(key(h, Direction::Reply)) else {
        return false;
    };
    let flow = row.get();
    let behind = FlowKey {
        dst: flow.nat_addr,
        dport: flow.nat_port,
        ..key(h, Direction::Reply)
    };
    tables.flow(behind).is_some()
}
