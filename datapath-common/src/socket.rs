//! Services at the socket: whom a socket meets, and who asked for what.

use crate::{Ip4, Ip6};

/// Key of `tulle_conns_v4` and `tulle_conns_v6`: a socket.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(C)]
pub struct SocketId {
    /// The socket's cookie, low word first. No two sockets have one until the next boot.
    pub cookie: [u32; 2],
}

/// Value of `tulle_conns_v4` and `tulle_conns_v6`: the backend that a socket was connected
/// to in the place of a service. Written once for each call of `connect`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Connection<A> {
    /// The backend's address.
    pub backend_addr: A,
    /// The frontend's address, which the process asked for.
    pub service_addr: A,
    /// The backend's port, host order.
    pub backend_port: u16,
    /// The frontend's port, host order.
    pub service_port: u16,
    /// IP protocol number.
    pub proto: u8,
    /// Always zero.
    pub reserved: [u8; 3],
    /// Backend id.
    pub backend: u32,
    /// Generation of the backend's row.
    pub generation: u32,
    /// When it was written, in ticks.
    pub seen: u32,
}

/// Key of `tulle_socks_v4` and `tulle_socks_v6`, of sockets that send datagrams without being
/// connected. [`Forward`](crate::Direction::Forward): a service that the socket sends to; with
/// address and port zero the one that it began with last, by which its rows are found when it is
/// closed. [`Reply`](crate::Direction::Reply): a backend that it was given.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(C)]
pub struct SocketKey<A> {
    /// The socket's cookie, low word first. No two sockets have one until the next boot.
    pub cookie: [u32; 2],
    /// Forward: the frontend's address. Reply: the backend's.
    pub addr: A,
    /// Its port, host order.
    pub port: u16,
    /// IP protocol number.
    pub proto: u8,
    /// A [`Direction`](crate::Direction).
    pub direction: u8,
}

/// Value of `tulle_socks_v4` and `tulle_socks_v6`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct SocketPeer<A> {
    /// Forward: the backend's address, in the row with address and port zero the service's.
    /// Reply: the frontend's.
    pub addr: A,
    /// Its port, host order.
    pub port: u16,
    /// Always zero.
    pub reserved: u16,
    /// Backend id. 0, forward only: the packets are translated, not the socket.
    pub backend: u32,
    /// Generation of the backend's row.
    pub generation: u32,
    /// When it was last written, in ticks.
    pub seen: u32,
}

/// Key of `tulle_sk_affin`: who is remembered for a service port (KP-94). Before a
/// socket is connected its address is not known, so a client is a network namespace.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(C)]
pub struct SocketClient {
    /// The network namespace's cookie, low word first.
    pub netns: [u32; 2],
    /// Number of the service port.
    pub service: u32,
}

pod! {
    SocketId = 8 [[u32; 2]];
    Connection<Ip4> = 28 [Ip4, Ip4, u16, u16, u8, [u8; 3], u32, u32, u32];
    Connection<Ip6> = 52 [Ip6, Ip6, u16, u16, u8, [u8; 3], u32, u32, u32];
    SocketKey<Ip4> = 16 [[u32; 2], Ip4, u16, u8, u8];
    SocketKey<Ip6> = 28 [[u32; 2], Ip6, u16, u8, u8];
    SocketPeer<Ip4> = 20 [Ip4, u16, u16, u32, u32, u32];
    SocketPeer<Ip6> = 32 [Ip6, u16, u16, u32, u32, u32];
    SocketClient = 12 [[u32; 2], u32];
}

/// What a process does with a socket that a program takes part in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum SocketHook {
    /// Closes it.
    Release,
    /// Asks for its peer's address, IPv4.
    PeerName4,
    /// The same, IPv6.
    PeerName6,
    /// Reads whose datagram it was, IPv4.
    RecvMsg4,
    /// The same, IPv6.
    RecvMsg6,
    /// Connects, IPv4.
    Connect4,
    /// The same, IPv6.
    Connect6,
    /// Sends a datagram to an address that goes with it, IPv4.
    SendMsg4,
    /// The same, IPv6.
    SendMsg6,
}

impl SocketHook {
    /// Every one, those first that are there for sockets which were given a backend: when
    /// the first one is, they are.
    pub const ALL: [Self; 9] = [
        Self::Release,
        Self::PeerName4,
        Self::PeerName6,
        Self::RecvMsg4,
        Self::RecvMsg6,
        Self::Connect4,
        Self::Connect6,
        Self::SendMsg4,
        Self::SendMsg6,
    ];

    /// Whether its program sends a socket elsewhere: the others name what it was given.
    pub const fn sends_elsewhere(self) -> bool {
        matches!(
            self,
            Self::Connect4 | Self::Connect6 | Self::SendMsg4 | Self::SendMsg6
        )
    }

    /// The program's name.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Release => "tulle_release",
            Self::PeerName4 => "tulle_peername4",
            Self::PeerName6 => "tulle_peername6",
            Self::RecvMsg4 => "tulle_recvmsg4",
            Self::RecvMsg6 => "tulle_recvmsg6",
            Self::Connect4 => "tulle_connect4",
            Self::Connect6 => "tulle_connect6",
            Self::SendMsg4 => "tulle_sendmsg4",
            Self::SendMsg6 => "tulle_sendmsg6",
        }
    }
}
