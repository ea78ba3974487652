//! The hand-written twin of `tulle_pod_from`: what the two ways of an IPv4 TCP packet would cost that
//! the aims name, established service flow and no service, if they were written straight down,
//! without core, traits and decision. It shares maps and layouts with the programs and does all that they do with such
//! packets; it returns [`BROKEN`] for any other.

use core::mem;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        __sk_buff, BPF_ADJ_ROOM_ENCAP_L2_SHIFT, BPF_F_ADJ_ROOM_ENCAP_L2_ETH,
        BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP, BPF_F_ADJ_ROOM_FIXED_GSO,
        BPF_F_PSEUDO_HDR, bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_redir_neigh,
    },
    btf_maps::lpm_trie::Key,
    helpers::generated::{
        bpf_l4_csum_replace, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_adjust_room,
        bpf_skb_pull_data,
    },
    macros::classifier,
    programs::TcContext,
};
use datapath_common::{
    Config, Direction, FlowKey, FrontendFlags, FrontendKey, Hook, Ip4, Reason, Via, ViaKind,
    counter_index, proto,
};

use crate::{BROKEN, maps};

#[unsafe(no_mangle)]
static CONFIG: Config = Config::EMPTY;

const ETH: usize = 14;
const HEADERS: usize = ETH + 20 + 20;
const OVERHEAD: u32 = 50;
const TCP_CHECKSUM: usize = ETH + 20 + 16;

/// The twin.
#[classifier]
pub fn bench_twin(ctx: TcContext) -> i32 {
    // SAFETY: the context is the program's own.
    unsafe { twin(ctx.as_ptr().cast()) }.unwrap_or(BROKEN)
}

/// A word of the packet.
macro_rules! at {
    ($start:expr, $offset:expr, $ty:ty) => {
        *(($start + $offset) as *mut $ty)
    };
}

/// # Safety
/// `skb` is a program's context. Every access to the packet follows a comparison with its end;
/// unaligned words are fine where BPF code runs.
#[inline(always)]
unsafe fn twin(skb: *mut __sk_buff) -> Option<i32> {
    // SAFETY: the caller's.
    unsafe {
        let config = core::hint::black_box(&CONFIG);
        // Parse.
        if (*skb).vlan_present != 0 || (*skb).protocol != u32::from(0x0800_u16.to_be()) {
            return None;
        }
        let len = (*skb).len;
        let (mut start, mut end) = ((*skb).data as usize, (*skb).data_end as usize);
        if start + HEADERS > end {
            bpf_skb_pull_data(skb, 192.min(len));
            (start, end) = ((*skb).data as usize, (*skb).data_end as usize);
            if start + HEADERS > end {
                return None;
            }
        }
        let total = u32::from(u16::from_be(at!(start, ETH + 2, u16)));
        let fragment = u16::from_be(at!(start, ETH + 6, u16));
        let ttl_proto = at!(start, ETH + 8, u16);
        let [ttl, protocol] = ttl_proto.to_ne_bytes();
        let (src, dst) = (at!(start, ETH + 12, u32), at!(start, ETH + 16, u32));
        if at!(start, ETH, u8) != 0x45
            || total < 40
            || total > len - ETH as u32
            || fragment & 0x3fff != 0
            || protocol != proto::TCP
        {
            return None;
        }
        let dst_host = u32::from_be(dst);
        if dst_host >> 28 == 14 || dst_host >> 16 == 0xa9fe || dst_host == u32::MAX {
            return None;
        }
        let ports = at!(start, ETH + 20, u32);
        let [a, b, c, d] = ports.to_ne_bytes();
        let (sport, dport) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        // SYN, FIN, RST.
        if at!(start, ETH + 20 + 13, u8) & 0x07 != 0 {
            return None;
        }
        let tcp_len = u32::from(at!(start, ETH + 20 + 12, u8) >> 4) << 2;
        let hash = datapath_core::flow_hash(
            bytemuck::cast::<u32, Ip4>(src),
            bytemuck::cast::<u32, Ip4>(dst),
            sport,
            dport,
            proto::TCP,
        );
        // Frontend.
        let [low, high] = dport.to_ne_bytes();
        let key = [dst, u32::from_ne_bytes([low, high, proto::TCP, 0])];
        let via: &Via;
        let mut new_dst = dst;
        let mut new_ports = ports;
        if let Some(front) = maps::FRONT_V4.get(&*(&raw const key).cast::<FrontendKey<Ip4>>()) {
            let first = u32::from_be(src) >> 24;
            if first == 127 || first >= 224 || src == 0 || ttl <= 1 {
                return None;
            }
            if front.flags & FrontendFlags::FLOWS_DECIDE != 0 || front.len == 0 {
                return None;
            }
            // Segment, backend.
            let slot = front
                .start
                .wrapping_add(((u64::from(hash) * u64::from(front.len)) >> 32) as u32);
            let backend = maps::BACK_V4.get(*maps::SEGMENTS.get(slot)?)?;
            if !backend.is_active() || backend.addr.word() == src {
                return None;
            }
            via = &backend.via;
            new_dst = backend.addr.word();
            let [a, b] = sport.to_be_bytes();
            let [c, d] = backend.port.to_be_bytes();
            new_ports = u32::from_ne_bytes([a, b, c, d]);
        } else {
            let own = dst & config.pod_mask4.word() == config.pod_net4.word();
            let dst = bytemuck::cast::<u32, Ip4>(dst);
            via = if own {
                maps::PODS_V4.get(&dst)?
            } else {
                maps::PEERS_V4.get(&Key::new(32, dst))?
            };
            if ttl <= 1 {
                return None;
            }
            if own {
                let [a, b] = sport.to_ne_bytes();
                let [c, d] = dport.to_ne_bytes();
                let key = [
                    src,
                    dst.word(),
                    u32::from_ne_bytes([a, b, c, d]),
                    u32::from_ne_bytes([proto::TCP, Direction::Reply as u8, 0, 0]),
                ];
                if maps::FLOW_V4
                    .get_ptr_mut(&*(&raw const key).cast::<FlowKey<Ip4>>())
                    .is_some()
                {
                    return None;
                }
            }
        }
        let vxlan = via.kind == ViaKind::Vxlan as u8;
        if vxlan {
            let gso = (*skb).gso_size;
            let size = if gso == 0 {
                len - ETH as u32
            } else {
                gso + 20 + tcp_len
            };
            if gso == 0xffff || size > u32::from(config.overlay_mtu) {
                return None;
            }
        } else if via.kind != ViaKind::Local as u8 {
            return None;
        }
        // Rewrite.
        let [one, two] = [ttl - 1, protocol];
        let new_ttl = u16::from_ne_bytes([one, two]);
        let change = u64::from(!dst) + u64::from(new_dst);
        let change = fold32(change);
        let old_sum = at!(start, ETH + 10, u16);
        let sum = u64::from(!old_sum)
            + u64::from(change)
            + u64::from(!u32::from(ttl_proto))
            + u64::from(new_ttl);
        at!(start, ETH + 8, u16) = new_ttl;
        at!(start, ETH + 10, u16) = !fold16(fold32(sum));
        if new_dst != dst {
            at!(start, ETH + 16, u32) = new_dst;
            let before = at!(start, TCP_CHECKSUM, u16);
            if new_ports != ports {
                at!(start, ETH + 20, u32) = new_ports;
            }
            if bpf_l4_csum_replace(
                skb,
                TCP_CHECKSUM as u32,
                0,
                u64::from(change),
                u64::from(BPF_F_PSEUDO_HDR),
            ) != 0
            {
                return None;
            }
            (start, end) = ((*skb).data as usize, (*skb).data_end as usize);
            if start + HEADERS > end {
                return None;
            }
            if new_ports != ports {
                let after = at!(start, TCP_CHECKSUM, u16);
                if after == !fold16(fold32(u64::from(!before) + u64::from(change))) {
                    let sum = u64::from(!after) + u64::from(!ports) + u64::from(new_ports);
                    at!(start, TCP_CHECKSUM, u16) = !fold16(fold32(sum));
                }
            }
        }
        // Away.
        let macs = &*(&raw const via.dst_mac).cast::<[u32; 3]>();
        let (code, reason) = if vxlan {
            (
                encapsulate(skb, config, via, macs, hash, len)?,
                Reason::Encapsulated,
            )
        } else {
            at!(start, 0, [u32; 3]) = *macs;
            (
                bpf_redirect_peer(via.ifindex, 0) as i32,
                Reason::DeliveredLocal,
            )
        };
        // Count.
        if let Some(counter) = maps::COUNTS.get_ptr_mut(counter_index(Hook::PodFrom, reason)) {
            (*counter).packets += 1;
            (*counter).bytes += u64::from(len);
        }
        if maps::MONITOR
            .get(0)
            .is_some_and(|control| control.traces_until != 0)
        {
            return None;
        }
        Some(code)
    }
}

/// # Safety
/// As [`twin`].
#[inline(always)]
unsafe fn encapsulate(
    skb: *mut __sk_buff,
    config: &Config,
    via: &Via,
    macs: &[u32; 3],
    hash: u32,
    len: u32,
) -> Option<i32> {
    // SAFETY: the caller's.
    unsafe {
        let failed = bpf_skb_adjust_room(
            skb,
            OVERHEAD.cast_signed(),
            BPF_ADJ_ROOM_MAC,
            u64::from(
                BPF_F_ADJ_ROOM_FIXED_GSO
                    | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
                    | BPF_F_ADJ_ROOM_ENCAP_L4_UDP
                    | BPF_F_ADJ_ROOM_ENCAP_L2_ETH,
            ) | (ETH as u64) << BPF_ADJ_ROOM_ENCAP_L2_SHIFT,
        );
        let (start, end) = ((*skb).data as usize, (*skb).data_end as usize);
        if failed != 0 || start + ETH + OVERHEAD as usize > end {
            return None;
        }
        let port = 32_768 + ((u64::from(hash) * 28_232) >> 32) as u16;
        let count = maps::COUNTS
            .get_ptr(counter_index(Hook::PodFrom, Reason::Encapsulated))
            .map_or(0, |counter| (*counter).packets);
        let id = (count as u16)
            .wrapping_add(port.wrapping_mul(40_503))
            .to_be();
        let total = (len as u16 + 36).to_be();
        let sum = u64::from(via.outer_sum) + u64::from(total) + u64::from(id);
        at!(start, 12, u32) = u32::from_ne_bytes([0x08, 0x00, 0x45, 0]);
        at!(start, 16, u32) = u32::from(total) | u32::from(id) << 16;
        at!(start, 20, u32) = u32::from_ne_bytes([0, 0, 64, proto::UDP]);
        at!(start, 24, u16) = !fold16(fold32(sum));
        at!(start, 26, u32) = config.node_ip4.word();
        at!(start, 30, u32) = via.node.word();
        at!(start, 34, u16) = port.to_be();
        at!(start, 36, u16) = config.vxlan_port.to_be();
        at!(start, 38, u32) = u32::from((len as u16 + 16).to_be());
        at!(start, 42, u32) = 0x08;
        at!(start, 46, u32) = (config.vni << 8).to_be();
        at!(start, 50, u32) = macs[0];
        at!(start, 54, u32) = macs[1];
        at!(start, 58, u32) = macs[2];
        at!(start, 62, u16) = 0x0800_u16.to_be();
        let mut hop: bpf_redir_neigh = mem::zeroed();
        hop.nh_family = 2;
        hop.__bindgen_anon_1.ipv4_nh = via.next_hop.word();
        Some(bpf_redirect_neigh(
            via.ifindex,
            &raw mut hop,
            (size_of::<bpf_redir_neigh>() as u32).cast_signed(),
            0,
        ) as i32)
    }
}

#[inline(always)]
fn fold32(sum: u64) -> u32 {
    let s = (sum & 0xffff_ffff) + (sum >> 32);
    ((s & 0xffff_ffff) + (s >> 32)) as u32
}

#[inline(always)]
fn fold16(sum: u32) -> u16 {
    let s = (sum & 0xffff) + (sum >> 16);
    ((s & 0xffff) + (s >> 16)) as u16
}
