//! Rules as kube-proxy's iptables mode lays them out: a rule for each service
//! port in one chain, chains for each of them and for each endpoint, node ports
//! last.

use std::fmt::Write as _;

use testkit::{NetNs, link};

use super::catalog::ServicePort;

/// The pods' network: what comes from elsewhere to a ClusterIP is masqueraded.
const PODS: &str = "10.244.0.0/16";

/// Which of the two programs named iptables is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backend {
    /// The kernel's own tables.
    Legacy,
    /// The same rules within nftables.
    Nft,
}

impl Backend {
    /// The legacy tables if the kernel has them: they are the faster of the two.
    pub fn probe(ns: &NetNs) -> Self {
        let tried = link::run_in(ns, Self::Legacy.program(), &["-t", "nat", "-S"]);
        if tried.is_ok() {
            Self::Legacy
        } else {
            Self::Nft
        }
    }

    /// Name of the program.
    pub fn program(self) -> &'static str {
        match self {
            Self::Legacy => "iptables-legacy",
            Self::Nft => "iptables-nft",
        }
    }

    /// The program that loads whole tables.
    pub fn restore(self) -> &'static str {
        match self {
            Self::Legacy => "iptables-legacy-restore",
            Self::Nft => "iptables-nft-restore",
        }
    }
}

/// Both tables with these services, for `iptables-restore`.
pub fn tables(ports: &[ServicePort]) -> String {
    format!("{}{}", nat(ports), FILTER)
}

/// What kube-proxy has of the filter table if every service has endpoints:
/// nothing for services, but each packet that is forwarded goes through it.
const FILTER: &str = "*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment \"health check service ports\" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment \"forwarding rules\" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"service portals\" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"service portals\" -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment \"block incoming localnet connections\" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment \"forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment \"forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
";

fn nat(ports: &[ServicePort]) -> String {
    let mut text = String::from(
        "*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
",
    );
    let named: Vec<(&ServicePort, Chains)> = ports
        .iter()
        .enumerate()
        .map(|(n, of)| (of, Chains::of(n)))
        .collect();
    // Writing to a String cannot fail.
    for (of, chains) in &named {
        let _ = writeln!(
            text,
            ":{} - [0:0]\n:{} - [0:0]",
            chains.service, chains.endpoint
        );
        if of.node_port.is_some() {
            let _ = writeln!(text, ":{} - [0:0]", chains.external);
        }
    }
    text += "-A PREROUTING -m comment --comment \"service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment \"service traffic requiring SNAT\" -j MASQUERADE --random-fully
";
    for (of, chains) in &named {
        let ServicePort {
            name,
            ip,
            port,
            target,
            endpoint: pod,
            ..
        } = of;
        let proto = of.proto.name();
        let Chains {
            service,
            endpoint,
            external,
        } = chains;
        let to = format!("-m {proto} -p {proto} -d {ip}/32 --dport {port}");
        let _ = write!(
            text,
            "-A KUBE-SERVICES -m comment --comment \"{name} cluster IP\" {to} -j {service}
-A {service} -m comment --comment \"{name} cluster IP\" {to} ! -s {PODS} -j KUBE-MARK-MASQ
-A {service} -m comment --comment \"{name} -> {pod}:{target}\" -j {endpoint}
-A {endpoint} -m comment --comment \"{name}\" -s {pod}/32 -j KUBE-MARK-MASQ
-A {endpoint} -m comment --comment \"{name}\" -m {proto} -p {proto} -j DNAT --to-destination {pod}:{target}
"
        );
        if let Some(node_port) = of.node_port {
            let _ = write!(
                text,
                "-A KUBE-NODEPORTS -m comment --comment \"{name}\" -m {proto} -p {proto} --dport {node_port} -j {external}
-A {external} -m comment --comment \"masquerade traffic for {name} external destinations\" -j KUBE-MARK-MASQ
-A {external} -j {service}
"
            );
        }
    }
    text += "-A KUBE-SERVICES -m comment --comment \"service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
COMMIT
";
    text
}

/// Chains of a service port: names as long as kube-proxy's.
struct Chains {
    service: String,
    endpoint: String,
    external: String,
}

impl Chains {
    fn of(number: usize) -> Self {
        Self {
            service: format!("KUBE-SVC-{number:016}"),
            endpoint: format!("KUBE-SEP-{number:016}"),
            external: format!("KUBE-EXT-{number:016}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::bench::services::catalog;

    const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 12);

    #[test]
    fn services_stand_in_one_chain_and_node_ports_last() {
        let text = tables(&catalog::in_order(10, POD));
        let of = |start: &str| -> Vec<&str> {
            text.lines()
                .filter(|line| line.starts_with(start))
                .collect()
        };
        // In nat: ten services, one of them with two ports, and node ports.
        let services = of("-A KUBE-SERVICES");
        assert_eq!(services.len(), 12);
        assert!(services[11].ends_with("--dst-type LOCAL -j KUBE-NODEPORTS"));
        let asked = services
            .iter()
            .position(|line| line.contains("default/asked:tcp"));
        assert_eq!(asked, Some(4));
        assert_eq!(of("-A KUBE-NODEPORTS").len(), 11);
        assert_eq!(
            of("-A KUBE-SEP-0000000000000004"),
            [
                "-A KUBE-SEP-0000000000000004 -m comment --comment \"default/asked:tcp-80\" \
             -s 10.244.1.12/32 -j KUBE-MARK-MASQ",
                "-A KUBE-SEP-0000000000000004 -m comment --comment \"default/asked:tcp-80\" \
             -m tcp -p tcp -j DNAT --to-destination 10.244.1.12:7000",
            ]
        );
        // A chain is named before it is used.
        for line in text.lines().filter(|line| line.starts_with("-A")) {
            let chain = line
                .rsplit("-j ")
                .next()
                .unwrap()
                .split(' ')
                .next()
                .unwrap();
            if chain.starts_with("KUBE") {
                assert!(text.contains(&format!(":{chain} - ")), "{chain}");
            }
        }
        assert_eq!(text.matches("COMMIT\n").count(), 2);
    }
}
