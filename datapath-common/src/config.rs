//! Read-only data of the programs: what the agent fixes when it loads them.
//! The verifier knows these values and removes the code of what is off.

use crate::{Ip4, Ip6, Mac};

/// Bits of [`Config::features`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Feature;

impl Feature {
    /// `bpf_skb_adjust_room` can turn an IPv4 packet into the IPv6 packet that
    /// it carries (`BPF_F_ADJ_ROOM_DECAP_L3_IPV6`, Linux 6.3).
    pub const DECAP_6_IN_4: u32 = 1;
    /// The overlay is on: this node has a VTEP.
    pub const OVERLAY: u32 = 2;
    /// Services are served on the uplink too: for clients outside and for
    /// processes of the node.
    pub const UPLINK_SERVICES: u32 = 4;
    /// Pods that leave the cluster get the node's address.
    pub const MASQUERADE: u32 = 8;
    /// Traffic is counted for each service port and backend (`tulle_svc_stats`,
    /// `tulle_bk_stats4`, `tulle_bk_stats6`).
    pub const COUNT_SERVICES: u32 = 16;
    /// ICMP errors about translated packets are translated.
    pub const ICMP_ERRORS: u32 = 32;
    /// Later fragments for a service that come before the first one are held until it comes.
    pub const HOLD_FRAGMENTS: u32 = 64;
    /// Some networks have only addresses of services ([`Network::SERVICES`](crate::Network::SERVICES)):
    /// packets to free ones are dropped.
    pub const SERVICE_NETWORKS: u32 = 128;
    /// Services are served at the sockets of pods: whatever is not in the node's network namespace.
    pub const POD_SOCKETS: u32 = 256;
    /// Services are served at the sockets of the node's own processes.
    pub const NODE_SOCKETS: u32 = 512;
    /// Parsing and translating are functions that the verifier follows once, not for each state
    /// that leads there: for kernels that would not take the programs otherwise. A call and
    /// its return cost 7 ns where returns are guarded.
    pub const CALLS: u32 = 1024;
    /// Services with remote backends are served by `tulle_xdp`, before an skb is made.
    pub const XDP_SERVICES: u32 = 2048;
    /// `bpf_skc_to_mptcp_sock` tells the connections that MPTCP is made of (Linux 5.19).
    pub const TELLS_MPTCP: u32 = 4096;
    /// What a node can do without, where the kernel's verifier cannot follow the
    /// programs with all of it: services for pods and the overlay stay.
    pub const OPTIONAL: u32 = Self::UPLINK_SERVICES
        | Self::MASQUERADE
        | Self::COUNT_SERVICES
        | Self::ICMP_ERRORS
        | Self::HOLD_FRAGMENTS
        | Self::XDP_SERVICES;
}

/// When an idle flow has expired, in ticks by state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct IdleTicks {
    /// TCP without an answer.
    pub tcp_opening: u32,
    /// TCP, both ends heard (KP-127: 24 h).
    pub tcp_established: u32,
    /// TCP after FIN or RST.
    pub tcp_closing: u32,
    /// UDP without an answer.
    pub udp_opening: u32,
    /// UDP, both ends heard.
    pub udp_established: u32,
    /// SCTP without an answer.
    pub sctp_opening: u32,
    /// SCTP, both ends heard.
    pub sctp_established: u32,
    /// SCTP after SHUTDOWN or ABORT.
    pub sctp_closing: u32,
}

/// The symbol `CONFIG` of the object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Config {
    /// This node on the underlay: source of outer headers.
    pub node_ip4: Ip4,
    /// Network of this node's IPv4 pods. Its first address is the VTEP
    /// device's, and the source of what is masqueraded towards pods.
    pub pod_net4: Ip4,
    /// Mask of `pod_net4`; all ones with an all-zero network if there is none.
    pub pod_mask4: Ip4,
    /// Source of ICMP errors.
    pub router_ip4: Ip4,
    /// Network of this node's IPv6 pods.
    pub pod_net6: Ip6,
    /// Mask of `pod_net6`; all ones with an all-zero network if there is none.
    pub pod_mask6: Ip6,
    /// Source of ICMPv6 errors.
    pub router_ip6: Ip6,
    /// This node's IPv6 address, zero if it has none.
    pub node_ip6: Ip6,
    /// The uplink's interface index.
    pub uplink: u32,
    /// The VTEP device's interface index.
    pub vtep: u32,
    /// The loopback device's interface index, where `tulle_nic_out` is attached
    /// too; 0 if it is not.
    pub loopback: u32,
    /// The interface index of the bridge that pods of this node are behind: those in
    /// its pod network without a row in `tulle_pods_*`. 0 if there is none.
    pub bridge: u32,
    /// First port for translated sources, host order.
    pub snat_first: u16,
    /// How many ports there are for them.
    pub snat_ports: u16,
    /// VXLAN network identifier (RFC 7348), 24 bits.
    pub vni: u32,
    /// VXLAN's UDP port, host order.
    pub vxlan_port: u16,
    /// Largest packet in bytes, IP header included, that fits the overlay.
    pub overlay_mtu: u16,
    /// This node's VTEP address.
    pub vtep_mac: Mac,
    /// The uplink's address.
    pub uplink_mac: Mac,
    /// Sender of the frames that `tulle_xdp` took out of the overlay: random, on no link,
    /// and known to nobody but this node, so that nobody can forge it.
    pub stripped_mac: Mac,
    /// Zero.
    pub reserved: u16,
    /// Bits of [`Feature`].
    pub features: u32,
    /// New flows granted to each CPU in a tick; 0 for no limit.
    pub flows_per_tick: u32,
    /// ICMP errors granted to each CPU in a tick; 0 for no limit.
    pub errors_per_tick: u32,
    /// Idle times.
    pub idle: IdleTicks,
    /// Cookie of the node's network namespace, low word first.
    pub netns: [u32; 2],
}

pod! {
    IdleTicks = 32 [u32, u32, u32, u32, u32, u32, u32, u32];
    Config = 180 [Ip4, Ip4, Ip4, Ip4, Ip6, Ip6, Ip6, Ip6, u32, u32, u32, u32, u16, u16, u32, u16, u16, Mac, Mac, Mac, u16, u32, u32, u32, IdleTicks, [u32; 2]];
}

const fn secs(s: u64) -> u32 {
    (s * 1_000_000_000 / crate::TICK_NANOS) as u32
}

impl IdleTicks {
    /// The defaults: the kernel's conntrack timeouts, with kube-proxy's 24 h
    /// for established TCP (KP-127).
    pub const DEFAULT: Self = Self {
        tcp_opening: secs(60),
        tcp_established: secs(86_400),
        tcp_closing: secs(120),
        udp_opening: secs(30),
        udp_established: secs(120),
        sctp_opening: secs(60),
        sctp_established: secs(432_000),
        sctp_closing: secs(60),
    };
}

impl Config {
    /// Nothing configured: no pods of our own, no overlay.
    pub const EMPTY: Self = Self {
        node_ip4: Ip4::new([0; 4]),
        pod_net4: Ip4::new([0; 4]),
        pod_mask4: Ip4::new([0xff; 4]),
        router_ip4: Ip4::new([0; 4]),
        pod_net6: Ip6::new([0; 16]),
        pod_mask6: Ip6::new([0xff; 16]),
        router_ip6: Ip6::new([0; 16]),
        node_ip6: Ip6::new([0; 16]),
        uplink: 0,
        vtep: 0,
        loopback: 0,
        bridge: 0,
        snat_first: 0,
        snat_ports: 0,
        vni: 1,
        vxlan_port: 8472,
        overlay_mtu: 1450,
        vtep_mac: Mac::new([0; 6]),
        uplink_mac: Mac::new([0; 6]),
        stripped_mac: Mac::new([0; 6]),
        reserved: 0,
        features: 0,
        flows_per_tick: 0,
        errors_per_tick: 0,
        idle: IdleTicks::DEFAULT,
        netns: [0; 2],
    };
}
