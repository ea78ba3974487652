//! A node of the test's own: a thread with private network and mount
//! namespaces and a private bpffs. All of it, also pins and programs, goes
//! with the thread, whether the test passes or not. Needs root.

#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test's own setting"
)]

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use aya::maps::{MapData, MapInfo};
use aya::programs::links::{FdLink, PinnedLink};
use datapath_common::{Config, Frontend, FrontendKey, Ip4, Scope, maps};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tulle_agent::kernel::{AttachKind, Capacities, Datapath, Options};

/// The node's directories.
pub struct Node {
    /// Inside a private bpffs.
    pub pins: PathBuf,
    _dir: tempfile::TempDir,
}

/// Runs a test on a node of its own.
pub fn on_node(test: impl FnOnce(&Node) + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .expect("private namespaces (this test needs root)");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
            .expect("private mounts");
        let dir = tempfile::tempdir().expect("a directory");
        mount(Some("bpf"), dir.path(), Some("bpf"), MsFlags::empty(), none).expect("a bpffs");
        run("ip", &["link", "set", "lo", "up"]);
        test(&Node {
            pins: dir.path().join("tulle"),
            _dir: dir,
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Small tables: quick to make, easy to fill.
pub fn small() -> Capacities {
    Capacities {
        frontends: 64,
        slots: 1024,
        backends: 64,
        flows: 1024,
        fragments: 16,
        pods: 16,
        nodes: 16,
        affinities: 16,
        sockets: 16,
        sources: 16,
        direct: 16,
        stats: 16,
        event_bytes: 4096,
    }
}

/// The frontend 10.96.0.`n`:80 over TCP, with one slot.
pub fn front(n: u8) -> (FrontendKey<Ip4>, Frontend) {
    let key = FrontendKey {
        addr: Ip4::new([10, 96, 0, n]),
        port: 80,
        proto: 6,
        scope: Scope::Any as u8,
    };
    (
        key,
        Frontend {
            service: n.into(),
            start: n.into(),
            len: 1,
            ..Frontend::default()
        },
    )
}

/// Sizes and flags of a quick start.
pub fn options(attach: AttachKind) -> Options {
    Options {
        attach,
        ..Options::default()
    }
}

impl Node {
    /// Opens the datapath with small tables.
    pub fn open(&self) -> Datapath {
        self.open_as(AttachKind::Tcx)
    }

    /// The same with a kind of attachment.
    pub fn open_as(&self, attach: AttachKind) -> Datapath {
        Datapath::open(&self.pins, &Config::EMPTY, &small(), &options(attach)).expect("opens")
    }

    /// The link that is pinned for a program at an interface: link and program number.
    pub fn link(&self, program: &str, ifindex: u32) -> Option<(u32, u32)> {
        let path = self.pins.join(format!("links/{program}-{ifindex}"));
        let info = FdLink::from(PinnedLink::from_pin(path).ok()?)
            .info()
            .expect("a link");
        Some((info.id(), info.program_id()))
    }

    /// The kernel's numbers of all pinned maps.
    pub fn map_ids(&self) -> Vec<u32> {
        let id = |m: &maps::MapInfo| {
            MapInfo::from_pin(self.pins.join(m.name))
                .expect("pinned")
                .id()
        };
        maps::ALL.iter().map(id).collect()
    }

    /// A pinned map.
    pub fn map(&self, name: &str) -> MapData {
        MapData::from_pin(self.pins.join(name)).expect("pinned")
    }

    /// Names in the pin directory.
    pub fn names(&self) -> Vec<String> {
        names(&self.pins)
    }
}

/// Names in a directory, sorted; none if there is no directory.
pub fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .map(|e| {
            e.expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

/// Runs a command that must succeed, in the thread's namespaces.
pub fn run(program: &str, args: &[&str]) -> String {
    let out = Command::new(program)
        .args(args)
        .output()
        .expect("the command runs");
    assert!(
        out.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Makes a veth pair and returns the index of its first end, which is up.
pub fn veth(name: &str) -> u32 {
    let peer = format!("{name}p");
    run(
        "ip",
        &["link", "add", name, "type", "veth", "peer", "name", &peer],
    );
    run("ip", &["link", "set", name, "up"]);
    run("ip", &["link", "set", &peer, "up"]);
    index(name)
}

/// The index of a device.
pub fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).expect("a device")
}

/// Waits for the kernel, which frees things a moment after their last user.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < until, "not within 10 s: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// An object that is none.
pub fn broken_object() -> Cow<'static, [u8]> {
    Cow::Borrowed(b"not an object")
}
