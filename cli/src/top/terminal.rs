//! The terminal: taken over, asked for keys, and always given back.

use std::io::{self, IsTerminal, Stdout, stdout};
use std::os::fd::AsFd;
use std::panic;
use std::process;
use std::sync::Arc;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, bail};
use crossterm::cursor::Show;
use crossterm::event::{self, Event};
use crossterm::execute;
use crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ratatui::backend::CrosstermBackend;
use ratatui::{Frame, Terminal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::top::app::{Action, App};
use crate::top::draw;
use crate::top::worker::{Order, Worker};

/// How long a key is waited for before readings and signals are looked at.
const TICK: Duration = Duration::from_millis(50);
/// How long a signal leaves for an orderly end.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether the terminal is ours at the moment.
static TAKEN: AtomicBool = AtomicBool::new(false);
static HOOK: Once = Once::new();

/// The terminal while it is ours. Given back when this is dropped, and on a panic.
pub struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    /// Takes the terminal of this process over.
    ///
    /// # Errors
    ///
    /// What the terminal says.
    pub fn enter() -> anyhow::Result<Self> {
        HOOK.call_once(|| {
            let hook = panic::take_hook();
            panic::set_hook(Box::new(move |info| {
                // Before the message, which would be lost with the screen.
                give_back();
                hook(info);
            }));
        });
        enable_raw_mode().context("terminal: taking keys one by one")?;
        TAKEN.store(true, Ordering::SeqCst);
        let terminal = execute!(stdout(), EnterAlternateScreen)
            .and_then(|()| Terminal::new(CrosstermBackend::new(stdout())));
        match terminal {
            Ok(terminal) => Ok(Self { terminal }),
            Err(error) => {
                give_back();
                Err(error).context("terminal: taking the screen over")
            }
        }
    }

    /// Draws a whole frame.
    ///
    /// # Errors
    ///
    /// What the terminal says; that it is not ours any more.
    pub fn draw(&mut self, draw: impl FnOnce(&mut Frame<'_>)) -> anyhow::Result<()> {
        if !TAKEN.load(Ordering::SeqCst) {
            bail!("the terminal was given back");
        }
        self.terminal.draw(draw).context("terminal: drawing")?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Gives the terminal back, once.
fn give_back() {
    if TAKEN.swap(false, Ordering::SeqCst) {
        // Whatever fails: there is nothing else to try, and the rest may still do.
        let _ = disable_raw_mode();
        let _ = execute!(stdout(), LeaveAlternateScreen, Show);
    }
}

/// A flag that Ctrl-C and its like set. If the process has not ended soon after, it is ended: a
/// terminal that hung up, or is stopped, may keep it in a call.
///
/// # Errors
///
/// If the signals cannot be waited for.
pub fn ended_by_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&flag);
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("signal handler")?;
    thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            if signals.forever().next().is_some() {
                set.store(true, Ordering::SeqCst);
                thread::sleep(PATIENCE);
                // A terminal that is stopped takes nothing: its modes are no output.
                let _ = disable_raw_mode();
                let _ = thread::Builder::new().spawn(give_back);
                thread::sleep(PATIENCE);
                process::exit(1);
            }
        })
        .context("signal handler")?;
    Ok(flag)
}

/// Shows what the worker reads and does what keys say, until a key or a signal ends it.
///
/// # Errors
///
/// What the terminal says; that the worker ended.
pub fn run(mut app: App, worker: &Worker, color: bool) -> anyhow::Result<()> {
    let stop = ended_by_signals()?;
    let mut screen = Screen::enter()?;
    let result = show(&mut screen, &mut app, worker, color, &stop);
    // A terminal that is gone is a reason to end, and nobody reads another one.
    if stop.load(Ordering::SeqCst) || !io::stdin().is_terminal() {
        return Ok(());
    }
    result
}

fn show(
    screen: &mut Screen,
    app: &mut App,
    worker: &Worker,
    color: bool,
    stop: &AtomicBool,
) -> anyhow::Result<()> {
    let mut size = None;
    let mut changed = true;
    while !stop.load(Ordering::SeqCst) {
        loop {
            use std::sync::mpsc::TryRecvError;
            match worker.views.try_recv() {
                Ok(view) => {
                    app.take(view);
                    changed = true;
                }
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => bail!("the thread that reads has ended"),
            }
        }
        let now = crossterm::terminal::size().context("terminal: its size")?;
        if size != Some(now) {
            size = Some(now);
            app.resize(now.1);
            changed = true;
        }
        if changed {
            screen.draw(|frame| draw::draw(frame, app, color))?;
            changed = false;
        }
        let Some(event) = next_event(TICK).context("terminal: waiting for keys")? else {
            continue;
        };
        changed = true;
        if let Event::Key(key) = event {
            let order = match app.key(key) {
                Action::None => continue,
                Action::Quit => return Ok(()),
                Action::Interval(interval) => Order::Interval(interval),
                Action::Pause(paused) => Order::Pause(paused),
            };
            // That it has ended is noticed above.
            let _ = worker.orders.send(order);
        }
    }
    Ok(())
}

/// The next key or change of size, if there is one in time.
fn next_event(timeout: Duration) -> io::Result<Option<Event>> {
    // What was read together with the last key comes first.
    for timeout in [Duration::ZERO, timeout] {
        wait(timeout)?;
        if event::poll(Duration::ZERO)? {
            return event::read().map(Some);
        }
    }
    Ok(None)
}

/// Waits for something to read at the terminal. crossterm would read a terminal that hung up again
/// and again, for ever.
fn wait(timeout: Duration) -> io::Result<()> {
    const GONE: PollFlags = PollFlags::POLLHUP
        .union(PollFlags::POLLERR)
        .union(PollFlags::POLLNVAL);
    let stdin = io::stdin();
    let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::ZERO);
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error.into()),
    }
    let [stdin] = fds;
    if stdin
        .revents()
        .is_some_and(|events| events.intersects(GONE))
    {
        return Err(io::Error::other("it hung up"));
    }
    Ok(())
}
