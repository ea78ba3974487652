//! Rule sets as kube-proxy writes them, in both of its modes that this kernel has.

use std::fmt::Write as _;
use std::net::IpAddr;

use testkit::manifests::{Protocol, Service, ServicePort};

/// Pods of the whole cluster, as kube-proxy's `--cluster-cidr` says.
const PODS: [&str; 2] = ["10.244.0.0/16", "fd44::/32"];

/// A name as kube-proxy derives it from what it stands for.
fn hash(text: &str) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    for octet in text.bytes() {
        state = (state ^ u64::from(octet)).wrapping_mul(0x0100_0000_01b3);
    }
    (0..16)
        .map(|n| char::from(LETTERS[((state >> (n * 4)) ^ (state >> 37)) as usize % 32]))
        .collect()
}

fn is_of(ip: &IpAddr, v6: bool) -> bool {
    ip.is_ipv6() == v6
}

fn proto(port: &ServicePort) -> &'static str {
    match port.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
        Protocol::Sctp => "sctp",
    }
}

/// Address and port in one word, IPv6 in brackets.
fn at(ip: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(ip, port).to_string()
}

fn label(service: &Service, port: &ServicePort) -> String {
    format!("{}/{}:{}", service.namespace, service.name, port.name)
}

fn endpoints(service: &Service, port: &ServicePort, v6: bool) -> Vec<(IpAddr, String)> {
    let ready = service.endpoints.iter().filter(|endpoint| endpoint.ready);
    let ips = ready.flat_map(|endpoint| endpoint.ips.iter().copied());
    ips.filter(|ip| is_of(ip, v6))
        .map(|ip| (ip, at(ip, port.target)))
        .collect()
}

/// Whom the frontends outside of the cluster are for: all addresses but the cluster's own.
fn external(service: &Service, v6: bool) -> Vec<IpAddr> {
    let exposure = &service.exposure;
    let all = exposure.external_ips.iter().chain(&exposure.balancer_ips);
    all.copied().filter(|ip| is_of(ip, v6)).collect()
}

/// What `iptables-restore` reads: mode iptables.
pub fn iptables(services: &[Service], v6: bool) -> String {
    let pods = PODS[usize::from(v6)];
    let whole = if v6 { 128 } else { 32 };
    let (mut chains, mut rules) = (String::new(), String::new());
    let mut portals = String::new();
    for service in services {
        for port in &service.ports {
            let (p, name) = (proto(port), label(service, port));
            let svc = format!("KUBE-SVC-{}", hash(&name));
            let ext = format!("KUBE-EXT-{}", hash(&name));
            let backends = endpoints(service, port, v6);
            writeln!(chains, ":{svc} - [0:0]\n:{ext} - [0:0]").unwrap();
            for ip in service.ips.iter().filter(|ip| is_of(ip, v6)) {
                let to = format!(
                    "-d {ip}/{whole} -p {p} -m comment --comment \"{name} cluster IP\" -m {p} --dport {}",
                    port.port
                );
                writeln!(portals, "-A KUBE-SERVICES {to} -j {svc}").unwrap();
                writeln!(rules, "-A {svc} ! -s {pods} {to} -j KUBE-MARK-MASQ").unwrap();
            }
            for ip in external(service, v6) {
                writeln!(portals, "-A KUBE-SERVICES -d {ip}/{whole} -p {p} -m comment --comment \"{name} loadbalancer IP\" -m {p} --dport {} -j {ext}", port.port).unwrap();
            }
            if let Some(node_port) = port.node_port {
                writeln!(rules, "-A KUBE-NODEPORTS -p {p} -m comment --comment {name} -m {p} --dport {node_port} -j {ext}").unwrap();
            }
            writeln!(rules, "-A {ext} -m comment --comment \"masquerade traffic for {name} external destinations\" -j KUBE-MARK-MASQ\n-A {ext} -j {svc}").unwrap();
            for (n, (ip, to)) in backends.iter().enumerate() {
                let sep = format!("KUBE-SEP-{}", hash(&format!("{name} {to}")));
                let left = backends.len() - n;
                let random = if left > 1 {
                    format!(
                        " -m statistic --mode random --probability {:.10}",
                        1.0 / left as f64
                    )
                } else {
                    String::new()
                };
                writeln!(chains, ":{sep} - [0:0]").unwrap();
                writeln!(
                    rules,
                    "-A {svc} -m comment --comment \"{name} -> {to}\"{random} -j {sep}"
                )
                .unwrap();
                writeln!(
                    rules,
                    "-A {sep} -s {ip}/{whole} -m comment --comment {name} -j KUBE-MARK-MASQ"
                )
                .unwrap();
                writeln!(rules, "-A {sep} -p {p} -m comment --comment {name} -m {p} -j DNAT --to-destination {to}").unwrap();
            }
        }
    }
    format!(
        r#"*mangle
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*filter
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-SERVICES - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment "kubernetes health check service ports" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment "kubernetes externally-visible service portals" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes load balancer firewall" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment "kubernetes forwarding conntrack rule" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SERVICES - [0:0]
{chains}-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
{portals}-A KUBE-SERVICES -m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
{rules}COMMIT
"#
    )
}

/// What `nft -f` reads: mode nftables. `nodes` are this node's addresses for node ports.
pub fn nftables(services: &[Service], nodes: &[IpAddr], v6: bool) -> String {
    let (family, pods) = (if v6 { "ip6" } else { "ip" }, PODS[usize::from(v6)]);
    let kind = if v6 { "ipv6_addr" } else { "ipv4_addr" };
    let (mut ips, mut ports, mut chains) = (Vec::new(), Vec::new(), String::new());
    let mut cluster = Vec::new();
    for service in services {
        for port in &service.ports {
            let (p, name) = (proto(port), label(service, port));
            let id = format!("{}-{}", hash(&name), name.replace(':', "/"));
            let backends = endpoints(service, port, v6);
            let mut own = String::new();
            for ip in service.ips.iter().filter(|ip| is_of(ip, v6)) {
                cluster.push(ip.to_string());
                ips.push(format!("{ip} . {p} . {} : goto service-{id}", port.port));
                writeln!(own, "  {family} daddr {ip} {p} dport {} {family} saddr != {pods} jump mark-for-masquerade", port.port).unwrap();
            }
            for ip in external(service, v6) {
                ips.push(format!("{ip} . {p} . {} : goto external-{id}", port.port));
            }
            if let Some(node_port) = port.node_port {
                ports.push(format!("{p} . {node_port} : goto external-{id}"));
            }
            let gotos: Vec<String> = backends
                .iter()
                .enumerate()
                .map(|(n, (_, to))| {
                    format!("{n} : goto endpoint-{}", hash(&format!("{name} {to}")))
                })
                .collect();
            for (ip, to) in &backends {
                writeln!(chains, " chain endpoint-{} {{\n  {family} saddr {ip} jump mark-for-masquerade\n  meta l4proto {p} dnat to {to}\n }}", hash(&format!("{name} {to}"))).unwrap();
            }
            let choice = if backends.is_empty() {
                String::new()
            } else {
                format!(
                    "  numgen random mod {} vmap {{ {} }}\n",
                    backends.len(),
                    gotos.join(", ")
                )
            };
            writeln!(chains, " chain service-{id} {{\n{own}{choice} }}").unwrap();
            writeln!(
                chains,
                " chain external-{id} {{\n  jump mark-for-masquerade\n  goto service-{id}\n }}"
            )
            .unwrap();
        }
    }
    let elements = |all: &[String]| {
        if all.is_empty() {
            String::new()
        } else {
            format!("elements = {{ {} }}", all.join(", "))
        }
    };
    cluster.dedup();
    let nodes: Vec<String> = nodes
        .iter()
        .filter(|ip| is_of(ip, v6))
        .map(ToString::to_string)
        .collect();
    format!(
        r#"table {family} kube-proxy {{
 comment "rules for kube-proxy"
 set cluster-ips {{ type {kind}; comment "Active ClusterIPs"; {} }}
 set nodeport-ips {{ type {kind}; comment "IPs that accept NodePort traffic"; {} }}
 map no-endpoint-services {{ type {kind} . inet_proto . inet_service : verdict; }}
 map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}
 map firewall-ips {{ type {kind} . inet_proto . inet_service : verdict; }}
 chain mark-for-masquerade {{ mark set mark or 0x4000; }}
{chains}
 map service-ips {{ type {kind} . inet_proto . inet_service : verdict; {} }}
 map service-nodeports {{ type inet_proto . inet_service : verdict; {} }}
 chain services {{
  {family} daddr . meta l4proto . th dport vmap @service-ips
  {family} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
 }}
 chain reject-chain {{ reject; }}
 chain cluster-ips-check {{ {family} daddr @cluster-ips reject comment "Reject traffic to invalid ports of ClusterIPs"; }}
 chain firewall-check {{ {family} daddr . meta l4proto . th dport vmap @firewall-ips; }}
 chain service-endpoints-check {{ {family} daddr . meta l4proto . th dport vmap @no-endpoint-services; }}
 chain nodeport-endpoints-check {{ {family} daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }}
 chain masquerading {{
  mark and 0x4000 == 0 return
  mark set mark xor 0x4000
  masquerade fully-random
 }}
 chain filter-prerouting-pre-dnat {{ type filter hook prerouting priority -110; ct state new jump firewall-check; }}
 chain filter-output-pre-dnat {{ type filter hook output priority -110; ct state new jump firewall-check; }}
 chain filter-input {{ type filter hook input priority 0; ct state new jump nodeport-endpoints-check; ct state new jump service-endpoints-check; }}
 chain filter-forward {{ type filter hook forward priority 0; ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }}
 chain filter-output {{ type filter hook output priority 0; ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }}
 chain nat-prerouting {{ type nat hook prerouting priority -100; jump services; }}
 chain nat-output {{ type nat hook output priority -100; jump services; }}
 chain nat-postrouting {{ type nat hook postrouting priority 100; jump masquerading; }}
}}
"#,
        elements(&cluster),
        elements(&nodes),
        elements(&ips),
        elements(&ports),
    )
}
