//! The sockets of the servers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket};

/// Connections that wait to be taken, for each socket.
const BACKLOG: u32 = 64;

/// An address to listen at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Door {
    /// The address.
    pub at: SocketAddr,
    /// Whether it was named; the other family's of one that is for all is open only where there is
    /// that family.
    pub named: bool,
}

/// Where `address` asks to listen: one of all zeros is both families' (pure).
pub fn doors(address: SocketAddr) -> Vec<Door> {
    let mut doors = vec![Door {
        at: address,
        named: true,
    }];
    let other: IpAddr = match address.ip() {
        IpAddr::V4(_) => Ipv6Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED.into(),
    };
    if address.ip().is_unspecified() {
        doors.push(Door {
            at: SocketAddr::new(other, address.port()),
            named: false,
        });
    }
    doors
}

/// Whether an error says that this node has no such family.
pub fn is_without_family(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}

/// A socket of exactly the address's family (KP-154).
pub fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = match at {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => {
            let socket = TcpSocket::new_v6()?;
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            socket
        }
    };
    // Connections of a former agent that time out hold no new one up.
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    socket.listen(BACKLOG)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_all_zeros_is_both_families() {
        let of = |text: &str| {
            let doors = doors(text.parse().unwrap());
            let told = |door: &Door| (door.at.to_string(), door.named);
            doors.iter().map(told).collect::<Vec<_>>()
        };
        let pair = |a: &str, b: &str| vec![(a.to_owned(), true), (b.to_owned(), false)];
        assert_eq!(of("0.0.0.0:7"), pair("0.0.0.0:7", "[::]:7"));
        assert_eq!(of("[::]:7"), pair("[::]:7", "0.0.0.0:7"));
        assert_eq!(of("127.0.0.1:7"), [("127.0.0.1:7".to_owned(), true)]);
    }
}
