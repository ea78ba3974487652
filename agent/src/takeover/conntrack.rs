//! Flows that the kernel's connection tracking translates, by netlink (`ctnetlink`).

use std::io;
use std::net::{IpAddr, SocketAddr};

use datapath_common::proto;

use super::nfnl::{
    Attributes, CTNETLINK, IPV4, IPV6, Message, Nfnl, Step, attribute, attributes, number,
};

// From `linux/netfilter/nfnetlink_conntrack.h`.
const NEW: u8 = 0;
const GET: u8 = 1;
const DELETE: u8 = 2;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const STATUS: u16 = 3;
const PROTOINFO: u16 = 4;
const TIMEOUT: u16 = 7;
const ZONE: u16 = 18;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const V4_SRC: u16 = 1;
const V4_DST: u16 = 2;
const V6_SRC: u16 = 3;
const V6_DST: u16 = 4;
const NUMBER: u16 = 1;
const SRC_PORT: u16 = 2;
const DST_PORT: u16 = 3;
const TCP_INFO: u16 = 1;
const TCP_STATE: u16 = 1;
const TCP_FLAGS_ORIGINAL: u16 = 4;
const TCP_FLAGS_REPLY: u16 = 5;
/// Packets outside of the window that was seen are translated all the same.
const BE_LIBERAL: u8 = 8;
/// Both ends have spoken.
const SEEN_REPLY: u32 = 1 << 1;

/// `enum tcp_conntrack`, as far as it matters.
const TCP_ESTABLISHED: u8 = 3;
const TCP_TIME_WAIT: u8 = 7;
const TCP_CLOSE: u8 = 8;

/// Addresses and ports of one direction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tuple {
    /// Who sends.
    pub src: SocketAddr,
    /// To whom.
    pub dst: SocketAddr,
}

/// How far a flow is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Only its client has spoken.
    Opening,
    /// Both ends have.
    Established,
    /// One end closes.
    Closing,
    /// It is over; the entry has yet to expire.
    Over,
}

/// A flow whose destination is translated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// IP protocol number.
    pub proto: u8,
    /// As its client sends.
    pub original: Tuple,
    /// As the backend answers.
    pub reply: Tuple,
    /// How far it is.
    pub stage: Stage,
    /// Seconds until it expires.
    pub timeout: u32,
}

impl Entry {
    /// Whether the backend sees another source than the client's.
    pub fn is_masqueraded(&self) -> bool {
        self.reply.dst != self.original.src
    }

    const fn family(&self) -> u8 {
        if self.original.src.is_ipv6() {
            IPV6
        } else {
            IPV4
        }
    }
}

/// Whether connection tracking has no flow at all in this network namespace, or is not there.
pub fn tracks_nothing() -> bool {
    let count = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count");
    count.map_or(true, |count| count.trim() == "0")
}

/// Every flow of TCP, UDP and SCTP whose destination is translated and that is not over, of both
/// families. A kernel without connection tracking has none.
pub fn translated(netlink: &mut Nfnl) -> io::Result<Vec<Entry>> {
    let mut found = Vec::new();
    let all = Message::new(CTNETLINK, GET, 0, Attributes::default());
    let listed = netlink.dump(&all, |step| match step {
        Step::Begins => found.clear(),
        Step::Told(told) => found.extend(entry(told.octets)),
    });
    match listed {
        Err(error) if super::nft::is_without_nftables(&error) => Ok(Vec::new()),
        Err(error) => Err(error),
        Ok(()) => Ok(found),
    }
}

fn entry(octets: &[u8]) -> Option<Entry> {
    let (mut original, mut reply, mut state) = (None, None, None);
    let (mut status, mut timeout) = (0, 0);
    // There may be hundreds of thousands: each is read once.
    for (kind, value) in attributes(octets) {
        match kind {
            ORIGINAL => original = Some(tuple(value)?),
            REPLY => reply = Some(tuple(value)?),
            STATUS => status = number(value) as u32,
            TIMEOUT => timeout = number(value) as u32,
            ZONE if number(value) != 0 => return None,
            PROTOINFO => {
                let tcp = attribute(value, TCP_INFO).and_then(|tcp| attribute(tcp, TCP_STATE));
                state = tcp.map(|state| number(state) as u8);
            }
            _ => {}
        }
    }
    let ((protocol, original), (_, reply)) = (original?, reply?);
    let stage = stage(state, status & SEEN_REPLY != 0);
    let untranslated = reply.src == original.dst;
    let wanted = matches!(protocol, proto::TCP | proto::UDP | proto::SCTP);
    (wanted && !untranslated && stage != Stage::Over).then_some(Entry {
        proto: protocol,
        original,
        reply,
        stage,
        timeout,
    })
}

const fn stage(tcp: Option<u8>, answered: bool) -> Stage {
    match tcp {
        Some(..TCP_ESTABLISHED) => Stage::Opening,
        Some(TCP_TIME_WAIT | TCP_CLOSE) => Stage::Over,
        Some(state) if state > TCP_ESTABLISHED => Stage::Closing,
        _ if answered => Stage::Established,
        _ => Stage::Opening,
    }
}

fn tuple(octets: &[u8]) -> Option<(u8, Tuple)> {
    let (ip, transport) = (
        attribute(octets, TUPLE_IP)?,
        attribute(octets, TUPLE_PROTO)?,
    );
    let address = |v4, v6| {
        let four = || <[u8; 4]>::try_from(attribute(ip, v4)?).ok();
        let six = || <[u8; 16]>::try_from(attribute(ip, v6)?).ok();
        four().map(IpAddr::from).or_else(|| six().map(IpAddr::from))
    };
    let port = |kind| attribute(transport, kind).map_or(0, |port| number(port) as u16);
    let tuple = Tuple {
        src: SocketAddr::new(address(V4_SRC, V6_SRC)?, port(SRC_PORT)),
        dst: SocketAddr::new(address(V4_DST, V6_DST)?, port(DST_PORT)),
    };
    Some((number(attribute(transport, NUMBER)?) as u8, tuple))
}

fn attributes_of(tuple: &Tuple, protocol: u8) -> Attributes {
    let ip = Attributes::default();
    let ip = match (tuple.src.ip(), tuple.dst.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            ip.bytes(V4_SRC, &src.octets()).bytes(V4_DST, &dst.octets())
        }
        (src, dst) => {
            let six = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            };
            ip.bytes(V6_SRC, &six(src)).bytes(V6_DST, &six(dst))
        }
    };
    let transport = Attributes::default()
        .bytes(NUMBER, &[protocol])
        .bytes(SRC_PORT, &tuple.src.port().to_be_bytes())
        .bytes(DST_PORT, &tuple.dst.port().to_be_bytes());
    Attributes::default()
        .nest(TUPLE_IP, &ip)
        .nest(TUPLE_PROTO, &transport)
}

/// Has the kernel translate packets of a TCP flow whatever the window that it saw last: it does
/// not see all of them any more. False if the flow is gone.
pub fn be_liberal(netlink: &mut Nfnl, entry: &Entry) -> io::Result<bool> {
    if entry.proto != proto::TCP {
        return Ok(true);
    }
    let tcp = Attributes::default()
        .bytes(TCP_FLAGS_ORIGINAL, &[BE_LIBERAL, BE_LIBERAL])
        .bytes(TCP_FLAGS_REPLY, &[BE_LIBERAL, BE_LIBERAL]);
    let info = Attributes::default().nest(TCP_INFO, &tcp);
    let change = Attributes::default()
        .nest(ORIGINAL, &attributes_of(&entry.original, entry.proto))
        .nest(PROTOINFO, &info);
    there(netlink.request(Message::new(CTNETLINK, NEW, entry.family(), change)))
}

/// Has the kernel forget a flow. False if it is gone already.
pub fn forget(netlink: &mut Nfnl, entry: &Entry) -> io::Result<bool> {
    let which = Attributes::default().nest(ORIGINAL, &attributes_of(&entry.original, entry.proto));
    there(netlink.request(Message::new(CTNETLINK, DELETE, entry.family(), which)))
}

/// Whether what was asked for was there.
fn there(done: io::Result<()>) -> io::Result<bool> {
    match done {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_follow_the_kernels_states() {
        assert_eq!(stage(Some(1), false), Stage::Opening, "SYN sent");
        assert_eq!(stage(Some(2), true), Stage::Opening, "SYN received");
        assert_eq!(stage(Some(3), true), Stage::Established);
        assert_eq!(stage(Some(4), true), Stage::Closing, "FIN wait");
        assert_eq!(stage(Some(7), true), Stage::Over, "time wait");
        assert_eq!(stage(None, true), Stage::Established, "UDP");
        assert_eq!(stage(None, false), Stage::Opening);
    }
}
