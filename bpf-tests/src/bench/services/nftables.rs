//! Rules as kube-proxy's nftables mode lays them out: one table, two verdict
//! maps, chains for each service port and endpoint.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

use super::catalog::ServicePort;

/// The pods' network: what comes from elsewhere to a ClusterIP is masqueraded.
const PODS: &str = "10.244.0.0/16";

/// What is there without services. Chains that find nothing to do are there too:
/// new flows go through them.
pub fn base(node: Ipv4Addr) -> String {
    format!(
        "add table ip kube-proxy
table ip kube-proxy {{
    map firewall-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
    map no-endpoint-services {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
    map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}
    map service-ips {{ type ipv4_addr . inet_proto . inet_service : verdict; }}
    map service-nodeports {{ type inet_proto . inet_service : verdict; }}
    set cluster-ips {{ type ipv4_addr; }}
    set nodeport-ips {{ type ipv4_addr; elements = {{ {node} }} }}

    chain firewall-check {{ ip daddr . meta l4proto . th dport vmap @firewall-ips; }}
    chain service-endpoints-check {{
        ip daddr . meta l4proto . th dport vmap @no-endpoint-services
    }}
    chain nodeport-endpoints-check {{
        ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
    }}
    chain cluster-ips-check {{ ip daddr @cluster-ips reject; }}
    chain mark-for-masquerade {{ mark set mark or 0x4000; }}
    chain masquerading {{
        mark and 0x4000 == 0 return
        mark set mark xor 0x4000
        masquerade fully-random
    }}
    chain services {{
        ip daddr . meta l4proto . th dport vmap @service-ips
        ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
    }}
    chain filter-prerouting-pre-dnat {{
        type filter hook prerouting priority -110; ct state new jump firewall-check
    }}
    chain filter-output-pre-dnat {{
        type filter hook output priority -110; ct state new jump firewall-check
    }}
    chain filter-input {{
        type filter hook input priority 0;
        ct state new jump nodeport-endpoints-check
        ct state new jump service-endpoints-check
    }}
    chain filter-forward {{
        type filter hook forward priority 0;
        ct state new jump service-endpoints-check
        ct state new jump cluster-ips-check
    }}
    chain filter-output {{
        type filter hook output priority 0;
        ct state new jump service-endpoints-check
        ct state new jump cluster-ips-check
    }}
    chain nat-prerouting {{ type nat hook prerouting priority -100; jump services; }}
    chain nat-output {{ type nat hook output priority -100; jump services; }}
    chain nat-postrouting {{ type nat hook postrouting priority 100; jump masquerading; }}
}}
"
    )
}

/// What some services more add. The service that is asked has its endpoint in a
/// map behind a random number, as kube-proxy writes it; the chains of the others,
/// which no packet meets, go there without one: maps without a name take the
/// kernel a time that grows with the square of their number to load.
pub fn more(ports: &[ServicePort]) -> String {
    let mut text = String::new();
    let (mut ips, mut node_ports, mut addresses) = (Vec::new(), Vec::new(), Vec::new());
    for of in ports {
        let proto = of.proto.name();
        let (service, endpoint) = (service_chain(of), endpoint_chain(of));
        let (ip, port, target) = (of.ip, of.port, of.target);
        let jump = if of.asked {
            format!("numgen random mod 1 vmap {{ 0 : goto {endpoint} }}")
        } else {
            format!("goto {endpoint}")
        };
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "add chain ip kube-proxy {endpoint}
add rule ip kube-proxy {endpoint} ip saddr {pod} jump mark-for-masquerade
add rule ip kube-proxy {endpoint} meta l4proto {proto} dnat to {pod}:{target}
add chain ip kube-proxy {service}
add rule ip kube-proxy {service} ip daddr {ip} {proto} dport {port} ip saddr != {PODS} \
             jump mark-for-masquerade
add rule ip kube-proxy {service} {jump}
",
            pod = of.endpoint,
        );
        ips.push(format!("{ip} . {proto} . {port} : goto {service}"));
        addresses.push(ip.to_string());
        if let Some(node_port) = of.node_port {
            let external = format!("external-{}", plain(&of.name));
            let _ = write!(
                text,
                "add chain ip kube-proxy {external}
add rule ip kube-proxy {external} jump mark-for-masquerade
add rule ip kube-proxy {external} goto {service}
"
            );
            node_ports.push(format!("{proto} . {node_port} : goto {external}"));
        }
    }
    addresses.dedup();
    for (set, elements) in [
        ("service-ips", ips),
        ("service-nodeports", node_ports),
        ("cluster-ips", addresses),
    ] {
        if !elements.is_empty() {
            let elements = elements.join(",\n");
            let _ = writeln!(text, "add element ip kube-proxy {set} {{\n{elements}\n}}");
        }
    }
    text
}

fn service_chain(of: &ServicePort) -> String {
    format!("service-{}", plain(&of.name))
}

fn endpoint_chain(of: &ServicePort) -> String {
    format!("endpoint-{}", plain(&of.name))
}

/// A name that chains may have.
fn plain(name: &str) -> String {
    name.replace([':', '/'], "_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::services::catalog;

    const POD: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 12);

    #[test]
    fn a_service_has_its_chains_and_elements() {
        let text = more(&catalog::asked(POD));
        for line in [
            "add rule ip kube-proxy service-default_asked_tcp-80 ip daddr 10.96.0.10 tcp dport 80 \
             ip saddr != 10.244.0.0/16 jump mark-for-masquerade",
            "add rule ip kube-proxy service-default_asked_tcp-80 numgen random mod 1 vmap \
             { 0 : goto endpoint-default_asked_tcp-80 }",
            "add rule ip kube-proxy endpoint-default_asked_udp-80 meta l4proto udp dnat to \
             10.244.1.12:7001",
            "add rule ip kube-proxy external-default_asked_tcp-80 goto \
             service-default_asked_tcp-80",
            "10.96.0.10 . udp . 80 : goto service-default_asked_udp-80",
            "tcp . 30500 : goto external-default_asked_tcp-80,",
            "add element ip kube-proxy cluster-ips {",
        ] {
            assert!(text.contains(line), "{line}\nis not in\n{text}");
        }
        assert_eq!(text.matches("10.96.0.10\n").count(), 1, "one address");
    }

    #[test]
    fn others_need_no_map_without_a_name() {
        let others: Vec<_> = (0..3000).map(|n| catalog::other(n, POD)).collect();
        let text = more(&others);
        assert!(!text.contains("numgen"));
        assert_eq!(text.matches("goto endpoint-").count(), 3000);
        assert_eq!(text.matches(" : goto service-").count(), 3000);
        assert_eq!(text.matches(" : goto external-").count(), 2000);
    }

    #[test]
    fn the_base_takes_the_nodes_address_only() {
        let text = base(Ipv4Addr::new(192, 168, 77, 11));
        assert!(text.contains("elements = { 192.168.77.11 }"));
        assert!(text.contains("masquerade fully-random"));
    }
}
