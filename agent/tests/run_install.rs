//! `docs/install.md` word for word, as far as this goes in a namespace: plain nodes. Needs root.
#![allow(clippy::unwrap_used, reason = "tests and their helpers may panic")]

mod run_support;

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Output;

use run_support::{BINARY, World};
use testkit::cluster::UPLINK;
use testkit::snapshot::{self, Snapshot};
use testkit::{ClusterBuilder, Node};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap()
}

/// What follows a heading, or a line, up to the next heading of its level.
fn after<'a>(page: &'a str, line: &str) -> &'a str {
    let begin = page
        .find(&format!("\n{line}\n"))
        .unwrap_or_else(|| panic!("no {line:?}"));
    let text = &page[begin + line.len() + 2..];
    text.find("\n## ").map_or(text, |end| &text[..end])
}

/// The blocks of a text, of one language.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut inside: Option<(&str, String)> = None;
    for line in text.lines() {
        match (&mut inside, line.strip_prefix("```")) {
            (None, Some(of)) => inside = Some((of, String::new())),
            (Some((_, block)), None) => {
                let _ = writeln!(block, "{line}");
            }
            (Some(_), Some(_)) => found.extend(inside.take()),
            (None, None) => {}
        }
    }
    let of_language = found.into_iter().filter(|(of, _)| *of == language);
    of_language.map(|(_, block)| block).collect()
}

/// In the place of systemd: reads the unit and starts what it says, as it says.
const SYSTEMCTL: &str = r#"#!/bin/sh
set -eu
case "$*" in
daemon-reload) ;;
"enable --now tulle-agent")
    unit=/etc/systemd/system/tulle-agent.service
    from=$(sed -n 's/^EnvironmentFile=//p' $unit)
    start=$(sed -n 's/^ExecStart=//p' $unit)
    mkdir -p /run/tulle /var/lib/tulle
    env $(grep -v '^#' "$from") $start >/run/agent.log 2>&1 &
    echo $! >/run/agent.pid
    for i in $(seq 600); do
        kill -0 "$(cat /run/agent.pid)" || { cat /run/agent.log >&2; exit 1; }
        tulle -o json status 2>/dev/null | grep -q '"ready": *true' && exit
        sleep 0.2
    done
    cat /run/agent.log >&2
    exit 1 ;;
"disable --now tulle-agent")
    kill "$(cat /run/agent.pid)"
    while kill -0 "$(cat /run/agent.pid)" 2>/dev/null; do sleep 0.1; done ;;
*) echo "systemctl $* is not in the document" >&2; exit 1 ;;
esac
"#;

/// Runs a script as root of a machine of its own: directories that are written to are not the
/// host's, and network and BPF file system are the node's.
fn on_machine(node: &Node, sources: &Path, script: &str) -> Output {
    let programs = sources.join("stand-ins");
    fs::create_dir_all(&programs).unwrap();
    let systemctl = programs.join("systemctl");
    fs::write(&systemctl, SYSTEMCTL).unwrap();
    fs::set_permissions(&systemctl, fs::Permissions::from_mode(0o755)).unwrap();
    let upper = sources.join("upper");
    fs::create_dir_all(&upper).unwrap();
    let whole = format!(
        "set -eu
        mount --make-rprivate /
        mount -t tmpfs tmpfs '{upper}'
        for place in etc var usr/local; do
            mkdir -p '{upper}'/$place/new '{upper}'/$place/work
            mount -t overlay -o lowerdir=/$place,upperdir='{upper}'/$place/new,workdir='{upper}'/$place/work overlay /$place
        done
        mount --bind '{bpf}' /sys/fs/bpf
        cd '{sources}'
        exec 9<.
        mount -t tmpfs tmpfs /run
        cd /proc/self/fd/9
        set -x
        {script}",
        upper = upper.display(),
        bpf = node.bpffs().display(),
        sources = sources.display(),
    );
    let mut command = node.ns().command("unshare").unwrap();
    let path = format!(
        "{}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        programs.display()
    );
    command
        .args(["--mount", "sh", "-c", &whole])
        .env("PATH", path);
    command.output().unwrap()
}

#[test]
fn a_plain_node_is_installed_and_cleaned_as_the_document_says() {
    let page = fs::read_to_string(root().join("docs/install.md")).unwrap();
    let install = after(&page, "## Plain nodes");
    let remove = after(after(&page, "## Remove"), "On a plain node:");
    let (install_commands, remove_commands) = (blocks(install, "sh"), blocks(remove, "sh"));
    assert_eq!((install_commands.len(), remove_commands.len()), (2, 1));
    let environment = fs::read_to_string(root().join("deploy/systemd/agent.env")).unwrap();
    assert!(
        environment.ends_with(&blocks(install, "")[0]),
        "{environment}"
    );

    // The directory of the sources, outside of what is mounted over.
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let sources = directory.path();
    let dist = sources.join("target/dist");
    fs::create_dir_all(&dist).unwrap();
    let cli = Path::new(BINARY).with_file_name("tulle");
    assert!(
        cli.is_file(),
        "{} is missing: cargo build -p tulle",
        cli.display()
    );
    symlink(BINARY, dist.join("tulle-agent")).unwrap();
    symlink(cli, dist.join("tulle")).unwrap();

    // As one who installs does: addresses and names of the own nodes and pods.
    let world = World::idle_of(ClusterBuilder::unique("plain").nodes(2).pods_per_node(1));
    let [node, other] = world.cluster.nodes() else {
        panic!("two nodes")
    };
    let deploy = sources.join("deploy/systemd");
    fs::create_dir_all(&deploy).unwrap();
    let copy = |name: &str, change: &dyn Fn(String) -> String| {
        let text = fs::read_to_string(root().join("deploy/systemd").join(name)).unwrap();
        fs::write(deploy.join(name), change(text)).unwrap();
    };
    copy("tulle-agent.service", &|text| text);
    copy("agent.env", &|mut text| {
        text = text.replace("TULLE_NODE=node-1", &format!("TULLE_NODE={}", node.name()));
        let _ = writeln!(text, "TULLE_UPLINK={UPLINK}");
        text
    });
    copy("state.yaml", &|mut text| {
        for (example, here) in [("1", node), ("2", other)] {
            for (from, to) in [
                (format!("node-{example}"), here.name().to_owned()),
                (format!("192.0.2.1{example}"), here.ip4().to_string()),
                (
                    format!("10.244.{example}.0/24"),
                    here.pod_cidr4().to_string(),
                ),
                (
                    format!("10.244.{example}.10"),
                    here.pods()[0].ip4().to_string(),
                ),
            ] {
                assert!(text.contains(&from), "{from} is not in the example");
                text = text.replace(&from, &to);
            }
        }
        text
    });

    let before = Snapshot::of(node.ns(), Some(&node.bpffs())).unwrap();
    let script = format!(
        "{}\ntulle services\n{}\ntest ! -e /etc/tulle",
        install_commands.join("\n"),
        remove_commands[0],
    );
    let output = on_machine(node, sources, &script);
    let (out, log) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{log}\n{out}");
    assert!(out.contains("10.96.0.10:80"), "{out}");
    assert!(out.contains("detached program"), "{out}");
    let after = Snapshot::of(node.ns(), Some(&node.bpffs())).unwrap();
    assert_eq!(before, after, "{}", snapshot::diff(&before, &after));
}
