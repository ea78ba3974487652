//! Clients outside: node ports, masquerade, traffic.

use datapath_common::{Config, Counter, Hook, Reason, Traffic, counter_index, maps};
use serde_json::Value;

use crate::fixture::{HOST4, fill_masqueraded, fill_outside, fill_services, now_tick};
use crate::pins::Pins;
use crate::tulle::Tulle;

#[test]
fn every_kind_of_frontend_is_shown() {
    let pins = Pins::new();
    fill_services(&pins);
    fill_outside(&pins);
    let tulle = Tulle::new(&pins.dir);
    tulle.serve();
    assert_eq!(
        tulle
            .ok(&["services", "--namespace", "default", "--name", "web", "-w"])
            .stdout,
        "\
SERVICE           FRONTEND           PROTO  KIND         BACKENDS  NUMBER       SLOTS  FLAGS                                     ENDPOINTS
default/web:http  10.96.0.10:80      TCP    ClusterIP           2       7           3  changed                                   10.244.0.5:8080 33% 10.244.1.7:8080 67%
default/web:http  192.168.0.1:30080  TCP    NodePort   2 in 1 out       7  3 in 1 out  masq outside, affinity 1m00s              inside 10.244.0.5:8080 33% 10.244.1.7:8080 67%; outside 192.168.0.1:8080
default/web:http  203.0.113.1:80     TCP    VIP        2 in 0 out       7  3 in 0 out  only from 203.0.112.0/23, affinity 1m00s  inside 10.244.0.5:8080 33% 10.244.1.7:8080 67%; outside none: packets are dropped
"
    );
    for args in [
        &["services", "--namespace", "other"][..],
        &["services", "nosuch"],
        &["-o", "json", "services", "--name", "nosuch"],
    ] {
        let run = tulle.run(args);
        assert_eq!((run.ok, run.stdout.as_str()), (false, ""), "{args:?}");
        assert_eq!(
            run.stderr,
            "tulle: no service matches; `tulle services` lists all of them\n"
        );
    }
    let run = tulle.run(&["backends", "nosuch"]);
    assert_eq!((run.ok, run.stdout.as_str()), (false, ""));
    assert_eq!(
        run.stderr,
        "tulle: no backend matches; `tulle backends` lists all of them\n"
    );
    assert_eq!(
        tulle.ok(&["backends", "this node"]).stdout,
        "\
ID  GEN  ADDRESS           PROTO  STATE   VIA        SERVICES
 2    3  192.168.0.1:8080  TCP    active  this node  default/web:http
"
    );
    let json = tulle.json(&["services", "nodeport"]);
    let row = &json["services"][0];
    assert_eq!(row["kind"], "node_port");
    assert_eq!(row["namespace"], "default");
    assert_eq!(row["masquerades_outside"], true);
    assert_eq!(row["outside"]["backends"][0]["address"], "192.168.0.1:8080");
    assert_eq!(row["affinity_secs"], 60);
    assert_eq!(row["traffic"], Value::Null);
    let status = tulle.json(&["status"]);
    let maps = status["maps"].as_array().unwrap();
    let sources = maps.iter().find(|map| map["name"] == maps::SRCS_V4);
    assert_eq!(sources.unwrap()["used"], 2);
}

#[test]
fn traffic_is_summed_over_the_cpus() {
    let pins = Pins::new();
    fill_services(&pins);
    fill_outside(&pins);
    let traffic = |n| Traffic {
        flows: n,
        packets: 10 * n,
        bytes: 1024 * n,
        reply_packets: 20 * n,
        reply_bytes: 2048 * n,
    };
    let cpus = pins.set_per_cpu(maps::SVC_STATS, 7, traffic(100));
    pins.set_per_cpu(maps::BK_STATS4, 2, traffic(30));
    pins.set_per_cpu(maps::BK_STATS6, 1, traffic(4));
    let tulle = Tulle::new(&pins.dir);
    let services = tulle.json(&["services", "--stats", "10.96.0.10:80"]);
    assert_eq!(
        services["services"][0]["traffic"],
        serde_json::json!({
            "flows": cpus * 100, "packets": cpus * 1000, "bytes": cpus * 102_400,
            "reply_packets": cpus * 2000, "reply_bytes": cpus * 204_800,
        })
    );
    let text = tulle.ok(&["services", "--stats", "10.96.0.10"]).stdout;
    let titles = text.lines().next().unwrap().split_whitespace();
    let titles = titles.collect::<Vec<_>>().join(" ");
    assert!(
        titles.contains("BACKENDS FLOWS PACKETS BYTES REPLIES REPLY BYTES FLAGS"),
        "{text}"
    );
    let packets = tulle_cli::format::count(cpus * 2000);
    assert!(text.contains(&format!("  {packets}  ")), "{text}");
    let backends = tulle.json(&["backends", "--stats"]);
    let flows = |family: u8, id: u32| {
        let rows = backends["backends"].as_array().unwrap();
        let row = rows.iter().find(|b| b["family"] == family && b["id"] == id);
        row.unwrap()["traffic"]["flows"].clone()
    };
    assert_eq!(
        [flows(4, 2), flows(6, 1), flows(4, 1)],
        [cpus * 30, cpus * 4, 0]
    );
    assert_eq!(flows(4, 4095), Value::Null, "beyond the table");
}

#[test]
fn ports_of_masqueraded_flows_are_counted() {
    let pins = Pins::new();
    fill_masqueraded(&pins, 90, now_tick());
    let dropped = 5 * pins.set_per_cpu(
        maps::COUNTERS,
        counter_index(Hook::NicIn, Reason::SnatPortsExhausted),
        Counter {
            packets: 5,
            bytes: 300,
        },
    );
    let tulle = Tulle::new(&pins.dir);
    let json = tulle.json(&["snat"]);
    assert_eq!(json["matching"], 91);
    assert_eq!(json["ports"], Value::Null, "no program is loaded");
    assert_eq!(
        json["users"][0],
        serde_json::json!({
            "translated": "192.168.0.1", "backend": "10.244.1.7:8080", "protocol": "TCP",
            "ports": 90,
        })
    );
    let config = Config {
        node_ip4: HOST4,
        snat_first: 50_000,
        snat_ports: 100,
        ..Config::EMPTY
    };
    let loaded = pins.load(&config);
    assert_eq!(
        tulle.json(&["snat"])["ports"],
        serde_json::json!({ "first": 50_000, "count": 100 })
    );
    let shown = tulle.ok(&["snat", "--port", "20007"]);
    let (list, summary) = shown.stdout.split_once("\n\n").unwrap();
    assert!(
        list.contains(
            "\nTCP    203.0.113.7:20007  192.168.0.1:50007  10.244.1.7:8080  established  "
        ),
        "{list}"
    );
    assert!(list.ends_with("  192.168.0.1:30080  #7"), "{list}");
    let expected = format!(
        "\
1 masqueraded flow; 100 ports (50000 to 50099) for each translated address, backend and protocol; \
         {dropped} packets dropped for want of a port
TRANSLATED   BACKEND          PROTO  PORTS    USED
192.168.0.1  10.244.1.7:8080  TCP       90  90.0 %
"
    );
    assert_eq!(summary, expected);
    assert!(
        shown.stderr.contains("1 backend with 75 % of the ports"),
        "{}",
        shown.stderr
    );
    // The programs of an agent that was started anew.
    let config = Config {
        snat_ports: 200,
        ..config
    };
    let later = pins.load(&config);
    drop(loaded);
    assert_eq!(tulle.json(&["snat"])["ports"]["count"], 200);
    drop(later);
}

#[test]
fn flows_tell_what_backends_see() {
    let pins = Pins::new();
    fill_masqueraded(&pins, 3, now_tick());
    let tulle = Tulle::new(&pins.dir);
    let by_port = tulle.json(&["flows", "--port", "50002"]);
    assert_eq!(by_port["matching"], 1);
    let flow = &by_port["flows"][0];
    assert_eq!(flow["client"], "203.0.113.7:20002");
    assert_eq!(flow["translated"], "192.168.0.1:50002");
    assert_eq!(flow["rows"], "both");
    let leaving = tulle.json(&["flows", "--addr", "198.51.100.1"]);
    assert_eq!(leaving["flows"][0]["frontend"], Value::Null);
    assert_eq!(leaving["flows"][0]["backend"], "198.51.100.1:443");
    assert_eq!(leaving["flows"][0]["service"], Value::Null);
    let text = tulle.ok(&["flows", "--addr", "198.51.100.1"]).stdout;
    assert!(text.contains("(no service)"), "{text}");
    let summary = tulle.ok(&["flows", "--summary"]).stdout;
    assert!(summary.contains("(no service)  TCP"), "{summary}");
}
