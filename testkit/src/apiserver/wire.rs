//! A connection, and what can be done to it from elsewhere.

use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;

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
pub(super) struct Control(watch::Sender<State>);

impl Control {
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(State::Serve))
    }

    pub(super) fn reset(&self) {
        self.set(State::Reset);
    }

    /// A reset is the last thing that happens to a connection.
    pub(super) fn set(&self, state: State) {
        self.0.send_if_modified(|now| {
            let changes = *now != State::Reset && *now != state;
            if changes {
                *now = state;
            }
            changes
        });
    }

    /// Whether the connection runs.
    pub(super) fn is_open(&self) -> bool {
        self.0.receiver_count() > 0
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<State> {
        self.0.subscribe()
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
    mut state: watch::Receiver<State>,
    fuse: Fuse,
) {
    let mut connection = pin!(connection);
    loop {
        let now = *state.borrow_and_update();
        match now {
            State::Serve => tokio::select! {
                () = &mut connection => return,
                changed = state.changed() => if changed.is_err() { return },
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
