//! The agent begins anew in its own process, so that no supervisor has to be one that starts it
//! again (KP-146).

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use crate::args::Args;

/// A file that is being written is whole after it.
const PAUSE: Duration = Duration::from_millis(200);
/// Looks at a file that is wrong before the next process is left to refuse it.
const LOOKS: u32 = 50;

/// The same program with the same words. Comes back only if that fails.
pub fn begin() -> anyhow::Error {
    let words: Vec<OsString> = std::env::args_os().collect();
    for _ in 0..LOOKS {
        if Args::of(&words).is_ok() {
            break;
        }
        sleep(PAUSE);
    }
    let name = words.first().cloned().unwrap_or_default();
    let error = Command::new(program())
        .arg0(name)
        .args(words.iter().skip(1))
        .exec();
    anyhow::Error::new(error).context("cannot start anew with the changed configuration")
}

/// What is at this program's path now, an upgrade for one; itself if nothing is.
fn program() -> PathBuf {
    /// As the kernel calls a file that was removed or replaced.
    const GONE: &str = " (deleted)";
    let own = PathBuf::from("/proc/self/exe");
    let Ok(path) = std::fs::read_link(&own) else {
        return own;
    };
    let path = match path.to_str().and_then(|path| path.strip_suffix(GONE)) {
        Some(former) => Path::new(former).to_owned(),
        None => path,
    };
    if path.exists() { path } else { own }
}
