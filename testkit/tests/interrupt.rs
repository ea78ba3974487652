//! What Ctrl-C does. In a file of its own because the whole process makes
//! nothing any more afterwards. Needs root.

use std::time::Duration;

use testkit::process::Process;
use testkit::{ClusterBuilder, Error, NetNs, registry};

#[test]
fn an_interrupted_process_removes_everything_from_another_thread() {
    let name = testkit::netns::unique("interrupt");
    let cluster = ClusterBuilder::new(&name)
        .nodes(1)
        .pods_per_node(1)
        .build()
        .unwrap();
    let ns = NetNs::new("alone").unwrap();
    let node = &cluster.nodes()[0];
    let (bpffs, directory, pod_ns) = (node.bpffs(), cluster.directory(), node.pods()[0].ns());
    let mut command = pod_ns.command("sleep").unwrap();
    command.arg("1000");
    let mut process = Process::spawn("sleep", command, &directory.join("log")).unwrap();

    let failures = std::thread::spawn(registry::remove_everything)
        .join()
        .unwrap();
    assert!(failures.is_empty(), "{failures:?}");

    assert!(!process.wait(Duration::from_secs(2)).unwrap().success());
    for left in [
        ns.path(),
        pod_ns.path(),
        cluster.switch().path(),
        bpffs.clone(),
        directory,
    ] {
        assert!(!left.exists(), "{} is there", left.display());
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&bpffs.display().to_string()), "{mounts}");
    assert!(matches!(NetNs::new("late"), Err(Error::Interrupted)));
    let late = ClusterBuilder::unique("late").build();
    assert!(matches!(late, Err(Error::Interrupted)), "{late:?}");
    drop(cluster); // finds nothing to remove, and does not mind
}
