//! Loading programs whatever signals arrive.

use anyhow::{Context as _, Result, bail};
use aya::Ebpf;
use aya::maps::ProgramArray;
use aya::programs::{Program, ProgramError, SchedClassifier};
use datapath_common::{Hook, PARTS, Part};
use nix::sys::signal::{SigSet, SigmaskHow};

/// How often a load is tried that signals interrupt.
const ATTEMPTS: u32 = 5;

/// Loads every program of the datapath's object, and joins them to their parts.
pub fn datapath(ebpf: &mut Ebpf) -> Result<()> {
    for part in Part::ALL {
        program(ebpf, part.program())?;
    }
    let mut fds = Vec::new();
    for part in Part::ALL {
        let program = ebpf.program(part.program());
        let program = program.with_context(|| format!("no {}", part.program()))?;
        let classifier = <&SchedClassifier>::try_from(program)?;
        fds.push((*part as u32, classifier.fd()?.try_clone()?));
    }
    let map = ebpf
        .map_mut(PARTS)
        .context("the object has no array of parts")?;
    let mut parts = ProgramArray::try_from(map)?;
    for (row, fd) in &fds {
        parts.set(*row, fd, 0).context("set a part")?;
    }
    for hook in Hook::ALL {
        program(ebpf, &format!("tulle_{}", hook.name()))?;
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
