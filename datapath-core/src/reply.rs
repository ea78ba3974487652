//! The way of a translated reply to a client that is not behind the hook itself.

use datapath_common::{NodeClient, Reason, ViaKind};

use crate::{
    Decision, Family, Headers, Packet, Rewrite, Tables, flow::Asker, flow_hash, hooks::outer_port,
    room::Extent, service::Client,
};

const UPLINK: u8 = NodeClient::Uplink as u8;
const LOOPBACK: u8 = NodeClient::Loopback as u8;

/// Sends a reply to its client, `rewrite.dst`. `from` is who sends it, `asker` whose it is.
#[inline(always)]
pub(crate) fn to_client<'t, F: Family, P: Packet, T: Tables<F::Addr>>(
    packet: &P,
    tables: &'t T,
    h: &Headers<F::Addr>,
    rewrite: Rewrite<F::Addr>,
    from: Client,
    asker: Asker,
) -> Decision<'t, F::Addr> {
    let config = tables.config();
    let (client, node) = (rewrite.dst, asker.node);
    // The kernel forwarded out what it answers, and its connection tracking is to see
    // both halves.
    if from == Client::Outside && asker.left {
        return Decision::kernel(Reason::ReplyTranslated, h).translated(rewrite);
    }
    if h.ttl <= 1 {
        return Decision::kernel(Reason::SlowPath, h);
    }
    let of_node = matches!(node, UPLINK | LOOPBACK);
    if of_node || client == F::node(config) {
        return if node == LOOPBACK && !from.is_node() {
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
            return Decision::deliver(via, Reason::ReplyTranslated, h).translated(rewrite);
        }
        // A pod that only the kernel knows, or none.
        return if config.bridge == 0 {
            Decision::kernel(Reason::ReplyTranslated, h)
        } else {
            Decision::bridge(Reason::ReplyTranslated, h)
        }
        .translated(rewrite);
    } else if let Some(via) = tables.peer(&client) {
        let extent = Extent::of(packet);
        if via.kind != ViaKind::Vxlan as u8
            || extent.needs_kernel()
            || !extent.fits_overlay(config, h)
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
