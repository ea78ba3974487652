//! A connection, and what can be done to it from elsewhere.

use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// What a connection does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    Serve,
    /// Nothing is read or written, as if the network between were cut; the socket stays.
    Silent,
    Reset,
}

/// Commands for a connection.
#[derive(Debug)]
pub(super) struct Control {
    wanted: watch::Sender<State>,
    reached: watch::Sender<State>,
}

/// For a connection to do as it is told; the machine may be busy.
const LIMIT: Duration = Duration::from_secs(5);

impl Control {
    pub(super) fn new() -> Self {
        Self {
            wanted: watch::Sender::new(State::Serve),
            reached: watch::Sender::new(State::Serve),
        }
    }

    pub(super) fn reset(&self) {
        self.set(State::Reset);
    }

    /// A reset is the last thing that happens to a connection.
    pub(super) fn set(&self, state: State) {
        self.wanted.send_if_modified(|now| {
            let changes = *now != State::Reset && *now != state;
            if changes {
                *now = state;
            }
            changes
        });
    }

    /// Whether the connection runs.
    pub(super) fn is_open(&self) -> bool {
        self.wanted.receiver_count() > 0
    }

    /// Waits until the connection does what it was told last, or is closed.
    pub(super) fn wait(&self) {
        let deadline = Instant::now() + LIMIT;
        let done = || *self.reached.borrow() == *self.wanted.borrow();
        while self.is_open() && (*self.wanted.borrow() == State::Reset || !done()) {
            if Instant::now() > deadline {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<State> {
        self.wanted.subscribe()
    }
}

/// A second handle of a socket, to have the kernel reset the connection as it closes.
#[derive(Debug)]
pub(super) struct Fuse(OwnedFd);

impl Fuse {
    pub(super) fn of(socket: &TcpStream) -> std::io::Result<Self> {
        socket.as_fd().try_clone_to_owned().map(Self)
    }

    fn light(&self) {
        let at_once = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        // A socket that is closed already needs no reset.
        let _ = setsockopt(&self.0, sockopt::Linger, &at_once);
    }
}

/// Runs a connection as it is told; it is closed on return.
pub(super) async fn run(
    connection: impl Future<Output = ()>,
    control: &Control,
    mut state: watch::Receiver<State>,
    fuse: Fuse,
) {
    let mut connection = pin!(connection);
    loop {
        let now = *state.borrow_and_update();
        control.reached.send_replace(now);
        match now {
            State::Serve => tokio::select! {
                biased;
                changed = state.changed() => if changed.is_err() { return },
                () = &mut connection => return,
            },
            State::Silent => {
                if state.changed().await.is_err() {
                    return;
                }
            }
            State::Reset => return fuse.light(),
        }
    }
}
