//! What is held back for the moment in which flows change hands: connections that kube-proxy's
//! rules would open, and packets that the kernel would take for others'. Both ends send again.
//! The table goes with the process, however that ends.

use std::io;
use std::net::{IpAddr, SocketAddr};

use datapath_common::proto;

use super::conntrack::Entry;
use super::nfnl::{IPV4, IPV6, NFTABLES, Nfnl};
use super::writing::{
    Field, Hook, chain, drop, elements, flow, has, is, is_in, key, no_table, rule, set, table,
};

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
/// Messages with elements in a transaction, each of up to 64 KiB.
const MESSAGES: usize = 32;

/// What an address family has of its own.
struct Family {
    number: u8,
    octets: u32,
    /// Where the source address is; the destination follows.
    source: u32,
    /// Set of what is asked of Tulle.
    fronts: &'static str,
    /// Set of what Tulle makes of packets.
    flows: &'static str,
    /// Number of the first set while both are made; the second has the next.
    id: u32,
}

const FAMILIES: [Family; 2] = [
    Family {
        number: IPV4,
        octets: 4,
        source: 12,
        fronts: "fronts4",
        flows: "flows4",
        id: 1,
    },
    Family {
        number: IPV6,
        octets: 16,
        source: 8,
        fronts: "fronts6",
        flows: "flows6",
        id: 3,
    },
];

impl Family {
    const fn has(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == (self.number == IPV4)
    }

    const fn front_fields(&self) -> [Field; 3] {
        [
            Field::AskedAddress(self.octets),
            Field::AskedPort,
            Field::Protocol,
        ]
    }

    const fn flow_fields(&self) -> [Field; 4] {
        [
            Field::Network(self.source, self.octets),
            Field::Network(self.source + self.octets, self.octets),
            Field::Transport(0, 4),
            Field::Protocol,
        ]
    }
}

/// Held until it is dropped, or let go.
pub struct Hold {
    netlink: Nfnl,
}

impl Hold {
    /// Holds back connections of TCP and SCTP to these frontends that somebody's rules translate.
    /// They are dropped behind the rules, so that nothing of them remains; a client asks again
    /// after a second.
    pub fn begin(fronts: impl Iterator<Item = (SocketAddr, u8)>) -> io::Result<Self> {
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
        for family in &FAMILIES {
            let (asked, made) = (family.front_fields(), family.flow_fields());
            messages.push(set(TABLE, family.fronts, family.id, &asked));
            messages.push(set(TABLE, family.flows, family.id + 1, &made));
            for name in [FOR_NODE, FORWARDED] {
                let mut expressions = is(Field::Family, &[family.number]).to_vec();
                expressions.push(flow(STATE));
                expressions.extend(has(NEW));
                expressions.push(flow(STATUS));
                expressions.extend(has(DST_NAT));
                expressions.extend(is_in(family.fronts, &asked));
                expressions.push(drop());
                messages.push(rule(TABLE, name, &expressions));
            }
            let mut expressions = is(Field::Family, &[family.number]).to_vec();
            expressions.extend(is_in(family.flows, &made));
            expressions.push(drop());
            messages.push(rule(TABLE, TRANSLATED, &expressions));
        }
        let fronts: Vec<(SocketAddr, u8)> = fronts
            .filter(|(_, protocol)| matches!(*protocol, proto::TCP | proto::SCTP))
            .collect();
        let mut hold = Self {
            netlink: Nfnl::open()?,
        };
        hold.netlink.batch(NFTABLES, messages)?;
        for family in &FAMILIES {
            let of_family = fronts.iter().filter(|(at, _)| family.has(at.ip()));
            let keys: Vec<Vec<u8>> = of_family
                .map(|(at, protocol)| key(&[&octets(*at), &at.port().to_be_bytes(), &[*protocol]]))
                .collect();
            hold.put(family.fronts, &keys)?;
        }
        Ok(hold)
    }

    /// Holds back what Tulle makes of these flows' packets, too: the kernel takes it for a flow of
    /// its own while it knows the old one.
    pub fn hold(&mut self, entries: &[Entry]) -> io::Result<()> {
        for family in &FAMILIES {
            let of_family = entries
                .iter()
                .filter(|entry| family.has(entry.reply.dst.ip()));
            let keys: Vec<Vec<u8>> = of_family.map(translated).collect();
            self.put(family.flows, &keys)?;
        }
        Ok(())
    }

    fn put(&mut self, set: &str, keys: &[Vec<u8>]) -> io::Result<()> {
        for some in elements(TABLE, set, keys).chunks(MESSAGES) {
            self.netlink.batch(NFTABLES, some.to_vec())?;
        }
        Ok(())
    }

    /// Lets go.
    pub fn end(mut self) -> io::Result<()> {
        self.netlink.batch(NFTABLES, vec![no_table(TABLE)])
    }
}

/// What the backend of a flow gets from its client.
fn translated(entry: &Entry) -> Vec<u8> {
    let (src, dst) = (entry.reply.dst, entry.reply.src);
    let ports = [src.port().to_be_bytes(), dst.port().to_be_bytes()].concat();
    key(&[&octets(src), &octets(dst), &ports, &[entry.proto]])
}

fn octets(at: SocketAddr) -> Vec<u8> {
    match at.ip() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
