//! The Internet checksum (RFC 1071, RFC 1624) and SCTP's CRC32c.
//!
//! An Internet checksum is a sum of 16-bit words in whatever order they lie in
//! memory: it is never byte-swapped as long as all words are read alike.

use datapath_common::Address;

use crate::Headers;

/// A running one's complement sum over native-order words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sum(u64);

impl Sum {
    /// The sum of nothing.
    pub const ZERO: Self = Self(0);

    /// Continues from a checksum field as it lies in memory.
    #[inline(always)]
    pub const fn from_field(field: u16) -> Self {
        Self(!field as u64)
    }

    /// Adds a 32-bit word.
    #[inline(always)]
    #[must_use]
    pub const fn add(self, word: u32) -> Self {
        Self(self.0 + word as u64)
    }

    /// Takes a 32-bit word away.
    #[inline(always)]
    #[must_use]
    pub const fn sub(self, word: u32) -> Self {
        Self(self.0 + !word as u64)
    }

    /// The sum in 32 bits, as the kernel's `__wsum`.
    #[inline(always)]
    pub const fn fold32(self) -> u32 {
        let s = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        ((s & 0xffff_ffff) + (s >> 32)) as u32
    }

    /// The sum in 16 bits, not complemented.
    #[inline(always)]
    pub const fn fold16(self) -> u16 {
        let s = self.fold32() as u64;
        let s = (s & 0xffff) + (s >> 16);
        let s = (s & 0xffff) + (s >> 16);
        s as u16
    }

    /// The checksum field as it lies in memory.
    #[inline(always)]
    pub const fn to_field(self) -> u16 {
        !self.fold16()
    }

    /// Adds octets in pairs as they lie in memory; `bytes` has an even length.
    #[inline(always)]
    #[must_use]
    pub fn add_bytes(self, bytes: &[u8]) -> Self {
        let mut sum = self;
        for pair in bytes.chunks_exact(2) {
            sum = sum.add(u16::from_ne_bytes([pair[0], pair[1]]) as u32);
        }
        sum
    }
}

/// What a TCP or UDP checksum field is to hold once the ports have changed by `ports`, if the
/// kernel's helper turned it from `before` into `after` when the addresses changed by `addresses`.
///
/// What the helper did tells what is in the field: a whole checksum, which takes the ports, or the
/// sum of the addresses only, which a device is to complete (Linux' `CHECKSUM_PARTIAL`) and the
/// ports do not change. `None` where both would look alike, and near the 0 that says "no checksum"
/// in UDP (`zero_is_none`): then the helper has to be asked again.
#[inline(always)]
pub fn with_ports(
    before: u16,
    after: u16,
    addresses: u32,
    ports: Sum,
    zero_is_none: bool,
) -> Option<u16> {
    let whole = Sum::from_field(before).add(addresses).to_field();
    let partial = Sum::from_field(!before).add(addresses).fold16();
    if whole == partial || (zero_is_none && (before == 0 || whole == 0)) {
        return None;
    }
    if after == partial {
        return Some(after);
    }
    let field = Sum::from_field(after).add(ports.fold32()).to_field();
    if after != whole || (zero_is_none && field == 0) {
        return None;
    }
    Some(field)
}

/// Whether a TCP or UDP checksum field holds only the sum of the pseudo header, which a device
/// was to complete (Linux' `CHECKSUM_PARTIAL`), as it is where a sender of the same machine is
/// met before its driver. One whole checksum of 65,536 looks so by chance.
#[inline(always)]
pub fn is_partial<A: Address>(h: &Headers<A>, field: u16) -> bool {
    let (s, d) = (h.src.words(), h.dst.words());
    let mut pseudo = Sum::ZERO
        .add((h.proto as u32).to_be())
        .add(h.l4_total.to_be());
    for word in [s[0], s[1], s[2], s[3], d[0], d[1], d[2], d[3]] {
        pseudo = pseudo.add(word);
    }
    field == pseudo.fold16()
}

/// A whole TCP or UDP checksum after what it covers changed; `zero_is_none`: 0 says that there is
/// none (UDP).
#[inline(always)]
pub fn changed(field: u16, change: Sum, zero_is_none: bool) -> u16 {
    if zero_is_none && field == 0 {
        return 0;
    }
    let now = Sum::from_field(field).add(change.fold32()).to_field();
    if zero_is_none && now == 0 {
        u16::MAX
    } else {
        now
    }
}

/// SCTP's checksum after the 4 octets at the start of the packet (the ports)
/// changed by `delta` (old xor new, as little-endian word), for a packet of
/// `len` octets.
///
/// CRC32c is linear over GF(2): the change of the checksum is the CRC, without
/// initial value and final complement, of the change of the packet, that is of
/// `delta` followed by `len - 4` zero octets. The field holds the CRC in
/// little-endian order (RFC 9260, appendix A).
#[inline(always)]
pub fn crc32c_change(delta: u32, len: u32) -> u32 {
    // Reflected representation. First the four octets of delta themselves, then
    // the zeros: 64 at a time and the rest, from tables, so that the verifier
    // follows three multiplications only.
    let zeros = len.wrapping_sub(4) & 0xffff;
    let crc = multiply(delta, X32);
    let crc = multiply(crc, ZEROS[(zeros & 63) as usize]);
    multiply(crc, BLOCKS[(zeros >> 6) as usize])
}

/// CRC32c's polynomial, reflected, without its highest term.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// 1, x^8 and x^32 modulo the polynomial, reflected.
const ONE: u32 = 0x8000_0000;
const X8: u32 = 0x0080_0000;
const X32: u32 = POLYNOMIAL;

/// x^(8 i): what `i` zero octets multiply by.
static ZEROS: [u32; 64] = powers(X8);
/// x^(512 i): what `i` blocks of 64 zero octets multiply by.
static BLOCKS: [u32; 1024] = powers(multiply(ZEROS_63, X8));
const ZEROS_63: u32 = powers::<64>(X8)[63];

const fn powers<const N: usize>(base: u32) -> [u32; N] {
    let mut table = [ONE; N];
    let mut i = 1;
    while i < N {
        table[i] = multiply(table[i - 1], base);
        i += 1;
    }
    table
}

/// Product modulo the polynomial of two reflected residues.
#[inline(always)]
const fn multiply(a: u32, b: u32) -> u32 {
    let (mut product, mut b, mut bit) = (0, b, 0);
    // Without branches: the verifier would follow both sides of each.
    while bit < 32 {
        product ^= b & ((a >> (31 - bit)) & 1).wrapping_neg();
        b = (b >> 1) ^ (POLYNOMIAL & (b & 1).wrapping_neg());
        bit += 1;
    }
    product
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::{Just, prop_oneof};
    use std::vec::Vec;

    fn crc32c(bytes: &[u8]) -> u32 {
        let mut crc = u32::MAX;
        for &byte in bytes {
            crc ^= byte as u32;
            for _ in 0..8 {
                crc = (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg());
            }
        }
        !crc
    }

    #[test]
    fn crc32c_of_the_rfc_3720_vector() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    proptest::proptest! {
        #[test]
        fn incremental_sum_equals_recomputation(
            mut words in proptest::collection::vec(0u32.., 4..12),
            at in 0usize..4,
            new in 0u32..,
        ) {
            let before = words.iter().fold(Sum::ZERO, |s, w| s.add(*w)).to_field();
            let changed = Sum::from_field(before).sub(words[at]).add(new).to_field();
            words[at] = new;
            let fresh = words.iter().fold(Sum::ZERO, |s, w| s.add(*w)).to_field();
            // 0x0000 and 0xffff are the same number in one's complement.
            proptest::prop_assert!(changed == fresh || changed ^ fresh == 0xffff);
        }

        #[test]
        fn ports_are_added_as_the_kernel_would(
            before in prop_oneof![Just(0u16), Just(u16::MAX), 0u16..],
            addresses in prop_oneof![Just(0u32), Just(0xffffu32), Just(u32::MAX), 0u32..],
            ports in prop_oneof![Just(0u32), Just(0xffffu32), 0u32..],
            partial: bool,
            udp: bool,
        ) {
            // Linux, `bpf_l4_csum_replace` and `inet_proto_csum_replace_by_diff`.
            let kernel = |field: u16, change: u32, pseudo: bool| {
                if udp && field == 0 {
                    return field;
                }
                let new = match (partial, pseudo) {
                    (false, _) => Sum::from_field(field).add(change).to_field(),
                    (true, true) => Sum::from_field(!field).add(change).fold16(),
                    (true, false) => field,
                };
                if udp && new == 0 { 0xffff } else { new }
            };
            let after = kernel(before, addresses, true);
            let told = with_ports(
                before,
                after,
                addresses,
                Sum::ZERO.add(ports),
                udp,
            );
            if let Some(told) = told {
                proptest::prop_assert_eq!(told, kernel(after, ports, false));
            }
        }

        #[test]
        fn crc_change_equals_recomputation(
            mut packet in proptest::collection::vec(0u8.., 12..2000),
            ports in 0u32..,
        ) {
            let before = crc32c(&packet);
            let old = u32::from_le_bytes([packet[0], packet[1], packet[2], packet[3]]);
            packet[..4].copy_from_slice(&ports.to_le_bytes());
            let after = crc32c(&packet);
            let length = packet.len() as u32;
            proptest::prop_assert_eq!(before ^ crc32c_change(old ^ ports, length), after);
        }

        #[test]
        fn sum_of_bytes_is_the_sum_of_words(words in proptest::collection::vec(0u32.., 1..20)) {
            let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
            let by_words = words.iter().fold(Sum::ZERO, |s, w| s.add(*w)).fold16();
            proptest::prop_assert_eq!(Sum::ZERO.add_bytes(&bytes).fold16(), by_words);
        }
    }
}
