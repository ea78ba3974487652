//! Why a packet left a program the way it did. One table: the counter index,
//! the metric's label, the CLI's text and the documents derive from it.
//! Numbers are never reused.

/// What a [`Reason`] means for the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    /// Left to the kernel's stack, which delivers it.
    Passed,
    /// Forwarded by the datapath.
    Forwarded,
    /// Answered with an ICMP error or a TCP reset and not forwarded.
    Refused,
    /// Dropped.
    Dropped,
}

impl Group {
    /// Whether the packet did not get where it wanted to go.
    pub const fn is_loss(self) -> bool {
        match self {
            Self::Passed | Self::Forwarded => false,
            Self::Refused | Self::Dropped => true,
        }
    }
}

macro_rules! reasons {
    ($($name:ident = $number:literal, $label:literal, $group:ident, $what:literal, $next:literal;)+) => {
        /// Why a packet left a program the way it did.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        #[repr(u8)]
        pub enum Reason {
            $(#[doc = $what] $name = $number,)+
        }

        impl Reason {
            /// Every reason, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The reason with this number.
            pub const fn from_u8(n: u8) -> Option<Self> {
                match n { $($number => Some(Self::$name),)+ _ => None }
            }

            /// Name for metrics and JSON; never changes.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label,)+ }
            }

            /// What it means for the packet.
            #[inline(always)]
            pub const fn group(self) -> Group {
                match self { $(Self::$name => Group::$group,)+ }
            }

            /// One sentence for people.
            pub const fn what(self) -> &'static str {
                match self { $(Self::$name => $what,)+ }
            }

            /// What an operator does next; empty where there is nothing to do.
            pub const fn next_step(self) -> &'static str {
                match self { $(Self::$name => $next,)+ }
            }
        }

        const _: () = { $(assert!(($number as u32) < REASONS);)+ };
    };
}

/// Room for reasons in each hook's part of `tulle_counters`.
pub(crate) const REASONS: u32 = 128;

reasons! {
    NotOurs = 1, "not_ours", Passed, "for no service and no pod that the datapath knows", "";
    NotIp = 2, "not_ip", Passed, "neither IPv4 nor IPv6 (ARP, for example)", "";
    Tagged = 3, "vlan_tagged", Passed, "carries a VLAN tag", "";
    Control = 4, "control", Passed, "multicast, link-local or neighbour discovery", "";
    SlowPath = 5, "slow_path", Passed, "for a known pod, left to the kernel: it comes from outside the overlay and through no service, or only the kernel can deliver it (fragmentation, options)", "";
    TranslatedToKernel = 6, "translated_to_kernel", Passed, "translated, then left to the kernel's routing", "";
    ForeignVni = 7, "foreign_vni", Passed, "VXLAN of another network identifier", "";
    OverlayToKernel = 8, "overlay_to_kernel", Passed, "overlay packet for this node but for no pod that the datapath knows", "";
    PartMissing = 9, "part_missing", Passed, "a part of the program is not loaded; left to the kernel",
        "Somebody removed the pin of `tulle_parts` while no agent ran: restart the agent.";
    LeftByXdp = 10, "left_by_xdp", Passed, "for a service's backend on another node or its client, but not sent by XDP; left to the classifiers",
        "Normal once a second for each next hop, by which the kernel sees whether it is still there. If it is most of them: is forwarding on for the uplink (net.ipv4.conf, net.ipv6.conf), does a route lead by another interface, is the MTU on the way smaller?";

    DeliveredLocal = 16, "delivered_local", Forwarded, "delivered to a pod of this node", "";
    Encapsulated = 17, "encapsulated", Forwarded, "sent to another node through the overlay", "";
    Decapsulated = 18, "decapsulated", Forwarded, "taken out of the overlay", "";
    ReplyTranslated = 19, "reply_translated", Forwarded, "reply of a service, its source translated back", "";

    Masqueraded = 20, "masqueraded", Forwarded, "left the cluster with the node's address", "";
    ErrorTranslated = 21, "error_translated", Forwarded, "ICMP error about a translated packet, translated like it", "";

    FragmentHeld = 22, "fragment_held", Forwarded, "later fragment for a service, kept until the first one of its datagram comes", "";

    NoEndpoints = 32, "no_endpoints", Refused, "the service has no usable endpoint; answered with a TCP reset or port unreachable",
        "Check the service's endpoints: `tulle services` shows 0 backends; are its pods ready, does its selector match?";
    NoSuchPort = 33, "no_such_port", Refused, "service address, but no service on this port or protocol; answered with a TCP reset or port unreachable",
        "The client uses a port that the Service does not list; compare with `tulle services`.";
    TtlExceeded = 34, "ttl_exceeded", Refused, "TTL or hop limit used up; answered with time exceeded",
        "Normal for traceroute; otherwise look for a routing loop between nodes (`tulle overlay`).";
    TooBig = 35, "too_big", Refused, "does not fit the overlay and must not be fragmented; answered with the MTU",
        "Normal for path MTU discovery; if it goes on, the sender ignores the answer: set the pod's MTU to the one that `tulle status` shows.";

    Truncated = 64, "truncated", Dropped, "shorter than its headers say",
        "A broken sender or a bad cable; capture at the interface that `tulle monitor` names.";
    BadHeader = 65, "bad_header", Dropped, "IP header with an impossible version or length",
        "A broken sender; `tulle monitor` shows its address.";
    UnknownNode = 66, "unknown_node", Dropped, "overlay packet from an address that is no node of the cluster",
        "If the sender is a node, its InternalIP or public-ip annotation is wrong or the agent has not seen it yet (`tulle overlay`); if not, someone sends forged overlay packets.";
    NewFlowLimit = 67, "new_flow_limit", Dropped, "too many new flows in one second",
        "A flood, or a limit that is too low: see `tulle flows --summary`, then raise --flows-per-second.";
    FlowTableFull = 68, "flow_table_full", Dropped, "the flow table took no new flow",
        "Raise --max-flows; `tulle status` shows how full the table is.";
    FragmentWithoutFirst = 69, "fragment_without_first", Dropped, "later fragment for a service whose first fragment was not seen",
        "The first fragment was lost or came later; lower the sender's datagram size below the MTU.";
    BackendGone = 70, "backend_gone", Dropped, "the segment names a backend that is not there",
        "Should not happen: `tulle services` and `tulle backends` disagree. Restart the agent to write the tables anew, and report it.";
    ErrorLimit = 71, "error_limit", Dropped, "refused without an answer: too many ICMP errors in one second",
        "A client keeps trying an address that refuses it; `tulle monitor` names it.";
    Unanswerable = 72, "unanswerable", Dropped, "refused without an answer: an ICMP error, a later fragment or a source that cannot be answered",
        "";
    RewriteFailed = 73, "rewrite_failed", Dropped, "the kernel refused to change the packet",
        "Usually out of memory; see `dmesg` and the node's free memory.";
    MartianSource = 74, "martian_source", Dropped, "for a service or an answer through one, from a source that its sender cannot have: unspecified, loopback or multicast; at the uplink also this node's own or one of its pods'",
        "A broken or hostile pod, or somebody on the uplink's link who forges sources; `tulle monitor` names the interface.";
    SnatPortsExhausted = 75, "snat_ports_exhausted", Dropped, "no port was free to translate the source to",
        "Too many flows to one backend from clients that are masqueraded: see `tulle snat`; widen --snat-ports or set externalTrafficPolicy: Local.";
    SourceNotAllowed = 76, "source_not_allowed", Dropped, "the client is in none of the Service's loadBalancerSourceRanges",
        "Add the client's network to spec.loadBalancerSourceRanges if it should be let in.";
    NoLocalEndpoints = 77, "no_local_endpoints", Dropped, "the traffic policy is Local and this node has no usable endpoint",
        "Normal on nodes without a pod of the Service: the balancer should not send there (health-check node port). Otherwise set the policy to Cluster.";
    UnknownFlow = 78, "unknown_flow", Dropped, "ends a masqueraded flow that is not known",
        "Normal after a long idle time; if connections break, `tulle status` shows whether the flow table is full.";
    FreeServiceAddress = 79, "free_service_address", Dropped, "in a network of services, but no Service has the address",
        "The client uses an address that no Service has, perhaps of one that is gone: compare with `tulle services`. If the network is not the services' own, correct --service-cidr or the ServiceCIDR object.";
}
