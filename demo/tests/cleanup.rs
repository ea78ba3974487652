//! However a demo ends, nothing of it is left. Needs root; needs no agent: a
//! script stands for it, so that the demo ends where the test wants.
#![expect(clippy::unwrap_used, reason = "tests and their helpers may panic")]

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use testkit::wait;

const LIMIT: Duration = Duration::from_mins(1);
/// An agent that runs and never is ready.
const SILENT: &str = "#!/bin/sh\nexec sleep 600\n";
/// An agent that does not start.
const BROKEN: &str = "#!/bin/sh\necho no such luck >&2\nexit 1\n";

/// A demo with a script for an agent.
struct Demo {
    name: String,
    programs: TempDir,
}

impl Demo {
    fn new(label: &str, agent: &str) -> Self {
        let programs = tempfile::tempdir().unwrap();
        for program in ["tulle-agent", "tulle"] {
            let path = programs.path().join(program);
            std::fs::write(&path, agent).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        }
        let name = format!("t{}{label}", std::process::id());
        Self { name, programs }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tulle-demo"));
        command.args(["--name", &self.name]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn start(&self) -> Child {
        let mut command = self.command();
        command.args(["--nodes", "2", "--pods", "1", "--programs"]);
        command.arg(self.programs.path()).spawn().unwrap()
    }

    fn down(&self) -> Output {
        self.command().arg("--down").output().unwrap()
    }

    /// Waits until a path of the demo exists.
    fn await_path(&self, path: &str) {
        let path = path.replace("NAME", &self.name);
        wait::until(&format!("no {path}"), LIMIT, || {
            Ok(Path::new(&path).exists().then_some(()))
        })
        .unwrap();
    }

    fn assert_gone(&self) {
        let namespaces: Vec<String> = std::fs::read_dir("/run/netns")
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|namespace| namespace.starts_with(&self.name))
            .collect();
        assert!(namespaces.is_empty(), "{namespaces:?}");
        let directory = format!("/run/tulle-clusters/{}", self.name);
        assert!(!Path::new(&directory).exists());
        assert!(!Path::new(&format!("{directory}.json")).exists());
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(&directory), "{mounts}");
        for process in std::fs::read_dir("/proc").unwrap().flatten() {
            let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            assert!(!line.contains(&format!("--name={}", self.name)), "{line}");
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.down(); // what a failed test left
    }
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

fn finished(mut child: Child) -> (i32, String) {
    let what = "no end of the demo";
    let status = wait::until(what, LIMIT, || Ok(child.try_wait().unwrap())).unwrap();
    let mut text = String::new();
    child.stdout.unwrap().read_to_string(&mut text).unwrap();
    child.stderr.unwrap().read_to_string(&mut text).unwrap();
    let signal = status.signal().map_or(0, |signal| 128 + signal);
    (status.code().unwrap_or(signal), text)
}

#[test]
fn a_failure_is_told_and_leaves_nothing() {
    let demo = Demo::new("f", BROKEN);
    let (code, text) = finished(demo.start());
    assert_eq!(code, 1, "{text}");
    assert!(
        text.contains("agent of node-1 ended") && text.contains("no such luck"),
        "{text}"
    );
    assert!(
        text.contains("Verified that nothing is left of 5 namespaces"),
        "{text}"
    );
    demo.assert_gone();
}

#[test]
fn signals_leave_nothing_in_any_phase() {
    let cases = [
        (Signal::SIGINT, "/run/netns/NAME-switch"),
        (Signal::SIGTERM, "/run/netns/NAME-node-2"),
        (Signal::SIGHUP, "/run/tulle-clusters/NAME/state/web.yaml"),
        (Signal::SIGINT, "/run/tulle-clusters/NAME/node-2/agent.log"),
    ];
    let demo = Demo::new("s", SILENT);
    for (sent, phase) in cases {
        let child = demo.start();
        demo.await_path(phase);
        signal(&child, sent);
        let (code, text) = finished(child);
        assert_eq!(code, 128 + sent as i32, "{text}");
        assert!(text.contains("Verified that nothing is left"), "{text}");
        demo.assert_gone();
    }
}

#[test]
fn a_show_that_is_killed_leaves_nothing() {
    let demo = Demo::new("k", SILENT);
    let child = demo.start();
    demo.await_path("/run/tulle-clusters/NAME/node-2/agent.log");
    let show = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
    kill(Pid::from_raw(show.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
    let (code, text) = finished(child);
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("killed by signal 9"), "{text}");
    demo.assert_gone();
}

#[test]
fn a_demo_that_runs_or_was_killed_comes_down() {
    let demo = Demo::new("d", SILENT);
    let child = demo.start();
    demo.await_path("/run/tulle-clusters/NAME/node-2/agent.log");

    let (code, text) = finished(demo.start());
    assert_eq!(code, 1);
    assert!(
        text.contains("runs already") && text.contains("--down"),
        "{text}"
    );
    assert!(demo.down().status.success());
    assert_eq!(finished(child).0, 143);
    demo.assert_gone();

    let mut child = demo.start();
    demo.await_path("/run/tulle-clusters/NAME/node-2/agent.log");
    child.kill().unwrap();
    child.wait().unwrap();
    let (code, text) = finished(demo.start());
    assert_eq!(code, 1);
    assert!(
        text.contains("is up already") && text.contains("--down"),
        "{text}"
    );
    let down = demo.down();
    assert!(down.status.success(), "{down:?}");
    demo.assert_gone();
    let again = demo.down();
    assert!(again.status.success());
    let again = String::from_utf8(again.stdout).unwrap();
    assert!(again.starts_with("No demo named"), "{again}");
}
