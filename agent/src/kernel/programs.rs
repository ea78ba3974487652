//! The programs, loaded.

use std::os::fd::{AsFd, BorrowedFd};

use aya::Ebpf;
use aya::maps::{Map, MapData};
use aya::programs::{Program, ProgramFd, SchedClassifier, Xdp};
use datapath_common::Hook;

use super::parts::Parts;
use super::shape::ObjectError;
use super::sys;

/// The name of the program for a hook.
pub const fn name(hook: Hook) -> &'static str {
    match hook {
        Hook::PodFrom => "tulle_pod_from",
        Hook::PodTo => "tulle_pod_to",
        Hook::NicIn => "tulle_nic_in",
        Hook::Xdp => "tulle_xdp",
        Hook::NicOut => "tulle_nic_out",
    }
}

/// A program could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The object has none of this name and kind.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// The kernel's verifier or its limits.
    #[error("the kernel refused the program {program}: {source}")]
    Refused {
        /// The program.
        program: &'static str,
        /// The kernel's answer, with the verifier's log.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    /// The array of parts.
    #[error("cannot fill the array of the programs' parts: {source}")]
    Parts {
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
}

impl ProgramError {
    /// The kernel refused the program.
    pub(crate) fn refused(program: &'static str, source: aya::programs::ProgramError) -> Self {
        Self::Refused {
            program,
            source: Box::new(source),
        }
    }

    /// Whether the verifier gave up because there was too much to follow (`E2BIG`).
    pub(crate) fn is_too_large(&self) -> bool {
        let Self::Refused { source, .. } = self else {
            return false;
        };
        matches!(
            source.as_ref(),
            aya::programs::ProgramError::LoadError { io_error, .. }
                if io_error.raw_os_error() == Some(libc::E2BIG)
        )
    }
}

/// Descriptors and numbers of the loaded programs, in the order of [`Hook::ALL`],
/// and their parts.
#[derive(Debug)]
pub(crate) struct Programs {
    loaded: [(ProgramFd, u32); Hook::ALL.len()],
    /// What they go on with.
    pub(crate) parts: Parts,
}

impl Programs {
    /// Loads every program of the object.
    pub(crate) fn load(ebpf: &mut Ebpf) -> Result<Self, ProgramError> {
        let parts = Parts::load(ebpf)?;
        let mut one = |hook| load_one(ebpf, hook);
        Ok(Self {
            parts,
            loaded: [
                one(Hook::PodFrom)?,
                one(Hook::PodTo)?,
                one(Hook::NicIn)?,
                one(Hook::Xdp)?,
                one(Hook::NicOut)?,
            ],
        })
    }

    /// The descriptor of a hook's program.
    pub(crate) fn fd(&self, hook: Hook) -> BorrowedFd<'_> {
        self.loaded[hook as usize].0.as_fd()
    }

    /// The kernel's number of a hook's program.
    pub(crate) fn id(&self, hook: Hook) -> u32 {
        self.loaded[hook as usize].1
    }

    /// The kernel's numbers, in the order of [`Hook::ALL`].
    pub(crate) fn ids(&self) -> [u32; Hook::ALL.len()] {
        Hook::ALL.map(|hook| self.id(hook))
    }
}

fn load_one(ebpf: &mut Ebpf, hook: Hook) -> Result<(ProgramFd, u32), ProgramError> {
    let program_name = name(hook);
    let lacks = ObjectError::Lacks {
        what: "program",
        name: program_name,
    };
    let Some(program) = ebpf.program_mut(program_name) else {
        return Err(lacks.into());
    };
    let loaded = match program {
        Program::SchedClassifier(p) if hook != Hook::Xdp => load_classifier(p),
        Program::Xdp(p) if hook == Hook::Xdp => load_xdp(p),
        _ => return Err(lacks.into()),
    };
    loaded.map_err(|e| ProgramError::refused(program_name, e))
}

type Loaded = Result<(ProgramFd, u32), aya::programs::ProgramError>;

/// Loads a program while signals wait: the verifier gives up with `EAGAIN` when
/// its thread has one pending, and a child that ends is enough for that. What
/// comes through all the same has nothing against the program: once more then.
pub fn uninterrupted(
    mut load: impl FnMut() -> Result<(), aya::programs::ProgramError>,
) -> Result<(), aya::programs::ProgramError> {
    let _held = sys::HeldSignals::new();
    for _ in 1..sys::LOAD_ATTEMPTS {
        match load() {
            Err(aya::programs::ProgramError::LoadError { io_error, .. })
                if sys::is_interruption(&io_error) => {}
            other => return other,
        }
    }
    load()
}

pub(super) fn load_classifier(program: &mut SchedClassifier) -> Loaded {
    uninterrupted(|| program.load())?;
    Ok((program.fd()?.try_clone()?, program.info()?.id()))
}

fn load_xdp(program: &mut Xdp) -> Loaded {
    uninterrupted(|| program.load())?;
    Ok((program.fd()?.try_clone()?, program.info()?.id()))
}

/// The data of a map of one of the kinds that the object uses.
pub(crate) fn map_data<'a>(map: &'a Map, name: &'static str) -> Result<&'a MapData, ObjectError> {
    match map {
        Map::Array(data)
        | Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::LpmTrie(data)
        | Map::PerCpuArray(data)
        | Map::RingBuf(data) => Ok(data),
        _ => Err(ObjectError::Lacks {
            what: "map of a known kind named",
            name,
        }),
    }
}
