//! One demo under each name: the supervisor listens at an abstract Unix socket,
//! which the kernel gives free when it ends, in whatever way.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

use nix::sys::socket::{getsockopt, sockopt};

/// The name, taken. Free again when dropped.
#[derive(Debug)]
pub struct NameLock {
    _listener: UnixListener,
}

/// Whose the name is.
#[derive(Debug)]
pub enum Taken {
    /// Ours now.
    Ours(NameLock),
    /// Of the process with this id.
    Other(i32),
}

/// Takes a name, or says who has it.
pub fn take(name: &str) -> io::Result<Taken> {
    let address = SocketAddr::from_abstract_name(format!("tulle-demo/{name}"))?;
    match UnixListener::bind_addr(&address) {
        Ok(listener) => Ok(Taken::Ours(NameLock {
            _listener: listener,
        })),
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            match UnixStream::connect_addr(&address) {
                Ok(stream) => Ok(Taken::Other(
                    getsockopt(&stream, sockopt::PeerCredentials)?.pid(),
                )),
                // It ended in between.
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => take(name),
                Err(e) => Err(e),
            }
        }
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_name_has_one_owner() {
        let name = format!("test-{}", std::process::id());
        let Taken::Ours(lock) = take(&name).unwrap() else {
            panic!("a free name")
        };
        let Taken::Other(pid) = take(&name).unwrap() else {
            panic!("a taken name")
        };
        assert_eq!(pid, std::process::id().cast_signed());
        drop(lock);
        // A child that another test starts at this moment holds the socket until it
        // becomes its own program.
        let free = || matches!(take(&name).unwrap(), Taken::Ours(_));
        let deadline = Instant::now() + Duration::from_secs(10);
        while !free() {
            assert!(Instant::now() < deadline, "the name is never free again");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
