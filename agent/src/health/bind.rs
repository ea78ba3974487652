//! Where health check node ports are open (pure).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::args::NodePortAddresses;
use crate::model::Family;

/// The addresses that serve node ports, `here` of those that were `asked` for;
/// a family of which all serve, or none is known, is listened at as a whole (KP-154, KP-34).
pub fn addresses(asked: &NodePortAddresses, here: &[IpAddr]) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for (family, any) in [
        (Family::V4, IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
        (Family::V6, IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
    ] {
        let all = match asked {
            NodePortAddresses::Primary => false,
            NodePortAddresses::Within(nets) => {
                let mut ours = nets.iter().filter(|n| Family::of(n.addr()) == family);
                // Networks of the other family alone say nothing of this one.
                let silent = ours.clone().next().is_none();
                silent || ours.any(|net| net.prefix_len() == 0)
            }
        };
        let of = here.iter().filter(|ip| Family::of(**ip) == family);
        let known: Vec<IpAddr> = of.copied().collect();
        if all || known.is_empty() {
            addresses.push(any);
        } else {
            addresses.extend(known);
        }
    }
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kp154_wildcard_or_each_address() {
        let of = |asked: &str, here: &[&str]| {
            let here: Vec<IpAddr> = here.iter().map(|ip| ip.parse().unwrap()).collect();
            let listened = addresses(&asked.parse().unwrap(), &here);
            let listened: Vec<String> = listened.iter().map(ToString::to_string).collect();
            listened.join(" ")
        };
        let both = ["192.0.2.1", "198.51.100.1", "2001:db8::1"];
        for (asked, here, listened) in [
            ("primary", &both[1..], "198.51.100.1 2001:db8::1"),
            ("primary", &both[..1], "192.0.2.1 ::"),
            ("0.0.0.0/0", &both, "0.0.0.0 ::"),
            ("0.0.0.0/0,2001:db8::/32", &both, "0.0.0.0 2001:db8::1"),
            ("192.0.2.0/24", &both[..1], "192.0.2.1 ::"),
            (
                "192.0.2.0/24,198.51.100.0/24,::/0",
                &both,
                "192.0.2.1 198.51.100.1 ::",
            ),
            ("10.0.0.0/8,fd00::/8", &[], "0.0.0.0 ::"),
        ] {
            assert_eq!(of(asked, here), listened, "{asked} of {here:?}");
        }
    }
}
