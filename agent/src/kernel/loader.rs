//! Loading: pinned maps are taken over, missing ones made, others migrated;
//! then the programs are loaded upon them. No link is touched here: the old
//! programs go on with what they have until [`Datapath::sync_uplink`] and
//! [`Datapath::sync_pods`] put the new ones in their place.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use aya::EbpfError;
use aya::maps::MapData;
use datapath_common::{Config, Feature, Hook, maps};

use super::attach::AttachKind;
use super::capacity::{Capacities, flag};
use super::loading::ProgramError;
use super::maps::{Maps, TableError};
use super::pins::{PinError, Pins, remove, rename};
use super::place::Place;
use super::programs::Programs;
use super::scan;
use super::shape::{self, ObjectError};
use super::stage::{Fit, Staged, stage};
use super::sys::{self, RawMap, Shape};

/// The programs, as the build made them.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tulle.bpf.o"));

/// How to load and attach.
#[derive(Clone, Debug)]
pub struct Options {
    /// The eBPF object.
    pub object: Cow<'static, [u8]>,
    /// How classifiers are attached.
    pub attach: AttachKind,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            object: Cow::Borrowed(OBJECT),
            attach: AttachKind::Tcx,
        }
    }
}

/// Why the datapath could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The pin directory.
    #[error(transparent)]
    Pin(#[from] PinError),
    /// The object.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// A map.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A map would lose rows.
    #[error("{map} holds {used} entries, but {flag} is {wanted}; give at least {used}")]
    DoesNotFit {
        /// The map.
        map: &'static str,
        /// The flag that sizes it.
        flag: &'static str,
        /// Entries that must be kept.
        used: u32,
        /// Entries asked for.
        wanted: u32,
    },
    /// The kernel or aya refused the object.
    #[error("cannot create the maps: {0}")]
    Maps(#[source] Box<EbpfError>),
    /// The kernel refused a program.
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// What happened to a pinned map at start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MapFate {
    /// Taken over as it is.
    Adopted,
    /// Made anew, empty.
    Created,
    /// Made with another size, its rows copied.
    Resized {
        /// Entries before.
        from: u32,
        /// Entries now.
        to: u32,
        /// Rows that were copied.
        rows: u32,
    },
    /// Of another layout: made anew, its rows dropped.
    Rebuilt,
}

/// What opening found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Opened {
    /// What happened to each map.
    pub maps: BTreeMap<&'static str, MapFate>,
    /// Sentences for the log, at level warning.
    pub warnings: Vec<String>,
}

impl Opened {
    /// Whether every map was there already, so that a former agent's rows are in force.
    pub fn all_adopted(&self) -> bool {
        self.maps
            .values()
            .all(|f| matches!(f, MapFate::Adopted | MapFate::Resized { .. }))
    }
}

/// Maps, programs and attachments of one node. Dropping it detaches nothing.
pub struct Datapath {
    pub(crate) pins: Pins,
    pub(crate) attach: AttachKind,
    object: Cow<'static, [u8]>,
    capacities: Capacities,
    config: Config,
    fit: Fit,
    pub(crate) programs: Programs,
    /// The maps.
    pub maps: Maps,
    opened: Opened,
    /// Former flow tables that programs may still write, until every link has
    /// the new program.
    pub(crate) retired: Vec<(&'static str, OwnedFd)>,
    /// Whether parts of former programs may be pinned still, likewise.
    pub(crate) has_former_parts: bool,
    /// Where this process attached something.
    pub(crate) places: BTreeSet<Place>,
    /// The cgroup that it attached everything to that belongs there.
    pub(crate) at_cgroup: Option<u64>,
}

impl Datapath {
    /// Opens the datapath that is pinned in `pin_dir`, or makes it.
    ///
    /// Unless [`Opened::all_adopted`], write the plan to [`Self::maps`] before
    /// syncing uplink and pods: until then the former programs serve from the
    /// former maps, so that no service is missing meanwhile.
    pub fn open(
        pin_dir: &Path,
        config: &Config,
        capacities: &Capacities,
        options: &Options,
    ) -> Result<Self, LoadError> {
        let pins = Pins::at(pin_dir);
        pins.prepare()?;
        let wanted = shape::wanted(&options.object, capacities)?;
        for name in wanted.keys() {
            remove(&pins.next(name))?;
        }
        let (fates, mut warnings) = decide(&pins, &wanted)?;
        let fresh = fates.values().all(|f| *f == MapFate::Created);
        if fresh {
            pins.set_abi(maps::ABI_VERSION, [])?;
        }
        let old = open_old(&pins, &fates)?;
        let staged = stage(
            &pins,
            &fates,
            config,
            capacities,
            &options.object,
            Fit::Whole,
        );
        let Staged {
            maps: by_name,
            programs,
            fit,
        } = match staged {
            Ok(staged) => staged,
            Err(e) => {
                // The former maps stay as they were.
                for name in wanted.keys() {
                    remove(&pins.next(name))?;
                }
                return Err(e);
            }
        };
        programs.parts.pin(&pins)?;
        let (fates, retired) = migrate(&pins, fates, &by_name, old)?;
        let as_written = pins.abi_version()? == Some(maps::ABI_VERSION)
            && pins.known_maps()?.iter().eq(wanted.keys());
        if !as_written {
            pins.set_abi(maps::ABI_VERSION, wanted.keys().copied())?;
        }
        for (name, fate) in &fates {
            if let MapFate::Resized { from, to, rows } = fate {
                warnings.push(format!(
                    "{name} was resized from {from} to {to} entries, {rows} rows copied"
                ));
            }
        }
        Ok(Self {
            fit,
            attach: options.attach,
            object: options.object.clone(),
            capacities: *capacities,
            config: *config,
            programs,
            maps: Maps::take(by_name)?,
            opened: Opened {
                maps: fates,
                warnings,
            },
            retired,
            has_former_parts: true,
            places: BTreeSet::new(),
            at_cgroup: None,
            pins,
        })
    }

    /// What opening found.
    pub fn opened(&self) -> &Opened {
        &self.opened
    }

    /// The read-only data that the programs are to have.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What they have of it: all that this kernel's verifier can follow.
    pub(crate) fn effective(&self) -> Config {
        self.fit.of(&self.config)
    }

    /// What they lack, if that is less than they are to have.
    pub(crate) fn shortfall(&self) -> Option<&'static str> {
        (self.fit == Fit::Least).then_some(
            "this kernel's verifier cannot follow the programs with all they can do: services for \
             clients outside, for processes of the node and for pods behind a bridge, masquerade, \
             translation of ICMP errors, counts of services and the holding of fragments that \
             come before the first of their datagram are off; ClusterIPs for other pods and the \
             overlay work; a newer kernel (Debian's 6.12, for example) does all of it",
        )
    }

    /// Why the kernel refuses the parts of `tulle_xdp` for services, if it does.
    pub(crate) fn xdp_refused(&self) -> Option<&str> {
        self.programs.parts.xdp_refused.as_deref()
    }

    /// The pin directory.
    pub fn pin_dir(&self) -> &Path {
        self.pins.dir()
    }

    /// The kernel's numbers of the loaded programs.
    pub fn program_ids(&self) -> [u32; Hook::ALL.len()] {
        self.programs.ids()
    }

    /// Loads the programs once more with other read-only data, upon the same
    /// maps. The caller then syncs uplink and pods as ever, which replaces the
    /// program of each link at once.
    pub(crate) fn load_again(&mut self, config: &Config) -> Result<(), LoadError> {
        self.repin()?;
        let adopted = self
            .opened
            .maps
            .keys()
            .map(|name| (*name, MapFate::Adopted))
            .collect();
        // What was too much is not tried again with every address that changes.
        let alike = (config.features, config.bridge == 0)
            == (self.config.features, self.config.bridge == 0);
        let fit = if alike { self.fit } else { Fit::Whole };
        let refused = self.programs.parts.xdp_refused.clone().filter(|_| alike);
        let mut loaded = *config;
        if refused.is_some() {
            loaded.features &= !Feature::XDP_SERVICES;
        }
        let Staged {
            mut programs, fit, ..
        } = stage(
            &self.pins,
            &adopted,
            &loaded,
            &self.capacities,
            &self.object,
            fit,
        )?;
        if refused.is_some() {
            programs.parts.xdp_refused = refused;
        }
        programs.parts.pin(&self.pins)?;
        self.has_former_parts = true;
        self.programs = programs;
        self.fit = fit;
        self.config = *config;
        Ok(())
    }
}

impl Datapath {
    /// Pins every map again whose pin was removed or replaced by somebody, so
    /// that the programs are loaded upon the maps that are in use.
    fn repin(&self) -> Result<(), LoadError> {
        for (name, data) in &self.maps.by_name {
            let fail = |source| TableError::Kernel {
                map: name,
                what: "pin it".into(),
                source,
            };
            let ours = sys::raw(data).map_err(fail)?.id();
            let path = self.pins.map(name);
            let pinned = match Pins::open_map(&path)? {
                Some(fd) => Some(RawMap::new(fd.as_fd()).map_err(fail)?.id()),
                None => None,
            };
            if pinned != Some(ours) {
                remove(&path)?;
                sys::pin(data.fd().as_fd(), &path).map_err(fail)?;
            }
        }
        Ok(())
    }
}

pub(super) type Fates = BTreeMap<&'static str, MapFate>;

/// Compares what is pinned with what is wanted.
fn decide(
    pins: &Pins,
    wanted: &BTreeMap<&'static str, Shape>,
) -> Result<(Fates, Vec<String>), LoadError> {
    let mut pinned = BTreeMap::new();
    for name in wanted.keys() {
        if let Some(shape) = pins.shape(name)? {
            pinned.insert(*name, shape);
        }
    }
    let (version, known) = (pins.abi_version()?, pins.known_maps()?);
    let misfit = wanted.iter().find(|(name, want)| {
        pinned
            .get(*name)
            .is_some_and(|have| !shape::same_rows(want, have))
    });
    let why = if pinned.is_empty() {
        None
    } else if version != Some(maps::ABI_VERSION) {
        let had = version.map_or_else(
            || "no layout version".into(),
            |v| format!("layout version {v}"),
        );
        Some(format!(
            "the pinned maps have {had}, this agent has {}",
            maps::ABI_VERSION
        ))
    } else {
        misfit.map(|(name, _)| format!("the pinned {name} has another layout than this agent's"))
    };
    let mut warnings = Vec::new();
    if let Some(why) = &why {
        warnings.push(format!(
            "{why}: all maps are made anew; services, pods and peers are written again, all flows are dropped"
        ));
    }
    let mut fates = Fates::new();
    for (name, want) in wanted {
        let fate = match pinned.get(name) {
            None => MapFate::Created,
            Some(_) if why.is_some() => MapFate::Rebuilt,
            Some(have) if have.max_entries == want.max_entries => MapFate::Adopted,
            Some(have) => {
                check_fits(pins, name, want)?;
                MapFate::Resized {
                    from: have.max_entries,
                    to: want.max_entries,
                    rows: 0,
                }
            }
        };
        // Others are new in this version.
        if fate == MapFate::Created && !pinned.is_empty() && known.contains(*name) {
            warnings.push(format!("{name} was not pinned any more and is made anew"));
        }
        fates.insert(*name, fate);
    }
    Ok((fates, warnings))
}

/// A map that cannot make room by itself must hold all its rows after the change.
fn check_fits(pins: &Pins, name: &'static str, want: &Shape) -> Result<(), LoadError> {
    if shape::is_lru(want.map_type) {
        return Ok(());
    }
    let path = pins.map(name);
    let Some(fd) = Pins::open_map(&path)? else {
        return Ok(());
    };
    let used = RawMap::new(fd.as_fd())
        .and_then(|map| scan::used(&map))
        .map_err(|source| TableError::Kernel {
            map: name,
            what: "read it".into(),
            source,
        })?;
    if used > want.max_entries {
        let flag = flag(name).unwrap_or("its size");
        return Err(LoadError::DoesNotFit {
            map: name,
            flag,
            used,
            wanted: want.max_entries,
        });
    }
    Ok(())
}

/// Opens the maps that will be replaced, before anything changes.
fn open_old(pins: &Pins, fates: &Fates) -> Result<BTreeMap<&'static str, OwnedFd>, LoadError> {
    let mut old = BTreeMap::new();
    for (name, fate) in fates {
        if let MapFate::Resized { .. } = fate
            && let Some(fd) = Pins::open_map(&pins.map(name))?
        {
            old.insert(*name, fd);
        }
    }
    Ok(old)
}

/// Whether programs write rows of it until they are replaced.
fn is_written_meanwhile(name: &str, map_type: u32) -> bool {
    shape::is_lru(map_type) || matches!(name, maps::CONNS_V4 | maps::CONNS_V6)
}

type Retired = Vec<(&'static str, OwnedFd)>;

/// Copies the rows of resized maps and moves new maps into place. From here on
/// every pin is whole, whenever the agent dies.
fn migrate(
    pins: &Pins,
    fates: Fates,
    by_name: &BTreeMap<&'static str, MapData>,
    mut old: BTreeMap<&'static str, OwnedFd>,
) -> Result<(Fates, Retired), LoadError> {
    let mut done = Fates::new();
    let mut retired = Vec::new();
    for (name, fate) in fates {
        let fail = |source| TableError::Kernel {
            map: name,
            what: "copy its rows".into(),
            source,
        };
        let fate = match (fate, by_name.get(name), old.remove(name)) {
            (MapFate::Resized { from, to, .. }, Some(new), Some(former)) => {
                let source = RawMap::new(former.as_fd()).map_err(fail)?;
                let target = sys::raw(new).map_err(fail)?;
                let rows = scan::copy(&source, &target, sys::ANY).map_err(fail)?;
                if is_written_meanwhile(name, source.shape().map_type) {
                    retired.push((name, former));
                }
                rename(&pins.next(name), &pins.map(name))?;
                MapFate::Resized { from, to, rows }
            }
            (MapFate::Rebuilt, ..) => {
                rename(&pins.next(name), &pins.map(name))?;
                MapFate::Rebuilt
            }
            (fate, ..) => fate,
        };
        done.insert(name, fate);
    }
    Ok((done, retired))
}
