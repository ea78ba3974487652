//! What kube-proxy's IPVS mode lays out: a virtual server for each service port
//! and node port, the services' addresses on a device of their own, sets of
//! addresses and ports, and rules in iptables that ask them for who is
//! masqueraded.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use testkit::{NetNs, link};

use super::catalog::{Proto, ServicePort};

/// The device that holds the services' addresses.
pub const DEVICE: &str = "kube-ipvs0";
/// Settings of the node, in order.
pub const SYSCTLS: [(&str, &str); 3] = [
    ("net.ipv4.vs.conntrack", "1"),
    ("net.ipv4.vs.expire_nodest_conn", "1"),
    ("net.ipv4.vs.expire_quiescent_template", "1"),
];
/// The pods' network: what comes from elsewhere to a ClusterIP is masqueraded.
const PODS: &str = "10.244.0.0/16";

/// Whether the kernel has it, and the machine the programs.
pub fn is_there(ns: &NetNs) -> bool {
    let asked = link::run_in(ns, "ipvsadm", &["-L", "-n"]);
    asked.is_ok() && link::run_in(ns, "ipset", &["list", "-n"]).is_ok()
}

/// The sets, without members, for `ipset restore`.
pub const SETS: &str = "create KUBE-CLUSTER-IP hash:ip,port maxelem 131072
create KUBE-LOOP-BACK hash:ip,port,ip maxelem 131072
create KUBE-NODE-PORT-TCP bitmap:port range 0-65535
create KUBE-NODE-PORT-UDP bitmap:port range 0-65535
create KUBE-IPVS-IPS hash:ip maxelem 131072
";

/// Rules that no service changes, for `iptables-restore`.
pub fn rules() -> String {
    format!(
        "*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment \"service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-NODE-PORT -p tcp -m set --match-set KUBE-NODE-PORT-TCP dst -j KUBE-MARK-MASQ
-A KUBE-NODE-PORT -p udp -m set --match-set KUBE-NODE-PORT-UDP dst -j KUBE-MARK-MASQ
-A KUBE-POSTROUTING -m set --match-set KUBE-LOOP-BACK dst,dst,src -j MASQUERADE
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-SERVICES -s 127.0.0.0/8 -j RETURN
-A KUBE-SERVICES ! -s {PODS} -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT
COMMIT
*filter
:KUBE-FORWARD - [0:0]
:KUBE-IPVS-FILTER - [0:0]
-A INPUT -m comment --comment \"ipvs access filter\" -j KUBE-IPVS-FILTER
-A FORWARD -m comment --comment \"forwarding rules\" -j KUBE-FORWARD
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A KUBE-IPVS-FILTER -m set --match-set KUBE-CLUSTER-IP dst,dst -j RETURN
-A KUBE-IPVS-FILTER -m conntrack --ctstate NEW -m set --match-set KUBE-IPVS-IPS dst -j REJECT
COMMIT
"
    )
}

/// What some services more add.
#[derive(Debug, Default)]
pub struct More {
    /// For `ipvsadm -R`.
    pub servers: String,
    /// For `ipset restore`.
    pub members: String,
    /// For `ip -batch`.
    pub addresses: Vec<String>,
}

impl More {
    /// Of services on a node of this address.
    pub fn of(ports: &[ServicePort], node: Ipv4Addr) -> Self {
        let mut more = Self::default();
        for of in ports {
            let (flag, upper) = match of.proto {
                Proto::Tcp => ("-t", "TCP"),
                Proto::Udp => ("-u", "UDP"),
            };
            let (ip, port, pod, target) = (of.ip, of.port, of.endpoint, of.target);
            let mut server = |at: Ipv4Addr, port: u16| {
                // Writing to a String cannot fail.
                let _ = writeln!(
                    more.servers,
                    "-A {flag} {at}:{port} -s rr\n-a {flag} {at}:{port} -r {pod}:{target} -m -w 1"
                );
            };
            server(ip, port);
            if let Some(node_port) = of.node_port {
                server(node, node_port);
                let _ = writeln!(more.members, "add KUBE-NODE-PORT-{upper} {node_port}");
            }
            let proto = of.proto.name();
            let _ = write!(
                more.members,
                "add KUBE-CLUSTER-IP {ip},{proto}:{port}
add KUBE-LOOP-BACK {pod},{proto}:{target},{pod}
"
            );
            let address = format!("addr add {ip}/32 dev {DEVICE}");
            if more.addresses.last() != Some(&address) {
                let _ = writeln!(more.members, "add KUBE-IPVS-IPS {ip}");
                more.addresses.push(address);
            }
        }
        more
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::services::catalog;

    #[test]
    fn a_service_has_a_virtual_server_for_each_port_and_one_address() {
        let (pod, node) = (
            Ipv4Addr::new(10, 244, 1, 11),
            Ipv4Addr::new(192, 168, 77, 11),
        );
        let more = More::of(&catalog::asked(pod), node);
        for line in [
            "-A -t 10.96.0.10:80 -s rr\n-a -t 10.96.0.10:80 -r 10.244.1.11:7000 -m -w 1\n",
            "-A -u 192.168.77.11:30501 -s rr\n",
        ] {
            assert!(
                more.servers.contains(line),
                "{line}\nis not in\n{}",
                more.servers
            );
        }
        for line in [
            "add KUBE-NODE-PORT-TCP 30500\n",
            "add KUBE-CLUSTER-IP 10.96.0.10,udp:80\n",
            "add KUBE-LOOP-BACK 10.244.1.11,tcp:7000,10.244.1.11\n",
        ] {
            assert!(
                more.members.contains(line),
                "{line}\nis not in\n{}",
                more.members
            );
        }
        assert_eq!(more.addresses, ["addr add 10.96.0.10/32 dev kube-ipvs0"]);
        assert_eq!(more.members.matches("KUBE-IPVS-IPS").count(), 1);
    }

    #[test]
    fn rules_ask_only_sets_that_are_there() {
        let rules = rules();
        let asked = rules.split("--match-set ").skip(1);
        let names: Vec<&str> = asked.filter_map(|rest| rest.split(' ').next()).collect();
        assert!(names.len() > 5);
        for name in names {
            assert!(SETS.contains(&format!("create {name} ")), "{name}");
        }
    }
}
