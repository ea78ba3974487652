//! What a namespace holds, in a form that can be compared: for tests that
//! cleanup leaves nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use aya::programs::{SchedClassifier, TcAttachType};
use serde_json::{Map, Value};

use crate::error::{Context, Error, Result};
use crate::link::{ip_json, json, run_in};
use crate::netns::NetNs;

/// Fields that change without anybody's doing.
const VOLATILE: [&str; 20] = [
    "bytes",
    "confirmed",
    "expires",
    "gc_timer",
    "handle",
    "hello_timer",
    "link_netnsid",
    "operstate",
    "packets",
    "preferred_life_time",
    "probes",
    "refcnt",
    "stats",
    "stats64",
    "tcn_timer",
    "topology_change_timer",
    "updated",
    "used",
    "valid_life_time",
    "vlan_stats_enabled",
];

/// Kinds of things in a [`Snapshot`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Section {
    /// Links with their settings and XDP programs.
    Links,
    /// Addresses.
    Addresses,
    /// Routes of all tables, IPv4 and IPv6.
    Routes,
    /// Routing rules.
    Rules,
    /// Permanent neighbours.
    Neighbours,
    /// Permanent forwarding entries of bridges and VXLAN devices.
    Fdb,
    /// Queueing disciplines.
    Qdiscs,
    /// Classic traffic-control filters.
    Filters,
    /// Programs on TCX hooks.
    Tcx,
    /// The nftables rule set.
    Nftables,
    /// Forwarding, reverse-path-filter and neighbour settings.
    Sysctls,
    /// Files in the BPF file system.
    Pins,
}

/// What a namespace holds: for each section, a set of lines.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Snapshot {
    lines: BTreeMap<Section, BTreeSet<String>>,
}

impl Snapshot {
    /// Looks at a namespace, and at a BPF file system if one is given.
    pub fn of(ns: &NetNs, bpffs: Option<&Path>) -> Result<Self> {
        let mut snapshot = Self::default();
        let links = ip_json(ns, &["-d", "link", "show"])?;
        let devices: Vec<String> = rows(&links)
            .filter_map(|link| Some(link["ifname"].as_str()?.to_owned()))
            .collect();
        for address in rows(&ip_json(ns, &["address", "show"])?) {
            for info in rows(&address["addr_info"]) {
                snapshot.add(Section::Addresses, &address["ifname"], info);
            }
        }
        snapshot.add_rows(Section::Links, &links, "ifname");
        for family in ["-4", "-6"] {
            let routes = ip_json(ns, &[family, "-d", "route", "show", "table", "all"])?;
            snapshot.add_rows(Section::Routes, &routes, "dst");
            snapshot.add_rows(
                Section::Rules,
                &ip_json(ns, &[family, "rule", "show"])?,
                "priority",
            );
            let neighbours = ip_json(ns, &[family, "neigh", "show", "nud", "permanent"])?;
            snapshot.add_rows(Section::Neighbours, &neighbours, "dst");
        }
        let fdb = json(ns, "bridge", &["-j", "fdb", "show"])?;
        for entry in rows(&fdb).filter(|entry| entry["state"] == "permanent") {
            snapshot.add(Section::Fdb, &entry["ifname"], entry);
        }
        snapshot.add_rows(
            Section::Qdiscs,
            &json(ns, "tc", &["-j", "qdisc", "show"])?,
            "dev",
        );
        for device in &devices {
            for hook in ["ingress", "egress"] {
                let filters = json(ns, "tc", &["-j", "filter", "show", "dev", device, hook])?;
                for filter in rows(&filters) {
                    let at = Value::from(format!("{device} {hook}"));
                    snapshot.add(Section::Filters, &at, filter);
                }
            }
        }
        snapshot.add_tcx(ns, &devices)?;
        snapshot.add_nftables(ns)?;
        snapshot.add_sysctls(ns)?;
        if let Some(root) = bpffs {
            snapshot.add_pins(root, root)?;
        }
        Ok(snapshot)
    }

    /// Leaves a section out of comparisons.
    #[must_use]
    pub fn without(mut self, section: Section) -> Self {
        self.lines.remove(&section);
        self
    }

    /// The lines of a section.
    pub fn section(&self, section: Section) -> impl Iterator<Item = &str> {
        self.lines
            .get(&section)
            .into_iter()
            .flatten()
            .map(String::as_str)
    }

    fn add_rows(&mut self, section: Section, value: &Value, name: &str) {
        for row in rows(value) {
            self.add(section, &row[name], row);
        }
    }

    fn add(&mut self, section: Section, name: &Value, row: &Value) {
        let name = name
            .as_str()
            .map_or_else(|| name.to_string(), str::to_owned);
        self.line(section, format!("{name} {}", steady(row)));
    }

    fn line(&mut self, section: Section, line: String) {
        self.lines.entry(section).or_default().insert(line);
    }

    fn add_tcx(&mut self, ns: &NetNs, devices: &[String]) -> Result<()> {
        let hooks = [
            ("ingress", TcAttachType::Ingress),
            ("egress", TcAttachType::Egress),
        ];
        let found = ns.run(|| {
            let mut lines = Vec::new();
            for device in devices {
                for (hook, attach_type) in hooks {
                    // Before Linux 6.6 there is no such hook, so nothing on it.
                    let Ok((_, programs)) = SchedClassifier::query_tcx(device, attach_type) else {
                        continue;
                    };
                    for program in programs {
                        let name = program.name_as_str().unwrap_or("?").to_owned();
                        lines.push(format!("{device} {hook} {name} id {}", program.id()));
                    }
                }
            }
            lines
        })?;
        for line in found {
            self.line(Section::Tcx, line);
        }
        Ok(())
    }

    fn add_nftables(&mut self, ns: &NetNs) -> Result<()> {
        let output = run_in(ns, "nft", &["--stateless", "list", "ruleset"])?;
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            self.line(Section::Nftables, line.to_owned());
        }
        Ok(())
    }

    fn add_sysctls(&mut self, ns: &NetNs) -> Result<()> {
        const KEYS: [&str; 5] = [
            "forwarding",
            "rp_filter",
            "proxy_arp",
            "accept_ra",
            "accept_local",
        ];
        let found = ns.run(|| {
            let mut lines = Vec::new();
            for family in ["ipv4", "ipv6"] {
                let root = format!("/proc/sys/net/{family}/conf");
                let devices = std::fs::read_dir(&root).trying(|| format!("list {root}"))?;
                for device in devices.flatten() {
                    for key in KEYS {
                        if let Ok(value) = std::fs::read_to_string(device.path().join(key)) {
                            let device = device.file_name().to_string_lossy().into_owned();
                            lines.push(format!("{family} {device} {key}={}", value.trim()));
                        }
                    }
                }
            }
            Ok::<_, Error>(lines)
        })??;
        for line in found {
            self.line(Section::Sysctls, line);
        }
        Ok(())
    }

    fn add_pins(&mut self, root: &Path, directory: &Path) -> Result<()> {
        let what = || format!("list {}", directory.display());
        for entry in std::fs::read_dir(directory).trying(what)? {
            let path = entry.trying(what)?.path();
            let name = path
                .strip_prefix(root)
                .unwrap_or(&path)
                .display()
                .to_string();
            self.line(Section::Pins, name);
            if path.is_dir() {
                self.add_pins(root, &path)?;
            }
        }
        Ok(())
    }
}

/// What is only in `before` (`-`) and only in `after` (`+`), by section; empty
/// if they are equal.
pub fn diff(before: &Snapshot, after: &Snapshot) -> String {
    let sections: BTreeSet<Section> = before
        .lines
        .keys()
        .chain(after.lines.keys())
        .copied()
        .collect();
    let empty = BTreeSet::new();
    let mut out = String::new();
    for section in sections {
        let old = before.lines.get(&section).unwrap_or(&empty);
        let new = after.lines.get(&section).unwrap_or(&empty);
        let gone = old.difference(new).map(|line| ('-', line));
        let come = new.difference(old).map(|line| ('+', line));
        for (n, (sign, line)) in gone.chain(come).enumerate() {
            if n == 0 {
                let _ = writeln!(out, "{section:?}"); // a String takes it all
            }
            let _ = writeln!(out, "  {sign} {line}");
        }
    }
    out
}

fn rows(value: &Value) -> impl Iterator<Item = &Value> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter(|row| row.as_object().is_some_and(|o| !o.is_empty()))
}

/// The value without what changes by itself.
fn steady(value: &Value) -> Value {
    match value {
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .filter(|(name, _)| !VOLATILE.contains(&name.as_str()))
                .map(|(name, value)| (name.clone(), steady(value)))
                .collect::<Map<String, Value>>(),
        ),
        Value::Array(items) => Value::Array(items.iter().map(steady).collect()),
        other => other.clone(),
    }
}
