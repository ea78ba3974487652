//! What is held back for the moment in which flows change hands: connections that kube-proxy's
//! rules would open, and packets that the kernel would take for others'. Both ends send again.
//! The table goes with the process, however that ends.

use std::io;
use std::net::SocketAddr;

use datapath_common::proto;

use super::conntrack::Entry;
use super::nfnl::{IPV4, IPV6, Message, NFTABLES, Nfnl};
use super::writing::{Field, Hook, chain, drop, flow, has, is, no_table, rule, table};

const TABLE: &str = "tulle-takes-over";
const FOR_NODE: &str = "for-node";
const FORWARDED: &str = "forwarded";
const TRANSLATED: &str = "translated";
/// `NFT_CT_STATE`, `NFT_CT_STATUS`, and their bits for a new flow and one whose destination is
/// translated.
const STATE: u32 = 0;
const STATUS: u32 = 2;
const NEW: u32 = 1 << 3;
const DST_NAT: u32 = 1 << 5;

/// Held until it is dropped, or let go.
pub struct Hold {
    netlink: Nfnl,
}

impl Hold {
    /// Holds back connections of TCP and SCTP that somebody's rules translate the destination of.
    /// They are dropped behind the rules, so that nothing of them remains; a client asks again
    /// after a second.
    pub fn begin() -> io::Result<Self> {
        let mut netlink = Nfnl::open()?;
        // Behind source NAT, before the flow is confirmed.
        let hook = |number| Hook {
            kind: "filter",
            number,
            priority: 150,
        };
        // Before connection tracking.
        let early = Hook {
            kind: "filter",
            number: 0,
            priority: -400,
        };
        let mut messages = vec![
            table(TABLE, true),
            chain(TABLE, FOR_NODE, hook(1)),
            chain(TABLE, FORWARDED, hook(4)),
            chain(TABLE, TRANSLATED, early),
        ];
        for name in [FOR_NODE, FORWARDED] {
            for protocol in [proto::TCP, proto::SCTP] {
                let mut expressions = is(Field::Protocol, &[protocol]).to_vec();
                expressions.push(flow(STATE));
                expressions.extend(has(NEW));
                expressions.push(flow(STATUS));
                expressions.extend(has(DST_NAT));
                expressions.push(drop());
                messages.push(rule(TABLE, name, &expressions));
            }
        }
        netlink.batch(NFTABLES, messages)?;
        Ok(Self { netlink })
    }

    /// Holds back what Tulle makes of these flows' packets, too: the kernel takes it for a flow of
    /// its own while it knows the old one.
    pub fn hold(&mut self, entries: &[Entry]) -> io::Result<()> {
        let messages = entries.iter().map(translated).collect();
        self.netlink.batch(NFTABLES, messages)
    }

    /// Lets go.
    pub fn end(mut self) -> io::Result<()> {
        self.netlink.batch(NFTABLES, vec![no_table(TABLE)])
    }
}

/// A rule that drops what the backend of a flow gets from its client.
fn translated(entry: &Entry) -> Message {
    let (src, dst) = (entry.reply.dst, entry.reply.src);
    let octets = |at: SocketAddr| match at.ip() {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    let (family, offset, length) = if src.is_ipv4() {
        (IPV4, 12, 4)
    } else {
        (IPV6, 8, 16)
    };
    let ports = [src.port().to_be_bytes(), dst.port().to_be_bytes()].concat();
    let mut expressions = is(Field::Family, &[family]).to_vec();
    expressions.extend(is(Field::Protocol, &[entry.proto]));
    expressions.extend(is(Field::Network(offset, length), &octets(src)));
    expressions.extend(is(Field::Network(offset + length, length), &octets(dst)));
    expressions.extend(is(Field::Transport(0, 4), &ports));
    expressions.push(drop());
    rule(TABLE, TRANSLATED, &expressions)
}
