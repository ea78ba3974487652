//! What is done before an skb is made: plain packets, and their checksums.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[allow(dead_code, reason = "each test file uses a part")]
mod plain;

use datapath_core::checksum::{Sum, changed, is_partial};
use datapath_core::{ETH_LEN, Family, Headers, V4, V6};
use etherparse::{PacketBuilder, PacketBuilderStep, UdpHeader};
use plain::Bytes;
use proptest::prelude::{Just, prop_oneof, proptest};
use proptest::{prop_assert, prop_assert_eq};

type Ends = ([u8; 4], [u8; 4], u16, u16);

fn datagram((src, dst, sport, dport): Ends, v6: bool, payload: &[u8]) -> Vec<u8> {
    let wide = |[a, b, c, d]: [u8; 4]| [0x20, 1, a, b, 0, c, 0, 0, 0, 0, d, 0, 0, 0, 0, a];
    let ethernet = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let builder: PacketBuilderStep<UdpHeader> = if v6 {
        ethernet.ipv6(wide(src), wide(dst), 64).udp(sport, dport)
    } else {
        ethernet.ipv4(src, dst, 64).udp(sport, dport)
    };
    let mut frame = Vec::new();
    builder.write(&mut frame, payload).unwrap();
    frame
}

fn parsed<F: Family>(frame: &[u8]) -> Option<Headers<F::Addr>> {
    let mut headers = Headers::EMPTY;
    F::parse(&Bytes::new(frame), ETH_LEN, &mut headers).ok()?;
    Some(headers)
}

fn plainly<F: Family>(frame: &[u8]) -> Option<Headers<F::Addr>> {
    let mut headers = Headers::EMPTY;
    F::parse_plain(&Bytes::new(frame), ETH_LEN, &mut headers).ok()?;
    Some(headers)
}

fn check_parsers<F: Family>(frame: &[u8]) -> Result<(), proptest::test_runner::TestCaseError> {
    if let Some(headers) = plainly::<F>(frame) {
        prop_assert!(parsed::<F>(frame) == Some(headers), "{frame:02x?}");
    }
    Ok(())
}

/// Where a datagram's checksum lies.
fn field_at(v6: bool) -> usize {
    ETH_LEN + if v6 { 40 } else { 20 } + 6
}

fn field(frame: &[u8], v6: bool) -> u16 {
    let at = field_at(v6);
    u16::from_ne_bytes([frame[at], frame[at + 1]])
}

fn looks_partial(frame: &[u8], v6: bool, field: u16) -> bool {
    if v6 {
        is_partial(&plainly::<V6>(frame).unwrap(), field)
    } else {
        is_partial(&plainly::<V4>(frame).unwrap(), field)
    }
}

proptest! {
    #[test]
    fn what_is_plain_is_parsed_alike(
        ends: Ends,
        v6: bool,
        proto in prop_oneof![Just(6_u8), Just(17), 0_u8..],
        payload in proptest::collection::vec(0_u8.., 0..40),
        harm in proptest::option::of((0_usize..80, 0_u8..)),
        cut in proptest::option::of(0_usize..80),
    ) {
        let mut frame = datagram(ends, v6, &payload);
        frame[ETH_LEN + if v6 { 6 } else { 9 }] = proto;
        if let Some((at, octet)) = harm {
            let at = at % frame.len();
            frame[at] = octet;
        }
        if let Some(cut) = cut {
            frame.truncate(frame.len().min(cut));
        }
        check_parsers::<V4>(&frame)?;
        check_parsers::<V6>(&frame)?;
    }

    #[test]
    fn a_pseudo_headers_sum_alone_is_told_apart(
        mut ends: Ends,
        v6: bool,
        payload in proptest::collection::vec(0_u8.., 1..60),
    ) {
        // Not to a group, which is not looked at.
        ends.1[0] = 10;
        let frame = datagram(ends, v6, &payload);
        let whole = field(&frame, v6);
        let at = field_at(v6);
        let mut covered = frame[at - 6..].to_vec();
        covered[6..8].fill(0);
        covered.resize(covered.len().next_multiple_of(2), 0);
        let own = Sum::ZERO.add_bytes(&covered);
        let pseudo = Sum::from_field(whole).sub(own.fold32()).fold16();
        prop_assert!(looks_partial(&frame, v6, pseudo));
        prop_assert_eq!(looks_partial(&frame, v6, whole), whole == pseudo);
    }

    #[test]
    fn a_changed_checksum_is_a_new_ones(
        ends: Ends,
        other: Ends,
        v6: bool,
        payload in proptest::collection::vec(0_u8.., 0..60),
    ) {
        let (old, new) = (datagram(ends, v6, &payload), datagram(other, v6, &payload));
        // Addresses and ports lie together.
        let covered = ETH_LEN + if v6 { 8 } else { 12 }..field_at(v6) - 2;
        let change = Sum::ZERO
            .add_bytes(&new[covered.clone()])
            .sub(Sum::ZERO.add_bytes(&old[covered]).fold32());
        let now = changed(field(&old, v6), change, true);
        let wanted = field(&new, v6);
        prop_assert!(now == wanted, "{now:04x}, not {wanted:04x}");
        prop_assert_eq!(changed(0, change, true), 0, "none stays none");
    }
}
