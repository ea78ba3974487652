//! Loading programs whatever signals arrive.

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use aya::maps::ProgramArray;
use aya::programs::{Program, ProgramError, ProgramFd, SchedClassifier, Xdp};
use datapath_common::{Hook, PARTS, Part, XDP_PARTS, XdpPart};
use nix::sys::signal::{SigSet, SigmaskHow};

/// How often a load is tried that signals interrupt.
const ATTEMPTS: u32 = 5;

/// Loads every program of the datapath's object, and joins them to their parts.
pub fn datapath(ebpf: &mut Ebpf) -> Result<()> {
    let classifiers = Part::ALL.iter().map(|part| (*part as u32, part.program()));
    join(ebpf, PARTS, classifiers)?;
    let at_driver = XdpPart::ALL
        .iter()
        .map(|part| (*part as u32, part.program()));
    join(ebpf, XDP_PARTS, at_driver)?;
    for hook in Hook::ALL {
        program(ebpf, &format!("tulle_{}", hook.name()))?;
    }
    Ok(())
}

/// Loads parts and puts them into their array.
fn join(
    ebpf: &mut Ebpf,
    array: &str,
    parts: impl Iterator<Item = (u32, &'static str)>,
) -> Result<()> {
    let mut fds: Vec<(u32, ProgramFd)> = Vec::new();
    for (row, name) in parts {
        program(ebpf, name)?;
        let loaded = ebpf.program(name).with_context(|| format!("no {name}"))?;
        let fd = match loaded {
            Program::Xdp(_) => <&Xdp>::try_from(loaded)?.fd()?,
            _ => <&SchedClassifier>::try_from(loaded)?.fd()?,
        };
        fds.push((row, fd.try_clone()?));
    }
    let map = ebpf.map_mut(array);
    let map = map.with_context(|| format!("the object has no {array}"))?;
    let mut rows = ProgramArray::try_from(map)?;
    for (row, fd) in &fds {
        rows.set(*row, fd, 0)
            .with_context(|| format!("set a row of {array}"))?;
    }
    Ok(())
}

/// Loads the XDP program or classifier `name` of an object. The verifier gives
/// up with `EAGAIN` when the thread has a signal pending, so they wait.
pub fn program(ebpf: &mut Ebpf, name: &str) -> Result<()> {
    let program = ebpf
        .program_mut(name)
        .with_context(|| format!("the object has no program {name}"))?;
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let loaded = load(program, name);
    mask.thread_set_mask()?;
    loaded
}

fn load(program: &mut Program, name: &str) -> Result<()> {
    for _ in 0..ATTEMPTS {
        let loaded = match program {
            Program::Xdp(xdp) => xdp.load(),
            Program::SchedClassifier(classifier) => classifier.load(),
            other => bail!("{name} is of the kind {:?}", other.prog_type()),
        };
        match loaded {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.raw_os_error() == Some(nix::libc::EAGAIN) => {}
            other => return other.with_context(|| format!("load {name}")),
        }
    }
    bail!("signals interrupted the load of {name} {ATTEMPTS} times")
}
