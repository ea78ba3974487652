//! North-south services before an skb is made: what goes to another node, and what comes back
//! from there for clients outside. Whatever is not decided here meets [`crate::nic_in`] as it
//! came; what was noted of it meanwhile (its flow) is what would be noted there.

use datapath_common::Direction;

use crate::{
    Decision, ETH_LEN, Family, Headers, Packet, Tables, Verdict, flow,
    hooks::{front_key, is_own_source},
    reply::to_client,
    service::{self, Client},
};

/// Decides about a whole packet of TCP or UDP that comes by the uplink as it is:
/// [`Verdict::Encapsulate`], [`Verdict::Forward`], [`Verdict::Drop`], or `None`.
#[inline(always)]
pub fn serve_at_driver<'t, F: Family, P: Packet, T: Tables<F::Addr>>(
    packet: &P,
    tables: &'t T,
    h: &Headers<F::Addr>,
) -> Option<Decision<'t, F::Addr>> {
    let config = tables.config();
    let front = tables.frontend(&front_key(h))?;
    // To a pod itself, or its network's first address; by a sender that the link cannot have;
    // an answer to what was masqueraded; or too large, for which a turn would be taken twice.
    if F::is_own_pod(config, h.dst)
        || is_own_source::<F>(config, h.src)
        || (flow::is_same(h.dst, F::node(config))
            && tables.flow(flow::key(h, Direction::Reply)).is_some())
        || packet.length() > config.overlay_mtu as u32 + ETH_LEN as u32
    {
        return None;
    }
    let decision = service::decide::<F, P, T>(packet, tables, h, front, Client::Outside);
    let decided = matches!(
        decision.verdict,
        Verdict::Encapsulate | Verdict::Forward | Verdict::Drop
    );
    decided.then_some(decision)
}

/// Decides about a whole packet of TCP or UDP inside the overlay for the VTEP device:
/// [`Verdict::Route`] to its client, or `None`. `h` is its own, not the outer one.
#[inline(always)]
pub fn answer_at_driver<'t, F: Family, P: Packet, T: Tables<F::Addr>>(
    packet: &P,
    tables: &'t T,
    h: &Headers<F::Addr>,
) -> Option<Decision<'t, F::Addr>> {
    let (rewrite, asker) = flow::reply_of(tables, h, Some(false))?;
    let decision = to_client::<F, P, T>(packet, tables, h, rewrite, Client::Outside, asker);
    (decision.verdict == Verdict::Route).then_some(decision)
}
