//! Services at sockets: for whose, at which cgroup, and why.

use std::path::{Path, PathBuf};

use datapath_common::{Config, Feature};

use super::faults::Part;
use super::serving::Serving;
use super::shared::Shared;
use crate::args::SocketServices;
use crate::kernel::Cgroup;
use crate::kernel::cgroup::{mounted, netns_cookie};

/// What became of services at sockets, and why.
#[derive(Debug)]
pub struct SocketChoice {
    /// `All`, `Host` or `Off`.
    pub mode: SocketServices,
    /// One sentence.
    pub why: String,
    /// Where programs are attached, unless it is off.
    pub cgroup: Option<Cgroup>,
    /// The cookie of the node's network namespace, low word first.
    netns: [u32; 2],
    /// What is wrong, if the operator asked for it and cannot have it.
    pub fault: Option<String>,
    /// Whether the programs are attached, all of them.
    pub attached: bool,
    /// Why they are not.
    pub failed: Option<String>,
}

/// What the choice depends on beside the flags.
#[derive(Debug)]
pub struct Surroundings {
    /// Whether the agent is in the network namespace of process 1; none if that cannot be told.
    pub with_init: Option<bool>,
    /// proc(5) of this process.
    pub mountinfo: String,
}

impl Surroundings {
    /// Those of this process.
    pub fn look() -> Self {
        let namespace = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
        let with_init = namespace("self").and_then(|own| Some(own == namespace("1")?));
        Self {
            with_init,
            mountinfo: std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default(),
        }
    }

    /// The mode and the cgroup's directory, or why there are none.
    fn decide(
        &self,
        asked: SocketServices,
        named: Option<&Path>,
    ) -> Result<(SocketServices, PathBuf, &'static str), String> {
        let found = || {
            let path = mounted(&self.mountinfo);
            path.ok_or_else(|| {
                "no cgroup file system of version 2 is mounted (mount -t cgroup2 none \
                 /sys/fs/cgroup/unified)"
                    .to_owned()
            })
        };
        let at = || named.map_or_else(found, |path| Ok(path.to_owned()));
        match asked {
            SocketServices::Off => Err("switched off".into()),
            SocketServices::All | SocketServices::Host => Ok((asked, at()?, "asked for")),
            // A cgroup that was named is for this node.
            SocketServices::Auto if named.is_some() => {
                Ok((SocketServices::All, at()?, "a cgroup was named"))
            }
            SocketServices::Auto if self.with_init != Some(true) => Err(
                "the agent is not in the network namespace of process 1, so processes of others \
                 may be below the same cgroup; name this node's with --cgroup"
                    .into(),
            ),
            SocketServices::Auto => Ok((
                SocketServices::All,
                at()?,
                "all that runs below the cgroup is this node's",
            )),
        }
    }
}

impl SocketChoice {
    /// What the flags and this node make of it.
    pub fn make(asked: SocketServices, named: Option<&Path>, around: &Surroundings) -> Self {
        let made = around.decide(asked, named).and_then(|(mode, path, why)| {
            let cgroup = Cgroup::open(&path).map_err(|e| e.to_string())?;
            let netns = netns_cookie()
                .map_err(|e| format!("the network namespace's cookie cannot be read: {e}"))?;
            Ok((mode, cgroup, why, netns))
        });
        match made {
            Ok((mode, cgroup, why, netns)) => Self {
                mode,
                why: why.to_owned(),
                cgroup: Some(cgroup),
                netns,
                fault: None,
                attached: false,
                failed: None,
            },
            Err(why) => Self::off(asked, why),
        }
    }

    fn off(asked: SocketServices, why: String) -> Self {
        let wanted = matches!(asked, SocketServices::All | SocketServices::Host);
        Self {
            mode: SocketServices::Off,
            fault: wanted.then(|| why.clone()),
            why,
            cgroup: None,
            netns: [0; 2],
            attached: false,
            failed: None,
        }
    }

    /// Switches on in the programs what it says. `node`: processes of the node have services.
    pub fn configure(&self, config: &mut Config, node: bool) {
        config.netns = self.netns;
        config.features |= self.features(node);
    }

    fn features(&self, node: bool) -> u32 {
        let mut features = 0;
        if self.mode == SocketServices::All {
            features |= Feature::POD_SOCKETS;
        }
        if self.mode != SocketServices::Off && node {
            features |= Feature::NODE_SOCKETS;
        }
        features
    }

    /// Whose sockets are served now, and why. `node`: processes of the node have services.
    pub fn served(&self, node: bool) -> (&'static str, String) {
        if self.mode == SocketServices::Off {
            return ("off", self.why.clone());
        }
        let features = self.features(node);
        if features == 0 {
            let why = "the node's processes have no services (--uplink-services false)";
            return ("off", why.to_owned());
        }
        if !self.attached {
            let why = self.failed.as_deref();
            return ("off", why.unwrap_or("not attached yet").to_owned());
        }
        let whose = match (
            features & Feature::POD_SOCKETS != 0,
            features & Feature::NODE_SOCKETS != 0,
        ) {
            (true, false) => "for pods' processes",
            _ => self.chosen(),
        };
        (whose, self.why.clone())
    }

    /// The mode in a word.
    pub const fn chosen(&self) -> &'static str {
        match self.mode {
            SocketServices::Auto => "auto",
            SocketServices::All => "for all processes",
            SocketServices::Host => "for the node's processes",
            SocketServices::Off => "off",
        }
    }
}

impl Serving {
    /// Attaches the programs at sockets, or detaches them.
    pub(super) fn sync_sockets(&mut self, shared: &mut Shared) {
        if let Some(why) = self.datapath.socket_refusal()
            && shared.sockets.mode != SocketServices::Off
        {
            let why = why.lines().next().unwrap_or_default();
            let why = format!("the kernel does not take the programs: {why}");
            tracing::warn!("no services at sockets, packets are translated: {why}");
            shared.sockets = SocketChoice::off(shared.args.services.socket_services, why);
        }
        let choice = &shared.sockets;
        let report = self.datapath.sync_sockets(choice.cgroup.as_ref());
        let changed = report.attached + report.replaced + report.repaired + report.removed;
        if changed > 0 {
            // They are to be listed anew.
            self.links.clear();
            tracing::info!(
                "programs at sockets: {} attached, {} replaced, {} removed",
                report.attached + report.repaired,
                report.replaced,
                report.removed
            );
        }
        if report.repaired > 0 {
            shared.counted.repairs += u64::from(report.repaired);
            tracing::warn!(
                "attached {} programs at sockets again that somebody had removed",
                report.repaired
            );
        }
        let mut faults: Vec<String> = choice.fault.iter().cloned().collect();
        faults.extend(report.failed.iter().map(ToString::to_string));
        if !report.failed.is_empty() {
            faults.push("no socket is served, packets are translated".to_owned());
        }
        shared.sockets.attached = choice.cgroup.is_some() && report.failed.is_empty();
        shared.sockets.failed = report.failed.first().map(ToString::to_string);
        shared.faults.set(Part::Sockets, faults);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTED: &str = "41 31 0:38 / /cg rw - cgroup2 cgroup2 rw\n";

    fn decide(
        asked: SocketServices,
        named: Option<&str>,
        with_init: Option<bool>,
        mountinfo: &str,
    ) -> Result<(SocketServices, PathBuf), String> {
        let around = Surroundings {
            with_init,
            mountinfo: mountinfo.to_owned(),
        };
        let (mode, path, _) = around.decide(asked, named.map(Path::new))?;
        Ok((mode, path))
    }

    #[test]
    fn only_a_cgroup_of_this_node_alone_is_taken_unasked() {
        use SocketServices::{All, Auto, Host, Off};
        let cg = PathBuf::from("/cg");
        assert_eq!(
            decide(Auto, None, Some(true), MOUNTED),
            Ok((All, cg.clone()))
        );
        for other in [Some(false), None] {
            let why = decide(Auto, None, other, MOUNTED).unwrap_err();
            assert!(why.contains("--cgroup"), "{why}");
            assert_eq!(decide(Host, None, other, MOUNTED), Ok((Host, cg.clone())));
            let named = decide(Auto, Some("/mine"), other, "");
            assert_eq!(named, Ok((All, "/mine".into())));
        }
        let why = decide(All, None, Some(true), "").unwrap_err();
        assert!(why.contains("cgroup2 none /sys/fs/cgroup/unified"), "{why}");
        assert!(decide(Off, Some("/mine"), Some(true), MOUNTED).is_err());
    }

    #[test]
    fn what_was_asked_for_and_cannot_be_is_a_fault() {
        let around = Surroundings {
            with_init: Some(true),
            mountinfo: String::new(),
        };
        let made = |asked| SocketChoice::make(asked, None, &around);
        assert!(made(SocketServices::All).fault.is_some());
        assert_eq!(made(SocketServices::Auto).fault, None);
        assert_eq!(made(SocketServices::Off).fault, None);
        assert_eq!(made(SocketServices::Auto).chosen(), "off");
    }

    #[test]
    fn features_follow_the_mode() {
        let choice = |mode| SocketChoice {
            mode,
            why: String::new(),
            cgroup: None,
            netns: [3, 0],
            fault: None,
            attached: true,
            failed: None,
        };
        let features = |mode, node| {
            let mut config = Config::EMPTY;
            choice(mode).configure(&mut config, node);
            config.features
        };
        let (pods, node) = (Feature::POD_SOCKETS, Feature::NODE_SOCKETS);
        assert_eq!(features(SocketServices::All, true), pods | node);
        assert_eq!(features(SocketServices::All, false), pods);
        assert_eq!(features(SocketServices::Host, true), node);
        assert_eq!(features(SocketServices::Host, false), 0);
        assert_eq!(features(SocketServices::Off, true), 0);
        let served = |mode, node| choice(mode).served(node).0;
        assert_eq!(served(SocketServices::All, true), "for all processes");
        assert_eq!(served(SocketServices::All, false), "for pods' processes");
        assert_eq!(
            served(SocketServices::Host, true),
            "for the node's processes"
        );
        assert_eq!(served(SocketServices::Host, false), "off");
        assert_eq!(served(SocketServices::Off, true), "off");
        let mut failing = choice(SocketServices::All);
        failing.attached = false;
        failing.failed = Some("refused".to_owned());
        assert_eq!(failing.served(true), ("off", "refused".to_owned()));
    }
}
