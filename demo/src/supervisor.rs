//! Runs the show as a child in a session of its own and removes everything
//! when it has ended, in whatever way.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, geteuid};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use testkit::wait;

use crate::args::Options;
use crate::leftovers;
use crate::name_lock::{self, NameLock, Taken};
use crate::processes;

/// Exit status if something that was shown is not as promised.
pub const BROKEN: u8 = 3;
/// Longest that a running demo takes to remove itself.
const DOWN_LIMIT: Duration = Duration::from_mins(1);
/// Longest that killed processes take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// How the show ended.
enum End {
    /// By itself.
    Exited(ExitStatus),
    /// Because of a signal to us.
    Interrupted(i32),
}

/// Shows, and removes everything unless it is kept.
pub fn run(options: &Options) -> Result<ExitCode> {
    require_root()?;
    let name = &options.name;
    let _lock = match name_lock::take(name).context("take the demo's name")? {
        Taken::Ours(lock) => lock,
        Taken::Other(pid) => bail!(
            "a demo named {name} runs already, as process {pid}: end it with Ctrl-C there or with \
             `{}`, or choose another --name",
            options.down_command()
        ),
    };
    if leftovers::exists(name) {
        bail!(
            "a demo named {name} is up already (it was kept, or was killed): remove it with `{}`, \
             or choose another --name",
            options.down_command()
        );
    }
    // Before the child, so that neither its end nor a signal is missed.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGCHLD]).context("hear signals")?;
    let program = std::env::current_exe().context("find this program's file")?;
    let mut child = Command::new(program)
        .arg("show")
        .args(options.to_arguments())
        .spawn()
        .context("start the show")?;
    let end = await_end(&mut child, &mut signals)?;
    let code = match &end {
        End::Exited(status) => {
            let code = status
                .code()
                .map_or(1, |code| u8::try_from(code).unwrap_or(1));
            if let Some(signal) = status.signal() {
                say(&format!("\nThe demo was killed by signal {signal}."));
            }
            if options.keep && (code == 0 || code == BROKEN) {
                return Ok(ExitCode::from(code));
            }
            code
        }
        End::Interrupted(signal) => {
            say("\nInterrupted. Removing everything …");
            u8::try_from(128 + signal).unwrap_or(1)
        }
    };
    end_show(&child);
    finish(name, || end_group(&child))?;
    Ok(ExitCode::from(code))
}

/// Removes a demo: one that runs is asked to end, the others are removed here.
pub fn down(options: &Options) -> Result<ExitCode> {
    require_root()?;
    let name = &options.name;
    let _lock = end_running(name)?;
    if leftovers::exists(name) {
        finish(name, || {})?;
    } else {
        say(&format!("No demo named {name} is up."));
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes the name; ends a demo that has it.
fn end_running(name: &str) -> Result<NameLock> {
    let mut asked = false;
    let what = format!("no end of the running demo {name}");
    let lock = wait::until(&what, DOWN_LIMIT, || {
        let io = |source| testkit::Error::Io {
            what: "take the demo's name".to_owned(),
            source,
        };
        match name_lock::take(name).map_err(io)? {
            Taken::Ours(lock) => Ok(Some(lock)),
            Taken::Other(pid) => {
                if !asked {
                    say(&format!("Ending the demo that runs as process {pid} …"));
                    // It may end by itself meanwhile.
                    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
                    asked = true;
                }
                Ok(None)
            }
        }
    })?;
    Ok(lock)
}

fn require_root() -> Result<()> {
    if !geteuid().is_root() {
        bail!("the demo makes network namespaces and loads BPF programs: run it as root");
    }
    Ok(())
}

/// Removes, and says in one line that nothing is left.
fn finish(name: &str, end: impl FnOnce()) -> Result<()> {
    let removed = leftovers::remove(name, end)?;
    say(&match removed.to_string().as_str() {
        "" => "Verified that nothing is left; there was nothing to remove.".to_owned(),
        removed => format!("Verified that nothing is left of {removed}."),
    });
    Ok(())
}

/// Waits for the child's end or for a signal to us. A child that has ended is
/// not waited for yet, so that its id stays its own.
fn await_end(child: &mut Child, signals: &mut Signals) -> Result<End> {
    let pid = Pid::from_raw(child.id().cast_signed());
    for signal in signals.forever() {
        if signal != SIGCHLD {
            return Ok(End::Interrupted(signal));
        }
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        match waitid(Id::Pid(pid), flags).context("wait for the show")? {
            WaitStatus::Exited(_, code) => {
                return Ok(End::Exited(ExitStatus::from_raw(code << 8)));
            }
            WaitStatus::Signaled(_, signal, _) => {
                return Ok(End::Exited(ExitStatus::from_raw(signal as i32)));
            }
            _ => {}
        }
    }
    bail!("no more signals are heard")
}

/// Kills the show, so that it makes nothing new. Its id stays its own.
fn end_show(child: &Child) {
    let pid = Pid::from_raw(child.id().cast_signed());
    let _ = kill(pid, Signal::SIGKILL); // it may have ended
    while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
}

/// Kills what is left of the show's process group: agents, servers, and a
/// command that it was running. What escapes is found by its namespace later.
fn end_group(child: &Child) {
    let pid = Pid::from_raw(child.id().cast_signed());
    let _ = killpg(pid, Signal::SIGKILL); // it may have had no group yet
    let _ = waitpid(pid, None);
    let gone = wait::until("end of the demo's processes", KILL_LIMIT, || {
        Ok((!processes::group_runs(child.id())).then_some(()))
    });
    if let Err(e) = gone {
        say(&format!("warning: {e}"));
    }
}

/// Prints; a reader that has gone away must not keep us from removing things.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
