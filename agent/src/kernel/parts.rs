//! What the programs at the hooks go on with: each loading has an array of
//! parts of its own, which the kernel empties when its last pin and descriptor
//! go. So it stays pinned, under its number, until no link has a program of its
//! loading any more.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use aya::Ebpf;
use aya::maps::{Map, MapData, ProgramArray};
use aya::programs::Program;
use datapath_common::{PARTS, Part};

use super::loading::{ProgramError, load_classifier};
use super::maps::io_of;
use super::pins::{PinError, Pins, list, remove};
use super::shape::ObjectError;
use super::sys;

/// The array, filled. Dropping it leaves the pin.
#[derive(Debug)]
pub(crate) struct Parts {
    data: MapData,
    id: u32,
}

impl Parts {
    /// Loads every part of the object and fills its array.
    pub(crate) fn load(ebpf: &mut Ebpf) -> Result<Self, ProgramError> {
        let lacks = |what, name| ObjectError::Lacks { what, name };
        let fail = |source: io::Error| ProgramError::Parts { source };
        let mut map = ebpf.take_map(PARTS).ok_or(lacks("map", PARTS))?;
        {
            let mut array = ProgramArray::try_from(&mut map).map_err(|e| fail(io_of(e)))?;
            for part in Part::ALL {
                let program = part.program();
                let Some(Program::SchedClassifier(classifier)) = ebpf.program_mut(program) else {
                    return Err(lacks("program", program).into());
                };
                let (fd, _) =
                    load_classifier(classifier).map_err(|e| ProgramError::refused(program, e))?;
                array
                    .set(*part as u32, &fd, 0)
                    .map_err(|e| fail(io_of(e)))?;
            }
        }
        let Map::ProgramArray(data) = map else {
            return Err(lacks("array of programs named", PARTS).into());
        };
        let id = sys::raw(&data).map_err(fail)?.id();
        Ok(Self { data, id })
    }

    /// Where the array is pinned.
    fn path(&self, pins: &Pins) -> PathBuf {
        pins.map(&format!("{PREFIX}{}", self.id))
    }

    /// Pins the array: before any link has a program that goes on with it.
    pub(crate) fn pin(&self, pins: &Pins) -> Result<(), PinError> {
        let path = self.path(pins);
        sys::pin(self.data.fd().as_fd(), &path).map_err(|source| PinError::Kernel {
            what: "make",
            path,
            source,
        })
    }

    /// Removes the pins of former loadings' arrays: once no link has a program of
    /// theirs.
    pub(crate) fn remove_former(&self, pins: &Pins) -> Result<(), PinError> {
        let own = format!("{PREFIX}{}", self.id);
        for name in list(pins.dir())? {
            if is_pin(&name) && name != own {
                remove(&pins.map(&name))?;
            }
        }
        Ok(())
    }
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
