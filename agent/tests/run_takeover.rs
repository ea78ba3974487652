//! `tulle-agent takeover kube-proxy` removes kube-proxy's rules and no others. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_support;
mod run_takeover_support;

use run_support::{LIMIT, START, World};
use run_takeover_support::{
    Proxy, feed, foreign, refused, run, said, saved, takeover, takeover_in,
};
use testkit::agent::Agent;
use testkit::cluster::Node;
use testkit::manifests::Service;
use testkit::process::Process;
use testkit::{ClusterBuilder, link};

/// A node that no agent serves, with a pod and its service.
fn quiet(label: &str) -> (World, Service) {
    let world = World::idle_of(ClusterBuilder::unique(label).nodes(1).pods_per_node(2));
    let web = world.web().node_port(30_080);
    (world, web)
}

fn node(world: &World) -> &Node {
    &world.cluster.nodes()[0]
}

/// What a kubelet leaves beside kube-proxy's rules, of this kind of iptables.
fn kubelets(node: &Node, kind: &str) {
    let text = "*mangle\n:KUBE-KUBELET-CANARY - [0:0]\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n\
        *filter\n:KUBE-FIREWALL - [0:0]\n:KUBE-KUBELET-CANARY - [0:0]\n-A INPUT -j KUBE-FIREWALL\n-A OUTPUT -j KUBE-FIREWALL\n\
        -A KUBE-FIREWALL -m comment --comment \"kubernetes firewall for dropping marked packets\" -m mark --mark 0x8000/0x8000 -j DROP\nCOMMIT\n\
        *nat\n:KUBE-KUBELET-CANARY - [0:0]\n:KUBE-MARK-DROP - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n\
        -A KUBE-MARK-DROP -j MARK --or-mark 0x8000\n-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\nCOMMIT\n";
    for n in ["", "6"] {
        feed(
            node,
            &format!("ip{n}tables-{kind}-restore"),
            &["--noflush"],
            text,
        );
    }
}

/// The lines of some rules, in any order: chains are listed as they were made.
fn lines(rules: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = rules.lines().filter(|line| !line.is_empty()).collect();
    lines.sort_unstable();
    lines
}

fn leaves_what_is_not_kube_proxys(label: &str, proxy: Proxy) {
    // As the node would be without kube-proxy, in a namespace of its own.
    let (pristine, _) = quiet(&format!("{label}p"));
    let (world, web) = quiet(label);
    let kind = if proxy == Proxy::Legacy {
        "legacy"
    } else {
        "nft"
    };
    for node in [node(&pristine), node(&world)] {
        foreign(node, proxy == Proxy::Legacy);
        if proxy != Proxy::Nftables {
            kubelets(node, kind);
        }
    }
    if proxy != Proxy::Nftables {
        // The kernel's own chains come with the first rule in them.
        let own =
            "*filter\n:FORWARD ACCEPT\nCOMMIT\n*nat\n:PREROUTING ACCEPT\n:OUTPUT ACCEPT\nCOMMIT\n";
        for n in ["", "6"] {
            feed(
                node(&pristine),
                &format!("ip{n}tables-{kind}-restore"),
                &["--noflush"],
                own,
            );
        }
    }
    let node = node(&world);
    proxy.write(node, &[web]);
    let full = saved(node);
    assert!(
        full.contains("kube-proxy") || full.contains("KUBE-SVC-"),
        "{full}"
    );

    let told = said(&takeover(node, &["--force", "--dry-run"]));
    assert_eq!(saved(node), full, "a dry run changes nothing");
    assert!(told.contains("would remove"), "{told}");
    let done = said(&takeover(node, &["--force"]));
    let sentences = |text: &str, verb: &str| -> Vec<String> {
        let verbs = text.lines().filter_map(|line| line.strip_prefix(verb));
        verbs.map(str::to_owned).collect()
    };
    assert_eq!(
        sentences(&told, "would remove "),
        sentences(&done, "removed ")
    );
    let (left, wanted) = (saved(node), saved(self::node(&pristine)));
    assert_eq!(lines(&left), lines(&wanted), "\n{left}");

    let again = said(&takeover(node, &["--force"]));
    assert!(again.contains("nothing to remove"), "{again}");
    assert_eq!(saved(node), left);
}

#[test]
fn kp_148_rules_of_mode_iptables_go_and_no_others() {
    leaves_what_is_not_kube_proxys("tki", Proxy::Iptables);
}

#[test]
fn kp_148_rules_in_older_tables_go_and_no_others() {
    leaves_what_is_not_kube_proxys("tkl", Proxy::Legacy);
}

#[test]
fn kp_148_tables_of_mode_nftables_go_and_no_others() {
    leaves_what_is_not_kube_proxys("tkn", Proxy::Nftables);
}

#[test]
fn kp_147_what_several_modes_left_goes_together() {
    let (world, web) = quiet("tkall");
    let node = node(&world);
    for proxy in [Proxy::Iptables, Proxy::Legacy, Proxy::Nftables] {
        proxy.write(node, std::slice::from_ref(&web));
    }
    for set in [
        "KUBE-CLUSTER-IP",
        "KUBE-6-LOOP-BACK",
        "KUBE-DST-OTHER",
        "mine",
    ] {
        link::run_in(node.ns(), "ipset", &["create", set, "hash:ip"]).unwrap();
    }
    // Of one mode only what it writes.
    let wrong = refused(&takeover(node, &["--force", "--mode", "wrong"]));
    assert!(wrong.contains("invalid value 'wrong'"), "{wrong}");
    let nft = said(&takeover(node, &["--force", "--mode", "nftables"]));
    assert!(
        nft.contains("table ip6 kube-proxy") && !nft.contains("legacy"),
        "{nft}"
    );
    let full = saved(node);
    let none = refused(&takeover(node, &["--force", "--mode", "nftables"]));
    assert!(
        none.contains("nothing of mode nftables") && none.contains("ip nat"),
        "{none}"
    );
    assert_eq!(saved(node), full);

    let done = said(&takeover(node, &["--force"]));
    for part in ["(nf_tables), ip nat", "(legacy), ip6 nat", "2 sets: "] {
        assert!(done.contains(part), "{part}: {done}");
    }
    assert!(!saved(node).contains("KUBE-SVC-"), "{}", saved(node));
    let sets = run(node, "ipset", &["list", "-n"]);
    assert_eq!(lines(&sets), ["KUBE-DST-OTHER", "mine"]);
}

#[test]
fn it_refuses_while_a_kube_proxy_runs_or_nobody_serves() {
    let (world, web) = quiet("tkrun");
    let node = node(&world);
    Proxy::Nftables.write(node, &[web]);
    let full = saved(node);
    let nobody = refused(&takeover(node, &[]));
    assert!(
        nobody.contains("Tulle does not serve this node"),
        "{nobody}"
    );

    let mut agent = Agent::start(node, &world.options).unwrap();
    agent.wait_ready(START).unwrap();
    // A program of that name, in this node's namespace and in another one.
    let copy = world.cluster.directory().join("kube-proxy");
    std::fs::copy("/bin/sleep", &copy).unwrap();
    let start = |ns: &testkit::NetNs| {
        let mut command = ns.command(&copy).unwrap();
        command.arg("600");
        Process::spawn(
            "a kube-proxy",
            command,
            &world.cluster.directory().join("log"),
        )
        .unwrap()
    };
    let mut elsewhere = start(world.cluster.switch());
    let mut here = start(node.ns());
    let running = refused(&takeover(node, &[]));
    let named = format!("process {} is a kube-proxy", here.pid());
    assert!(running.contains(&named), "{running}");
    let dry = said(&takeover(node, &["--dry-run"]));
    assert!(
        dry.contains(&named) && dry.contains("would remove"),
        "{dry}"
    );
    assert_eq!(saved(node), full);
    here.kill().unwrap();
    let done = said(&takeover(node, &[]));
    assert!(
        done.contains("removed nftables: table ip kube-proxy"),
        "{done}"
    );
    assert_eq!(saved(node), "");
    elsewhere.kill().unwrap();
    agent.terminate(LIMIT).unwrap();
}

#[test]
fn it_says_what_it_lacks() {
    let (world, web) = quiet("tklack");
    let node = node(&world);
    Proxy::Legacy.write(node, std::slice::from_ref(&web));
    let full = saved(node);
    let empty = tempfile::tempdir().unwrap();
    let root = empty.path().to_str().unwrap();
    let nowhere = [("PATH", root)];
    let none = refused(&takeover_in(
        node,
        &["--force", "--host-root", root],
        &nowhere,
    ));
    assert!(none.contains("only its programs can read"), "{none}");
    assert_eq!(saved(node), full);
    // Those of the node's root file system, where the agent's own has none.
    let done = takeover_in(node, &["--force", "--host-root", "/"], &nowhere);
    assert!(said(&done).contains("(legacy), ip nat"));
    assert_eq!(saved(node).matches("KUBE-SVC").count(), 0);

    // Without the right to change the network.
    Proxy::Nftables.write(node, &[web]);
    let full = saved(node);
    let run_dir = node.run_dir();
    let args = [
        "--bounding-set=-net_admin",
        "--inh-caps=-net_admin",
        run_support::BINARY,
        "takeover",
        "kube-proxy",
        "--force",
        "--run-dir",
        run_dir.to_str().unwrap(),
    ];
    let poor = link::run_in(node.ns(), "setpriv", &args)
        .unwrap_err()
        .to_string();
    assert!(poor.contains("CAP_NET_ADMIN"), "{poor}");
    assert_eq!(saved(node), full);
}
