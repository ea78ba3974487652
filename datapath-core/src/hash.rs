//! The hash that selects backends and outer source ports. It has no seed: every
//! node selects the same slot for a flow.

use datapath_common::Address;

const K1: u64 = 0x9e37_79b9_7f4a_7c15;
const K2: u64 = 0xd6e8_feb8_6659_fd93;

#[inline(always)]
fn mix(h: u64, word: u64) -> u64 {
    let x = (h ^ word).wrapping_mul(K2);
    x ^ (x >> 32)
}

/// Hash over addresses, ports and protocol.
#[inline(always)]
pub fn flow_hash<A: Address>(src: A, dst: A, sport: u16, dport: u16, proto: u8) -> u32 {
    let (s, d) = (src.words(), dst.words());
    let ports = (sport as u64) << 48 | (dport as u64) << 32 | (proto as u64) << 24;
    let mut h = mix(K1 ^ ports, (s[0] as u64) << 32 | d[0] as u64);
    if A::VERSION == 6 {
        h = mix(h, (s[1] as u64) << 32 | s[2] as u64);
        h = mix(h, (s[3] as u64) << 32 | d[1] as u64);
        h = mix(h, (d[2] as u64) << 32 | d[3] as u64);
    }
    (h.wrapping_mul(K1) >> 32) as u32
}

/// Hash over a client's address.
#[inline(always)]
pub fn source_hash<A: Address>(src: A) -> u32 {
    flow_hash(src, A::UNSPECIFIED, 0, 0, 0)
}

/// Scales a hash to `0..n`; 0 for `n` = 0.
#[inline(always)]
pub fn reduce(hash: u32, n: u32) -> u32 {
    ((hash as u64 * n as u64) >> 32) as u32
}
