//! From values to bytes.

use std::net::Ipv4Addr;

use super::{
    ETHERTYPE_V4, ETHERTYPE_V6, Extension, Frame, Icmp, Ipv4, Ipv6, L4, Net, Sctp, Tcp, Udp,
    checksum, proto,
};
use crate::link::MacAddr;

/// The outer headers of a VXLAN packet (RFC 7348) as flannel's kernel device
/// writes them: IPv4, UDP without checksum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outer {
    /// Ethernet source.
    pub src_mac: MacAddr,
    /// Ethernet destination.
    pub dst_mac: MacAddr,
    /// Sending node.
    pub src: Ipv4Addr,
    /// Receiving node.
    pub dst: Ipv4Addr,
    /// UDP source port.
    pub sport: u16,
    /// UDP destination port; flannel's is 8472.
    pub dport: u16,
    /// Network identifier, 24 bits.
    pub vni: u32,
    /// Time to live.
    pub ttl: u8,
}

impl Outer {
    /// From node to node with port 8472, VNI 1 and TTL 64.
    pub fn new(src: Ipv4Addr, dst: Ipv4Addr) -> Self {
        Self {
            src_mac: [2, 0x77, 0, 0, 0, 1],
            dst_mac: [2, 0x77, 0, 0, 0, 2],
            src,
            dst,
            sport: 40_000,
            dport: 8472,
            vni: 1,
            ttl: 64,
        }
    }
}

/// Wraps a frame into VXLAN.
pub fn vxlan(outer: Outer, inner: &[u8]) -> Vec<u8> {
    let [_, vni @ ..] = outer.vni.to_be_bytes();
    let mut payload = vec![8, 0, 0, 0];
    payload.extend(vni);
    payload.push(0);
    payload.extend(inner);
    let udp = Udp {
        sport: outer.sport,
        dport: outer.dport,
        no_checksum: true,
        payload,
    };
    Frame::v4(outer.src, outer.dst)
        .macs(outer.src_mac, outer.dst_mac)
        .ttl(outer.ttl)
        .l4(L4::Udp(udp))
        .bytes()
}

/// Splits an IP packet so that each fragment's IP packet has at most `mtu`
/// bytes; the upper layer's checksum is that of the whole.
pub fn fragments(frame: &Frame, mtu: usize, id: u32) -> Vec<Frame> {
    let (protocol, header, upper) = match &frame.net {
        Net::V4(ip) => (
            upper_protocol(&ip.l4, false),
            v4_header_len(ip),
            v4_upper(ip),
        ),
        Net::V6(ip) => {
            let extensions: usize = ip
                .extensions
                .iter()
                .map(|e| extension_bytes(e, 0).len())
                .sum();
            (
                upper_protocol(&ip.l4, true),
                40 + extensions + 8,
                v6_upper(ip),
            )
        }
        Net::Other(..) => return vec![frame.clone()],
    };
    let room = (mtu.saturating_sub(header) & !7).max(8);
    let last = upper.len().saturating_sub(1) / room;
    upper
        .chunks(room)
        .enumerate()
        .map(|(n, part)| {
            let offset = (n * room / 8) as u16;
            frame
                .clone()
                .raw(protocol, part)
                .fragment(offset, n < last, id)
        })
        .collect()
}

impl Frame {
    /// The frame's bytes, from the Ethernet header on, without padding.
    pub fn bytes(&self) -> Vec<u8> {
        let mut out = [self.dst, self.src].concat();
        for vlan in &self.vlans {
            out.extend(vlan.tpid.to_be_bytes());
            out.extend(vlan.tci.to_be_bytes());
        }
        let (ethertype, body) = match &self.net {
            Net::V4(ip) => (ETHERTYPE_V4, v4_bytes(ip)),
            Net::V6(ip) => (ETHERTYPE_V6, v6_bytes(ip)),
            Net::Other(ethertype, bytes) => (*ethertype, bytes.clone()),
        };
        out.extend(ethertype.to_be_bytes());
        out.extend(body);
        out
    }
}

/// The number that the last header before the upper layer holds.
fn upper_protocol(l4: &L4, v6: bool) -> u8 {
    match l4 {
        L4::Tcp(_) => proto::TCP,
        L4::Udp(_) => proto::UDP,
        L4::Sctp(_) => proto::SCTP,
        L4::Icmp(_) if v6 => proto::ICMPV6,
        L4::Icmp(_) => proto::ICMP,
        L4::Raw(protocol, _) => *protocol,
    }
}

fn v4_header_len(ip: &Ipv4) -> usize {
    20 + padded(&ip.options, 40).len()
}

/// At most `max` octets, filled with zeros to a multiple of four.
fn padded(bytes: &[u8], max: usize) -> Vec<u8> {
    let mut out = bytes[..bytes.len().min(max)].to_vec();
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn v4_bytes(ip: &Ipv4) -> Vec<u8> {
    let options = padded(&ip.options, 40);
    let header = 20 + options.len();
    let upper = v4_upper(ip);
    let total = (header + upper.len()) as u16;
    let fragment = (u16::from(ip.df) << 14) | (u16::from(ip.mf) << 13) | (ip.offset & 0x1fff);
    let mut out = vec![0x40 | (header / 4) as u8, ip.tos];
    out.extend(total.to_be_bytes());
    out.extend(ip.id.to_be_bytes());
    out.extend(fragment.to_be_bytes());
    out.extend([ip.ttl, upper_protocol(&ip.l4, false), 0, 0]);
    out.extend(ip.src.octets());
    out.extend(ip.dst.octets());
    out.extend(options);
    let sum = checksum::internet(&[&out]);
    out[10..12].copy_from_slice(&sum.to_be_bytes());
    out.extend(upper);
    out
}

fn v4_upper(ip: &Ipv4) -> Vec<u8> {
    let pseudo = |protocol: u8, len: usize| {
        let mut out = [ip.src.octets(), ip.dst.octets()].concat();
        out.extend([0, protocol]);
        out.extend((len as u16).to_be_bytes());
        out
    };
    upper_bytes(&ip.l4, &pseudo, false)
}

fn v6_bytes(ip: &Ipv6) -> Vec<u8> {
    let mut next = upper_protocol(&ip.l4, true);
    let mut extensions: Vec<Vec<u8>> = Vec::new();
    for extension in ip.extensions.iter().rev() {
        extensions.push(extension_bytes(extension, next));
        next = match extension {
            Extension::Sized(number, _) => *number,
            Extension::Fragment { .. } => proto::FRAGMENT,
        };
    }
    extensions.reverse();
    let payload = [extensions.concat(), v6_upper(ip)].concat();
    let first = (6 << 28) | (u32::from(ip.class) << 20) | (ip.flow & 0xf_ffff);
    let mut out = first.to_be_bytes().to_vec();
    out.extend((payload.len() as u16).to_be_bytes());
    out.extend([next, ip.hop_limit]);
    out.extend(ip.src.octets());
    out.extend(ip.dst.octets());
    out.extend(payload);
    out
}

fn extension_bytes(extension: &Extension, next: u8) -> Vec<u8> {
    match extension {
        Extension::Sized(_, body) => {
            let mut out = vec![next, 0];
            out.extend(body);
            out.resize(out.len().next_multiple_of(8), 0);
            out[1] = (out.len() / 8 - 1) as u8;
            out
        }
        Extension::Fragment { offset, more, id } => {
            let mut out = vec![next, 0];
            out.extend(((offset << 3) | u16::from(*more)).to_be_bytes());
            out.extend(id.to_be_bytes());
            out
        }
    }
}

fn v6_upper(ip: &Ipv6) -> Vec<u8> {
    let pseudo = |protocol: u8, len: usize| {
        let mut out = [ip.src.octets(), ip.dst.octets()].concat();
        out.extend((len as u32).to_be_bytes());
        out.extend([0, 0, 0, protocol]);
        out
    };
    upper_bytes(&ip.l4, &pseudo, true)
}

/// `pseudo` is the pseudo-header for a protocol and an upper-layer length.
fn upper_bytes(l4: &L4, pseudo: &dyn Fn(u8, usize) -> Vec<u8>, v6: bool) -> Vec<u8> {
    let protocol = upper_protocol(l4, v6);
    match l4 {
        L4::Tcp(tcp) => {
            let mut out = tcp_bytes(tcp);
            let sum = checksum::internet(&[&pseudo(protocol, out.len()), &out]);
            out[16..18].copy_from_slice(&sum.to_be_bytes());
            out
        }
        L4::Udp(udp) => {
            let mut out = udp_bytes(udp);
            if !udp.no_checksum {
                let sum = checksum::internet(&[&pseudo(protocol, out.len()), &out]);
                // Zero would mean "none" (RFC 768); its other form means the same sum.
                let sum = if sum == 0 { 0xffff } else { sum };
                out[6..8].copy_from_slice(&sum.to_be_bytes());
            }
            out
        }
        L4::Sctp(sctp) => sctp_bytes(sctp),
        L4::Icmp(icmp) => {
            let mut out = icmp_bytes(icmp);
            let pseudo = if v6 {
                pseudo(protocol, out.len())
            } else {
                Vec::new()
            };
            let sum = checksum::internet(&[&pseudo, &out]);
            out[2..4].copy_from_slice(&sum.to_be_bytes());
            out
        }
        L4::Raw(_, bytes) => bytes.clone(),
    }
}

fn tcp_bytes(tcp: &Tcp) -> Vec<u8> {
    let options = padded(&tcp.options, 40);
    let mut out = [tcp.sport.to_be_bytes(), tcp.dport.to_be_bytes()].concat();
    out.extend(tcp.seq.to_be_bytes());
    out.extend(tcp.ack.to_be_bytes());
    out.extend([((20 + options.len()) / 4 * 16) as u8, tcp.flags]);
    out.extend(tcp.window.to_be_bytes());
    out.extend([0; 4]);
    out.extend(options);
    out.extend(&tcp.payload);
    out
}

fn udp_bytes(udp: &Udp) -> Vec<u8> {
    let mut out = [udp.sport.to_be_bytes(), udp.dport.to_be_bytes()].concat();
    out.extend(((8 + udp.payload.len()) as u16).to_be_bytes());
    out.extend([0; 2]);
    out.extend(&udp.payload);
    out
}

fn sctp_bytes(sctp: &Sctp) -> Vec<u8> {
    let mut out = [sctp.sport.to_be_bytes(), sctp.dport.to_be_bytes()].concat();
    out.extend(sctp.tag.to_be_bytes());
    out.extend([0; 4]);
    out.extend([sctp.chunk, sctp.chunk_flags]);
    out.extend(((4 + sctp.payload.len()) as u16).to_be_bytes());
    out.extend(&sctp.payload);
    out.resize(out.len().next_multiple_of(4), 0);
    let crc = checksum::crc32c(&out);
    out[8..12].copy_from_slice(&crc.to_le_bytes());
    out
}

fn icmp_bytes(icmp: &Icmp) -> Vec<u8> {
    let mut out = vec![icmp.kind, icmp.code, 0, 0];
    out.extend(icmp.rest);
    out.extend(&icmp.payload);
    out
}
