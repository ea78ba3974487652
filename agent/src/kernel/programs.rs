//! The programs, loaded.

use std::os::fd::{AsFd, BorrowedFd};

use aya::Ebpf;
use aya::maps::{Map, MapData};
use aya::programs::{Program, ProgramFd};
use datapath_common::Hook;

use super::cgroup::SocketPrograms;
use super::loading::{ProgramError, load_classifier, load_xdp};
use super::parts::Parts;
use super::shape::ObjectError;

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

/// Descriptors and numbers of the loaded programs, in the order of [`Hook::ALL`],
/// and their parts.
#[derive(Debug)]
pub(crate) struct Programs {
    loaded: [(ProgramFd, u32); Hook::ALL.len()],
    /// What they go on with.
    pub(crate) parts: Parts,
    /// Those at sockets.
    pub(crate) sockets: SocketPrograms,
}

impl Programs {
    /// Loads every program of the object; those at sockets if the features want them.
    pub(crate) fn load(ebpf: &mut Ebpf, features: u32) -> Result<Self, ProgramError> {
        let parts = Parts::load(ebpf, features)?;
        let sockets = SocketPrograms::load(ebpf, features)?;
        let mut one = |hook| load_one(ebpf, hook);
        Ok(Self {
            parts,
            sockets,
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
