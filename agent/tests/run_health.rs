//! Health check node ports of a real agent, asked as load balancers ask them.
//! Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_support;

use std::fmt::Write as _;
use std::io::{ErrorKind, Read};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use run_support::ask::{Answer, ask, get_path};
use run_support::{LIMIT, World};
use testkit::agent::Agent;
use testkit::http::get;
use testkit::{ClusterBuilder, Node};

const PORT: u16 = 31_999;

/// A node with an agent; nodes have addresses of both families.
fn world(label: &str, args: &[&str]) -> World {
    let mut world = World::idle_of(ClusterBuilder::unique(label).nodes(1).pods_per_node(1));
    world.options = world.options.args(args);
    world.start_agents();
    world
}

fn node(world: &World) -> &Node {
    &world.cluster.nodes()[0]
}

fn ips(world: &World) -> [IpAddr; 2] {
    let node = node(world);
    [node.ip4().into(), node.ip6().unwrap().into()]
}

/// A LoadBalancer Service of both families; `more` is the rest of its spec.
fn service(name: &str, host: u8, more: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  \
         clusterIP: 10.96.0.{host}\n  clusterIPs: [10.96.0.{host}, \"fd96::{host}\"]\n  \
         ipFamilies: [IPv4, IPv6]\n  ipFamilyPolicy: RequireDualStack\n  \
         ports: [{{name: a, port: 80, targetPort: 8080}}, {{name: b, port: 81, targetPort: 8081}}]\n{more}"
    )
}

fn local(name: &str, host: u8, port: u16) -> String {
    let more = format!(
        "  type: LoadBalancer\n  externalTrafficPolicy: Local\n  healthCheckNodePort: {port}\n"
    );
    service(name, host, &more)
}

/// Both slices of `web`, with both ports: last digit, conditions, and the node's name.
fn slices(endpoints: &[(u8, &str, &str)]) -> String {
    let slice = |family: &str, net: &str| {
        let mut text = format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  \
             name: web-{}\n  namespace: shop\n  labels: {{kubernetes.io/service-name: web}}\n\
             addressType: {family}\nports: [{{name: a, port: 8080}}, {{name: b, port: 8081}}]\n\
             endpoints:\n",
            family.to_lowercase()
        );
        for (digit, conditions, node) in endpoints {
            let list = format!("[\"{net}{digit}\"]");
            writeln!(
                text,
                "  - {{addresses: {list}, conditions: {{{conditions}}}, nodeName: {node}}}"
            )
            .unwrap();
        }
        if endpoints.is_empty() {
            text = text.replace("endpoints:\n", "endpoints: []\n");
        }
        text
    };
    slice("IPv4", "10.244.1.20") + &slice("IPv6", "fd77:0:0:1::")
}

/// From the machine beside the node, as a load balancer asks.
fn outside(world: &World, ip: IpAddr, port: u16) -> std::io::Result<Answer> {
    get_path(world.cluster.switch(), SocketAddr::new(ip, port), "/")
}

/// Waits until the port says so in both families.
fn wait_for(world: &World, port: u16, status: u16, ready: usize) {
    for ip in ips(world) {
        let what = format!("{ip}:{port} to say {status} with {ready} endpoints");
        testkit::wait::until(&what, LIMIT, || {
            let answer = outside(world, ip, port).ok();
            let says = answer.filter(|answer| {
                let weight = &answer.headers["X-Load-Balancing-Endpoint-Weight"];
                answer.status == status && *weight == ready.to_string()
            });
            Ok(says.map(drop))
        })
        .unwrap();
    }
}

/// Waits until nobody listens in either family.
fn wait_closed(world: &World, port: u16) {
    for ip in ips(world) {
        testkit::wait::until(&format!("{ip}:{port} to be closed"), LIMIT, || {
            let refused = outside(world, ip, port)
                .is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused);
            Ok(refused.then_some(()))
        })
        .unwrap();
    }
}

fn put(world: &World, file: &str, text: &str) {
    world.state.put(file, text).unwrap();
}

fn wait_faults(agent: &mut Agent, what: &str, holds: impl Fn(&[String]) -> bool) {
    agent
        .wait_until(what, LIMIT, |agent| {
            Ok(agent.status().is_ok_and(|status| holds(&status.faults)))
        })
        .unwrap();
}

#[test]
fn kp153_what_is_said() {
    let world = world("hsay", &[]);
    put(&world, "web.yaml", &(local("web", 10, PORT) + &slices(&[])));
    wait_for(&world, PORT, 503, 0);
    put(
        &world,
        "web.yaml",
        &(local("web", 10, PORT) + &slices(&[(1, "ready: true", "node-1")])),
    );
    wait_for(&world, PORT, 200, 1);
    let ns = world.cluster.switch();
    for ip in ips(&world) {
        let at = SocketAddr::new(ip, PORT);
        for path in ["/", "/healthz", "/any/path?at=all"] {
            let answer = get_path(ns, at, path).unwrap();
            assert_eq!(answer.status, 200, "{path}");
            let body = r#"{"service":{"namespace":"shop","name":"web"},"localEndpoints":1,"serviceProxyHealthy":true}"#;
            assert_eq!(answer.body, body, "{path}");
            let header = |name: &str| answer.headers[name].as_str();
            assert_eq!(header("Content-Type"), "application/json");
            assert_eq!(header("X-Content-Type-Options"), "nosniff");
            assert_eq!(header("X-Load-Balancing-Endpoint-Weight"), "1");
            assert_eq!(header("Content-Length"), body.len().to_string());
        }
        assert_eq!(get(ns, at, "/", LIMIT).unwrap().status, 200);
    }
}

#[test]
fn kp155_what_counts() {
    let world = world("hcount", &[]);
    let (here, there) = ("node-1", "node-2");
    for (endpoints, status, ready) in [
        (&[(1, "ready: true", here)][..], 200, 1),
        (
            &[
                (1, "ready: true", here),
                (2, "ready: true", here),
                (3, "ready: true", here),
                (4, "ready: true", there),
            ],
            200,
            3,
        ),
        (&[(1, "ready: true", there)], 503, 0),
        // It serves what the VIP brings, while balancers go away (KP-82).
        (
            &[(1, "ready: false, serving: true, terminating: true", here)],
            503,
            0,
        ),
        // publishNotReadyAddresses makes slices say so (KP-19).
        (
            &[
                (1, "ready: true, serving: false, terminating: true", here),
                (2, "ready: false, serving: false", here),
            ],
            200,
            1,
        ),
    ] {
        put(
            &world,
            "web.yaml",
            &(local("web", 10, PORT) + &slices(endpoints)),
        );
        wait_for(&world, PORT, status, ready);
    }
}

#[test]
fn kp51_open_and_closed_by_policy_type_and_port() {
    let mut world = world("hopen", &[]);
    let cluster = "  type: LoadBalancer\n  externalTrafficPolicy: Cluster\n";
    let node_port = format!(
        "  type: NodePort\n  externalTrafficPolicy: Local\n  healthCheckNodePort: {PORT}\n"
    );
    for closed in [service("web", 10, cluster), service("web", 10, &node_port)] {
        // Without any endpoint or VIP.
        put(&world, "web.yaml", &local("web", 10, PORT));
        wait_for(&world, PORT, 503, 0);
        put(&world, "web.yaml", &closed);
        wait_closed(&world, PORT);
    }
    put(&world, "web.yaml", &local("web", 10, PORT));
    wait_for(&world, PORT, 503, 0);
    let ready = slices(&[(1, "ready: true", "node-1")]);
    put(&world, "web.yaml", &(local("web", 10, PORT + 1) + &ready));
    wait_for(&world, PORT + 1, 200, 1);
    wait_closed(&world, PORT);
    // Another agent answers as the former one did.
    world.agents[0].restart(LIMIT).unwrap();
    wait_for(&world, PORT + 1, 200, 1);
    world.agents[0].kill().unwrap();
    wait_closed(&world, PORT + 1);
    world.agents[0].spawn().unwrap();
    wait_for(&world, PORT + 1, 200, 1);
    assert_eq!(world.agents[0].status().unwrap().faults, [""; 0]);
    world.state.remove("web.yaml").unwrap();
    wait_closed(&world, PORT + 1);
}

#[test]
fn kp154_a_port_that_is_taken_is_told_and_healed() {
    let mut world = world("htaken", &[]);
    let [ip4, ip6] = ips(&world);
    let at = SocketAddr::new(ip4, PORT);
    let taken = node(&world).ns().run(|| TcpListener::bind(at)).unwrap();
    let taken = taken.unwrap();
    put(&world, "web.yaml", &local("web", 10, PORT));
    put(&world, "other.yaml", &local("other", 11, PORT + 1));
    wait_faults(&mut world.agents[0], "aware of the taken port", |faults| {
        let names = ["Service shop/web", &at.to_string(), "in use"];
        faults.len() == 1 && names.iter().all(|name| faults[0].contains(name))
    });
    wait_for(&world, PORT + 1, 503, 0);
    assert_eq!(outside(&world, ip6, PORT).unwrap().status, 503, "{ip6}");
    drop(taken);
    wait_for(&world, PORT, 503, 0);
    wait_faults(&mut world.agents[0], "healed", <[String]>::is_empty);

    // Two Services of one port: the first one keeps it, until it leaves it.
    put(&world, "twin.yaml", &local("twin", 12, PORT));
    wait_faults(&mut world.agents[0], "aware of the twin", |faults| {
        let told = |f: &String| f.contains("Service shop/twin") && f.contains("Service shop/web");
        faults.len() == 2 && faults.iter().all(told)
    });
    world.state.remove("web.yaml").unwrap();
    wait_faults(&mut world.agents[0], "healed again", <[String]>::is_empty);
    let answer = outside(&world, ip4, PORT).unwrap();
    assert!(answer.body.contains(r#""name":"twin""#), "{answer:?}");
}

/// Local addresses that something listens at on this port.
fn listening(world: &World, port: u16) -> Vec<String> {
    let output = node(world)
        .ns()
        .command("ss")
        .unwrap()
        .args(["-Hltn", &format!("sport = :{port}")])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut at: Vec<String> = text
        .lines()
        .map(|line| line.split_whitespace().nth(3).unwrap().to_owned())
        .collect();
    at.sort_unstable();
    at
}

#[test]
fn kp154_one_listener_for_each_family_and_address() {
    let mut world = World::idle_of(ClusterBuilder::unique("hbind").nodes(1).pods_per_node(1));
    put(&world, "web.yaml", &local("web", 10, PORT));
    let own = ips(&world).map(|ip| SocketAddr::new(ip, PORT).to_string());
    let any = [format!("0.0.0.0:{PORT}"), format!("[::]:{PORT}")];
    let plain = world.options.clone();
    for (args, listened) in [
        (&[][..], &own[..]),
        (&["--node-port-addresses", "0.0.0.0/0,::/0"], &any),
        // Another proxy may serve clients outside.
        (&["--uplink-services", "false"], &[]),
    ] {
        world.agents.clear();
        world.options = plain.clone().args(args);
        world.start_agents();
        if listened.is_empty() {
            // An agent that is ready would have opened it by now.
            std::thread::sleep(Duration::from_millis(300));
        } else {
            wait_for(&world, PORT, 503, 0);
        }
        assert_eq!(listening(&world, PORT), listened, "{args:?}");
    }
}

#[test]
fn slow_and_many_clients_hurt_nobody() {
    let world = world("hslow", &[]);
    put(&world, "web.yaml", &local("web", 10, PORT));
    wait_for(&world, PORT, 503, 0);
    let at = SocketAddr::new(ips(&world)[0], PORT);
    let began = Instant::now();
    let silent: Vec<TcpStream> = world
        .cluster
        .switch()
        .run(|| (0..600).map(|_| TcpStream::connect(at).unwrap()).collect())
        .unwrap();
    for _ in 0..20 {
        let asked = Instant::now();
        let answer = get_path(world.cluster.switch(), at, "/").unwrap();
        assert_eq!(answer.status, 503);
        assert!(
            asked.elapsed() < Duration::from_secs(2),
            "{:?}",
            asked.elapsed()
        );
    }
    // Changes are followed all the same, and in the end the silent ones are gone.
    put(&world, "other.yaml", &local("other", 11, PORT + 1));
    wait_for(&world, PORT + 1, 503, 0);
    for mut stream in silent {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let ended = stream.read(&mut [0; 1]);
        let reset = |e: &std::io::Error| e.kind() == ErrorKind::ConnectionReset;
        assert!(ended.as_ref().map_or_else(reset, |n| *n == 0), "{ended:?}");
    }
    assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
    let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(1 << 20));
    match ask(world.cluster.switch(), at, &long) {
        Ok(answer) => assert!(answer.status >= 400 && answer.status < 500, "{answer:?}"),
        Err(error) => assert_ne!(error.kind(), ErrorKind::WouldBlock, "it is cut off"),
    }
}

#[test]
fn kp154_a_thousand_ports() {
    const PORTS: u16 = 1000;
    let mut world = world("hmany", &[]);
    let text = |change: u16| {
        let mut text = String::new();
        for n in 0..PORTS {
            let ip = format!("10.96.{}.{}", 16 + n / 200, 1 + n % 200);
            let port = if n == 0 { 29_999 - change } else { 20_000 + n };
            writeln!(
                text,
                "apiVersion: v1\nkind: Service\nmetadata: {{name: web-{n}, namespace: shop}}\n\
                 spec: {{clusterIP: {ip}, type: LoadBalancer, externalTrafficPolicy: Local, \
                 healthCheckNodePort: {port}, ports: [{{port: 80}}]}}\n---"
            )
            .unwrap();
        }
        text
    };
    let ip = ips(&world)[0];
    let said = |port: u16| outside(&world, ip, port).is_ok_and(|answer| answer.status == 503);
    put(&world, "many.yaml", &text(0));
    testkit::wait::until("all ports to be open", LIMIT, || {
        Ok([29_999, 20_001, 20_000 + PORTS - 1]
            .into_iter()
            .all(said)
            .then_some(()))
    })
    .unwrap();
    let all = (1..PORTS).filter(|n| said(20_000 + n)).count();
    assert_eq!(all, usize::from(PORTS) - 1);
    put(&world, "many.yaml", &text(1));
    testkit::wait::until("one port to move", LIMIT, || Ok(said(29_998).then_some(()))).unwrap();
    assert!(!said(29_999));
    let status = world.agents[0].status().unwrap();
    assert_eq!(status.faults, [""; 0]);
    world.agents[0].terminate(LIMIT).unwrap();
}

#[test]
fn kp153_a_service_that_cannot_be_written_is_not_healthy() {
    // Room for the rows of one Service: two ports and one address in each family.
    let mut world = world("hfull", &["--max-frontends", "3"]);
    let ready = slices(&[(1, "ready: true", "node-1")]);
    put(&world, "web.yaml", &(local("web", 10, PORT) + &ready));
    wait_for(&world, PORT, 200, 1);
    let more = ready.replace("web", "more");
    put(&world, "more.yaml", &(local("more", 11, PORT + 1) + &more));
    wait_faults(&mut world.agents[0], "aware of the full map", |faults| {
        faults.iter().any(|fault| fault.contains("--max-frontends"))
    });
    // For a minute it may be a change that takes its time.
    wait_for(&world, PORT + 1, 200, 1);
    let [ip, _] = ips(&world);
    let limit = tulle_agent::health::PATIENCE + LIMIT;
    let began = Instant::now();
    let answer = testkit::wait::until("the Service to be unhealthy", limit, || {
        let answer = outside(&world, ip, PORT + 1).ok();
        Ok(answer.filter(|answer| answer.status == 503))
    });
    let answer = answer.unwrap();
    assert!(
        began.elapsed() > Duration::from_secs(45),
        "{:?}",
        began.elapsed()
    );
    assert!(
        answer
            .body
            .ends_with(r#""localEndpoints":1,"serviceProxyHealthy":false}"#),
        "{answer:?}"
    );
    wait_for(&world, PORT, 200, 1);
    world.state.remove("web.yaml").unwrap();
    wait_for(&world, PORT + 1, 200, 1);
}
