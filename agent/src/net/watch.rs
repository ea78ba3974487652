//! The kernel's notifications, reduced to what has to be looked at again.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::IpAddr;
use std::ops::BitOrAssign;
use std::time::Duration;

use datapath_common::Mac;
use ipnet::IpNet;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::neighbour::{NeighbourMessage, NeighbourState};
use netlink_packet_route::route::RouteMessage;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket};
use tokio::time::Instant;

use super::link::{self, Link};
use super::netlink::{Netlink, NetlinkError};
use super::routes::{MAIN, RouteRow};
use super::rows;

/// How long notifications are gathered after the first of them.
const SETTLE: Duration = Duration::from_millis(3);
/// Receive buffer in bytes: a few thousand notifications.
const RECEIVE_BUFFER: usize = 4 << 20;

/// What has to be looked at again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NetChanged {
    /// [`super::LocalPods::discover`].
    pub pods: bool,
    /// [`super::SlowPath::reconcile`].
    pub overlay: bool,
    /// [`super::Uplink::find`] and [`super::next_hops`].
    pub uplink: bool,
}

impl NetChanged {
    /// Everything: what a lost notification means.
    pub const ALL: Self = Self {
        pods: true,
        overlay: true,
        uplink: true,
    };

    /// Anything.
    pub fn any(self) -> bool {
        self.pods || self.overlay || self.uplink
    }
}

impl BitOrAssign for NetChanged {
    fn bitor_assign(&mut self, other: Self) {
        self.pods |= other.pods;
        self.overlay |= other.overlay;
        self.uplink |= other.uplink;
    }
}

/// What the caller cares for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interest {
    /// Name of the uplink.
    pub uplink: String,
    /// Name of the overlay's device.
    pub device: String,
    /// Pod networks of this node.
    pub own_pod_cidrs: Vec<IpNet>,
}

/// A stream of changes in the network namespace of the thread that opened it.
pub struct Watcher {
    socket: TokioSocket,
    netlink: Netlink,
    sorter: Sorter,
    /// Heard and not yet handed out: [`Watcher::next`] may be dropped half way.
    pending: NetChanged,
    since: Option<Instant>,
}

impl Watcher {
    /// Subscribes. Look at everything once after this returns: what happened
    /// before is not notified.
    pub async fn open(interest: Interest) -> Result<Self, NetlinkError> {
        use MulticastGroup as Group;
        let mut socket = TokioSocket::new(NETLINK_ROUTE).map_err(NetlinkError::Open)?;
        let inner = socket.socket_mut();
        inner
            .bind(&SocketAddr::new(0, 0))
            .map_err(NetlinkError::Open)?;
        for group in [
            Group::Link,
            Group::Ipv4Ifaddr,
            Group::Ipv6Ifaddr,
            Group::Ipv4Route,
            Group::Ipv6Route,
            Group::Neigh,
        ] {
            inner
                .add_membership(group as u32)
                .map_err(NetlinkError::Open)?;
        }
        let netlink = Netlink::open()?;
        let mut watcher = Self {
            socket,
            sorter: Sorter {
                interest,
                names: HashMap::new(),
                heard: HashMap::new(),
            },
            netlink,
            pending: NetChanged::default(),
            since: None,
        };
        watcher.set_receive_buffer(RECEIVE_BUFFER)?;
        watcher.relearn().await?;
        Ok(watcher)
    }

    /// Sets the socket's receive buffer in bytes (the kernel's limit applies).
    pub fn set_receive_buffer(&self, bytes: usize) -> Result<(), NetlinkError> {
        self.socket
            .socket_ref()
            .set_rx_buf_sz(i32::try_from(bytes).unwrap_or(i32::MAX))
            .map_err(NetlinkError::Open)
    }

    /// Changes the interest; notifications waiting are judged by the new one.
    pub fn set_interest(&mut self, interest: Interest) {
        self.sorter.interest = interest;
    }

    /// Waits for the next change; changes that come within a few milliseconds
    /// are one. May be dropped at any point without losing anything.
    pub async fn next(&mut self) -> Result<NetChanged, NetlinkError> {
        loop {
            match self.since {
                None => self.receive().await?,
                Some(since) => {
                    let until = since + SETTLE;
                    let quiet = tokio::time::timeout_at(until, self.receive()).await;
                    if let Ok(result) = quiet {
                        result?;
                    }
                    if Instant::now() >= until {
                        self.since = None;
                        return Ok(std::mem::take(&mut self.pending));
                    }
                }
            }
            if self.since.is_none() && self.pending.any() {
                self.since = Some(Instant::now());
            }
        }
    }

    /// Takes one datagram into `pending`.
    async fn receive(&mut self) -> Result<(), NetlinkError> {
        match poll_fn(|context| self.socket.poll_recv_from_full(context)).await {
            Ok((datagram, _)) => {
                for message in Messages(&datagram) {
                    self.pending |= self.sorter.sort(&message);
                }
                Ok(())
            }
            // The kernel dropped notifications: anything may have changed.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                self.pending = NetChanged::ALL;
                self.relearn().await
            }
            Err(error) => Err(NetlinkError::Receive(error)),
        }
    }

    async fn relearn(&mut self) -> Result<(), NetlinkError> {
        let links = link::all(&self.netlink).await?;
        self.sorter.names = links.into_iter().map(|l| (l.index, l.name)).collect();
        self.sorter.heard.clear();
        Ok(())
    }
}

/// The messages of one datagram; what cannot be read is passed over.
struct Messages<'a>(&'a [u8]);

impl Iterator for Messages<'_> {
    type Item = RouteNetlinkMessage;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let length = self.0.get(..4)?.try_into().map(u32::from_ne_bytes).ok()? as usize;
            // The smallest message is a header.
            let message = self.0.get(..length).filter(|m| m.len() >= 16)?;
            // Messages are aligned to four octets.
            self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
            if let Ok(NetlinkMessage {
                payload: NetlinkPayload::InnerMessage(inner),
                ..
            }) = NetlinkMessage::deserialize(message)
            {
                return Some(inner);
            }
        }
    }
}

/// Decides what a notification is about.
struct Sorter {
    interest: Interest,
    /// Names of the interfaces, for notifications that carry only an index.
    names: HashMap<u32, String>,
    /// Last heard MAC addresses of pods: a state change of an entry is no news.
    heard: HashMap<(u32, IpAddr), Mac>,
}

impl Sorter {
    fn sort(&mut self, message: &RouteNetlinkMessage) -> NetChanged {
        use RouteNetlinkMessage as M;
        match message {
            M::NewLink(m) => Link::parse(m).map_or(NetChanged::default(), |link| {
                let before = self.names.insert(link.index, link.name.clone());
                // A renamed interface counts under both names.
                let mut changed = self.link(&link.name);
                if let Some(before) = before.filter(|before| *before != link.name) {
                    changed |= self.link(&before);
                }
                changed
            }),
            M::DelLink(m) => Link::parse(m).map_or(NetChanged::default(), |link| {
                self.names.remove(&link.index);
                self.heard.retain(|(index, _), _| *index != link.index);
                self.link(&link.name)
            }),
            M::NewAddress(m) | M::DelAddress(m) => self.address(m),
            M::NewRoute(m) | M::DelRoute(m) => self.route(m),
            M::NewNeighbour(m) => self.neighbour(m, false),
            M::DelNeighbour(m) => self.neighbour(m, true),
            _ => NetChanged::default(),
        }
    }

    fn link(&self, name: &str) -> NetChanged {
        if name == self.interest.uplink {
            NetChanged {
                pods: false,
                overlay: true,
                uplink: true,
            }
        } else if name == self.interest.device {
            NetChanged {
                overlay: true,
                ..NetChanged::default()
            }
        } else {
            NetChanged {
                pods: name != "lo",
                ..NetChanged::default()
            }
        }
    }

    fn address(&self, message: &AddressMessage) -> NetChanged {
        match self.names.get(&message.header.index) {
            Some(name) if *name == self.interest.uplink => NetChanged {
                uplink: true,
                ..NetChanged::default()
            },
            Some(name) if *name == self.interest.device => NetChanged {
                overlay: true,
                ..NetChanged::default()
            },
            // A gateway of pods: of a bridge that they are behind.
            _ => NetChanged {
                pods: rows::parse_address(message).is_some_and(|row| self.is_own(row.ip)),
                ..NetChanged::default()
            },
        }
    }

    fn route(&self, message: &RouteMessage) -> NetChanged {
        let Some(row) = RouteRow::parse(message).filter(|row| row.table == MAIN) else {
            return NetChanged::default();
        };
        let ip = row.destination.addr();
        if row.destination == rows::host_net(ip) && self.is_own(ip) {
            return NetChanged {
                pods: true,
                ..NetChanged::default()
            };
        }
        // One that replaces a route of ours is notified alone.
        NetChanged {
            pods: false,
            overlay: true,
            uplink: true,
        }
    }

    fn neighbour(&mut self, message: &NeighbourMessage, gone: bool) -> NetChanged {
        let index = message.header.ifindex;
        let on_device = self
            .names
            .get(&index)
            .is_some_and(|name| *name == self.interest.device);
        if on_device {
            let written = message.header.family == AddressFamily::Bridge
                || message.header.state == NeighbourState::Permanent;
            return NetChanged {
                overlay: gone || written,
                ..NetChanged::default()
            };
        }
        let Some(row) = rows::parse_neighbour(message).filter(|row| self.is_own(row.ip)) else {
            return NetChanged::default();
        };
        let key = (index, row.ip);
        let news = match row.mac {
            Some(mac) if !gone => self.heard.insert(key, mac) != Some(mac),
            _ if gone => {
                self.heard.remove(&key);
                false
            }
            _ => false,
        };
        NetChanged {
            pods: news,
            ..NetChanged::default()
        }
    }

    fn is_own(&self, ip: IpAddr) -> bool {
        self.interest
            .own_pod_cidrs
            .iter()
            .any(|net| net.contains(&ip))
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
