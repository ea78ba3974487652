//! Network namespaces for tests: each is held by a parked thread and goes
//! with it. Needs root; a test without it fails.
#![allow(dead_code, reason = "each test binary uses some of it")]

pub mod node;

use std::fs::File;
use std::future::Future;
use std::process::Command;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::gettid;
use serde_json::Value;

/// A network namespace.
pub struct Netns {
    holder: i32,
    release: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Netns {
    /// A fresh one, its loopback up.
    pub fn new() -> Self {
        let (release, parked) = mpsc::channel::<()>();
        let (announce, announced) = mpsc::channel();
        let thread = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root (CAP_SYS_ADMIN)");
            announce.send(gettid().as_raw()).unwrap();
            let _ = parked.recv();
        });
        let holder = announced
            .recv()
            .expect("these tests need root (CAP_SYS_ADMIN)");
        let netns = Self {
            holder,
            release: Some(release),
            thread: Some(thread),
        };
        netns.enter(|| sh("ip link set lo up"));
        netns
    }

    /// What `ip link set … netns` takes: the id of a thread inside.
    pub fn id(&self) -> i32 {
        self.holder
    }

    /// Runs `body` on a thread inside.
    pub fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let path = format!("/proc/self/task/{}/ns/net", self.holder);
        let file = File::open(path).unwrap();
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(file, CloneFlags::CLONE_NEWNET).unwrap();
                body()
            });
            match inside.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Runs an async `body` on a current-thread runtime inside.
    pub fn run<T: Send, F: Future<Output = T>>(&self, body: impl FnOnce() -> F + Send) -> T {
        self.enter(|| {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap()
                .block_on(body())
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        drop(self.release.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Runs each line as a command in the calling thread's namespace.
pub fn sh(lines: &str) {
    for line in lines.lines().map(str::trim).filter(|l| !l.is_empty()) {
        output(line);
    }
}

/// Runs a command and gives its output; a failure is the test's.
pub fn output(line: &str) -> String {
    let mut words = line.split_whitespace();
    let out = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    assert!(
        out.status.success(),
        "{line}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8(out.stdout).unwrap()
}

/// Output of a command that prints JSON.
pub fn json(line: &str) -> Value {
    let text = output(line);
    if text.trim().is_empty() {
        return Value::Array(Vec::new());
    }
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{line}: {e}: {text}"))
}

/// `fields` of each row of a listing, as "field=value" lines, sorted.
pub fn lines(rows: &Value, fields: &[&str]) -> Vec<String> {
    let mut lines: Vec<String> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            let of = |name: &&str| {
                let value = &row[*name];
                value
                    .as_str()
                    .map_or_else(|| value.to_string(), ToString::to_string)
            };
            fields.iter().map(of).collect::<Vec<_>>().join(" ")
        })
        .collect();
    lines.sort();
    lines
}

/// Gives the calling thread's namespace an uplink `eth0` with `address`/24 whose
/// other end, `wire`, lies in `switch`.
pub fn uplink(switch: &Netns, wire: &str, address: &str) {
    sh(&format!(
        "ip link add eth0 mtu 1500 type veth peer name {wire} netns {}
         ip addr add {address}/24 dev eth0
         ip link set eth0 up
         ip route add default via 192.0.2.254",
        switch.id()
    ));
    switch.enter(|| sh(&format!("ip link set {wire} up")));
}
