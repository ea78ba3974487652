//! Loading one program, whatever signals arrive, and what the kernel may say.

use aya::programs::{ProgramFd, SchedClassifier, Xdp};

use super::shape::ObjectError;
use super::sys;

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

    /// Whether the verifier gave up because there was too much to follow: instructions (`E2BIG`)
    /// or branches that wait (a sentence in its log).
    pub(crate) fn is_too_large(&self) -> bool {
        let Self::Refused { source, .. } = self else {
            return false;
        };
        matches!(
            source.as_ref(),
            aya::programs::ProgramError::LoadError { io_error, verifier_log }
                if io_error.raw_os_error() == Some(libc::E2BIG)
                    || verifier_log.to_string().contains("jumps is too complex")
        )
    }
}

pub(super) type Loaded = Result<(ProgramFd, u32), aya::programs::ProgramError>;

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

pub(super) fn load_xdp(program: &mut Xdp) -> Loaded {
    uninterrupted(|| program.load())?;
    Ok((program.fd()?.try_clone()?, program.info()?.id()))
}
