//! UDP as traceroute and path MTU discovery use it: a chosen TTL, no
//! fragmentation, and what routers answer.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, getsockopt, recvmsg, setsockopt, sockopt,
};

use crate::echo;
use crate::error::{Context, Error, Result};
use crate::netns::NetNs;
use crate::wait;

mod option {
    //! Socket options that nix does not have.
    use nix::{getsockopt_impl, setsockopt_impl, sockopt_impl};

    sockopt_impl!(
        /// What a socket does about the path MTU, `libc::IP_PMTUDISC_*`.
        Ipv4MtuDiscover, SetOnly, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::c_int
    );
    sockopt_impl!(
        /// The same for IPv6, `libc::IPV6_PMTUDISC_*`.
        Ipv6MtuDiscover, SetOnly, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::c_int
    );
    sockopt_impl!(
        /// The path MTU of a connected socket, in octets.
        Ipv6Mtu, GetOnly, libc::IPPROTO_IPV6, libc::IPV6_MTU, libc::c_int
    );
}

/// A connected UDP socket that never fragments and keeps ICMP errors.
#[derive(Debug)]
pub struct Probe {
    socket: UdpSocket,
    to: SocketAddr,
}

/// An ICMP error as the socket's error queue has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IcmpError {
    /// Who sent it.
    pub from: IpAddr,
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// MTU of the next hop in octets, if it is about that.
    pub mtu: u32,
}

/// What an IPv4 socket does about the path MTU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Discovery {
    /// Every packet has "don't fragment"; what does not fit is not sent.
    Always,
    /// No packet has it; the host itself fragments what does not fit its link.
    Never,
}

/// Sets what an IPv4 socket does about the path MTU.
pub fn set_discovery(socket: &impl AsFd, discovery: Discovery) -> Result<()> {
    let value = match discovery {
        Discovery::Always => libc::IP_PMTUDISC_DO,
        Discovery::Never => libc::IP_PMTUDISC_DONT,
    };
    setsockopt(socket, option::Ipv4MtuDiscover, &value)
        .trying(|| format!("set path MTU discovery to {discovery:?}"))
}

impl Probe {
    /// A socket of the namespace. Every packet has DF set, or is sent whole.
    pub fn connect(ns: &NetNs, to: SocketAddr) -> Result<Self> {
        let what = || format!("prepare a probe to {to}");
        let socket = echo::udp_connect(ns, to)?;
        if to.is_ipv4() {
            setsockopt(&socket, sockopt::Ipv4RecvErr, &true).trying(what)?;
            set_discovery(&socket, Discovery::Always)?;
        } else {
            setsockopt(&socket, sockopt::Ipv6RecvErr, &true).trying(what)?;
            let never = libc::IPV6_PMTUDISC_DO;
            setsockopt(&socket, option::Ipv6MtuDiscover, &never).trying(what)?;
        }
        Ok(Self { socket, to })
    }

    /// Where the datagrams go.
    pub fn to(&self) -> SocketAddr {
        self.to
    }

    /// The socket, for exchanges with an [`EchoServer`](echo::EchoServer).
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// TTL or hop limit of what is sent from now on.
    pub fn set_hop_limit(&self, hops: u8) -> Result<()> {
        let hops = i32::from(hops);
        let set = if self.to.is_ipv4() {
            setsockopt(&self.socket, sockopt::Ipv4Ttl, &hops)
        } else {
            setsockopt(&self.socket, sockopt::Ipv6Ttl, &hops)
        };
        set.trying(|| format!("set the hop limit of a probe to {}", self.to))
    }

    /// Sends one datagram.
    ///
    /// # Errors
    /// Those of `send`: EMSGSIZE if the datagram is larger than the path MTU
    /// known so far, and errors of earlier datagrams that nobody has read.
    pub fn send(&self, data: &[u8]) -> io::Result<usize> {
        self.socket.send(data)
    }

    /// The path MTU that the kernel knows, in octets with IP header.
    pub fn path_mtu(&self) -> Result<u32> {
        path_mtu(&self.socket, self.to)
    }

    /// Waits for an ICMP error about a datagram of this socket. Errors that the
    /// host's own stack found are passed over.
    pub fn icmp_error(&self, limit: Duration) -> Result<IcmpError> {
        let what = format!("no ICMP error about a probe to {}", self.to);
        wait::until(&what, limit, || {
            next_error(&self.socket).trying(|| format!("read errors of a probe to {}", self.to))
        })
    }
}

/// The path MTU of a connected socket in octets with IP header.
pub fn path_mtu(socket: &impl AsFd, to: SocketAddr) -> Result<u32> {
    let mtu = if to.is_ipv4() {
        getsockopt(socket, sockopt::IpMtu)
    } else {
        getsockopt(socket, option::Ipv6Mtu)
    };
    let mtu = mtu.trying(|| format!("read the path MTU to {to}"))?;
    u32::try_from(mtu).map_err(|_| Error::Invalid(format!("the path MTU to {to} is {mtu}")))
}

/// Takes the next ICMP error from the socket's queue, if there is one.
fn next_error(socket: &UdpSocket) -> nix::Result<Option<IcmpError>> {
    let mut data = [0; 2048];
    let mut space = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6, libc::c_int);
    loop {
        let mut parts = [IoSliceMut::new(&mut data)];
        let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
        let message = match recvmsg::<SockaddrStorage>(
            socket.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            flags,
        ) {
            Ok(message) => message,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(e) => return Err(e),
        };
        if let Some(error) = message.cmsgs()?.find_map(|message| icmp_error(&message)) {
            return Ok(Some(error));
        }
    }
}

fn icmp_error(message: &ControlMessageOwned) -> Option<IcmpError> {
    let (error, from) = match message {
        ControlMessageOwned::Ipv4RecvErr(error, Some(from))
            if error.ee_origin == libc::SO_EE_ORIGIN_ICMP =>
        {
            let address = u32::from_be(from.sin_addr.s_addr);
            (error, IpAddr::V4(address.into()))
        }
        ControlMessageOwned::Ipv6RecvErr(error, Some(from))
            if error.ee_origin == libc::SO_EE_ORIGIN_ICMP6 =>
        {
            let address = Ipv6Addr::from(from.sin6_addr.s6_addr);
            (error, IpAddr::V6(address))
        }
        _ => return None,
    };
    Some(IcmpError {
        from,
        kind: error.ee_type,
        code: error.ee_code,
        mtu: error.ee_info,
    })
}
