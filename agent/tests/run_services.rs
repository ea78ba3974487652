//! Every kind of client reaches every kind of frontend, and servers see the
//! source that they should. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_services_support;
mod run_support;

use run_services_support::{
    ALL, ANYWHERE, By, Client, EVERY_POD, EVERY_WAY, EXTERNAL, FRONTS, Front, SECOND_NODE, Source,
    Town, all_well, pods_of, strict_rp_filter,
};
use testkit::manifests::Service;
use testkit::server::PodServer;

/// `externalTrafficPolicy` and `internalTrafficPolicy`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Policies {
    Cluster,
    ExternalLocal,
    InternalLocal,
}

/// KP-106 for clients at, or by way of, the first node, where endpoints are on
/// both nodes: who answers, and what source it sees.
fn matrix(client: Client, at: Front, policies: Policies) -> (&'static [&'static str], Source) {
    use Policies::{Cluster, ExternalLocal, InternalLocal};
    let (all, near, far) = (&ALL[..], pods_of(0), pods_of(1));
    let masqueraded = Source::NodeSide(0);
    match (client, at, policies) {
        (Client::Pod(..), Front::ClusterIp, InternalLocal) => (near, Source::Own),
        (Client::Pod(..), Front::ClusterIp, _) => (all, Source::Own),
        (_, Front::ClusterIp, InternalLocal) => (near, masqueraded),
        (_, Front::ClusterIp, _) => (all, masqueraded),
        // For the other node everybody here is outside; pods leave as the node (KP-74).
        (Client::Outside(_), Front::NodePort(1), ExternalLocal) => (far, Source::Own),
        (_, Front::NodePort(1), ExternalLocal) => (far, Source::Node(0)),
        (_, Front::NodePort(1), _) => (all, Source::NodeSide(1)),
        (Client::Pod(..), _, ExternalLocal) => (all, Source::Own),
        (Client::Outside(_), _, ExternalLocal) => (near, Source::Own),
        (_, _, Cluster | ExternalLocal | InternalLocal) => (all, masqueraded),
    }
}

fn services(town: &Town) -> [(Policies, Service); 3] {
    let all = [
        Policies::Cluster,
        Policies::ExternalLocal,
        Policies::InternalLocal,
    ];
    let mut n = 20;
    all.map(|policies| {
        n += 1;
        let mut service = town.service(n, &EVERY_POD);
        service.exposure.external_local = policies == Policies::ExternalLocal;
        service.exposure.internal_local = policies == Policies::InternalLocal;
        town.world.write(&service);
        (policies, service)
    })
}

fn every_client_at_every_frontend(town: &Town) {
    let mut results = Vec::new();
    for (policies, service) in services(town) {
        for client in [Client::Pod(0, 0), Client::Node(0), Client::Outside(0)] {
            for at in FRONTS {
                let (pods, source) = matrix(client, at, policies);
                for by in EVERY_WAY {
                    let result = town.spread(client, &service, at, by, pods, source);
                    results.push(result.map_err(|bad| format!("{policies:?}: {bad}")));
                }
            }
        }
    }
    assert_eq!(results.len(), 3 * 15 * EVERY_WAY.len());
    all_well(results);
}

#[test]
fn kp_106_every_client_at_every_frontend() {
    let town = Town::start("matrix", 1, &[]);
    every_client_at_every_frontend(&town);
    for agent in &town.world.agents {
        assert_eq!(agent.status().unwrap().faults, [""; 0]);
    }
}

#[test]
fn kp_106_holds_with_a_strict_reverse_path_filter() {
    let town = Town::with("strict", 1, &[], strict_rp_filter);
    every_client_at_every_frontend(&town);
}

#[test]
fn kp_27_a_node_without_local_backends_serves_the_others() {
    let town = Town::start("far", 1, &[]);
    let far = town.service(31, &SECOND_NODE);
    town.world.write(&far);
    let mut results = Vec::new();
    let mut check = |client, at, source| {
        for by in EVERY_WAY {
            results.push(town.spread(client, &far, at, by, pods_of(1), source));
        }
    };
    for at in EXTERNAL {
        check(Client::Outside(0), at, Source::NodeSide(0));
    }
    check(Client::Outside(0), Front::NodePort(1), Source::NodeSide(1));
    for at in ANYWHERE {
        check(Client::Node(0), at, Source::NodeSide(0));
        check(Client::Node(1), at, Source::NodeSide(1));
    }
    for node in [0, 1] {
        check(
            Client::Node(node),
            Front::NodePort(node),
            Source::NodeSide(node),
        );
    }
    all_well(results);
}

#[test]
fn kp_110_a_pod_reaches_itself_through_every_frontend() {
    let town = Town::start("hairpin", 0, &[]);
    let alone = town.service(32, &[(0, 0)]);
    let mut local = town.service(33, &[(0, 0)]);
    local.exposure.external_local = true;
    town.world.write(&alone);
    town.world.write(&local);
    let (itself, pods) = (Client::Pod(0, 0), &ALL[..1]);
    let mut results = Vec::new();
    for by in EVERY_WAY {
        let mut check = |service: &Service, at, source| {
            results.push(town.spread(itself, service, at, by, pods, source));
        };
        check(&alone, Front::ClusterIp, Source::Own);
        check(&local, Front::ClusterIp, Source::Own);
        for at in EXTERNAL {
            check(&alone, at, Source::NodeSide(0));
            check(&local, at, Source::Own);
        }
        // There and back through the other node.
        check(&alone, Front::NodePort(1), Source::NodeSide(1));
    }
    all_well(results);
}

#[test]
fn masquerade_all_hides_pods_at_cluster_ips_too() {
    let town = Town::start("all", 0, &["--masquerade-all=true"]);
    let service = town.service(34, &EVERY_POD);
    town.world.write(&service);
    let check = |by: By| {
        let (client, source) = (Client::Pod(0, 0), Source::NodeSide(0));
        town.spread(client, &service, Front::ClusterIp, by, &ALL, source)
    };
    all_well(EVERY_WAY.map(check));
}

#[test]
fn kp_64_endpoints_on_the_hosts_network() {
    let town = Town::with("host", 1, &[], strict_rp_filter);
    let mut servers = Vec::new();
    let [near, far] = [0, 1].map(|at| {
        let node = town.node(at);
        servers.push(PodServer::start(node.ns(), node.name()).unwrap());
        let mut service = town.service(35 + at as u8, &[(at, 0)]);
        service.endpoints[0].ips = node.ips();
        node.name().clone_into(&mut service.endpoints[0].pod);
        town.world.write(&service);
        service
    });
    let (pod, node, outside) = (Client::Pod(0, 0), Client::Node(0), Client::Outside(0));
    let mut results = Vec::new();
    for by in EVERY_WAY {
        let mut check = |client, service: &Service, at, source| {
            let server = &service.endpoints[0].pod;
            results.push(town.spread(client, service, at, by, &[server], source));
        };
        // A UDP server on all addresses answers an IPv6 pod from the overlay's (RFC 6724, rule 8).
        let answers_from_its_own = !(by.udp && by.v6);
        for at in ANYWHERE {
            // Answers come back here by themselves; the node is its own client.
            if answers_from_its_own {
                check(pod, &near, at, Source::Own);
            }
            check(node, &near, at, Source::Frontend);
            check(outside, &near, at, Source::Own);
            // What leaves for the other node's address has this one's.
            check(pod, &far, at, Source::Node(0));
            check(node, &far, at, Source::Own);
            check(outside, &far, at, Source::Node(0));
        }
        if answers_from_its_own {
            check(pod, &near, Front::NodePort(0), Source::Own);
        }
        // Over the loopback device, where nobody need know.
        check(node, &near, Front::NodePort(0), Source::Own);
        check(node, &far, Front::NodePort(0), Source::Own);
        check(outside, &near, Front::NodePort(0), Source::Own);
        check(outside, &far, Front::NodePort(0), Source::Node(0));
        check(outside, &far, Front::NodePort(1), Source::Own);
        check(outside, &near, Front::NodePort(1), Source::Node(1));
    }
    all_well(results);
}
