//! What the overlay accepts and how many services an agent takes, on real
//! hosts. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_support;

use std::time::Duration;

use run_support::{LIMIT, World, addresses};
use testkit::capture::{Capture, inject};
use testkit::http::{FailureKind, get};
use testkit::manifests::many_services;
use testkit::packet::{Frame, Outer, vxlan};

/// How long a connection that must not come about is waited for: an answer
/// takes milliseconds, and the switch lets go of such packets without a word.
const SILENCE: Duration = Duration::from_secs(1);

#[test]
fn a_thousand_services_come_and_go() {
    let world = World::start("thousand", &[]);
    let web = world.web();
    world.write(&web);
    let client = world.cluster.nodes()[0].pods()[0].ns();
    let many = many_services("many", 1_000, &web.endpoints).unwrap();
    let files = world.state.write_services("many", &many).unwrap();
    let wait_for = |services: u64| {
        for agent in &world.agents {
            testkit::wait::until("all services", 4 * LIMIT, || {
                let status = agent.status();
                let done =
                    status.is_ok_and(|s| s.objects.services == services && s.faults.is_empty());
                Ok(done.then_some(()))
            })
            .unwrap();
        }
    };
    wait_for(1_001);
    for service in [&many[0], &many[499], &many[999]] {
        for address in addresses(service) {
            get(client, address, "/", LIMIT).unwrap();
        }
    }
    for file in files {
        world.state.remove(&file).unwrap();
    }
    wait_for(1);
    for address in addresses(&many[499]) {
        let error = get(client, address, "/", SILENCE).unwrap_err();
        assert_eq!(error.kind, FailureKind::Timeout, "{address}: {error}");
    }
    for address in addresses(&web) {
        get(client, address, "/", LIMIT).unwrap();
    }
}

#[test]
fn overlay_packets_of_strangers_reach_no_pod() {
    let mut world = World::start("stranger", &[]);
    world.cluster.add_outsider("stranger").unwrap();
    let (here, there) = (&world.cluster.nodes()[0], &world.cluster.nodes()[1]);
    let pod = &here.pods()[0];
    let vtep = |ip: std::net::Ipv4Addr| {
        let [a, b, c, d] = ip.octets();
        [0x0a, 0x58, a, b, c, d]
    };
    let packet = |from, vni, marker: &[u8]| {
        let mut inner = Frame::v4(there.pods()[0].ip4(), pod.ip4())
            .udp(4000, 4001)
            .payload(marker)
            .bytes();
        inner[..6].copy_from_slice(&vtep(here.ip4()));
        let outer = Outer {
            // Not one of the cluster: the switch would learn it at the wrong port.
            src_mac: [2, 9, 9, 9, 9, 9],
            dst_mac: here.uplink_mac(),
            vni,
            ..Outer::new(from, here.ip4())
        };
        vxlan(outer, &inner)
    };
    let seen = Capture::start(pod.ns(), "eth0", 1_000).unwrap();
    let stranger = &world.cluster.outsiders()[0];
    let at = (stranger.ns(), "eth0");
    // From no node, in no network of ours; then one as the other node sends it,
    // which comes through and shows that the first two had their time.
    inject(
        at.0,
        at.1,
        &packet([192, 0, 2, 7].into(), 1, b"of a stranger"),
    )
    .unwrap();
    inject(at.0, at.1, &packet(there.ip4(), 7, b"of another network")).unwrap();
    inject(at.0, at.1, &packet(there.ip4(), 1, b"of a node")).unwrap();
    let holds = |frame: &[u8], marker: &[u8]| frame.windows(marker.len()).any(|w| w == marker);
    seen.wait_for("the node's packet", LIMIT, |frame| {
        holds(&frame.bytes, b"of a node")
    })
    .unwrap();
    for frame in seen.stop().unwrap() {
        assert!(!holds(&frame.bytes, b"of a stranger"));
        assert!(!holds(&frame.bytes, b"of another network"));
    }
}
