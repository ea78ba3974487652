//! From bytes to values, and whether lengths and checksums are right.

use super::{
    ETHERTYPE_V4, ETHERTYPE_V6, Extension, Frame, Icmp, Ipv4, Ipv6, L4, Net, Sctp, Tcp, Udp, Vlan,
    checksum, proto,
};

/// What is wrong with a packet.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Fault {
    /// The bytes end inside a header, or before what a length field says.
    #[error("{0} ends early: {1} octets needed, {2} there")]
    Short(&'static str, usize, usize),
    /// A field has an impossible value.
    #[error("{0} is {1}")]
    Field(&'static str, usize),
    /// A checksum is wrong.
    #[error("{0} checksum is wrong")]
    Checksum(&'static str),
    /// It is no VXLAN packet.
    #[error("not VXLAN")]
    NotVxlan,
}

/// A VXLAN header (RFC 7348) and what it carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vxlan {
    /// Flags: 8 if the identifier is valid.
    pub flags: u8,
    /// Network identifier.
    pub vni: u32,
    /// The inner frame's bytes.
    pub inner: Vec<u8>,
}

/// Parses a frame. Padding after the IP packet is left out.
pub fn parse(bytes: &[u8]) -> Result<Frame, Fault> {
    walk(bytes, false)
}

/// Parses a frame and checks every checksum that can be checked: of all
/// headers of an unfragmented packet, of the IPv4 header of a fragment, and of
/// the inner frame of VXLAN on UDP port 8472.
pub fn verify(bytes: &[u8]) -> Result<Frame, Fault> {
    let frame = walk(bytes, true)?;
    if let Some(L4::Udp(udp)) = frame.upper()
        && udp.dport == 8472
    {
        let vxlan = unwrap_vxlan(&frame)?;
        verify(&vxlan.inner)?;
    }
    Ok(frame)
}

/// What a VXLAN packet carries, whatever its UDP port.
pub fn unwrap_vxlan(frame: &Frame) -> Result<Vxlan, Fault> {
    let Some(L4::Udp(udp)) = frame.upper() else {
        return Err(Fault::NotVxlan);
    };
    let (header, inner) = udp.payload.split_at_checked(8).ok_or(Fault::NotVxlan)?;
    Ok(Vxlan {
        flags: header[0],
        vni: be32(header, 4) >> 8,
        inner: inner.to_vec(),
    })
}

fn walk(bytes: &[u8], check: bool) -> Result<Frame, Fault> {
    let header = take("Ethernet header", bytes, 14)?;
    let (mut dst, mut src) = ([0; 6], [0; 6]);
    dst.copy_from_slice(&header[..6]);
    src.copy_from_slice(&header[6..12]);
    let mut ethertype = be16(header, 12);
    let mut body = &bytes[14..];
    let mut vlans = Vec::new();
    while matches!(ethertype, 0x8100 | 0x88a8) {
        let tag = take("VLAN tag", body, 4)?;
        vlans.push(Vlan {
            tpid: ethertype,
            tci: be16(tag, 0),
        });
        ethertype = be16(tag, 2);
        body = &body[4..];
    }
    let net = match ethertype {
        ETHERTYPE_V4 => Net::V4(v4(body, check)?),
        ETHERTYPE_V6 => Net::V6(v6(body, check)?),
        other => Net::Other(other, body.to_vec()),
    };
    Ok(Frame {
        dst,
        src,
        vlans,
        net,
    })
}

fn v4(bytes: &[u8], check: bool) -> Result<Ipv4, Fault> {
    let fixed = take("IPv4 header", bytes, 20)?;
    if fixed[0] >> 4 != 4 {
        return Err(Fault::Field("IP version", usize::from(fixed[0] >> 4)));
    }
    let len = usize::from(fixed[0] & 15) * 4;
    if len < 20 {
        return Err(Fault::Field("IPv4 header length", len));
    }
    let header = take("IPv4 header", bytes, len)?;
    let total = usize::from(be16(header, 2));
    if total < len {
        return Err(Fault::Field("IPv4 total length", total));
    }
    let upper = &take("IPv4 packet", bytes, total)?[len..];
    if check && checksum::internet(&[header]) != 0 {
        return Err(Fault::Checksum("IPv4 header"));
    }
    let fragment = be16(header, 6);
    let (mf, offset) = (fragment & 0x2000 != 0, fragment & 0x1fff);
    let mut pseudo = header[12..20].to_vec();
    pseudo.extend([0, header[9]]);
    pseudo.extend((upper.len() as u16).to_be_bytes());
    Ok(Ipv4 {
        src: octets::<4>(header, 12).into(),
        dst: octets::<4>(header, 16).into(),
        tos: header[1],
        id: be16(header, 4),
        df: fragment & 0x4000 != 0,
        mf,
        offset,
        ttl: header[8],
        options: header[20..].to_vec(),
        l4: l4(
            header[9],
            upper,
            &Place {
                v6: false,
                mf,
                offset,
                pseudo,
                check,
            },
        )?,
    })
}

fn v6(bytes: &[u8], check: bool) -> Result<Ipv6, Fault> {
    let header = take("IPv6 header", bytes, 40)?;
    let first = be32(header, 0);
    if first >> 28 != 6 {
        return Err(Fault::Field("IP version", (first >> 28) as usize));
    }
    let len = usize::from(be16(header, 4));
    let mut rest = &take("IPv6 packet", bytes, 40 + len)?[40..];
    let mut next = header[6];
    let mut extensions = Vec::new();
    let (mut mf, mut offset) = (false, 0);
    loop {
        let number = next;
        match number {
            proto::HOP_BY_HOP | proto::ROUTING | proto::DESTINATION if offset == 0 => {
                let size = take("IPv6 extension header", rest, 2)?[1];
                let extension = take("IPv6 extension header", rest, 8 + usize::from(size) * 8)?;
                extensions.push(Extension::Sized(number, extension[2..].to_vec()));
                next = extension[0];
                rest = &rest[extension.len()..];
            }
            proto::FRAGMENT if offset == 0 => {
                let extension = take("IPv6 fragment header", rest, 8)?;
                (mf, offset) = (extension[3] & 1 != 0, be16(extension, 2) >> 3);
                extensions.push(Extension::Fragment {
                    offset,
                    more: mf,
                    id: be32(extension, 4),
                });
                next = extension[0];
                rest = &rest[8..];
            }
            _ => break,
        }
    }
    let mut pseudo = header[8..40].to_vec();
    pseudo.extend((rest.len() as u32).to_be_bytes());
    pseudo.extend([0, 0, 0, next]);
    Ok(Ipv6 {
        src: octets::<16>(header, 8).into(),
        dst: octets::<16>(header, 24).into(),
        class: (first >> 20) as u8,
        flow: first & 0xf_ffff,
        hop_limit: header[7],
        extensions,
        l4: l4(
            next,
            rest,
            &Place {
                v6: true,
                mf,
                offset,
                pseudo,
                check,
            },
        )?,
    })
}

/// What the IP header says about the upper layer.
struct Place {
    v6: bool,
    mf: bool,
    offset: u16,
    pseudo: Vec<u8>,
    check: bool,
}

fn l4(protocol: u8, bytes: &[u8], place: &Place) -> Result<L4, Fault> {
    let fragment = place.mf || place.offset != 0;
    let check = place.check && !fragment;
    let icmp = if place.v6 { proto::ICMPV6 } else { proto::ICMP };
    let raw = || Ok(L4::Raw(protocol, bytes.to_vec()));
    if fragment {
        // Only the whole has lengths and checksums that can be right.
        return raw();
    }
    let with_pseudo = |name| {
        let right = !check || checksum::internet(&[&place.pseudo, bytes]) == 0;
        if right {
            Ok(())
        } else {
            Err(Fault::Checksum(name))
        }
    };
    match protocol {
        proto::TCP => {
            take("TCP header", bytes, 20)?;
            with_pseudo("TCP")?;
            tcp(bytes).map(L4::Tcp)
        }
        proto::UDP => {
            let header = take("UDP header", bytes, 8)?;
            let no_checksum = be16(header, 6) == 0;
            if !no_checksum {
                with_pseudo("UDP")?;
            } else if check && place.v6 {
                return Err(Fault::Checksum("UDP over IPv6"));
            }
            let len = usize::from(be16(header, 4));
            if len != bytes.len() {
                return Err(Fault::Field("UDP length", len));
            }
            Ok(L4::Udp(Udp {
                sport: be16(header, 0),
                dport: be16(header, 2),
                no_checksum,
                payload: bytes[8..].to_vec(),
            }))
        }
        proto::SCTP => sctp(bytes, check).map(L4::Sctp),
        number if number == icmp => {
            let header = take("ICMP header", bytes, 8)?;
            if place.v6 {
                with_pseudo("ICMPv6")?;
            } else if check && checksum::internet(&[bytes]) != 0 {
                return Err(Fault::Checksum("ICMP"));
            }
            Ok(L4::Icmp(Icmp {
                kind: header[0],
                code: header[1],
                rest: octets::<4>(header, 4),
                payload: bytes[8..].to_vec(),
            }))
        }
        _ => raw(),
    }
}

fn tcp(bytes: &[u8]) -> Result<Tcp, Fault> {
    let len = usize::from(bytes[12] >> 4) * 4;
    if len < 20 {
        return Err(Fault::Field("TCP header length", len));
    }
    let header = take("TCP header", bytes, len)?;
    Ok(Tcp {
        sport: be16(header, 0),
        dport: be16(header, 2),
        seq: be32(header, 4),
        ack: be32(header, 8),
        flags: header[13],
        window: be16(header, 14),
        options: header[20..].to_vec(),
        payload: bytes[len..].to_vec(),
    })
}

fn sctp(bytes: &[u8], check: bool) -> Result<Sctp, Fault> {
    let header = take("SCTP header", bytes, 16)?;
    let len = usize::from(be16(header, 14));
    if len < 4 {
        return Err(Fault::Field("SCTP chunk length", len));
    }
    let chunk = &take("SCTP chunk", bytes, 12 + len)?[12..];
    if check {
        let mut zeroed = bytes.to_vec();
        zeroed[8..12].fill(0);
        if checksum::crc32c(&zeroed).to_le_bytes() != bytes[8..12] {
            return Err(Fault::Checksum("SCTP"));
        }
    }
    Ok(Sctp {
        sport: be16(header, 0),
        dport: be16(header, 2),
        tag: be32(header, 4),
        chunk: chunk[0],
        chunk_flags: chunk[1],
        payload: chunk[4..].to_vec(),
    })
}

fn take<'a>(what: &'static str, bytes: &'a [u8], len: usize) -> Result<&'a [u8], Fault> {
    bytes.get(..len).ok_or(Fault::Short(what, len, bytes.len()))
}

/// The caller has checked that the octets are there.
fn octets<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(octets(bytes, at))
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(octets(bytes, at))
}
