//! What the programs at the hooks go on with: each loading has arrays of
//! parts of its own, which the kernel empties when their last pin and descriptor
//! go. So they stay pinned, under their numbers, until no link has a program of their
//! loading any more.

use std::io;
use std::os::fd::AsFd;

use aya::Ebpf;
use aya::maps::{Map, MapData, ProgramArray};
use aya::programs::{Program, ProgramFd};
use datapath_common::{Feature, PARTS, Part, XDP_PARTS, XdpPart};

use super::loading::{ProgramError, load_classifier, load_xdp};
use super::maps::io_of;
use super::pins::{PinError, Pins, list, remove};
use super::shape::ObjectError;
use super::sys;

/// An array, filled. Dropping it leaves the pin.
#[derive(Debug)]
struct Array {
    data: MapData,
    id: u32,
}

impl Array {
    /// Takes the object's array, and puts programs into its rows.
    fn fill(
        ebpf: &mut Ebpf,
        name: &'static str,
        programs: &[(u32, ProgramFd)],
    ) -> Result<Self, ProgramError> {
        let lacks = |what| ObjectError::Lacks { what, name };
        let fail = |source: io::Error| ProgramError::Parts { source };
        let mut map = ebpf.take_map(name).ok_or(lacks("map"))?;
        {
            let mut array = ProgramArray::try_from(&mut map).map_err(|e| fail(io_of(e)))?;
            for (row, fd) in programs {
                array.set(*row, fd, 0).map_err(|e| fail(io_of(e)))?;
            }
        }
        let Map::ProgramArray(data) = map else {
            return Err(lacks("array of programs named").into());
        };
        let id = sys::raw(&data).map_err(fail)?.id();
        Ok(Self { data, id })
    }

    /// The name of its pin.
    fn pin_name(&self) -> String {
        format!("{PREFIX}{}", self.id)
    }

    fn pin(&self, pins: &Pins) -> Result<(), PinError> {
        let path = pins.map(&self.pin_name());
        sys::pin(self.data.fd().as_fd(), &path).map_err(|source| PinError::Kernel {
            what: "make",
            path,
            source,
        })
    }
}

/// The arrays of one loading.
#[derive(Debug)]
pub(crate) struct Parts {
    arrays: [Array; 2],
    /// Why the kernel refuses the parts for XDP, if it does: `tulle_xdp` then leaves to
    /// the classifiers what those would do.
    pub(crate) xdp_refused: Option<String>,
}

impl Parts {
    /// Loads every part of the object that the features want, and fills its arrays.
    pub(crate) fn load(ebpf: &mut Ebpf, features: u32) -> Result<Self, ProgramError> {
        let mut classifiers = Vec::new();
        for part in Part::ALL {
            classifiers.push((*part as u32, load_part(ebpf, part.program())?));
        }
        let mut at_driver = Vec::new();
        let mut xdp_refused = None;
        if features & Feature::XDP_SERVICES != 0 {
            for part in XdpPart::ALL {
                match load_part(ebpf, part.program()) {
                    Ok(fd) => at_driver.push((*part as u32, fd)),
                    Err(e) => {
                        // Half of them would send out what they do not bring back.
                        at_driver.clear();
                        xdp_refused = Some(e.to_string());
                        break;
                    }
                }
            }
        }
        Ok(Self {
            arrays: [
                Array::fill(ebpf, PARTS, &classifiers)?,
                Array::fill(ebpf, XDP_PARTS, &at_driver)?,
            ],
            xdp_refused,
        })
    }

    /// Pins the arrays: before any link has a program that goes on with them.
    pub(crate) fn pin(&self, pins: &Pins) -> Result<(), PinError> {
        self.arrays.iter().try_for_each(|array| array.pin(pins))
    }

    /// Removes the pins of former loadings' arrays: once no link has a program of
    /// theirs.
    pub(crate) fn remove_former(&self, pins: &Pins) -> Result<(), PinError> {
        let own = self.arrays.each_ref().map(Array::pin_name);
        for name in list(pins.dir())? {
            if is_pin(&name) && !own.contains(&name) {
                remove(&pins.map(&name))?;
            }
        }
        Ok(())
    }
}

/// Loads one part.
fn load_part(ebpf: &mut Ebpf, name: &'static str) -> Result<ProgramFd, ProgramError> {
    let lacks = ObjectError::Lacks {
        what: "program",
        name,
    };
    let loaded = match ebpf.program_mut(name) {
        Some(Program::SchedClassifier(part)) => load_classifier(part),
        Some(Program::Xdp(part)) => load_xdp(part),
        _ => return Err(lacks.into()),
    };
    let (fd, _) = loaded.map_err(|e| ProgramError::refused(name, e))?;
    Ok(fd)
}

/// What the name of an array's pin begins with; the array's number follows.
const PREFIX: &str = "tulle_parts-";

/// Whether this is the name of an array's pin.
pub(crate) fn is_pin(name: &str) -> bool {
    name.strip_prefix(PREFIX)
        .is_some_and(|id| id.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_pins() {
        assert!(PREFIX.starts_with(PARTS));
        assert!(is_pin("tulle_parts-7"));
        assert!(!is_pin("tulle_parts"));
        assert!(!is_pin("tulle_parts-next"));
        assert!(!is_pin("tulle_front_v4"));
    }
}
