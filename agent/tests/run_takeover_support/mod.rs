//! Nodes that kube-proxy and flannel serve: their rules, and the way to other nodes.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod rules;
pub mod street;

use std::io::Write as _;
use std::net::IpAddr;
use std::process::{Output, Stdio};

use testkit::cluster::{Node, UPLINK};
use testkit::link;
use testkit::manifests::Service;

use crate::run_support::BINARY;

/// How kube-proxy writes its rules.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Proxy {
    /// Mode iptables, by nftables.
    Iptables,
    /// Mode iptables, in the kernel's older tables.
    Legacy,
    /// Mode nftables.
    Nftables,
}

impl Proxy {
    /// Writes the rules for these services, as a sync of kube-proxy's does.
    pub fn write(self, node: &Node, services: &[Service]) {
        for v6 in [false, true] {
            let n = if v6 { "6" } else { "" };
            match self {
                Self::Iptables | Self::Legacy => {
                    let kind = if self == Self::Legacy {
                        "legacy"
                    } else {
                        "nft"
                    };
                    let text = rules::iptables(services, v6);
                    feed(
                        node,
                        &format!("ip{n}tables-{kind}-restore"),
                        &["--noflush"],
                        &text,
                    );
                }
                Self::Nftables => {
                    let text = rules::nftables(services, &node.ips(), v6);
                    feed(node, "nft", &["-f", "-"], &text);
                }
            }
        }
    }
}

/// Runs a program in a node's namespace with this input.
pub fn feed(node: &Node, program: &str, args: &[&str], input: &str) {
    let mut command = node.ns().command(program).unwrap();
    let mut child = command
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let out = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{program}: {said}\n{input}");
}

/// Rules of others: a firewall by iptables of both kinds, one by nftables, and the kubelet's.
pub fn foreign(node: &Node, legacy: bool) {
    let kind = if legacy { "legacy" } else { "nft" };
    for n in ["", "6"] {
        let text = "*filter\n:HOME - [0:0]\n-A INPUT -p tcp -m tcp --dport 2 -m comment --comment \"not -j KUBE-SERVICES\" -j HOME\n-A HOME -j RETURN\nCOMMIT\n\
            *nat\n:KUBE-ROUTER-SNAT - [0:0]\n-A POSTROUTING -p tcp -m tcp --dport 3 -j KUBE-ROUTER-SNAT\nCOMMIT\n";
        feed(
            node,
            &format!("ip{n}tables-{kind}-restore"),
            &["--noflush"],
            text,
        );
    }
    let text = "table inet home {\n set friends { type ipv4_addr; elements = { 192.0.2.1 } }\n \
        chain input { type filter hook input priority 10; policy accept; ip saddr @friends counter accept; }\n}\n\
        table ip other {\n chain KUBE-SERVICES { counter; }\n}\n";
    feed(node, "nft", &["-f", "-"], text);
}

/// All rules of a node without what counts packets, and what the kernel numbers.
pub fn saved(node: &Node) -> String {
    let mut all = String::new();
    for program in ["iptables-legacy-save", "ip6tables-legacy-save"] {
        all += &run(node, program, &[]);
    }
    all += &run(node, "nft", &["-s", "list", "ruleset"]);
    all.lines()
        .filter(|line| !line.starts_with('#'))
        .map(without_counts)
        .collect::<Vec<_>>()
        .join("\n")
}

/// `:INPUT ACCEPT [12:34]` without its counts.
fn without_counts(line: &str) -> &str {
    if line.starts_with(':') {
        line.split(" [").next().unwrap()
    } else {
        line
    }
}

/// The same without what is empty, for rules come back in other tables' places.
pub fn run(node: &Node, program: &str, args: &[&str]) -> String {
    let out = link::run_in(node.ns(), program, args).unwrap();
    String::from_utf8(out.stdout).unwrap()
}

/// flannel's device and routes to the other nodes, and forwarding; both families by one device.
pub fn flannel(node: &Node, nodes: &[Node]) {
    let mac = |node: &Node| {
        let [a, b, c, d] = node.ip4().octets();
        format!("0a:58:{a:02x}:{b:02x}:{c:02x}:{d:02x}")
    };
    let first = |node: &Node| node.pod_cidr4().network();
    let first6 = |node: &Node| node.pod_cidr6().unwrap().network();
    let mut lines = vec![
        format!(
            "link add flannel.1 mtu 1450 address {} type vxlan id 1 dev {UPLINK} local {} dstport 8472 nolearning",
            mac(node),
            node.ip4()
        ),
        "link set flannel.1 up".to_owned(),
        format!("addr add {}/32 dev flannel.1", first(node)),
        format!("addr add {}/128 dev flannel.1 nodad", first6(node)),
    ];
    for other in nodes.iter().filter(|other| other.name() != node.name()) {
        let (ip, hop, mac) = (other.ip4(), first(other), mac(other));
        lines.extend([
            format!("neigh add {hop} lladdr {mac} dev flannel.1 nud permanent"),
            format!(
                "route add {} via {hop} dev flannel.1 onlink",
                other.pod_cidr4()
            ),
            format!(
                "neigh add {} lladdr {mac} dev flannel.1 nud permanent",
                first6(other)
            ),
            format!(
                "route add {} via {} dev flannel.1 onlink",
                other.pod_cidr6().unwrap(),
                first6(other)
            ),
        ]);
        let fdb = [
            "fdb",
            "append",
            &mac,
            "dev",
            "flannel.1",
            "dst",
            &ip.to_string(),
        ];
        link::batch(node.ns(), &lines).unwrap();
        lines.clear();
        link::run_in(node.ns(), "bridge", &fdb).unwrap();
    }
    for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        link::sysctl(node.ns(), key, "1").unwrap();
    }
}

/// flannel's other rules: pods leave the cluster with their node's address.
pub fn flannel_masquerade(node: &Node) {
    let rules = |family: &str, name: &str, pods: &str| {
        format!(
            "table {family} {name} {{\n chain postrtg {{\n  type nat hook postrouting priority 100;\n  \
             {family} saddr {pods} {family} daddr != {pods} masquerade fully-random\n }}\n}}\n"
        )
    };
    let all =
        rules("ip", "flannel-ipv4", "10.244.0.0/16") + &rules("ip6", "flannel-ipv6", "fd44::/32");
    feed(node, "nft", &["-f", "-"], &all);
}

/// `tulle-agent takeover kube-proxy` with these arguments.
pub fn takeover(node: &Node, args: &[&str]) -> Output {
    takeover_in(node, args, &[])
}

/// The same with these variables.
pub fn takeover_in(node: &Node, args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = node.ns().command(BINARY).unwrap();
    command
        .args(["takeover", "kube-proxy"])
        .arg("--run-dir")
        .arg(node.run_dir())
        .arg("--bpffs")
        .arg(node.bpffs())
        .args(args)
        .envs(env.iter().copied());
    command.output().unwrap()
}

/// What a run of it said, which must have succeeded.
pub fn said(out: &Output) -> String {
    let (text, errors) = (
        String::from_utf8_lossy(&out.stdout).into_owned(),
        String::from_utf8_lossy(&out.stderr).into_owned(),
    );
    assert!(out.status.success(), "{text}{errors}");
    text
}

/// Why a run of it failed, as it must have.
pub fn refused(out: &Output) -> String {
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(
        !out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stdout)
    );
    text
}

/// Addresses of a family.
pub fn of_family(ips: &[IpAddr], v6: bool) -> IpAddr {
    *ips.iter().find(|ip| ip.is_ipv6() == v6).unwrap()
}
