//! A frame in one line.

use std::fmt::{Display, Formatter, Result};

use super::{Extension, Frame, L4, Net, Tcp, flags, proto};
use crate::link::format_mac;

impl Display for Frame {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        for vlan in &self.vlans {
            write!(f, "vlan {} ", vlan.tci & 0xfff)?;
        }
        match &self.net {
            Net::V4(ip) => {
                let (sport, dport) = ports(&ip.l4);
                write!(f, "{}{sport} > {}{dport} ttl {}", ip.src, ip.dst, ip.ttl)?;
                if ip.tos != 0 {
                    write!(f, " tos {:#04x}", ip.tos)?;
                }
                if ip.df {
                    f.write_str(" DF")?;
                }
                if ip.mf || ip.offset != 0 {
                    fragment(f, ip.offset, ip.mf, u32::from(ip.id))?;
                }
                if !ip.options.is_empty() {
                    write!(f, " options {}", ip.options.len())?;
                }
                write!(f, ", {}", ip.l4)
            }
            Net::V6(ip) => {
                let (sport, dport) = match ports(&ip.l4) {
                    (s, d) if s.is_empty() => (ip.src.to_string() + &s, ip.dst.to_string() + &d),
                    (s, d) => (format!("[{}]{s}", ip.src), format!("[{}]{d}", ip.dst)),
                };
                write!(f, "{sport} > {dport} hop limit {}", ip.hop_limit)?;
                for extension in &ip.extensions {
                    match extension {
                        Extension::Sized(proto::HOP_BY_HOP, _) => f.write_str(" hop-by-hop")?,
                        Extension::Sized(proto::ROUTING, _) => f.write_str(" routing")?,
                        Extension::Sized(proto::DESTINATION, _) => {
                            f.write_str(" destination-options")?;
                        }
                        Extension::Sized(number, _) => write!(f, " extension {number}")?,
                        Extension::Fragment { offset, more, id } => {
                            fragment(f, *offset, *more, *id)?;
                        }
                    }
                }
                write!(f, ", {}", ip.l4)
            }
            Net::Other(ethertype, bytes) => write!(
                f,
                "{} > {} type {ethertype:#06x}, {} octets",
                format_mac(self.src),
                format_mac(self.dst),
                bytes.len()
            ),
        }
    }
}

impl Display for L4 {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Self::Tcp(tcp) => {
                write!(f, "TCP {} seq {} ack {}", letters(tcp), tcp.seq, tcp.ack)?;
                octets(f, tcp.payload.len())
            }
            Self::Udp(udp) => {
                f.write_str("UDP")?;
                octets(f, udp.payload.len())
            }
            Self::Sctp(sctp) => {
                write!(f, "SCTP chunk {} tag {:#x}", sctp.chunk, sctp.tag)?;
                octets(f, sctp.payload.len())
            }
            Self::Icmp(icmp) => {
                write!(f, "ICMP {}/{}", icmp.kind, icmp.code)?;
                octets(f, icmp.payload.len())
            }
            Self::Raw(protocol, bytes) => {
                write!(f, "protocol {protocol}")?;
                octets(f, bytes.len())
            }
        }
    }
}

fn octets(f: &mut Formatter<'_>, n: usize) -> Result {
    if n == 0 {
        Ok(())
    } else {
        write!(f, ", {n} octets")
    }
}

fn fragment(f: &mut Formatter<'_>, offset: u16, more: bool, id: u32) -> Result {
    let more = if more { "+" } else { "" };
    write!(f, " fragment {id:#x}@{}{more}", usize::from(offset) * 8)
}

fn ports(l4: &L4) -> (String, String) {
    let (sport, dport) = match l4 {
        L4::Tcp(l4) => (l4.sport, l4.dport),
        L4::Udp(l4) => (l4.sport, l4.dport),
        L4::Sctp(l4) => (l4.sport, l4.dport),
        L4::Icmp(_) | L4::Raw(..) => return (String::new(), String::new()),
    };
    (format!(":{sport}"), format!(":{dport}"))
}

fn letters(tcp: &Tcp) -> String {
    let names = [
        (flags::SYN, "SYN"),
        (flags::FIN, "FIN"),
        (flags::RST, "RST"),
        (flags::PSH, "PSH"),
        (flags::ACK, "ACK"),
        (flags::URG, "URG"),
    ];
    let set: Vec<&str> = names
        .iter()
        .filter(|(bit, _)| tcp.flags & bit != 0)
        .map(|n| n.1)
        .collect();
    if set.is_empty() {
        "no flags".to_owned()
    } else {
        set.join("+")
    }
}
