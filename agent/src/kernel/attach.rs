//! Attaching: what is there is compared with what should be, each time. A
//! living link gets the new program in place; a lost one is made again and
//! counted; one that nobody wants is removed.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use datapath_common::{Config, Feature, Hook};

use super::cgroup::SocketAttachError;
use super::clsact::{self, Side};
use super::loader::{Datapath, LoadError};
use super::pins::{PinError, list, open_link, remove, remove_link};
use super::place::{Entry, Place};
use super::programs::name;
use super::rtnl::Rtnl;
use super::scan;
use super::sys::{self, LinkInfo, RawMap};
use super::xdp::{XdpChoice, XdpMode};

/// How classifiers are attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttachKind {
    /// TCX links (Linux 6.6).
    Tcx,
    /// Filters on a clsact qdisc.
    Clsact,
}

/// What a sync did.
#[derive(Debug, Default)]
pub struct Report {
    /// Newly attached.
    pub attached: u32,
    /// Attached before, with the new program now.
    pub replaced: u32,
    /// Attached before with this program.
    pub kept: u32,
    /// Attached again: it had been attached by this process and somebody removed it.
    pub repaired: u32,
    /// Detached, because nobody wants it or its device is gone.
    pub removed: u32,
    /// What did not work. The rest was done all the same.
    pub failed: Vec<(Place, AttachError)>,
}

/// A program could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// No such interface.
    #[error("there is no interface with index {0} any more")]
    NoDevice(u32),
    /// The kernel refused.
    #[error("cannot {what} {program} at interface {ifindex}: {source}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// The program.
        program: &'static str,
        /// The interface.
        ifindex: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The place of our filter is taken.
    #[error(
        "interface {ifindex} has another tc filter ({filter}) at priority {}, handle {:#x}; remove it (tc filter del dev … pref {})",
        clsact::PRIORITY,
        clsact::HANDLE,
        clsact::PRIORITY
    )]
    Taken {
        /// The interface.
        ifindex: u32,
        /// The other filter's name.
        filter: String,
    },
    /// The driver has no XDP, or another program is there.
    #[error(
        "cannot attach tulle_xdp in {mode} mode at interface {ifindex}: {source}; use --xdp auto or --xdp off"
    )]
    Xdp {
        /// "native" or "generic".
        mode: &'static str,
        /// The interface.
        ifindex: u32,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// At sockets.
    #[error(transparent)]
    Socket(#[from] SocketAttachError),
    /// A pin.
    #[error(transparent)]
    Pin(#[from] PinError),
}

/// What attaching one program did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Attached,
    Replaced,
    Kept,
}

/// `bpf_attach_type` of the kernel.
pub(crate) mod attach_type {
    /// XDP.
    pub(crate) const XDP: u32 = 37;
    /// TCX, packets that come in.
    pub(crate) const TCX_INGRESS: u32 = 46;
    /// TCX, packets that go out.
    pub(crate) const TCX_EGRESS: u32 = 47;
}

/// The side of a classifier; `None` for XDP.
pub(crate) fn side(hook: Hook) -> Option<Side> {
    match hook {
        Hook::PodFrom | Hook::NicIn => Some(Side::Ingress),
        Hook::PodTo | Hook::NicOut => Some(Side::Egress),
        Hook::Xdp => None,
    }
}

fn tcx_type(hook: Hook) -> u32 {
    match hook {
        Hook::PodFrom | Hook::NicIn => attach_type::TCX_INGRESS,
        Hook::PodTo | Hook::NicOut => attach_type::TCX_EGRESS,
        Hook::Xdp => attach_type::XDP,
    }
}

impl Datapath {
    pub(super) fn entry(&self, entry: Entry) -> PathBuf {
        self.pins.links().join(entry.file_name())
    }

    /// What the folder of links remembers.
    fn entries(&self) -> Result<Vec<Entry>, PinError> {
        Ok(list(&self.pins.links())?
            .iter()
            .filter_map(|n| Entry::parse(n))
            .collect())
    }

    /// Attaches `tulle_nic_in` and `tulle_nic_out`, and `tulle_xdp` as `xdp`
    /// says, to the uplink, `tulle_nic_out` to the loopback device too if that is
    /// configured and `tulle_nic_in` to the VTEP device if that takes IPv6 out of the
    /// overlay, and removes them from any other device.
    pub fn sync_uplink(&mut self, ifindex: u32, xdp: XdpMode) -> (Report, XdpChoice) {
        let mut report = Report::default();
        self.ensure(Place::new(Hook::NicIn, ifindex), &mut report);
        self.ensure(Place::new(Hook::NicOut, ifindex), &mut report);
        let loopback = self.served_loopback();
        if let Some(loopback) = loopback {
            self.ensure(Place::new(Hook::NicOut, loopback), &mut report);
        }
        let vtep = self.served_vtep();
        if let Some(vtep) = vtep {
            self.ensure(Place::new(Hook::NicIn, vtep), &mut report);
        }
        let choice = self.sync_xdp(ifindex, xdp, &mut report);
        let xdp_on = choice.mode != XdpMode::Off;
        let wanted = |place: Place| match place.hook() {
            Hook::NicIn => place.ifindex == ifindex || Some(place.ifindex) == vtep,
            Hook::NicOut => place.ifindex == ifindex || Some(place.ifindex) == loopback,
            Hook::Xdp => place.ifindex == ifindex && xdp_on,
            Hook::PodFrom | Hook::PodTo => true,
        };
        self.prune(&wanted, &mut report);
        self.settle(&mut report);
        (report, choice)
    }

    /// The loopback device, if processes of the node are served there.
    fn served_loopback(&self) -> Option<u32> {
        let Config {
            features, loopback, ..
        } = self.effective();
        let serves = features & Feature::UPLINK_SERVICES != 0;
        (serves && loopback != 0).then_some(loopback)
    }

    /// The VTEP device, if answers to clients that were masqueraded come out of the
    /// overlay there and not in `tulle_nic_in`.
    fn served_vtep(&self) -> Option<u32> {
        let Config { features, vtep, .. } = self.effective();
        let needed = Feature::OVERLAY | Feature::UPLINK_SERVICES;
        let here = features & (needed | Feature::DECAP_6_IN_4) == needed;
        (here && vtep != 0).then_some(vtep)
    }

    /// Attaches `tulle_pod_from` and `tulle_pod_to` to these host sides of
    /// veths, and removes both from any other device.
    pub fn sync_pods(&mut self, pods: &BTreeSet<u32>) -> Report {
        let mut report = Report::default();
        for ifindex in pods {
            // The way back first: what goes out is translated, so the answer is too.
            self.ensure(Place::new(Hook::PodTo, *ifindex), &mut report);
            self.ensure(Place::new(Hook::PodFrom, *ifindex), &mut report);
        }
        let wanted = |place: Place| match place.hook() {
            Hook::NicIn | Hook::NicOut | Hook::Xdp => true,
            Hook::PodFrom | Hook::PodTo => pods.contains(&place.ifindex),
        };
        self.prune(&wanted, &mut report);
        self.settle(&mut report);
        report
    }

    /// Loads the programs with other read-only data and puts them in the place
    /// of those that are attached. No packet meets a device without a program.
    pub fn reconfigure(&mut self, config: &Config) -> Result<Report, LoadError> {
        let vtep = self.served_vtep();
        self.load_again(config)?;
        let mut report = Report::default();
        // Gone in all likelihood; the next sync removes what is left of it.
        let former = vtep
            .filter(|vtep| self.served_vtep() != Some(*vtep))
            .map(|vtep| Place::new(Hook::NicIn, vtep));
        for entry in self.entries()? {
            match entry {
                Entry::Link(place) | Entry::Filter(place) if Some(place) == former => {}
                Entry::Link(place) | Entry::Filter(place) => {
                    if place.hook() == Hook::Xdp {
                        self.replace_xdp(place, &mut report);
                    } else {
                        self.ensure(place, &mut report);
                    }
                }
                Entry::Qdisc(_) | Entry::Socket(_) => {}
            }
        }
        for error in self.replace_sockets() {
            report
                .failed
                .push((Place::new(Hook::NicOut, 0), error.into()));
        }
        self.settle(&mut report);
        Ok(report)
    }

    /// Where programs of ours are attached now, whatever they are, with the
    /// program's number.
    ///
    /// # Errors
    ///
    /// If one of them cannot be asked for: it may be attached then.
    pub fn attached(&self) -> Result<Vec<(Place, u32)>, AttachError> {
        let mut found = Vec::new();
        for entry in self.entries()? {
            match entry {
                Entry::Link(place) => {
                    if let Some((_, info)) = self.living(place)? {
                        found.push((place, info.program));
                    }
                }
                Entry::Filter(place) => {
                    if let Some(program) = filter_program(place)? {
                        found.push((place, program));
                    }
                }
                Entry::Qdisc(_) | Entry::Socket(_) => {}
            }
        }
        Ok(found)
    }

    fn ensure(&mut self, place: Place, report: &mut Report) {
        let outcome = match self.attach {
            AttachKind::Tcx => self.ensure_link(place, tcx_type(place.hook()), 0),
            AttachKind::Clsact => self.ensure_filter(place),
        };
        self.note(place, outcome, report);
    }

    pub(super) fn note(
        &mut self,
        place: Place,
        outcome: Result<Outcome, AttachError>,
        report: &mut Report,
    ) {
        let known = self.places.contains(&place);
        match outcome {
            Ok(Outcome::Attached) if known => report.repaired += 1,
            Ok(Outcome::Attached) => report.attached += 1,
            Ok(Outcome::Replaced) => report.replaced += 1,
            Ok(Outcome::Kept) => report.kept += 1,
            Err(e) => {
                report.failed.push((place, e));
                return;
            }
        }
        self.places.insert(place);
    }

    /// The pinned link of a place, if it is alive there.
    pub(super) fn living(&self, place: Place) -> Result<Option<(OwnedFd, LinkInfo)>, AttachError> {
        let path = self.entry(Entry::Link(place));
        let fail = |source| PinError::Kernel {
            what: "open",
            path: path.clone(),
            source,
        };
        let Some(link) = open_link(&path)? else {
            return Ok(None);
        };
        let Some(info) = sys::link_info(link.as_fd()).map_err(fail)? else {
            return Ok(None);
        };
        let here = match info.attach_type {
            _ if info.ifindex != place.ifindex => false,
            None => place.hook() == Hook::Xdp,
            // The same index may exist in another namespace: ask this one.
            Some(kind) => {
                kind == tcx_type(place.hook())
                    && match sys::tcx_links(place.ifindex, kind) {
                        Ok(ids) => ids.contains(&info.id),
                        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => false,
                        Err(source) => return Err(not_found_out(place, source)),
                    }
            }
        };
        Ok(here.then_some((link, info)))
    }

    pub(super) fn ensure_link(
        &self,
        place: Place,
        kind: u32,
        flags: u32,
    ) -> Result<Outcome, AttachError> {
        let hook = place.hook();
        let fail = |what| {
            move |source: io::Error| match source.raw_os_error() {
                Some(libc::ENODEV) => AttachError::NoDevice(place.ifindex),
                _ => AttachError::Kernel {
                    what,
                    program: name(hook),
                    ifindex: place.ifindex,
                    source,
                },
            }
        };
        if let Some((link, info)) = self.living(place)? {
            if info.program == self.programs.id(hook) {
                return Ok(Outcome::Kept);
            }
            sys::link_update(link.as_fd(), self.programs.fd(hook)).map_err(fail("replace"))?;
            return Ok(Outcome::Replaced);
        }
        let path = self.entry(Entry::Link(place));
        remove_link(&path)?;
        let link = sys::link_create(self.programs.fd(hook), place.ifindex, kind, flags)
            .map_err(fail("attach"))?;
        sys::pin(link.as_fd(), &path).map_err(|source| PinError::Kernel {
            what: "make",
            path,
            source,
        })?;
        self.remove_filter(place)?;
        Ok(Outcome::Attached)
    }

    fn ensure_filter(&self, place: Place) -> Result<Outcome, AttachError> {
        let (ifindex, hook) = (place.ifindex, place.hook());
        let Some(side) = side(hook) else {
            return Err(AttachError::NoDevice(ifindex));
        };
        let fail = |what| {
            move |source| AttachError::Kernel {
                what,
                program: name(hook),
                ifindex,
                source,
            }
        };
        let mut rtnl = Rtnl::open().map_err(fail("attach"))?;
        if rtnl.device(ifindex).map_err(fail("attach"))?.is_none() {
            return Err(AttachError::NoDevice(ifindex));
        }
        if !clsact::has_qdisc(&mut rtnl, ifindex).map_err(fail("attach"))? {
            make_dir(self.entry(Entry::Qdisc(ifindex)))?;
            clsact::add_qdisc(&mut rtnl, ifindex).map_err(fail("make a clsact qdisc for"))?;
        }
        let there = clsact::filters(&mut rtnl, ifindex, side).map_err(fail("attach"))?;
        let there = there.into_iter().find(clsact::Filter::in_our_place);
        if let Some(filter) = &there {
            if filter.name.as_deref() != Some(name(hook)) {
                let filter = filter.name.clone().unwrap_or_else(|| "no name".into());
                return Err(AttachError::Taken { ifindex, filter });
            }
            if filter.program == Some(self.programs.id(hook)) {
                return Ok(Outcome::Kept);
            }
        }
        make_dir(self.entry(Entry::Filter(place)))?;
        clsact::put_filter(&mut rtnl, ifindex, side, self.programs.fd(hook), name(hook))
            .map_err(fail("attach"))?;
        let link = remove_link(&self.entry(Entry::Link(place)))?;
        Ok(if there.is_some() || link {
            Outcome::Replaced
        } else {
            Outcome::Attached
        })
    }

    /// Removes a filter that a former agent put there. Says whether there was one.
    fn remove_filter(&self, place: Place) -> Result<bool, AttachError> {
        let path = self.entry(Entry::Filter(place));
        if !path.exists() {
            return Ok(false);
        }
        drop_filter(place)?;
        remove(&path)?;
        Ok(true)
    }

    /// Removes what is remembered and not wanted.
    fn prune(&mut self, wanted: &dyn Fn(Place) -> bool, report: &mut Report) {
        let entries = match self.entries() {
            Ok(entries) => entries,
            Err(e) => {
                report.failed.push((Place::new(Hook::NicIn, 0), e.into()));
                return;
            }
        };
        for entry in entries {
            let (place, result) = match entry {
                Entry::Link(place) if !wanted(place) => (
                    place,
                    remove_link(&self.entry(entry)).map_err(AttachError::from),
                ),
                Entry::Filter(place) if !wanted(place) => (place, self.remove_filter(place)),
                Entry::Link(_) | Entry::Filter(_) | Entry::Qdisc(_) | Entry::Socket(_) => continue,
            };
            self.places.remove(&place);
            match result {
                Ok(gone) => report.removed += u32::from(gone),
                Err(e) => report.failed.push((place, e)),
            }
        }
    }

    /// Once every link has the new program, flows that old programs opened
    /// meanwhile in a former flow table follow into the new one, and the parts of
    /// old programs are let go.
    fn settle(&mut self, report: &mut Report) {
        if self.retired.is_empty() && !self.has_former_parts {
            return;
        }
        // Who cannot be asked may run an old program still.
        let attached = match self.attached() {
            Ok(attached) => attached,
            Err(error) => {
                report.failed.push((Place::new(Hook::NicIn, 0), error));
                return;
            }
        };
        if attached
            .iter()
            .any(|(place, id)| self.programs.id(place.hook()) != *id)
        {
            return;
        }
        let mut fail = |error: PinError| {
            report
                .failed
                .push((Place::new(Hook::NicIn, 0), error.into()));
        };
        match self.programs.parts.remove_former(&self.pins) {
            Ok(()) => self.has_former_parts = false,
            Err(error) => fail(error),
        }
        for (map, former) in std::mem::take(&mut self.retired) {
            let copied = self
                .maps
                .raw(map)
                .map_err(io::Error::other)
                .and_then(|target| {
                    scan::copy(&RawMap::new(former.as_fd())?, &target, sys::NO_EXIST)
                });
            if let Err(source) = copied {
                fail(PinError::Kernel {
                    what: "copy",
                    path: self.pins.map(map),
                    source,
                });
            }
        }
    }
}

fn make_dir(path: PathBuf) -> Result<(), PinError> {
    match std::fs::create_dir(&path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(PinError::Kernel {
            what: "make",
            path,
            source: e,
        }),
        _ => Ok(()),
    }
}

/// The kernel did not say what is attached at a place.
fn not_found_out(place: Place, source: io::Error) -> AttachError {
    AttachError::Kernel {
        what: "find out about",
        program: name(place.hook()),
        ifindex: place.ifindex,
        source,
    }
}

/// The program of our filter at a place; `None` if it is not there.
fn filter_program(place: Place) -> Result<Option<u32>, AttachError> {
    let Some(side) = side(place.hook()) else {
        return Ok(None);
    };
    let filters = Rtnl::open()
        .and_then(|mut rtnl| clsact::filters(&mut rtnl, place.ifindex, side))
        .map_err(|source| not_found_out(place, source))?;
    let is_ours =
        |f: &clsact::Filter| f.in_our_place() && f.name.as_deref() == Some(name(place.hook()));
    Ok(filters.into_iter().find(is_ours).and_then(|f| f.program))
}

/// Removes our filter at a place, and only ours. Says whether it was there.
pub(crate) fn drop_filter(place: Place) -> Result<bool, AttachError> {
    let (Some(side), ifindex) = (side(place.hook()), place.ifindex) else {
        return Ok(false);
    };
    if filter_program(place)?.is_none() {
        return Ok(false);
    }
    Rtnl::open()
        .and_then(|mut rtnl| clsact::remove_filter(&mut rtnl, ifindex, side))
        .map_err(|source| AttachError::Kernel {
            what: "detach",
            program: name(place.hook()),
            ifindex,
            source,
        })
}
