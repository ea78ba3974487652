//! `cargo xtask bench services` in a small form. Needs root, `target/bpf/tulle.bpf.o`
//! embedded in a `tulle-agent` beside the measuring program, and `nft` and `iptables`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure is the test's"
)]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

#[test]
fn every_way_is_measured_with_few_services_and_with_more() {
    let program = Path::new(env!("CARGO_BIN_EXE_tulle-bench"));
    let agent = program.with_file_name("tulle-agent");
    let output = Command::new(program)
        .args(["services", "--json", "--services", "1,5"])
        .args(["--rounds", "1", "--millis", "10", "--agent"])
        .arg(&agent)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let values = report["values"].as_array().unwrap();
    let count = |of: &str, is: &Value| values.iter().filter(|value| &value[of] == is).count();
    // IPVS only where the kernel has it.
    let ipvs = usize::from(count("way", &"ipvs".into()) > 0);
    // Six ways to a ClusterIP and five to a NodePort, six figures, two numbers.
    assert_eq!(values.len(), (6 + 5 + 2 * ipvs) * 6 * 2);
    for value in values {
        let middle = value["spread"]["middle"].as_f64().unwrap();
        assert!(middle.is_finite() && middle > 0.0, "{value}");
    }
    assert_eq!(count("services", &5.into()), values.len() / 2);
    assert_eq!(count("way", &"tulle_sockets".into()), 6 * 2);
    assert_eq!(count("front", &"node_port".into()), (5 + ipvs) * 6 * 2);
    // For whoever runs it on another kernel.
    for ratio in report["ratios"].as_array().unwrap() {
        println!("{ratio}");
    }
}
