//! Makes the maps and loads the programs beside what is in use, with all of their configuration
//! or, if the kernel's verifier cannot follow that, with less.

use std::collections::BTreeMap;
use std::os::fd::AsFd;

use aya::EbpfLoader;
use aya::maps::MapData;
use datapath_common::{Config, Feature};

use super::capacity::Capacities;
use super::loader::{Fates, LoadError, MapFate};
use super::maps::{TableError, io_of};
use super::pins::Pins;
use super::programs::{Programs, map_data};
use super::shape::ObjectError;

/// How the programs have their configuration. The verifier follows a program for at most a
/// million instructions (`E2BIG`), and older ones follow the same program for longer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fit {
    /// As it is.
    Whole,
    /// With [`Feature::CALLS`].
    Calls,
    /// With that, but without bridge, [`Feature::OPTIONAL`] and what needs that.
    Least,
}

impl Fit {
    /// What the programs have of `config`.
    pub(super) fn of(self, config: &Config) -> Config {
        match self {
            Self::Whole => *config,
            Self::Calls => Config {
                features: config.features | Feature::CALLS,
                ..*config
            },
            Self::Least => Config {
                features: config.features & !(Feature::OPTIONAL | Feature::NODE_SOCKETS)
                    | Feature::CALLS,
                bridge: 0,
                ..*config
            },
        }
    }

    /// The next that is less of `config`.
    fn less(self, config: &Config) -> Option<Self> {
        let next = match self {
            Self::Whole => Self::Calls,
            Self::Calls => Self::Least,
            Self::Least => return None,
        };
        if next.of(config) == self.of(config) {
            next.less(config)
        } else {
            Some(next)
        }
    }
}

/// What was loaded, and how.
pub(super) struct Staged {
    pub(super) maps: BTreeMap<&'static str, MapData>,
    pub(super) programs: Programs,
    pub(super) fit: Fit,
}

/// Opens or makes the maps and loads the programs, with as much of `config` as the verifier can
/// follow; it is known that it cannot follow more than `fit`.
pub(super) fn stage(
    pins: &Pins,
    fates: &Fates,
    config: &Config,
    capacities: &Capacities,
    object: &[u8],
    mut fit: Fit,
) -> Result<Staged, LoadError> {
    loop {
        match load(pins, fates, &fit.of(config), capacities, object) {
            Err(LoadError::Program(e)) if e.is_too_large() => match fit.less(config) {
                Some(less) => fit = less,
                None => return Err(LoadError::Program(e)),
            },
            done => {
                return done.map(|(maps, programs)| Staged {
                    maps,
                    programs,
                    fit,
                });
            }
        }
    }
}

/// Opens or makes the maps and loads the programs. Maps that replace others
/// are pinned beside them.
fn load(
    pins: &Pins,
    fates: &Fates,
    config: &Config,
    capacities: &Capacities,
    object: &[u8],
) -> Result<(BTreeMap<&'static str, MapData>, Programs), LoadError> {
    let mut loader = EbpfLoader::new();
    loader.override_global("CONFIG", config, true);
    for (name, fate) in fates {
        if let Some(entries) = capacities.entries(name) {
            loader.map_max_entries(name, entries);
        }
        let path = match fate {
            MapFate::Adopted | MapFate::Created => pins.map(name),
            MapFate::Resized { .. } | MapFate::Rebuilt => pins.next(name),
        };
        loader.map_pin_path(name, path);
    }
    let mut ebpf = loader
        .load(object)
        .map_err(|e| LoadError::Maps(Box::new(e)))?;
    let programs = Programs::load(&mut ebpf, config.features)?;
    let mut by_name = BTreeMap::new();
    for name in fates.keys() {
        let data = ebpf
            .map(name)
            .ok_or(ObjectError::Lacks { what: "map", name })
            .and_then(|map| map_data(map, name))?;
        let fd = data.fd().as_fd().try_clone_to_owned();
        let again = fd
            .map_err(Into::into)
            .and_then(MapData::from_fd)
            .map_err(|e| TableError::Kernel {
                map: name,
                what: "open it".into(),
                source: io_of(e),
            })?;
        by_name.insert(*name, again);
    }
    Ok((by_name, programs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_and_less_until_nothing_can_be_left_out() {
        let all = Config {
            features: Feature::OVERLAY | Feature::MASQUERADE | Feature::NODE_SOCKETS,
            bridge: 3,
            ..Config::EMPTY
        };
        assert_eq!(Fit::Whole.of(&all), all);
        assert_eq!(Fit::Whole.less(&all), Some(Fit::Calls));
        assert_eq!(Fit::Calls.of(&all).features, all.features | Feature::CALLS);
        assert_eq!(Fit::Calls.less(&all), Some(Fit::Least));
        let least = Fit::Least.of(&all);
        assert_eq!(least.features, Feature::OVERLAY | Feature::CALLS);
        assert_eq!(least.bridge, 0);
        assert_eq!(Fit::Least.less(&all), None);
    }

    #[test]
    fn what_changes_nothing_is_not_tried() {
        let called = Config {
            features: Feature::CALLS | Feature::OVERLAY,
            ..Config::EMPTY
        };
        assert_eq!(Fit::Whole.less(&called), None);
        let bridged = Config {
            bridge: 3,
            ..called
        };
        assert_eq!(Fit::Whole.less(&bridged), Some(Fit::Least));
    }
}
