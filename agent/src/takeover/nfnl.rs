//! Netfilter's netlink (`nfnetlink`): listings, requests, and batches that the kernel carries out
//! as one. Attributes are in network order (`linux/netfilter/nfnetlink.h`).

use std::io;

use nix::sys::socket::{setsockopt, sockopt};
use rtnetlink::packet_core::NlasIterator;
use rtnetlink::sys::{
    Socket, SocketAddr,
    protocols::{NETLINK_GENERIC, NETLINK_NETFILTER},
};

/// `AF_INET`, `AF_INET6` and `NFPROTO_INET` in the octet that messages have for them.
pub const IPV4: u8 = 2;
/// IPv6.
pub const IPV6: u8 = 10;
/// Both families at once.
pub const INET: u8 = 1;

/// Connection tracking.
pub const CTNETLINK: u8 = 1;
/// Sets of addresses that iptables asks.
pub const IPSET: u8 = 6;
/// nftables, and what iptables writes by it.
pub const NFTABLES: u8 = 10;

/// The request makes what is not there.
pub const NLM_F_CREATE: u16 = 0x400;
/// It is refused if that is there.
pub const NLM_F_EXCL: u16 = 0x200;
/// Behind what is there already.
pub const NLM_F_APPEND: u16 = 0x800;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NLA_F_NESTED: u16 = 1 << 15;
/// Octets of `struct nlmsghdr` and `struct nfgenmsg`.
const HEADER: usize = 16;
const NFGENMSG: usize = 4;
/// How often a listing is begun again that changed while it was read; what it has then is taken.
const ATTEMPTS: u32 = 5;
/// A batch is one datagram, and the kernel counts more than its octets against the buffer.
const LEAST_BUFFER: usize = 1 << 20;

/// Attributes under construction.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// Adds one with these octets.
    #[must_use]
    pub fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend((value.len() as u16 + 4).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a name, as C has it.
    #[must_use]
    pub fn text(self, kind: u16, value: &str) -> Self {
        self.bytes(kind, &[value.as_bytes(), b"\0"].concat())
    }

    /// Adds a number of four octets.
    #[must_use]
    pub fn word(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// Adds attributes in an attribute.
    #[must_use]
    pub fn nest(self, kind: u16, value: &Self) -> Self {
        self.bytes(kind | NLA_F_NESTED, &value.0)
    }
}

/// The attributes in some octets, up to the first that is none: kind and value.
pub fn attributes(octets: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(octets).map_while(|found| {
        let found = found.ok()?;
        let (kind, end) = (found.kind(), found.length() as usize);
        Some((kind, found.into_inner().get(4..end)?))
    })
}

/// The first attribute of a kind.
pub fn attribute(octets: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(octets).find_map(|(kind, value)| (kind == wanted).then_some(value))
}

/// A name as C has it.
pub fn text(value: &[u8]) -> String {
    let end = value.iter().position(|octet| *octet == 0);
    String::from_utf8_lossy(&value[..end.unwrap_or(value.len())]).into_owned()
}

/// A number of up to eight octets.
pub fn number(value: &[u8]) -> u64 {
    value
        .iter()
        .take(8)
        .fold(0, |sum, octet| sum << 8 | u64::from(*octet))
}

/// What is asked of the kernel.
#[derive(Clone, Debug)]
pub struct Message {
    kind: u16,
    flags: u16,
    family: u8,
    resource: u16,
    attributes: Attributes,
}

impl Message {
    /// Message `kind` of a subsystem.
    pub fn new(subsystem: u8, kind: u8, family: u8, attributes: Attributes) -> Self {
        Self {
            kind: u16::from(subsystem) << 8 | u16::from(kind),
            flags: NLM_F_REQUEST,
            family,
            resource: 0,
            attributes,
        }
    }

    /// A command of a generic netlink family: its header has the same size.
    pub const fn generic(family: u16, command: u8, attributes: Attributes) -> Self {
        Self {
            kind: family,
            flags: NLM_F_REQUEST,
            family: command,
            resource: 0,
            attributes,
        }
    }

    /// The same with these flags, too.
    #[must_use]
    pub const fn flags(mut self, flags: u16) -> Self {
        self.flags |= flags;
        self
    }

    fn write(&self, sequence: u32, octets: &mut Vec<u8>) {
        let length = HEADER + NFGENMSG + self.attributes.0.len();
        octets.extend((length as u32).to_ne_bytes());
        octets.extend(self.kind.to_ne_bytes());
        octets.extend(self.flags.to_ne_bytes());
        octets.extend(sequence.to_ne_bytes());
        octets.extend(0_u32.to_ne_bytes());
        octets.extend([self.family, 0]);
        octets.extend(self.resource.to_be_bytes());
        octets.extend(&self.attributes.0);
    }
}

/// What the kernel tells of one object.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// Address family.
    pub family: u8,
    /// Its attributes.
    pub octets: &'a [u8],
}

/// A message as it was read.
struct Received<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

/// A netlink socket, in the network namespace of the thread that opened it.
pub struct Nfnl {
    /// None in a kernel without this protocol.
    socket: Option<Socket>,
    sequence: u32,
}

impl Nfnl {
    /// Opens one of netfilter. In a kernel that has none, all that is asked of it is answered as
    /// by a kernel without that part ([`super::nft::is_without_nftables`]).
    pub fn open() -> io::Result<Self> {
        match Self::of(NETLINK_NETFILTER) {
            Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => Ok(Self::absent()),
            opened => opened,
        }
    }

    /// That of a kernel without netfilter's netlink.
    pub(super) const fn absent() -> Self {
        Self {
            socket: None,
            sequence: 0,
        }
    }

    /// Opens one of generic netlink.
    pub fn open_generic() -> io::Result<Self> {
        Self::of(NETLINK_GENERIC)
    }

    fn of(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket: Some(socket),
            sequence: 0,
        })
    }

    fn socket(&self) -> io::Result<&Socket> {
        let absent = || io::Error::from_raw_os_error(libc::EPROTONOSUPPORT);
        self.socket.as_ref().ok_or_else(absent)
    }

    /// Reads a listing. `begin` is told when it begins, again if something changed meanwhile.
    pub fn dump(&mut self, message: &Message, mut take: impl FnMut(Step<'_>)) -> io::Result<()> {
        for attempt in 1..=ATTEMPTS {
            take(Step::Begins);
            let sequence = self.next();
            self.send(&[(message.clone().flags(NLM_F_DUMP), sequence)])?;
            let torn = self.receive(sequence, |told| take(Step::Told(told)))?;
            if !torn || attempt == ATTEMPTS {
                break;
            }
        }
        Ok(())
    }

    /// Has one request carried out.
    pub fn request(&mut self, message: Message) -> io::Result<()> {
        self.ask(message, |_| {})
    }

    /// The same of one that is answered.
    pub fn ask(&mut self, message: Message, take: impl FnMut(Told<'_>)) -> io::Result<()> {
        let sequence = self.next();
        self.send(&[(message.flags(NLM_F_ACK), sequence)])?;
        self.receive(sequence, take).map(|_| ())
    }

    /// Has requests of one subsystem carried out together, or none of them.
    pub fn batch(&mut self, subsystem: u8, mut messages: Vec<Message>) -> io::Result<()> {
        let Some(last) = messages.last_mut() else {
            return Ok(());
        };
        last.flags |= NLM_F_ACK;
        let edge = |kind| Message {
            kind,
            flags: NLM_F_REQUEST,
            family: 0,
            resource: u16::from(subsystem),
            attributes: Attributes::default(),
        };
        let first = self.next();
        let mut all = vec![(edge(BATCH_BEGIN), first)];
        for message in messages {
            let sequence = self.next();
            all.push((message, sequence));
        }
        let last = self.sequence;
        let end = self.next();
        all.push((edge(BATCH_END), end));
        self.send(&all)?;
        // Only what was refused is answered, and the last one; what fails as a whole, by the first.
        let mut refused = None;
        loop {
            let (datagram, _) = self.socket()?.recv_from_full()?;
            for received in messages_of(&datagram) {
                if received.kind != NLMSG_ERROR || !(first..=end).contains(&received.sequence) {
                    continue;
                }
                let outcome = outcome(received.body);
                let over = received.sequence == last || received.sequence == first;
                if let Err(error) = outcome {
                    refused.get_or_insert(error);
                }
                if over {
                    return refused.map_or(Ok(()), Err);
                }
            }
        }
    }

    fn next(&mut self) -> u32 {
        self.sequence += 1;
        self.sequence
    }

    fn send(&self, messages: &[(Message, u32)]) -> io::Result<()> {
        let mut octets = Vec::new();
        for (message, sequence) in messages {
            message.write(*sequence, &mut octets);
        }
        let room = octets.len().max(LEAST_BUFFER) * 2;
        let socket = self.socket()?;
        for set in [set_send_buffer, set_receive_buffer] {
            set(socket, room)?;
        }
        socket.send(&octets, 0)?;
        Ok(())
    }

    /// Reads until the message with this sequence number was answered: whether what was listed
    /// changed meanwhile.
    fn receive(&self, sequence: u32, mut take: impl FnMut(Told<'_>)) -> io::Result<bool> {
        let mut torn = false;
        loop {
            let (datagram, _) = self.socket()?.recv_from_full()?;
            if let Some(outcome) = read(&datagram, sequence, &mut torn, &mut take) {
                return outcome.map(|()| torn);
            }
        }
    }
}

/// Reads what a datagram has of an answer, and how that ended if it did. The kernel may say by the
/// very last message of a listing that it is `torn`.
fn read(
    datagram: &[u8],
    sequence: u32,
    torn: &mut bool,
    mut take: impl FnMut(Told<'_>),
) -> Option<io::Result<()>> {
    for received in messages_of(datagram).filter(|received| received.sequence == sequence) {
        *torn |= received.flags & NLM_F_DUMP_INTR != 0;
        if matches!(received.kind, NLMSG_DONE | NLMSG_ERROR) {
            return Some(outcome(received.body));
        }
        if let Some(told) = told(&received) {
            take(told);
        }
    }
    None
}

/// How a listing goes on.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// From its beginning.
    Begins,
    /// With one object.
    Told(Told<'a>),
}

fn set_send_buffer(socket: &Socket, octets: usize) -> io::Result<()> {
    Ok(setsockopt(socket, sockopt::SndBufForce, &octets)?)
}

fn set_receive_buffer(socket: &Socket, octets: usize) -> io::Result<()> {
    Ok(setsockopt(socket, sockopt::RcvBufForce, &octets)?)
}

fn told<'a>(received: &Received<'a>) -> Option<Told<'a>> {
    Some(Told {
        family: *received.body.first()?,
        octets: received.body.get(NFGENMSG..)?,
    })
}

/// The messages of a datagram.
fn messages_of(datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let header = rest.get(..HEADER)?;
        let word = |at: usize| header[at..at + 4].try_into().map(u32::from_ne_bytes);
        let half = |at: usize| header[at..at + 2].try_into().map(u16::from_ne_bytes);
        let length = (word(0).ok()? as usize).clamp(HEADER, rest.len());
        let received = Received {
            kind: half(4).ok()?,
            flags: half(6).ok()?,
            sequence: word(8).ok()?,
            body: &rest[HEADER..length],
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(received)
    })
}

/// How an answer ended.
fn outcome(body: &[u8]) -> io::Result<()> {
    let number = body.get(..4).and_then(|octets| octets.try_into().ok());
    match number.map_or(0, i32::from_ne_bytes) {
        number @ ..0 => Err(io::Error::from_raw_os_error(-number)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let inner = Attributes::default().word(1, 7).text(2, "abc");
        let all = Attributes::default()
            .bytes(3, &[1])
            .nest(4, &inner)
            .bytes(5, &8_u64.to_be_bytes());
        let read: Vec<u16> = attributes(&all.0).map(|(kind, _)| kind).collect();
        assert_eq!(read, [3, 4, 5]);
        assert_eq!(attribute(&all.0, 3), Some(&[1][..]));
        let nested = attribute(&all.0, 4).unwrap();
        assert_eq!(number(attribute(nested, 1).unwrap()), 7);
        assert_eq!(text(attribute(nested, 2).unwrap()), "abc");
        assert_eq!(number(attribute(&all.0, 5).unwrap()), 8);
        assert_eq!(attribute(&all.0[..all.0.len() - 1], 5), None, "cut off");
    }

    #[test]
    fn a_listing_may_be_torn_by_its_last_message() {
        let object = Message::new(NFTABLES, 1, IPV4, Attributes::default());
        let done = Message {
            kind: NLMSG_DONE,
            ..object.clone()
        };
        for (flags, wanted) in [(0, false), (NLM_F_DUMP_INTR, true)] {
            let mut octets = Vec::new();
            object.write(7, &mut octets);
            // Another's answer.
            object.clone().flags(NLM_F_DUMP_INTR).write(8, &mut octets);
            let (mut torn, mut told) = (false, 0);
            assert!(read(&octets, 7, &mut torn, |_| told += 1).is_none());
            octets.clear();
            let end = Message {
                family: 0,
                ..done.clone()
            };
            end.flags(flags).write(7, &mut octets);
            let outcome = read(&octets, 7, &mut torn, |_| told += 1);
            outcome.unwrap().unwrap();
            assert_eq!((torn, told), (wanted, 1));
        }
    }

    #[test]
    fn a_kernel_without_netfilters_netlink_has_nothing() {
        use super::super::{conntrack, ipvs, keeper, nft};
        let mut netlink = Nfnl::absent();
        assert_eq!(nft::Left::find(&mut netlink).unwrap(), nft::Left::default());
        assert!(
            ipvs::Left::find(&mut netlink, false)
                .unwrap()
                .sets
                .is_empty()
        );
        assert_eq!(conntrack::translated(&mut netlink).unwrap(), []);
        assert!(!keeper::remove(&mut netlink).unwrap());
        let error = keeper::make(&mut netlink).unwrap_err();
        assert!(nft::is_without_nftables(&error), "{error}");
    }

    #[test]
    fn messages_follow_each_other_in_a_datagram() {
        let mut octets = Vec::new();
        let message = |n| Message::new(NFTABLES, n, IPV4, Attributes::default().bytes(1, &[n]));
        message(1).write(5, &mut octets);
        message(2).write(6, &mut octets);
        let read: Vec<(u16, u32, u8)> = messages_of(&octets)
            .map(|m| (m.kind, m.sequence, told(&m).unwrap().family))
            .collect();
        assert_eq!(read, [(0xa01, 5, IPV4), (0xa02, 6, IPV4)]);
        assert_eq!(messages_of(&octets[..HEADER - 1]).count(), 0);
    }
}
