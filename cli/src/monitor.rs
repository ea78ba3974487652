//! `tulle monitor`: events as they happen.
//!
//! The programs record events only until the tick in `tulle_monitor`. The
//! watcher moves that tick on while it lives, so a watcher that dies costs the
//! datapath nothing after a few seconds.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, StdoutLock, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use aya::maps::{Array, MapData};
use datapath_common::{EventKind, MonitorControl, TICK_NANOS};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::args::{Format, MonitorArgs};
use crate::context::Context;
use crate::event;
use crate::format;
use crate::links::interface_name;
use crate::output::{self, Style};

/// Ticks that a lease lasts: the watcher may be late by two seconds.
const LEASE_TICKS: u32 = 3;
/// How often the lease is renewed.
const RENEWAL: Duration = Duration::from_secs(1);

/// A flag that Ctrl-C and its like set.
///
/// # Errors
///
/// If the handler cannot be set.
pub fn interrupted() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&flag)).context("signal handler")?;
    }
    Ok(flag)
}

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kinds {
    /// Dropped and refused packets.
    pub drops: bool,
    /// Opened flows.
    pub flows: bool,
    /// Every packet.
    pub traces: bool,
}

impl Kinds {
    /// Losses and new flows if nothing is asked for.
    pub const fn new(args: &MonitorArgs) -> Self {
        let none = !(args.drops || args.flows || args.trace);
        Self {
            drops: args.drops || none,
            flows: args.flows || none,
            traces: args.trace,
        }
    }

    /// The lease for these kinds, from this tick on.
    pub const fn lease(self, now: u32) -> MonitorControl {
        const fn until(wanted: bool, tick: u32) -> u32 {
            if wanted { tick } else { 0 }
        }
        let tick = now.saturating_add(LEASE_TICKS);
        MonitorControl {
            drops_until: until(self.drops, tick),
            flows_until: until(self.flows, tick),
            traces_until: until(self.traces, tick),
            reserved: 0,
        }
    }

    /// Whether an event is asked for.
    pub const fn want(self, kind: EventKind) -> bool {
        match kind {
            EventKind::Drop => self.drops,
            EventKind::FlowOpened => self.flows,
            EventKind::Trace => self.traces,
        }
    }
}

/// The row of `tulle_monitor` while we watch; cleared when dropped.
struct Lease {
    map: Array<MapData, MonitorControl>,
    kinds: Kinds,
    renewed: Option<Instant>,
}

impl Lease {
    /// Moves the lease on if it is time to.
    fn renew(&mut self) -> anyhow::Result<()> {
        if self.renewed.is_some_and(|at| at.elapsed() < RENEWAL) {
            return Ok(());
        }
        let lease = self.kinds.lease(format::now_tick()?);
        self.map
            .set(0, lease, 0)
            .context("tulle_monitor: asking for events")?;
        self.renewed = Some(Instant::now());
        Ok(())
    }

    fn until_renewal(&self) -> Duration {
        self.renewed
            .map_or(Duration::ZERO, |at| RENEWAL.saturating_sub(at.elapsed()))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Err(error) = self.map.set(0, MonitorControl::default(), 0) {
            let secs = u64::from(LEASE_TICKS) * TICK_NANOS / 1_000_000_000;
            eprintln!("tulle: events are still recorded for {secs} s: {error}");
        }
    }
}

/// Runs the verb.
///
/// # Errors
///
/// If the maps cannot be read, another monitor runs, or the output cannot be written.
pub fn run(context: &Context, args: &MonitorArgs) -> anyhow::Result<()> {
    let datapath = context.datapath()?;
    let map = datapath.monitor()?;
    let mut ring = datapath.events()?;
    let _lock = lock(context)?;
    let stop = interrupted()?;
    let since = format::monotonic_nanos()?;
    let boot = format::unix_nanos()?.saturating_sub(since);
    let kinds = Kinds::new(args);
    let mut lease = Lease {
        map,
        kinds,
        renewed: None,
    };
    let mut out = Printer::new(context);
    let mut left = args.count.unwrap_or(u64::MAX);
    lease.renew()?;
    if context.format == Format::Table {
        eprintln!(
            "watching {}; times are UTC; Ctrl-C ends",
            datapath.dir().display()
        );
    }
    while left > 0 && !stop.load(Ordering::Relaxed) {
        lease.renew()?;
        while let Some(record) = ring.next() {
            let Some((event, kind)) = event::parse(&record) else {
                bail!(
                    "an event of {} bytes that this program does not know: use agent and tulle of \
                     one release",
                    record.len()
                );
            };
            drop(record);
            // The ring may hold events that a watcher before us left.
            if event.time < since || !kinds.want(kind) {
                continue;
            }
            out.event(&event::line(&event, kind, boot, &interface_name))?;
            left -= 1;
            if left == 0 || stop.load(Ordering::Relaxed) {
                break;
            }
            // A flood keeps us in this loop.
            lease.renew()?;
        }
        out.flush()?;
        if left > 0 {
            wait(&ring, lease.until_renewal())?;
        }
    }
    Ok(())
}

/// Waits for events, a signal or the time.
fn wait(ring: &impl AsFd, most: Duration) -> anyhow::Result<()> {
    let mut fds = [PollFd::new(ring.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(most).unwrap_or(PollTimeout::ZERO);
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(e) => Err(e).context("tulle_events: waiting for events"),
    }
}

/// Only one reader: whoever reads an event takes it from all others.
fn lock(context: &Context) -> anyhow::Result<Flock<File>> {
    let path = lock_path(context);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("lock file {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, Errno::EWOULDBLOCK)) => bail!(
            "another `tulle monitor` watches this node ({} is locked): events go to one reader; \
             end the other first",
            path.display()
        ),
        Err((_, e)) => Err(e).with_context(|| format!("lock file {}", path.display())),
    }
}

/// In the agent's run directory, or, before an agent has made it, among the
/// system's locks under the name of the pins' directory.
fn lock_path(context: &Context) -> PathBuf {
    if fs::metadata(&context.run_dir).is_ok_and(|meta| meta.is_dir()) {
        return context.run_dir.join("monitor.lock");
    }
    let pins = context.bpffs.as_os_str().as_bytes();
    let name: String = pins
        .iter()
        .map(|&b| {
            if b.is_ascii_alphanumeric() {
                b as char
            } else {
                '-'
            }
        })
        .collect();
    PathBuf::from(format!("/run/lock/tulle-monitor{name}.lock"))
}

/// Lines to standard output, flushed when there is nothing more to read.
struct Printer {
    out: BufWriter<StdoutLock<'static>>,
    format: Format,
    style: Style,
}

impl Printer {
    fn new(context: &Context) -> Self {
        let out = BufWriter::new(std::io::stdout().lock());
        Self {
            out,
            format: context.format,
            style: context.style,
        }
    }

    fn event(&mut self, line: &event::EventLine) -> anyhow::Result<()> {
        let text = match self.format {
            Format::Json => output::document("tulle.event", line, false)?,
            Format::Table => event::render(line, self.style),
        };
        self.out.write_all(text.as_bytes())?;
        Ok(())
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        Ok(self.out.flush()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_asked_for_means_losses_and_flows() {
        let kinds = Kinds::new(&MonitorArgs::default());
        assert_eq!(
            kinds,
            Kinds {
                drops: true,
                flows: true,
                traces: false
            }
        );
        let kinds = Kinds::new(&MonitorArgs {
            trace: true,
            ..MonitorArgs::default()
        });
        assert_eq!(
            kinds,
            Kinds {
                drops: false,
                flows: false,
                traces: true
            }
        );
        assert!(kinds.want(EventKind::Trace) && !kinds.want(EventKind::Drop));
    }

    #[test]
    fn a_lease_covers_only_what_is_asked_for() {
        let lease = Kinds {
            drops: true,
            flows: false,
            traces: false,
        }
        .lease(1000);
        let expected = MonitorControl {
            drops_until: 1003,
            ..MonitorControl::default()
        };
        assert_eq!(lease, expected);
    }
}
