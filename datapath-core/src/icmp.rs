//! ICMP errors as a router sends them (RFC 792, RFC 1812 §4.3.2, RFC 4443 §2.4).

use datapath_common::{Address as _, Ip4, Ip6, proto};

use crate::{Family, Fragment, Headers, checksum::Sum};

/// The errors that the datapath answers with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IcmpError {
    /// Nobody serves this port (3/3, 1/4). TCP is answered with a reset instead.
    PortUnreachable,
    /// TTL or hop limit used up (11/0, 3/0).
    TimeExceeded,
    /// Larger than the overlay's MTU (3/4, 2/0).
    TooBig,
}

/// Words of an IPv4 packet that an error quotes: header and 8 octets. As many as
/// the error's own headers have.
pub const QUOTE_V4: usize = 7;
/// Words of an IPv6 packet that an error quotes: header and 8 octets. As many as
/// the error's own headers have.
pub const QUOTE_V6: usize = 12;

/// TTL and hop limit of answers (RFC 1700's default).
pub(crate) const TTL: u8 = 64;

/// Whether a packet may be answered with an error.
#[inline(always)]
pub fn is_answerable<F: Family>(headers: &Headers<F::Addr>) -> bool {
    headers.plain
        && !headers.icmp_error
        && headers.fragment != Fragment::Later
        && !F::is_martian(headers.src)
}

/// IPv4 and ICMP header, as words in memory order, of the answer to the packet
/// that begins with `quote`. `mtu` is the next hop's, for [`IcmpError::TooBig`].
#[inline(always)]
pub fn headers_v4(
    quote: &[u32; QUOTE_V4],
    router: Ip4,
    error: IcmpError,
    mtu: u16,
) -> [u32; QUOTE_V4] {
    const LENGTH: u16 = 4 * 2 * QUOTE_V4 as u16;
    let (kind, code, mtu) = match error {
        IcmpError::PortUnreachable => (3, 3, 0),
        IcmpError::TimeExceeded => (11, 0, 0),
        IcmpError::TooBig => (3, 4, mtu),
    };
    // Precedence "internetwork control", as RFC 1812 §4.3.2.5 recommends.
    let first = halves(0x45c0, LENGTH);
    let third = halves(u16::from_be_bytes([TTL, proto::ICMP]), 0);
    let to = quote[3];
    let header = sum(&[first, third, router.word(), to]).to_field();
    let icmp = halves(u16::from_be_bytes([kind, code]), 0);
    let rest = halves(0, mtu);
    let body = sum(&[icmp, rest]).add(sum(quote).fold32()).to_field();
    [
        first,
        0,
        third | halves(0, u16::from_be(header)),
        router.word(),
        to,
        icmp | halves(0, u16::from_be(body)),
        rest,
    ]
}

/// IPv6 and ICMPv6 header, as words in memory order, of the answer to the packet
/// that begins with `quote`. `mtu` is the next hop's, for [`IcmpError::TooBig`].
#[inline(always)]
pub fn headers_v6(
    quote: &[u32; QUOTE_V6],
    router: Ip6,
    error: IcmpError,
    mtu: u16,
) -> [u32; QUOTE_V6] {
    const LENGTH: u16 = 8 + 4 * QUOTE_V6 as u16;
    let (kind, code, mtu) = match error {
        IcmpError::PortUnreachable => (1, 4, 0),
        IcmpError::TimeExceeded => (3, 0, 0),
        IcmpError::TooBig => (2, 0, mtu),
    };
    let r = router.words();
    let to = [quote[2], quote[3], quote[4], quote[5]];
    let icmp = halves(u16::from_be_bytes([kind, code]), 0);
    let rest = halves(0, mtu);
    // The pseudo header: addresses, length, next header (RFC 8200 §8.1).
    let pseudo = sum(&r)
        .add(sum(&to).fold32())
        .add(halves(LENGTH, proto::ICMPV6 as u16));
    let body = pseudo
        .add(sum(quote).fold32())
        .add(icmp)
        .add(rest)
        .to_field();
    [
        halves(0x6000, 0),
        halves(LENGTH, u16::from_be_bytes([proto::ICMPV6, TTL])),
        r[0],
        r[1],
        r[2],
        r[3],
        to[0],
        to[1],
        to[2],
        to[3],
        icmp | halves(0, u16::from_be(body)),
        rest,
    ]
}

/// Two 16-bit numbers as they lie in a packet, in one word.
#[inline(always)]
pub(crate) const fn halves(first: u16, second: u16) -> u32 {
    ((first as u32) << 16 | second as u32).to_be()
}

#[inline(always)]
fn sum<const N: usize>(words: &[u32; N]) -> Sum {
    words.iter().fold(Sum::ZERO, |sum, word| sum.add(*word))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use etherparse::{Icmpv4Slice, Icmpv6Slice, Ipv4Slice, Ipv6Slice};
    use std::vec::Vec;

    /// Type and code.
    type Code = (u8, u8);

    /// Each error with its IPv4 and its IPv6 code.
    const ERRORS: [(IcmpError, Code, Code); 3] = [
        (IcmpError::PortUnreachable, (3, 3), (1, 4)),
        (IcmpError::TimeExceeded, (11, 0), (3, 0)),
        (IcmpError::TooBig, (3, 4), (2, 0)),
    ];

    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_ne_bytes()).collect()
    }

    proptest::proptest! {
        #[test]
        fn answers_v4_are_what_a_router_sends(quote: [u32; QUOTE_V4], router: [u8; 4], mtu: u16) {
            for (error, (kind, code), _) in ERRORS {
                let head = headers_v4(&quote, Ip4::new(router), error, mtu);
                let packet = bytes(&[&head[..], &quote[..]].concat());
                let ip = Ipv4Slice::from_slice(&packet).unwrap();
                proptest::prop_assert_eq!(
                    ip.header().header_checksum(),
                    ip.header().to_header().calc_header_checksum()
                );
                proptest::prop_assert_eq!(ip.header().source(), router);
                proptest::prop_assert_eq!(&ip.header().destination()[..], &packet[40..44]);
                let icmp = Icmpv4Slice::from_slice(ip.payload().payload).unwrap();
                proptest::prop_assert_eq!((icmp.type_u8(), icmp.code_u8()), (kind, code));
                let whole = etherparse::checksum::Sum16BitWords::new()
                    .add_slice(ip.payload().payload)
                    .ones_complement();
                proptest::prop_assert_eq!(whole, 0);
                let told = u16::from_be_bytes([packet[26], packet[27]]);
                proptest::prop_assert_eq!(told, if error == IcmpError::TooBig { mtu } else { 0 });
            }
        }

        #[test]
        fn answers_v6_are_what_a_router_sends(quote: [u32; QUOTE_V6], router: [u8; 16], mtu: u16) {
            for (error, _, (kind, code)) in ERRORS {
                let head = headers_v6(&quote, Ip6::new(router), error, mtu);
                let packet = bytes(&[&head[..], &quote[..]].concat());
                let ip = Ipv6Slice::from_slice(&packet).unwrap();
                proptest::prop_assert_eq!(ip.header().source(), router);
                proptest::prop_assert_eq!(&ip.header().destination()[..], &packet[56..72]);
                let icmp = Icmpv6Slice::from_slice(ip.payload().payload).unwrap();
                proptest::prop_assert_eq!((icmp.type_u8(), icmp.code_u8()), (kind, code));
                proptest::prop_assert!(
                    icmp.is_checksum_valid(ip.header().source(), ip.header().destination())
                );
                let told = u32::from_be_bytes([packet[44], packet[45], packet[46], packet[47]]);
                let mtu = if error == IcmpError::TooBig { u32::from(mtu) } else { 0 };
                proptest::prop_assert_eq!(told, mtu);
            }
        }
    }
}
