//! "ICMP errors about translated packets".

use std::net::IpAddr;

use datapath_common::{Feature, Hook, NodeClient, Reason, proto};

use super::client::Client;
use super::forward::{deliver, encapsulated, fits, over_bridge, route, to_loopback, turn_back};
use super::parse::{Echo, Packet, echo, octets, parse};
use super::rewrite::{adjusted, get16, put};
use super::{Ctx, Outcome, Tuple, World};
use crate::packet::{ETHERNET, octets_of};

/// IPv6's fragment header, as the header before names it.
const FRAGMENT: u8 = 44;
/// Octets of an ICMP header, which a quotation follows.
const ICMP: usize = 8;

/// Whether an ICMP message of this type is an error in a packet from `src`.
pub fn is_error(src: IpAddr, kind: u8) -> bool {
    match src {
        IpAddr::V4(_) => matches!(kind, 3 | 4 | 5 | 11 | 12),
        IpAddr::V6(_) => kind < 128,
    }
}

/// The beginning of the packet that an error is about.
struct Quote {
    /// As it was after translation.
    tuple: Tuple,
    /// Offset of its IP header in the frame.
    at: usize,
    /// Offset of its upper header in the frame.
    upper: usize,
}

/// What an error's addresses and its quotation's become.
struct Translation {
    src: IpAddr,
    dst: IpAddr,
    quoted: Tuple,
    /// Whether it is for a process of this node.
    node: NodeClient,
}

/// What becomes of an error about a translated packet; `None` for any other packet.
pub fn icmp_error(world: &World, hook: Hook, frame: &[u8], ctx: &Ctx) -> Option<Outcome> {
    if !world.has(Feature::ICMP_ERRORS) {
        return None;
    }
    let packet = parse(frame, ctx).ok()?;
    let quote = quote(frame, &packet)?;
    let to = translation(world, &packet, &quote.tuple)?;
    let reason = Reason::ErrorTranslated;
    let out = rewritten(frame, &packet, &quote, &to);
    if hook == Hook::PodTo {
        return Some(Outcome::kernel(reason, &out));
    }
    // It is translated by then.
    let left = || Outcome::kernel(reason, &out);
    if packet.ip.ttl <= 1 {
        return Some(left());
    }
    let client = if hook == Hook::NicOut {
        Client::Node
    } else {
        Client::Outside
    };
    let at_uplink = hook != Hook::NicOut;
    match to.node {
        NodeClient::Loopback if at_uplink => return Some(to_loopback(world, out, reason)),
        NodeClient::Uplink if hook == Hook::PodFrom => return Some(turn_back(world, out, reason)),
        NodeClient::Loopback | NodeClient::Uplink => return Some(left()),
        NodeClient::No | NodeClient::Direct | NodeClient::Forwarded => {}
    }
    Some(if let Some(via) = world.local_pod(to.dst) {
        deliver(out.clone(), &packet, &via, client, reason)
    } else if world.config.bridge != 0 && world.in_pod_network(to.dst) {
        over_bridge(world, out.clone(), &packet, reason)
    } else if world.in_pod_network(to.dst) {
        left()
    } else if let Some(via) = world.peer(to.dst) {
        if !fits(world, frame, &packet, ctx) {
            return Some(left());
        }
        encapsulated(world, &out, &packet, &via, reason)
    } else if world.node_address(to.dst) != to.dst {
        route(world, out.clone(), &packet, reason)
    } else if hook == Hook::PodFrom {
        turn_back(world, out.clone(), reason)
    } else {
        Outcome::kernel(reason, &out)
    })
}

fn quote(frame: &[u8], packet: &Packet) -> Option<Quote> {
    let v4 = packet.ip.src.is_ipv4();
    let icmp = if v4 { proto::ICMP } else { proto::ICMPV6 };
    let kind = *frame.get(packet.ip.upper)?;
    if !packet.ip.plain
        || packet.ip.proto != icmp
        || packet.is_later_fragment()
        || !is_error(packet.ip.src, kind)
    {
        return None;
    }
    let at = packet.ip.upper + ICMP;
    let held = frame.get(..packet.ip.end)?;
    let (protocol, src, dst, upper): (u8, IpAddr, IpAddr, usize) = if v4 {
        let header: [u8; 20] = octets(held, at)?;
        let offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
        let length = usize::from(header[0] & 15) * 4;
        if header[0] >> 4 != 4 || length < 20 || offset != 0 {
            return None;
        }
        let (src, dst) = (octets::<4>(&header, 12)?, octets::<4>(&header, 16)?);
        (header[9], src.into(), dst.into(), at + length)
    } else {
        let header: [u8; 40] = octets(held, at)?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let (src, dst) = (octets::<16>(&header, 8)?, octets::<16>(&header, 24)?);
        let (next, upper) = match header[6] {
            FRAGMENT => {
                let piece: [u8; 8] = octets(held, at + 40)?;
                if u16::from_be_bytes([piece[2], piece[3]]) >> 3 != 0 {
                    return None;
                }
                (piece[0], at + 48)
            }
            next => (next, at + 40),
        };
        (next, src.into(), dst.into(), upper)
    };
    let word = |at: usize| octets(held, upper + at).map(u16::from_be_bytes);
    let (sport, dport) = match protocol {
        proto::TCP | proto::UDP | proto::SCTP => (word(0)?, word(2)?),
        _ if echo(src, protocol, *held.get(upper)?) == Some(Echo::Request) => (word(4)?, 0),
        _ => return None,
    };
    let tuple = Tuple {
        src,
        dst,
        sport,
        dport,
        proto: protocol,
    };
    Some(Quote { tuple, at, upper })
}

/// What the rows say about the packet that was quoted.
fn translation(world: &World, packet: &Packet, quoted: &Tuple) -> Option<Translation> {
    // An error goes to whoever sent what it quotes.
    if packet.ip.dst != quoted.src {
        return None;
    }
    let back = Tuple {
        src: quoted.dst,
        dst: quoted.src,
        sport: quoted.dport,
        dport: quoted.sport,
        proto: quoted.proto,
    };
    if let Some(row) = world
        .live_reply(back.reply())
        .filter(|row| !row.hairpin && !row.is_straight())
    {
        let (src, sport) = row
            .translated_source()
            .unwrap_or((quoted.src, quoted.sport));
        let by_backend = packet.ip.src == quoted.dst;
        return Some(Translation {
            src: if by_backend { row.addr } else { packet.ip.src },
            dst: src,
            quoted: Tuple {
                src,
                sport,
                dst: row.addr,
                dport: row.port,
                ..*quoted
            },
            node: row.node,
        });
    }
    // A backend that still answers is told of errors, whomever else it serves.
    let row = world
        .live_reply(back.forward())
        .filter(|row| !row.hairpin)?;
    let (dst, dport) = row
        .translated_source()
        .unwrap_or((quoted.dst, quoted.dport));
    let by_client = packet.ip.src == quoted.dst;
    Some(Translation {
        src: if by_client { dst } else { packet.ip.src },
        dst: row.addr,
        quoted: Tuple {
            src: row.addr,
            sport: row.port,
            dst,
            dport,
            ..*quoted
        },
        node: NodeClient::No,
    })
}

/// The error with all addresses, ports and checksums but the quoted transport header's.
fn rewritten(frame: &[u8], packet: &Packet, quote: &Quote, to: &Translation) -> Vec<u8> {
    let v4 = packet.ip.src.is_ipv4();
    let mut out = frame.to_vec();
    let ends = |src, dst| [octets_of(src), octets_of(dst)].concat();
    let (from, ends_to) = (ends(packet.ip.src, packet.ip.dst), ends(to.src, to.dst));
    let addresses = |frame: &mut [u8], at: usize, from: &[u8], to: &[u8]| {
        if v4 {
            let sum = adjusted(get16(frame, at + 10), from, to);
            put(frame, at + 10, &sum.to_be_bytes());
        }
        put(frame, at + if v4 { 12 } else { 8 }, to);
    };
    addresses(&mut out, ETHERNET, &from, &ends_to);
    let old = ends(quote.tuple.src, quote.tuple.dst);
    addresses(
        &mut out,
        quote.at,
        &old,
        &ends(to.quoted.src, to.quoted.dst),
    );
    let ports = match to.quoted.proto {
        proto::TCP | proto::UDP | proto::SCTP => vec![(0, to.quoted.sport), (2, to.quoted.dport)],
        _ => vec![(4, to.quoted.sport)],
    };
    for (at, port) in ports {
        put(&mut out, quote.upper + at, &port.to_be_bytes());
    }
    // The message with its checksum as it was, after the pseudo header where there is one.
    let covered = |bytes: &[u8], ends: &[u8]| {
        let mut all = if v4 { Vec::new() } else { ends.to_vec() };
        all.extend(&bytes[packet.ip.upper..packet.ip.end]);
        all
    };
    let sum_at = packet.ip.upper + 2;
    let sum = adjusted(
        get16(frame, sum_at),
        &covered(frame, &from),
        &covered(&out, &ends_to),
    );
    put(&mut out, sum_at, &sum.to_be_bytes());
    out
}
