//! Child processes that do not outlive the test.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::error::{Context, Error, Result};
use crate::registry::{self, Resource};
use crate::wait;

/// Lines of a log that errors quote.
const LOG_TAIL: usize = 20;

/// A child process whose output goes to a log file. Killed on drop.
#[derive(Debug)]
pub struct Process {
    what: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
    kept: bool,
}

impl Process {
    /// Starts `command`; its output is appended to the file `log`. `what`
    /// names it in errors.
    pub fn spawn(what: &str, mut command: Command, log: &Path) -> Result<Self> {
        let open = || OpenOptions::new().create(true).append(true).open(log);
        let out: File = open().trying(|| format!("open the log {}", log.display()))?;
        let err = out
            .try_clone()
            .trying(|| format!("open the log {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        registry::acquire(|| {
            let child = command
                .spawn()
                .trying(|| format!("start {what} ({})", command.get_program().to_string_lossy()))?;
            let resource = Resource::Process(child.id());
            let process = Self {
                what: what.to_owned(),
                child,
                log: log.to_owned(),
                ended: None,
                kept: false,
            };
            Ok((resource, process))
        })
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it has.
    pub fn status(&mut self) -> Result<Option<ExitStatus>> {
        if self.ended.is_none()
            && let Some(status) = self
                .child
                .try_wait()
                .trying(|| format!("wait for {}", self.what))?
        {
            registry::forget(&Resource::Process(self.child.id()));
            self.ended = Some(status);
        }
        Ok(self.ended)
    }

    /// An error with the end of the log if the process has ended.
    pub fn check_running(&mut self) -> Result<()> {
        match self.status()? {
            None => Ok(()),
            Some(status) => Err(Error::Exited {
                what: self.what.clone(),
                status,
                log: self.log_tail(),
            }),
        }
    }

    /// Sends a signal; nothing if it has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.status()?.is_some() {
            return Ok(());
        }
        kill(Pid::from_raw(self.child.id().cast_signed()), signal)
            .trying(|| format!("send {signal} to {}", self.what))
    }

    /// Ends it with SIGKILL and waits.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        self.signal(Signal::SIGKILL)?;
        self.wait(Duration::from_secs(5))
    }

    /// Asks it to end with SIGTERM and waits at most `limit`.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(limit)
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let what = format!("no end of {} (pid {})", self.what, self.child.id());
        wait::until(&what, limit, || self.status())
    }

    /// Lets it outlive this value and this process.
    pub fn keep(&mut self) {
        self.kept = true;
        registry::forget(&Resource::Process(self.child.id()));
    }

    /// All that it has written.
    pub fn log(&self) -> Result<String> {
        let bytes = std::fs::read(&self.log).trying(|| format!("read {}", self.log.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The last lines of what it has written.
    pub fn log_tail(&self) -> String {
        let text = self.log().unwrap_or_else(|e| e.to_string());
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Err(e) = self.kill() {
            eprintln!("testkit: {e}");
        }
    }
}
