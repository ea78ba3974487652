//! Configurations of the programs.

use std::net::Ipv6Addr;

use datapath_common::{Config, Feature, IdleTicks, Ip4, Ip6, Mac};

/// How many configurations there are; each is loaded once.
pub const CONFIGS: u8 = 10;

/// A configuration by number: 0 as usual, 1 with limits, another VNI and port,
/// a small MTU and an old kernel, 2 without overlay, 3 with an MTU that little
/// fits and one grant of each kind. The rest serve on the uplink: 4 with few
/// ports for translated sources, 5 without overlay and without IPv6 of its own,
/// 6 with limits, a small MTU, no VTEP device, one such port and an old kernel,
/// 7 with `tulle_nic_out` at the loopback device, 8 with `tulle_nic_in` at the VTEP
/// device of an old kernel, 9 with pods behind a bridge.
pub fn config(number: u8) -> Config {
    let idle = IdleTicks {
        tcp_opening: 6,
        tcp_established: 40,
        tcp_closing: 5,
        udp_opening: 3,
        udp_established: 12,
        sctp_opening: 7,
        sctp_established: 50,
        sctp_closing: 4,
    };
    // Long enough that ports of closing connections are asked for.
    let long = IdleTicks {
        tcp_closing: 45,
        sctp_closing: 45,
        ..idle
    };
    let usual = Config {
        node_ip4: Ip4::new([192, 168, 7, 1]),
        pod_net4: Ip4::new([10, 244, 1, 0]),
        pod_mask4: Ip4::new([255, 255, 255, 0]),
        router_ip4: Ip4::new([10, 244, 1, 254]),
        pod_net6: Ip6::from(Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, 0)),
        pod_mask6: Ip6::from(Ipv6Addr::from_bits(!0 << 64)),
        router_ip6: Ip6::from(Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, 0xfe)),
        uplink: 9,
        vni: 1,
        vxlan_port: 8472,
        overlay_mtu: 1450,
        vtep_mac: Mac::new([0xee, 1, 1, 1, 1, 1]),
        uplink_mac: Mac::new([0x52, 0x54, 0, 7, 7, 7]),
        stripped_mac: Mac::new([0xee, 7, 7, 7, 7, 7]),
        reserved: 0,
        features: Feature::OVERLAY
            | Feature::DECAP_6_IN_4
            | Feature::ICMP_ERRORS
            | Feature::SERVICE_NETWORKS,
        node_ip6: Ip6::from(Ipv6Addr::new(0xfd07, 0, 0, 0, 0, 0, 0, 1)),
        vtep: 11,
        loopback: 0,
        bridge: 0,
        snat_first: 10_000,
        snat_ports: 64,
        flows_per_tick: 0,
        errors_per_tick: 0,
        idle,
        netns: [0; 2],
    };
    match number % CONFIGS {
        0 => usual,
        1 => Config {
            vni: 0x00ab_cdef,
            vxlan_port: 4789,
            overlay_mtu: 600,
            features: Feature::OVERLAY
                | Feature::COUNT_SERVICES
                | Feature::SERVICE_NETWORKS
                | Feature::CALLS,
            flows_per_tick: 4,
            errors_per_tick: 3,
            ..usual
        },
        2 => Config {
            features: 0,
            ..usual
        },
        3 => Config {
            overlay_mtu: 90,
            flows_per_tick: 1,
            errors_per_tick: 1,
            ..usual
        },
        4 => Config {
            features: usual.features
                | Feature::UPLINK_SERVICES
                | Feature::MASQUERADE
                | Feature::COUNT_SERVICES,
            snat_ports: 2,
            idle: long,
            ..usual
        },
        5 => Config {
            features: Feature::DECAP_6_IN_4
                | Feature::ICMP_ERRORS
                | Feature::UPLINK_SERVICES
                | Feature::MASQUERADE,
            vtep: 0,
            node_ip6: Ip6::new([0; 16]),
            pod_net6: Ip6::new([0; 16]),
            pod_mask6: Ip6::new([0xff; 16]),
            ..usual
        },
        6 => Config {
            vni: 7,
            overlay_mtu: 600,
            features: Feature::OVERLAY
                | Feature::ICMP_ERRORS
                | Feature::UPLINK_SERVICES
                | Feature::MASQUERADE
                | Feature::COUNT_SERVICES
                | Feature::SERVICE_NETWORKS
                | Feature::CALLS,
            vtep: 0,
            snat_ports: 1,
            flows_per_tick: 4,
            errors_per_tick: 3,
            idle: long,
            ..usual
        },
        // Where test runs put every packet.
        7 => Config {
            features: usual.features | Feature::UPLINK_SERVICES | Feature::MASQUERADE,
            loopback: 1,
            ..usual
        },
        // The same.
        8 => Config {
            features: (usual.features & !Feature::DECAP_6_IN_4)
                | Feature::UPLINK_SERVICES
                | Feature::MASQUERADE
                | Feature::CALLS,
            vtep: 1,
            ..usual
        },
        _ => Config {
            overlay_mtu: 200,
            features: usual.features | Feature::UPLINK_SERVICES | Feature::MASQUERADE,
            bridge: 21,
            idle: long,
            ..usual
        },
    }
}
