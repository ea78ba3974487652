//! ICMP echo without the `ping` command.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recvfrom, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use crate::error::{Context, Error, Result};
use crate::netns::NetNs;
use crate::packet::checksum;

const ECHO_REQUEST: (u8, u8) = (8, 128);
const ECHO_REPLY: (u8, u8) = (0, 129);
/// From one request to the next.
const INTERVAL: Duration = Duration::from_secs(1);

/// Sends an echo request with `size` octets of data from the namespace each second,
/// until a reply comes. Returns the time from the first request to it.
///
/// # Errors
/// [`Error::Timeout`] without a reply; [`Error::Io`] if the kernel knows at
/// once that it cannot be sent (no route, too big).
pub fn ping(ns: &NetNs, to: IpAddr, size: usize, limit: Duration) -> Result<Duration> {
    ns.run(|| ping_here(to, size, limit))?
}

fn ping_here(to: IpAddr, size: usize, limit: Duration) -> Result<Duration> {
    let what = || format!("ping {to}");
    let (family, protocol) = match to {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let fd = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol).trying(what)?;
    let id = (std::process::id() as u16) ^ (nix::unistd::gettid().as_raw().cast_unsigned() as u16);
    let request = request(to, id, size);
    let start = Instant::now();
    let target = SockaddrStorage::from(SocketAddr::new(to, 0));
    let mut buffer = vec![0; size + 128];
    let mut next = Duration::ZERO;
    loop {
        let now = start.elapsed();
        if now >= limit {
            return Err(timeout(to, limit));
        }
        if now >= next {
            sendto(fd.as_raw_fd(), &request, &target, MsgFlags::empty()).trying(what)?;
            next = now + INTERVAL;
        }
        match receive(&fd, &mut buffer, (next.min(limit)).saturating_sub(now)) {
            Ok(n) if is_reply(to, &buffer[..n], &request) => return Ok(start.elapsed()),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e).trying(what),
        }
    }
}

fn timeout(to: IpAddr, limit: Duration) -> Error {
    Error::Timeout {
        what: format!("no echo reply from {to}"),
        limit,
        detail: String::new(),
    }
}

fn receive(fd: &OwnedFd, buffer: &mut [u8], left: Duration) -> io::Result<usize> {
    // Zero would mean "for ever".
    let micros = i64::try_from(left.as_micros()).unwrap_or(i64::MAX).max(1);
    let time = TimeVal::new(micros / 1_000_000, micros % 1_000_000);
    setsockopt(fd, sockopt::ReceiveTimeout, &time)?;
    match recvfrom::<SockaddrStorage>(fd.as_raw_fd(), buffer) {
        Ok((n, _)) => Ok(n),
        Err(Errno::EINTR) => Ok(0),
        Err(e) => Err(e.into()),
    }
}

fn request(to: IpAddr, id: u16, size: usize) -> Vec<u8> {
    let kind = if to.is_ipv4() {
        ECHO_REQUEST.0
    } else {
        ECHO_REQUEST.1
    };
    let mut packet = vec![kind, 0, 0, 0];
    packet.extend(id.to_be_bytes());
    packet.extend(1_u16.to_be_bytes());
    packet.extend((0..size).map(|n| n as u8));
    if to.is_ipv4() {
        // The kernel fills in ICMPv6's own (RFC 3542, section 3.1).
        let sum = checksum::internet(&[&packet]);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// A raw IPv4 socket delivers the IP header too, an IPv6 one does not.
fn is_reply(to: IpAddr, received: &[u8], request: &[u8]) -> bool {
    let (kind, header) = match to {
        IpAddr::V4(_) => (
            ECHO_REPLY.0,
            received.first().map_or(0, |b| usize::from(b & 15) * 4),
        ),
        IpAddr::V6(_) => (ECHO_REPLY.1, 0),
    };
    let Some(icmp) = received.get(header..) else {
        return false;
    };
    icmp.first() == Some(&kind) && icmp.get(4..) == request.get(4..)
}
