//! Addresses and networks as Kubernetes objects write them.

use std::net::{IpAddr, Ipv4Addr};

use datapath_common::Mac;
use ipnet::IpNet;

/// Parses an address; octets with leading zeros are decimal (KP-07), and an
/// IPv4-mapped IPv6 address is the IPv4 address.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    if let Ok(addr) = text.parse::<IpAddr>() {
        return Some(addr.to_canonical());
    }
    match text.rfind(':') {
        None => sloppy_v4(text).map(IpAddr::V4),
        Some(colon) => {
            let (head, tail) = text.split_at(colon + 1);
            let v4 = sloppy_v4(tail)?;
            format!("{head}{v4}")
                .parse::<IpAddr>()
                .ok()
                .map(|a| a.to_canonical())
        }
    }
}

/// Parses a network in CIDR form; host bits are cut off, leading zeros are decimal (KP-07).
pub fn parse_net(text: &str) -> Option<IpNet> {
    let (addr, len) = text.split_once('/')?;
    if len.is_empty() || !len.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let net = IpNet::new(parse_ip(addr)?, len.parse().ok()?).ok()?;
    Some(net.trunc())
}

/// Parses six octets in hexadecimal, separated by colons.
pub fn parse_mac(text: &str) -> Option<Mac> {
    let mut octets = [0; 6];
    let mut parts = text.split(':');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        *octet = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then(|| Mac::new(octets))
}

/// Why nothing can be forwarded to this address, if so: no host has it.
pub fn not_unicast(addr: IpAddr) -> Option<&'static str> {
    let link_local = match addr {
        IpAddr::V4(a) => a.is_link_local(),
        IpAddr::V6(a) => a.is_unicast_link_local(),
    };
    if addr.is_unspecified() {
        Some("unspecified")
    } else if addr.is_loopback() {
        Some("a loopback address")
    } else if addr.is_multicast() {
        Some("a multicast address")
    } else if addr == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some("the broadcast address")
    } else if link_local {
        Some("a link-local address")
    } else {
        None
    }
}

fn sloppy_v4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() {
            0
        } else {
            digits.parse().ok()?
        };
    }
    parts.next().is_none().then(|| octets.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kp07_leading_zeros_are_decimal() {
        for (text, want) in [
            ("172.30.0.041", Some("172.30.0.41")),
            ("010.000.00.08", Some("10.0.0.8")),
            ("10.0.0.1", Some("10.0.0.1")),
            ("::ffff:10.0.0.01", Some("10.0.0.1")),
            ("64:ff9b::010.0.0.1", Some("64:ff9b::a00:1")),
            ("fd00::0001", Some("fd00::1")),
            ("10.0.0", None),
            ("10.0.0.256", None),
            ("10.0.0.1.1", None),
            ("10.0.0.-1", None),
            ("10.0..1", None),
            ("", None),
            ("None", None),
            (" 10.0.0.1", None),
        ] {
            assert_eq!(parse_ip(text), want.map(|w| w.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn networks_lose_host_bits() {
        assert_eq!(
            parse_net("10.244.01.9/24"),
            Some("10.244.1.0/24".parse().unwrap())
        );
        assert_eq!(
            parse_net("fd00:1::5/64"),
            Some("fd00:1::/64".parse().unwrap())
        );
        for bad in ["10.0.0.0", "10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "x/8"] {
            assert_eq!(parse_net(bad), None, "{bad}");
        }
    }

    #[test]
    fn mac_addresses() {
        assert_eq!(
            parse_mac("0A:58:c0:00:02:01"),
            Some(Mac::new([0x0a, 0x58, 0xc0, 0, 2, 1]))
        );
        for bad in [
            "",
            "0a:58",
            "0a:58:c0:00:02:01:00",
            "0a:58:c0:00:02:+1",
            "a:b:c:d:e:f",
        ] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }
}
