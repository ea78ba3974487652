//! ICMP errors about packets that were translated: the packet that an error
//! quotes is translated back, and the error goes to whoever sent it (RFC 5508 §4).

use datapath_common::{Address, Direction, FlowKey, NodeClient, proto};

use crate::{
    Family, Headers, MAX_L4, Packet, Tables,
    flow::has_backend,
    states::live_state,
    straight::is_straight,
    tables::FlowRow,
    wire::{Be16, Ports},
};

/// The beginning of the packet that an ICMP error quotes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quoted<A> {
    /// Where its IP header starts, from the Ethernet header.
    pub ip: usize,
    /// Where its transport header starts.
    pub l4: usize,
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// Upper protocol.
    pub proto: u8,
    /// Source port, host order; the identifier of an ICMP echo request.
    pub sport: u16,
    /// Destination port, host order.
    pub dport: u16,
}

/// What becomes of an error and of what it quotes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ErrorRewrite<A> {
    /// Who reports.
    pub src: A,
    /// A [`NodeClient`]: whether that is a process of this node.
    pub node: u8,
    /// The quoted source, which is also whom the error is for.
    pub quoted_src: A,
    /// Its port.
    pub quoted_sport: u16,
    /// The quoted destination.
    pub quoted_dst: A,
    /// Its port.
    pub quoted_dport: u16,
}

/// Octets of an ICMP error before what it quotes.
const QUOTE_AT: usize = 8;

/// Reads what an ICMP error quotes. `None` where that has no ports.
#[inline(always)]
pub fn quoted<F: Family, P: Packet>(packet: &P, h: &Headers<F::Addr>) -> Option<Quoted<F::Addr>> {
    if !h.icmp_error {
        return None;
    }
    let ip = (h.l4 & MAX_L4) + QUOTE_AT;
    let (l4, proto) = F::quoted_upper(packet, ip)?;
    let l4 = l4 & MAX_L4;
    // What follows the packet in its frame is not quoted.
    let left = (h.l4 as u32)
        .wrapping_add(h.l4_total)
        .wrapping_sub(l4 as u32)
        .cast_signed();
    let (sport, dport) = match proto {
        proto::TCP | proto::UDP | proto::SCTP if left >= 4 => {
            let ports: Ports = packet.read(l4).ok()?;
            (ports.src.get(), ports.dst.get())
        }
        proto::ICMP | proto::ICMPV6 if left >= 6 => {
            let [kind, _]: [u8; 2] = packet.read(l4).ok()?;
            let request = if F::Addr::VERSION == 4 { 8 } else { 128 };
            if kind != request {
                return None;
            }
            let id: Be16 = packet.read(l4 + 4).ok()?;
            (id.get(), 0)
        }
        _ => return None,
    };
    let (src, dst) = F::addresses(packet, ip)?;
    Some(Quoted {
        ip,
        l4,
        src,
        dst,
        proto,
        sport,
        dport,
    })
}

/// How an error is translated, if the flow of what it quotes is known.
#[inline(always)]
pub fn translation<F: Family, T: Tables<F::Addr>>(
    tables: &T,
    h: &Headers<F::Addr>,
    q: &Quoted<F::Addr>,
) -> Option<ErrorRewrite<F::Addr>> {
    // An error goes to whoever sent what it quotes; what does not is made up.
    if h.dst != q.src {
        return None;
    }
    // Rows are read where they are needed: copies would take much of the stack.
    // About a packet to a backend, as it was after its translation.
    if let Some(row) = known(tables, q, Direction::Reply).filter(|row| !is_straight(&row.get())) {
        let (client, port) = if row.get().nat_port == 0 {
            (q.src, q.sport)
        } else {
            (row.get().nat_addr, row.get().nat_port)
        };
        return Some(ErrorRewrite {
            // The backend itself is known as the frontend only.
            src: if h.src == q.dst {
                row.get().addr
            } else {
                h.src
            },
            node: row.get().node,
            quoted_src: client,
            quoted_sport: port,
            quoted_dst: row.get().addr,
            quoted_dport: row.get().port,
        });
    }
    // About a reply, as it was after its translation.
    let row = known(tables, q, Direction::Forward)?;
    let (client, port) = if row.get().nat_port == 0 {
        (q.dst, q.dport)
    } else {
        (row.get().nat_addr, row.get().nat_port)
    };
    Some(ErrorRewrite {
        src: if h.src == q.dst { client } else { h.src },
        node: NodeClient::No as u8,
        quoted_src: row.get().addr,
        quoted_sport: row.get().port,
        quoted_dst: client,
        quoted_dport: port,
    })
}

/// The living row of packets that answer the quoted one.
#[inline(always)]
fn known<A: Address, T: Tables<A>>(
    tables: &T,
    q: &Quoted<A>,
    direction: Direction,
) -> Option<T::Row> {
    let row = tables.flow(FlowKey {
        src: q.dst,
        dst: q.src,
        sport: q.dport,
        dport: q.sport,
        proto: q.proto,
        direction: direction as u8,
        reserved: 0,
    })?;
    let flow = row.get();
    live_state(&tables.config().idle, &flow, q.proto, tables.now())?;
    // Who talks to himself through a service has nobody between to report errors.
    if flow.hairpin != 0 || !has_backend(tables, &flow) {
        return None;
    }
    Some(row)
}
