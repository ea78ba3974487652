//! Sockets of the calling thread's network namespace, by netlink (`sock_diag(7)`): which there
//! are, and those of datagrams that are connected, which can be closed from outside.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytemuck::{Pod, Zeroable};
use datapath_common::proto;
use rtnetlink::sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};

/// `AF_INET`, `AF_INET6` and `IPPROTO_UDP` in the octet that the messages have for them.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// From `linux/sock_diag.h` and `linux/netlink.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
/// `TCP_ESTABLISHED`, which a connected socket of datagrams is in, too.
const ESTABLISHED: u32 = 1 << 1;
/// Every state that has a socket of its own: not those of `TIME_WAIT` (6) and of requests (12).
const ALL: u32 = 0xfff & !(1 << 6);

/// `struct nlmsghdr`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Header {
    length: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
}

/// `struct inet_diag_sockid`: ports and addresses in network order.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
struct Id {
    sport: [u8; 2],
    dport: [u8; 2],
    src: [u8; 16],
    dst: [u8; 16],
    interface: u32,
    cookie: [u32; 2],
}

/// `struct inet_diag_req_v2`, behind its header.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Request {
    header: Header,
    family: u8,
    protocol: u8,
    extensions: u8,
    padding: u8,
    states: u32,
    id: Id,
}

impl Request {
    /// One for all states.
    fn new(kind: u16, flags: u16, family: u8, protocol: u8) -> Self {
        Self {
            header: Header {
                length: size_of::<Self>() as u32,
                kind,
                flags: NLM_F_REQUEST | flags,
                sequence: 0,
                port: 0,
            },
            family,
            protocol,
            extensions: 0,
            padding: 0,
            states: ALL,
            id: Id::zeroed(),
        }
    }
}

/// The beginning of `struct inet_diag_msg`.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Answer {
    family: u8,
    state: u8,
    timer: u8,
    retransmissions: u8,
    id: Id,
}

/// A connected socket of datagrams.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Datagrams {
    family: u8,
    id: Id,
}

impl Datagrams {
    /// Its cookie, low word first.
    pub const fn cookie(&self) -> [u32; 2] {
        self.id.cookie
    }

    /// Whom it is connected to, by an IPv4 address where it sends IPv4.
    pub fn peer(&self) -> SocketAddr {
        let [a, b, c, d, ..] = self.id.dst;
        let ip = if self.family == AF_INET {
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        } else {
            IpAddr::V6(Ipv6Addr::from(self.id.dst)).to_canonical()
        };
        SocketAddr::new(ip, u16::from_be_bytes(self.id.dport))
    }
}

/// A netlink socket.
pub struct SockDiag {
    socket: Socket,
    sequence: u32,
}

impl SockDiag {
    /// Opens one in the calling thread's network namespace.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// The sockets of datagrams that are connected; `v6` those of IPv6, which may be
    /// connected to an IPv4 address.
    pub fn connected(&mut self, v6: bool) -> io::Result<Vec<Datagrams>> {
        let family = if v6 { AF_INET6 } else { AF_INET };
        let mut found = Vec::new();
        let request = Request {
            states: ESTABLISHED,
            ..Request::new(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, proto::UDP)
        };
        self.ask(request, |answer| {
            found.push(Datagrams {
                family: answer.family,
                id: answer.id,
            });
        })?;
        Ok(found)
    }

    /// The cookies of all sockets of TCP and UDP, low word first; `v6` of those of IPv6.
    pub fn cookies(&mut self, v6: bool) -> io::Result<Vec<[u32; 2]>> {
        let family = if v6 { AF_INET6 } else { AF_INET };
        let mut found = Vec::new();
        for protocol in [proto::TCP, proto::UDP] {
            let request = Request::new(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, protocol);
            self.ask(request, |answer| found.push(answer.id.cookie))?;
        }
        Ok(found)
    }

    /// Closes one: its process reads `ECONNABORTED` (Linux with
    /// `CONFIG_INET_DIAG_DESTROY`). False if it is gone already.
    pub fn destroy(&mut self, socket: &Datagrams) -> io::Result<bool> {
        let request = Request {
            id: socket.id,
            states: ESTABLISHED,
            ..Request::new(SOCK_DESTROY, NLM_F_ACK, socket.family, proto::UDP)
        };
        match self.ask(request, |_| {}) {
            Ok(()) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(e) => Err(e),
        }
    }

    fn ask(&mut self, mut request: Request, mut take: impl FnMut(&Answer)) -> io::Result<()> {
        self.sequence += 1;
        request.header.sequence = self.sequence;
        self.socket.send(bytemuck::bytes_of(&request), 0)?;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = datagram.as_slice();
            while let Some(header) = beginning::<Header>(rest) {
                let length = (header.length as usize).clamp(size_of::<Header>(), rest.len());
                let body = &rest[size_of::<Header>()..length];
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                if header.sequence != self.sequence {
                    continue;
                }
                match header.kind {
                    // A listing that fails in the middle, or for want of a module, ends by an
                    // error too.
                    NLMSG_DONE | NLMSG_ERROR => return outcome(body),
                    _ => {
                        if let Some(answer) = beginning::<Answer>(body) {
                            take(&answer);
                        }
                    }
                }
            }
        }
    }
}

/// How an answer ended, by its last message.
fn outcome(body: &[u8]) -> io::Result<()> {
    match beginning::<i32>(body).unwrap_or(0) {
        number @ ..0 => Err(io::Error::from_raw_os_error(-number)),
        _ => Ok(()),
    }
}

/// What some octets begin with.
fn beginning<T: Pod>(bytes: &[u8]) -> Option<T> {
    bytes
        .get(..size_of::<T>())
        .map(bytemuck::pod_read_unaligned)
}

const _: () = assert!(size_of::<Request>() == 72 && size_of::<Answer>() == 52);
