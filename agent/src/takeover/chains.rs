//! What of the chains and sets on a node is kube-proxy's, by name.

/// Chains of kube-proxy's modes iptables and ipvs, as its own `--cleanup` removes them, and the
/// chain by which it notices that somebody flushed its rules.
const CHAINS: [&str; 12] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    "KUBE-NODE-PORT",
    "KUBE-LOAD-BALANCER",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];

/// Beginnings of the names of chains for a service port, an endpoint, a frontend.
const PREFIXES: [&str; 6] = [
    "KUBE-SVC-",
    "KUBE-SVL-",
    "KUBE-SEP-",
    "KUBE-EXT-",
    "KUBE-FW-",
    "KUBE-XLB-",
];

/// Sets of mode ipvs, without the beginning that says the family.
const SETS: [&str; 17] = [
    "LOOP-BACK",
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-SOURCE-IP",
    "LOAD-BALANCER-SOURCE-CIDR",
    "NODE-PORT-TCP",
    "NODE-PORT-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
];

/// Octets of a set's name, at which kube-proxy cuts it.
const SET_NAME: usize = 31;

/// nftables' table of mode nftables, one for each family.
pub const TABLE: &str = "kube-proxy";
/// The device that has the addresses of services in mode ipvs.
pub const DEVICE: &str = "kube-ipvs0";

/// Whether a chain of this name is kube-proxy's. Not those that the kubelet makes or made
/// (`KUBE-FIREWALL`, `KUBE-KUBELET-CANARY`, `KUBE-IPTABLES-HINT`, `KUBE-MARK-MASQ`,
/// `KUBE-MARK-DROP`), and no network policies' (`KUBE-ROUTER-…`, `KUBE-NWPLCY-…`).
pub fn is_chain(name: &str) -> bool {
    CHAINS.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether a set of iptables has a name of kube-proxy's.
pub fn is_set(name: &str) -> bool {
    SETS.iter().any(|set| {
        ["KUBE-", "KUBE-6-"].iter().any(|prefix| {
            let mut whole = format!("{prefix}{set}");
            whole.truncate(SET_NAME);
            whole == name
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kp_148_the_kubelets_chains_and_those_of_others_are_not_kube_proxys() {
        for ours in ["KUBE-SERVICES", "KUBE-SEP-ABCDEF", "KUBE-PROXY-CANARY"] {
            assert!(is_chain(ours), "{ours}");
        }
        for other in [
            "KUBE-FIREWALL",
            "KUBE-KUBELET-CANARY",
            "KUBE-IPTABLES-HINT",
            "KUBE-MARK-MASQ",
            "KUBE-MARK-DROP",
            "KUBE-ROUTER-FORWARD",
            "KUBE-SERVICES-2",
            "KUBE-SVC",
            "FLANNEL-POSTRTG",
            "PREROUTING",
        ] {
            assert!(!is_chain(other), "{other}");
        }
    }

    #[test]
    fn kp_174_sets_of_both_families_are_known() {
        for ours in [
            "KUBE-LOOP-BACK",
            "KUBE-6-IPVS-IPS",
            "KUBE-6-LOAD-BALANCER-SOURCE-CID",
            "KUBE-NODE-PORT-LOCAL-SCTP-HASH",
        ] {
            assert!(is_set(ours), "{ours}");
        }
        for other in ["KUBE-DST-ABCDEF", "KUBE-", "KUBE-LOOP", "LOOP-BACK"] {
            assert!(!is_set(other), "{other}");
        }
    }
}
