//! The TCP reset that refuses a connection (RFC 9293 §3.5.2).
//!
//! An ICMP error would reach the client while it still holds its socket's lock
//! to send the SYN; Linux then keeps the error for the next retransmission, a
//! second later. A reset is queued and read at once.

use datapath_common::{Address as _, Ip4, Ip6, proto};

use crate::{
    Headers,
    checksum::Sum,
    icmp::{TTL, halves},
    wire,
};

/// Words of IPv4 and TCP header.
pub const RESET_V4: usize = 10;
/// Words of IPv6 and TCP header.
pub const RESET_V6: usize = 15;

/// Octets of a TCP header without options.
const TCP_LEN: u16 = 20;

/// The reset's TCP header, in words in memory order. `pseudo` is the sum of the
/// addresses.
#[inline(always)]
fn tcp<A>(h: &Headers<A>, refused: &wire::Tcp, pseudo: Sum) -> [u32; 5] {
    let payload = h.l4_total.wrapping_sub(h.l4_len as u32);
    let counted =
        (refused.flags & wire::Tcp::SYN != 0) as u32 + (refused.flags & wire::Tcp::FIN != 0) as u32;
    let (sequence, acknowledgement, flags) = if refused.flags & wire::Tcp::ACK != 0 {
        (refused.acknowledgement.get(), 0, wire::Tcp::RST)
    } else {
        let next = refused
            .sequence
            .get()
            .wrapping_add(payload)
            .wrapping_add(counted);
        (0, next, wire::Tcp::RST | wire::Tcp::ACK)
    };
    let ports = halves(h.dport, h.sport);
    let offset_flags = halves(u16::from_be_bytes([(TCP_LEN as u8 / 4) << 4, flags]), 0);
    let sum = pseudo
        .add(halves(TCP_LEN, proto::TCP as u16))
        .add(ports)
        .add(sequence.to_be())
        .add(acknowledgement.to_be())
        .add(offset_flags)
        .to_field();
    [
        ports,
        sequence.to_be(),
        acknowledgement.to_be(),
        offset_flags,
        halves(u16::from_be(sum), 0),
    ]
}

/// Whether a segment may be answered with a reset: not one that is a reset.
#[inline(always)]
pub fn is_answerable(refused: &wire::Tcp) -> bool {
    refused.flags & wire::Tcp::RST == 0
}

/// The IPv4 packet, as words in memory order, that refuses the segment `refused`.
#[inline(always)]
pub fn packet_v4(h: &Headers<Ip4>, refused: &wire::Tcp) -> [u32; RESET_V4] {
    let (src, dst) = (h.dst.word(), h.src.word());
    let addresses = Sum::ZERO.add(src).add(dst);
    let first = halves(0x4500, 20 + TCP_LEN);
    // "Don't fragment", as the kernel's own resets.
    let second = halves(0, 0x4000);
    let third = halves(u16::from_be_bytes([TTL, proto::TCP]), 0);
    let sum = addresses.add(first).add(second).add(third).to_field();
    let t = tcp(h, refused, addresses);
    [
        first,
        second,
        third | halves(0, u16::from_be(sum)),
        src,
        dst,
        t[0],
        t[1],
        t[2],
        t[3],
        t[4],
    ]
}

/// The IPv6 packet, as words in memory order, that refuses the segment `refused`.
#[inline(always)]
pub fn packet_v6(h: &Headers<Ip6>, refused: &wire::Tcp) -> [u32; RESET_V6] {
    let (s, d) = (h.dst.words(), h.src.words());
    let addresses = s
        .iter()
        .chain(&d)
        .fold(Sum::ZERO, |sum, word| sum.add(*word));
    let t = tcp(h, refused, addresses);
    [
        halves(0x6000, 0),
        halves(TCP_LEN, u16::from_be_bytes([proto::TCP, TTL])),
        s[0],
        s[1],
        s[2],
        s[3],
        d[0],
        d[1],
        d[2],
        d[3],
        t[0],
        t[1],
        t[2],
        t[3],
        t[4],
    ]
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::wire::Tcp;
    use etherparse::{Ipv4Slice, Ipv6Slice, TcpSlice};
    use std::vec::Vec;

    fn bytes(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_ne_bytes()).collect()
    }

    fn headers<A: datapath_common::Address>(src: A, dst: A, payload: u32) -> Headers<A> {
        Headers {
            src,
            dst,
            sport: 40_000,
            dport: 80,
            l4_len: 32,
            l4_total: 32 + payload,
            ..Headers::EMPTY
        }
    }

    fn expected(refused: &Tcp, payload: u32) -> (u32, u32, bool) {
        if refused.flags & wire::Tcp::ACK != 0 {
            return (refused.acknowledgement.get(), 0, false);
        }
        let syn = u32::from(refused.flags & wire::Tcp::SYN != 0);
        let fin = u32::from(refused.flags & wire::Tcp::FIN != 0);
        (
            0,
            refused.sequence.get().wrapping_add(payload + syn + fin),
            true,
        )
    }

    fn check(tcp: &TcpSlice<'_>, refused: &Tcp, payload: u32) {
        let (sequence, acknowledgement, ack) = expected(refused, payload);
        assert_eq!((tcp.source_port(), tcp.destination_port()), (80, 40_000));
        assert_eq!(
            (tcp.sequence_number(), tcp.acknowledgment_number()),
            (sequence, acknowledgement)
        );
        assert!(tcp.rst() && tcp.ack() == ack && !tcp.syn() && !tcp.fin());
    }

    proptest::proptest! {
        #[test]
        fn a_reset_is_what_rfc_9293_says(
            src: [u8; 4], dst: [u8; 4], src6: [u8; 16], dst6: [u8; 16],
            words: [u32; 2], flags in 0u8..32, payload in 0u32..1400,
        ) {
            let mut refused: Tcp = bytemuck::Zeroable::zeroed();
            refused.sequence = wire::Be32::new(words[0]);
            refused.acknowledgement = wire::Be32::new(words[1]);
            refused.flags = flags & !wire::Tcp::RST;

            let packet = bytes(&packet_v4(&headers(Ip4::new(src), Ip4::new(dst), payload), &refused));
            let ip = Ipv4Slice::from_slice(&packet).unwrap();
            proptest::prop_assert_eq!(
                ip.header().header_checksum(), ip.header().to_header().calc_header_checksum());
            proptest::prop_assert_eq!((ip.header().source(), ip.header().destination()), (dst, src));
            let tcp = TcpSlice::from_slice(ip.payload().payload).unwrap();
            check(&tcp, &refused, payload);
            proptest::prop_assert_eq!(
                tcp.checksum(), tcp.to_header().calc_checksum_ipv4_raw(dst, src, &[]).unwrap());

            let packet = bytes(&packet_v6(&headers(Ip6::new(src6), Ip6::new(dst6), payload), &refused));
            let ip = Ipv6Slice::from_slice(&packet).unwrap();
            proptest::prop_assert_eq!((ip.header().source(), ip.header().destination()), (dst6, src6));
            let tcp = TcpSlice::from_slice(ip.payload().payload).unwrap();
            check(&tcp, &refused, payload);
            proptest::prop_assert_eq!(
                tcp.checksum(), tcp.to_header().calc_checksum_ipv6_raw(dst6, src6, &[]).unwrap());
        }
    }
}
