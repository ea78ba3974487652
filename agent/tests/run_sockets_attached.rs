//! The programs at sockets and the agent: they are all attached or send nothing elsewhere,
//! outlive the agent, and go with it. Needs root and cgroups of version 2.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod exposition;
mod run_services_support;
mod run_support;

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use datapath_common::SocketHook;
use exposition::Exposition;
use run_services_support::sockets::{NODE, POD, ask_all, flow_rows, own_address, programs};
use run_services_support::{EVERY_WAY, SECOND_NODE, SOON, Town};
use run_support::ask::get_path;
use run_support::{LIMIT, START};
use testkit::echo::LongConnection;
use testkit::manifests::Protocol;
use testkit::server::ECHO_PORT;

#[test]
fn nothing_goes_elsewhere_if_answers_cannot_be_named() {
    let mut town = Town::with_sockets("names", &[]);
    let service = town.service(84, &SECOND_NODE);
    town.world.write(&service);
    let to = |by| own_address(&service, by);
    let state = |town: &mut Town| {
        let status = town.world.agents[0].status().unwrap();
        let of = |feature: &&admin_api::Feature| feature.name == "services at sockets";
        let chosen = status.features.iter().find(of).unwrap().chosen.clone();
        (chosen, status.faults)
    };
    assert_eq!(state(&mut town), ("for all processes".to_owned(), vec![]));
    // A pin that cannot be made.
    let pin = town.node(0).bpffs().join("links/tulle_recvmsg4");
    std::fs::remove_file(&pin).unwrap();
    std::fs::create_dir(&pin).unwrap();
    let elsewhere = |town: &Town| {
        let is_one = |name: &String| name.contains("connect") || name.contains("sendmsg");
        programs(town, 0).into_iter().filter(is_one).count()
    };
    testkit::wait::until("nothing sends elsewhere", LIMIT, || {
        Ok((elsewhere(&town) == 0).then_some(()))
    })
    .unwrap();
    for by in EVERY_WAY {
        for client in [POD, NODE] {
            let before = flow_rows(&town);
            ask_all(town.ns(client), to(by), by.udp);
            assert!(flow_rows(&town) > before, "{client:?} {by:?}");
        }
    }
    testkit::wait::until("the agent says so", LIMIT, || {
        let (chosen, faults) = state(&mut town);
        let said = faults.iter().any(|f| f.contains("tulle_recvmsg4"))
            && faults.iter().any(|f| f.contains("packets are translated"));
        Ok((chosen == "off" && said).then_some(()))
    })
    .unwrap();
    std::fs::remove_dir(&pin).unwrap();
    testkit::wait::until("all programs again", LIMIT, || {
        let all = programs(&town, 0).len() == SocketHook::ALL.len();
        let well = state(&mut town) == ("for all processes".to_owned(), vec![]);
        Ok((all && well).then_some(()))
    })
    .unwrap();
    let before = flow_rows(&town);
    for by in EVERY_WAY {
        ask_all(town.ns(POD), to(by), by.udp);
    }
    assert_eq!(flow_rows(&town), before);
}

#[test]
fn programs_at_sockets_outlive_the_agent_and_go_with_it() {
    let mut town = Town::with_sockets("outlive", &[]);
    let service = town
        .service(80, &SECOND_NODE)
        .port(Protocol::Tcp, 9000, ECHO_PORT);
    town.world.write(&service);
    let at = |by| own_address(&service, by);
    let every = Duration::from_millis(20);
    let long = SocketAddr::new(service.ips[0], 9000);
    let talk = LongConnection::start(town.ns(POD), long, every).unwrap();
    let early = {
        let connect = || TcpStream::connect_timeout(&long, SOON);
        town.ns(POD).run(connect).unwrap().unwrap()
    };
    let links = link_ids(&town);
    town.world.agents[0].kill().unwrap();
    assert_eq!(programs(&town, 0).len(), SocketHook::ALL.len());
    for by in EVERY_WAY {
        ask_all(town.ns(POD), at(by), by.udp);
    }
    assert_eq!(flow_rows(&town), 0, "without an agent");
    town.world.agents[0].spawn().unwrap();
    testkit::wait::until("agent ready again", START, || {
        ask_all(town.ns(POD), at(EVERY_WAY[0]), false);
        Ok(town.world.agents[0]
            .status()
            .is_ok_and(|s| s.ready)
            .then_some(()))
    })
    .unwrap();
    assert_eq!(flow_rows(&town), 0, "while the agent started");
    assert_eq!(link_ids(&town), links, "taken over");
    assert_eq!(early.peer_addr().unwrap(), long);
    // Somebody takes one off: it is put back.
    let pin = town.node(0).bpffs().join("links/tulle_connect4");
    std::fs::remove_file(pin).unwrap();
    testkit::wait::until("the program again", LIMIT, || {
        Ok((programs(&town, 0).len() == SocketHook::ALL.len()).then_some(()))
    })
    .unwrap();
    let repairs = |part: &str| {
        let at = SocketAddr::from(([127, 0, 0, 1], 10_249));
        let answer = get_path(town.node(0).ns(), at, "/metrics").unwrap();
        let seen = Exposition::parse(&answer.body, false);
        seen.sum("tulle_drift_repairs_total", &[("part", part)])
    };
    testkit::wait::until("the repair to be told", LIMIT, || {
        Ok((repairs("sockets") > 0.0).then_some(()))
    })
    .unwrap();
    assert!(repairs("programs") < 1.0, "none at an interface");
    let status = town.world.agents[0].status().unwrap();
    assert_eq!(status.faults, [""; 0]);
    let listed = status.links.iter().filter(|link| link.mode == "cgroup");
    assert_eq!(listed.count(), SocketHook::ALL.len());
    let report = talk.finish();
    assert!(report.broken.is_none(), "{report:?}");

    town.world.agents[0].kill().unwrap();
    town.world.agents[0].cleanup().unwrap();
    assert_eq!(programs(&town, 0), [""; 0]);
    let connect = || TcpStream::connect_timeout(&long, Duration::from_secs(1));
    let error = town.ns(POD).run(connect).unwrap().err();
    assert!(error.is_some(), "nobody translates any more");
}

#[test]
fn a_cgroup_is_taken_when_it_is_there_and_again_when_another_has_its_name() {
    let name = testkit::netns::unique("later");
    let cgroup = testkit::cgroup::Cgroup::new(&name).unwrap();
    // Keeps the one above it, and so the path.
    let beside = testkit::cgroup::Cgroup::new(&format!("{name}-beside")).unwrap();
    let path = cgroup.path().to_owned();
    drop(cgroup);
    let town = Town::start("later", 0, &["--cgroup", path.to_str().unwrap()]);
    for _ in 0..2 {
        let feature = |status: &admin_api::Status| {
            let of = |feature: &&admin_api::Feature| feature.name == "services at sockets";
            let feature = status.features.iter().find(of).unwrap();
            (feature.chosen.clone(), feature.why.clone())
        };
        testkit::wait::until("off without a cgroup", LIMIT, || {
            let (chosen, why) = feature(&town.world.agents[0].status().unwrap());
            let said = why.contains("cannot open the cgroup");
            Ok((chosen == "off" && said && programs(&town, 0).is_empty()).then_some(()))
        })
        .unwrap();
        let cgroup = testkit::cgroup::Cgroup::new(&name).unwrap();
        assert_eq!(cgroup.path(), path);
        testkit::wait::until("on with one", LIMIT, || {
            let (chosen, _) = feature(&town.world.agents[0].status().unwrap());
            let all = programs(&town, 0).len() == SocketHook::ALL.len();
            Ok((chosen == "for all processes" && all).then_some(()))
        })
        .unwrap();
        assert_eq!(town.world.agents[0].status().unwrap().faults, [""; 0]);
    }
    drop(beside);
}

/// Ids of the first node's links at sockets, by bpftool.
fn link_ids(town: &Town) -> Vec<String> {
    let links = town.node(0).bpffs().join("links");
    let shown = SocketHook::ALL.map(|hook| {
        let pin = links.join(hook.program());
        let output = std::process::Command::new("bpftool")
            .args(["link", "show", "pinned"])
            .arg(pin)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split(':').next().unwrap_or_default().to_owned()
    });
    assert!(
        shown.iter().all(|id| id.parse::<u32>().is_ok()),
        "{shown:?}"
    );
    shown.to_vec()
}
